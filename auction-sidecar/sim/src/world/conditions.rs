//! What can be wrong in a simulated market: with its network, its clocks, its seats and its home.

use crate::deviation::KindName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use vendue_auction_core::Params;
use vendue_auction_core::wire::Kind;

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
