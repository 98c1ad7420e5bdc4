//! Values that dealers reveal in public, checked against their commitments: all at once, and dealer by dealer when that fails.
//!
//! The small exponents test (Bellare, Garay and Rabin, "Fast Batch Verification for Modular Exponentiation and Digital
//! Signatures", 1998) with weights that are a hash of all that is checked (Fiat and Shamir, 1986), for everybody has to
//! find the same: a wrong value passes with a chance of 2^-128 for each hash that its dealer computes.
//!
//! Inputs: commitments and revealed values. Outputs: the dealers whose values are all right. Invariant: a function of what
//! is checked; where few are absent there is little to check, where f are it is one sum of n q points instead of n f of q.

use super::poly::Commitment;
use super::{DkgError, Setup};
use crate::CryptoError;
use crate::raw::{G1Sum, Scalar, Weight, generator_mul_public};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// What a dealer reveals.
pub(super) struct Revealed<'a> {
    pub(super) dealer: u16,
    pub(super) commitment: &'a Commitment,
    /// By player, big-endian.
    pub(super) values: &'a BTreeMap<u16, [u8; 32]>,
}

/// The dealers that reveal nothing but values of their polynomials.
pub(super) fn good(setup: &Setup, revealed: &[Revealed<'_>]) -> Result<BTreeSet<u16>, DkgError> {
    let is_scalar = |value: &[u8; 32]| Scalar::from_bendian(value).is_some();
    let read: Vec<_> = revealed.iter().filter(|r| r.values.values().all(is_scalar)).collect();
    let all = |of: &[&Revealed<'_>]| of.iter().map(|r| r.dealer).collect();
    if fit(setup, &read)? {
        return Ok(all(&read));
    }
    let mut good = vec![];
    for one in read {
        if fit(setup, &[one])? {
            good.push(one);
        }
    }
    Ok(all(&good))
}

/// Whether the weighted sum of the values is the weighted sum of the polynomials at the players' points.
fn fit(setup: &Setup, revealed: &[&Revealed<'_>]) -> Result<bool, DkgError> {
    let batch = digest(setup, revealed);
    let (mut values, mut points) = (vec![], vec![]);
    for Revealed { dealer, commitment, values: of_dealer } in revealed {
        let mut weights = Vec::with_capacity(of_dealer.len());
        for (player, value) in *of_dealer {
            let hash = Sha256::new().chain_update(batch).chain_update(dealer.to_be_bytes());
            let weight = Weight::from_hash(&hash.chain_update(player.to_be_bytes()).finalize().into());
            let value = Scalar::from_bendian(value).zip(weight.to_scalar()).and_then(|(v, w)| v.times(&w));
            values.push(value.ok_or(CryptoError::Generation)?);
            weights.push((*player, weight));
        }
        if !weights.is_empty() {
            points.extend(commitment.weighted(&weights));
        }
    }
    // Dealers can make the sum zero; then it is the identity that the points have to give.
    let total = Scalar::sum(&values.iter().collect::<Vec<_>>());
    let total = total.map_or(G1Sum::identity(), |total| generator_mul_public(&total));
    Ok(total.minus(&G1Sum::weighted_curve(&points)).clear().is_identity())
}

/// Names all that is checked.
fn digest(setup: &Setup, revealed: &[&Revealed<'_>]) -> [u8; 32] {
    let mut hash = Sha256::new().chain_update(b"VENDUE-V1-DKG-REVEALS").chain_update(setup.digest());
    for Revealed { dealer, commitment, values } in revealed {
        hash.update(dealer.to_be_bytes());
        hash.update(commitment.digest());
        hash.update((values.len() as u32).to_be_bytes());
        for (player, value) in *values {
            hash.update(player.to_be_bytes());
            hash.update(value);
        }
    }
    hash.finalize().into()
}
