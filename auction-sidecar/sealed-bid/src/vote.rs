//! Votes: BLS signatures in G1 that aggregate, with proofs of possession against rogue keys.
//!
//! The scheme is draft-irtf-cfrg-bls-signature, minimal-signature-size, proof of possession (Boneh, Lynn and Shacham
//! 2001; Boldyreva 2003; Ristenpart and Yilek, "The Power of Proofs-of-Possession", 2007), with domains of its own.
//! A key that is made from other keys so that the sum is known cannot be proven, and a proof counts for one market,
//! epoch, seat and address only.
//!
//! Inputs: messages, keys and votes as bytes. Output: whether a quorum of seats signed. Invariant: an aggregate
//! counts a seat once, and only seats whose key the caller has checked with [`check_vote_key`] before.

use crate::{CryptoError, POSSESSION_DOMAIN, SignerSet, VOTE_DOMAIN};
use blst::{BLST_ERROR, min_sig};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

/// What a proof of possession holds for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PossessionContext<'a> {
    /// The market.
    pub market: [u8; 32],
    /// Key epoch.
    pub epoch: u32,
    /// The seat.
    pub seat: u16,
    /// The seat's address: what others reach it by.
    pub address: &'a str,
}

impl PossessionContext<'_> {
    /// The context's bytes: market, epoch, seat, then length (32 bits) and bytes of the address; big-endian.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = self.market.to_vec();
        out.extend(self.epoch.to_be_bytes());
        out.extend(self.seat.to_be_bytes());
        out.extend((self.address.len() as u32).to_be_bytes());
        out.extend(self.address.as_bytes());
        out
    }
}

/// A seat's secret vote key; wiped when dropped.
pub struct VoteKey(min_sig::SecretKey);

impl VoteKey {
    /// Derives a key from 32 random bytes.
    pub fn generate(seed: &[u8; 32]) -> Result<Self, CryptoError> {
        min_sig::SecretKey::key_gen(seed, b"VENDUE-V1-VOTE")
            .map(Self)
            .map_err(|_| CryptoError::Secret("vote key"))
    }
    /// From 32 big-endian bytes.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, CryptoError> {
        min_sig::SecretKey::from_bytes(bytes).map(Self).map_err(|_| CryptoError::Secret("vote key"))
    }
    /// As 32 big-endian bytes, to be stored as a secret.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        let mut bytes = self.0.to_bytes();
        let out = Zeroizing::new(bytes);
        bytes.zeroize();
        out
    }
    /// Whether two keys are the same, in constant time.
    pub fn same_as(&self, other: &Self) -> bool {
        self.to_bytes().ct_eq(other.to_bytes().as_slice()).into()
    }
    /// The public key.
    pub fn public_key(&self) -> [u8; 96] {
        self.0.sk_to_pk().to_bytes()
    }
    /// Signs a vote.
    pub fn sign(&self, message: &[u8]) -> [u8; 48] {
        self.sign_in(VOTE_DOMAIN, message)
    }
    /// Signs a message of another domain.
    pub(crate) fn sign_in(&self, domain: &[u8], message: &[u8]) -> [u8; 48] {
        self.0.sign(message, domain, &[]).to_bytes()
    }
    /// Proves possession of the secret for a context: market, epoch, seat.
    pub fn prove(&self, context: &[u8]) -> [u8; 48] {
        self.sign_in(POSSESSION_DOMAIN, &possession_message(&self.public_key(), context))
    }
}

fn possession_message(key: &[u8; 96], context: &[u8]) -> Vec<u8> {
    [key.as_slice(), context].concat()
}

pub(crate) fn public_key(bytes: &[u8; 96]) -> Option<min_sig::PublicKey> {
    min_sig::PublicKey::key_validate(bytes).ok()
}

pub(crate) fn signature(bytes: &[u8; 48]) -> Option<min_sig::Signature> {
    min_sig::Signature::sig_validate(bytes, true).ok()
}

