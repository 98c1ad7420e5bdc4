//! Bounds, network policies and the account: what strangers' code may use and reach.
//!
//! Invariant: nothing is reachable that is not named here; cloud metadata addresses are never reachable.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    LimitRange, LimitRangeItem, LimitRangeSpec, ResourceQuota, ResourceQuotaSpec, ServiceAccount,
};
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
    NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use vendue_crds::names;

use super::pods::{DASHBOARD_PORT, worker_disk_limit_mib};
use super::{Parts, meta};
use crate::award::sizes;
use crate::cidr::Cidr;
use crate::provision::GPU_RESOURCE;

/// Name of the Pods' service account; no token is ever mounted.
pub const SERVICE_ACCOUNT: &str = "vendue-workload";
/// Addresses at which clouds hand out credentials of the node.
pub const METADATA_ADDRESSES: [&str; 2] = ["169.254.169.254/32", "fd00:ec2::254/128"];
/// Label that Kubernetes puts on every namespace.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

fn quantities<const N: usize>(list: [(&str, String); N]) -> Option<BTreeMap<String, Quantity>> {
    Some(list.into_iter().map(|(k, v)| (k.to_owned(), Quantity(v))).collect())
}

/// The whole namespace may use what was sold, the head, and nothing else.
pub(super) fn quota(parts: Parts<'_>) -> ResourceQuota {
    let train = parts.train;
    let workers = u64::from(train.workers);
    let requests = |each: u64, head: u64| each.saturating_mul(workers).saturating_add(head);
    let memory_limit = requests(
        train.memory_mib_per_worker,
        sizes::RAY_HEAD_MEMORY_LIMIT_MIB + sizes::COURIER_MEMORY_LIMIT_MIB,
    );
    let hard = quantities([
        ("pods", (workers + 1).to_string()),
        ("services", "1".to_owned()),
        ("services.nodeports", "0".to_owned()),
        ("services.loadbalancers", "0".to_owned()),
        ("persistentvolumeclaims", "1".to_owned()),
        ("requests.storage", format!("{}Mi", train.volume_mib)),
        ("requests.cpu", format!("{}m", requests(train.cpu_millis_per_worker, sizes::HEAD_CPU_MILLIS))),
        ("requests.memory", format!("{}Mi", requests(train.memory_mib_per_worker, sizes::HEAD_MEMORY_MIB))),
        ("limits.memory", format!("{memory_limit}Mi")),
        (&format!("requests.{GPU_RESOURCE}"), (workers * u64::from(train.gpus_per_worker)).to_string()),
    ]);
    ResourceQuota {
        metadata: meta(parts.award, "vendue-quota", None),
        spec: Some(ResourceQuotaSpec { hard, ..ResourceQuotaSpec::default() }),
        status: None,
    }
}

/// A container that names no bounds gets small ones, and none gets more than the largest part of the award.
pub(super) fn limits(parts: Parts<'_>) -> LimitRange {
    let memory = parts.train.memory_mib_per_worker.max(sizes::RAY_HEAD_MEMORY_LIMIT_MIB);
    let disk = worker_disk_limit_mib(parts.train).max(sizes::RAY_HEAD_DISK_LIMIT_MIB);
    let small = || quantities([("memory", "64Mi".to_owned()), ("ephemeral-storage", "64Mi".to_owned())]);
    let item = LimitRangeItem {
        type_: "Container".to_owned(),
        default: small(),
        default_request: quantities([
            ("cpu", "10m".to_owned()),
            ("memory", "64Mi".to_owned()),
            ("ephemeral-storage", "64Mi".to_owned()),
        ]),
        max: quantities([("memory", format!("{memory}Mi")), ("ephemeral-storage", format!("{disk}Mi"))]),
        ..LimitRangeItem::default()
    };
    LimitRange {
        metadata: meta(parts.award, "vendue-limits", None),
        spec: Some(LimitRangeSpec { limits: vec![item] }),
    }
}

