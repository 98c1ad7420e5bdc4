//! What changed between two lists of conditions: the source of Events and of transition metrics.
//!
//! Inputs: conditions before and after. Outputs: one transition for each that is new or changed status or reason.
//! Invariant: equal lists give none, so a repeated plan publishes nothing.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use vendue_crds::conditions::{find, reasons};

use crate::text;

/// A condition that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// Type of the condition.
    pub condition: String,
    /// Its new status.
    pub status: String,
    /// Its new reason.
    pub reason: String,
    /// Its message, bounded.
    pub message: String,
    /// Whether an operator or user should look at it.
    pub warning: bool,
}

const WARNINGS: [&str; 19] = [
    reasons::INVALID_SPEC,
    reasons::REFERENCE_NOT_FOUND,
    reasons::NO_FEASIBLE_BID,
    reasons::SEARCH_TIME_OVER,
    reasons::CAPACITY_GONE,
    reasons::COMMITMENT_MISMATCH,
    reasons::FAILED,
    reasons::DEADLINE_EXCEEDED,
    reasons::RUNTIME_ERROR,
    reasons::DELIVERY_TIMEOUT,
    reasons::OUTPUTS_TOO_LARGE,
    reasons::NO_GPUS,
    reasons::STORAGE_CLASS_MISSING,
    reasons::RUNTIME_CLASS_MISSING,
    reasons::NAME_TAKEN,
    reasons::FINGERPRINT_CHANGED,
    reasons::SAME_UUID,
    reasons::LABELS_DIFFER,
    reasons::NOT_HEARD,
];

/// Transitions from `before` to `after`, in the order of `after`.
pub fn transitions(before: &[Condition], after: &[Condition]) -> Vec<Transition> {
    after
        .iter()
        .filter(|new| {
            find(before, &new.type_).is_none_or(|old| old.status != new.status || old.reason != new.reason)
        })
        .map(|new| Transition {
            condition: new.type_.clone(),
            status: new.status.clone(),
            reason: new.reason.clone(),
            message: text::head(&new.message, text::MAX_MESSAGE),
            warning: WARNINGS.contains(&new.reason.as_str()),
        })
        .collect()
}

/// Every reason that may become a label of a metric; others come from a newer or foreign winner.
const KNOWN: [&str; 47] = [
    reasons::VALID,
    reasons::INVALID_SPEC,
    reasons::REFERENCE_NOT_FOUND,
    reasons::SUSPENDED,
    reasons::MANAGED_ELSEWHERE,
    reasons::AUCTION_PENDING,
    reasons::NO_FEASIBLE_BID,
    reasons::ROUND_UNDECIDED,
    reasons::SEARCH_TIME_OVER,
    reasons::CERTIFIED,
    reasons::RESERVING,
    reasons::DEVICES_HELD,
    reasons::CAPACITY_GONE,
    reasons::AWARD_EXPIRED,
    reasons::COMMITMENT_MISMATCH,
    reasons::CREATING,
    reasons::CREATED,
    reasons::SUBMITTED,
    reasons::RUNNING,
    reasons::RESTARTED,
    reasons::SUCCEEDED,
    reasons::FAILED,
    reasons::DEADLINE_EXCEEDED,
    reasons::CLOSED,
    reasons::RUNTIME_ERROR,
    reasons::STORED,
    reasons::DELIVERY_TIMEOUT,
    reasons::OUTPUTS_TOO_LARGE,
    reasons::TORN_DOWN,
    reasons::GPUS_REPORTED,
    reasons::NO_GPUS,
    reasons::STORAGE_CLASS_MISSING,
    reasons::RUNTIME_CLASS_MISSING,
    reasons::NAME_TAKEN,
    reasons::OFFERED,
    reasons::SEAT_NOT_ACTIVE,
    reasons::IN_USE,
    reasons::IDLE,
    reasons::AS_BID,
    reasons::OTHER_DEVICES,
    reasons::FINGERPRINT_CHANGED,
    reasons::SAME_UUID,
    reasons::UNIQUE,
    reasons::LABELS_DIFFER,
    reasons::LABELS_AGREE,
    reasons::NOT_HEARD,
    reasons::HEARD,
];

/// The reason as a label: itself when it is known, else "other".
pub fn bounded_reason(reason: &str) -> &'static str {
    KNOWN.iter().find(|known| **known == reason).copied().unwrap_or("other")
}
