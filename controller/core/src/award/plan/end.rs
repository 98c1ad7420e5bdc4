//! After the run: delivery, and removal of everything.
//!
//! Invariant: GPUs are given back as soon as the worker Pods are gone; the head stays until its outputs are at home or
//! the grace is over; Released is set only when nothing is left, and the last receipts are in or do not come.

use std::time::Duration;

use vendue_crds::conditions::{award as cond, reasons};

use super::status::Draft;
use super::{
    ChildKey, DELIVERY_GRACE_SECONDS, Observed, RayAction, closing, current_submission, handed_over,
};
use crate::{FinalizerStep, after, until};

/// How often the last receipts are looked for.
const RECEIPTS_PAUSE: Duration = Duration::from_secs(1);

fn pod(name: &str) -> ChildKey {
    ChildKey { kind: "Pod", name: name.to_owned() }
}

/// Keeps the head for the courier, and frees the devices.
pub(super) fn deliver(draft: &mut Draft<'_>, observed: &Observed) {
    draft.plan.finalizer = FinalizerStep::Add;
    draft.meter(observed.bills.as_deref());
    let workers: Vec<_> = observed.pods.iter().filter(|p| !p.head).collect();
    draft.plan.deletions = workers.iter().filter(|p| !p.deleting).map(|p| pod(&p.name)).collect();
    if workers.is_empty() {
        draft.plan.status.devices.clear();
        draft.runtime().workers_ready = 0;
        let now = draft.now;
        let ended = draft.runtime().ended_at.as_ref().map_or(now, |t| t.0);
        let grace = until(draft.now, after(ended, DELIVERY_GRACE_SECONDS));
        draft.plan.requeue = Some(if draft.awaits_receipts() { grace.min(RECEIPTS_PAUSE) } else { grace });
    } else {
        draft.plan.requeue = Some(Duration::from_secs(1));
    }
}

/// Removes everything; Pods first, and what confines them only after they are gone.
pub(super) fn teardown(draft: &mut Draft<'_>, observed: &Observed) {
    let handed_over = handed_over(draft.award);
    if handed_over && !draft.is(cond::FINISHED) {
        let was_running = draft.is(cond::PROVISIONED);
        draft.finish(reasons::CLOSED, "the award was closed by its home or by its deletion", "", None);
        if was_running {
            draft.plan.ray = RayAction::Stop { id: current_submission(draft.award) };
        }
    }
    draft.meter(observed.bills.as_deref());
    // Not observed is not gone.
    let Some(present) = &observed.present else {
        draft.plan.requeue = Some(Duration::from_millis(500));
        return;
    };
    if !observed.pods.is_empty() {
        let running = observed.pods.iter().filter(|p| !p.deleting);
        draft.plan.deletions = running.map(|p| pod(&p.name)).collect();
        let with_pods = ["Service", "PersistentVolumeClaim"];
        draft.plan.deletions.extend(present.iter().filter(|k| with_pods.contains(&k.kind)).cloned());
        draft.plan.requeue = Some(Duration::from_secs(1));
    } else if !present.is_empty() {
        draft.plan.deletions = present.iter().cloned().collect();
        draft.plan.requeue = Some(Duration::from_millis(300));
    } else if draft.awaits_receipts() {
        draft.plan.status.devices.clear();
        draft.plan.requeue = Some(RECEIPTS_PAUSE);
    } else {
        released(draft, handed_over);
    }
}

/// An award whose workload arrived while it was given up: home waits for an end, and nothing will run.
pub(super) fn conclude(draft: &mut Draft<'_>) {
    if handed_over(draft.award) && !draft.is(cond::FINISHED) {
        let text = "the workload arrived when the award was being given up; nothing ran";
        draft.finish(reasons::RUNTIME_ERROR, text, "", None);
    }
}

fn released(draft: &mut Draft<'_>, handed_over: bool) {
    draft.plan.status.devices.clear();
    if let Some(runtime) = &mut draft.plan.status.runtime {
        runtime.workers_ready = 0;
    }
    let (reason, message) = match (handed_over, closing(draft.award)) {
        (true, _) => (reasons::TORN_DOWN, "nothing of the workload is left; the devices are free"),
        (false, true) => (reasons::CLOSED, "closed before the workload arrived; the devices are free"),
        (false, false) => {
            (reasons::AWARD_EXPIRED, "the workload did not arrive in time; the devices are free")
        }
    };
    draft.set(cond::RELEASED, true, reason, message);
    if !draft.is(cond::FINISHED) {
        draft.state("Released");
    }
    draft.plan.finalizer = FinalizerStep::Remove;
}
