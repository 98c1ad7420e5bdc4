//! Ten minutes of metering in virtual time, with faults: is every GPU-second in one record, and in the right one?
//!
//! The agent's process lives in real time, so what it is made of runs here by the simulator's clock, a hundred times as
//! fast: readings through the simulated library, [`Sights`], [`Meter`], [`Store`] on a real disk. Devices throw Xids,
//! hang, overheat, are lost and reset; the driver is reloaded; the agent is killed without warning; kubelet is silent; the
//! disk is full. Awards change hands all the time.
//!
//! Whose each second was is worked out apart from the meter, from what kubelet was told to say.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use vendue_gpu_agent::inventory::{DeviceFault, NodeInventory};
use vendue_gpu_agent::meter::{Clocks, Meter, Settings, Sights, Store, options};
use vendue_gpu_agent::pods::attribution::{Attribution, Known, attribute};
use vendue_gpu_agent::pods::slices::DeviceNames;
use vendue_gpu_agent::probe::DeviceProbe;
use vendue_gpu_agent::probe::nvml::NvmlProbe;
use vendue_gpu_sim::clock::Clock;
use vendue_gpu_sim::fault::{Event, Fault};
use vendue_gpu_sim::fleet::Fleet;
use vendue_gpu_sim::load::Work;
use vendue_gpu_sim::script::{Plan as Script, generate};
use vendue_gpu_sim::source::now_unix_ns;
use vendue_receipts::{AwardId, Body, BootId, DeviceTotals, GapReason, NodeKey, Record};
use vendue_receipts_store::{Disk, Files};

use crate::node::kubelet::pods;
use crate::node::receipts::Chains;
use crate::node::{NodeError, Programs, io as failed, wrong};
use crate::process::span;
use crate::report::{Report, say};

const SECOND: u64 = 1_000_000_000;
const DEVICES: usize = 8;
/// Virtual seconds in a real one.
const SPEED: u32 = 100;
/// When virtual time begins.
const START: u64 = 1_800_000_000 * SECOND;
/// The key is no secret here.
const KEY: [u8; 32] = [7; 32];
/// Namespaces that devices are given to in turn; the last is the cluster's own.
const NAMESPACES: [&str; 4] =
    ["vendue-a-0000000000000001", "vendue-a-0000000000000002", "vendue-a-0000000000000003", "default"];

/// What happens beside the faults of devices, as shares of the whole in percent.
const KILLS: [u64; 4] = [18, 37, 55, 81];
const SILENCE: Range<u64> = 60..64;
const FULL: Range<u64> = 85..88;
const RELOAD: u64 = 70;

/// The disk, which can be full.
struct FullDisk {
    disk: Disk,
    is_full: Rc<Cell<bool>>,
}

impl FullDisk {
    fn room(&self) -> io::Result<()> {
        if self.is_full.get() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl Files for FullDisk {
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        self.disk.list(dir)
    }
    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        self.disk.read(path)
    }
    fn append(&mut self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.room()?;
        self.disk.append(path, offset, bytes)
    }
    fn replace(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.room()?;
        self.disk.replace(path, bytes)
    }
    fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }
}

/// What a look at a device is to become, by what kubelet was told to say.
#[derive(Clone, Copy, Debug)]
struct Look {
    at_ms: u64,
    /// None while it is not known yet, or never will be.
    award: Option<AwardId>,
    reads_well: bool,
    /// Which life of the agent it was.
    life: u32,
}

/// Time of one device that an award had, or nobody.
struct Held {
    ms: Range<u64>,
    award: AwardId,
    reads_well: bool,
}

/// Whose each second was, without any help of the meter.
struct Truth {
    looks: Vec<Vec<Look>>,
    answered: Option<Vec<AwardId>>,
    life: u32,
}

impl Truth {
    fn new() -> Self {
        Self { looks: vec![vec![]; DEVICES], answered: None, life: 0 }
    }

    fn look(&mut self, at_ms: u64, inventory: &NodeInventory, is_good: bool) {
        for (device, looks) in inventory.devices.iter().zip(&mut self.looks) {
            let is_broken =
                matches!(device.fault, Some(DeviceFault::Lost | DeviceFault::Unreadable(_))) || !is_good;
            looks.push(Look { at_ms, award: None, reads_well: !is_broken, life: self.life });
        }
    }

