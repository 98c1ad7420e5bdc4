//! The native backend: own Ray Pods.
//!
//! Invariant: everything is found by the award's label or by a fixed name, so nothing is left behind after a crash.

use std::collections::BTreeSet;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{
    LimitRange, PersistentVolumeClaim, Pod, ResourceQuota, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::ListParams;
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use vendue_controller_core::award::objects::{Child, ChildKey, ENV_SECRET, FILES_SECRET};
use vendue_controller_core::award::plan::pod_seen;
use vendue_crds::{Award, names};

use super::{Cluster, Runtime};
use crate::io::{IoError, apply, delete, timed};

/// Secrets that an award can have. They are looked up by name: listing Secrets is a right that is not needed.
const SECRETS: [&str; 4] = [names::TOKENS_SECRET, ENV_SECRET, FILES_SECRET, names::WORKLOAD_SECRET];

/// Runs Ray in Pods of its own.
#[derive(Clone)]
pub struct Native {
    client: Client,
}

impl Native {
    /// A backend for this cluster.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    async fn put<K>(&self, operation: &'static str, namespace: &str, object: &K) -> Result<(), IoError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + Serialize
            + std::fmt::Debug,
    {
        apply(operation, &Api::namespaced(self.client.clone(), namespace), names::MANAGER_AWARD, object).await
    }

    async fn names<K>(
        &self,
        operation: &'static str,
        kind: &'static str,
        award: &Award,
    ) -> Result<Vec<ChildKey>, IoError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), &award.namespace().unwrap_or_default());
        let list = timed(operation, api.list_metadata(&of(award))).await?;
        Ok(list.items.into_iter().map(|o| ChildKey { kind, name: o.name_any() }).collect())
    }

    async fn secrets(&self, award: &Award) -> Result<Vec<ChildKey>, IoError> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &award.namespace().unwrap_or_default());
        let mut found = Vec::new();
        for name in SECRETS {
            let secret = timed("look for a Secret of the award", api.get_metadata_opt(name)).await?;
            found.extend(secret.map(|_| ChildKey { kind: "Secret", name: name.to_owned() }));
        }
        Ok(found)
    }

    async fn present(&self, award: &Award) -> Result<BTreeSet<ChildKey>, IoError> {
        let (quotas, limits, policies, accounts, claims, services, secrets) = futures::try_join!(
            self.names::<ResourceQuota>("list quotas", "ResourceQuota", award),
            self.names::<LimitRange>("list limits", "LimitRange", award),
            self.names::<NetworkPolicy>("list network policies", "NetworkPolicy", award),
            self.names::<ServiceAccount>("list service accounts", "ServiceAccount", award),
            self.names::<PersistentVolumeClaim>("list claims", "PersistentVolumeClaim", award),
            self.names::<Service>("list services", "Service", award),
            self.secrets(award),
        )?;
        let all = [quotas, limits, policies, accounts, claims, services, secrets];
        Ok(all.into_iter().flatten().collect())
    }
}

fn of(award: &Award) -> ListParams {
    ListParams::default().labels(&format!("{}={}", names::AWARD_ID, award.spec.id))
}

impl Runtime for Native {
    async fn observe(&self, award: &Award, all: bool) -> Result<Cluster, IoError> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &award.namespace().unwrap_or_default());
        let pods = timed("list Pods of the award", api.list(&of(award))).await?;
        let present = if all { Some(self.present(award).await?) } else { None };
        Ok(Cluster { pods: pods.items.iter().map(pod_seen).collect(), present })
    }

    async fn create(&self, namespace: &str, child: &Child) -> Result<(), IoError> {
        match child {
            Child::Quota(o) => self.put("create the quota", namespace, o).await,
            Child::Limits(o) => self.put("create the limits", namespace, o).await,
            Child::Policy(o) => self.put("create a network policy", namespace, o).await,
            Child::Account(o) => self.put("create the service account", namespace, o).await,
            Child::Secret(o) => self.put("create a Secret", namespace, o).await,
            Child::Claim(o) => self.put("create the claim", namespace, o).await,
            Child::Service(o) => self.put("create the Service", namespace, o).await,
            Child::Pod(o) => self.put("create a Pod", namespace, o.as_ref()).await,
        }
    }

    async fn delete(&self, namespace: &str, key: &ChildKey) -> Result<(), IoError> {
        let (client, name) = (&self.client, key.name.as_str());
        match key.kind {
            "Pod" => delete::<Pod>("delete a Pod", client, namespace, name).await,
            "ResourceQuota" => delete::<ResourceQuota>("delete the quota", client, namespace, name).await,
            "LimitRange" => delete::<LimitRange>("delete the limits", client, namespace, name).await,
            "NetworkPolicy" => {
                delete::<NetworkPolicy>("delete a network policy", client, namespace, name).await
            }
            "ServiceAccount" => {
                delete::<ServiceAccount>("delete the service account", client, namespace, name).await
            }
            "PersistentVolumeClaim" => {
                delete::<PersistentVolumeClaim>("delete the claim", client, namespace, name).await
            }
            "Service" => delete::<Service>("delete the Service", client, namespace, name).await,
            _ => delete::<Secret>("delete a Secret", client, namespace, name).await,
        }
    }
}
