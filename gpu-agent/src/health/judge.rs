//! The faults of each device, from their onset until they clear.
//!
//! | sign | health | clears |
//! |---|---|---|
//! | Xid of class fatal | Failed | when the device was reset |
//! | lost | Failed | when it has answered for a while: it was reset, for nothing else brings it back |
//! | row remapping failed | Failed | when the device says so no more |
//! | Xid of class degraded, uncorrected ECC errors | Degraded | after a quiet time |
//! | thermal slowdown for some time | Degraded | after a quiet time |
//! | row remapping pending | Degraded | when it is done |
//! | a reading fails | Unknown | when one works; when readings fail again and again, after a quiet time |

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vendue_crds::GpuHealth;

use super::hold::Hold;
pub use super::times::Times;
use super::xid::{self, Class, Policy};
use crate::inventory::{DeviceFault, DeviceReading, NodeInventory};

/// What is wrong with a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Cause {
    /// The driver lost it.
    Lost,
    /// An Xid.
    Xid(u64),
    /// Damaged memory rows could not be replaced.
    RowRemapFailed,
    /// Damaged memory rows are replaced at the next reset.
    RowRemapPending,
    /// Memory errors that were not corrected.
    Ecc,
    /// Clocks are cut because it is too hot.
    Thermal,
}

impl Cause {
    /// The key of the taint that tells of it.
    #[must_use]
    pub fn taint(self) -> &'static str {
        match self {
            Self::Lost | Self::Xid(_) => "vendue.dev/xid",
            Self::RowRemapFailed | Self::RowRemapPending | Self::Ecc => "vendue.dev/ecc",
            Self::Thermal => "vendue.dev/thermal",
        }
    }

    fn text(self) -> String {
        match self {
            Self::Lost => "the driver lost the device".to_owned(),
            Self::Xid(code) => match xid::meaning(code) {
                Some(meaning) => format!("Xid {code}: {meaning}"),
                None => format!("Xid {code}, which is not in the catalogue"),
            },
            Self::RowRemapFailed => "damaged memory rows could not be replaced".to_owned(),
            Self::RowRemapPending => "damaged memory rows are replaced at the next reset".to_owned(),
            Self::Ecc => "memory errors that were not corrected".to_owned(),
            Self::Thermal => "clocks are cut because it is too hot".to_owned(),
        }
    }
}

/// What is believed of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opinion {
    /// Whether it can be sold.
    pub health: GpuHealth,
    /// The worst of what is wrong, where something is.
    pub cause: Option<Cause>,
    /// The same for people.
    pub reason: Option<String>,
}

/// A fault that lasts beyond its sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fault {
    failed: bool,
    /// When its sign was last seen.
    last: Duration,
    /// It is over after so long without a sign; never by itself when `None`.
    quiet: Option<Duration>,
    is_over: bool,
}

/// One device.
#[derive(Clone, Debug, Default)]
struct Device {
    faults: BTreeMap<Cause, Fault>,
    hot_since: Option<Duration>,
    ecc_uncorrected: Option<u64>,
    energy: Option<u64>,
    unreadable: Hold<String>,
}

/// A fatal fault, to be remembered over a restart of the agent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Lasting {
    /// The device.
    pub uuid: String,
    /// What is wrong.
    pub cause: Cause,
    /// The energy counter when it was last read, in millijoules: where it is lower now, the device was reset since.
    pub energy_millijoules: Option<u64>,
}

/// Judges the devices of a node.
#[derive(Clone, Debug)]
pub struct Judge {
    policy: Policy,
    times: Times,
    devices: BTreeMap<String, Device>,
}

impl Judge {
    /// A judge that remembers what lasts. What is given must be of this boot of the node.
    #[must_use]
    pub fn new(policy: Policy, times: Times, lasting: Vec<Lasting>) -> Self {
        let mut judge = Self { policy, times, devices: BTreeMap::new() };
        for Lasting { uuid, cause, energy_millijoules } in lasting {
            let quiet = (cause == Cause::Lost).then_some(times.lost_quiet);
            let fault = Fault { failed: true, last: Duration::ZERO, quiet, is_over: false };
            let device = judge.devices.entry(uuid).or_default();
            device.faults.insert(cause, fault);
            device.energy = energy_millijoules;
        }
        judge
    }

