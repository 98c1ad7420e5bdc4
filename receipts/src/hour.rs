//! What a node says of one hour: how many records it made, and the root over their digests.
//!
//! Inputs: records of all chains of a node. Outputs: leaves in order, a signed statement. Invariant: two different
//! statements of one key and hour cannot both be true, so who is shown both has caught the node.

use crate::names::{NodeKey, PublicKey};
use crate::record::Record;
use serde::{Deserialize, Serialize};
use std::sync::OnceLock;
use vendue_market::encode::{Canonical, DecodeError, Reader, Writer, hex_array};
use vendue_market::{Digest, tagged_hash};
use vendue_signatures::{Domain, Field, SignatureError, keccak, recover, typed_hash};

const TAG: &str = "VENDUE-V1-RECEIPT-HOUR";
const HOUR_MS: u64 = 3_600_000;

/// The hour since 1970 of a chain time.
pub fn hour_of(time_ms: u64) -> u64 {
    time_ms / HOUR_MS
}

/// The leaves of an hour: digests of its records, by award and sequence. A record belongs to the hour of its time, a window
/// to that of its end.
pub fn hour_leaves<'a>(hour: u64, records: impl Iterator<Item = &'a Record>) -> Vec<Digest> {
    let of_hour = records.filter(|r| hour_of(r.body.time_ms()) == hour);
    let mut sorted: Vec<_> = of_hour.map(|r| (r.award, r.sequence, r.digest())).collect();
    sorted.sort_unstable();
    sorted.into_iter().map(|(_, _, digest)| digest).collect()
}

/// What is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HourStatement {
    /// Who says it.
    pub public_key: PublicKey,
    /// Hours since 1970.
    pub hour: u64,
    /// Number of records.
    pub count: u64,
    /// Root of [`crate::Tree`] over [`hour_leaves`].
    #[serde(with = "hex_array")]
    pub root: Digest,
}

impl HourStatement {
    fn hash(&self) -> Digest {
        static TYPE: OnceLock<(Domain, Digest)> = OnceLock::new();
        let (domain, of) = TYPE.get_or_init(|| (Domain::plain(), keccak(&[b"ReceiptHour(bytes32 digest)"])));
        typed_hash(domain, of, &[Field::Word(&tagged_hash(TAG, &[&self.to_bytes()]))])
    }
}

impl Canonical for HourStatement {
    fn write(&self, w: &mut Writer) {
        w.raw(&self.public_key.0).u64(self.hour).u64(self.count).raw(&self.root);
    }
    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { public_key: PublicKey(r.array()?), hour: r.u64()?, count: r.u64()?, root: r.array()? })
    }
}

/// A statement with its signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedHour {
    /// What is said.
    pub statement: HourStatement,
    /// `r | s | recovery id`.
    #[serde(with = "hex_array")]
    pub signature: [u8; 65],
}

/// Why a statement is not its key's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HourError {
    /// No signature.
    #[error("hour statement: {0}")]
    Signature(SignatureError),
    /// Somebody else's signature.
    #[error("hour statement is signed by {0}, not by the key that it names")]
    Key(PublicKey),
}

impl SignedHour {
    /// Says it.
    pub fn sign(hour: u64, count: u64, root: Digest, key: &NodeKey) -> Self {
        let statement = HourStatement { public_key: key.public(), hour, count, root };
        Self { statement, signature: key.sign(&statement.hash()) }
    }

    /// Whether it was said by the key that it names.
    pub fn verify(&self) -> Result<(), HourError> {
        let signer = recover(&self.statement.hash(), &self.signature).map_err(HourError::Signature)?;
        let signer = PublicKey(signer);
        if signer == self.statement.public_key { Ok(()) } else { Err(HourError::Key(signer)) }
    }
}
