//! The status of a Provision.
//!
//! Inputs: the Provision, a snapshot, the time. Outputs: the part of the status that the controller owns.
//! Invariant: the condition Advertised and `exclusions` belong to the auction process and are never in the plan.

use std::collections::BTreeSet;

use k8s_openapi::jiff::Timestamp;
use vendue_crds::conditions::{condition, provision as cond, reasons, set};
use vendue_crds::{FreeNode, HeldCapacity, Provision, ProvisionSpec, ProvisionStatus};

use super::capacity::{Selected, free_nodes, select, shared, unknown_claims};
use super::findings;
use super::view::{GpuNodeView, Snapshot};
use crate::cidr::Cidr;
use crate::transition::{Transition, transitions};

/// Most classes that a message names.
const MAX_CLASSES: usize = 16;
/// Most nodes that a message names.
const MAX_NODES: usize = 32;
/// Most entries of a list in the status.
const MAX_LIST: usize = 1024;

/// What to write.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The controller's part of the status.
    pub status: ProvisionStatus,
    /// What changed.
    pub transitions: Vec<Transition>,
}

/// Plans the status.
pub fn plan(provision: &Provision, snapshot: &Snapshot, now: Timestamp) -> Plan {
    let generation = provision.metadata.generation;
    let before: Vec<_> = provision
        .status
        .iter()
        .flat_map(|s| &s.conditions)
        .filter(|c| c.type_ != cond::ADVERTISED)
        .cloned()
        .collect();
    let key = (
        provision.metadata.namespace.clone().unwrap_or_default(),
        provision.metadata.name.clone().unwrap_or_default(),
    );
    let selected = select(snapshot, &provision.spec);
    let free = free_nodes(snapshot, &provision.spec);
    let free_gpus = free.iter().fold(0i32, |sum, node| sum.saturating_add(node.gpus));
    let free = most_free(free, MAX_LIST);
    let mut held: Vec<HeldCapacity> = snapshot
        .holds
        .iter()
        .filter(|h| h.provision == key)
        .map(|h| HeldCapacity {
            award_id: h.award_id.clone(),
            gpus: i32::try_from(h.gpus()).unwrap_or(i32::MAX),
        })
        .collect();
    held.sort_by(|a, b| a.award_id.cmp(&b.award_id));
    held.truncate(MAX_LIST);
    let total: usize = selected.nodes.iter().map(|(_, _, g)| g.counted(&provision.spec).len()).sum();

    let (ready, reason, message) = match unsound(provision, snapshot) {
        Some((reason, message)) => (false, reason, message),
        None => ready(total, selected.nodes.len(), left_out(snapshot, &provision.spec, &selected)),
    };
    let leased = held.iter().fold(0i32, |sum, h| sum.saturating_add(h.gpus));
    let lease_reason = if held.is_empty() { reasons::IDLE } else { reasons::IN_USE };
    let lease_text = format!("{} awards hold {leased} GPUs", held.len());
    let mut after = before.clone();
    set(&mut after, condition(cond::READY, ready, reason, message, generation, now));
    set(&mut after, condition(cond::LEASED, !held.is_empty(), lease_reason, lease_text, generation, now));

    findings::note(&mut after, snapshot, &selected, generation, now);

    let transitions = transitions(&before, &after);
    let status = ProvisionStatus {
        conditions: after,
        observed_generation: generation,
        total_gpus: i32::try_from(total).unwrap_or(i32::MAX),
        free_gpus,
        free,
        fingerprint: findings::fingerprint(&selected),
        held,
        exclusions: Vec::new(),
    };
    Plan { status, transitions }
}

/// The nodes with the most free GPUs, as many as the list may have, in the order that they were in: bids come from the list, and
/// a node that is left out sells nothing.
fn most_free(mut nodes: Vec<FreeNode>, limit: usize) -> Vec<FreeNode> {
    if nodes.len() > limit {
        let mut order: Vec<usize> = (0..nodes.len()).collect();
        order.sort_by_key(|index| std::cmp::Reverse(nodes.get(*index).map_or(0, |node| node.gpus)));
        let kept: BTreeSet<usize> = order.into_iter().take(limit).collect();
        let mut index = 0..;
        nodes.retain(|_| index.next().is_some_and(|index| kept.contains(&index)));
    }
    nodes
}

