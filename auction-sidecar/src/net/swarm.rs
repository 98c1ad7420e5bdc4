//! The task that owns the swarm.
//!
//! Inputs: commands and swarm events. Outputs: round events, requests, the connected set. Invariant: no `.await` but on
//! the next event; every outlet is tried, and what does not fit is dropped and counted.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use libp2p::allow_block_list::{self, AllowedPeers};
use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::request_response::{self as rr, OutboundRequestId, ProtocolSupport};
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError, ListenError, NetworkBehaviour, SwarmEvent};
use libp2p::{PeerId, StreamProtocol, Swarm, SwarmBuilder};
use tokio::sync::{mpsc, oneshot, watch};

use super::codec::BoundedCodec;
use super::limits::Bucket;
use super::{
    Command, Inbound, MAX_BULK, MAX_HANDOVER, MAX_ROUND, MemberId, Members, NetConfig, NetError, Protocol,
    Reply, ReplyTo, RoundEvent, StartError,
};
use crate::metrics::Metrics;

/// How long a round message waits for a connection.
const OUTBOX_AGE: Duration = Duration::from_secs(3);
/// Most messages that wait for one member.
const OUTBOX_LEN: usize = 256;
/// How often a round message is tried.
const TRIES: u8 = 3;
const DIAL_FIRST: Duration = Duration::from_millis(200);
const DIAL_CAP: Duration = Duration::from_secs(4);
/// A second connection younger than this may be a simultaneous dial; beyond it the older one is stale.
const SIMULTANEOUS: Duration = Duration::from_secs(3);

#[derive(NetworkBehaviour)]
struct Behaviour {
    allowed: allow_block_list::Behaviour<AllowedPeers>,
    limits: connection_limits::Behaviour,
    round: rr::Behaviour<BoundedCodec>,
    handover: rr::Behaviour<BoundedCodec>,
    bulk: rr::Behaviour<BoundedCodec>,
}

/// Where events go.
pub(super) struct Outlets {
    pub(super) rounds_tx: mpsc::Sender<RoundEvent>,
    pub(super) requests_tx: mpsc::Sender<Inbound>,
    pub(super) connected_tx: watch::Sender<BTreeSet<MemberId>>,
}

struct Waiting {
    to: MemberId,
    body: Bytes,
    since: Instant,
    tries: u8,
}

enum Pending {
    Round(Waiting),
    Request { to: MemberId, reply: oneshot::Sender<Result<Bytes, NetError>> },
}

/// What is known of the way to a member.
struct Link {
    connections: BTreeMap<ConnectionId, Instant>,
    outbox: VecDeque<Waiting>,
    next_dial: Instant,
    backoff: Duration,
    dialing: bool,
    /// Whether the log has said that somebody else answers there.
    told: bool,
    round: Bucket,
    requests: Bucket,
}

impl Link {
    fn new(now: Instant) -> Self {
        Self {
            connections: BTreeMap::new(),
            outbox: VecDeque::new(),
            next_dial: now,
            backoff: DIAL_FIRST,
            dialing: false,
            told: false,
            round: Bucket::new(500, 4000, now),
            requests: Bucket::new(300, 600, now),
        }
    }
}

/// The swarm and what belongs to it.
pub(super) struct Task {
    swarm: Swarm<Behaviour>,
    members: Members,
    links: BTreeMap<MemberId, Link>,
    pending: HashMap<(Kind, OutboundRequestId), Pending>,
    commands: mpsc::WeakSender<Command>,
    outlets: Outlets,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Round,
    Handover,
    Bulk,
}

impl From<Protocol> for Kind {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Handover => Self::Handover,
            Protocol::Bulk => Self::Bulk,
        }
    }
}

fn behaviour(members: &Members, metrics: &Metrics) -> Behaviour {
    let mut allowed = allow_block_list::Behaviour::<AllowedPeers>::default();
    for member in members.iter() {
        allowed.allow_peer(member.peer);
    }
    let limits = ConnectionLimits::default()
        .with_max_established_per_peer(Some(4))
        .with_max_pending_incoming(Some(256));
    let protocol = |name: &'static str, max: usize, timeout: u64, streams: usize| {
        rr::Behaviour::with_codec(
            BoundedCodec::new(max, metrics.oversize()),
            [(StreamProtocol::new(name), ProtocolSupport::Full)],
            rr::Config::default()
                .with_request_timeout(Duration::from_secs(timeout))
                .with_max_concurrent_streams(streams),
        )
    };
    Behaviour {
        allowed,
        limits: connection_limits::Behaviour::new(limits),
        round: protocol("/vendue/round/1", MAX_ROUND, 3, 512),
        handover: protocol("/vendue/handover/1", MAX_HANDOVER, 15, 64),
        bulk: protocol("/vendue/bulk/1", MAX_BULK, 40, 32),
    }
}

