//! What the node says of each hour: the root over its records.
//!
//! Inputs: the chains, chain time. Outputs: signed statements, kept in `hours.json` until the receiver has them. Invariants: an
//! hour is stated once, when it is over and everything of it is stored; an hour in which nobody looked, or of which records are
//! gone, has no statement, for a statement that says less than the receiver has accuses its signer.

use serde::{Deserialize, Serialize};
use vendue_receipts::{Chain, NodeKey, SignedHour, Tree, hour_leaves, hour_of, keys_of_node};
use vendue_receipts_store::{Chains, Files, StoreError};

const FILE: &str = "hours.json";
/// An hour is stated when it is over for so long: windows and gaps that end in it are told by then.
const SETTLED_MS: u64 = 90_000;
const HOUR_MS: u64 = 3_600_000;
/// Most statements that wait for the receiver: a week, below 64 KiB.
const MAX_WAITING: usize = 7 * 24;

/// Statements of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hours {
    /// The hour that was stated last.
    last: Option<u64>,
    /// Those that the receiver does not have.
    waiting: Vec<SignedHour>,
}

impl Hours {
    /// What is kept beside the chains.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open<F: Files>(chains: &Chains<F>) -> Result<Self, StoreError> {
        let Some(text) = chains.read_beside(FILE)? else { return Ok(Self::default()) };
        let damaged = |error: serde_json::Error| StoreError::Damaged {
            path: FILE.into(),
            offset: error.column(),
            what: error.to_string(),
        };
        serde_json::from_slice(&text).map_err(damaged)
    }

    /// The hour that is to be stated at this chain time, if one is.
    #[must_use]
    pub fn due(&self, now_ms: u64) -> Option<u64> {
        let hour = hour_of(now_ms.checked_sub(SETTLED_MS)?).checked_sub(1)?;
        (self.last.is_none_or(|last| hour > last)).then_some(hour)
    }

    /// Where what is not stated begins, in milliseconds of chain time, which is past it.
    #[must_use]
    pub fn open_from_ms(&self) -> u64 {
        self.last.map_or(0, |hour| hour.saturating_add(1).saturating_mul(HOUR_MS))
    }

    /// States an hour of this key's chains and of those that rotations join with them.
    ///
    /// # Errors
    /// When records cannot be read, or the statement cannot be stored: it is then stated again later, in the same words.
    pub fn state<F: Files>(
        &mut self,
        hour: u64,
        chains: &mut Chains<F>,
        key: &NodeKey,
    ) -> Result<(), StoreError> {
        let (from, to) = (hour.saturating_mul(HOUR_MS), hour.saturating_add(1).saturating_mul(HOUR_MS));
        let mut records = vec![];
        let keys = keys_of_node(key.public(), chains.iter().map(|(_, chain)| chain));
        let of_node = |chain: &Chain| chain.keys().iter().any(|key| keys.contains(key));
        let names: Vec<_> = chains.iter().filter(|(_, c)| of_node(c)).map(|(name, _)| name).collect();
        for name in names {
            records.extend(chains.records_between(name, from, to)?);
        }
        let mut next = self.clone();
        next.last = Some(hour);
        if chains.gone_ms().is_some_and(|gone_ms| gone_ms >= from) {
            tracing::warn!(hour, "an hour has no statement: records of it are not here any more");
        } else if !records.is_empty() {
            let tree = Tree::new(&hour_leaves(hour, records.iter()));
            next.waiting.push(SignedHour::sign(hour, tree.count(), tree.root(), key));
            next.waiting.drain(..next.waiting.len().saturating_sub(MAX_WAITING));
        }
        next.keep(chains)?;
        *self = next;
        Ok(())
    }

    /// States nothing up to this hour, of which records may be lost.
    ///
    /// # Errors
    /// When that cannot be stored.
    pub fn forgo<F: Files>(&mut self, hour: u64, chains: &mut Chains<F>) -> Result<(), StoreError> {
        let next = Self { last: self.last.max(Some(hour)), waiting: self.waiting.clone() };
        next.keep(chains)?;
        *self = next;
        Ok(())
    }

    /// Those that the receiver does not have.
    #[must_use]
    pub fn waiting(&self) -> &[SignedHour] {
        &self.waiting
    }

    /// The receiver has those of these hours, or does not want them.
    ///
    /// # Errors
    /// When that cannot be stored: they are told again.
    pub fn told<F: Files>(&mut self, hours: &[u64], chains: &mut Chains<F>) -> Result<(), StoreError> {
        let mut next = self.clone();
        next.waiting.retain(|said| !hours.contains(&said.statement.hour));
        if next != *self {
            next.keep(chains)?;
            *self = next;
        }
        Ok(())
    }

    fn keep<F: Files>(&self, chains: &mut Chains<F>) -> Result<(), StoreError> {
        let failed = |error: serde_json::Error| StoreError::Io {
            operation: "encode",
            path: FILE.into(),
            source: error.into(),
        };
        chains.replace_beside(FILE, &serde_json::to_vec(self).map_err(failed)?)
    }
}
