//! Compact views of the objects that capacity is counted from.
//!
//! Inputs: API objects. Outputs: the few numbers of each that matter.
//! Invariant: views are small, because a cluster may have thousands of Pods and all views stay in memory.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Node;
use vendue_crds::conditions::{self, award as cond, probe_reasons};
use vendue_crds::{
    Award, AwardSide, GpuDevice, GpuHealth, GpuNode, HeldDevices, MigMode, ProbeResult, Provision,
    ProvisionSpec,
};

use super::GPU_RESOURCE;
use super::known::Known;
use super::pods::{ClaimedGpus, PodUse};
use crate::award::taints::repels;
use crate::quantity::{count, mib_available, millis_available};

/// What a node can give.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeView {
    /// Labels, for node selectors.
    pub labels: BTreeMap<String, String>,
    /// Whether Pods of awards can be placed: the node is Ready, not cordoned, and has no taint that they do not tolerate.
    pub usable: bool,
    /// GPUs that the device plugin advertises.
    pub gpus: u32,
    /// Allocatable CPU, thousandths of a core.
    pub cpu_millis: u64,
    /// Allocatable memory, MiB.
    pub memory_mib: u64,
    /// Allocatable ephemeral storage, MiB.
    pub disk_mib: u64,
}

/// The healthy GPUs of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GpuNodeView {
    /// Whether the agent's last reading is good.
    pub ready: bool,
    /// Healthy whole devices that passed their probe: model and memory in MiB.
    pub devices: Vec<(String, u64)>,
    /// Healthy whole devices that were not probed.
    pub unprobed: Vec<(String, u64)>,
    /// How many of those a Pod had when they were to be probed. Those that others use are none: no Pod gives them back.
    pub unprobed_allocated: u32,
    /// What the agent says that all its devices are.
    pub known: Known,
}

impl GpuNodeView {
    /// The devices that a Provision counts.
    pub fn counted(&self, spec: &ProvisionSpec) -> Vec<&(String, u64)> {
        let unprobed = if spec.accept_unprobed == Some(true) { self.unprobed.as_slice() } else { &[] };
        self.devices.iter().chain(unprobed).collect()
    }
}

/// What an award holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hold {
    /// Id of the award.
    pub award_id: String,
    /// Namespace and name of the Provision that it was bid for.
    pub provision: (String, String),
    /// Devices by node.
    pub devices: Vec<HeldDevices>,
    /// CPU of each worker, thousandths of a core.
    pub cpu_millis_per_worker: u64,
    /// Memory of each worker, MiB.
    pub memory_mib_per_worker: u64,
    /// Disk of each worker, MiB.
    pub disk_mib_per_worker: u64,
}

impl Hold {
    /// GPUs over all nodes.
    pub fn gpus(&self) -> u32 {
        self.devices.iter().map(|d| u32::try_from(d.gpus).unwrap_or(0)).sum()
    }
}

/// A Provision as capacity sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct ProvisionView {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its spec.
    pub spec: ProvisionSpec,
}

impl From<&Provision> for ProvisionView {
    fn from(provision: &Provision) -> Self {
        Self {
            namespace: provision.metadata.namespace.clone().unwrap_or_default(),
            name: provision.metadata.name.clone().unwrap_or_default(),
            spec: provision.spec.clone(),
        }
    }
}

/// Everything that capacity is counted from, at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Nodes by name.
    pub nodes: BTreeMap<String, NodeView>,
    /// GPUs by node name.
    pub gpu_nodes: BTreeMap<String, GpuNodeView>,
    /// Nodes whose agents are not heard any more.
    pub silent: BTreeSet<String>,
    /// Pods that are bound and have not ended.
    pub pods: Vec<PodUse>,
    /// ResourceClaims by `namespace/name`.
    pub claims: BTreeMap<String, ClaimedGpus>,
    /// Holds of awards.
    pub holds: Vec<Hold>,
    /// Names of the storage classes.
    pub storage_classes: BTreeSet<String>,
    /// Names of the runtime classes.
    pub runtime_classes: BTreeSet<String>,
}

