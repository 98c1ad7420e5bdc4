//! A seat: the market's member that bids. It owns the rounds that are open, the order pool, the provider's offers
//! and the capacity that is promised in rounds and awards.
//!
//! Invariants: capacity that is offered in an open round or held for an award is not offered again before the
//! certificate shows that it lost, the order is taken elsewhere or withdrawn, or the award expires; after a restart the
//! seat says nothing new in a round that it may have spoken in before: with its log it sends the stored bytes again,
//! without one it stays silent.

mod epochs;
mod handover;
mod heard;
mod intake;
mod io;
mod opened;
mod recall;
mod rounds;

pub use io::{BidResult, Decided, HoldRequest, OwnResult, ReleaseCause, SeatInput, SeatOutput};

use crate::bid::{LocalBids, Usage};
use crate::crypto::Crypto;
use crate::drops::Drops;
use crate::epochs::Epochs;
use crate::evidence::message_hash_by;
use crate::limits::Limits;
use crate::log::{Answer, LogRecord};
use crate::pool::Pool;
use crate::record::{MarketRecord, Peer};
use crate::round::{Round, RoundInput};
use crate::wire::{Body, Header, Kind, Message, Views};
use heard::Kept;
use opened::Opened;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use vendue_market::{Digest, GpuModel, Offer};

/// A round that is open at this seat.
struct Active<C: Crypto> {
    round: Round<C>,
    /// When the round must be called next; it changes only when the round is given something.
    wake: u64,
    /// This seat's bids; capacity in them is promised until the round is decided.
    bids: LocalBids,
    /// Orders whose bodies the round waits for.
    wanted: BTreeSet<Digest>,
    /// How much the log holds of what the round was given.
    kept: Kept,
}

/// Capacity promised to an order by a certificate.
struct Promise {
    home: u16,
    round: u64,
    until_ms: u64,
    usage: Usage,
}

/// How far the hand-over of one order has come at this seat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The controller was asked.
    Asked,
    /// The controller holds the devices and ACCEPT was sent.
    Held,
    /// REFUSE was sent.
    Refused(vendue_market::Reason),
    /// The user chose this seat.
    Taken,
}

impl Stage {
    /// What was said to the home, if anything.
    fn answer(self) -> Option<Answer> {
        match self {
            Stage::Asked => None,
            Stage::Held => Some(Answer::Held),
            Stage::Refused(reason) => Some(Answer::Refused(reason)),
            Stage::Taken => Some(Answer::Taken),
        }
    }
}

/// One order's hand-over at this seat.
struct HandOver {
    home: u16,
    round: u64,
    until_ms: u64,
    stage: Stage,
}

/// A decided order, kept so that home can ask for its proof.
struct Proven {
    bytes: Vec<u8>,
    round: u64,
    until_ms: u64,
}

/// A seat of a market.
pub struct Seat<C: Crypto> {
    /// For what all epochs have in common: id, members, clock and rules. What changes is asked of `epochs`.
    record: Arc<MarketRecord>,
    epochs: Epochs<Arc<C>>,
    index: u16,
    /// When the seat was last given an input.
    now: u64,
    observes_until: u64,
    offers: Vec<Offer>,
    models: BTreeSet<GpuModel>,
    pool: Pool,
    rounds: BTreeMap<u64, Active<C>>,
    promises: BTreeMap<Digest, Promise>,
    /// Local names of the offers by round, so that a hand-over knows which offer a `spec` was.
    offer_names: BTreeMap<u64, Vec<String>>,
    handovers: BTreeMap<Digest, HandOver>,
    proven: BTreeMap<Digest, Proven>,
    /// Roots of rounds whose certificate was seen and verified, while their awards live.
    certified: BTreeMap<u64, Digest>,
    drops: Drops,
    limits: Limits,
    views: Views,
    opened: Opened,
    /// What is to be done since the start, before anything else.
    first: Vec<SeatOutput>,
    /// Whether the log is to hold what rounds receive, too.
    hears: bool,
}

impl<C: Crypto> Seat<C> {
    /// A seat that starts at `now_ms`. It observes until the rounds that began before its start have expired: it may
    /// have spoken in them before a restart.
    pub fn new(record: Arc<MarketRecord>, index: u16, crypto: C, now_ms: u64) -> Self {
        let until_ms = now_ms.saturating_add(record.params.lifetime());
        let mut seat = Self::bare(Epochs::new(record, Arc::new(crypto)), index, now_ms);
        seat.observe(until_ms);
        seat
    }