impl Task {
    pub(super) fn new(
        config: NetConfig,
        commands: mpsc::WeakSender<Command>,
        outlets: Outlets,
    ) -> Result<Self, StartError> {
        let NetConfig { keypair, members, own: _, listen, metrics } = config;
        let built = behaviour(&members, &metrics);
        let mut swarm = SwarmBuilder::with_existing_identity(keypair)
            .with_tokio()
            .with_quic_config(|mut quic| {
                quic.handshake_timeout = Duration::from_secs(3);
                quic.max_idle_timeout = 6_000;
                quic.keep_alive_interval = Duration::from_millis(1_500);
                quic.max_connection_data = 4 << 20;
                quic.max_stream_data = 2 << 20;
                quic
            })
            .with_behaviour(|_| built)
            .map_err(|e| StartError::Build(e.to_string()))?
            .with_swarm_config(|c| c.with_idle_connection_timeout(Duration::from_secs(86_400 * 365)))
            .build();
        swarm
            .listen_on(listen.clone())
            .map_err(|e| StartError::Listen { address: listen, reason: e.to_string() })?;
        let now = Instant::now();
        let links = members.iter().map(|m| (m.id, Link::new(now))).collect();
        Ok(Self { swarm, members, links, pending: HashMap::new(), commands, outlets, metrics })
    }

    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = self.swarm.select_next_some() => self.on_event(event),
                command = commands.recv() => match command {
                    Some(command) => self.on_command(command),
                    None => return,
                },
                _ = tick.tick() => self.on_tick(Instant::now()),
            }
        }
    }

    fn peer(&self, id: MemberId) -> Option<PeerId> {
        self.members.get(id).map(|m| m.peer)
    }

    fn is_up(&self, id: MemberId) -> bool {
        self.links.get(&id).is_some_and(|l| !l.connections.is_empty())
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Send { to, body } => {
                self.send_round(Waiting { to, body, since: Instant::now(), tries: 0 })
            }
            Command::Request { to, protocol, body, reply } => {
                let to = self.members.canonical(to);
                let Some(peer) = self.peer(to).filter(|_| self.is_up(to)) else {
                    let _ = reply.send(Err(NetError::NotConnected(to)));
                    return;
                };
                self.metrics.bytes("sent", protocol, body.len());
                let id = self.of(protocol).send_request(&peer, body);
                self.pending.insert((protocol.into(), id), Pending::Request { to, reply });
            }
            Command::Respond { channel, protocol, body } => {
                self.metrics.bytes("sent", protocol, body.len());
                if self.of(protocol).send_response(channel, body).is_err() {
                    self.metrics.dropped("response_late");
                }
            }
        }
    }

    fn of(&mut self, protocol: Protocol) -> &mut rr::Behaviour<BoundedCodec> {
        match protocol {
            Protocol::Handover => &mut self.swarm.behaviour_mut().handover,
            Protocol::Bulk => &mut self.swarm.behaviour_mut().bulk,
        }
    }

    /// Sends now, or keeps the message for a moment until there is a connection.
    fn send_round(&mut self, mut message: Waiting) {
        let to = self.members.canonical(message.to);
        if message.since.elapsed() > OUTBOX_AGE || message.tries >= TRIES {
            self.metrics.dropped("not_delivered");
            return;
        }
        match self.peer(to).filter(|_| self.is_up(to)) {
            Some(peer) => {
                message.tries += 1;
                self.metrics.round_bytes("sent", message.body.len());
                let id = self.swarm.behaviour_mut().round.send_request(&peer, message.body.clone());
                self.pending.insert((Kind::Round, id), Pending::Round(message));
            }
            None => {
                let Some(link) = self.links.get_mut(&to) else { return };
                if link.outbox.len() >= OUTBOX_LEN {
                    link.outbox.pop_front();
                    self.metrics.dropped("outbox_full");
                }
                link.outbox.push_back(message);
            }
        }
    }

    fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Round(event)) => self.on_round(event),
            SwarmEvent::Behaviour(BehaviourEvent::Handover(event)) => {
                self.on_request(Protocol::Handover, event)
            }
            SwarmEvent::Behaviour(BehaviourEvent::Bulk(event)) => self.on_request(Protocol::Bulk, event),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, .. } => {
                self.on_up(&peer_id, connection_id)
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, cause, .. } => {
                tracing::debug!(peer = %peer_id, cause = ?cause, "connection closed");
                self.on_down(&peer_id, connection_id);
            }
            SwarmEvent::OutgoingConnectionError { peer_id, error, .. } => self.on_dial_error(peer_id, &error),
            SwarmEvent::IncomingConnectionError { error, .. } => {
                let reason = match error {
                    ListenError::Denied { .. } => "foreign_peer",
                    _ => "handshake",
                };
                self.metrics.dropped(reason);
            }
            SwarmEvent::NewListenAddr { address, .. } => tracing::info!(%address, "listening for peers"),
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "listener"),
            _ => {}
        }
    }

    fn on_up(&mut self, peer: &PeerId, connection: ConnectionId) {
        let now = Instant::now();
        let Some(id) = self.members.of_peer(peer) else {
            self.metrics.dropped("foreign_peer");
            let _ = self.swarm.disconnect_peer_id(*peer);
            return;
        };
        let Some(link) = self.links.get_mut(&id) else { return };
        let stale: Vec<_> =
            link.connections.iter().filter(|(_, at)| now - **at > SIMULTANEOUS).map(|(c, _)| *c).collect();
        let first = link.connections.is_empty();
        link.connections.insert(connection, now);
        (link.dialing, link.told, link.backoff) = (false, false, DIAL_FIRST);
        let outbox: Vec<_> = link.outbox.drain(..).collect();
        // The peer came back before its old connection timed out.
        for connection in stale {
            self.swarm.close_connection(connection);
        }
        if first {
            tracing::info!(member = %id, "connected");
            self.publish_connected();
            self.emit(RoundEvent::Up(id));
        }
        for message in outbox {
            self.send_round(message);
        }
    }

    fn on_down(&mut self, peer: &PeerId, connection: ConnectionId) {
        let Some(id) = self.members.of_peer(peer) else { return };
        let Some(link) = self.links.get_mut(&id) else { return };
        let known = link.connections.remove(&connection).is_some();
        if known && link.connections.is_empty() {
            link.next_dial = Instant::now() + jitter(DIAL_FIRST);
            tracing::info!(member = %id, "disconnected");
            self.publish_connected();
            self.emit(RoundEvent::Down(id));
        }
    }

    fn on_dial_error(&mut self, peer: Option<PeerId>, error: &DialError) {
        let Some(id) = peer.and_then(|p| self.members.of_peer(&p)) else { return };
        let Some(link) = self.links.get_mut(&id) else { return };
        link.dialing = false;
        link.next_dial = Instant::now() + jitter(link.backoff);
        link.backoff = (link.backoff * 2).min(DIAL_CAP);
        if let DialError::WrongPeerId { address, .. } = error {
            self.metrics.dropped("foreign_peer");
            if !std::mem::replace(&mut link.told, true) {
                tracing::warn!(member = %id, %address, "somebody else answers at this address");
            }
        }
        tracing::debug!(member = %id, %error, "dial failed");
    }

    fn publish_connected(&mut self) {
        let up: BTreeSet<_> =
            self.links.iter().filter(|(_, l)| !l.connections.is_empty()).map(|(id, _)| *id).collect();
        let seats = up.iter().filter(|id| matches!(id, MemberId::Seat(_))).count();
        self.metrics.peers_connected.with_label_values(&["seat"]).set(i64::try_from(seats).unwrap_or(0));
        self.metrics
            .peers_connected
            .with_label_values(&["home"])
            .set(i64::try_from(up.len() - seats).unwrap_or(0));
        self.outlets.connected_tx.send_replace(up);
    }

    fn emit(&self, event: RoundEvent) {
        if self.outlets.rounds_tx.try_send(event).is_err() {
            self.metrics.dropped("inbox_full");
        }
    }

    /// Dials members that are due and forgets messages that waited too long.
    fn on_tick(&mut self, now: Instant) {
        let mut dial = Vec::new();
        for (id, link) in &mut self.links {
            let before = link.outbox.len();
            link.outbox.retain(|m| now - m.since <= OUTBOX_AGE);
            for _ in link.outbox.len()..before {
                self.metrics.dropped("not_delivered");
            }
            if !link.connections.is_empty() || link.dialing || link.next_dial > now {
                continue;
            }
            if let Some(address) = self.members.get(*id).and_then(|m| m.address.clone().map(|a| (m.peer, a)))
            {
                link.dialing = true;
                dial.push(address);
            }
        }
        for (peer, address) in dial {
            let options = DialOpts::peer_id(peer)
                .condition(PeerCondition::Disconnected)
                .addresses(vec![address])
                .build();
            if let Err(error) = self.swarm.dial(options) {
                self.on_dial_error(Some(peer), &error);
            }
        }
    }

    fn on_round(&mut self, event: rr::Event<Bytes, Bytes>) {
        match event {
            rr::Event::Message { peer, message: rr::Message::Request { request, channel, .. }, .. } => {
                let now = Instant::now();
                let Some(from) = self.members.of_peer(&peer) else {
                    return self.metrics.dropped("foreign_peer");
                };
                let taken = self.links.get_mut(&from).is_some_and(|l| l.round.take(1, now));
                // Acknowledged in any case: sending it again would not help.
                let _ = self.swarm.behaviour_mut().round.send_response(channel, Bytes::new());
                if !taken {
                    return self.metrics.dropped("rate");
                }
                self.metrics.round_bytes("received", request.len());
                self.emit(RoundEvent::Message { from, bytes: request });
            }
            rr::Event::Message { message: rr::Message::Response { request_id, .. }, .. } => {
                self.pending.remove(&(Kind::Round, request_id));
            }
            rr::Event::OutboundFailure { request_id, error, .. } => {
                if let Some(Pending::Round(message)) = self.pending.remove(&(Kind::Round, request_id)) {
                    tracing::debug!(to = %message.to, %error, "round message not acknowledged");
                    self.send_round(message);
                }
            }
            rr::Event::InboundFailure { error, .. } => self.inbound_failure(&error),
            rr::Event::ResponseSent { .. } => {}
        }
    }

    fn on_request(&mut self, protocol: Protocol, event: rr::Event<Bytes, Bytes>) {
        match event {
            rr::Event::Message { peer, message: rr::Message::Request { request, channel, .. }, .. } => {
                let now = Instant::now();
                let Some(from) = self.members.of_peer(&peer) else {
                    return self.metrics.dropped("foreign_peer");
                };
                if !self.links.get_mut(&from).is_some_and(|l| l.requests.take(1, now)) {
                    return self.metrics.dropped("rate");
                }
                let Some(commands) = self.commands.upgrade() else { return };
                self.metrics.bytes("received", protocol, request.len());
                let reply = Reply(ReplyTo::Peer { channel, protocol, commands });
                if self
                    .outlets
                    .requests_tx
                    .try_send(Inbound { from, protocol, body: request, reply })
                    .is_err()
                {
                    self.metrics.dropped("inbox_full");
                }
            }
            rr::Event::Message { message: rr::Message::Response { request_id, response }, .. } => {
                if let Some(Pending::Request { reply, .. }) =
                    self.pending.remove(&(protocol.into(), request_id))
                {
                    self.metrics.bytes("received", protocol, response.len());
                    let _ = reply.send(Ok(response));
                }
            }
            rr::Event::OutboundFailure { request_id, error, .. } => {
                if let Some(Pending::Request { to, reply }) =
                    self.pending.remove(&(protocol.into(), request_id))
                {
                    let _ = reply.send(Err(NetError::Failed { to, reason: error.to_string() }));
                }
            }
            rr::Event::InboundFailure { error, .. } => self.inbound_failure(&error),
            rr::Event::ResponseSent { .. } => {}
        }
    }

    fn inbound_failure(&self, error: &rr::InboundFailure) {
        if matches!(error, rr::InboundFailure::Io(_)) {
            self.metrics.dropped("broken_stream");
        }
    }
}

/// Between half of the time and all of it, so that peers do not dial in step.
fn jitter(base: Duration) -> Duration {
    let mut byte = [0u8; 1];
    let share = if getrandom::fill(&mut byte).is_ok() { u32::from(byte[0]) } else { 255 };
    base / 2 + base * share / 510
}
