//! The bids of a round, by order and in order of preference, with what is left of each seat's capacity.
//!
//! Inputs: those of clearing. Invariant: what is left of a seat never becomes less than nothing, and the order of bids
//! and of orders depends on their set only.

use super::{ClearingInput, Holding, ListedOrder, NoBid, OpenedBundle, RecordKind};
use crate::rules::unservable;
use crate::{BidTerms, Bidder, Digest, OfferCapacity, Price, Reason, fit, fits, tagged_hash, take};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// The place of an order among those that are served: lowest first.
pub fn rank(beacon: &Digest, order: &Digest) -> Digest {
    tagged_hash("VENDUE-V1-RANK", &[beacon, order])
}

/// What decides between bids of one price and score: the lowest wins.
pub(super) fn tie(beacon: &Digest, order: &Digest, seat: u16) -> Digest {
    tagged_hash("VENDUE-V1-TIE", &[beacon, order, &seat.to_be_bytes()])
}

/// A bid for one order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub price: Price,
    pub seat: u16,
    pub spec: u16,
    /// Position of the record in its bundle.
    record: u32,
}

/// An order with what was said about it.
pub(super) struct Row<'a> {
    pub order: &'a ListedOrder,
    /// Bids, the preferred first.
    pub bids: Vec<Entry>,
    /// Seats that gave a reason for no bid.
    declined: Vec<NoBid>,
}

/// A bundle's remaining capacity while orders are served.
struct Open<'a> {
    bundle: &'a OpenedBundle,
    left: Vec<OfferCapacity>,
}

/// What is left of each seat's capacity.
pub(super) struct Stock<'a> {
    pub input: ClearingInput<'a>,
    open: BTreeMap<u16, Open<'a>>,
}

/// The round's orders with their bids, in the order in which they are served, and the stock that they are served from.
pub(super) fn book<'a>(input: &ClearingInput<'a>) -> (Vec<Row<'a>>, Stock<'a>) {
    let by_digest: BTreeMap<&Digest, &ListedOrder> = input.orders.iter().map(|o| (&o.digest, o)).collect();
    let mut rows: Vec<Row<'_>> =
        by_digest.into_values().map(|order| Row { order, bids: vec![], declined: vec![] }).collect();
    let readable = |b: &&OpenedBundle| b.seat < input.seats && !input.garbage.contains(&b.seat);
    let open: BTreeMap<u16, Open<'_>> = input
        .bundles
        .iter()
        .filter(readable)
        .map(|bundle| (bundle.seat, Open { bundle, left: bundle.capacity.clone() }))
        .collect();
    open.values().for_each(|o| enter(&mut rows, o.bundle));
    let scores: Vec<u64> = (0..input.seats).map(|seat| input.rules.score(seat)).collect();
    rows.iter_mut().for_each(|row| row.sort(input.beacon, &scores));
    rows.sort_by_cached_key(|row| (rank(input.beacon, &row.order.digest), row.order.digest));
    (rows, Stock { input: *input, open })
}

/// Enters the records of one bundle under their orders, which are ascending; of several for one order the first counts.
fn enter(rows: &mut [Row<'_>], bundle: &OpenedBundle) {
    let seat = bundle.seat;
    let mut at = 0;
    for (record, number) in bundle.records.iter().zip(0u32..) {
        // Views are sorted like the orders, so that the next record is nearly always for the next order.
        if rows.get(at).is_none_or(|row| row.order.digest != record.order) {
            match rows.binary_search_by(|row| row.order.digest.cmp(&record.order)) {
                Ok(found) => at = found,
                Err(_) => continue,
            }
        }
        let Some(row) = rows.get_mut(at) else { continue };
        at += 1;
        // Bundles are entered one after the other, so what this one has said is last.
        let known = row.bids.last().is_some_and(|b| b.seat == seat)
            || row.declined.last().is_some_and(|(s, _)| *s == seat);
        match record.kind {
            _ if known => {}
            RecordKind::Bid { price, spec, .. } => row.bids.push(Entry { price, seat, spec, record: number }),
            RecordKind::NoBid(reason) => row.declined.push((seat, reason)),
        }
    }
}

impl Row<'_> {
    /// By price, then the higher score, then the beacon.
    fn sort(&mut self, beacon: &Digest, scores: &[u64]) {
        let score = |b: &Entry| scores.get(usize::from(b.seat)).copied().unwrap_or(0);
        self.bids.sort_by_key(|b| (b.price, Reverse(score(b))));
        let alike = |a: &Entry, b: &Entry| a.price == b.price && score(a) == score(b);
        for tied in self.bids.chunk_by_mut(alike).filter(|tied| tied.len() > 1) {
            tied.sort_by_cached_key(|b| (tie(beacon, &self.order.digest, b.seat), b.seat));
        }
    }
}

