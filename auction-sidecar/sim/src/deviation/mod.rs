//! Faulty seats: an honest seat whose messages are changed on the way out, and that says more than it should.
//!
//! Inputs: what the honest core of the seat sends and what reaches it. Output: what leaves instead, with delays. Deviations
//! compose: each changes what the ones before it let through. They are plain data, so a schedule can be written down.

mod all;
mod bundles;
mod frame;
mod hear;
mod rounds;

pub use all::all_deviations;

use crate::world::Letter;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use vendue_auction_core::evidence::message_hash_by;
use vendue_auction_core::wire::{Body, Header, Kind, Message, VoteWord, vote_bytes};
use vendue_auction_core::{Crypto, MarketRecord};
use vendue_market::Digest;

/// One way to deviate. The numbers are those of the protocol's list of behaviours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Deviation {
    /// B1: says nothing.
    Silent,
    /// B21, B40: withholds all messages of a kind.
    Mute(KindName),
    /// B2, B3, B12: sends messages of a kind to the first so many other seats only.
    Only(KindName, u16),
    /// B41: sends its bundle to so many seats only, to others in each round.
    PartialBundle(u16),
    /// B4: two versions of its bundle, to two halves.
    TwoBundles,
    /// B5: another version of its bundle to each.
    ManyBundles,
    /// B6: sends its bundle so many milliseconds late.
    LateBundle(u64),
    /// B7: sends a copy of another seat's bundle as its own.
    CopiedBundle,
    /// B8, B9, B10: changes a field of its bundle: 0 the point, 1 the mask, 2 the payload, 3 the order view, 4 the point
    /// to the identity.
    MauledBundle(u8),
    /// B13: two SETs, to two halves.
    TwoSets,
    /// B14: leaves a seat out of its SET.
    Omit(u16),
    /// B15: lists bundles that it never got, by what others say of them where it can.
    ClaimAll,
    /// B16: lists its own bundle only.
    StarvedSet,
    /// B17: votes FULL for another set than its own.
    FalseFull,
    /// B45: shows its SET to the proposer of view 1 only.
    SetToProposer,
    /// B18: two ADMITs, to two halves.
    TwoAdmits,
    /// Two LOCKs, to two halves.
    TwoLocks,
    /// B18: votes for whatever it hears a vote for, to whom it hears it from.
    Echo,
    /// B19: sends its ADMIT or LOCK at the end of the view, to one seat only.
    LastMoment(KindName),
    /// B24: opens with a forged commit as soon as it has a SET.
    ForgedCommit,
    /// B20: gives its share away before anything is final.
    EarlyShare,
    /// B22, B23: sends the share of the next round.
    WrongShare,
    /// B25: ADMITs every proposal, whatever it is locked on.
    AdmitAll,
    /// B26: another award root to one half.
    TwoAwards,
    /// B26: another award root to all.
    WrongAward,
    /// B40: two proposals, to two halves.
    TwoProposals,
    /// B40: proposes what does not follow.
    FalseProposal,
    /// B45: votes for nonsense at once, to force views.
    JunkAdmit,
    /// B45: votes in the view before the one that it enters.
    OldView,
    /// B45: shows a SET that nobody signed and a quorum that nobody is part of in its NEWVIEW.
    ForgedNewView,
    /// B13, B45: shows a second SET of its own in its NEWVIEWs.
    OtherSetInView,
    /// B11, B44, B46: a bundle with records that no honest seat seals.
    FalseRecords(FalseRecords),
    /// B22: a share with an error; the errors of two such seats cancel.
    ShiftedShare,
    /// B39: gives another seat's share as its own.
    StolenShare,
    /// B42: sends its share so many milliseconds late.
    LateOpen(u64),
    /// B42: sends its share with the commit, gate or not.
    Ungated,
    /// B27: tells the homes of no certificate.
    HoardedProof,
    /// B27: tells the homes of certificates so many milliseconds late.
    LateProof(u64),
    /// B29: asks everybody so many times at once for what nobody has.
    FetchFlood(u16),
    /// B29: sends more than a message may be.
    Oversize,
    /// B29: everything that it sends is so many milliseconds slower.
    Slow(u64),
    /// B33: two processes with its keys take part.
    TwoReplicas,
    /// B47: wakes the other seats up for the next round so many milliseconds before its bundles are late.
    LastWake(u64),
    /// B43: makes fault proofs against those who did nothing.
    Frame,
    /// B30: sends again, under its own name and under theirs, what others said in this round and in those before.
    Replay,
}

/// Records that no honest seat seals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FalseRecords {
    /// Bids on capacity that it has not.
    OutOfCapacity,
    /// Bids on an offer that is not in the bundle.
    NoCapacity,
    /// Prices below zero.
    NegativePrice,
    /// Two records for each order.
    TwiceEach,
    /// Orders that nobody placed.
    ForeignOrders,
    /// Every order that it has ever heard of, in every round.
    AllOrders,
    /// B35: bids at this price, in millionths, for a user who wants others to get less.
    Shill(i64),
}

/// A message kind in a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // The kinds of the protocol.
pub enum KindName {
    Bundle,
    Set,
    Admit,
    Lock,
    Open,
    Commit,
    Award,
    NewView,
    Propose,
    Reply,
}

impl KindName {
    pub(crate) fn kind(self) -> Kind {
        match self {
            KindName::Bundle => Kind::Bundle,
            KindName::Set => Kind::Set,
            KindName::Admit => Kind::Admit,
            KindName::Lock => Kind::Lock,
            KindName::Open => Kind::Open,
            KindName::Commit => Kind::Commit,
            KindName::Award => Kind::Award,
            KindName::NewView => Kind::NewView,
            KindName::Propose => Kind::Propose,
            KindName::Reply => Kind::Reply,
        }
    }
}

