//! The attempts to agree: rounds that are begun by the clock, or by what others say in them.
//!
//! Invariants: in an attempt that began before a restart, and is not in the log, this seat signs nothing but a vote for the
//! key that follows from it; who contributes to an attempt votes in no earlier one; no attempt is forgotten, for a set may
//! turn out to be final later.

use super::agreed::{Agreed, Found};
use super::word::{Voted, Word};
use super::{KeyGeneration, KeyOutput};
use crate::crypto::Crypto;
use crate::round::{KeyStep, Round, RoundInput, RoundOutput};
use crate::wire::{Body, Cert, CommitMsg, Header, Message};
use std::sync::Arc;

/// One attempt, as far as it has come.
pub(super) struct Attempt<C: Crypto> {
    pub(super) round: Round<C>,
    /// What was admitted.
    pub(super) agreed: Option<Agreed>,
    /// What follows from it.
    pub(super) found: Option<Found>,
    pub(super) fetch_at: u64,
    /// How often it was asked for dealings.
    pub(super) asked: usize,
}

impl<C: Crypto> Attempt<C> {
    pub(super) fn new(round: Round<C>) -> Self {
        Self { round, agreed: None, found: None, fetch_at: 0, asked: 0 }
    }

    pub(super) fn next_wake(&self, now_ms: u64) -> u64 {
        let fetches = self.agreed.is_some() && self.found.is_none() && self.fetch_at > now_ms;
        let fetch_at = if fetches { self.fetch_at } else { u64::MAX };
        self.round.next_wake().min(fetch_at)
    }

    /// Whether its set is final, and a key may follow from it.
    fn may_count(&self) -> bool {
        self.round.is_committed() && !matches!(self.found, Some(Found::Nothing))
    }
}

impl<C: Crypto> KeyGeneration<C> {
    /// Whether nothing more is to be done for an attempt but to answer: it makes no key, or it expired without anything that
    /// was agreed, or another one is certified. Of that, and of the one that its key is of, others ask what was agreed.
    pub(super) fn is_over(&self, attempt: &Attempt<C>) -> bool {
        let number = attempt.round.number();
        let counts = match &self.certified {
            Some(certificate) => {
                certificate.round == number || self.key_is_of(certificate.round) == Some(number)
            }
            None => attempt.may_count() || attempt.round.certificate().is_some(),
        };
        self.now >= self.record.params.expiry(number) && !counts
    }

    /// Begins the attempt that it is time for, and goes on with those that are open.
    pub(super) fn attempt(&mut self, out: &mut Vec<KeyOutput>) {
        if let Some(attempt) = self.terms.attempt(self.now)
            && !self.is_done()
            && self.passed.is_none_or(|passed| attempt > passed)
            && !self.attempts.contains_key(&attempt)
        {
            self.open_attempt(attempt);
            self.drive(attempt, RoundInput::Tick, out);
        }
        let due = self.attempts.iter().filter(|(_, a)| !self.is_over(a) && a.round.next_wake() <= self.now);
        let due: Vec<u64> = due.map(|(attempt, _)| *attempt).collect();
        for attempt in due {
            self.drive(attempt, RoundInput::Tick, out);
        }
    }

    /// Takes part in an attempt; in one that this seat may have spoken in before it listens.
    pub(super) fn open_attempt(&mut self, attempt: u64) {
        if self.attempts.contains_key(&attempt) {
            return;
        }
        let (record, crypto) = (self.record.clone(), Arc::clone(&self.crypto));
        let round = if self.passed.is_some_and(|passed| attempt <= passed) {
            Round::observe_about_keys(record, crypto, self.index, attempt, self.now)
        } else {
            Round::about_keys(record, crypto, self.index, attempt, self.now)
        };
        self.attempts.insert(attempt, Attempt::new(round));
    }

    /// Gives an attempt one input and carries out what it says.
    pub(super) fn drive(&mut self, attempt: u64, input: RoundInput, out: &mut Vec<KeyOutput>) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let Some(active) = self.attempts.get_mut(&attempt) else { return };
            for output in active.round.handle(self.now, input) {
                match output {
                    RoundOutput::Persist(record) => out.push(KeyOutput::Persist(record)),
                    RoundOutput::Broadcast(bytes) => out.push(KeyOutput::Broadcast(bytes)),
                    RoundOutput::Send { to, bytes } => out.push(KeyOutput::Send { to, bytes }),
                    RoundOutput::Evidence(proof) => out.push(KeyOutput::Evidence(proof)),
                    RoundOutput::Dropped(reason) => self.drops.add(reason),
                    RoundOutput::Keys(KeyStep::NeedContribution) => {
                        inputs.extend(self.word(attempt).map(RoundInput::Contribution));
                    }
                    RoundOutput::Keys(KeyStep::Agreed { set, said }) => {
                        self.agree(attempt, set, &said, out);
                    }
                    RoundOutput::Keys(KeyStep::Certified(certificate)) => {
                        self.finish(attempt, certificate, out);
                    }
                    // A round about keys asks for no bids and no orders, and awards nothing.
                    RoundOutput::NeedBids { .. } | RoundOutput::NeedOrders(_) | RoundOutput::Decided(_) => {}
                }
            }
        }
    }

    /// What this seat says in an attempt: its acknowledgements, the values of those that did not acknowledge its dealing,
    /// and its last vote. From here on it votes in no earlier attempt.
    fn word(&mut self, attempt: u64) -> Option<Vec<u8>> {
        let voted = match self.voted {
            Some(voted) => Some(self.last_vote(voted).filter(|vote| vote.attempt < attempt)?),
            None => None,
        };
        let (acks, own) = (self.acks(), self.dealer.digest());
        let at = usize::from(self.index);
        let holds = |player: &u16| match self.said_held.get(player) {
            Some(held) if *player != self.index => held.get(at) == Some(&own),
            _ => *player == self.index && acks.get(at) == Some(&own),
        };
        let without = (0..self.record.n()).filter(|player| !holds(player));
        let reveal = without.chain(self.revealed.iter().copied()).collect();
        let contribution = self.dealer.contribution(acks, &reveal).ok()?;
        self.revealed.extend(contribution.reveals.keys());
        self.promised = self.promised.max(attempt);
        Some(Word { voted, contribution }.to_bytes(&self.setup))
    }

    fn last_vote(&self, attempt: u64) -> Option<Voted> {
        let (set, commit) = self.attempts.get(&attempt)?.round.commit()?.clone();
        Some(Voted { attempt, commit: CommitMsg { set, commit } })
    }

    /// Gives a seat that goes on with something else than the certified attempt the certificate; it then asks for what it
    /// lacks.
    pub(super) fn tell(&mut self, seat: u16, attempt: Option<u64>, out: &mut Vec<KeyOutput>) {
        let Some(certificate) = self.certified.as_ref().filter(|c| Some(c.round) != attempt) else { return };
        let again = self.helped.get(&seat).map_or(0, |at| at + 2 * self.record.params.delay_ms);
        if self.now < again {
            return;
        }
        let body = Body::Cert(Cert { root: certificate.root, quorum: certificate.quorum.clone() });
        let header = Header { round: certificate.round, ..self.header(&body) };
        let bytes = Message { header, body, signature: None }.encode();
        self.helped.insert(seat, self.now);
        out.push(KeyOutput::Send { to: seat, bytes });
    }
}
