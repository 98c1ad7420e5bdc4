//! Votes of many seats on one message, counted at once.
//!
//! Votes are added up unchecked and the one sum is verified: who signed is then a multi-signature, whatever the single
//! votes were. Only when the sum does not verify are the votes looked at, all at once with weights and then by halving,
//! and the bad ones named. Weights are a hash of the whole batch, as for shares, so two votes whose errors cancel in
//! the plain sum are named there.
//!
//! Inputs: a key set whose keys have proven possession, a message, votes by seat. Outputs: an aggregate that verifies,
//! or the seats whose votes are bad. Invariant: a seat that is named has no valid vote in the batch.

use crate::vote::{public_key, signature};
use crate::{CryptoError, VOTE_DOMAIN, VoteKeySet};
use blst::{BLST_ERROR, MultiPoint, min_sig};
use sha2::{Digest, Sha256};

/// Bits of a weight: an error passes with a chance of 2^-128.
const WEIGHT_BITS: usize = 128;

/// A vote and its key as points, with the weight that they have in every check.
struct Weighted {
    seat: u16,
    vote: min_sig::Signature,
    key: min_sig::PublicKey,
    weight: [u8; WEIGHT_BITS / 8],
}

impl VoteKeySet {
    /// Keys that were checked before, with their proofs of possession, as those of a validated record are.
    pub fn from_checked(keys: &[[u8; 96]]) -> Result<Self, CryptoError> {
        let points = keys.iter().map(|key| public_key(key).ok_or(CryptoError::Point("vote key")));
        Ok(Self { points: points.collect::<Result<_, _>>()?, keys: keys.to_vec() })
    }

    /// Whether a vote is the seat's.
    pub fn verify_vote(&self, seat: u16, message: &[u8], vote: &[u8; 48]) -> bool {
        self.verify_in(VOTE_DOMAIN, seat, message, vote)
    }

    /// Whether an aggregate is the vote of exactly these seats.
    pub fn verify_aggregate(&self, seats: &[u16], message: &[u8], aggregate: &[u8; 48]) -> bool {
        let keys: Option<Vec<_>> = seats.iter().map(|seat| self.points.get(usize::from(*seat))).collect();
        let (Some(keys), Some(sum)) = (keys, signature(aggregate)) else { return false };
        !keys.is_empty()
            && sum.fast_aggregate_verify(false, message, VOTE_DOMAIN, &keys) == BLST_ERROR::BLST_SUCCESS
    }

    /// The aggregate of the votes of distinct seats on one message, verified; otherwise the seats whose votes are bad.
    pub fn tally(&self, message: &[u8], votes: &[(u16, [u8; 48])]) -> Result<[u8; 48], Vec<u16>> {
        let seats: Vec<u16> = votes.iter().map(|(seat, _)| *seat).collect();
        let sum = sum_unchecked(votes).filter(|sum| self.verify_aggregate(&seats, message, sum));
        sum.ok_or_else(|| self.bad_votes(message, votes))
    }

    /// The seats whose votes on a message are bad. Good votes cost one check together.
    pub fn bad_votes(&self, message: &[u8], votes: &[(u16, [u8; 48])]) -> Vec<u16> {
        self.bad_votes_in(VOTE_DOMAIN, message, votes)
    }

    /// [`VoteKeySet::bad_votes`] for a domain.
    pub(crate) fn bad_votes_in(&self, domain: &[u8], message: &[u8], votes: &[(u16, [u8; 48])]) -> Vec<u16> {
        let signed = Signed { domain, message };
        let mut batch = Sha256::new().chain_update(b"VENDUE-V1-VOTE-BATCH").chain_update(message);
        votes.iter().for_each(|(seat, vote)| {
            batch.update(seat.to_be_bytes());
            batch.update(vote);
        });
        let batch = batch.finalize();
        let (mut bad, mut known) = (Vec::new(), Vec::new());
        for (seat, vote) in votes {
            let hash = Sha256::new().chain_update(batch).chain_update(seat.to_be_bytes()).finalize();
            match (signature(vote), self.points.get(usize::from(*seat)), hash.first_chunk()) {
                (Some(vote), Some(key), Some(weight)) => {
                    known.push(Weighted { seat: *seat, vote, key: *key, weight: *weight });
                }
                _ => bad.push(*seat),
            }
        }
        bad.extend(signed.bad_seats(&known));
        bad.sort_unstable();
        bad
    }
}

/// The sum of votes that need not be in the subgroup: whoever uses it verifies it, which checks that too.
fn sum_unchecked(votes: &[(u16, [u8; 48])]) -> Option<[u8; 48]> {
    let on_curve = |(_, vote): &(u16, [u8; 48])| min_sig::Signature::uncompress(vote).ok();
    let points = votes.iter().map(on_curve).collect::<Option<Vec<_>>>()?;
    let refs: Vec<_> = points.iter().collect();
    Some(min_sig::AggregateSignature::aggregate(&refs, false).ok()?.to_signature().to_bytes())
}

/// What the votes of a batch sign.
struct Signed<'a> {
    domain: &'a [u8],
    message: &'a [u8],
}

impl Signed<'_> {
    fn verifies(&self, key: &min_sig::PublicKey, vote: &min_sig::Signature, check_key: bool) -> bool {
        vote.verify(false, self.message, self.domain, &[], key, check_key) == BLST_ERROR::BLST_SUCCESS
    }

    /// Whether every one of these votes is good.
    fn all_good(&self, votes: &[Weighted]) -> bool {
        if let [only] = votes {
            // Alone, a vote is judged without a weight, so that the answer is exact.
            return self.verifies(&only.key, &only.vote, false);
        }
        // blst indexes the first point.
        if votes.is_empty() {
            return true;
        }
        let (keys, sums): (Vec<_>, Vec<_>) = votes.iter().map(|v| (v.key, v.vote)).unzip();
        let weights: Vec<u8> = votes.iter().flat_map(|v| v.weight).collect();
        let key = keys.as_slice().mult(&weights, WEIGHT_BITS).to_public_key();
        let sum = sums.as_slice().mult(&weights, WEIGHT_BITS).to_signature();
        self.verifies(&key, &sum, true)
    }

    fn bad_seats(&self, votes: &[Weighted]) -> Vec<u16> {
        if self.all_good(votes) { Vec::new() } else { self.halve(votes) }
    }

    /// The bad seats among votes that do not verify together.
    fn halve(&self, votes: &[Weighted]) -> Vec<u16> {
        if let [only] = votes {
            return vec![only.seat];
        }
        let (left, right) = votes.split_at(votes.len() / 2);
        let mut bad = self.bad_seats(left);
        // When the left half is good, the bad vote is in the right half: its sum need not be looked at. A single vote is
        // looked at all the same, because a sum may fail by chance though its votes are good.
        let only_right = bad.is_empty() && right.len() > 1;
        bad.extend(if only_right { self.halve(right) } else { self.bad_seats(right) });
        bad
    }
}
