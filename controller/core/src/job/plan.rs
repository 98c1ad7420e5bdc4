//! The life of a Job at home: accept, order, follow, close.
//!
//! Inputs: the Job, [`Observed`], the time, a fresh salt. Outputs: a [`Plan`].
//! Invariants: the Secret of an order exists before the order is in the status; an order's workload and salt never
//! change; the finalizer stays until the winner says that nothing is left, or cannot be running any more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use k8s_openapi::jiff::Timestamp;
use vendue_crds::conditions::{self, award, job as cond, reasons};
use vendue_crds::{
    AuctionOutcome, Award, AwardClose, CloseReason, ComputeJob, JobStatus, OrderStatus, names,
};

use super::fold::{Folder, fell_through};
use super::validate::{ValidatedJob, validate};
use super::workload::{References, WorkloadError, resolve, secret_names};
use crate::transition::{Transition, transitions};
use crate::{FinalizerStep, after, until};

/// Value of `spec.managedBy` that means this controller.
const OURS: &str = "vendue.dev/controller";
/// Longest wait of a deleted Job without an Award for the auction's word that the order is withdrawn. An auction
/// process that was restarted has said it by then; one that is gone for good must not hold the Job.
const CANCEL_SECONDS: i64 = 25;
/// Seconds after the run deadline in which the winner must have removed everything, reachable or not.
const CLOSE_GRACE_SECONDS: i64 = 600;
/// Seconds after the award's expiry in which a winner without a workload has freed the devices.
const EXPIRY_GRACE_SECONDS: i64 = 60;

/// Salt and workload of an order, as its Secret holds them.
#[derive(Clone, PartialEq, Eq)]
pub struct OrderSecret {
    /// Salt of the commitment.
    pub salt: [u8; 32],
    /// Encoded workload.
    pub workload: Vec<u8>,
}

impl OrderSecret {
    /// Reads the Secret; `None` when it is not an order's.
    pub fn read(secret: &Secret) -> Option<Self> {
        let data = secret.data.as_ref()?;
        let salt = hex::decode(&data.get(names::SALT_KEY)?.0).ok()?.try_into().ok()?;
        Some(Self { salt, workload: data.get(names::WORKLOAD_KEY)?.0.clone() })
    }
}

impl std::fmt::Debug for OrderSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OrderSecret(..)")
    }
}

/// What was seen before planning.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// What the Job refers to; looked at only while an order is to be made.
    pub references: References,
    /// The Secret of the order to be made, when a try before this one made it.
    pub secret: Option<OrderSecret>,
    /// Whether a Secret that is not the order's has its name.
    pub secret_taken: bool,
    /// The Secret of the order before it, whose workload is used again.
    pub previous: Option<OrderSecret>,
    /// The Award of the current order.
    pub award: Option<Award>,
    /// Random bytes for a new order.
    pub fresh_salt: [u8; 32],
}

/// What to do, in this order: finalizer (when added), Secret, close, status, Events, finalizer (when removed).
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The finalizer.
    pub finalizer: FinalizerStep,
    /// The Secret of a new order.
    pub secret: Option<Secret>,
    /// Award to close, by name.
    pub close: Option<(String, AwardClose)>,
    /// The controller's part of the status; `None` leaves it alone.
    pub status: Option<JobStatus>,
    /// What changed.
    pub transitions: Vec<Transition>,
    /// When to look again even if nothing happens.
    pub requeue: Option<Duration>,
}

/// Whether this controller takes care of the Job.
pub fn belongs_to_us(job: &ComputeJob) -> bool {
    job.spec.managed_by.as_deref().is_none_or(|m| m == OURS)
}

/// Attempt of the order that is to stand, and whether it is still to be made.
pub fn order_attempt(job: &ComputeJob, award: Option<&Award>) -> (i32, bool) {
    match job.status.as_ref().and_then(|s| s.order.as_ref()) {
        None => (1, true),
        Some(order) if award.is_some_and(fell_through) => (order.attempt + 1, true),
        Some(order) => (order.attempt, false),
    }
}

/// ConfigMap and Secrets that the Job refers to.
pub fn references(job: &ValidatedJob) -> (Option<String>, BTreeSet<String>) {
    (job.files.clone(), secret_names(job))
}

/// Plans the next step.
pub fn plan(job: &ComputeJob, observed: &Observed, now: Timestamp) -> Plan {
    let nothing = Plan {
        finalizer: FinalizerStep::Keep,
        secret: None,
        close: None,
        status: None,
        transitions: Vec::new(),
        requeue: None,
    };
    if !belongs_to_us(job) {
        return nothing;
    }
    let before = job.status.clone().unwrap_or_default();
    let mut status = JobStatus { auction: None, ..before.clone() };
    let mut plan = nothing;
    let mut folder = Folder { status: &mut status, generation: job.metadata.generation, now };
    if job.metadata.deletion_timestamp.is_some() {
        close(job, observed, &mut folder, &mut plan);
    } else {
        match validate(job) {
            Ok(valid) => live(job, &valid, observed, &mut folder, &mut plan),
            Err(error) => {
                folder.set(cond::ACCEPTED, false, reasons::INVALID_SPEC, error.to_string());
                folder.state("Invalid");
            }
        }
    }
    status.observed_generation = job.metadata.generation;
    plan.transitions = transitions(&before.conditions, &status.conditions);
    plan.status = Some(status);
    plan
}

