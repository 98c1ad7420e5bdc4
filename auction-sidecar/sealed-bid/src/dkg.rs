//! Distributed key generation: the seats make the seal key of an epoch together, and nobody ever holds it.
//!
//! Joint-Feldman (Feldman, "A Practical Scheme for Non-interactive Verifiable Secret Sharing", 1987; Pedersen, "A
//! Threshold Cryptosystem without a Trusted Party", 1991) with acknowledgements instead of complaints. Each seat is
//! dealer and player:
//!
//! 1. A [`Dealer`] has a polynomial of degree q - 1. It announces the digest of the commitment to it. Then it sends one
//!    [`Dealing`] to all: the commitment and, encrypted to each player, the polynomial's value at the player's point.
//! 2. A [`Player`] checks its values against the commitments and acknowledges them, one commitment per dealer, and only
//!    one that was announced before the player's own seat dealt.
//! 3. Each seat makes one [`Contribution`]: its own commitment, its acknowledgements, and in public the values of
//!    those players that did not acknowledge its own commitment, at most n - q of them.
//! 4. Which contributions count is agreed elsewhere. The key is then a pure function of that set ([`outcome`]): a dealer
//!    counts when every player acknowledges its commitment or has its value revealed; q dealers make a key.
//!
//! A dealer that counts accounts for every player, so every honest player, and those are q, holds its value or can read it:
//! the dealer knew that many values of its polynomial and with them all of it, and cannot have chosen its part of the key as
//! a difference to others' parts. Of an honest dealer at most n - q values are public and f more are with faulty seats,
//! together fewer than the q that give the polynomial. At least one honest dealer that counts dealt after all counted faulty
//! ones had committed, so none of them chose its polynomial by what the others dealt: neither to bias the key (Gennaro, Jarecki,
//! Krawczyk and Rabin, "Secure Distributed Key Generation for Discrete-Log Based Cryptosystems", 1999) nor to make a share of
//! it zero, of which there would be no key. Which dealers count they can still choose among; the key must be unpredictable,
//! not uniform, and no randomness is taken from it.
//!
//! A player that acknowledges to the dealer and not in its contribution makes a dealer that revealed nothing for it not
//! count. The dealer sees that in the agreed set ([`unaccounted`]) and reveals that player's value in its next
//! contribution; honest dealings stay the same, so this can be done to them once for each faulty player.
//!
//! The same dealings with a constant term of zero renew all shares under the same key (proactive refresh: Herzberg,
//! Jarecki, Krawczyk and Yung, "Proactive Secret Sharing", 1995), and [`Recovery`] gives a seat its lost share back.
//! An epoch change is a new key generation.
//!
//! Deal keys and dealer seeds are made anew for each generation and wiped after it. Whoever takes a deal key later and has
//! recorded the traffic can open what was sent to it, and whoever takes a seed can deal again what was dealt from it:
//! with keys that live on, a refresh would not protect the shares of before.
//!
//! Inputs: bytes, keys and seeds. Outputs: bytes, a [`KeySet`] and a seat's [`SealShare`](crate::SealShare). No IO
//! and no clock. Invariants: everything that a dealer sends is a function of its seed, so that after a restart it sends the
//! same again; keys, seeds, polynomials and values are wiped when dropped.
//!
//! Field arithmetic on a dealer's polynomial is `threshold_crypto`'s; every multiplication of a point by a secret
//! is blst's, in constant time.

mod contribution;
mod dealer;
mod dealing;
mod envelope;
mod error;
mod key_set;
mod player;
mod poly;
mod recover;
mod reveals;
mod setup;

pub use contribution::{Contribution, unaccounted, wanted};
pub use dealer::Dealer;
pub use dealing::Dealing;
pub use envelope::{DealKey, RecipientKey};
pub use error::DkgError;
pub use key_set::KeySet;
pub use player::{Dealings, Outcome, Player, outcome};
pub use poly::DealerSeed;
pub(crate) use poly::to_scalar;
pub use recover::{Part, Recovery, Split};
pub use setup::{Members, Purpose, Setup, quorum};

/// Version of the messages of a recovery.
const VERSION: u8 = 1;

/// What a signature in the domain of key generation is for; the first byte of what is signed.
#[derive(Clone, Copy)]
enum Word {
    Split = 4,
    Part = 5,
}

/// What is signed: word, digest of the recovery, seat of the helper, and the rest.
fn signed(word: Word, session: &[u8; 32], seat: u16, rest: &[&[u8]]) -> Vec<u8> {
    let mut out = vec![word as u8];
    out.extend(session);
    out.extend(seat.to_be_bytes());
    rest.iter().for_each(|part| out.extend(*part));
    out
}