/// Checks a vote key and its proof of possession.
pub fn check_vote_key(key: &[u8; 96], proof: &[u8; 48], context: &[u8]) -> Result<(), CryptoError> {
    let pk = public_key(key).ok_or(CryptoError::Point("vote key"))?;
    let sig = signature(proof).ok_or(CryptoError::Point("proof of possession"))?;
    match sig.verify(false, &possession_message(key, context), POSSESSION_DOMAIN, &[], &pk, false) {
        BLST_ERROR::BLST_SUCCESS => Ok(()),
        _ => Err(CryptoError::Possession),
    }
}

/// Whether one vote is valid.
pub fn verify_vote(key: &[u8; 96], message: &[u8], vote: &[u8; 48]) -> bool {
    verify_in(VOTE_DOMAIN, key, message, vote)
}

/// Whether one signature of a domain is valid.
pub(crate) fn verify_in(domain: &[u8], key: &[u8; 96], message: &[u8], signed: &[u8; 48]) -> bool {
    let (Some(pk), Some(sig)) = (public_key(key), signature(signed)) else { return false };
    sig.verify(false, message, domain, &[], &pk, false) == BLST_ERROR::BLST_SUCCESS
}

/// Aggregates votes on one message; `None` when empty or when one is not a valid point.
pub fn aggregate_votes(votes: &[[u8; 48]]) -> Option<[u8; 48]> {
    let signatures: Vec<_> = votes.iter().map(signature).collect::<Option<_>>()?;
    let refs: Vec<_> = signatures.iter().collect();
    let aggregate = min_sig::AggregateSignature::aggregate(&refs, false).ok()?;
    Some(aggregate.to_signature().to_bytes())
}

/// Whether an aggregate is the vote of exactly these keys on one message. The keys must have proven possession.
pub fn verify_aggregate(keys: &[&[u8; 96]], message: &[u8], aggregate: &[u8; 48]) -> bool {
    verify_aggregate_in(VOTE_DOMAIN, keys, message, aggregate)
}

/// [`verify_aggregate`] for a domain.
pub(crate) fn verify_aggregate_in(
    domain: &[u8],
    keys: &[&[u8; 96]],
    message: &[u8],
    aggregate: &[u8; 48],
) -> bool {
    let Some(keys) = keys.iter().map(|k| public_key(k)).collect::<Option<Vec<_>>>() else { return false };
    let Some(sig) = signature(aggregate) else { return false };
    let refs: Vec<_> = keys.iter().collect();
    !refs.is_empty() && sig.fast_aggregate_verify(false, message, domain, &refs) == BLST_ERROR::BLST_SUCCESS
}

/// Votes of several seats on one message: who signed, and the sum of their signatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MultiVote {
    /// The seats that signed.
    pub signers: SignerSet,
    /// The aggregate of their votes, compressed G1.
    pub aggregate: [u8; 48],
}

impl MultiVote {
    /// Aggregates the votes of distinct seats of a market of `seats` seats. The votes have been verified one by one,
    /// or the result is verified.
    pub fn new(seats: u16, votes: &[(u16, [u8; 48])]) -> Result<Self, CryptoError> {
        let signers = SignerSet::from_seats(seats, votes.iter().map(|(seat, _)| *seat))?;
        let votes: Vec<_> = votes.iter().map(|(_, vote)| *vote).collect();
        let aggregate = aggregate_votes(&votes).ok_or(CryptoError::Point("vote"))?;
        Ok(Self { signers, aggregate })
    }

    /// Bitmap, then aggregate.
    pub fn to_bytes(&self) -> Vec<u8> {
        [self.signers.as_bytes(), &self.aggregate].concat()
    }

