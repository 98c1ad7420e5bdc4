//! The numbers of the auction: the CPU that one seat spends on whole rounds, latencies in an emulated network, sizes,
//! key generation, clearing, and the library that the scheme is compared with.
//!
//! Inputs: a [`Plan`]. Output: a [`Report`] with every key of the specification. What one seat spends is measured on the
//! real state machine, which is given all messages of the others as they sent them; nothing is a sum of parts. Time is
//! the CPU time of the measuring thread, so other programs on the machine disturb it little.
//!
//! Invariant: every key is there and finite, in a short plan too.

mod baseline;
mod clearing;
mod generation;
mod market;
mod network;
mod round;

pub use clearing::UNFIT;
pub use network::{Emulated, Matrix};
pub use round::{Recording, Stage, Timed};

use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;
use vendue_auction_core::KeyError;
use vendue_sealed_bid::CryptoError;
use vendue_sealed_bid::dkg::DkgError;

/// Why a number could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// Keys could not be made.
    #[error("making keys: {0}")]
    Keys(#[from] KeyError),
    /// Key generation failed.
    #[error("key generation: {0}")]
    Generation(#[from] DkgError),
    /// Cryptography failed.
    #[error("cryptography: {0}")]
    Crypto(#[from] CryptoError),
    /// The operating system gave no time.
    #[error("reading the CPU time of the thread: {0}")]
    Clock(#[from] nix::errno::Errno),
    /// The latency matrix does not parse.
    #[error("reading the latency matrix: {0}")]
    Matrix(#[from] serde_json::Error),
    /// Something that must have happened did not.
    #[error("{0}")]
    Missing(&'static str),
}

/// What is measured, and how often.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Seats of the large market; its keys say `n100`.
    pub large: u16,
    /// Seats of the small market; its keys say `n16`.
    pub small: u16,
    /// Orders of a large round; its keys say `k1000`.
    pub orders: usize,
    /// How often each round is measured.
    pub runs: usize,
    /// Numbers of orders to clear, ascending.
    pub cleared: Vec<usize>,
    /// Orders of the round in which nothing fits.
    pub unfit: usize,
    /// Ciphertexts on which the library that is compared with is measured.
    pub ciphertexts: usize,
    /// Rounds of the simulated market in each run.
    pub rounds: u64,
}

impl Plan {
    /// What the published numbers come from.
    pub fn full() -> Self {
        Self {
            large: 100,
            small: 16,
            orders: 1000,
            runs: 9,
            cleared: vec![100, 1000, 10_000],
            unfit: 512,
            ciphertexts: 3,
            rounds: 2_000,
        }
    }
    /// The same keys in a few seconds, on small markets.
    pub fn quick() -> Self {
        Self {
            large: 7,
            small: 4,
            orders: 12,
            runs: 2,
            cleared: vec![10, 40],
            unfit: 10,
            ciphertexts: 1,
            rounds: 20,
        }
    }
}

/// A measured number.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one of all runs.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// How many runs there were.
    pub runs: usize,
}

impl Spread {
    /// Of at least one number.
    pub fn of(mut values: Vec<f64>) -> Result<Self, BenchError> {
        values.sort_by(f64::total_cmp);
        let none = BenchError::Missing("nothing was measured");
        match (values.first(), values.get(values.len() / 2), values.last()) {
            (Some(min), Some(median), Some(max)) => {
                Ok(Self { median: *median, min: *min, max: *max, runs: values.len() })
            }
            _ => Err(none),
        }
    }

    /// The same after a change of unit; where large becomes small, the ends change places.
    pub fn map(self, f: impl Fn(f64) -> f64) -> Self {
        let (a, b) = (f(self.min), f(self.max));
        Self { median: f(self.median), min: a.min(b), max: a.max(b), runs: self.runs }
    }
}

/// Everything that was measured.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// The keys of the specification.
    pub keys: BTreeMap<String, f64>,
    /// Median, least and greatest of the keys that were measured several times.
    pub spread: BTreeMap<String, Spread>,
    /// What a round's CPU goes to, and other things worth knowing.
    pub details: BTreeMap<String, f64>,
}

impl Report {
    fn key(&mut self, name: &str, value: f64) {
        self.keys.insert(name.into(), value);
    }
    fn spread(&mut self, name: &str, spread: Spread) {
        self.key(name, spread.median);
        self.spread.insert(name.into(), spread);
    }
    fn detail(&mut self, name: impl Into<String>, value: f64) {
        self.details.insert(name.into(), value);
    }
}

/// The CPU time that this thread has used.
pub fn cpu() -> Result<Duration, BenchError> {
    let clock = nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID;
    Ok(nix::time::clock_gettime(clock)?.into())
}

/// What `work` gives, and the CPU time in milliseconds that it took.
fn timed<T>(work: impl FnOnce() -> T) -> Result<(T, f64), BenchError> {
    let before = cpu()?;
    let out = work();
    Ok((out, (cpu()?.saturating_sub(before)).as_secs_f64() * 1e3))
}

/// Measures a part of a report.
type Part = fn(&Plan, &mut Report) -> Result<(), BenchError>;

/// The parts of a report, in the order in which they are measured.
const PARTS: [(&str, Part); 6] = [
    ("rounds", round::measure),
    ("comparison", baseline::measure),
    ("latency", network::measure),
    ("key generation", generation::measure),
    ("clearing", clearing::measure),
    ("simulated market", market::measure),
];

/// Measures everything, or one part; `say` hears what is being measured.
pub fn run(plan: &Plan, only: Option<&str>, say: impl Fn(&str)) -> Result<Report, BenchError> {
    let mut report = Report::default();
    if only.is_some_and(|only| PARTS.iter().all(|(name, _)| *name != only)) {
        return Err(BenchError::Missing("there is no such part"));
    }
    for (name, measure) in PARTS.into_iter().filter(|(name, _)| only.is_none_or(|only| only == *name)) {
        say(name);
        measure(plan, &mut report)?;
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_and_the_ends() {
        let spread = Spread::of(vec![3.0, 1.0, 2.0]).unwrap();
        assert_eq!(spread, Spread { median: 2.0, min: 1.0, max: 3.0, runs: 3 });
        assert_eq!(spread.map(|ms| 6.0 / ms), Spread { median: 3.0, min: 2.0, max: 6.0, runs: 3 });
        assert!(Spread::of(vec![]).is_err());
    }
}
