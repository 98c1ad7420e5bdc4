//! What is free, by node.
//!
//! Inputs: a [`Snapshot`] and a Provision's spec. Outputs: free capacity of each node that the Provision selects.
//! Invariant: free = what is healthy, probed (or accepted without), advertised and reported by no other node, on a node whose
//! agent is heard, minus holds of awards, minus requests of every other Pod, minus the room that the next award's head needs;
//! never negative.

use std::collections::{BTreeSet, HashMap};

use vendue_crds::{FreeNode, ProvisionSpec};

use super::duplicates::Duplicates;
use super::pods::ClaimedGpus;
use super::view::{GpuNodeView, NodeView, Snapshot};
use crate::award::sizes::{HEAD_CPU_MILLIS, HEAD_DISK_MIB, HEAD_MEMORY_MIB};

/// What a Provision selects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selected<'a> {
    /// Nodes of one model, by name.
    pub nodes: Vec<(&'a str, &'a NodeView, &'a GpuNodeView)>,
    /// Nodes that are left out because their GPUs are of more than one model: Kubernetes cannot be told which of them
    /// a Pod gets.
    pub mixed: Vec<&'a str>,
}

/// Nodes with healthy GPUs of an offered model that the node selector matches.
pub fn select<'a>(snapshot: &'a Snapshot, spec: &ProvisionSpec) -> Selected<'a> {
    let mut selected = Selected::default();
    for (name, gpus) in &snapshot.gpu_nodes {
        let Some(node) = snapshot.nodes.get(name) else { continue };
        let wanted = spec.node_selector.iter().all(|(k, v)| node.labels.get(k) == Some(v));
        // Also of those that are not counted: a Pod could get one of them.
        let all = gpus.devices.iter().chain(&gpus.unprobed);
        let models: BTreeSet<&str> = all.map(|(model, _)| model.as_str()).collect();
        let offered = |m: &&str| spec.gpu_models.is_empty() || spec.gpu_models.iter().any(|o| o == m);
        if !wanted || !models.iter().any(offered) || gpus.counted(spec).is_empty() {
            continue;
        }
        if models.len() > 1 {
            selected.mixed.push(name);
        } else {
            selected.nodes.push((name, node, gpus));
        }
    }
    selected
}

/// Free capacity of every node that the Provision selects; nodes with nothing free are listed with zero.
pub fn free_nodes(snapshot: &Snapshot, spec: &ProvisionSpec) -> Vec<FreeNode> {
    let duplicates = Duplicates::of(snapshot);
    let (all_taken, nothing) = (taken(snapshot), Taken::default());
    let free = |(name, node, gpus): &(&str, &NodeView, &GpuNodeView)| {
        let counted = gpus.counted(spec);
        let (model, _) = counted.first()?;
        let taken = all_taken.get(name).unwrap_or(&nothing);
        let (there, taken_gpus) = in_question(gpus, spec, counted.len() as u32, taken.gpus);
        let doubtful = u32::try_from(duplicates.doubtful(snapshot, name)).unwrap_or(u32::MAX);
        let sound = there.saturating_sub(doubtful);
        let doubted = taken.unknown || shares(node, gpus) || snapshot.silent.contains(*name);
        let trusted = node.usable && gpus.ready && !doubted;
        let sellable = if trusted { node.gpus.min(sound) } else { 0 };
        Some(FreeNode {
            node: (*name).to_owned(),
            model: model.clone(),
            gpu_memory_mib: signed(counted.iter().map(|(_, mib)| *mib).min().unwrap_or(0)),
            gpus: i32::try_from(u64::from(sellable).saturating_sub(taken_gpus)).unwrap_or(i32::MAX),
            cpu_millis: signed(
                node.cpu_millis.saturating_sub(taken.cpu_millis.saturating_add(HEAD_CPU_MILLIS)),
            ),
            memory_mib: signed(
                node.memory_mib.saturating_sub(taken.memory_mib.saturating_add(HEAD_MEMORY_MIB)),
            ),
            disk_mib: signed(node.disk_mib.saturating_sub(taken.disk_mib.saturating_add(HEAD_DISK_MIB))),
            fingerprint: gpus.known.fingerprint.clone(),
        })
    };
    select(snapshot, spec).nodes.iter().filter_map(free).collect()
}

