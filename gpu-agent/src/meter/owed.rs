//! Gaps that are still to be recorded because a store failed.
//!
//! Input: windows and gaps that could not be stored. Output: gaps over the same time. Invariant: nothing that was not
//! stored comes back as use, and a store that fails for long costs little room.

use vendue_receipts::{AwardId, Body, Energy, Gap, GapReason};

use super::rules::Draft;

/// Most gaps that wait. Those of one device and award are one, so this is reached by changes of awards only.
const MAX_OWED: usize = 4096;

/// What waits.
#[derive(Debug, Clone, Default)]
pub(super) struct Owed(Vec<Draft>);

impl Owed {
    /// All that waits, which then waits no more.
    pub fn take(&mut self) -> Vec<Draft> {
        std::mem::take(&mut self.0)
    }

    /// What could not be stored. False when there is no room for it.
    pub fn add(&mut self, award: AwardId, body: Body) -> bool {
        let Some(gap) = as_gap(body) else { return true };
        let same = |draft: &&mut Draft| {
            draft.award == award && matches!(&draft.body, Body::Gap(g) if g.device == gap.device)
        };
        let last = self.0.iter_mut().rev().find(same);
        if let Some(Draft { body: Body::Gap(last), .. }) = last
            && let Some(energy) = joined(last, &gap)
        {
            (last.t1_ms, last.energy) = (gap.t1_ms, energy);
            last.xids.merge(&gap.xids);
            return true;
        }
        let has_room = self.0.len() < MAX_OWED;
        if has_room {
            self.0.push(Draft { award, body: Body::Gap(gap) });
        }
        has_room
    }
}

/// A window as the gap that it has become; a gap stays what it is.
fn as_gap(body: Body) -> Option<Gap> {
    match body {
        Body::Used(used) => Some(Gap {
            device: Some(used.device),
            t0_ms: used.t0_ms,
            t1_ms: used.t1_ms,
            reason: GapReason::StoreFailed,
            energy: used.energy,
            xids: used.xids,
        }),
        Body::Gap(gap) => Some(gap),
        Body::Opened(_) | Body::Clock(_) | Body::Rotated(_) | Body::Closed(_) => None,
    }
}

/// The energy of two gaps as one, if they can be one.
fn joined(first: &Gap, second: &Gap) -> Option<Option<Energy>> {
    if first.reason != second.reason || first.t1_ms != second.t0_ms {
        return None;
    }
    match (first.energy, second.energy) {
        (None, None) => Some(None),
        (Some(a), Some(b)) => {
            let used_mj = a.used_mj.checked_add(b.used_mj)?;
            Some(Some(Energy { used_mj, counter_mj: b.counter_mj }))
        }
        _ => None,
    }
}
