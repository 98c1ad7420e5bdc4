//! Many schedules in a row: each behaviour alone, random mixes up to f, schedules made to split the agreement, and one
//! faulty seat beyond f.
//!
//! Inputs: a [`Plan`]. Output: a [`Tally`] with a hash over all runs; the same plan gives the same tally.

use crate::deviation::{Deviation, all_deviations};
use crate::invariants::Violation;
use crate::keys::Keys;
use crate::schedule::{Report, Schedule};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use vendue_auction_core::KeyError;

/// What is to be run.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Number of seats.
    pub seats: u16,
    /// Rounds to simulate at least.
    pub rounds: u64,
    /// Seed of the first schedule.
    pub seed: u64,
    /// One faulty seat more than the market tolerates.
    pub beyond: bool,
}

/// A schedule in which something did not hold.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The schedule.
    pub schedule: Schedule,
    /// What did not hold.
    pub violations: Vec<Violation>,
}

/// What came of a sweep.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Schedules that were run.
    pub schedules: u64,
    /// Schedules with one behaviour alone.
    pub alone: u64,
    /// Rounds in which a seat spoke.
    pub rounds: u64,
    /// Rounds that an honest seat certified.
    pub certified: u64,
    /// Orders handed over.
    pub handed_over: u64,
    /// Messages among seats.
    pub messages: u64,
    /// NEWVIEWs.
    pub new_views: u64,
    /// Faults that honest seats proved, by name.
    pub proven: BTreeMap<String, u64>,
    /// Rounds with two final sets or two certified roots, by how many seats can be proven faulty in them.
    pub splits: BTreeMap<usize, u64>,
    /// Positions of the first schedules with such rounds.
    pub split_at: Vec<u64>,
    /// Processes that were started again.
    pub restarts: u64,
    /// Beyond f: schedules in which an invariant did not hold, by invariant.
    pub beyond: BTreeMap<&'static str, u64>,
    /// What must hold and did not.
    pub failures: Vec<Failure>,
    /// Hash over the traces of all runs.
    pub trace: [u8; 32],
}

/// With more than f faulty seats these still hold: honest seats are not framed and stay within what they may do, and who
/// broke the rest can be proven.
const HOLD_BEYOND: [&str; 5] = ["I2", "I6", "I16", "I19", "I20"];

/// The shortest time for hand-over that leaves each of three seats its turn.
pub const HANDOVER_MS: u64 = 1_800;

/// Schedules with split rounds that are named.
const KEPT: usize = 8;

/// Failures after which a sweep stops.
const ENOUGH: usize = 5;

impl Plan {
    /// The schedule at this position of the sweep.
    pub fn schedule(&self, at: u64) -> Schedule {
        let seed = self.seed.wrapping_add(at);
        // Rounds that are open for a short time only, so that fewer are at once.
        let many = |s: Schedule| Schedule { orders: 12, until_ms: 13_000, handover_ms: HANDOVER_MS, ..s };
        if self.beyond {
            return Schedule { orders: 6, until_ms: 9_000, ..Schedule::beyond(seed, self.seats) };
        }
        match at % 8 {
            // Few enough orders that the run can be compared with that of honest seats.
            1 if at % 64 == 1 => Schedule { orders: 3, until_ms: 9_000, ..self.alone(seed, at) },
            0..=2 => many(self.alone(seed, at)),
            3 => Schedule { orders: 6, until_ms: 9_000, ..Schedule::adversarial(seed, self.seats) },
            _ => many(Schedule::random(seed, self.seats)),
        }
    }

    /// One behaviour, of each seat in turn.
    fn alone(&self, seed: u64, at: u64) -> Schedule {
        let all = all_deviations(self.seats);
        let turn = at / 8 * 3 + at % 8;
        let position = (turn % all.len().max(1) as u64) as usize;
        let mut rng = ChaCha20Rng::seed_from_u64(seed ^ 0xa10e);
        let seat = (rng.next_u64() % u64::from(self.seats)) as u16;
        let deviation = all.get(position).copied().unwrap_or(Deviation::Silent);
        Schedule { seats: self.seats, deviations: vec![(seat, deviation)], ..Schedule::four(seed) }
    }

    /// What does not hold in a schedule and must, with the report.
    pub fn judge<K: Keys>(&self, schedule: &Schedule) -> Result<(Report, Vec<Violation>), KeyError> {
        let mut report = schedule.run_with::<K>()?;
        let mut violations = std::mem::take(&mut report.violations);
        if !self.beyond && has_same_bids(schedule) {
            violations.extend(schedule.compare::<K>(&report)?);
        }
        if self.beyond {
            report.violations.clone_from(&violations);
            violations.retain(|v| HOLD_BEYOND.contains(&v.invariant));
        }
        Ok((report, violations))
    }
}

/// Whether a run is comparable with that of honest seats: a good network, bids that an honest seat makes, and no more
/// orders than the cheapest seat can serve.
fn has_same_bids(schedule: &Schedule) -> bool {
    let other_bids = schedule
        .deviations
        .iter()
        .any(|(_, d)| matches!(d, Deviation::FalseRecords(_) | Deviation::TwoReplicas));
    schedule.synchronous_from == Some(0) && schedule.orders <= 3 && !other_bids
}

/// Runs schedules until there are as many rounds as planned, or enough failures.
pub fn sweep<K: Keys>(plan: &Plan, mut progress: impl FnMut(&Tally)) -> Result<Tally, KeyError> {
    let mut tally = Tally::default();
    let mut trace = Sha256::new();
    while tally.rounds < plan.rounds && tally.failures.len() < ENOUGH {
        let schedule = plan.schedule(tally.schedules);
        let (report, violations) = plan.judge::<K>(&schedule)?;
        trace.update(report.trace);
        tally.add(&schedule, &report);
        if !violations.is_empty() {
            tally.failures.push(Failure { schedule, violations });
        }
        progress(&tally);
    }
    tally.trace = trace.finalize().into();
    Ok(tally)
}

impl Tally {
    fn add(&mut self, schedule: &Schedule, report: &Report) {
        if !report.splits.is_empty() && self.split_at.len() < KEPT {
            self.split_at.push(self.schedules);
        }
        self.schedules += 1;
        self.alone += u64::from(schedule.deviations.len() == 1);
        self.rounds += report.rounds;
        self.certified += report.certified.len() as u64;
        self.handed_over += report.handed_over as u64;
        self.messages += report.messages;
        self.new_views += report.new_views;
        self.restarts += report.restarts;
        for culprits in report.splits.values() {
            *self.splits.entry(culprits.len()).or_default() += 1;
        }
        for (_, fault) in &report.proven {
            *self.proven.entry(format!("{fault:?}")).or_default() += 1;
        }
        let kinds: std::collections::BTreeSet<_> = report.violations.iter().map(|v| v.invariant).collect();
        for invariant in kinds {
            *self.beyond.entry(invariant).or_default() += 1;
        }
    }
}

impl Failure {
    /// The smallest schedule that still fails in the same way.
    pub fn shrunk<K: Keys>(&self, plan: &Plan) -> Schedule {
        let names = |all: &[Violation]| all.iter().map(|v| v.invariant).collect::<Vec<_>>();
        let wanted = names(&self.violations);
        self.schedule.shrink(|s| {
            plan.judge::<K>(s).is_ok_and(|(_, found)| names(&found).iter().any(|name| wanted.contains(name)))
        })
    }
}
