//! A home: the market's member that places orders.
//!
//! For each order: sign it, send it until the seats have it, wait for its round, verify certificate and outcome,
//! ask the winner to hold the devices, then the stand-bys in rank, have the choice stored, and only then announce
//! it and release the workload. An order that a certified round gave to nobody is listed again at once, in a new body
//! that comes with the certificate; without one it goes on in its next round, until its time is over.
//!
//! Invariant: [`HomeOutput::HandOver`] names one seat at most for an order, and only after its choice was stored.

mod again;
mod handover;
mod intake;
mod io;

pub use io::{Choice, HomeInput, HomeOutput, NewOrder};

use crate::award::{AwardProof, Certificate};
use crate::crypto::UserCrypto;
use crate::drops::Drops;
use crate::epochs::{Epochs, NextEpochError};
use crate::evidence::{message_hash_by, named_order_hash_by};
use crate::keys::HomeKeys;
use crate::record::MarketRecord;
use crate::wire::{Again, Body, Cancel, Fetch, Header, Message, OrderMsg, Proof, Taken, Withdraw};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use vendue_market::{Digest, GpuModel, Order, Price, RequirementsError, tagged_hash};

/// How often a last word is repeated, in delays after the first time.
const REPEATS: [u64; 3] = [4, 16, 64];

/// A seat that may serve an awarded order.
#[derive(Debug, Clone)]
struct Candidate {
    seat: u16,
    price: Price,
    refused: bool,
}

/// An awarded order on its way to a seat.
#[derive(Debug, Clone)]
struct Reserving {
    certificate: Certificate,
    proof: AwardProof,
    candidates: Vec<Candidate>,
    /// Candidates asked so far; the last of them is the one that is waited for.
    asked: usize,
    /// When the next candidate is asked.
    next_ms: u64,
    /// When those that have not answered are asked again.
    resend_ms: u64,
}

/// Why an order may be listed early: the body before, and what its round gave it.
#[derive(Debug, Clone)]
struct Before {
    body: Order,
    proof: Proof,
}

/// How far an order has come.
#[derive(Debug, Clone)]
enum State {
    /// It waits for its round or for the round's result.
    Waiting,
    /// It was awarded; seats are asked.
    Reserving(Box<Reserving>),
    /// A seat holds the devices; the choice is being stored.
    Choosing {
        choice: Box<Choice>,
        /// When the choice is given out again, in case it was lost on its way to the store.
        again_ms: u64,
        /// The user has withdrawn the order meanwhile.
        withdrawn: bool,
    },
    /// The choice is stored.
    Taken(u16),
    /// Withdrawn or given up.
    Closed,
}

/// One order.
struct Entry {
    order: Order,
    signature: [u8; 65],
    /// What is sealed in each body, if this home knows it.
    ceiling: Option<Price>,
    /// What goes out with a body that comes early.
    before: Option<Box<Before>>,
    /// Digests of the last bodies before this one, the latest first.
    earlier: Vec<Digest>,
    state: State,
    /// The round that the order waits for or was awarded in.
    round: u64,
    /// Seats that have the order, with the first round in which each can list it.
    receipts: BTreeMap<u16, u64>,
    models: BTreeSet<GpuModel>,
    /// When the order is sent again to seats without a receipt.
    resend_ms: u64,
    backoff_ms: u64,
    /// When the seats are asked for the round's result.
    ask_ms: u64,
    /// Whether the delay of this round's result was reported.
    delayed: bool,
    /// Whether this home has made the body and has run ever since.
    is_fresh: bool,
}

/// A home of a market and its orders.
pub struct Home<K: UserCrypto = HomeKeys> {
    /// For what all epochs have in common: id, members, clock and rules. What changes is asked of `epochs`.
    record: Arc<MarketRecord>,
    epochs: Epochs<()>,
    index: u16,
    keys: K,
    /// When the home was last given an input.
    now: u64,
    orders: BTreeMap<Digest, Entry>,
    /// Last words on orders, to be repeated, with their times; an order need not be known any more.
    repeats: BTreeMap<Digest, Vec<(u64, Vec<u8>)>>,
    /// Searches that were withdrawn, and the round up to which their bodies are over.
    withdrawn: BTreeMap<Digest, u64>,
    drops: Drops,
}

