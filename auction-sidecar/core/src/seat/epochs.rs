//! The change of epoch at a seat.
//!
//! Input: the record of the next epoch with this seat's cryptography for it. Rounds from its first one on are of the next
//! epoch, those below it end in the old one. Invariants: a seat speaks in a round of a number in one epoch only, also one
//! that learns of the next epoch late; orders, hand-overs and what is promised by rounds that count outlive the change;
//! when the last round of the old epoch has expired, nothing at the seat holds its keys.

use super::rounds::persist;
use super::{Seat, SeatInput, SeatOutput, Stage};
use crate::crypto::Crypto;
use crate::epochs::{NextEpochError, first_round};
use crate::log::LogRecord;
use crate::record::MarketRecord;
use std::sync::Arc;
use vendue_market::Digest;

impl<C: Crypto> Seat<C> {
    /// Takes the next epoch, and says what to do, as [`Seat::handle`] does. The same epoch again changes nothing. Keep no
    /// other reference to `crypto`: the seat drops it, and with it the share, when the epoch is over.
    pub fn take_next(
        &mut self,
        now_ms: u64,
        record: Arc<MarketRecord>,
        crypto: Arc<C>,
    ) -> Result<Vec<SeatOutput>, NextEpochError> {
        let first = first_round(&record);
        if self.epochs.take_keys(self.index, now_ms, record, crypto)? {
            let mut left = self.leave(first);
            self.first.append(&mut left);
        }
        Ok(self.handle(now_ms, SeatInput::Tick))
    }

    /// Leaves the rounds of the old epoch that are the next one's. This seat takes no part in them in the next epoch
    /// either: where each honest seat speaks in one epoch only, one epoch at most has a quorum for a round.
    fn leave(&mut self, first: u64) -> Vec<SeatOutput> {
        let mut out = vec![];
        for (round, active) in self.rounds.split_off(&first) {
            if !active.round.is_decided() {
                let orders = active.bids.records.iter().map(|r| r.order).collect();
                out.push(SeatOutput::Expired { round, orders });
            }
        }
        // A certificate of such a round is void: whoever has the next record refuses it.
        self.certified.split_off(&first);
        self.offer_names.split_off(&first);
        self.proven.retain(|_, proven| proven.round < first);
        self.free_void(|round| round >= first, &mut out);
        out
    }

    /// Frees what is promised by rounds that do not count. What the controller was asked for stays kept until it answers,
    /// and whatever a home was told goes on: it may have chosen this seat.
    pub(super) fn free_void(&mut self, is_void: impl Fn(u64) -> bool, out: &mut Vec<SeatOutput>) {
        let asked = |order: &Digest, round: u64| {
            self.handovers.get(order).is_some_and(|h| h.round == round && h.stage == Stage::Asked)
        };
        let void = self.promises.iter().filter(|(order, p)| is_void(p.round) && !asked(order, p.round));
        let void: Vec<Digest> = void.map(|(order, _)| *order).collect();
        for order in void {
            self.promises.remove(&order);
            persist(out, LogRecord::Freed { order });
            self.persist_handover(&order, out);
        }
    }
}
