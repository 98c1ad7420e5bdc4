//! The network: virtual time, links, and everybody who is connected.

mod conditions;
mod epochs;
mod letter;
mod network;
mod restart;

pub use conditions::{Config, Fault, Freeze, Hold, HomeFault, Partition};
pub use epochs::LearnError;
pub(crate) use letter::Letter;
pub use restart::Stop;

use crate::controller::{Answer, Controller};
use crate::deviation::{Actor, Deviation, Outgoing};
use crate::invariants::{Judge, Watch};
use crate::keys::{Keys, RealKeys, spec};
use crate::mock::Trace;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;
use vendue_auction_core::evidence::message_hash_by;
use vendue_auction_core::log::LogRecord;
use vendue_auction_core::wire::{Body, Header, Kind, Message};
use vendue_auction_core::{
    Choice, Crypto, Home, HomeInput, HomeOutput, KeyError, MarketRecord, Peer, Seat, SeatInput, SeatOutput,
    UserCrypto,
};
use vendue_market::{Digest, Offer, Order, Reason};

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
    ToSeat { node: usize, from: Peer, letter: Letter },
    ToHome { from: u16, letter: Letter },
    Held { seat: u16, order: Digest, round: u64, result: Result<(), Reason> },
    Freed { seat: u16 },
    Stored { order: Digest },
}

/// What waits for its time. Of those for one time, the first that was queued comes first.
#[derive(Debug)]
struct Queued {
    at: u64,
    serial: u64,
    due: Due,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        self.serial == other.serial
    }
}
impl Eq for Queued {}
impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Queued {
    /// The greatest is the one that comes first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.serial).cmp(&(self.at, self.serial))
    }
}

/// A process that holds a seat.
struct Node<C: Crypto> {
    seat: u16,
    core: Seat<C>,
    /// What it made durable, since the keys were first used.
    log: Vec<LogRecord>,
    /// The process stops when its log has so many records, for so many milliseconds.
    stops_at: Option<(u64, u64)>,
    /// Until when there is no process.
    down_until: Option<u64>,
    /// When it must be called next, unless it was given something since.
    wake: Option<u64>,
    is_stale: bool,
}

impl<C: Crypto> Node<C> {
    fn new(seat: u16, core: Seat<C>) -> Self {
        Self { seat, core, log: vec![], stops_at: None, down_until: None, wake: None, is_stale: true }
    }
}

