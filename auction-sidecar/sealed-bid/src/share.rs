//! Seal shares: each seat's part of a round's signature, and their combination.
//!
//! Threshold BLS (Boldyreva, "Threshold Signatures, Multisignatures and Blind Signatures Based on the
//! Gap-Diffie-Hellman-Group Signature Scheme", 2003) with signatures in G2, hashed to as RFC 9380 says.
//!
//! The combination is optimistic: any quorum of shares is combined unverified and the one result is checked; only
//! when that fails are the shares checked, all at once, and the bad ones named.

use crate::raw::{G1, G1Sum, G2, Lines, Scalar, interpolate_unchecked};
use crate::{CryptoError, SEAL_DOMAIN, batch};
use blst::min_pk;
use std::collections::BTreeSet;
use std::sync::Arc;
use subtle::ConstantTimeEq;
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
pub struct SealShare(pub(crate) Scalar);

impl SealShare {
    /// Whether two shares are the same, in constant time.
    pub fn same_as(&self, other: &Self) -> bool {
        self.to_bytes().ct_eq(other.to_bytes().as_slice()).into()
    }
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
#[derive(Clone)]
pub struct Combined {
    bytes: [u8; 96],
    lines: Arc<Lines>,
}

impl PartialEq for Combined {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Combined {}

impl std::fmt::Debug for Combined {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Combined").field(&self.bytes).finish()
    }
}

impl Combined {
    /// The pairing of a point with the signature.
    pub(crate) fn pairing(&self, u: &G1) -> Zeroizing<[u8; 576]> {
        self.lines.pairing(u)
    }
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
    if !verifies(id, seal_key, signature) {
        return None;
    }
    // What verified is in the subgroup; it opens all bundles of the round, so the work on it is done once.
    let lines = Arc::new(Lines::of(&G2::from_bytes(signature)?));
    Some(Combined { bytes: *signature, lines })
}

/// The seats whose shares of a round are bad: not a point, of a seat without a key, or not the seat's signature.
/// Good shares cost one check together. Of several shares of one seat the first counts.
pub fn bad_shares<'k>(
    id: &RoundId,
    shares: &[(u16, [u8; 96])],
    verification_key: impl Fn(u16) -> Option<&'k [u8; 48]>,
) -> Vec<u16> {
    judge(id, &first_of_each(shares), verification_key).1.into_iter().collect()
}

/// The first share of each seat.
fn first_of_each(shares: &[(u16, [u8; 96])]) -> Vec<(u16, [u8; 96])> {
    let mut seen = BTreeSet::new();
    shares.iter().filter(|(seat, _)| seen.insert(*seat)).copied().collect()
}

/// Good shares, and the seats of bad ones.
fn judge<'k>(
    id: &RoundId,
    shares: &[(u16, [u8; 96])],
    verification_key: impl Fn(u16) -> Option<&'k [u8; 48]>,
) -> (Vec<(u16, [u8; 96])>, BTreeSet<u16>) {
    let mut bad = BTreeSet::new();
    let mut known = Vec::new();
    for (seat, share) in shares {
        match (G2::from_bytes(share), verification_key(*seat).and_then(G1::from_bytes)) {
            (Some(share), Some(key)) => known.push((*seat, share, key)),
            _ => {
                bad.insert(*seat);
            }
        }
    }
    bad.extend(batch::bad_seats(&id.point(), &batch::weigh(id, known)));
    (shares.iter().filter(|(seat, _)| !bad.contains(seat)).copied().collect(), bad)
}

/// Combines `quorum` shares of distinct seats. `verification_key` gives each seat's key, to name bad shares.
pub fn combine<'k>(
    id: &RoundId,
    seal_key: &[u8; 48],
    quorum: u16,
    shares: &[(u16, [u8; 96])],
    verification_key: impl Fn(u16) -> Option<&'k [u8; 48]>,
) -> Result<Combined, CryptoError> {
    let needed = usize::from(quorum);
    let attempt = |shares: &[(u16, [u8; 96])]| {
        let bytes = interpolate_unchecked(shares.get(..needed)?)?;
        verify_combined(id, seal_key, &bytes)
    };
    let shares = first_of_each(shares);
    if let Some(found) = attempt(&shares) {
        return Ok(found);
    }
    // Some share is wrong, or there are too few: find the bad ones.
    let (good, bad) = judge(id, &shares, verification_key);
    match attempt(&good) {
        Some(found) => Ok(found),
        None if !bad.is_empty() => Err(CryptoError::BadShares(bad.into_iter().collect())),
        None => Err(CryptoError::TooFewShares { found: good.len(), needed }),
    }
}
