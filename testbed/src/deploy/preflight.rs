//! What is looked at on a user's cluster before anything is changed there.
//!
//! Inputs: connections to the clusters. Outputs: all that stands in the way, each with the next step. Invariant: only
//! reads; a cluster that fails here is as it was.

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::{Namespace, Node, Service, ServicePort};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Client;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams, PostParams};

use super::Site;
use super::charts::{NAMESPACE, Profile};
use super::existing::{Existing, MADE_BY_DEMO, Reach};
use crate::client::call;
use crate::error::{Error, Result};
use crate::gpu;

/// GPUs on one node that the example Job needs.
const JOB_GPUS: u32 = 2;

/// What was found on a cluster that can be used.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    /// Its nodes.
    pub nodes: Vec<Node>,
    /// Storage class to use.
    pub storage_class: String,
    /// Whether NVIDIA's label tells the nodes with GPUs from those without.
    pub gpus_labelled: bool,
    /// Most GPUs of one usable node.
    pub gpus: u32,
}

/// A right: group, resource, verb, and a namespace if it is not needed in all.
type Right = (&'static str, &'static str, &'static str, Option<&'static str>);

const RBAC: &str = "rbac.authorization.k8s.io";
const COMMON: &[Right] = &[
    ("", "namespaces", "create", None),
    ("", "namespaces", "delete", None),
    ("apiextensions.k8s.io", "customresourcedefinitions", "create", None),
    ("apiextensions.k8s.io", "customresourcedefinitions", "delete", None),
    ("apiextensions.k8s.io", "customresourcedefinitions", "patch", None),
    (RBAC, "clusterroles", "create", None),
    (RBAC, "clusterrolebindings", "create", None),
    ("apps", "deployments", "create", Some(NAMESPACE)),
    ("", "secrets", "create", Some(NAMESPACE)),
];
const HOME_ONLY: &[Right] = &[
    ("apiregistration.k8s.io", "apiservices", "create", None),
    (RBAC, "rolebindings", "create", Some("kube-system")),
    ("vendue.dev", "jobs", "create", Some("default")),
];
const PROVIDER_ONLY: &[Right] = &[
    ("admissionregistration.k8s.io", "validatingadmissionpolicies", "create", None),
    ("apps", "daemonsets", "create", Some(NAMESPACE)),
    ("vendue.dev", "provisions", "create", Some(NAMESPACE)),
];

/// Looks at all clusters; the error holds everything that was found, not only the first.
pub(super) async fn examine(sites: &[Site], options: &Existing) -> Result<Vec<Found>> {
    let looks = futures::future::join_all(sites.iter().map(|site| one(site, options))).await;
    let (mut found, mut trouble) = (Vec::new(), Vec::new());
    for (site, look) in sites.iter().zip(looks) {
        match look {
            Ok(one) => found.push(one),
            Err(problems) => trouble.extend(problems.into_iter().map(|p| format!("{}: {p}", site.name))),
        }
    }
    if trouble.is_empty() && found.iter().map(|f| f.gpus).max().unwrap_or_default() < JOB_GPUS {
        trouble.push(format!(
            "the example Job needs a node with {JOB_GPUS} GPUs, and no provider has one; next: add a provider"
        ));
    }
    if trouble.is_empty() {
        return Ok(found);
    }
    Err(Error::Invalid(format!("nothing was changed on any cluster:\n  {}", trouble.join("\n  "))))
}

