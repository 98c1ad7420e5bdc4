//! Why an order went where it did: one verdict for each seat.
//!
//! Inputs: those of clearing, what it made of them, and an order. Output: the winner, what it is paid, and for every
//! other seat the one thing that decided against it. Invariant: the verdicts follow from the capacity that was left
//! when the order's turn came, which is found by holding again what the winners before it hold.

use super::book::{Book, Entry, Row, tie};
use super::stock::Stock;
use super::{Cleared, ClearingInput, Outcome, STAND_BYS};
use crate::{Digest, Price, Reason, encode, fits, take};
use serde::Serialize;
use std::fmt;

/// What decided about one seat and one order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It won.
    Won {
        /// What it is paid per GPU-hour.
        paid: Price,
    },
    /// It had no feasible bid.
    NotFeasible(Reason),
    /// Its capacity had gone to an order that was served before.
    CapacityTaken {
        /// The order after which it no longer fitted.
        #[serde(with = "encode::hex_array")]
        by: Digest,
    },
    /// The winner bid less.
    PriceHigher {
        /// The winner's bid.
        winning: Price,
    },
    /// The winner bid the same and has the higher score.
    ScoreLower {
        /// The seat's score.
        score: u64,
        /// The winner's.
        winning: u64,
    },
    /// The winner bid the same with the same score, and its hash is the lower.
    TieLost {
        /// The seat's hash of beacon, order and seat.
        #[serde(with = "encode::hex_array")]
        hash: Digest,
        /// The winner's.
        #[serde(with = "encode::hex_array")]
        winning: Digest,
    },
}

/// One seat and one order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SeatVerdict {
    /// The seat.
    pub seat: u16,
    /// Its own price, if it bid.
    pub bid: Option<Price>,
    /// Its rank among the stand-bys, from 1.
    pub stand_by: Option<u8>,
    /// Why it won or did not.
    pub verdict: Verdict,
}

/// Why one order went where it did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The order.
    #[serde(with = "encode::hex_array")]
    pub order: Digest,
    /// Its turn among the orders of the round, from 1.
    pub turn: usize,
    /// All seats, ascending.
    pub seats: Vec<SeatVerdict>,
}

/// Explains one order of a round; none when the order is not in it. `cleared` is what [`super::clear`] makes of `input`.
pub fn explain(input: &ClearingInput<'_>, cleared: &[Cleared], order: &Digest) -> Option<Explanation> {
    let book = Book::new(input);
    let mut stock = Stock::new(&book);
    let turn = book.turns().position(|row| &row.order.digest == order)?;
    let before: Vec<&Row<'_>> = book.turns().take(turn).collect();
    let row = book.turns().nth(turn)?;
    for earlier in &before {
        if let Some(winner) = winning_bid(&book, cleared, earlier) {
            stock.hold_again(earlier, &winner);
        }
    }
    let own = of(cleared, order)?;
    let winner = winning_bid(&book, cleared, row);
    let refusals = stock.refusals(row);
    let seats = (0..input.seats)
        .map(|seat| {
            let bid = book.bid(row, seat);
            let refused = refusals.iter().find(|(s, _)| *s == seat).map(|(_, reason)| *reason);
            let verdict = match (refused, &bid, winner, &own.outcome) {
                (Some(Reason::Outbid), Some(bid), ..) => taken(&stock, cleared, &before, row, bid),
                (Some(reason), ..) => Verdict::NotFeasible(reason),
                (None, Some(bid), Some(winner), Outcome::Award(award)) => {
                    compared(input, row, bid, &winner, award.price)
                }
                // Only with outcomes of other inputs.
                _ => Verdict::NotFeasible(Reason::NotListed),
            };
            SeatVerdict { seat, bid: bid.map(|b| b.price), stand_by: stand_by(own, seat), verdict }
        })
        .collect();
    Some(Explanation { order: *order, turn: turn + 1, seats })
}

/// What became of an order.
fn of<'c>(cleared: &'c [Cleared], order: &Digest) -> Option<&'c Cleared> {
    cleared.get(cleared.binary_search_by(|c| c.order.cmp(order)).ok()?)
}

/// The bid that won an order.
fn winning_bid(book: &Book<'_>, cleared: &[Cleared], row: &Row<'_>) -> Option<Entry> {
    let Outcome::Award(award) = &of(cleared, &row.order.digest)?.outcome else { return None };
    book.bid(row, award.seat)
}

fn stand_by(cleared: &Cleared, seat: u16) -> Option<u8> {
    let Outcome::Award(award) = &cleared.outcome else { return None };
    award.stand_bys.iter().take(STAND_BYS).zip(1u8..).find(|(s, _)| s.seat == seat).map(|(_, rank)| rank)
}

/// A feasible bid against the one that won.
fn compared(input: &ClearingInput<'_>, row: &Row<'_>, bid: &Entry, winner: &Entry, paid: Price) -> Verdict {
    if bid.seat == winner.seat {
        return Verdict::Won { paid };
    }
    if bid.price > winner.price {
        return Verdict::PriceHigher { winning: winner.price };
    }
    let (score, winning) = (input.rules.score(bid.seat), input.rules.score(winner.seat));
    if score < winning {
        return Verdict::ScoreLower { score, winning };
    }
    let hash = |seat| tie(input.beacon, &row.order.digest, seat);
    Verdict::TieLost { hash: hash(bid.seat), winning: hash(winner.seat) }
}

/// The order served before after which a bid no longer fitted.
fn taken(
    stock: &Stock<'_, '_>,
    cleared: &[Cleared],
    before: &[&Row<'_>],
    row: &Row<'_>,
    bid: &Entry,
) -> Verdict {
    let none = Verdict::NotFeasible(Reason::Outbid);
    let Some(whole) = stock.whole(bid) else { return none };
    let mut nodes = whole.nodes.clone();
    for Row { order, .. } in before {
        let held = of(cleared, &order.digest).and_then(|c| c.holdings.first());
        let Some(held) = held.filter(|h| (h.seat, h.spec) == (bid.seat, bid.spec)) else { continue };
        take(&mut nodes, order.requirements, &held.placement);
        if fits(row.order.requirements, &nodes).is_err() {
            return Verdict::CapacityTaken { by: order.digest };
        }
    }
    none
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |digest: &Digest| encode::to_hex(digest.get(..6).unwrap_or_default());
        match self {
            Verdict::Won { paid } => write!(f, "won, is paid {paid}"),
            Verdict::NotFeasible(reason) => write!(f, "not feasible: {reason}"),
            Verdict::CapacityTaken { by } => write!(f, "capacity went to order {}", short(by)),
            Verdict::PriceHigher { winning } => write!(f, "price is above {winning}"),
            Verdict::ScoreLower { score, winning } => {
                write!(f, "same price, score {score} is below {winning}")
            }
            Verdict::TieLost { hash, winning } => {
                write!(f, "same price, lost the tie: {} is above {}", short(hash), short(winning))
            }
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "order {}, turn {}", encode::to_hex(&self.order), self.turn)?;
        for s in &self.seats {
            write!(f, "\n  seat {}: ", s.seat)?;
            if let Some(bid) = s.bid {
                write!(f, "bid {bid}, ")?;
            }
            if let Some(rank) = s.stand_by {
                write!(f, "stand-by {rank}, ")?;
            }
            write!(f, "{}", s.verdict)?;
        }
        Ok(())
    }
}
