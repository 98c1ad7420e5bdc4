//! What a key generation is about: of which market, what for, and when.
//!
//! Inputs: the market record, the purpose, a start. Outputs: the record of the market in which the attempts are rounds,
//! with a clock of its own, and the setup of the dealings. Invariant: two generations that differ in anything have
//! different market ids, and none has that of an auction, so nothing that is signed in one means anything in another.

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
/// Attempts after which a generation is given up; the old epoch goes on.
pub(super) const MAX_ATTEMPTS: u64 = 64;

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
}

/// The terms of one generation.
#[derive(Clone)]
pub struct Terms {
    start_ms: u64,
    record: Arc<MarketRecord>,
    setup: Arc<Setup>,
}

impl Terms {
    /// For the epoch after that of `record`: a new key, or new shares of the old one.
    pub fn new(record: &MarketRecord, purpose: Purpose, start_ms: u64) -> Result<Self, TermsError> {
        if let Purpose::Refresh(keys) = &purpose {
            let same = record.seal_key == *keys.seal_key()
                && record.seats.iter().map(|s| &s.seal_share_key).eq(keys.share_keys());
            if !same {
                return Err(TermsError::NotTheKey);
            }
        }
        let refresh = matches!(purpose, Purpose::Refresh(_));
        let derived = derive(record, refresh, start_ms)?;
        let setup = Setup::new(purpose, &derived.market, record.n())?;
        Ok(Self { start_ms, record: Arc::new(derived), setup: Arc::new(setup) })
    }

    /// When seats announce their keys.
    pub fn start_ms(&self) -> u64 {
        self.start_ms
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
        self.record.params.expiry(MAX_ATTEMPTS - 1)
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
    /// The attempt that it is time for.
    pub(super) fn attempt(&self, now_ms: u64) -> Option<u64> {
        let params = &self.record.params;
        let attempt = params.round_at(now_ms);
        (now_ms >= params.genesis_ms && attempt < MAX_ATTEMPTS).then_some(attempt)
    }
    /// The attempt that begins next.
    pub(super) fn next_attempt(&self, now_ms: u64) -> Option<u64> {
        let params = &self.record.params;
        let next = if now_ms < params.genesis_ms { 0 } else { params.round_at(now_ms) + 1 };
        (next < MAX_ATTEMPTS).then_some(next)
    }
}

/// The record of the market in which the keys of the epoch after that of `record` are agreed on: the same seats, another
/// id and epoch, a clock that starts with the generation.
pub(super) fn derive(
    record: &MarketRecord,
    refresh: bool,
    start_ms: u64,
) -> Result<MarketRecord, TermsError> {
    let d = record.params.delay_ms;
    let params = Params {
        delay_ms: d,
        period_ms: d.saturating_mul(PERIOD),
        genesis_ms: start_ms.saturating_add(d.saturating_mul(AGREES)),
        handover_ms: d.saturating_mul(AFTER),
    };
    params.check()?;
    let epoch = record.epoch.checked_add(1).ok_or(TermsError::LastEpoch(record.epoch))?;
    let parts: [&[u8]; 3] = [&record.digest(), &[u8::from(refresh)], &start_ms.to_be_bytes()];
    let market = tagged_hash("VENDUE-V1-KEYS", &parts);
    Ok(MarketRecord { market, epoch, params, homes: vec![], ..record.clone() })
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
