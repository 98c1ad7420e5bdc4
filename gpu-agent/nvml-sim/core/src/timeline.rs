//! One device's whole history, past and scripted: a list of moments between which nothing changes. Pure.
//!
//! Input: the device, its profiles, the events and the loads. Output: [`Timeline`], in which each [`Segment`] holds
//! the device's condition, its power, and the energy used before it. Invariant: power is constant within a segment, so
//! energy at any time is exact: what was used before the segment plus power times the time since its start.

use std::sync::Arc;

use crate::energy::Energy;
use crate::fault::{Event, Fault};
use crate::load::{Load, Work};
use crate::profile::Profile;
use crate::state::{Device, DeviceHealth, MigInstance};

/// Counters of memory errors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EccCounts {
    /// Corrected errors.
    pub corrected: u64,
    /// Uncorrected errors.
    pub uncorrected: u64,
    /// How many of the corrected ones were in SRAM.
    pub sram_corrected: u64,
    /// How many of the uncorrected ones were in SRAM.
    pub sram_uncorrected: u64,
}

impl EccCounts {
    fn add(&mut self, corrected: u64, uncorrected: u64, sram: bool) {
        self.corrected = self.corrected.saturating_add(corrected);
        self.uncorrected = self.uncorrected.saturating_add(uncorrected);
        if sram {
            self.sram_corrected = self.sram_corrected.saturating_add(corrected);
            self.sram_uncorrected = self.sram_uncorrected.saturating_add(uncorrected);
        }
    }
}

/// Rows of memory replaced by spare ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    /// For corrected errors.
    pub correctable: u32,
    /// For uncorrected errors.
    pub uncorrectable: u32,
    /// Whether a replacement waits for a reset.
    pub pending: bool,
    /// Whether a replacement failed.
    pub failed: bool,
}

/// MIG mode and instances.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mig {
    /// Whether the mode is on.
    pub enabled: bool,
    /// The instances; none unless the mode is on.
    pub instances: Vec<MigInstance>,
}

/// How a device fares between two changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Condition of the card.
    pub health: DeviceHealth,
    /// Number of driver reloads and device resets so far.
    pub epoch: u32,
    /// When the driver's present view of the device began; loads of before are gone.
    pub since_ns: u64,
    /// UUID.
    pub uuid: Arc<str>,
    /// MIG mode and instances.
    pub mig: Arc<Mig>,
    /// Memory errors since the driver was loaded.
    pub ecc: EccCounts,
    /// Memory errors in the card's life.
    pub ecc_aggregate: EccCounts,
    /// Row remapping.
    pub rows: Rows,
    /// Bits of NVML's clock event reasons; 0 at full clocks.
    pub throttle_reasons: u64,
    /// Whether heat is among the reasons.
    pub too_hot: bool,
    /// Highest clock left, in percent.
    pub clock_percent: u32,
    /// Sum of the loads in hundredths of a percent of the device's SMs, at most 10,000.
    pub busy: u32,
    /// Share of the time in which any kernel runs, in hundredths of a percent: the sum over the loads, at most 10,000.
    pub kernel_time: u32,
    /// Sum of the loads beyond what the device has: the factor by which each is slower.
    pub demand: u32,
    /// Device memory that loads and processes hold, in MiB.
    pub memory_mib: u64,
}

/// A stretch of time in which nothing changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// When it begins.
    pub start_ns: u64,
    /// The device in it.
    pub condition: Condition,
    /// Power that sensors show, in milliwatts.
    pub power_milliwatts: u32,
    /// Power that is really drawn, in milliwatts.
    pub true_power_milliwatts: u32,
    /// From when on it adds to the energy: time before the device's mark is in the mark already.
    counts_from_ns: u64,
    /// Energy shown before it, since the last reset of the counter.
    counted: Energy,
    /// Energy really used before it.
    used: Energy,
}

impl Segment {
    fn counting_time(&self, until_ns: u64) -> u64 {
        until_ns.saturating_sub(self.counts_from_ns)
    }
}

