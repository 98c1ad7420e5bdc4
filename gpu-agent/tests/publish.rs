//! What goes to the API server: exact methods, URLs, field manager and bodies; an unexpected call fails.

// Helpers of tests fail by panicking too; the lint's own exception covers only the test functions.
#![allow(clippy::expect_used, clippy::panic)]

mod scripted;

use http::{Method, Response, StatusCode};
use http_body_util::BodyExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::client::Body;
use scripted::{Server, expect};
use serde_json::{Value, json};
use vendue_crds::GpuNodeStatus;
use vendue_gpu_agent::publish::{PublishError, Publisher};

const APPLY: &str = "?&force=true&fieldManager=vendue-gpu-agent";

fn fixture() -> (Publisher, Server) {
    let (client, server) = scripted::pair();
    (Publisher::new(client, "n1".to_owned()), server)
}

async fn expect_node(server: &mut Server) {
    let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1", "uid": "u-1" } });
    expect(server, Method::GET, "/api/v1/nodes/n1", None, 200, node).await;
}

async fn expect_object(server: &mut Server) {
    let body = json!({
        "apiVersion": "vendue.dev/v1alpha1",
        "kind": "GpuNode",
        "metadata": {
            "name": "n1",
            "labels": { "app.kubernetes.io/managed-by": "vendue" },
            "ownerReferences": [{ "apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u-1" }],
        },
        "spec": {},
    });
    let uri = format!("/apis/vendue.dev/v1alpha1/gpunodes/n1{APPLY}");
    expect(server, Method::PATCH, &uri, Some(body), 201, gpu_node()).await;
}

async fn expect_status(server: &mut Server, code: u16, answer: Value) {
    expect_whole(server, None, code, answer).await;
}

async fn expect_status_at(server: &mut Server, code: u16, answer: Value) {
    expect_whole(server, Some("1970-01-01T00:00:09Z"), code, answer).await;
}

async fn expect_whole(server: &mut Server, observed_at: Option<&str>, code: u16, answer: Value) {
    let mut body = json!({
        "apiVersion": "vendue.dev/v1alpha1",
        "kind": "GpuNode",
        "metadata": { "name": "n1" },
        "status": { "observedGeneration": 1, "driverVersion": "580.95.05", "deviceCount": 0 },
    });
    if let Some(at) = observed_at {
        body["status"]["observedAt"] = json!(at);
    }
    let uri = format!("/apis/vendue.dev/v1alpha1/gpunodes/n1/status{APPLY}");
    expect(server, Method::PATCH, &uri, Some(body), code, answer).await;
}

async fn expect_touch(server: &mut Server, code: u16, answer: Value) {
    let uri = "/apis/vendue.dev/v1alpha1/gpunodes/n1/status?&fieldManager=vendue-gpu-agent";
    let (request, reply) = server.next_request().await.expect("a request");
    assert_eq!((request.method(), request.uri().to_string().as_str()), (&Method::PATCH, uri));
    assert_eq!(request.headers()["content-type"], "application/merge-patch+json");
    let bytes = request.into_body().collect().await.expect("body").to_bytes();
    let body = serde_json::from_slice::<Value>(&bytes).expect("JSON");
    assert_eq!(body, json!({ "status": { "observedAt": "1970-01-01T00:00:09Z" } }));
    let code = StatusCode::from_u16(code).expect("code");
    let body = Body::from(answer.to_string().into_bytes());
    reply.send_response(Response::builder().status(code).body(body).expect("response"));
}

fn gpu_node() -> Value {
    json!({
        "apiVersion": "vendue.dev/v1alpha1",
        "kind": "GpuNode",
        "metadata": { "name": "n1", "generation": 1 },
        "spec": {},
    })
}

fn failure(code: u16, reason: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason })
}

fn status() -> GpuNodeStatus {
    GpuNodeStatus { driver_version: Some("580.95.05".to_owned()), ..GpuNodeStatus::default() }
}

#[tokio::test]
async fn first_write_makes_the_object_and_later_ones_only_its_status() {
    let (mut publisher, mut server) = fixture();
    let api = tokio::spawn(async move {
        expect_node(&mut server).await;
        expect_object(&mut server).await;
        expect_status(&mut server, 200, gpu_node()).await;
        expect_status(&mut server, 200, gpu_node()).await;
        server
    });
    let written = publisher.write(&status()).await.expect("first");
    assert_eq!(written, GpuNodeStatus { observed_generation: Some(1), ..status() });
    publisher.write(&status()).await.expect("second");
    api.await.expect("calls as expected");
}