/// A message on its way out.
pub(crate) struct Outgoing {
    pub to: u16,
    pub delay_ms: u64,
    pub letter: Letter,
}

/// A faulty seat.
pub(crate) struct Actor<C: Crypto> {
    record: Arc<MarketRecord>,
    seat: u16,
    crypto: C,
    deviations: Vec<Deviation>,
    /// Copied bundles by round.
    copied: BTreeSet<u64>,
    /// Messages that were made up, by round.
    made: BTreeMap<u64, Letter>,
    /// Orders of all rounds.
    orders: BTreeSet<Digest>,
    /// Votes that were sent in addition, by round and view.
    extra: BTreeMap<(u64, u32), u32>,
    /// Votes that were echoed.
    echoed: BTreeSet<[u8; 16]>,
    /// Messages of others, to be replayed.
    heard: Vec<Letter>,
    /// Bundles by round and seat, whoever sent them.
    hearsay: BTreeMap<(u64, u16), Digest>,
    /// What may be used against others.
    notes: frame::Notes,
}

impl<C: Crypto> Actor<C> {
    pub(crate) fn new(record: Arc<MarketRecord>, seat: u16, crypto: C) -> Self {
        Self {
            record,
            seat,
            crypto,
            deviations: vec![],
            copied: BTreeSet::new(),
            made: BTreeMap::new(),
            orders: BTreeSet::new(),
            extra: BTreeMap::new(),
            echoed: BTreeSet::new(),
            heard: vec![],
            hearsay: BTreeMap::new(),
            notes: frame::Notes::default(),
        }
    }

    pub(crate) fn add(&mut self, deviation: Deviation) {
        self.deviations.push(deviation);
    }

    fn sign(&self, round: u64, body: Body) -> Letter {
        let header = Header {
            kind: body.kind(),
            market: self.record.short_id(),
            epoch: self.record.epoch,
            round,
            seat: self.seat,
        };
        let hash = message_hash_by::<C::Scheme>(&self.record.market, &header, &body);
        let signature = Some(self.crypto.sign(&hash));
        self.letter(Message { header, body, signature }.encode())
    }

    fn letter(&self, bytes: Vec<u8>) -> Letter {
        Letter::new(bytes, self.record.n())
    }

    fn vote(&self, round: u64, word: VoteWord, view: u32, digest: &Digest) -> [u8; 48] {
        self.crypto.vote(&vote_bytes(word, &self.record.market, self.record.epoch, round, view, digest))
    }

    fn others(&self) -> impl Iterator<Item = u16> + use<C> {
        let seat = self.seat;
        (0..self.record.n()).filter(move |s| *s != seat)
    }

    fn to_all(&self, letter: &Letter) -> Vec<Outgoing> {
        self.others().map(|to| Outgoing { to, delay_ms: 0, letter: letter.clone() }).collect()
    }

    /// What leaves instead of a message of the honest core to one seat.
    pub(crate) fn outgoing(&mut self, local_ms: u64, to: u16, letter: Letter) -> Vec<Outgoing> {
        self.take_note(&letter);
        let mut out = vec![Outgoing { to, delay_ms: 0, letter }];
        for deviation in self.deviations.clone() {
            out = out.into_iter().flat_map(|o| self.change(deviation, local_ms, o)).collect();
        }
        out
    }

    /// By how much a message to a home is delayed; none when it is kept back.
    pub(crate) fn to_home(&self, kind: Option<Kind>) -> Option<u64> {
        let is_proof = kind == Some(Kind::Proof);
        let delays = self.deviations.iter().map(|deviation| match deviation {
            Deviation::HoardedProof if is_proof => None,
            Deviation::LateProof(ms) if is_proof => Some(*ms),
            Deviation::Slow(ms) => Some(*ms),
            _ => Some(0),
        });
        delays.sum()
    }

    fn change(&mut self, deviation: Deviation, local_ms: u64, o: Outgoing) -> Vec<Outgoing> {
        let Some(message) = o.letter.message().cloned() else { return vec![o] };
        let kind = message.header.kind;
        if deviation == Deviation::Silent {
            return vec![];
        }
        if let Deviation::Slow(ms) = deviation {
            return vec![Outgoing { delay_ms: o.delay_ms + ms, ..o }];
        }
        // Messages of homes and receipts pass; the deviations are about rounds.
        match kind {
            Kind::Bundle => self.change_bundle(deviation, o, message),
            Kind::Set => self.change_set(deviation, o, message),
            Kind::Admit | Kind::Lock => self.change_vote(deviation, local_ms, o, message),
            Kind::Open | Kind::Award | Kind::Commit => self.change_result(deviation, o, message),
            Kind::NewView | Kind::Propose => self.change_view(deviation, o, message),
            _ => self.filter(deviation, o, kind),
        }
    }

    /// Deviations that only hold messages back.
    fn filter(&self, deviation: Deviation, o: Outgoing, kind: Kind) -> Vec<Outgoing> {
        let passes = match deviation {
            Deviation::Mute(name) => name.kind() != kind,
            Deviation::Only(name, first) => {
                name.kind() != kind || self.others().take(usize::from(first)).any(|s| s == o.to)
            }
            _ => true,
        };
        if passes { vec![o] } else { vec![] }
    }
}
