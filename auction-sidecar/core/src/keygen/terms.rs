//! What a key generation is about: of which market, what for, and when.
//!
//! Inputs: the market record, the purpose, a start, the notice. Outputs: the record of the market in which the attempts are
//! rounds, with a clock of its own, the setup of the dealings, and the first round of the next epoch. Invariants: two
//! generations that differ in anything have different market ids, and none has that of an auction, so nothing that is signed
//! in one means anything in another; the first round is known before the start and is the same whichever attempt makes the
//! key; keys are made in the first half of the notice.

use crate::evidence::{EvidenceError, EvidenceKey, tweaked};
use crate::params::{ParamError, Params};
use crate::record::MarketRecord;
use std::sync::Arc;
use vendue_market::{Digest, tagged_hash};
use vendue_sealed_bid::dkg::{DkgError, KeySet, Purpose, Setup};

/// Delays from the start until seats deal whatever keys they know.
const DEALS: u64 = 2;
/// Delays from the start until seats acknowledge whatever they hold.
const ACKNOWLEDGES: u64 = 5;
/// Delays from the start until the first attempt.
const AGREES: u64 = 8;
/// Delays of an attempt: voting takes 40, the rest is for fetching what was agreed.
const PERIOD: u64 = 48;
/// Delays after voting has stopped.
const AFTER: u64 = 6;
/// Attempts after which a generation is given up at the latest; the old epoch goes on.
const MAX_ATTEMPTS: u64 = 64;
/// Shortest notice: the time from the start of a generation to the first round with its keys.
pub const LEAST_NOTICE_MS: u64 = 120_000;
/// Notice where operators agree on no other: enough to sign the record and to bring it to all clusters.
pub const DEFAULT_NOTICE_MS: u64 = 3_600_000;
/// Longest notice, 30 days.
const MOST_NOTICE_MS: u64 = 30 * 86_400_000;

/// Why there can be no such generation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TermsError {
    /// The market's delay is too long for it, or the start is no time.
    #[error("clock of the key generation: {0}")]
    Clock(#[from] ParamError),
    /// The seats cannot make or renew such a key.
    #[error("key generation: {0}")]
    Setup(#[from] DkgError),
    /// The key to be renewed is not the epoch's.
    #[error("the key that is to be renewed is not that of the market record")]
    NotTheKey,
    /// There are no more epochs.
    #[error("epoch {0} is the last")]
    LastEpoch(u32),
    /// The first round would be too soon or too far off.
    #[error(
        "the notice is {} s; accepted: {} to {} s from the start to the first round with the keys (they are made in its first \
        half, which must have room for 2f + 1 attempts)",
        value_ms / 1000, least_ms.div_ceil(1000), most_ms / 1000
    )]
    Notice {
        /// The notice.
        value_ms: u64,
        /// The least accepted one.
        least_ms: u64,
        /// The longest accepted one.
        most_ms: u64,
    },
    /// The next epoch would begin before the present one.
    #[error(
        "the next epoch would begin with round {first}, the present one begins with round {present}; take a later start"
    )]
    BeforeThis {
        /// The first round of the next epoch.
        first: u64,
        /// That of the present one.
        present: u64,
    },
}

/// The terms of one generation.
#[derive(Clone)]
pub struct Terms {
    start_ms: u64,
    notice_ms: u64,
    first_round: u64,
    attempts: u64,
    record: Arc<MarketRecord>,
    setup: Arc<Setup>,
}

impl Terms {
    /// For the epoch after that of `record`: a new key, or new shares of the old one. The seats begin at `start_ms`, and the first
    /// round with the keys is the first that begins `notice_ms` after that.
    pub fn new(
        record: &MarketRecord,
        purpose: Purpose,
        start_ms: u64,
        notice_ms: u64,
    ) -> Result<Self, TermsError> {
        if let Purpose::Refresh(keys) = &purpose {
            let same = record.seal_key == *keys.seal_key()
                && record.seats.iter().map(|s| &s.seal_share_key).eq(keys.share_keys());
            if !same {
                return Err(TermsError::NotTheKey);
            }
        }
        let refresh = matches!(purpose, Purpose::Refresh(_));
        let Derived { record: derived, first_round, attempts } =
            derive(record, refresh, start_ms, notice_ms)?;
        let setup = Arc::new(Setup::new(purpose, &derived.market, record.n())?);
        Ok(Self { start_ms, notice_ms, first_round, attempts, record: Arc::new(derived), setup })
    }

