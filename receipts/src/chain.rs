//! A chain: extending it, and verifying what somebody else extended.
//!
//! Input: the records of one award, in order. Output: what they add up to, or the first fault. A [`Chain`] is what of the
//! records before is needed to judge the next one; it has a JSON form, so that judging can go on later or elsewhere.
//! Invariant: a record that is refused changes nothing.

use crate::cost::cost_micros;
use crate::encoding::signed_hash;
use crate::names::{AwardId, DeviceId, NodeKey, PublicKey};
use crate::record::{Body, Energy, Gap, Opened, Record, Rotated, Used, Version};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use vendue_market::Digest;
use vendue_market::encode::{DecodeError, hex_array};
use vendue_signatures::{SignatureError, check_public_key, recover};

/// Most devices whose last window a chain keeps in mind. Of more, those that ended first are dropped; whatever is not in
/// mind begins no earlier than they ended.
pub const MAX_DEVICES: usize = 1024;
/// Most keys that sign one chain, one after another.
pub const MAX_KEYS: usize = 256;

const MS: u64 = 1_000_000;

/// What a chain adds up to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Totals {
    /// Number of records.
    pub records: u64,
    /// Nanoseconds, counted in whole milliseconds, with at least one device in use.
    pub used_ns: u64,
    /// Nanoseconds of use of all devices.
    pub gpu_ns: u64,
    /// Nanoseconds of gaps of all devices; a gap of all devices counts once.
    pub gap_ns: u64,
    /// Energy in windows of use, in millijoules.
    pub energy_mj: u64,
    /// Energy in gaps.
    pub gap_energy_mj: u64,
    /// Cost in millionths; a sum of costs of single records.
    pub cost_micros: u64,
}

/// Where a device is in a chain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceState {
    /// Start of its first window.
    pub first_ms: u64,
    /// End of its last window or gap.
    pub end_ms: u64,
    /// Nanoseconds of use.
    pub wall_ns: u64,
    /// The last word on its energy counter: a reading from which counting can go on, or none.
    pub counter_mj: Option<u64>,
    /// The end of the window or gap that said so.
    pub counter_ms: u64,
}

impl DeviceState {
    /// After a window or gap that ends here.
    fn after(self, end_ms: u64, energy: Option<Energy>, forgets: bool) -> Self {
        let (counter_mj, counter_ms) = match energy {
            Some(energy) => (Some(energy.counter_mj), end_ms),
            None if forgets => (None, end_ms),
            None => (self.counter_mj, self.counter_ms),
        };
        Self { end_ms, counter_mj, counter_ms, ..self }
    }
}

/// The first fault of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("record {record}: {fault}")]
pub struct ChainError {
    /// Which record, counted from 0.
    pub record: u64,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Written in a form that this program does not know.
    #[error("is of another version; accepted is {}", Version::NUMBER)]
    Version,
    /// No record.
    #[error("is malformed: {0}")]
    Malformed(DecodeError),
    /// Of another chain.
    #[error("is of award {found}, this is the chain of {expected}")]
    Award {
        /// In the record.
        found: AwardId,
        /// Of the chain.
        expected: AwardId,
    },
    /// After the end.
    #[error("follows the close of the chain")]
    AfterClosed,
    /// Missing, repeated or out of order.
    #[error("has sequence {found} where {expected} is expected")]
    Sequence {
        /// In the record.
        found: u64,
        /// By position.
        expected: u64,
    },
    /// Does not name the one before.
    #[error("does not continue the record before it")]
    Previous,
    /// The first record is no opening, or a later one is.
    #[error("a chain begins with one opening")]
    Opening,
    /// No signature.
    #[error("{0}")]
    Signature(SignatureError),
    /// Signed by a key that is not in force here.
    #[error("is signed by {found}, in force is {expected}")]
    Key {
        /// Who signed.
        found: PublicKey,
        /// Who was to sign.
        expected: PublicKey,
    },
    /// Names no key, a key that was in force before, or one too many.
    #[error("rotates to a key that is none, that signed this chain before, or that is one too many")]
    Rotation,
    /// Ends before it starts, before the record before it, or begins before the device's last window ended.
    #[error("has a window or time that overlaps or runs backwards")]
    Window,
    /// The length by the steady clock is not that of the window.
    #[error("has a length that is not that of its window")]
    Length,
    /// A value that nothing can have.
    #[error("{0} is not possible")]
    Value(&'static str),
    /// A sum that no chain can have.
    #[error("makes the totals overflow")]
    Overflow,
}

/// A chain up to some record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chain {
    award: AwardId,
    price_micros_per_gpu_hour: u64,
    /// In the order in which they came into force. The first opens the chain; none is known before.
    keys: Vec<PublicKey>,
    #[serde(with = "hex_array")]
    head: Digest,
    started_ms: u64,
    end_ms: u64,
    closed: bool,
    clock_offset_ms: i64,
    used_until_ms: u64,
    devices: BTreeMap<DeviceId, DeviceState>,
    /// No device that is not among them has a window that ends later.
    dropped_until_ms: u64,
    totals: Totals,
}

