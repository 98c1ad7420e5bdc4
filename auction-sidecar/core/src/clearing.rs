//! From an admitted set, its bundles and the orders in them to the table of awards: the same for everybody.
//!
//! Inputs: the set with all its bundles, the orders that they list, the beacon, and how to open what is sealed to the
//! round. Output: the table under the award root and every order's outcome with reasons. A round and the check of votes
//! for wrong awards both ask here. Sealed ceilings of orders open with the bundles; one that does not open is no ceiling,
//! and the order is given to nobody.

mod explain;

pub use explain::Explained;

use crate::award::{AwardTable, Leaf, OrderLeaf};
use crate::plaintext::Plaintext;
use crate::pool::may_list;
use crate::record::MarketRecord;
use crate::wire::{Bundle, Header, Listed, View};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use vendue_market::encode::Canonical;
use vendue_market::{
    Cleared, ClearingInput, Digest, ListedOrder, OpenedBundle, Order, Outcome, Price, SealedCeiling, clear,
    rank, tagged_hash,
};
use vendue_sealed_bid::{BidKey, CryptoError, RoundId, Sealed};

/// Most sealed ceilings that are opened in a round, the first in the order of service; each costs a pairing.
const MAX_SEALED_CEILINGS: usize = 256;

/// A bundle with what was signed.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub header: Header,
    pub bundle: Bundle,
    /// The whole message.
    pub bytes: Vec<u8>,
}

/// What was in a bundle.
struct Read<'a> {
    plain: Plaintext,
    /// Of the plaintext.
    digest: Digest,
    /// The orders that it is about.
    view: &'a View,
}

/// Admitted bundles with what was in them; none for what could not be read.
type Opened<'a> = BTreeMap<Listed, Option<Read<'a>>>;

/// What a round's awards follow from.
pub(crate) struct Clearing<'a> {
    pub record: &'a MarketRecord,
    pub round: u64,
    /// The digest of the list.
    pub set: Digest,
    pub list: &'a [Listed],
    pub bundles: &'a BTreeMap<Listed, Held>,
    /// What was sealed in the bundle with this digest, which opens to nothing else.
    pub known: Option<&'a (Listed, Vec<u8>)>,
    pub orders: &'a BTreeMap<Digest, Arc<Order>>,
}

/// What sealing binds besides the round: market, header, order view.
pub(crate) fn seal_header(record: &MarketRecord, header: &Header, order_view: &View) -> Vec<u8> {
    let parts: [&[u8]; 3] = [&record.market, &header.to_bytes(), &order_view.digest()];
    tagged_hash("VENDUE-V1-SEAL-HEADER", &parts).to_vec()
}

/// What sealing a ceiling binds besides the round: whose order it is, so that it opens in no other.
fn ceiling_header(order: &Order) -> Vec<u8> {
    let (job, attempt) = (order.job.as_bytes(), order.attempt.to_be_bytes());
    let parts: [&[u8]; 5] = [&order.market, &order.user_key, job, &attempt, &order.commitment];
    tagged_hash("VENDUE-V1-CEILING-HEADER", &parts).to_vec()
}

/// Seals a ceiling to an order's first round; it is the order's own when it stands in its terms.
pub fn seal_ceiling(
    record: &MarketRecord,
    order: &Order,
    ceiling: Price,
    key: &BidKey,
) -> Result<SealedCeiling, CryptoError> {
    seal_ceiling_by(record, order, ceiling, |id, header, payload| {
        vendue_sealed_bid::seal(id, &record.seal_key, header, payload, key)
    })
}

/// [`seal_ceiling`] by whoever seals.
pub(crate) fn seal_ceiling_by(
    record: &MarketRecord,
    order: &Order,
    ceiling: Price,
    seal: impl FnOnce(&RoundId, &[u8], &[u8]) -> Result<Sealed, CryptoError>,
) -> Result<SealedCeiling, CryptoError> {
    let id = RoundId { market: record.market, epoch: record.epoch, round: order.first_round };
    let sealed = seal(&id, &ceiling_header(order), &ceiling.to_bytes())?;
    let payload = sealed.payload.try_into().map_err(|_| CryptoError::Secret("ceiling"))?;
    Ok(SealedCeiling { u: sealed.u, v: sealed.v, payload })
}