impl<'a> Stock<'a> {
    /// The bids for an order that are feasible on what is left, the preferred first; judged as they are asked for.
    pub fn feasible(&self, row: &Row<'_>) -> impl Iterator<Item = Entry> {
        row.bids.iter().filter(|bid| self.judge(row.order, bid).is_ok()).copied()
    }

    /// Whether a bid is feasible on what its seat has left.
    fn judge(&self, order: &ListedOrder, bid: &Entry) -> Result<(), Reason> {
        if let Some(reason) = unservable(self.input.rules, order) {
            return Err(reason);
        }
        let Open { bundle, left } = self.open.get(&bid.seat).ok_or(Reason::Silent)?;
        let (rules, from_ms) = (self.input.rules, self.input.expires_ms);
        let bidder = Bidder { seat: bid.seat, provider: &bundle.provider, rules, from_ms };
        bidder.admitted(order)?;
        let spec = usize::from(bid.spec);
        let (Some(left), Some(whole)) = (left.get(spec), bundle.capacity.get(spec)) else {
            return Err(Reason::NoOffer);
        };
        bidder.serves(order, &bid_terms(bundle, bid))?;
        match fits(&order.requirements, &left.nodes) {
            Ok(()) => {}
            // It would have fitted before others were served: say so rather than name a lack that is not there.
            Err(_) if fits(&order.requirements, &whole.nodes).is_ok() => return Err(Reason::Outbid),
            Err(reason) => return Err(reason),
        }
        if order.ceiling.is_none_or(|ceiling| bid.price > ceiling) { Err(Reason::Price) } else { Ok(()) }
    }

    /// Takes the capacity of a bid that was chosen, and says which.
    pub fn hold(&mut self, order: &ListedOrder, bid: &Entry) -> Option<Holding> {
        let left = self.open.get_mut(&bid.seat)?.left.get_mut(usize::from(bid.spec))?;
        let placement = fit(&order.requirements, &left.nodes).ok()?;
        take(&mut left.nodes, &order.requirements, &placement);
        Some(Holding { seat: bid.seat, spec: bid.spec, placement })
    }

    /// Why each seat does not serve an order, ascending by seat; seats with a feasible bid are left out.
    pub fn refusals(&self, row: &Row<'_>) -> Vec<NoBid> {
        let nobody = unservable(self.input.rules, row.order);
        let unheard = |seat: u16| match self.open.contains_key(&seat) {
            true => nobody.unwrap_or(Reason::NotListed),
            false if self.input.garbage.contains(&seat) => Reason::Garbage,
            false => Reason::Silent,
        };
        let mut by_seat: BTreeMap<u16, Option<Reason>> =
            (0..self.input.seats).map(|seat| (seat, Some(unheard(seat)))).collect();
        if nobody.is_none() {
            by_seat.extend(row.declined.iter().map(|(seat, reason)| (*seat, Some(*reason))));
            by_seat.extend(row.bids.iter().map(|b| (b.seat, self.judge(row.order, b).err())));
        }
        by_seat.into_iter().filter_map(|(seat, reason)| Some((seat, reason?))).collect()
    }

    /// What a seat had to offer under one of its specs before anything was held.
    pub fn whole(&self, bid: &Entry) -> Option<&'a OfferCapacity> {
        self.open.get(&bid.seat)?.bundle.capacity.get(usize::from(bid.spec))
    }
}

fn bid_terms(bundle: &OpenedBundle, bid: &Entry) -> BidTerms {
    match bundle.records.get(bid.record as usize).map(|r| r.kind) {
        Some(RecordKind::Bid { terms, .. }) => terms,
        _ => BidTerms::default(),
    }
}
