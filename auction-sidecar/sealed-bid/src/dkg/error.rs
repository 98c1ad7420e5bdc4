//! Why key generation refuses something.

use crate::CryptoError;

/// Why a setup, message or set of contributions is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DkgError {
    /// This number of seats cannot do it.
    #[error("{0} seats cannot share a key in this way")]
    Seats(usize),
    /// The seat is not in the setup, or not among the helpers.
    #[error("seat {0} is unknown")]
    UnknownSeat(u16),
    /// The seat is there twice.
    #[error("seat {0} is there twice")]
    Duplicate(u16),
    /// Wrong number of bytes.
    #[error("{what} has {found} bytes, not {expected}")]
    Length {
        /// Which message.
        what: &'static str,
        /// Bytes found.
        found: usize,
        /// Bytes expected.
        expected: usize,
    },
    /// The message is of another version or another setup, recovery or seat.
    #[error("{0} is not for this setup")]
    Foreign(&'static str),
    /// Not a valid point, or the identity.
    #[error("{what} {index} is not a valid point")]
    Point {
        /// Which points.
        what: &'static str,
        /// Which of them.
        index: usize,
    },
    /// A signature does not verify.
    #[error("signature of the {what} of seat {seat} does not verify")]
    Signature {
        /// Which message.
        what: &'static str,
        /// Who is said to have signed.
        seat: u16,
    },
    /// More shares revealed than is safe.
    #[error(
        "{found} shares are revealed, at most {most} are accepted, and none of a seat that does not deal"
    )]
    TooManyReveals {
        /// Shares revealed.
        found: usize,
        /// Shares that may be.
        most: usize,
    },
    /// A value does not lie on the committed polynomial, or its envelope does not open.
    #[error("share from seat {from} for seat {to} is wrong")]
    Share {
        /// Who made it.
        from: u16,
        /// Whose it is.
        to: u16,
    },
    /// The dealer showed this player another commitment before.
    #[error("dealer {0} dealt two polynomials")]
    Equivocation(u16),
    /// A dealing that is to count is not here.
    #[error("the dealing of seat {0} is missing")]
    Missing(u16),
    /// Too few dealings that count.
    #[error("{found} dealings, {needed} are needed")]
    TooFewDealings {
        /// Dealings that count.
        found: usize,
        /// Dealings needed.
        needed: usize,
    },
    /// This player acknowledged a share that it does not have any more: it is to be recovered.
    #[error("the share from dealer {0} is lost")]
    LostShare(u16),
    /// A sum of public points is the identity.
    #[error("{0} adds up to the identity")]
    Identity(&'static str),
    /// The commitments of a split do not add up to the helper's weighted key.
    #[error("split of helper {0} does not add up to its share")]
    Split(u16),
    /// The secret is not the seat's.
    #[error("{0} is not that of the seat")]
    NotOurs(&'static str),
    /// A key is refused, or a secret turned out to be zero.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
}
