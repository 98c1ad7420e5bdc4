//! What all seats know before they make a key: who they are, in which session, and what for.
//!
//! Inputs: the session's digest, which names market, epoch and the seats with their keys. Output: a digest that every
//! dealing and contribution binds. Invariant: two setups that differ in anything have different digests.

use super::DkgError;
use super::envelope::RecipientKey;
use super::key_set::KeySet;
use crate::{VoteKey, VoteKeySet};
use sha2::{Digest, Sha256};

/// Most seats that share a key.
pub(super) const MOST_SEATS: usize = 256;

/// How many of `seats` seats open a round: all but the faulty that are tolerated, q = n - floor((n - 1) / 3).
pub fn quorum(seats: u16) -> u16 {
    seats - seats.saturating_sub(1) / 3
}

/// What the dealings are for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// A new key.
    Key,
    /// New shares of this key.
    Refresh(KeySet),
}

/// The circumstances of one key generation or refresh.
pub struct Setup {
    purpose: Purpose,
    seats: u16,
    quorum: u16,
    digest: [u8; 32],
}

impl Setup {
    /// A setup for `seats` seats. `session` names the market, the epoch that gets the key, and the seats with their keys.
    pub fn new(purpose: Purpose, session: &[u8; 32], seats: u16) -> Result<Self, DkgError> {
        let n = usize::from(seats);
        // A refresh for one seat would be a polynomial of degree 0 that is zero.
        let least = if purpose == Purpose::Key { 1 } else { 2 };
        if n < least || n > MOST_SEATS {
            return Err(DkgError::Seats(n));
        }
        let (kind, base) = match &purpose {
            Purpose::Key => (0u8, [0; 32]),
            Purpose::Refresh(keys) if keys.seats() == seats => (1u8, keys.digest()),
            Purpose::Refresh(keys) => return Err(DkgError::Seats(usize::from(keys.seats()))),
        };
        let mut hash = Sha256::new().chain_update(b"VENDUE-V1-DKG-SETUP").chain_update([kind]);
        hash.update(session);
        hash.update(base);
        hash.update(seats.to_be_bytes());
        Ok(Self { purpose, seats, quorum: quorum(seats), digest: hash.finalize().into() })
    }

    /// What everything that is said binds.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }
    /// What the dealings are for.
    pub fn purpose(&self) -> &Purpose {
        &self.purpose
    }
    /// How many seats there are.
    pub fn seats(&self) -> u16 {
        self.seats
    }
    /// How many seats open a round, and how many dealings are needed.
    pub fn quorum(&self) -> u16 {
        self.quorum
    }
    /// How many values a dealer may reveal.
    pub fn most_reveals(&self) -> usize {
        usize::from(self.seats - self.quorum)
    }
    /// How many points a commitment has: one for each coefficient, but not for a constant term that is zero.
    pub(super) fn points(&self) -> usize {
        usize::from(self.quorum) - usize::from(self.is_refresh())
    }
    pub(super) fn is_refresh(&self) -> bool {
        matches!(self.purpose, Purpose::Refresh(_))
    }
    pub(super) fn check_seat(&self, seat: u16) -> Result<(), DkgError> {
        if seat < self.seats { Ok(()) } else { Err(DkgError::UnknownSeat(seat)) }
    }
}

/// The seats' public keys, for the recovery of a share.
pub struct Members {
    votes: VoteKeySet,
    deal_keys: Vec<RecipientKey>,
    digest: [u8; 32],
}

impl Members {
    /// The seats of `votes`, whose deal keys are `deal_keys` in the same order.
    pub fn new(votes: VoteKeySet, deal_keys: &[[u8; 48]]) -> Result<Self, DkgError> {
        let n = deal_keys.len();
        if n == 0 || n > MOST_SEATS || n != usize::from(votes.seats()) {
            return Err(DkgError::Seats(n));
        }
        let mut hash = Sha256::new().chain_update(b"VENDUE-V1-DKG-MEMBERS");
        let mut keys: Vec<RecipientKey> = Vec::with_capacity(n);
        for (seat, (vote, deal)) in (0u16..).zip(votes.iter().zip(deal_keys)) {
            let key = RecipientKey::from_bytes(deal)?;
            if keys.iter().any(|other| other.to_bytes() == deal) {
                return Err(DkgError::Duplicate(seat));
            }
            keys.push(key);
            hash.update(vote);
            hash.update(deal);
        }
        Ok(Self { votes, deal_keys: keys, digest: hash.finalize().into() })
    }

    /// Names the members.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }
    pub(super) fn seats(&self) -> u16 {
        self.votes.seats()
    }
    /// A seat's deal key.
    pub(super) fn deal_key(&self, seat: u16) -> Result<&RecipientKey, DkgError> {
        self.deal_keys.get(usize::from(seat)).ok_or(DkgError::UnknownSeat(seat))
    }
    /// Checks that a secret vote key is the seat's.
    pub(super) fn check_owner(&self, seat: u16, vote: &VoteKey) -> Result<(), DkgError> {
        let key = self.votes.key(seat).ok_or(DkgError::UnknownSeat(seat))?;
        if *key == vote.public_key() { Ok(()) } else { Err(DkgError::NotOurs("vote key")) }
    }
    /// Checks a signature in the domain of key generation.
    pub(super) fn verify(
        &self,
        what: &'static str,
        seat: u16,
        message: &[u8],
        signature: &[u8; 48],
    ) -> Result<(), DkgError> {
        match self.votes.verify_in(crate::DKG_DOMAIN, seat, message, signature) {
            true => Ok(()),
            false => Err(DkgError::Signature { what, seat }),
        }
    }
}