    /// Faults that only a reset ends. That of a lost device is over when it answers again, which this process may not live to see.
    #[must_use]
    pub fn lasting(&self) -> Vec<Lasting> {
        let of = |(uuid, device): (&String, &Device)| {
            let is_lost = |cause: &Cause, fault: &Fault| *cause == Cause::Lost && !fault.is_over;
            let lasts = device.faults.iter().filter(|(cause, f)| f.quiet.is_none() || is_lost(cause, f));
            let lasting = |cause| Lasting { uuid: uuid.clone(), cause, energy_millijoules: device.energy };
            lasts.map(|(cause, _)| lasting(*cause)).collect::<Vec<_>>()
        };
        self.devices.iter().flat_map(of).collect()
    }

    /// Takes an Xid; gives its class.
    pub fn xid(&mut self, uuid: &str, code: u64, now: Duration) -> Class {
        let class = self.policy.class(code);
        let (failed, quiet) = match class {
            Class::Informational | Class::Application => return class,
            Class::Degraded => (false, Some(self.times.error_quiet)),
            Class::Fatal => (true, None),
        };
        self.sign(uuid, Cause::Xid(code), failed, quiet, now);
        class
    }

    /// Takes a reading.
    pub fn reading(&mut self, reading: &DeviceReading, now: Duration) {
        let uuid = reading.identity.uuid.as_str();
        let times = self.times;
        let unreadable = match &reading.fault {
            Some(DeviceFault::Unreadable(text)) => Some(text.clone()),
            _ => None,
        };
        let is_unreadable = unreadable.is_some();
        self.device(uuid).unreadable.see(unreadable, now, &times);
        if is_unreadable {
            return;
        }
        if reading.fault == Some(DeviceFault::Lost) {
            // Whatever it was before, it answers no more; its sensors say nothing.
            self.sign(uuid, Cause::Lost, true, Some(self.times.lost_quiet), now);
            return;
        }
        self.note_reset(uuid, reading.sensors.energy_millijoules);
        self.row_remap(uuid, reading.fault.as_ref(), now);
        self.ecc(uuid, reading.sensors.ecc_uncorrected, now);
        self.heat(uuid, reading.thermal_slowdown, now);
        self.clear(uuid, now);
    }

    /// What is believed of a device now.
    #[must_use]
    pub fn opinion(&self, uuid: &str) -> Opinion {
        let device = self.devices.get(uuid);
        let standing = device.into_iter().flat_map(|d| &d.faults).filter(|(_, fault)| !fault.is_over);
        // The worst first; of several alike, the first in order of causes.
        let worst = standing.min_by_key(|(cause, fault)| (!fault.failed, **cause));
        if let Some((cause, fault)) = worst {
            let health = if fault.failed { GpuHealth::Failed } else { GpuHealth::Degraded };
            return Opinion { health, cause: Some(*cause), reason: Some(cause.text()) };
        }
        match device.and_then(|d| d.unreadable.told().cloned()) {
            Some(text) => Opinion { health: GpuHealth::Unknown, cause: None, reason: Some(text) },
            None => Opinion { health: GpuHealth::Healthy, cause: None, reason: None },
        }
    }