/// A name for all orders of a search, beside their digests.
fn search_key(job: &str, attempt: u32) -> Digest {
    tagged_hash("VENDUE-V1-SEARCH", &[job.as_bytes(), &attempt.to_be_bytes()])
}

impl Home {
    /// The home at position `index` of the record ([`HomeKeys::check`] gives it).
    pub fn new(record: Arc<MarketRecord>, index: u16, keys: HomeKeys) -> Self {
        Self::with_keys(record, index, keys)
    }
}

impl<K: UserCrypto> Home<K> {
    /// A home with keys of any kind.
    pub fn with_keys(record: Arc<MarketRecord>, index: u16, keys: K) -> Self {
        let (orders, repeats) = (BTreeMap::new(), BTreeMap::new());
        let (withdrawn, drops) = (BTreeMap::new(), Drops::default());
        let epochs = Epochs::new(record.clone(), ());
        Self { record, epochs, index, keys, now: 0, orders, repeats, withdrawn, drops }
    }

    /// Takes the record of the next epoch: the awards of its rounds are verified with it. Orders go on as they are. The
    /// same record again changes nothing.
    pub fn take_next(&mut self, now_ms: u64, record: Arc<MarketRecord>) -> Result<(), NextEpochError> {
        self.epochs.take_record(now_ms, record).map(|_| ())
    }

    /// Takes one input and says what to do.
    pub fn handle(&mut self, now_ms: u64, input: HomeInput) -> Vec<HomeOutput> {
        self.now = now_ms;
        self.epochs.let_go(now_ms);
        let mut out = Vec::new();
        match input {
            HomeInput::Tick => {}
            HomeInput::Submit(new) => self.submit(now_ms, *new, None, &mut out),
            HomeInput::SubmitSealed { order, ceiling } => {
                self.submit(now_ms, *order, Some(ceiling), &mut out)
            }
            HomeInput::Resume { order, choice } => self.resume(now_ms, *order, choice, &mut out),
            HomeInput::Message { from, bytes } => {
                if let Err(reason) = self.intake(now_ms, from, &bytes, &mut out) {
                    self.drops.add(reason);
                }
            }
            HomeInput::Stored { order } => self.stored(now_ms, self.named(&order), &mut out),
            HomeInput::NotStored { order } => self.not_stored(now_ms, self.named(&order), &mut out),
            HomeInput::Withdraw { job, attempt } => self.withdraw(now_ms, job, attempt, &mut out),
            HomeInput::Cancel { order } => self.cancel(now_ms, self.named(&order), &mut out),
            HomeInput::Forget { order } => {
                self.orders.remove(&self.named(&order));
            }
        }
        self.repeat(now_ms, &mut out);
        let kept_ms = self.record.params.lifetime();
        self.orders.retain(|_, e| {
            !matches!(e.state, State::Closed) || now_ms < e.order.expires_ms.saturating_add(kept_ms)
        });
        let p = self.record.params;
        self.withdrawn.retain(|_, round| now_ms < p.expiry(*round));
        let is_open = |e: &Entry| !matches!(e.state, State::Taken(_) | State::Closed);
        let all: Vec<Digest> = self.orders.iter().filter(|(_, e)| is_open(e)).map(|(d, _)| *d).collect();
        for digest in all {
            self.advance(now_ms, digest, &mut out);
        }
        out
    }

    /// When [`Home::handle`] must be called next, at the latest; a time that has passed means at once, `None` that only
    /// an input can change anything.
    pub fn next_wake(&self) -> Option<u64> {
        let repeats = self.repeats.values().flatten().map(|(at, _)| *at);
        let orders = self.orders.values().filter_map(|e| self.wakes(e));
        orders.chain(repeats).min().map(|at| at.max(self.now + 1))
    }

    /// Messages that were dropped, by reason.
    pub fn dropped(&self) -> &Drops {
        &self.drops
    }

    /// Checks requirements before an order is made of them.
    pub fn check(new: &NewOrder) -> Result<(), RequirementsError> {
        new.requirements.validate()?;
        new.terms.validate()
    }

