//! What a dealer sends to all: its commitment, and each player's value encrypted to that player.
//!
//! Layout: version 2, setup 32, dealer u16, commitment (96 bytes a point, uncompressed), ephemeral key 96, for each seat its
//! envelope 48 (zeros where the dealer knows no deal key of the seat). Who sent it is said by the evidence signature of the
//! message that carries it. Invariant: the points of a dealing that is read are on the curve.

use super::envelope::SEALED;
use super::poly::Commitment;
use super::{DkgError, Setup};
use crate::raw::CurvePoint;

/// Version of dealings and contributions.
pub(super) const VERSION: u8 = 2;

/// A dealing, read but not opened.
#[derive(Clone)]
pub struct Dealing {
    pub(super) setup: [u8; 32],
    pub(super) dealer: u16,
    pub(super) commitment: Commitment,
    pub(super) ephemeral: CurvePoint,
    pub(super) envelopes: Vec<[u8; SEALED]>,
}

impl std::fmt::Debug for Dealing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dealing").field("dealer", &self.dealer).finish_non_exhaustive()
    }
}

/// Bytes before the commitment.
const HEAD: usize = 1 + 32 + 2;

impl Dealing {
    /// How many bytes a dealing has.
    pub fn length(setup: &Setup) -> usize {
        HEAD + setup.points() * 96 + 96 + usize::from(setup.seats()) * SEALED
    }

    /// Reads a dealing and checks everything but the values.
    pub fn read(setup: &Setup, bytes: &[u8]) -> Result<Self, DkgError> {
        let what = "dealing";
        let length = DkgError::Length { what, found: bytes.len(), expected: Self::length(setup) };
        if bytes.len() != Self::length(setup) {
            return Err(length);
        }
        let (head, rest) = bytes.split_first_chunk::<HEAD>().ok_or(length.clone())?;
        let [version, session @ .., high, low] = head;
        if *version != VERSION || *session != setup.digest() {
            return Err(DkgError::Foreign(what));
        }
        let dealer = u16::from_be_bytes([*high, *low]);
        setup.check_seat(dealer)?;
        let (points, rest) = rest.split_at_checked(setup.points() * 96).ok_or(length.clone())?;
        let (ephemeral, envelopes) = rest.split_first_chunk::<96>().ok_or(length)?;
        let ephemeral =
            CurvePoint::from_bytes(ephemeral).ok_or(DkgError::Point { what: "ephemeral key", index: 0 })?;
        Ok(Self {
            setup: setup.digest(),
            dealer,
            commitment: Commitment::from_bytes(setup, dealer, points)?,
            ephemeral,
            envelopes: envelopes.as_chunks::<SEALED>().0.to_vec(),
        })
    }

    /// The dealing's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend(self.setup);
        out.extend(self.dealer.to_be_bytes());
        out.extend(self.commitment.to_bytes());
        out.extend(self.ephemeral.to_bytes());
        self.envelopes.iter().for_each(|envelope| out.extend(envelope));
        out
    }

    /// Who deals.
    pub fn dealer(&self) -> u16 {
        self.dealer
    }
    /// Names the commitment, in acknowledgements and contributions.
    pub fn digest(&self) -> [u8; 32] {
        *self.commitment.digest()
    }
}

/// What the envelope for a player binds besides its key: setup, dealer, player, commitment.
pub(super) fn context(setup: &[u8; 32], dealer: u16, player: u16, commitment: &[u8; 32]) -> Vec<u8> {
    [setup.as_slice(), &dealer.to_be_bytes(), &player.to_be_bytes(), commitment].concat()
}
