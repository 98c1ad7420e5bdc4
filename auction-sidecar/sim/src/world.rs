//! The network: virtual time, links, and everybody who is connected.

use crate::controller::{Answer, Controller};
use crate::deviation::{Actor, Deviation, KindName};
use crate::invariants::Watch;
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use vendue_auction_core::wire::{Kind, peek_kind};
use vendue_auction_core::{
    Choice, DealSpec, Home, HomeInput, HomeKeys, HomeOutput, KeyError, MarketRecord, MemberSpec, Params,
    Peer, Seat, SeatCrypto, SeatInput, SeatKeys, SeatOutput, deal,
};
use vendue_market::{Digest, Offer, Order, Reason};

/// What the network is like.
#[derive(Debug, Clone)]
pub struct Config {
    /// Seed of keys, delays and losses.
    pub seed: u64,
    /// Number of seats.
    pub seats: u16,
    /// The market's clock.
    pub params: Params,
    /// Shortest and longest delay of a message in milliseconds.
    pub delay_ms: (u64, u64),
    /// Messages lost, out of a thousand.
    pub lost_per_mille: u32,
}

impl Config {
    /// Four seats on a good network.
    pub fn four(seed: u64) -> Self {
        Self { seed, seats: 4, params: crate::clock(), delay_ms: (5, 30), lost_per_mille: 0 }
    }
}

/// What is wrong with a seat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Nothing reaches it and nothing leaves it.
    CutOff,
    /// It gets everything but its messages of this kind are lost.
    Mute(Kind),
    /// Its messages of this kind reach the first so many members only.
    Keep(Kind, u16),
}

/// Something that a member reported.
#[allow(clippy::large_enum_variant)] // A log for tests.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A seat's output that is no message.
    Seat(u16, SeatOutput),
    /// The home's output that is no message.
    Home(HomeOutput),
}

/// What happens at a time.
#[derive(Debug)]
enum Due {
    ToSeat { seat: u16, from: Peer, bytes: Vec<u8> },
    ToHome { from: u16, bytes: Vec<u8> },
    Held { seat: u16, order: Digest, round: u64, result: Result<(), Reason> },
    Freed { seat: u16 },
    Stored { order: Digest },
}

/// A time in which the network is cut in two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// From when.
    pub from_ms: u64,
    /// Until when.
    pub until_ms: u64,
    /// Seats on one side; the others and the home are on the other.
    pub side: BTreeSet<u16>,
}

/// Messages that the network holds back: of one kind, from some seats to some seats.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// The kind.
    pub kind: KindName,
    /// Whose messages.
    pub from: BTreeSet<u16>,
    /// To whom.
    pub to: BTreeSet<u16>,
    /// Messages that are sent from then on.
    pub from_ms: u64,
    /// When they arrive.
    pub until_ms: u64,
}

/// The simulated market. It asserts when dropped that no invariant was violated, unless the violations were taken.
pub struct World {
    /// The market.
    pub record: Arc<MarketRecord>,
    /// Virtual time.
    pub now: u64,
    /// What is wrong with which seat.
    pub faults: BTreeMap<u16, BTreeSet<Fault>>,
    /// Each provider's devices.
    pub controllers: Vec<Controller>,
    /// Everything reported, with its time.
    pub events: Vec<(u64, Event)>,
    /// When the network is cut.
    pub partitions: Vec<Partition>,
    /// What the network holds back.
    pub holds: Vec<Hold>,
    /// How far a seat's clock is ahead, in milliseconds.
    pub skew_ms: BTreeMap<u16, i64>,
    /// The invariants.
    pub watch: Watch,
    /// Messages sent, by kind and sending seat (homes are not counted).
    pub sent: BTreeMap<(Kind, u16), u64>,
    actors: BTreeMap<u16, Actor>,
    seats: Vec<Seat<SeatCrypto>>,
    home: Home,
    keys: Vec<String>,
    home_key: String,
    queue: BTreeMap<(u64, u64), Due>,
    serial: u64,
    rng: ChaCha20Rng,
    trace: Sha256,
    config: Config,
    tapped: Option<Vec<(u16, Vec<u8>)>>,
}