fn live(
    job: &ComputeJob,
    valid: &ValidatedJob,
    observed: &Observed,
    folder: &mut Folder<'_>,
    plan: &mut Plan,
) {
    plan.finalizer = FinalizerStep::Add;
    if folder.is(cond::FINISHED) {
        if let Some(award) = &observed.award {
            folder.award(award);
        }
        return;
    }
    let (attempt, make) = order_attempt(job, observed.award.as_ref());
    let awarded = !make && observed.award.as_ref().is_some_and(|a| may_still_serve(a, folder.now));
    if valid.suspended && !awarded {
        folder.set(cond::ACCEPTED, false, reasons::SUSPENDED, "spec.suspend is true");
        return folder.state("Suspended");
    }
    let search_over =
        folder.status.order.as_ref().is_some_and(|o| folder.now >= o.expires_at.0 && !resumed(folder));
    if search_over && !awarded {
        return search_time_over(valid, folder);
    }
    if make && !order(attempt, valid, job, observed, folder, plan) {
        return;
    }
    resume(valid, folder);
    folder.set(cond::ACCEPTED, true, reasons::VALID, "the order is offered to the market");
    match &observed.award {
        Some(award) if awarded => {
            folder.award(award);
            let undecided = folder.now < choice_limit(award) && !folder.is(cond::AWARDED);
            plan.requeue = undecided.then(|| until(folder.now, choice_limit(award)));
        }
        _ => {
            folder.auction(job.status.as_ref().and_then(|s| s.auction.as_ref()), attempt);
            plan.requeue = folder.status.order.as_ref().map(|o| until(folder.now, o.expires_at.0));
        }
    }
}

/// Whether an Award may still serve the Job: a seat was chosen, or there is time left to choose one.
fn may_still_serve(object: &Award, now: Timestamp) -> bool {
    let reported = object.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    let is = |type_| conditions::is_true(reported, type_);
    is(award::HELD) || is(award::HANDED_OVER) || is(award::FINISHED) || now < choice_limit(object)
}

/// Until when a seat may be chosen for an Award.
fn choice_limit(object: &Award) -> Timestamp {
    after(object.spec.expires_at.0, EXPIRY_GRACE_SECONDS)
}

/// Whether the Job was held back until now.
fn resumed(folder: &Folder<'_>) -> bool {
    conditions::find(&folder.status.conditions, cond::ACCEPTED)
        .is_some_and(|c| c.reason == reasons::SUSPENDED)
}

/// The search starts anew when a Job that was held back may go on.
fn resume(valid: &ValidatedJob, folder: &mut Folder<'_>) {
    let now = folder.now;
    if resumed(folder)
        && let Some(order) = &mut folder.status.order
    {
        order.expires_at = Time(after(now, valid.search_seconds));
    }
}

fn search_time_over(valid: &ValidatedJob, folder: &mut Folder<'_>) {
    let last = conditions::find(&folder.status.conditions, cond::AWARDED).map(|c| c.message.clone());
    let text = format!(
        "no provider was found in {} s; last: {}",
        valid.search_seconds,
        last.unwrap_or_else(|| "no round".to_owned())
    );
    folder.set(cond::AWARDED, false, reasons::SEARCH_TIME_OVER, &text);
    folder.set(cond::FINISHED, true, reasons::SEARCH_TIME_OVER, &text);
    folder.state("Expired");
}

/// Makes the order of this attempt; says whether there is one now.
fn order(
    attempt: i32,
    valid: &ValidatedJob,
    job: &ComputeJob,
    observed: &Observed,
    folder: &mut Folder<'_>,
    plan: &mut Plan,
) -> bool {
    let secret_name = names::order_secret(&valid.name, attempt);
    if observed.secret_taken {
        let text = format!(
            "the Secret \"{secret_name}\" is there and is not this Job's order; next: delete it, or give the Job another name"
        );
        folder.set(cond::ACCEPTED, false, reasons::NAME_TAKEN, text);
        folder.state("Pending");
        plan.requeue = Some(Duration::from_secs(5));
        return false;
    }
    let content = match (&observed.secret, &observed.previous) {
        (Some(made), _) => Ok(made.clone()),
        (None, Some(previous)) => {
            Ok(OrderSecret { salt: observed.fresh_salt, workload: previous.workload.clone() })
        }
        (None, None) => resolve(valid, &observed.references)
            .map(|workload| OrderSecret { salt: observed.fresh_salt, workload }),
    };
    let content = match content {
        Ok(content) => content,
        Err(error) => {
            let (reason, state) = match &error {
                WorkloadError::Missing { .. } => (reasons::REFERENCE_NOT_FOUND, "Pending"),
                WorkloadError::Invalid(_) | WorkloadError::Encode(_) => (reasons::INVALID_SPEC, "Invalid"),
            };
            folder.set(cond::ACCEPTED, false, reason, error.to_string());
            folder.state(state);
            plan.requeue = Some(Duration::from_secs(5));
            return false;
        }
    };
    if observed.secret.is_none() {
        plan.secret = Some(order_secret(job, &secret_name, &content));
    }
    let expires = match &folder.status.order {
        Some(before) => before.expires_at.clone(),
        None => Time(after(folder.now, valid.search_seconds)),
    };
    folder.status.order = Some(OrderStatus {
        attempt,
        commitment: hex::encode(vendue_market::commitment(&content.salt, &content.workload)),
        secret_name,
        expires_at: expires,
    });
    folder.status.award = None;
    true
}

