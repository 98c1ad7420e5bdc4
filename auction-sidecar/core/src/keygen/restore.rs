//! A key generation as a restarted seat knows it from the log of that generation.
//!
//! Inputs: the terms, the stored secrets, the records in the order in which they were written. Invariants: what was said
//! is said again in the same bytes; values that were acknowledged are there again; no vote contradicts one from before; values
//! that were revealed count; in an attempt that had begun and is not in the log the seat says nothing.

use super::attempts::Attempt;
use super::{KeyGeneration, KeySecrets, Terms, Word};
use crate::crypto::Crypto;
use crate::log::LogRecord;
use crate::round::{RecallError, Round};
use crate::wire::{Body, Message, decode};
use std::collections::BTreeMap;
use std::sync::Arc;
use vendue_sealed_bid::dkg::DkgError;

/// Why a generation cannot go on from a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The terms or secrets are not usable.
    #[error(transparent)]
    Keys(#[from] DkgError),
    /// The log is not this seat's.
    #[error(transparent)]
    Log(#[from] RecallError),
}

impl<C: Crypto> KeyGeneration<C> {
    /// The generation after a restart.
    pub fn restore(
        terms: Terms,
        index: u16,
        crypto: Arc<C>,
        secrets: KeySecrets,
        now_ms: u64,
        log: &[LogRecord],
    ) -> Result<Self, RestoreError> {
        let mut restored = Self::new(terms, index, crypto, secrets, now_ms)?;
        restored.resend_at = now_ms;
        let mut attempts: BTreeMap<u64, Vec<&LogRecord>> = BTreeMap::new();
        for record in log {
            match record {
                LogRecord::Heard { bytes, .. } => restored.hear_again(&restored.read(bytes)?, bytes),
                LogRecord::Said { bytes, .. } => {
                    let message = restored.read(bytes)?;
                    if restored.recall_said(&message, bytes) {
                        attempts.entry(message.header.round).or_default().push(record);
                    }
                }
                LogRecord::List { round, .. } => attempts.entry(*round).or_default().push(record),
                _ => {}
            }
        }
        restored.passed = restored.terms.begun(now_ms);
        for (attempt, past) in attempts {
            let (record, crypto) = (restored.record.clone(), restored.crypto.clone());
            let round = Round::recall_about_keys(record, crypto, index, attempt, now_ms, past)?;
            restored.attempts.insert(attempt, Attempt::new(round));
        }
        Ok(restored)
    }

    fn read(&self, bytes: &[u8]) -> Result<Message, RecallError> {
        decode(bytes, self.record.n()).map_err(|_| RecallError::Malformed(0))
    }

    fn hear_again(&mut self, message: &Message, bytes: &[u8]) {
        let seat = message.header.seat;
        match &message.body {
            // What was taken before is taken now.
            Body::DealKey(announced) => {
                let _ = self.learn_key(seat, announced);
            }
            Body::Deal(deal) => {
                let _ = self.take_deal(seat, &deal.dealing, bytes.to_vec(), &mut vec![]);
            }
            Body::Acks(acks) => {
                self.said_held.insert(seat, acks.held.clone());
            }
            _ => {}
        }
    }

    /// Takes up what this seat said; whether it belongs to an attempt.
    fn recall_said(&mut self, message: &Message, bytes: &[u8]) -> bool {
        match &message.body {
            Body::DealKey(_) | Body::Acks(_) => self.hear_again(message, bytes),
            Body::Deal(_) => {
                self.player.deals();
                self.hear_again(message, bytes);
            }
            body => {
                let attempt = message.header.round;
                if let Body::Bundle(bundle) = body
                    && let Ok(said) = Word::read(&self.setup, &bundle.payload)
                {
                    self.revealed.extend(said.contribution.reveals.keys());
                    self.promised = self.promised.max(attempt);
                }
                if let Body::Award(_) = body {
                    self.voted = self.voted.max(Some(attempt));
                    self.promised = self.promised.max(attempt);
                }
                return true;
            }
        }
        self.sent.insert(message.header.kind, bytes.to_vec());
        false
    }
}
