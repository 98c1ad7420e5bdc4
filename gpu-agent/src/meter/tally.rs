//! What durable records say, added up for the metrics. Pure.
//!
//! * Inputs: each record once, when it is durable. Output: time and energy by award and device, time in gaps by award and reason.
//! * Invariants: sums only grow for as long as they are shown; no more than [`MAX_AWARDS`] awards are told apart, what others have
//!   is added under one name; what had no record for [`FORGET_MS`] of chain time is forgotten, so that awards that are over go.

use std::collections::BTreeMap;

use vendue_receipts::{AwardId, Body, DeviceId, GapReason};

/// Awards that are told apart: more than a node with 64 GPUs serves at a time, unless each is split.
pub const MAX_AWARDS: usize = 64;

/// A device at work has a record every ten seconds, one in a gap every minute; what is over is scraped some times more.
const FORGET_MS: u64 = 600_000;

/// Whose time it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Whose {
    /// An award's; the idle one's is nobody's.
    Award(AwardId),
    /// Of awards beyond those that are told apart.
    Other,
}

/// What a device did for an award.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Time in use.
    pub wall_ns: u64,
    /// Energy in use; `None` where the device has no counter of it.
    pub energy_mj: Option<u64>,
    last_ms: u64,
}

/// What became of an award's time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OfAward {
    /// Its devices.
    pub devices: BTreeMap<DeviceId, Sums>,
    gaps_ms: [u64; GapReason::ALL.len()],
    last_ms: u64,
}

impl OfAward {
    /// Time in gaps by reason, also of reasons that there were none for: a counter that begins above nothing loses its first
    /// step.
    pub fn gaps_ms(&self) -> impl Iterator<Item = (GapReason, u64)> {
        GapReason::ALL.into_iter().zip(self.gaps_ms)
    }
}

/// Sums since the agent began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    awards: BTreeMap<Whose, OfAward>,
    /// Time of the newest record; one of a time that could not be stored comes later.
    now_ms: u64,
}

impl Tally {
    /// What there is, by award.
    pub fn iter(&self) -> impl Iterator<Item = (Whose, &OfAward)> {
        self.awards.iter().map(|(whose, sums)| (*whose, sums))
    }

    /// Adds a record that is durable.
    pub fn add(&mut self, award: AwardId, body: &Body) {
        self.now_ms = self.now_ms.max(body.time_ms());
        let now_ms = self.now_ms;
        match body {
            Body::Used(used) => {
                let sums = self.of(award).devices.entry(used.device.clone()).or_default();
                sums.wall_ns = sums.wall_ns.saturating_add(used.wall_ns);
                if let Some(energy) = &used.energy {
                    sums.energy_mj = Some(sums.energy_mj.unwrap_or(0).saturating_add(energy.used_mj));
                }
                sums.last_ms = now_ms;
            }
            Body::Gap(gap) => {
                let of_award = self.of(award);
                if let Some(place) = GapReason::ALL.iter().position(|reason| *reason == gap.reason) {
                    let sum = &mut of_award.gaps_ms[place];
                    *sum = sum.saturating_add(gap.t1_ms.saturating_sub(gap.t0_ms));
                }
                // A device in a gap is still the award's.
                if let Some(sums) = gap.device.as_ref().and_then(|d| of_award.devices.get_mut(d)) {
                    sums.last_ms = now_ms;
                }
            }
            Body::Opened(_) | Body::Clock(_) | Body::Rotated(_) | Body::Closed(_) => {}
        }
        self.forget();
    }

    fn of(&mut self, award: AwardId) -> &mut OfAward {
        let whose = Whose::Award(award);
        let has_room = self.awards.len() < MAX_AWARDS || self.awards.contains_key(&whose);
        let sums = self.awards.entry(if has_room { whose } else { Whose::Other }).or_default();
        sums.last_ms = self.now_ms;
        sums
    }

    fn forget(&mut self) {
        let now_ms = self.now_ms;
        let is_fresh = |last_ms: u64| now_ms.saturating_sub(last_ms) < FORGET_MS;
        self.awards.retain(|_, of_award| is_fresh(of_award.last_ms));
        self.awards
            .values_mut()
            .for_each(|of_award| of_award.devices.retain(|_, sums| is_fresh(sums.last_ms)));
    }
}

#[cfg(test)]
mod tests {
    use vendue_receipts::{Energy, Gap, Used, Xids};

    use super::*;

    fn device(n: u32) -> DeviceId {
        format!("GPU-{n}").parse().expect("device")
    }

    fn award(n: u8) -> AwardId {
        AwardId([n; 8])
    }