    /// Reads the bytes for a market of `seats` seats. The aggregate is checked when it is verified.
    pub fn from_bytes(seats: u16, bytes: &[u8]) -> Result<Self, CryptoError> {
        let (bitmap, aggregate) =
            bytes.split_last_chunk::<48>().ok_or(CryptoError::Signers("bytes are missing"))?;
        Ok(Self { signers: SignerSet::from_bytes(seats, bitmap)?, aggregate: *aggregate })
    }

    /// Checks that at least `quorum` of the seats of `keys` signed `message`.
    pub fn verify(&self, keys: &VoteKeySet, quorum: u16, message: &[u8]) -> Result<(), CryptoError> {
        self.verify_in(VOTE_DOMAIN, keys, quorum, message)
    }

    pub(crate) fn verify_in(
        &self,
        domain: &[u8],
        keys: &VoteKeySet,
        quorum: u16,
        message: &[u8],
    ) -> Result<(), CryptoError> {
        if self.signers.seats() != keys.seats() {
            return Err(CryptoError::Signers("bitmap is of another market's size"));
        }
        let signed: Vec<_> =
            self.signers.iter().filter_map(|seat| keys.points.get(usize::from(seat))).collect();
        let (found, needed) = (signed.len(), usize::from(quorum));
        if found < needed || found == 0 {
            return Err(CryptoError::TooFewVotes { found, needed });
        }
        let aggregate = signature(&self.aggregate).ok_or(CryptoError::Point("aggregate of votes"))?;
        match aggregate.fast_aggregate_verify(false, message, domain, &signed) {
            BLST_ERROR::BLST_SUCCESS => Ok(()),
            _ => Err(CryptoError::Votes),
        }
    }
}

/// A seat's vote key as it claims it.
#[derive(Debug, Clone, Copy)]
pub struct VoteKeyClaim<'a> {
    /// The key, compressed G2.
    pub key: [u8; 96],
    /// Its proof of possession.
    pub proof: [u8; 48],
    /// The seat's address.
    pub address: &'a str,
}

/// The vote keys of all seats of a market, by seat: each proven for its market, epoch, seat and address, no two the
/// same. Whoever has one may count aggregates.
#[derive(Clone)]
pub struct VoteKeySet {
    pub(crate) points: Vec<min_sig::PublicKey>,
    pub(crate) keys: Vec<[u8; 96]>,
}

impl VoteKeySet {
    /// Checks the claims of seats 0, 1, 2, ...
    pub fn new(market: &[u8; 32], epoch: u32, claims: &[VoteKeyClaim<'_>]) -> Result<Self, CryptoError> {
        let mut set = Self { points: Vec::new(), keys: Vec::new() };
        if claims.len() > usize::from(u16::MAX) {
            return Err(CryptoError::Signers("there are too many seats"));
        }
        for (seat, VoteKeyClaim { key, proof, address }) in (0u16..).zip(claims) {
            let context = PossessionContext { market: *market, epoch, seat, address };
            check_vote_key(key, proof, &context.to_bytes())?;
            if set.keys.contains(key) {
                return Err(CryptoError::Signers("two seats have one key"));
            }
            set.points.push(public_key(key).ok_or(CryptoError::Point("vote key"))?);
            set.keys.push(*key);
        }
        Ok(set)
    }

    /// How many seats there are.
    pub fn seats(&self) -> u16 {
        self.keys.len() as u16
    }
    /// The keys by seat.
    pub fn iter(&self) -> impl Iterator<Item = &[u8; 96]> {
        self.keys.iter()
    }
    /// Whether one signature of a seat is valid in a domain.
    pub(crate) fn verify_in(&self, domain: &[u8], seat: u16, message: &[u8], signed: &[u8; 48]) -> bool {
        let (Some(key), Some(sig)) = (self.points.get(usize::from(seat)), signature(signed)) else {
            return false;
        };
        sig.verify(false, message, domain, &[], key, false) == BLST_ERROR::BLST_SUCCESS
    }
    /// A seat's key.
    pub fn key(&self, seat: u16) -> Option<&[u8; 96]> {
        self.keys.get(usize::from(seat))
    }
}
