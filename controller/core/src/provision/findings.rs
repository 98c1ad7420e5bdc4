//! What a Provision's status says of the identity of its devices.
//!
//! Inputs: a snapshot, what the Provision selects. Outputs: its fingerprint; conditions about doubts.
//! Invariant: a condition about a doubt is there from the first doubt on, and then says when there is none any more.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use vendue_crds::conditions::{condition, find, provision as cond, reasons, set};
use vendue_crds::parse_fingerprint;
use vendue_market::{Digest, tagged_hash};

use super::capacity::Selected;
use super::duplicates::Duplicates;
use super::labels;
use super::plan::named;
use super::silence::SILENT_AFTER;
use super::view::Snapshot;

/// Most sentences about labels in a message.
const MAX_NAMED: usize = 8;

/// One fingerprint over the nodes that are selected; none when one of them has none, or there is none of them.
pub(super) fn fingerprint(selected: &Selected<'_>) -> Option<String> {
    let of = |text: &Option<String>| text.as_deref().and_then(parse_fingerprint);
    let all: Option<Vec<Digest>> =
        selected.nodes.iter().map(|(_, _, gpus)| of(&gpus.known.fingerprint)).collect();
    let mut all = all.filter(|all| !all.is_empty())?;
    all.sort_unstable();
    let parts: Vec<&[u8]> = all.iter().map(|digest| digest.as_slice()).collect();
    Some(hex::encode(tagged_hash("VENDUE-V1-PROVISION-DEVICES", &parts)))
}

/// Sets the conditions about doubts.
pub(super) fn note(
    conditions: &mut Vec<Condition>,
    snapshot: &Snapshot,
    selected: &Selected<'_>,
    generation: Option<i64>,
    now: Timestamp,
) {
    let nodes: Vec<&str> = selected.nodes.iter().map(|(name, ..)| *name).collect();
    let doubts = [
        (
            (cond::DUPLICATE_DEVICES, reasons::SAME_UUID, Duplicates::of(snapshot).message(&nodes)),
            (reasons::UNIQUE, "no device is reported by another node too"),
        ),
        (
            (cond::LABELS_CONTRADICT, reasons::LABELS_DIFFER, contradictions(selected)),
            (reasons::LABELS_AGREE, "no label says other than the agents"),
        ),
        (
            (cond::AGENTS_SILENT, reasons::NOT_HEARD, silence(snapshot, selected)),
            (reasons::HEARD, "the agents of all nodes are heard"),
        ),
    ];
    for ((type_, reason, doubt), (cleared, none)) in doubts {
        let new = match doubt {
            Some(message) => condition(type_, true, reason, message, generation, now),
            None if find(conditions, type_).is_none() => continue,
            None => condition(type_, false, cleared, none, generation, now),
        };
        set(conditions, new);
    }
}

/// What the labels of the nodes contradict.
fn contradictions(selected: &Selected<'_>) -> Option<String> {
    let told: Vec<String> = selected
        .nodes
        .iter()
        .filter(|(_, _, gpus)| gpus.ready)
        .flat_map(|(name, node, gpus)| {
            let found = labels::contradictions(&node.labels, &gpus.known);
            found.into_iter().map(move |text| format!("node {name}: {text}"))
        })
        .collect();
    let more = match told.len().saturating_sub(MAX_NAMED) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    let named: Vec<String> = told.into_iter().take(MAX_NAMED).collect();
    (!named.is_empty()).then(|| format!("{}{more}", named.join("; ")))
}

