//! A NEWVIEW that leaves out the SET which its sender signed.
//!
//! No seat signs a SET after view 0, so by the time of its first NEWVIEW an honest seat has signed its SET or never will,
//! and a NEWVIEW shows all SETs that its sender holds. Seats that vote FULL and then leave their SETs out could commit one set by
//! n FULL votes and another one in a later view; this is what they are convicted by.

use super::{Fault, Judged, Signed, Unproven, open};
use crate::crypto::Scheme;
use crate::justify::{self, ByRecord};
use crate::record::MarketRecord;
use crate::wire::{Body, Commit};
use serde::{Deserialize, Serialize};
use vendue_market::Digest;
use vendue_market::encode::hex_array;

/// What shows that a seat signed a SET.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum OwnSet {
    /// The SET.
    Message(Signed),
    /// The FULL votes of all seats, each of which is part of a SET.
    Full {
        /// The set that was voted for.
        #[serde(with = "hex_array")]
        digest: Digest,
        /// The aggregate of n votes.
        #[serde(with = "hex_array")]
        aggregate: [u8; 48],
    },
}

/// A NEWVIEW without its sender's SET, and what shows that there is one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HiddenSet {
    /// The NEWVIEW.
    pub view: Signed,
    /// The SET.
    pub set: OwnSet,
}

impl HiddenSet {
    pub(super) fn judge<S: Scheme>(&self, record: &MarketRecord) -> Judged {
        let message = open::<S>(record, &self.view)?;
        let (header, checks) = (&message.header, ByRecord::<S>::new(record));
        let Body::NewView(view) = &message.body else { return Err(Unproven::Malformed) };
        // A NEWVIEW is signed by the hashes of its SETs; what stands in their place must be them.
        if !justify::new_view(&checks, header, view) {
            return Err(Unproven::Signature);
        }
        match &self.set {
            OwnSet::Message(signed) => {
                let set = open::<S>(record, signed)?;
                let Body::Set(_) = &set.body else { return Err(Unproven::Malformed) };
                if (set.header.seat, set.header.round) != (header.seat, header.round) {
                    return Err(Unproven::Unrelated);
                }
            }
            OwnSet::Full { digest, aggregate } => {
                let commit = Commit::Fast { aggregate: *aggregate };
                if !justify::commit(&checks, header.round, digest, &commit) {
                    return Err(Unproven::Certificate);
                }
            }
        }
        // One that shows another SET of its own is guilty of two SETs.
        if view.sets.iter().any(|s| s.seat == header.seat) {
            return Err(Unproven::Innocent);
        }
        Ok((vec![header.seat], Fault::HiddenSet))
    }
}
