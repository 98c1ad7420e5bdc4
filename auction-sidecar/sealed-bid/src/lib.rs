//! Threshold sealing, shares and votes.
//!
//! A bid is sealed to a *round*: anybody can seal, nobody can open before a quorum of seats released a share of the
//! round's signature, and then everything sealed to that round opens (Boneh-Franklin identity-based encryption with
//! the Fujisaki-Okamoto transform over a threshold BLS key). The combined signature is unique and is the round's
//! beacon. Votes are BLS min-sig multi-signatures.
//!
//! Inputs are bytes and random sources that the caller passes; outputs are bytes. Invariants: a point that is the
//! identity, off the curve, off the subgroup or of the wrong length is refused; keys, shares and the secrets that are
//! derived from them are wiped when dropped and have no `Debug` (what blst and `threshold_crypto` leave on the stack while
//! they compute is not wiped); sealing the same input twice gives the same bytes, so that a restarted seat cannot say two
//! things.
//!
//! The seats make the seal key together ([`dkg`]); [`deal`] is for development. Polynomials are `threshold_crypto`'s;
//! every multiplication of a point by a secret that a seat keeps is done by blst in constant time.
//!
//! Sources: Boneh and Franklin, "Identity-Based Encryption from the Weil Pairing", 2001; Fujisaki and Okamoto, "Secure
//! Integration of Asymmetric and Symmetric Encryption Schemes", 1999; RFC 9380; draft-irtf-cfrg-bls-signature. Every byte
//! that another implementation has to agree on is written down, with vectors, in the folder `vectors` of this crate.

mod batch;
mod deal;
pub mod dkg;
mod raw;
mod seal;
mod share;
mod signers;
mod tally;
mod vote;

pub use deal::{Deal, deal};
pub use seal::{BidKey, Sealed, open, seal};
pub use share::{
    Combined, RoundId, SealShare, bad_shares, check_key_set, check_seal_key, combine, verify_combined,
    verify_share,
};
pub use signers::SignerSet;
pub use vote::{
    MultiVote, PossessionContext, VoteKey, VoteKeyClaim, VoteKeySet, aggregate_votes, check_vote_key,
    verify_aggregate, verify_vote,
};

/// Domain of seal shares.
pub const SEAL_DOMAIN: &[u8] = b"VENDUE-V1-SEAL_BLS12381G2_XMD:SHA-256_SSWU_RO_";
/// Domain of votes.
pub const VOTE_DOMAIN: &[u8] = b"VENDUE-V1-VOTE_BLS12381G1_XMD:SHA-256_SSWU_RO_";
/// Domain of proofs of possession.
pub const POSSESSION_DOMAIN: &[u8] = b"VENDUE-V1-POP_BLS12381G1_XMD:SHA-256_SSWU_RO_";

/// Domain of the messages of key generation.
pub const DKG_DOMAIN: &[u8] = b"VENDUE-V1-DKG_BLS12381G1_XMD:SHA-256_SSWU_RO_";

/// Why keys, shares or votes are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CryptoError {
    /// Not a valid point: wrong encoding, identity, off the curve or off the subgroup.
    #[error("{0} is not a valid point")]
    Point(&'static str),
    /// Not a valid secret scalar.
    #[error("{0} is not a valid secret")]
    Secret(&'static str),
    /// The proof of possession does not verify.
    #[error("proof of possession does not verify")]
    Possession,
    /// Key numbers that make no sense.
    #[error("{quorum} of {seats} is not a usable quorum")]
    Quorum {
        /// Seats.
        seats: u16,
        /// Shares needed.
        quorum: u16,
    },
    /// Fewer shares than the quorum.
    #[error("{found} shares, {needed} are needed")]
    TooFewShares {
        /// Distinct shares given.
        found: usize,
        /// Shares needed.
        needed: usize,
    },
    /// These seats' shares do not verify.
    #[error("bad shares of seats {0:?}")]
    BadShares(Vec<u16>),
    /// The keys of the shares do not belong to the seal key.
    #[error("share keys and seal key are not on one polynomial of degree {degree}")]
    KeySet {
        /// The degree that the quorum asks for.
        degree: u16,
    },
    /// The seats that are said to have signed make no sense.
    #[error("signers: {0}")]
    Signers(&'static str),
    /// Fewer votes than the quorum.
    #[error("{found} votes, {needed} are needed")]
    TooFewVotes {
        /// Votes counted.
        found: usize,
        /// Votes needed.
        needed: usize,
    },
    /// The aggregate is not the vote of the seats that are said to have signed.
    #[error("aggregate of votes does not verify")]
    Votes,
    /// Key generation failed.
    #[error("key generation failed")]
    Generation,
}
