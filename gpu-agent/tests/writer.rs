//! An API server that takes requests and never answers: it holds up nobody, and gets the newest when it answers again.

// Helpers of tests fail by panicking too; the lint's own exception covers only the test functions.
#![allow(clippy::expect_used, clippy::panic)]

#[allow(dead_code)]
mod scripted;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use http::Response;
use http_body_util::BodyExt;
use kube::client::Body;
use scripted::Server;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use vendue_crds::GpuNodeStatus;
use vendue_gpu_agent::labels::Labeller;
use vendue_gpu_agent::metrics::Metrics;
use vendue_gpu_agent::publish::Publisher;
use vendue_gpu_agent::published::SliceCheck;
use vendue_gpu_agent::server::Pulse;
use vendue_gpu_agent::taints::Tainter;
use vendue_gpu_agent::writer::{Api, Beat, Wish, Writer};

const SECOND: Duration = Duration::from_secs(1);

fn wish(second: u32) -> Wish {
    let status = GpuNodeStatus { driver_version: Some(second.to_string()), ..GpuNodeStatus::default() };
    Wish { status: Some(status), good: None }
}

/// Answers as a real one does while `answers` says so, and holds every other request for ever.
async fn serve(
    mut server: Server,
    answers: watch::Receiver<bool>,
    held: Arc<AtomicU32>,
    statuses: mpsc::UnboundedSender<Value>,
) {
    let mut silent = vec![];
    while let Some((request, reply)) = server.next_request().await {
        if !*answers.borrow() {
            silent.push(reply);
            held.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let path = request.uri().path().to_owned();
        let bytes = request.into_body().collect().await.expect("body").to_bytes();
        let object = match path.as_str() {
            "/api/v1/nodes/n1" => {
                json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1", "uid": "u-1" } })
            }
            "/apis/resource.k8s.io/v1/resourceslices" => {
                json!({ "apiVersion": "resource.k8s.io/v1", "kind": "ResourceSliceList", "metadata": {}, "items": [] })
            }
            _ => json!({ "apiVersion": "vendue.dev/v1alpha1", "kind": "GpuNode",
                "metadata": { "name": "n1", "generation": 1 }, "spec": {} }),
        };
        if path.ends_with("/status") {
            statuses.send(serde_json::from_slice(&bytes).expect("JSON")).expect("test");
        }
        reply.send_response(Response::new(Body::from(object.to_string().into_bytes())));
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_api_server_holds_up_no_wish_and_gets_the_newest_when_it_answers() {
    let (client, server) = scripted::pair();
    let (answers, answering) = watch::channel(false);
    let (held, (told, mut statuses)) = (Arc::new(AtomicU32::new(0)), mpsc::unbounded_channel());
    let server = tokio::spawn(serve(server, answering, Arc::clone(&held), told));
    let api = Api {
        publisher: Publisher::new(client.clone(), "n1".to_owned()),
        tainter: Tainter::new(client.clone(), "n1".to_owned(), false),
        labeller: Labeller::new(client.clone(), "n1".to_owned(), false),
        slices: SliceCheck::new(client, "n1".to_owned()),
    };
    let (wishes, wished) = watch::channel(None);
    let pulse = Arc::new(Pulse::new(15 * SECOND));
    let metrics = Arc::new(Metrics::new("n1").expect("metrics"));
    let beat = Beat { heartbeat: 15 * SECOND, pause: SECOND };
    let writer = Writer::new(beat, wished, api, Arc::clone(&metrics), Arc::clone(&pulse));
    let writer = tokio::spawn(writer.run(CancellationToken::new()));

    let began = tokio::time::Instant::now();
    for second in 1..=60 {
        wishes.send_replace(Some(wish(second)));
        tokio::time::sleep(SECOND).await;
    }
    assert_eq!(began.elapsed(), 60 * SECOND, "nobody waits for the server");
    let requests = held.load(Ordering::Relaxed);
    assert!((3..=7).contains(&requests), "one at a time, each for ten seconds: {requests}");
    let text = metrics.render().expect("metrics");
    let failed = text
        .lines()
        .find(|line| line.starts_with("vendue_agent_publishes_total{") && line.contains("result=\"error\""));
    assert!(failed.is_some(), "{text}");
    assert_eq!(pulse.unready(Instant::now()), Some("the GpuNode was not written yet"));

    answers.send_replace(true);
    let mut second = 60;
    let first = loop {
        second += 1;
        wishes.send_replace(Some(wish(second)));
        tokio::time::sleep(SECOND).await;
        if let Ok(first) = statuses.try_recv() {
            break first;
        }
        assert!(second < 120, "never written");
    };
    let driver = first["status"]["driverVersion"].as_str().expect("driver").to_owned();
    assert!(driver.parse::<u32>().expect("number") > 60, "not what waited, but the newest: {driver}");
    assert_eq!(pulse.unready(Instant::now()), None);
    drop(wishes);
    writer.await.expect("it ends when nobody wishes any more");
    server.abort();
}
