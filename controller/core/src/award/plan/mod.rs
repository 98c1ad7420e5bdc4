//! The life of an award on the winner: Held, objects, submission, run, end, delivery, teardown.
//!
//! Inputs: the Award, [`Observed`], the time. Outputs: a [`Plan`]; the shell asks [`look`] first what to observe.
//! Invariants: everything is decided from the Award and what is observed now, so a restart of the controller changes
//! nothing; what was ended never starts again; devices are given back only when the worker Pods are gone.

mod end;
mod status;
mod work;

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use vendue_crds::conditions::{self, award as cond, reasons};
use vendue_crds::workload::Workload;
use vendue_crds::{AsBid, Award, AwardSide, AwardStatus, names};

use super::allocate::Allocation;
use super::objects::{Child, ChildKey, Env, Terms, Tokens};
use super::ray_job;
use super::usage::{NodeBill, Run};
use super::{DELIVERY_GRACE_SECONDS, EXPIRY_GRACE_SECONDS, evidence, needs_hold};
use crate::transition::{Transition, transitions};
use crate::{FinalizerStep, after, until};
use status::Draft;

/// Where an award stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not this controller's: the home side.
    NotOurs,
    /// Waits for the allocator.
    NeedsHold,
    /// Nothing is held and nothing will be.
    Refused,
    /// Expired or closed before anything was held.
    Unheld,
    /// Devices are held; the workload has not arrived.
    Waiting,
    /// The workload is to run or runs.
    Working,
    /// It ended; logs and outputs are on their way home.
    Delivering,
    /// Everything is to be removed.
    Teardown,
    /// Nothing is left.
    Released,
}

/// What the shell must look at before it plans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Nothing but the Award.
    Nothing,
    /// The Pods.
    Pods,
    /// Every object of the award.
    All,
}

/// A Pod of the award.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSeen {
    /// Name.
    pub name: String,
    /// Whether it is the head.
    pub head: bool,
    /// Phase.
    pub phase: String,
    /// Whether the Ray container is ready.
    pub ready: bool,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// When it was created.
    pub created: Timestamp,
    /// Why it does not run: a container's waiting reason, or `Unschedulable`.
    pub trouble: Option<(String, String)>,
    /// Restarts of the Ray container.
    pub restarts: i32,
}

/// What was seen before planning.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// Answer of the allocator, when [`needs_hold`].
    pub allocation: Option<Allocation>,
    /// Terms of the Provision; `None` when it is gone.
    pub terms: Option<Terms>,
    /// The workload, or why it cannot be read. `None` when it was not looked at.
    pub workload: Option<Result<Workload, String>>,
    /// Pods of the award.
    pub pods: Vec<PodSeen>,
    /// Objects of the award other than Pods. `None` when they were not looked at.
    pub present: Option<BTreeSet<ChildKey>>,
    /// What Ray says.
    pub ray: ray_job::Seen,
    /// When Ray last said that the entry point runs, as far as this process saw it.
    pub seen_running: Option<Timestamp>,
    /// What receipts of the award add up to. `None` when they were not looked at.
    pub bills: Option<Vec<NodeBill>>,
    /// Random tokens, used when the award has none yet.
    pub fresh_tokens: Option<Tokens>,
    /// Fingerprint of the devices of the node that the award has, or is given now; `None` when it is not known.
    pub fingerprint: Option<String>,
}

/// What to ask of Ray.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RayAction {
    /// Nothing.
    #[default]
    None,
    /// Submit the entry point under this id, unless it is known there.
    Submit {
        /// Submission id.
        id: String,
        /// Command line.
        entrypoint: String,
    },
    /// Stop the job of this id, as well as that goes.
    Stop {
        /// Submission id.
        id: String,
    },
}

/// What to do, in this order: finalizer (when added), deletions, children, Ray, status, Events, finalizer (when
/// removed).
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The finalizer.
    pub finalizer: FinalizerStep,
    /// Objects to delete.
    pub deletions: Vec<ChildKey>,
    /// Objects to create.
    pub children: Vec<Child>,
    /// What to ask of Ray.
    pub ray: RayAction,
    /// The controller's part of the status.
    pub status: AwardStatus,
    /// What changed.
    pub transitions: Vec<Transition>,
    /// When to look again even if nothing happens.
    pub requeue: Option<Duration>,
}

