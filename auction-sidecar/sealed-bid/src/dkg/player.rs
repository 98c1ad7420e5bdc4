//! The player's part: dealings in, acknowledgements out, and the outcome of an agreed set of logs.
//!
//! Inputs: dealings as bytes, verified logs. Outputs: acknowledgements, the public keys, the seat's share. Invariants:
//! a player acknowledges one commitment per dealer; the outcome depends on the set of logs only, not on its order.
//! The caller stores the bytes of a dealing before it sends the acknowledgement: taking them in again after a restart
//! restores the player and gives the same acknowledgement.

use super::dealer::ack_message;
use super::dealing;
use super::envelope::{self, DealKey};
use super::key_set::KeySet;
use super::log::Log;
use super::poly::Commitment;
use super::{DkgError, Purpose, Setup};
use crate::raw::{G1Sum, Scalar};
use crate::{CryptoError, DKG_DOMAIN, SealShare, SignerSet, VoteKey};
use std::collections::{BTreeMap, BTreeSet};

/// What an agreed set of logs makes, as everybody sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The public keys.
    pub keys: KeySet,
    /// Whose dealings count.
    pub dealers: SignerSet,
    /// Seats whose share every counted dealing reveals: it is public, and as many fewer seats can open a round without
    /// the others. At most n - q.
    pub public: SignerSet,
}

/// The logs of a set by dealer; refuses what is not one log of each of at least q dealers of this setup.
fn by_dealer<'l>(setup: &Setup, logs: &'l [Log]) -> Result<BTreeMap<u16, &'l Log>, DkgError> {
    let mut sorted = BTreeMap::new();
    for log in logs {
        if log.setup != setup.digest() {
            return Err(DkgError::Foreign("log"));
        }
        if sorted.insert(log.dealer, log).is_some() {
            return Err(DkgError::Duplicate(log.dealer));
        }
    }
    let (found, needed) = (sorted.len(), usize::from(setup.quorum()));
    if found < needed { Err(DkgError::TooFewDealings { found, needed }) } else { Ok(sorted) }
}

/// What an agreed set of logs makes. Anybody can compute it.
pub fn outcome(setup: &Setup, logs: &[Log]) -> Result<Outcome, DkgError> {
    let logs = by_dealer(setup, logs)?;
    let mut sums = vec![G1Sum::identity(); usize::from(setup.quorum())];
    if let Purpose::Refresh(keys) = setup.purpose() {
        keys.add_to(&mut sums);
    }
    let mut public: BTreeSet<u16> = (0..setup.seats()).collect();
    for log in logs.values() {
        log.commitment.add_to(&mut sums);
        public.retain(|seat| log.revealed.contains_key(seat));
    }
    Ok(Outcome {
        keys: KeySet::from_sums(&sums, setup.seats())?,
        dealers: SignerSet::from_seats(setup.seats(), logs.keys().copied())?,
        public: SignerSet::from_seats(setup.seats(), public)?,
    })
}

/// A share that was acknowledged, and what for.
struct Accepted {
    digest: [u8; 32],
    commitment: Commitment,
    share: Scalar,
}

/// A seat as player. No `Debug`; shares are wiped when dropped.
pub struct Player<'a> {
    setup: &'a Setup,
    seat: u16,
    vote: &'a VoteKey,
    deal: &'a DealKey,
    accepted: BTreeMap<u16, Accepted>,
}

impl<'a> Player<'a> {
    /// The player of a seat.
    pub fn new(setup: &'a Setup, seat: u16, vote: &'a VoteKey, deal: &'a DealKey) -> Result<Self, DkgError> {
        setup.check_owner(seat, vote)?;
        if setup.deal_key(seat)?.1 != deal.public_key()? {
            return Err(DkgError::NotOurs("deal key"));
        }
        Ok(Self { setup, seat, vote, deal, accepted: BTreeMap::new() })
    }

    /// Takes a dealing. Gives the dealer and the acknowledgement for it; a dealing that is refused is not
    /// acknowledged, and then the dealer has to reveal the share.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(u16, [u8; 48]), DkgError> {
        let dealing = dealing::read(self.setup, self.seat, bytes)?;
        let (dealer, commitment) = (dealing.dealer, dealing.commitment);
        let digest = commitment.digest(self.setup, dealer);
        if self.accepted.get(&dealer).is_some_and(|before| before.digest != digest) {
            return Err(DkgError::Equivocation(dealer));
        }
        let context = dealing::context(self.setup, dealer, self.seat, &digest);
        let share = envelope::open(self.deal, &context, &dealing.envelope)
            .filter(|share| commitment.fits(self.seat, share))
            .ok_or(DkgError::Share { from: dealer, to: self.seat })?;
        self.accepted.insert(dealer, Accepted { digest, commitment, share });
        let message = ack_message(self.setup, dealer, &digest);
        Ok((dealer, self.vote.sign_in(DKG_DOMAIN, &message)))
    }

    /// [`Log::verify`], without checking the points again of a commitment that this player has acknowledged.
    pub fn verify_log(&self, bytes: &[u8]) -> Result<Log, DkgError> {
        Log::verify_with(self.setup, bytes, |dealer| self.accepted.get(&dealer).map(|a| &a.commitment))
    }

    /// This seat's share of the new key that an agreed set of logs makes.
    pub fn share(&self, logs: &[Log]) -> Result<(Outcome, SealShare), DkgError> {
        match self.setup.purpose() {
            Purpose::Key => self.finish(logs, None),
            Purpose::Refresh(_) => Err(DkgError::Foreign("setup of a refresh")),
        }
    }

    /// This seat's new share of the old key. The old share is to be wiped once a quorum has its new ones.
    pub fn refreshed(&self, logs: &[Log], old: &SealShare) -> Result<(Outcome, SealShare), DkgError> {
        match self.setup.purpose() {
            Purpose::Key => Err(DkgError::Foreign("setup of a new key")),
            Purpose::Refresh(keys) if !keys.fits(self.seat, old) => Err(DkgError::NotOurs("old share")),
            Purpose::Refresh(_) => self.finish(logs, Some(old)),
        }
    }

    fn finish(&self, logs: &[Log], old: Option<&SealShare>) -> Result<(Outcome, SealShare), DkgError> {
        let outcome = outcome(self.setup, logs)?;
        let mut parts: Vec<&Scalar> = old.map(|share| &share.0).into_iter().collect();
        for log in logs {
            let acknowledged = self.accepted.get(&log.dealer).filter(|a| a.digest == log.commitment_digest);
            let part = log.revealed.get(&self.seat).or(acknowledged.map(|a| &a.share));
            parts.push(part.ok_or(DkgError::LostShare(log.dealer))?);
        }
        let share = SealShare(sum(&parts)?);
        if !outcome.keys.fits(self.seat, &share) {
            return Err(DkgError::NotOurs("share"));
        }
        Ok((outcome, share))
    }
}

/// The sum of secrets, of which there is at least one.
pub(super) fn sum(parts: &[&Scalar]) -> Result<Scalar, CryptoError> {
    let (first, rest) = parts.split_first().ok_or(CryptoError::Generation)?;
    // No part is kept apart from its owner: the first is copied by way of bytes that are wiped.
    let mut total = Scalar::from_bendian(&first.to_bendian()).ok_or(CryptoError::Generation)?;
    for part in rest {
        // A sum that is zero on the way has a chance of about 2^-255 unless somebody who knows all parts wants it.
        total = total.plus(part).ok_or(CryptoError::Generation)?;
    }
    Ok(total)
}