fn order_secret(job: &ComputeJob, name: &str, content: &OrderSecret) -> Secret {
    let job_name = job.metadata.name.clone().unwrap_or_default();
    let data = BTreeMap::from([
        (names::SALT_KEY.to_owned(), ByteString(hex::encode(content.salt).into_bytes())),
        (names::WORKLOAD_KEY.to_owned(), ByteString(content.workload.clone())),
    ]);
    Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: job.metadata.namespace.clone(),
            labels: Some(BTreeMap::from([
                (names::MANAGED_BY.to_owned(), names::VENDUE.to_owned()),
                (names::JOB_NAME.to_owned(), job_name.clone()),
            ])),
            owner_references: Some(vec![OwnerReference {
                api_version: format!("{}/{}", vendue_crds::GROUP, vendue_crds::VERSION),
                kind: "Job".to_owned(),
                name: job_name,
                uid: job.metadata.uid.clone().unwrap_or_default(),
                controller: Some(true),
                block_owner_deletion: None,
            }]),
            ..ObjectMeta::default()
        },
        data: Some(data),
        immutable: Some(true),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    }
}

/// Ends the remote work of a deleted Job.
fn close(job: &ComputeJob, observed: &Observed, folder: &mut Folder<'_>, plan: &mut Plan) {
    let now = folder.now;
    let deleted = job.metadata.deletion_timestamp.as_ref().map_or(now, |t| t.0);
    folder.state("Closing");
    let Some(object) = &observed.award else {
        let gone = after(deleted, CANCEL_SECONDS);
        if !order_stands(job, folder) || now >= gone {
            plan.finalizer = FinalizerStep::Remove;
        } else {
            plan.requeue = Some(until(now, gone).max(Duration::from_millis(100)));
        }
        return;
    };
    let none = Vec::new();
    let reported = object.status.as_ref().map_or(&none, |s| &s.conditions);
    let limit = close_limit(object, folder);
    if conditions::is_true(reported, award::RELEASED) || now >= limit {
        plan.finalizer = FinalizerStep::Remove;
        return;
    }
    if object.spec.close.is_none() {
        let name = object.metadata.name.clone().unwrap_or_default();
        plan.close = Some((name, AwardClose { reason: CloseReason::UserClosed, at: Time(now) }));
    }
    if !folder.is(cond::FINISHED) {
        let text = format!(
            "waiting until {} says that nothing is left of the work; at the latest until {limit}",
            object.spec.provider
        );
        folder.set(cond::FINISHED, false, reasons::CLOSED, text);
    }
    plan.requeue = Some(until(now, limit).clamp(Duration::from_millis(100), Duration::from_secs(30)));
}

/// Whether seats may still award the order of a Job without an Award.
fn order_stands(job: &ComputeJob, folder: &Folder<'_>) -> bool {
    let Some(order) = &folder.status.order else { return false };
    let auction = job.status.as_ref().and_then(|s| s.auction.as_ref());
    let said = auction.filter(|a| a.attempt == order.attempt).map(|a| a.outcome);
    let over = matches!(said, Some(AuctionOutcome::Withdrawn | AuctionOutcome::Expired));
    !over && !folder.is(cond::FINISHED)
}

/// When the winner has removed everything by itself, whether it can be reached or not.
fn close_limit(object: &Award, folder: &Folder<'_>) -> Timestamp {
    let status = object.status.as_ref();
    let handed = status
        .and_then(|s| conditions::find(&s.conditions, award::HANDED_OVER))
        .filter(|c| c.status == "True")
        .map(|c| c.last_transition_time.0);
    let run = i64::from(object.spec.requirements.run_deadline_seconds);
    match handed {
        Some(at) => after(at, run + CLOSE_GRACE_SECONDS),
        // Running without a report of the hand-over: the relay is behind.
        None if folder.is(cond::RUNNING) => after(folder.now, run + CLOSE_GRACE_SECONDS),
        None => after(object.spec.expires_at.0, EXPIRY_GRACE_SECONDS),
    }
}