    /// A look is an award's if kubelet said so before and after it.
    fn answer(&mut self, now: Vec<AwardId>) {
        let before = self.answered.replace(now.clone());
        let Some(before) = before else { return };
        for ((looks, before), now) in self.looks.iter_mut().zip(before).zip(now) {
            let award = if before == now { now } else { AwardId::IDLE };
            let open =
                looks.iter_mut().rev().take_while(|look| look.award.is_none() && look.life == self.life);
            open.for_each(|look| look.award = Some(award));
        }
    }

    /// The agent is killed: looks that nobody answered yet are gone with it.
    fn killed(&mut self) {
        self.answered = None;
        self.life += 1;
    }

    /// Stretches between two looks of one life of the agent, of which both are known.
    fn held(&self, device: usize) -> Vec<Held> {
        let known: Vec<Look> =
            self.looks[device].iter().copied().filter(|look| look.award.is_some()).collect();
        let of_one_life = known.windows(2).filter_map(|pair| match pair {
            [a, b] if a.life == b.life => {
                let award = a.award.filter(|award| Some(*award) == b.award).unwrap_or(AwardId::IDLE);
                let reads_well = a.reads_well && b.reads_well && b.at_ms - a.at_ms <= 5_000;
                Some(Held { ms: a.at_ms..b.at_ms, award, reads_well })
            }
            _ => None,
        });
        of_one_life.collect()
    }
}

/// The node in virtual time.
struct World {
    fleet: Fleet,
    clock: Clock,
    probe: NvmlProbe,
    dir: tempfile::TempDir,
    is_full: Rc<Cell<bool>>,
    sights: Sights,
    meter: Meter,
    store: Store<FullDisk>,
    last: Option<NodeInventory>,
    truth: Truth,
    failures: u64,
}

fn key() -> Result<NodeKey, NodeError> {
    NodeKey::from_bytes(&KEY).map_err(wrong("key of the node"))
}

/// A meter and a store as an agent that starts has them.
fn open(dir: &Path, is_full: &Rc<Cell<bool>>) -> Result<(Meter, Store<FullDisk>), NodeError> {
    let receipts = dir.join("receipts");
    let disk = Disk::open(&receipts).map_err(wrong("receipts"))?;
    let files = FullDisk { disk, is_full: Rc::clone(is_full) };
    let opened = Store::open_with(options(receipts), key()?, files);
    let (store, _) = opened.map_err(wrong("receipts"))?;
    Ok((Meter::new(Settings::new(key()?.public()), store.resume()), store))
}

impl World {
    fn new(programs: &Programs, seconds: u64) -> Result<Self, NodeError> {
        let dir = tempfile::tempdir().map_err(failed("make a temporary folder"))?;
        let digits: String = KEY.iter().map(|byte| format!("{byte:02x}")).collect();
        std::fs::write(dir.path().join("node.key"), digits).map_err(failed("write the node's key"))?;
        let clock = Clock::running(SPEED, now_unix_ns(), START);
        let fleet = Fleet::create(&dir.path().join("gpus/state.json"), &[("H100", DEVICES)], "meter", clock)?;
        fleet.script(faults(seconds))?;
        let probe = NvmlProbe::new(Some(fleet.install(&programs.library)?));
        let is_full = Rc::new(Cell::new(false));
        let (meter, store) = open(dir.path(), &is_full)?;
        let (sights, truth) = (Sights::new(BootId([1; 16])), Truth::new());
        Ok(Self { fleet, clock, probe, dir, is_full, sights, meter, store, last: None, truth, failures: 0 })
    }

    fn now_ns(&self) -> u64 {
        self.clock.at(now_unix_ns())
    }

