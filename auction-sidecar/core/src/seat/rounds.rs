//! Starting rounds, carrying out what they ask for, and what a decided round means for this seat.

use super::heard::{Kept, heard};
use super::{Active, BidResult, Decided, OwnResult, Promise, Proven, Seat, SeatOutput, Stage};
use crate::bid::{LocalBids, Sought, bids};
use crate::crypto::Crypto;
use crate::epochs::Epoch;
use crate::log::LogRecord;
use crate::record::Peer;
use crate::round::{Round, RoundDecided, RoundInput, RoundOutput};
use crate::wire::{Body, Fetch, Kind, ProofMessages};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use vendue_market::{
    Bidder, Cleared, Digest, ListedOrder, Order, Outcome, Reason, RecordKind, commit_devices, tagged_hash,
};

/// Orders that a round is given at once, so that a record of them in the log stays far below what a record may hold.
const ORDERS_AT_ONCE: usize = 128;
/// How long a home may ask for a proof after the round has expired.
const PROOF_FOR_MS: u64 = 60_000;

pub(super) fn persist(out: &mut Vec<SeatOutput>, record: LogRecord) {
    out.push(SeatOutput::Persist(Box::new(record)));
}

impl<C: Crypto> Seat<C> {
    /// Whether this seat may speak in a round.
    pub(super) fn takes_part(&self, round: u64) -> bool {
        self.record.params.t0(round) >= self.observes_until || self.rounds.contains_key(&round)
    }

    /// Opens a round at this seat, or finds it open. A round is opened once: what it was forgotten with includes what
    /// this seat has signed in it, and a clock that goes back must not let it sign twice.
    pub(super) fn open_round(&mut self, now_ms: u64, round: u64) -> bool {
        if self.rounds.contains_key(&round) {
            return true;
        }
        if self.opened.has(round) {
            return false;
        }
        let Some(Epoch { record, keys }) = self.epochs.of_round(round) else { return false };
        let (record, crypto) = (record.clone(), keys.clone());
        self.opened.add(round);
        let opened = Round::new(record, crypto, self.index, round, now_ms);
        let (wake, bids, wanted) = (opened.next_wake(), LocalBids::default(), BTreeSet::new());
        self.rounds.insert(round, Active { round: opened, wake, bids, wanted, kept: Kept::default() });
        true
    }

    /// Opens the round that starts now if this seat has an order to list in it; without one nobody says anything.
    pub(super) fn start_round(&mut self, now_ms: u64, out: &mut Vec<SeatOutput>) {
        let params = self.record.params;
        if now_ms < params.genesis_ms {
            return;
        }
        let round = params.round_at(now_ms);
        if self.opened.has(round) || now_ms >= params.t1(round) || !self.takes_part(round) {
            return;
        }
        if !self.pool.listable(round, &params).is_empty() && self.open_round(now_ms, round) {
            self.drive(now_ms, round, RoundInput::Tick, out);
        }
    }

    /// Gives the time to the rounds that wait for it; about E / PI rounds are open at once, and most have nothing to do.
    pub(super) fn tick_rounds(&mut self, now_ms: u64, out: &mut Vec<SeatOutput>) {
        let due = self.rounds.iter().filter(|(_, a)| a.wake <= now_ms);
        let rounds: Vec<u64> = due.map(|(round, _)| *round).collect();
        for round in rounds {
            self.drive(now_ms, round, RoundInput::Tick, out);
        }
    }

