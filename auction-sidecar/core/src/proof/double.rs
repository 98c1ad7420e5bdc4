//! Two statements of one seat where the protocol allows one.

use super::{Fault, Judged, Signed, Unproven, open};
use crate::crypto::Scheme;
use crate::evidence;
use crate::record::MarketRecord;
use crate::wire::{Body, Header, Kind, Message};
use serde::{Deserialize, Serialize};
use vendue_market::Digest;
use vendue_market::encode::hex_array;

/// A BUNDLE's signature without the bundle: it is over the bundle's digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedBundle {
    /// The bundle's digest.
    #[serde(with = "hex_array")]
    pub d: Digest,
    /// The seat's signature.
    #[serde(with = "hex_array")]
    pub signature: [u8; 65],
}

/// Two different statements.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Double {
    /// Two BUNDLEs of a round.
    Bundles {
        /// The seat.
        seat: u16,
        /// The round.
        round: u64,
        /// One.
        first: SignedBundle,
        /// The other.
        second: SignedBundle,
    },
    /// Two messages of one kind, round and view.
    Messages {
        /// One.
        first: Signed,
        /// The other.
        second: Signed,
    },
}

/// The view that a message speaks in; none for kinds of which a seat may sign several.
pub(crate) fn place(body: &Body) -> Option<(u32, Fault)> {
    match body {
        Body::Set(_) => Some((0, Fault::TwoSets)),
        Body::Admit(a) => Some((a.view, Fault::TwoVotes)),
        Body::Lock(l) => Some((l.view, Fault::TwoVotes)),
        Body::NewView(v) => Some((v.view, Fault::TwoVotes)),
        Body::Propose(p) => Some((p.view, Fault::TwoVotes)),
        Body::Award(_) => Some((0, Fault::TwoAwards)),
        _ => None,
    }
}

impl Double {
    pub(super) fn judge<S: Scheme>(&self, record: &MarketRecord) -> Judged {
        match self {
            Double::Bundles { seat, round, first, second } => {
                let header = Header {
                    kind: Kind::Bundle,
                    market: record.short_id(),
                    epoch: record.epoch,
                    round: *round,
                    seat: *seat,
                };
                let key = record.seat(*seat).ok_or(Unproven::Signature)?.evidence_key;
                for version in [first, second] {
                    let hash = evidence::bundle_hash_by::<S>(&record.market, &header, &version.d);
                    if !S::verify_signature(&hash, &version.signature, &key) {
                        return Err(Unproven::Signature);
                    }
                }
                if first.d == second.d {
                    return Err(Unproven::Innocent);
                }
                Ok((vec![*seat], Fault::TwoBundles))
            }
            Double::Messages { first, second } => {
                let (first, second) = (open::<S>(record, first)?, open::<S>(record, second)?);
                let (place_of_first, place_of_second) = (place(&first.body), place(&second.body));
                if first.header != second.header || place_of_first != place_of_second {
                    return Err(Unproven::Unrelated);
                }
                let (_, fault) = place_of_first.ok_or(Unproven::Malformed)?;
                // Signing the same twice is what sending again is. What is signed counts, not the bytes: anybody can give
                // a NEWVIEW another signature of a SET in it.
                let signed = |m: &Message| evidence::message_hash_by::<S>(&record.market, &m.header, &m.body);
                if signed(&first) == signed(&second) {
                    return Err(Unproven::Innocent);
                }
                Ok((vec![first.header.seat], fault))
            }
        }
    }
}
