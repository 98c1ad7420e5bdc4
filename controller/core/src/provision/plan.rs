//! The status of a Provision.
//!
//! Inputs: the Provision, a snapshot, the time. Outputs: the part of the status that the controller owns.
//! Invariant: the condition Advertised and `exclusions` belong to the auction process and are never in the plan.

use std::collections::BTreeSet;

use k8s_openapi::jiff::Timestamp;
use vendue_crds::conditions::{condition, provision as cond, reasons, set};
use vendue_crds::{HeldCapacity, Provision, ProvisionSpec, ProvisionStatus};

use super::capacity::{free_nodes, select};
use super::findings;
use super::view::Snapshot;
use crate::cidr::Cidr;
use crate::transition::{Transition, transitions};

/// Most classes that a message names.
const MAX_CLASSES: usize = 16;
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
    let mut free = free_nodes(snapshot, &provision.spec);
    free.truncate(MAX_LIST);
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
    let unprobed = unprobed(&provision.spec, snapshot);

    let (ready, reason, message) = match unsound(provision, snapshot) {
        Some((reason, message)) => (false, reason, message),
        None => ready(total, selected.nodes.len(), &selected.mixed, unprobed),
    };
    let leased: i32 = held.iter().map(|h| h.gpus).sum();
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
        free_gpus: free.iter().map(|n| n.gpus).sum(),
        free,
        fingerprint: findings::fingerprint(&selected),
        held,
        exclusions: Vec::new(),
    };
    Plan { status, transitions }
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

/// Healthy devices, of the nodes that the selector matches, that are left out because they were not probed.
fn unprobed(spec: &ProvisionSpec, snapshot: &Snapshot) -> usize {
    if spec.accept_unprobed == Some(true) {
        return 0;
    }
    let matches = |name: &String| {
        let node = snapshot.nodes.get(name);
        node.is_some_and(|n| spec.node_selector.iter().all(|(k, v)| n.labels.get(k) == Some(v)))
    };
    let offered = |model: &String| spec.gpu_models.is_empty() || spec.gpu_models.contains(model);
    let nodes = snapshot.gpu_nodes.iter().filter(|(name, _)| matches(name));
    nodes.flat_map(|(_, gpus)| &gpus.unprobed).filter(|(model, _)| offered(model)).count()
}

fn ready(gpus: usize, nodes: usize, mixed: &[&str], unprobed: usize) -> (bool, &'static str, String) {
    let mut left_out = match mixed {
        [] => String::new(),
        _ => format!("; left out because their GPUs are of several models: {}", mixed.join(", ")),
    };
    if unprobed > 0 {
        let text = format!("; {unprobed} GPUs were not probed, and spec.acceptUnprobed is not true");
        left_out.push_str(&text);
    }
    match gpus {
        0 => (false, reasons::NO_GPUS, format!("no node reports a healthy GPU that spec selects{left_out}")),
        _ => (true, reasons::GPUS_REPORTED, format!("{gpus} GPUs on {nodes} nodes{left_out}")),
    }
}
