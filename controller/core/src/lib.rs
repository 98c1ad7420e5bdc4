//! What the controller decides, and nothing of how it is done.
//!
//! Purpose: `job` turns a Job into an order and folds what the market and the winner report into the Job's status;
//! `provision` counts what a provider has free; `award` allocates devices and plans the life of a workload.
//! Inputs: API objects and observations as plain values, the time, fresh random bytes. Outputs: plans.
//!
//! Invariant: no client, no runtime, no clock and no randomness: the same inputs give the same plan, and a plan made
//! again from the state that the first one led to changes nothing.

pub mod award;
pub mod cidr;
#[cfg(test)]
mod fixtures;
pub mod job;
pub mod provision;
pub mod quantity;
pub mod text;
pub mod transition;

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

/// What a plan does about the finalizer of its object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FinalizerStep {
    /// Leave it as it is.
    #[default]
    Keep,
    /// Add it before anything else is done.
    Add,
    /// Remove it after everything else is done.
    Remove,
}

/// Time from `now` until `then`; zero when it has passed.
pub fn until(now: Timestamp, then: Timestamp) -> Duration {
    Duration::try_from(then.duration_since(now)).unwrap_or(Duration::ZERO)
}

/// `at` plus whole seconds; the largest time when that does not exist.
pub fn after(at: Timestamp, seconds: i64) -> Timestamp {
    at.checked_add(k8s_openapi::jiff::SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
}