impl World {
    /// A market at time 0 in which seat `i` sells `offers[i]`.
    pub fn new(config: Config, offers: Vec<Vec<Offer>>) -> Result<Self, KeyError> {
        let mut rng = ChaCha20Rng::seed_from_u64(config.seed);
        let member = |name: String| MemberSpec { peer_id: format!("peer-{name}"), name, addresses: vec![] };
        let spec = DealSpec {
            name: "sim".into(),
            params: config.params,
            seats: (0..config.seats).map(|i| member(format!("provider-{i}"))).collect(),
            homes: vec![member("home".into())],
        };
        let dealt = deal(&spec, &mut rng)?;
        let record = Arc::new(dealt.record.record);
        let keys: Vec<String> = dealt.seats.iter().map(|k| k.to_json().to_string()).collect();
        let seats = dealt
            .seats
            .into_iter()
            .map(|keys| Seat::fresh(record.clone(), keys.seat, SeatCrypto::new(record.clone(), keys), 0))
            .collect();
        let home_key = dealt.homes.first().map(|k| k.to_json().to_string()).unwrap_or_default();
        let user = dealt.homes.into_iter().next().ok_or(KeyError::Mismatch("number of homes"))?;
        let mut world = Self {
            home: Home::new(record.clone(), 0, user),
            record: record.clone(),
            now: 0,
            faults: BTreeMap::new(),
            controllers: offers.into_iter().map(Controller::new).collect(),
            events: vec![],
            partitions: vec![],
            holds: vec![],
            skew_ms: BTreeMap::new(),
            watch: Watch::new(record.clone()),
            actors: BTreeMap::new(),
            sent: BTreeMap::new(),
            seats,
            keys,
            home_key,
            queue: BTreeMap::new(),
            serial: 0,
            rng,
            trace: Sha256::new(),
            config,
            tapped: None,
        };
        (0..world.config.seats).for_each(|seat| world.advertise(seat));
        Ok(world)
    }

    /// Makes a seat deviate from the protocol.
    pub fn deviate(&mut self, seat: u16, deviation: Deviation) -> Result<(), KeyError> {
        let text = self.keys.get(usize::from(seat)).ok_or(KeyError::Mismatch("seat number"))?;
        let crypto = SeatCrypto::new(self.record.clone(), SeatKeys::from_json(text)?);
        let record = self.record.clone();
        self.actors.entry(seat).or_insert_with(|| Actor::new(record, seat, crypto)).add(deviation);
        self.watch.set_faulty(seat);
        Ok(())
    }

    /// What a seat's clock shows.
    fn local(&self, seat: u16) -> u64 {
        let skew = self.skew_ms.get(&seat).copied().unwrap_or_default();
        self.now.saturating_add_signed(skew)
    }

    /// A seat, to look at.
    pub fn seat(&self, seat: u16) -> Option<&Seat<SeatCrypto>> {
        self.seats.get(usize::from(seat))
    }

    /// The home, to look at.
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// Hash over everything delivered so far.
    pub fn trace_hash(&self) -> [u8; 32] {
        self.trace.clone().finalize().into()
    }

    /// Gives the home an input now.
    pub fn tell_home(&mut self, input: HomeInput) {
        let outputs = self.home.handle(self.now, input);
        self.carry_out(outputs);
    }

    /// Tells a seat what its controller has free.
    pub fn advertise(&mut self, seat: u16) {
        let Some(controller) = self.controllers.get(usize::from(seat)) else { return };
        let offers = controller.free();
        let models = offers.iter().flat_map(|o| &o.nodes).map(|n| n.capacity.model.clone()).collect();
        self.tell_seat(seat, SeatInput::Offers { offers, models });
    }

