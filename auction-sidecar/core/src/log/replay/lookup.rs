//! Cryptography of a seat whose secrets are not at hand: what it signed is taken from its log, the rest is public.
//!
//! Nothing is taken that the seat's public keys do not confirm: signatures, votes and shares are checked first, and what it
//! sealed is compared with its bids once the round's signature opens it.

use crate::crypto::{Crypto, Curves, beacon_of};
use crate::evidence::{self, message_hash};
use crate::justify::{set_digest, vote_message};
use crate::log::LogRecord;
use crate::record::MarketRecord;
use crate::wire::{Body, Message, VoteWord, decode, listed_of};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use vendue_market::Digest;
use vendue_sealed_bid::{Combined, CryptoError, RoundId, Sealed};

/// What a seat signed in one round. Where it did not sign, zeros stand for the signature: they differ from anything signed.
pub(super) struct Lookup {
    record: Arc<MarketRecord>,
    votes: BTreeMap<Vec<u8>, [u8; 48]>,
    signatures: BTreeMap<Digest, [u8; 65]>,
    share: Option<[u8; 96]>,
    sealed: Option<Sealed>,
    /// Messages with a signature, vote or share that is not the seat's.
    forged: BTreeSet<Vec<u8>>,
    /// What the bids in the log are, as they are sealed.
    bids: OnceLock<Vec<u8>>,
    /// Whether something else was sealed.
    sealed_other: OnceLock<()>,
}

impl Lookup {
    pub(super) fn new(record: Arc<MarketRecord>, seat: u16, round: u64, log: &[&LogRecord]) -> Self {
        let mut lookup = Self {
            record,
            votes: BTreeMap::new(),
            signatures: BTreeMap::new(),
            share: None,
            sealed: None,
            forged: BTreeSet::new(),
            bids: OnceLock::new(),
            sealed_other: OnceLock::new(),
        };
        for entry in log {
            if let LogRecord::Said { bytes, .. } = entry
                && lookup.add(seat, round, bytes).is_none()
            {
                lookup.forged.insert(bytes.clone());
            }
        }
        lookup
    }

    /// Whether a message in the log is signed with a key that is not the seat's.
    pub(super) fn is_forged(&self, bytes: &[u8]) -> bool {
        self.forged.contains(bytes)
    }

    /// Whether the seat sealed something else than its bids.
    pub(super) fn has_sealed_other(&self) -> bool {
        self.sealed_other.get().is_some()
    }

    /// Takes what a message has signed; none when not everything in it is the seat's.
    fn add(&mut self, seat: u16, round: u64, bytes: &[u8]) -> Option<()> {
        let message = decode(bytes, self.record.n()).ok().filter(|m| m.header.seat == seat)?;
        let keys = self.record.clone();
        let keys = keys.seat(seat)?;
        let hash = message_hash(&self.record.market, &message.header, &message.body);
        let signature = message.signature?;
        evidence::verify(&hash, &signature, &keys.evidence_key).ok()?;
        match self.vote_in(round, &message) {
            Some((voted, vote)) if vendue_sealed_bid::verify_vote(&keys.vote_key, &voted, &vote) => {
                self.votes.insert(voted, vote);
            }
            Some(_) => return None,
            None => {}
        }
        match message.body {
            Body::Bundle(b) => self.sealed = Some(Sealed { u: b.u, v: b.v, payload: b.payload }),
            Body::Open(o) => {
                let id = RoundId { market: self.record.market, epoch: self.record.epoch, round };
                let own = vendue_sealed_bid::verify_share(&id, &keys.seal_share_key, &o.share);
                self.share = Some(own.then_some(o.share)?);
            }
            _ => {}
        }
        self.signatures.entry(hash).or_insert(signature);
        Some(())
    }

    /// The vote in a message, and what it is a vote on.
    fn vote_in(&self, round: u64, message: &Message) -> Option<(Vec<u8>, [u8; 48])> {
        let (word, view, digest, vote) = match &message.body {
            Body::Set(s) => {
                let set = set_digest(&self.record, round, &listed_of(&s.held));
                (VoteWord::Full, 0, set, s.full?)
            }
            Body::Admit(a) => (VoteWord::Admit, a.view, a.set, a.vote),
            Body::Lock(l) => (VoteWord::Lock, l.view, l.set, l.vote),
            Body::Award(a) => (VoteWord::Award, 0, a.root, a.vote),
            _ => return None,
        };
        Some((vote_message(&self.record, round, word, view, &digest), vote))
    }
}

impl Crypto for Lookup {
    type Opened = Combined;
    type Scheme = Curves;

    fn seal(&self, _: u64, _: &[u8], payload: &[u8]) -> Result<Sealed, CryptoError> {
        self.bids.get_or_init(|| payload.to_vec());
        let none = || Sealed { u: [0; 48], v: [0; 32], payload: vec![] };
        Ok(self.sealed.clone().unwrap_or_else(none))
    }
    fn knows_what_it_seals(&self) -> bool {
        false
    }
    fn share(&self, _: u64) -> [u8; 96] {
        self.share.unwrap_or([0; 96])
    }
    fn combine(&self, round: u64, shares: &[(u16, [u8; 96])]) -> Result<Combined, CryptoError> {
        let id = RoundId { market: self.record.market, epoch: self.record.epoch, round };
        vendue_sealed_bid::combine(&id, &self.record.seal_key, self.record.q(), shares, |seat| {
            self.record.seat(seat).map(|s| &s.seal_share_key)
        })
    }
    fn open(&self, opened: &Combined, header: &[u8], sealed: &Sealed) -> Option<Vec<u8>> {
        let plain = vendue_sealed_bid::open(opened, header, sealed);
        if self.sealed.as_ref() == Some(sealed)
            && self.bids.get().is_some_and(|bids| Some(bids) != plain.as_ref())
        {
            self.sealed_other.get_or_init(|| ());
        }
        plain
    }
    fn beacon(&self, opened: &Combined) -> Digest {
        beacon_of(opened)
    }
    fn combined(&self, opened: &Combined) -> [u8; 96] {
        opened.to_bytes()
    }
    fn vote(&self, message: &[u8]) -> [u8; 48] {
        self.votes.get(message).copied().unwrap_or([0; 48])
    }
    fn verify_vote(&self, seat: u16, message: &[u8], vote: &[u8; 48]) -> bool {
        let key = self.record.seat(seat).map(|s| &s.vote_key);
        key.is_some_and(|key| vendue_sealed_bid::verify_vote(key, message, vote))
    }
    fn aggregate(&self, votes: &[[u8; 48]]) -> Option<[u8; 48]> {
        vendue_sealed_bid::aggregate_votes(votes)
    }
    fn verify_aggregate(&self, seats: &[u16], message: &[u8], aggregate: &[u8; 48]) -> bool {
        let keys: Option<Vec<_>> = seats.iter().map(|s| self.record.seat(*s).map(|s| &s.vote_key)).collect();
        keys.is_some_and(|keys| vendue_sealed_bid::verify_aggregate(&keys, message, aggregate))
    }
    fn sign(&self, hash: &Digest) -> [u8; 65] {
        self.signatures.get(hash).copied().unwrap_or([0; 65])
    }
    fn verify(&self, hash: &Digest, signature: &[u8; 65], key: &[u8; 33]) -> bool {
        evidence::verify(hash, signature, key).is_ok()
    }
}
