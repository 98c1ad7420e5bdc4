//! The dealer's part: one dealing for all, and the values of those that do not get theirs.
//!
//! Inputs: the setup, the seat's seed, the players' deal keys. Outputs: a dealing and a contribution. Invariant: the same
//! inputs give the same bytes, after a restart too; at most n - q values are ever revealed.

use super::contribution::{Contribution, NONE};
use super::dealing::{Dealing, context};
use super::envelope::{Ephemeral, RecipientKey, SEALED};
use super::poly::{DealerSeed, SecretPoly};
use super::{DkgError, Setup};
use crate::raw::CurvePoint;
use std::collections::BTreeSet;
use std::sync::Arc;

/// A seat as dealer. No `Debug`; the polynomial is wiped when dropped.
pub struct Dealer {
    setup: Arc<Setup>,
    seat: u16,
    ephemeral: Ephemeral,
    poly: SecretPoly,
}

impl Dealer {
    /// The dealer of a seat. The same seed gives the same polynomial.
    pub fn new(setup: &Arc<Setup>, seat: u16, seed: &DealerSeed) -> Result<Self, DkgError> {
        setup.check_seat(seat)?;
        let poly = SecretPoly::derive(setup, seat, seed)?;
        let ephemeral = Ephemeral::new(&seed.scalar(b"EPHEMERAL", &setup.digest(), seat, 0)?)?;
        Ok(Self { setup: setup.clone(), seat, ephemeral, poly })
    }

    /// Names the dealer's commitment.
    pub fn digest(&self) -> [u8; 32] {
        *self.poly.commitment.digest()
    }

    /// The dealing, for the players whose deal keys are known; by seat.
    pub fn dealing(&self, recipients: &[Option<RecipientKey>]) -> Result<Dealing, DkgError> {
        if recipients.len() != usize::from(self.setup.seats()) {
            return Err(DkgError::Seats(recipients.len()));
        }
        let (setup, commitment) = (self.setup.digest(), &self.poly.commitment);
        let seal = |(player, recipient): (u16, &Option<RecipientKey>)| {
            let Some(recipient) = recipient else { return Ok([0; SEALED]) };
            let context = context(&setup, self.seat, player, commitment.digest());
            self.ephemeral.seal(recipient, &context, &self.poly.value(player)?)
        };
        let envelopes = (0u16..).zip(recipients).map(seal).collect::<Result<_, DkgError>>()?;
        let what = "ephemeral key";
        let ephemeral =
            CurvePoint::from_bytes(&self.ephemeral.public).ok_or(DkgError::Point { what, index: 0 })?;
        Ok(Dealing { setup, dealer: self.seat, commitment: commitment.clone(), ephemeral, envelopes })
    }

    /// The seat's contribution with these acknowledgements, which reveals the values of these players. Where they are more
    /// than n - q the seat does not deal: what it would reveal, with what faulty seats hold, could give its polynomial away.
    pub fn contribution(
        &self,
        acks: Vec<[u8; 32]>,
        reveal: &BTreeSet<u16>,
    ) -> Result<Contribution, DkgError> {
        if reveal.len() > self.setup.most_reveals() {
            return Ok(Contribution { commitment: NONE, acks, reveals: Default::default() });
        }
        let value = |player: &u16| {
            self.setup.check_seat(*player)?;
            Ok((*player, *self.poly.value(*player)?.to_bendian()))
        };
        let reveals = reveal.iter().map(value).collect::<Result<_, DkgError>>()?;
        Ok(Contribution { commitment: self.digest(), acks, reveals })
    }
}