/// The nodes that would be sold if their agents were heard. Of one that is not Ready its GpuNode says why nothing is sold.
fn silence(snapshot: &Snapshot, selected: &Selected<'_>) -> Option<String> {
    let silent: Vec<&str> = selected
        .nodes
        .iter()
        .filter(|(name, _, gpus)| gpus.ready && snapshot.silent.contains(*name))
        .map(|(name, ..)| *name)
        .collect();
    let text = || {
        let (seconds, nodes) = (SILENT_AFTER.as_secs(), named(&silent));
        format!("not heard for {seconds} s, and nothing is sold of: {nodes}; what is held there goes on")
    };
    (!silent.is_empty()).then(text)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use vendue_crds::Provision;

    use super::*;
    use crate::fixtures::{at, mk_provision_spec, mk_snapshot};
    use crate::provision::{plan, select};

    fn mk_provision() -> Provision {
        Provision { metadata: ObjectMeta::default(), spec: mk_provision_spec(), status: None }
    }

    fn seen(provision: &mut Provision, snapshot: &Snapshot, type_: &str) -> Option<(String, String, String)> {
        let status = plan(provision, snapshot, at(1)).status;
        let found = find(&status.conditions, type_).cloned();
        provision.status = Some(status);
        found.map(|c| (c.status, c.reason, c.message))
    }

    fn says(status: &str, reason: &str, message: &str) -> Option<(String, String, String)> {
        Some((status.to_owned(), reason.to_owned(), message.to_owned()))
    }

    #[test]
    fn duplicates_are_a_condition_and_an_event() {
        let (mut provision, mut snapshot) =
            (mk_provision(), mk_snapshot(&[("a", "H100", 2), ("b", "H100", 2)]));
        assert_eq!(seen(&mut provision, &snapshot, cond::DUPLICATE_DEVICES), None);
        let sound = snapshot.clone();
        snapshot.gpu_nodes.get_mut("b").unwrap().known.devices[0].uuid = "GPU-a-1".into();
        let plan = plan(&provision, &snapshot, at(1));
        assert_eq!((plan.status.total_gpus, plan.status.free_gpus), (4, 2));
        let event = plan.transitions.iter().find(|t| t.condition == cond::DUPLICATE_DEVICES).unwrap();
        let text = "GPU-a-1 is reported by nodes a, b; they are sold on none of them";
        assert_eq!((event.warning, event.message.as_str()), (true, text));
        let found = seen(&mut provision, &snapshot, cond::DUPLICATE_DEVICES);
        assert_eq!(found, says("True", reasons::SAME_UUID, text));
        let after = seen(&mut provision, &sound, cond::DUPLICATE_DEVICES);
        assert_eq!(after, says("False", reasons::UNIQUE, "no device is reported by another node too"));
    }

    #[test]
    fn labels_that_contradict_are_a_condition() {
        let (mut provision, mut snapshot) = (mk_provision(), mk_snapshot(&[("a", "H100", 2)]));
        let label = |snapshot: &mut Snapshot, count: &str| {
            let labels = &mut snapshot.nodes.get_mut("a").unwrap().labels;
            labels.insert("nvidia.com/gpu.count".into(), count.into());
        };
        label(&mut snapshot, "2");
        assert_eq!(seen(&mut provision, &snapshot, cond::LABELS_CONTRADICT), None);
        label(&mut snapshot, "8");
        let text = "node a: nvidia.com/gpu.count is \"8\", the agent says 2";
        let found = seen(&mut provision, &snapshot, cond::LABELS_CONTRADICT);
        assert_eq!(found, says("True", reasons::LABELS_DIFFER, text));
        label(&mut snapshot, "2");
        let after = seen(&mut provision, &snapshot, cond::LABELS_CONTRADICT);
        assert_eq!(after, says("False", reasons::LABELS_AGREE, "no label says other than the agents"));
    }

    #[test]
    fn of_a_node_whose_agent_is_silent_nothing_is_sold() {
        let (mut provision, mut snapshot) =
            (mk_provision(), mk_snapshot(&[("a", "H100", 2), ("b", "H100", 4)]));
        let free = |snapshot: &Snapshot| plan(&mk_provision(), snapshot, at(1)).status.free_gpus;
        assert_eq!(seen(&mut provision, &snapshot, cond::AGENTS_SILENT), None);
        assert_eq!(free(&snapshot), 6);
        snapshot.silent.insert("a".into());
        let plan = plan(&provision, &snapshot, at(1));
        assert_eq!((plan.status.total_gpus, plan.status.free_gpus), (6, 4));
        assert_eq!(plan.status.free.iter().map(|n| n.gpus).collect::<Vec<_>>(), [0, 4]);
        let text = "not heard for 60 s, and nothing is sold of: a; what is held there goes on";
        let event = plan.transitions.iter().find(|t| t.condition == cond::AGENTS_SILENT).unwrap();
        assert_eq!((event.warning, event.message.as_str()), (true, text));
        let found = seen(&mut provision, &snapshot, cond::AGENTS_SILENT);
        assert_eq!(found, says("True", reasons::NOT_HEARD, text));
        // One that says itself that it is not Ready is told of by its GpuNode.
        snapshot.gpu_nodes.get_mut("a").unwrap().ready = false;
        let after = seen(&mut provision, &snapshot, cond::AGENTS_SILENT);
        assert_eq!(after, says("False", reasons::HEARD, "the agents of all nodes are heard"));
        assert_eq!(free(&snapshot), 4);
    }

    #[test]
    fn many_silent_agents_make_a_bounded_message() {
        let names: Vec<String> = (0..40).map(|n| format!("n{n:02}")).collect();
        let nodes: Vec<(&str, &str, u32)> = names.iter().map(|n| (n.as_str(), "H100", 1)).collect();
        let mut snapshot = mk_snapshot(&nodes);
        snapshot.silent = names.iter().cloned().collect();
        let text = silence(&snapshot, &select(&snapshot, &mk_provision_spec())).unwrap();
        assert!(text.contains("n00, n01, ") && text.contains("n31 and 8 more; what"), "{text}");
    }

    #[test]
    fn the_fingerprint_is_that_of_all_nodes_in_any_order() {
        let of = |snapshot: &Snapshot| fingerprint(&select(snapshot, &mk_provision_spec()));
        let snapshot = mk_snapshot(&[("a", "H100", 2), ("b", "H100", 2)]);
        let whole = of(&snapshot).unwrap();
        assert_eq!(parse_fingerprint(&whole).map(|digest| digest.len()), Some(32));
        let mut swapped = snapshot.clone();
        let known = |name: &str| snapshot.gpu_nodes[name].known.clone();
        swapped.gpu_nodes.get_mut("a").unwrap().known = known("b");
        swapped.gpu_nodes.get_mut("b").unwrap().known = known("a");
        assert_eq!(of(&swapped), Some(whole.clone()));
        let mut fewer = snapshot.clone();
        fewer.gpu_nodes.remove("b");
        assert!(of(&fewer).is_some_and(|one| one != whole));
        let mut unknown = snapshot;
        unknown.gpu_nodes.get_mut("b").unwrap().known.fingerprint = None;
        assert_eq!((of(&unknown), of(&Snapshot::default())), (None, None));
    }
}
