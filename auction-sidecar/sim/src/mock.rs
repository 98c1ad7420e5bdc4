//! A stand-in for the cryptography: hashes where there are signatures, shares and pairings, so that many rounds can be
//! simulated in a short time.
//!
//! Inputs and outputs have the sizes of the real ones. What is kept: whatever was not made by the key, for the message,
//! does not verify; any quorum of shares gives the one combined value, and errors of shares that cancel go unnoticed in
//! the combination; a sealed payload opens for its round and header only. What is not: anybody could make anything, so
//! this is for simulated faulty seats, which do what they are told. It is another type than the real cryptography and is
//! known to this crate only.

use std::sync::Arc;
use vendue_auction_core::evidence::{Field, Struct};
use vendue_auction_core::{Crypto, MarketRecord, Scheme, UserCrypto};
use vendue_market::Digest;
use vendue_sealed_bid::{CryptoError, RoundId, Sealed};
use xxhash_rust::xxh3::xxh3_128_with_seed;

const SIGN: u8 = 1;
const VOTE: u8 = 2;
const SHARE: u8 = 3;
const COMBINED: u8 = 4;
const STREAM: u8 = 5;
const KEM: u8 = 6;
const MASK: u8 = 7;
const BEACON: u8 = 8;

const TYPED: u8 = 9;
const TRACE: u8 = 10;

/// A hash over the parts: one after the other, each with what came out of those before it. Not for adversaries that look
/// for collisions, of which there are none here.
fn fold(tag: u8, parts: &[&[u8]]) -> u128 {
    parts.iter().fold(u128::from(tag), |sum, part| {
        let seed = (sum as u64) ^ ((sum >> 64) as u64).rotate_left(29);
        xxh3_128_with_seed(part, seed).wrapping_add(sum.rotate_left(41))
    })
}

/// As many bytes as are wanted, from a keyed hash of the parts.
fn hash<const N: usize>(tag: u8, parts: &[&[u8]]) -> [u8; N] {
    let sum = fold(tag, parts);
    let (first, second) = (sum as u64, (sum >> 64) as u64);
    let mut out = [0; N];
    for (i, chunk) in (0u64..).zip(out.chunks_mut(8)) {
        let word = (first ^ second.wrapping_mul(2 * i + 1)).rotate_left(i as u32).to_be_bytes();
        chunk.iter_mut().zip(word).for_each(|(to, from)| *to = from);
    }
    out
}

/// A short name for bytes.
pub(crate) fn hash_of(bytes: &[u8]) -> [u8; 16] {
    xxh3_128_with_seed(bytes, 0).to_be_bytes()
}

/// A hash over everything that was added, in its order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trace([u8; 32]);

impl Trace {
    /// Adds a hash and two numbers.
    pub(crate) fn add(&mut self, [first, second]: [u64; 2], what: &[u8]) {
        self.0 = hash(TRACE, &[&self.0, &first.to_be_bytes(), &second.to_be_bytes(), what]);
    }
    /// The hash.
    pub(crate) fn hash(&self) -> [u8; 32] {
        self.0
    }
}

fn add<const N: usize>(sum: &mut [u8; N], other: &[u8; N]) {
    sum.iter_mut().zip(other).for_each(|(a, b)| *a ^= b);
}

fn share_of(id: &RoundId, key: &[u8; 48]) -> [u8; 96] {
    hash(SHARE, &[key, &id.to_bytes()])
}

fn combined_of(id: &RoundId, seal_key: &[u8; 48]) -> [u8; 96] {
    hash(COMBINED, &[seal_key, &id.to_bytes()])
}

/// Encrypts or decrypts in place.
fn stream(combined: &[u8; 96], header: &[u8], payload: &mut [u8]) {
    let key: [u8; 32] = hash(STREAM, &[combined, header]);
    payload.iter_mut().zip(key.iter().cycle()).for_each(|(byte, k)| *byte ^= k);
}

fn seal(combined: &[u8; 96], header: &[u8], payload: &[u8]) -> Sealed {
    let mut payload = payload.to_vec();
    stream(combined, header, &mut payload);
    payload.extend([0; TAG]);
    Sealed {
        u: hash(KEM, &[combined, header, &payload]),
        v: hash(MASK, &[combined, header, &payload]),
        payload,
    }
}

/// Signatures, votes and sealing by hashes.
#[derive(Debug, Clone, Copy)]
pub struct MockScheme;

impl Scheme for MockScheme {
    type Opened = [u8; 96];

