//! The targets, by what they read.

mod award;
mod clearing;
mod dkg;
mod frames;
mod keys;
mod log;
mod market;
mod members;
mod proof;
mod receipts;
mod sealed;
mod wire;

use crate::bounds::bounded;
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;

/// What an execution costs, which says how often a target is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cost {
    /// Reading and hashing: about a microsecond.
    Bytes,
    /// JSON of some length, scalars, evidence signatures: about fifty.
    Signature,
    /// Points and pairings: about a thousand.
    Pairing,
    /// A round from its first message to its last: about twenty thousand.
    Round,
}

impl Cost {
    /// The share of executions that a target gets.
    pub fn weight(self) -> u64 {
        match self {
            Cost::Bytes => 1_000,
            Cost::Signature => 8,
            Cost::Pairing => 1,
            Cost::Round => 1,
        }
    }
}

/// Something that reads bytes.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, which names its corpus and its libFuzzer binary too.
    pub name: &'static str,
    /// What an execution costs.
    pub cost: Cost,
    /// Reads, checks what must hold, and says whether the bytes were accepted.
    pub run: fn(&[u8]) -> bool,
}

const fn target(name: &'static str, cost: Cost, run: fn(&[u8]) -> bool) -> Target {
    Target { name, cost, run }
}

/// Every target.
pub fn all() -> impl Iterator<Item = Target> {
    let groups = [
        market::TARGETS,
        receipts::TARGETS,
        wire::TARGETS,
        award::TARGETS,
        proof::TARGETS,
        keys::TARGETS,
        sealed::TARGETS,
        dkg::TARGETS,
        members::TARGETS,
        log::TARGETS,
        frames::TARGETS,
        clearing::TARGETS,
    ];
    groups.into_iter().flatten().copied()
}

/// The target with this name.
pub fn by_name(name: &str) -> Option<Target> {
    all().find(|t| t.name == name)
}

/// Bytes as JSON text of a value: what is read is written and read again as the same.
fn json<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) -> bool {
    json_value::<T>(bytes).is_some()
}

fn json_value<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) -> Option<T> {
    let value: T = bounded(bytes.len(), 0, || serde_json::from_slice(bytes)).ok()?;
    let text = serde_json::to_vec(&value).expect("a value that was read can be written");
    let again: T = serde_json::from_slice(&text).expect("what was written can be read");
    assert_eq!(again, value, "what was written reads differently");
    Some(value)
}

pub(crate) use log::{SEAT, TORN};
pub(crate) use market::canonical;
pub(crate) use members::{HOME, UNIT_MS};
pub(crate) use wire::SIZES;
