//! The network: virtual time, links, and everybody who is connected.

mod network;

use crate::controller::{Answer, Controller};
use crate::deviation::{Actor, Deviation, KindName};
use crate::invariants::Watch;
use crate::keys::{Keys, RealKeys, spec};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use vendue_auction_core::evidence::message_hash;
use vendue_auction_core::proof::verify_by;
use vendue_auction_core::wire::{Body, Header, Kind, Message};
use vendue_auction_core::{
    Choice, Crypto, Home, HomeInput, HomeOutput, KeyError, MarketRecord, Params, Peer, Seat, SeatInput,
    SeatOutput, UserCrypto,
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
    ToSeat { node: usize, from: Peer, bytes: Vec<u8> },
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

/// A time in which a seat's clock stands still; afterwards it is right again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freeze {
    /// The seat.
    pub seat: u16,
    /// From when.
    pub from_ms: u64,
    /// Until when.
    pub until_ms: u64,
}

/// What a home does that an honest one does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HomeFault {
    /// B34: its orders reach the first so many seats only.
    OrderToFew(u16),
    /// B34: every order has two bodies, each for one half of the seats.
    TwoBodies,
    /// B46: it sends bodies that name a certificate which nobody signed.
    FalseCertificate,
}

/// A process that holds a seat.
struct Node<C: Crypto> {
    seat: u16,
    core: Seat<C>,
    /// When it must be called next, unless it was given something since.
    wake: Option<u64>,
    is_stale: bool,
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

/// The simulated market with real or stand-in keys. It asserts when dropped that no invariant was violated, unless the violations were taken.
pub struct World<K: Keys = RealKeys> {
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
    /// When clocks stand still.
    pub freezes: Vec<Freeze>,
    /// What the home does wrong.
    pub home_faults: BTreeSet<HomeFault>,
    /// The invariants.
    pub watch: Watch,
    /// Messages sent, by kind and sending seat (homes are not counted).
    pub sent: BTreeMap<(Kind, u16), u64>,
    actors: BTreeMap<u16, Actor<K::Seat>>,
    /// The seats, and after them the second processes of some.
    nodes: Vec<Node<K::Seat>>,
    home: Home<K::User>,
    keys: K,
    queue: BTreeMap<(u64, u64), Due>,
    serial: u64,
    rng: ChaCha20Rng,
    trace: Sha256,
    config: Config,
    tapped: Option<Vec<(u16, Vec<u8>)>>,
}

impl World {
    /// A market with real keys at time 0 in which seat `i` sells `offers[i]`.
    pub fn new(config: Config, offers: Vec<Vec<Offer>>) -> Result<Self, KeyError> {
        Self::with_keys(config, offers)
    }
}

impl<K: Keys> World<K> {
    /// A market at time 0 in which seat `i` sells `offers[i]`.
    pub fn with_keys(config: Config, offers: Vec<Vec<Offer>>) -> Result<Self, KeyError> {
        let mut rng = ChaCha20Rng::seed_from_u64(config.seed);
        let keys = K::deal(&spec(config.seats, config.params), &mut rng)?;
        let record = keys.record();
        let mut nodes = vec![];
        for seat in 0..config.seats {
            let core = Seat::fresh(record.clone(), seat, keys.seat(seat)?, 0);
            nodes.push(Node { seat, core, wake: None, is_stale: true });
        }
        let mut world = Self {
            home: Home::with_keys(record.clone(), 0, keys.user()?),
            record: record.clone(),
            now: 0,
            faults: BTreeMap::new(),
            controllers: offers.into_iter().map(Controller::new).collect(),
            events: vec![],
            partitions: vec![],
            holds: vec![],
            skew_ms: BTreeMap::new(),
            freezes: vec![],
            home_faults: BTreeSet::new(),
            watch: Watch::new(record, verify_by::<K::Scheme>),
            actors: BTreeMap::new(),
            sent: BTreeMap::new(),
            nodes,
            keys,
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
        let crypto = self.keys.seat(seat)?;
        let record = self.record.clone();
        self.actors.entry(seat).or_insert_with(|| Actor::new(record, seat, crypto)).add(deviation);
        self.watch.set_faulty(seat);
        if deviation == Deviation::TwoReplicas {
            let core = Seat::fresh(self.record.clone(), seat, self.keys.seat(seat)?, self.now);
            self.nodes.push(Node { seat, core, wake: None, is_stale: true });
            self.advertise(seat);
        }
        Ok(())
    }

    /// What a seat's clock shows.
    fn local(&self, seat: u16) -> u64 {
        let skew = self.skew_ms.get(&seat).copied().unwrap_or_default();
        let stands = |f: &&Freeze| f.seat == seat && (f.from_ms..f.until_ms).contains(&self.now);
        let shown = self.freezes.iter().find(stands).map_or(self.now, |f| f.from_ms);
        shown.saturating_add_signed(skew)
    }

    /// When a seat's clock shows a time.
    fn global(&self, seat: u16, local_ms: u64) -> u64 {
        let skew = self.skew_ms.get(&seat).copied().unwrap_or_default();
        let at = local_ms.saturating_add_signed(-skew);
        let stands = |f: &&Freeze| f.seat == seat && f.from_ms < at && at < f.until_ms;
        self.freezes.iter().find(stands).map_or(at, |f| f.until_ms)
    }

    /// Sets a seat's clock, so that it is that far ahead from now on. The seat notices.
    pub fn set_clock(&mut self, seat: u16, skew_ms: i64) {
        self.skew_ms.insert(seat, skew_ms);
        let local_ms = self.local(seat);
        for node in self.nodes_of(seat) {
            let Some(at) = self.nodes.get_mut(node) else { continue };
            let outputs = at.core.clock_was_set(local_ms);
            self.take_outputs(node, outputs);
        }
    }

    fn nodes_of(&self, seat: u16) -> Vec<usize> {
        (0..self.nodes.len()).filter(|i| self.nodes.get(*i).is_some_and(|n| n.seat == seat)).collect()
    }

    /// A seat, to look at.
    pub fn seat(&self, seat: u16) -> Option<&Seat<K::Seat>> {
        self.nodes.get(usize::from(seat)).map(|n| &n.core)
    }

    /// All keys, to sign what nobody said.
    pub fn keys(&self) -> &K {
        &self.keys
    }

    /// The home, to look at.
    pub fn home(&self) -> &Home<K::User> {
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

    /// Another home with the same key is given an input, and what it sends reaches every second seat: two processes of
    /// one user that know nothing of each other.
    pub fn tell_second_home(&mut self, input: HomeInput) -> Result<(), KeyError> {
        let mut second = Home::with_keys(self.record.clone(), 0, self.keys.user()?);
        for output in second.handle(self.now, input) {
            if let HomeOutput::Broadcast(bytes) = output {
                let odd: Vec<u16> = (0..self.config.seats).filter(|to| to % 2 == 1).collect();
                odd.into_iter().for_each(|to| self.send_from_home(to, bytes.clone()));
            }
        }
        Ok(())
    }

    /// The home signs any message.
    pub fn home_says(&mut self, body: Body) -> Result<(), KeyError> {
        let user = self.keys.user()?;
        let (market, epoch, seat) = (self.record.short_id(), self.record.epoch, 0);
        let header = Header { kind: body.kind(), market, epoch, round: 0, seat };
        let signature = Some(user.sign(&message_hash(&self.record.market, &header, &body)));
        let bytes = Message { header, body, signature }.encode();
        (0..self.config.seats).for_each(|to| self.send_from_home(to, bytes.clone()));
        Ok(())
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
        let core = Seat::new(self.record.clone(), seat, self.keys.seat(seat)?, self.local(seat));
        if let Some(node) = self.nodes.get_mut(usize::from(seat)) {
            *node = Node { seat, core, wake: None, is_stale: true };
        }
        self.advertise(seat);
        Ok(())
    }

    /// Restarts a seat that then takes part at once, as if its keys had never signed anything: what no seat must do.
    pub fn restart_without_caution(&mut self, seat: u16) -> Result<(), KeyError> {
        let core = Seat::fresh(self.record.clone(), seat, self.keys.seat(seat)?, self.local(seat));
        if let Some(node) = self.nodes.get_mut(usize::from(seat)) {
            *node = Node { seat, core, wake: None, is_stale: true };
        }
        self.advertise(seat);
        Ok(())
    }

    /// Restarts the home: it loses everything but its key and what it is given back.
    pub fn restart_home(&mut self, orders: Vec<(Order, Option<Choice>)>) -> Result<(), KeyError> {
        self.home = Home::with_keys(self.record.clone(), 0, self.keys.user()?);
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
        loop {
            // What arrives at this time comes before who waits for it.
            if let Some(entry) = self.queue.first_entry().filter(|e| e.key().0 <= self.now) {
                let due = entry.remove();
                self.deliver(due);
                continue;
            }
            self.look_at_clocks();
            let Some(at) = self.next_time().filter(|at| *at <= until) else { break };
            self.now = at.max(self.now);
            if self.queue.first_key_value().is_none_or(|((at, _), _)| *at > self.now) {
                self.tick();
            }
        }
        self.now = until.max(self.now);
        (0..self.nodes.len()).for_each(|node| self.tell(node, SeatInput::Tick));
        self.tell_home(HomeInput::Tick);
    }

    /// Asks those that were given something when they must be called next.
    fn look_at_clocks(&mut self) {
        for at in 0..self.nodes.len() {
            let Some(node) = self.nodes.get(at).filter(|n| n.is_stale) else { continue };
            let wake = node.core.next_wake().map(|local_ms| self.global(node.seat, local_ms));
            if let Some(node) = self.nodes.get_mut(at) {
                (node.wake, node.is_stale) = (wake, false);
            }
        }
    }

    fn next_time(&self) -> Option<u64> {
        let queued = self.queue.first_key_value().map(|((at, _), _)| *at);
        let nodes = self.nodes.iter().filter_map(|n| n.wake).min();
        [queued, nodes, self.home.next_wake()].into_iter().flatten().min()
    }

    /// Gives the time to those that wait for it.
    fn tick(&mut self) {
        for node in 0..self.nodes.len() {
            if self.nodes.get(node).and_then(|n| n.wake).is_some_and(|at| at <= self.now) {
                self.tell(node, SeatInput::Tick);
            }
        }
        if self.home.next_wake().is_some_and(|at| at <= self.now) {
            self.tell_home(HomeInput::Tick);
        }
    }

    fn deliver(&mut self, due: Due) {
        match due {
            Due::ToSeat { node, from, bytes } => {
                let Some(seat) = self.nodes.get(node).map(|n| n.seat) else { return };
                self.note(b"seat", node as u64, &bytes);
                let local_ms = self.local(seat);
                self.watch.arrived(local_ms, seat, &bytes);
                let said =
                    self.actors.get_mut(&seat).map(|a| a.incoming(local_ms, &bytes)).unwrap_or_default();
                for o in said {
                    self.post(seat, Peer::Seat(o.to), o.bytes, o.delay_ms);
                }
                self.tell(node, SeatInput::Message { from, bytes });
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
        for node in self.nodes_of(seat) {
            self.tell(node, input.clone());
        }
    }

    fn tell(&mut self, node: usize, input: SeatInput) {
        let Some(local_ms) = self.nodes.get(node).map(|n| self.local(n.seat)) else { return };
        let Some(target) = self.nodes.get_mut(node) else { return };
        let outputs = target.core.handle(local_ms, input);
        self.take_outputs(node, outputs);
    }

    fn take_outputs(&mut self, node: usize, outputs: Vec<SeatOutput>) {
        let Some(node) = self.nodes.get_mut(node) else { return };
        node.is_stale = true;
        let seat = node.seat;
        let local_ms = self.local(seat);
        for output in outputs {
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
            (Peer::Home(_), Some(actor)) => {
                if let Some(delay_ms) = actor.to_home(&bytes) {
                    self.post(from, to, bytes, delay_ms);
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
}

impl<K: Keys> Drop for World<K> {
    fn drop(&mut self) {
        let violations = self.watch.violations();
        assert!(violations.is_empty() || std::thread::panicking(), "invariants do not hold: {violations:?}");
    }
}