    /// When seats announce their keys.
    pub fn start_ms(&self) -> u64 {
        self.start_ms
    }
    /// From the start to the first round with the keys.
    pub fn notice_ms(&self) -> u64 {
        self.notice_ms
    }
    /// The first round with the keys.
    pub fn first_round(&self) -> u64 {
        self.first_round
    }
    /// Attempts after which the generation is given up.
    pub fn attempts(&self) -> u64 {
        self.attempts
    }
    /// The record of the market in which the attempts are rounds.
    pub fn record(&self) -> &Arc<MarketRecord> {
        &self.record
    }
    /// The setup of the dealings.
    pub fn setup(&self) -> &Arc<Setup> {
        &self.setup
    }

    /// The public key with which a seat is known on the network of this generation. It follows from the evidence key, and is no
    /// key of the running market: whoever makes keys is a stranger there, and the other way round.
    pub fn link_key(&self, seat: u16) -> Result<[u8; 33], EvidenceError> {
        let key = &self.record.seat(seat).ok_or(EvidenceError::Public)?.evidence_key;
        tweaked(key, &self.link_tweak(key))
    }
    /// The secret key of [`Terms::link_key`].
    pub fn link_secret(&self, evidence: &EvidenceKey) -> Result<EvidenceKey, EvidenceError> {
        evidence.tweaked(&self.link_tweak(&evidence.public_key()))
    }
    fn link_tweak(&self, key: &[u8; 33]) -> Digest {
        tagged_hash("VENDUE-V1-KEYS-LINK", &[&self.record.market, key])
    }

    /// When the last attempt is over: a generation without a key by then makes none.
    pub fn ends_ms(&self) -> u64 {
        self.record.params.expiry(self.attempts.saturating_sub(1))
    }

    fn after(&self, delays: u64) -> u64 {
        self.start_ms.saturating_add(delays * self.record.params.delay_ms)
    }
    pub(super) fn deals_ms(&self) -> u64 {
        self.after(DEALS)
    }
    pub(super) fn acknowledges_ms(&self) -> u64 {
        self.after(ACKNOWLEDGES)
    }
    /// The last attempt that has begun.
    pub(super) fn begun(&self, now_ms: u64) -> Option<u64> {
        let params = &self.record.params;
        (now_ms >= params.genesis_ms).then(|| params.round_at(now_ms).min(self.attempts.saturating_sub(1)))
    }
    /// The attempt that it is time for.
    pub(super) fn attempt(&self, now_ms: u64) -> Option<u64> {
        let params = &self.record.params;
        let attempt = params.round_at(now_ms);
        (now_ms >= params.genesis_ms && attempt < self.attempts).then_some(attempt)
    }
    /// The attempt that begins next.
    pub(super) fn next_attempt(&self, now_ms: u64) -> Option<u64> {
        let params = &self.record.params;
        let next = if now_ms < params.genesis_ms { 0 } else { params.round_at(now_ms) + 1 };
        (next < self.attempts).then_some(next)
    }
}

/// What follows from record, purpose, start and notice.
pub(super) struct Derived {
    /// The record of the market in which the keys are agreed on: the same seats, another id and epoch, a clock that starts with
    /// the generation.
    pub(super) record: MarketRecord,
    /// The first round with the keys.
    pub(super) first_round: u64,
    /// Attempts that there is time for.
    pub(super) attempts: u64,
}

pub(super) fn derive(
    record: &MarketRecord,
    refresh: bool,
    start_ms: u64,
    notice_ms: u64,
) -> Result<Derived, TermsError> {
    let d = record.params.delay_ms;
    let params = Params {
        delay_ms: d,
        period_ms: d.saturating_mul(PERIOD),
        genesis_ms: start_ms.saturating_add(d.saturating_mul(AGREES)),
        handover_ms: d.saturating_mul(AFTER),
    };
    params.check()?;
    let attempts = attempts(&params, record.f(), start_ms, notice_ms)?;
    let first_round = record.params.round_from(start_ms.saturating_add(notice_ms));
    let present = record.generation.as_ref().map_or(0, |made| made.first_round);
    if first_round < present {
        return Err(TermsError::BeforeThis { first: first_round, present });
    }
    let epoch = record.epoch.checked_add(1).ok_or(TermsError::LastEpoch(record.epoch))?;
    let times = [start_ms, notice_ms].map(u64::to_be_bytes);
    let parts: [&[u8]; 3] = [&record.digest(), &[u8::from(refresh)], times.as_flattened()];
    let market = tagged_hash("VENDUE-V1-KEYS", &parts);
    let record = MarketRecord { market, epoch, params, homes: vec![], ..record.clone() };
    Ok(Derived { record, first_round, attempts })
}

