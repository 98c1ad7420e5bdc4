//! What is in the log.

use crate::award::Certificate;
use crate::bid::{LocalBids, OfferedPart, OwnBid};
use crate::params::Params;
use crate::plaintext;
use crate::wire::{Header, Kind, Listed, MAX_MESSAGE, MAX_ORDERS, peek_kind};
use vendue_market::encode::{Canonical, DecodeError, Reader, Writer};
use vendue_market::{Digest, MAX_NODES, MAX_OFFERS, NodeCapacity, OfferCapacity, Order, Reason};

/// Longest local name of an offer or node.
const MAX_NAME: usize = 1024;

/// What a seat answered when a home asked it to hold devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The devices are held; ACCEPT may be out.
    Held,
    /// They are not; REFUSE may be out.
    Refused(Reason),
    /// The user chose this seat.
    Taken,
}

/// One entry of the log.
#[derive(Debug, Clone, PartialEq)]
pub enum LogRecord {
    /// The seat starts, or watches again: it takes part only in rounds that begin at `until_ms` or later.
    Observe {
        /// When.
        at_ms: u64,
        /// Until when.
        until_ms: u64,
    },
    /// What the seat bids; its capacity is promised until the round is decided or expires.
    Bids {
        /// When.
        at_ms: u64,
        /// The round.
        round: u64,
        /// The bids.
        bids: Box<LocalBids>,
    },
    /// A message of a round that this seat signed.
    Said {
        /// When.
        at_ms: u64,
        /// The message.
        bytes: Vec<u8>,
    },
    /// The list behind a set that this seat votes for.
    List {
        /// The round.
        round: u64,
        /// The admitted bundles.
        list: Vec<Listed>,
    },
    /// A round is decided.
    Certified {
        /// When.
        at_ms: u64,
        /// Its certificate.
        certificate: Certificate,
    },
    /// Capacity is kept for an order that was won, or that this seat stands by for.
    Promise {
        /// The order.
        order: Digest,
        /// Who placed it.
        home: u16,
        /// The round.
        round: u64,
        /// Until when.
        until_ms: u64,
        /// Capacity by node.
        usage: Vec<(String, NodeCapacity)>,
    },
    /// What a home was told about an order.
    HandOver {
        /// The order.
        order: Digest,
        /// Who placed it.
        home: u16,
        /// The round.
        round: u64,
        /// Until when it matters.
        until_ms: u64,
        /// The answer.
        answer: Answer,
    },
    /// Nothing is kept for an order any more.
    Freed {
        /// The order.
        order: Digest,
    },
    /// A message of a round that this seat received, and that told it something; only kept for replay. In a generation of
    /// keys, a dealing that this seat acknowledges.
    Heard {
        /// When.
        at_ms: u64,
        /// The message.
        bytes: Vec<u8>,
    },
    /// Order bodies that a round was given; only kept for replay.
    Orders {
        /// When.
        at_ms: u64,
        /// The round.
        round: u64,
        /// The orders.
        orders: Vec<Order>,
    },
    /// From here on the log does not hold what a round was given; it cannot be replayed.
    Omitted {
        /// When.
        at_ms: u64,
        /// The round.
        round: u64,
    },
}

/// Whether a message is one that seats say before the attempts of a key generation.
fn is_about_keys(bytes: &[u8]) -> bool {
    matches!(peek_kind(bytes), Some(Kind::DealKey | Kind::Deal | Kind::Acks))
}

impl LogRecord {
    /// The round that a record is about.
    pub fn round(&self) -> Option<u64> {
        match self {
            LogRecord::Bids { round, .. }
            | LogRecord::List { round, .. }
            | LogRecord::Orders { round, .. }
            | LogRecord::Omitted { round, .. } => Some(*round),
            LogRecord::Said { bytes, .. } | LogRecord::Heard { bytes, .. } => {
                Header::read(&mut Reader::new(bytes)).ok().map(|h| h.round)
            }
            LogRecord::Certified { certificate, .. } => Some(certificate.round),
            LogRecord::Observe { .. }
            | LogRecord::Promise { .. }
            | LogRecord::HandOver { .. }
            | LogRecord::Freed { .. } => None,
        }
    }

