//! A seat as it comes back from its log.
//!
//! Inputs: the records, in the order in which they were written, and the time. What is rebuilt: the rounds that still
//! matter, each as far as this seat spoke in it; the capacity that open rounds, awards and hand-overs keep; what homes
//! were told. What is not: orders and messages, which others still have.

use super::heard::Kept;
use super::{Active, HandOver, Promise, Seat, Stage};
use crate::bid::LocalBids;
use crate::crypto::Crypto;
use crate::epochs::{Epoch, Epochs};
use crate::log::{Answer, LogRecord};
use crate::record::MarketRecord;
use crate::round::{RecallError, Round, RoundInput};
use crate::wire::Header;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use vendue_market::encode::Reader;

impl<C: Crypto> Seat<C> {
    /// A seat that starts at `now_ms` with the log of the processes before it.
    ///
    /// It takes part in rounds that begin from now on. In those that have begun it only observes, but for the ones of which
    /// there is a record: there it repeats itself, opens and votes for the awards. A log without a beginning says nothing
    /// about what was said before, and a clock that is behind the log's says nothing about which rounds have begun: then
    /// the seat observes as if there were no log, until all rounds that may have begun have expired.
    pub fn restore(
        record: Arc<MarketRecord>,
        index: u16,
        crypto: C,
        now_ms: u64,
        log: &[LogRecord],
    ) -> Result<Self, RecallError> {
        Self::restore_in(Epochs::new(record, Arc::new(crypto)), index, now_ms, log)
    }

    /// [`Seat::restore`] of a seat that may hold two epochs. While rounds of the old one may be open it is to be given
    /// both: rounds are recalled with the record of their epoch, and what a round without one had promised is forgotten.
    pub fn restore_in(
        epochs: Epochs<Arc<C>>,
        index: u16,
        now_ms: u64,
        log: &[LogRecord],
    ) -> Result<Self, RecallError> {
        let cautious = now_ms.saturating_add(epochs.at(now_ms).record.params.lifetime());
        let promised = log.iter().rev().find_map(|r| match r {
            LogRecord::Observe { until_ms, .. } => Some(*until_ms),
            _ => None,
        });
        let latest = log.iter().filter_map(LogRecord::at_ms).max();
        let until_ms = match promised {
            Some(until_ms) if latest.is_some_and(|at| at <= now_ms) => until_ms.clamp(now_ms, cautious),
            _ => cautious,
        };
        let mut seat = Self::bare(epochs, index, now_ms);
        seat.observe(until_ms);
        let void = seat.recall_rounds(log)?;
        log.iter().for_each(|record| seat.recall_capacity(record));
        let mut first = std::mem::take(&mut seat.first);
        seat.free_void(|round| void.contains(&round), &mut first);
        let rounds: Vec<u64> = seat.rounds.keys().copied().collect();
        rounds.into_iter().for_each(|round| seat.drive(now_ms, round, RoundInput::Tick, &mut first));
        seat.first = first;
        Ok(seat)
    }

    /// Gives the rounds that the log has in an epoch that is not theirs: this seat learned of the next one late.
    fn recall_rounds(&mut self, log: &[LogRecord]) -> Result<BTreeSet<u64>, RecallError> {
        let mut void = BTreeSet::new();
        let mut by_round: BTreeMap<u64, Vec<&LogRecord>> = BTreeMap::new();
        for record in log {
            if let Some(round) = record.round() {
                by_round.entry(round).or_default().push(record);
            }
        }
        for (round, records) in by_round {
            // In whichever epoch this seat spoke: it speaks in a round in one epoch only.
            self.opened.add(round);
            let Some(Epoch { record: market, keys: crypto }) = self.epochs.of_round(round) else { continue };
            if self.now >= market.params.expiry(round) {
                continue;
            }
            if records.iter().any(|r| epoch_of(r).is_some_and(|epoch| epoch != market.epoch)) {
                void.insert(round);
                continue;
            }
            let (market, crypto) = (market.clone(), crypto.clone());
            let past = records.iter().copied();
            let recalled = Round::recall(market, crypto, self.index, round, self.now, past)?;
            let bids = records.iter().rev().find_map(|r| match r {
                LogRecord::Bids { bids, .. } => Some(LocalBids::clone(bids)),
                _ => None,
            });
            let bids = bids.unwrap_or_default();
            self.offer_names.insert(round, bids.parts.iter().map(|p| p.offer.clone()).collect());
            let wake = recalled.next_wake();
            self.rounds.insert(
                round,
                Active { round: recalled, wake, bids, wanted: BTreeSet::new(), kept: Kept::default() },
            );
        }
        Ok(void)
    }

    /// What is kept for orders; the time ends what has expired.
    fn recall_capacity(&mut self, record: &LogRecord) {
        match record {
            LogRecord::Certified { certificate, .. } => {
                let of_round = self.epochs.record_of(certificate.round);
                if of_round.is_some_and(|record| record.epoch == certificate.epoch) {
                    self.certified.insert(certificate.round, certificate.root);
                }
            }
            LogRecord::Promise { order, home, round, until_ms, usage } => {
                let promise =
                    Promise { home: *home, round: *round, until_ms: *until_ms, usage: usage.clone() };
                self.promises.insert(*order, promise);
            }
            LogRecord::HandOver { order, home, round, until_ms, answer } => {
                let stage = match answer {
                    Answer::Held => Stage::Held,
                    Answer::Refused(reason) => Stage::Refused(*reason),
                    Answer::Taken => Stage::Taken,
                };
                // Whether held or refused, the offers say so from then on.
                if self.promises.get(order).is_some_and(|p| p.round == *round) {
                    self.promises.remove(order);
                }
                let handover = HandOver { home: *home, round: *round, until_ms: *until_ms, stage };
                self.handovers.insert(*order, handover);
            }
            LogRecord::Freed { order } => {
                self.promises.remove(order);
                self.handovers.remove(order);
            }
            _ => {}
        }
    }
}

/// The epoch of a record, where it names one.
fn epoch_of(record: &LogRecord) -> Option<u32> {
    match record {
        LogRecord::Said { bytes, .. } | LogRecord::Heard { bytes, .. } => {
            Header::read(&mut Reader::new(bytes)).ok().map(|h| h.epoch)
        }
        LogRecord::Certified { certificate, .. } => Some(certificate.epoch),
        _ => None,
    }
}