    fn wakes(&self, e: &Entry) -> Option<u64> {
        let p = &self.record.params;
        match &e.state {
            State::Waiting => {
                let waits = e.round == e.order.first_round && self.now < p.t0(e.round);
                let start = if waits { p.t0(e.round) } else { u64::MAX };
                let resends = e.receipts.len() < usize::from(self.record.n());
                let resend = if resends { e.resend_ms } else { u64::MAX };
                Some(start.min(resend).min(e.ask_ms).min(p.expiry(e.round)))
            }
            State::Reserving(r) => Some(r.next_ms.min(r.resend_ms).min(p.expiry(e.round))),
            State::Choosing { again_ms, .. } => Some(*again_ms),
            State::Taken(_) | State::Closed => None,
        }
    }

    /// Signs and encodes a message that belongs to no round: it has the epoch that it is by this home's clock.
    fn encode(&self, body: Body) -> Vec<u8> {
        self.sign(0, self.epochs.at(self.now).record.epoch, body)
    }

    /// Signs and encodes a message that is about an award of a round.
    fn encode_in(&self, round: u64, body: Body) -> Vec<u8> {
        let of_round = self.epochs.record_of(round).unwrap_or(&self.record);
        self.sign(round, of_round.epoch, body)
    }

    fn sign(&self, round: u64, epoch: u32, body: Body) -> Vec<u8> {
        let market = self.record.short_id();
        let header = Header { kind: body.kind(), market, epoch, round, seat: self.index };
        let hash = message_hash_by::<K::Scheme>(&self.record.market, &header, &body);
        let signature = header.kind.is_signed().then(|| self.keys.sign(&hash));
        Message { header, body, signature }.encode()
    }

    /// The message that brings an order to a seat.
    fn order_bytes(&self, digest: &Digest) -> Option<Vec<u8>> {
        let Entry { order, before, .. } = self.orders.get(digest)?;
        let order = order.clone();
        match before {
            Some(before) => {
                let Before { body, proof } = before.as_ref().clone();
                Some(self.encode(Body::Again(Box::new(Again { order, before: body, proof }))))
            }
            None if order.after.is_none() => Some(self.encode(Body::Order(OrderMsg { order }))),
            // Known from before a restart, without the certificate that seats ask for.
            None => None,
        }
    }

    /// Whether an order of that job and attempt is in work. One that was withdrawn is no obstacle: a Job that was
    /// suspended comes back.
    fn is_in_work(&self, new: &NewOrder) -> bool {
        let same = |e: &&Entry| e.order.job == new.job && e.order.attempt == new.attempt;
        self.orders.values().filter(same).any(|e| !matches!(e.state, State::Closed))
    }

    /// The first round that a body made now may name: after those of the search that were withdrawn.
    fn first_round(&self, now_ms: u64, job: &str, attempt: u32) -> u64 {
        let over = self.withdrawn.get(&search_key(job, attempt)).map_or(0, |round| round + 1);
        self.record.params.first_round(now_ms).max(over)
    }

    /// Makes and signs an order and sends it, with its ceiling sealed if there is one to seal.
    fn submit(&mut self, now_ms: u64, new: NewOrder, ceiling: Option<Price>, out: &mut Vec<HomeOutput>) {
        if self.is_in_work(&new) {
            return;
        }
        let first_round = self.first_round(now_ms, &new.job, new.attempt);
        let mut order = Order {
            market: self.record.market,
            job: new.job,
            attempt: new.attempt,
            requirements: new.requirements,
            commitment: new.commitment,
            first_round,
            expires_ms: new.expires_ms,
            user_key: self.keys.public_key(),
            after: None,
            terms: new.terms,
        };
        // One that was withdrawn a moment ago stays so: seats would not take the same body again.
        let is_over = |d: &Digest| self.repeats.contains_key(d) || self.orders.contains_key(d);
        loop {
            if ceiling.is_some() {
                let Some(sealed) = self.sealed_anew(order.clone(), ceiling) else {
                    return out.push(HomeOutput::GivenUp { order: order.digest() });
                };
                order = sealed;
            }
            if !is_over(&order.digest()) {
                break;
            }
            order.first_round += 1;
        }
        let (digest, round) = (order.digest(), order.first_round);
        out.push(HomeOutput::Ordered {
            digest,
            order: Box::new(order.clone()),
            signature: self.keys.sign(&named_order_hash_by::<K::Scheme>(&self.record.market, &digest)),
            starts_ms: self.record.params.t0(round),
        });
        self.adopt(now_ms, digest, order, round, State::Waiting);
        if let Some(entry) = self.orders.get_mut(&digest) {
            entry.ceiling = ceiling;
        }
    }

