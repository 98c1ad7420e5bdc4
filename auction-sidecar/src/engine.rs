//! The task that owns the state machines of seat and home and gives them time, messages and the bridge's answers.
//!
//! Inputs: round messages of the network, commands of the bridge, the clock. Outputs: messages, and events for the
//! bridge. Invariants: nothing in the loop waits for anybody but the next input; the API server is not on the path of a
//! bid, because offers are kept here as values; what a seat says leaves when the records that it rests on are durable; a
//! seat whose log has failed is not gone on with, for only a restart finds out what the log holds.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::sync::mpsc;
use vendue_auction_core::wire::{Kind, peek_kind};
use vendue_auction_core::{
    BidResult, DropReason, Drops, Home, HomeInput, HomeOutput, MarketRecord, Peer, Seat, SeatCrypto,
    SeatInput, SeatOutput,
};
use vendue_market::Reason;

use crate::clock::{Clock, Reading};
use crate::health::Readiness;
use crate::log::{Gate, ProofKeeper};
use crate::metrics::Metrics;
use crate::net::{Handle, MemberId, RoundEvent};

/// Longest sleep: drops are counted and readiness is told at least this often.
const LONGEST: Duration = Duration::from_millis(500);
/// Most events that wait for the bridge: several for each order that homes may have open.
const MAX_WAITING: usize = 1 << 16;
/// Sleep while the bridge has no room.
const SOON: Duration = Duration::from_millis(20);

/// Why the engine does not go on.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The seat's log has failed.
    #[error(
        "write the seat's log: {0}. The seat says nothing before a restart has read what the log holds; if that fails too, \
        make room on its volume or replace it"
    )]
    Log(String),
    /// The network or the bridge has ended.
    #[error("run the engine: the {0} has ended")]
    Ended(&'static str),
}

/// What the bridge tells the state machines.
#[derive(Debug)]
pub enum EngineCommand {
    /// For the seat.
    Seat(SeatInput),
    /// For the home.
    Home(Box<HomeInput>),
}

/// What the state machines tell the bridge.
#[derive(Debug)]
pub enum EngineEvent {
    /// Of the seat; never a message to send.
    Seat(SeatOutput),
    /// Of the home; never a message to send.
    Home(Box<HomeOutput>),
}

/// What the engine is made of.
pub struct EngineConfig {
    /// The market.
    pub record: Arc<MarketRecord>,
    /// The seat, if this cluster has one.
    pub seat: Option<(u16, Seat<SeatCrypto>)>,
    /// The home, if this cluster has one.
    pub home: Option<(u16, Home)>,
    /// The network.
    pub net: Handle,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Where the fact "seat" is kept.
    pub ready: Readiness,
    /// Where the seat's outputs wait for its log.
    pub gate: Gate,
    /// Where fault proofs go.
    pub proofs: ProofKeeper,
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// The engine.
pub struct Engine {
    record: Arc<MarketRecord>,
    seat: Option<(u16, Seat<SeatCrypto>)>,
    home: Option<(u16, Home)>,
    net: Handle,
    metrics: Arc<Metrics>,
    ready: Readiness,
    gate: Gate,
    proofs: ProofKeeper,
    events: mpsc::Sender<EngineEvent>,
    /// Events that the bridge has no room for yet, in order: a lost one would leave an order or devices stuck.
    waiting: VecDeque<EngineEvent>,
    clock: Clock,
    /// Messages from this cluster's home to its own seat and back.
    local: VecDeque<(Peer, Bytes)>,
    seen_drops: Vec<u64>,
}

impl Engine {
    /// An engine that tells `events`.
    pub fn new(config: EngineConfig, events: mpsc::Sender<EngineEvent>) -> Self {
        let EngineConfig { record, seat, home, net, metrics, ready, gate, proofs } = config;
        let seen_drops = vec![0; DropReason::ALL.len()];
        Self {
            record,
            seat,
            home,
            net,
            metrics,
            ready,
            gate,
            proofs,
            events,
            waiting: VecDeque::new(),
            clock: Clock::new(Reading::now()),
            local: VecDeque::new(),
            seen_drops,
        }
    }

