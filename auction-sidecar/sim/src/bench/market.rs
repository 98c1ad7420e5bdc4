//! The simulated market's own speed: rounds of four honest seats and a home for each second of one core.
//!
//! Inputs: seeds. Outputs: `sim_rounds_per_s`, and as a detail the same with real cryptography. Invariant: what is counted
//! was certified with every invariant checked; a market in which one breaks is no measurement.

use super::{BenchError, Plan, Report, Spread, timed};
use crate::keys::{Keys, MockKeys, RealKeys};
use crate::sweep::HANDOVER_MS;
use crate::{Report as Ran, Schedule};

/// Orders of one market, and when it ends: about 43 rounds.
const ORDERS: u32 = 40;
const UNTIL_MS: u64 = 25_500;

fn honest<K: Keys>(seed: u64) -> Result<Ran, BenchError> {
    let honest =
        Schedule { orders: ORDERS, until_ms: UNTIL_MS, handover_ms: HANDOVER_MS, ..Schedule::four(seed) };
    let ran = honest.run_with::<K>()?;
    let holds = ran.violations.is_empty() && ran.certified.len() as u64 >= ran.rounds;
    holds
        .then_some(ran)
        .ok_or(BenchError::Missing("the simulated market breaks an invariant or lacks a certificate"))
}

/// Rounds in a second, of markets with these seeds until there are so many rounds.
fn rounds_per_s<K: Keys>(mut seeds: std::ops::RangeFrom<u64>, rounds: u64) -> Result<f64, BenchError> {
    let work = || {
        let mut done = 0;
        while done < rounds {
            let seed = seeds.next().unwrap_or_default();
            done += honest::<K>(seed)?.rounds;
        }
        Ok::<_, BenchError>(done)
    };
    let (done, ms) = timed(work)?;
    Ok(done? as f64 / ms * 1e3)
}

/// Measures the market with stand-in cryptography, and once with the real one.
pub(super) fn measure(plan: &Plan, report: &mut Report) -> Result<(), BenchError> {
    let rate = |run| rounds_per_s::<MockKeys>(run as u64 * plan.rounds.., plan.rounds);
    report.spread("sim_rounds_per_s", Spread::of((0..plan.runs).map(rate).collect::<Result<_, _>>()?)?);
    report
        .detail("sim_rounds_per_s with real cryptography", rounds_per_s::<RealKeys>(0.., plan.rounds / 20)?);
    Ok(())
}
