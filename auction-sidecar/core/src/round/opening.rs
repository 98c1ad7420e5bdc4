//! The steps after the commit: gather what was admitted, combine shares, open, clear, vote, certify.

use super::{Ballot, KeyStep, Result, Round, RoundDecided, RoundOutput, Subject};
use crate::clearing::Clearing;
use crate::crypto::Crypto;
use crate::drops::DropReason;
use crate::wire::{AwardVote, Body, Fetch, Listed, MAX_FETCH, ShownSet, VoteWord};
use std::sync::Arc;
use vendue_market::Digest;
use vendue_sealed_bid::{CryptoError, Sealed};

impl<C: Crypto> Round<C> {
    /// Goes as far towards the awards as what is there allows; asks for what is missing.
    pub(super) fn resolve(&mut self, out: &mut Vec<RoundOutput>) {
        let Some(set) = self.commit.as_ref().map(|(set, _)| *set) else { return };
        if self.result.is_some() || self.agreed || self.decided {
            return;
        }
        if self.complete {
            // Each share that comes in asks, and all that is waited for is a quorum of them.
            self.combine(out);
            self.award(set, out);
            return;
        }
        let may_ask = self.now >= self.fetch_at;
        if may_ask {
            self.fetch_at = self.now + 2 * self.record.params.delay_ms;
        }
        if self.list.is_none() {
            self.list = self.find_list(&set);
            if self.list.is_none() && may_ask {
                let (_, bytes) = self.encode(Body::Fetch(Fetch::Set(set)));
                out.push(RoundOutput::Broadcast(bytes));
            }
        }
        self.combine(out);
        let Some(list) = self.list.clone() else { return };
        let missing: Vec<Listed> = list.iter().filter(|l| !self.bundles.contains_key(l)).copied().collect();
        if !missing.is_empty() {
            if may_ask {
                self.fetch_bundles(&missing, out);
            }
            return;
        }
        if self.subject == Subject::Keys {
            self.agreed = true;
            let payload = |l: &Listed| self.bundles.get(l).map(|held| (*l, held.bundle.payload.clone()));
            let said = list.iter().filter_map(payload).collect();
            out.push(RoundOutput::Keys(KeyStep::Agreed { set, said }));
            return;
        }
        // A list with all its bundles says the same each time.
        let candidates = self.candidates.take().unwrap_or_else(|| self.clearing(set, &list).candidates());
        let unknown: Vec<Digest> =
            candidates.iter().filter(|d| !self.orders.contains_key(*d)).copied().collect();
        self.candidates = Some(candidates);
        if unknown.is_empty() {
            self.complete = true;
            self.award(set, out);
        } else if may_ask || unknown.iter().any(|d| !self.orders_asked.contains(d)) {
            self.orders_asked.extend(&unknown);
            out.push(RoundOutput::NeedOrders(unknown));
        }
    }

    /// The list with this digest, if this seat voted for it, uses it, or derives it from the SETs that it holds.
    pub(super) fn find_list(&self, digest: &Digest) -> Option<Vec<Listed>> {
        let is_it = |list: &Vec<Listed>| self.set_digest(list) == *digest;
        let known = self.voted_lists.get(digest).or_else(|| self.list.as_ref().filter(|list| is_it(list)));
        known.cloned().or_else(|| Some(self.derived_list()).filter(is_it))
    }

    /// Asks each seat for the missing bundles that its SET lists, and f + 1 seats in turn for those that no SET here lists.
    fn fetch_bundles(&self, missing: &[Listed], out: &mut Vec<RoundOutput>) {
        let others = || self.sets.iter().filter(|(seat, _)| **seat != self.index);
        let lists = |set: &ShownSet, l: &Listed| set.set.held.get(usize::from(l.seat)) == Some(&l.d);
        let nowhere = |l: &&Listed| !others().any(|(_, set)| lists(set, l));
        let unlisted: Vec<Listed> = missing.iter().filter(nowhere).take(MAX_FETCH).copied().collect();
        if !unlisted.is_empty() {
            let (n, at_once) = (u64::from(self.record.n()), self.f() as u64 + 1);
            let turn = self.now / (2 * self.record.params.delay_ms).max(1) * at_once;
            for seat in (0..at_once).map(|step| ((turn + step) % n) as u16) {
                if seat != self.index {
                    let (_, bytes) = self.encode(Body::Fetch(Fetch::Bundles(unlisted.clone())));
                    out.push(RoundOutput::Send { to: seat, bytes });
                }
            }
        }
        for (seat, set) in others() {
            let has = |l: &&Listed| lists(set, l);
            let wanted: Vec<Listed> = missing.iter().filter(has).take(MAX_FETCH).copied().collect();
            if !wanted.is_empty() {
                let (_, bytes) = self.encode(Body::Fetch(Fetch::Bundles(wanted)));
                out.push(RoundOutput::Send { to: *seat, bytes });
            }
        }
    }

