//! From simulated GPUs to receipts that somebody else verifies: what is metered is what the cards used.

// Helpers of tests fail by panicking too; the lint's own exception covers only the test functions.
#![allow(clippy::expect_used)]

#[path = "../bench/node/mod.rs"]
#[allow(dead_code)]
mod node;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use node::kubelet::pods;
use node::receipts::Chains;
use vendue_gpu_agent::inventory::NodeInventory;
use vendue_gpu_agent::meter::{Clocks, Keeper, Sights};
use vendue_gpu_agent::pods::attribution::{Attribution, Known, attribute};
use vendue_gpu_agent::pods::slices::DeviceNames;
use vendue_gpu_agent::probe::DeviceProbe;
use vendue_gpu_agent::probe::nvml::NvmlProbe;
use vendue_nvml_sim::clock::Clock;
use vendue_nvml_sim::fault::Fault;
use vendue_nvml_sim::fleet::Fleet;
use vendue_nvml_sim::load::Work;
use vendue_nvml_sim::state::DeviceHealth;
use vendue_receipts::{AwardId, Body, BootId, Gap, GapReason, Used, verify};

const SECOND: u64 = 1_000_000_000;
const AWARD: AwardId = AwardId([0, 0, 0, 0, 0, 0, 0, 1]);

fn library() -> PathBuf {
    let exe = std::env::current_exe().expect("path of the test");
    let name = "libvendue_nvml_sim.so";
    exe.ancestors().skip(1).map(|dir| dir.join(name)).find(|path| path.exists()).expect("built library")
}

/// Who has the first device.
fn held(inventory: &NodeInventory, namespace: Option<&str>) -> Attribution {
    let uuid = inventory.devices[0].identity.uuid.clone();
    let devices = [uuid.as_str()];
    let held: Vec<(&str, &[&str])> =
        namespace.map(|namespace| (namespace, devices.as_slice())).into_iter().collect();
    attribute(&pods(&held), &[Known { uuid: uuid.clone(), minor: None }], &DeviceNames::default())
}

/// Two simulated H100 and what meters them; nothing happens but what a test says.
struct Metered {
    dir: tempfile::TempDir,
    fleet: Fleet,
    probe: NvmlProbe,
    keeper: Keeper,
    sights: Sights,
    last: Option<NodeInventory>,
    /// System clock less simulated clock.
    step_ms: i64,
}

const START: u64 = 1_800_000_000 * SECOND;

impl Metered {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("gpus/state.json");
        let fleet = Fleet::create(&path, &[("H100", 2)], "meter", Clock::stopped(START)).expect("fleet");
        let probe = NvmlProbe::new(Some(fleet.install(&library()).expect("install")));
        let keeper = Keeper::start(dir.path(), false).expect("keeper");
        let sights = Sights::new(BootId([7; 16]));
        Self { dir, fleet, probe, keeper, sights, last: None, step_ms: 0 }
    }

    /// A second later the agent looks, and kubelet says who has the first device. Gives the time.
    fn second(&mut self, namespace: Option<&str>) -> u64 {
        self.fleet.advance(Duration::from_secs(1)).expect("advance");
        let read = self.probe.read();
        let is_good = read.is_ok();
        let inventory = read.ok().or_else(|| self.last.clone()).expect("inventory");
        let now = self.fleet.now_ns().expect("time");
        let system_ms = (now / 1_000_000).checked_add_signed(self.step_ms).expect("time");
        let clocks = Clocks { steady_ns: now - START, suspended_ns: 0, system_ms };
        self.sights.see(clocks, &inventory, is_good, BTreeMap::new());
        let pods = held(&inventory, namespace);
        self.sights.answer(&inventory, &pods).into_iter().for_each(|tick| self.keeper.put(tick));
        self.last = Some(inventory);
        now
    }

    fn seconds(&mut self, count: u32, namespace: Option<&str>) -> u64 {
        (0..count).map(|_| self.second(namespace)).last().expect("some seconds")
    }

    fn truth(&self, from: u64, to: u64) -> u64 {
        self.fleet.energy_between(0, from, to).expect("energy").millijoules()
    }

    /// Ends the agent; what it has stored, and that it verifies.
    fn end(self) -> Chains {
        let key = self.keeper.public_key();
        drop(self.keeper);
        let chains = Chains::read(self.dir.path()).expect("receipts");
        assert_eq!(chains.key, key);
        chains.verify().expect("no window of a device is in two chains");
        chains
    }
}

fn windows(chains: &Chains) -> Vec<Used> {
    let used = |body: &Body| if let Body::Used(used) = body { Some(used.clone()) } else { None };
    chains.records[&AWARD].iter().filter_map(|record| used(&record.body)).collect()
}

fn gaps(chains: &Chains) -> Vec<Gap> {
    let gap = |body: &Body| if let Body::Gap(gap) = body { Some(gap.clone()) } else { None };
    chains.records[&AWARD].iter().filter_map(|record| gap(&record.body)).collect()
}

