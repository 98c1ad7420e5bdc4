//! What a round keeps as evidence, and the fault proofs that it makes of it.
//!
//! Kept are the first vote of each seat and view, the first share and award vote, at most two versions of a bundle, and
//! of the current view the first NEWVIEW of each seat as far as there is room; a second version of anything else becomes
//! a proof at once. Each seat is accused of each fault once in a round, and only by a proof that was verified. Two
//! versions of a bundle are passed on, once, so that who holds one can prove it too.

use super::{Ballot, Round, RoundOutput};
use crate::award::{CertificateFile, Leaf};
use crate::clearing::Held;
use crate::crypto::Crypto;
use crate::drops::DropReason;
use crate::merkle::HexDigest;
use crate::proof::Ballot as Vote;
use crate::proof::{
    Absence, Accused, AgainstLock, BadMessage, BundleHead, Double, Fault, FaultProof, Garbage, HiddenSet,
    OwnSet, Signed, SignedBundle, TwoVotes, Verdict, Voted, WrongAward, place, speaks_against, verify_by,
};
use crate::wire::{
    Body, Commit, Header, Kind, Listed, Message, NewView, Propose, Quorum, Reply, ShownSet, Signers, VoteWord,
};
use vendue_market::Digest;

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
    /// Looks at a message before it is taken in.
    pub(super) fn look(message: &Message, bytes: Vec<u8>) -> Seen {
        let place = place(&message.body);
        Seen {
            header: message.header,
            view: place.map_or(0, |(view, _)| view),
            fault: place.map(|(_, fault)| fault),
            bytes,
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
                if matches!(kind, Kind::Set | Kind::Commit | Kind::Open | Kind::NewView | Kind::Propose) {
                    self.accuse_by_full_votes(out);
                    self.accuse_hidden_sets(out);
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
                if matches!(kind, Kind::Commit | Kind::Open) {
                    self.accuse_two_votes(out);
                    self.accuse_by_full_votes(out);
                    self.accuse_hidden_sets(out);
                }
            }
            Err(DropReason::BadSignature) if kind.is_signed() && kind != Kind::Bundle => {
                let bad = BadMessage { message: Signed(bytes) };
                self.accuse(seat, Fault::Unjustified, || FaultProof::BadMessage(bad), out);
                // Who brings a SET that its owner did not sign cannot be convicted of it, but is not listened to again.
                if kind == Kind::NewView {
                    self.accused.insert((seat, Fault::Unjustified));
                }
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

    /// Keeps the NEWVIEWs of a proposal that lack their sender's SET as the messages that they were. Where more than two SETs
    /// of one owner are about, some stand in a proposal by their hash only, and the message is not to be had from it.
    pub(super) fn keep_bare_views(&mut self, header: &Header, propose: &Propose) {
        for shown in &propose.views {
            let sets: Vec<ShownSet> =
                shown.sets.iter().filter_map(|at| propose.sets.get(usize::from(*at)).cloned()).collect();
            if !shown.others.is_empty() || sets.iter().any(|s| s.seat == shown.seat) {
                continue;
            }
            let body = Body::NewView(NewView { view: propose.view, admitted: shown.admitted.clone(), sets });
            let header = Header { kind: Kind::NewView, seat: shown.seat, ..*header };
            let bytes = Message { header, body, signature: Some(shown.signature) }.encode();
            if self.has_room_for(bytes.len()) {
                self.bare.insert((propose.view, shown.seat));
                self.spoken.entry((Kind::NewView, propose.view, shown.seat)).or_insert(bytes);
            }
        }
    }

    /// What all seats voted FULL for, with their aggregate.
    fn full_votes(&self) -> Option<(Digest, [u8; 48])> {
        let mut commits = [&self.commit, &self.other_commit].into_iter().flatten();
        commits.find_map(|(set, commit)| Some((*set, fast(commit)?)))
    }

    /// With the FULL votes of all: accuses the seats whose SET is another one.
    fn accuse_by_full_votes(&mut self, out: &mut Vec<RoundOutput>) {
        let Some((digest, aggregate)) = self.full_votes() else { return };
        let voted = self.fulls.get(&digest);
        let others = self.sets.values().filter(|s| voted.is_none_or(|voted| !voted.contains_key(&s.seat)));
        let others: Vec<(u16, Vec<u8>)> = others.map(|s| (s.seat, self.set_bytes(s))).collect();
        let quorum = Quorum { signers: Signers::all(self.record.n()), aggregate };
        for (seat, bytes) in others {
            let first = Voted::Message(Signed(bytes));
            let second = Voted::quorum(Vote::Full, self.round, 0, digest, &quorum);
            self.accuse(seat, Fault::TwoSets, || FaultProof::TwoVotes(TwoVotes { first, second }), out);
        }
    }

    /// Accuses the seats whose NEWVIEW leaves out a SET that they signed.
    fn accuse_hidden_sets(&mut self, out: &mut Vec<RoundOutput>) {
        let full = self.full_votes().map(|(digest, aggregate)| OwnSet::Full { digest, aggregate });
        let mut found = vec![];
        for (view, seat) in &self.bare {
            if self.accused.contains(&(*seat, Fault::HiddenSet)) {
                continue;
            }
            let own = self.sets.get(seat).map(|shown| OwnSet::Message(Signed(self.set_bytes(shown))));
            let bytes = self.spoken.get(&(Kind::NewView, *view, *seat));
            if let (Some(set), Some(bytes)) = (own.or_else(|| full.clone()), bytes) {
                found.push((*seat, HiddenSet { view: Signed(bytes.clone()), set }));
            }
        }
        for (seat, proof) in found {
            self.accuse(seat, Fault::HiddenSet, || FaultProof::HiddenSet(proof), out);
        }
    }

    fn has_room_for(&self, bytes: usize) -> bool {
        let kept = self.spoken.iter().filter(|((kind, _, _), _)| *kind == Kind::NewView);
        kept.map(|(_, bytes)| bytes.len()).sum::<usize>() + bytes <= MAX_VIEW_BYTES
    }

    /// Tells the others of two bundles of one seat: each of them may hold one only. What the seat signed is enough; the
    /// bundles themselves may be large.
    fn forward_two_bundles(&mut self, seat: u16, out: &mut Vec<RoundOutput>) {
        if !self.accuse_two_bundles(seat, out) {
            return;
        }
        if let Some(versions) = self.two_bundles(seat).map(|two| two.map(|b| (b.d, b.signature))) {
            let (_, bytes) = self.encode(Body::Reply(Reply::TwoBundles { seat, versions }));
            out.push(RoundOutput::Broadcast(bytes));
        }
    }

    /// Takes the word of a seat's two bundles from another seat.
    pub(super) fn take_two_bundles(
        &mut self,
        seat: u16,
        versions: [(Digest, [u8; 65]); 2],
        out: &mut Vec<RoundOutput>,
    ) -> Result<(), DropReason> {
        if self.accused.contains(&(seat, Fault::TwoBundles)) {
            return Err(DropReason::Duplicate);
        }
        let [first, second] = versions.map(|(d, signature)| SignedBundle { d, signature });
        let double = Double::Bundles { seat, round: self.round, first, second };
        let proven = self.accuse(seat, Fault::TwoBundles, || FaultProof::Double(double), out);
        if proven { Ok(()) } else { Err(DropReason::BadSignature) }
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

    /// The signed digests of two bundles of a seat, ascending, if two are held.
    fn two_bundles(&self, seat: u16) -> Option<[SignedBundle; 2]> {
        let of = |held: &Held| {
            let tail = held.bytes.len().checked_sub(crate::wire::SIGNATURE_LEN)?;
            let signature = held.bytes.get(tail..)?.try_into().ok()?;
            Some(SignedBundle { d: held.bundle.digest(&held.header), signature })
        };
        let versions = self.bundles.range(Listed { seat, d: [0; 32] }..=Listed { seat, d: [255; 32] });
        let mut versions = versions.filter_map(|(_, held)| of(held));
        Some([versions.next()?, versions.next()?])
    }

    /// Says whether there was anything new to tell.
    fn accuse_two_bundles(&mut self, seat: u16, out: &mut Vec<RoundOutput>) -> bool {
        let Some([first, second]) = self.two_bundles(seat) else { return false };
        let double = Double::Bundles { seat, round: self.round, first, second };
        self.accuse(seat, Fault::TwoBundles, || FaultProof::Double(double), out)
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
        let other_locks = match &self.other_commit {
            Some((set, Commit::Locked { view, quorum })) => Some((Vote::Lock, *view, *set, quorum)),
            _ => None,
        };
        let awards = self.certificate.as_ref().map(|c| (Vote::Award, 0, c.root, &c.quorum));
        let mut found = vec![];
        for (ballot, view, digest, quorum) in admits.chain(locks).chain(other_locks).chain(awards) {
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

    /// Accuses the seats that voted for other awards than those that follow. This comes after the certificate, or else after
    /// the votes: judging a proof opens and clears the round again, and nobody is to wait for that. It is done for the first
    /// such vote; proofs against others differ in the vote only, whose signature was checked when it came in.
    pub(super) fn accuse_wrong_awards(&mut self, out: &mut Vec<RoundOutput>) {
        let due = self.certificate.is_some() || self.now >= self.record.params.x(self.round);
        let Some(root) = self.result.as_ref().map(|r| r.root).filter(|_| due) else { return };
        let open = |(seat, ballot): &(&u16, &Ballot)| {
            let known = self.accused.contains(&(**seat, Fault::WrongAward));
            ballot.set != root && **seat != self.index && !known
        };
        let wrong: Vec<u16> = self.award_votes.iter().filter(open).map(|(seat, _)| *seat).collect();
        for seat in wrong {
            let proof = self.wrong_award(seat).map(|p| FaultProof::WrongAward(Box::new(p)));
            let judged = self.judged_awards;
            // Whatever comes of it, once is enough.
            let is_new = self.accused.insert((seat, Fault::WrongAward));
            let Some(proof) = proof.filter(|_| is_new) else { continue };
            let guilty =
                |proof| matches!(verify_by::<C::Scheme>(proof, &self.record), Verdict::Guilty { .. });
            if judged.unwrap_or_else(|| guilty(&proof)) {
                self.judged_awards = Some(true);
                out.push(RoundOutput::Evidence(Box::new(proof)));
            } else {
                self.judged_awards = Some(false);
            }
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
            orders: candidates
                .iter()
                .map(|d| Some(self.orders.get(d)?.as_ref().clone()))
                .collect::<Option<_>>()?,
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

/// The aggregate of a fast commit.
fn fast(commit: &Commit) -> Option<[u8; 48]> {
    match commit {
        Commit::Fast { aggregate } => Some(*aggregate),
        Commit::Locked { .. } => None,
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
