//! Clearing: opened bundles and the round's beacon in, one outcome per order out.
//!
//! Orders are served in an order that the beacon fixes. Each goes to the feasible bid with the lowest price (equal
//! prices by score, then by a hash of beacon, order and seat) and pays that price, or the next feasible one where the
//! order says so. Stand-bys are chosen after all winners from the capacity that is left. The result depends on the
//! *set* of inputs only, never on their sequence, and no seat is ever given more than the capacity in its bundle.
//!
//! A bid is judged when its turn comes, so a round costs little more than reading its bids. Why a seat did not win is not
//! worked out here but by [`explain`], from the same inputs.

use crate::encode::{Canonical, DecodeError, Reader, Writer, hex_option};
use crate::{BidTerms, ClearingRules, Digest, Histogram, OfferCapacity, Order, Placement, Price, Reason};
use crate::{Requirements, Terms};
use book::{Book, Row};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use stock::Stock;

mod book;
mod explain;
mod stock;

pub use book::rank;
pub use explain::{Explanation, SeatVerdict, Verdict, explain};

/// Most stand-bys chosen for an order.
pub const STAND_BYS: usize = 2;

/// An order that takes part in the round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedOrder<'a> {
    /// The order's digest.
    pub digest: Digest,
    /// What it needs.
    pub requirements: &'a Requirements,
    /// What it asks for beyond that.
    pub terms: &'a Terms,
    /// The highest price that it accepts; none when it is sealed and does not open.
    pub ceiling: Option<Price>,
}

impl<'a> ListedOrder<'a> {
    /// The order as everybody can read it: its ceiling is the public one.
    pub fn of(digest: Digest, order: &'a Order) -> Self {
        let (requirements, terms) = (&order.requirements, order.terms.as_ref());
        Self { digest, ceiling: Some(requirements.max_price), requirements, terms }
    }
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenedBundle<'a> {
    /// The seat.
    pub seat: u16,
    /// The provider's name in the market record.
    pub provider: &'a str,
    /// Capacity by offer.
    pub capacity: &'a [OfferCapacity],
    /// The orders that the seat speaks of.
    pub orders: &'a [Digest],
    /// What it says of each; of several records for one order the first counts.
    pub records: &'a [RecordKind],
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
    /// What that offer binds its devices by.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "hex_option")]
    pub devices: Option<Digest>,
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
    /// What that offer binds its devices by.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "hex_option")]
    pub devices: Option<Digest>,
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
    pub orders: &'a [ListedOrder<'a>],
    /// The opened bundles, one of a seat.
    pub bundles: &'a [OpenedBundle<'a>],
    /// Seats whose admitted bundle could not be read.
    pub garbage: &'a BTreeSet<u16>,
}

/// Clears a round. The result is sorted by order digest.
pub fn clear(input: &ClearingInput<'_>) -> Vec<Cleared> {
    let book = Book::new(input);
    clear_from(&book, &mut Stock::new(&book))
}

/// Clears a round from what nobody holds anything of yet.
fn clear_from<'a>(book: &Book<'a>, stock: &mut Stock<'_, 'a>) -> Vec<Cleared> {
    let mut all: Vec<Option<Cleared>> = vec![None; book.rows.len()];
    for row in book.turns() {
        if let Some(cleared) = all.get_mut(row.at) {
            *cleared = Some(serve(stock, row));
        }
    }
    // Stand-bys only from what all winners left over.
    for row in book.turns() {
        let Some(Some(Cleared { outcome: Outcome::Award(award), holdings, .. })) = all.get_mut(row.at) else {
            continue;
        };
        for (bid, placement) in stock.best(row, STAND_BYS, Some(award.seat)) {
            let devices = stock.devices(&bid);
            award.stand_bys.push(StandBy { seat: bid.seat, price: bid.price, spec: bid.spec, devices });
            holdings.push(stock.hold(row, &bid, placement));
        }
    }
    all.into_iter().flatten().collect()
}

