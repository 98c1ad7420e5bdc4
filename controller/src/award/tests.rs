//! Awards against a scripted API server, with a backend that records.

use std::sync::Mutex as StdMutex;

use http::StatusCode;
use kube::Client;
use serde_json::{Value, json};
use vendue_controller_core::award::objects::{Child, ChildKey};
use vendue_controller_core::provision::{Device, GpuNodeView, Known, NodeView, ProvisionView};

use super::*;
use crate::runtime::Cluster;
use crate::testing::{Exchange, applied, award_json, context, event, found, script};

/// A backend that has nothing and remembers what it was asked.
#[derive(Default)]
struct Fake {
    done: StdMutex<Vec<String>>,
    cluster: Cluster,
}

impl Runtime for Fake {
    async fn observe(&self, _: &Award, _: bool) -> Result<Cluster, IoError> {
        Ok(self.cluster.clone())
    }
    async fn create(&self, _: &str, child: &Child) -> Result<(), IoError> {
        let key = child.key();
        self.done.lock().unwrap().push(format!("+{}/{}", key.kind, key.name));
        Ok(())
    }
    async fn delete(&self, _: &str, key: &ChildKey) -> Result<(), IoError> {
        self.done.lock().unwrap().push(format!("-{}/{}", key.kind, key.name));
        Ok(())
    }
}

fn ledger(gpus: u32) -> Arc<Ledger> {
    ledger_with(gpus, &[])
}

fn ledger_with(gpus: u32, awards: &[Award]) -> Arc<Ledger> {
    let node = NodeView {
        usable: true,
        gpus,
        cpu_millis: 8000,
        memory_mib: 16_384,
        disk_mib: 65_536,
        ..NodeView::default()
    };
    let devices = vec![("H100".into(), 81_920); gpus as usize];
    let known = vec![Device::default(); gpus as usize];
    let known = Known { fingerprint: Some("ab".repeat(32)), devices: known };
    let devices = GpuNodeView { ready: true, devices, known, ..GpuNodeView::default() };
    let spec = serde_json::from_value(json!({ "price": "1.80", "storageClassName": "local" })).unwrap();
    let provision = ProvisionView { namespace: "default".into(), name: "gpus".into(), spec };
    Arc::new(Ledger::with(vec![("n1", node)], vec![("n1", devices)], provision, awards))
}

fn awards(client: Client, ledger: Arc<Ledger>, cluster: Cluster) -> Arc<Awards<Fake>> {
    let env =
        Env { namespace: "vendue-system".into(), image: "v:1".into(), image_pull_policy: "Never".into() };
    let fake = Fake { cluster, ..Fake::default() };
    Arc::new(Awards::new(
        context("award", client),
        ledger,
        fake,
        crate::ray::http_client().unwrap(),
        env,
        None,
        "",
    ))
}

fn award(id: &str) -> Award {
    serde_json::from_value(award_json(id)).unwrap()
}

fn path(id: &str) -> String {
    format!("/apis/vendue.dev/v1alpha1/namespaces/vendue-a-{id}/awards/award")
}

fn status(id: &str, body: Vec<(&'static str, Value)>) -> Exchange {
    applied(&format!("{}/status", path(id)), names::MANAGER_AWARD, body)
}

#[tokio::test]
async fn holds_devices_finalizer_first() {
    let (client, server) = script(vec![
        pods(&[]),
        applied(
            &path("a1"),
            names::MANAGER_AWARD,
            vec![("/metadata/finalizers", json!(["vendue.dev/held-devices"]))],
        ),
        status(
            "a1",
            vec![
                ("/status/conditions/0/type", json!("Held")),
                ("/status/conditions/0/status", json!("True")),
                ("/status/devices/0", json!({ "node": "n1", "model": "H100", "workers": 2, "gpus": 2 })),
                ("/status/fingerprint", json!("ab".repeat(32))),
            ],
        ),
        event("vendue-a-a1", "DevicesHeld"),
    ]);
    let all = awards(client, ledger(2), Cluster::default());
    reconcile(award("a1"), all.clone()).await.unwrap();
    assert_eq!(all.ledger.snapshot().unwrap().holds.len(), 1, "assumed until the cache knows");
    drop(all);
    server.await.unwrap();
}

/// An answer to the status write of `a1` that is no success.
fn failed(code: u16, reason: &str) -> Exchange {
    Exchange {
        status: StatusCode::from_u16(code).unwrap(),
        answer: json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": "x", "reason": reason }),
        ..status("a1", vec![])
    }
}

fn finalizer(id: &str) -> Exchange {
    applied(&path(id), names::MANAGER_AWARD, vec![])
}

fn refused(id: &str) -> [Exchange; 2] {
    [
        status(id, vec![("/status/conditions/0/reason", json!("CapacityGone"))]),
        event(&format!("vendue-a-{id}"), "CapacityGone"),
    ]
}

fn held(id: &str) -> [Exchange; 2] {
    [
        status(id, vec![("/status/conditions/0/status", json!("True"))]),
        event(&format!("vendue-a-{id}"), "DevicesHeld"),
    ]
}

/// The Pods on n1 as they are now: one for each number of GPUs.
fn pods(gpus: &[u32]) -> Exchange {
    let pod = |(n, gpus): (usize, &u32)| {
        json!({ "metadata": { "name": format!("p{n}"), "namespace": "theirs" }, "spec": { "nodeName": "n1",
            "containers": [{ "name": "c", "resources": { "limits": { "nvidia.com/gpu": gpus.to_string() } } }] } })
    };
    let items: Vec<Value> = gpus.iter().enumerate().map(pod).collect();
    let list = json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items });
    found("/api/v1/pods?&fieldSelector=spec.nodeName%3Dn1", list)
}