    /// Gives a round one input and carries out what it says.
    pub(super) fn drive(&mut self, now_ms: u64, round: u64, input: RoundInput, out: &mut Vec<SeatOutput>) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let Some(active) = self.rounds.get_mut(&round) else { return };
            let heard = self.hears.then(|| heard(now_ms, round, &input)).flatten();
            let outputs = active.round.handle(now_ms, input);
            // A replay is given what this seat learned from, before what followed.
            if let Some(heard) = heard.filter(|_| active.round.has_learned()) {
                let kept = active.kept.admit(&self.record, heard);
                out.extend(kept.map(|record| SeatOutput::Persist(Box::new(record))));
            }
            active.wake = active.round.next_wake();
            for output in outputs {
                match output {
                    RoundOutput::Persist(record) => persist(out, record),
                    RoundOutput::Broadcast(bytes) => out.push(SeatOutput::Broadcast(bytes)),
                    RoundOutput::Send { to, bytes } => self.reply(now_ms, Peer::Seat(to), bytes, out),
                    RoundOutput::NeedBids { .. } => inputs.push(RoundInput::Bids(self.bid(round))),
                    RoundOutput::NeedOrders(wanted) => {
                        let known = self.find_orders(round, wanted, out);
                        inputs.extend(
                            known.chunks(ORDERS_AT_ONCE).map(|part| RoundInput::Orders(part.to_vec())),
                        );
                    }
                    RoundOutput::Decided(decided) => self.decided(now_ms, round, *decided, out),
                    RoundOutput::Dropped(reason) => self.drops.add(reason),
                    RoundOutput::Evidence(proof) => out.push(SeatOutput::Evidence(proof)),
                    RoundOutput::Keys(_) => {}
                }
            }
        }
    }

    /// This seat's bids for a round, on capacity that is promised nowhere else.
    fn bid(&mut self, round: u64) -> LocalBids {
        let mut listable = self.pool.listable(round, &self.record.params);
        if listable.len() > crate::wire::MAX_ORDERS {
            // Every seat leaves out the same ones, and others in each round.
            let rank = |digest: &Digest| tagged_hash("VENDUE-V1-LISTED", &[&round.to_be_bytes(), digest]);
            listable.sort_by_cached_key(|(digest, _)| rank(digest));
            listable.truncate(crate::wire::MAX_ORDERS);
            listable.sort_by_key(|(digest, _)| *digest);
        }
        let sought: Vec<Sought<'_>> = listable
            .into_iter()
            .map(|(digest, known)| Sought {
                order: ListedOrder::of(digest, &known.order),
                home: self.record.home(known.home).map(|h| h.name.as_str()).unwrap_or_default(),
            })
            .collect();
        let provider = self.record.seat(self.index).map(|s| s.provider.as_str()).unwrap_or_default();
        let (rules, from_ms) = (&self.record.clearing, self.record.params.expiry(round));
        let bidder = Bidder { seat: self.index, provider, rules, from_ms };
        let (market, seat) = (&self.record.market, self.index);
        let commit = |fingerprint: &Digest| commit_devices(market, round, seat, fingerprint);
        let local = bids(&bidder, &self.free_offers(), &sought, commit);
        self.offer_names.insert(round, local.parts.iter().map(|p| p.offer.clone()).collect());
        if let Some(active) = self.rounds.get_mut(&round) {
            active.bids = local.clone();
        }
        local
    }

    /// Gives a round the order bodies that are known and asks the other seats for the rest.
    fn find_orders(
        &mut self,
        round: u64,
        wanted: Vec<Digest>,
        out: &mut Vec<SeatOutput>,
    ) -> Vec<(Digest, Arc<Order>)> {
        let (mut known, mut missing) = (Vec::with_capacity(wanted.len()), vec![]);
        for digest in wanted {
            match self.pool.body(&digest) {
                Some(body) => known.push((digest, body.order.clone())),
                None => missing.push(digest),
            }
        }
        if !missing.is_empty() {
            for part in missing.chunks(crate::wire::MAX_FETCH) {
                out.push(SeatOutput::Broadcast(self.encode(Body::Fetch(Fetch::Orders(part.to_vec())))));
            }
            if let Some(active) = self.rounds.get_mut(&round) {
                active.wanted.extend(missing);
            }
        }
        known
    }

    /// A round is certified: promise what was won, free the rest, tell the homes.
    fn decided(&mut self, now_ms: u64, round: u64, decided: RoundDecided, out: &mut Vec<SeatOutput>) {
        let RoundDecided { certificate, table, tree, cleared, orders } = decided;
        let until_ms = self.record.params.expiry(round);
        self.certified.insert(round, certificate.root);
        for c in cleared.iter() {
            self.bind(c, &orders, until_ms);
            self.promise(round, c, &orders, until_ms, out);
        }
        // What was won is kept before the round's bids count no more.
        persist(out, LogRecord::Certified { at_ms: now_ms, certificate: certificate.clone() });
        let messages = ProofMessages::new(&self.header(Kind::Proof), &certificate, &tree);
        for (index, leaf) in table.placed() {
            let Some(order) = orders.get(&leaf.order) else { continue };
            let Some(home) = self.record.home_of_key(&order.user_key) else { continue };
            let bytes = messages.encode(index, leaf);
            out.push(SeatOutput::Send { to: Peer::Home(home), bytes: bytes.clone() });
            self.proven.insert(leaf.order, Proven { bytes, round, until_ms: until_ms + PROOF_FOR_MS });
        }
        let own = cleared.iter().filter_map(|c| self.own_result(round, c, orders.get(&c.order)?)).collect();
        out.push(SeatOutput::Decided(Box::new(Decided {
            took_ms: now_ms.saturating_sub(self.record.params.t0(round)),
            outcomes: cleared.iter().map(|c| (c.order, c.outcome.clone())).collect(),
            certificate,
            table,
            own,
        })));
    }

    /// Remembers that an order was given to somebody, so that no other body of it is listed meanwhile.
    fn bind(&mut self, cleared: &Cleared, orders: &BTreeMap<Digest, Arc<Order>>, until_ms: u64) {
        let (Outcome::Award(_), Some(order)) = (&cleared.outcome, orders.get(&cleared.order)) else { return };
        if let Some(home) = self.record.home_of_key(&order.user_key) {
            self.pool.awarded(home, order, until_ms);
        }
    }

    /// Keeps the capacity of an order that this seat won or stands by for.
    pub(super) fn promise(
        &mut self,
        round: u64,
        cleared: &Cleared,
        orders: &BTreeMap<Digest, Arc<Order>>,
        until_ms: u64,
        out: &mut Vec<SeatOutput>,
    ) {
        let Some(order) = orders.get(&cleared.order) else { return };
        let Some(home) = self.record.home_of_key(&order.user_key) else { return };
        let holding = cleared.holdings.iter().find(|h| h.seat == self.index);
        let (Some(holding), Some(active)) = (holding, self.rounds.get(&round)) else { return };
        if self.pool.is_over(&cleared.order, home) {
            return;
        }
        // Home may have been here with the certificate before this seat had decided.
        let handover = self.handovers.get(&cleared.order).filter(|h| h.round == round);
        let until_ms = match handover {
            Some(h) if h.stage != Stage::Asked => return,
            Some(h) => h.until_ms,
            None => until_ms,
        };
        let usage = active.bids.usage_of(holding.spec, &order.requirements, &holding.placement);
        self.promises.insert(cleared.order, Promise { home, round, until_ms, usage });
        self.persist_promise(&cleared.order, out);
    }

    /// Lets the log know what is promised to an order.
    pub(super) fn persist_promise(&self, order: &Digest, out: &mut Vec<SeatOutput>) {
        if let Some(Promise { home, round, until_ms, usage }) = self.promises.get(order) {
            let (order, home, round, until_ms) = (*order, *home, *round, *until_ms);
            persist(out, LogRecord::Promise { order, home, round, until_ms, usage: usage.clone() });
        }
    }

    /// What became of this seat's record for one order; none if it had none.
    fn own_result(&self, round: u64, cleared: &Cleared, order: &Order) -> Option<OwnResult> {
        let local = &self.rounds.get(&round)?.bids;
        // Records are in the order of the orders given, which is ascending.
        let at = local.records.binary_search_by(|r| r.order.cmp(&cleared.order)).ok()?;
        let record = local.records.get(at)?;
        let lost = cleared.no_bids.iter().find(|(seat, _)| *seat == self.index);
        let (offer, price) = match record.kind {
            RecordKind::Bid { price, spec, .. } => {
                (local.parts.get(usize::from(spec)).map(|p| p.offer.clone()), Some(price))
            }
            RecordKind::NoBid(_) => (None, None),
        };
        let result = match (&cleared.outcome, record.kind) {
            (_, RecordKind::NoBid(reason)) => BidResult::NoBid(reason),
            (Outcome::None(_), _) => lost.map_or(BidResult::Lost, |(_, reason)| BidResult::NoBid(*reason)),
            (Outcome::Award(a), _) if a.seat == self.index => BidResult::Won,
            (Outcome::Award(a), _) => match a.stand_bys.iter().position(|s| s.seat == self.index) {
                Some(at) => BidResult::StandBy { rank: at as u8 + 1 },
                // Who bid less than is paid and did not win had given the capacity away in this round.
                None if price.is_some_and(|own| own < a.price) => BidResult::NoBid(Reason::Outbid),
                None => BidResult::Lost,
            },
        };
        let (job, gpus) = (order.job.clone(), order.requirements.gpus());
        Some(OwnResult { order: cleared.order, job, offer, price, gpus, result })
    }
}
