//! A dealer's log, verified as a whole from bytes alone.
//!
//! Layout: version 1, setup 32, dealer u16, commitment (48 bytes a point), bitmap of the players that acknowledged
//! (ceil(n/8)), aggregate of their acknowledgements 48, the share (32, big-endian) of each other player in order, signature
//! 48 of the dealer's vote key. Invariant: for every player, a log that is read has either an acknowledgement of this
//! commitment or a share that lies on it.

use super::dealer::ack_message;
use super::dealing::{HEAD, read_head};
use super::poly::Commitment;
use super::{DkgError, Setup, Word, signed};
use crate::raw::Scalar;
use crate::{DKG_DOMAIN, MultiVote};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// A verified log. Its revealed shares are public.
pub struct Log {
    pub(super) setup: [u8; 32],
    pub(super) dealer: u16,
    pub(super) commitment: Commitment,
    pub(super) commitment_digest: [u8; 32],
    pub(super) revealed: BTreeMap<u16, Scalar>,
    digest: [u8; 32],
}

/// What the dealer signs.
pub(super) fn message(setup: &Setup, dealer: u16, body: &[u8]) -> Vec<u8> {
    signed(Word::Log, &setup.digest(), dealer, &[&Sha256::digest(body)])
}

impl Log {
    /// Reads a log and verifies all of it: signatures, points, and that every player is accounted for.
    pub fn verify(setup: &Setup, bytes: &[u8]) -> Result<Self, DkgError> {
        Self::verify_with(setup, bytes, |_| None)
    }

    /// [`Log::verify`] when some dealers' commitments have been read before: most of the work is to check points.
    pub(super) fn verify_with<'c>(
        setup: &Setup,
        bytes: &[u8],
        known: impl Fn(u16) -> Option<&'c Commitment>,
    ) -> Result<Self, DkgError> {
        let what = "log";
        let (points_len, bitmap_len) = (setup.points() * 48, usize::from(setup.seats()).div_ceil(8));
        let least = HEAD + points_len + bitmap_len + 48 + 48;
        let length = |expected| DkgError::Length { what, found: bytes.len(), expected };
        if bytes.len() < least {
            return Err(length(least));
        }
        let (dealer, rest) = read_head(what, &setup.digest(), bytes)?;
        setup.check_seat(dealer)?;
        let (points, rest) = rest.split_at_checked(points_len).ok_or(length(least))?;
        let (acks, rest) = rest.split_at_checked(bitmap_len + 48).ok_or(length(least))?;
        let (reveals, signature) = rest.split_last_chunk::<48>().ok_or(length(least))?;
        let acks =
            MultiVote::from_bytes(setup.seats(), acks).map_err(|reason| DkgError::Acks { dealer, reason })?;
        let (found, most) = (acks.signers.missing().count(), setup.most_reveals());
        if found > most {
            return Err(DkgError::TooManyReveals { dealer, found, most });
        }
        if reveals.len() != found * 32 {
            return Err(length(least + found * 32));
        }
        let body = bytes.split_last_chunk::<48>().map(|(body, _)| body).unwrap_or_default();
        setup.verify(what, dealer, &message(setup, dealer, body), signature)?;
        let commitment = match known(dealer).filter(|known| known.to_bytes() == points) {
            Some(known) => known.clone(),
            None => Commitment::from_bytes(setup, points)?,
        };
        let commitment_digest = commitment.digest(setup, dealer);
        acks.verify_in(
            DKG_DOMAIN,
            setup.votes(),
            setup.quorum(),
            &ack_message(setup, dealer, &commitment_digest),
        )
        .map_err(|reason| DkgError::Acks { dealer, reason })?;
        let revealed = read_reveals(dealer, &commitment, acks.signers.missing(), reveals)?;
        let digest = Sha256::digest(bytes).into();
        Ok(Self { setup: setup.digest(), dealer, commitment, commitment_digest, revealed, digest })
    }

    /// The dealer.
    pub fn dealer(&self) -> u16 {
        self.dealer
    }
    /// SHA-256 of the log's bytes, to name it in an agreement.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }
    /// The seats whose shares of this dealing are public.
    pub fn revealed(&self) -> impl Iterator<Item = u16> + '_ {
        self.revealed.keys().copied()
    }
}

/// Reads the public shares of the players that did not acknowledge.
fn read_reveals(
    dealer: u16,
    commitment: &Commitment,
    players: impl Iterator<Item = u16>,
    bytes: &[u8],
) -> Result<BTreeMap<u16, Scalar>, DkgError> {
    let read = |(player, bytes): (u16, &[u8; 32])| {
        let share = Scalar::from_bendian(bytes).filter(|share| commitment.fits(player, share));
        Ok((player, share.ok_or(DkgError::Share { from: dealer, to: player })?))
    };
    players.zip(bytes.as_chunks::<32>().0).map(read).collect()
}