    /// Runs until the network, the bridge or the seat's log is gone. While too much waits for the disk no messages are
    /// taken from the network: they wait there, and who sends the most waits longest.
    pub async fn run(
        mut self,
        mut rounds: mpsc::Receiver<RoundEvent>,
        mut commands: mpsc::Receiver<EngineCommand>,
    ) -> EngineError {
        loop {
            self.watch_clock();
            self.pass_on();
            let sleep = self.sleep();
            tokio::select! {
                biased;
                event = rounds.recv(), if !self.gate.is_full() => match event {
                    Some(RoundEvent::Message { from, bytes }) => self.message(from.into(), bytes),
                    Some(RoundEvent::Up(_) | RoundEvent::Down(_)) => {}
                    None => return EngineError::Ended("network"),
                },
                command = commands.recv() => match command {
                    Some(EngineCommand::Seat(input)) => self.seat_input(input),
                    Some(EngineCommand::Home(input)) => self.home_input(*input),
                    None => return EngineError::Ended("bridge"),
                },
                () = self.gate.changed() => {}
                () = tokio::time::sleep(sleep) => {}
            }
            let released = self.gate.released(now_ms());
            self.carry_out(released);
            if self.due() {
                self.seat_input(SeatInput::Tick);
                self.home_input(HomeInput::Tick);
            }
            while let Some((from, bytes)) = self.local.pop_front() {
                self.message(from, bytes);
            }
            self.observe();
            if let Some(failed) = self.gate.failed() {
                self.metrics.seat_active.set(0);
                return EngineError::Log(failed.to_owned());
            }
        }
    }

    fn next_wake(&self) -> Option<u64> {
        let seat = self.seat.as_ref().and_then(|(_, s)| s.next_wake());
        let home = self.home.as_ref().and_then(|(_, h)| h.next_wake());
        seat.into_iter().chain(home).min()
    }

    fn sleep(&self) -> Duration {
        if !self.waiting.is_empty() {
            return SOON;
        }
        let wait = self.next_wake().map_or(LONGEST, |at| Duration::from_millis(at.saturating_sub(now_ms())));
        wait.min(LONGEST)
    }

    fn due(&self) -> bool {
        self.next_wake().is_some_and(|at| at <= now_ms())
    }

    /// Routes a message by its kind. A cluster that is seat and home has one peer id, so the kind says which it speaks as.
    fn message(&mut self, from: Peer, bytes: Bytes) {
        let Some(kind) = peek_kind(&bytes) else { return self.metrics.dropped("malformed") };
        if kind.is_for_home() {
            match from {
                Peer::Seat(seat) => self.home_input(HomeInput::Message { from: seat, bytes: bytes.to_vec() }),
                Peer::Home(_) => self.metrics.dropped("wrong_sender"),
            }
            return;
        }
        let from = match from {
            Peer::Seat(seat) if kind.is_from_home() => self.home_of_seat(seat).map_or(from, Peer::Home),
            other => other,
        };
        self.seat_input(SeatInput::Message { from, bytes: bytes.to_vec() });
    }

    fn home_of_seat(&self, seat: u16) -> Option<u16> {
        let peer = &self.record.seat(seat)?.peer_id;
        self.record.homes.iter().position(|h| &h.peer_id == peer).and_then(|i| u16::try_from(i).ok())
    }

    fn seat_input(&mut self, input: SeatInput) {
        let Some((_, seat)) = &mut self.seat else {
            if matches!(input, SeatInput::Message { .. }) {
                self.metrics.dropped("wrong_sender");
            }
            return;
        };
        let outputs = seat.handle(now_ms(), input);
        let passed = self.gate.pass(outputs);
        self.carry_out(passed);
    }

    fn carry_out(&mut self, outputs: Vec<SeatOutput>) {
        for output in outputs {
            match output {
                SeatOutput::Broadcast(bytes) => {
                    self.count_share(&bytes);
                    self.broadcast(&Bytes::from(bytes), false);
                }
                SeatOutput::Send { to, bytes } => {
                    self.count_share(&bytes);
                    self.send(to, Bytes::from(bytes));
                }
                SeatOutput::Evidence(proof) => self.proofs.keep(*proof),
                other => {
                    self.count_seat(&other);
                    self.tell(EngineEvent::Seat(other));
                }
            }
        }
    }

    fn home_input(&mut self, input: HomeInput) {
        let Some((_, home)) = &mut self.home else {
            if matches!(input, HomeInput::Message { .. }) {
                self.metrics.dropped("wrong_sender");
            }
            return;
        };
        for output in home.handle(now_ms(), input) {
            match output {
                HomeOutput::Broadcast(bytes) => self.broadcast(&Bytes::from(bytes), true),
                HomeOutput::Send { seat, bytes } => self.send_from_home(seat, Bytes::from(bytes)),
                other => self.tell(EngineEvent::Home(Box::new(other))),
            }
        }
    }

    fn own_seat(&self) -> Option<u16> {
        self.seat.as_ref().map(|(index, _)| *index)
    }

