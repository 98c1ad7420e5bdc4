//! The attempts to agree, and what follows from what was agreed.

use super::{Generated, KeyGeneration, KeyOutput, terms};
use crate::award::Certificate;
use crate::crypto::Crypto;
use crate::round::{KeyStep, Round, RoundInput, RoundOutput};
use crate::wire::{Body, Cert, Fetch, Header, Listed, Message};
use std::collections::BTreeMap;
use std::sync::Arc;
use vendue_market::Digest;
use vendue_sealed_bid::dkg::{Contribution, DkgError, Outcome, outcome, unaccounted, wanted};

/// One attempt, as far as it has come.
pub(super) struct Attempt<C: Crypto> {
    pub(super) round: Round<C>,
    /// The admitted set and its contributions.
    agreed: Option<(Digest, BTreeMap<u16, Contribution>)>,
    /// What follows from them; none where no key does.
    result: Option<Option<Outcome>>,
    fetch_at: u64,
}

impl<C: Crypto> Attempt<C> {
    pub(super) fn new(round: Round<C>) -> Self {
        Self { round, agreed: None, result: None, fetch_at: 0 }
    }

    pub(super) fn next_wake(&self, now_ms: u64) -> u64 {
        let fetches = self.agreed.is_some() && self.result.is_none() && self.fetch_at > now_ms;
        let fetch_at = if fetches { self.fetch_at } else { u64::MAX };
        self.round.next_wake().min(fetch_at)
    }
}

impl<C: Crypto> KeyGeneration<C> {
    /// Whether nothing more is to come of an attempt: what it came to is known, and makes no key; or it expired without
    /// anything that was agreed. A seat that voted stays, for the others.
    pub(super) fn is_over(&self, attempt: &Attempt<C>) -> bool {
        let expired = self.now >= self.record.params.expiry(attempt.round.number());
        let is_lost = attempt.result == Some(None) || attempt.agreed.is_none();
        expired && (self.is_done() || is_lost) && attempt.round.certificate().is_none()
    }

    /// Begins the attempt that it is time for. Who has voted for a key waits for that one.
    pub(super) fn attempt(&mut self, out: &mut Vec<KeyOutput>) {
        if let Some(attempt) = self.terms.attempt(self.now)
            && self.voted.is_none()
        {
            let is_new = !self.attempts.contains_key(&attempt);
            self.open_attempt(attempt);
            if is_new {
                self.drive(attempt, RoundInput::Tick, out);
            }
        }
        let due = self.attempts.iter().filter(|(_, a)| !self.is_over(a) && a.round.next_wake() <= self.now);
        let due: Vec<u64> = due.map(|(attempt, _)| *attempt).collect();
        for attempt in due {
            self.drive(attempt, RoundInput::Tick, out);
        }
    }

