//! Runs targets over a corpus and over changes of it, and says what came of it.
//!
//! Inputs: a target, its seeds, a number of executions, a seed of randomness. Output: counts, or the first input that
//! failed with what was said. The same arguments give the same executions.

use crate::mutate::mutate;
use crate::{Target, bounds, corpus};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// What executions of a target came to.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// How often the target ran.
    pub executions: u64,
    /// How often it accepted the input.
    pub accepted: u64,
    /// The longest execution.
    pub slowest: Duration,
    /// The most that was allocated for a byte that was read.
    pub most_per_byte: u64,
}

/// An input for which something does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The target.
    pub target: String,
    /// The input.
    pub input: Vec<u8>,
    /// What was said.
    pub message: String,
}

/// A target with its seeds and randomness, to be run bit by bit.
pub struct Campaign {
    target: Target,
    seeds: Vec<Vec<u8>>,
    rng: ChaCha8Rng,
    input: Vec<u8>,
    /// What came of it so far.
    pub tally: Tally,
}

impl Campaign {
    /// A campaign over the target's corpus.
    pub fn new(target: Target, seed: u64) -> Self {
        let seeds = corpus::seeds(target.name);
        // Each target has randomness of its own, whatever others run beside it.
        let salt = target.name.bytes().fold(seed, |h, b| h.wrapping_mul(1_099_511_628_211) ^ u64::from(b));
        let rng = ChaCha8Rng::seed_from_u64(salt);
        Self { target, seeds, rng, input: vec![], tally: Tally::default() }
    }

    /// The target.
    pub fn target(&self) -> Target {
        self.target
    }

    /// Runs the seeds as they are.
    pub fn replay(&mut self) -> Result<(), Failure> {
        for seed in self.seeds.clone() {
            self.execute(&seed)?;
        }
        Ok(())
    }

    /// Runs so many changed inputs.
    pub fn run(&mut self, executions: u64) -> Result<(), Failure> {
        let mut input = std::mem::take(&mut self.input);
        for _ in 0..executions {
            let count = self.seeds.len().max(1) as u64;
            let (a, b) = (self.rng.next_u64() % count, self.rng.next_u64() % count);
            let pick = |at: u64| self.seeds.get(at as usize).map(Vec::as_slice).unwrap_or_default();
            mutate(&mut self.rng, pick(a), pick(b), &mut input);
            self.execute(&input)?;
        }
        self.input = input;
        Ok(())
    }

    fn execute(&mut self, input: &[u8]) -> Result<(), Failure> {
        let start = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| (self.target.run)(input)));
        self.tally.slowest = self.tally.slowest.max(start.elapsed());
        self.tally.executions += 1;
        self.tally.most_per_byte = self.tally.most_per_byte.max(bounds::take_worst());
        match result {
            Ok(accepted) => {
                self.tally.accepted += u64::from(accepted);
                Ok(())
            }
            Err(said) => {
                let text = said.downcast_ref::<String>().cloned();
                let text = text.or_else(|| said.downcast_ref::<&str>().map(|s| (*s).to_owned()));
                let message = text.unwrap_or_default();
                Err(Failure { target: self.target.name.to_owned(), input: input.to_vec(), message })
            }
        }
    }
}
