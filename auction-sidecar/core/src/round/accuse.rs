//! What a round keeps as evidence, and the fault proofs that it makes of it.
//!
//! Kept are the first vote of each seat and view, the first share and award vote, at most two versions of a bundle, and
//! of the current view the first NEWVIEW of each seat as far as there is room; a second version of anything else becomes
//! a proof at once. Each seat is accused of each fault once in a round, and only by a proof that was verified. Two
//! versions of a bundle are passed on, once, so that who holds one can prove it too.

use super::{Round, RoundOutput};
use crate::award::{CertificateFile, Leaf};
use crate::clearing::Held;
use crate::crypto::Crypto;
use crate::drops::DropReason;
use crate::merkle::HexDigest;
use crate::proof::Ballot as Vote;
use crate::proof::{
    Absence, Accused, AgainstLock, BadMessage, BundleHead, Double, Fault, FaultProof, Garbage, Signed,
    SignedBundle, TwoVotes, Verdict, Voted, WrongAward, place, speaks_against, verify_by,
};
use crate::wire::{Body, Commit, Header, Kind, Listed, Message, Reply, ShownSet, VoteWord};

/// What is remembered of a message while it is taken in.
pub(super) struct Seen {
    header: Header,
    view: u32,
    fault: Option<Fault>,
    bytes: Vec<u8>,
}

/// Kinds whose first message of a seat is kept.
fn is_kept(kind: Kind) -> bool {
    matches!(kind, Kind::Admit | Kind::Lock | Kind::Open | Kind::Award | Kind::Propose | Kind::NewView)
}

/// Most bytes of NEWVIEWs that are kept, each of which shows a SET of every seat. Of who comes when this is used up, a
/// second one is dropped and proves nothing.
const MAX_VIEW_BYTES: usize = 4 << 20;

impl<C: Crypto> Round<C> {
    /// Looks at a message before it is taken in. Bundles keep their bytes themselves.
    pub(super) fn look(message: &Message, bytes: &[u8]) -> Seen {
        let place = place(&message.body);
        let keep = message.header.kind != Kind::Bundle && message.header.kind.is_signed();
        Seen {
            header: message.header,
            view: place.map_or(0, |(view, _)| view),
            fault: place.map(|(_, fault)| fault),
            bytes: if keep { bytes.to_vec() } else { vec![] },
        }
    }

    /// Draws the conclusions from how a message was taken in.
    pub(super) fn conclude(&mut self, seen: Seen, taken: Result<(), DropReason>, out: &mut Vec<RoundOutput>) {
        let Seen { header, view, fault, bytes } = seen;
        let (kind, seat) = (header.kind, header.seat);
        match taken {
            Ok(()) => {
                if is_kept(kind) && (kind != Kind::NewView || self.has_room_for(bytes.len())) {
                    self.spoken.entry((kind, view, seat)).or_insert(bytes);
                }
                match kind {
                    Kind::Admit | Kind::Lock => self.accuse_against_lock(seat, out),
                    Kind::Propose => (0..self.record.n()).for_each(|s| self.accuse_against_lock(s, out)),
                    Kind::Reply => {
                        for seat in 0..self.record.n() {
                            self.accuse_two_bundles(seat, out);
                        }
                    }
                    _ => {}
                }
                if kind != Kind::Set && kind != Kind::Bundle {
                    self.accuse_two_votes(out);
                }
            }
            Err(DropReason::Conflict) if kind == Kind::Bundle => self.forward_two_bundles(seat, out),
            Err(DropReason::Conflict) => {
                let known = match kind {
                    Kind::Set => self.sets.get(&seat).map(|shown| self.set_bytes(shown)),
                    kind => self.spoken.get(&(kind, view, seat)).cloned(),
                };
                if let (Some(first), Some(fault)) = (known, fault) {
                    let double = Double::Messages { first: Signed(first), second: Signed(bytes) };
                    self.accuse(seat, fault, || FaultProof::Double(double), out);
                }
            }
            Err(DropReason::BadSignature) if kind.is_signed() && kind != Kind::Bundle => {
                let bad = BadMessage { message: Signed(bytes) };
                self.accuse(seat, Fault::Unjustified, || FaultProof::BadMessage(bad), out);
            }
            Err(_) => {}
        }
        for second in std::mem::take(&mut self.other_sets) {
            let Some(first) = self.sets.get(&second.seat) else { continue };
            let (first, bytes) = (Signed(self.set_bytes(first)), Signed(self.set_bytes(&second)));
            let double = Double::Messages { first, second: bytes };
            self.accuse(second.seat, Fault::TwoSets, || FaultProof::Double(double), out);
        }
    }