    /// Delivers bytes to a seat now, as if `from` had sent them.
    pub fn inject(&mut self, seat: u16, from: Peer, bytes: Vec<u8>) {
        self.tell_seat(seat, SeatInput::Message { from, bytes });
    }

    /// Restarts a seat: it loses everything but its keys.
    pub fn restart(&mut self, seat: u16) -> Result<(), KeyError> {
        let text = self.keys.get(usize::from(seat)).ok_or(KeyError::Mismatch("seat number"))?;
        let crypto = SeatCrypto::new(self.record.clone(), SeatKeys::from_json(text)?);
        if let Some(slot) = self.seats.get_mut(usize::from(seat)) {
            *slot = Seat::new(self.record.clone(), seat, crypto, self.now);
        }
        self.advertise(seat);
        Ok(())
    }

    /// Restarts a seat that then takes part at once, as if its keys had never signed anything: what no seat must do.
    pub fn restart_without_caution(&mut self, seat: u16) -> Result<(), KeyError> {
        let text = self.keys.get(usize::from(seat)).ok_or(KeyError::Mismatch("seat number"))?;
        let crypto = SeatCrypto::new(self.record.clone(), SeatKeys::from_json(text)?);
        if let Some(slot) = self.seats.get_mut(usize::from(seat)) {
            *slot = Seat::fresh(self.record.clone(), seat, crypto, self.now);
        }
        self.advertise(seat);
        Ok(())
    }

    /// Restarts the home: it loses everything but its key and what it is given back.
    pub fn restart_home(&mut self, orders: Vec<(Order, Option<Choice>)>) -> Result<(), KeyError> {
        self.home = Home::new(self.record.clone(), 0, HomeKeys::from_json(&self.home_key)?);
        for (order, choice) in orders {
            self.tell_home(HomeInput::Resume { order: Box::new(order), choice });
        }
        Ok(())
    }

    /// Lets time pass until `until` and copies what seats send to seats.
    pub fn tap(&mut self, seen: &mut Vec<(u16, Vec<u8>)>, until: u64) {
        self.tapped = Some(vec![]);
        self.run_until(until);
        seen.extend(self.tapped.take().unwrap_or_default());
    }

    /// Lets time pass until `until`.
    pub fn run_until(&mut self, until: u64) {
        while let Some(at) = self.next_time().filter(|at| *at <= until) {
            self.now = at.max(self.now);
            match self.queue.first_entry().filter(|e| e.key().0 <= self.now) {
                Some(entry) => {
                    let due = entry.remove();
                    self.deliver(due);
                }
                None => self.tick_all(),
            }
        }
        self.now = until.max(self.now);
        self.tick_all();
    }

    fn next_time(&self) -> Option<u64> {
        let queued = self.queue.keys().next().map(|(at, _)| *at);
        let skew = |seat| self.skew_ms.get(&seat).copied().unwrap_or_default();
        let wake = |(seat, s): (u16, &Seat<_>)| Some(s.next_wake()?.saturating_add_signed(-skew(seat)));
        let seats = (0u16..).zip(&self.seats).filter_map(wake).min();
        [queued, seats, self.home.next_wake()].into_iter().flatten().min()
    }

    fn tick_all(&mut self) {
        for seat in 0..self.config.seats {
            self.tell_seat(seat, SeatInput::Tick);
        }
        self.tell_home(HomeInput::Tick);
    }