/// The lower of the public ceiling and the sealed one; none when there is no sealed one that opens.
pub(crate) fn opened_ceiling(
    order: &Order,
    open: impl Fn(&[u8], &Sealed) -> Option<Vec<u8>>,
) -> Option<Price> {
    let sealed = order.terms.sealed_ceiling.as_ref()?;
    let sealed = Sealed { u: sealed.u, v: sealed.v, payload: sealed.payload.to_vec() };
    let opened = Price::from_bytes(&open(&ceiling_header(order), &sealed)?).ok()?;
    Some(opened.min(order.requirements.max_price))
}

impl Clearing<'_> {
    /// Orders in the views of f + 1 seats that have exactly one version in A.
    pub(crate) fn candidates(&self) -> BTreeSet<Digest> {
        // Most seats know the same orders: views that are alike are gone through once.
        let mut views: BTreeMap<&[u8], (&View, usize)> = BTreeMap::new();
        for held in self.list.iter().filter(|l| self.is_single(l)).filter_map(|l| self.bundles.get(l)) {
            let view = &held.bundle.order_view;
            views.entry(view.as_flattened()).or_insert((view, 0)).1 += 1;
        }
        let f = usize::from(self.record.f());
        if let (1, Some((view, seats))) = (views.len(), views.values().next()) {
            return if *seats > f { view.iter().copied().collect() } else { BTreeSet::new() };
        }
        let mut counts: BTreeMap<&Digest, usize> = BTreeMap::new();
        for (view, seats) in views.into_values() {
            view.iter().for_each(|order| *counts.entry(order).or_default() += seats);
        }
        counts.into_iter().filter(|(_, count)| *count > f).map(|(order, _)| *order).collect()
    }

    /// Opens every admitted bundle and clears.
    pub(crate) fn run(
        &self,
        candidates: &BTreeSet<Digest>,
        beacon: &Digest,
        open: impl Fn(&[u8], &Sealed) -> Option<Vec<u8>>,
    ) -> (AwardTable, Vec<Cleared>) {
        self.with_input(candidates, beacon, open, |input, plain| {
            let cleared = clear(input);
            (self.table(beacon, plain, &cleared), cleared)
        })
    }

    /// Opens every admitted bundle and gives the inputs of clearing to `use_it`.
    fn with_input<R>(
        &self,
        candidates: &BTreeSet<Digest>,
        beacon: &Digest,
        open: impl Fn(&[u8], &Sealed) -> Option<Vec<u8>>,
        use_it: impl FnOnce(&ClearingInput<'_>, &Opened<'_>) -> R,
    ) -> R {
        let plain: Opened<'_> = self.list.iter().map(|l| (*l, self.read(l, &open))).collect();
        let garbage: BTreeSet<u16> = plain.iter().filter(|(_, p)| p.is_none()).map(|(l, _)| l.seat).collect();
        let bundles: Vec<OpenedBundle<'_>> =
            plain.iter().filter_map(|(l, p)| Some(self.opened(l, p.as_ref()?))).collect();
        let orders = self.orders_to_clear(candidates, beacon, &open);
        let input = ClearingInput {
            rules: &self.record.clearing,
            beacon,
            expires_ms: self.record.params.expiry(self.round),
            seats: self.record.n(),
            orders: &orders,
            bundles: &bundles,
            garbage: &garbage,
        };
        use_it(&input, &plain)
    }

    /// Whether a seat has one version only in the list.
    fn is_single(&self, listed: &Listed) -> bool {
        self.list.iter().filter(|l| l.seat == listed.seat).count() == 1
    }

    /// The listed orders that this round may award at all, with their ceilings.
    fn orders_to_clear(
        &self,
        candidates: &BTreeSet<Digest>,
        beacon: &Digest,
        open: impl Fn(&[u8], &Sealed) -> Option<Vec<u8>>,
    ) -> Vec<ListedOrder<'_>> {
        let p = &self.record.params;
        let (t0, step) = (p.t0(self.round), p.order_step());
        let orders: Vec<(&Digest, &Order)> = candidates
            .iter()
            .filter_map(|digest| self.orders.get_key_value(digest))
            .map(|(digest, order)| (digest, order.as_ref()))
            .filter(|(_, order)| order.market == self.record.market && may_list(order, self.round, t0, step))
            .collect();
        // Rules that do not know terms give these orders to nobody, whatever their ceilings are.
        let is_sealed =
            |order: &Order| order.terms.sealed_ceiling.is_some() && self.record.clearing.know(&order.terms);
        let mut sealed: Vec<_> =
            orders.iter().filter(|(_, o)| is_sealed(o)).map(|(d, _)| (rank(beacon, d), *d)).collect();
        sealed.sort_unstable();
        sealed.truncate(MAX_SEALED_CEILINGS);
        let opened: BTreeSet<&Digest> = sealed.into_iter().map(|(_, digest)| digest).collect();
        let ceiling = |digest: &Digest, order: &Order| match is_sealed(order) {
            false => Some(order.requirements.max_price),
            true if opened.contains(digest) => opened_ceiling(order, &open),
            true => None,
        };
        let listed =
            orders.into_iter().map(|(d, o)| ListedOrder { ceiling: ceiling(d, o), ..ListedOrder::of(*d, o) });
        listed.collect()
    }

    /// What is in one bundle; none for anything unreadable and for seats with two versions.
    fn read(&self, listed: &Listed, open: &impl Fn(&[u8], &Sealed) -> Option<Vec<u8>>) -> Option<Read<'_>> {
        if !self.is_single(listed) {
            return None;
        }
        let held = self.bundles.get(listed)?;
        let view = &held.bundle.order_view;
        let header = || seal_header(self.record, &held.header, view);
        let sealed = || Sealed { u: held.bundle.u, v: held.bundle.v, payload: held.bundle.payload.clone() };
        let bytes = match self.known {
            Some((known, bytes)) if known == listed => bytes.clone(),
            _ => open(&header(), &sealed())?,
        };
        let plain = Plaintext::from_padded(&bytes, view.len()).ok()?;
        // A plaintext has one encoding: these bytes are it.
        let digest = tagged_hash("VENDUE-V1-PLAINTEXT", &[&bytes]);
        plain.is_known_to(&self.record.clearing).then_some(Read { plain, digest, view })
    }

    fn opened<'b>(&'b self, listed: &Listed, read: &'b Read<'_>) -> OpenedBundle<'b> {
        OpenedBundle {
            seat: listed.seat,
            provider: self.record.seat(listed.seat).map(|s| s.provider.as_str()).unwrap_or_default(),
            capacity: &read.plain.capacity,
            orders: read.view,
            records: &read.plain.records,
        }
    }

    /// The leaves under the award root.
    fn table(&self, beacon: &Digest, plain: &Opened<'_>, cleared: &[Cleared]) -> AwardTable {
        let mut leaves =
            vec![Leaf::Set(self.set), Leaf::Beacon(tagged_hash("VENDUE-V1-BEACON-LEAF", &[beacon]))];
        leaves.extend(plain.iter().map(|(bundle, plain)| match plain {
            Some(read) => Leaf::Opened { bundle: *bundle, plaintext: read.digest },
            None => Leaf::Garbage(*bundle),
        }));
        // The first of a seat.
        let bundle_of: BTreeMap<u16, Digest> = plain.keys().rev().map(|l| (l.seat, l.d)).collect();
        leaves.extend(cleared.iter().map(|c| {
            let bundle = match &c.outcome {
                Outcome::Award(a) => bundle_of.get(&a.seat).copied().unwrap_or_default(),
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
}

#[cfg(test)]
mod tests;
