//! Reads and writes of the API server: each with a timeout, a metric and an error that names the operation.
//!
//! Invariant: every write is a server-side apply by one of the managers in `crds::names`, or a delete.

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use crate::metrics::Metrics;

/// Longest wait for the API server.
pub const TIMEOUT: Duration = Duration::from_secs(8);

/// What the API server's answers are read as.
pub trait Object: Clone + Debug + DeserializeOwned {}

impl<K: Clone + Debug + DeserializeOwned> Object for K {}

/// Why a read or write did not happen.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No answer in time.
    #[error("{0}: the API server did not answer in time")]
    Timeout(&'static str),
    /// Too much was asked for in a short time.
    #[error("{0}: too many reads in this second")]
    Busy(&'static str),
    /// The API server refused or could not be reached.
    #[error("{operation}: {source}")]
    Api {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: Box<kube::Error>,
    },
}

impl ClusterError {
    fn status(&self) -> Option<&kube::core::Status> {
        match self {
            Self::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => Some(status),
                _ => None,
            },
            Self::Timeout(_) | Self::Busy(_) => None,
        }
    }

    /// Whether the object does not exist.
    pub fn is_not_found(&self) -> bool {
        self.status().is_some_and(|s| s.is_not_found())
    }

    /// Whether the API server refused the object as such, for example for a field that never changes.
    pub fn is_invalid(&self) -> bool {
        self.status().is_some_and(|s| s.is_invalid())
    }

    /// Whether trying again can not help: the API server understood and refused.
    pub fn is_final(&self) -> bool {
        self.status().is_some_and(|s| s.is_invalid() || s.is_forbidden())
    }
}

/// The API server of this cluster. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    /// The client.
    pub client: Client,
    /// Counters.
    pub metrics: Arc<Metrics>,
    events: mpsc::Sender<(Event, ObjectReference)>,
}

/// Events that wait to be published. They are for people, and conditions say the same: nothing waits for them.
const EVENTS: usize = 256;

impl Cluster {
    /// Wraps a client; `instance` names this Pod in Events.
    pub fn new(client: Client, metrics: Arc<Metrics>, instance: Option<String>) -> Self {
        let reporter = Reporter { controller: "vendue.dev/auction".to_owned(), instance };
        let recorder = Recorder::new(client.clone(), reporter);
        let (events, waiting) = mpsc::channel(EVENTS);
        tokio::spawn(publish(recorder, waiting, metrics.clone()));
        Self { client, metrics, events }
    }

    async fn timed<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, ClusterError> {
        let started = Instant::now();
        let result = match tokio::time::timeout(TIMEOUT, work).await {
            Err(_) => Err(ClusterError::Timeout(operation)),
            Ok(result) => result.map_err(|e| ClusterError::Api { operation, source: Box::new(e) }),
        };
        let outcome = match &result {
            Ok(_) => "ok",
            Err(ClusterError::Timeout(_)) => "timeout",
            Err(_) => "error",
        };
        self.metrics.writes.with_label_values(&[operation, outcome]).inc();
        self.metrics.write_duration.with_label_values(&[operation]).observe(started.elapsed().as_secs_f64());
        result
    }

    /// Reads an object, if it exists.
    pub async fn get<K: Object>(
        &self,
        operation: &'static str,
        api: &Api<K>,
        name: &str,
    ) -> Result<Option<K>, ClusterError> {
        self.timed(operation, api.get_opt(name)).await
    }

    /// Applies an object.
    pub async fn apply<K: Object>(
        &self,
        operation: &'static str,
        api: &Api<K>,
        manager: &str,
        name: &str,
        body: &(impl Serialize + Debug),
    ) -> Result<K, ClusterError> {
        let params = PatchParams::apply(manager).force();
        self.timed(operation, api.patch(name, &params, &Patch::Apply(body))).await
    }

    /// Applies the status of an object.
    pub async fn apply_status<K: Object>(
        &self,
        operation: &'static str,
        api: &Api<K>,
        manager: &str,
        name: &str,
        body: &(impl Serialize + Debug),
    ) -> Result<K, ClusterError> {
        let params = PatchParams::apply(manager).force();
        self.timed(operation, api.patch_status(name, &params, &Patch::Apply(body))).await
    }

    /// Deletes an object; one that does not exist is fine.
    pub async fn delete<K: Object>(
        &self,
        operation: &'static str,
        api: &Api<K>,
        name: &str,
    ) -> Result<(), ClusterError> {
        match self.timed(operation, api.delete(name, &DeleteParams::background())).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Deletes an object as it was read: one that has changed since stays, one that is gone is fine.
    pub async fn delete_as_read<K>(
        &self,
        operation: &'static str,
        api: &Api<K>,
        read: &ObjectMeta,
    ) -> Result<(), ClusterError>
    where
        K: Clone + Debug + DeserializeOwned,
    {
        let preconditions =
            Preconditions { uid: read.uid.clone(), resource_version: read.resource_version.clone() };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
        let name = read.name.as_deref().unwrap_or_default();
        match self.timed(operation, api.delete(name, &params)).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Lists objects.
    pub async fn list<K: Object>(
        &self,
        operation: &'static str,
        api: &Api<K>,
        params: &kube::api::ListParams,
    ) -> Result<Vec<K>, ClusterError> {
        Ok(self.timed(operation, api.list(params)).await?.items)
    }

    /// Creates an object that only the answer matters of (a review).
    pub async fn create<K: Object + Serialize>(
        &self,
        operation: &'static str,
        api: &Api<K>,
        object: &K,
    ) -> Result<K, ClusterError> {
        self.timed(operation, api.create(&kube::api::PostParams::default(), object)).await
    }

    /// Has an Event published, soon and in order; one that finds no room or fails is counted and lost.
    pub fn event(&self, about: &ObjectReference, warning: bool, action: &str, reason: &str, note: String) {
        let event = Event {
            type_: if warning { EventType::Warning } else { EventType::Normal },
            reason: reason.to_owned(),
            note: Some(note.chars().take(1000).collect()),
            action: action.to_owned(),
            secondary: None,
        };
        if self.events.try_send((event, about.clone())).is_err() {
            self.metrics.writes.with_label_values(&["event", "dropped"]).inc();
        }
    }
}

/// Publishes Events until the last [`Cluster`] is gone.
async fn publish(
    recorder: Recorder,
    mut waiting: mpsc::Receiver<(Event, ObjectReference)>,
    metrics: Arc<Metrics>,
) {
    while let Some((event, about)) = waiting.recv().await {
        let outcome = match tokio::time::timeout(TIMEOUT, recorder.publish(&event, &about)).await {
            Ok(Ok(())) => "ok",
            Ok(Err(error)) => {
                tracing::warn!(%error, reason = event.reason, "event not published");
                "error"
            }
            Err(_) => "timeout",
        };
        metrics.writes.with_label_values(&["event", outcome]).inc();
    }
}
