//! I1, I2, I3, I8 and I19: what is final, who gave a share when, and what was voted for.

use super::Watch;
use std::collections::BTreeSet;
use vendue_auction_core::set_digest;
use vendue_auction_core::wire::{Body, Header, Listed, Message};
use vendue_market::Digest;

impl Watch {
    pub(super) fn count_votes(&mut self, from: u16, message: &Message) {
        let Header { round, epoch, .. } = message.header;
        let full = match &message.body {
            Body::Set(set) if set.full.is_some() => {
                let list: Vec<Listed> =
                    set.held.iter().zip(0u16..).map(|(d, seat)| Listed { seat, d: *d }).collect();
                Some(set_digest(self.of_epoch(epoch), round, &list))
            }
            _ => None,
        };
        let seen = self.rounds.entry(round).or_default();
        if let Some(digest) = full {
            seen.fulls.entry(digest).or_default().insert(from);
        }
        if let Body::Lock(lock) = &message.body {
            seen.locks.entry((lock.view, lock.set)).or_default().insert(from);
        }
    }

    /// Whether so many seats voted, where faulty ones may have voted for anything; at least one honest seat did.
    fn may_be_enough(&self, voters: &BTreeSet<u16>, needed: usize) -> bool {
        let honest = voters.iter().filter(|v| self.is_honest(**v)).count();
        honest > 0 && honest + self.faulty.difference(&self.trusted).count() >= needed
    }

    /// Sets of a round that n FULLs or q LOCKs in one view may have made final.
    pub(super) fn final_sets(&self, round: u64) -> BTreeSet<Digest> {
        let (n, q) = (usize::from(self.record.n()), usize::from(self.record.q()));
        let Some(seen) = self.rounds.get(&round) else { return BTreeSet::new() };
        let full = seen.fulls.iter().filter(|(_, v)| self.may_be_enough(v, n)).map(|(set, _)| *set);
        let locked = seen.locks.iter().filter(|(_, v)| self.may_be_enough(v, q)).map(|((_, set), _)| *set);
        full.chain(locked).collect()
    }

    /// I1: two sets that may both be final are one too many.
    pub(super) fn check_finality(&mut self, now: u64, round: u64) {
        let sets = self.final_sets(round);
        if sets.len() > 1 && self.split.insert(round) {
            self.break_(now, "I1", format!("round {round}: two sets can be final"));
        }
    }

    /// I2: q LOCKs in one view or n FULLs for the set were sent before an honest share. That the commit beside the share
    /// proves it is part of I6.
    pub(super) fn check_share(&mut self, now: u64, from: u16, round: u64, set: &Digest) {
        if !self.final_sets(round).contains(set) {
            self.break_(now, "I2", format!("seat {from} opens round {round}, whose set is not final"));
        }
    }

    /// I1: what honest seats take for final is one set.
    pub(super) fn note_commit(&mut self, now: u64, round: u64, set: Digest) {
        let seen = self.rounds.entry(round).or_default();
        if seen.commits.insert(set) && seen.commits.len() > 1 {
            self.break_(now, "I1", format!("round {round}: two sets are final"));
        }
    }

    /// I8: without anything that may be final, fewer than q seats give their share away.
    pub(super) fn check_sharers(&mut self, now: u64, from: u16, round: u64) {
        let nothing_final = self.final_sets(round).is_empty();
        let seen = self.rounds.entry(round).or_default();
        seen.sharers.insert(from);
        if nothing_final && seen.sharers.len() >= usize::from(self.record.q()) {
            self.break_(now, "I8", format!("round {round} is open and nothing in it is final"));
        }
    }

    /// I19: who gives the first share does so outside of the gate, or f + 1 others have.
    pub(super) fn check_gate(&mut self, now: u64, local_ms: u64, from: u16, round: u64) {
        let open = self.record.params.gate(round, local_ms) <= local_ms;
        let seen = self.rounds.entry(round).or_default();
        let others = seen.opened.range((from, 0)..=(from, u16::MAX)).count();
        if !open && others <= usize::from(self.record.f()) {
            self.break_(now, "I19", format!("seat {from} opens round {round} in the gate"));
        }
    }

    /// I3: honest seats vote for one root.
    pub(super) fn check_award(&mut self, now: u64, from: u16, round: u64, root: Digest) {
        let seen = self.rounds.entry(round).or_default();
        if seen.awards.insert(root) && seen.awards.len() > 1 {
            self.break_(now, "I3", format!("seat {from} votes for another root in round {round}"));
        }
    }
}