    /// After a restart: the order's last round, and true, while that may still have awarded it; else its next.
    fn round_to_follow(&self, now_ms: u64, order: &Order) -> (u64, bool) {
        let p = self.record.params;
        if order.terms.sealed_ceiling.is_some() {
            // It has no other round.
            return (order.first_round, now_ms < p.expiry(order.first_round));
        }
        let step = p.order_step();
        let next = order.next_round(p.round_from(now_ms), step);
        let before = next.checked_sub(step).filter(|r| *r >= order.first_round && now_ms < p.expiry(*r));
        before.map_or((next, false), |round| (round, true))
    }

    /// Goes on with an order after a restart; a round that may have awarded it is asked for first.
    fn resume(&mut self, now_ms: u64, order: Order, choice: Option<Choice>, out: &mut Vec<HomeOutput>) {
        let digest = order.digest();
        let same = |e: &&Entry| e.order.job == order.job && e.order.attempt == order.attempt;
        if self.orders.values().filter(same).any(|e| !matches!(e.state, State::Closed)) {
            return;
        }
        // A body that was withdrawn is over for the seats.
        let withdrawn = self.orders.contains_key(&self.named(&digest));
        match choice {
            Some(choice) => {
                let seat = choice.seat;
                self.adopt(now_ms, digest, order, choice.certificate.round, State::Taken(seat));
                self.announce(now_ms, digest, Body::Taken(Taken { order: digest, seat }), out);
                out.push(HomeOutput::HandOver { order: digest, seat });
            }
            None => {
                let early = order.after.is_some();
                let (round, may_be_awarded) = self.round_to_follow(now_ms, &order);
                self.adopt(now_ms, digest, order, round, State::Waiting);
                if let Some(entry) = self.orders.get_mut(&digest) {
                    entry.is_fresh = false;
                }
                if withdrawn || (early && !may_be_awarded) {
                    self.start_again(now_ms, digest, out);
                }
            }
        }
    }

    fn adopt(&mut self, now_ms: u64, digest: Digest, order: Order, round: u64, state: State) {
        let hash = named_order_hash_by::<K::Scheme>(&self.record.market, &digest);
        let signature = self.keys.sign(&hash);
        let entry = Entry {
            order,
            signature,
            ceiling: None,
            before: None,
            earlier: vec![],
            state,
            round,
            receipts: BTreeMap::new(),
            models: BTreeSet::new(),
            resend_ms: now_ms,
            backoff_ms: 2 * self.record.params.delay_ms,
            ask_ms: self.first_ask(round),
            delayed: false,
            is_fresh: true,
        };
        self.orders.insert(digest, entry);
    }

    /// When a round's result is late enough to be asked for: a round with silent seats takes about 5 D.
    fn first_ask(&self, round: u64) -> u64 {
        let p = &self.record.params;
        p.t0(round).saturating_add(10 * p.delay_ms)
    }

    /// Sends a last word to all seats and again a few times; seats that missed it would hold capacity until E.
    fn announce(&mut self, now_ms: u64, digest: Digest, body: Body, out: &mut Vec<HomeOutput>) {
        let mut words = vec![self.encode(body)];
        // A seat that has not heard of the last body may still list one before it.
        if let Some(entry) = self.orders.get(&digest).filter(|e| !e.earlier.is_empty()) {
            let Order { job, attempt, first_round, .. } = &entry.order;
            let (job, attempt, round) = (job.clone(), *attempt, *first_round);
            self.withdrawn.insert(search_key(&job, attempt), round);
            let withdraw = Withdraw { job, attempt, round, except: digest };
            words.push(self.encode(Body::Withdraw(withdraw)));
        }
        let delay = self.record.params.delay_ms;
        let repeat = |after: u64| words.iter().map(move |w| (now_ms + after * delay, w.clone()));
        self.repeats.insert(digest, REPEATS.into_iter().flat_map(repeat).collect());
        out.extend(words.into_iter().map(HomeOutput::Broadcast));
    }

