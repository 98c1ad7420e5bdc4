//! The change of epoch: the market record that follows from the old one and a certified key.
//!
//! Inputs: the old record, what was generated. Output: the next record, which carries what shows that the seats made its
//! keys; anybody can check it against the old one, offline. Invariants: nothing but epoch, keys and their origin changes;
//! the next epoch begins with the round that was agreed on with start and notice, and at least half of the notice after the
//! keys were made.

use super::terms::{Terms, TermsError, derive, key_root};
use crate::award::{Certificate, CertificateFile};
use crate::record::{KeyOrigin, MarketRecord, RecordError};
use crate::verify::{self, VerifyError};
use serde::{Deserialize, Serialize};
use vendue_market::Digest;
use vendue_market::encode::hex_array;
use vendue_sealed_bid::dkg::KeySet;

/// How the seats made the keys of an epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// When the generation started.
    pub start_ms: u64,
    /// How long after that the first round with these keys is, at least.
    pub notice_ms: u64,
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
    /// The key was certified when there was no time left for it.
    #[error("the keys are of attempt {attempt}; the notice has room for attempts 0 to {last}")]
    Late {
        /// The attempt.
        attempt: u64,
        /// The last one that there is time for.
        last: u64,
    },
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

/// The record of the next epoch.
pub fn next_record(
    old: &MarketRecord,
    terms: &Terms,
    set: Digest,
    keys: &KeySet,
    certificate: &Certificate,
) -> Result<MarketRecord, EpochError> {
    let made = Generation {
        start_ms: terms.start_ms(),
        notice_ms: terms.notice_ms(),
        refresh: *keys.seal_key() == old.seal_key,
        proofs_epoch: old.proofs_epoch(),
        first_round: terms.first_round(),
        set,
        certificate: CertificateFile::from(certificate),
    };
    let next = follow(old, made, keys.seal_key(), keys.share_keys())?;
    check_next(old, &next)?;
    Ok(next)
}

fn follow(
    old: &MarketRecord,
    made: Generation,
    seal_key: &[u8; 48],
    share_keys: &[[u8; 48]],
) -> Result<MarketRecord, EpochError> {
    let epoch = old.epoch.checked_add(1).ok_or(TermsError::LastEpoch(old.epoch))?;
    let mut next = MarketRecord { epoch, seal_key: *seal_key, ..old.clone() };
    next.key_origin = KeyOrigin::Distributed;
    next.seats.iter_mut().zip(share_keys).for_each(|(seat, key)| seat.seal_share_key = *key);
    next.generation = Some(made);
    Ok(next)
}

/// Checks that `next` is the record that follows `old`: with the keys that a quorum of the old record's seats certifies.
pub fn check_next(old: &MarketRecord, next: &MarketRecord) -> Result<(), EpochError> {
    let Some(made) = &next.generation else { return Err(EpochError::NotGenerated) };
    let derived = derive(old, made.refresh, made.start_ms, made.notice_ms)?;
    let certificate = made.certificate.certificate(old.n()).map_err(|e| EpochError::Parse(e.to_string()))?;
    verify::certificate(&derived.record, &certificate)?;
    if certificate.round >= derived.attempts {
        let last = derived.attempts.saturating_sub(1);
        return Err(EpochError::Late { attempt: certificate.round, last });
    }
    let share_keys: Vec<[u8; 48]> = next.seats.iter().map(|seat| seat.seal_share_key).collect();
    if certificate.root != key_root(&made.set, &next.seal_key, &share_keys) {
        return Err(EpochError::OtherKeys);
    }
    let expected = Generation {
        proofs_epoch: old.proofs_epoch(),
        first_round: derived.first_round,
        certificate: CertificateFile::from(&certificate),
        ..made.clone()
    };
    let expected = follow(old, expected, &next.seal_key, &share_keys)?;
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
    let (next, shares) = tests::dealt_in(0, old, seats, start_ms);
    check_next(old, &next).unwrap();
    (next, shares)
}

#[cfg(test)]
mod tests {
    use super::super::LEAST_NOTICE_MS;
    use super::*;
    use crate::keygen::tests::mk_dealt;
    use crate::keys::SeatKeys;
    use crate::wire::{Quorum, Signers, VoteWord, vote_bytes};
    use rand_chacha::rand_core::SeedableRng;
    use vendue_sealed_bid::SealShare;
    use vendue_sealed_bid::dkg::Purpose;

    /// The keys are those of this attempt.
    pub(super) fn dealt_in(
        attempt: u64,
        old: &MarketRecord,
        seats: &[SeatKeys],
        start_ms: u64,
    ) -> (MarketRecord, Vec<SealShare>) {
        let mut rng = rand_chacha::ChaCha20Rng::seed_from_u64(start_ms);
        let dealt = vendue_sealed_bid::deal(old.n(), old.q(), &mut rng).unwrap();
        let (set, notice_ms) = ([3; 32], LEAST_NOTICE_MS);
        let terms = Terms::new(old, Purpose::Key, start_ms, notice_ms).unwrap();
        let (market, epoch) = (terms.record().market, terms.record().epoch);
        let root = key_root(&set, &dealt.seal_key, &dealt.verification_keys);
        let message = vote_bytes(VoteWord::Award, &market, epoch, attempt, 0, &root);
        let votes: Vec<_> = seats.iter().map(|keys| keys.vote.sign(&message)).collect();
        let aggregate = vendue_sealed_bid::aggregate_votes(&votes).unwrap();
        let quorum = Quorum { signers: Signers::all(old.n()), aggregate };
        let certificate = CertificateFile::from(&Certificate { market, epoch, round: attempt, root, quorum });
        let (first_round, proofs_epoch) = (terms.first_round(), old.proofs_epoch());
        let made =
            Generation { start_ms, notice_ms, refresh: false, proofs_epoch, first_round, set, certificate };
        (follow(old, made, &dealt.seal_key, &dealt.verification_keys).unwrap(), dealt.shares)
    }

    #[test]
    fn a_key_that_was_certified_too_late_for_the_notice_is_not_the_next_one() {
        let dealt = mk_dealt(4);
        let old = &dealt.record.record;
        let attempts = Terms::new(old, Purpose::Key, 0, LEAST_NOTICE_MS).unwrap().attempts();
        let check = |attempt| check_next(old, &dealt_in(attempt, old, &dealt.seats, 0).0);
        assert_eq!(check(attempts - 1), Ok(()));
        assert_eq!(check(attempts), Err(EpochError::Late { attempt: attempts, last: attempts - 1 }));
    }

    #[test]
    fn whichever_attempt_makes_the_key_the_first_round_is_the_same() {
        let dealt = mk_dealt(4);
        let old = &dealt.record.record;
        let first = |attempt| dealt_in(attempt, old, &dealt.seats, 0).0.generation.unwrap().first_round;
        assert_eq!(first(0), first(3));
        assert_eq!(first(0), old.params.round_from(LEAST_NOTICE_MS));
    }
}
