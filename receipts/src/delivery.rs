//! What a node's agent tells the receiver of its records, and what it is answered. JSON over HTTPS.
//!
//! Invariants: telling something twice changes nothing; the answer says from which record to go on, so that a receiver that
//! lost what it had is told again.

use crate::hour::SignedHour;
use crate::names::{AwardId, ChainName};
use crate::record::Record;
use serde::{Deserialize, Serialize};
use vendue_market::encode::hex_array;

/// Most bytes of a batch.
pub const MAX_BODY: usize = 4 << 20;
/// Most records of a batch; each is below 2 KiB but for such with many Xids.
pub const MAX_RECORDS: usize = 1_000;

/// Records that the receiver may not have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// By chain.
    pub chains: Vec<Piece>,
    /// Statements of hours whose records were all told before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hours: Vec<SignedHour>,
}

/// Records of one chain that follow each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Piece {
    /// The chain.
    pub name: ChainName,
    /// Its records. None to hear from where to go on.
    pub records: Vec<Record>,
}

/// A receiver's book as it was opened: drawn anew each time, so whoever sees another one knows that the receiver may have less
/// than it had, be it for a lost disk or an old copy of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BookId(#[serde(with = "hex_array")] pub [u8; 16]);

/// The answer to a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// By chain, in the order of the batch.
    pub chains: Vec<Answered>,
    /// Awards of open chains that are over: their chains can be closed.
    pub ended: Vec<AwardId>,
    /// The book that answers. When it is another one than before, each chain is to be asked after, by a piece without records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub book: Option<BookId>,
    /// Hours whose statements need not be told again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hours: Vec<u64>,
}

/// The answer to one chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// The chain.
    pub name: ChainName,
    /// Sequence of the next record that the receiver wants. None without an error: the chain is over, nothing is wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
    /// Why nothing of it was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// With an error: it is the receiver's own, a full disk for example. The same is to be told again later.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub later: bool,
}
