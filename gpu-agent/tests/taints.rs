//! Taints of the Node as the API server sees them asked for: exact calls in their order; an unexpected one fails.

// Helpers of tests fail by panicking too; the lint's own exception covers only the test functions.
#![allow(clippy::expect_used, clippy::panic)]

mod scripted;

use std::time::Duration;

use http::Method;
use scripted::{Server, expect};
use serde_json::{Value, json};
use vendue_gpu_agent::health::judge::Judge;
use vendue_gpu_agent::health::times::Times;
use vendue_gpu_agent::health::xid::Policy;
use vendue_gpu_agent::inventory::{NodeInventory, UnknownDevice};
use vendue_gpu_agent::taints::{self, Tainter};

const NODE: &str = "/api/v1/nodes/n1";
const PATCH: &str = "/api/v1/nodes/n1?&fieldManager=vendue-gpu-agent";

fn fixture(enabled: bool) -> (Tainter, Judge, Server) {
    let (client, server) = scripted::pair();
    let judge = Judge::new(Policy::default(), Times::default(), vec![]);
    (Tainter::new(client, "n1".to_owned(), enabled), judge, server)
}

/// A node with a device that is lost.
fn lost() -> NodeInventory {
    let unknown = vec![UnknownDevice { index: 0, error: "lost".to_owned() }];
    NodeInventory { unknown, ..NodeInventory::default() }
}

fn node(taints: &Value) -> Value {
    let metadata = json!({ "name": "n1", "resourceVersion": "7" });
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": { "taints": taints } })
}

fn taint() -> Value {
    json!([{ "key": "vendue.dev/xid", "value": "lost", "effect": "NoSchedule" }])
}

async fn apply(
    tainter: &mut Tainter,
    judge: &Judge,
    inventory: &NodeInventory,
) -> Option<Result<bool, String>> {
    let wanted = tainter.due(&taints::wanted(inventory, judge))?;
    Some(tainter.apply(&wanted).await.map_err(|error| error.to_string()))
}

#[tokio::test(start_paused = true)]
async fn a_taint_that_somebody_took_away_is_there_again_within_a_minute() {
    let (mut tainter, judge, mut server) = fixture(true);
    let calls = tokio::spawn(async move {
        expect(&mut server, Method::GET, NODE, None, 200, node(&json!([]))).await;
        expect(&mut server, Method::PATCH, PATCH, None, 200, node(&taint())).await;
        expect(&mut server, Method::GET, NODE, None, 200, node(&taint())).await;
        // Somebody took it away.
        expect(&mut server, Method::GET, NODE, None, 200, node(&json!([]))).await;
        expect(&mut server, Method::PATCH, PATCH, None, 200, node(&taint())).await;
        // It is over, and then nobody looks any more.
        expect(&mut server, Method::GET, NODE, None, 200, node(&taint())).await;
        expect(&mut server, Method::PATCH, PATCH, None, 200, node(&json!([]))).await;
    });
    assert_eq!(apply(&mut tainter, &judge, &lost()).await, Some(Ok(true)));
    assert_eq!(apply(&mut tainter, &judge, &lost()).await, None);
    for changed in [false, true] {
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(apply(&mut tainter, &judge, &lost()).await, Some(Ok(changed)));
    }
    assert_eq!(apply(&mut tainter, &judge, &NodeInventory::default()).await, Some(Ok(true)));
    tokio::time::advance(Duration::from_secs(3_600)).await;
    assert_eq!(apply(&mut tainter, &judge, &NodeInventory::default()).await, None);
    calls.await.expect("all calls");
}

#[tokio::test]
async fn an_agent_that_is_not_to_taint_takes_back_what_is_there_once() {
    let (mut tainter, judge, mut server) = fixture(false);
    let calls = tokio::spawn(async move {
        expect(&mut server, Method::GET, NODE, None, 200, node(&taint())).await;
        expect(&mut server, Method::PATCH, PATCH, None, 200, node(&json!([]))).await;
    });
    assert_eq!(apply(&mut tainter, &judge, &lost()).await, Some(Ok(true)));
    assert_eq!(apply(&mut tainter, &judge, &lost()).await, None);
    calls.await.expect("all calls");
    assert_eq!(
        tainter.by_hand(),
        "kubectl taint node n1 vendue.dev/ecc- vendue.dev/thermal- vendue.dev/xid-"
    );
}

#[tokio::test]
async fn where_it_may_not_patch_it_says_so_and_tries_again() {
    let (mut tainter, judge, mut server) = fixture(false);
    let forbidden = json!({ "kind": "Status", "status": "Failure", "reason": "Forbidden", "code": 403,
        "message": "nodes \"n1\" is forbidden" });
    let calls = tokio::spawn(async move {
        for _ in 0..2 {
            expect(&mut server, Method::GET, NODE, None, 200, node(&taint())).await;
            expect(&mut server, Method::PATCH, PATCH, None, 403, forbidden.clone()).await;
        }
    });
    for _ in 0..2 {
        let error = apply(&mut tainter, &judge, &lost()).await.expect("due").expect_err("refused");
        assert!(error.starts_with("patch taints of node: ") && error.contains("forbidden"), "{error}");
    }
    calls.await.expect("all calls");
}