/// Where homes stand in the trace, after the processes of seats.
const HOME: u64 = 1 << 32;

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
    /// Seats that know of the next epoch.
    learned: BTreeSet<u16>,
    queue: BinaryHeap<Queued>,
    serial: u64,
    /// Processes that were started again.
    pub(crate) restarts: u64,
    /// Clocks that were set while their process was down.
    pub(crate) set_while_down: u64,
    rng: ChaCha20Rng,
    trace: Trace,
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
            nodes.push(Node::new(seat, core));
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
            watch: Watch::new(record, Judge::by::<K::Scheme>()),
            actors: BTreeMap::new(),
            sent: BTreeMap::new(),
            nodes,
            keys,
            learned: BTreeSet::new(),
            queue: BinaryHeap::new(),
            serial: 0,
            restarts: 0,
            set_while_down: 0,
            rng,
            trace: Trace::default(),
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
            self.nodes.push(Node::new(seat, core));
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

    /// Sets a seat's clock, so that it is that far ahead from now on. The seat notices, unless its process is down.
    pub fn set_clock(&mut self, seat: u16, skew_ms: i64) {
        self.skew_ms.insert(seat, skew_ms);
        let local_ms = self.local(seat);
        for node in self.nodes_of(seat) {
            if self.is_down(node) {
                self.set_while_down += 1;
                continue;
            }
            let Some(at) = self.nodes.get_mut(node) else { continue };
            let outputs = at.core.clock_was_set(local_ms);
            self.take_outputs(node, outputs);
        }
    }

    /// The processes of a seat: its own, and second ones.
    fn nodes_of(&self, seat: u16) -> impl Iterator<Item = usize> + use<K> {
        let is_second = |i: &usize| self.nodes.get(*i).is_some_and(|n| n.seat == seat);
        let second: Vec<usize> =
            (usize::from(self.config.seats)..self.nodes.len()).filter(is_second).collect();
        std::iter::once(usize::from(seat)).chain(second)
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
        self.trace.hash()
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
                let letter = self.letter(bytes);
                let odd = (0..self.config.seats).filter(|to| to % 2 == 1);
                odd.for_each(|to| self.send_from_home(to, letter.clone()));
            }
        }
        Ok(())
    }

    /// The home signs any message.
    pub fn home_says(&mut self, body: Body) -> Result<(), KeyError> {
        let user = self.keys.user()?;
        let (market, epoch, seat) = (self.record.short_id(), self.record.epoch, 0);
        let header = Header { kind: body.kind(), market, epoch, round: 0, seat };
        let signature = Some(user.sign(&message_hash_by::<K::Scheme>(&self.record.market, &header, &body)));
        let letter = self.letter(Message { header, body, signature }.encode());
        (0..self.config.seats).for_each(|to| self.send_from_home(to, letter.clone()));
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
            if self.queue.peek().is_some_and(|q| q.at <= self.now) {
                if let Some(Queued { due, .. }) = self.queue.pop() {
                    self.deliver(due);
                }
                continue;
            }
            self.look_at_clocks();
            let Some(at) = self.next_time().filter(|at| *at <= until) else { break };
            self.now = at.max(self.now);
            if self.queue.peek().is_none_or(|q| q.at > self.now) {
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
            let wake = match node.down_until {
                Some(until) => Some(until),
                None => node.core.next_wake().map(|local_ms| self.global(node.seat, local_ms)),
            };
            if let Some(node) = self.nodes.get_mut(at) {
                (node.wake, node.is_stale) = (wake, false);
            }
        }
    }

    fn next_time(&self) -> Option<u64> {
        let queued = self.queue.peek().map(|q| q.at);
        let nodes = self.nodes.iter().filter_map(|n| n.wake).min();
        [queued, nodes, self.home.next_wake()].into_iter().flatten().min()
    }

    /// Gives the time to those that wait for it.
    fn tick(&mut self) {
        self.start_again();
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
            Due::ToSeat { node, from, letter } => {
                let Some(seat) = self.nodes.get(node).map(|n| n.seat) else { return };
                self.trace.add([self.now, node as u64], &letter.id());
                if self.is_down(node) {
                    return;
                }
                let local_ms = self.local(seat);
                self.watch.arrived(local_ms, from, seat, &letter);
                let said =
                    self.actors.get_mut(&seat).map(|a| a.incoming(local_ms, &letter)).unwrap_or_default();
                said.into_iter().for_each(|o| self.post_false(seat, o));
                self.tell(node, SeatInput::Message { from, bytes: letter.into_bytes() });
            }
            Due::ToHome { from, letter } => {
                self.trace.add([self.now, HOME + u64::from(from)], &letter.id());
                self.tell_home(HomeInput::Message { from, bytes: letter.into_bytes() });
            }
            Due::Held { seat, order, round, result } => {
                self.advertise(seat);
                self.tell_seat(seat, SeatInput::Reserved { order, round, result });
            }
            Due::Freed { seat } => self.advertise(seat),
            Due::Stored { order } => self.tell_home(HomeInput::Stored { order }),
        }
    }

    fn tell_seat(&mut self, seat: u16, input: SeatInput) {
        for node in self.nodes_of(seat) {
            self.tell(node, input.clone());
        }
    }

    fn tell(&mut self, node: usize, input: SeatInput) {
        if self.is_down(node) {
            return;
        }
        let Some(local_ms) = self.nodes.get(node).map(|n| self.local(n.seat)) else { return };
        let Some(target) = self.nodes.get_mut(node) else { return };
        let outputs = target.core.handle(local_ms, input);
        self.take_outputs(node, outputs);
    }

    fn take_outputs(&mut self, node: usize, outputs: Vec<SeatOutput>) {
        let Some(seat) = self.nodes.get(node).map(|n| n.seat) else { return };
        let Some(outputs) = self.make_durable(node, outputs) else { return };
        let local_ms = self.local(seat);
        let others = self.config.seats.saturating_sub(1);
        for output in outputs {
            match output {
                SeatOutput::Broadcast(bytes) => {
                    let letter = self.letter(bytes);
                    // What an honest seat says counts, also where nobody hears it.
                    if !self.actors.contains_key(&seat) {
                        self.watch.sent(self.now, local_ms, seat, &letter, others);
                    }
                    for to in (0..self.config.seats).filter(|to| *to != seat) {
                        self.send(seat, Peer::Seat(to), letter.clone());
                    }
                }
                SeatOutput::Send { to, bytes } => {
                    let letter = self.letter(bytes);
                    if matches!(to, Peer::Seat(_)) && !self.actors.contains_key(&seat) {
                        self.watch.sent(self.now, local_ms, seat, &letter, 1);
                    }
                    self.send(seat, to, letter);
                }
                SeatOutput::Persist(_) => {}
                other => {
                    self.control(seat, &other);
                    self.judge_framing(seat, &other);
                    self.report(Event::Seat(seat, other));
                }
            }
        }
    }

    fn report(&mut self, event: Event) {
        self.watch.reported(self.now, &event);
        self.events.push((self.now, event));
    }

    /// What a faulty seat makes of a certified round against the others.
    fn judge_framing(&mut self, seat: u16, output: &SeatOutput) {
        let (SeatOutput::Decided(decided), Some(actor)) = (output, self.actors.get(&seat)) else { return };
        for proof in actor.false_proofs(decided) {
            self.watch.framed(self.now, seat, &proof);
        }
    }

    /// Sends what a seat says, or what it says instead where it is faulty.
    fn send(&mut self, from: u16, to: Peer, letter: Letter) {
        let local_ms = self.local(from);
        match (to, self.actors.get_mut(&from)) {
            (Peer::Seat(seat), Some(actor)) => {
                let said = actor.outgoing(local_ms, seat, letter);
                said.into_iter().for_each(|o| self.post_false(from, o));
            }
            (Peer::Home(_), Some(actor)) => {
                if let Some(delay_ms) = actor.to_home(letter.kind()) {
                    self.post(from, to, letter, delay_ms);
                }
            }
            _ => self.post(from, to, letter, 0),
        }
    }

    /// Sends what a faulty seat says.
    fn post_false(&mut self, from: u16, o: Outgoing) {
        let local_ms = self.local(from);
        self.watch.sent(self.now, local_ms, from, &o.letter, 1);
        self.post(from, Peer::Seat(o.to), o.letter, o.delay_ms);
    }

    fn letter(&self, bytes: Vec<u8>) -> Letter {
        Letter::new(bytes, self.config.seats)
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
                    let letter = self.letter(bytes);
                    (0..self.config.seats).for_each(|to| self.send_from_home(to, letter.clone()));
                }
                HomeOutput::Send { seat, bytes } => {
                    let letter = self.letter(bytes);
                    self.send_from_home(seat, letter);
                }
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