/// A device's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeline {
    segments: Vec<Segment>,
    mark_ns: u64,
}

/// The cards behind a device.
#[derive(Clone, Copy, Debug)]
pub struct Cards<'a> {
    /// What the device says that it is.
    pub claimed: &'a Profile,
    /// What it really is.
    pub real: &'a Profile,
}

enum Change<'a> {
    Fault(usize, &'a Fault),
    EndThrottle(usize),
    EndHang(usize),
    DriverLoaded,
    Start(&'a Load),
    End(&'a Load),
}

impl Timeline {
    /// Works out the history of one device. Loads of other devices are left out.
    #[must_use]
    pub fn new(device: &Device, cards: Cards<'_>, events: &[Event], loads: &[Load]) -> Self {
        let mut changes = changes(device.index, events, loads);
        changes.sort_by_key(|(at, order, _)| (*at, *order));
        let mut fold = Fold::new(device, cards);
        let mut segments = vec![fold.segment(0, None)];
        for group in changes.chunk_by(|a, b| a.0 == b.0) {
            let at = group[0].0;
            let resets = group.iter().filter(|(_, _, change)| fold.apply(at, change)).count();
            let mut segment = fold.segment(at, segments.last());
            if resets > 0 {
                segment.counted = Energy::default();
            }
            if segment.start_ns == segments[segments.len() - 1].start_ns {
                segments.pop();
            }
            segments.push(segment);
        }
        Self { segments, mark_ns: device.energy.at_ns }
    }

    /// The segment that a moment lies in.
    #[must_use]
    pub fn at(&self, now_ns: u64) -> &Segment {
        let after = self.segments.partition_point(|s| s.start_ns <= now_ns);
        &self.segments[after.saturating_sub(1)]
    }

    /// All segments, the first at time 0.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// What NVML's counter shows.
    #[must_use]
    pub fn counter(&self, now_ns: u64) -> Energy {
        let segment = self.at(now_ns);
        segment.counted.plus(Energy::of(segment.power_milliwatts, segment.counting_time(now_ns)))
    }

    /// Energy really used until then, from the device's mark on.
    #[must_use]
    pub fn used(&self, now_ns: u64) -> Energy {
        let segment = self.at(now_ns);
        segment.used.plus(Energy::of(segment.true_power_milliwatts, segment.counting_time(now_ns)))
    }

    /// Energy really used between two times, whatever sensors and counters showed. Of the time before the device's
    /// mark nothing is known.
    #[must_use]
    pub fn used_between(&self, from_ns: u64, to_ns: u64) -> Option<Energy> {
        (from_ns >= self.mark_ns).then(|| self.used(to_ns).minus(self.used(from_ns)))
    }

    /// Nanoseconds until then in which any of the clock event reasons was in force.
    #[must_use]
    pub fn time_throttled(&self, reasons: u64, until_ns: u64) -> u64 {
        let ends = self.segments.iter().skip(1).map(|s| s.start_ns).chain([u64::MAX]);
        self.segments
            .iter()
            .zip(ends)
            .filter(|(s, _)| s.condition.throttle_reasons & reasons != 0 && s.start_ns < until_ns)
            .map(|(s, end)| end.min(until_ns) - s.start_ns)
            .sum()
    }
}

fn changes<'a>(device: u32, events: &'a [Event], loads: &'a [Load]) -> Vec<(u64, usize, Change<'a>)> {
    let mut changes = Vec::new();
    for (number, event) in events.iter().enumerate().filter(|(_, e)| e.concerns(device)) {
        changes.push((event.at_ns, number, Change::Fault(number, &event.fault)));
        let after = |for_ns: u64| event.at_ns.saturating_add(for_ns);
        match &event.fault {
            Fault::Throttle { for_ns: Some(n), .. } => {
                changes.push((after(*n), number, Change::EndThrottle(number)));
            }
            Fault::Hang { for_ns: Some(n) } => changes.push((after(*n), number, Change::EndHang(number))),
            Fault::DriverReload { for_ns } => changes.push((after(*for_ns), number, Change::DriverLoaded)),
            _ => {}
        }
    }
    let order = events.len();
    for load in loads.iter().filter(|l| l.work.device == device) {
        changes.push((load.start_ns, order, Change::Start(load)));
        if let Some(end) = load.end_ns {
            changes.push((end, order + 1, Change::End(load)));
        }
    }
    changes
}

/// The device while its changes are applied one after the other.
struct Fold<'a> {
    device: &'a Device,
    cards: Cards<'a>,
    condition: Condition,
    health: DeviceHealth,
    throttles: Vec<(usize, u64, u32, bool)>,
    hangs: Vec<usize>,
    running: Vec<&'a Load>,
}

