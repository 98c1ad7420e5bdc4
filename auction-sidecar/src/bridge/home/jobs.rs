//! From Jobs to orders.
//!
//! Invariant: a Job is submitted once per attempt and only while it has no Award; an order that nobody wants any more
//! is withdrawn, also one that was made before a restart, and the Job's status says so afterwards.

use std::sync::Arc;
use std::time::Duration;

use kube::core::DeserializeGuard;
use kube::runtime::controller::Action;
use kube::{Resource, ResourceExt};
use vendue_auction_core::{HomeInput, NewOrder};
use vendue_crds::conditions::{self, job as condition};
use vendue_crds::{AuctionOutcome, AuctionStatus, ComputeJob, names};
use vendue_market::encode::from_hex;

use super::persist::write_auction_status;
use super::{HomeContext, JobKey};
use crate::bridge::cluster::ClusterError;
use crate::bridge::objects::{ms_of, requirements, terms};
use crate::engine::now_ms;

/// What may be left of a search when its last round is over: orders are listed in steps.
const LAST_ROUNDS_MS: u64 = 60_000;

/// Why a Job cannot be put to the market.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The spec cannot be turned into an order, though the controller accepted it.
    #[error("order of job {job}: {reason}")]
    Order {
        /// The Job.
        job: String,
        /// Why.
        reason: String,
    },
    /// The state machine takes nothing.
    #[error("order of job {0}: the state machine is busy")]
    Busy(String),
    /// The API server.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}

/// What to do for a Job.
#[derive(Debug, PartialEq)]
enum Plan {
    Nothing,
    /// Take the order back that is in work, or that was made before a restart.
    Withdraw,
    /// Place an order; seats drop one that was made before a restart.
    Submit(Box<NewOrder>),
}

/// Whether seats may hold an order of this attempt, as far as the status tells.
fn stands(job: &ComputeJob, attempt: i32, over: bool) -> bool {
    let auction = job.status.as_ref().and_then(|s| s.auction.as_ref()).filter(|a| a.attempt == attempt);
    match auction.map(|a| a.outcome) {
        Some(AuctionOutcome::Pending | AuctionOutcome::NoFeasibleBid | AuctionOutcome::Undecided) => true,
        // The Award of a Job that is over may be gone long since.
        Some(AuctionOutcome::Awarded) => !over,
        Some(AuctionOutcome::Expired | AuctionOutcome::Withdrawn) => false,
        // A Job that goes waits for the word that nothing stands, also when a crash came before the first word.
        None => job.metadata.deletion_timestamp.is_some() && !over,
    }
}

/// Whether the search was given up because the order's next round would start too late.
fn given_up(job: &ComputeJob, attempt: i32) -> bool {
    let auction = job.status.as_ref().and_then(|s| s.auction.as_ref());
    auction.is_some_and(|a| a.attempt == attempt && a.outcome == AuctionOutcome::Expired)
}

fn plan(job: &ComputeJob, in_work: bool, has_award: bool, now: u64) -> Result<Plan, String> {
    let status = job.status.clone().unwrap_or_default();
    let over = conditions::is_true(&status.conditions, condition::FINISHED);
    let ends = job.metadata.deletion_timestamp.is_some() || over;
    let accepted =
        conditions::is_true(&status.conditions, condition::ACCEPTED) && job.spec.suspend != Some(true);
    if ends || !accepted {
        let stands = in_work || status.order.as_ref().is_some_and(|o| stands(job, o.attempt, over));
        return Ok(if stands && !has_award { Plan::Withdraw } else { Plan::Nothing });
    }
    let Some(order) = status.order.clone() else { return Ok(Plan::Nothing) };
    let expires_ms = ms_of(&order.expires_at);
    // A search that was given up has no time for another round, unless the Job was suspended since.
    let least_ms = if given_up(job, order.attempt) { LAST_ROUNDS_MS } else { 0 };
    if in_work || has_award || expires_ms <= now.saturating_add(least_ms) {
        return Ok(Plan::Nothing);
    }
    let commitment = from_hex(&order.commitment)
        .and_then(|c| c.try_into().ok())
        .ok_or("status.order.commitment is not 64 hex digits")?;
    Ok(Plan::Submit(Box::new(NewOrder {
        job: job.metadata.uid.clone().ok_or("the Job has no uid")?,
        attempt: u32::try_from(order.attempt).map_err(|_| "status.order.attempt is negative")?,
        requirements: requirements(&job.spec)?,
        terms: Box::new(terms(&job.spec)?),
        commitment,
        expires_ms,
    })))
}

