//! What the receiver is told next, and what its answers mean for the chains here.
//!
//! * Inputs: the chains, what waits of their hours, answers. Outputs: bounded batches; acknowledgements in the store.
//! * Invariants: awards, whose users wait for them, go before idle time, and none holds up another; what the receiver can never
//!   take counts as delivered, so that it ends no other chain; a receiver that may have lost something is asked after each
//!   chain, not only after those that go on.

use std::collections::{BTreeMap, BTreeSet};

use vendue_receipts::delivery::{Answer, Answered, Batch, BookId, MAX_BODY, MAX_RECORDS, Piece};
use vendue_receipts::{Chain, ChainName, Record};
use vendue_receipts_store::{Chains, Files, StoreError};

use super::hours::Hours;

/// How long a chain waits that the receiver refuses, in milliseconds of chain time.
const STUCK_MS: u64 = 300_000;
/// Most chains of a batch with records: each is read from its file, by the thread that meters.
const MAX_CHAINS: usize = 64;
/// Most chains of a batch that are only asked after.
const MAX_HEADS: usize = 256;

/// Where telling stands. Nothing of it outlasts the process: what was told is in the store, and the rest shows again.
#[derive(Debug, Default)]
pub struct Telling {
    /// Chains that the receiver refuses, and when they are told again, in milliseconds of chain time.
    refused: BTreeMap<ChainName, u64>,
    /// Chains of which the receiver lost records that are not here any more.
    lost: BTreeSet<ChainName>,
    /// Chains to ask after.
    heads: BTreeSet<ChainName>,
    /// The book that answered last.
    book: Option<BookId>,
    /// The award whose turn was last.
    last: Option<ChainName>,
}

impl Telling {
    /// Chains that the receiver refuses, and those whose beginning is lost to it.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        (self.refused.len() as u64, self.lost.len() as u64)
    }

    /// What the receiver may not have, as much as one request may carry; the next batch goes on with other awards.
    pub fn batch<F: Files>(&mut self, chains: &mut Chains<F>, hours: &Hours, now_ms: u64) -> Batch {
        let mut waiting: Vec<(ChainName, u64)> =
            chains.undelivered().filter(|(name, _)| !self.waits(name, now_ms)).collect();
        let last = self.last;
        waiting
            .sort_by_key(|(name, _)| (name.award.is_idle(), last.is_some_and(|last| *name <= last), *name));
        waiting.truncate(MAX_CHAINS);
        let awards = waiting.iter().filter(|(name, _)| !name.award.is_idle()).count().max(1);
        let share = Room { records: MAX_RECORDS / awards, bytes: MAX_BODY / 2 / awards };
        let (mut batch, mut room) = (Batch::default(), Room { records: MAX_RECORDS, bytes: MAX_BODY / 2 });
        for (name, from) in waiting {
            let most = if name.award.is_idle() { room } else { share.min(room) };
            let records = match chains.records(name, from, most.records) {
                Ok(records) => most.fit(records),
                Err(error) => {
                    self.refuse(name, now_ms, &error);
                    continue;
                }
            };
            if records.is_empty() {
                continue;
            }
            room = room.less(&records);
            if !name.award.is_idle() {
                self.last = Some(name);
            }
            batch.chains.push(Piece { name, records });
        }
        let heads = self.heads.iter().filter(|name| batch.chains.iter().all(|piece| piece.name != **name));
        let heads: Vec<ChainName> = heads.copied().take(MAX_HEADS).collect();
        batch.chains.extend(heads.into_iter().map(|name| Piece { name, records: vec![] }));
        if batch.chains.is_empty() {
            batch.hours = hours.waiting().to_vec();
        }
        chains.set_refused(self.refused.keys().copied().collect());
        batch
    }

    fn waits(&self, name: &ChainName, now_ms: u64) -> bool {
        self.refused.get(name).is_some_and(|until_ms| now_ms < *until_ms)
    }

    fn refuse(&mut self, name: ChainName, now_ms: u64, error: &dyn std::fmt::Display) {
        if self.refused.insert(name, now_ms.saturating_add(STUCK_MS)).is_none() {
            tracing::error!(chain = %name, %error, "receipts are not delivered");
        }
    }

    /// Notes what the receiver has, and where it wants to be told again.
    pub fn answered<F: Files>(&mut self, answer: Answer, chains: &mut Chains<F>, now_ms: u64) {
        if answer.book.is_some() && answer.book != self.book {
            self.book = answer.book;
            self.heads = chains.iter().map(|(name, _)| name).collect();
        }
        for Answered { name, next, error, later } in answer.chains {
            if later {
                let error = error.unwrap_or_default();
                tracing::warn!(chain = %name, error, "the controller cannot take receipts now");
                continue;
            }
            self.heads.remove(&name);
            let noted = match error {
                Some(error) => {
                    self.refuse(name, now_ms, &error);
                    continue;
                }
                None => self.received(name, next, chains),
            };
            match noted {
                Ok(()) => _ = self.refused.remove(&name),
                // What is not noted is told again.
                Err(error @ StoreError::Io { .. }) => {
                    tracing::warn!(chain = %name, %error, "receipts will be told again");
                }
                Err(error) => self.refuse(name, now_ms, &error),
            }
        }
        let is_here = |name: &ChainName| chains.get(*name).is_some();
        self.refused.retain(|name, _| is_here(name));
        self.lost.retain(is_here);
        self.heads.retain(is_here);
        chains.set_refused(self.refused.keys().copied().collect());
    }

    fn received<F: Files>(
        &mut self,
        name: ChainName,
        next: Option<u64>,
        chains: &mut Chains<F>,
    ) -> Result<(), StoreError> {
        let Some(end) = chains.get(name).map(Chain::next_sequence) else { return Ok(()) };
        let next = next.unwrap_or(end);
        let is_told = if chains.delivered_up_to(name).is_none_or(|had| next >= had) {
            chains.acknowledge(name, next)?;
            true
        } else {
            chains.rewind(name, next)?
        };
        if is_told {
            self.lost.remove(&name);
            return Ok(());
        }
        // It asks for what nobody has any more: the rest would wait for ever, and fill the disk.
        if self.lost.insert(name) {
            let first = chains.first_kept(name);
            tracing::error!(chain = %name, next, first, "the controller lost records that are not here any more: it takes no more of this chain");
        }
        chains.acknowledge(name, end)
    }
}

/// What still goes into a batch.
#[derive(Clone, Copy)]
struct Room {
    records: usize,
    bytes: usize,
}

impl Room {
    fn min(self, other: Self) -> Self {
        Self { records: self.records.min(other.records), bytes: self.bytes.min(other.bytes) }
    }

    /// As JSON a record takes about three times its bytes.
    fn length(record: &Record) -> usize {
        record.encode().len().saturating_mul(3)
    }

    /// The first of these records, as many as there is room for.
    fn fit(self, mut records: Vec<Record>) -> Vec<Record> {
        let mut bytes = self.bytes;
        let fits = |record: &&Record| {
            let left = bytes.checked_sub(Self::length(record));
            bytes = left.unwrap_or_default();
            left.is_some()
        };
        let count = records.iter().take_while(fits).count();
        records.truncate(count);
        records
    }

    fn less(self, records: &[Record]) -> Self {
        let bytes = records.iter().map(Self::length).sum();
        Self { records: self.records.saturating_sub(records.len()), bytes: self.bytes.saturating_sub(bytes) }
    }
}
