//! Doctor and the checks before upgrade and uninstall, against a fake cluster.

use serde_json::{Value, json};

use super::api::Cluster;
use super::{checks, gpus, preflight};
use crate::cluster::tests::{fake, status};
use crate::report::{Check, Level, passed};

/// A cluster that answers with the objects whose path ends as named, and 404 otherwise.
fn cluster(objects: Vec<(&'static str, Value)>) -> Cluster {
    let (target, _) = fake(Box::new(move |uri| {
        let path = uri.split('?').next().unwrap_or_default();
        match objects.iter().find(|(end, _)| path.ends_with(end)) {
            Some((_, value)) if value["code"].is_u64() => status(403, "no"),
            Some((_, value)) => (200, serde_json::to_vec(value).unwrap()),
            None => status(404, "not found"),
        }
    }));
    Cluster::new(target.client, "vendue-system")
}

fn list(items: Vec<Value>) -> Value {
    json!({"apiVersion": "vendue.dev/v1alpha1", "kind": "List", "metadata": {}, "items": items})
}

fn condition(kind: &str, value: &str) -> Value {
    json!({"type": kind, "status": value, "reason": "R", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"})
}

fn award(side: &str, conditions: Vec<Value>) -> Value {
    json!({
        "apiVersion": "vendue.dev/v1alpha1", "kind": "Award", "metadata": {"name": "digits-1", "namespace": "team"},
        "spec": {"side": side, "id": "00", "marketId": "00", "round": 1, "orderDigest": "00",
            "job": {"home": "home", "uid": "u", "attempt": 1}, "provider": "bravo", "seat": 1, "price": "1.80",
            "expiresAt": "2026-01-01T00:00:00Z",
            "requirements": {"workers": 1, "gpusPerWorker": 1, "cpuMillisPerWorker": 1, "memoryMibPerWorker": 1,
                "runDeadlineSeconds": 60, "image": "ray:1"}},
        "status": {"conditions": conditions, "state": "Running"},
    })
}

fn find<'a>(checks: &'a [Check], name: &str) -> &'a Check {
    checks.iter().find(|c| c.name == name).unwrap_or_else(|| panic!("{name} in {checks:?}"))
}

#[tokio::test]
async fn uninstall_is_refused_while_an_award_runs() {
    let held = vec![condition("Held", "True"), condition("Running", "True")];
    for (side, name) in [("Home", "awards bought"), ("Host", "awards sold")] {
        let api = cluster(vec![("/awards", list(vec![award(side, held.clone())])), ("/jobs", list(vec![]))]);
        let checks = preflight::uninstall(&api).await.unwrap();
        assert!(!passed(&checks));
        let check = find(&checks, name);
        assert_eq!(check.level, Level::Fail);
        assert!(check.detail.contains("team/digits-1"), "{}", check.detail);
    }
}

#[tokio::test]
async fn uninstall_passes_when_all_is_released() {
    let over = vec![condition("Held", "True"), condition("Finished", "True"), condition("Released", "True")];
    let refused = vec![condition("Held", "False")];
    let items = vec![award("Home", over.clone()), award("Host", over), award("Host", refused)];
    let api = cluster(vec![("/awards", list(items)), ("/jobs", list(vec![]))]);
    assert!(passed(&preflight::uninstall(&api).await.unwrap()));
}

#[tokio::test]
async fn upgrade_explains_and_never_refuses() {
    let held = vec![condition("Held", "True")];
    let api = cluster(vec![("/awards", list(vec![award("Home", held)]))]);
    let checks = preflight::upgrade(&api).await.unwrap();
    assert!(passed(&checks));
    assert!(checks[0].detail.starts_with("1 go on: team/digits-1 at bravo"), "{}", checks[0].detail);
    assert_eq!(preflight::upgrade(&cluster(vec![])).await.unwrap(), [Check::ok("running awards", "none")]);
}

/// Helm takes the chart's values for all that an upgrade does not give, unless it is told to keep them; and it looks in the
/// namespace of the context.
#[test]
fn no_advice_makes_helm_forget_values() {
    let command = checks::upgrade_command("market-system", "--set-file market.record=market.json");
    assert_eq!(
        command,
        "helm upgrade vendue charts/vendue --namespace market-system --reset-then-reuse-values --set-file market.record=market.json"
    );
    let sources = [
        include_str!("checks.rs"),
        include_str!("gpus.rs"),
        include_str!("market.rs"),
        include_str!("preflight.rs"),
    ];
    let written: usize = sources.iter().map(|text| text.matches("helm upgrade vendue ").count()).sum();
    assert_eq!(written, 1, "only upgrade_command writes this command");
}

#[tokio::test]
async fn an_empty_cluster_says_what_to_install() {
    let version = json!({"major": "1", "minor": "37", "gitVersion": "v1.37.1", "gitCommit": "", "gitTreeState": "",
        "buildDate": "", "goVersion": "", "compiler": "", "platform": ""});
    let checks = checks::all(&cluster(vec![("/version", version)])).await.unwrap();
    assert_eq!(find(&checks, "api server").detail, "v1.37.1");
    for name in ["crds", "vendue-controller", "vendue-auction", "market record"] {
        let check = find(&checks, name);
        assert_eq!(check.level, Level::Fail, "{name}");
        assert!(check.next.as_ref().is_some_and(|n| n.contains("helm")), "{name}: {:?}", check.next);
    }
}

#[tokio::test]
async fn what_is_forbidden_is_skipped() {
    let version = json!({"major": "1", "minor": "37", "gitVersion": "v1.37.1", "gitCommit": "", "gitTreeState": "",
        "buildDate": "", "goVersion": "", "compiler": "", "platform": ""});
    let no = || json!({"code": 403});
    let objects = vec![
        ("/version", version),
        ("provisions.vendue.dev", no()),
        ("vendue-controller", no()),
        ("vendue-auction", no()),
        ("vendue-market", no()),
    ];
    let checks = checks::all(&cluster(objects)).await.unwrap();
    assert!(passed(&checks), "{checks:?}");
    assert_eq!(find(&checks, "market record").level, Level::Skip);
}

fn said(kind: &str, value: &str, reason: &str, message: &str) -> Value {
    json!({"type": kind, "status": value, "reason": reason, "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z"})
}

fn gpu_node(name: &str, conditions: Vec<Value>) -> Value {
    json!({"apiVersion": "vendue.dev/v1alpha1", "kind": "GpuNode", "metadata": {"name": name}, "spec": {},
        "status": {"conditions": conditions, "deviceCount": 8}})
}

/// A provider whose objects are as given, and else in order.
fn provider(objects: Vec<(&'static str, Value)>) -> Cluster {
    let daemon_set = json!({"metadata": {"name": "vendue-gpu-agent"},
        "status": {"currentNumberScheduled": 2, "desiredNumberScheduled": 2, "numberMisscheduled": 0, "numberReady": 2}});
    let slices = list(vec![
        json!({"addressType": "IPv4", "metadata": {}, "endpoints": [{"addresses": ["10.0.0.1"]}]}),
    ]);
    let fine = vec![
        ("/daemonsets/vendue-gpu-agent", daemon_set),
        ("/services/vendue-receipts", json!({"metadata": {"name": "vendue-receipts"}})),
        ("/endpointslices", slices),
        ("/gpunodes", list(vec![gpu_node("n1", vec![said("Ready", "True", "Healthy", "")])])),
    ];
    cluster(objects.into_iter().chain(fine).collect())
}

#[tokio::test]
async fn a_provider_in_order_is_three_lines() {
    let checks = gpus::all(&provider(vec![])).await.unwrap();
    let expected = [
        Check::ok("vendue-gpu-agent", "2 of 2 nodes"),
        Check::ok("receipts", "Service vendue-receipts has an endpoint"),
        Check::ok("gpu nodes", "1 of 1 in order, with 8 GPUs"),
    ];
    assert_eq!(checks, expected);
}

#[tokio::test]
async fn a_node_that_is_not_in_order_says_what_to_do() {
    let ready = || said("Ready", "True", "Healthy", "");
    let nodes = vec![
        gpu_node("fine", vec![ready(), said("Metered", "True", "Metered", "")]),
        gpu_node("bare", vec![said("Ready", "False", "LibraryMissing", "libnvidia-ml.so.1")]),
        gpu_node("full", vec![ready(), said("Metered", "False", "NotStored", "no space left")]),
        gpu_node("refused", vec![ready(), said("Metered", "False", "NotDelivered", "chain 7")]),
        gpu_node("slow", vec![ready(), said("Probed", "False", "NoCudaDriver", "803")]),
        gpu_node("new", vec![]),
    ];
    let checks = gpus::all(&provider(vec![("/gpunodes", list(nodes))])).await.unwrap();
    assert_eq!(find(&checks, "gpu nodes").detail, "1 of 6 in order, with 8 GPUs");
    for (name, level, detail, next) in [
        ("gpu node bare", Level::Fail, "LibraryMissing: libnvidia-ml.so.1", "runtimeClassName"),
        ("gpu node full", Level::Fail, "not metered: NotStored: no space left", "df -h"),
        (
            "gpu node refused",
            Level::Fail,
            "not metered: NotDelivered: chain 7",
            "deploy/vendue-controller | grep refused",
        ),
        ("gpu node slow", Level::Warn, "not probed: NoCudaDriver: 803", ""),
        ("gpu node new", Level::Fail, "not reported yet", "describe gpunodes"),
    ] {
        let check = find(&checks, name);
        assert_eq!((check.level, check.detail.as_str()), (level, detail), "{name}");
        assert!(check.next.as_deref().unwrap_or_default().contains(next), "{name}: {:?}", check.next);
    }
    let many = (0..30).map(|n| gpu_node(&format!("n{n}"), vec![])).collect();
    let checks = gpus::all(&provider(vec![("/gpunodes", list(many))])).await.unwrap();
    assert_eq!(checks.last().unwrap().detail, "10 more are not in order");
}

/// The reasons are the agent's: its documentation and this list name the same ones.
#[test]
fn each_documented_reason_has_a_next_step() {
    let docs = include_str!("../../../docs/gpu-agent.md");
    let (_, table) = docs.split_once("## Condition Ready of a GpuNode").unwrap();
    let table = table.split("\n## ").next().unwrap();
    let documented: Vec<&str> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| False | `")?.split_once('`'))
        .map(|(reason, _)| reason)
        .collect();
    let known: Vec<&str> = gpus::STEPS.iter().map(|(reason, _)| *reason).filter(|r| !r.is_empty()).collect();
    assert_eq!(known, documented);
}

#[tokio::test]
async fn an_agent_that_is_not_ready_and_receipts_without_an_end_are_told() {
    let daemon_set = json!({"metadata": {"name": "vendue-gpu-agent"},
        "status": {"currentNumberScheduled": 2, "desiredNumberScheduled": 2, "numberMisscheduled": 0, "numberReady": 1}});
    let pod = |name: &str, node: &str, ready: &str, state: Value| {
        json!({"metadata": {"name": name}, "spec": {"nodeName": node, "containers": []}, "status": {"phase": "Running",
            "conditions": [{"type": "Ready", "status": ready}],
            "containerStatuses": [{"name": "gpu-agent", "image": "", "imageID": "", "ready": ready == "True", "restartCount": 0, "state": state}]}})
    };
    let waits = json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s\nmore"}});
    let pods = list(vec![pod("a1", "n1", "True", json!({})), pod("a2", "n2", "False", waits)]);
    let none = list(vec![json!({"addressType": "IPv4", "metadata": {},
        "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": false}}]})]);
    let objects =
        vec![("/daemonsets/vendue-gpu-agent", daemon_set), ("/pods", pods), ("/endpointslices", none)];
    let checks = gpus::all(&provider(objects)).await.unwrap();
    let agent = find(&checks, "agent on n2");
    assert_eq!((agent.level, agent.detail.as_str()), (Level::Fail, "CrashLoopBackOff: back-off 40s"));
    assert!(agent.next.as_deref().unwrap().ends_with("vendue-system a2"));
    assert!(!checks.iter().any(|c| c.name == "agent on n1"));
    let receipts = find(&checks, "receipts");
    assert!(receipts.level == Level::Fail && receipts.detail.contains("no ready endpoint"), "{receipts:?}");
    let forbidden = cluster(vec![("/services/vendue-receipts", json!({"code": 403}))]);
    assert_eq!(find(&gpus::all(&forbidden).await.unwrap(), "receipts").level, Level::Skip);
    assert_eq!(find(&gpus::all(&cluster(vec![])).await.unwrap(), "receipts").level, Level::Fail, "missing");
}

