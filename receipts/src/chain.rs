//! Chains of usage records: appending and verifying.

use crate::record::{Digest, UsageRecord};
use serde::{Deserialize, Serialize};

/// What a chain adds up to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Number of records.
    pub records: u64,
    /// Milliseconds with at least one GPU in use.
    pub used_ms: u64,
    /// GPUs times milliseconds.
    pub gpu_ms: u64,
    /// Cost in millionths.
    pub cost_micros: u64,
}

/// The first fault of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// A record of another award.
    #[error("record {0} is of another award")]
    Award(u64),
    /// A record is missing, repeated or out of order.
    #[error("record {found} follows where {expected} is expected")]
    Sequence {
        /// In the record.
        found: u64,
        /// By position.
        expected: u64,
    },
    /// A record does not name the one before.
    #[error("record {0} does not continue the record before it")]
    Previous(u64),
    /// A window ends before it starts, or starts before the last one ended.
    #[error("record {0} has a window that overlaps or runs backwards")]
    Window(u64),
    /// A sum that no chain can have.
    #[error("record {0} makes the totals overflow")]
    Overflow(u64),
}

/// A chain that grows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    award: Digest,
    head: Digest,
    end_ms: u64,
    totals: Totals,
}

impl Chain {
    /// An empty chain of an award.
    pub fn new(award: Digest) -> Self {
        Self { award, head: [0; 32], end_ms: 0, totals: Totals::default() }
    }
    /// Digest of the last record; zero when there is none.
    pub fn head(&self) -> Digest {
        self.head
    }
    /// End of the last window in milliseconds since 1970; 0 when there is none.
    pub fn end_ms(&self) -> u64 {
        self.end_ms
    }
    /// What the chain adds up to.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Makes the next record and appends it.
    pub fn record(
        &mut self,
        t0_ms: u64,
        t1_ms: u64,
        gpus: u32,
        cost_micros: u64,
    ) -> Result<UsageRecord, ChainError> {
        let record = UsageRecord {
            award: self.award,
            sequence: self.totals.records,
            t0_ms,
            t1_ms,
            gpus,
            cost_micros,
            previous: self.head,
        };
        self.push(&record)?;
        Ok(record)
    }

    /// Appends a record that somebody else made, after checking that it continues the chain.
    pub fn push(&mut self, record: &UsageRecord) -> Result<(), ChainError> {
        let at = self.totals.records;
        if record.award != self.award {
            return Err(ChainError::Award(at));
        }
        if record.sequence != at {
            return Err(ChainError::Sequence { found: record.sequence, expected: at });
        }
        if record.previous != self.head {
            return Err(ChainError::Previous(at));
        }
        if record.t1_ms < record.t0_ms || record.t0_ms < self.end_ms {
            return Err(ChainError::Window(at));
        }
        self.totals = self.add(record).ok_or(ChainError::Overflow(at))?;
        self.head = record.digest();
        self.end_ms = record.t1_ms;
        Ok(())
    }

    fn add(&self, record: &UsageRecord) -> Option<Totals> {
        let ms = record.t1_ms - record.t0_ms;
        let used = if record.gpus > 0 { ms } else { 0 };
        Some(Totals {
            records: self.totals.records.checked_add(1)?,
            used_ms: self.totals.used_ms.checked_add(used)?,
            gpu_ms: self.totals.gpu_ms.checked_add(ms.checked_mul(u64::from(record.gpus))?)?,
            cost_micros: self.totals.cost_micros.checked_add(record.cost_micros)?,
        })
    }
}

/// Verifies a whole chain of an award from its first record on.
pub fn verify(award: Digest, records: &[UsageRecord]) -> Result<Chain, ChainError> {
    let mut chain = Chain::new(award);
    records.iter().try_for_each(|record| chain.push(record))?;
    Ok(chain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{DecodeError, ENCODED_LEN};

    fn mk_chain() -> (Chain, Vec<UsageRecord>) {
        let mut chain = Chain::new([1; 32]);
        let records = vec![
            chain.record(1_000, 2_000, 2, 10).unwrap(),
            chain.record(2_000, 2_500, 0, 0).unwrap(),
            chain.record(3_000, 4_000, 4, 20).unwrap(),
        ];
        (chain, records)
    }

    #[test]
    fn totals_and_head_follow_from_the_records() {
        let (chain, records) = mk_chain();
        assert_eq!(chain.totals(), Totals { records: 3, used_ms: 2_000, gpu_ms: 6_000, cost_micros: 30 });
        assert_eq!(chain.head(), records[2].digest());
        assert_eq!(verify([1; 32], &records), Ok(chain));
    }

    #[test]
    fn every_change_is_found() {
        let (_, records) = mk_chain();
        let fails = |change: &dyn Fn(&mut Vec<UsageRecord>)| {
            let mut changed = records.clone();
            change(&mut changed);
            verify([1; 32], &changed).unwrap_err()
        };
        assert_eq!(fails(&|r| r[1].award = [2; 32]), ChainError::Award(1));
        assert_eq!(fails(&|r| _ = r.remove(1)), ChainError::Sequence { found: 2, expected: 1 });
        assert_eq!(fails(&|r| r.swap(0, 1)), ChainError::Sequence { found: 1, expected: 0 });
        assert_eq!(fails(&|r| r[0].cost_micros = 11), ChainError::Previous(1));
        assert_eq!(fails(&|r| r[2].t0_ms = 2_400), ChainError::Window(2));
        assert_eq!(fails(&|r| r[2].t1_ms = 2_900), ChainError::Window(2));
        assert_eq!(fails(&|r| r[2].t1_ms = u64::MAX), ChainError::Overflow(2));
        assert_eq!(verify([2; 32], &records), Err(ChainError::Award(0)));
    }

    #[test]
    fn one_encoding() {
        let (_, records) = mk_chain();
        let bytes = records[0].to_bytes();
        assert_eq!(UsageRecord::from_bytes(&bytes), Ok(records[0]));
        assert_eq!(UsageRecord::from_bytes(&bytes[1..]), Err(DecodeError::Length(ENCODED_LEN - 1)));
        let mut other = bytes;
        other[0] = 2;
        assert_eq!(UsageRecord::from_bytes(&other), Err(DecodeError::Version(2)));
        let json = serde_json::to_string(&records[0]).unwrap();
        assert_eq!(serde_json::from_str::<UsageRecord>(&json).unwrap(), records[0]);
    }
}
