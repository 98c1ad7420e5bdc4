//! Who may talk to this process: the seats and homes of the market record, by peer id.
//!
//! Inputs: the record. Outputs: the table. Invariant: fixed for the life of the process; nobody else is ever connected.

use std::collections::BTreeMap;

use libp2p::{Multiaddr, PeerId};
use vendue_auction_core::Peer;

/// A member of the market.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemberId {
    /// A seat, by its number in the record.
    Seat(u16),
    /// A user's cluster, by its position in the record.
    Home(u16),
}

impl From<Peer> for MemberId {
    fn from(peer: Peer) -> Self {
        match peer {
            Peer::Seat(seat) => Self::Seat(seat),
            Peer::Home(home) => Self::Home(home),
        }
    }
}

impl From<MemberId> for Peer {
    fn from(id: MemberId) -> Self {
        match id {
            MemberId::Seat(seat) => Self::Seat(seat),
            MemberId::Home(home) => Self::Home(home),
        }
    }
}

impl std::fmt::Display for MemberId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Seat(seat) => write!(f, "seat {seat}"),
            Self::Home(home) => write!(f, "home {home}"),
        }
    }
}

/// What the record says of a member.
#[derive(Debug, Clone)]
pub struct Member {
    /// Which one.
    pub id: MemberId,
    /// Name in the record, for logs.
    pub name: String,
    /// Transport identity.
    pub peer: PeerId,
    /// Where it can be dialled; homes are not dialled.
    pub address: Option<Multiaddr>,
}

/// The members without this process.
#[derive(Debug, Clone, Default)]
pub struct Members {
    by_id: BTreeMap<MemberId, Member>,
    by_peer: BTreeMap<PeerId, MemberId>,
}

impl Members {
    /// The table of all members but `own`. A cluster that is both is known as the one that comes first.
    pub fn new(all: impl IntoIterator<Item = Member>, own: PeerId) -> Self {
        let mut table = Self::default();
        for member in all.into_iter().filter(|m| m.peer != own) {
            table.by_peer.entry(member.peer).or_insert(member.id);
            table.by_id.insert(member.id, member);
        }
        table
    }

    /// The member with that transport identity.
    pub fn of_peer(&self, peer: &PeerId) -> Option<MemberId> {
        self.by_peer.get(peer).copied()
    }

    /// The id under which a member's connection is known.
    pub fn canonical(&self, id: MemberId) -> MemberId {
        self.by_id.get(&id).and_then(|m| self.by_peer.get(&m.peer)).copied().unwrap_or(id)
    }

    /// What the record says of a member.
    pub fn get(&self, id: MemberId) -> Option<&Member> {
        self.by_id.get(&id)
    }

    /// All members but this process.
    pub fn iter(&self) -> impl Iterator<Item = &Member> {
        self.by_id.values()
    }
}
