//! What follows from what was agreed in an attempt: a key, none, or the key of an earlier attempt.
//!
//! Input: the words of the seats whose single contribution was admitted. Output: a key and a vote for it. Invariants: what
//! follows is a function of the admitted words and the dealings that they want; where a seat shows that it has voted for a key
//! the latest key that was voted for is it, so that after a certificate no other key can be found.

use super::word::Word;
use super::{Fruitless, Generated, KeyGeneration, KeyOutput, terms};
use crate::award::Certificate;
use crate::crypto::Crypto;
use crate::round::RoundInput;
use crate::wire::{Body, CommitMsg, Fetch, Listed};
use std::collections::{BTreeMap, BTreeSet};
use vendue_market::Digest;
use vendue_sealed_bid::SealShare;
use vendue_sealed_bid::dkg::{Contribution, DkgError, Outcome, outcome, unaccounted, wanted};

/// What was admitted in an attempt.
pub(super) struct Agreed {
    set: Digest,
    contributions: BTreeMap<u16, Contribution>,
    /// Seats of which nothing was admitted.
    silent: BTreeSet<u16>,
    /// Earlier attempts in which seats have voted for a key.
    voted: BTreeMap<u64, CommitMsg>,
}

/// What follows from what was admitted.
pub(super) enum Found {
    /// No key.
    Nothing,
    /// A key.
    Key(Box<Made>),
    /// The key of this earlier attempt.
    KeyOf(u64),
}

/// A key that follows from contributions, and this seat's share of it.
pub(super) struct Made {
    outcome: Outcome,
    set: Digest,
    contributions: BTreeMap<u16, Contribution>,
    share: Option<SealShare>,
}

impl<C: Crypto> KeyGeneration<C> {
    /// Takes up what was agreed. A seat of which two versions were admitted, or a vote that was none, has said nothing.
    pub(super) fn agree(
        &mut self,
        attempt: u64,
        set: Digest,
        said: &[(Listed, Vec<u8>)],
        out: &mut Vec<KeyOutput>,
    ) {
        let single = |seat: u16| said.iter().filter(|(listed, _)| listed.seat == seat).count() == 1;
        let (mut contributions, mut voted) = (BTreeMap::new(), BTreeMap::new());
        for (listed, bytes) in said.iter().filter(|(listed, _)| single(listed.seat)) {
            let word = Word::read(&self.setup, bytes).ok();
            let Some(word) = word.filter(|word| word.is_sound::<C::Scheme>(&self.record, attempt)) else {
                continue;
            };
            contributions.insert(listed.seat, word.contribution);
            voted.extend(word.voted.map(|voted| (voted.attempt, voted.commit)));
        }
        let earlier = voted.clone();
        let mut silent: BTreeSet<u16> = (0..self.record.n()).collect();
        silent.retain(|seat| !said.iter().any(|(listed, _)| listed.seat == *seat));
        if let Some(active) = self.attempts.get_mut(&attempt) {
            active.agreed = Some(Agreed { set, contributions, silent, voted });
        }
        for (earlier, commit) in earlier {
            self.open_attempt(earlier);
            self.drive(earlier, RoundInput::Committed(commit), out);
        }
    }

    /// Works out what follows from what was agreed, as soon as the dealings are there.
    pub(super) fn resolve(&mut self, out: &mut Vec<KeyOutput>) {
        let open = self.attempts.iter().filter(|(_, a)| a.agreed.is_some() && a.found.is_none());
        let open: Vec<u64> = open.map(|(attempt, _)| *attempt).collect();
        for attempt in open {
            self.resolve_one(attempt, out);
        }
    }

    fn resolve_one(&mut self, attempt: u64, out: &mut Vec<KeyOutput>) {
        let Some(agreed) = self.attempts.get(&attempt).and_then(|a| a.agreed.as_ref()) else { return };
        let (found, needed) = (agreed.contributions.len(), usize::from(self.record.q()));
        if found < needed {
            // Fewer might miss a seat that has voted.
            return self.make_nothing(attempt, Fruitless::Contributions { found, needed }, out);
        }
        for earlier in agreed.voted.keys().rev() {
            match (self.attempts.get(earlier).and_then(|a| a.found.as_ref()), self.key_is_of(*earlier)) {
                (_, Some(first)) => return self.vote(attempt, Found::KeyOf(first), out),
                (Some(_), None) => {}
                // Its set is final, and what was admitted is being fetched.
                (None, None) => return,
            }
        }
        let (set, contributions, silent) = (agreed.set, agreed.contributions.clone(), agreed.silent.clone());
        match outcome(&self.setup, &contributions, self.player.dealings()) {
            Ok(outcome) => {
                let share = self.share_of(&outcome, &contributions);
                let made = Made { outcome, set, contributions, share };
                self.vote(attempt, Found::Key(Box::new(made)), out);
            }
            Err(DkgError::Missing(_)) => self.fetch(attempt, out),
            Err(error) => {
                self.learn_from(&contributions, silent);
                self.make_nothing(attempt, Fruitless::Dealings(error), out);
            }
        }
    }

    /// This seat's share of a key; none when it acknowledged what it does not have any more.
    fn share_of(
        &mut self,
        outcome: &Outcome,
        contributions: &BTreeMap<u16, Contribution>,
    ) -> Option<SealShare> {
        // Values that came in late, or with a restart, were not checked yet.
        let _ = self.player.check(&self.secrets.deal);
        self.player.share(outcome, contributions, self.secrets.old.as_ref()).ok()
    }