/// One step for one Job.
pub async fn reconcile_job(
    object: Arc<DeserializeGuard<ComputeJob>>,
    context: Arc<HomeContext>,
) -> Result<Action, JobError> {
    let job = match &object.0 {
        Ok(job) => job,
        Err(error) => {
            tracing::error!(name = ?error.metadata.name, %error, "Job skipped: it does not parse");
            return Ok(Action::await_change());
        }
    };
    let (namespace, name) = (job.namespace().unwrap_or_default(), job.name_any());
    let Some(uid) = job.metadata.uid.clone() else { return Ok(Action::await_change()) };
    let order = job.status.as_ref().and_then(|s| s.order.as_ref());
    let attempt = order.and_then(|o| u32::try_from(o.attempt).ok()).unwrap_or(0);
    let key = (uid.clone(), attempt);
    let in_work = context.book(|book| book.jobs.contains_key(&key));
    let has_award = context
        .awards
        .find(|a| a.spec.job.uid == uid && u32::try_from(a.spec.job.attempt) == Ok(attempt))
        .is_some();
    let plan = plan(job, in_work, has_award, now_ms())
        .map_err(|reason| JobError::Order { job: format!("{namespace}/{name}"), reason })?;
    match plan {
        Plan::Nothing => {}
        Plan::Withdraw => withdraw(&context, job, &key).await?,
        Plan::Submit(new) => submit(&context, job, &key, new).await?,
    }
    context.failed(&uid, false);
    Ok(Action::requeue(Duration::from_secs(30)))
}

async fn tell(context: &HomeContext, job: &str, input: HomeInput) -> Result<(), JobError> {
    if context.tell(input).await { Ok(()) } else { Err(JobError::Busy(job.to_owned())) }
}

async fn submit(
    context: &HomeContext,
    job: &ComputeJob,
    key: &(String, u32),
    new: Box<NewOrder>,
) -> Result<(), JobError> {
    let Some(owner) = job.controller_owner_ref(&()) else { return Ok(()) };
    let (namespace, name) = (job.namespace().unwrap_or_default(), job.name_any());
    let status = job.status.clone().unwrap_or_default();
    let secret = status.order.map(|o| o.secret_name).unwrap_or_else(|| names::order_secret(&name, 1));
    let (uid, auction, reference) = (key.0.clone(), status.auction, job.object_ref(&()));
    tracing::info!(job = uid, attempt = key.1, namespace, name, "order submitted");
    let entry = JobKey { namespace, name, uid, reference, owner, secret, auction };
    super::submitted(context, entry, key.1);
    let told = tell(context, &key.0, HomeInput::Submit(new)).await;
    if told.is_err() {
        context.book(|book| book.jobs.remove(key));
    }
    told
}

/// Takes an order back that nobody was given yet, and says so in the Job's status.
async fn withdraw(context: &HomeContext, job: &ComputeJob, key: &(String, u32)) -> Result<(), JobError> {
    tell(context, &key.0, HomeInput::Withdraw { job: key.0.clone(), attempt: key.1 }).await?;
    context.drop_job(key);
    tracing::info!(job = key.0, attempt = key.1, "order withdrawn");
    context.metrics.orders.with_label_values(&["cancelled"]).inc();
    let said = job.status.as_ref().and_then(|s| s.auction.clone());
    let said = said.filter(|a| u32::try_from(a.attempt) == Ok(key.1));
    let message = Some("the order was taken back".to_owned());
    let auction = AuctionStatus {
        outcome: AuctionOutcome::Withdrawn,
        message,
        ..said.unwrap_or_else(|| AuctionStatus::new(i32::try_from(key.1).unwrap_or(i32::MAX)))
    };
    let (namespace, name) = (job.namespace().unwrap_or_default(), job.name_any());
    match write_auction_status(context, (&namespace, &name, &key.0), &auction).await {
        Err(error) if !error.is_not_found() && !error.is_final() => Err(error.into()),
        _ => Ok(()),
    }
}