    fn typed_hash(market: &Digest, what: Struct, fields: &[Field<'_>]) -> Digest {
        let kind = match what {
            Struct::Message(kind) => kind as u8,
            Struct::Order => 253,
            Struct::Close => 254,
            Struct::MarketRecord => 255,
        };
        let bytes = |field: &Field<'_>| match *field {
            Field::Bytes(bytes) => xxh3_128_with_seed(bytes, 1),
            Field::Word(word) => xxh3_128_with_seed(word, 2),
        };
        let of_fields = fields.iter().fold(0, |sum: u128, field| {
            sum.rotate_left(17).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835) ^ bytes(field)
        });
        hash(TYPED, &[market, &[kind], &of_fields.to_be_bytes()])
    }
    fn verify_signature(digest: &Digest, signature: &[u8; 65], key: &[u8; 33]) -> bool {
        *signature == hash(SIGN, &[key, digest])
    }
    fn verify_vote(key: &[u8; 96], message: &[u8], vote: &[u8; 48]) -> bool {
        *vote == hash(VOTE, &[key, message])
    }
    fn verify_aggregate(keys: &[&[u8; 96]], message: &[u8], aggregate: &[u8; 48]) -> bool {
        let mut sum = [0; 48];
        keys.iter().for_each(|key| add(&mut sum, &hash(VOTE, &[*key, message])));
        sum == *aggregate && !keys.is_empty()
    }
    fn verify_share(id: &RoundId, key: &[u8; 48], share: &[u8; 96]) -> bool {
        *share == share_of(id, key)
    }
    fn verify_combined(id: &RoundId, seal_key: &[u8; 48], combined: &[u8; 96]) -> Option<[u8; 96]> {
        (*combined == combined_of(id, seal_key)).then_some(*combined)
    }
    fn open(opened: &[u8; 96], header: &[u8], sealed: &Sealed) -> Option<Vec<u8>> {
        let kem: [u8; 48] = hash(KEM, &[opened, header, &sealed.payload]);
        let mask: [u8; 32] = hash(MASK, &[opened, header, &sealed.payload]);
        if (kem, mask) != (sealed.u, sealed.v) {
            return None;
        }
        let mut payload = sealed.payload.get(..sealed.payload.len().checked_sub(TAG)?)?.to_vec();
        stream(opened, header, &mut payload);
        Some(payload)
    }
    fn beacon(opened: &[u8; 96]) -> Digest {
        hash(BEACON, &[opened])
    }
}

/// What sealing adds to a payload.
const TAG: usize = 16;

/// A seat's stand-in for cryptography.
#[derive(Debug, Clone)]
pub struct MockCrypto {
    record: Arc<MarketRecord>,
    seat: u16,
}

impl MockCrypto {
    /// For a seat of a market with keys that were made up.
    pub fn new(record: Arc<MarketRecord>, seat: u16) -> Self {
        Self { record, seat }
    }
    fn id(&self, round: u64) -> RoundId {
        RoundId { market: self.record.market, epoch: self.record.epoch, round }
    }
    fn bad(&self, round: u64, shares: &[(u16, [u8; 96])]) -> Vec<u16> {
        let id = self.id(round);
        let key = |seat: u16| self.record.seat(seat).map(|s| s.seal_share_key);
        let good = |(seat, share): &(u16, [u8; 96])| {
            key(*seat).is_some_and(|k| MockScheme::verify_share(&id, &k, share))
        };
        shares.iter().filter(|s| !good(s)).map(|(seat, _)| *seat).collect()
    }
}

impl Crypto for MockCrypto {
    type Opened = [u8; 96];
    type Scheme = MockScheme;

    fn seal(&self, round: u64, header: &[u8], payload: &[u8]) -> Result<Sealed, CryptoError> {
        Ok(seal(&combined_of(&self.id(round), &self.record.seal_key), header, payload))
    }
    fn share(&self, round: u64) -> [u8; 96] {
        let key = self.record.seat(self.seat).map_or([0; 48], |s| s.seal_share_key);
        share_of(&self.id(round), &key)
    }
    fn combine(&self, round: u64, shares: &[(u16, [u8; 96])]) -> Result<[u8; 96], CryptoError> {
        let needed = usize::from(self.record.q());
        let first = shares.get(..needed).ok_or(CryptoError::TooFewShares { found: shares.len(), needed })?;
        let id = self.id(round);
        let mut error = [0; 96];
        for (seat, share) in first {
            let key = self.record.seat(*seat).map_or([0; 48], |s| s.seal_share_key);
            add(&mut error, &share_of(&id, &key));
            add(&mut error, share);
        }
        if error == [0; 96] {
            Ok(combined_of(&id, &self.record.seal_key))
        } else {
            Err(CryptoError::BadShares(self.bad(round, shares)))
        }
    }
    fn open(&self, opened: &[u8; 96], header: &[u8], sealed: &Sealed) -> Option<Vec<u8>> {
        MockScheme::open(opened, header, sealed)
    }
    fn beacon(&self, opened: &[u8; 96]) -> Digest {
        MockScheme::beacon(opened)
    }
    fn combined(&self, opened: &[u8; 96]) -> [u8; 96] {
        *opened
    }
    fn vote(&self, message: &[u8]) -> [u8; 48] {
        self.record.seat(self.seat).map_or([0; 48], |s| hash(VOTE, &[&s.vote_key, message]))
    }
    fn verify_vote(&self, seat: u16, message: &[u8], vote: &[u8; 48]) -> bool {
        self.record.seat(seat).is_some_and(|s| MockScheme::verify_vote(&s.vote_key, message, vote))
    }
    fn aggregate(&self, votes: &[[u8; 48]]) -> Option<[u8; 48]> {
        let mut sum = [0; 48];
        votes.iter().for_each(|vote| add(&mut sum, vote));
        (!votes.is_empty()).then_some(sum)
    }
    fn verify_aggregate(&self, seats: &[u16], message: &[u8], aggregate: &[u8; 48]) -> bool {
        let keys: Option<Vec<_>> = seats.iter().map(|s| self.record.seat(*s).map(|s| &s.vote_key)).collect();
        keys.is_some_and(|keys| MockScheme::verify_aggregate(&keys, message, aggregate))
    }
    fn sign(&self, digest: &Digest) -> [u8; 65] {
        self.record.seat(self.seat).map_or([0; 65], |s| hash(SIGN, &[&s.evidence_key, digest]))
    }
    fn verify(&self, digest: &Digest, signature: &[u8; 65], key: &[u8; 33]) -> bool {
        MockScheme::verify_signature(digest, signature, key)
    }
}