    fn deliver(&mut self, due: Due) {
        match due {
            Due::ToSeat { seat, from, bytes } => {
                self.note(b"seat", u64::from(seat), &bytes);
                let local_ms = self.local(seat);
                self.watch.arrived(local_ms, seat, &bytes);
                let said = self.actors.get_mut(&seat).map(|a| a.incoming(&bytes)).unwrap_or_default();
                for o in said {
                    self.post(seat, Peer::Seat(o.to), o.bytes, o.delay_ms);
                }
                self.tell_seat(seat, SeatInput::Message { from, bytes });
            }
            Due::ToHome { from, bytes } => {
                self.note(b"home", u64::from(from), &bytes);
                self.tell_home(HomeInput::Message { from, bytes });
            }
            Due::Held { seat, order, round, result } => {
                self.advertise(seat);
                self.tell_seat(seat, SeatInput::Reserved { order, round, result });
            }
            Due::Freed { seat } => self.advertise(seat),
            Due::Stored { order } => self.tell_home(HomeInput::Stored { order }),
        }
    }

    fn note(&mut self, what: &[u8], who: u64, bytes: &[u8]) {
        self.trace.update(what);
        self.trace.update(self.now.to_be_bytes());
        self.trace.update(who.to_be_bytes());
        self.trace.update(bytes);
    }

    fn tell_seat(&mut self, seat: u16, input: SeatInput) {
        let local_ms = self.local(seat);
        let Some(target) = self.seats.get_mut(usize::from(seat)) else { return };
        for output in target.handle(local_ms, input) {
            match output {
                SeatOutput::Broadcast(bytes) => {
                    // What an honest seat says counts, also where nobody hears it.
                    if !self.actors.contains_key(&seat) {
                        self.watch.sent(self.now, local_ms, seat, &bytes);
                    }
                    for to in (0..self.config.seats).filter(|to| *to != seat) {
                        self.send(seat, Peer::Seat(to), bytes.clone());
                    }
                }
                SeatOutput::Send { to, bytes } => self.send(seat, to, bytes),
                SeatOutput::Persist(_) => {}
                other => {
                    self.control(seat, &other);
                    self.report(Event::Seat(seat, other));
                }
            }
        }
    }

    fn report(&mut self, event: Event) {
        self.watch.reported(self.now, &event);
        self.events.push((self.now, event));
    }

    /// Sends what a seat says, or what it says instead where it is faulty.
    fn send(&mut self, from: u16, to: Peer, bytes: Vec<u8>) {
        let local_ms = self.local(from);
        match (to, self.actors.get_mut(&from)) {
            (Peer::Seat(seat), Some(actor)) => {
                for o in actor.outgoing(local_ms, seat, bytes) {
                    self.post(from, Peer::Seat(o.to), o.bytes, o.delay_ms);
                }
            }
            _ => self.post(from, to, bytes, 0),
        }
    }

    /// What a provider's controller does about a seat's output.
    fn control(&mut self, seat: u16, output: &SeatOutput) {
        let Some(controller) = self.controllers.get_mut(usize::from(seat)) else { return };
        match output {
            SeatOutput::Hold(request) => {
                let order = request.order.digest();
                let (after, result) = match controller.answer {
                    Answer::After(ms) => {
                        let before = controller.oversold;
                        let held = controller.hold(request);
                        if controller.oversold > before {
                            self.watch.oversold(self.now, seat);
                        }
                        (ms, held)
                    }
                    Answer::Refuse(reason) => (1, Err(reason)),
                    Answer::Never => return,
                };
                let round = request.certificate.round;
                self.queue_at(self.now + after, Due::Held { seat, order, round, result });
            }
            SeatOutput::Released { order, .. } => {
                controller.release(order);
                // The seat hears of the freed devices like of any other change.
                self.queue_at(self.now + 1, Due::Freed { seat });
            }
            _ => {}
        }
    }

    fn carry_out(&mut self, outputs: Vec<HomeOutput>) {
        for output in outputs {
            match output {
                HomeOutput::Broadcast(bytes) => {
                    (0..self.config.seats).for_each(|to| self.send_from_home(to, bytes.clone()));
                }
                HomeOutput::Send { seat, bytes } => self.send_from_home(seat, bytes),
                other => {
                    if let HomeOutput::Choose(choice) = &other {
                        self.queue_at(self.now + 5, Due::Stored { order: choice.order });
                    }
                    self.report(Event::Home(other));
                }
            }
        }
    }

