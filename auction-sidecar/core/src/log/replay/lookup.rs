//! Cryptography of a seat whose secrets are not at hand: what it signed is taken from its log, the rest is public.

use crate::crypto::{Crypto, Curves, beacon_of};
use crate::evidence::{self, message_hash};
use crate::justify::{set_digest, vote_message};
use crate::log::LogRecord;
use crate::record::MarketRecord;
use crate::wire::{Body, Message, VoteWord, decode, listed_of};
use std::collections::BTreeMap;
use std::sync::Arc;
use vendue_market::Digest;
use vendue_sealed_bid::{Combined, CryptoError, RoundId, Sealed};

/// What a seat signed in one round. Where it did not sign, zeros stand for the signature: they differ from anything signed.
pub(super) struct Lookup {
    record: Arc<MarketRecord>,
    votes: BTreeMap<Vec<u8>, [u8; 48]>,
    signatures: BTreeMap<Digest, [u8; 65]>,
    share: Option<[u8; 96]>,
    sealed: Option<Sealed>,
}

impl Lookup {
    pub(super) fn new(record: Arc<MarketRecord>, seat: u16, round: u64, log: &[&LogRecord]) -> Self {
        let mut lookup =
            Self { record, votes: BTreeMap::new(), signatures: BTreeMap::new(), share: None, sealed: None };
        for entry in log {
            if let LogRecord::Said { bytes, .. } = entry
                && let Ok(message) = decode(bytes, lookup.record.n())
                && message.header.seat == seat
            {
                lookup.add(round, message);
            }
        }
        lookup
    }

    fn add(&mut self, round: u64, message: Message) {
        let hash = message_hash(&self.record.market, &message.header, &message.body);
        if let Some(signature) = message.signature {
            self.signatures.entry(hash).or_insert(signature);
        }
        let vote = match message.body {
            Body::Bundle(b) => {
                self.sealed = Some(Sealed { u: b.u, v: b.v, payload: b.payload });
                None
            }
            Body::Set(s) => s
                .full
                .map(|full| (VoteWord::Full, 0, set_digest(&self.record, round, &listed_of(&s.held)), full)),
            Body::Admit(a) => Some((VoteWord::Admit, a.view, a.set, a.vote)),
            Body::Lock(l) => Some((VoteWord::Lock, l.view, l.set, l.vote)),
            Body::Award(a) => Some((VoteWord::Award, 0, a.root, a.vote)),
            Body::Open(o) => {
                self.share = Some(o.share);
                None
            }
            _ => None,
        };
        if let Some((word, view, digest, vote)) = vote {
            self.votes.insert(vote_message(&self.record, round, word, view, &digest), vote);
        }
    }
}

impl Crypto for Lookup {
    type Opened = Combined;
    type Scheme = Curves;

    fn seal(&self, _: u64, _: &[u8], _: &[u8]) -> Result<Sealed, CryptoError> {
        let none = || Sealed { u: [0; 48], v: [0; 32], payload: vec![] };
        Ok(self.sealed.clone().unwrap_or_else(none))
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
        vendue_sealed_bid::open(opened, header, sealed)
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