fn closing(award: &Award) -> bool {
    award.spec.close.is_some() || award.metadata.deletion_timestamp.is_some()
}

fn our_conditions(award: &Award) -> Vec<Condition> {
    let relayed = [cond::HANDED_OVER, cond::DELIVERED];
    let all = award.status.iter().flat_map(|s| &s.conditions);
    all.filter(|c| !relayed.contains(&c.type_.as_str())).cloned().collect()
}

/// Where the award stands at `now`.
pub fn phase(award: &Award, now: Timestamp) -> Phase {
    let none = Vec::new();
    let list = award.status.as_ref().map_or(&none, |s| &s.conditions);
    if award.spec.side != AwardSide::Host {
        return Phase::NotOurs;
    }
    if conditions::is_true(list, cond::RELEASED) {
        return Phase::Released;
    }
    if conditions::is_false(list, cond::HELD) {
        return Phase::Refused;
    }
    if !conditions::is_true(list, cond::HELD) {
        return if needs_hold(award, now) { Phase::NeedsHold } else { Phase::Unheld };
    }
    if conditions::is_true(list, cond::FINISHED) {
        return if delivered(award, now) { Phase::Teardown } else { Phase::Delivering };
    }
    match handed_over(award) {
        _ if closing(award) => Phase::Teardown,
        true => Phase::Working,
        false if now >= lapses_at(award) => Phase::Teardown,
        false => Phase::Waiting,
    }
}

/// Whether the workload has arrived.
fn handed_over(award: &Award) -> bool {
    award.spec.workload_secret.is_some()
}

/// When an award without a workload is given up.
fn lapses_at(award: &Award) -> Timestamp {
    after(award.spec.expires_at.0, EXPIRY_GRACE_SECONDS)
}

/// Whether nobody needs the outputs here any more.
fn delivered(award: &Award, now: Timestamp) -> bool {
    let Some(status) = &award.status else { return false };
    let reason = |type_| conditions::find(&status.conditions, type_).map(|c| c.reason.as_str());
    let runtime = status.runtime.as_ref();
    let ended = runtime.and_then(|r| r.ended_at.as_ref()).map(|t| t.0);
    closing(award)
        || reason(cond::FINISHED) == Some(reasons::CLOSED)
        || conditions::is_true(&status.conditions, cond::DELIVERED)
        || matches!(reason(cond::DELIVERED), Some(reasons::DELIVERY_TIMEOUT | reasons::OUTPUTS_TOO_LARGE))
        // Nothing ran, so there is nothing to deliver.
        || runtime.is_none_or(|r| r.started_at.is_none())
        || ended.is_none_or(|at| now >= after(at, DELIVERY_GRACE_SECONDS))
}

/// What to look at before planning.
pub fn look(award: &Award, now: Timestamp) -> Look {
    let provisioned =
        award.status.as_ref().is_some_and(|s| conditions::is_true(&s.conditions, cond::PROVISIONED));
    match phase(award, now) {
        Phase::NotOurs | Phase::NeedsHold | Phase::Refused | Phase::Unheld => Look::Nothing,
        Phase::Waiting | Phase::Released => Look::Nothing,
        Phase::Working if !provisioned => Look::All,
        Phase::Working | Phase::Delivering => Look::Pods,
        Phase::Teardown => Look::All,
    }
}

/// The run whose receipts are to be looked at, if they are.
pub fn metered(award: &Award, now: Timestamp) -> Option<Run> {
    let working = matches!(phase(award, now), Phase::Working | Phase::Delivering | Phase::Teardown);
    let status =
        award.status.as_ref().filter(|s| working && !s.usage.as_ref().is_some_and(|u| u.complete))?;
    Run::of(status.runtime.as_ref()?, award.spec.price.price().ok()?)
}

/// Id under which the current attempt is known to Ray.
pub fn current_submission(award: &Award) -> String {
    let attempt = award.status.as_ref().and_then(|s| s.runtime.as_ref()).map_or(1, |r| r.attempt.max(1));
    names::submission_id(award.metadata.uid.as_deref().unwrap_or_default(), attempt)
}

