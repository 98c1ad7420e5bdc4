//! Clearing: opened bundles and the round's beacon in, one outcome per order out.
//!
//! Orders are served in an order that the beacon fixes. Each goes to the feasible bid with the lowest price (equal
//! prices by score, then by a hash of beacon, order and seat) and pays that price, or the next feasible one where the
//! order says so. Stand-bys are chosen after all winners from the capacity that is left. The result depends on the
//! *set* of inputs only, never on their sequence, and no seat is ever given more than the capacity in its bundle.
//!
//! A bid is judged when its turn comes, so a round costs about as much as its bids are many. Why a seat did not win is
//! not worked out here but by [`explain`], from the same inputs.

use crate::encode::{Canonical, DecodeError, Reader, Writer};
use crate::{BidTerms, ClearingRules, Digest, Histogram, OfferCapacity, Order, Placement, Price, Reason};
use crate::{Requirements, Terms};
use book::{Row, Stock, book};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

mod book;
mod explain;

pub use book::rank;
pub use explain::{Explanation, SeatVerdict, Verdict, explain};

/// Most stand-bys chosen for an order.
pub const STAND_BYS: usize = 2;

/// An order that takes part in the round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedOrder {
    /// The order's digest.
    pub digest: Digest,
    /// What it needs.
    pub requirements: Requirements,
    /// What it asks for beyond that.
    pub terms: Terms,
    /// The highest price that it accepts; none when it is sealed and does not open.
    pub ceiling: Option<Price>,
}

impl ListedOrder {
    /// The order as everybody can read it: its ceiling is the public one.
    pub fn of(digest: Digest, order: &Order) -> Self {
        let (requirements, terms) = (order.requirements.clone(), order.terms.as_ref().clone());
        Self { digest, ceiling: Some(requirements.max_price), requirements, terms }
    }
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
        /// What is promised beyond the price.
        terms: BidTerms,
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

/// A seat without a feasible bid for an order and why.
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
    /// Price per GPU-hour that the winner is paid.
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

/// One order's outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cleared {
    /// The order.
    pub order: Digest,
    /// What became of it.
    pub outcome: Outcome,
    /// All seats with the reason why they do not serve it, ascending by seat, when nobody does; else nothing, because
    /// [`explain`] says it where it is asked for.
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

/// Everything that a round's outcomes follow from.
#[derive(Debug, Clone, Copy)]
pub struct ClearingInput<'a> {
    /// The market's rules.
    pub rules: &'a ClearingRules,
    /// The round's beacon.
    pub beacon: &'a Digest,
    /// When the round's awards expire, in milliseconds since 1970; a run that is awarded starts no later.
    pub expires_ms: u64,
    /// Seats of the market.
    pub seats: u16,
    /// The orders.
    pub orders: &'a [ListedOrder],
    /// The opened bundles, one of a seat.
    pub bundles: &'a [OpenedBundle],
    /// Seats whose admitted bundle could not be read.
    pub garbage: &'a BTreeSet<u16>,
}

/// Clears a round. The result is sorted by order digest.
pub fn clear(input: &ClearingInput<'_>) -> Vec<Cleared> {
    let (rows, mut stock) = book(input);
    let mut cleared: Vec<Cleared> = rows.iter().map(|row| serve(&mut stock, row)).collect();
    // Stand-bys only from what all winners left over.
    for (row, cleared) in rows.iter().zip(&mut cleared) {
        let Outcome::Award(award) = &mut cleared.outcome else { continue };
        let winner = award.seat;
        let others = stock.feasible(row).filter(|bid| bid.seat != winner).take(STAND_BYS);
        for bid in others.collect::<Vec<_>>() {
            award.stand_bys.push(StandBy { seat: bid.seat, price: bid.price, spec: bid.spec });
            cleared.holdings.extend(stock.hold(row.order, &bid));
        }
    }
    cleared.sort_by_key(|c| c.order);
    cleared
}

/// Gives one order to the best feasible bid.
fn serve(stock: &mut Stock<'_>, row: &Row<'_>) -> Cleared {
    let Row { order, .. } = row;
    let (winner, next) = {
        let mut feasible = stock.feasible(row);
        let winner = feasible.next();
        // The next bid is looked for only where it sets the price.
        let next = if order.terms.second_price { feasible.next() } else { None };
        (winner, next)
    };
    let Some(winner) = winner else {
        let no_bids = stock.refusals(row);
        let mut histogram = Histogram::new(stock.input.seats);
        no_bids.iter().for_each(|(_, reason)| histogram.add(*reason));
        let outcome = Outcome::None(histogram);
        return Cleared { order: order.digest, outcome, no_bids, holdings: vec![] };
    };
    let price = match (order.terms.second_price, next, order.ceiling) {
        (true, Some(next), _) => next.price,
        (true, None, Some(ceiling)) => ceiling,
        _ => winner.price,
    };
    let award = Award { seat: winner.seat, price, spec: winner.spec, stand_bys: vec![] };
    let holdings = stock.hold(order, &winner).into_iter().collect();
    Cleared { order: order.digest, outcome: Outcome::Award(award), no_bids: vec![], holdings }
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
mod properties;
#[cfg(test)]
mod tests;