const NAMESPACE: Option<&str> = Some("vendue-a-0000000000000001");

fn work() -> Work {
    Work { pid: 1, device: 0, gpu_instance: None, intensity: 80, memory_mib: 1_000 }
}

#[test]
fn receipts_hold_the_energy_and_the_time_that_the_simulator_knows() {
    let mut node = Metered::new();
    node.seconds(20, None);
    let load = node.fleet.load(work()).expect("load");
    // Awarded at the first answer that names it; the reading of that moment is not its own yet.
    node.second(NAMESPACE);
    let first = node.second(NAMESPACE);
    let last = node.seconds(60, NAMESPACE);
    node.fleet.end(load).expect("end");
    node.seconds(20, None);
    let truth = node.truth(first, last);
    let chains = node.end();

    let chain = verify(AWARD, Some(chains.key), 3_600_000_000, &chains.records[&AWARD]).expect("chain");
    let totals = chain.totals();
    assert_eq!(totals.gpu_ns, last - first);
    assert_eq!(totals.cost_micros, (last - first) / SECOND * 1_000_000, "3600 per GPU-hour is 1 per second");
    assert!(totals.energy_mj.abs_diff(truth) <= 1, "{} {truth}", totals.energy_mj);
}

#[test]
fn a_device_that_is_lost_while_it_is_metered_is_a_gap_until_it_was_reset() {
    let mut node = Metered::new();
    node.second(None);
    node.fleet.load(work()).expect("load");
    node.second(NAMESPACE);
    let first = node.second(NAMESPACE);
    let seen = node.seconds(4, NAMESPACE);
    node.fleet.inject(Some(0), Fault::Health { health: DeviceHealth::Lost }).expect("lose");
    node.seconds(8, NAMESPACE);
    // A reset finds the card again; its counter begins anew, so nobody knows what the time cost.
    node.fleet.inject(Some(0), Fault::Recover).expect("find");
    node.fleet.inject(Some(0), Fault::DriverReload { for_ns: 0 }).expect("reset");
    let back = node.seconds(3, NAMESPACE);
    let last = node.seconds(5, NAMESPACE);
    let before = node.truth(first, seen);
    let chains = node.end();

    let (windows, gaps) = (windows(&chains), gaps(&chains));
    let sum = |from: u64, to: u64| -> u64 {
        let within = windows.iter().filter(|w| w.t0_ms * 1_000_000 >= from && w.t1_ms * 1_000_000 <= to);
        within.map(|w| w.wall_ns).sum()
    };
    assert_eq!(sum(first, seen), seen - first, "all up to the last look at which it was there");
    assert_eq!(sum(first, last), windows.iter().map(|w| w.wall_ns).sum::<u64>());
    let lost: Vec<&Gap> = gaps.iter().filter(|gap| gap.reason == GapReason::DeviceLost).collect();
    assert_eq!(lost.first().map(|gap| gap.t0_ms * 1_000_000), Some(seen));
    assert!(gaps.iter().all(|gap| gap.energy.is_none()), "{gaps:?}");
    let until = gaps.iter().map(|gap| gap.t1_ms * 1_000_000).max().expect("gaps");
    assert!(seen < until && until <= back, "{gaps:?}");
    assert_eq!(sum(until, last), last - until, "metered again from the first look at which it was back");
    let energy: u64 = windows
        .iter()
        .filter(|w| w.t1_ms * 1_000_000 <= seen)
        .filter_map(|w| w.energy)
        .map(|e| e.used_mj)
        .sum();
    assert!(energy.abs_diff(before) <= 1, "{energy} {before}");
}

#[test]
fn a_step_of_the_system_clock_by_an_hour_changes_no_window() {
    let hour = 3_600_000;
    let mut node = Metered::new();
    node.second(None);
    node.second(NAMESPACE);
    let first = node.second(NAMESPACE);
    for step_ms in [hour, 0, -hour, 0] {
        node.step_ms = step_ms;
        node.seconds(7, NAMESPACE);
    }
    let last = node.second(NAMESPACE);
    let chains = node.end();
    let windows = windows(&chains);
    assert_eq!(windows.iter().map(|w| w.wall_ns).sum::<u64>(), last - first);
    assert_eq!(windows.first().map(|w| w.t0_ms * 1_000_000), Some(first));
    assert!(windows.windows(2).all(|pair| pair[0].t1_ms == pair[1].t0_ms) && gaps(&chains).is_empty());
    let steps = chains.records[&AWARD].iter().filter_map(|record| match &record.body {
        Body::Clock(clock) => Some(clock.system_ms as i64 - clock.time_ms as i64),
        _ => None,
    });
    assert_eq!(steps.collect::<Vec<_>>(), [hour, 0, -hour, 0]);
}
