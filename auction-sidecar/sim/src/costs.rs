//! What partial bundles cost (B41): f seats that keep rounds from their fast path, beside the same rounds of honest seats.
//!
//! Inputs: the number of seats and of rounds. Outputs: for each way how long the certificate took, in time that is waited
//! and in hops, and how many views and messages there were. Messages take a fixed time, so two runs with different ones
//! tell hops and waiting apart.

use crate::deviation::{Deviation, KindName};
use crate::keys::Keys;
use crate::schedule::Schedule;
use crate::sweep::HANDOVER_MS;
use serde::Serialize;
use vendue_auction_core::KeyError;

/// Two fixed delays of messages, in milliseconds; both far below D.
const DELAYS_MS: [u64; 2] = [2, 4];

/// What a way to delay rounds costs.
#[derive(Debug, Clone, Serialize)]
pub struct Cost {
    /// What f seats do.
    pub how: &'static str,
    /// Rounds.
    pub rounds: u64,
    /// Rounds that were certified.
    pub certified: u64,
    /// Hops to the certificate, in the mean.
    pub hops: f64,
    /// What is waited beside them, in D, in the mean.
    pub waits_d: f64,
    /// The longest time to the certificate, in D, with messages that take no time to speak of.
    pub most_d: f64,
    /// NEWVIEWs for each seat and round.
    pub new_views: f64,
    /// Messages among seats for each round.
    pub messages: f64,
}

/// The ways.
pub const WAYS: [(&str, &[Deviation]); 4] = [
    ("honest seats", &[]),
    ("bundles to f", &[Deviation::PartialBundle(0)]),
    ("bundles to f, SETs to f", &[Deviation::PartialBundle(0), Deviation::Only(KindName::Set, 0)]),
    (
        "bundles to f, SETs to f, silent as proposer",
        &[Deviation::PartialBundle(0), Deviation::Only(KindName::Set, 0), Deviation::Mute(KindName::Propose)],
    ),
];

fn with_f(deviation: Deviation, f: u16) -> Deviation {
    match deviation {
        Deviation::PartialBundle(_) => Deviation::PartialBundle(f),
        Deviation::Only(kind, _) => Deviation::Only(kind, f),
        other => other,
    }
}

/// The costs of all ways.
pub fn costs<K: Keys>(seats: u16, rounds: u64) -> Result<Vec<Cost>, KeyError> {
    WAYS.iter().map(|(how, deviations)| cost::<K>(how, deviations, seats, rounds)).collect()
}

/// The cost of one way.
fn cost<K: Keys>(
    how: &'static str,
    deviations: &[Deviation],
    seats: u16,
    rounds: u64,
) -> Result<Cost, KeyError> {
    let f = seats.saturating_sub(1) / 3;
    let faulty: Vec<(u16, Deviation)> =
        (0..f).flat_map(|seat| deviations.iter().map(move |d| (seat, with_f(*d, f)))).collect();
    let mut took: [Vec<u64>; 2] = [vec![], vec![]];
    let (mut done, mut certified, mut new_views, mut messages) = (0, 0, 0, 0);
    for (delay, took) in DELAYS_MS.into_iter().zip(&mut took) {
        let mut seed = 0;
        let mut run = 0;
        while run < rounds {
            let schedule = Schedule {
                seats,
                delay_ms: (delay, delay),
                orders: 12,
                until_ms: 14_000,
                handover_ms: HANDOVER_MS,
                deviations: faulty.clone(),
                ..Schedule::four(seed)
            };
            let report = schedule.run_with::<K>()?;
            took.extend(report.certified.values());
            run += report.rounds;
            certified += report.certified.len() as u64;
            new_views += report.new_views;
            messages += report.messages;
            seed += 1;
        }
        done += run;
    }
    let mean = |all: &[u64]| all.iter().sum::<u64>() as f64 / all.len().max(1) as f64;
    let [fast, slow] = &took;
    let (step, d) = ((DELAYS_MS[1] - DELAYS_MS[0]) as f64, crate::clock().delay_ms as f64);
    let hops = (mean(slow) - mean(fast)) / step;
    let per_round = |count: u64| count as f64 / done.max(1) as f64;
    Ok(Cost {
        how,
        rounds: done,
        certified,
        hops,
        waits_d: (mean(fast) - hops * DELAYS_MS[0] as f64) / d,
        most_d: fast.iter().max().copied().unwrap_or_default() as f64 / d,
        // Each goes to all others.
        new_views: per_round(new_views) / f64::from(seats) / f64::from(seats.saturating_sub(1).max(1)),
        messages: per_round(messages),
    })
}
