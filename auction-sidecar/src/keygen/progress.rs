//! How far a generation has come, for the log: who has announced, dealt and acknowledged, which attempt it is.
//!
//! Inputs: messages that were said or taken. Outputs: log lines, and the same as a value. Invariant: nothing depends on it.

use std::collections::BTreeSet;
use std::sync::Arc;

use vendue_auction_core::MarketRecord;
use vendue_auction_core::wire::{Header, Kind};
use vendue_market::encode::Reader;

/// What was seen so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Seats whose deal key is known.
    pub announced: BTreeSet<u16>,
    /// Seats that dealt.
    pub dealt: BTreeSet<u16>,
    /// Seats that said what they hold.
    pub acknowledged: BTreeSet<u16>,
    /// The last attempt to which somebody contributed, and who did.
    pub attempt: Option<(u64, BTreeSet<u16>)>,
    /// The attempt whose key is certified.
    pub certified: Option<u64>,
    /// Seats that have stored their keys.
    pub finished: BTreeSet<u16>,
}

fn name(record: &MarketRecord, seat: u16) -> &str {
    record.seat(seat).map_or("?", |seat| seat.provider.as_str())
}

/// Names of seats, for people.
pub(super) fn names(record: &MarketRecord, seats: impl IntoIterator<Item = u16>) -> String {
    seats.into_iter().map(|seat| name(record, seat)).collect::<Vec<_>>().join(", ")
}

impl Progress {
    /// Takes note of a message of a seat, this one included.
    pub(super) fn note(&mut self, record: &Arc<MarketRecord>, seat: u16, message: &[u8]) {
        let Ok(header) = Header::read(&mut Reader::new(message)) else { return };
        let (seats, what) = match header.kind {
            Kind::DealKey => (&mut self.announced, "announced"),
            Kind::Deal => (&mut self.dealt, "dealt"),
            Kind::Acks => (&mut self.acknowledged, "acknowledged"),
            Kind::Bundle => {
                let current = self.attempt.as_ref().map(|(attempt, _)| *attempt);
                if current.is_none_or(|current| current < header.round) {
                    self.attempt = Some((header.round, BTreeSet::new()));
                }
                match &mut self.attempt {
                    Some((attempt, seats)) if *attempt == header.round => (seats, "contributed"),
                    _ => return,
                }
            }
            _ => return,
        };
        if seats.insert(seat) {
            let (count, of, provider) = (seats.len(), record.n(), name(record, seat));
            tracing::info!(seat, provider, attempt = header.round, count, of, "{what}");
        }
    }

    /// The key is certified.
    pub(super) fn certify(&mut self, attempt: u64, dealers: &BTreeSet<u16>, record: &MarketRecord) {
        self.certified = Some(attempt);
        tracing::info!(attempt, dealers = names(record, dealers.iter().copied()), "key certified");
    }

    /// A seat has stored its keys.
    pub(super) fn finish(&mut self, seat: u16, record: &MarketRecord) {
        if self.finished.insert(seat) {
            tracing::info!(seat, provider = name(record, seat), "keys stored");
        }
    }

    /// What it waits for, in words.
    pub(super) fn waits_for(&self, record: &MarketRecord) -> String {
        let without = |seats: &BTreeSet<u16>| {
            let missing = (0..record.n()).filter(|seat| !seats.contains(seat));
            names(record, missing)
        };
        match (&self.certified, &self.attempt) {
            (Some(_), _) => format!("keys to be stored by {}", without(&self.finished)),
            (None, Some((attempt, seats))) => {
                format!("agreement in attempt {attempt}; no contribution from: {}", without(seats))
            }
            (None, None) => format!("the first attempt; not heard from: {}", without(&self.announced)),
        }
    }
}
