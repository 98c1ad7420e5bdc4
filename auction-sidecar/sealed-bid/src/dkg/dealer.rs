//! The dealer's part: dealings out, acknowledgements in, one log.
//!
//! Inputs: the setup, the seat's seed and vote key, acknowledgements. Outputs: dealings and the log, as bytes.
//! Invariant: an acknowledgement is counted only when it verifies, so a log that is made also verifies.

use super::dealing;
use super::envelope;
use super::log;
use super::poly::{DealerSeed, SecretPoly};
use super::{DkgError, Setup, Word, signed};
use crate::{DKG_DOMAIN, MultiVote, VoteKey};
use std::collections::BTreeMap;

/// A seat as dealer. No `Debug`; the polynomial is wiped when dropped.
pub struct Dealer<'a> {
    setup: &'a Setup,
    seat: u16,
    seed: &'a DealerSeed,
    vote: &'a VoteKey,
    poly: SecretPoly,
    acks: BTreeMap<u16, [u8; 48]>,
}

/// What players sign to acknowledge a dealer's commitment.
pub(super) fn ack_message(setup: &Setup, dealer: u16, commitment: &[u8; 32]) -> Vec<u8> {
    signed(Word::Ack, &setup.digest(), dealer, &[commitment])
}

impl<'a> Dealer<'a> {
    /// The dealer of a seat. The same seed gives the same polynomial, after a restart too.
    pub fn new(
        setup: &'a Setup,
        seat: u16,
        seed: &'a DealerSeed,
        vote: &'a VoteKey,
    ) -> Result<Self, DkgError> {
        setup.check_owner(seat, vote)?;
        let poly = SecretPoly::derive(setup, seat, seed)?;
        Ok(Self { setup, seat, seed, vote, poly, acks: BTreeMap::new() })
    }

    /// The dealing for a player; the same bytes each time.
    pub fn dealing(&self, player: u16) -> Result<Vec<u8>, DkgError> {
        let recipient = self.setup.deal_key(player)?;
        let ephemeral = self.seed.scalar(b"EPHEMERAL", &self.setup.digest(), self.seat, player)?;
        let share = self.poly.share(player)?;
        let commitment = &self.poly.commitment;
        let digest = commitment.digest(self.setup, self.seat);
        let context = dealing::context(self.setup, self.seat, player, &digest);
        let envelope = envelope::seal(recipient, &ephemeral, &context, &share)?;
        Ok(dealing::write(self.setup, self.seat, player, commitment, &envelope, self.vote))
    }

    /// Takes a player's acknowledgement.
    pub fn acknowledge(&mut self, player: u16, ack: &[u8; 48]) -> Result<(), DkgError> {
        self.setup.check_seat(player)?;
        let digest = self.poly.commitment.digest(self.setup, self.seat);
        let message = ack_message(self.setup, self.seat, &digest);
        self.setup.verify("acknowledgement", player, &message, ack)?;
        self.acks.insert(player, *ack);
        Ok(())
    }

    /// Takes acknowledgements of distinct players, checked together; gives the players whose acknowledgement is bad.
    pub fn acknowledge_all(&mut self, acks: &[(u16, [u8; 48])]) -> Result<Vec<u16>, DkgError> {
        acks.iter().try_for_each(|(player, _)| self.setup.check_seat(*player))?;
        let digest = self.poly.commitment.digest(self.setup, self.seat);
        let message = ack_message(self.setup, self.seat, &digest);
        let bad = self.setup.votes().bad_votes_in(DKG_DOMAIN, &message, acks);
        self.acks.extend(acks.iter().filter(|(player, _)| !bad.contains(player)).copied());
        Ok(bad)
    }

    /// How many players have acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.acks.len()
    }

    /// The signed log. It reveals the share of each player that has not acknowledged, so it is made when all have or
    /// when the time to do so is over, and only once.
    pub fn log(&self) -> Result<Vec<u8>, DkgError> {
        let (seats, most) = (self.setup.seats(), self.setup.most_reveals());
        let found = usize::from(seats) - self.acks.len();
        if found > most {
            return Err(DkgError::TooManyReveals { dealer: self.seat, found, most });
        }
        let acks: Vec<_> = self.acks.iter().map(|(player, ack)| (*player, *ack)).collect();
        let acks = MultiVote::new(seats, &acks)?;
        let mut body = dealing::head(&self.setup.digest(), self.seat);
        body.extend(self.poly.commitment.to_bytes());
        body.extend(acks.to_bytes());
        for player in acks.signers.missing() {
            body.extend(self.poly.share(player)?.to_bendian().as_slice());
        }
        let message = log::message(self.setup, self.seat, &body);
        body.extend(self.vote.sign_in(DKG_DOMAIN, &message));
        Ok(body)
    }
}