#[tokio::test]
async fn a_provision_with_silent_agents_names_the_nodes_and_how_to_ask() {
    let conditions = vec![
        said("Ready", "True", "GpusReported", "8 GPUs on 1 nodes"),
        said("Advertised", "True", "Offered", ""),
        said("AgentsSilent", "True", "NotHeard", "not heard for 60 s, and nothing is sold of: n1"),
        said("LabelsContradict", "True", "LabelsDiffer", "node n1: ..."),
        said("DuplicateDevices", "False", "Unique", ""),
    ];
    let provision = json!({"apiVersion": "vendue.dev/v1alpha1", "kind": "Provision",
        "metadata": {"name": "gpus", "namespace": "default"},
        "spec": {"price": "1.80", "storageClassName": "local"},
        "status": {"conditions": conditions, "totalGpus": 8, "freeGpus": 0}});
    let found = checks::provisions(&cluster(vec![("/provisions", list(vec![provision]))])).await.unwrap();
    let levels: Vec<Level> = found.iter().map(|c| c.level).collect();
    assert_eq!(levels, [Level::Ok, Level::Fail, Level::Warn]);
    assert!(found[1].detail.ends_with("of: n1"), "{}", found[1].detail);
    assert!(found[1].next.as_deref().unwrap().contains("port-forward -n vendue-system POD 9470"));
}