    /// Accuses a seat once of each fault, if the proof holds. Says whether it did.
    fn accuse(
        &mut self,
        seat: u16,
        fault: Fault,
        proof: impl FnOnce() -> FaultProof,
        out: &mut Vec<RoundOutput>,
    ) -> bool {
        if seat == self.index || self.accused.contains(&(seat, fault)) {
            return false;
        }
        let proof = proof();
        let Verdict::Guilty { fault: proven, .. } = verify_by::<C::Scheme>(&proof, &self.record) else {
            return false;
        };
        self.accused.insert((seat, fault));
        let is_new = self.accused.insert((seat, proven)) || proven == fault;
        if is_new {
            out.push(RoundOutput::Evidence(Box::new(proof)));
        }
        is_new
    }

    fn has_room_for(&self, bytes: usize) -> bool {
        let kept = self.spoken.iter().filter(|((kind, _, _), _)| *kind == Kind::NewView);
        kept.map(|(_, bytes)| bytes.len()).sum::<usize>() + bytes <= MAX_VIEW_BYTES
    }

    /// Passes two bundles of one seat on: whoever holds one of them has the proof with the other.
    fn forward_two_bundles(&mut self, seat: u16, out: &mut Vec<RoundOutput>) {
        if !self.accuse_two_bundles(seat, out) {
            return;
        }
        let versions = self.bundles.range(Listed { seat, d: [0; 32] }..=Listed { seat, d: [255; 32] });
        for (_, held) in versions {
            let (_, bytes) = self.encode(Body::Reply(Reply::Bundle(held.bytes.clone())));
            out.push(RoundOutput::Broadcast(bytes));
        }
    }

    /// Accuses the seat of a vote that does not verify.
    pub(super) fn refuse_vote(&mut self, seat: u16, bytes: Option<Vec<u8>>, out: &mut Vec<RoundOutput>) {
        if let Some(bytes) = bytes {
            let bad = BadMessage { message: Signed(bytes) };
            self.accuse(seat, Fault::Unjustified, || FaultProof::BadMessage(bad), out);
        }
        out.push(RoundOutput::Dropped(DropReason::BadSignature));
    }

    /// The message of a SET that is shown.
    pub(super) fn set_bytes(&self, shown: &ShownSet) -> Vec<u8> {
        let body = Body::Set(shown.set.clone());
        let header = Header { seat: shown.seat, ..self.header(&body) };
        Message { header, body, signature: Some(shown.signature) }.encode()
    }

    /// Says whether there was anything new to tell.
    fn accuse_two_bundles(&mut self, seat: u16, out: &mut Vec<RoundOutput>) -> bool {
        let of = |held: &Held| {
            let tail = held.bytes.len().checked_sub(crate::wire::SIGNATURE_LEN)?;
            let signature = held.bytes.get(tail..)?.try_into().ok()?;
            Some(SignedBundle { d: held.bundle.digest(&held.header), signature })
        };
        let versions = self.bundles.range(Listed { seat, d: [0; 32] }..=Listed { seat, d: [255; 32] });
        let mut versions = versions.filter_map(|(_, held)| of(held));
        if let (Some(first), Some(second)) = (versions.next(), versions.next()) {
            drop(versions);
            let double = Double::Bundles { seat, round: self.round, first, second };
            return self.accuse(seat, Fault::TwoBundles, || FaultProof::Double(double), out);
        }
        false
    }

