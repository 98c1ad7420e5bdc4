//! The key epochs that a member of the market holds: the current one, the next one once it is known, and the public record
//! of the one before.
//!
//! Inputs: the market records in turn, each with what the member has of its keys. Output: the epoch of a round or of a
//! time. Invariants: a round belongs to one epoch, by its number and the first rounds that the records name; a record is
//! taken only if it follows from the one before; the keys of an epoch are dropped once its last round has expired.

use crate::crypto::{Crypto, Scheme};
use crate::keygen::{EpochError, check_next};
use crate::record::MarketRecord;
use crate::wire::{Body, Fetch, Header, Reply};
use std::sync::Arc;
use vendue_sealed_bid::RoundId;

/// Why the record of the next epoch is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NextEpochError {
    /// Its epoch has been followed by another one.
    #[error("change of epoch: the record is of epoch {found}; the current one is {current}")]
    Over {
        /// In the record.
        found: u32,
        /// The current epoch.
        current: u32,
    },
    /// There is another record of this epoch.
    #[error("change of epoch: another record of epoch {0} is held")]
    Another(u32),
    /// Two epochs are held, and rounds of the first may still be open.
    #[error("change of epoch: the record is of epoch {found}; rounds of epoch {current} are not over yet")]
    Early {
        /// In the record.
        found: u32,
        /// The current epoch.
        current: u32,
    },
    /// It is not what follows from the current record.
    #[error("change of epoch: the record of epoch {found} does not follow that of epoch {current}: {why}")]
    Follows {
        /// In the record.
        found: u32,
        /// The current epoch.
        current: u32,
        /// What is wrong.
        why: EpochError,
    },
    /// The share is not the one that the record has a key of.
    #[error("change of epoch: the share is not that of seat {seat} in the record of epoch {epoch}")]
    Share {
        /// The seat.
        seat: u16,
        /// The record's epoch.
        epoch: u32,
    },
}

/// One epoch: its record, and what the member has of its keys.
pub(crate) struct Epoch<K> {
    pub record: Arc<MarketRecord>,
    pub keys: K,
}

/// The epochs that a member holds. A seat has the cryptography of each, a home needs the records only.
pub struct Epochs<K> {
    past: Option<Arc<MarketRecord>>,
    current: Epoch<K>,
    next: Option<Epoch<K>>,
}

/// The first round of a record's epoch.
pub(crate) fn first_round(record: &MarketRecord) -> u64 {
    record.generation.as_ref().map_or(0, |made| made.first_round)
}

impl<K> Epochs<K> {
    /// One epoch.
    pub fn new(record: Arc<MarketRecord>, keys: K) -> Self {
        Self { past: None, current: Epoch { record, keys }, next: None }
    }

    /// The epoch that a round belongs to; none when its keys are not held.
    pub(crate) fn of_round(&self, round: u64) -> Option<&Epoch<K>> {
        let mut held = self.next.iter().chain([&self.current]);
        held.find(|epoch| round >= first_round(&epoch.record))
    }

    /// The record of a round's epoch, also where its keys are dropped.
    pub(crate) fn record_of(&self, round: u64) -> Option<&Arc<MarketRecord>> {
        self.of_round(round).map(|epoch| &epoch.record).or(self.past.as_ref())
    }

    /// The epoch that it is.
    pub(crate) fn at(&self, now_ms: u64) -> &Epoch<K> {
        self.of_round(self.current.record.params.round_at(now_ms)).unwrap_or(&self.current)
    }

    /// Whether a message is of the epoch of its round. One about no round may be of any epoch of which the record is
    /// known: nothing in it depends on the seal key.
    pub(crate) fn fits(&self, header: &Header, body: &Body) -> bool {
        if is_about_a_round(body) {
            return self.record_of(header.round).is_some_and(|record| record.epoch == header.epoch);
        }
        let held = self.next.iter().chain([&self.current]).map(|epoch| &epoch.record);
        held.chain(&self.past).any(|record| record.epoch == header.epoch)
    }

    /// When the keys of the current epoch are of no use any more; none while no other is known.
    pub(crate) fn ends_ms(&self) -> Option<u64> {
        let next = first_round(&self.next.as_ref()?.record);
        let params = &self.current.record.params;
        let last = next.checked_sub(1).map_or(0, |round| params.expiry(round));
        Some(last.max(params.t0(next)))
    }

    /// Drops the keys of the current epoch once all its rounds have expired.
    pub(crate) fn let_go(&mut self, now_ms: u64) {
        if self.ends_ms().is_none_or(|ends| now_ms < ends) {
            return;
        }
        if let Some(next) = self.next.take() {
            self.past = Some(std::mem::replace(&mut self.current, next).record);
        }
    }

