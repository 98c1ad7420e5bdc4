//! Clearing: opened bundles and the round's beacon in, one outcome per order out.
//!
//! Orders are served in an order that the beacon fixes. Each goes to the feasible bid with the lowest price (ties by
//! a hash of beacon, order and seat) and pays that price. Stand-bys are chosen after all winners from the capacity
//! that is left. The result depends on the *set* of inputs only, never on their sequence, and no seat is ever given
//! more than the capacity in its bundle.

use crate::encode::{Canonical, DecodeError, Reader, Writer};
use crate::{Digest, Histogram, OfferCapacity, Placement, Price, Reason, Requirements};
use crate::{fit, screen, tagged_hash, take};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Stand-bys chosen for each order.
pub const STAND_BYS: usize = 2;

/// An order that takes part in the round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedOrder {
    /// The order's digest.
    pub digest: Digest,
    /// What it needs.
    pub requirements: Requirements,
}

/// One seat's word on one order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The order.
    pub order: Digest,
    /// A bid, or why there is none.
    pub kind: RecordKind,
}

/// A bid or a reason for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordKind {
    /// The seat would serve the order.
    Bid {
        /// Price per GPU-hour.
        price: Price,
        /// Which of the bundle's offers would serve it.
        spec: u16,
    },
    /// The seat would not.
    NoBid(Reason),
}

/// One admitted and opened bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenedBundle {
    /// The seat.
    pub seat: u16,
    /// The provider's name in the market record.
    pub provider: String,
    /// Capacity by offer.
    pub capacity: Vec<OfferCapacity>,
    /// At most one record per order.
    pub records: Vec<Record>,
}

/// A seat that did not win an order and why.
pub type NoBid = (u16, Reason);

/// A seat that serves an order when those before it do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandBy {
    /// The seat.
    pub seat: u16,
    /// Its own bid price.
    pub price: Price,
    /// Which of its offers.
    pub spec: u16,
}

/// An order given to a seat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Award {
    /// The winner.
    pub seat: u16,
    /// Price per GPU-hour.
    pub price: Price,
    /// Which of the winner's offers.
    pub spec: u16,
    /// Ranked stand-bys, at most `STAND_BYS`.
    pub stand_bys: Vec<StandBy>,
}

/// What became of one order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It was given to a seat.
    Award(Award),
    /// Nobody serves it.
    None(Histogram),
}

/// One order's outcome, and why each other seat did not win it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cleared {
    /// The order.
    pub order: Digest,
    /// What became of it.
    pub outcome: Outcome,
    /// Seats that had no feasible bid, with the reason, ascending by seat.
    pub no_bids: Vec<NoBid>,
    /// Where the winner, then the stand-bys, would run it; not part of what is certified.
    pub holdings: Vec<Holding>,
}

/// Capacity of a bundle that an order holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// The seat.
    pub seat: u16,
    /// Which of its offers.
    pub spec: u16,
    /// Which nodes of that offer.
    pub placement: Placement,
}

/// A bundle's remaining capacity while orders are served.
struct Open<'a> {
    bundle: &'a OpenedBundle,
    records: BTreeMap<Digest, RecordKind>,
    left: Vec<OfferCapacity>,
}

impl<'a> Open<'a> {
    fn new(bundle: &'a OpenedBundle) -> Self {
        // Of several records for one order the first counts.
        let records = bundle.records.iter().rev().map(|r| (r.order, r.kind)).collect();
        Self { bundle, records, left: bundle.capacity.clone() }
    }
}

/// Clears a round of a market with `seats` seats. `garbage` names seats whose admitted bundle could not be read.
///
/// The result is sorted by order digest.
pub fn clear(
    beacon: &Digest,
    seats: u16,
    orders: &[ListedOrder],
    bundles: &[OpenedBundle],
    garbage: &BTreeSet<u16>,
) -> Vec<Cleared> {
    let mut open: BTreeMap<u16, Open<'_>> = bundles
        .iter()
        .filter(|b| b.seat < seats && !garbage.contains(&b.seat))
        .map(|b| (b.seat, Open::new(b)))
        .collect();
    let mut queue: BTreeMap<(Digest, Digest), &ListedOrder> = BTreeMap::new();
    for order in orders {
        queue.insert((tagged_hash("VENDUE-V1-RANK", &[beacon, &order.digest]), order.digest), order);
    }
    let mut cleared = BTreeMap::new();
    for order in queue.values() {
        cleared.insert(order.digest, serve(beacon, seats, order, &mut open, garbage));
    }
    // Stand-bys only from what all winners left over.
    for order in queue.values() {
        if let Some(Cleared { outcome: Outcome::Award(award), holdings, .. }) = cleared.get_mut(&order.digest)
        {
            for (c, placement) in stand_bys(beacon, order, award.seat, &mut open) {
                award.stand_bys.push(StandBy { seat: c.seat, price: c.price, spec: c.spec });
                holdings.push(Holding { seat: c.seat, spec: c.spec, placement });
            }
        }
    }
    cleared.into_values().collect()
}

