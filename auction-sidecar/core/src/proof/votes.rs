//! Two votes of a seat where one is allowed, shown by a message or by the aggregates that its votes are part of.
//!
//! Vote keys have proven possession, so a valid aggregate shows that each of its signers voted. This is how a seat is
//! caught that tells two halves two things: one half holds its message, and sees its vote in a quorum of the other.

use super::{Fault, Judged, Signed, Unproven, open};
use crate::crypto::Scheme;
use crate::justify::{ByRecord, Checks, set_digest, vote_message};
use crate::record::MarketRecord;
use crate::wire::{Body, Quorum, Signers, VoteWord, listed_of};
use serde::{Deserialize, Serialize};
use vendue_market::Digest;
use vendue_market::encode::{from_hex, hex_array, to_hex};

/// What was voted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // The votes of the protocol.
pub enum Ballot {
    Full,
    Admit,
    Lock,
    Award,
}

/// Votes for one digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Voted {
    /// One seat's ADMIT, LOCK or AWARD, or its SET: what FULL is the vote for, if it is.
    Message(Signed),
    /// An aggregate of several seats.
    Quorum {
        /// What was voted on.
        ballot: Ballot,
        /// The round.
        round: u64,
        /// The view; 0 where there is none.
        view: u32,
        /// The digest voted for.
        #[serde(with = "hex_array")]
        digest: Digest,
        /// Bitmap of the seats, in hex.
        signers: String,
        /// Their aggregated vote.
        #[serde(with = "hex_array")]
        aggregate: [u8; 48],
    },
}

/// Two votes in one place for different digests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TwoVotes {
    /// One.
    pub first: Voted,
    /// The other.
    pub second: Voted,
}

/// Where and for what somebody voted.
struct Shown {
    place: (Ballot, u64, u32),
    digest: Digest,
    seats: Vec<u16>,
}

impl Voted {
    /// The votes of a quorum.
    pub fn quorum(ballot: Ballot, round: u64, view: u32, digest: Digest, quorum: &Quorum) -> Self {
        let signers = to_hex(&quorum.signers.bitmap());
        Voted::Quorum { ballot, round, view, digest, signers, aggregate: quorum.aggregate }
    }

    fn show<S: Scheme>(&self, record: &MarketRecord) -> Result<Shown, Unproven> {
        match self {
            Voted::Message(signed) => {
                let message = open::<S>(record, signed)?;
                let (ballot, view, digest) = match &message.body {
                    Body::Admit(a) => (Ballot::Admit, a.view, a.set),
                    Body::Lock(l) => (Ballot::Lock, l.view, l.set),
                    Body::Award(a) => (Ballot::Award, 0, a.root),
                    Body::Set(s) => {
                        let listed = listed_of(&s.held);
                        (Ballot::Full, 0, set_digest(record, message.header.round, &listed))
                    }
                    _ => return Err(Unproven::Malformed),
                };
                let place = (ballot, message.header.round, view);
                Ok(Shown { place, digest, seats: vec![message.header.seat] })
            }
            Voted::Quorum { ballot, round, view, digest, signers, aggregate } => {
                let bitmap = from_hex(signers).ok_or(Unproven::Malformed)?;
                let signers = Signers::from_bitmap(&bitmap, record.n()).map_err(|_| Unproven::Malformed)?;
                let seats: Vec<u16> = signers.iter().collect();
                let word = match ballot {
                    Ballot::Full => VoteWord::Full,
                    Ballot::Admit => VoteWord::Admit,
                    Ballot::Lock => VoteWord::Lock,
                    Ballot::Award => VoteWord::Award,
                };
                let message = vote_message(record, *round, word, *view, digest);
                if !ByRecord::<S>::new(record).aggregate(&seats, &message, aggregate) {
                    return Err(Unproven::Signature);
                }
                Ok(Shown { place: (*ballot, *round, *view), digest: *digest, seats })
            }
        }
    }
}

impl TwoVotes {
    pub(super) fn judge<S: Scheme>(&self, record: &MarketRecord) -> Judged {
        let (first, second) = (self.first.show::<S>(record)?, self.second.show::<S>(record)?);
        if first.place != second.place {
            return Err(Unproven::Unrelated);
        }
        let both: Vec<u16> = first.seats.into_iter().filter(|s| second.seats.contains(s)).collect();
        if first.digest == second.digest || both.is_empty() {
            return Err(Unproven::Innocent);
        }
        let fault = match first.place.0 {
            Ballot::Award => Fault::TwoAwards,
            Ballot::Full => Fault::TwoSets,
            Ballot::Admit | Ballot::Lock => Fault::TwoVotes,
        };
        Ok((both, fault))
    }
}
