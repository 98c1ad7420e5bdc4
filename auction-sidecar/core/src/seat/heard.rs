//! What the log holds, for replay, of what a round was given.
//!
//! Inputs: what a round was given and learned from. Output: records for the log. Invariant: of one member a round's records
//! hold no more than [`MAX_KEPT`] bytes, whatever it sends; where that leaves something out, the log says so.

use crate::log::LogRecord;
use crate::record::{MarketRecord, Peer};
use crate::round::RoundInput;
use crate::wire::{Header, Kind};
use std::collections::BTreeMap;
use vendue_market::Order;
use vendue_market::encode::{Canonical, Reader};

/// Most bytes of one member in a round: more than two bundles, and a NEWVIEW and a PROPOSE in each view, of an honest seat.
pub(super) const MAX_KEPT: usize = 16 << 20;

/// How much of each member is in the log.
#[derive(Debug, Default)]
pub(super) struct Kept {
    bytes: BTreeMap<Peer, usize>,
    omits: bool,
}

impl Kept {
    /// Counts a record; gives what the log is to hold.
    pub(super) fn admit(&mut self, record: &MarketRecord, heard: LogRecord) -> Option<LogRecord> {
        if self.omits {
            return None;
        }
        let fits = match &heard {
            LogRecord::Heard { bytes, .. } => {
                let header = Header::read(&mut Reader::new(bytes)).ok()?;
                self.count(Peer::Seat(header.seat), bytes.len())
            }
            LogRecord::Orders { orders, .. } => orders.iter().all(|order| {
                let home = record.home_of_key(&order.user_key).unwrap_or(u16::MAX);
                self.count(Peer::Home(home), order.to_bytes().len())
            }),
            _ => true,
        };
        if fits {
            return Some(heard);
        }
        self.omits = true;
        Some(LogRecord::Omitted { at_ms: heard.at_ms()?, round: heard.round()? })
    }

    /// Counts bytes of a member; false when they are too many.
    fn count(&mut self, from: Peer, bytes: usize) -> bool {
        let kept = self.bytes.entry(from).or_default();
        *kept = kept.saturating_add(bytes);
        *kept <= MAX_KEPT
    }
}

/// What a replay of the round needs of an input. The bids that answer it are in the log anyway.
pub(super) fn heard(at_ms: u64, round: u64, input: &RoundInput) -> Option<LogRecord> {
    match input {
        RoundInput::Message { message, .. } if message.header.kind == Kind::Fetch => None,
        RoundInput::Message { bytes, .. } | RoundInput::Bundle { bytes, .. } => {
            Some(LogRecord::Heard { at_ms, bytes: bytes.clone() })
        }
        RoundInput::Orders(orders) => {
            let orders = orders.iter().map(|(_, order)| Order::clone(order)).collect();
            Some(LogRecord::Orders { at_ms, round, orders })
        }
        RoundInput::Tick
        | RoundInput::Bids(_)
        | RoundInput::Contribution(_)
        | RoundInput::Committed(_)
        | RoundInput::Key { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::mk_rig;
    use super::*;

    fn message(seat: u16, bytes: usize) -> LogRecord {
        let header = Header { kind: Kind::Bundle, market: [1; 8], epoch: 0, round: 7, seat };
        let mut message = header.to_bytes().to_vec();
        message.resize(bytes, 0);
        LogRecord::Heard { at_ms: 3, bytes: message }
    }

    #[test]
    fn a_member_has_so_many_bytes_in_a_round_and_what_is_left_out_is_told_once() {
        let rig = mk_rig();
        let mut kept = Kept::default();
        let mut admit = |record: LogRecord| kept.admit(&rig.record, record);
        let part = message(1, MAX_KEPT / 4);
        for _ in 0..4 {
            assert_eq!(admit(part.clone()), Some(part.clone()));
            assert!(admit(message(2, MAX_KEPT / 8)).is_some(), "each has its own");
        }
        let orders = LogRecord::Orders { at_ms: 4, round: 7, orders: vec![rig.order(0); 128] };
        assert_eq!(admit(orders.clone()), Some(orders));
        assert_eq!(admit(message(1, 25)), Some(LogRecord::Omitted { at_ms: 3, round: 7 }));
        assert_eq!(admit(message(2, 25)), None, "the round cannot be replayed any more");
    }

    #[test]
    fn the_bodies_of_a_home_s_orders_are_counted() {
        let rig = mk_rig();
        let mut kept = Kept::default();
        let mut order = rig.order(0);
        order.requirements.image = "i".repeat(500);
        let size = order.to_bytes().len();
        let orders = LogRecord::Orders { at_ms: 4, round: 7, orders: vec![order; 100] };
        let fit =
            (0..).take_while(|_| kept.admit(&rig.record, orders.clone()) == Some(orders.clone())).count();
        assert_eq!(fit, MAX_KEPT / (100 * size));
    }
}
