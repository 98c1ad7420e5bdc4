//! I6 and I20: who can be proven to be faulty.

use super::{Place, Watch};
use crate::world::Letter;
use std::collections::{BTreeMap, BTreeSet};
use vendue_auction_core::proof::{
    AgainstLock, BadMessage, Double, Fault, FaultProof, Signed, SignedBundle, Verdict,
};
use vendue_auction_core::wire::{Body, Kind, Message};

/// Where in a round a statement stands, of which a seat makes one.
fn place(from: u16, message: &Message) -> Option<Place> {
    let view = match &message.body {
        Body::Admit(a) => a.view,
        Body::Lock(l) => l.view,
        Body::NewView(v) => v.view,
        Body::Propose(p) => p.view,
        Body::Bundle(_) | Body::Set(_) | Body::Award(_) | Body::Open(_) | Body::Commit(_) => 0,
        _ => return None,
    };
    Some((message.header.round, message.header.kind, view, from))
}

fn signed(letter: &Letter) -> Signed {
    Signed(letter.bytes().to_vec())
}

/// Two statements where one is allowed.
fn double(first: &Letter, second: &Letter) -> Option<FaultProof> {
    let header = second.message()?.header;
    if header.kind != Kind::Bundle {
        let (first, second) = (signed(first), signed(second));
        return Some(FaultProof::Double(Double::Messages { first, second }));
    }
    let head = |letter: &Letter| {
        let (d, signature) = (letter.bundle()?, letter.message()?.signature?);
        Some(SignedBundle { d, signature })
    };
    let (first, second) = (head(first)?, head(second)?);
    Some(FaultProof::Double(Double::Bundles { seat: header.seat, round: header.round, first, second }))
}

impl Watch {
    pub(super) fn note_proposal(&mut self, message: &Message, letter: &Letter) {
        if let Body::Propose(_) = &message.body {
            let digest = (self.judge.hash)(&self.record.market, &message.header, &message.body);
            self.proposals.insert(digest, letter.clone());
        }
    }

    /// I1: an honest seat speaks in a round in one epoch only, or two epochs could each have a quorum for it.
    pub(super) fn check_epoch(&mut self, now: u64, from: u16, message: &Message) {
        let Some((round, ..)) = place(from, message) else { return };
        let epoch = message.header.epoch;
        let seen = self.rounds.entry(round).or_default();
        if *seen.epochs.entry(from).or_insert(epoch) != epoch {
            self.break_(now, "I1", format!("seat {from} speaks in round {round} in two epochs"));
        }
    }

    /// I6: no statement of an honest seat, alone or with an earlier one, is a fault.
    pub(super) fn check_innocence(&mut self, now: u64, from: u16, message: &Message, letter: &Letter) {
        for proof in self.proofs(from, message, letter) {
            let round = message.header.round;
            if let Verdict::Guilty { fault, .. } = self.judge(&proof) {
                self.break_(now, "I6", format!("seat {from} in round {round}: {fault:?}"));
            }
        }
    }

    /// Collects what can be proven of a faulty seat by what it says.
    pub(super) fn hold_to_account(&mut self, from: u16, message: &Message, letter: &Letter) {
        for proof in self.proofs(from, message, letter) {
            if let Verdict::Guilty { seats, .. } = self.judge(&proof) {
                self.provable.entry(message.header.round).or_default().extend(seats);
            }
        }
    }

    /// What may prove that a statement is a fault, alone or with an earlier one.
    fn proofs(&mut self, from: u16, message: &Message, letter: &Letter) -> Vec<FaultProof> {
        let Some(place) = place(from, message) else { return vec![] };
        let (round, kind, ..) = place;
        let mut proofs = vec![];
        match self.said.get(&place) {
            Some(first) => proofs.extend(double(first, letter)),
            None => {
                self.said.insert(place, letter.clone());
            }
        }
        if kind != Kind::Bundle {
            proofs.push(FaultProof::BadMessage(BadMessage { message: signed(letter) }));
        }
        if matches!(kind, Kind::Admit | Kind::Lock) {
            proofs.extend(self.against_locks(round, from));
        }
        proofs
    }