    fn used(n: u32, t1_ms: u64, used_mj: Option<u64>) -> Body {
        Body::Used(Used {
            device: device(n),
            t0_ms: t1_ms - 10_000,
            t1_ms,
            wall_ns: 10_000_000_001,
            energy: used_mj.map(|used_mj| Energy { used_mj, counter_mj: used_mj }),
            activity: None,
            memory_peak_bytes: None,
            xids: Xids::default(),
            driver: "580.1".parse().expect("driver"),
        })
    }

    fn gap(n: u32, t0_ms: u64, t1_ms: u64, reason: GapReason) -> Body {
        Body::Gap(Gap { device: Some(device(n)), t0_ms, t1_ms, reason, energy: None, xids: Xids::default() })
    }

    fn sums(tally: &Tally, whose: Whose) -> Vec<(String, u64, Option<u64>)> {
        let of_award = tally.awards.get(&whose).into_iter().flat_map(|of_award| &of_award.devices);
        of_award.map(|(device, sums)| (device.to_string(), sums.wall_ns, sums.energy_mj)).collect()
    }

    fn gaps(tally: &Tally, whose: Whose) -> Vec<(GapReason, u64)> {
        tally.awards.get(&whose).into_iter().flat_map(OfAward::gaps_ms).filter(|(_, ms)| *ms > 0).collect()
    }

    #[test]
    fn records_are_added_by_award_device_and_reason() {
        let mut tally = Tally::default();
        tally.add(award(1), &used(0, 20_000, Some(700)));
        tally.add(award(1), &used(0, 30_000, Some(300)));
        tally.add(award(1), &used(1, 30_000, None));
        tally.add(award(2), &used(0, 40_000, Some(5)));
        tally.add(award(1), &gap(1, 30_000, 34_000, GapReason::DeviceLost));
        tally.add(AwardId::IDLE, &gap(2, 30_000, 31_000, GapReason::AgentDown));
        tally.add(AwardId::IDLE, &gap(1, 34_000, 36_000, GapReason::AgentDown));
        let first =
            [("GPU-0".to_owned(), 20_000_000_002, Some(1_000)), ("GPU-1".to_owned(), 10_000_000_001, None)];
        assert_eq!(sums(&tally, Whose::Award(award(1))), first);
        assert_eq!(sums(&tally, Whose::Award(award(2))), [("GPU-0".to_owned(), 10_000_000_001, Some(5))]);
        assert_eq!(gaps(&tally, Whose::Award(award(1))), [(GapReason::DeviceLost, 4_000)]);
        assert_eq!(gaps(&tally, Whose::Award(AwardId::IDLE)), [(GapReason::AgentDown, 3_000)]);
        assert_eq!(tally.awards[&Whose::Award(award(2))].gaps_ms().count(), 9, "all reasons, with nothing");
    }

    #[test]
    fn what_had_no_record_for_ten_minutes_is_forgotten() {
        let mut tally = Tally::default();
        tally.add(award(1), &used(0, 20_000, None));
        tally.add(award(2), &used(1, 20_000, None));
        tally.add(award(2), &used(2, 20_000, None));
        tally.add(award(2), &gap(1, 20_000, 619_999, GapReason::DeviceLost));
        let named =
            |tally: &Tally| sums(tally, Whose::Award(award(2))).into_iter().map(|s| s.0).collect::<Vec<_>>();
        assert_eq!((tally.awards.len(), named(&tally)), (2, vec!["GPU-1".to_owned(), "GPU-2".to_owned()]));
        tally.add(award(2), &gap(1, 619_999, 620_000, GapReason::DeviceLost));
        assert_eq!((tally.awards.len(), named(&tally)), (1, vec!["GPU-1".to_owned()]), "its award goes on");
        // What could not be stored at first has an older time, and keeps what it is of.
        tally.add(award(2), &gap(1, 5_000, 9_000, GapReason::StoreFailed));
        let expected = [(GapReason::DeviceLost, 600_000), (GapReason::StoreFailed, 4_000)];
        assert_eq!(
            (named(&tally), gaps(&tally, Whose::Award(award(2)))),
            (vec!["GPU-1".to_owned()], expected.to_vec())
        );
    }

    #[test]
    fn awards_beyond_the_limit_share_a_place_and_nothing_is_lost() {
        let mut tally = Tally::default();
        for n in 0..100 {
            tally.add(award(n), &used(u32::from(n), 20_000, Some(1)));
        }
        tally.add(award(0), &used(0, 20_000, Some(1)));
        assert_eq!(tally.awards.len(), MAX_AWARDS + 1);
        let all: u64 = tally.iter().flat_map(|(_, s)| s.devices.values()).filter_map(|s| s.energy_mj).sum();
        assert_eq!(all, 101);
        assert_eq!(sums(&tally, Whose::Award(award(0))), [("GPU-0".to_owned(), 20_000_000_002, Some(2))]);
        assert_eq!(sums(&tally, Whose::Other).len(), 100 - MAX_AWARDS);
    }
}
