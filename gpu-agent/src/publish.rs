//! Writes the node's `GpuNode` by server-side apply.
//!
//! Every call has a time limit. The object is owned by the Node, so it goes when the node goes; a Node that was
//! deleted and came back has a new UID, which shows as a missing object at the next write and is answered by making
//! it again.
//!
//! Invariant: only the object named after this node is ever written, under one field manager.

use std::future::Future;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::json;
use vendue_crds::conditions::find;
use vendue_crds::{GROUP, GpuNode, GpuNodeStatus, VERSION, names};

/// Longest wait for the API server.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why the object could not be written.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The API server refused or could not be reached.
    #[error("{operation}: {source}")]
    Api {
        /// What was asked.
        operation: &'static str,
        /// What the client says.
        source: Box<kube::Error>,
    },
    /// The API server did not answer in time.
    #[error("{operation}: no answer within {} s", TIMEOUT.as_secs())]
    Timeout {
        /// What was asked.
        operation: &'static str,
    },
    /// The Node has no UID, so nothing can be owned by it.
    #[error("get node {0}: it has no UID")]
    NoUid(String),
}

/// Writes one `GpuNode`.
pub struct Publisher {
    node_name: String,
    nodes: Api<Node>,
    gpu_nodes: Api<GpuNode>,
    generation: Option<i64>,
    /// What the object said before this process wrote to it.
    before: Vec<Condition>,
}

impl Publisher {
    /// A publisher for the node of that name.
    #[must_use]
    pub fn new(client: Client, node_name: String) -> Self {
        let gpu_nodes = Api::all(client.clone());
        Self { node_name, nodes: Api::all(client), gpu_nodes, generation: None, before: vec![] }
    }

    /// Generation of the object, once it is known.
    #[must_use]
    pub fn generation(&self) -> Option<i64> {
        self.generation
    }

    /// Makes sure that the object is there; needed once, and again when a write says that it is gone.
    ///
    /// # Errors
    /// When the API server refuses, fails or does not answer.
    pub async fn ensure(&mut self) -> Result<(), PublishError> {
        let node = limited("get node", self.nodes.get(&self.node_name)).await?;
        let uid = node.uid().ok_or_else(|| PublishError::NoUid(self.node_name.clone()))?;
        let object = json!({
            "apiVersion": api_version(),
            "kind": "GpuNode",
            "metadata": {
                "name": self.node_name,
                "labels": { names::MANAGED_BY: names::VENDUE },
                "ownerReferences": [
                    { "apiVersion": "v1", "kind": "Node", "name": self.node_name, "uid": uid },
                ],
            },
            "spec": {},
        });
        let (parameters, patch) = (parameters(), Patch::Apply(&object));
        let call = self.gpu_nodes.patch(&self.node_name, &parameters, &patch);
        let object = limited("apply GpuNode", call).await?;
        self.generation = object.metadata.generation;
        self.before = object.status.map(|status| status.conditions).unwrap_or_default();
        Ok(())
    }

    /// Writes the status and gives back what was written: with the object's generation filled in. An object that is
    /// gone is made again first.
    ///
    /// # Errors
    /// When the API server refuses, fails or does not answer.
    pub async fn write(&mut self, status: &GpuNodeStatus) -> Result<GpuNodeStatus, PublishError> {
        if self.generation.is_none() {
            self.ensure().await?;
        }
        match self.write_status(status).await {
            Err(PublishError::Api { source, .. }) if is_not_found(&source) => {
                self.ensure().await?;
                self.write_status(status).await
            }
            other => other,
        }
    }

    /// Writes the time of a status that is else as it was last written: a tenth of the bytes, and no other field for the API
    /// server to compare. Gives back what is written now. An object that is gone, or that is another one now, is written whole.
    ///
    /// # Errors
    /// When the API server refuses, fails or does not answer.
    pub async fn touch(&mut self, status: &GpuNodeStatus) -> Result<GpuNodeStatus, PublishError> {
        let patch = json!({ "status": { "observedAt": status.observed_at } });
        let parameters =
            PatchParams { field_manager: Some(names::MANAGER_AGENT.to_owned()), ..PatchParams::default() };
        let patch = Patch::Merge(&patch);
        let call = self.gpu_nodes.patch_status(&self.node_name, &parameters, &patch);
        match limited("patch GpuNode status", call).await {
            Ok(object) if object.metadata.generation == self.generation && is_whole(&object, status) => {
                Ok(status.clone())
            }
            Ok(_) => self.write(status).await,
            Err(PublishError::Api { source, .. }) if is_not_found(&source) => self.write(status).await,
            Err(error) => Err(error),
        }
    }

    async fn write_status(&mut self, status: &GpuNodeStatus) -> Result<GpuNodeStatus, PublishError> {
        let mut status = status.clone();
        status.observed_generation = self.generation;
        for condition in &mut status.conditions {
            condition.observed_generation = self.generation;
            // Another process before this one saw the transition.
            let before = find(&self.before, &condition.type_);
            if let Some(before) = before.filter(|before| before.status == condition.status) {
                condition.last_transition_time = before.last_transition_time.clone();
            }
        }
        let object = json!({
            "apiVersion": api_version(),
            "kind": "GpuNode",
            "metadata": { "name": self.node_name },
            "status": status,
        });
        let (parameters, patch) = (parameters(), Patch::Apply(&object));
        let call = self.gpu_nodes.patch_status(&self.node_name, &parameters, &patch);
        self.generation = limited("apply GpuNode status", call).await?.metadata.generation;
        self.before.clear();
        Ok(status)
    }
}

/// Whether an object still has what was written: one that was deleted and made by hand has a time and nothing else.
fn is_whole(object: &GpuNode, written: &GpuNodeStatus) -> bool {
    object.status.as_ref().is_some_and(|status| {
        (status.devices.len(), status.conditions.len()) == (written.devices.len(), written.conditions.len())
    })
}

fn api_version() -> String {
    format!("{GROUP}/{VERSION}")
}

/// Force: the fields are this agent's alone, whoever touched them by hand.
fn parameters() -> PatchParams {
    PatchParams::apply(names::MANAGER_AGENT).force()
}

fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_not_found())
}

async fn limited<T>(
    operation: &'static str,
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, PublishError> {
    match tokio::time::timeout(TIMEOUT, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(PublishError::Api { operation, source: Box::new(source) }),
        Err(_) => Err(PublishError::Timeout { operation }),
    }
}