    /// Every ADMIT of a seat with its proposal, and every earlier LOCK of it.
    fn against_locks(&self, round: u64, seat: u16) -> Vec<FaultProof> {
        let of = |kind: Kind| {
            let places = self.said.range((round, kind, 0, 0)..=(round, kind, u32::MAX, u16::MAX));
            places
                .filter(|((_, _, _, s), _)| *s == seat)
                .map(|((_, _, view, _), letter)| (*view, letter.clone()))
        };
        let locks: Vec<(u32, Letter)> = of(Kind::Lock).collect();
        let mut proofs = vec![];
        for (view, letter) in of(Kind::Admit).filter(|(view, _)| *view > 0) {
            let Some(Message { body: Body::Admit(admit), .. }) = letter.message() else { continue };
            let Some(proposal) = self.proposals.get(&admit.proposal) else { continue };
            let lower = locks.iter().filter(|(locked, _)| *locked < view).map(|(_, lock)| Some(signed(lock)));
            for lock in lower.chain([None]) {
                let (admit, proposal) = (signed(&letter), signed(proposal));
                proofs.push(FaultProof::AgainstLock(AgainstLock { admit, proposal, lock }));
            }
        }
        proofs
    }

    /// I6 for what seats show of each other: it holds, and is not against an honest seat.
    pub(super) fn check_evidence(&mut self, now: u64, by: u16, proof: &FaultProof) {
        if let Verdict::Unproven(why) = self.check_framing(now, by, proof) {
            self.break_(now, "I6", format!("seat {by} shows a proof that is none: {why}"));
        }
    }

    /// I6 for whatever anybody makes up: no honest seat is guilty by it.
    pub(super) fn check_framing(&mut self, now: u64, by: u16, proof: &FaultProof) -> Verdict {
        let verdict = self.judge(proof);
        if let Verdict::Guilty { seats, fault } = &verdict {
            let is_synchronous = self.synchronous_from.is_some_and(|from| from == 0);
            for seat in seats.iter().copied().filter(|s| self.is_honest(*s)).collect::<Vec<_>>() {
                if *fault != Fault::Absent || is_synchronous {
                    self.break_(now, "I6", format!("seat {by} proves {fault:?} of honest seat {seat}"));
                }
            }
        }
        verdict
    }

    /// Rounds in which two sets were taken for final or two roots certified, with the seats that can be proven faulty.
    pub fn splits(&self) -> BTreeMap<u64, BTreeSet<u16>> {
        let split = |(_, seen): &(&u64, &super::Seen)| seen.commits.len() > 1 || seen.roots.len() > 1;
        let of = |round: &u64| self.provable.get(round).cloned().unwrap_or_default();
        self.rounds.iter().filter(split).map(|(round, _)| (*round, of(round))).collect()
    }

    /// I20: whether two final sets or two certified roots leave at least f + 1 seats provably faulty. To be asked at the
    /// end of a run.
    pub fn check_accountability(&mut self, now: u64) {
        for (round, culprits) in self.splits() {
            let found = culprits.len();
            if found <= usize::from(self.record.f()) {
                self.break_(
                    now,
                    "I20",
                    format!("round {round} is split and {found} seats are provably faulty"),
                );
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::invariants::Judge;
    use crate::keys::{Keys, MockKeys, spec};
    use crate::mock::MockScheme;
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;
    use vendue_auction_core::wire::{AwardVote, Header};

    #[test]
    fn i1_an_honest_seat_that_speaks_in_a_round_in_two_epochs() {
        let keys = MockKeys::deal(&spec(4, crate::clock()), &mut ChaCha20Rng::seed_from_u64(1)).unwrap();
        let mut watch = Watch::new(keys.record(), Judge::by::<MockScheme>());
        let mut say = |seat: u16, epoch: u32, round: u64| {
            let market = keys.record().short_id();
            let header = Header { kind: Kind::Award, market, epoch, round, seat };
            let body = Body::Award(AwardVote { root: [1; 32], vote: [0; 48] });
            watch.check_epoch(0, seat, &Message { header, body, signature: None });
            watch.take_violations().iter().map(|v| v.invariant).collect::<Vec<_>>()
        };
        assert_eq!([say(1, 0, 3), say(2, 1, 3), say(1, 1, 4), say(1, 0, 3)].concat(), [""; 0]);
        assert_eq!(say(1, 1, 3), ["I1"]);
    }

    #[test]
    fn i20_a_split_round_with_too_few_culprits() {
        let keys = MockKeys::deal(&spec(4, crate::clock()), &mut ChaCha20Rng::seed_from_u64(1)).unwrap();
        let mut watch = Watch::new(keys.record(), Judge::by::<MockScheme>());
        watch.rounds.entry(3).or_default().commits.insert([1; 32]);
        watch.check_accountability(0);
        assert_eq!(watch.violations(), [], "one commit is as it should be");
        watch.rounds.entry(3).or_default().commits.insert([2; 32]);
        watch.provable.insert(3, BTreeSet::from([2]));
        watch.check_accountability(0);
        assert_eq!(watch.take_violations().iter().map(|v| v.invariant).collect::<Vec<_>>(), ["I20"]);
        watch.provable.insert(3, BTreeSet::from([1, 2]));
        watch.check_accountability(0);
        assert_eq!(watch.violations(), []);
    }
}