async fn one(site: &Site, options: &Existing) -> std::result::Result<Found, Vec<String>> {
    let mut problems = Vec::new();
    match forbidden(site).await {
        Err(error) => {
            return Err(vec![format!("{error}; next: log in to context {} again", site.tools.context)]);
        }
        Ok(rights) if !rights.is_empty() => problems.push(format!(
            "you may not {}; next: use a context with the role cluster-admin",
            rights.join(", ")
        )),
        Ok(_) => {}
    }
    problems.extend(taken(&site.client).await.unwrap_or_else(|e| Some(e.to_string())));
    if site.profile == Profile::Provider && options.reach == Reach::NodePort {
        problems.extend(
            port_taken(&site.client, options.node_port).await.unwrap_or_else(|e| Some(e.to_string())),
        );
    }
    let nodes =
        match call("list nodes", Api::<Node>::all(site.client.clone()).list(&ListParams::default())).await {
            Ok(list) => list.items,
            Err(error) => {
                problems.push(format!("{error}; next: use a context that may list nodes"));
                return Err(problems);
            }
        };
    let gpus = nodes.iter().filter(|n| is_usable(n)).map(gpus_of).max().unwrap_or_default();
    if site.profile == Profile::Provider && gpus == 0 {
        problems.push(no_gpus(&nodes));
    }
    let storage_class = match storage_class(&site.client, options).await {
        Ok(name) => name,
        Err(error) => {
            problems.push(error.to_string());
            String::new()
        }
    };
    if !problems.is_empty() {
        return Err(problems);
    }
    let gpus_labelled = nodes.iter().filter(|n| gpus_of(n) > 0).all(has_gpu_label);
    Ok(Found { nodes, storage_class, gpus_labelled, gpus })
}

/// Who has the seat's node port, if it is not an earlier run's seat.
async fn port_taken(client: &Client, port: u16) -> Result<Option<String>> {
    let all = call("list services", Api::<Service>::all(client.clone()).list(&ListParams::default())).await?;
    Ok(all.items.iter().find(|service| has_node_port(service, port)).map(|service| {
        format!(
            "UDP node port {port} is taken by Service {}/{}; next: choose another with --node-port",
            service.namespace().unwrap_or_default(),
            service.name_any()
        )
    }))
}

fn has_node_port(service: &Service, port: u16) -> bool {
    let ports = service.spec.iter().flat_map(|s| s.ports.iter().flatten());
    let udp = |p: &&ServicePort| p.protocol.as_deref() == Some("UDP") && p.node_port == Some(i32::from(port));
    service.namespace().is_some_and(|ns| ns != NAMESPACE) && ports.filter(udp).count() > 0
}

/// Rights that the user lacks.
async fn forbidden(site: &Site) -> Result<Vec<String>> {
    let special = if site.profile == Profile::Home { HOME_ONLY } else { PROVIDER_ONLY };
    let api: Api<SelfSubjectAccessReview> = Api::all(site.client.clone());
    let mut lacking = Vec::new();
    for &(group, resource, verb, namespace) in COMMON.iter().chain(special) {
        let attributes = ResourceAttributes {
            group: Some(group.into()),
            resource: Some(resource.into()),
            verb: Some(verb.into()),
            namespace: namespace.map(Into::into),
            ..ResourceAttributes::default()
        };
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(attributes),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let answer = call("ask what you may do", api.create(&PostParams::default(), &review)).await?;
        if !answer.status.is_some_and(|s| s.allowed) {
            let place = namespace.map(|n| format!(" in {n}")).unwrap_or_default();
            lacking.push(format!("{verb} {resource}{place}"));
        }
    }
    Ok(lacking)
}

/// Why the demo may not install here: somebody else's Vendue is there.
async fn taken(client: &Client) -> Result<Option<String>> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    match call("look for the namespace", namespaces.get_opt(NAMESPACE)).await? {
        Some(ns) if ns.labels().contains_key(MADE_BY_DEMO) => return Ok(None),
        Some(_) => {
            return Ok(Some(format!(
                "namespace {NAMESPACE} is there and no demo made it; next: use a cluster without Vendue"
            )));
        }
        None => {}
    }
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    let list = call("list CRDs", crds.list_metadata(&ListParams::default())).await?;
    let ours = list.items.into_iter().map(|c| c.name_any()).find(|name| name.ends_with(".vendue.dev"));
    Ok(ours.map(|name| {
        format!("the CRD {name} is there, and the demo would remove it; next: delete it if nobody needs its objects")
    }))
}