/// Plans the next step.
pub fn plan(award: &Award, observed: &Observed, env: &Env, now: Timestamp) -> Plan {
    let mut draft = Draft::new(award, now);
    match phase(award, now) {
        Phase::NotOurs => {}
        Phase::NeedsHold => hold(&mut draft, observed),
        Phase::Unheld => unheld(&mut draft),
        Phase::Refused => draft.plan.finalizer = FinalizerStep::Remove,
        Phase::Released => {
            draft.plan.finalizer = FinalizerStep::Remove;
            end::conclude(&mut draft);
        }
        Phase::Waiting => {
            draft.plan.finalizer = FinalizerStep::Add;
            draft.state("Held");
            draft.plan.requeue = Some(until(now, lapses_at(award)));
        }
        Phase::Working => work::work(&mut draft, observed, env),
        Phase::Delivering => end::deliver(&mut draft, observed),
        Phase::Teardown => end::teardown(&mut draft, observed),
    }
    if let Some(text) = evidence::note(&mut draft.plan.status, observed.fingerprint.as_deref(), now) {
        draft.set(cond::DEVICES_CHANGED, true, reasons::FINGERPRINT_CHANGED, text);
    }
    let mut plan = draft.plan;
    plan.transitions = transitions(&our_conditions(award), &plan.status.conditions);
    plan
}

fn hold(draft: &mut Draft<'_>, observed: &Observed) {
    match &observed.allocation {
        Some(Allocation::Held(devices)) => {
            draft.plan.finalizer = FinalizerStep::Add;
            let gpus: i32 = devices.iter().map(|d| d.gpus).sum();
            let on =
                devices.iter().map(|d| format!("{} ({})", d.node, d.model)).collect::<Vec<_>>().join(", ");
            let other = match evidence::as_bid(draft.award, observed.fingerprint.as_deref()) {
                AsBid::Other => "; other devices than those that the bid is bound to",
                AsBid::Same | AsBid::Unbound => "",
            };
            draft.set(cond::HELD, true, reasons::DEVICES_HELD, format!("{gpus} GPUs on {on}{other}"));
            draft.plan.status.devices.clone_from(devices);
            draft.state("Held");
            draft.plan.requeue = Some(until(draft.now, lapses_at(draft.award)));
        }
        Some(Allocation::Refused(why)) => {
            draft.set(cond::HELD, false, reasons::CAPACITY_GONE, why.clone());
            draft.state("Refused");
        }
        None => draft.plan.requeue = Some(Duration::from_millis(500)),
    }
}

fn unheld(draft: &mut Draft<'_>) {
    draft.plan.finalizer = FinalizerStep::Remove;
    if closing(draft.award) {
        draft.set(cond::RELEASED, true, reasons::CLOSED, "closed before devices were held");
        draft.state("Released");
    } else {
        draft.set(cond::HELD, false, reasons::AWARD_EXPIRED, "the award expired before devices were held");
        draft.state("Refused");
    }
}

/// The view of a Pod of the award.
pub fn pod_seen(pod: &Pod) -> PodSeen {
    let status = pod.status.as_ref();
    let name = pod.metadata.name.clone().unwrap_or_default();
    let head = name == super::objects::HEAD_POD;
    let ray = status
        .and_then(|s| s.container_statuses.as_ref())
        .and_then(|list| list.iter().find(|c| c.name == if head { "head" } else { "worker" }));
    let containers = status.and_then(|s| s.container_statuses.as_ref()).into_iter().flatten();
    let waiting = containers
        .filter_map(|c| c.state.as_ref()?.waiting.as_ref())
        .find_map(|w| Some((w.reason.clone()?, w.message.clone().unwrap_or_default())));
    let unschedulable = status
        .and_then(|s| s.conditions.as_ref())
        .and_then(|c| c.iter().find(|c| c.type_ == "PodScheduled" && c.status == "False"))
        .filter(|c| c.reason.as_deref() == Some("Unschedulable"))
        .map(|c| ("Unschedulable".to_owned(), c.message.clone().unwrap_or_default()));
    PodSeen {
        head,
        phase: status.and_then(|s| s.phase.clone()).unwrap_or_else(|| "Pending".to_owned()),
        ready: ray.is_some_and(|c| c.ready),
        deleting: pod.metadata.deletion_timestamp.is_some(),
        created: pod.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0),
        trouble: unschedulable.or(waiting),
        restarts: ray.map_or(0, |c| c.restart_count),
        name,
    }
}

#[cfg(test)]
mod tests;
