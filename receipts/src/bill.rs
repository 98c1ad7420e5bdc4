//! What of an award's records is charged: what lies between the start and the end of the run.
//!
//! Inputs: a price, from when until when, records in their order. Output: sums. Invariants: whatever no record of use covers
//! is not charged; a record counts with the part of it that lies within the run; anybody with the same records, price and
//! times comes to the same sums.
//!
//! Start and end of a run are told by system clocks, windows by chain time; `clock` records say how far these are apart.

use crate::chain::MAX_DEVICES;
use crate::cost::cost_micros;
use crate::names::DeviceId;
use crate::record::{Body, Record};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const MS: u64 = 1_000_000;

/// What the records of an award add up to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Billed {
    /// Records of use that count, wholly or partly.
    pub records: u64,
    /// Nanoseconds, counted in whole milliseconds, with at least one device in use.
    pub used_ns: u64,
    /// Nanoseconds of use of all devices.
    pub gpu_ns: u64,
    /// Nanoseconds of gaps of all devices; a gap of all devices counts once. They cost nothing.
    pub gap_ns: u64,
    /// Energy in windows of use, in millijoules. A window at the edge of the run counts in proportion.
    pub energy_mj: u64,
    /// Cost in millionths; a sum of costs of single records.
    pub cost_micros: u64,
    /// Up to when there are records, in milliseconds since 1970 by the system clock of the node.
    pub until_ms: u64,
}

/// Adds up the records of one chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bill {
    price_micros_per_gpu_hour: u64,
    from_ms: u64,
    until_ms: u64,
    counted_until_ms: u64,
    /// How far the system clock is ahead of chain time.
    offset_ms: i64,
    /// Up to when each device has records; of more than [`MAX_DEVICES`] those that told last.
    devices: BTreeMap<DeviceId, u64>,
    sums: Billed,
}

impl Bill {
    /// Nothing so far. `until_ms` is the end of the run, once it is known.
    #[must_use]
    pub fn new(price_micros_per_gpu_hour: u64, from_ms: u64, until_ms: Option<u64>) -> Self {
        let until_ms = until_ms.unwrap_or(u64::MAX);
        Self {
            price_micros_per_gpu_hour,
            from_ms,
            until_ms,
            counted_until_ms: from_ms,
            offset_ms: 0,
            devices: BTreeMap::new(),
            sums: Billed::default(),
        }
    }

    /// The same bill over a run that turned out to end here; `None` when records beyond the end are in it already, or when
    /// it had another end.
    #[must_use]
    pub fn ending(&self, until_ms: u64) -> Option<Self> {
        let open = self.until_ms == u64::MAX || self.until_ms == until_ms;
        (open && self.sums.until_ms <= until_ms).then(|| Self { until_ms, ..self.clone() })
    }

    /// Counts one more record. Records come in the order of their chain. Sums that no run can have stay at their most.
    pub fn add(&mut self, record: &Record) {
        match &record.body {
            Body::Used(used) => {
                let (t0, t1) = self.within(used.t0_ms, used.t1_ms);
                let told_ms = self.system(used.t1_ms);
                self.sums.until_ms = self.sums.until_ms.max(told_ms);
                self.heard(&used.device, told_ms);
                if t0 >= t1 {
                    return;
                }
                let (part_ms, whole_ms) = (t1 - t0, used.t1_ms - used.t0_ms);
                let wall_ns = share(used.wall_ns, part_ms, whole_ms);
                let energy_mj = used.energy.map_or(0, |energy| share(energy.used_mj, part_ms, whole_ms));
                let cost = cost_micros(self.price_micros_per_gpu_hour, wall_ns).unwrap_or(u64::MAX);
                let new_ms = t1.saturating_sub(t0.max(self.counted_until_ms));
                self.counted_until_ms = self.counted_until_ms.max(t1);
                let sums = &mut self.sums;
                add(&mut sums.records, 1);
                add(&mut sums.used_ns, new_ms.saturating_mul(MS));
                add(&mut sums.gpu_ns, wall_ns);
                add(&mut sums.energy_mj, energy_mj);
                add(&mut sums.cost_micros, cost);
            }
            Body::Gap(gap) => {
                let (t0, t1) = self.within(gap.t0_ms, gap.t1_ms);
                let told_ms = self.system(gap.t1_ms);
                self.sums.until_ms = self.sums.until_ms.max(told_ms);
                match &gap.device {
                    Some(device) => self.heard(device, told_ms),
                    None => self.devices.values_mut().for_each(|until_ms| *until_ms = told_ms.max(*until_ms)),
                }
                add(&mut self.sums.gap_ns, t1.saturating_sub(t0).saturating_mul(MS));
            }
            Body::Clock(clock) => self.offset_ms = clock.offset_ms(),
            Body::Opened(_) | Body::Rotated(_) | Body::Closed(_) => {}
        }
    }

