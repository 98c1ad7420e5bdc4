//! What one seat says when the dealings are agreed: which commitment is its own, whose it acknowledges, and the values
//! of players that did not acknowledge its own.
//!
//! Layout: version 2, setup 32, own commitment's digest 32 (zeros: the seat does not deal), for each dealer the digest of
//! the commitment that the seat holds a good value of (zeros for none), number of revealed values u16, for each in ascending
//! order its player u16 and the value 32. Invariant: one encoding; at most n - q values; none without a commitment.

use super::dealing::VERSION;
use super::{DkgError, Setup};
use std::collections::{BTreeMap, BTreeSet};

/// Where there is no commitment.
pub(super) const NONE: [u8; 32] = [0; 32];

/// A seat's contribution. Its values are public.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contribution {
    /// The digest of the seat's own commitment; zeros when it does not deal.
    pub commitment: [u8; 32],
    /// By dealer, the digest of the commitment that the seat holds a good value of; zeros for none.
    pub acks: Vec<[u8; 32]>,
    /// Values of its own polynomial, big-endian, by player.
    pub reveals: BTreeMap<u16, [u8; 32]>,
}

impl Contribution {
    /// The contribution's bytes.
    pub fn to_bytes(&self, setup: &Setup) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend(setup.digest());
        out.extend(self.commitment);
        self.acks.iter().for_each(|ack| out.extend(ack));
        out.extend((self.reveals.len() as u16).to_be_bytes());
        for (player, value) in &self.reveals {
            out.extend(player.to_be_bytes());
            out.extend(value);
        }
        out
    }

    /// Most bytes of a contribution: one that reveals as many values as a dealer may.
    pub fn most_bytes(setup: &Setup) -> usize {
        1 + 32 + 32 + usize::from(setup.seats()) * 32 + 2 + setup.most_reveals() * 34
    }

    /// Reads a contribution.
    pub fn read(setup: &Setup, bytes: &[u8]) -> Result<Self, DkgError> {
        let what = "contribution";
        let acks_len = usize::from(setup.seats()) * 32;
        let least = 1 + 32 + 32 + acks_len + 2;
        let length = |expected| DkgError::Length { what, found: bytes.len(), expected };
        let (head, rest) = bytes.split_first_chunk::<33>().ok_or(length(least))?;
        let [version, session @ ..] = head;
        if *version != VERSION || *session != setup.digest() {
            return Err(DkgError::Foreign(what));
        }
        let (commitment, rest) = rest.split_first_chunk::<32>().ok_or(length(least))?;
        let (acks, rest) = rest.split_at_checked(acks_len).ok_or(length(least))?;
        let (count, rest) = rest.split_first_chunk::<2>().ok_or(length(least))?;
        let (found, most) = (usize::from(u16::from_be_bytes(*count)), setup.most_reveals());
        if found > most || (found > 0 && *commitment == NONE) {
            return Err(DkgError::TooManyReveals { found, most });
        }
        if rest.len() != found * 34 {
            return Err(length(least + found * 34));
        }
        let mut reveals = BTreeMap::new();
        for [high, low, value @ ..] in rest.as_chunks::<34>().0 {
            let player = u16::from_be_bytes([*high, *low]);
            setup.check_seat(player)?;
            if reveals.last_key_value().is_some_and(|(last, _)| *last >= player) {
                return Err(DkgError::Duplicate(player));
            }
            reveals.insert(player, *value);
        }
        Ok(Self { commitment: *commitment, acks: acks.as_chunks::<32>().0.to_vec(), reveals })
    }

    /// Whether this seat acknowledges that commitment of a dealer.
    pub(super) fn acknowledges(&self, dealer: u16, commitment: &[u8; 32]) -> bool {
        self.acks.get(usize::from(dealer)) == Some(commitment)
    }
}

/// The players whose value of a dealer's polynomial an agreed set of contributions does not account for: neither do they
/// acknowledge its commitment, nor does the dealer reveal their value. Without a contribution of the dealer nobody is.
pub fn unaccounted(setup: &Setup, contributions: &BTreeMap<u16, Contribution>, dealer: u16) -> BTreeSet<u16> {
    let own = contributions.get(&dealer).filter(|own| own.commitment != NONE);
    let Some(own) = own else { return (0..setup.seats()).collect() };
    let acknowledges = |player: &u16| {
        contributions.get(player).is_some_and(|theirs| theirs.acknowledges(dealer, &own.commitment))
    };
    (0..setup.seats()).filter(|player| !acknowledges(player) && !own.reveals.contains_key(player)).collect()
}

/// The commitments that an outcome of an agreed set of contributions needs: of the dealers that account for every
/// player, as far as one can tell without them. Each is held by more than f honest seats, which acknowledge it.
pub fn wanted(setup: &Setup, contributions: &BTreeMap<u16, Contribution>) -> BTreeMap<u16, [u8; 32]> {
    let complete = contributions.iter().filter(|(dealer, own)| {
        own.commitment != NONE && unaccounted(setup, contributions, **dealer).is_empty()
    });
    complete.map(|(dealer, own)| (*dealer, own.commitment)).collect()
}
