//! Following a Job from the outside, as `kubectl get -w` would, with the time of each step.
//!
//! Inputs: a client of home and the Job's name. Outputs: seconds since the Job was applied at which each condition
//! became True, and the last state seen. Invariant: looks only at the API, so it sees what a user sees.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kube::{Api, Client};
use vendue_crds::ComputeJob;
use vendue_crds::conditions::{self, job};

use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::wait::{self, Poll};

/// Conditions in the order in which a Job passes them.
pub const STEPS: [&str; 5] = [job::ACCEPTED, job::AWARDED, job::PROVISIONED, job::RUNNING, job::FINISHED];
const LOOK: Duration = Duration::from_millis(150);

/// A Job under observation.
pub struct Follower {
    api: Api<ComputeJob>,
    namespace: String,
    name: String,
    start: Instant,
    reached: BTreeMap<&'static str, f64>,
}

impl Follower {
    /// Starts the clock; call it right before the Job is applied.
    pub fn new(client: Client, namespace: &str, name: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            namespace: namespace.into(),
            name: name.into(),
            start: Instant::now(),
            reached: BTreeMap::new(),
        }
    }

    /// Seconds since the start at which each condition became True.
    pub fn reached(&self) -> &BTreeMap<&'static str, f64> {
        &self.reached
    }

    /// The Job as it is now.
    pub async fn get(&self) -> Result<ComputeJob> {
        let what = format!("get job {}/{}", self.namespace, self.name);
        self.api.get(&self.name).await.map_err(|e| Error::kube(what, e))
    }

    /// Waits until the condition is True, saying each step on the way.
    pub async fn until_true(
        &mut self,
        condition: &str,
        limit: Duration,
        progress: &Progress,
    ) -> Result<ComputeJob> {
        let what = format!("wait for {condition} of job {}/{}", self.namespace, self.name);
        self.until(&what, limit, progress, |job| is_true(job, condition)).await
    }

    /// Waits until `done` says so.
    pub async fn until(
        &mut self,
        what: &str,
        limit: Duration,
        progress: &Progress,
        done: impl Fn(&ComputeJob) -> bool,
    ) -> Result<ComputeJob> {
        let (api, name, start) = (self.api.clone(), self.name.clone(), self.start);
        let reached = std::cell::RefCell::new(&mut self.reached);
        let done = &done;
        let reached = &reached;
        wait::until(what, limit, LOOK, || {
            let (api, name) = (api.clone(), name.clone());
            async move {
                let job = match api.get_opt(&name).await {
                    Ok(Some(job)) => job,
                    Ok(None) => return Ok(Poll::Pending("the Job does not exist".into())),
                    Err(error) => return Ok(Poll::Pending(error.to_string())),
                };
                note(&job, start, &mut reached.borrow_mut(), progress);
                Ok(if done(&job) { Poll::Ready(job) } else { Poll::Pending(describe(&job)) })
            }
        })
        .await
    }
}

fn is_true(job: &ComputeJob, condition: &str) -> bool {
    job.status.as_ref().is_some_and(|s| conditions::is_true(&s.conditions, condition))
}

fn note(job: &ComputeJob, start: Instant, reached: &mut BTreeMap<&'static str, f64>, progress: &Progress) {
    for step in STEPS {
        if is_true(job, step) && !reached.contains_key(step) {
            let seconds = start.elapsed().as_secs_f64();
            reached.insert(step, seconds);
            let message = job
                .status
                .as_ref()
                .and_then(|s| conditions::find(&s.conditions, step))
                .map(|c| format!("{}: {}", c.reason, c.message))
                .unwrap_or_default();
            progress.say(format!("  {step:<11} after {seconds:6.2} s   {message}"));
        }
    }
}

/// The Job's conditions in one line.
pub fn describe(job: &ComputeJob) -> String {
    let Some(status) = &job.status else { return "no status yet".into() };
    let parts: Vec<String> = status
        .conditions
        .iter()
        .map(|c| format!("{}={} ({}: {})", c.type_, c.status, c.reason, c.message))
        .collect();
    if parts.is_empty() { "no conditions yet".into() } else { parts.join("; ") }
}
