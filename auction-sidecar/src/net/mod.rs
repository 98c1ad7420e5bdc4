//! The peer-to-peer side: one task owns the libp2p swarm (QUIC only); everybody else holds a [`Handle`].
//!
//! Inputs: the member table, commands of the other tasks. Outputs: round messages and requests of members on two
//! bounded channels, the set of connected members in a `watch`. Invariant: whoever is not in the market record is
//! refused in the handshake; a channel that is full sheds and counts, it never makes the swarm wait.
//!
//! Protocols: `/vendue/round/1` carries messages of the auction as the core encodes them (the response is an empty
//! acknowledgement); `/vendue/handover/1` and `/vendue/bulk/1` carry requests of [`crate::wire`].

mod codec;
mod limits;
mod members;
mod swarm;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use libp2p::request_response::ResponseChannel;
use libp2p::{Multiaddr, identity::Keypair};
use tokio::sync::{mpsc, oneshot, watch};

pub use members::{Member, MemberId, Members};

use crate::metrics::Metrics;

/// Longest message of the round protocol.
pub const MAX_ROUND: usize = 2 << 20;
/// Longest request or response of the hand-over protocol.
pub const MAX_HANDOVER: usize = 6 << 20;
/// Longest request or response of the bulk protocol: a chunk and its header.
pub const MAX_BULK: usize = (256 << 10) + (32 << 10);
/// Bytes of a file or log in one bulk message.
pub const CHUNK: usize = 256 << 10;

/// The request protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Small decisions and status.
    Handover,
    /// Chunks of files and logs.
    Bulk,
}

/// Why a request got no response.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetError {
    /// The member is not connected.
    #[error("{0} is not connected")]
    NotConnected(MemberId),
    /// Too many requests wait.
    #[error("the queue to the network is full")]
    Busy,
    /// The member did not answer, or the connection broke.
    #[error("request to {to} failed: {reason}")]
    Failed {
        /// Whom it was for.
        to: MemberId,
        /// What the transport said.
        reason: String,
    },
    /// The process is shutting down.
    #[error("the network task has ended")]
    Stopped,
}

/// Why the network could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The behaviour could not be built.
    #[error("build the swarm: {0}")]
    Build(String),
    /// The address cannot be listened on.
    #[error("listen on {address}: {reason}")]
    Listen {
        /// The address.
        address: Multiaddr,
        /// What the transport said.
        reason: String,
    },
}

/// What the network needs to start.
pub struct NetConfig {
    /// Transport identity.
    pub keypair: Keypair,
    /// Everybody else.
    pub members: Members,
    /// What this process is itself; a cluster with both sides answers its own requests.
    pub own: Vec<MemberId>,
    /// Where peers connect.
    pub listen: Multiaddr,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// What the round protocol brings.
#[derive(Debug)]
pub enum RoundEvent {
    /// A member is connected.
    Up(MemberId),
    /// A member is gone.
    Down(MemberId),
    /// A member sent a message.
    Message {
        /// Who, by the transport's authentication.
        from: MemberId,
        /// As the core encodes it.
        bytes: Bytes,
    },
}

/// A request of a member that waits for its response.
#[derive(Debug)]
pub struct Inbound {
    /// Who asks, by the transport's authentication.
    pub from: MemberId,
    /// On which protocol.
    pub protocol: Protocol,
    /// The request.
    pub body: Bytes,
    /// Where the response goes; dropping it refuses.
    pub reply: Reply,
}

/// Where a response goes.
#[derive(Debug)]
pub struct Reply(ReplyTo);

#[derive(Debug)]
enum ReplyTo {
    Peer {
        channel: ResponseChannel<Bytes>,
        protocol: Protocol,
        commands: mpsc::Sender<Command>,
    },
    /// This cluster's other side asked.
    Local(oneshot::Sender<Bytes>),
}

impl Reply {
    /// Sends the response; a full queue drops it, and the peer asks again.
    pub fn send(self, body: Bytes) {
        match self.0 {
            ReplyTo::Peer { channel, protocol, commands } => {
                if commands.try_send(Command::Respond { channel, protocol, body }).is_err() {
                    tracing::debug!("response dropped: the queue to the network is full");
                }
            }
            ReplyTo::Local(reply) => {
                let _ = reply.send(body);
            }
        }
    }
}

#[derive(Debug)]
pub(crate) enum Command {
    Send { to: MemberId, body: Bytes },
    Request { to: MemberId, protocol: Protocol, body: Bytes, reply: oneshot::Sender<Result<Bytes, NetError>> },
    Respond { channel: ResponseChannel<Bytes>, protocol: Protocol, body: Bytes },
}

/// How the other tasks use the network. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    requests: mpsc::Sender<Inbound>,
    own: Arc<[MemberId]>,
    connected: watch::Receiver<BTreeSet<MemberId>>,
    metrics: Arc<Metrics>,
}

