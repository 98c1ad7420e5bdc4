//! The steps after the commit: gather what was admitted, combine shares, open, clear, vote, certify.

use super::{Ballot, Result, Round, RoundDecided, RoundOutput};
use crate::award::{AwardTable, Leaf, OrderLeaf};
use crate::crypto::Crypto;
use crate::drops::DropReason;
use crate::plaintext::Plaintext;
use crate::pool::may_list;
use crate::wire::{AwardVote, Body, Fetch, Listed, MAX_FETCH, VoteWord};
use std::collections::{BTreeMap, BTreeSet};
use vendue_market::{Cleared, Digest, ListedOrder, OpenedBundle, Outcome, clear, tagged_hash};
use vendue_sealed_bid::{CryptoError, Sealed};

impl<C: Crypto> Round<C> {
    /// Goes as far towards the awards as what is there allows; asks for what is missing.
    pub(super) fn resolve(&mut self, out: &mut Vec<RoundOutput>) {
        let Some(set) = self.commit.as_ref().map(|(set, _)| *set) else { return };
        if self.result.is_some() {
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
        let candidates = self.listed_by_enough(&list);
        let unknown: Vec<Digest> =
            candidates.iter().filter(|d| !self.orders.contains_key(*d)).copied().collect();
        if !unknown.is_empty() {
            if may_ask || unknown.iter().any(|d| !self.orders_asked.contains(d)) {
                self.orders_asked.extend(&unknown);
                out.push(RoundOutput::NeedOrders(unknown));
            }
            return;
        }
        if let Some(opened) = self.opened.clone() {
            self.award(set, &list, &candidates, &opened, out);
        }
    }

    /// The list with this digest, if this seat voted for it, uses it, or derives it from the SETs that it holds.
    pub(super) fn find_list(&self, digest: &Digest) -> Option<Vec<Listed>> {
        let known = self.voted_lists.get(digest).or(self.list.as_ref());
        let known = known.filter(|list| self.set_digest(list) == *digest).cloned();
        known.or_else(|| Some(self.derived_list()).filter(|list| self.set_digest(list) == *digest))
    }

    /// Asks each seat for the missing bundles that its SET lists.
    fn fetch_bundles(&self, missing: &[Listed], out: &mut Vec<RoundOutput>) {
        for (seat, set) in self.sets.iter().filter(|(seat, _)| **seat != self.index) {
            let has = |l: &&Listed| set.set.held.get(usize::from(l.seat)) == Some(&l.d);
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
                    out.push(RoundOutput::Dropped(DropReason::BadSignature));
                }
            }
            Err(_) => {}
        }
    }

    /// Orders in the views of f + 1 seats that have exactly one version in A.
    fn listed_by_enough(&self, list: &[Listed]) -> BTreeSet<Digest> {
        let mut counts: BTreeMap<Digest, usize> = BTreeMap::new();
        for listed in list.iter().filter(|l| is_single(list, l)) {
            for order in self.bundles.get(listed).map(|h| h.bundle.order_view.as_slice()).unwrap_or_default()
            {
                *counts.entry(*order).or_default() += 1;
            }
        }
        counts.into_iter().filter(|(_, count)| *count > self.f()).map(|(order, _)| order).collect()
    }

    /// Opens every admitted bundle, clears, and votes for the result.
    fn award(
        &mut self,
        set: Digest,
        list: &[Listed],
        candidates: &BTreeSet<Digest>,
        opened: &C::Opened,
        out: &mut Vec<RoundOutput>,
    ) {
        let beacon = self.crypto.beacon(opened);
        let plain: BTreeMap<Listed, Option<Plaintext>> =
            list.iter().map(|l| (*l, self.open_bundle(list, l, opened))).collect();
        let garbage: BTreeSet<u16> = plain.iter().filter(|(_, p)| p.is_none()).map(|(l, _)| l.seat).collect();
        let bundles: Vec<OpenedBundle> =
            plain.iter().filter_map(|(l, p)| Some(self.opened_bundle(l, p.as_ref()?))).collect();
        let orders = self.orders_to_clear(candidates);
        let cleared = clear(&beacon, self.record.n(), &orders, &bundles, &garbage);
        let table = self.table(set, &beacon, &plain, &cleared);
        let root = table.root();
        self.result = Some(Result { table, root, cleared });
        let vote = self.crypto.vote(&self.vote_message(VoteWord::Award, 0, &root));
        self.award_votes.insert(self.index, Ballot { set: root, proposal: [0; 32], vote });
        self.broadcast(Body::Award(AwardVote { root, vote }), out);
    }

    /// The listed orders that this round may award at all.
    fn orders_to_clear(&self, candidates: &BTreeSet<Digest>) -> Vec<ListedOrder> {
        let p = &self.record.params;
        let (t0, step) = (p.t0(self.round), p.order_step());
        candidates
            .iter()
            .filter_map(|digest| self.orders.get_key_value(digest))
            .filter(|(_, order)| order.market == self.record.market && may_list(order, self.round, t0, step))
            .map(|(digest, order)| ListedOrder { digest: *digest, requirements: order.requirements.clone() })
            .collect()
    }

    /// One bundle's plaintext; none for anything unreadable and for seats with two versions.
    fn open_bundle(&self, list: &[Listed], listed: &Listed, opened: &C::Opened) -> Option<Plaintext> {
        if !is_single(list, listed) {
            return None;
        }
        let held = self.bundles.get(listed)?;
        let header = self.seal_header(&held.header, &held.bundle.order_view);
        let sealed = Sealed { u: held.bundle.u, v: held.bundle.v, payload: held.bundle.payload.clone() };
        let bytes = self.crypto.open(opened, &header, &sealed)?;
        Plaintext::from_padded(&bytes, held.bundle.order_view.len()).ok()
    }

    fn opened_bundle(&self, listed: &Listed, plain: &Plaintext) -> OpenedBundle {
        let view = self.bundles.get(listed).map(|h| h.bundle.order_view.as_slice()).unwrap_or_default();
        OpenedBundle {
            seat: listed.seat,
            provider: self.record.seat(listed.seat).map(|s| s.provider.clone()).unwrap_or_default(),
            capacity: plain.capacity.clone(),
            records: plain.records_for(view),
        }
    }

    /// The leaves under the award root.
    fn table(
        &self,
        set: Digest,
        beacon: &Digest,
        plain: &BTreeMap<Listed, Option<Plaintext>>,
        cleared: &[Cleared],
    ) -> AwardTable {
        let mut leaves = vec![Leaf::Set(set), Leaf::Beacon(tagged_hash("VENDUE-V1-BEACON-LEAF", &[beacon]))];
        leaves.extend(plain.iter().map(|(bundle, plain)| match plain {
            Some(plain) => Leaf::Opened {
                bundle: *bundle,
                plaintext: tagged_hash("VENDUE-V1-PLAINTEXT", &[&plain.to_padded()]),
            },
            None => Leaf::Garbage(*bundle),
        }));
        leaves.extend(cleared.iter().map(|c| {
            let bundle = match &c.outcome {
                Outcome::Award(a) => plain.keys().find(|l| l.seat == a.seat).map(|l| l.d).unwrap_or_default(),
                Outcome::None(_) => [0; 32],
            };
            Leaf::Order(OrderLeaf {
                order: c.order,
                outcome: c.outcome.clone(),
                bundle,
                expires_ms: self.record.params.expiry(self.round),
            })
        }));
        AwardTable { leaves }
    }

    /// Makes the certificate from q votes and announces it with this seat's own table.
    pub(super) fn certify(&mut self, out: &mut Vec<RoundOutput>) {
        if self.certificate.is_none() {
            let quorum = self.quorum_of(self.award_votes.iter().map(|(seat, ballot)| (*seat, ballot)));
            self.certificate = quorum.map(|(root, quorum)| self.certificate_of(root, quorum));
        }
        let (Some(certificate), Some(result), false) = (&self.certificate, &self.result, self.decided) else {
            return;
        };
        // A certificate for another root needs more than f faulty seats; this seat then has nothing to announce.
        if certificate.root != result.root {
            return;
        }
        self.decided = true;
        let cleared = result.cleared.clone();
        let orders =
            cleared.iter().filter_map(|c| Some((c.order, self.orders.get(&c.order)?.clone()))).collect();
        out.push(RoundOutput::Decided(Box::new(RoundDecided {
            certificate: certificate.clone(),
            table: result.table.clone(),
            cleared,
            orders,
        })));
    }
}

/// Whether a seat has one version only in the list.
fn is_single(list: &[Listed], listed: &Listed) -> bool {
    list.iter().filter(|l| l.seat == listed.seat).count() == 1
}
