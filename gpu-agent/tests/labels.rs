//! What the labeller asks of the API server: exact methods, URLs, field manager and bodies; an unexpected call fails.

// Helpers of tests fail by panicking too; the lint's own exception covers only the test functions.
#![allow(clippy::expect_used, clippy::panic)]

mod scripted;

use std::collections::BTreeSet;

use http::Method;
use scripted::{Server, expect};
use serde_json::{Value, json};
use vendue_gpu_agent::inventory::{DeviceIdentity, DeviceReading, NodeInventory};
use vendue_gpu_agent::labels::{KEYS, LabelError, Labeller, Labels, MANAGER};

fn fixture(enabled: bool) -> (Labeller, Server) {
    let (client, server) = scripted::pair();
    (Labeller::new(client, "n1".to_owned(), enabled), server)
}

fn inventory() -> NodeInventory {
    let identity = DeviceIdentity {
        index: 0,
        uuid: "GPU-0".to_owned(),
        product_name: "NVIDIA L40S".to_owned(),
        memory_bytes: 46_068 << 20,
        pci_bus_id: String::new(),
        minor: None,
    };
    NodeInventory { devices: vec![DeviceReading::of(identity)], ..NodeInventory::default() }
}

fn labels() -> Labels {
    [("count", "1"), ("memory", "46068"), ("product", "NVIDIA-L40S")]
        .map(|(key, value)| (format!("nvidia.com/gpu.{key}"), value.to_owned()))
        .into_iter()
        .chain([("nvidia.com/mig.capable".to_owned(), "false".to_owned())])
        .collect()
}

/// A node that has these labels, all of them this agent's.
fn node(labels: &Labels) -> Value {
    let fields: serde_json::Map<String, Value> =
        labels.keys().map(|key| (format!("f:{key}"), json!({}))).collect();
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1", "labels": labels, "managedFields": [
        { "manager": MANAGER, "operation": "Apply", "fieldsV1": { "f:metadata": { "f:labels": fields } } },
    ] } })
}

async fn expect_get(server: &mut Server, found: Value) {
    expect(server, Method::GET, "/api/v1/nodes/n1", None, 200, found).await;
}

/// An apply of exactly these labels, which is not forced.
async fn expect_apply(server: &mut Server, labels: &Labels, code: u16, answer: Value) {
    let uri = format!("/api/v1/nodes/n1?&fieldManager={MANAGER}");
    let body = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1", "labels": labels } });
    expect(server, Method::PATCH, &uri, Some(body), code, answer).await;
}

/// The chart's admission policy lists the same labels: what it lacks could not be written, what it has more could be.
#[test]
fn the_admission_policy_allows_these_labels_and_no_others() {
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/vendue/templates/admission.yaml");
    let text = std::fs::read_to_string(chart).expect("the chart");
    let named: BTreeSet<&str> = text.split('\'').filter(|part| part.starts_with("nvidia.com/")).collect();
    assert_eq!(named, BTreeSet::from(KEYS));
}

/// Its taints too: those of the agent are those that Pods of awards tolerate and that the policy allows.
#[test]
fn the_admission_policy_allows_the_agents_taints_and_no_others() {
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/vendue/templates/admission.yaml");
    let text = std::fs::read_to_string(chart).expect("the chart");
    let named: BTreeSet<&str> = text.split('\'').filter(|part| part.starts_with("vendue.dev/")).collect();
    assert_eq!(named, BTreeSet::from(vendue_crds::names::TAINTS));
    let values = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/vendue/values.yaml");
    let values = std::fs::read_to_string(values).expect("the chart's values");
    let message = text.lines().find(|line| line.contains("only taints with the keys")).expect("a message");
    for key in vendue_crds::names::TAINTS {
        assert!(message.contains(key), "{key}: not in {message}");
        let tolerated =
            format!("{{ key: {key}, operator: Exists, effect: {} }}", vendue_crds::names::TAINT_EFFECT);
        assert!(values.contains(&tolerated), "{key}: the agent does not tolerate it");
    }
}

#[tokio::test]
async fn labels_are_applied_once_and_again_when_they_change() {
    let (mut labeller, mut server) = fixture(true);
    let api = tokio::spawn(async move {
        expect_get(&mut server, node(&Labels::new())).await;
        expect_apply(&mut server, &labels(), 200, node(&labels())).await;
        expect_get(&mut server, node(&labels())).await;
        expect_apply(&mut server, &Labels::new(), 200, node(&Labels::new())).await;
    });
    let wanted = labeller.due(&inventory()).expect("due");
    assert_eq!(wanted, labels());
    assert!(wanted.keys().all(|key| KEYS.contains(&key.as_str())));
    assert!(labeller.apply(&wanted).await.expect("applied"));
    assert_eq!(labeller.due(&inventory()), None);
    let gone = labeller.due(&NodeInventory::default()).expect("due");
    assert!(labeller.apply(&gone).await.expect("applied"));
    api.await.expect("script");
}

#[tokio::test]
async fn turned_off_it_takes_its_labels_back_and_then_looks_no_more() {
    let (mut labeller, mut server) = fixture(false);
    let api = tokio::spawn(async move {
        expect_get(&mut server, node(&labels())).await;
        expect_apply(&mut server, &Labels::new(), 200, node(&Labels::new())).await;
    });
    let wanted = labeller.due(&inventory()).expect("due");
    assert!(labeller.apply(&wanted).await.expect("applied"));
    assert_eq!(labeller.due(&inventory()), None);
    api.await.expect("script");
    // A node without its labels costs one look.
    let (mut labeller, mut server) = fixture(false);
    let api =
        tokio::spawn(async move { expect_get(&mut server, json!({ "metadata": { "name": "n1" } })).await });
    let wanted = labeller.due(&inventory()).expect("due");
    assert!(!labeller.apply(&wanted).await.expect("looked"));
    api.await.expect("script");
}

#[tokio::test]
async fn a_label_that_somebody_takes_in_between_is_left_to_them() {
    let (mut labeller, mut server) = fixture(true);
    let conflict = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 409,
        "reason": "Conflict", "message": "conflict with nfd-master" });
    let mut theirs = node(&Labels::new());
    theirs["metadata"]["labels"] = json!({ "nvidia.com/gfd.timestamp": "1", "nvidia.com/gpu.count": "1" });
    let api = tokio::spawn(async move {
        expect_get(&mut server, node(&Labels::new())).await;
        expect_apply(&mut server, &labels(), 409, conflict).await;
        expect_get(&mut server, theirs).await;
    });
    let wanted = labeller.due(&inventory()).expect("due");
    let error = labeller.apply(&wanted).await.expect_err("conflict");
    assert!(matches!(error, LabelError::Api { operation: "apply labels of node", .. }), "{error}");
    let again = labeller.due(&inventory()).expect("still due");
    assert!(!labeller.apply(&again).await.expect("left alone"));
    api.await.expect("script");
}