/// A feasible bid; the derived order is the order of preference.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    price: Price,
    tie: Digest,
    seat: u16,
    spec: u16,
}

/// Gives one order to the best feasible bid.
fn serve(
    beacon: &Digest,
    seats: u16,
    order: &ListedOrder,
    open: &mut BTreeMap<u16, Open<'_>>,
    garbage: &BTreeSet<u16>,
) -> Cleared {
    let mut no_bids = Vec::new();
    let mut best: Option<(Candidate, Placement)> = None;
    for seat in 0..seats {
        let found = match open.get(&seat) {
            Some(o) => candidate(beacon, order, o),
            None if garbage.contains(&seat) => Err(Reason::Garbage),
            None => Err(Reason::Silent),
        };
        match found {
            Ok(c) if best.as_ref().is_none_or(|(b, _)| c.0 < *b) => best = Some(c),
            Ok(_) => {}
            Err(reason) => no_bids.push((seat, reason)),
        }
    }
    let mut holdings = Vec::new();
    let outcome = match best {
        Some((c, placement)) => {
            commit(open, &c, &order.requirements, &placement);
            holdings.push(Holding { seat: c.seat, spec: c.spec, placement });
            Outcome::Award(Award { seat: c.seat, price: c.price, spec: c.spec, stand_bys: vec![] })
        }
        None => {
            let mut histogram = Histogram::new(seats);
            no_bids.iter().for_each(|(_, reason)| histogram.add(*reason));
            Outcome::None(histogram)
        }
    };
    Cleared { order: order.digest, outcome, no_bids, holdings }
}

/// One seat's bid for an order, if it is feasible on what the seat has left.
fn candidate(
    beacon: &Digest,
    order: &ListedOrder,
    open: &Open<'_>,
) -> Result<(Candidate, Placement), Reason> {
    let req = &order.requirements;
    let (price, spec) = match open.records.get(&order.digest).ok_or(Reason::NotListed)? {
        RecordKind::Bid { price, spec } => (*price, *spec),
        RecordKind::NoBid(reason) => return Err(*reason),
    };
    screen(req, &open.bundle.provider)?;
    let (Some(left), Some(whole)) =
        (open.left.get(usize::from(spec)), open.bundle.capacity.get(usize::from(spec)))
    else {
        return Err(Reason::NoOffer);
    };
    let placement = match fit(req, &left.nodes) {
        Ok(placement) => placement,
        // It would have fitted before others were served: say so rather than name a lack that is not there.
        Err(_) if fit(req, &whole.nodes).is_ok() => return Err(Reason::Outbid),
        Err(reason) => return Err(reason),
    };
    if price > req.max_price {
        return Err(Reason::Price);
    }
    let seat = open.bundle.seat;
    let tie = tagged_hash("VENDUE-V1-TIE", &[beacon, &order.digest, &seat.to_be_bytes()]);
    Ok((Candidate { price, tie, seat, spec }, placement))
}

/// Takes the capacity of a chosen bid.
fn commit(open: &mut BTreeMap<u16, Open<'_>>, c: &Candidate, req: &Requirements, placement: &Placement) {
    if let Some(left) = open.get_mut(&c.seat).and_then(|o| o.left.get_mut(usize::from(c.spec))) {
        take(&mut left.nodes, req, placement);
    }
}

/// The next best feasible seats for an order that has a winner; their capacity is held too.
fn stand_bys(
    beacon: &Digest,
    order: &ListedOrder,
    winner: u16,
    open: &mut BTreeMap<u16, Open<'_>>,
) -> Vec<(Candidate, Placement)> {
    let mut found: Vec<_> = open
        .iter()
        .filter(|(seat, _)| **seat != winner)
        .filter_map(|(_, o)| candidate(beacon, order, o).ok())
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found.truncate(STAND_BYS);
    for (c, placement) in &found {
        commit(open, c, &order.requirements, placement);
    }
    found
}

impl Canonical for Outcome {
    fn write(&self, w: &mut Writer) {
        match self {
            Outcome::Award(a) => {
                w.u8(1).u16(a.seat);
                a.price.write(w);
                w.u16(a.spec).list(&a.stand_bys, |w, s| {
                    w.u16(s.seat);
                    s.price.write(w);
                    w.u16(s.spec);
                });
            }
            Outcome::None(histogram) => {
                w.u8(0);
                histogram.write(w);
            }
        }
    }
    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match r.u8()? {
            0 => Ok(Outcome::None(Histogram::read(r)?)),
            1 => Ok(Outcome::Award(Award {
                seat: r.u16()?,
                price: Price::read(r)?,
                spec: r.u16()?,
                stand_bys: r.list("stand-bys", STAND_BYS, |r| {
                    Ok(StandBy { seat: r.u16()?, price: Price::read(r)?, spec: r.u16()? })
                })?,
            })),
            _ => Err(DecodeError::Invalid("outcome")),
        }
    }
}

#[cfg(test)]
mod tests;
