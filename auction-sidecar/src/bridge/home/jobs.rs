//! From Jobs to orders.
//!
//! Invariant: a Job is submitted once per attempt and only while it has no Award.

use std::sync::Arc;
use std::time::Duration;

use kube::core::DeserializeGuard;
use kube::runtime::controller::Action;
use kube::{Resource, ResourceExt};
use vendue_auction_core::{HomeInput, NewOrder};
use vendue_crds::conditions::{self, job as condition};
use vendue_crds::{ComputeJob, names};
use vendue_market::encode::from_hex;

use super::{HomeContext, JobKey};
use crate::bridge::objects::{ms_of, requirements};
use crate::engine::now_ms;

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
}

/// What to do for a Job.
#[derive(Debug, PartialEq)]
enum Plan {
    Nothing,
    Withdraw,
    Submit(Box<NewOrder>),
}

fn plan(job: &ComputeJob, in_work: bool, has_award: bool, now: u64) -> Result<Plan, String> {
    let status = job.status.clone().unwrap_or_default();
    let over = conditions::is_true(&status.conditions, condition::FINISHED);
    if job.metadata.deletion_timestamp.is_some() || over {
        return Ok(if in_work && !has_award { Plan::Withdraw } else { Plan::Nothing });
    }
    let suspended = job.spec.suspend == Some(true);
    let accepted = conditions::is_true(&status.conditions, condition::ACCEPTED) && !suspended;
    if !accepted && in_work && !has_award {
        return Ok(Plan::Withdraw);
    }
    let Some(order) = status.order.filter(|_| accepted) else { return Ok(Plan::Nothing) };
    let expires_ms = ms_of(&order.expires_at);
    if in_work || has_award || expires_ms <= now {
        return Ok(Plan::Nothing);
    }
    let commitment = from_hex(&order.commitment)
        .and_then(|c| c.try_into().ok())
        .ok_or("status.order.commitment is not 64 hex digits")?;
    let new = NewOrder {
        job: job.metadata.uid.clone().ok_or("the Job has no uid")?,
        attempt: u32::try_from(order.attempt).map_err(|_| "status.order.attempt is negative")?,
        requirements: requirements(&job.spec)?,
        commitment,
        expires_ms,
    };
    Ok(Plan::Submit(Box::new(new)))
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
    let order = job.status.as_ref().and_then(|s| s.order.clone());
    let attempt = order.as_ref().and_then(|o| u32::try_from(o.attempt).ok()).unwrap_or(0);
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
        Plan::Withdraw => withdraw(&context, &key),
        Plan::Submit(new) => {
            let Some(owner) = job.controller_owner_ref(&()) else { return Ok(Action::await_change()) };
            let secret = order.map(|o| o.secret_name).unwrap_or_else(|| names::order_secret(&name, 1));
            let reference = job.object_ref(&());
            let entry = JobKey { namespace, name, uid: uid.clone(), reference, owner, secret };
            tracing::info!(
                job = uid,
                attempt,
                namespace = entry.namespace,
                name = entry.name,
                "order submitted"
            );
            super::submitted(&context, entry, attempt);
            context.tell(HomeInput::Submit(new));
        }
    }
    context.failed(&uid, false);
    Ok(Action::requeue(Duration::from_secs(30)))
}

/// Takes an order back that nobody was given yet.
fn withdraw(context: &HomeContext, key: &(String, u32)) {
    let digests = context.book(|book| {
        book.jobs.remove(key);
        let found: Vec<_> = book.orders.iter().filter(|(_, e)| &e.job == key).map(|(d, _)| *d).collect();
        for digest in &found {
            book.orders.remove(digest);
        }
        found
    });
    tracing::info!(job = key.0, attempt = key.1, "order withdrawn");
    context.metrics.orders.with_label_values(&["cancelled"]).inc();
    for order in digests {
        context.tell(HomeInput::Cancel { order });
    }
}

/// An order that cannot be made will not be better in a moment; the controller's next write brings it back.
pub fn job_error_policy(
    object: Arc<DeserializeGuard<ComputeJob>>,
    error: &JobError,
    context: Arc<HomeContext>,
) -> Action {
    tracing::error!(%error, "Job not put to the market");
    let uid = object.0.as_ref().ok().and_then(|j| j.metadata.uid.clone()).unwrap_or_default();
    Action::requeue(Duration::from_secs(u64::from(context.failed(&uid, true).min(10)) * 30))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

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
        assert_eq!(plan(&job, true, false, 0), Ok(Plan::Nothing));
        assert_eq!(plan(&job, false, true, 0), Ok(Plan::Nothing));
        assert_eq!(plan(&job, false, false, 60_000), Ok(Plan::Nothing));
    }

    #[test]
    fn deleted_suspended_or_unaccepted_jobs_stay_out() {
        let deleted = mk_job(|v| v["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"));
        let suspended = mk_job(|v| v["spec"]["suspend"] = json!(true));
        let refused = mk_job(|v| v["status"]["conditions"][0]["status"] = json!("False"));
        for job in [deleted, suspended, refused] {
            assert_eq!(plan(&job, false, false, 0), Ok(Plan::Nothing));
            assert_eq!(plan(&job, true, false, 0), Ok(Plan::Withdraw));
            assert_eq!(plan(&job, true, true, 0), Ok(Plan::Nothing));
        }
        let bad = mk_job(|v| v["status"]["order"]["commitment"] = json!("xyz"));
        assert!(plan(&bad, false, false, 0).is_err());
    }
}
