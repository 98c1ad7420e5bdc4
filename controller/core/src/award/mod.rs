//! `Award` on the winner: devices, objects, the Ray job, and the end.
//!
//! Inputs: the Award, what is observed in its namespace and at Ray, the time. Outputs: a plan.
//! Invariants: devices are held before anything is promised; at most one submission of an award is alive; whatever
//! happens, an award ends in Released with nothing left in its namespace.

pub mod allocate;
pub mod evidence;
pub mod objects;
pub mod plan;
pub mod ray_job;
pub mod sizes;
pub(crate) mod taints;
pub mod usage;

use vendue_crds::conditions::{self, award as cond};
use vendue_crds::{Award, AwardSide};

/// Seconds that outputs may take to reach home after the end of the run; then they are dropped.
pub const DELIVERY_GRACE_SECONDS: i64 = 600;

/// Seconds after its expiry in which a held award still waits: a workload that was taken in the last moment may not have
/// been seen yet.
pub const EXPIRY_GRACE_SECONDS: i64 = 5;

/// Whether the award waits for an answer of the allocator.
pub fn needs_hold(award: &Award, now: k8s_openapi::jiff::Timestamp) -> bool {
    let held = award.status.as_ref().and_then(|s| conditions::find(&s.conditions, cond::HELD));
    award.spec.side == AwardSide::Host
        && held.is_none()
        && award.spec.close.is_none()
        && award.metadata.deletion_timestamp.is_none()
        && now < award.spec.expires_at.0
}