    /// Looks at the devices, and hears kubelet if it speaks.
    fn turn(&mut self, second: u64, kubelet_speaks: bool) -> Result<(), NodeError> {
        let read = self.probe.read();
        // Whole milliseconds, as records have them, so that sums of records can be compared exactly.
        let at_ms = self.now_ns() / 1_000_000;
        let is_good = read.is_ok();
        let Some(inventory) = read.ok().or_else(|| self.last.clone()) else { return Ok(()) };
        let clocks = Clocks { steady_ns: at_ms * 1_000_000 - START, suspended_ns: 0, system_ms: at_ms };
        self.sights.see(clocks, &inventory, is_good, BTreeMap::new());
        self.truth.look(at_ms, &inventory, is_good);
        if kubelet_speaks {
            let held = holders(&inventory, second);
            for tick in self.sights.answer(&inventory, &attribution(&inventory, &held)) {
                let stored = self.store.step(&mut self.meter, &tick).map_err(wrong("tick of the meter"))?;
                self.failures += u64::from(!stored.errors.is_empty());
            }
            self.truth.answer(held.iter().map(|namespace| award(*namespace)).collect());
        }
        self.last = Some(inventory);
        Ok(())
    }

    /// The agent is gone without a word, and another one starts three seconds later.
    fn kill(&mut self) -> Result<(), NodeError> {
        // The folder's lock goes with the old store.
        let nowhere = tempfile::tempdir().map_err(failed("make a temporary folder"))?;
        (self.meter, self.store) = open(nowhere.path(), &self.is_full)?;
        (self.meter, self.store) = open(self.dir.path(), &self.is_full)?;
        self.sights = Sights::new(BootId([1; 16]));
        self.truth.killed();
        self.wait_until(self.now_ns() + 3 * SECOND);
        Ok(())
    }

    fn wait_until(&self, virtual_ns: u64) {
        let left = virtual_ns.saturating_sub(self.now_ns()) / u64::from(SPEED);
        std::thread::sleep(Duration::from_nanos(left));
    }

    /// Ends windows, as an agent that is asked to stop does.
    fn stop(&mut self) -> Result<(), NodeError> {
        let drafts = self.meter.stop().map_err(wrong("end of the meter"))?.to_vec();
        let appended = self.store.append(&drafts);
        match appended.errors.into_iter().next() {
            Some(error) => Err(wrong("end of the meter")(error)),
            None => Ok(()),
        }
    }
}

/// Faults of devices: some at random, a device that is lost and reset, a driver that is loaded anew.
fn faults(seconds: u64) -> Vec<Event> {
    let at = |percent: u64| START + seconds * percent / 100 * SECOND;
    let (from_ns, length_ns) = (at(3), seconds * 94 / 100 * SECOND);
    let devices = DEVICES as u32;
    let mut events = generate(&Script { seed: 11, devices, from_ns, length_ns, mean_gap_ns: 60 * SECOND });
    let lost = Fault::Health { health: vendue_gpu_sim::state::DeviceHealth::Lost };
    events.push(Event { at_ns: at(25), device: Some(1), fault: lost });
    events.push(Event { at_ns: at(45), device: Some(1), fault: Fault::Recover });
    events.push(Event { at_ns: at(45), device: Some(1), fault: Fault::DriverReload { for_ns: 2 * SECOND } });
    events.push(Event { at_ns: at(RELOAD), device: None, fault: Fault::DriverReload { for_ns: 5 * SECOND } });
    events
}

/// Who has each device: everybody in turn, and sometimes nobody.
fn holders(inventory: &NodeInventory, second: u64) -> Vec<Option<&'static str>> {
    let turn = |device: usize| (second / 37) as usize + device;
    let count = inventory.devices.len();
    (0..count).map(|device| NAMESPACES.get(turn(device) % (NAMESPACES.len() + 1)).copied()).collect()
}

