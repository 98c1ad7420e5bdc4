//! What is told again, held against what is here.
//!
//! Inputs: records that are told, a reader of those that are here. Output: two records of one signer for one place. Invariant:
//! every record that is here is compared, in whichever file it is.

use vendue_receipts::{Equivocation, Record};

use crate::error::StoreError;

/// The first contradiction. `here` reads records from a sequence on, at most so many, and none only when there are none.
pub(crate) fn contradiction(
    mut told: &[Record],
    here: impl Fn(u64, usize) -> Result<Vec<Record>, StoreError>,
) -> Result<Option<Equivocation>, StoreError> {
    while let Some(first) = told.first() {
        let known = here(first.sequence, told.len())?;
        let Some((these, rest)) = told.split_at_checked(known.len()).filter(|_| !known.is_empty()) else {
            break;
        };
        let pairs = known.into_iter().zip(these).filter(|(one, other)| one != *other);
        let mut found = pairs.map(|(first, second)| Equivocation { first, second: second.clone() });
        // Without a signature of the same key it proves nothing, and is no record of this chain.
        if let Some(both) = found.find(|both| both.verify().is_ok()) {
            return Ok(Some(both));
        }
        told = rest;
    }
    Ok(None)
}
