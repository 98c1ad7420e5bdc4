//! Reads and writes of API objects, each with a timeout and a name.
//!
//! Inputs: a client, an object, a field manager. Outputs: the answer, or an error that names the operation.
//! Invariant: every write is one server-side apply (or delete) by a named manager; a status is written only for the
//! object of the same uid, so a write can never bring a deleted object back.

use std::future::Future;
use std::time::Duration;

use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

/// Longest wait for one answer of the API server. Shorter than the time in which a reconcile should be over, longer
/// than a slow admission webhook.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A request that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum IoError {
    /// No answer in time.
    #[error("{operation}: no answer from the API server in {} s", TIMEOUT.as_secs())]
    Timeout {
        /// What was tried.
        operation: &'static str,
    },
    /// The API server said no, or could not be asked.
    #[error("{operation}: {source}")]
    Api {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: Box<kube::Error>,
    },
    /// An object could not be written as JSON.
    #[error("{operation}: encode: {source}")]
    Encode {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: serde_json::Error,
    },
}

impl IoError {
    /// A bounded word for metrics.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Timeout { .. } => "timeout",
            Self::Encode { .. } => "encode",
            Self::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(s) if s.is_conflict() => "conflict",
                kube::Error::Api(s) if s.is_not_found() => "not_found",
                kube::Error::Api(s) if s.is_forbidden() => "forbidden",
                kube::Error::Api(s) if s.is_invalid() => "invalid",
                kube::Error::Api(_) => "api",
                _ => "transport",
            },
        }
    }

    /// Whether the API server understood the write and did not do it. Every other failure may hide a write that was done.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Api { source, .. } if matches!(source.as_ref(), kube::Error::Api(s)
            if s.is_conflict() || s.is_invalid() || s.is_forbidden() || s.is_not_found()))
    }

    /// Whether the object is not there (any more).
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Api { source, .. }
            if matches!(source.as_ref(), kube::Error::Api(s) if s.is_not_found()))
    }
}

/// Why what a plan depends on could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The API server said no.
    #[error(transparent)]
    Read(#[from] IoError),
    /// The system gave no random bytes.
    #[error("draw random bytes: {0}")]
    Random(getrandom::Error),
}

impl ReadError {
    /// A bounded word for metrics.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Read(error) => error.category(),
            Self::Random(_) => "random",
        }
    }
}

/// Runs one request with the timeout.
pub async fn timed<T>(
    operation: &'static str,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, IoError> {
    match tokio::time::timeout(TIMEOUT, request).await {
        Ok(answer) => answer.map_err(|source| IoError::Api { operation, source: Box::new(source) }),
        Err(_) => Err(IoError::Timeout { operation }),
    }
}

/// Reads an object that may not exist.
pub async fn get_opt<K>(operation: &'static str, api: &Api<K>, name: &str) -> Result<Option<K>, IoError>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    timed(operation, api.get_opt(name)).await
}

/// Makes an object that must not be there yet.
pub async fn create<K>(
    operation: &'static str,
    api: &Api<K>,
    manager: &str,
    object: &K,
) -> Result<(), IoError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    let params = PostParams { field_manager: Some(manager.to_owned()), ..PostParams::default() };
    timed(operation, api.create(&params, object)).await.map(drop)
}

/// Applies a whole object.
pub async fn apply<K>(operation: &'static str, api: &Api<K>, manager: &str, object: &K) -> Result<(), IoError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    let params = PatchParams::apply(manager).force();
    timed(operation, api.patch(&object.name_any(), &params, &Patch::Apply(object))).await.map(drop)
}

/// Applies a part of the object that `of` is: `body` holds top-level fields other than apiVersion, kind and metadata.
fn part<K: Resource<DynamicType = ()>>(
    of: &K,
    metadata: serde_json::Value,
    body: serde_json::Value,
) -> serde_json::Value {
    let mut whole = json!({ "apiVersion": K::api_version(&()), "kind": K::kind(&()), "metadata": metadata });
    whole["metadata"]["name"] = json!(of.meta().name);
    // Refused with a conflict when the object is gone or is another one by now.
    whole["metadata"]["uid"] = json!(of.meta().uid);
    if let (Some(whole), serde_json::Value::Object(body)) = (whole.as_object_mut(), body) {
        whole.extend(body);
    }
    whole
}

/// Applies the manager's part of the status.
pub async fn apply_status<K, S>(
    operation: &'static str,
    api: &Api<K>,
    manager: &str,
    of: &K,
    status: &S,
) -> Result<(), IoError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
    S: Serialize,
{
    let status = serde_json::to_value(status).map_err(|source| IoError::Encode { operation, source })?;
    let body = part(of, json!({}), json!({ "status": status }));
    let params = PatchParams::apply(manager).force();
    timed(operation, api.patch_status(&of.name_any(), &params, &Patch::Apply(&body))).await.map(drop)
}

/// Applies the manager's part of the spec.
pub async fn apply_spec<K>(
    operation: &'static str,
    api: &Api<K>,
    manager: &str,
    of: &K,
    spec: serde_json::Value,
) -> Result<(), IoError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let body = part(of, json!({}), json!({ "spec": spec }));
    let params = PatchParams::apply(manager).force();
    timed(operation, api.patch(&of.name_any(), &params, &Patch::Apply(&body))).await.map(drop)
}

/// Sets the manager's finalizers: one, or none.
pub async fn apply_finalizer<K>(
    operation: &'static str,
    api: &Api<K>,
    manager: &str,
    of: &K,
    finalizer: Option<&str>,
) -> Result<(), IoError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let finalizers: Vec<&str> = finalizer.into_iter().collect();
    let body = part(of, json!({ "finalizers": finalizers }), json!({}));
    let params = PatchParams::apply(manager).force();
    timed(operation, api.patch(&of.name_any(), &params, &Patch::Apply(&body))).await.map(drop)
}

/// Deletes an object; one that is not there is deleted.
pub async fn delete<K>(
    operation: &'static str,
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<(), IoError>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let params = DeleteParams {
        propagation_policy: Some(kube::api::PropagationPolicy::Background),
        preconditions: None::<Preconditions>,
        ..DeleteParams::default()
    };
    match timed(operation, api.delete(name, &params)).await {
        Err(error) if error.is_gone() => Ok(()),
        other => other.map(drop),
    }
}
