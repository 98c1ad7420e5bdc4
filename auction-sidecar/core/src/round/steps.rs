//! The steps up to the commit: bundle, set, admit, lock, commit, open; and sending again.

use super::{Ballot, Bidding, KeyStep, Round, RoundOutput, Subject};
use crate::bid::LocalBids;
use crate::clearing::{Held, seal_header};
use crate::crypto::Crypto;
use crate::evidence::bundle_hash_by;
use crate::justify;
use crate::log::LogRecord;
use crate::wire::{
    Body, Bundle, Commit, CommitMsg, Fetch, Kind, Listed, Lock, MAX_PAYLOAD, Message, OpenShare, Quorum,
    SetMsg, ShownSet, Signers, View, VoteWord, listed_of,
};
use std::collections::{BTreeMap, BTreeSet};
use vendue_market::Digest;

impl<C: Crypto> Round<C> {
    /// Asks for bids at T0.
    pub(super) fn ask_for_bids(&mut self, out: &mut Vec<RoundOutput>) {
        let p = &self.record.params;
        if self.bidding != Bidding::Waiting || self.now < p.t0(self.round) {
            return;
        }
        if self.now >= p.t1(self.round) {
            self.bidding = Bidding::TooLate;
        } else {
            self.bidding = Bidding::Asked;
            out.push(match self.subject {
                Subject::Auction => RoundOutput::NeedBids { deadline_ms: p.t1(self.round) },
                Subject::Keys => RoundOutput::Keys(KeyStep::NeedContribution),
            });
        }
    }

    /// Seals this seat's bids and sends the bundle, once.
    pub(super) fn send_bundle(&mut self, bids: &LocalBids, out: &mut Vec<RoundOutput>) {
        if self.bidding != Bidding::Asked || self.subject != Subject::Auction {
            return;
        }
        self.bidding = Bidding::Sent;
        let order_view: View = bids.records.iter().map(|r| r.order).collect::<Vec<_>>().into();
        let plaintext = bids.plaintext();
        // What others would not decode is better not sent: the seat still votes.
        if !plaintext.fits() {
            return;
        }
        let mut bundle = Bundle { order_view, u: [0; 48], v: [0; 32], payload: vec![] };
        let header = self.header(&Body::Bundle(bundle.clone()));
        let seal_header = seal_header(&self.record, &header, &bundle.order_view);
        // Sealing fails only with an unusable epoch key, which the record's check excludes; without a bundle the
        // seat still votes.
        let padded = plaintext.to_padded();
        let Ok(sealed) = self.crypto.seal(self.round, &seal_header, &padded) else { return };
        (bundle.u, bundle.v, bundle.payload) = (sealed.u, sealed.v, sealed.payload);
        let bids = LogRecord::Bids { at_ms: self.now, round: self.round, bids: Box::new(bids.clone()) };
        out.push(RoundOutput::Persist(bids));
        let listed = self.say_bundle(bundle, out);
        self.own_plain = self.crypto.knows_what_it_seals().then_some((listed, padded));
    }

    /// Sends this seat's contribution to a key, in the clear and once.
    pub(super) fn send_contribution(&mut self, payload: Vec<u8>, out: &mut Vec<RoundOutput>) {
        if self.bidding != Bidding::Asked || self.subject != Subject::Keys || payload.len() > MAX_PAYLOAD {
            return;
        }
        self.bidding = Bidding::Sent;
        self.say_bundle(Bundle { order_view: View::default(), u: [0; 48], v: [0; 32], payload }, out);
    }

    fn say_bundle(&mut self, bundle: Bundle, out: &mut Vec<RoundOutput>) -> Listed {
        let header = self.header(&Body::Bundle(bundle.clone()));
        let d = bundle.digest(&header);
        let hash = bundle_hash_by::<C::Scheme>(&self.record.market, &header, &d);
        let signature = Some(self.crypto.sign(&hash));
        let bytes = Message { header, body: Body::Bundle(bundle.clone()), signature }.encode();
        let listed = Listed { seat: self.index, d };
        self.bundles.insert(listed, Held { header, bundle, bytes: bytes.clone() });
        self.in_time.insert(self.index, d);
        self.persist_said(&bytes, out);
        out.push(RoundOutput::Broadcast(bytes));
        listed
    }

