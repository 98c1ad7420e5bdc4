//! The clock of rounds: every time of the protocol is a function of the market's parameters and the round number.
//!
//! All times are milliseconds since 1970. Clocks matter for timeliness only, never for safety.

use serde::{Deserialize, Serialize};

/// Parameters of a market's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Params {
    /// D: bound on one-way delay, CPU and clock skew included, in milliseconds.
    pub delay_ms: u64,
    /// PI: time from one round to the next, at least 6 D.
    pub period_ms: u64,
    /// Start of round 0.
    pub genesis_ms: u64,
    /// H: time for hand-over after voting has stopped.
    pub handover_ms: u64,
}

/// Longest delay: the shortest period for it is a day.
const MAX_DELAY_MS: u64 = DAY_MS / PERIOD_DELAYS;
/// Longest period and hand-over.
const DAY_MS: u64 = 86_400_000;
/// Delays in a view after the first.
const VIEW_DELAYS: u64 = 6;
/// Delays in the shortest period.
const PERIOD_DELAYS: u64 = 6;
/// Delays in the shortest hand-over: a question and its answer for the winner and each of two stand-bys.
const HANDOVER_DELAYS: u64 = 6;
/// Latest start of round 0, the year 2200: what is later is no time in milliseconds.
const MAX_GENESIS_MS: u64 = 7_258_118_400_000;

/// A parameter that no market can run with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}; accepted: {least} to {most} ({why})")]
pub struct ParamError {
    /// The field of [`Params`].
    pub field: &'static str,
    /// Its value.
    pub value: u64,
    /// The least accepted value.
    pub least: u64,
    /// The greatest accepted value.
    pub most: u64,
    /// What the range follows from.
    pub why: &'static str,
}

impl Params {
    /// Checks every parameter; the first that is out of its range is named.
    pub fn check(&self) -> Result<(), ParamError> {
        let d = self.delay_ms;
        let (period, handover) = (d.saturating_mul(PERIOD_DELAYS), d.saturating_mul(HANDOVER_DELAYS));
        let ranges = [
            ("delay_ms", d, 1, MAX_DELAY_MS, "a period of 6 delays is at most a day"),
            ("period_ms", self.period_ms, period, DAY_MS, "at least 6 delays, at most a day"),
            ("handover_ms", self.handover_ms, handover, DAY_MS, "at least 6 delays, at most a day"),
            ("genesis_ms", self.genesis_ms, 0, MAX_GENESIS_MS, "milliseconds since 1970, before 2200"),
        ];
        match ranges.into_iter().find(|(_, value, least, most, _)| !(least..=most).contains(&value)) {
            None => Ok(()),
            Some((field, value, least, most, why)) => Err(ParamError { field, value, least, most, why }),
        }
    }
    /// T0: bundles are sent.
    pub fn t0(&self, round: u64) -> u64 {
        self.genesis_ms.saturating_add(round.saturating_mul(self.period_ms))
    }
    /// T1: bundles that come later are not listed.
    pub fn t1(&self, round: u64) -> u64 {
        self.t0(round).saturating_add(self.delay_ms)
    }
    /// T2: a seat votes on what it has.
    pub fn t2(&self, round: u64) -> u64 {
        self.t1(round).saturating_add(self.delay_ms)
    }
    /// T3: view 0 ends.
    pub fn t3(&self, round: u64) -> u64 {
        self.t2(round).saturating_add(3 * self.delay_ms)
    }
    /// When a view ends by the clock.
    pub fn view_ends(&self, round: u64, view: u32) -> u64 {
        self.t3(round).saturating_add(u64::from(view).saturating_mul(VIEW_DELAYS * self.delay_ms))
    }
    /// The view that it is by the clock, before voting stops.
    pub fn view_at(&self, round: u64, at_ms: u64) -> u32 {
        match at_ms.min(self.x(round).saturating_sub(1)).checked_sub(self.t3(round)) {
            None => 0,
            Some(after) => u32::try_from(after / (VIEW_DELAYS * self.delay_ms)).map_or(u32::MAX, |v| v + 1),
        }
    }
    /// The last view that begins before voting stops; those before it have their whole time.
    pub fn last_view(&self) -> u32 {
        self.view_at(0, u64::MAX)
    }
    /// X: voting stops.
    pub fn x(&self, round: u64) -> u64 {
        self.t0(round).saturating_add(40 * self.delay_ms)
    }
    /// E: awards expire.
    pub fn expiry(&self, round: u64) -> u64 {
        self.x(round).saturating_add(self.handover_ms)
    }
    /// E - T0: how long a round and its awards can matter.
    pub fn lifetime(&self) -> u64 {
        40 * self.delay_ms + self.handover_ms
    }
    /// Rounds from one of an order's rounds to its next, so that no two that could award it are open together.
    pub fn order_step(&self) -> u64 {
        (self.lifetime() + 2 * self.delay_ms).div_ceil(self.period_ms).max(1)
    }
    /// The round whose awards expire at that time; `None` when there is none.
    pub fn round_of_expiry(&self, expires_ms: u64) -> Option<u64> {
        let after = expires_ms.checked_sub(self.expiry(0))?;
        after.is_multiple_of(self.period_ms.max(1)).then(|| after / self.period_ms.max(1))
    }
    /// The first round with T0 >= `at_ms`.
    pub fn round_from(&self, at_ms: u64) -> u64 {
        at_ms.saturating_sub(self.genesis_ms).div_ceil(self.period_ms)
    }
    /// The first round that an order made now may name: T0 >= now + 3 D. Seats list what they have had for one D, and
    /// it takes one D to reach them; the third is for a home or a seat that is busy, because who misses his first round
    /// waits for a whole step.
    pub fn first_round(&self, now_ms: u64) -> u64 {
        self.round_from(now_ms.saturating_add(3 * self.delay_ms))
    }
    /// From when on an order may name no round before this one.
    pub fn named_from(&self, round: u64) -> u64 {
        let before = round.checked_sub(1).map_or(0, |before| self.t0(before).saturating_add(1));
        before.saturating_sub(3 * self.delay_ms)
    }
    /// The first round in which a seat may list an order that it got at `received_ms`: T0 >= that + D.
    pub fn listable_from(&self, received_ms: u64) -> u64 {
        self.round_from(received_ms.saturating_add(self.delay_ms))
    }
    /// The latest round with T0 <= `at_ms`; 0 before genesis.
    pub fn round_at(&self, at_ms: u64) -> u64 {
        at_ms.saturating_sub(self.genesis_ms) / self.period_ms
    }

