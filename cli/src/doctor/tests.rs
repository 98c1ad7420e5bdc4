//! Doctor and the checks before upgrade and uninstall, against a fake cluster.

use serde_json::{Value, json};

use super::api::Cluster;
use super::{checks, preflight};
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
    let sources = [include_str!("checks.rs"), include_str!("market.rs"), include_str!("preflight.rs")];
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
