//! The cryptography that a round needs, as a trait, and its one real implementation.
//!
//! The state machine is generic over [`Crypto`], so a stand-in for tests is another type and can never be switched
//! on in a real build.

use crate::evidence::{self, Field, Struct};
use crate::keys::{HomeKeys, SeatKeys};
use crate::record::MarketRecord;
use std::sync::Arc;
use vendue_market::{Digest, tagged_hash};
use vendue_sealed_bid::{BidKey, Combined, CryptoError, RoundId, Sealed, VoteKeySet};
use zeroize::Zeroizing;

/// What anybody can check and open with the public keys of a record.
pub trait Scheme {
    /// A verified combined signature.
    type Opened: Clone;

    /// The hash that evidence signatures are over: of a struct in a market's domain.
    fn typed_hash(market: &Digest, what: Struct, fields: &[Field<'_>]) -> Digest;
    /// Whether an evidence signature is by `key`.
    fn verify_signature(hash: &Digest, signature: &[u8; 65], key: &[u8; 33]) -> bool;
    /// Whether a vote is by `key`.
    fn verify_vote(key: &[u8; 96], message: &[u8], vote: &[u8; 48]) -> bool;
    /// Whether an aggregate is the vote of exactly these keys.
    fn verify_aggregate(keys: &[&[u8; 96]], message: &[u8], aggregate: &[u8; 48]) -> bool;
    /// Whether a share is by `key`.
    fn verify_share(id: &RoundId, key: &[u8; 48], share: &[u8; 96]) -> bool;
    /// The combined signature of a round, if it is that.
    fn verify_combined(id: &RoundId, seal_key: &[u8; 48], combined: &[u8; 96]) -> Option<Self::Opened>;
    /// Opens one sealed payload.
    fn open(opened: &Self::Opened, header: &[u8], sealed: &Sealed) -> Option<Vec<u8>>;
    /// The round's beacon.
    fn beacon(opened: &Self::Opened) -> Digest;
}

/// The real thing: secp256k1 and BLS12-381.
#[derive(Debug, Clone, Copy)]
pub struct Curves;

impl Scheme for Curves {
    type Opened = Combined;

    fn typed_hash(market: &Digest, what: Struct, fields: &[Field<'_>]) -> Digest {
        evidence::typed_hash(market, what, fields)
    }
    fn verify_signature(hash: &Digest, signature: &[u8; 65], key: &[u8; 33]) -> bool {
        evidence::verify(hash, signature, key).is_ok()
    }
    fn verify_vote(key: &[u8; 96], message: &[u8], vote: &[u8; 48]) -> bool {
        vendue_sealed_bid::verify_vote(key, message, vote)
    }
    fn verify_aggregate(keys: &[&[u8; 96]], message: &[u8], aggregate: &[u8; 48]) -> bool {
        vendue_sealed_bid::verify_aggregate(keys, message, aggregate)
    }
    fn verify_share(id: &RoundId, key: &[u8; 48], share: &[u8; 96]) -> bool {
        vendue_sealed_bid::verify_share(id, key, share)
    }
    fn verify_combined(id: &RoundId, seal_key: &[u8; 48], combined: &[u8; 96]) -> Option<Combined> {
        vendue_sealed_bid::verify_combined(id, seal_key, combined)
    }
    fn open(opened: &Combined, header: &[u8], sealed: &Sealed) -> Option<Vec<u8>> {
        vendue_sealed_bid::open(opened, header, sealed)
    }
    fn beacon(opened: &Combined) -> Digest {
        beacon_of(opened)
    }
}

/// A home's key.
pub trait UserCrypto {
    /// What checks the signatures of others.
    type Scheme: Scheme;

    /// The key that signs orders.
    fn public_key(&self) -> [u8; 33];
    /// The user's signature.
    fn sign(&self, hash: &Digest) -> [u8; 65];
    /// Seals a payload to a round, under the key of all seats.
    fn seal(
        &self,
        id: &RoundId,
        seal_key: &[u8; 48],
        header: &[u8],
        payload: &[u8],
    ) -> Result<Sealed, CryptoError>;
}

impl UserCrypto for HomeKeys {
    type Scheme = Curves;

    fn public_key(&self) -> [u8; 33] {
        self.user.public_key()
    }
    fn sign(&self, hash: &Digest) -> [u8; 65] {
        self.user.sign(hash)
    }
    fn seal(
        &self,
        id: &RoundId,
        seal_key: &[u8; 48],
        header: &[u8],
        payload: &[u8],
    ) -> Result<Sealed, CryptoError> {
        let user = self.user.to_bytes();
        let secret = Zeroizing::new(tagged_hash("VENDUE-V1-CEILING-KEY", &[user.as_slice()]));
        vendue_sealed_bid::seal(id, seal_key, header, payload, &BidKey::from_bytes(&secret))
    }
}

/// A seat's cryptography within one market and epoch.
pub trait Crypto {
    /// A verified combined signature.
    type Opened: Clone;
    /// What checks the signatures of others in proofs and certificates.
    type Scheme: Scheme<Opened = Self::Opened>;

    /// Seals a payload to a round.
    fn seal(&self, round: u64, header: &[u8], payload: &[u8]) -> Result<Sealed, CryptoError>;
    /// Whether that is sealed here, so that what is in it is known; a replay takes it from the log, and looks.
    fn knows_what_it_seals(&self) -> bool {
        true
    }
    /// This seat's seal share of a round.
    fn share(&self, round: u64) -> [u8; 96];
    /// Combines a quorum of shares, naming bad ones.
    fn combine(&self, round: u64, shares: &[(u16, [u8; 96])]) -> Result<Self::Opened, CryptoError>;
    /// Opens one sealed payload.
    fn open(&self, opened: &Self::Opened, header: &[u8], sealed: &Sealed) -> Option<Vec<u8>>;
    /// The round's beacon.
    fn beacon(&self, opened: &Self::Opened) -> Digest;
    /// The combined signature's bytes.
    fn combined(&self, opened: &Self::Opened) -> [u8; 96];
    /// This seat's vote on a message.
    fn vote(&self, message: &[u8]) -> [u8; 48];
    /// Whether a vote is the seat's.
    fn verify_vote(&self, seat: u16, message: &[u8], vote: &[u8; 48]) -> bool;
    /// Aggregates votes on one message.
    fn aggregate(&self, votes: &[[u8; 48]]) -> Option<[u8; 48]>;
    /// Whether an aggregate is the vote of exactly these seats.
    fn verify_aggregate(&self, seats: &[u16], message: &[u8], aggregate: &[u8; 48]) -> bool;
    /// The verified aggregate of the votes of distinct seats on one message; otherwise the seats whose votes are bad.
    fn tally(&self, message: &[u8], votes: &[(u16, [u8; 48])]) -> Result<[u8; 48], Vec<u16>> {
        let (seats, sums): (Vec<u16>, Vec<[u8; 48]>) = votes.iter().copied().unzip();
        let sum = self.aggregate(&sums).filter(|sum| self.verify_aggregate(&seats, message, sum));
        sum.ok_or_else(|| self.bad_votes(message, votes))
    }
    /// The seats whose votes on a message are bad, each judged alone.
    fn bad_votes(&self, message: &[u8], votes: &[(u16, [u8; 48])]) -> Vec<u16> {
        let bad = votes.iter().filter(|(seat, vote)| !self.verify_vote(*seat, message, vote));
        bad.map(|(seat, _)| *seat).collect()
    }
    /// This seat's evidence signature.
    fn sign(&self, hash: &Digest) -> [u8; 65];
    /// Whether an evidence signature is by `key`.
    fn verify(&self, hash: &Digest, signature: &[u8; 65], key: &[u8; 33]) -> bool;
}

/// The beacon of a round with this combined signature.
pub(crate) fn beacon_of(combined: &Combined) -> Digest {
    vendue_market::tagged_hash("VENDUE-V1-BEACON", &[&combined.to_bytes()])
}

/// The real thing: a seat's keys and the market record.
pub struct SeatCrypto {
    record: Arc<MarketRecord>,
    keys: SeatKeys,
    /// The record's vote keys as points; none when one is no point, which a validated record excludes.
    votes: Option<VoteKeySet>,
}

impl SeatCrypto {
    /// For a seat of a market. The keys must have been checked against the record.
    pub fn new(record: Arc<MarketRecord>, keys: SeatKeys) -> Self {
        let votes: Vec<[u8; 96]> = record.seats.iter().map(|seat| seat.vote_key).collect();
        Self { votes: VoteKeySet::from_checked(&votes).ok(), record, keys }
    }
    fn id(&self, round: u64) -> RoundId {
        RoundId { market: self.record.market, epoch: self.record.epoch, round }
    }
}

impl Crypto for SeatCrypto {
    type Opened = Combined;
    type Scheme = Curves;

    fn seal(&self, round: u64, header: &[u8], payload: &[u8]) -> Result<Sealed, CryptoError> {
        vendue_sealed_bid::seal(&self.id(round), &self.record.seal_key, header, payload, &self.keys.bid)
    }
    fn share(&self, round: u64) -> [u8; 96] {
        self.keys.share.sign(&self.id(round))
    }
    fn combine(&self, round: u64, shares: &[(u16, [u8; 96])]) -> Result<Combined, CryptoError> {
        vendue_sealed_bid::combine(&self.id(round), &self.record.seal_key, self.record.q(), shares, |seat| {
            self.record.seat(seat).map(|s| &s.seal_share_key)
        })
    }
    fn open(&self, opened: &Combined, header: &[u8], sealed: &Sealed) -> Option<Vec<u8>> {
        vendue_sealed_bid::open(opened, header, sealed)
    }
    fn beacon(&self, opened: &Combined) -> Digest {
        beacon_of(opened)
    }
    fn combined(&self, opened: &Combined) -> [u8; 96] {
        opened.to_bytes()
    }
    fn vote(&self, message: &[u8]) -> [u8; 48] {
        self.keys.vote.sign(message)
    }
    fn verify_vote(&self, seat: u16, message: &[u8], vote: &[u8; 48]) -> bool {
        self.votes.as_ref().is_some_and(|keys| keys.verify_vote(seat, message, vote))
    }
    fn aggregate(&self, votes: &[[u8; 48]]) -> Option<[u8; 48]> {
        vendue_sealed_bid::aggregate_votes(votes)
    }
    fn verify_aggregate(&self, seats: &[u16], message: &[u8], aggregate: &[u8; 48]) -> bool {
        self.votes.as_ref().is_some_and(|keys| keys.verify_aggregate(seats, message, aggregate))
    }
    fn tally(&self, message: &[u8], votes: &[(u16, [u8; 48])]) -> Result<[u8; 48], Vec<u16>> {
        self.votes.as_ref().map_or(Err(vec![]), |keys| keys.tally(message, votes))
    }
    fn bad_votes(&self, message: &[u8], votes: &[(u16, [u8; 48])]) -> Vec<u16> {
        self.votes.as_ref().map_or(vec![], |keys| keys.bad_votes(message, votes))
    }
    fn sign(&self, hash: &Digest) -> [u8; 65] {
        self.keys.evidence.sign(hash)
    }
    fn verify(&self, hash: &Digest, signature: &[u8; 65], key: &[u8; 33]) -> bool {
        evidence::verify(hash, signature, key).is_ok()
    }
}