#[tokio::test]
async fn a_process_that_is_started_anew_keeps_the_times_of_transitions() {
    let (mut publisher, mut server) = fixture();
    let at = |second| Time(Timestamp::from_second(second).expect("time"));
    let condition = |type_: &str, is_true, second| {
        let now = Timestamp::from_second(second).expect("time");
        vendue_crds::conditions::condition(type_, is_true, "R", String::new(), None, now)
    };
    let mut old = gpu_node();
    let before = [condition("Ready", true, 5), condition("Probed", true, 5)];
    old["status"] = json!({ "deviceCount": 0, "conditions": before });
    let api = tokio::spawn(async move {
        expect_node(&mut server).await;
        expect(
            &mut server,
            Method::PATCH,
            &format!("/apis/vendue.dev/v1alpha1/gpunodes/n1{APPLY}"),
            None,
            200,
            old,
        )
        .await;
        for _ in 0..2 {
            let uri = format!("/apis/vendue.dev/v1alpha1/gpunodes/n1/status{APPLY}");
            expect(&mut server, Method::PATCH, &uri, None, 200, gpu_node()).await;
        }
    });
    let status = |is_ready| GpuNodeStatus {
        conditions: vec![condition("Ready", is_ready, 90), condition("Probed", false, 90)],
        ..status()
    };
    let times = |status: &GpuNodeStatus| {
        status.conditions.iter().map(|c| c.last_transition_time.clone()).collect::<Vec<_>>()
    };
    let written = publisher.write(&status(true)).await.expect("write");
    assert_eq!(times(&written), [at(5), at(90)], "Ready was True before, Probed was not False");
    // From then on the caller knows.
    let written = publisher.write(&status(true)).await.expect("write");
    assert_eq!(times(&written), [at(90), at(90)]);
    api.await.expect("calls as expected");
}

#[tokio::test]
async fn an_object_that_is_gone_is_made_again() {
    let (mut publisher, mut server) = fixture();
    let api = tokio::spawn(async move {
        expect_node(&mut server).await;
        expect_object(&mut server).await;
        expect_status(&mut server, 404, failure(404, "NotFound")).await;
        expect_node(&mut server).await;
        expect_object(&mut server).await;
        expect_status(&mut server, 200, gpu_node()).await;
        server
    });
    publisher.write(&status()).await.expect("write");
    api.await.expect("calls as expected");
}

#[tokio::test]
async fn a_heartbeat_writes_the_time_alone_while_the_object_has_the_rest() {
    let (mut publisher, mut server) = fixture();
    let api = tokio::spawn(async move {
        expect_node(&mut server).await;
        expect_object(&mut server).await;
        expect_status(&mut server, 200, gpu_node()).await;
        let mut whole = gpu_node();
        whole["status"] = json!({ "deviceCount": 0 });
        expect_touch(&mut server, 200, whole.clone()).await;
        // Another object of that name, or one whose status is gone, gets everything.
        whole["metadata"]["generation"] = json!(2);
        for other in [whole, gpu_node()] {
            expect_touch(&mut server, 200, other).await;
            expect_status_at(&mut server, 200, gpu_node()).await;
        }
        expect_touch(&mut server, 404, failure(404, "NotFound")).await;
        expect_status_at(&mut server, 404, failure(404, "NotFound")).await;
        expect_node(&mut server).await;
        expect_object(&mut server).await;
        expect_status_at(&mut server, 200, gpu_node()).await;
        expect_touch(&mut server, 403, failure(403, "Forbidden")).await;
        server
    });
    publisher.write(&status()).await.expect("write");
    let now = GpuNodeStatus { observed_at: Some(Time(Timestamp::from_second(9).expect("time"))), ..status() };
    for _ in 0..4 {
        publisher.touch(&now).await.expect("touch");
    }
    let error = publisher.touch(&now).await.expect_err("refused");
    assert!(matches!(error, PublishError::Api { operation: "patch GpuNode status", .. }), "{error}");
    api.await.expect("calls as expected");
}

#[tokio::test]
async fn a_refusal_names_the_step() {
    let (mut publisher, mut server) = fixture();
    let api = tokio::spawn(async move {
        expect(&mut server, Method::GET, "/api/v1/nodes/n1", None, 403, failure(403, "Forbidden")).await;
        server
    });
    let error = publisher.write(&status()).await.expect_err("refused");
    assert!(matches!(error, PublishError::Api { operation: "get node", .. }), "{error}");
    api.await.expect("calls as expected");
}

#[tokio::test(start_paused = true)]
async fn a_silent_api_server_is_given_up_after_ten_seconds() {
    let (mut publisher, mut server) = fixture();
    let start = tokio::time::Instant::now();
    let status = status();
    let (written, request) = tokio::join!(publisher.write(&status), server.next_request());
    let error = written.expect_err("no answer");
    assert_eq!(error.to_string(), "get node: no answer within 10 s");
    assert_eq!(start.elapsed().as_secs(), 10);
    drop(request);
}
