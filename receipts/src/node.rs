//! All chains of a node together: no device serves two awards at once, and no energy is counted twice.
//!
//! Input: the first key of the node, and its chains. Output: what each device did, or the first fault. Invariant: what is
//! summed here was verified chain by chain, under keys that follow from the first one by rotations.

use crate::chain::{Chain, ChainError, verify};
use crate::names::{AwardId, DeviceId, PublicKey};
use crate::record::{Body, Energy, Record};
use std::collections::{BTreeMap, BTreeSet};

/// What a device did, over all chains.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceTotals {
    /// Nanoseconds in windows for awards.
    pub awards_ns: u64,
    /// Nanoseconds in windows for nobody.
    pub idle_ns: u64,
    /// Milliseconds of gaps.
    pub gap_ms: u64,
    /// Milliseconds between the first and the last record in no window and no gap.
    pub missing_ms: u64,
    /// Energy in windows for awards, in millijoules.
    pub awards_mj: u64,
    /// Energy in windows for nobody.
    pub idle_mj: u64,
    /// Energy in gaps.
    pub gap_mj: u64,
}

/// The first fault of a node's chains.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// A chain is not valid in itself.
    #[error("chain of award {award}: {error}")]
    Chain {
        /// Whose chain.
        award: AwardId,
        /// What is wrong.
        error: ChainError,
    },
    /// A chain was opened by a key that no rotation leads to.
    #[error("chain of award {award} was opened by {key}, to which no rotation leads")]
    Key {
        /// Whose chain.
        award: AwardId,
        /// The unknown key.
        key: PublicKey,
    },
    /// Two chains of one award and key.
    #[error("award {award} has two chains of one key")]
    Twice {
        /// Whose chains.
        award: AwardId,
    },
    /// Two windows or gaps of a device overlap.
    #[error(
        "device {device}: record {} of award {} overlaps record {} of award {}",
        second.sequence, second.award, first.sequence, first.award
    )]
    Overlap {
        /// The device.
        device: DeviceId,
        /// Which begins first.
        first: Place,
        /// Which begins before the first has ended.
        second: Place,
    },
    /// A window does not begin with the reading that the one before it ended with.
    #[error(
        "device {device}: record {} of award {} begins with another energy reading than the one before it ended with",
        at.sequence, at.award
    )]
    Counter {
        /// The device.
        device: DeviceId,
        /// The later window.
        at: Place,
    },
}

/// Where a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The chain.
    pub award: AwardId,
    /// The record.
    pub sequence: u64,
}

/// A window or gap of one device.
struct Span {
    t0_ms: u64,
    t1_ms: u64,
    at: Place,
    energy: Option<Energy>,
    /// None for a gap.
    wall_ns: Option<u64>,
    resets: bool,
}

/// Verifies all chains of a node, whose first key is known from elsewhere.
pub fn verify_node(
    first_key: PublicKey,
    chains: &[&[Record]],
) -> Result<BTreeMap<DeviceId, DeviceTotals>, NodeError> {
    let mut verified = vec![];
    for records in chains {
        let Some(first) = records.first() else { continue };
        let award = first.award;
        let chain = verify(award, None, 0, records).map_err(|error| NodeError::Chain { award, error })?;
        verified.push(chain);
    }
    check_keys(first_key, &verified)?;
    let mut spans: BTreeMap<DeviceId, Vec<Span>> = BTreeMap::new();
    for (device, span) in chains.iter().flat_map(|records| records.iter()).filter_map(span_of) {
        spans.entry(device).or_default().push(span);
    }
    let mut totals = BTreeMap::new();
    for (device, mut spans) in spans {
        spans.sort_by_key(|s| (s.t0_ms, s.t1_ms, s.at));
        let sums = add_up(&device, &spans)?;
        totals.insert(device, sums);
    }
    Ok(totals)
}

