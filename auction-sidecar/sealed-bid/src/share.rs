//! Seal shares: each seat's part of a round's signature, and their combination.
//!
//! The combination is optimistic: any quorum of shares is combined unverified and the one result is checked; only
//! when that fails is each share checked and the bad ones named.

use crate::raw::{G1, G1Sum, G2, Scalar};
use crate::{CryptoError, SEAL_DOMAIN};
use blst::min_pk;
use zeroize::Zeroizing;

/// What shares sign: the round of an epoch of a market. The seal key signs nothing else, ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoundId {
    /// The market.
    pub market: [u8; 32],
    /// Key epoch.
    pub epoch: u32,
    /// The round.
    pub round: u64,
}

impl RoundId {
    /// The identity's bytes.
    pub fn to_bytes(&self) -> [u8; 44] {
        let mut out = [0; 44];
        let parts = self.market.iter().chain(&self.epoch.to_be_bytes()).copied().collect::<Vec<_>>();
        for (to, from) in out.iter_mut().zip(parts.into_iter().chain(self.round.to_be_bytes())) {
            *to = from;
        }
        out
    }
    pub(crate) fn point(&self) -> G2 {
        G2::hash(&self.to_bytes(), SEAL_DOMAIN)
    }
}

/// A seat's secret share of the seal key; wiped when dropped.
pub struct SealShare(Scalar);

impl SealShare {
    /// From 32 big-endian bytes.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, CryptoError> {
        Scalar::from_bendian(bytes).map(Self).ok_or(CryptoError::Secret("seal share"))
    }
    /// As 32 big-endian bytes, to be stored as a secret.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        self.0.to_bendian()
    }
    /// The key that verifies this share's signatures.
    pub fn verification_key(&self) -> Result<[u8; 48], CryptoError> {
        G1::generator_mul(&self.0).map(G1::to_bytes).ok_or(CryptoError::Secret("seal share"))
    }
    /// The seat's share of a round's signature.
    pub fn sign(&self, id: &RoundId) -> [u8; 96] {
        id.point().mul_to_bytes(&self.0)
    }
}

/// A round's combined signature, verified. It opens the round and is its beacon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Combined {
    pub(crate) bytes: [u8; 96],
}

impl Combined {
    /// The signature's bytes.
    pub fn to_bytes(&self) -> [u8; 96] {
        self.bytes
    }
}

/// Whether bytes are an acceptable seal key or verification key of a share.
pub fn check_seal_key(key: &[u8; 48]) -> Result<(), CryptoError> {
    G1::from_bytes(key).map(|_| ()).ok_or(CryptoError::Point("seal key"))
}

/// Whether any `quorum` of the seats' shares make the seal key, and no fewer do: the keys are, in the exponent, the
/// values at 0 (the seal key) and at 1, 2, ... (the seats' keys) of one polynomial of degree `quorum - 1`.
///
/// The points are consecutive integers, so the `quorum`-th differences must vanish and those before must not; this
/// takes additions only.
pub fn check_key_set(seal_key: &[u8; 48], share_keys: &[[u8; 48]], quorum: u16) -> Result<(), CryptoError> {
    let seats = u16::try_from(share_keys.len()).unwrap_or(u16::MAX);
    if quorum == 0 || quorum > seats {
        return Err(CryptoError::Quorum { seats, quorum });
    }
    let seal_key = G1::from_bytes(seal_key).ok_or(CryptoError::Point("seal key"))?;
    let mut points = vec![seal_key.to_sum()];
    for key in share_keys {
        points.push(G1::from_bytes(key).ok_or(CryptoError::Point("seal share key"))?.to_sum());
    }
    let degree = quorum - 1;
    for _ in 0..degree {
        points = differences(&points);
    }
    let lower = points.iter().all(G1Sum::is_identity);
    if lower || !differences(&points).iter().all(G1Sum::is_identity) {
        return Err(CryptoError::KeySet { degree });
    }
    Ok(())
}

/// Each point but the first, less the one before it.
fn differences(points: &[G1Sum]) -> Vec<G1Sum> {
    points.iter().zip(points.iter().skip(1)).map(|(before, point)| point.minus(before)).collect()
}

/// Whether `signature` is the round's signature under `key`.
fn verifies(id: &RoundId, key: &[u8; 48], signature: &[u8; 96]) -> bool {
    let (Ok(key), Ok(signature)) =
        (min_pk::PublicKey::key_validate(key), min_pk::Signature::sig_validate(signature, true))
    else {
        return false;
    };
    signature.verify(false, &id.to_bytes(), SEAL_DOMAIN, &[], &key, false) == blst::BLST_ERROR::BLST_SUCCESS
}

/// Whether a share is valid under its seat's verification key.
pub fn verify_share(id: &RoundId, verification_key: &[u8; 48], share: &[u8; 96]) -> bool {
    verifies(id, verification_key, share)
}

/// Accepts a combined signature that came from elsewhere.
pub fn verify_combined(id: &RoundId, seal_key: &[u8; 48], signature: &[u8; 96]) -> Option<Combined> {
    verifies(id, seal_key, signature).then_some(Combined { bytes: *signature })
}

/// Combines `quorum` shares of distinct seats. `verification_key` gives each seat's key, to name bad shares.
pub fn combine<'k>(
    id: &RoundId,
    seal_key: &[u8; 48],
    quorum: u16,
    shares: &[(u16, [u8; 96])],
    verification_key: impl Fn(u16) -> Option<&'k [u8; 48]>,
) -> Result<Combined, CryptoError> {
    let mut points: Vec<(u16, G2)> = Vec::new();
    let mut bad = Vec::new();
    for (seat, share) in shares {
        if points.iter().any(|(s, _)| s == seat) {
            continue;
        }
        match G2::from_bytes(share) {
            Some(point) => points.push((*seat, point)),
            None => bad.push(*seat),
        }
    }
    let needed = usize::from(quorum);
    let optimistic = points.get(..needed).map(G2::interpolate);
    if let Some(found) = optimistic.and_then(|bytes| verify_combined(id, seal_key, &bytes)) {
        return Ok(found);
    }
    // Some share is wrong, or there are too few: judge each.
    let good: Vec<_> = points
        .into_iter()
        .filter(|(seat, _)| {
            let share = shares.iter().find(|(s, _)| s == seat).map(|(_, bytes)| bytes);
            let ok = matches!((verification_key(*seat), share), (Some(k), Some(s)) if verify_share(id, k, s));
            if !ok {
                bad.push(*seat);
            }
            ok
        })
        .collect();
    match good.get(..needed).map(G2::interpolate).and_then(|bytes| verify_combined(id, seal_key, &bytes)) {
        Some(found) => Ok(found),
        None if !bad.is_empty() => {
            bad.sort_unstable();
            bad.dedup();
            Err(CryptoError::BadShares(bad))
        }
        None => Err(CryptoError::TooFewShares { found: good.len(), needed }),
    }
}
