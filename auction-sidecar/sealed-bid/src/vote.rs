//! Votes: BLS min-sig signatures that aggregate, with proofs of possession against rogue keys.

use crate::{CryptoError, POSSESSION_DOMAIN, VOTE_DOMAIN};
use blst::{BLST_ERROR, min_sig};
use zeroize::{Zeroize, Zeroizing};

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
    /// The public key.
    pub fn public_key(&self) -> [u8; 96] {
        self.0.sk_to_pk().to_bytes()
    }
    /// Signs a vote.
    pub fn sign(&self, message: &[u8]) -> [u8; 48] {
        self.0.sign(message, VOTE_DOMAIN, &[]).to_bytes()
    }
    /// Proves possession of the secret for a context: market, epoch, seat.
    pub fn prove(&self, context: &[u8]) -> [u8; 48] {
        self.0.sign(&possession_message(&self.public_key(), context), POSSESSION_DOMAIN, &[]).to_bytes()
    }
}

fn possession_message(key: &[u8; 96], context: &[u8]) -> Vec<u8> {
    [key.as_slice(), context].concat()
}

fn public_key(bytes: &[u8; 96]) -> Option<min_sig::PublicKey> {
    min_sig::PublicKey::key_validate(bytes).ok()
}

fn signature(bytes: &[u8; 48]) -> Option<min_sig::Signature> {
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
    let (Some(pk), Some(sig)) = (public_key(key), signature(vote)) else { return false };
    sig.verify(false, message, VOTE_DOMAIN, &[], &pk, false) == BLST_ERROR::BLST_SUCCESS
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
    let Some(keys) = keys.iter().map(|k| public_key(k)).collect::<Option<Vec<_>>>() else { return false };
    let Some(sig) = signature(aggregate) else { return false };
    let refs: Vec<_> = keys.iter().collect();
    !refs.is_empty()
        && sig.fast_aggregate_verify(false, message, VOTE_DOMAIN, &refs) == BLST_ERROR::BLST_SUCCESS
}
