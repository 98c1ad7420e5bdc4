//! A round as a restarted seat knows it from its log.
//!
//! What the log holds was said, or may have been; what it does not hold was not said if the disk kept what it promised.
//! This seat does not stake its word on that: in a round that is recalled it sends the stored bytes again, except for the
//! bundle, and signs no bundle, set, vote or proposal. Commit, share and award vote are other things: they follow from
//! what a quorum signed, so that there is nothing in them to contradict.

use super::{Ballot, Bidding, Round, Subject};
use crate::clearing::Held;
use crate::crypto::Crypto;
use crate::evidence::message_hash_by;
use crate::log::LogRecord;
use crate::proof::place;
use crate::record::MarketRecord;
use crate::wire::{Body, Kind, Listed, Message, ShownSet, decode, listed_of};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Why a log is not this seat's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecallError {
    /// A stored message does not decode.
    #[error("a stored message of round {0} does not decode")]
    Malformed(u64),
    /// A stored message is not signed with this seat's key.
    #[error("a stored message of round {0} is not signed with this seat's key")]
    NotOurs(u64),
}

impl<C: Crypto> Round<C> {
    /// The round from its records, in the order in which they were written.
    pub fn recall<'r>(
        record: Arc<MarketRecord>,
        crypto: Arc<C>,
        index: u16,
        round: u64,
        now_ms: u64,
        past: impl IntoIterator<Item = &'r LogRecord>,
    ) -> Result<Self, RecallError> {
        let mut recalled = Self::new(record, crypto, index, round, now_ms);
        recalled.recalled = true;
        recalled.bidding = Bidding::TooLate;
        recalled.resend_at = now_ms;
        let mut known = BTreeSet::new();
        for record in past {
            match record {
                LogRecord::Said { bytes, .. } => {
                    let message = recalled.check_said(bytes)?;
                    // Of two where one is allowed, the first is what was said.
                    let place = place(&message.body).map_or(0, |(view, _)| view);
                    if known.insert((message.header.kind, place)) {
                        recalled.recall_said(message, bytes);
                    }
                }
                LogRecord::List { list, .. } => {
                    let set = recalled.set_digest(list);
                    recalled.voted_lists.insert(set, list.clone());
                }
                LogRecord::Certified { certificate, .. } => {
                    recalled.certificate = Some(certificate.clone());
                    recalled.decided = true;
                }
                _ => {}
            }
        }
        Ok(recalled)
    }

    /// [`Round::recall`] of a round about keys.
    pub(crate) fn recall_about_keys<'r>(
        record: Arc<MarketRecord>,
        crypto: Arc<C>,
        index: u16,
        round: u64,
        now_ms: u64,
        past: impl IntoIterator<Item = &'r LogRecord>,
    ) -> Result<Self, RecallError> {
        let mut recalled = Self::recall(record, crypto, index, round, now_ms, past)?;
        recalled.subject = Subject::Keys;
        Ok(recalled)
    }

    /// A round about keys in which this seat may have spoken, and does not know what.
    pub(crate) fn observe_about_keys(
        record: Arc<MarketRecord>,
        crypto: Arc<C>,
        index: u16,
        round: u64,
        now_ms: u64,
    ) -> Self {
        Self {
            recalled: true,
            bidding: Bidding::TooLate,
            resend_at: now_ms,
            ..Self::about_keys(record, crypto, index, round, now_ms)
        }
    }

    fn check_said(&self, bytes: &[u8]) -> Result<Message, RecallError> {
        let message = decode(bytes, self.record.n()).map_err(|_| RecallError::Malformed(self.round))?;
        let header = message.header;
        let not_ours = RecallError::NotOurs(self.round);
        if header != self.header(&message.body) {
            return Err(not_ours);
        }
        let (signature, seat) = message.signature.zip(self.record.seat(self.index)).ok_or(not_ours)?;
        let hash = message_hash_by::<C::Scheme>(&self.record.market, &header, &message.body);
        if !self.crypto.verify(&hash, &signature, &seat.evidence_key) {
            return Err(not_ours);
        }
        Ok(message)
    }

    fn recall_said(&mut self, message: Message, bytes: &[u8]) {
        let Message { header, body, signature } = message;
        let (seat, signature) = (self.index, signature.unwrap_or([0; 65]));
        if header.kind == Kind::NewView {
            self.sent.retain(|(header, _)| !matches!(header.kind, Kind::NewView | Kind::Propose));
        }
        if header.kind != Kind::Bundle {
            self.sent.push((header, bytes.to_vec()));
        }
        match body {
            Body::Bundle(bundle) => {
                let listed = Listed { seat, d: bundle.digest(&header) };
                self.in_time.insert(seat, listed.d);
                self.bundles.insert(listed, Held { header, bundle, bytes: bytes.to_vec() });
            }
            Body::Set(set) => {
                let shown = ShownSet { seat, set, signature };
                if shown.set.full.is_some() {
                    let list = listed_of(&shown.set.held);
                    self.voted_lists.insert(self.set_digest(&list), list);
                }
                self.set_sent = true;
                self.learn(&[shown], None);
            }
            Body::Admit(a) => {
                let ballot = Ballot { set: a.set, proposal: a.proposal, vote: a.vote };
                self.admits.insert((a.view, seat), ballot);
                self.view = self.view.max(a.view);
            }
            Body::Lock(l) => {
                let ballot = Ballot { set: l.set, proposal: [0; 32], vote: l.vote };
                self.locks.insert((l.view, seat), ballot);
                self.admit_quorums.insert((l.view, l.set), l.quorum);
                self.view = self.view.max(l.view);
            }
            Body::NewView(v) => {
                self.learn(&v.sets, v.admitted.as_ref());
                self.view = self.view.max(v.view);
            }
            Body::Propose(p) => self.learn(&p.sets, None),
            Body::Commit(c) => self.commit = Some((c.set, c.commit)),
            Body::Open(o) => {
                self.commit = Some((o.set, o.commit));
                self.opens.insert(seat, o.share);
                self.open_sent = true;
            }
            Body::Award(a) => {
                let ballot = Ballot { set: a.root, proposal: [0; 32], vote: a.vote };
                self.award_votes.insert(seat, ballot);
            }
            _ => {}
        }
    }
}