    /// When it was written, where that matters.
    pub fn at_ms(&self) -> Option<u64> {
        match self {
            LogRecord::Observe { at_ms, .. }
            | LogRecord::Bids { at_ms, .. }
            | LogRecord::Said { at_ms, .. }
            | LogRecord::Certified { at_ms, .. }
            | LogRecord::Heard { at_ms, .. }
            | LogRecord::Orders { at_ms, .. }
            | LogRecord::Omitted { at_ms, .. } => Some(*at_ms),
            _ => None,
        }
    }

    /// Whether the record is there for replay only; a restart goes on without it.
    pub fn is_for_replay(&self) -> bool {
        match self {
            LogRecord::Orders { .. } | LogRecord::Omitted { .. } => true,
            LogRecord::Heard { bytes, .. } => !is_about_keys(bytes),
            _ => false,
        }
    }

    /// Until when a restart needs the record. A log may forget records from its beginning on once their time is over;
    /// the last [`LogRecord::Observe`] stays, for it shows that there is a log at all.
    pub fn needed_until_ms(&self, params: &Params) -> u64 {
        if self.is_for_replay() { 0 } else { self.goes_on_until_ms(params) }
    }

    /// Until when what the record is about goes on.
    pub fn goes_on_until_ms(&self, params: &Params) -> u64 {
        match self {
            LogRecord::Promise { until_ms, .. } | LogRecord::HandOver { until_ms, .. } => *until_ms,
            // A log that begins with these is that of a key generation, of which all is needed until its folder is removed.
            LogRecord::Said { bytes, .. } | LogRecord::Heard { bytes, .. } if is_about_keys(bytes) => {
                u64::MAX
            }
            other => other.round().map_or(0, |round| params.expiry(round)),
        }
    }

