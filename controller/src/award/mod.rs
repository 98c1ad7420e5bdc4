//! Reconciles Awards on the winner: dereference (IO), plan (pure), apply (IO), update status (IO).
//!
//! Invariant: nothing is decided here but in which order things are done.

mod dereference;
mod ledger;

pub use ledger::Ledger;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::PartialObjectMeta;
use kube::core::DeserializeGuard;
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::watcher;
use kube::{Api, ResourceExt};
use tracing::Instrument;
use vendue_controller_core::FinalizerStep;
use vendue_controller_core::award::objects::Env;
use vendue_controller_core::award::plan::{Plan, RayAction, plan};
use vendue_crds::conditions::{self, award as cond};
use vendue_crds::workload::Workload;
use vendue_crds::{Award, AwardSide, AwardStatus, names};

use crate::context::{Category, Context, action, error_policy, finalizer_changes, log_failure};
use crate::io::{IoError, ReadError, apply_finalizer, apply_status};
use crate::ray::{RayClient, RayError, Submitted};
use crate::receipts::Book;
use crate::runtime::Runtime;

/// Awards that are reconciled at a time. Each may wait for a slow Ray head for seconds.
const CONCURRENCY: u16 = 32;

/// Why an Award's reconcile failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Looking at what belongs to the Award failed.
    #[error("look at the Award's objects: {0}")]
    Dereference(#[from] ReadError),
    /// A write failed.
    #[error(transparent)]
    Write(#[from] IoError),
    /// Ray did not take the job.
    #[error(transparent)]
    Ray(#[from] RayError),
}

impl Category for Error {
    fn category(&self) -> &'static str {
        match self {
            Self::Dereference(error) => error.category(),
            Self::Write(error) => error.category(),
            Self::Ray(_) => "ray",
        }
    }
}

/// What the reconciles of Awards share.
pub struct Awards<R> {
    /// Shared context.
    pub context: Arc<Context>,
    /// Capacity and holds.
    pub ledger: Arc<Ledger>,
    /// The backend.
    pub runtime: R,
    /// HTTP client for Ray's heads.
    pub http: reqwest::Client,
    /// What the controller brings along.
    pub env: Env,
    /// Receipts of the nodes; `None` where none are taken.
    pub book: Option<Arc<Book>>,
    /// End of the name of every Service: "svc", or "svc." and the domain of the cluster.
    pub service_suffix: String,
    /// Workloads of awards that run, without their files: read once, small to keep.
    workloads: Mutex<HashMap<String, Workload>>,
    /// When Ray last said of an award's entry point that it runs. What is lost with the process is in the status, but for the
    /// time since.
    running: Mutex<HashMap<String, Timestamp>>,
}

impl<R: Runtime> Awards<R> {
    /// A controller's state.
    pub fn new(
        context: Arc<Context>,
        ledger: Arc<Ledger>,
        runtime: R,
        http: reqwest::Client,
        env: Env,
        book: Option<Arc<Book>>,
        cluster_domain: &str,
    ) -> Self {
        let service_suffix =
            if cluster_domain.is_empty() { "svc".to_owned() } else { format!("svc.{cluster_domain}") };
        let (workloads, running) = (Mutex::default(), Mutex::default());
        Self { context, ledger, runtime, http, env, book, service_suffix, workloads, running }
    }

    /// Address of the award's Ray head.
    fn ray_base(&self, namespace: &str) -> String {
        format!("http://{}.{namespace}.{}:8265", names::HEAD_SERVICE, self.service_suffix)
    }
}

/// Runs until a signal comes.
pub async fn run<R: Runtime>(awards: Arc<Awards<R>>) {
    let client = awards.context.client.clone();
    let api: Api<DeserializeGuard<Award>> = Api::all(client.clone());
    // Metadata is enough to wake up; the Pods themselves are read when they are needed.
    let pods: Api<PartialObjectMeta<Pod>> = Api::all(client);
    let shared = awards.context.clone();
    let of_awards = watcher::Config::default().labels(names::AWARD_ID);
    Controller::new(api, watcher::Config::default())
        .owns(pods, of_awards)
        .with_config(Config::default().concurrency(CONCURRENCY))
        .shutdown_on_signal()
        .run(
            |object, all: Arc<Awards<R>>| async move {
                all.context.run(&object, |award| reconcile(award, all.clone())).await
            },
            |object, error: &Error, all| error_policy(object.as_ref(), error, &all.context),
            awards,
        )
        .for_each(|result| log_failure(shared.clone(), result))
        .await;
}

/// Reconciles one Award.
pub async fn reconcile<R: Runtime>(award: Award, all: Arc<Awards<R>>) -> Result<Action, Error> {
    if award.spec.side != AwardSide::Host {
        return Ok(Action::await_change());
    }
    let span = tracing::info_span!("award", id = %award.spec.id, job = %award.spec.job.uid, round = award.spec.round);
    steps(award, all).instrument(span).await
}

async fn steps<R: Runtime>(award: Award, all: Arc<Awards<R>>) -> Result<Action, Error> {
    let now = Timestamp::now();
    let observed = dereference::dereference(&award, &all, now).await?; // client required
    let plan = plan(&award, &observed, &all.env, now); // no client
    let held = observed.allocation.is_some();
    let result = apply_plan(&award, &plan, &all).await; // client required
    // A write without an answer may have been done: the devices stay given until the cache knows more.
    if held && matches!(&result, Err(Error::Write(error)) if error.is_refusal()) {
        all.ledger.forget(&award.spec.id);
    }
    result?;
    Ok(action(plan.requeue))
}

/// Finalizer before anything that it protects; deletions before creations, so that a name is free; objects before Ray,
/// which runs in them; Ray before the status, because a repeated submission is harmless and a forgotten one is not;
/// the finalizer off last.
async fn apply_plan<R: Runtime>(award: &Award, plan: &Plan, all: &Awards<R>) -> Result<(), Error> {
    let Plan { finalizer, deletions, children, ray, status, transitions, requeue: _ } = plan;
    let namespace = award.namespace().unwrap_or_default();
    let api: Api<Award> = Api::namespaced(all.context.client.clone(), &namespace);
    let (manager, name) = (names::MANAGER_AWARD, names::FINALIZER_HELD_DEVICES);
    let changes = finalizer_changes(award, *finalizer, name);
    if changes && *finalizer == FinalizerStep::Add {
        apply_finalizer("add the Award's finalizer", &api, manager, award, Some(name)).await?;
    }
    // Before the objects go: the entry point gets a chance to end by itself.
    if let RayAction::Stop { id } = ray {
        stop(award, all, id).await;
    }
    for key in deletions {
        all.runtime.delete(&namespace, key).await?;
    }
    for child in children {
        all.runtime.create(&namespace, child).await?;
    }
    if let RayAction::Submit { id, entrypoint } = ray {
        submit(award, all, id, entrypoint).await?;
    }
    if *status != our_status(award) {
        apply_status("write the Award's status", &api, manager, award, status).await?;
    }
    all.context.publish(award, transitions).await;
    if changes && *finalizer == FinalizerStep::Remove {
        apply_finalizer("remove the Award's finalizer", &api, manager, award, None).await?;
    }
    Ok(())
}

/// The controller's part of the status as it is now.
fn our_status(award: &Award) -> AwardStatus {
    let mut status = award.status.clone().unwrap_or_default();
    status.conditions.retain(|c| c.type_ != cond::HANDED_OVER && c.type_ != cond::DELIVERED);
    status
}

async fn client<R: Runtime>(award: &Award, all: &Awards<R>) -> Result<Option<RayClient>, IoError> {
    let namespace = award.namespace().unwrap_or_default();
    let token = dereference::ray_token(all, &namespace).await?;
    Ok(token.map(|token| RayClient::new(all.http.clone(), all.ray_base(&namespace), token)))
}

async fn submit<R: Runtime>(award: &Award, all: &Awards<R>, id: &str, entrypoint: &str) -> Result<(), Error> {
    let Some(ray) = client(award, all).await? else { return Ok(()) };
    let result = ray.submit(id, entrypoint).await;
    let word = match &result {
        Ok(Submitted::New) => "new",
        Ok(Submitted::Known) => "known",
        Err(_) => "error",
    };
    all.context.metrics.ray_submit.with_label_values(&[word]).inc();
    let submitted = result?;
    tracing::info!(submission = id, ?submitted, "the entry point was submitted");
    Ok(())
}

/// As well as it goes: the Pods are deleted next, and a head that does not answer must not keep them.
async fn stop<R: Runtime>(award: &Award, all: &Awards<R>, id: &str) {
    let ray = match client(award, all).await {
        Ok(Some(ray)) => ray,
        Ok(None) => return,
        Err(error) => return tracing::debug!(%error, "the job is not stopped through Ray"),
    };
    if let Err(error) = ray.stop(id).await {
        tracing::debug!(%error, "the job is not stopped through Ray");
    }
}

/// Whether the objects of the award were ready once.
fn provisioned(award: &Award) -> bool {
    award.status.as_ref().is_some_and(|s| conditions::is_true(&s.conditions, cond::PROVISIONED))
}

#[cfg(test)]
mod tests;
