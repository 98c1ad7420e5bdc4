//! `Provision`: what a provider offers, and what of it is free.
//!
//! Writers: the provider (`spec`), `vendue-controller/provision` (`status` but for Advertised),
//! `vendue-auction/bridge` (the condition Advertised and `status.exclusions`).
//! Invariant: `status.free` counts nothing that an award holds or a Pod uses.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::{Decimal, ExclusionCount};

/// A Provision offers GPUs of this cluster to the market.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "vendue.dev",
    version = "v1alpha1",
    kind = "Provision",
    plural = "provisions",
    shortname = "vprov",
    category = "vendue",
    namespaced,
    status = "ProvisionStatus",
    derive = "PartialEq",
    cel,
    doc = "A Provision offers GPUs of this cluster to the market: which ones, at what price and under what rules. The price never leaves the cluster except sealed in a bid.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(
        name = "Advertised",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Advertised')].status"
    ),
    printcolumn(name = "Price", type_ = "string", json_path = ".spec.price"),
    printcolumn(name = "Free", type_ = "integer", json_path = ".status.freeGpus"),
    printcolumn(name = "Total", type_ = "integer", json_path = ".status.totalGpus"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct ProvisionSpec {
    /// price per GPU-hour that is bid: a decimal above zero with at most six places, for example "1.80".
    #[x_kube(validation = Rule::new("self.matches('^(0|[1-9][0-9]{0,5})([.][0-9]{1,6})?$') && self.matches('[1-9]')")
        .message(Message::Expression("'price is \"' + self + '\"; accepted: a decimal above zero and below 1000000 with at most six places, for example \"1.80\"'".to_owned())))]
    pub price: Decimal,
    /// gpuModels restricts the offer to these models; empty offers all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        inner(length(min = 1, max = 63), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"))
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub gpu_models: Vec<String>,
    /// nodeSelector restricts the offer to nodes with these labels; empty offers all.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub node_selector: std::collections::BTreeMap<String, String>,
    /// storageClassName is the class of the volume that an award's Pods share.
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: String,
    /// accept are the rules that an order must meet before it is bid on.
    #[serde(default)]
    pub accept: AcceptRules,
    /// isolation is how strangers' Pods are kept apart.
    #[serde(default)]
    pub isolation: IsolationSpec,
    /// acceptUnprobed offers GPUs too that nothing was measured on, for example where there is no CUDA driver. GPUs that were
    /// measured and are not what they say are never offered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accept_unprobed: Option<bool>,
    /// suspend stops new bids; running awards are not affected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,
}

/// Rules that an order must meet.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AcceptRules {
    /// images lists the accepted container images; a trailing "*" accepts every image with that beginning. Empty
    /// accepts all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 512)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub images: Vec<String>,
    /// maxRunSeconds is the longest run deadline that is accepted; unset accepts all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 2_592_000))]
    pub max_run_seconds: Option<i32>,
    /// homes lists the user clusters (names in the market record) that are served; empty serves all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub homes: Vec<String>,
}

/// How strangers' Pods are kept apart.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct IsolationSpec {
    /// runtimeClassName of the Pods, for example "gvisor" or "kata"; unset uses the cluster's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub runtime_class_name: Option<String>,
    /// allowedEgress lists the address ranges (CIDR) that Pods may reach besides each other and DNS. Cloud metadata
    /// addresses are never reachable.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 9, max = 49)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub allowed_egress: Vec<String>,
}

/// What of a Provision there is and what is free.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ProvisionStatus {
    /// conditions: Ready, Advertised, Leased, DuplicateDevices, LabelsContradict, AgentsSilent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// observedGeneration is the generation of spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// totalGpus counts the GPUs that the Provision selects.
    #[serde(default)]
    pub total_gpus: i32,
    /// freeGpus counts those that nobody holds or uses.
    #[serde(default)]
    pub free_gpus: i32,
    /// free is what each node has left; the auction bids from here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["node".into(), "model".into()]))]
    pub free: Vec<FreeNode>,
    /// fingerprint of the devices: SHA-256 over the fingerprints of the nodes that the Provision selects, sorted, in
    /// hexadecimal digits. It is absent while that of a node is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub fingerprint: Option<String>,
    /// held is what awards hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["awardId".into()]))]
    pub held: Vec<HeldCapacity>,
    /// exclusions counts, for the last rounds, the orders that this Provision could not serve, by reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["reason".into()]))]
    pub exclusions: Vec<ExclusionCount>,
}

/// What a node has left.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct FreeNode {
    /// node by name.
    #[schemars(length(max = 253))]
    pub node: String,
    /// model of the GPUs.
    #[schemars(length(max = 63))]
    pub model: String,
    /// gpuMemoryMib is the memory of each GPU, MiB.
    pub gpu_memory_mib: i64,
    /// gpus that are free.
    pub gpus: i32,
    /// cpuMillis that is free, thousandths of a core.
    pub cpu_millis: i64,
    /// memoryMib that is free.
    pub memory_mib: i64,
    /// diskMib that is free.
    pub disk_mib: i64,
    /// fingerprint of the node's devices, as its GpuNode has it; bids are bound to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub fingerprint: Option<String>,
}

/// What an award holds.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HeldCapacity {
    /// awardId of the award.
    #[schemars(length(max = 16))]
    pub award_id: String,
    /// gpus that it holds.
    pub gpus: i32,
}