    /// Accuses a seat whose ADMIT contradicts a lock of its own that no later quorum lifted.
    fn accuse_against_lock(&mut self, seat: u16, out: &mut Vec<RoundOutput>) {
        let mut found = None;
        for ((view, _), ballot) in self.admits.iter().filter(|((view, s), _)| *s == seat && *view > 0) {
            let Some(proposal) = self.proposals.get(view).filter(|p| p.digest == ballot.proposal) else {
                continue;
            };
            let against = self.locks.range(..(*view, 0)).find(|((locked, s), lock)| {
                *s == seat && lock.set != ballot.set && proposal.from.is_none_or(|from| from <= *locked)
            });
            // A vote for another set than the proposal's needs no lock to be wrong.
            let (wrong, lock) = (ballot.set != proposal.set, against.map(|((locked, _), _)| *locked));
            if wrong || lock.is_some() {
                found = Some((*view, lock.filter(|_| !wrong)));
            }
        }
        let Some((view, locked)) = found else { return };
        let proposer = crate::justify::proposer(&self.record, self.round, view);
        let kept = |kind, view, seat| self.spoken.get(&(kind, view, seat)).cloned().map(Signed);
        let (admit, proposal) = (kept(Kind::Admit, view, seat), kept(Kind::Propose, view, proposer));
        let lock = locked.and_then(|locked| kept(Kind::Lock, locked, seat));
        if let (Some(admit), Some(proposal)) = (admit, proposal) {
            let proof = AgainstLock { admit, proposal, lock };
            self.accuse(seat, Fault::AgainstLock, || FaultProof::AgainstLock(proof), out);
        }
    }

    /// Accuses the seats whose message says one thing and whose vote in a quorum another.
    fn accuse_two_votes(&mut self, out: &mut Vec<RoundOutput>) {
        let round = self.round;
        let admits = self.admit_quorums.iter().map(|((view, set), q)| (Vote::Admit, *view, *set, q));
        let locks = match &self.commit {
            Some((set, Commit::Locked { view, quorum })) => Some((Vote::Lock, *view, *set, quorum)),
            _ => None,
        };
        let awards = self.certificate.as_ref().map(|c| (Vote::Award, 0, c.root, &c.quorum));
        let mut found = vec![];
        for (ballot, view, digest, quorum) in admits.chain(locks).chain(awards) {
            for seat in quorum.signers.iter() {
                let (kind, said) = match ballot {
                    Vote::Lock => (Kind::Lock, self.locks.get(&(view, seat))),
                    Vote::Award => (Kind::Award, self.award_votes.get(&seat)),
                    _ => (Kind::Admit, self.admits.get(&(view, seat))),
                };
                let other = said.is_some_and(|said| said.set != digest);
                if let (true, Some(said), Some(bytes)) = (other, said, self.spoken.get(&(kind, view, seat))) {
                    let first = Voted::Message(Signed(bytes.clone()));
                    let second = Voted::quorum(ballot, round, view, digest, quorum);
                    found.push((seat, ballot, view, *said, TwoVotes { first, second }));
                }
            }
        }
        for (seat, ballot, view, said, proof) in found {
            let (word, fault) = match ballot {
                Vote::Lock => (VoteWord::Lock, Fault::TwoVotes),
                Vote::Award => (VoteWord::Award, Fault::TwoAwards),
                _ => (VoteWord::Admit, Fault::TwoVotes),
            };
            if self.accused.contains(&(seat, fault)) {
                continue;
            }
            // What proves nothing must not be looked at with every message: a vote that does not verify goes.
            let message = self.vote_message(word, view, &said.set);
            if self.crypto.verify_vote(seat, &message, &said.vote) {
                self.accuse(seat, fault, || FaultProof::TwoVotes(proof), out);
            } else {
                self.throw_out(word, view, seat, out);
            }
        }
    }

    /// Accuses a seat whose share is not its own.
    pub(super) fn accuse_bad_share(&mut self, seat: u16, out: &mut Vec<RoundOutput>) {
        if let Some(bytes) = self.spoken.get(&(Kind::Open, 0, seat)).cloned() {
            let bad = BadMessage { message: Signed(bytes) };
            self.accuse(seat, Fault::BadShare, || FaultProof::BadMessage(bad), out);
        }
    }