/// A home's stand-in for a key.
#[derive(Debug, Clone)]
pub struct MockUser(pub [u8; 33]);

impl UserCrypto for MockUser {
    type Scheme = MockScheme;

    fn public_key(&self) -> [u8; 33] {
        self.0
    }
    fn sign(&self, digest: &Digest) -> [u8; 65] {
        hash(SIGN, &[&self.0, digest])
    }
    fn seal(
        &self,
        id: &RoundId,
        seal_key: &[u8; 48],
        header: &[u8],
        payload: &[u8],
    ) -> Result<Sealed, CryptoError> {
        Ok(seal(&combined_of(id, seal_key), header, payload))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::keys::{Keys, MockKeys, spec};
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    fn seats(n: u16) -> Vec<MockCrypto> {
        let keys = MockKeys::deal(&spec(n, crate::clock()), &mut ChaCha20Rng::seed_from_u64(1)).unwrap();
        (0..n).map(|seat| keys.seat(seat).unwrap()).collect()
    }

    #[test]
    fn what_the_key_did_not_make_for_the_message_does_not_verify() {
        let seats = seats(4);
        let key = seats[0].record.seats[0].evidence_key;
        let signature = seats[0].sign(&[1; 32]);
        assert!(seats[1].verify(&[1; 32], &signature, &key));
        assert!(!seats[1].verify(&[2; 32], &signature, &key));
        assert!(!seats[1].verify(&[1; 32], &seats[2].sign(&[1; 32]), &key));
        let votes: Vec<_> = seats.iter().map(|s| s.vote(b"x")).collect();
        assert!(seats[0].verify_vote(3, b"x", &votes[3]) && !seats[0].verify_vote(2, b"x", &votes[3]));
        let all = seats[0].aggregate(&votes).unwrap();
        assert!(seats[0].verify_aggregate(&[0, 1, 2, 3], b"x", &all));
        assert!(!seats[0].verify_aggregate(&[0, 1, 2], b"x", &all));
        assert!(!seats[0].verify_aggregate(&[0, 1, 2, 3], b"y", &all));
    }

    #[test]
    fn a_quorum_of_shares_opens_its_round_and_header_only() {
        let seats = seats(4);
        let shares: Vec<_> = (0u16..).zip(seats.iter().map(|s| s.share(5))).collect();
        let opened = seats[0].combine(5, &shares[1..]).unwrap();
        assert_eq!(seats[0].combine(5, &shares[..3]).unwrap(), opened);
        assert!(matches!(seats[0].combine(5, &shares[..2]), Err(CryptoError::TooFewShares { found: 2, .. })));
        let sealed = seats[2].seal(5, b"header", b"payload").unwrap();
        assert_eq!(seats[0].open(&opened, b"header", &sealed).unwrap(), b"payload");
        assert_eq!(seats[0].open(&opened, b"other", &sealed), None);
        for change in 0..3 {
            let mut mauled = sealed.clone();
            match change {
                0 => mauled.u[0] ^= 1,
                1 => mauled.v[0] ^= 1,
                _ => mauled.payload[0] ^= 1,
            }
            assert_eq!(seats[0].open(&opened, b"header", &mauled), None);
        }
        let of_6: Vec<_> = (0u16..).zip(seats.iter().map(|s| s.share(6))).collect();
        let other = seats[0].combine(6, &of_6).unwrap();
        assert_eq!(seats[0].open(&other, b"header", &sealed), None);
    }

    #[test]
    fn bad_shares_are_named_unless_their_errors_cancel() {
        let seats = seats(7);
        let mut shares: Vec<_> = (0u16..).zip(seats.iter().map(|s| s.share(5))).collect();
        let good = seats[0].combine(5, &shares).unwrap();
        shares[1].1[0] ^= 7;
        assert_eq!(seats[0].combine(5, &shares), Err(CryptoError::BadShares(vec![1])));
        shares[2].1[0] ^= 7;
        assert_eq!(seats[0].combine(5, &shares), Ok(good));
    }
}