fn attribution(inventory: &NodeInventory, holders: &[Option<&'static str>]) -> Attribution {
    let uuids: Vec<&str> = inventory.devices.iter().map(|d| d.identity.uuid.as_str()).collect();
    let held: Vec<(&str, &[&str])> = holders
        .iter()
        .zip(uuids.chunks(1))
        .filter_map(|(namespace, device)| Some(((*namespace)?, device)))
        .collect();
    let known: Vec<Known> =
        uuids.iter().map(|uuid| Known { uuid: (*uuid).to_owned(), minor: None }).collect();
    attribute(&pods(&held), &known, &DeviceNames::default())
}

/// The award of a namespace; the cluster's own Pods are idle time to the market.
fn award(namespace: Option<&str>) -> AwardId {
    let digits = namespace.and_then(|namespace| namespace.strip_prefix("vendue-a-"));
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(AwardId::IDLE)
}

/// Meters in virtual time, and compares.
///
/// # Errors
/// When anything but the faults that are wanted goes wrong.
pub fn measure(programs: &Programs, seconds: u64, report: &mut Report) -> Result<(), NodeError> {
    say("metering in virtual time");
    let mut world = World::new(programs, seconds)?;
    let percent = |second: u64| second * 100 / seconds;
    let (mut second, mut kills) = (0, KILLS.iter().peekable());
    while second < seconds {
        let now = percent(second);
        world.is_full.set(FULL.contains(&now));
        if second % 20 == 0 {
            for device in 0..DEVICES as u32 {
                let (pid, intensity) = (10 + device, (second as u32 * 3 + device * 17) % 101);
                world.fleet.load(Work { pid, device, intensity, memory_mib: 100, ..Work::default() })?;
            }
        }
        world.turn(second, !SILENCE.contains(&now))?;
        if kills.next_if(|kill| **kill <= now).is_some() {
            world.kill()?;
        }
        second = (world.now_ns() - START) / SECOND + 1;
        world.wait_until(START + second * SECOND);
    }
    world.turn(second, true)?;
    world.stop()?;
    compare(&world, report)
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> u64 {
    a.end.min(b.end).saturating_sub(a.start.max(b.start))
}

/// Milliseconds of one device that are not where they belong.
#[derive(Debug, Default)]
struct Errors {
    /// In no record.
    missing: u64,
    /// Charged to an award that did not have the device.
    invented: u64,
    /// Of an award, and charged to somebody else or to nobody.
    misplaced: u64,
    /// Not charged although the device was read well and nothing stood in the way.
    dropped: u64,
}

fn errors(records: &[&Record], uuid: &str, held: &[Held], totals: &DeviceTotals) -> Errors {
    let mut errors = Errors { missing: totals.missing_ms, ..Errors::default() };
    for record in records {
        let Some((from, to)) = span(record, uuid) else { continue };
        let within = |of: &dyn Fn(&Held) -> bool| -> u64 {
            held.iter().filter(|h| of(h)).map(|h| overlap(&h.ms, &(from..to))).sum()
        };
        match &record.body {
            Body::Used(_) => {
                if !record.award.is_idle() {
                    errors.invented += (to - from) - within(&|h| h.award == record.award);
                }
                errors.misplaced += within(&|h| !h.award.is_idle() && h.award != record.award);
            }
            // What the disk did not take, and what a killed agent had not written yet, is lost to its award: that is the rule.
            Body::Gap(gap) if !matches!(gap.reason, GapReason::StoreFailed | GapReason::AgentDown) => {
                let reset = gap.reason == GapReason::CounterReset;
                errors.dropped += if reset { 0 } else { within(&|h| h.reads_well) };
            }
            _ => {}
        }
    }
    errors
}

fn compare(world: &World, report: &mut Report) -> Result<(), NodeError> {
    let chains = Chains::read(world.dir.path())?;
    let totals = chains.verify()?;
    let records: Vec<&Record> = chains.all().collect();
    let mut wrong_ms = 0;
    for (index, device) in world.fleet.machine()?.state().devices.iter().enumerate() {
        let of_device = totals.iter().find(|(name, _)| name.as_str() == device.uuid).map(|(_, sums)| sums);
        let sums = of_device.ok_or_else(|| wrong("receipts")(format!("none of {}", device.uuid)))?;
        let held = world.truth.held(index);
        let found = errors(&records, &device.uuid, &held, sums);
        wrong_ms += found.missing + found.invented + found.misplaced + found.dropped;
        for (name, seconds) in [
            ("of awards", sums.awards_ns / SECOND),
            ("idle", sums.idle_ns / SECOND),
            ("in gaps", sums.gap_ms / 1_000),
        ] {
            let name = format!("metering: GPU-seconds {name}");
            report.add(name, seconds as f64);
        }
        report.add("metering: GPU-seconds that awards held", held_seconds(&held));
    }
    report.key("lost_or_doubled_gpu_seconds", wrong_ms as f64 / 1e3);
    report.detail("metering: virtual seconds", ((world.now_ns() - START) / SECOND) as f64);
    report.detail("metering: speed", f64::from(SPEED));
    report
        .detail("metering: faults of devices and driver", world.fleet.machine()?.state().events.len() as f64);
    report.detail("metering: kills of the agent", f64::from(world.truth.life));
    report.detail("metering: ticks that the disk did not take", world.failures as f64);
    report.detail("metering: records", records.len() as f64);
    Ok(())
}

fn held_seconds(held: &[Held]) -> f64 {
    let of_awards = held.iter().filter(|h| !h.award.is_idle());
    of_awards.map(|h| h.ms.end - h.ms.start).sum::<u64>() as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use vendue_receipts::{Chain, Gap, Opened, Used, Xids};

    use super::*;

    const A: AwardId = AwardId([1; 8]);
    const B: AwardId = AwardId([2; 8]);

    fn used(t0_ms: u64, t1_ms: u64) -> Body {
        let (device, driver) = ("GPU-0".parse().expect("device"), "580.1".parse().expect("driver"));
        let (wall_ns, xids) = ((t1_ms - t0_ms) * 1_000_000, Xids::default());
        let (energy, activity, memory_peak_bytes) = (None, None, None);
        Body::Used(Used { device, t0_ms, t1_ms, wall_ns, energy, activity, memory_peak_bytes, xids, driver })
    }

    fn gap(t0_ms: u64, t1_ms: u64, reason: GapReason) -> Body {
        let device = Some("GPU-0".parse().expect("device"));
        Body::Gap(Gap { device, t0_ms, t1_ms, reason, energy: None, xids: Xids::default() })
    }

    /// Missing, invented, misplaced and dropped milliseconds of a device with these records of award A.
    fn found(bodies: &[Body], held: &[(Range<u64>, AwardId)]) -> [u64; 4] {
        let key = key().expect("key");
        let opened = Opened { public_key: key.public(), boot: BootId([1; 16]), time_ms: 0 };
        let mut chain = Chain::new(A, 0);
        let records: Vec<Record> = std::iter::once(&Body::Opened(opened))
            .chain(bodies)
            .map(|body| chain.sign(body.clone(), &key).expect("record"))
            .collect();
        let records: Vec<&Record> = records.iter().collect();
        let held: Vec<Held> =
            held.iter().map(|(ms, award)| Held { ms: ms.clone(), award: *award, reads_well: true }).collect();
        let totals = DeviceTotals { missing_ms: 3, ..DeviceTotals::default() };
        let Errors { missing, invented, misplaced, dropped } = errors(&records, "GPU-0", &held, &totals);
        [missing, invented, misplaced, dropped]
    }

    #[test]
    fn what_is_not_where_it_belongs_is_found() {
        let whole = [used(0, 1_000)];
        assert_eq!(found(&whole, &[(0..1_000, A)]), [3, 0, 0, 0]);
        assert_eq!(found(&whole, &[(0..900, A), (900..1_000, AwardId::IDLE)]), [3, 100, 0, 0]);
        assert_eq!(found(&whole, &[(0..900, A), (900..1_000, B)]), [3, 100, 100, 0]);
        let lost = [used(0, 400), gap(400, 1_000, GapReason::DeviceNotReadable)];
        assert_eq!(found(&lost, &[(0..1_000, A)]), [3, 0, 0, 600]);
        let full = [used(0, 400), gap(400, 1_000, GapReason::StoreFailed)];
        assert_eq!(found(&full, &[(0..1_000, A)]), [3, 0, 0, 0]);
    }

    #[test]
    fn a_look_is_an_awards_if_kubelet_said_so_before_and_after() {
        let mut truth = Truth::new();
        let look = |truth: &mut Truth, at_ms| {
            truth.looks[0].push(Look { at_ms, award: None, reads_well: true, life: truth.life })
        };
        let answer = |truth: &mut Truth, award| truth.answer(vec![award; DEVICES]);
        answer(&mut truth, A);
        for (at_ms, award) in [(1_000, A), (2_000, A), (3_000, B), (4_000, B), (5_000, B)] {
            look(&mut truth, at_ms);
            answer(&mut truth, award);
        }
        look(&mut truth, 6_000);
        truth.killed();
        look(&mut truth, 9_000);
        answer(&mut truth, B);
        let held: Vec<(Range<u64>, AwardId)> = truth.held(0).into_iter().map(|h| (h.ms, h.award)).collect();
        let idle = AwardId::IDLE;
        assert_eq!(held, [(1_000..2_000, A), (2_000..3_000, idle), (3_000..4_000, idle), (4_000..5_000, B)]);
    }
}