    /// Sends to all seats; a home's broadcast goes to its own cluster's seat too.
    fn broadcast(&mut self, bytes: &Bytes, from_home: bool) {
        for seat in 0..self.record.n() {
            if Some(seat) != self.own_seat() {
                self.net.send(MemberId::Seat(seat), bytes.clone());
            } else if from_home {
                self.send_from_home(seat, bytes.clone());
            }
        }
    }

    fn send_from_home(&mut self, seat: u16, bytes: Bytes) {
        match (&self.home, self.own_seat() == Some(seat)) {
            (Some((home, _)), true) => self.local.push_back((Peer::Home(*home), bytes)),
            _ => self.net.send(MemberId::Seat(seat), bytes),
        }
    }

    fn send(&mut self, to: Peer, bytes: Bytes) {
        let own_home = self.home.as_ref().map(|(index, _)| *index);
        match (to, self.own_seat()) {
            (Peer::Home(home), Some(seat)) if Some(home) == own_home => {
                self.local.push_back((Peer::Seat(seat), bytes));
            }
            _ => self.net.send(to.into(), bytes),
        }
    }

    fn tell(&mut self, event: EngineEvent) {
        // Receipts come once per order and seat, and the next one says the same and more.
        let told_again =
            matches!(&event, EngineEvent::Home(home) if matches!(**home, HomeOutput::Received { .. }));
        if told_again && !self.waiting.is_empty() || self.waiting.len() >= MAX_WAITING {
            return self.metrics.dropped("bridge_full");
        }
        self.waiting.push_back(event);
        self.pass_on();
    }

    /// Gives the bridge what it has room for.
    fn pass_on(&mut self) {
        while let Some(event) = self.waiting.pop_front() {
            match self.events.try_send(event) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(event)) => {
                    self.waiting.push_front(event);
                    return;
                }
                Err(mpsc::error::TrySendError::Closed(_)) => return,
            }
        }
    }

    /// Lets the seat observe again when the system's clock was set: nobody knows which rounds it spoke in by the other
    /// clock, in a process before this one.
    fn watch_clock(&mut self) {
        let tolerated_ms = self.record.params.delay_ms;
        let Some(by_ms) = self.clock.step(Reading::now(), tolerated_ms) else { return };
        let Some((_, seat)) = &mut self.seat else { return };
        tracing::warn!(by_ms, "the system's clock was set; the seat observes until open rounds are over");
        let outputs = seat.clock_was_set(now_ms());
        let passed = self.gate.pass(outputs);
        self.carry_out(passed);
    }

    fn count_share(&self, bytes: &[u8]) {
        if peek_kind(bytes) == Some(Kind::Open) {
            self.metrics.shares_sent.inc();
        }
    }

    fn count_seat(&self, output: &SeatOutput) {
        match output {
            SeatOutput::Decided(decided) => {
                self.metrics.rounds.with_label_values(&["certified"]).inc();
                self.metrics.round_duration.observe(Duration::from_millis(decided.took_ms).as_secs_f64());
                for own in &decided.own {
                    let outcome = match own.result {
                        BidResult::Won => "won",
                        BidResult::StandBy { .. } => "standby",
                        BidResult::Lost | BidResult::NoBid(Reason::Outbid) => "lost",
                        BidResult::NoBid(_) => "none",
                    };
                    self.metrics.bids.with_label_values(&[outcome]).inc();
                }
                tracing::info!(
                    round = decided.certificate.round,
                    orders = decided.outcomes.len(),
                    took_ms = decided.took_ms,
                    "round certified"
                );
            }
            SeatOutput::Expired { round, orders } => {
                self.metrics.rounds.with_label_values(&["expired"]).inc();
                tracing::warn!(round, orders = orders.len(), "round ended without a certificate");
            }
            _ => {}
        }
    }

    /// Passes the cores' drop counters on, and whether the seat takes part.
    fn observe(&mut self) {
        let count = |drops: Option<&Drops>, reason| drops.map_or(0, |d| d.count(reason));
        for (reason, seen) in DropReason::ALL.into_iter().zip(&mut self.seen_drops) {
            let now = count(self.seat.as_ref().map(|(_, s)| s.dropped()), reason)
                + count(self.home.as_ref().map(|(_, h)| h.dropped()), reason);
            for _ in *seen..now {
                self.metrics.dropped(reason.name());
            }
            *seen = now;
        }
        if let Some((_, seat)) = &self.seat {
            let active = seat.observes_until() <= now_ms();
            self.metrics.seat_active.set(i64::from(active));
        }
        self.ready.set("engine", true);
    }
}

#[cfg(test)]
mod tests;