    /// A seat that takes part at once. Only for keys that have never signed anything: nothing else shows that no round
    /// was spoken in before, least of all a clock.
    pub fn fresh(record: Arc<MarketRecord>, index: u16, crypto: C, now_ms: u64) -> Self {
        let mut seat = Self::bare(Epochs::new(record, Arc::new(crypto)), index, now_ms);
        seat.observe(0);
        seat
    }

    fn bare(epochs: Epochs<Arc<C>>, index: u16, now_ms: u64) -> Self {
        Self {
            record: epochs.at(now_ms).record.clone(),
            epochs,
            index,
            now: now_ms,
            observes_until: 0,
            offers: vec![],
            models: BTreeSet::new(),
            pool: Pool::default(),
            rounds: BTreeMap::new(),
            promises: BTreeMap::new(),
            offer_names: BTreeMap::new(),
            handovers: BTreeMap::new(),
            proven: BTreeMap::new(),
            certified: BTreeMap::new(),
            drops: Drops::default(),
            limits: Limits::default(),
            views: Views::default(),
            opened: Opened::default(),
            first: vec![],
            hears: false,
        }
    }

    /// Takes part only in rounds that begin then or later, and lets the log know.
    fn observe(&mut self, until_ms: u64) {
        self.observes_until = until_ms;
        let record = LogRecord::Observe { at_ms: self.now, until_ms };
        self.first.push(SeatOutput::Persist(Box::new(record)));
    }

    /// Lets the log hold what rounds receive, so that they can be replayed.
    pub fn log_received(&mut self, yes: bool) {
        self.hears = yes;
    }

    /// Takes one input and says what to do: first of all make every [`SeatOutput::Persist`] durable, then the rest.
    pub fn handle(&mut self, now_ms: u64, input: SeatInput) -> Vec<SeatOutput> {
        self.now = now_ms;
        let mut out = std::mem::take(&mut self.first);
        match input {
            SeatInput::Tick => {}
            SeatInput::Offers { offers, models } => {
                self.offers = offers;
                self.models = models.into_iter().collect();
            }
            SeatInput::Message { from, bytes } => {
                if let Err(reason) = self.intake(now_ms, from, bytes, &mut out) {
                    self.drops.add(reason);
                }
            }
            SeatInput::Reserved { order, round, result } => {
                self.reserved(now_ms, order, round, result, &mut out)
            }
        }
        self.expire(now_ms, &mut out);
        self.start_round(now_ms, &mut out);
        self.tick_rounds(now_ms, &mut out);
        out
    }

    /// The clock was set: by how far it was wrong before, and in which rounds a process before this one spoke, is not
    /// known, so the seat observes again. Rounds that are open go on; they sign nothing twice.
    pub fn clock_was_set(&mut self, now_ms: u64) -> Vec<SeatOutput> {
        self.now = now_ms;
        self.observe(now_ms.saturating_add(self.record.params.lifetime()));
        let mut out = self.handle(now_ms, SeatInput::Tick);
        // Rounds wait for times of the old clock.
        let rounds: Vec<u64> = self.rounds.keys().copied().collect();
        rounds.into_iter().for_each(|round| self.drive(now_ms, round, RoundInput::Tick, &mut out));
        out
    }

    /// When [`Seat::handle`] must be called next, at the latest; a time that has passed means at once, `None` that only
    /// an input can change anything.
    pub fn next_wake(&self) -> Option<u64> {
        if !self.first.is_empty() {
            return Some(self.now);
        }
        let rounds = self.rounds.values().map(|a| a.wake);
        let promises = self.promises.values().map(|p| p.until_ms);
        let handovers = self.handovers.values().map(|h| h.until_ms);
        let start = self.pool.next_start(self.now, &self.record.params);
        let (start, ends) = (start.into_iter(), self.epochs.ends_ms());
        rounds.chain(promises).chain(handovers).chain(start).chain(ends).min().map(|at| at.max(self.now + 1))
    }