/// What a record changes, worked out before anything is changed.
struct Step {
    totals: Totals,
    device: Option<(DeviceId, DeviceState)>,
    used_until_ms: u64,
}

impl Chain {
    /// The empty chain of an award, whose records cost this much for a GPU-hour.
    pub fn new(award: AwardId, price_micros_per_gpu_hour: u64) -> Self {
        Self {
            award,
            price_micros_per_gpu_hour,
            keys: vec![],
            head: [0; 32],
            started_ms: 0,
            end_ms: 0,
            closed: false,
            clock_offset_ms: 0,
            used_until_ms: 0,
            devices: BTreeMap::new(),
            dropped_until_ms: 0,
            totals: Totals::default(),
        }
    }
    /// The award.
    pub fn award(&self) -> AwardId {
        self.award
    }
    /// Digest of the last record; zero when there is none.
    pub fn head(&self) -> Digest {
        self.head
    }
    /// Sequence of the next record.
    pub fn next_sequence(&self) -> u64 {
        self.totals.records
    }
    /// The key that opened the chain, once it is open.
    pub fn opening_key(&self) -> Option<PublicKey> {
        self.keys.first().copied()
    }
    /// The key that signs the next record, once the chain is open.
    pub fn key(&self) -> Option<PublicKey> {
        self.keys.last().copied()
    }
    /// All keys that have signed or sign next.
    pub fn keys(&self) -> &[PublicKey] {
        &self.keys
    }
    /// Chain time of the opening.
    pub fn started_ms(&self) -> u64 {
        self.started_ms
    }
    /// Chain time of the last record.
    pub fn end_ms(&self) -> u64 {
        self.end_ms
    }
    /// Whether it has ended.
    pub fn is_closed(&self) -> bool {
        self.closed
    }
    /// How far the system clock was ahead of chain time when that was last recorded.
    pub fn clock_offset_ms(&self) -> i64 {
        self.clock_offset_ms
    }
    /// Its devices.
    pub fn devices(&self) -> &BTreeMap<DeviceId, DeviceState> {
        &self.devices
    }
    /// What it adds up to.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Makes, signs and appends the next record.
    pub fn sign(&mut self, body: Body, key: &NodeKey) -> Result<Record, ChainError> {
        let (award, sequence) = (self.award, self.next_sequence());
        let mut record =
            Record { version: Version, award, sequence, previous: self.head, body, signature: [0; 65] };
        let digest = record.digest();
        self.step(&record, digest, Some(key.public()))?;
        record.signature = key.sign(&signed_hash(&digest));
        Ok(record)
    }

    /// Appends a record of somebody else after checking it.
    pub fn push(&mut self, record: &Record) -> Result<(), ChainError> {
        self.check_place(record)?;
        let digest = record.digest();
        let signer = recover(&signed_hash(&digest), &record.signature);
        let signer = signer.map_err(|error| self.error(Fault::Signature(error)))?;
        self.step(record, digest, Some(PublicKey(signer)))
    }

    /// Appends a record that was signed or checked here before and kept where nobody else writes: everything is checked
    /// but who signed it.
    pub fn replay(&mut self, record: &Record) -> Result<(), ChainError> {
        self.step(record, record.digest(), None)
    }

    fn error(&self, fault: Fault) -> ChainError {
        ChainError { record: self.totals.records, fault }
    }