impl Handle {
    /// Sends a round message, at most once queued per call; it is tried again for a moment when the connection breaks.
    pub fn send(&self, to: MemberId, body: Bytes) {
        if self.commands.try_send(Command::Send { to, body }).is_err() {
            self.metrics.dropped("queue_full");
        }
    }

    /// Sends a request and waits for the response, at most `timeout`.
    pub async fn request(
        &self,
        to: MemberId,
        protocol: Protocol,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, NetError> {
        if self.own.contains(&to) {
            return self.request_local(to, protocol, body, timeout).await;
        }
        let (reply, answer) = oneshot::channel();
        self.commands.try_send(Command::Request { to, protocol, body, reply }).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => NetError::Busy,
            mpsc::error::TrySendError::Closed(_) => NetError::Stopped,
        })?;
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(NetError::Stopped),
            Err(_) => Err(NetError::Failed { to, reason: "no response in time".to_owned() }),
        }
    }

    /// Asks this cluster's other side.
    async fn request_local(
        &self,
        to: MemberId,
        protocol: Protocol,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, NetError> {
        let from = self.own.iter().copied().find(|own| *own != to).unwrap_or(to);
        let (reply, answer) = oneshot::channel();
        let inbound = Inbound { from, protocol, body, reply: Reply(ReplyTo::Local(reply)) };
        self.requests.try_send(inbound).map_err(|_| NetError::Busy)?;
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(body)) => Ok(body),
            _ => Err(NetError::Failed { to, reason: "no response".to_owned() }),
        }
    }

    /// The connected members, and a way to wait for changes.
    pub fn connected(&self) -> watch::Receiver<BTreeSet<MemberId>> {
        self.connected.clone()
    }

    /// Whether the member is connected now.
    pub fn is_connected(&self, id: MemberId) -> bool {
        self.connected.borrow().contains(&id)
    }
}

/// A running network.
pub struct Net {
    /// For all who send.
    pub handle: Handle,
    /// For the driver of the rounds.
    pub rounds: mpsc::Receiver<RoundEvent>,
    /// For the servers of the request protocols.
    pub requests: mpsc::Receiver<Inbound>,
    /// The task; it ends when every handle is gone.
    pub task: tokio::task::JoinHandle<()>,
}

/// Starts the network task. Call inside a tokio runtime.
pub fn start(config: NetConfig) -> Result<Net, StartError> {
    let (commands, commands_rx) = mpsc::channel(2048);
    let (rounds_tx, rounds) = mpsc::channel(4096);
    let (requests_tx, requests) = mpsc::channel(256);
    let (connected_tx, connected) = watch::channel(BTreeSet::new());
    let metrics = config.metrics.clone();
    let own = config.own.clone().into();
    let local = requests_tx.clone();
    let task = swarm::Task::new(
        config,
        commands.downgrade(),
        swarm::Outlets { rounds_tx, requests_tx, connected_tx },
    )?;
    let task = tokio::spawn(task.run(commands_rx));
    Ok(Net { handle: Handle { commands, requests: local, own, connected, metrics }, rounds, requests, task })
}
