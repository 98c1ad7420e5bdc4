//! A scripted API server: the exact requests in their order, each with its answer.
//!
//! Invariant: an unexpected request, a wrong manager or a missing request fails the test.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tower_test::mock;

use crate::context::Context;
use crate::metrics::Metrics;

/// One expected request and its answer.
pub struct Exchange {
    pub method: Method,
    /// Path with query.
    pub uri: String,
    /// What must be in the body, by JSON pointer.
    pub body: Vec<(&'static str, Value)>,
    pub status: StatusCode,
    pub answer: Value,
}

/// A read of an object that is not there.
pub fn missing(path: &str) -> Exchange {
    let answer = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404, "message": "not found" });
    Exchange { method: Method::GET, uri: path.into(), body: vec![], status: StatusCode::NOT_FOUND, answer }
}

/// A read of an object.
pub fn found(path: &str, answer: Value) -> Exchange {
    Exchange { method: Method::GET, uri: path.into(), body: vec![], status: StatusCode::OK, answer }
}

/// A server-side apply by a manager; the answer is the body.
pub fn applied(path: &str, manager: &str, body: Vec<(&'static str, Value)>) -> Exchange {
    let manager = manager.replace('/', "%2F");
    let uri = format!("{path}?&force=true&fieldManager={manager}");
    Exchange { method: Method::PATCH, uri, body, status: StatusCode::OK, answer: Value::Null }
}

/// An object made by a manager; the answer is the body.
pub fn created(path: &str, manager: &str, body: Vec<(&'static str, Value)>) -> Exchange {
    let manager = manager.replace('/', "%2F");
    let uri = format!("{path}?&fieldManager={manager}");
    Exchange { method: Method::POST, uri, body, status: StatusCode::CREATED, answer: Value::Null }
}

/// An Event with this reason.
pub fn event(namespace: &str, reason: &str) -> Exchange {
    Exchange {
        method: Method::POST,
        uri: format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events?"),
        body: vec![("/reason", json!(reason))],
        status: StatusCode::CREATED,
        answer: Value::Null,
    }
}

/// A client whose server expects exactly these requests. Await the handle at the end.
pub fn script(exchanges: Vec<Exchange>) -> (Client, JoinHandle<()>) {
    let (service, mut handle) = mock::pair::<Request<Body>, Response<Body>>();
    let server = tokio::spawn(async move {
        for (index, expected) in exchanges.into_iter().enumerate() {
            let next = tokio::time::timeout(Duration::from_secs(2), handle.next_request()).await;
            let Ok(Some((request, send))) = next else {
                panic!("request {index} never came: {} {}", expected.method, expected.uri)
            };
            let (parts, body) = request.into_parts();
            let bytes = body.collect_bytes().await.unwrap();
            let got = format!("{} {}", parts.method, parts.uri);
            assert_eq!(got, format!("{} {}", expected.method, expected.uri), "request {index}");
            let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            for (pointer, value) in &expected.body {
                assert_eq!(body.pointer(pointer), Some(value), "{got}: {pointer} in {body:#}");
            }
            let answer = if expected.answer.is_null() { whole(body) } else { expected.answer };
            let answer = serde_json::to_vec(&answer).unwrap();
            send.send_response(Response::builder().status(expected.status).body(Body::from(answer)).unwrap());
        }
        // The client is dropped by then, or something more is asked.
        if let Ok(Some((request, _))) =
            tokio::time::timeout(Duration::from_millis(100), handle.next_request()).await
        {
            panic!("unexpected: {} {}", request.method(), request.uri());
        }
    });
    (Client::new(service, "default"), server)
}

/// An applied part as the API server would answer it: with a spec, so that it can be read.
fn whole(mut body: Value) -> Value {
    if body["kind"] == "Award" {
        let mut award = award_json("a1");
        award["metadata"] = body["metadata"].take();
        return award;
    }
    if body["kind"] == "Job" {
        let mut job = job_json();
        job["metadata"] = body["metadata"].take();
        return job;
    }
    body
}

/// A context of one controller.
pub fn context(controller: &'static str, client: Client) -> Arc<Context> {
    Arc::new(Context::new(controller, client, Metrics::new().unwrap(), "test"))
}

/// A host Award that waits for devices.
pub fn award_json(id: &str) -> Value {
    json!({
        "apiVersion": "vendue.dev/v1alpha1", "kind": "Award",
        "metadata": { "name": "award", "namespace": format!("vendue-a-{id}"), "uid": format!("uid-{id}"), "generation": 1 },
        "spec": {
            "side": "Host", "id": id, "marketId": "", "round": 1, "orderDigest": "",
            "job": { "home": "home", "uid": "job", "attempt": 1 }, "provider": "alpha", "seat": 0, "price": "1.80",
            "expiresAt": "2999-01-01T00:00:00Z",
            "requirements": { "workers": 2, "gpusPerWorker": 1, "cpuMillisPerWorker": 500, "memoryMibPerWorker": 1536,
                "runDeadlineSeconds": 600, "image": "ray:1" },
            "provision": "gpus", "provisionNamespace": "default"
        }
    })
}

/// A Job without references.
pub fn job_json() -> Value {
    json!({
        "apiVersion": "vendue.dev/v1alpha1", "kind": "Job",
        "metadata": { "name": "digits", "namespace": "team", "uid": "uid-job", "generation": 1 },
        "spec": { "maxPrice": "2.50", "runDeadlineSeconds": 600, "searchSeconds": 120,
            "train": { "image": "ray:1", "entrypoint": "python train.py", "workers": { "replicas": 1, "gpus": 1 } } }
    })
}
