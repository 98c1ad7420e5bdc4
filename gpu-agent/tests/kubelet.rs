//! Pod resources from a kubelet on a Unix socket: its answers, its restarts, and what a broken one does.

// Helpers of tests fail by panicking too; the lint's own exception covers only the test functions.
#![allow(clippy::expect_used)]

#[path = "../bench/node/mod.rs"]
#[allow(dead_code)]
mod node;

use std::time::Duration;

use node::kubelet::{Kubelet as Served, bind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::{Code, Status};
use vendue_gpu_agent::pods::api::{
    ContainerDevices, ContainerResources, ListPodResourcesResponse, PodResources,
};
use vendue_gpu_agent::pods::attribution::{Known, Serving, attribute};
use vendue_gpu_agent::pods::kubelet::{Kubelet, KubeletError};
use vendue_gpu_agent::pods::slices::DeviceNames;

const LIMIT: Duration = Duration::from_secs(30);

fn pods(count: usize) -> ListPodResourcesResponse {
    let pod = |n: usize| {
        let devices = ContainerDevices {
            resource_name: "nvidia.com/gpu".to_owned(),
            device_ids: (0..8).map(|d| format!("GPU-{:036}", n * 8 + d)).collect(),
        };
        let container =
            ContainerResources { name: "main".to_owned(), devices: vec![devices], dynamic_resources: vec![] };
        PodResources {
            name: format!("pod-{n}"),
            namespace: "vendue-a-00112233445566ff".to_owned(),
            containers: vec![container],
        }
    };
    ListPodResourcesResponse { pod_resources: (0..count).map(pod).collect() }
}

#[tokio::test]
async fn a_list_a_refusal_and_a_restart() {
    let dir = tempfile::tempdir().expect("dir");
    let mut kubelet = Kubelet::new(dir.path(), LIMIT);
    let missing = kubelet.list().await.expect_err("no socket yet");
    let text = missing.to_string();
    assert!(matches!(missing, KubeletError::Unreachable { .. }), "{text}");
    assert!(text.contains("kubelet.sock") && text.contains("No such file"), "{text}");

    let server = Served::start(dir.path()).expect("bind");
    server.answer(Ok(pods(2)));
    for _ in 0..2 {
        assert_eq!(kubelet.list().await.expect("list"), pods(2));
    }
    server.answer(Err(Status::unavailable("too many calls")));
    let refusal = kubelet.list().await.expect_err("refused");
    let is_refusal =
        |error: &KubeletError| matches!(error, KubeletError::Refused { code: Code::Unavailable, .. });
    assert!(is_refusal(&refusal) && refusal.to_string().contains("too many calls"), "{refusal}");

    // A kubelet that starts again removes the old socket and makes its own.
    server.end().await;
    let server = Served::start(dir.path()).expect("bind");
    server.answer(Ok(pods(3)));
    let mut seen = kubelet.list().await;
    if seen.is_err() {
        // The call that finds the old connection closed may fail; the next one connects afresh.
        seen = kubelet.list().await;
    }
    assert_eq!(seen.expect("list"), pods(3));
}

#[tokio::test]
async fn five_thousand_pods_are_one_answer() {
    let dir = tempfile::tempdir().expect("dir");
    let server = Served::start(dir.path()).expect("bind");
    server.answer(Ok(pods(5_000)));
    let list = Kubelet::new(dir.path(), LIMIT).list().await.expect("list");
    let known: Vec<Known> =
        [0, 39_999].map(|n| Known { uuid: format!("GPU-{n:036}"), minor: None }).into_iter().collect();
    let found = attribute(&list, &known, &DeviceNames::default());
    for Known { uuid, .. } in &known {
        assert!(matches!(found.serving(uuid), Serving::Award(_)), "{uuid}");
    }
}

#[tokio::test]
async fn a_kubelet_that_hangs_or_breaks_off_is_an_error_in_time() {
    let dir = tempfile::tempdir().expect("dir");
    let listener = bind(dir.path()).expect("bind");
    // Takes the connection and says nothing.
    let mut hanging = Kubelet::new(dir.path(), Duration::from_millis(50));
    assert!(matches!(hanging.list().await, Err(KubeletError::Timeout { .. })));
    drop(hanging);

    // Answers with something that is no HTTP/2, and closes.
    let garbage = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("accept");
            let mut read = [0; 64];
            if stream.read(&mut read).await.is_ok_and(|n| n > 0) {
                stream.write_all(b"\0\0\x7f truncated").await.expect("write");
            }
        }
    });
    let error = Kubelet::new(dir.path(), LIMIT).list().await.expect_err("garbage");
    assert!(matches!(error, KubeletError::Refused { .. } | KubeletError::Unreachable { .. }), "{error}");
    garbage.abort();
}
