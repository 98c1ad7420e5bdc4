//! An ADMIT that the proposal it names does not permit.

use super::{Fault, Judged, Signed, Unproven, open};
use crate::crypto::Scheme;
use crate::evidence::message_hash_by;
use crate::justify::{self, ByRecord};
use crate::record::MarketRecord;
use crate::wire::Body;
use serde::{Deserialize, Serialize};

/// An ADMIT, the PROPOSE that it names and, where the proposal itself is good, a LOCK of the same seat for another set in
/// a lower view than any quorum that the proposal shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgainstLock {
    /// The ADMIT.
    pub admit: Signed,
    /// The proposal that it names.
    pub proposal: Signed,
    /// The LOCK.
    pub lock: Option<Signed>,
}

impl AgainstLock {
    pub(super) fn judge<S: Scheme>(&self, record: &MarketRecord) -> Judged {
        let admit = open::<S>(record, &self.admit)?;
        let proposal = open::<S>(record, &self.proposal)?;
        let Body::Admit(vote) = &admit.body else { return Err(Unproven::Malformed) };
        let digest = message_hash_by::<S>(&record.market, &proposal.header, &proposal.body);
        let Body::Propose(propose) = &proposal.body else { return Err(Unproven::Malformed) };
        if vote.proposal != digest || admit.header.round != proposal.header.round {
            return Err(Unproven::Unrelated);
        }
        let guilty = Ok((vec![admit.header.seat], Fault::AgainstLock));
        let derived = justify::proposal(&ByRecord::<S>::new(record), &proposal.header, propose);
        let derived = derived.filter(|_| propose.view == vote.view && propose.set == vote.set);
        match (derived, &self.lock) {
            (None, None) => guilty,
            // One proof has one form: the lock is not needed.
            (None, Some(_)) => Err(Unproven::Unrelated),
            (Some(_), None) => Err(Unproven::Innocent),
            (Some(derived), Some(lock)) => {
                let message = open::<S>(record, lock)?;
                let Body::Lock(lock) = &message.body else { return Err(Unproven::Malformed) };
                let (by, at) = ((admit.header.seat, admit.header.round), &message.header);
                if (at.seat, at.round) != by {
                    return Err(Unproven::Unrelated);
                }
                let freed = derived.from.is_some_and(|from| from > lock.view);
                if lock.view >= vote.view || lock.set == vote.set || freed {
                    return Err(Unproven::Innocent);
                }
                guilty
            }
        }
    }
}