    fn step(&mut self, record: &Record, digest: Digest, signer: Option<PublicKey>) -> Result<(), ChainError> {
        self.check_place(record)?;
        let step = self.judge(record, signer).map_err(|fault| self.error(fault))?;
        self.totals = step.totals;
        self.used_until_ms = step.used_until_ms;
        self.end_ms = record.body.time_ms();
        self.head = digest;
        match &record.body {
            Body::Opened(Opened { public_key, time_ms, .. }) => {
                self.keys.push(*public_key);
                self.started_ms = *time_ms;
                (self.used_until_ms, self.dropped_until_ms) = (*time_ms, *time_ms);
            }
            Body::Used(_) => {}
            Body::Gap(gap) => self.pass_over(gap),
            Body::Clock(clock) => self.clock_offset_ms = clock.offset_ms(),
            Body::Rotated(Rotated { next_key, .. }) => self.keys.push(*next_key),
            Body::Closed(_) => self.closed = true,
        }
        if let Some((device, state)) = step.device {
            self.devices.insert(device, state);
            self.drop_oldest();
        }
        Ok(())
    }

    /// Keeps the devices that ended last; of two that ended together the one with the later name.
    fn drop_oldest(&mut self) {
        if self.devices.len() <= MAX_DEVICES {
            return;
        }
        let oldest = self.devices.iter().min_by_key(|(name, state)| (state.end_ms, *name));
        if let Some((name, state)) = oldest.map(|(name, state)| (name.clone(), *state)) {
            self.devices.remove(&name);
            self.dropped_until_ms = self.dropped_until_ms.max(state.end_ms);
        }
    }

    /// A gap of all devices moves each of them on.
    fn pass_over(&mut self, gap: &Gap) {
        if gap.device.is_some() {
            return;
        }
        for state in self.devices.values_mut() {
            *state = state.after(gap.t1_ms, None, gap.reason.resets_counter());
        }
    }

    /// Whether this is the next record of this chain.
    fn check_place(&self, record: &Record) -> Result<(), ChainError> {
        let expected = self.next_sequence();
        let fault = if record.award != self.award {
            Fault::Award { found: record.award, expected: self.award }
        } else if self.closed {
            Fault::AfterClosed
        } else if record.sequence != expected {
            Fault::Sequence { found: record.sequence, expected }
        } else if record.previous != self.head {
            Fault::Previous
        } else if matches!(record.body, Body::Opened(_)) != (expected == 0) {
            Fault::Opening
        } else {
            return Ok(());
        };
        Err(self.error(fault))
    }

    fn judge(&self, record: &Record, signer: Option<PublicKey>) -> Result<Step, Fault> {
        let expected = match &record.body {
            Body::Opened(opened) => Some(opened.public_key),
            _ => self.key(),
        };
        let expected = expected.ok_or(Fault::Opening)?;
        if let Some(found) = signer.filter(|found| *found != expected) {
            return Err(Fault::Key { found, expected });
        }
        if record.body.time_ms() < self.end_ms {
            return Err(Fault::Window);
        }
        let records = self.totals.records.checked_add(1).ok_or(Fault::Overflow)?;
        let totals = Totals { records, ..self.totals };
        match &record.body {
            Body::Used(used) => self.judge_used(used, totals),
            Body::Gap(gap) => self.judge_gap(gap, totals),
            Body::Rotated(rotated) => {
                let known = self.keys.contains(&rotated.next_key) || self.keys.len() >= MAX_KEYS;
                if known || check_public_key(&rotated.next_key.0).is_err() {
                    return Err(Fault::Rotation);
                }
                Ok(self.unchanged(totals))
            }
            Body::Opened(opened) if check_public_key(&opened.public_key.0).is_err() => Err(Fault::Rotation),
            Body::Opened(_) | Body::Clock(_) | Body::Closed(_) => Ok(self.unchanged(totals)),
        }
    }

    fn unchanged(&self, totals: Totals) -> Step {
        Step { totals, device: None, used_until_ms: self.used_until_ms }
    }

    /// The device's state before a window, if the window may follow it.
    fn before(&self, device: &DeviceId, t0_ms: u64, t1_ms: u64) -> Result<DeviceState, Fault> {
        let new = DeviceState { first_ms: t0_ms, end_ms: self.dropped_until_ms, ..DeviceState::default() };
        let state = self.devices.get(device).copied().unwrap_or(new);
        if t1_ms < t0_ms || t0_ms < state.end_ms { Err(Fault::Window) } else { Ok(state) }
    }