    /// Combines shares once there is a quorum; bad ones are thrown out and the next quorum is tried.
    fn combine(&mut self, out: &mut Vec<RoundOutput>) {
        if self.opened.is_some() || self.opens.len() < self.q() {
            return;
        }
        let shares: Vec<(u16, [u8; 96])> = self.opens.iter().map(|(seat, share)| (*seat, *share)).collect();
        match self.crypto.combine(self.round, &shares) {
            Ok(opened) => self.opened = Some(opened),
            Err(CryptoError::BadShares(seats)) => {
                for seat in seats {
                    self.opens.remove(&seat);
                    self.bad_openers.insert(seat);
                    self.accuse_bad_share(seat, out);
                    out.push(RoundOutput::Dropped(DropReason::BadSignature));
                }
            }
            Err(_) => {}
        }
    }

    pub(super) fn clearing<'a>(&'a self, set: Digest, list: &'a [Listed]) -> Clearing<'a> {
        let (record, round, known) = (&self.record, self.round, self.own_plain.as_ref());
        Clearing { record, round, set, list, bundles: &self.bundles, known, orders: &self.orders }
    }

    /// Opens every admitted bundle, clears, and votes for the result, once the shares are combined.
    fn award(&mut self, set: Digest, out: &mut Vec<RoundOutput>) {
        let (Some(opened), Some(list), Some(candidates)) = (&self.opened, &self.list, &self.candidates)
        else {
            return;
        };
        let beacon = self.crypto.beacon(opened);
        let open = |header: &[u8], sealed: &Sealed| self.crypto.open(opened, header, sealed);
        let (table, cleared) = self.clearing(set, list).run(candidates, &beacon, open);
        let tree = table.tree();
        let root = tree.root();
        let (table, tree) = (Arc::new(table), Arc::new(tree));
        self.result = Some(Result { table, tree, root, cleared: cleared.into() });
        // The log may hold a vote from before a restart: there is no second one, whatever clearing gives now.
        if self.award_votes.contains_key(&self.index) {
            return;
        }
        let vote = self.crypto.vote(&self.vote_message(VoteWord::Award, 0, &root));
        self.award_votes.insert(self.index, Ballot { set: root, proposal: [0; 32], vote });
        self.broadcast(Body::Award(AwardVote { root, vote }), out);
    }

    /// Takes up the key that follows from what was agreed, and votes for it.
    pub(super) fn take_key(&mut self, root: Digest, vote: bool, out: &mut Vec<RoundOutput>) {
        if !self.agreed || self.key_root.is_some() {
            return;
        }
        self.key_root = Some(root);
        if !vote || self.award_votes.contains_key(&self.index) {
            return;
        }
        let vote = self.crypto.vote(&self.vote_message(VoteWord::Award, 0, &root));
        self.award_votes.insert(self.index, Ballot { set: root, proposal: [0; 32], vote });
        self.broadcast(Body::Award(AwardVote { root, vote }), out);
    }

    /// Makes the certificate from q votes and announces it with this seat's own table.
    pub(super) fn certify(&mut self, out: &mut Vec<RoundOutput>) {
        if self.certificate.is_none() {
            let quorum = self.quorum_of(VoteWord::Award, 0, |_| true, out);
            self.certificate = quorum.map(|(root, quorum)| self.certificate_of(root, quorum));
        }
        if let (Some(certificate), false) = (&self.certificate, self.decided)
            && self.key_root == Some(certificate.root)
        {
            self.decided = true;
            out.push(RoundOutput::Keys(KeyStep::Certified(certificate.clone())));
        }
        let (Some(certificate), Some(result), false) = (&self.certificate, &self.result, self.decided) else {
            return;
        };
        // A certificate for another root needs more than f faulty seats; this seat then has nothing to announce.
        if certificate.root != result.root {
            return;
        }
        self.decided = true;
        let (certificate, result) = (certificate.clone(), result.clone());
        self.accuse_by_certificate(out);
        let Result { table, tree, cleared, .. } = result;
        let orders =
            cleared.iter().filter_map(|c| Some((c.order, self.orders.get(&c.order)?.clone()))).collect();
        out.push(RoundOutput::Decided(Box::new(RoundDecided { certificate, table, tree, cleared, orders })));
    }
}
