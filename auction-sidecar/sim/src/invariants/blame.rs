//! I6 and I20: who can be proven to be faulty.

use super::{Place, Watch};
use vendue_auction_core::evidence::message_hash;
use vendue_auction_core::proof::{
    AgainstLock, BadMessage, Double, Fault, FaultProof, Signed, SignedBundle, Verdict,
};
use vendue_auction_core::wire::{Body, Kind, Message, decode};

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

impl Watch {
    pub(super) fn note_proposal(&mut self, message: &Message, bytes: &[u8]) {
        if let Body::Propose(_) = &message.body {
            let digest = message_hash(&self.record.market, &message.header, &message.body);
            self.proposals.insert(digest, bytes.to_vec());
        }
    }

    /// I6: no statement of an honest seat, alone or with an earlier one, is a fault.
    pub(super) fn check_innocence(&mut self, now: u64, from: u16, message: &Message, bytes: &[u8]) {
        for proof in self.proofs(from, message, bytes) {
            let round = message.header.round;
            if let Verdict::Guilty { fault, .. } = (self.verify)(&proof, &self.record) {
                self.break_(now, "I6", format!("seat {from} in round {round}: {fault:?}"));
            }
        }
    }

    /// Collects what can be proven of a faulty seat by what it says.
    pub(super) fn hold_to_account(&mut self, from: u16, message: &Message, bytes: &[u8]) {
        for proof in self.proofs(from, message, bytes) {
            if let Verdict::Guilty { seats, .. } = (self.verify)(&proof, &self.record) {
                self.provable.entry(message.header.round).or_default().extend(seats);
            }
        }
    }

    /// What may prove that a statement is a fault, alone or with an earlier one.
    fn proofs(&mut self, from: u16, message: &Message, bytes: &[u8]) -> Vec<FaultProof> {
        let Some(place) = place(from, message) else { return vec![] };
        let (round, kind, ..) = place;
        let mut proofs = vec![];
        match self.said.get(&place) {
            Some(first) => proofs.extend(self.double(first, message, bytes)),
            None => {
                self.said.insert(place, bytes.to_vec());
            }
        }
        if kind != Kind::Bundle {
            proofs.push(FaultProof::BadMessage(BadMessage { message: Signed(bytes.to_vec()) }));
        }
        if matches!(kind, Kind::Admit | Kind::Lock) {
            proofs.extend(self.against_locks(round, from));
        }
        proofs
    }

    fn double(&self, first: &[u8], message: &Message, bytes: &[u8]) -> Option<FaultProof> {
        let header = message.header;
        if !matches!(message.body, Body::Bundle(_)) {
            let (first, second) = (Signed(first.to_vec()), Signed(bytes.to_vec()));
            return Some(FaultProof::Double(Double::Messages { first, second }));
        }
        let head = |message: Message| match message.body {
            Body::Bundle(b) => Some(SignedBundle { d: b.digest(&header), signature: message.signature? }),
            _ => None,
        };
        let first = head(decode(first, self.record.n()).ok()?)?;
        let second = head(message.clone())?;
        Some(FaultProof::Double(Double::Bundles { seat: header.seat, round: header.round, first, second }))
    }

    /// Every ADMIT of a seat with its proposal, and every earlier LOCK of it.
    fn against_locks(&self, round: u64, seat: u16) -> Vec<FaultProof> {
        let of = |kind: Kind| {
            let places = self.said.range((round, kind, 0, 0)..=(round, kind, u32::MAX, u16::MAX));
            places
                .filter(|((_, _, _, s), _)| *s == seat)
                .map(|((_, _, view, _), bytes)| (*view, bytes.clone()))
        };
        let locks: Vec<(u32, Vec<u8>)> = of(Kind::Lock).collect();
        let mut proofs = vec![];
        for (view, bytes) in of(Kind::Admit).filter(|(view, _)| *view > 0) {
            let Ok(Message { body: Body::Admit(admit), .. }) = decode(&bytes, self.record.n()) else {
                continue;
            };
            let Some(proposal) = self.proposals.get(&admit.proposal) else { continue };
            let lower =
                locks.iter().filter(|(locked, _)| *locked < view).map(|(_, b)| Some(Signed(b.clone())));
            for lock in lower.chain([None]) {
                let (admit, proposal) = (Signed(bytes.clone()), Signed(proposal.clone()));
                proofs.push(FaultProof::AgainstLock(AgainstLock { admit, proposal, lock }));
            }
        }
        proofs
    }

    /// I6 for what seats show of each other: it holds, and is not against an honest seat.
    pub(super) fn check_evidence(&mut self, now: u64, by: u16, proof: &FaultProof) {
        match (self.verify)(proof, &self.record) {
            Verdict::Guilty { seats, fault } => {
                let round_is_synchronous = self.synchronous_from.is_some_and(|from| from == 0);
                for seat in seats.into_iter().filter(|s| self.is_honest(*s)).collect::<Vec<_>>() {
                    if fault != Fault::Absent || round_is_synchronous {
                        self.break_(now, "I6", format!("seat {by} proves {fault:?} of honest seat {seat}"));
                    }
                }
            }
            Verdict::Unproven(why) => {
                self.break_(now, "I6", format!("seat {by} shows a proof that is none: {why}"));
            }
        }
    }

    /// I20: whether two final sets or two certified roots leave at least f + 1 seats provably faulty. To be asked at the
    /// end of a run.
    pub fn check_accountability(&mut self, now: u64) {
        let split = |(_, seen): &(&u64, &super::Seen)| seen.commits.len() > 1 || seen.roots.len() > 1;
        let rounds: Vec<u64> = self.rounds.iter().filter(split).map(|(round, _)| *round).collect();
        for round in rounds {
            let found = self.provable.get(&round).map_or(0, |seats| seats.len());
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
    use crate::keys::{Keys, MockKeys, spec};
    use crate::mock::MockScheme;
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;
    use std::collections::BTreeSet;
    use vendue_auction_core::proof::verify_by;

    #[test]
    fn i20_a_split_round_with_too_few_culprits() {
        let keys = MockKeys::deal(&spec(4, crate::clock()), &mut ChaCha20Rng::seed_from_u64(1)).unwrap();
        let mut watch = Watch::new(keys.record(), verify_by::<MockScheme>);
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
