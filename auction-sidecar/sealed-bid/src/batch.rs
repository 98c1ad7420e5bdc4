//! Many seal shares checked at once, and the bad ones found by halving.
//!
//! All shares of a round sign one point, so with weights r_i the equation e(g, sum r_i s_i) = e(sum r_i k_i, H) holds
//! when every share s_i is good under its key k_i, and with a chance of 2^-128 when one is not (small exponents test:
//! Bellare, Garay and Rabin, "Fast Batch Verification for Modular Exponentiation and Digital Signatures", 1998).
//! The weights are a hash of the whole batch: who makes a share cannot know them before all shares are fixed, and a
//! check that is repeated gives the same answer. Two shares whose errors cancel in a plain sum do not pass.
//!
//! Inputs: a round, shares by seat, and each seat's key. Output: the seats whose shares are bad. Invariant: a share
//! that is named does not verify on its own, and but for that chance every share that does not is named.

use crate::raw::{G1, G1Sum, G2, G2Sum, Weight, WeightBits, pairings_agree};
use crate::share::RoundId;
use sha2::{Digest, Sha256};

/// A share and its key as points, with the weight that they have in every check.
pub(crate) struct Weighted {
    seat: u16,
    share: G2,
    key: G1,
    weight: Weight,
}

/// Gives each share its weight. The points have been checked: on the curve, in the subgroup, not the identity.
pub(crate) fn weigh(id: &RoundId, shares: Vec<(u16, G2, G1)>) -> Vec<Weighted> {
    let mut batch = Sha256::new().chain_update(b"VENDUE-V1-SHARE-BATCH").chain_update(id.to_bytes());
    for (seat, share, key) in &shares {
        batch.update(seat.to_be_bytes());
        batch.update(share.to_bytes());
        batch.update(key.to_bytes());
    }
    let batch = batch.finalize();
    let weigh = |(seat, share, key): (u16, G2, G1)| {
        let hash = Sha256::new().chain_update(batch).chain_update(seat.to_be_bytes()).finalize();
        Weighted { seat, share, key, weight: Weight::from_hash(&hash.into()) }
    };
    shares.into_iter().map(weigh).collect()
}

/// Whether every one of these shares is good.
fn all_good(message: &G2, shares: &[Weighted]) -> bool {
    let signatures: Vec<_> = shares.iter().map(|s| (s.weight, s.share)).collect();
    let keys: Vec<_> = shares.iter().map(|s| (s.weight, s.key)).collect();
    let signature = G2Sum::weighted(&signatures, WeightBits::Batch).to_point();
    let key = G1Sum::weighted(&keys, WeightBits::Batch).to_point();
    match (signature, key) {
        (Some(signature), Some(key)) => pairings_agree(&signature, &key, message),
        // Both sums vanish for no shares at all, otherwise with a negligible chance: then each is looked at alone.
        _ => shares.is_empty(),
    }
}

/// The seats whose shares are bad, in the order given. A good batch costs one check; each bad share costs about one
/// check for each halving that leads to it.
pub(crate) fn bad_seats(message: &G2, shares: &[Weighted]) -> Vec<u16> {
    if all_good(message, shares) { Vec::new() } else { halve(message, shares) }
}

/// The bad seats among shares of which at least one is bad.
fn halve(message: &G2, shares: &[Weighted]) -> Vec<u16> {
    if let [only] = shares {
        // Alone, a share is judged without a weight, so that the answer is exact.
        let good = pairings_agree(&only.share, &only.key, message);
        return if good { Vec::new() } else { vec![only.seat] };
    }
    let (left, right) = shares.split_at(shares.len() / 2);
    let mut bad = bad_seats(message, left);
    // When the left half is good, the bad share is in the right half: its sum need not be looked at.
    bad.extend(if bad.is_empty() { halve(message, right) } else { bad_seats(message, right) });
    bad
}