    /// Sends the SET when all bundles are there, or at T1; not after view 0. A FULL vote is a vote of view 0: the NEWVIEW of
    /// a seat that has gone on shows no SET of its own, so what is proposed may differ from what the vote would commit.
    pub(super) fn send_set(&mut self, out: &mut Vec<RoundOutput>) {
        let p = &self.record.params;
        let due = self.in_time.len() == self.n() || self.now >= p.t1(self.round);
        if self.set_sent
            || self.view > 0
            || self.bidding != Bidding::Sent
            || !due
            || self.now >= p.x(self.round)
        {
            return;
        }
        self.set_sent = true;
        let held: Vec<Digest> =
            (0..self.record.n()).map(|s| self.in_time.get(&s).copied().unwrap_or_default()).collect();
        let full = (self.in_time.len() == self.n()).then(|| {
            let set = self.digest_of(&held);
            self.voted_lists.insert(set, listed_of(&held));
            let vote = self.crypto.vote(&self.vote_message(VoteWord::Full, 0, &set));
            self.fulls.entry(set).or_default().insert(self.index, vote);
            vote
        });
        let set = SetMsg { held, full };
        let signature = self.broadcast(Body::Set(set.clone()), out);
        if let Some(signature) = signature {
            self.sets.insert(self.index, ShownSet { seat: self.index, set, signature });
        }
    }

    /// A as it follows from the SETs held.
    pub(super) fn derived_list(&self) -> Vec<Listed> {
        justify::derive(self.f(), self.sets.iter().map(|(seat, shown)| (*seat, &shown.set)))
    }

    /// The digest of what a complete SET lists; most SETs of a round are alike, so it is worked out once for each.
    pub(super) fn digest_of(&mut self, held: &[Digest]) -> Digest {
        if let Some(known) = self.digests.get(held) {
            return *known;
        }
        let digest = self.set_digest(&listed_of(held));
        self.digests.insert(held.to_vec(), digest);
        digest
    }

    /// The digest that names an admitted set.
    pub(super) fn set_digest(&self, list: &[Listed]) -> Digest {
        justify::set_digest(&self.record, self.round, list)
    }

    /// ADMITs in view 0, once: from T1 on when q SETs are identical or all are there, or at T2 with q SETs.
    pub(super) fn send_admit(&mut self, out: &mut Vec<RoundOutput>) {
        let p = &self.record.params;
        if self.view > 0 || self.admitted.is_some() || self.lock.is_some() || !self.votes() {
            return;
        }
        // Most messages come before T1, and counting SETs is not free.
        if self.now < p.t1(self.round) || self.sets.len() < self.q() {
            return;
        }
        let at_t2 = self.now >= p.t2(self.round);
        self.settle_sets(out);
        let mut identical: BTreeMap<&[Digest], usize> = BTreeMap::new();
        for shown in self.sets.values() {
            *identical.entry(&shown.set.held).or_default() += 1;
        }
        let agree = identical.values().any(|count| *count >= self.q()) || self.sets.len() == self.n();
        let enough = agree || (at_t2 && self.sets.len() >= self.q());
        if !enough {
            return;
        }
        let list = self.derived_list();
        let set = self.set_digest(&list);
        self.voted_lists.insert(set, list);
        self.admit(0, set, [0; 32], out);
    }

    /// LOCKs once in the current view, on q ADMITs for one set.
    pub(super) fn send_lock(&mut self, out: &mut Vec<RoundOutput>) {
        let view = self.view;
        // Aggregating is costly, so it is not done where nothing can follow from it.
        if self.lock.is_some_and(|(locked, _)| locked == view) || !self.votes() {
            return;
        }
        self.find_admit_quorum(view, out);
        let known = self.admit_quorums.range((view, [0; 32])..=(view, [255; 32])).next();
        let Some((set, quorum)) = known.map(|((_, set), quorum)| (*set, quorum.clone())) else { return };
        self.lock = Some((view, set));
        let vote = self.crypto.vote(&self.vote_message(VoteWord::Lock, view, &set));
        self.locks.insert((view, self.index), Ballot { set, proposal: [0; 32], vote });
        self.broadcast(Body::Lock(Lock { view, set, quorum, vote }), out);
    }

    /// The votes of a kind in a view, by seat.
    fn ballots(&self, word: VoteWord, view: u32) -> Vec<(u16, Ballot)> {
        let of = |ballots: &BTreeMap<(u32, u16), Ballot>| {
            let range = ballots.range((view, 0)..(view.saturating_add(1), 0));
            range.map(|((_, seat), ballot)| (*seat, *ballot)).collect()
        };
        match word {
            VoteWord::Admit => of(&self.admits),
            VoteWord::Lock => of(&self.locks),
            VoteWord::Award => self.award_votes.iter().map(|(seat, ballot)| (*seat, *ballot)).collect(),
            VoteWord::Full => vec![],
        }
    }