/// What is wrong with the spec in this cluster. What an award cannot run with must not be sold.
fn unsound(provision: &Provision, snapshot: &Snapshot) -> Option<(&'static str, String)> {
    let spec = &provision.spec;
    if let Err(error) = spec.price.price() {
        return Some((reasons::INVALID_SPEC, format!("spec.price: {error}")));
    }
    if let Some(bad) = spec.isolation.allowed_egress.iter().find(|c| Cidr::parse(c).is_none()) {
        let text = format!(
            "spec.isolation.allowedEgress has \"{bad}\"; accepted: an address range with no bits behind its prefix, for example \"10.0.0.0/8\""
        );
        return Some((reasons::INVALID_SPEC, text));
    }
    let missing = |field: &str, name: &str, classes: &BTreeSet<String>| {
        let known: Vec<&str> = classes.iter().map(String::as_str).take(MAX_CLASSES).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        format!("{field} is \"{name}\", which this cluster does not have; it has: {known}")
    };
    let class = &spec.storage_class_name;
    if !snapshot.storage_classes.contains(class) {
        let text = missing("spec.storageClassName", class, &snapshot.storage_classes);
        return Some((reasons::STORAGE_CLASS_MISSING, text));
    }
    let class = spec.isolation.runtime_class_name.as_ref();
    if let Some(class) = class.filter(|class| !snapshot.runtime_classes.contains(*class)) {
        let text = missing("spec.isolation.runtimeClassName", class, &snapshot.runtime_classes);
        return Some((reasons::RUNTIME_CLASS_MISSING, text));
    }
    None
}

/// The nodes that the selector matches, whatever GPUs they have.
fn matched<'a>(spec: &ProvisionSpec, snapshot: &'a Snapshot) -> impl Iterator<Item = &'a GpuNodeView> {
    let matches = |name: &String| {
        let node = snapshot.nodes.get(name);
        node.is_some_and(|n| spec.node_selector.iter().all(|(k, v)| n.labels.get(k) == Some(v)))
    };
    snapshot.gpu_nodes.iter().filter(move |(name, _)| matches(name)).map(|(_, gpus)| gpus)
}

/// Healthy devices that are left out because they were not probed.
fn unprobed(spec: &ProvisionSpec, snapshot: &Snapshot) -> usize {
    if spec.accept_unprobed == Some(true) {
        return 0;
    }
    let offered = |model: &String| spec.gpu_models.is_empty() || spec.gpu_models.contains(model);
    matched(spec, snapshot).flat_map(|gpus| &gpus.unprobed).filter(|(model, _)| offered(model)).count()
}

/// Devices that are left out because they work in slices.
fn sliced(spec: &ProvisionSpec, snapshot: &Snapshot) -> usize {
    matched(spec, snapshot).flat_map(|gpus| &gpus.known.devices).filter(|device| device.sliced).count()
}

/// What is not sold although the Provision selects it, and why.
fn left_out(snapshot: &Snapshot, spec: &ProvisionSpec, selected: &Selected<'_>) -> String {
    let mut text = String::new();
    if !selected.mixed.is_empty() {
        let mixed = named(&selected.mixed);
        text.push_str(&format!("; left out because their GPUs are of several models: {mixed}"));
    }
    let unprobed = unprobed(spec, snapshot);
    if unprobed > 0 {
        text.push_str(&format!("; {unprobed} GPUs were not probed, and spec.acceptUnprobed is not true"));
    }
    let unknown = unknown_claims(snapshot, selected);
    if !unknown.is_empty() {
        let unknown = named(&unknown);
        text.push_str(&format!(
            "; nothing is free where the devices of a Pod's claim are not known: {unknown}"
        ));
    }
    let shared = shared(selected);
    if !shared.is_empty() {
        let shared = named(&shared);
        text.push_str(&format!(
            "; nothing is free where kubelet has more GPUs to give than there are: {shared}"
        ));
    }
    let sliced = sliced(spec, snapshot);
    if sliced > 0 {
        text.push_str(&format!("; {sliced} GPUs are in MIG mode, and only whole ones are sold"));
    }
    text
}

/// The first nodes, and how many more there are.
pub(super) fn named(nodes: &[&str]) -> String {
    let more = match nodes.len().saturating_sub(MAX_NODES) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{}{more}", nodes.get(..MAX_NODES).unwrap_or(nodes).join(", "))
}

fn ready(gpus: usize, nodes: usize, left_out: String) -> (bool, &'static str, String) {
    match gpus {
        0 => (false, reasons::NO_GPUS, format!("no node reports a healthy GPU that spec selects{left_out}")),
        _ => (true, reasons::GPUS_REPORTED, format!("{gpus} GPUs on {nodes} nodes{left_out}")),
    }
}