    /// Notes up to when a device has records.
    fn heard(&mut self, device: &DeviceId, told_ms: u64) {
        match self.devices.get_mut(device) {
            Some(until_ms) => *until_ms = told_ms.max(*until_ms),
            None => _ = self.devices.insert(device.clone(), told_ms),
        }
        if self.devices.len() > MAX_DEVICES {
            let oldest =
                self.devices.iter().min_by_key(|(_, until_ms)| **until_ms).map(|(name, _)| name.clone());
            oldest.map(|name| self.devices.remove(&name));
        }
    }

    fn system(&self, chain_ms: u64) -> u64 {
        chain_ms.saturating_add_signed(self.offset_ms)
    }

    /// The part of a time that lies within the run; it has no length when the end is not after the start.
    fn within(&self, t0_ms: u64, t1_ms: u64) -> (u64, u64) {
        (self.system(t0_ms).max(self.from_ms), self.system(t1_ms).min(self.until_ms))
    }

    /// The sums so far.
    #[must_use]
    pub fn sums(&self) -> Billed {
        self.sums
    }

    /// Up to when each device has records, in milliseconds since 1970 by the system clock of the node.
    #[must_use]
    pub fn devices(&self) -> &BTreeMap<DeviceId, u64> {
        &self.devices
    }
}

impl Billed {
    /// Together with another chain of the same award. Time with a device in use is that of the chain with the most: nodes of
    /// an award run side by side.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            records: self.records.saturating_add(other.records),
            used_ns: self.used_ns.max(other.used_ns),
            gpu_ns: self.gpu_ns.saturating_add(other.gpu_ns),
            gap_ns: self.gap_ns.saturating_add(other.gap_ns),
            energy_mj: self.energy_mj.saturating_add(other.energy_mj),
            cost_micros: self.cost_micros.saturating_add(other.cost_micros),
            until_ms: self.until_ms.max(other.until_ms),
        }
    }
}

fn add(sum: &mut u64, more: u64) {
    *sum = sum.saturating_add(more);
}