    /// Withdraws a search, also one of which only the seats know: its orders were made before a restart.
    fn withdraw(&mut self, now_ms: u64, job: String, attempt: u32, out: &mut Vec<HomeOutput>) {
        let same = |e: &Entry| e.order.job == job && e.order.attempt == attempt;
        let known = self.orders.iter().find(|(_, e)| same(e) && !matches!(e.state, State::Closed));
        if let Some(digest) = known.map(|(digest, _)| *digest) {
            return self.cancel(now_ms, digest, out);
        }
        let round = self.record.params.first_round(now_ms);
        let key = search_key(&job, attempt);
        self.withdrawn.insert(key, round);
        self.announce(now_ms, key, Body::Withdraw(Withdraw { job, attempt, round, except: key }), out);
    }

    fn cancel(&mut self, now_ms: u64, digest: Digest, out: &mut Vec<HomeOutput>) {
        let Some(entry) = self.orders.get_mut(&digest) else {
            // Made before a restart: seats hold it all the same.
            return self.announce(now_ms, digest, Body::Cancel(Cancel { order: digest }), out);
        };
        match &mut entry.state {
            State::Waiting | State::Reserving(_) => {}
            // The choice may be stored already, and what is stored is what a restart goes on with.
            State::Choosing { withdrawn, .. } => {
                *withdrawn = true;
                return;
            }
            // What was handed over is closed by its own message, not by withdrawing the order.
            State::Taken(_) | State::Closed => return,
        }
        entry.state = State::Closed;
        self.announce(now_ms, digest, Body::Cancel(Cancel { order: digest }), out);
    }

    /// Does what is due for one order.
    fn advance(&mut self, now_ms: u64, digest: Digest, out: &mut Vec<HomeOutput>) {
        let Some(entry) = self.orders.get(&digest) else { return };
        match entry.state {
            State::Waiting if Self::awaits_body(entry) => self.make_body(now_ms, digest, out),
            State::Waiting => self.wait(now_ms, digest, out),
            State::Reserving(_) => self.press_on(now_ms, digest, out),
            State::Choosing { .. } => self.choose_again(now_ms, digest, out),
            State::Taken(_) | State::Closed => {}
        }
    }

    /// Says last words again that are due.
    fn repeat(&mut self, now_ms: u64, out: &mut Vec<HomeOutput>) {
        for words in self.repeats.values_mut().filter(|words| words.iter().any(|(at, _)| *at <= now_ms)) {
            let (due, later): (Vec<_>, Vec<_>) = words.drain(..).partition(|(at, _)| *at <= now_ms);
            *words = later;
            out.extend(due.into_iter().map(|(_, bytes)| HomeOutput::Broadcast(bytes)));
        }
        self.repeats.retain(|_, words| !words.is_empty());
    }