/// The Pods' account.
pub(super) fn account(parts: Parts<'_>) -> ServiceAccount {
    ServiceAccount {
        metadata: meta(parts.award, SERVICE_ACCOUNT, None),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

/// Deny all, then allow each path by a policy of its own.
pub(super) fn network(parts: Parts<'_>) -> Vec<NetworkPolicy> {
    let both = Some(vec!["Ingress".to_owned(), "Egress".to_owned()]);
    let policy = |name: &str, spec: NetworkPolicySpec| NetworkPolicy {
        metadata: meta(parts.award, name, None),
        spec: Some(NetworkPolicySpec { pod_selector: Some(LabelSelector::default()), ..spec }),
    };
    let mut policies = vec![
        policy("vendue-deny-all", NetworkPolicySpec { policy_types: both.clone(), ..Default::default() }),
        policy(
            "vendue-allow-each-other",
            NetworkPolicySpec {
                policy_types: both,
                ingress: Some(vec![NetworkPolicyIngressRule { from: Some(vec![own_pods()]), ports: None }]),
                egress: Some(vec![NetworkPolicyEgressRule { to: Some(vec![own_pods()]), ports: None }]),
                ..Default::default()
            },
        ),
        policy(
            "vendue-allow-dns",
            NetworkPolicySpec {
                policy_types: Some(vec!["Egress".to_owned()]),
                egress: Some(vec![NetworkPolicyEgressRule {
                    to: Some(vec![namespace("kube-system")]),
                    ports: Some(vec![port("UDP", 53), port("TCP", 53)]),
                }]),
                ..Default::default()
            },
        ),
        policy(
            "vendue-allow-vendue",
            NetworkPolicySpec {
                policy_types: Some(vec!["Ingress".to_owned()]),
                ingress: Some(vec![NetworkPolicyIngressRule {
                    from: Some(vec![namespace(&parts.env.namespace)]),
                    ports: Some(vec![
                        port("TCP", DASHBOARD_PORT),
                        port("TCP", i32::from(names::COURIER_PORT)),
                    ]),
                }]),
                ..Default::default()
            },
        ),
    ];
    let egress: Vec<IPBlock> =
        parts.terms.isolation.allowed_egress.iter().filter_map(|cidr| block(cidr)).collect();
    if !egress.is_empty() {
        let peer = |ip_block| NetworkPolicyPeer { ip_block: Some(ip_block), ..Default::default() };
        let to = Some(egress.into_iter().map(peer).collect());
        policies.push(policy(
            "vendue-allow-egress",
            NetworkPolicySpec {
                policy_types: Some(vec!["Egress".to_owned()]),
                egress: Some(vec![NetworkPolicyEgressRule { to, ports: None }]),
                ..Default::default()
            },
        ));
    }
    policies
}

fn own_pods() -> NetworkPolicyPeer {
    NetworkPolicyPeer { pod_selector: Some(LabelSelector::default()), ..Default::default() }
}

fn namespace(name: &str) -> NetworkPolicyPeer {
    let labels = BTreeMap::from([(NAMESPACE_NAME.to_owned(), name.to_owned())]);
    let selector = LabelSelector { match_labels: Some(labels), match_expressions: None };
    NetworkPolicyPeer { namespace_selector: Some(selector), ..Default::default() }
}

fn port(protocol: &str, port: i32) -> NetworkPolicyPort {
    NetworkPolicyPort {
        protocol: Some(protocol.to_owned()),
        port: Some(IntOrString::Int(port)),
        end_port: None,
    }
}

/// The range without metadata addresses; `None` when nothing is left or it is no range.
fn block(cidr: &str) -> Option<IPBlock> {
    let range = Cidr::parse(cidr)?;
    let metadata: Vec<(Cidr, &str)> =
        METADATA_ADDRESSES.iter().filter_map(|m| Some((Cidr::parse(m)?, *m))).collect();
    if metadata.iter().any(|(address, _)| *address == range) {
        return None;
    }
    let inside: Vec<String> = metadata
        .iter()
        .filter(|(address, _)| range.contains(*address))
        .map(|(_, text)| (*text).to_owned())
        .collect();
    Some(IPBlock { cidr: cidr.to_owned(), except: (!inside.is_empty()).then_some(inside) })
}