    /// A digest that q seats voted for, with their aggregate. Votes are taken in unchecked: their sum is checked here, and
    /// when it does not hold the bad ones are thrown out and the others counted again.
    pub(super) fn quorum_of(
        &mut self,
        word: VoteWord,
        view: u32,
        counts: impl Fn(&Ballot) -> bool,
        out: &mut Vec<RoundOutput>,
    ) -> Option<(Digest, Quorum)> {
        let voters = match word {
            VoteWord::Award => self.award_votes.len(),
            VoteWord::Admit => self.admits.range((view, 0)..=(view, u16::MAX)).count(),
            VoteWord::Lock => self.locks.range((view, 0)..=(view, u16::MAX)).count(),
            VoteWord::Full => 0,
        };
        if voters < self.q() {
            return None;
        }
        loop {
            let mut by_digest: BTreeMap<Digest, Vec<(u16, [u8; 48])>> = BTreeMap::new();
            for (seat, ballot) in self.ballots(word, view).into_iter().filter(|(_, b)| counts(b)) {
                by_digest.entry(ballot.set).or_default().push((seat, ballot.vote));
            }
            let (digest, votes) = by_digest.into_iter().find(|(_, votes)| votes.len() >= self.q())?;
            match self.crypto.tally(&self.vote_message(word, view, &digest), &votes) {
                Ok(aggregate) => {
                    let signers = Signers::new(self.record.n(), votes.iter().map(|(seat, _)| *seat));
                    return Some((digest, Quorum { signers, aggregate }));
                }
                Err(bad) if bad.is_empty() => return None,
                Err(bad) => bad.into_iter().for_each(|seat| self.throw_out(word, view, seat, out)),
            }
        }
    }

    /// Forgets a vote that does not verify, and shows it.
    pub(super) fn throw_out(&mut self, word: VoteWord, view: u32, seat: u16, out: &mut Vec<RoundOutput>) {
        let kind = match word {
            VoteWord::Admit => self.admits.remove(&(view, seat)).map(|_| Kind::Admit),
            VoteWord::Lock => self.locks.remove(&(view, seat)).map(|_| Kind::Lock),
            VoteWord::Award => self.award_votes.remove(&seat).map(|_| Kind::Award),
            VoteWord::Full => None,
        };
        let bytes = kind.and_then(|kind| self.spoken.remove(&(kind, view, seat)));
        self.refuse_vote(seat, bytes, out);
    }

    /// Checks the FULL votes that were taken in unchecked. SETs whose vote is bad are forgotten: before this, they count
    /// for nothing but a fast commit.
    pub(super) fn settle_sets(&mut self, out: &mut Vec<RoundOutput>) {
        let mut by_set: BTreeMap<Digest, Vec<(u16, [u8; 48])>> = BTreeMap::new();
        for seat in std::mem::take(&mut self.unchecked) {
            let voted = self.fulls.iter().find_map(|(set, votes)| Some((*set, *votes.get(&seat)?)));
            if let Some((set, vote)) = voted {
                by_set.entry(set).or_default().push((seat, vote));
            }
        }
        for (set, votes) in by_set {
            let bad = self.crypto.bad_votes(&self.vote_message(VoteWord::Full, 0, &set), &votes);
            bad.into_iter().for_each(|seat| self.throw_out_set(&set, seat, out));
        }
    }

    fn throw_out_set(&mut self, set: &Digest, seat: u16, out: &mut Vec<RoundOutput>) {
        self.unchecked.remove(&seat);
        if let Some(votes) = self.fulls.get_mut(set) {
            votes.remove(&seat);
        }
        let bytes = self.sets.remove(&seat).map(|shown| self.set_bytes(&shown));
        self.refuse_vote(seat, bytes, out);
    }

    /// The aggregate of n FULL votes for one set.
    fn find_full(&mut self, out: &mut Vec<RoundOutput>) -> Option<(Digest, Commit)> {
        let (set, votes) = self.fulls.iter().find(|(_, votes)| votes.len() == self.n())?;
        let (set, votes): (Digest, Vec<_>) = (*set, votes.iter().map(|(s, v)| (*s, *v)).collect());
        match self.crypto.tally(&self.vote_message(VoteWord::Full, 0, &set), &votes) {
            Ok(aggregate) => Some((set, Commit::Fast { aggregate })),
            Err(bad) => {
                bad.into_iter().for_each(|seat| self.throw_out_set(&set, seat, out));
                None
            }
        }
    }