    fn has(&self, seat: u16, fault: Fault) -> bool {
        self.faults.get(&seat).is_some_and(|f| f.contains(&fault))
    }

    /// When a message arrives; none when it is lost.
    fn arrival(&mut self) -> Option<u64> {
        let (low, high) = self.config.delay_ms;
        let delay = low + self.rng.next_u64() % (high - low + 1);
        let lost = self.rng.next_u32() % 1000 < self.config.lost_per_mille;
        (!lost).then_some(self.now + delay)
    }

    /// Gives a message to the network.
    fn post(&mut self, from: u16, to: Peer, bytes: Vec<u8>, delay_ms: u64) {
        if let Peer::Seat(_) = to {
            let local_ms = self.local(from);
            self.watch.sent(self.now, local_ms, from, &bytes);
        }
        let kind = peek_kind(&bytes);
        let muted = kind.is_some_and(|kind| self.has(from, Fault::Mute(kind)));
        if self.has(from, Fault::CutOff) || muted {
            return;
        }
        if let (Some(tapped), Peer::Seat(_)) = (&mut self.tapped, to) {
            tapped.push((from, bytes.clone()));
        }
        if let Some(kind) = kind {
            *self.sent.entry((kind, from)).or_default() += 1;
        }
        let Some(at) = self.arrival().map(|at| at + delay_ms) else { return };
        if self.is_cut(from, to, at) {
            return;
        }
        let at = self.held_until(kind, from, to).map_or(at, |until| at.max(until));
        if let (Some(kind), Peer::Seat(seat)) = (kind, to) {
            let kept = |f: &Fault| matches!(f, Fault::Keep(k, first) if *k == kind && seat >= *first);
            if self.faults.get(&from).is_some_and(|f| f.iter().any(kept)) {
                return;
            }
        }
        match to {
            Peer::Seat(seat) if !self.has(seat, Fault::CutOff) => {
                self.queue_at(at, Due::ToSeat { seat, from: Peer::Seat(from), bytes });
            }
            Peer::Home(_) => self.queue_at(at, Due::ToHome { from, bytes }),
            Peer::Seat(_) => {}
        }
    }

    /// Until when a message that leaves now is held back.
    fn held_until(&self, kind: Option<Kind>, from: u16, to: Peer) -> Option<u64> {
        let Peer::Seat(to) = to else { return None };
        let holds = |h: &&Hold| {
            Some(h.kind.kind()) == kind
                && (h.from_ms..h.until_ms).contains(&self.now)
                && h.from.contains(&from)
                && h.to.contains(&to)
        };
        self.holds.iter().filter(holds).map(|h| h.until_ms).max()
    }

    /// Whether a message that leaves now and arrives then would cross a cut.
    fn is_cut(&self, from: u16, to: Peer, arrives: u64) -> bool {
        let other = |p: &Partition| match to {
            Peer::Seat(seat) => p.side.contains(&seat),
            Peer::Home(_) => false,
        };
        let at = |p: &&Partition| p.from_ms <= arrives && self.now < p.until_ms;
        self.partitions.iter().filter(at).any(|p| p.side.contains(&from) != other(p))
    }

    fn send_from_home(&mut self, seat: u16, bytes: Vec<u8>) {
        let Some(at) = self.arrival() else { return };
        if !self.has(seat, Fault::CutOff) {
            self.queue_at(at, Due::ToSeat { seat, from: Peer::Home(0), bytes });
        }
    }

    fn queue_at(&mut self, at: u64, due: Due) {
        self.serial += 1;
        self.queue.insert((at, self.serial), due);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let violations = self.watch.violations();
        assert!(violations.is_empty() || std::thread::panicking(), "invariants do not hold: {violations:?}");
    }
}