/// An order that cannot be made will not be better in a moment; the controller's next write brings it back.
/// Anything else may be over in a second.
pub fn job_error_policy(
    object: Arc<DeserializeGuard<ComputeJob>>,
    error: &JobError,
    context: Arc<HomeContext>,
) -> Action {
    tracing::error!(%error, "Job not put to the market");
    let uid = object.0.as_ref().ok().and_then(|j| j.metadata.uid.clone()).unwrap_or_default();
    let failures = u64::from(context.failed(&uid, true).min(10));
    match error {
        JobError::Order { .. } => Action::requeue(Duration::from_secs(failures * 30)),
        JobError::Busy(_) | JobError::Cluster(_) => Action::requeue(Duration::from_secs(failures)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use vendue_market::Terms;

    fn mk_job(change: impl FnOnce(&mut Value)) -> ComputeJob {
        let mut value = json!({
            "apiVersion": "vendue.dev/v1alpha1", "kind": "Job",
            "metadata": { "name": "digits", "namespace": "default", "uid": "u-1" },
            "spec": { "maxPrice": "2.50", "runDeadlineSeconds": 600,
                "train": { "image": "ray", "entrypoint": "python t.py", "workers": { "replicas": 2, "gpus": 1 } } },
            "status": {
                "conditions": [{ "type": "Accepted", "status": "True", "reason": "Valid", "message": "",
                                 "lastTransitionTime": "2026-01-01T00:00:00Z" }],
                "order": { "attempt": 1, "commitment": "ab".repeat(32), "secretName": "digits-order-1",
                           "expiresAt": "1970-01-01T00:01:00Z" },
            },
        });
        change(&mut value);
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn an_accepted_job_is_submitted_once() {
        let job = mk_job(|_| {});
        let Ok(Plan::Submit(order)) = plan(&job, false, false, 0) else { panic!("not submitted") };
        assert_eq!((order.job.as_str(), order.attempt, order.expires_ms), ("u-1", 1, 60_000));
        assert_eq!(order.requirements.gpus(), 2);
        assert_eq!(*order.terms, Terms::default(), "a body without terms");
        let wants = mk_job(|v| {
            v["spec"]["pricing"] = json!("SecondPrice");
            v["spec"]["regions"] = json!(["north"]);
        });
        let Ok(Plan::Submit(order)) = plan(&wants, false, false, 0) else { panic!("not submitted") };
        let terms = Terms { regions: vec!["north".into()], second_price: true, ..Terms::default() };
        assert_eq!(*order.terms, terms);
        let nowhere = mk_job(|v| v["spec"]["regions"] = json!(["North"]));
        let error = plan(&nowhere, false, false, 0).unwrap_err();
        assert!(error.contains("regions") && error.contains("North"), "{error}");
        assert_eq!(plan(&job, true, false, 0), Ok(Plan::Nothing));
        assert_eq!(plan(&job, false, true, 0), Ok(Plan::Nothing));
        assert_eq!(plan(&job, false, false, 60_000), Ok(Plan::Nothing));
    }

    #[test]
    fn deleted_suspended_or_unaccepted_jobs_stay_out() {
        let deleted = mk_job(|v| v["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"));
        assert_eq!(plan(&deleted, false, false, 0), Ok(Plan::Withdraw), "it waits for the word");
        let suspended = mk_job(|v| v["spec"]["suspend"] = json!(true));
        let refused = mk_job(|v| v["status"]["conditions"][0]["status"] = json!("False"));
        for job in [&suspended, &refused] {
            assert_eq!(plan(job, false, false, 0), Ok(Plan::Nothing));
        }
        for job in [deleted, suspended, refused] {
            assert_eq!(plan(&job, true, false, 0), Ok(Plan::Withdraw));
            assert_eq!(plan(&job, true, true, 0), Ok(Plan::Nothing));
        }
        let bad = mk_job(|v| v["status"]["order"]["commitment"] = json!("xyz"));
        assert!(plan(&bad, false, false, 0).is_err());
    }

    fn with_auction(outcome: &str, change: impl FnOnce(&mut Value)) -> ComputeJob {
        mk_job(|v| {
            v["status"]["auction"] = json!({
                "attempt": 1, "orderDigest": "cd".repeat(32), "outcome": outcome,
            });
            change(v);
        })
    }

    #[test]
    fn a_search_that_was_given_up_is_not_begun_again_unless_it_has_more_time() {
        let expired = with_auction("Expired", |_| {});
        assert_eq!(
            plan(&expired, false, false, 0),
            Ok(Plan::Nothing),
            "a minute is left, and no round in it"
        );
        let longer =
            with_auction("Expired", |v| v["status"]["order"]["expiresAt"] = json!("1970-01-01T01:00:00Z"));
        assert!(matches!(plan(&longer, false, false, 0), Ok(Plan::Submit(_))));
        for outcome in ["Pending", "NoFeasibleBid", "Undecided", "Awarded", "Withdrawn"] {
            assert!(matches!(plan(&with_auction(outcome, |_| {}), false, false, 0), Ok(Plan::Submit(_))));
        }
    }

    #[test]
    fn an_order_from_before_a_restart_that_nobody_wants_is_withdrawn_once() {
        let delete = |v: &mut Value| v["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        let suspend = |v: &mut Value| v["spec"]["suspend"] = json!(true);
        let finish = |v: &mut Value| {
            v["status"]["conditions"] = json!([{ "type": "Finished", "status": "True", "reason": "SearchTimeOver",
                "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" }]);
        };
        for change in [delete as fn(&mut Value), suspend, finish] {
            let stands = with_auction("Undecided", change);
            assert_eq!(plan(&stands, false, false, 0), Ok(Plan::Withdraw));
            assert_eq!(plan(&stands, false, true, 0), Ok(Plan::Nothing), "its Award is closed instead");
            assert_eq!(plan(&with_auction("Withdrawn", change), false, false, 0), Ok(Plan::Nothing));
        }
        assert_eq!(plan(&with_auction("Awarded", finish), false, false, 0), Ok(Plan::Nothing));
    }
}
