//! The steps up to the commit: bundle, set, admit, lock, commit, open; and sending again.

use super::{Bidding, Held, Round, RoundOutput};
use crate::bid::LocalBids;
use crate::crypto::Crypto;
use crate::merkle;
use crate::wire::{
    Admit, Body, Bundle, Commit, CommitMsg, Header, Kind, Listed, Lock, OpenShare, Quorum, SetMsg, Signers,
    VoteWord, view_digest,
};
use std::collections::BTreeMap;
use vendue_market::encode::Writer;
use vendue_market::{Digest, tagged_hash};

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
            out.push(RoundOutput::NeedBids { deadline_ms: p.t1(self.round) });
        }
    }

    /// What sealing binds besides the round: market, header, order view.
    pub(super) fn seal_header(&self, header: &Header, order_view: &[Digest]) -> Vec<u8> {
        let parts: [&[u8]; 3] = [&self.record.market, &header.to_bytes(), &view_digest(order_view)];
        tagged_hash("VENDUE-V1-SEAL-HEADER", &parts).to_vec()
    }

    /// Seals this seat's bids and sends the bundle, once.
    pub(super) fn send_bundle(&mut self, bids: &LocalBids, out: &mut Vec<RoundOutput>) {
        if self.bidding != Bidding::Asked {
            return;
        }
        self.bidding = Bidding::Sent;
        let order_view: Vec<Digest> = bids.records.iter().map(|r| r.order).collect();
        let plaintext = bids.plaintext();
        // What others would not decode is better not sent: the seat still votes.
        if !plaintext.fits() {
            return;
        }
        let mut bundle = Bundle { order_view, u: [0; 48], v: [0; 32], payload: vec![] };
        let header = self.header(&Body::Bundle(bundle.clone()));
        let seal_header = self.seal_header(&header, &bundle.order_view);
        // Sealing fails only with an unusable epoch key, which the record's check excludes; without a bundle the
        // seat still votes.
        let Ok(sealed) = self.crypto.seal(self.round, &seal_header, &plaintext.to_padded()) else { return };
        (bundle.u, bundle.v, bundle.payload) = (sealed.u, sealed.v, sealed.payload);
        let d = bundle.digest(&header);
        let (header, bytes) = self.encode(Body::Bundle(bundle.clone()));
        let listed = Listed { seat: self.index, d };
        self.bundles.insert(listed, Held { header, bundle, bytes: bytes.clone() });
        self.in_time.insert(self.index, d);
        out.push(RoundOutput::Broadcast(bytes));
    }

    /// Sends the SET when all bundles are there, or at T1.
    pub(super) fn send_set(&mut self, out: &mut Vec<RoundOutput>) {
        let p = &self.record.params;
        let due = self.in_time.len() == self.n() || self.now >= p.t1(self.round);
        if self.set_sent || self.bidding != Bidding::Sent || !due || self.now >= p.x(self.round) {
            return;
        }
        self.set_sent = true;
        let held: Vec<Digest> =
            (0..self.record.n()).map(|s| self.in_time.get(&s).copied().unwrap_or_default()).collect();
        let full = (self.in_time.len() == self.n()).then(|| {
            let list = listed_of(&held);
            let set = self.set_digest(&list);
            self.voted_lists.insert(set, list);
            let vote = self.crypto.vote(&self.vote_message(VoteWord::Full, 0, &set));
            self.fulls.entry(set).or_default().insert(self.index, vote);
            vote
        });
        let set = SetMsg { held, full };
        self.sets.insert(self.index, set.clone());
        self.broadcast(Body::Set(set), out);
    }

    /// A as it follows from the SETs held: what f + 1 owners list.
    pub(super) fn derived_list(&self) -> Vec<Listed> {
        let mut owners: BTreeMap<Listed, usize> = BTreeMap::new();
        for listed in self.sets.values().flat_map(|set| listed_of(&set.held)) {
            *owners.entry(listed).or_default() += 1;
        }
        owners.into_iter().filter(|(_, count)| *count > self.f()).map(|(listed, _)| listed).collect()
    }

    /// The digest that names an admitted set.
    pub(super) fn set_digest(&self, list: &[Listed]) -> Digest {
        let leaves: Vec<Vec<u8>> = list
            .iter()
            .map(|l| {
                let mut w = Writer::new();
                w.u16(l.seat).raw(&l.d);
                w.finish()
            })
            .collect();
        let r = &self.record;
        let (epoch, round) = (r.epoch.to_be_bytes(), self.round.to_be_bytes());
        tagged_hash("VENDUE-V1-A", &[&r.market, &epoch, &round, &r.rules_hash, &merkle::root(&leaves)])
    }

    /// Until when SETs that could change A are waited for.
    pub(super) fn patience_ends(&self) -> u64 {
        let p = &self.record.params;
        p.t2(self.round) + 2 * p.delay_ms
    }

    /// ADMITs once: from T1 on when q SETs are identical or all are there, or in the end with q SETs.
    pub(super) fn send_admit(&mut self, out: &mut Vec<RoundOutput>) {
        let p = &self.record.params;
        if self.admitted || self.locked || self.certificate.is_some() || self.now >= p.x(self.round) {
            return;
        }
        let mut identical: BTreeMap<&[Digest], usize> = BTreeMap::new();
        for set in self.sets.values() {
            *identical.entry(&set.held).or_default() += 1;
        }
        let agree = identical.values().any(|count| *count >= self.q()) || self.sets.len() == self.n();
        let at_t1 = self.now >= p.t1(self.round) && agree;
        // A split vote loses the whole round as long as no later view follows, so a late SET is worth waiting for.
        let in_the_end = self.now >= self.patience_ends() && self.sets.len() >= self.q();
        if !at_t1 && !in_the_end {
            return;
        }
        self.admitted = true;
        let list = self.derived_list();
        let set = self.set_digest(&list);
        self.voted_lists.insert(set, list);
        let vote = self.crypto.vote(&self.vote_message(VoteWord::Admit, 0, &set));
        self.admits.insert(self.index, (set, vote));
        self.broadcast(Body::Admit(Admit { view: 0, set, proposal: [0; 32], vote }), out);
    }

    /// LOCKs once, on q ADMITs for one set.
    pub(super) fn send_lock(&mut self, out: &mut Vec<RoundOutput>) {
        // Aggregating is costly, so it is not done where nothing can follow from it.
        let open = self.now < self.record.params.x(self.round) && self.certificate.is_none();
        if self.locked || !open {
            return;
        }
        if self.admit_quorums.is_empty() {
            self.admit_quorums.extend(self.quorum_of(&self.admits));
        }
        let Some((set, quorum)) = self.admit_quorums.iter().next().map(|(s, q)| (*s, q.clone())) else {
            return;
        };
        self.locked = true;
        let vote = self.crypto.vote(&self.vote_message(VoteWord::Lock, 0, &set));
        self.locks.insert(self.index, (set, vote));
        self.broadcast(Body::Lock(Lock { view: 0, set, quorum, vote }), out);
    }

    /// A digest that q seats voted for, with their aggregate.
    pub(super) fn quorum_of(&self, ballots: &BTreeMap<u16, super::Ballot>) -> Option<(Digest, Quorum)> {
        let mut by_digest: BTreeMap<Digest, Vec<(u16, [u8; 48])>> = BTreeMap::new();
        for (seat, (digest, vote)) in ballots {
            by_digest.entry(*digest).or_default().push((*seat, *vote));
        }
        let (digest, votes) = by_digest.into_iter().find(|(_, votes)| votes.len() >= self.q())?;
        let signers = Signers::new(self.record.n(), votes.iter().map(|(seat, _)| *seat));
        let aggregate = self.crypto.aggregate(&votes.iter().map(|(_, vote)| *vote).collect::<Vec<_>>())?;
        Some((digest, Quorum { signers, aggregate }))
    }

    /// Commits on n FULL votes or q LOCKs for one set.
    pub(super) fn find_commit(&mut self, out: &mut Vec<RoundOutput>) {
        if self.commit.is_some() {
            return;
        }
        let full = self.fulls.iter().find(|(_, votes)| votes.len() == self.n());
        let fast = full.and_then(|(set, votes)| {
            let aggregate = self.crypto.aggregate(&votes.values().copied().collect::<Vec<_>>())?;
            Some((*set, Commit::Fast { aggregate }))
        });
        let slow =
            || self.quorum_of(&self.locks).map(|(set, quorum)| (set, Commit::Locked { view: 0, quorum }));
        if let Some((set, commit)) = fast.or_else(slow) {
            self.adopt_commit(set, commit, out);
        }
    }

    /// Whether a commit proves that its set is final.
    pub(super) fn verify_commit(&self, set: &Digest, commit: &Commit) -> bool {
        match commit {
            Commit::Fast { aggregate } => {
                let seats: Vec<u16> = (0..self.record.n()).collect();
                self.crypto.verify_aggregate(&seats, &self.vote_message(VoteWord::Full, 0, set), aggregate)
            }
            Commit::Locked { view, quorum } => {
                let seats: Vec<u16> = quorum.signers.iter().collect();
                let message = self.vote_message(VoteWord::Lock, *view, set);
                seats.len() >= self.q() && self.crypto.verify_aggregate(&seats, &message, &quorum.aggregate)
            }
        }
    }

    /// Takes up a commit and passes it on: with the share when that may go at once, else on its own.
    pub(super) fn adopt_commit(&mut self, set: Digest, commit: Commit, out: &mut Vec<RoundOutput>) {
        self.commit = Some((set, commit.clone()));
        if !self.may_open() {
            self.broadcast(Body::Commit(CommitMsg { set, commit }), out);
        }
    }

    /// The gate between neighbouring rounds; f + 1 shares of others lift it.
    fn may_open(&self) -> bool {
        self.record.params.gate(self.round, self.now) <= self.now || self.opens.len() > self.f()
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
        let voting = self.now < p.x(self.round);
        let again = self.sent.iter().filter(|(h, _)| voting || matches!(h.kind, Kind::Open | Kind::Award));
        out.extend(again.map(|(_, bytes)| RoundOutput::Broadcast(bytes.clone())));
    }

    /// Gives a seat that repeats itself after the certificate what it needs to catch up, at most once per 2 D.
    pub(super) fn help(&mut self, seat: u16, out: &mut Vec<RoundOutput>) {
        let due = self.helped.get(&seat).is_none_or(|at| self.now >= at + 2 * self.record.params.delay_ms);
        let Some(certificate) = self.certificate.clone().filter(|_| due) else { return };
        self.helped.insert(seat, self.now);
        let wanted = [Kind::Set, Kind::Open, Kind::Award];
        let own = self.sent.iter().filter(|(h, _)| wanted.contains(&h.kind));
        out.extend(own.map(|(_, bytes)| RoundOutput::Send { to: seat, bytes: bytes.clone() }));
        let cert = crate::wire::Cert { root: certificate.root, quorum: certificate.quorum };
        out.push(RoundOutput::Send { to: seat, bytes: self.encode(Body::Cert(cert)).1 });
    }
}

/// The entries of a SET that are not zero.
pub(super) fn listed_of(held: &[Digest]) -> Vec<Listed> {
    held.iter().zip(0u16..).filter(|(d, _)| **d != [0; 32]).map(|(d, seat)| Listed { seat, d: *d }).collect()
}