    /// What contributions that make no key say about the next attempt.
    fn learn_from(&mut self, contributions: &BTreeMap<u16, Contribution>, silent: BTreeSet<u16>) {
        // Whoever the own dealing does not account for has had its chance; who was silent may have been slow, once.
        if contributions.get(&self.index).is_some_and(|own| own.commitment == self.dealer.digest()) {
            let mut missing = unaccounted(&self.setup, contributions, self.index);
            missing.retain(|seat| !silent.contains(seat) || self.missed.contains(seat));
            if self.revealed.union(&missing).count() <= self.setup.most_reveals() {
                self.revealed.extend(missing);
            }
        }
        self.missed = silent;
        // What a seat contributed is its last word on what it holds.
        let said = contributions.iter().filter(|(seat, _)| **seat != self.index);
        self.said_held.extend(said.map(|(seat, c)| (*seat, c.acks.clone())));
    }

    fn make_nothing(&mut self, attempt: u64, reason: Fruitless, out: &mut Vec<KeyOutput>) {
        if let Some(active) = self.attempts.get_mut(&attempt) {
            active.found = Some(Found::Nothing);
        }
        out.push(KeyOutput::Fruitless { attempt, reason });
    }

    /// The attempt whose contributions the key of this one is made of.
    pub(super) fn key_is_of(&self, attempt: u64) -> Option<u64> {
        match self.attempts.get(&attempt)?.found.as_ref()? {
            Found::Key(_) => Some(attempt),
            Found::KeyOf(first) => Some(*first),
            Found::Nothing => None,
        }
    }

    fn made_in(&self, attempt: u64) -> Option<&Made> {
        match self.attempts.get(&self.key_is_of(attempt)?)?.found.as_ref()? {
            Found::Key(made) => Some(made),
            _ => None,
        }
    }

    /// Votes for the key that was found, unless this seat has no share of it, or has contributed to a later attempt or voted
    /// in one.
    fn vote(&mut self, attempt: u64, found: Found, out: &mut Vec<KeyOutput>) {
        if let Some(active) = self.attempts.get_mut(&attempt) {
            active.found = Some(found);
        }
        let Some(made) = self.made_in(attempt) else { return };
        let (root, has_share) = (terms::root(&made.set, &made.outcome.keys), made.share.is_some());
        let vote = has_share && attempt >= self.promised;
        if vote {
            self.voted = Some(attempt);
            self.promised = attempt;
        }
        self.drive(attempt, RoundInput::Key { root, vote }, out);
    }

    /// Asks those that acknowledge a dealing for it: two of them, other ones and more each time, up to f + 1 at once.
    fn fetch(&mut self, attempt: u64, out: &mut Vec<KeyOutput>) {
        let (now, again) = (self.now, self.now + 2 * self.record.params.delay_ms);
        let Some(active) = self.attempts.get_mut(&attempt).filter(|a| now >= a.fetch_at) else { return };
        (active.fetch_at, active.asked) = (again, active.asked.saturating_add(1));
        let asked = active.asked;
        let Some(contributions) = active.agreed.as_ref().map(|agreed| &agreed.contributions) else { return };
        let at_once = (1usize << asked.min(8)).min(self.setup.most_reveals() + 1);
        let mut asks: BTreeMap<u16, Vec<Listed>> = BTreeMap::new();
        for (dealer, d) in wanted(&self.setup, contributions) {
            if self.player.dealings().contains_key(&(dealer, d)) {
                continue;
            }
            let has = |(seat, c): &(&u16, &Contribution)| {
                **seat != self.index && c.acks.get(usize::from(dealer)) == Some(&d)
            };
            let holders: Vec<u16> = contributions.iter().filter(has).map(|(seat, _)| *seat).collect();
            let first = usize::from(self.index) + asked * at_once;
            for holder in
                holders.iter().cycle().skip(first % holders.len().max(1)).take(at_once.min(holders.len()))
            {
                asks.entry(*holder).or_default().push(Listed { seat: dealer, d });
            }
        }
        for (to, ask) in asks {
            let bytes = self.encode(Body::Fetch(Fetch::Dealings(ask)));
            out.push(KeyOutput::Send { to, bytes });
        }
    }

    /// Whether a dealing that somebody passes on is one that an attempt waits for.
    pub(super) fn waits_for(&self, dealer: u16, digest: &Digest) -> bool {
        let open = self.attempts.values().filter(|a| a.found.is_none());
        let mut open = open.filter_map(|a| a.agreed.as_ref());
        open.any(|agreed| wanted(&self.setup, &agreed.contributions).get(&dealer) == Some(digest))
    }

    pub(super) fn finish(&mut self, attempt: u64, certificate: Certificate, out: &mut Vec<KeyOutput>) {
        if self.certified.is_some() {
            return;
        }
        let Some(made) = self.made_in(attempt) else { return };
        let (outcome, set, contributions) = (made.outcome.clone(), made.set, made.contributions.clone());
        let share = self.share_of(&outcome, &contributions);
        self.certified = Some(certificate.clone());
        out.push(KeyOutput::Done(Box::new(Generated { outcome, set, certificate, share })));
    }
}