    /// When a seat may be the first to send OPEN for `round`: `now_ms` itself, or the end of the windows
    /// `[T0(s) - 3D, T1(s) + D]` of other rounds that it falls in.
    pub fn gate(&self, round: u64, now_ms: u64) -> u64 {
        let d = self.delay_ms;
        let mut at = now_ms;
        // Windows are shorter than the period, so going through rounds in order settles each once.
        let first = self.round_at(at.saturating_sub(2 * d)).saturating_sub(1);
        for s in first..first.saturating_add(6) {
            let (from, to) = (self.t0(s).saturating_sub(3 * d), self.t1(s).saturating_add(d));
            if s != round && (from..=to).contains(&at) {
                at = to + 1;
            }
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: Params = Params { delay_ms: 100, period_ms: 600, genesis_ms: 10_000, handover_ms: 5000 };

    #[test]
    fn times_of_a_round() {
        assert_eq!(
            (P.t0(2), P.t1(2), P.t2(2), P.x(2), P.expiry(2)),
            (11_200, 11_300, 11_400, 15_200, 20_200)
        );
        assert_eq!(
            [20_200, 20_800, 20_201, 0].map(|at| P.round_of_expiry(at)),
            [Some(2), Some(3), None, None]
        );
        assert_eq!(P.order_step(), 16);
        assert_eq!((P.first_round(10_000), P.first_round(10_301), P.first_round(0)), (1, 2, 0));
        assert_eq!([0, 1, 2].map(|round| P.first_round(P.named_from(round))), [0, 1, 2]);
        assert_eq!([1, 2].map(|round| P.first_round(P.named_from(round) - 1)), [0, 1]);
        assert_eq!((P.listable_from(10_500), P.listable_from(10_501)), (1, 2));
        assert_eq!(P.round_at(11_199), 1);
        assert!(P.t0(2 + P.order_step()) >= P.expiry(2) + 200);
    }

    #[test]
    fn five_whole_views_fit_before_voting_stops() {
        let at = |after: u64| P.view_at(2, 11_200 + after);
        assert_eq!((P.t3(2), P.view_ends(2, 0), P.view_ends(2, 1)), (11_700, 11_700, 12_300));
        assert_eq!([0, 499, 500, 1_099, 1_100, 3_499, 3_500, 9_999].map(at), [0, 0, 1, 1, 2, 5, 6, 6]);
        assert_eq!(P.last_view(), 6);
        assert!(P.view_ends(2, 5) <= P.x(2) && P.view_ends(2, 6) > P.x(2));
    }

    #[test]
    fn gate_keeps_openings_away_from_collecting_rounds() {
        // Round 2 starts at 11_200; round 3 collects in [11_500, 12_000], round 4 in [12_100, 12_600].
        assert_eq!(P.gate(2, 11_250), 11_250);
        assert_eq!(P.gate(2, 11_499), 11_499);
        assert_eq!(P.gate(2, 11_500), 12_001);
        assert_eq!(P.gate(2, 12_050), 12_050);
        assert_eq!(P.gate(2, 12_100), 12_601);
    }

    #[test]
    fn parameters_out_of_range_are_named_with_value_and_range() {
        let refused = |p: Params| p.check().unwrap_err();
        assert_eq!(P.check(), Ok(()));
        assert_eq!(Params { handover_ms: 600, genesis_ms: MAX_GENESIS_MS, ..P }.check(), Ok(()));
        for (params, field, value, least, most) in [
            (Params { delay_ms: 0, ..P }, "delay_ms", 0, 1, 14_400_000),
            (Params { delay_ms: 14_400_001, ..P }, "delay_ms", 14_400_001, 1, 14_400_000),
            (Params { delay_ms: u64::MAX, ..P }, "delay_ms", u64::MAX, 1, 14_400_000),
            (Params { period_ms: 599, ..P }, "period_ms", 599, 600, DAY_MS),
            (Params { period_ms: DAY_MS + 1, ..P }, "period_ms", DAY_MS + 1, 600, DAY_MS),
            (Params { handover_ms: 0, ..P }, "handover_ms", 0, 600, DAY_MS),
            (Params { handover_ms: 2, ..P }, "handover_ms", 2, 600, DAY_MS),
            (Params { handover_ms: 599, ..P }, "handover_ms", 599, 600, DAY_MS),
            (Params { genesis_ms: u64::MAX, ..P }, "genesis_ms", u64::MAX, 0, MAX_GENESIS_MS),
        ] {
            let error = refused(params);
            assert_eq!((error.field, error.value, error.least, error.most), (field, value, least, most));
        }
        let text = refused(Params { handover_ms: 2, ..P }).to_string();
        assert_eq!(text, "handover_ms is 2; accepted: 600 to 86400000 (at least 6 delays, at most a day)");
    }
}
