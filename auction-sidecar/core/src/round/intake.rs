//! What a round does with each message.
//!
//! Votes are taken in unchecked. Their messages are signed, so nobody speaks for another; the sum of a quorum is checked
//! before anything follows from it, and whoever spoils it is found then; from then on that seat's votes are checked at once.

use super::{Ballot, Round, RoundOutput, Subject};
use crate::award::Certificate;
use crate::clearing::Held;
use crate::crypto::Crypto;
use crate::drops::DropReason;
use crate::evidence::message_hash_by;
use crate::justify;
use crate::proof::Fault;
use crate::wire::{
    Admit, Admitted, AwardVote, Body, Cert, Commit, Fetch, Kind, Listed, Lock, Message, OpenShare, Reply,
    ShownSet, VoteWord, decode,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use vendue_market::{Digest, Order};

/// FETCH requests that one seat may make in one round.
const MAX_FETCHES: u32 = 64;

type Intake = Result<(), DropReason>;

impl<C: Crypto> Round<C> {
    pub(super) fn intake(
        &mut self,
        message: Message,
        d: Option<Digest>,
        bytes: Vec<u8>,
        out: &mut Vec<RoundOutput>,
    ) -> Intake {
        let Message { header, body, signature } = message;
        let seat = header.seat;
        let signature = || signature.ok_or(DropReason::Malformed);
        // Checking what a message rests on is costly. Whoever is proven to send what does not hold gets no second check.
        let is_costly =
            matches!(header.kind, Kind::Lock | Kind::Open | Kind::Commit | Kind::NewView | Kind::Propose);
        if is_costly && self.accused.contains(&(seat, Fault::Unjustified)) {
            return Err(DropReason::BadSignature);
        }
        if matches!(header.kind, Kind::NewView | Kind::Propose) {
            // They show SETs, and one that is held counts for checked.
            self.settle_sets(out);
        }
        match body {
            Body::Bundle(bundle) => {
                let d = d.unwrap_or_else(|| bundle.digest(&header));
                self.take_bundle(d, Held { header, bundle, bytes })
            }
            Body::Set(set) => self.take_set(ShownSet { seat, set, signature: signature()? }),
            Body::Admit(admit) => self.take_admit(seat, &admit),
            Body::Lock(lock) => self.take_lock(seat, &lock),
            Body::Open(open) => self.take_open(seat, open, out),
            Body::Commit(c) => match &self.commit {
                Some((set, _)) if *set == c.set => Err(DropReason::Duplicate),
                _ => self.take_commit(c.set, c.commit, out),
            },
            Body::Award(vote) => self.take_award(seat, &vote),
            Body::NewView(view) => self.take_new_view(&header, view, signature()?),
            Body::Propose(propose) => self.take_propose(&header, propose),
            Body::Cert(cert) => self.take_cert(cert),
            Body::Fetch(fetch) => self.serve(seat, &fetch, out),
            Body::Reply(Reply::TwoBundles { seat, versions }) => self.take_two_bundles(seat, versions, out),
            Body::Reply(reply) => self.take_reply(reply),
            _ => Err(DropReason::Unexpected),
        }
    }

    pub(super) fn take_orders(&mut self, orders: Vec<(Digest, Arc<Order>)>) {
        let known = self.orders.len();
        self.orders.extend(orders);
        self.learned = self.orders.len() != known;
    }

    /// Whether the last input was a message or an order that told this seat something: what it took, or keeps as evidence.
    /// Without the others the round goes as it goes with them.
    pub(crate) fn has_learned(&self) -> bool {
        self.learned
    }

    /// How much is known of all that a message may change although it is not taken.
    pub(super) fn known(&self) -> [usize; 9] {
        [
            self.bundles.len(),
            self.sets.len(),
            self.unchecked.len(),
            self.admits.len(),
            self.locks.len(),
            self.award_votes.len(),
            self.spoken.len(),
            self.accused.len(),
            usize::from(self.other_commit.is_some()),
        ]
    }

    /// The first bundle of a seat that arrives before T1 is listed; a second version is kept but never listed.
    fn take_bundle(&mut self, d: Digest, held: Held) -> Intake {
        let seat = held.header.seat;
        let listed = Listed { seat, d };
        if self.bundles.contains_key(&listed) {
            return Err(DropReason::Duplicate);
        }
        let versions = self.bundles.keys().filter(|l| l.seat == seat).count();
        if versions >= 2 {
            return Err(DropReason::Conflict);
        }
        self.bundles.insert(listed, held);
        if versions > 0 {
            return Err(DropReason::Conflict);
        }
        if self.now >= self.record.params.t1(self.round) {
            return Err(DropReason::Late);
        }
        self.in_time.insert(seat, d);
        Ok(())
    }

    fn take_set(&mut self, shown: ShownSet) -> Intake {
        if let Some(known) = self.sets.get(&shown.seat) {
            return Err(if known.set == shown.set { DropReason::Duplicate } else { DropReason::Conflict });
        }
        if self.is_suspect(shown.seat) && !justify::full(&self.checks(), self.round, shown.seat, &shown.set) {
            return Err(DropReason::BadSignature);
        }
        self.count_full(&shown);
        if shown.set.full.is_some() {
            self.unchecked.insert(shown.seat);
        }
        self.sets.insert(shown.seat, shown);
        Ok(())
    }

    /// Counts the FULL vote of a SET.
    pub(super) fn count_full(&mut self, shown: &ShownSet) {
        if let Some(full) = shown.set.full {
            let digest = self.digest_of(&shown.set.held);
            self.fulls.entry(digest).or_default().insert(shown.seat, full);
        }
    }

    /// Whether a seat's vote is new; a second one for something else contradicts it.
    fn is_new<K: Ord>(ballots: &BTreeMap<K, Ballot>, key: K, new: &Ballot) -> Intake {
        match ballots.get(&key) {
            None => Ok(()),
            Some(known) if (known.set, known.proposal) == (new.set, new.proposal) => {
                Err(DropReason::Duplicate)
            }
            Some(_) => Err(DropReason::Conflict),
        }
    }

    /// Whether a seat was proven to send what does not hold: its votes are looked at when they come in.
    fn is_suspect(&self, seat: u16) -> bool {
        self.accused.contains(&(seat, Fault::Unjustified))
    }

    fn check_if_suspect(&self, seat: u16, word: VoteWord, view: u32, ballot: &Ballot) -> Intake {
        let message = || self.vote_message(word, view, &ballot.set);
        if self.is_suspect(seat) && !self.crypto.verify_vote(seat, &message(), &ballot.vote) {
            return Err(DropReason::BadSignature);
        }
        Ok(())
    }

    fn take_admit(&mut self, seat: u16, admit: &Admit) -> Intake {
        let Admit { view, set, proposal, vote } = *admit;
        if view > self.record.params.last_view() || (view == 0 && proposal != [0; 32]) {
            return Err(DropReason::Unexpected);
        }
        let ballot = Ballot { set, proposal, vote };
        Self::is_new(&self.admits, (view, seat), &ballot)?;
        self.check_if_suspect(seat, VoteWord::Admit, view, &ballot)?;
        self.admits.insert((view, seat), ballot);
        Ok(())
    }

    fn take_lock(&mut self, seat: u16, lock: &Lock) -> Intake {
        let Lock { view, set, vote, .. } = *lock;
        if view > self.record.params.last_view() {
            return Err(DropReason::Unexpected);
        }
        let ballot = Ballot { set, proposal: [0; 32], vote };
        Self::is_new(&self.locks, (view, seat), &ballot)?;
        if !self.admit_quorums.contains_key(&(view, set)) {
            let admitted = Admitted { view, set, quorum: lock.quorum.clone() };
            if !justify::admitted(&self.checks(), self.round, &admitted) {
                return Err(DropReason::BadSignature);
            }
            self.admit_quorums.insert((view, set), admitted.quorum);
        }
        self.locks.insert((view, seat), ballot);
        Ok(())
    }

    /// Takes up a commit that is new, if it proves itself.
    pub(super) fn take_commit(&mut self, set: Digest, commit: Commit, out: &mut Vec<RoundOutput>) -> Intake {
        match &self.commit {
            Some((known, _)) if *known == set => Ok(()),
            Some(_) if self.other_commit.is_some() => Err(DropReason::Conflict),
            Some(_) => {
                let proven = justify::commit(&self.checks(), self.round, &set, &commit);
                self.other_commit = proven.then_some((set, commit));
                Err(if proven { DropReason::Conflict } else { DropReason::BadSignature })
            }
            None if justify::commit(&self.checks(), self.round, &set, &commit) => {
                self.adopt_commit(set, commit, out);
                Ok(())
            }
            None => Err(DropReason::BadSignature),
        }
    }

    fn take_open(&mut self, seat: u16, open: OpenShare, out: &mut Vec<RoundOutput>) -> Intake {
        if self.subject == Subject::Keys {
            return Err(DropReason::Unexpected);
        }
        if let Some(known) = self.opens.get(&seat) {
            return Err(if *known == open.share { DropReason::Duplicate } else { DropReason::Conflict });
        }
        if self.bad_openers.contains(&seat) {
            return Err(DropReason::BadSignature);
        }
        self.take_commit(open.set, open.commit, out)?;
        self.opens.insert(seat, open.share);
        Ok(())
    }

    fn take_award(&mut self, seat: u16, vote: &AwardVote) -> Intake {
        let ballot = Ballot { set: vote.root, proposal: [0; 32], vote: vote.vote };
        Self::is_new(&self.award_votes, seat, &ballot)?;
        self.check_if_suspect(seat, VoteWord::Award, 0, &ballot)?;
        self.award_votes.insert(seat, ballot);
        Ok(())
    }

    fn take_cert(&mut self, cert: Cert) -> Intake {
        if self.certificate.is_some() {
            return Err(DropReason::Duplicate);
        }
        let seats: Vec<u16> = cert.quorum.signers.iter().collect();
        let message = self.vote_message(VoteWord::Award, 0, &cert.root);
        let enough = seats.len() >= self.q();
        if !enough || !self.crypto.verify_aggregate(&seats, &message, &cert.quorum.aggregate) {
            return Err(DropReason::BadSignature);
        }
        self.certificate = Some(self.certificate_of(cert.root, cert.quorum));
        Ok(())
    }

    pub(super) fn certificate_of(&self, root: Digest, quorum: crate::wire::Quorum) -> Certificate {
        let r = &self.record;
        Certificate { market: r.market, epoch: r.epoch, round: self.round, root, quorum }
    }

    /// Answers a FETCH for bundles or the admitted list.
    fn serve(&mut self, seat: u16, fetch: &Fetch, out: &mut Vec<RoundOutput>) -> Intake {
        let used = self.fetches.entry(seat).or_default();
        if *used >= MAX_FETCHES {
            return Err(DropReason::Quota);
        }
        *used += 1;
        let mut reply = |round: &Self, reply: Reply| {
            let bytes = round.encode(Body::Reply(reply)).1;
            out.push(RoundOutput::Send { to: seat, bytes });
        };
        match fetch {
            Fetch::Bundles(items) => {
                let known = items.iter().filter(|listed| self.may_show(listed));
                for held in known.filter_map(|listed| self.bundles.get(listed)) {
                    reply(self, Reply::Bundle(held.bytes.clone()));
                }
                // Who asks for none asks what became of the round.
                if items.is_empty() {
                    self.help(seat, out);
                }
            }
            Fetch::Set(digest) => {
                if let Some(list) = self.find_list(digest) {
                    reply(self, Reply::Set(list));
                }
            }
            Fetch::Orders(_) | Fetch::Proof(_) | Fetch::Dealings(_) => return Err(DropReason::Unexpected),
        }
        Ok(())
    }

    /// Whether a bundle may be given to who asks. The own one may have been too late to leave: it is shown only where
    /// somebody else has listed it, for else it would be evidence of a bundle that came late.
    fn may_show(&self, listed: &Listed) -> bool {
        let lists = |(owner, shown): (&u16, &ShownSet)| {
            *owner != self.index && shown.set.held.get(usize::from(self.index)) == Some(&listed.d)
        };
        let admitted = || self.list.as_ref().is_some_and(|list| list.contains(listed));
        listed.seat != self.index || self.sets.iter().any(lists) || admitted()
    }

    /// Takes data that this seat asked for; it proves itself by digest.
    fn take_reply(&mut self, reply: Reply) -> Intake {
        match reply {
            Reply::Bundle(bytes) => self.take_fetched_bundle(bytes),
            Reply::Set(list) => {
                let wanted = self.commit.as_ref().map(|(set, _)| *set).filter(|_| self.list.is_none());
                if wanted != Some(self.set_digest(&list)) {
                    return Err(DropReason::Unexpected);
                }
                self.list = Some(list);
                Ok(())
            }
            Reply::Order(_) | Reply::TwoBundles { .. } | Reply::Dealing(_) => Err(DropReason::Unexpected),
        }
    }

    fn take_fetched_bundle(&mut self, bytes: Vec<u8>) -> Intake {
        let message = decode(&bytes, self.record.n()).map_err(|_| DropReason::Malformed)?;
        let (header, Body::Bundle(bundle), Some(signature)) =
            (message.header, message.body, message.signature)
        else {
            return Err(DropReason::Unexpected);
        };
        let listed = Listed { seat: header.seat, d: bundle.digest(&header) };
        let wanted = self.list.as_ref().is_some_and(|list| list.contains(&listed));
        if !wanted || self.bundles.contains_key(&listed) {
            return Err(DropReason::Unexpected);
        }
        // The digest alone says that this is what was listed; the signature makes it the seat's own word.
        let body = Body::Bundle(bundle.clone());
        let hash = message_hash_by::<C::Scheme>(&self.record.market, &header, &body);
        let key = self.record.seat(header.seat).map(|s| s.evidence_key).ok_or(DropReason::WrongSender)?;
        if !self.crypto.verify(&hash, &signature, &key) {
            return Err(DropReason::BadSignature);
        }
        self.bundles.insert(listed, Held { header, bundle, bytes });
        Ok(())
    }
}