/// The view of a Node.
pub fn node_view(node: &Node) -> NodeView {
    let status = node.status.as_ref();
    let allocatable = status.and_then(|s| s.allocatable.as_ref());
    let get = |key: &str| allocatable.and_then(|a| a.get(key));
    let ready = status
        .and_then(|s| s.conditions.as_ref())
        .is_some_and(|c| c.iter().any(|c| c.type_ == "Ready" && c.status == "True"));
    let spec = node.spec.as_ref();
    let cordoned = spec.and_then(|s| s.unschedulable).unwrap_or(false);
    let repelled = spec.and_then(|s| s.taints.as_ref()).is_some_and(|taints| taints.iter().any(repels));
    NodeView {
        labels: node.metadata.labels.clone().unwrap_or_default(),
        usable: ready && !cordoned && !repelled,
        gpus: get(GPU_RESOURCE).map_or(0, count),
        cpu_millis: get("cpu").map_or(0, millis_available),
        memory_mib: get("memory").map_or(0, mib_available),
        disk_mib: get("ephemeral-storage").map_or(0, mib_available),
    }
}

/// The view of a GpuNode.
pub fn gpu_node_view(node: &GpuNode) -> GpuNodeView {
    let Some(status) = &node.status else { return GpuNodeView::default() };
    let result = |d: &GpuDevice| d.probe.as_ref().map_or(ProbeResult::NotRun, |probe| probe.result);
    let healthy = |wanted: ProbeResult| {
        // A GPU that works in slices is handed out in slices: what is sold are whole ones.
        let whole = |d: &GpuDevice| d.mig_mode != MigMode::Enabled;
        let of_result =
            move |d: &&GpuDevice| d.health == GpuHealth::Healthy && whole(d) && result(d) == wanted;
        status.devices.iter().filter(of_result)
    };
    let view = |d: &GpuDevice| (d.model.clone(), u64::try_from(d.memory_mib).unwrap_or(0));
    let reason = |d: &GpuDevice| d.probe.as_ref().map(|probe| probe.reason.clone());
    let allocated = |d: &&GpuDevice| reason(d).as_deref() == Some(probe_reasons::ALLOCATED);
    GpuNodeView {
        ready: conditions::is_true(&status.conditions, conditions::gpu_node::READY),
        devices: healthy(ProbeResult::Passed).map(view).collect(),
        unprobed: healthy(ProbeResult::NotRun).map(view).collect(),
        unprobed_allocated: u32::try_from(healthy(ProbeResult::NotRun).filter(allocated).count())
            .unwrap_or(u32::MAX),
        known: Known::from(status),
    }
}

/// The hold of an award; `None` when it holds nothing.
pub fn hold_view(award: &Award) -> Option<Hold> {
    let status = award.status.as_ref()?;
    let holds = award.spec.side == AwardSide::Host
        && conditions::is_true(&status.conditions, cond::HELD)
        && !conditions::is_true(&status.conditions, cond::RELEASED)
        && !status.devices.is_empty();
    holds.then(|| new_hold(award, status.devices.clone()))
}

/// The hold that an award would have with these devices.
pub(crate) fn new_hold(award: &Award, devices: Vec<HeldDevices>) -> Hold {
    let need = &award.spec.requirements;
    let number = |n: i64| u64::try_from(n).unwrap_or(0);
    Hold {
        award_id: award.spec.id.clone(),
        provision: (
            award.spec.provision_namespace.clone().unwrap_or_default(),
            award.spec.provision.clone().unwrap_or_default(),
        ),
        devices,
        cpu_millis_per_worker: number(need.cpu_millis_per_worker),
        memory_mib_per_worker: number(need.memory_mib_per_worker),
        disk_mib_per_worker: number(need.disk_mib_per_worker),
    }
}