/// The keys that are one node's: this one and all that rotations join with it, before it and after it.
#[must_use]
pub fn keys_of_node<'a>(key: PublicKey, chains: impl Iterator<Item = &'a Chain>) -> BTreeSet<PublicKey> {
    let chains: Vec<&[PublicKey]> = chains.map(Chain::keys).collect();
    let (mut keys, mut size) = (BTreeSet::from([key]), 0);
    while size != keys.len() {
        size = keys.len();
        let joined: Vec<_> = chains.iter().filter(|of| of.iter().any(|key| keys.contains(key))).collect();
        keys.extend(joined.into_iter().copied().flatten());
    }
    keys
}

/// Every chain is opened by a key to which rotations lead, and none twice.
fn check_keys(first_key: PublicKey, chains: &[Chain]) -> Result<(), NodeError> {
    let mut known = BTreeSet::from([first_key]);
    let mut size = 0;
    while size != known.len() {
        size = known.len();
        let of_known = chains.iter().filter(|c| c.opening_key().is_some_and(|k| known.contains(&k)));
        let more: Vec<PublicKey> = of_known.flat_map(|c| c.keys().iter().copied()).collect();
        known.extend(more);
    }
    let mut seen = BTreeSet::new();
    for chain in chains {
        let award = chain.award();
        let Some(key) = chain.opening_key() else { continue };
        if !known.contains(&key) {
            return Err(NodeError::Key { award, key });
        }
        if !seen.insert((award, key)) {
            return Err(NodeError::Twice { award });
        }
    }
    Ok(())
}

fn span_of(record: &Record) -> Option<(DeviceId, Span)> {
    let at = Place { award: record.award, sequence: record.sequence };
    match &record.body {
        Body::Used(used) => {
            let (t0_ms, t1_ms, wall_ns) = (used.t0_ms, used.t1_ms, Some(used.wall_ns));
            let span = Span { t0_ms, t1_ms, at, energy: used.energy, wall_ns, resets: used.energy.is_none() };
            Some((used.device.clone(), span))
        }
        Body::Gap(gap) => {
            let (t0_ms, t1_ms, resets) = (gap.t0_ms, gap.t1_ms, gap.reason.resets_counter());
            let span = Span { t0_ms, t1_ms, at, energy: gap.energy, wall_ns: None, resets };
            gap.device.clone().map(|device| (device, span))
        }
        Body::Opened(_) | Body::Clock(_) | Body::Rotated(_) | Body::Closed(_) => None,
    }
}

/// Sums the spans of one device, in order of time.
fn add_up(device: &DeviceId, spans: &[Span]) -> Result<DeviceTotals, NodeError> {
    let mut sums = DeviceTotals::default();
    let mut before: Option<&Span> = None;
    let mut counter = None;
    for span in spans {
        if let Some(first) = before {
            if span.t0_ms < first.t1_ms {
                let device = device.clone();
                return Err(NodeError::Overlap { device, first: first.at, second: span.at });
            }
            let missing = span.t0_ms - first.t1_ms;
            sums.missing_ms = sums.missing_ms.saturating_add(missing);
            // What happened to the counter in time that nobody accounts for is not known.
            counter = counter.filter(|_| missing == 0);
        }
        if let (Some(reading), Some(energy)) = (counter, span.energy)
            && energy.counter_mj.checked_sub(energy.used_mj) != Some(reading)
        {
            return Err(NodeError::Counter { device: device.clone(), at: span.at });
        }
        counter = span.energy.map(|e| e.counter_mj).or(counter.filter(|_| !span.resets));
        before = Some(span);
        add_span(&mut sums, span);
    }
    Ok(sums)
}

fn add_span(sums: &mut DeviceTotals, span: &Span) {
    let energy = span.energy.map_or(0, |e| e.used_mj);
    let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
    match span.wall_ns {
        Some(wall_ns) if span.at.award.is_idle() => {
            add(&mut sums.idle_ns, wall_ns);
            add(&mut sums.idle_mj, energy);
        }
        Some(wall_ns) => {
            add(&mut sums.awards_ns, wall_ns);
            add(&mut sums.awards_mj, energy);
        }
        None => {
            add(&mut sums.gap_ms, span.t1_ms - span.t0_ms);
            add(&mut sums.gap_mj, energy);
        }
    }
}
