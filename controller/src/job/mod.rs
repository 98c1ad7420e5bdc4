//! Reconciles Jobs at home: dereference (IO), plan (pure), apply (IO), update status (IO).
//!
//! Invariant: nothing is decided here.

mod dereference;

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::core::DeserializeGuard;
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::watcher;
use kube::{Api, ResourceExt};
use vendue_controller_core::FinalizerStep;
use vendue_controller_core::job::{Plan, plan};
use vendue_controller_core::transition::Transition;
use vendue_crds::conditions::job as cond;
use vendue_crds::{Award, ComputeJob, names};

use crate::context::{Category, Context, action, error_policy, finalizer_changes, log_failure};
use crate::io::{IoError, ReadError, apply_finalizer, apply_spec, apply_status, create, timed};

/// Pause before Jobs are listed again that could not be.
const LIST_AGAIN: Duration = Duration::from_secs(2);
/// Jobs that are reconciled at a time.
const CONCURRENCY: u16 = 8;

/// Why a Job's reconcile failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Looking at what belongs to the Job failed.
    #[error("look at the Job's objects: {0}")]
    Dereference(#[from] ReadError),
    /// A write failed.
    #[error(transparent)]
    Write(#[from] IoError),
    /// The close could not be written as JSON.
    #[error("encode the close: {0}")]
    Encode(#[from] serde_json::Error),
}

impl Category for Error {
    fn category(&self) -> &'static str {
        match self {
            Self::Dereference(error) => error.category(),
            Self::Write(error) => error.category(),
            Self::Encode(_) => "encode",
        }
    }
}

/// Runs until a signal comes.
pub async fn run(context: Arc<Context>) {
    let jobs: Api<DeserializeGuard<ComputeJob>> = Api::all(context.client.clone());
    let awards: Api<DeserializeGuard<Award>> = Api::all(context.client.clone());
    let shared = context.clone();
    Controller::new(jobs, watcher::Config::default())
        .owns(awards, watcher::Config::default())
        .with_config(Config::default().concurrency(CONCURRENCY))
        .shutdown_on_signal()
        .run(
            |job, context| async move { context.run(&job, |job| reconcile(job, context.clone())).await },
            |job, error: &Error, context| error_policy(job.as_ref(), error, &context),
            context,
        )
        .for_each(|result| log_failure(shared.clone(), result))
        .await;
}

/// Ends when the API server has listed Jobs once: until then a watch that says nothing may be one that cannot work.
pub async fn until_listed(context: &Context) {
    let jobs: Api<ComputeJob> = Api::all(context.client.clone());
    let one = ListParams::default().limit(1);
    while let Err(error) = timed("list Jobs", jobs.list_metadata(&one)).await {
        tracing::warn!(%error, "not ready; next: install the chart vendue-crds if it is not there");
        tokio::time::sleep(LIST_AGAIN).await;
    }
}

/// Reconciles one Job.
pub async fn reconcile(job: ComputeJob, context: Arc<Context>) -> Result<Action, Error> {
    let observed = dereference::dereference(&job, &context).await?; // client required
    let plan = plan(&job, &observed, Timestamp::now()); // no client
    apply_plan(&job, observed.award.as_ref(), &plan, &context).await?; // client required
    Ok(action(plan.requeue))
}

/// Finalizer before anything that it protects; the Secret before the status that names it; the close before the
/// status that speaks of it; Events when the status is written; the finalizer off last.
async fn apply_plan(
    job: &ComputeJob,
    award: Option<&Award>,
    plan: &Plan,
    context: &Context,
) -> Result<(), Error> {
    let Plan { finalizer, secret, close, status, transitions, requeue: _ } = plan;
    let namespace = job.namespace().unwrap_or_default();
    let jobs: Api<ComputeJob> = Api::namespaced(context.client.clone(), &namespace);
    let (manager, name) = (names::MANAGER_JOB, names::FINALIZER_REMOTE_WORK);
    let changes = finalizer_changes(job, *finalizer, name);
    if changes && *finalizer == FinalizerStep::Add {
        apply_finalizer("add the Job's finalizer", &jobs, manager, job, Some(name)).await?;
    }
    if let Some(secret) = secret {
        let secrets: Api<Secret> = Api::namespaced(context.client.clone(), &namespace);
        create("create the order's Secret", &secrets, manager, secret).await?;
    }
    if let (Some((_, close)), Some(award)) = (close, award) {
        let awards: Api<Award> = Api::namespaced(context.client.clone(), &namespace);
        let spec = serde_json::json!({ "close": serde_json::to_value(close)? });
        apply_spec("close the Award", &awards, manager, award, spec).await?;
    }
    if let Some(status) = status {
        let mut before = job.status.clone().unwrap_or_default();
        before.auction = None;
        if *status != before {
            apply_status("write the Job's status", &jobs, manager, job, status).await?;
        }
        context.publish(job, transitions).await;
        measure(job, transitions, context);
    }
    if changes && *finalizer == FinalizerStep::Remove {
        apply_finalizer("remove the Job's finalizer", &jobs, manager, job, None).await?;
    }
    Ok(())
}

fn measure(job: &ComputeJob, transitions: &[Transition], context: &Context) {
    let ran_before = job.status.as_ref().is_some_and(|s| {
        vendue_crds::conditions::find(&s.conditions, cond::RUNNING).is_some_and(|c| c.status == "True")
            || s.usage.is_some()
    });
    let runs = transitions.iter().any(|t| t.condition == cond::RUNNING && t.status == "True");
    if let (true, false, Some(created)) = (runs, ran_before, &job.metadata.creation_timestamp) {
        let waited: Duration =
            Timestamp::now().duration_since(created.0).try_into().unwrap_or(Duration::ZERO);
        context.metrics.time_to_running.observe(waited.as_secs_f64());
    }
}

#[cfg(test)]
mod tests;