/// Gives one order to the best feasible bid.
fn serve<'a>(stock: &mut Stock<'_, 'a>, row: &Row<'a>) -> Cleared {
    let order = row.order;
    // The next bid is looked for only where it sets the price.
    let wanted = if order.terms.second_price { 2 } else { 1 };
    let mut best = stock.best(row, wanted, None).into_iter();
    let (Some((winner, placement)), next) = (best.next(), best.next()) else {
        let no_bids = stock.refusals(row);
        let histogram = Histogram::of(stock.seats(), no_bids.iter().map(|(_, reason)| *reason));
        let outcome = Outcome::None(histogram);
        return Cleared { order: order.digest, outcome, no_bids, holdings: vec![] };
    };
    let price = match (order.terms.second_price, next, order.ceiling) {
        (true, Some((next, _)), _) => next.price,
        (true, None, Some(ceiling)) => ceiling,
        _ => winner.price,
    };
    let stand_bys = Vec::with_capacity(STAND_BYS);
    let devices = stock.devices(&winner);
    let award = Award { seat: winner.seat, price, spec: winner.spec, devices, stand_bys };
    let mut holdings = Vec::with_capacity(1 + STAND_BYS);
    holdings.push(stock.hold(row, &winner, placement));
    Cleared { order: order.digest, outcome: Outcome::Award(award), no_bids: vec![], holdings }
}

impl Award {
    /// The seats that may serve, the winner first, with what their offers bind their devices by.
    pub fn bound(&self) -> impl Iterator<Item = (u16, Option<Digest>)> {
        std::iter::once((self.seat, self.devices)).chain(self.stand_bys.iter().map(|s| (s.seat, s.devices)))
    }
    fn bound_mut(&mut self) -> impl Iterator<Item = &mut Option<Digest>> {
        std::iter::once(&mut self.devices).chain(self.stand_bys.iter_mut().map(|s| &mut s.devices))
    }
    /// A bit for each of [`Award::bound`] that binds devices.
    fn binding(&self) -> u8 {
        let bits = self.bound().zip(0u8..8).map(|((_, devices), bit)| u8::from(devices.is_some()) << bit);
        bits.fold(0, |mask, bit| mask | bit)
    }
    fn write(&self, w: &mut Writer) {
        w.u16(self.seat);
        self.price.write(w);
        w.u16(self.spec).list(&self.stand_bys, |w, s| {
            w.u16(s.seat);
            s.price.write(w);
            w.u16(s.spec);
        });
    }
    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            seat: r.u16()?,
            price: Price::read(r)?,
            spec: r.u16()?,
            devices: None,
            stand_bys: r.list("stand-bys", STAND_BYS, |r| {
                Ok(StandBy { seat: r.u16()?, price: Price::read(r)?, spec: r.u16()?, devices: None })
            })?,
        })
    }
    /// Reads what follows an award of which somebody binds devices.
    fn read_devices(&mut self, r: &mut Reader<'_>) -> Result<(), DecodeError> {
        let mask = r.u8()?;
        for (devices, _) in self.bound_mut().zip(0u8..8).filter(|(_, bit)| mask >> bit & 1 == 1) {
            *devices = Some(r.array()?);
        }
        // Bits of nobody, or no bit at all, would be a second encoding.
        if mask == 0 || self.binding() != mask {
            return Err(DecodeError::Invalid("devices of an award"));
        }
        Ok(())
    }
}

/// Kinds of outcomes.
const NOBODY: u8 = 0;
const AWARD: u8 = 1;
const AWARD_WITH_DEVICES: u8 = 2;

impl Canonical for Outcome {
    fn write(&self, w: &mut Writer) {
        match self {
            Outcome::Award(award) => match award.binding() {
                0 => award.write(w.u8(AWARD)),
                mask => {
                    award.write(w.u8(AWARD_WITH_DEVICES));
                    w.u8(mask);
                    for devices in award.bound().filter_map(|(_, devices)| devices) {
                        w.raw(&devices);
                    }
                }
            },
            Outcome::None(histogram) => {
                w.u8(NOBODY);
                histogram.write(w);
            }
        }
    }
    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match r.u8()? {
            NOBODY => Ok(Outcome::None(Histogram::read(r)?)),
            AWARD => Award::read(r).map(Outcome::Award),
            AWARD_WITH_DEVICES => {
                let mut award = Award::read(r)?;
                award.read_devices(r)?;
                Ok(Outcome::Award(award))
            }
            _ => Err(DecodeError::Invalid("outcome")),
        }
    }
}

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod properties;
#[cfg(test)]
pub(crate) mod tests;
#[cfg(test)]
mod work;