/// Whether kubelet has more GPUs to give than there are: shares or slices of them, of which a Pod would get one in place of a
/// GPU.
fn shares(node: &NodeView, gpus: &GpuNodeView) -> bool {
    usize::try_from(node.gpus).unwrap_or(usize::MAX) > gpus.known.devices.len()
}

/// Those of the nodes whose GPUs are handed out in shares.
pub(super) fn shared<'a>(selected: &Selected<'a>) -> Vec<&'a str> {
    selected.nodes.iter().filter(|(_, node, gpus)| shares(node, gpus)).map(|(name, ..)| *name).collect()
}

/// Devices that are there and devices that are taken. One that a Pod had when it was to be probed, and so is not counted, is
/// among those that Pods have, or has become free: it counts on both sides, so that it is not subtracted twice. One that
/// somebody else uses is on neither: what Pods have are others.
fn in_question(gpus: &GpuNodeView, spec: &ProvisionSpec, counted: u32, taken: u64) -> (u32, u64) {
    if spec.accept_unprobed == Some(true) {
        return (counted, taken);
    }
    let allocated = gpus.unprobed_allocated;
    (counted.saturating_add(allocated), taken.max(u64::from(allocated)))
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// What is taken of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Taken {
    gpus: u64,
    cpu_millis: u64,
    memory_mib: u64,
    disk_mib: u64,
    /// Whether a Pod has a claim of which nobody knows the devices.
    unknown: bool,
}

/// What is taken of each node of which anything is.
fn taken(snapshot: &Snapshot) -> HashMap<&str, Taken> {
    let mut all: HashMap<&str, Taken> = HashMap::new();
    let mut claims: BTreeSet<(&str, &str)> = BTreeSet::new();
    // Pods of an award that holds are counted through the hold, which is there before the Pods are.
    let holding: BTreeSet<&str> = snapshot.holds.iter().map(|h| h.award_id.as_str()).collect();
    for pod in &snapshot.pods {
        if pod.award_id.as_deref().is_some_and(|id| holding.contains(id)) {
            continue;
        }
        let sum = all.entry(&pod.node).or_default();
        sum.gpus = sum.gpus.saturating_add(u64::from(pod.gpus));
        sum.cpu_millis = sum.cpu_millis.saturating_add(pod.cpu_millis);
        sum.memory_mib = sum.memory_mib.saturating_add(pod.memory_mib);
        sum.disk_mib = sum.disk_mib.saturating_add(pod.disk_mib);
        sum.unknown |= pod.unnamed_claim;
        // Pods may share a claim.
        for claim in pod.claims.iter().filter(|claim| claims.insert((&pod.node, claim))) {
            match snapshot.claims.get(claim) {
                Some(ClaimedGpus::Devices(gpus)) => sum.gpus = sum.gpus.saturating_add(u64::from(*gpus)),
                Some(ClaimedGpus::Unknown) | None => sum.unknown = true,
            }
        }
    }
    for (hold, devices) in snapshot.holds.iter().flat_map(|hold| hold.devices.iter().map(move |d| (hold, d)))
    {
        let sum = all.entry(&devices.node).or_default();
        let workers = u64::try_from(devices.workers).unwrap_or(0);
        let of = |each: u64, head: u64| each.saturating_mul(workers).saturating_add(head);
        sum.gpus = sum.gpus.saturating_add(u64::try_from(devices.gpus).unwrap_or(0));
        sum.cpu_millis = sum.cpu_millis.saturating_add(of(hold.cpu_millis_per_worker, HEAD_CPU_MILLIS));
        sum.memory_mib = sum.memory_mib.saturating_add(of(hold.memory_mib_per_worker, HEAD_MEMORY_MIB));
        sum.disk_mib = sum.disk_mib.saturating_add(of(hold.disk_mib_per_worker, HEAD_DISK_MIB));
    }
    all
}

/// Those of the nodes where a Pod has a claim of which nobody knows the devices.
pub(super) fn unknown_claims<'a>(snapshot: &Snapshot, selected: &Selected<'a>) -> Vec<&'a str> {
    let taken = taken(snapshot);
    let names = selected.nodes.iter().map(|(name, ..)| *name);
    names.filter(|name| taken.get(name).is_some_and(|taken| taken.unknown)).collect()
}