/// Whether Pods can go to a node now.
pub(super) fn is_usable(node: &Node) -> bool {
    let unschedulable = node.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or_default();
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    !unschedulable && conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

fn gpus_of(node: &Node) -> u32 {
    let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
    allocatable.and_then(|a| a.get(gpu::RESOURCE)?.0.parse().ok()).unwrap_or_default()
}

/// The label that NVIDIA's feature discovery sets.
pub(super) const GPU_LABEL: &str = "nvidia.com/gpu.present";

fn has_gpu_label(node: &Node) -> bool {
    node.labels().get(GPU_LABEL).is_some_and(|value| value == "true")
}

fn no_gpus(nodes: &[Node]) -> String {
    let ready = nodes.iter().filter(|n| is_usable(n)).count();
    format!(
        "none of its {} nodes ({ready} ready) offers {}; next: install NVIDIA's GPU operator or device plugin and wait \
         until `kubectl describe node` shows the resource",
        nodes.len(),
        gpu::RESOURCE
    )
}

async fn storage_class(client: &Client, options: &Existing) -> Result<String> {
    let api: Api<StorageClass> = Api::all(client.clone());
    let list = call("list storage classes", api.list(&ListParams::default())).await?.items;
    pick_class(&list, options.storage_class.as_deref()).ok_or_else(|| {
        let names: Vec<_> = list.iter().map(kube::ResourceExt::name_any).collect();
        let what = match &options.storage_class {
            Some(name) => format!("there is no storage class {name}"),
            None => "there is no default storage class".into(),
        };
        Error::Invalid(format!("{what}; next: give --storage-class, one of: {}", names.join(", ")))
    })
}

fn pick_class(list: &[StorageClass], wanted: Option<&str>) -> Option<String> {
    let default = |c: &&StorageClass| {
        c.annotations().get("storageclass.kubernetes.io/is-default-class").is_some_and(|v| v == "true")
    };
    let found = match wanted {
        Some(name) => list.iter().find(|c| c.name_any() == name),
        None => list.iter().find(default),
    };
    found.map(kube::ResourceExt::name_any)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(ready: &str, cordoned: bool, gpus: &str) -> Node {
        serde_json::from_value(json!({ "metadata": { "name": "n" }, "spec": { "unschedulable": cordoned }, "status": {
            "allocatable": { "nvidia.com/gpu": gpus }, "conditions": [{ "type": "Ready", "status": ready }] } }))
        .unwrap()
    }

    #[test]
    fn only_ready_nodes_count() {
        assert!(is_usable(&node("True", false, "2")));
        assert!(!is_usable(&node("Unknown", false, "2")));
        assert!(!is_usable(&node("True", true, "2")));
        assert_eq!(gpus_of(&node("True", false, "2")), 2);
        assert_eq!(gpus_of(&Node::default()), 0);
        let text = no_gpus(&[node("True", false, "0"), node("False", false, "8")]);
        assert!(text.contains("2 nodes (1 ready)") && text.contains("next:"), "{text}");
    }

    #[test]
    fn another_service_may_have_the_seats_port() {
        let service = |namespace: &str, protocol: &str, port: i32| -> Service {
            serde_json::from_value(json!({ "metadata": { "namespace": namespace }, "spec": { "ports": [
                { "port": 1 }, { "port": 2, "protocol": protocol, "nodePort": port }] } }))
            .unwrap()
        };
        assert!(has_node_port(&service("games", "UDP", 30470), 30470));
        assert!(!has_node_port(&service("games", "TCP", 30470), 30470), "each protocol has its own ports");
        assert!(!has_node_port(&service("games", "UDP", 30471), 30470));
        assert!(!has_node_port(&service(NAMESPACE, "UDP", 30470), 30470), "an earlier run's seat");
    }

    #[test]
    fn the_default_class_or_the_one_that_was_asked_for() {
        let class = |name: &str, default: &str| -> StorageClass {
            serde_json::from_value(json!({ "metadata": { "name": name, "annotations": {
                "storageclass.kubernetes.io/is-default-class": default } }, "provisioner": "x" }))
            .unwrap()
        };
        let list = [class("slow", "false"), class("fast", "true")];
        assert_eq!(pick_class(&list, None).as_deref(), Some("fast"));
        assert_eq!(pick_class(&list, Some("slow")).as_deref(), Some("slow"));
        assert_eq!(pick_class(&list, Some("none")), None);
        assert_eq!(pick_class(&list[..1], None), None);
    }
}