#[tokio::test]
async fn what_the_cache_does_not_know_to_be_taken_is_not_promised() {
    let mut exchanges = vec![pods(&[1])];
    exchanges.extend(refused("a1"));
    exchanges.extend([pods(&[]), finalizer("a2")]);
    exchanges.extend(held("a2"));
    let (client, server) = script(exchanges);
    let all = awards(client, ledger(2), Cluster::default());
    reconcile(award("a1"), all.clone()).await.unwrap();
    assert!(all.ledger.snapshot().unwrap().holds.is_empty());
    reconcile(award("a2"), all.clone()).await.unwrap();
    drop(all);
    server.await.unwrap();
}

#[tokio::test]
async fn an_assumption_is_forgotten_when_the_write_is_refused() {
    let mut exchanges = vec![pods(&[]), finalizer("a1"), failed(409, "Conflict"), pods(&[]), finalizer("a2")];
    exchanges.extend(held("a2").into_iter().chain(refused("a3")));
    let (client, server) = script(exchanges);
    let all = awards(client, ledger(2), Cluster::default());
    let error = reconcile(award("a1"), all.clone()).await.unwrap_err();
    assert_eq!(error.category(), "conflict");
    reconcile(award("a2"), all.clone()).await.unwrap();
    reconcile(award("a3"), all.clone()).await.unwrap();
    drop(all);
    server.await.unwrap();
}

#[tokio::test]
async fn an_assumption_stays_when_the_write_may_have_been_done() {
    let mut exchanges = vec![pods(&[]), finalizer("a1"), failed(504, "Timeout")];
    exchanges.extend(refused("a2"));
    exchanges.extend([pods(&[]), finalizer("a1")]);
    exchanges.extend(held("a1"));
    let (client, server) = script(exchanges);
    let all = awards(client, ledger(2), Cluster::default());
    reconcile(award("a1"), all.clone()).await.unwrap_err();
    reconcile(award("a2"), all.clone()).await.unwrap();
    reconcile(award("a1"), all.clone()).await.unwrap();
    assert_eq!(all.ledger.snapshot().unwrap().holds.len(), 1);
    drop(all);
    server.await.unwrap();
}

#[test]
fn an_assumption_ends_with_an_award_that_was_never_held() {
    let mut released = award_json("a1");
    released["status"] = json!({ "conditions": [{ "type": "Released", "status": "True", "reason": "Closed",
        "message": "", "lastTransitionTime": "2026-11-22T15:00:00Z" }] });
    let ledger = ledger_with(2, &[serde_json::from_value(released).unwrap()]);
    assert!(ledger.allocate(&award("a1")).is_some());
    assert!(ledger.snapshot().unwrap().holds.is_empty());
}

#[tokio::test]
async fn nothing_is_given_out_while_a_cache_is_empty() {
    let (client, server) = script(vec![]);
    let all = awards(client, Arc::new(Ledger::default()), Cluster::default());
    // The plan writes nothing but its generation; a status without a word is not worth a request.
    let allocation = all.ledger.allocate(&award("a1"));
    assert_eq!(allocation, None);
    drop(all);
    server.await.unwrap();
}

#[tokio::test]
async fn a_closed_award_is_removed_then_released() {
    let mut closed = award_json("a1");
    closed["spec"]["close"] = json!({ "reason": "UserClosed", "at": "2026-11-22T15:00:00Z" });
    closed["spec"]["workloadSecret"] = json!("vendue-workload");
    closed["metadata"]["finalizers"] = json!([names::FINALIZER_HELD_DEVICES]);
    closed["status"] = json!({
        "conditions": [{ "type": "Held", "status": "True", "reason": "DevicesHeld", "message": "", "lastTransitionTime": "2026-11-22T15:00:00Z" }],
        "devices": [{ "node": "n1", "model": "H100", "workers": 2, "gpus": 2 }]
    });
    let object: Award = serde_json::from_value(closed).unwrap();
    let (client, server) = script(vec![
        status("a1", vec![("/status/state", json!("Closed"))]),
        event("vendue-a-a1", "Closed"),
        event("vendue-a-a1", "Closed"),
    ]);
    let service = ChildKey { kind: "Service", name: "ray-head".into() };
    let left = Cluster { pods: vec![], present: Some([service].into()) };
    let all = awards(client, ledger(2), left);
    reconcile(object.clone(), all.clone()).await.unwrap();
    assert_eq!(*all.runtime.done.lock().unwrap(), ["-Service/ray-head"]);
    drop(all);
    server.await.unwrap();

    let (client, server) = script(vec![
        status("a1", vec![("/status/conditions/3/reason", json!("TornDown"))]),
        event("vendue-a-a1", "Closed"),
        event("vendue-a-a1", "Closed"),
        event("vendue-a-a1", "TornDown"),
        applied(&path("a1"), names::MANAGER_AWARD, vec![("/metadata/finalizers", json!([]))]),
    ]);
    let all = awards(client, ledger(2), Cluster { pods: vec![], present: Some([].into()) });
    reconcile(object, all.clone()).await.unwrap();
    drop(all);
    server.await.unwrap();
}
