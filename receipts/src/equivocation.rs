//! Proof that a key signed two histories.
//!
//! Input: two records. Output: the key that signed both. Invariant: nothing else is needed to check it, and a node that
//! signs one record for each place of each chain cannot be accused.

use crate::encoding::signed_hash;
use crate::names::PublicKey;
use crate::record::Record;
use serde::{Deserialize, Serialize};
use vendue_signatures::{SignatureError, recover};

/// Two records of one key for one place in one chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Equivocation {
    /// One of them.
    pub first: Record,
    /// The other.
    pub second: Record,
}

/// Why two records prove nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EquivocationError {
    /// They belong to two chains.
    #[error("the records are of two awards")]
    Award,
    /// They stand at two places.
    #[error("the records have two sequences")]
    Sequence,
    /// They say the same.
    #[error("the records are the same")]
    Same,
    /// One is not signed.
    #[error("{0}")]
    Signature(SignatureError),
    /// Two keys may say two things.
    #[error("the records are signed by {0} and {1}")]
    Keys(PublicKey, PublicKey),
}

impl Equivocation {
    /// The key that has signed both.
    pub fn verify(&self) -> Result<PublicKey, EquivocationError> {
        let (first, second) = (&self.first, &self.second);
        if first.award != second.award {
            return Err(EquivocationError::Award);
        }
        if first.sequence != second.sequence {
            return Err(EquivocationError::Sequence);
        }
        let digests = [first.digest(), second.digest()];
        let [one, other] = digests;
        if one == other {
            return Err(EquivocationError::Same);
        }
        let signer = |digest, record: &Record| {
            recover(&signed_hash(digest), &record.signature)
                .map(PublicKey)
                .map_err(EquivocationError::Signature)
        };
        let keys = (signer(&one, first)?, signer(&other, second)?);
        if keys.0 == keys.1 { Ok(keys.0) } else { Err(EquivocationError::Keys(keys.0, keys.1)) }
    }
}