    /// Devices that failed and that the driver does not name any more, as one that fell off the bus before this process began:
    /// nothing says that they were mended.
    pub fn missing<'a>(&'a self, inventory: &'a NodeInventory) -> impl Iterator<Item = (&'a str, Opinion)> {
        let is_named = move |uuid: &str| inventory.devices.iter().any(|device| device.identity.uuid == uuid);
        let unnamed = self.devices.keys().map(String::as_str).filter(move |uuid| !is_named(uuid));
        let opinions = unnamed.map(move |uuid| (uuid, self.opinion(uuid)));
        opinions.filter(|(_, opinion)| opinion.health == GpuHealth::Failed && opinion.cause.is_some())
    }

    fn device(&mut self, uuid: &str) -> &mut Device {
        self.devices.entry(uuid.to_owned()).or_default()
    }

    /// A sign of a fault: its onset, or more of it. A fault that comes back has to be away for twice as long as before.
    fn sign(&mut self, uuid: &str, cause: Cause, failed: bool, quiet: Option<Duration>, now: Duration) {
        let longest = self.times.longest_quiet;
        let new = Fault { failed, last: now, quiet, is_over: false };
        let fault = self.device(uuid).faults.entry(cause).or_insert(new);
        if fault.is_over {
            fault.quiet = fault.quiet.map(|quiet| (quiet * 2).min(longest));
        }
        (fault.last, fault.is_over) = (now, false);
    }

    /// The energy counter begins anew when the driver is loaded, which a reset of the device takes.
    fn note_reset(&mut self, uuid: &str, energy: Option<u64>) {
        let device = self.device(uuid);
        let was_reset = energy.zip(device.energy).is_some_and(|(now, before)| now < before);
        device.energy = energy.or(device.energy);
        if was_reset {
            device.faults.retain(|_, fault| fault.quiet.is_some());
            device.ecc_uncorrected = None;
        }
    }

    /// The device itself says whether rows wait for a reset, so nothing has to be remembered.
    fn row_remap(&mut self, uuid: &str, fault: Option<&DeviceFault>, now: Duration) {
        let causes = [
            (Cause::RowRemapFailed, fault == Some(&DeviceFault::RowRemapFailed), true),
            (Cause::RowRemapPending, fault == Some(&DeviceFault::RowRemapPending), false),
        ];
        for (cause, is_there, failed) in causes {
            if is_there {
                self.sign(uuid, cause, failed, Some(Duration::ZERO), now);
            } else {
                self.device(uuid).faults.remove(&cause);
            }
        }
    }

    fn ecc(&mut self, uuid: &str, count: Option<u64>, now: Duration) {
        let Some(count) = count else { return };
        let before = self.device(uuid).ecc_uncorrected.replace(count);
        // The first reading tells of errors from before, which nobody saw happen.
        if before.is_some_and(|before| count > before) {
            self.sign(uuid, Cause::Ecc, false, Some(self.times.error_quiet), now);
        }
    }

    fn heat(&mut self, uuid: &str, is_hot: bool, now: Duration) {
        let device = self.device(uuid);
        if !is_hot {
            device.hot_since = None;
            return;
        }
        let since = *device.hot_since.get_or_insert(now);
        let is_known = device.faults.get(&Cause::Thermal).is_some_and(|fault| !fault.is_over);
        if is_known || now.saturating_sub(since) >= self.times.thermal_onset {
            self.sign(uuid, Cause::Thermal, false, Some(self.times.thermal_quiet), now);
        }
    }

    fn clear(&mut self, uuid: &str, now: Duration) {
        for fault in self.device(uuid).faults.values_mut() {
            let quiet = now.saturating_sub(fault.last);
            fault.is_over |= fault.quiet.is_some_and(|needed| !needed.is_zero() && quiet >= needed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::{DeviceIdentity, Sensors};

    const UUID: &str = "GPU-0";

    fn at(second: u64) -> Duration {
        Duration::from_secs(second)
    }

    fn judge() -> Judge {
        Judge::new(Policy::default(), Times::default(), vec![])
    }

    fn reading(fault: Option<DeviceFault>) -> DeviceReading {
        let identity = DeviceIdentity {
            index: 0,
            uuid: UUID.to_owned(),
            product_name: "NVIDIA H100 80GB HBM3".to_owned(),
            memory_bytes: 1,
            pci_bus_id: "00000000:10:00.0".to_owned(),
            minor: None,
        };
        DeviceReading {
            fault,
            sensors: Sensors {
                energy_millijoules: Some(1_000),
                ecc_uncorrected: Some(0),
                ..Sensors::default()
            },
            ..DeviceReading::of(identity)
        }
    }

    fn with(change: impl FnOnce(&mut DeviceReading)) -> DeviceReading {
        let mut reading = reading(None);
        change(&mut reading);
        reading
    }

    fn seen(judge: &Judge) -> (GpuHealth, Option<Cause>) {
        let opinion = judge.opinion(UUID);
        (opinion.health, opinion.cause)
    }

    const HEALTHY: (GpuHealth, Option<Cause>) = (GpuHealth::Healthy, None);

    #[test]
    fn what_a_program_does_is_no_fault_of_the_device() {
        let mut judge = judge();
        for code in [13, 31, 43, 45, 68, 109, 154] {
            judge.xid(UUID, code, at(1));
            assert_eq!(seen(&judge), HEALTHY, "Xid {code}");
        }
        assert!(judge.lasting().is_empty());
    }

    #[test]
    fn a_fatal_xid_stays_until_a_reset_also_over_a_restart_of_the_agent() {
        let mut first = judge();
        first.reading(&reading(None), at(1));
        assert_eq!(first.xid(UUID, 79, at(2)), Class::Fatal);
        first.reading(&reading(None), at(1_000_000));
        assert_eq!(seen(&first), (GpuHealth::Failed, Some(Cause::Xid(79))));
        assert_eq!(first.opinion(UUID).reason.as_deref(), Some("Xid 79: the GPU has fallen off the bus"));

        let mut again = Judge::new(Policy::default(), Times::default(), first.lasting());
        again.reading(&with(|r| r.sensors.energy_millijoules = Some(1_001)), at(1));
        assert_eq!(seen(&again), (GpuHealth::Failed, Some(Cause::Xid(79))));
        again.reading(&with(|r| r.sensors.energy_millijoules = Some(5)), at(2));
        assert_eq!(seen(&again), HEALTHY, "the driver was loaded anew");
        assert!(again.lasting().is_empty());
    }

    #[test]
    fn a_degraded_device_clears_after_a_quiet_time_that_doubles() {
        let mut judge = judge();
        let degraded = (GpuHealth::Degraded, Some(Cause::Xid(94)));
        let mut now = 0;
        for quiet in [600, 1_200, 2_400] {
            judge.xid(UUID, 94, at(now));
            judge.reading(&reading(None), at(now + quiet - 1));
            assert_eq!(seen(&judge), degraded, "after {} s of {quiet}", quiet - 1);
            judge.reading(&reading(None), at(now + quiet));
            assert_eq!(seen(&judge), HEALTHY, "after {quiet} s");
            now += quiet;
        }
        for _ in 0..20 {
            judge.xid(UUID, 94, at(now));
            now += 6 * 3600;
            judge.reading(&reading(None), at(now));
            assert_eq!(seen(&judge), HEALTHY, "six hours are the most");
        }
    }

    #[test]
    fn heat_counts_when_it_lasts_and_clears_when_it_is_away_for_a_while() {
        let mut judge = judge();
        let hot = with(|r| r.thermal_slowdown = true);
        let thermal = (GpuHealth::Degraded, Some(Cause::Thermal));
        judge.reading(&hot, at(0));
        judge.reading(&hot, at(9));
        assert_eq!(seen(&judge), HEALTHY);
        // A moment without it begins the count anew.
        judge.reading(&reading(None), at(10));
        judge.reading(&hot, at(11));
        judge.reading(&hot, at(20));
        assert_eq!(seen(&judge), HEALTHY);
        judge.reading(&hot, at(21));
        assert_eq!(seen(&judge), thermal);
        judge.reading(&reading(None), at(70));
        judge.reading(&hot, at(75));
        judge.reading(&reading(None), at(134));
        assert_eq!(seen(&judge), thermal, "59 s");
        judge.reading(&reading(None), at(135));
        assert_eq!(seen(&judge), HEALTHY);
    }

    #[test]
    fn memory_errors_from_before_are_not_news() {
        let mut judge = judge();
        let counted = |count| with(|r| r.sensors.ecc_uncorrected = Some(count));
        judge.reading(&counted(7), at(0));
        assert_eq!(seen(&judge), HEALTHY);
        judge.reading(&counted(8), at(1));
        assert_eq!(seen(&judge), (GpuHealth::Degraded, Some(Cause::Ecc)));
        judge.reading(&counted(8), at(601));
        assert_eq!(seen(&judge), HEALTHY);
        // A counter that falls was reset with the driver.
        judge.reading(&counted(0), at(602));
        judge.reading(&counted(1), at(603));
        assert_eq!(seen(&judge), (GpuHealth::Degraded, Some(Cause::Ecc)));
    }

    #[test]
    fn rows_that_wait_for_a_reset_are_what_the_device_says_now() {
        let mut judge = judge();
        judge.reading(&reading(Some(DeviceFault::RowRemapPending)), at(0));
        assert_eq!(seen(&judge), (GpuHealth::Degraded, Some(Cause::RowRemapPending)));
        judge.reading(&reading(Some(DeviceFault::RowRemapFailed)), at(1));
        assert_eq!(seen(&judge), (GpuHealth::Failed, Some(Cause::RowRemapFailed)));
        judge.reading(&reading(None), at(2));
        assert_eq!(seen(&judge), HEALTHY);
    }

    #[test]
    fn a_lost_device_is_believed_after_a_while_and_an_unreadable_one_is_unknown_while_it_is() {
        let mut judge = judge();
        judge.reading(&reading(Some(DeviceFault::Unreadable("timeout".to_owned()))), at(0));
        let unknown = Opinion { health: GpuHealth::Unknown, cause: None, reason: Some("timeout".to_owned()) };
        assert_eq!(judge.opinion(UUID), unknown);
        judge.reading(&reading(None), at(1));
        assert_eq!(seen(&judge), HEALTHY);
        judge.reading(&reading(Some(DeviceFault::Lost)), at(2));
        assert_eq!(seen(&judge), (GpuHealth::Failed, Some(Cause::Lost)));
        judge.reading(&reading(None), at(16));
        assert_eq!(seen(&judge), (GpuHealth::Failed, Some(Cause::Lost)));
        judge.reading(&reading(None), at(17));
        assert_eq!(seen(&judge), HEALTHY);
        // One that comes and goes is believed later and later.
        judge.reading(&reading(Some(DeviceFault::Lost)), at(20));
        judge.reading(&reading(None), at(49));
        assert_eq!(seen(&judge), (GpuHealth::Failed, Some(Cause::Lost)));
    }

    #[test]
    fn a_device_that_answers_every_other_time_stays_unknown_until_it_is_steady() {
        let mut judge = judge();
        let silent = reading(Some(DeviceFault::Unreadable("timeout".to_owned())));
        for second in 10..100 {
            let now = if second % 2 == 0 { silent.clone() } else { reading(None) };
            judge.reading(&now, at(second));
            let expected = if second == 11 { GpuHealth::Healthy } else { GpuHealth::Unknown };
            assert_eq!(seen(&judge).0, expected, "second {second}");
        }
        judge.reading(&reading(None), at(108));
        assert_eq!(seen(&judge), HEALTHY, "10 s after the last");
    }

    #[test]
    fn a_lost_device_is_remembered_until_it_answers_again() {
        let mut first = judge();
        first.reading(&reading(None), at(0));
        first.reading(&reading(Some(DeviceFault::Lost)), at(1));
        assert_eq!(first.lasting().len(), 1);
        let again = || Judge::new(Policy::default(), Times::default(), first.lasting());
        // The driver does not name it, or does not even count it.
        let missing = |judge: &Judge, inventory: &NodeInventory| {
            judge
                .missing(inventory)
                .map(|(uuid, opinion)| (uuid.to_owned(), opinion.cause))
                .collect::<Vec<_>>()
        };
        let gone = NodeInventory::default();
        assert_eq!(missing(&again(), &gone), [(UUID.to_owned(), Some(Cause::Lost))]);
        let mut judge = again();
        let named = NodeInventory { devices: vec![reading(None)], ..NodeInventory::default() };
        judge.reading(&reading(None), at(1));
        assert_eq!((seen(&judge).1, missing(&judge, &named)), (Some(Cause::Lost), vec![]));
        judge.reading(&reading(None), at(15));
        assert_eq!(seen(&judge), HEALTHY);
        assert!(judge.lasting().is_empty() && missing(&judge, &gone).is_empty());
    }

    #[test]
    fn the_worst_is_told_and_each_cause_has_its_taint() {
        let mut judge = judge();
        judge.xid(UUID, 94, at(0));
        judge.reading(&reading(Some(DeviceFault::RowRemapPending)), at(0));
        judge.xid(UUID, 119, at(0));
        assert_eq!(seen(&judge), (GpuHealth::Failed, Some(Cause::Xid(119))));
        let taints =
            [Cause::Lost, Cause::Xid(1), Cause::RowRemapFailed, Cause::Ecc, Cause::Thermal].map(Cause::taint);
        let [xid, ecc] = ["vendue.dev/xid", "vendue.dev/ecc"];
        assert_eq!(taints, [xid, xid, ecc, ecc, "vendue.dev/thermal"]);
        assert_eq!(judge.opinion("GPU-9").health, GpuHealth::Healthy, "nothing is known against it");
    }
}