    /// Whether a record is of an epoch that can be taken now; not when it is held already.
    fn is_next(&mut self, now_ms: u64, record: &Arc<MarketRecord>) -> Result<bool, NextEpochError> {
        self.let_go(now_ms);
        let (found, current) = (record.epoch, self.current.record.epoch);
        if let Some(held) = self.next.iter().chain([&self.current]).find(|held| held.record.epoch == found) {
            return if held.record == *record { Ok(false) } else { Err(NextEpochError::Another(found)) };
        }
        if found < current {
            return Err(NextEpochError::Over { found, current });
        }
        if self.next.is_some() {
            return Err(NextEpochError::Early { found, current });
        }
        check_next(&self.current.record, record).map_err(|why| NextEpochError::Follows {
            found,
            current,
            why,
        })?;
        Ok(true)
    }
}

impl Epochs<()> {
    /// Takes the record of the next epoch, and says whether it is a new one.
    pub fn take_record(&mut self, now_ms: u64, record: Arc<MarketRecord>) -> Result<bool, NextEpochError> {
        let is_new = self.is_next(now_ms, &record)?;
        if is_new {
            self.next = Some(Epoch { record, keys: () });
        }
        Ok(is_new)
    }
}

impl<C: Crypto> Epochs<Arc<C>> {
    /// Takes the next epoch of a seat, and says whether it is a new one. A first round that is over is no obstacle: a
    /// seat may learn of it late.
    pub fn take_keys(
        &mut self,
        seat: u16,
        now_ms: u64,
        record: Arc<MarketRecord>,
        crypto: Arc<C>,
    ) -> Result<bool, NextEpochError> {
        let is_new = self.is_next(now_ms, &record)?;
        if is_new {
            if !is_share_of(&record, seat, crypto.as_ref()) {
                return Err(NextEpochError::Share { seat, epoch: record.epoch });
            }
            self.next = Some(Epoch { record, keys: crypto });
        }
        Ok(is_new)
    }
}

/// Whether a seat's cryptography has the share that the record has a key of.
fn is_share_of<C: Crypto>(record: &MarketRecord, seat: u16, crypto: &C) -> bool {
    let id = RoundId { market: record.market, epoch: record.epoch, round: first_round(record) };
    let key = record.seat(seat).map(|seat| &seat.seal_share_key);
    key.is_some_and(|key| C::Scheme::verify_share(&id, key, &crypto.share(id.round)))
}

/// Whether a message is of one round. What homes and seats say about orders is not, but for the hand-over of an award.
fn is_about_a_round(body: &Body) -> bool {
    match body {
        Body::Order(_) | Body::Again(_) | Body::Taken(_) | Body::Cancel(_) | Body::Withdraw(_) => false,
        Body::Receipt(_) | Body::Proof(_) => false,
        Body::Fetch(wanted) => !matches!(wanted, Fetch::Orders(_) | Fetch::Proof(_)),
        Body::Reply(reply) => !matches!(reply, Reply::Order(_)),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keygen::dealt_next;
    use crate::keys::{DealSpec, MemberSpec, deal};
    use crate::params::Params;
    use rand_chacha::rand_core::SeedableRng;

    #[test]
    fn an_epoch_lasts_until_the_next_one_begins_where_rounds_are_far_apart() {
        let member = |name: String| MemberSpec { peer_id: name.clone(), name, addresses: vec![] };
        let spec = DealSpec {
            name: "m".into(),
            params: Params { delay_ms: 1, period_ms: 1_000, genesis_ms: 0, handover_ms: 6 },
            seats: (0..4).map(|i| member(format!("p{i}"))).collect(),
            homes: vec![],
        };
        let dealt = deal(&spec, &mut rand_chacha::ChaCha20Rng::seed_from_u64(3)).unwrap();
        let record = Arc::new(dealt.record.record);
        let next = Arc::new(dealt_next(&record, &dealt.seats, 0).0);
        let mut epochs = Epochs::new(record.clone(), ());
        assert_eq!((epochs.ends_ms(), epochs.take_record(0, next.clone())), (None, Ok(true)));
        let begins = record.params.t0(first_round(&next));
        assert!(record.params.expiry(first_round(&next) - 1) < begins);
        for (at, epoch) in [(begins - 1, 0), (begins, 1)] {
            epochs.let_go(at);
            assert_eq!(epochs.at(at).record.epoch, epoch);
        }
    }
}