    /// The record's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        match self {
            LogRecord::Observe { at_ms, until_ms } => {
                w.u8(1).u64(*at_ms).u64(*until_ms);
            }
            LogRecord::Bids { at_ms, round, bids } => {
                w.u8(2).u64(*at_ms).u64(*round);
                write_bids(&mut w, bids);
            }
            LogRecord::Said { at_ms, bytes } => {
                w.u8(3).u64(*at_ms).bytes(bytes);
            }
            LogRecord::List { round, list } => {
                w.u8(4).u64(*round).list(list, |w, l| {
                    w.u16(l.seat).raw(&l.d);
                });
            }
            LogRecord::Certified { at_ms, certificate } => {
                w.u8(5).u64(*at_ms);
                certificate.write(&mut w);
            }
            LogRecord::Promise { order, home, round, until_ms, usage } => {
                w.u8(6).raw(order).u16(*home).u64(*round).u64(*until_ms);
                w.list(usage, |w, (name, capacity)| {
                    w.str(name);
                    capacity.write(w);
                });
            }
            LogRecord::HandOver { order, home, round, until_ms, answer } => {
                w.u8(7).raw(order).u16(*home).u64(*round).u64(*until_ms);
                write_answer(&mut w, *answer);
            }
            LogRecord::Freed { order } => {
                w.u8(8).raw(order);
            }
            LogRecord::Heard { at_ms, bytes } => {
                w.u8(9).u64(*at_ms).bytes(bytes);
            }
            LogRecord::Orders { at_ms, round, orders } => {
                w.u8(10).u64(*at_ms).u64(*round).list(orders, |w, o| o.write(w));
            }
            LogRecord::Omitted { at_ms, round } => {
                w.u8(11).u64(*at_ms).u64(*round);
            }
        }
        w.finish()
    }

    /// Decodes a whole record of a market with `n` seats.
    pub fn decode(bytes: &[u8], n: u16) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let record = Self::read(&mut r, n)?;
        r.end()?;
        Ok(record)
    }

    fn read(r: &mut Reader<'_>, n: u16) -> Result<Self, DecodeError> {
        Ok(match r.u8()? {
            1 => LogRecord::Observe { at_ms: r.u64()?, until_ms: r.u64()? },
            2 => LogRecord::Bids { at_ms: r.u64()?, round: r.u64()?, bids: Box::new(read_bids(r)?) },
            3 => LogRecord::Said { at_ms: r.u64()?, bytes: r.bytes("message", MAX_MESSAGE)?.to_vec() },
            4 => {
                let round = r.u64()?;
                let listed = |r: &mut Reader<'_>| Ok(Listed { seat: r.u16()?, d: r.array()? });
                LogRecord::List { round, list: r.list("list of bundles", 3 * usize::from(n), listed)? }
            }
            5 => LogRecord::Certified { at_ms: r.u64()?, certificate: Certificate::read(r, n)? },
            6 => {
                let (order, home, round, until_ms) = (r.array()?, r.u16()?, r.u64()?, r.u64()?);
                let usage = r.list("nodes", MAX_OFFERS * MAX_NODES, |r| {
                    Ok((r.str("node", MAX_NAME)?, NodeCapacity::read(r)?))
                })?;
                LogRecord::Promise { order, home, round, until_ms, usage }
            }
            7 => LogRecord::HandOver {
                order: r.array()?,
                home: r.u16()?,
                round: r.u64()?,
                until_ms: r.u64()?,
                answer: read_answer(r)?,
            },
            8 => LogRecord::Freed { order: r.array()? },
            9 => LogRecord::Heard { at_ms: r.u64()?, bytes: r.bytes("message", MAX_MESSAGE)?.to_vec() },
            10 => LogRecord::Orders {
                at_ms: r.u64()?,
                round: r.u64()?,
                orders: r.list("orders", MAX_ORDERS, Order::read)?,
            },
            11 => LogRecord::Omitted { at_ms: r.u64()?, round: r.u64()? },
            _ => return Err(DecodeError::Invalid("kind of record")),
        })
    }
}

fn write_answer(w: &mut Writer, answer: Answer) {
    match answer {
        Answer::Held => w.u8(0),
        Answer::Refused(reason) => w.u8(1).u8(reason.code()),
        Answer::Taken => w.u8(2),
    };
}

fn read_answer(r: &mut Reader<'_>) -> Result<Answer, DecodeError> {
    match r.u8()? {
        0 => Ok(Answer::Held),
        1 => Reason::from_code(r.u8()?).map(Answer::Refused).ok_or(DecodeError::Invalid("reason")),
        2 => Ok(Answer::Taken),
        _ => Err(DecodeError::Invalid("answer")),
    }
}

fn write_bids(w: &mut Writer, bids: &LocalBids) {
    w.list(&bids.parts, |w, part| {
        w.str(&part.offer).list(&part.nodes, |w, node| {
            w.str(node);
        });
        part.capacity.write(w);
    });
    w.list(&bids.records, |w, bid| {
        w.raw(&bid.order);
        plaintext::write_record(w, &bid.kind);
    });
}

fn read_bids(r: &mut Reader<'_>) -> Result<LocalBids, DecodeError> {
    let parts = r.list("offers", MAX_OFFERS, |r| {
        Ok(OfferedPart {
            offer: r.str("offer", MAX_NAME)?,
            nodes: r.list("nodes", MAX_NODES, |r| r.str("node", MAX_NAME))?,
            capacity: OfferCapacity::read(r)?,
        })
    })?;
    let records = r.list("bids", MAX_ORDERS, |r| {
        let order = r.array()?;
        let kind = plaintext::read_record(r)?;
        Ok(OwnBid { order, kind })
    })?;
    Ok(LocalBids { parts, records })
}
