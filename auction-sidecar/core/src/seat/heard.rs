//! What the log holds, for replay, of what a round was given.
//!
//! Inputs: what a round was given and learned from. Output: records for the log. Invariant: of one seat a round's records
//! hold no more than [`MAX_OF_SEAT`] bytes and of one home no more than [`MAX_OF_HOME`], whatever it sends; where that
//! leaves something out, the log says so. No honest member comes to its bound, and none is used up by another.

use crate::log::LogRecord;
use crate::pool::MAX_OPEN_PER_HOME;
use crate::record::{MarketRecord, Peer};
use crate::round::RoundInput;
use crate::wire::{Body, Header, Kind, Reply, decode};
use std::collections::BTreeMap;
use vendue_market::Order;
use vendue_market::encode::{Canonical, Reader};

/// Most bytes of one seat in a round: more than two bundles, and a NEWVIEW and a PROPOSE in each view, of an honest seat.
pub(super) const MAX_OF_SEAT: usize = 16 << 20;

/// More than the longest body of an order: two lists of 64 providers are most of it.
const LONGEST_ORDER: usize = 48 << 10;

/// Most bytes of one home in a round: the bodies of all orders that it may have open.
pub(super) const MAX_OF_HOME: usize = MAX_OPEN_PER_HOME * LONGEST_ORDER;

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
                let seat = whose(bytes, record.n())?;
                self.count(Peer::Seat(seat), bytes.len(), MAX_OF_SEAT)
            }
            LogRecord::Orders { orders, .. } => orders.iter().all(|order| {
                let home = record.home_of_key(&order.user_key).unwrap_or(u16::MAX);
                self.count(Peer::Home(home), order.to_bytes().len(), MAX_OF_HOME)
            }),
            _ => true,
        };
        if fits {
            return Some(heard);
        }
        self.omits = true;
        Some(LogRecord::Omitted { at_ms: heard.at_ms()?, round: heard.round()? })
    }

    /// Counts bytes of a member; false when they are more than `most`.
    fn count(&mut self, from: Peer, bytes: usize, most: usize) -> bool {
        let kept = self.bytes.entry(from).or_default();
        *kept = kept.saturating_add(bytes);
        *kept <= most
    }
}

/// The seat whose word a message is: of a bundle that was fetched its owner, for one seat may be asked for all of them.
fn whose(bytes: &[u8], n: u16) -> Option<u16> {
    let header = Header::read(&mut Reader::new(bytes)).ok()?;
    if header.kind != Kind::Reply {
        return Some(header.seat);
    }
    match decode(bytes, n).ok()?.body {
        Body::Reply(Reply::Bundle(bundle)) => Some(Header::read(&mut Reader::new(&bundle)).ok()?.seat),
        _ => Some(header.seat),
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
    use super::super::tests::{Rig, mk_rig};
    use super::*;
    use crate::wire::Message;
    use vendue_market::{SealedCeiling, Terms};

    fn message(seat: u16, bytes: usize) -> LogRecord {
        let header = Header { kind: Kind::Bundle, market: [1; 8], epoch: 0, round: 7, seat };
        let mut message = header.to_bytes().to_vec();
        message.resize(bytes, 0);
        LogRecord::Heard { at_ms: 3, bytes: message }
    }

    /// A bundle of `owner` that `seat` was asked for.
    fn fetched(seat: u16, owner: u16, bytes: usize) -> LogRecord {
        let LogRecord::Heard { bytes: bundle, .. } = message(owner, bytes) else { panic!("a bundle") };
        let header = Header { kind: Kind::Reply, market: [1; 8], epoch: 0, round: 7, seat };
        let message = Message { header, body: Body::Reply(Reply::Bundle(bundle)), signature: None };
        LogRecord::Heard { at_ms: 3, bytes: message.encode() }
    }

    #[test]
    fn a_seat_has_so_many_bytes_in_a_round_and_what_is_left_out_is_told_once() {
        let rig = mk_rig();
        let mut kept = Kept::default();
        let mut admit = |record: LogRecord| kept.admit(&rig.record, record);
        let part = message(1, MAX_OF_SEAT / 4);
        for _ in 0..4 {
            assert_eq!(admit(part.clone()), Some(part.clone()));
            assert!(admit(message(2, MAX_OF_SEAT / 8)).is_some(), "each has its own");
        }
        let orders = LogRecord::Orders { at_ms: 4, round: 7, orders: vec![rig.order(0); 128] };
        assert_eq!(admit(orders.clone()), Some(orders));
        assert_eq!(admit(message(1, 25)), Some(LogRecord::Omitted { at_ms: 3, round: 7 }));
        assert_eq!(admit(message(2, 25)), None, "the round cannot be replayed any more");
    }

    #[test]
    fn bundles_that_one_seat_answers_with_are_counted_to_their_owners() {
        let rig = mk_rig();
        let mut kept = Kept::default();
        let mut admit = |record: LogRecord| kept.admit(&rig.record, record.clone()) == Some(record);
        let bytes = 1_000_000;
        for owner in [0, 2, 3] {
            for _ in 0..15 {
                assert!(admit(fetched(1, owner, bytes)), "{owner}");
            }
        }
        assert!(admit(message(1, MAX_OF_SEAT)), "nothing of that was the answering seat's");
        assert!(!admit(message(0, 2 * bytes)), "it was theirs");
    }

    /// The longest body that an order may have.
    fn longest(rig: &Rig) -> Order {
        let mut order = rig.order(0);
        let names = |first: char| (0..64).map(|i| format!("{first}{i:0>252}")).collect::<Vec<_>>();
        let req = &mut order.requirements;
        (req.include_providers, req.exclude_providers) = (names('i'), names('e'));
        req.gpu_models = (0..16).map(|i| format!("{i:0>63}").parse().unwrap()).collect();
        req.image = "i".repeat(512);
        order.job = "j".repeat(64);
        let regions = (0..16).map(|i| format!("r{i:0>62}")).collect();
        *order.terms = Terms {
            regions,
            pinned: Some("p".repeat(253)),
            sealed_ceiling: Some(SealedCeiling { u: [1; 48], v: [2; 32], payload: [3; 24] }),
            ..Terms::default()
        };
        order
    }

    #[test]
    fn the_bodies_of_all_orders_of_a_home_are_kept_however_long_they_are() {
        let rig = mk_rig();
        let order = longest(&rig);
        order.requirements.validate().unwrap();
        let size = order.to_bytes().len();
        assert!(size > LONGEST_ORDER / 2 && size <= LONGEST_ORDER, "{size}");
        let mut kept = Kept::default();
        let orders = LogRecord::Orders { at_ms: 4, round: 7, orders: vec![order; 128] };
        let fit =
            (0..).take_while(|_| kept.admit(&rig.record, orders.clone()) == Some(orders.clone())).count();
        assert!(fit * 128 >= MAX_OPEN_PER_HOME);
        assert_eq!(fit, MAX_OF_HOME / (128 * size), "and no more than the bound");
    }
}