    pub(super) fn open_attempt(&mut self, attempt: u64) {
        let (record, crypto) = (self.record.clone(), self.crypto.clone());
        let (index, now) = (self.index, self.now);
        self.attempts.entry(attempt).or_insert_with(|| {
            Attempt::new(Round::about_keys(record, Arc::clone(&crypto), index, attempt, now))
        });
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
                        inputs.extend(self.contribution().map(RoundInput::Contribution));
                    }
                    RoundOutput::Keys(KeyStep::Agreed { set, said }) => self.agree(attempt, set, &said),
                    RoundOutput::Keys(KeyStep::Certified(certificate)) => {
                        self.finish(attempt, certificate, out);
                    }
                    // A round about keys asks for no bids and no orders, and awards nothing.
                    RoundOutput::NeedBids { .. } | RoundOutput::NeedOrders(_) | RoundOutput::Decided(_) => {}
                }
            }
        }
    }

    /// This seat's contribution: its acknowledgements, and the values of those that did not acknowledge its dealing.
    fn contribution(&mut self) -> Option<Vec<u8>> {
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
        Some(contribution.to_bytes(&self.setup))
    }

    /// Takes up what was agreed. A seat of which two versions were admitted has said nothing.
    fn agree(&mut self, attempt: u64, set: Digest, said: &[(Listed, Vec<u8>)]) {
        let single = |seat: u16| said.iter().filter(|(listed, _)| listed.seat == seat).count() == 1;
        let read = said
            .iter()
            .filter(|(listed, _)| single(listed.seat))
            .filter_map(|(listed, bytes)| Some((listed.seat, Contribution::read(&self.setup, bytes).ok()?)));
        let contributions = read.collect();
        if let Some(active) = self.attempts.get_mut(&attempt) {
            active.agreed = Some((set, contributions));
        }
    }

    /// Works out what follows from what was agreed, as soon as the dealings are there.
    pub(super) fn resolve(&mut self, out: &mut Vec<KeyOutput>) {
        let open = self.attempts.iter().filter(|(_, a)| a.agreed.is_some() && a.result.is_none());
        let open: Vec<u64> = open.map(|(attempt, _)| *attempt).collect();
        for attempt in open {
            self.resolve_one(attempt, out);
        }
    }

    fn resolve_one(&mut self, attempt: u64, out: &mut Vec<KeyOutput>) {
        let Some((set, contributions)) = self.attempts.get(&attempt).and_then(|a| a.agreed.as_ref()) else {
            return;
        };
        match outcome(&self.setup, contributions, self.player.dealings()) {
            Ok(made) => {
                let root = terms::root(set, &made.keys);
                let vote = self.voted.is_none_or(|voted| voted == attempt);
                self.voted = self.voted.or(Some(attempt));
                self.set_result(attempt, Some(made));
                self.drive(attempt, RoundInput::Key { root, vote }, out);
            }
            Err(DkgError::Missing(_)) => self.fetch(attempt, out),
            Err(_) => {
                let said: Vec<_> = contributions.iter().map(|(seat, c)| (*seat, c.acks.clone())).collect();
                // Whoever the own dealing does not account for has had its chance.
                if contributions.get(&self.index).is_some_and(|own| own.commitment == self.dealer.digest()) {
                    let missing = unaccounted(&self.setup, contributions, self.index);
                    let most = self.setup.most_reveals();
                    if self.revealed.union(&missing).count() <= most {
                        self.revealed.extend(missing);
                    }
                }
                // What a seat contributed is its last word on what it holds.
                self.said_held.extend(said.into_iter().filter(|(seat, _)| *seat != self.index));
                self.set_result(attempt, None);
            }
        }
    }

    fn set_result(&mut self, attempt: u64, result: Option<Outcome>) {
        if let Some(active) = self.attempts.get_mut(&attempt) {
            active.result = Some(result);
        }
    }

    /// Asks those that acknowledge a dealing for it.
    fn fetch(&mut self, attempt: u64, out: &mut Vec<KeyOutput>) {
        let (now, again) = (self.now, self.now + 2 * self.record.params.delay_ms);
        let Some(active) = self.attempts.get_mut(&attempt).filter(|a| now >= a.fetch_at) else { return };
        active.fetch_at = again;
        let agreed = self.attempts.get(&attempt).and_then(|a| a.agreed.clone());
        let Some((_, contributions)) = &agreed else { return };
        let missing: Vec<(u16, Digest)> = wanted(&self.setup, contributions)
            .into_iter()
            .filter(|key| !self.player.dealings().contains_key(key))
            .collect();
        for (seat, theirs) in contributions.iter().filter(|(seat, _)| **seat != self.index) {
            let has = |(dealer, d): &&(u16, Digest)| theirs.acks.get(usize::from(*dealer)) == Some(d);
            let ask: Vec<Listed> =
                missing.iter().filter(has).map(|(seat, d)| Listed { seat: *seat, d: *d }).collect();
            if !ask.is_empty() {
                let bytes = self.encode(Body::Fetch(Fetch::Dealings(ask)));
                out.push(KeyOutput::Send { to: *seat, bytes });
            }
        }
    }

    /// Whether a dealing that somebody passes on is one that an attempt waits for.
    pub(super) fn waits_for(&self, dealer: u16, digest: &Digest) -> bool {
        let open = self.attempts.values().filter(|a| a.result.is_none());
        let mut open = open.filter_map(|a| a.agreed.as_ref());
        open.any(|(_, said)| wanted(&self.setup, said).get(&dealer) == Some(digest))
    }

    /// Gives a seat that goes on with another attempt the certificate; it then asks for what it lacks.
    pub(super) fn tell(&mut self, seat: u16, attempt: u64, out: &mut Vec<KeyOutput>) {
        let Some(certificate) = self.certified.as_ref().filter(|c| c.round != attempt) else { return };
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

    fn finish(&mut self, attempt: u64, certificate: Certificate, out: &mut Vec<KeyOutput>) {
        let Some(active) = self.attempts.get(&attempt).filter(|_| self.certified.is_none()) else { return };
        let (Some((set, contributions)), Some(Some(made))) = (&active.agreed, &active.result) else { return };
        // Values that came in late, or with a restart, were not checked yet.
        let _ = self.player.check(&self.secrets.deal);
        let share = self.player.share(made, contributions, self.secrets.old.as_ref()).ok();
        self.certified = Some(certificate.clone());
        let generated = Generated { outcome: made.clone(), set: *set, certificate, share };
        out.push(KeyOutput::Done(Box::new(generated)));
    }
}