    fn judge_used(&self, used: &Used, mut totals: Totals) -> Result<Step, Fault> {
        let state = self.before(&used.device, used.t0_ms, used.t1_ms)?;
        check_energy(used.energy)?;
        if used.activity.is_some_and(|a| a.average_millionths > 1_000_000) {
            return Err(Fault::Value("activity average"));
        }
        // Times are cut to milliseconds: one window may be off by less than one, and so may all of a device together.
        let at_most = |from: u64, to: u64| (to - from).checked_add(1)?.checked_mul(MS);
        let longest = at_most(used.t0_ms, used.t1_ms).ok_or(Fault::Overflow)?;
        let wall_ns = state.wall_ns.checked_add(used.wall_ns).ok_or(Fault::Overflow)?;
        let longest_ever = at_most(state.first_ms, used.t1_ms).ok_or(Fault::Overflow)?;
        let shortest = longest.saturating_sub(2 * MS);
        let long_enough = used.wall_ns > shortest || shortest == 0;
        if !long_enough || used.wall_ns >= longest || wall_ns >= longest_ever {
            return Err(Fault::Length);
        }
        let fresh_ms = used.t1_ms.saturating_sub(used.t0_ms.max(self.used_until_ms));
        let cost = cost_micros(self.price_micros_per_gpu_hour, used.wall_ns).ok_or(Fault::Overflow)?;
        let energy = used.energy.map_or(0, |e| e.used_mj);
        add(&mut totals.used_ns, fresh_ms.checked_mul(MS))?;
        add(&mut totals.gpu_ns, Some(used.wall_ns))?;
        add(&mut totals.energy_mj, Some(energy))?;
        add(&mut totals.cost_micros, Some(cost))?;
        let state = DeviceState { wall_ns, ..state.after(used.t1_ms, used.energy, true) };
        let used_until_ms = self.used_until_ms.max(used.t1_ms);
        Ok(Step { totals, device: Some((used.device.clone(), state)), used_until_ms })
    }

    fn judge_gap(&self, gap: &Gap, mut totals: Totals) -> Result<Step, Fault> {
        check_energy(gap.energy)?;
        let device = match &gap.device {
            Some(device) => {
                let state = self.before(device, gap.t0_ms, gap.t1_ms)?;
                Some((device.clone(), state.after(gap.t1_ms, gap.energy, gap.reason.resets_counter())))
            }
            None => {
                let latest = self.devices.values().map(|d| d.end_ms).max().unwrap_or(self.dropped_until_ms);
                if gap.t1_ms < gap.t0_ms || gap.t0_ms < latest {
                    return Err(Fault::Window);
                }
                if gap.energy.is_some() {
                    return Err(Fault::Value("energy of all devices"));
                }
                None
            }
        };
        add(&mut totals.gap_ns, (gap.t1_ms - gap.t0_ms).checked_mul(MS))?;
        add(&mut totals.gap_energy_mj, Some(gap.energy.map_or(0, |e| e.used_mj)))?;
        Ok(Step { totals, device, used_until_ms: self.used_until_ms })
    }
}

fn add(sum: &mut u64, more: Option<u64>) -> Result<(), Fault> {
    *sum = more.and_then(|more| sum.checked_add(more)).ok_or(Fault::Overflow)?;
    Ok(())
}

/// A counter counts from 0 up, so it shows at least what was used.
fn check_energy(energy: Option<Energy>) -> Result<(), Fault> {
    match energy {
        Some(energy) if energy.used_mj > energy.counter_mj => Err(Fault::Value("energy above its counter")),
        _ => Ok(()),
    }
}

/// Verifies a chain from its first record on. The award is known from elsewhere, and so is the key that opens the chain
/// unless it is to be learnt from it.
pub fn verify(
    award: AwardId,
    key: Option<PublicKey>,
    price_micros_per_gpu_hour: u64,
    records: &[Record],
) -> Result<Chain, ChainError> {
    let mut chain = Chain::new(award, price_micros_per_gpu_hour);
    for record in records {
        chain.push(record)?;
        let (found, expected) = (chain.opening_key(), key.or(chain.opening_key()));
        if let (Some(found), Some(expected)) = (found, expected)
            && found != expected
        {
            return Err(ChainError { record: 0, fault: Fault::Key { found, expected } });
        }
    }
    Ok(chain)
}