/// Attempts that the first half of the notice has room for. The other half is left to sign the record and to bring it to all
/// clusters. Each of f faulty seats can spoil two attempts, so fewer than 2f + 1 are no promise of a key.
fn attempts(params: &Params, f: u16, start_ms: u64, notice_ms: u64) -> Result<u64, TermsError> {
    let needed = params.expiry((2 * u64::from(f)).min(MAX_ATTEMPTS - 1)).saturating_sub(start_ms);
    let least_ms = LEAST_NOTICE_MS.max(needed.saturating_mul(2));
    let most_ms = MOST_NOTICE_MS.max(least_ms);
    if !(least_ms..=most_ms).contains(&notice_ms) {
        return Err(TermsError::Notice { value_ms: notice_ms, least_ms, most_ms });
    }
    let half = start_ms.saturating_add(notice_ms / 2);
    let after_the_first = half.saturating_sub(params.expiry(0));
    Ok((after_the_first / params.period_ms).saturating_add(1).min(MAX_ATTEMPTS))
}

/// What seats vote for: the contributions that were agreed on, and the public keys that follow from them.
pub(super) fn root(set: &Digest, keys: &KeySet) -> Digest {
    key_root(set, keys.seal_key(), keys.share_keys())
}

pub(super) fn key_root<'k>(
    set: &Digest,
    seal_key: &[u8; 48],
    share_keys: impl IntoIterator<Item = &'k [u8; 48]>,
) -> Digest {
    let shares: Vec<u8> = share_keys.into_iter().flatten().copied().collect();
    tagged_hash("VENDUE-V1-KEY", &[set, seal_key, &shares])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keygen::tests::mk_dealt;

    fn terms(record: &MarketRecord, start_ms: u64, notice_ms: u64) -> Result<Terms, TermsError> {
        Terms::new(record, Purpose::Key, start_ms, notice_ms)
    }

    #[test]
    fn the_notice_is_part_of_what_is_agreed() {
        let record = mk_dealt(4).record.record;
        let [one, other] = [1, 2].map(|hours| terms(&record, 1_000, hours * 3_600_000).unwrap());
        assert_ne!(one.record().market, other.record().market);
        assert_ne!(one.link_key(0), other.link_key(0));
        assert_eq!(one.first_round(), record.params.round_from(1_000 + 3_600_000));
    }

    #[test]
    fn a_notice_has_room_for_the_attempts_that_faulty_seats_can_spoil_and_one_more() {
        for (n, delay_ms) in [(4, 100), (7, 20_000), (4, 60_000)] {
            let mut record = mk_dealt(n).record.record;
            record.params.delay_ms = delay_ms;
            let error = terms(&record, 0, 0).err();
            let Some(TermsError::Notice { value_ms: 0, least_ms, most_ms }) = error else {
                panic!("{error:?}")
            };
            assert!(least_ms >= LEAST_NOTICE_MS);
            for outside in [least_ms - 1, most_ms + 1] {
                assert!(matches!(terms(&record, 0, outside), Err(TermsError::Notice { .. })), "{outside}");
            }
            for inside in [least_ms, most_ms] {
                let terms = terms(&record, 0, inside).unwrap();
                assert!(
                    ((2 * u64::from(record.f()) + 1).min(MAX_ATTEMPTS)..=MAX_ATTEMPTS)
                        .contains(&terms.attempts())
                );
                assert!(terms.ends_ms() <= inside / 2, "the second half is the operators'");
            }
        }
    }

    #[test]
    fn the_next_epoch_does_not_begin_before_the_present_one() {
        let dealt = mk_dealt(4);
        let (next, _) = super::super::dealt_next(&dealt.record.record, &dealt.seats, 600_000);
        let present = next.generation.as_ref().unwrap().first_round;
        let early = terms(&next, 300_000, LEAST_NOTICE_MS).err();
        let first = next.params.round_from(300_000 + LEAST_NOTICE_MS);
        assert_eq!(early, Some(TermsError::BeforeThis { first, present }));
        assert!(terms(&next, 600_000, LEAST_NOTICE_MS).is_ok());
    }

    #[test]
    fn who_has_the_evidence_key_has_the_link_key_and_no_other_does() {
        let dealt = mk_dealt(4);
        let terms = terms(&dealt.record.record, 0, LEAST_NOTICE_MS).unwrap();
        for keys in &dealt.seats {
            let key = terms.link_secret(&keys.evidence).unwrap().public_key();
            assert_eq!(terms.link_key(keys.seat), Ok(key));
            assert_ne!(key, keys.evidence.public_key());
        }
        assert_eq!(terms.link_key(4), Err(EvidenceError::Public));
    }
}
