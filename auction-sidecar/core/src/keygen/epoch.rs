//! The change of epoch: the market record that follows from the old one and a certified key.
//!
//! Inputs: the old record, what was generated. Output: the next record, which carries what shows that the seats made its
//! keys; anybody can check it against the old one, offline. Invariants: nothing but epoch, keys and their origin changes;
//! the next epoch begins with a round at least two minutes after the generation is over.

use super::terms::{TermsError, derive, key_root};
use crate::award::{Certificate, CertificateFile};
use crate::record::{KeyOrigin, MarketRecord, RecordError};
use crate::verify::{self, VerifyError};
use serde::{Deserialize, Serialize};
use vendue_market::Digest;
use vendue_market::encode::hex_array;
use vendue_sealed_bid::dkg::KeySet;

/// Time between the end of a generation and the first round with its keys.
const NOTICE_MS: u64 = 120_000;

/// How the seats made the keys of an epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// When the generation started.
    pub start_ms: u64,
    /// Whether the seal key is that of the epoch before, with new shares.
    pub refresh: bool,
    /// The epoch for which the vote keys were proven.
    pub proofs_epoch: u32,
    /// The first round with these keys.
    pub first_round: u64,
    /// The admitted set of contributions.
    #[serde(with = "hex_array")]
    pub set: Digest,
    /// A quorum's word for set and keys.
    pub certificate: CertificateFile,
}

/// Why a record is not the next one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EpochError {
    /// The record does not say how its keys were made.
    #[error("the record does not say how its keys were generated")]
    NotGenerated,
    /// The certificate has no usable form.
    #[error("certificate of the keys does not parse: {0}")]
    Parse(String),
    /// The generation is impossible.
    #[error(transparent)]
    Terms(#[from] TermsError),
    /// The certificate does not verify.
    #[error("certificate of the keys: {0}")]
    Certificate(#[from] VerifyError),
    /// The certificate is about other keys.
    #[error("the certificate is not about these keys")]
    OtherKeys,
    /// Something else than the keys differs from what follows from the old record.
    #[error("the record is not the one that follows")]
    Differs,
    /// The resulting record is refused.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// The first round of the next epoch: the generation is over, and everybody has had time to learn of it.
fn first_round(old: &MarketRecord, keys: &MarketRecord, attempt: u64) -> u64 {
    old.params.round_from(keys.params.expiry(attempt).saturating_add(NOTICE_MS))
}

/// The record of the next epoch.
pub fn next_record(
    old: &MarketRecord,
    start_ms: u64,
    set: Digest,
    keys: &KeySet,
    certificate: &Certificate,
) -> Result<MarketRecord, EpochError> {
    let refresh = *keys.seal_key() == old.seal_key;
    let next = follow(old, start_ms, refresh, set, certificate, keys.seal_key(), keys.share_keys())?;
    check_next(old, &next)?;
    Ok(next)
}

fn follow(
    old: &MarketRecord,
    start_ms: u64,
    refresh: bool,
    set: Digest,
    certificate: &Certificate,
    seal_key: &[u8; 48],
    share_keys: &[[u8; 48]],
) -> Result<MarketRecord, EpochError> {
    let derived = derive(old, refresh, start_ms)?;
    let mut next = MarketRecord { epoch: derived.epoch, seal_key: *seal_key, ..old.clone() };
    next.key_origin = KeyOrigin::Distributed;
    next.seats.iter_mut().zip(share_keys).for_each(|(seat, key)| seat.seal_share_key = *key);
    next.generation = Some(Generation {
        start_ms,
        refresh,
        proofs_epoch: old.proofs_epoch(),
        first_round: first_round(old, &derived, certificate.round),
        set,
        certificate: CertificateFile::from(certificate),
    });
    Ok(next)
}

/// Checks that `next` is the record that follows `old`: with the keys that a quorum of the old record's seats certifies.
pub fn check_next(old: &MarketRecord, next: &MarketRecord) -> Result<(), EpochError> {
    let Some(made) = &next.generation else { return Err(EpochError::NotGenerated) };
    let derived = derive(old, made.refresh, made.start_ms)?;
    let certificate = made.certificate.certificate(old.n()).map_err(|e| EpochError::Parse(e.to_string()))?;
    verify::certificate(&derived, &certificate)?;
    let share_keys: Vec<[u8; 48]> = next.seats.iter().map(|seat| seat.seal_share_key).collect();
    if certificate.root != key_root(&made.set, &next.seal_key, &share_keys) {
        return Err(EpochError::OtherKeys);
    }
    let expected =
        follow(old, made.start_ms, made.refresh, made.set, &certificate, &next.seal_key, &share_keys)?;
    let same_key = old.seal_key == next.seal_key;
    if expected != *next || same_key != made.refresh {
        return Err(EpochError::Differs);
    }
    Ok(next.validate()?)
}

/// The next record with keys that a dealer made and the seats certify, and the shares: for tests of what comes after a
/// generation.
#[cfg(test)]
pub(crate) fn dealt_next(
    old: &MarketRecord,
    seats: &[crate::keys::SeatKeys],
    start_ms: u64,
) -> (MarketRecord, Vec<vendue_sealed_bid::SealShare>) {
    use crate::wire::{Quorum, Signers, VoteWord, vote_bytes};
    use rand_chacha::rand_core::SeedableRng;
    let mut rng = rand_chacha::ChaCha20Rng::seed_from_u64(start_ms);
    let dealt = vendue_sealed_bid::deal(old.n(), old.q(), &mut rng).unwrap();
    let (set, derived) = ([3; 32], derive(old, false, start_ms).unwrap());
    let root = key_root(&set, &dealt.seal_key, &dealt.verification_keys);
    let message = vote_bytes(VoteWord::Award, &derived.market, derived.epoch, 0, 0, &root);
    let votes: Vec<_> = seats.iter().map(|keys| keys.vote.sign(&message)).collect();
    let aggregate = vendue_sealed_bid::aggregate_votes(&votes).unwrap();
    let quorum = Quorum { signers: Signers::all(old.n()), aggregate };
    let certificate = Certificate { market: derived.market, epoch: derived.epoch, round: 0, root, quorum };
    let (key, keys) = (&dealt.seal_key, &dealt.verification_keys);
    let next = follow(old, start_ms, false, set, &certificate, key, keys).unwrap();
    check_next(old, &next).unwrap();
    (next, dealt.shares)
}
