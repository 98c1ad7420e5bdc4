//! The file in which the receipts of a job are passed on.
//!
//! Inputs: what a cluster says of a job's awards, with their records. Outputs: the same as JSON. Invariant: nothing in it
//! but the records is proven; whoever reads it verifies the chains and believes the rest as far as he believes who wrote it.

use crate::equivocation::Equivocation;
use crate::record::Record;
use serde::{Deserialize, Serialize};

/// The one form of the file.
pub const FILE_VERSION: u8 = 1;

/// Receipts of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReceiptsFile {
    /// [`FILE_VERSION`].
    pub version: u8,
    /// Whose receipts these are.
    pub job: FileJob,
    /// Its awards, the latest last.
    pub awards: Vec<FileAward>,
}

/// The job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileJob {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
}

/// An award.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileAward {
    /// Its id, 16 hex digits.
    pub id: String,
    /// Name of the Award object.
    #[serde(default)]
    pub name: String,
    /// Who runs it.
    pub provider: String,
    /// Its seat.
    pub seat: i32,
    /// Price of a GPU-hour, a decimal number.
    pub price: String,
    /// When the entry point started, RFC 3339; none before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
    /// What speaks against the provider.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<Evidence>,
    /// The chains. The last field: a server writes the records one after another.
    pub chains: Vec<FileChain>,
}

/// A chain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileChain {
    /// The node, as the provider calls it.
    pub node: String,
    /// Its records from the first on. The last field.
    pub records: Vec<Record>,
}

/// How far the receipts of a job are: what [`ReceiptsFile`] has, without the records. Nothing in it is proven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReceiptsHeads {
    /// [`FILE_VERSION`].
    pub version: u8,
    /// Whose receipts these are.
    pub job: FileJob,
    /// Its awards, the latest last.
    pub awards: Vec<AwardHeads>,
}

/// How far the receipts of an award are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AwardHeads {
    /// Its id, 16 hex digits.
    pub id: String,
    /// When the entry point ended, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
    /// The chains.
    pub chains: Vec<ChainHeads>,
}

/// How far a chain is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChainHeads {
    /// Its name.
    pub name: String,
    /// The node, as the provider calls it.
    pub node: String,
    /// Its records.
    pub records: u64,
    /// Up to when, in milliseconds since 1970.
    pub until_ms: u64,
    /// Whether no record is to come.
    pub closed: bool,
}

impl ReceiptsHeads {
    /// Whether nothing more is to come: every award has ended and each of its chains is closed.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let whole = |award: &AwardHeads| {
            award.ended_at.is_some()
                && !award.chains.is_empty()
                && award.chains.iter().all(|chain| chain.closed)
        };
        !self.awards.is_empty() && self.awards.iter().all(whole)
    }
}

/// Records that a provider sent and that were not taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Evidence {
    /// Two records of one key for one place: a proof by itself.
    Equivocation {
        /// Name of the chain.
        chain: String,
        /// Both.
        records: Box<Equivocation>,
    },
    /// What came next does not continue the chain. That is the word of who received it.
    Refused {
        /// Name of the chain.
        chain: String,
        /// Sequence of the record that was expected.
        sequence: u64,
        /// Why it was not taken.
        reason: String,
    },
}

impl Evidence {
    /// The chain that it is about.
    #[must_use]
    pub fn chain(&self) -> &str {
        match self {
            Self::Equivocation { chain, .. } | Self::Refused { chain, .. } => chain,
        }
    }

    /// The place in that chain.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        match self {
            Self::Equivocation { records, .. } => records.first.sequence,
            Self::Refused { sequence, .. } => *sequence,
        }
    }
}
