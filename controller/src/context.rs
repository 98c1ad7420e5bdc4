//! What all controllers share: client, metrics, Events, back-off.
//!
//! Invariant: one Event recorder per controller, whose clones share the aggregation of equal Events.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::core::DeserializeGuard;
use kube::runtime::controller::{self, Action};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource, ResourceExt};
use vendue_controller_core::FinalizerStep;
use vendue_controller_core::transition::Transition;

use crate::backoff::Backoff;
use crate::metrics::Metrics;

/// Shared by the reconciles of one controller.
pub struct Context {
    /// Name of the controller: `job`, `provision` or `award`.
    pub controller: &'static str,
    /// Client of the API server.
    pub client: Client,
    /// Metrics.
    pub metrics: Metrics,
    recorder: Recorder,
    backoff: Backoff,
}

/// An error that knows its bounded category.
pub trait Category: std::error::Error {
    /// A bounded word for metrics.
    fn category(&self) -> &'static str;
}

impl Context {
    /// A context; `pod` names this process in Events.
    pub fn new(controller: &'static str, client: Client, metrics: Metrics, pod: &str) -> Self {
        let reporter = Reporter {
            controller: format!("vendue-controller/{controller}"),
            instance: Some(pod.to_owned()),
        };
        let recorder = Recorder::new(client.clone(), reporter);
        Self { controller, client, metrics, recorder, backoff: Backoff::default() }
    }

    /// Publishes an Event for each transition. An Event that cannot be published is lost: it is for people, and the
    /// condition says the same.
    pub async fn publish<K: Resource<DynamicType = ()>>(&self, object: &K, transitions: &[Transition]) {
        self.metrics.count(transitions);
        for transition in transitions {
            tracing::info!(
                controller = self.controller,
                object = %path(object),
                condition = %transition.condition,
                status = %transition.status,
                reason = %transition.reason,
                "{}",
                transition.message.lines().next().unwrap_or_default()
            );
            let event = Event {
                type_: if transition.warning { EventType::Warning } else { EventType::Normal },
                reason: transition.reason.clone(),
                note: Some(transition.message.clone()),
                action: transition.condition.clone(),
                secondary: None,
            };
            let about = object.object_ref(&());
            let publish = self.recorder.publish(&event, &about);
            match tokio::time::timeout(Duration::from_secs(3), publish).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "an Event was lost"),
                Err(_) => tracing::debug!("an Event was lost: no answer"),
            }
        }
    }

    /// Measures a reconcile and forgets earlier failures when it succeeds. Objects that cannot be read are reported
    /// and left alone: the watch goes on, and their next version is looked at.
    pub async fn run<K, E, F>(
        &self,
        object: &DeserializeGuard<K>,
        reconcile: impl FnOnce(K) -> F,
    ) -> Result<Action, E>
    where
        K: Resource<DynamicType = ()> + Clone,
        E: Category,
        F: Future<Output = Result<Action, E>>,
    {
        let begun = Instant::now();
        let result = match &object.0 {
            Ok(object) => reconcile(object.clone()).await,
            Err(bad) => {
                tracing::warn!(controller = self.controller, object = %path(object), error = %bad.error,
                    "an object cannot be read; it is left alone");
                Ok(Action::await_change())
            }
        };
        let word = match &result {
            Ok(_) => "ok",
            Err(error) => error.category(),
        };
        let seconds = begun.elapsed().as_secs_f64();
        self.metrics.reconcile.with_label_values(&[self.controller, word]).observe(seconds);
        if result.is_ok() {
            self.backoff.succeeded(&uid(object));
        }
        result
    }

    /// When to try again after a failure.
    pub fn failed<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        error: &impl std::error::Error,
    ) -> Action {
        let wait = self.backoff.failed(&uid(object));
        tracing::warn!(controller = self.controller, object = %path(object), error = %chain(error),
            retry_ms = wait.as_millis() as u64, "reconcile failed");
        Action::requeue(wait)
    }
}

/// Tells of broken watches; failures of single objects are told by the error policy, where the wait is known.
pub async fn log_failure<T, E, Q>(context: Arc<Context>, result: Result<T, controller::Error<E, Q>>)
where
    E: std::error::Error + 'static,
    Q: std::error::Error + 'static,
{
    if let Err(controller::Error::QueueError(error)) = result {
        context.metrics.watch_errors.with_label_values(&[context.controller]).inc();
        tracing::warn!(controller = context.controller, error = %chain(&error), "a watch broke; it starts again");
    }
}

/// The action of a plan.
pub fn action(requeue: Option<Duration>) -> Action {
    // Never sooner than this: a plan that asks for "now" must not spin.
    requeue.map_or_else(Action::await_change, |wait| Action::requeue(wait.max(Duration::from_millis(50))))
}

/// Whether the finalizer step changes the object.
pub fn finalizer_changes<K: Resource>(object: &K, step: FinalizerStep, name: &str) -> bool {
    let there = object.finalizers().iter().any(|f| f == name);
    match step {
        FinalizerStep::Keep => false,
        // A finalizer cannot be added to an object that is being deleted.
        FinalizerStep::Add => !there && object.meta().deletion_timestamp.is_none(),
        FinalizerStep::Remove => there,
    }
}

fn uid<K: Resource>(object: &K) -> String {
    object.uid().unwrap_or_default()
}

fn path<K: Resource>(object: &K) -> String {
    format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any())
}

fn chain(error: &impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some errors print their sources themselves.
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// The `error_policy` of every controller.
pub fn error_policy<K, E>(object: &K, error: &E, context: &Arc<Context>) -> Action
where
    K: Resource<DynamicType = ()>,
    E: Category,
{
    context.failed(object, error)
}