impl<'a> Fold<'a> {
    fn new(device: &'a Device, cards: Cards<'a>) -> Self {
        let ecc = EccCounts {
            corrected: device.ecc_corrected,
            uncorrected: device.ecc_uncorrected,
            ..EccCounts::default()
        };
        let instances = if device.mig_enabled { device.mig_instances.clone() } else { Vec::new() };
        let condition = Condition {
            health: device.health,
            epoch: 0,
            since_ns: 0,
            uuid: device.uuid.as_str().into(),
            mig: Arc::new(Mig { enabled: device.mig_enabled, instances }),
            ecc,
            ecc_aggregate: ecc,
            rows: Rows::default(),
            throttle_reasons: 0,
            too_hot: false,
            clock_percent: 100,
            busy: 0,
            kernel_time: 0,
            demand: 0,
            memory_mib: 0,
        };
        Self {
            device,
            cards,
            condition,
            health: device.health,
            throttles: Vec::new(),
            hangs: Vec::new(),
            running: Vec::new(),
        }
    }

    /// Applies one change; `true` says that the driver's energy counter starts anew.
    fn apply(&mut self, at: u64, change: &Change<'a>) -> bool {
        match change {
            Change::Fault(number, fault) => self.happen(at, *number, fault),
            Change::EndThrottle(number) => self.throttles.retain(|(n, ..)| n != number),
            Change::EndHang(number) => self.hangs.retain(|n| n != number),
            // A mark made later than that holds the counter as it was after the reset.
            Change::DriverLoaded => return at >= self.device.energy.at_ns,
            Change::Start(load) => self.running.push(load),
            Change::End(load) => self.running.retain(|l| l.id != load.id),
        }
        false
    }

    fn happen(&mut self, at: u64, number: usize, fault: &Fault) {
        let condition = &mut self.condition;
        match fault {
            Fault::Xid { .. } => {}
            Fault::Ecc { corrected, uncorrected, sram } => {
                condition.ecc.add(*corrected, *uncorrected, *sram);
                condition.ecc_aggregate.add(*corrected, *uncorrected, *sram);
            }
            Fault::RowRemap { correctable, uncorrectable, pending, failed } => {
                let rows = &mut condition.rows;
                rows.correctable = rows.correctable.saturating_add(*correctable);
                rows.uncorrectable = rows.uncorrectable.saturating_add(*uncorrectable);
                rows.pending |= pending;
                rows.failed |= failed;
            }
            Fault::Throttle { reason, clock_percent, .. } => {
                self.throttles.push((number, reason.bits(), (*clock_percent).min(100), reason.is_thermal()));
            }
            Fault::Hang { .. } => self.hangs.push(number),
            Fault::Health { health } => self.health = *health,
            Fault::Recover => {
                self.health = DeviceHealth::Healthy;
                self.throttles.clear();
                self.hangs.clear();
            }
            Fault::DriverReload { .. } => {
                condition.epoch += 1;
                condition.since_ns = at;
                condition.ecc = EccCounts::default();
                condition.rows.pending = false;
                self.running.clear();
            }
            Fault::Uuid { uuid } => condition.uuid = uuid.as_str().into(),
            Fault::Mig { enabled, instances } => {
                let instances = if *enabled { instances.clone() } else { Vec::new() };
                condition.mig = Arc::new(Mig { enabled: *enabled, instances });
            }
        }
    }

