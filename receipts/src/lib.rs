//! The metering record: how long which GPUs served an award and what that costs, as a chain that cannot be changed.
//!
//! Each record names its predecessor by digest, so the last digest ("head") stands for the whole history. Inputs are
//! records in order; outputs are digests, totals or the first fault found. Invariant: a verified chain covers one
//! award, its windows follow each other without overlap, and its totals are the sums of its records.
//!
//! Money is in whole millionths; what a window costs is computed by whoever writes the record.

mod chain;
mod record;

pub use chain::{Chain, ChainError, Totals, verify};
pub use record::{DecodeError, Digest, ENCODED_LEN, UsageRecord};