    /// Commits on n FULL votes or q LOCKs for one set.
    pub(super) fn find_commit(&mut self, out: &mut Vec<RoundOutput>) {
        if self.commit.is_some() {
            return;
        }
        let mut found = self.find_full(out);
        let views: BTreeSet<u32> = self.locks.keys().map(|(view, _)| *view).collect();
        for view in views {
            if found.is_none() {
                let quorum = self.quorum_of(VoteWord::Lock, view, |_| true, out);
                found = quorum.map(|(set, quorum)| (set, Commit::Locked { view, quorum }));
            }
        }
        if let Some((set, commit)) = found {
            self.adopt_commit(set, commit, out);
        }
    }

    /// Takes up a commit and passes it on: with the share when that may go at once, else on its own.
    pub(super) fn adopt_commit(&mut self, set: Digest, commit: Commit, out: &mut Vec<RoundOutput>) {
        self.commit = Some((set, commit.clone()));
        if !self.may_open() {
            self.broadcast(Body::Commit(CommitMsg { set, commit }), out);
        }
    }

    /// The gate between neighbouring rounds; f + 1 shares of others lift it. What is about keys has nothing to open.
    fn may_open(&self) -> bool {
        if self.subject == Subject::Keys {
            return false;
        }
        let others = self.opens.keys().filter(|seat| **seat != self.index).count();
        self.record.params.gate(self.round, self.now) <= self.now || others > self.f()
    }

    /// Whether a message may be sent again. The log holds a share that was about to be sent: it may never have left.
    fn may_repeat(&self, kind: Kind) -> bool {
        !(self.recalled && kind == Kind::Open) || self.may_open()
    }

    /// Sends this seat's share, only with a commit.
    pub(super) fn send_open(&mut self, out: &mut Vec<RoundOutput>) {
        let Some((set, commit)) = self.commit.clone() else { return };
        if self.open_sent || !self.may_open() || self.now >= self.record.params.expiry(self.round) {
            return;
        }
        self.open_sent = true;
        let share = self.crypto.share(self.round);
        self.opens.insert(self.index, share);
        self.broadcast(Body::Open(OpenShare { set, commit, share }), out);
    }

    /// Sends own messages again until the awards are known: a certificate alone does not say what was awarded, and
    /// others help only who repeats itself. A bundle is never sent late.
    pub(super) fn resend(&mut self, out: &mut Vec<RoundOutput>) {
        let p = self.record.params;
        if self.now < self.resend_at || self.decided {
            return;
        }
        self.resend_at = self.now + 2 * p.delay_ms;
        if self.sent.iter().any(|(h, _)| !self.may_repeat(h.kind)) {
            self.resend_at = self.resend_at.min(p.gate(self.round, self.now));
        }
        let voting = self.now < p.x(self.round);
        let is_last = |kind| match self.subject {
            Subject::Auction => matches!(kind, Kind::Open | Kind::Award),
            Subject::Keys => matches!(kind, Kind::Commit | Kind::Award),
        };
        let counts = |kind| voting || is_last(kind);
        let again = self.sent.iter().filter(|(h, _)| counts(h.kind) && self.may_repeat(h.kind));
        out.extend(again.map(|(_, bytes)| RoundOutput::Broadcast(bytes.clone())));
        if self.recalled && self.commit.is_none() {
            // Others help who repeats itself; what was said before a restart may be nothing that is repeated.
            let (_, bytes) = self.encode(Body::Fetch(Fetch::Bundles(vec![])));
            out.push(RoundOutput::Broadcast(bytes));
        }
    }

    /// Gives a seat that does not know of the commit or the certificate what it needs to catch up, at most once per 2 D.
    pub(super) fn help(&mut self, seat: u16, out: &mut Vec<RoundOutput>) {
        let due = self.helped.get(&seat).is_none_or(|at| self.now >= at + 2 * self.record.params.delay_ms);
        if !due || (self.commit.is_none() && self.certificate.is_none()) {
            return;
        }
        self.helped.insert(seat, self.now);
        let wanted = match &self.certificate {
            None => [Kind::Commit, Kind::Open].as_slice(),
            Some(_) if self.subject == Subject::Keys => &[Kind::Set, Kind::Commit, Kind::Award],
            Some(_) => &[Kind::Set, Kind::Open, Kind::Award],
        };
        let own = self.sent.iter().filter(|(h, _)| wanted.contains(&h.kind) && self.may_repeat(h.kind));
        out.extend(own.map(|(_, bytes)| RoundOutput::Send { to: seat, bytes: bytes.clone() }));
        if let Some(certificate) = self.certificate.clone() {
            let cert = crate::wire::Cert { root: certificate.root, quorum: certificate.quorum };
            out.push(RoundOutput::Send { to: seat, bytes: self.encode(Body::Cert(cert)).1 });
        }
    }
}