    /// The segment that begins at `at`, with the energy of the one before it.
    fn segment(&mut self, at: u64, before: Option<&Segment>) -> Segment {
        let hung = !self.hangs.is_empty() && self.health != DeviceHealth::Lost;
        self.condition.health = if hung { DeviceHealth::Hung } else { self.health };
        self.condition.throttle_reasons = self.throttles.iter().fold(0, |bits, t| bits | t.1);
        self.condition.too_hot = self.throttles.iter().any(|t| t.3);
        self.condition.clock_percent = self.throttles.iter().map(|t| t.2).min().unwrap_or(100);
        self.sum_loads();
        let mark = self.device.energy;
        let (counted, used) = before.map_or((mark.counter, mark.used), |b| {
            let time = b.counting_time(at);
            let shown = Energy::of(b.power_milliwatts, time);
            (b.counted.plus(shown), b.used.plus(Energy::of(b.true_power_milliwatts, time)))
        });
        Segment {
            start_ns: at,
            condition: self.condition.clone(),
            power_milliwatts: self.shown_power(),
            true_power_milliwatts: self.real_power(),
            counts_from_ns: at.max(mark.at_ns),
            counted,
            used,
        }
    }

    fn sum_loads(&mut self) {
        let whole = self.cards.claimed.multiprocessors.max(1);
        let share = |load: &Load, percent: u32| -> u64 {
            let part = u64::from(percent) * 100;
            match (self.condition.mig.enabled, load.work.gpu_instance) {
                (false, None) => part,
                (true, Some(id)) => {
                    let instance = self.condition.mig.instances.iter().find(|i| i.gpu_instance_id == id);
                    let sms = instance
                        .and_then(|i| self.cards.claimed.mig_profile(&i.profile))
                        .map_or(0, |p| p.multiprocessors);
                    part * u64::from(sms) / u64::from(whole)
                }
                // Its device was split, or its instance is gone: it has nothing to run on.
                _ => 0,
            }
        };
        let own = u64::from(self.device.gpu_utilization_percent.min(100)) * 100;
        let sum = |percent: fn(&Work) -> u32| {
            let loads = self.running.iter().map(|l| share(l, percent(&l.work)));
            u32::try_from(own + loads.sum::<u64>()).unwrap_or(u32::MAX)
        };
        let (demand, kernel_time) = (sum(|work| work.intensity), sum(Work::kernel_percent));
        self.condition.demand = demand;
        self.condition.busy = demand.min(10_000);
        self.condition.kernel_time = kernel_time.min(10_000);
        let held = self.device.processes.iter().map(|p| p.memory_mib);
        let held = held.chain(self.running.iter().map(|l| l.work.memory_mib));
        self.condition.memory_mib = held.fold(0, u64::saturating_add);
    }

    fn shown_power(&self) -> u32 {
        let power = power(self.cards.claimed, &self.condition, 100);
        let percent = self.device.disguise.power_percent.unwrap_or(100);
        u32::try_from(u64::from(power) * u64::from(percent) / 100).unwrap_or(u32::MAX)
    }

    fn real_power(&self) -> u32 {
        power(self.cards.real, &self.condition, self.device.disguise.clock_percent.unwrap_or(100).min(100))
    }
}

/// Power between the profile's idle and full-load figures, by load and clock. A lost card draws nothing that anyone
/// could measure.
fn power(profile: &Profile, condition: &Condition, clock_percent: u32) -> u32 {
    if condition.health == DeviceHealth::Lost {
        return 0;
    }
    let span = u64::from(profile.power_limit_milliwatts.saturating_sub(profile.idle_power_milliwatts));
    let clock = u64::from(condition.clock_percent.min(clock_percent));
    let above_idle = span * u64::from(condition.busy) * clock / 1_000_000;
    profile.idle_power_milliwatts.saturating_add(u32::try_from(above_idle).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests;