/// So much of a value as belongs to a part of its time, rounded down. `whole_ms` is above zero.
fn share(value: u64, part_ms: u64, whole_ms: u64) -> u64 {
    if part_ms == whole_ms {
        return value;
    }
    let part = u128::from(value) * u128::from(part_ms) / u128::from(whole_ms.max(1));
    u64::try_from(part).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::AwardId;
    use crate::record::{Clock, Energy, Gap, GapReason, Used, Version, Xids};
    use proptest::prelude::*;

    const HOUR_MS: u64 = 3_600_000;

    fn record(body: Body) -> Record {
        let award = AwardId([1; 8]);
        Record { version: Version, award, sequence: 1, previous: [0; 32], body, signature: [0; 65] }
    }

    fn used(device: &str, t0_ms: u64, t1_ms: u64) -> Record {
        record(Body::Used(Used {
            device: device.parse().unwrap(),
            t0_ms,
            t1_ms,
            wall_ns: (t1_ms - t0_ms) * MS,
            energy: Some(Energy { used_mj: 2 * (t1_ms - t0_ms), counter_mj: 2 * t1_ms }),
            activity: None,
            memory_peak_bytes: None,
            xids: Xids::default(),
            driver: "1".parse().unwrap(),
        }))
    }

    fn gap(t0_ms: u64, t1_ms: u64) -> Record {
        let (device, reason, energy) = (None, GapReason::AgentDown, None);
        record(Body::Gap(Gap { device, t0_ms, t1_ms, reason, energy, xids: Xids::default() }))
    }

    fn sums(price: u64, from_ms: u64, until_ms: Option<u64>, records: &[Record]) -> Billed {
        let mut bill = Bill::new(price, from_ms, until_ms);
        records.iter().for_each(|record| bill.add(record));
        bill.sums()
    }

    #[test]
    fn what_lies_within_the_run_is_charged_and_gaps_are_not() {
        let records = [
            used("a", 0, HOUR_MS),
            used("b", 0, HOUR_MS),
            gap(HOUR_MS, 2 * HOUR_MS),
            used("a", 2 * HOUR_MS, 3 * HOUR_MS),
            used("b", 2 * HOUR_MS, 3 * HOUR_MS),
        ];
        let hours = |n: u64| n * HOUR_MS * MS;
        let whole = Billed {
            records: 4,
            used_ns: hours(2),
            gpu_ns: hours(4),
            gap_ns: hours(1),
            energy_mj: 8 * HOUR_MS,
            cost_micros: 8_000_000,
            until_ms: 3 * HOUR_MS,
        };
        assert_eq!(sums(2_000_000, 0, None, &records), whole);
        // The run began at half past and ended half an hour before the last records.
        let part = sums(2_000_000, HOUR_MS / 2, Some(5 * HOUR_MS / 2), &records);
        let expected = Billed {
            records: 4,
            used_ns: hours(1),
            gpu_ns: hours(2),
            energy_mj: 4 * HOUR_MS,
            cost_micros: 4_000_000,
            ..whole
        };
        assert_eq!(part, expected);
        assert_eq!(sums(2_000_000, 9 * HOUR_MS, None, &records).cost_micros, 0, "nothing after the start");
        assert_eq!(sums(2_000_000, 0, Some(0), &records).gpu_ns, 0, "nothing before the end");
    }

    #[test]
    fn a_clock_that_was_set_moves_the_windows_after_it() {
        let hour_ahead = record(Body::Clock(Clock { time_ms: 10_000, system_ms: 10_000 + HOUR_MS }));
        let records = [used("a", 0, 10_000), hour_ahead, used("a", 10_000, 20_000)];
        let within = sums(1, HOUR_MS, Some(HOUR_MS + 15_000), &records);
        assert_eq!((within.records, within.gpu_ns, within.until_ms), (1, 5_000 * MS, HOUR_MS + 20_000));
    }

    #[test]
    fn each_device_tells_for_itself_and_a_gap_of_all_for_those_that_are_known() {
        let mut bill = Bill::new(1, 0, None);
        let told = |bill: &Bill| bill.devices().values().copied().collect::<Vec<_>>();
        bill.add(&used("a", 0, 10_000));
        bill.add(&used("b", 0, 5_000));
        assert_eq!(told(&bill), [10_000, 5_000]);
        bill.add(&gap(10_000, 12_000));
        assert_eq!(told(&bill), [12_000, 12_000]);
        for n in 0..MAX_DEVICES as u64 {
            bill.add(&used(&format!("c{n}"), 12_000, 13_000 + n));
        }
        assert_eq!(bill.devices().len(), MAX_DEVICES);
        assert!(bill.devices().keys().all(|device| device.as_str().starts_with('c')));
    }

    #[test]
    fn the_end_of_a_run_is_taken_over_while_nothing_beyond_it_was_counted() {
        let records = [used("a", 0, 10_000), used("a", 10_000, 20_000)];
        let mut bill = Bill::new(3_600_000, 0, None);
        bill.add(&records[0]);
        assert_eq!(bill.ending(9_999), None);
        let mut ended = bill.ending(15_000).unwrap();
        ended.add(&records[1]);
        assert_eq!(ended.sums(), sums(3_600_000, 0, Some(15_000), &records));
        assert_eq!(ended.ending(16_000), None, "the end is the end");
    }

    #[test]
    fn sums_of_nodes_add_up_but_for_time_that_they_share() {
        let one = sums(1, 0, None, &[used("a", 0, 1_000)]);
        let two = sums(1, 0, None, &[used("b", 500, 3_000)]);
        let both = one.and(two);
        assert_eq!((both.gpu_ns, both.used_ns, both.until_ms), (3_500 * MS, 2_500 * MS, 3_000));
    }

    proptest! {
        /// Wherever the run is cut in two, the halves are not more than the whole, and less by rounding only.
        #[test]
        fn cutting_a_run_charges_nothing_twice(
            lengths in proptest::collection::vec(1u64..20_000, 1..20),
            cut in 0u64..100_000,
            price in 0u64..1_000_000_000,
        ) {
            let mut at = 0;
            let windows: Vec<Record> = lengths
                .iter()
                .map(|length| {
                    at += length;
                    used("a", at - length, at)
                })
                .collect();
            let whole = sums(price, 0, None, &windows);
            let halves = [sums(price, 0, Some(cut), &windows), sums(price, cut, None, &windows)];
            let [first, second] = halves;
            prop_assert_eq!(first.gpu_ns + second.gpu_ns, whole.gpu_ns);
            prop_assert_eq!(first.used_ns + second.used_ns, whole.used_ns);
            let energy = first.energy_mj + second.energy_mj;
            prop_assert!(energy <= whole.energy_mj && energy + 1 >= whole.energy_mj);
            let cost = first.cost_micros + second.cost_micros;
            prop_assert!(cost.abs_diff(whole.cost_micros) <= 1);
        }
    }
}
