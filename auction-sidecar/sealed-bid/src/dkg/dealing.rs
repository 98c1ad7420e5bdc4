//! What a dealer sends to one player.
//!
//! Layout: version 1, setup 32, dealer u16, player u16, commitment (48 bytes a point), envelope 96, signature 48 of the
//! dealer's vote key. Invariant: a dealing that is read has the dealer's signature over all of it.

use super::envelope::ENVELOPE;
use super::poly::Commitment;
use super::{DkgError, Setup, VERSION, Word, signed};
use crate::VoteKey;

/// A dealing, read and verified but not opened.
pub(super) struct Dealing {
    pub(super) dealer: u16,
    pub(super) commitment: Commitment,
    pub(super) envelope: [u8; ENVELOPE],
}

/// Version, setup and first seat, which every message begins with.
pub(super) const HEAD: usize = 1 + 32 + 2;

/// The beginning of a message.
pub(super) fn head(session: &[u8; 32], seat: u16) -> Vec<u8> {
    let mut out = vec![VERSION];
    out.extend(session);
    out.extend(seat.to_be_bytes());
    out
}

/// Checks the beginning of a message and gives the seat and the rest.
pub(super) fn read_head<'b>(
    what: &'static str,
    session: &[u8; 32],
    bytes: &'b [u8],
) -> Result<(u16, &'b [u8]), DkgError> {
    let short = DkgError::Length { what, found: bytes.len(), expected: HEAD };
    let (head, rest) = bytes.split_first_chunk::<HEAD>().ok_or(short)?;
    let [version, middle @ .., high, low] = head;
    if *version != VERSION || middle != session {
        return Err(DkgError::Foreign(what));
    }
    Ok((u16::from_be_bytes([*high, *low]), rest))
}

/// What the envelope for a player binds besides its key: setup, dealer, player, commitment.
pub(super) fn context(setup: &Setup, dealer: u16, player: u16, commitment: &[u8; 32]) -> Vec<u8> {
    [setup.digest().as_slice(), &dealer.to_be_bytes(), &player.to_be_bytes(), commitment].concat()
}

/// Writes and signs a dealing.
pub(super) fn write(
    setup: &Setup,
    dealer: u16,
    player: u16,
    commitment: &Commitment,
    envelope: &[u8; ENVELOPE],
    vote: &VoteKey,
) -> Vec<u8> {
    let mut out = head(&setup.digest(), dealer);
    out.extend(player.to_be_bytes());
    out.extend(commitment.to_bytes());
    out.extend(envelope);
    let digest = commitment.digest(setup, dealer);
    let message = signed(Word::Dealing, &setup.digest(), dealer, &[&player.to_be_bytes(), &digest, envelope]);
    out.extend(vote.sign_in(crate::DKG_DOMAIN, &message));
    out
}

/// Reads a dealing for `player` and checks everything but the share itself.
pub(super) fn read(setup: &Setup, player: u16, bytes: &[u8]) -> Result<Dealing, DkgError> {
    let what = "dealing";
    let expected = HEAD + 2 + setup.points() * 48 + ENVELOPE + 48;
    let length = DkgError::Length { what, found: bytes.len(), expected };
    if bytes.len() != expected {
        return Err(length);
    }
    let (dealer, rest) = read_head(what, &setup.digest(), bytes)?;
    setup.check_seat(dealer)?;
    let (to, rest) = rest.split_first_chunk::<2>().ok_or(length.clone())?;
    if u16::from_be_bytes(*to) != player {
        return Err(DkgError::Foreign(what));
    }
    let (rest, signature) = rest.split_last_chunk::<48>().ok_or(length.clone())?;
    let (points, envelope) = rest.split_last_chunk::<ENVELOPE>().ok_or(length)?;
    let commitment = Commitment::from_bytes(setup, points)?;
    let digest = commitment.digest(setup, dealer);
    let message = signed(Word::Dealing, &setup.digest(), dealer, &[to, &digest, envelope]);
    setup.verify(what, dealer, &message, signature)?;
    Ok(Dealing { dealer, commitment, envelope: *envelope })
}