    /// An order that waits: send it where it is missing, ask for a late result, move on when the round is over.
    fn wait(&mut self, now_ms: u64, digest: Digest, out: &mut Vec<HomeOutput>) {
        let p = self.record.params;
        let n = usize::from(self.record.n());
        if self.misses_its_round(now_ms, &digest) {
            let seen = self.orders.get(&digest).map(|e| (e.round, e.receipts.len() as u16));
            let retry_ms = self.start_again(now_ms, digest, out);
            if let (Some((round, receipts)), Some(retry_ms)) = (seen, retry_ms) {
                out.push(HomeOutput::Delayed { order: self.named(&digest), round, receipts, retry_ms });
            }
            return;
        }
        let Some(entry) = self.orders.get_mut(&digest) else { return };
        if now_ms >= p.expiry(entry.round) {
            let (round, receipts) = (entry.round, entry.receipts.len() as u16);
            // Seats may refuse an early body for good; a plain one takes its place with all of them.
            let retry_ms = if entry.order.after.is_some() {
                self.start_again(now_ms, digest, out)
            } else {
                self.next_round(now_ms, digest, out)
            };
            if let Some(retry_ms) = retry_ms {
                let order = self.named(&digest);
                out.push(HomeOutput::RoundMissed { order, round, receipts, retry_ms });
            }
            return;
        }
        let mut ask = false;
        if now_ms >= entry.ask_ms {
            entry.ask_ms = now_ms + 8 * p.delay_ms;
            ask = true;
            if !entry.delayed {
                entry.delayed = true;
                out.push(HomeOutput::Delayed {
                    order: digest,
                    round: entry.round,
                    receipts: entry.receipts.len() as u16,
                    retry_ms: p.t0(entry.round + p.order_step()),
                });
            }
        }
        let missing: Vec<u16> = (0..self.record.n()).filter(|s| !entry.receipts.contains_key(s)).collect();
        let send = !missing.is_empty() && now_ms >= entry.resend_ms;
        if send {
            entry.resend_ms = now_ms + entry.backoff_ms;
            entry.backoff_ms = (entry.backoff_ms * 2).min(p.lifetime());
        }
        // Encoding is signing, which is not done in vain.
        match send.then(|| self.order_bytes(&digest)).flatten() {
            Some(bytes) if missing.len() == n => out.push(HomeOutput::Broadcast(bytes)),
            Some(bytes) => {
                out.extend(missing.into_iter().map(|seat| HomeOutput::Send { seat, bytes: bytes.clone() }));
            }
            None => {}
        }
        if ask {
            out.push(HomeOutput::Broadcast(self.encode(Body::Fetch(Fetch::Proof(digest)))));
        }
    }

    /// Whether a body's first round begins and fewer seats can list it than are needed for it to be served. Its next round
    /// is a whole step away, so the order goes on in another body.
    fn misses_its_round(&self, now_ms: u64, digest: &Digest) -> bool {
        let Some(entry) = self.orders.get(digest) else { return false };
        let starts = self.record.params.t0(entry.round);
        entry.round == entry.order.first_round
            && entry.is_fresh
            && now_ms >= starts
            && now_ms < starts + self.record.params.period_ms
            && entry.receipts.values().filter(|from| **from <= entry.round).count()
                <= usize::from(self.record.f())
    }

    fn give_up(&mut self, now_ms: u64, digest: Digest, out: &mut Vec<HomeOutput>) {
        if let Some(entry) = self.orders.get_mut(&digest) {
            entry.state = State::Closed;
        }
        out.push(HomeOutput::GivenUp { order: digest });
        self.announce(now_ms, digest, Body::Cancel(Cancel { order: digest }), out);
    }

    /// Moves an order to its next round and says when that starts; gives it up when its time is over.
    fn next_round(&mut self, now_ms: u64, digest: Digest, out: &mut Vec<HomeOutput>) -> Option<u64> {
        let p = self.record.params;
        if self.orders.get(&digest).is_some_and(|e| e.order.terms.sealed_ceiling.is_some()) {
            return self.seal_for_next_round(now_ms, digest, out);
        }
        if self.orders.get(&digest).is_some_and(|e| e.order.after.is_some() && e.before.is_none()) {
            return self.start_again(now_ms, digest, out);
        }
        let entry = self.orders.get_mut(&digest)?;
        // Seats hold the order and list it in its rounds by themselves; home only has to follow the schedule.
        let step = p.order_step();
        let mut round = entry.order.next_round(entry.round + 1, step);
        if now_ms >= p.expiry(round) {
            round = entry.order.next_round(p.round_from(now_ms), step);
        }
        entry.round = round;
        entry.delayed = false;
        entry.state = State::Waiting;
        // Seats that were restarted have lost the order: send it to all once more, well before the round.
        entry.receipts.clear();
        entry.backoff_ms = 2 * p.delay_ms;
        entry.resend_ms = p.t0(round).saturating_sub(8 * p.delay_ms).max(now_ms);
        let starts_ms = p.t0(round);
        if starts_ms >= entry.order.expires_ms {
            self.give_up(now_ms, digest, out);
            return None;
        }
        let ask_ms = self.first_ask(round);
        if let Some(entry) = self.orders.get_mut(&digest) {
            entry.ask_ms = ask_ms;
        }
        Some(starts_ms)
    }
}