    /// Accuses the seats that voted for other awards than those that follow.
    pub(super) fn accuse_wrong_awards(&mut self, out: &mut Vec<RoundOutput>) {
        let Some(root) = self.result.as_ref().map(|r| r.root) else { return };
        let wrong: Vec<u16> =
            self.award_votes.iter().filter(|(_, b)| b.set != root).map(|(seat, _)| *seat).collect();
        for seat in wrong {
            if self.accused.contains(&(seat, Fault::WrongAward)) {
                continue;
            }
            if let Some(proof) = self.wrong_award(seat) {
                self.accuse(seat, Fault::WrongAward, || FaultProof::WrongAward(Box::new(proof)), out);
            }
            // Clearing again is costly: whatever came of it, once is enough.
            self.accused.insert((seat, Fault::WrongAward));
        }
    }

    fn wrong_award(&self, seat: u16) -> Option<WrongAward> {
        let (set, _) = self.commit.as_ref()?;
        let list = self.find_list(set)?;
        let own = |kind| self.sent.iter().find(|(h, _)| h.kind == kind).map(|(_, bytes)| bytes.clone());
        let bundles = list.iter().map(|l| Some(Signed(self.bundles.get(l)?.bytes.clone())));
        let candidates = self.clearing(*set, &list).candidates();
        Some(WrongAward {
            accused: Accused::Message(Signed(self.spoken.get(&(Kind::Award, 0, seat))?.clone())),
            commit: Signed(own(Kind::Open).or_else(|| own(Kind::Commit))?),
            combined: self.crypto.combined(self.opened.as_ref()?),
            bundles: bundles.collect::<Option<_>>()?,
            orders: candidates.iter().map(|d| Some(self.orders.get(d)?.as_ref().clone())).collect::<Option<_>>()?,
            admitted: list,
        })
    }

    /// With the certificate: accuses the senders of garbage, and those whose bundles too few got.
    pub(super) fn accuse_by_certificate(&mut self, out: &mut Vec<RoundOutput>) {
        let (Some(certificate), Some(result), Some((set, _))) =
            (&self.certificate, &self.result, &self.commit)
        else {
            return;
        };
        let Some(list) = self.find_list(set) else { return };
        let certificate = CertificateFile::from(certificate);
        let mut proofs = vec![];
        for (index, leaf) in result.table.leaves.iter().enumerate() {
            let Leaf::Garbage(bundle) = leaf else { continue };
            if let Some(path) = result.tree.path(index) {
                let proof = Garbage { certificate: certificate.clone(), bundle: *bundle, path };
                proofs.push((bundle.seat, Fault::Garbage, FaultProof::Garbage(proof)));
            }
        }
        let left_out: Vec<_> = self.bundles.iter().filter(|(l, _)| !list.contains(l)).collect();
        // The set is the first leaf.
        let path = if left_out.is_empty() { None } else { result.tree.path(0) };
        for (listed, held) in left_out {
            let against = |s: &&ShownSet| speaks_against(&self.record, listed, &s.set.held, &list);
            let sets: Vec<Signed> = self
                .sets
                .values()
                .filter(against)
                .take(self.f() + 1)
                .map(|s| Signed(self.set_bytes(s)))
                .collect();
            let (Some(bundle), Some(path)) = (head(held), path.clone()) else { continue };
            let (certificate, admitted) = (certificate.clone(), list.clone());
            let proof = Absence { bundle, sets, certificate, path, admitted };
            proofs.push((listed.seat, Fault::Absent, FaultProof::Absence(Box::new(proof))));
        }
        for (seat, fault, proof) in proofs {
            self.accuse(seat, fault, || proof, out);
        }
    }
}

/// A bundle without its payload.
fn head(held: &Held) -> Option<BundleHead> {
    let tail = held.bytes.len().checked_sub(crate::wire::SIGNATURE_LEN)?;
    Some(BundleHead {
        seat: held.header.seat,
        order_view: held.bundle.order_view.iter().map(|d| HexDigest(*d)).collect(),
        u: held.bundle.u,
        v: held.bundle.v,
        payload: held.bundle.payload_digest(),
        signature: held.bytes.get(tail..)?.try_into().ok()?,
    })
}