    /// Messages that were dropped, by reason.
    pub fn dropped(&self) -> &Drops {
        &self.drops
    }
    /// Until when the seat only observes.
    pub fn observes_until(&self) -> u64 {
        self.observes_until
    }
    /// Rounds that are open.
    pub fn open_rounds(&self) -> usize {
        self.rounds.len()
    }
    /// Orders that may still be listed.
    pub fn open_orders(&self) -> usize {
        self.pool.open_orders()
    }
    /// The round of that number, while it is open.
    pub fn round(&self, round: u64) -> Option<&Round<C>> {
        self.rounds.get(&round).map(|a| &a.round)
    }

    /// Offers less what is promised in open rounds and by certificates.
    fn free_offers(&self) -> Vec<Offer> {
        let open: Vec<Usage> =
            self.rounds.values().filter(|a| !a.round.is_decided()).map(|a| a.bids.usage()).collect();
        let used = open.iter().flatten().chain(self.promises.values().flat_map(|p| &p.usage));
        crate::bid::without(&self.offers, used)
    }

    /// Signs and encodes a message that belongs to no round.
    fn encode(&self, body: Body) -> Vec<u8> {
        self.sign(self.header(body.kind()), body)
    }

    /// Signs and encodes a message outside of the agreement that is about an award of a round.
    fn encode_in(&self, round: u64, body: Body) -> Vec<u8> {
        let now = self.header(body.kind());
        let epoch = self.epochs.record_of(round).map_or(now.epoch, |record| record.epoch);
        self.sign(Header { epoch, round, ..now }, body)
    }

    fn sign(&self, header: Header, body: Body) -> Vec<u8> {
        let hash = || message_hash_by::<C::Scheme>(&self.record.market, &header, &body);
        let signature = header.kind.is_signed().then(|| self.crypto().sign(&hash()));
        Message { header, body, signature }.encode()
    }

    /// The header of a message that belongs to no round: it has the epoch that it is by this seat's clock.
    fn header(&self, kind: Kind) -> Header {
        let epoch = self.epochs.at(self.now).record.epoch;
        Header { kind, market: self.record.short_id(), epoch, round: 0, seat: self.index }
    }

    /// For what the epoch makes no difference to: the key of evidence signatures.
    fn crypto(&self) -> &Arc<C> {
        &self.epochs.at(self.now).keys
    }

    fn send_home(&self, home: u16, body: Body, out: &mut Vec<SeatOutput>) {
        out.push(SeatOutput::Send { to: Peer::Home(home), bytes: self.encode(body) });
    }

    /// Ends rounds, promises and hand-overs whose time is over.
    fn expire(&mut self, now_ms: u64, out: &mut Vec<SeatOutput>) {
        let params = self.record.params;
        // The lowest round expires first.
        while let Some(entry) = self.rounds.first_entry().filter(|e| now_ms >= params.expiry(*e.key())) {
            let (round, active) = entry.remove_entry();
            if !active.round.is_decided() {
                let orders = active.bids.records.iter().map(|r| r.order).collect();
                out.push(SeatOutput::Expired { round, orders });
            }
        }
        self.promises.retain(|_, p| now_ms < p.until_ms);
        while self.offer_names.first_entry().is_some_and(|e| now_ms >= params.expiry(*e.key())) {
            self.offer_names.pop_first();
        }
        while self.certified.first_entry().is_some_and(|e| now_ms >= params.expiry(*e.key())) {
            self.certified.pop_first();
        }
        self.proven.retain(|_, p| now_ms < p.until_ms);
        self.pool.prune(now_ms, &params);
        let ended: Vec<Digest> =
            self.handovers.iter().filter(|(_, h)| now_ms >= h.until_ms).map(|(digest, _)| *digest).collect();
        for order in ended {
            if let Some(HandOver { stage: Stage::Asked | Stage::Held, .. }) = self.handovers.remove(&order) {
                out.push(SeatOutput::Released { order, cause: ReleaseCause::Expired });
            }
        }
        // Rounds hold the keys of their epoch, so they go first.
        self.epochs.let_go(now_ms);
    }
}

#[cfg(test)]
mod again_tests;
#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod drop_tests;
#[cfg(test)]
mod epochs_tests;
#[cfg(test)]
mod handover_tests;
#[cfg(test)]
mod sealed_tests;
#[cfg(test)]
mod tests;
