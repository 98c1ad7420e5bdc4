//! What doctor reads, with "forbidden" and "not there" told apart.

use k8s_openapi::ByteString;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use vendue_crds::{Award, ComputeJob, GpuNode, Provision};

use crate::error::CliError;

/// The result of one look.
#[derive(Debug, Clone, PartialEq)]
pub enum Seen<T> {
    /// It is there.
    There(T),
    /// It does not exist.
    Missing,
    /// The user may not look.
    Forbidden,
}

/// A cluster that is looked at.
pub struct Cluster {
    client: Client,
    /// Namespace that Vendue is installed in.
    pub system: String,
}

fn sort<T>(doing: &str, result: Result<T, kube::Error>) -> Result<Seen<T>, CliError> {
    match result {
        Ok(found) => Ok(Seen::There(found)),
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(Seen::Forbidden),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Seen::Missing),
        Err(error) => Err(CliError::kube(doing, &error)),
    }
}

impl Cluster {
    /// A cluster with Vendue in that namespace.
    pub fn new(client: Client, system: &str) -> Self {
        Self { client, system: system.to_owned() }
    }

    async fn one<K>(&self, api: Api<K>, what: &str, name: &str) -> Result<Seen<K>, CliError>
    where
        K: Clone + DeserializeOwned + std::fmt::Debug,
    {
        sort(&format!("read {what} {name}"), api.get(name).await)
    }

    async fn list<K>(&self, api: Api<K>, what: &str) -> Result<Seen<Vec<K>>, CliError>
    where
        K: Clone + DeserializeOwned + std::fmt::Debug,
    {
        sort(&format!("list {what}"), api.list(&ListParams::default()).await.map(|l| l.items))
    }

    /// The API server's version.
    pub async fn version(&self) -> Result<String, CliError> {
        let version =
            self.client.apiserver_version().await.map_err(|e| CliError::kube("ask for the version", &e))?;
        Ok(version.git_version)
    }

    /// A CRD.
    pub async fn crd(&self, name: &str) -> Result<Seen<CustomResourceDefinition>, CliError> {
        self.one(Api::all(self.client.clone()), "CRD", name).await
    }

    /// A Deployment of the system namespace.
    pub async fn deployment(&self, name: &str) -> Result<Seen<Deployment>, CliError> {
        self.one(Api::namespaced(self.client.clone(), &self.system), "Deployment", name).await
    }

    /// A DaemonSet of the system namespace.
    pub async fn daemon_set(&self, name: &str) -> Result<Seen<DaemonSet>, CliError> {
        self.one(Api::namespaced(self.client.clone(), &self.system), "DaemonSet", name).await
    }

    /// A ConfigMap of the system namespace.
    pub async fn config_map(&self, name: &str) -> Result<Seen<ConfigMap>, CliError> {
        self.one(Api::namespaced(self.client.clone(), &self.system), "ConfigMap", name).await
    }

    /// A Service of the system namespace.
    pub async fn service(&self, name: &str) -> Result<Seen<Service>, CliError> {
        self.one(Api::namespaced(self.client.clone(), &self.system), "Service", name).await
    }

    /// What stands behind a Service of the system namespace.
    pub async fn endpoints(&self, service: &str) -> Result<Seen<Vec<EndpointSlice>>, CliError> {
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &self.system);
        let params = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
        sort(&format!("list endpoints of {service}"), api.list(&params).await.map(|l| l.items))
    }

    /// The registration of the aggregated API.
    pub async fn stream_service(&self) -> Result<Seen<APIService>, CliError> {
        self.one(Api::all(self.client.clone()), "APIService", "v1alpha1.stream.vendue.dev").await
    }

    /// Pods of a component in the system namespace.
    pub async fn pods(&self, component: &str) -> Result<Seen<Vec<Pod>>, CliError> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &self.system);
        let params = ListParams::default().labels(&format!("app.kubernetes.io/name={component}"));
        sort(&format!("list Pods of {component}"), api.list(&params).await.map(|l| l.items))
    }

    /// All GpuNodes.
    pub async fn gpu_nodes(&self) -> Result<Seen<Vec<GpuNode>>, CliError> {
        self.list(Api::all(self.client.clone()), "GpuNodes").await
    }

    /// All Provisions.
    pub async fn provisions(&self) -> Result<Seen<Vec<Provision>>, CliError> {
        self.list(Api::all(self.client.clone()), "Provisions").await
    }

    /// All Awards.
    pub async fn awards(&self) -> Result<Seen<Vec<Award>>, CliError> {
        self.list(Api::all(self.client.clone()), "Awards").await
    }

    /// All Jobs.
    pub async fn jobs(&self) -> Result<Seen<Vec<ComputeJob>>, CliError> {
        self.list(Api::all(self.client.clone()), "Jobs").await
    }

    /// Helm's release, as its Secret holds it.
    pub async fn release(&self, secret: &str) -> Result<Vec<u8>, CliError> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.system);
        let found = api.get(secret).await.map_err(|e| CliError::kube("read the release", &e))?;
        let data = found.data.and_then(|mut data| data.remove("release"));
        data.map(|bytes| bytes.0).ok_or_else(|| CliError::failed(format!("Secret {secret} holds no release")))
    }

    /// Writes Helm's release, with the label that Helm looks for.
    pub async fn set_release(&self, secret: &str, release: Vec<u8>) -> Result<(), CliError> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.system);
        let body = serde_json::json!({
            "metadata": { "labels": { "status": "deployed" } },
            "data": { "release": ByteString(release) },
        });
        let patched = api.patch(secret, &PatchParams::default(), &Patch::Merge(&body)).await;
        patched.map(drop).map_err(|e| CliError::kube("write the release", &e))
    }

    /// The metrics of a Pod, through the API server.
    pub async fn metrics(&self, pod: &str, port: u16) -> Result<Seen<String>, CliError> {
        let path = format!("/api/v1/namespaces/{}/pods/{pod}:{port}/proxy/metrics", self.system);
        let request = http::Request::get(path).body(vec![]).map_err(|e| CliError::Usage(e.to_string()))?;
        sort(&format!("read the metrics of Pod {pod}"), self.client.request_text(request).await)
    }
}
