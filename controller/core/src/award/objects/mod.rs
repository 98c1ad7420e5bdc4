//! The objects of a workload in the award's namespace.
//!
//! Inputs: the award, its workload, the provider's terms. Outputs: API objects, in the order in which they are made.
//! Invariants: names are fixed, so a repeat makes nothing twice; every Pod meets the Pod security level `restricted`;
//! no object gives a stranger's code a token of the cluster or a path of the node.

mod data;
mod pods;
mod policy;

pub use data::{ENV_SECRET, FILES_SECRET, VOLUME_CLAIM};
pub use pods::{HEAD_POD, worker_pod};
pub use policy::{METADATA_ADDRESSES, SERVICE_ACCOUNT};

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    LimitRange, PersistentVolumeClaim, Pod, ResourceQuota, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use vendue_crds::workload::TrainWorkload;
use vendue_crds::{Award, IsolationSpec, names};

/// What the controller brings along.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Env {
    /// Namespace of Vendue itself; its Pods may reach the head.
    pub namespace: String,
    /// Image of the courier.
    pub image: String,
    /// Pull policy of the courier's image.
    pub image_pull_policy: String,
}

/// What the Provision says about how a workload runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Terms {
    /// Class of the award's volume.
    pub storage_class_name: String,
    /// Isolation of the Pods.
    pub isolation: IsolationSpec,
}

/// Random tokens of an award.
#[derive(Clone, PartialEq, Eq)]
pub struct Tokens {
    /// Ray's token.
    pub ray: String,
    /// The courier's token.
    pub courier: String,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens(..)")
    }
}

/// Everything that the objects are made from.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// The award.
    pub award: &'a Award,
    /// Its workload.
    pub train: &'a TrainWorkload,
    /// The provider's terms.
    pub terms: &'a Terms,
    /// What the controller brings along.
    pub env: &'a Env,
    /// Node of all Pods.
    pub node: &'a str,
}

/// One object of a workload.
#[derive(Clone, Debug, PartialEq)]
pub enum Child {
    /// Bound on the namespace.
    Quota(ResourceQuota),
    /// Bound on each container.
    Limits(LimitRange),
    /// Who may talk to whom.
    Policy(NetworkPolicy),
    /// Account of the Pods, without a token.
    Account(ServiceAccount),
    /// Tokens, environment or files.
    Secret(Secret),
    /// The award's volume.
    Claim(PersistentVolumeClaim),
    /// The head's address.
    Service(Service),
    /// Head or worker.
    Pod(Box<Pod>),
}

/// Kind and name of an object in the award's namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChildKey {
    /// Kind.
    pub kind: &'static str,
    /// Name.
    pub name: String,
}

impl Child {
    /// Kind and name.
    pub fn key(&self) -> ChildKey {
        let (kind, meta) = match self {
            Self::Quota(o) => ("ResourceQuota", &o.metadata),
            Self::Limits(o) => ("LimitRange", &o.metadata),
            Self::Policy(o) => ("NetworkPolicy", &o.metadata),
            Self::Account(o) => ("ServiceAccount", &o.metadata),
            Self::Secret(o) => ("Secret", &o.metadata),
            Self::Claim(o) => ("PersistentVolumeClaim", &o.metadata),
            Self::Service(o) => ("Service", &o.metadata),
            Self::Pod(o) => ("Pod", &o.metadata),
        };
        ChildKey { kind, name: meta.name.clone().unwrap_or_default() }
    }
}

/// Every object but the Pods and the tokens. Bounds and policies come first: nothing runs before they hold.
pub fn foundation(parts: Parts<'_>) -> Vec<Child> {
    let mut children = vec![Child::Quota(policy::quota(parts)), Child::Limits(policy::limits(parts))];
    children.extend(policy::network(parts).into_iter().map(Child::Policy));
    children.push(Child::Account(policy::account(parts)));
    children.push(Child::Secret(data::environment(parts)));
    children.push(Child::Secret(data::files(parts)));
    children.push(Child::Claim(data::claim(parts)));
    children.push(Child::Service(data::service(parts)));
    children
}

/// The Secret with the award's tokens.
pub fn tokens(award: &Award, tokens: &Tokens) -> Child {
    Child::Secret(data::tokens(award, tokens))
}

/// The head.
pub fn head(parts: Parts<'_>) -> Child {
    Child::Pod(Box::new(pods::head(parts)))
}

/// Worker number `index`.
pub fn worker(parts: Parts<'_>, index: u32) -> Child {
    Child::Pod(Box::new(pods::worker(parts, index)))
}

/// Metadata of an object of the award; the Award owns it, so it goes when the Award goes.
fn meta(award: &Award, name: &str, role: Option<&str>) -> ObjectMeta {
    let mut labels = BTreeMap::from([
        (names::MANAGED_BY.to_owned(), names::VENDUE.to_owned()),
        (names::AWARD_ID.to_owned(), award.spec.id.clone()),
    ]);
    if let Some(role) = role {
        labels.insert(names::ROLE.to_owned(), role.to_owned());
    }
    let owner = OwnerReference {
        api_version: format!("{}/{}", vendue_crds::GROUP, vendue_crds::VERSION),
        kind: "Award".to_owned(),
        name: award.metadata.name.clone().unwrap_or_default(),
        uid: award.metadata.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: None,
    };
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: award.metadata.namespace.clone(),
        labels: Some(labels),
        owner_references: Some(vec![owner]),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests;
