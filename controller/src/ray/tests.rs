//! The client against a small server that behaves as Ray 2.60 was measured to.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use super::*;

const TOKEN: &str = "secret";

/// A head: its session, its jobs, and faults to play.
#[derive(Default)]
struct Head {
    session: u32,
    jobs: BTreeMap<String, Value>,
    posts: u32,
    /// Take the next POST, but answer with an error.
    lose_answer: bool,
    /// Restart (a new session, no jobs) after the next question for a job.
    restart: bool,
}

type Shared = Arc<Mutex<Head>>;

fn allowed(headers: &HeaderMap) -> Result<(), (StatusCode, String)> {
    match headers.get("authorization").and_then(|v| v.to_str().ok()) {
        None => Err((StatusCode::UNAUTHORIZED, "no token".into())),
        Some(value) if value == format!("Bearer {TOKEN}") => Ok(()),
        Some(_) => Err((StatusCode::FORBIDDEN, "wrong token".into())),
    }
}

type Answer = Result<Json<Value>, (StatusCode, String)>;

async fn version(State(head): State<Shared>, headers: HeaderMap) -> Answer {
    allowed(&headers)?;
    let session = head.lock().unwrap().session;
    Ok(Json(json!({ "version": "4", "ray_version": "2.60.0", "session_name": format!("session_{session}") })))
}

async fn read(State(head): State<Shared>, headers: HeaderMap, Path(id): Path<String>) -> Answer {
    allowed(&headers)?;
    let mut head = head.lock().unwrap();
    let answer = head.jobs.get(&id).cloned();
    if std::mem::take(&mut head.restart) {
        head.session += 1;
        head.jobs.clear();
    }
    answer.map(Json).ok_or((StatusCode::NOT_FOUND, format!("Job {id} does not exist")))
}

async fn logs(State(head): State<Shared>, headers: HeaderMap, Path(id): Path<String>) -> Answer {
    allowed(&headers)?;
    let known = head.lock().unwrap().jobs.contains_key(&id);
    known
        .then(|| Json(json!({ "logs": "one\nTraceback\nValueError: boom\n" })))
        .ok_or((StatusCode::NOT_FOUND, "no".into()))
}

async fn submit(State(head): State<Shared>, headers: HeaderMap, Json(body): Json<Value>) -> Answer {
    allowed(&headers)?;
    let mut head = head.lock().unwrap();
    head.posts += 1;
    let id = body["submission_id"].as_str().unwrap().to_owned();
    if head.jobs.contains_key(&id) {
        let text = format!(
            "Traceback (most recent call last):\nValueError: Job with submission_id {id} already exists."
        );
        return Err((StatusCode::INTERNAL_SERVER_ERROR, text));
    }
    head.jobs.insert(id.clone(), json!({ "status": "PENDING", "message": "Job has not started yet." }));
    if std::mem::take(&mut head.lose_answer) {
        return Err((StatusCode::INTERNAL_SERVER_ERROR, "lost".into()));
    }
    Ok(Json(json!({ "job_id": id, "submission_id": id })))
}

async fn stop(State(head): State<Shared>, headers: HeaderMap, Path(id): Path<String>) -> Answer {
    allowed(&headers)?;
    match head.lock().unwrap().jobs.get_mut(&id) {
        None => Err((StatusCode::NOT_FOUND, format!("Job {id} does not exist"))),
        Some(job) => {
            job["status"] = json!("STOPPED");
            Ok(Json(json!({ "stopped": true })))
        }
    }
}

async fn start() -> (Shared, RayClient) {
    let head = Shared::default();
    let router = Router::new()
        .route("/api/version", get(version))
        .route("/api/jobs/", post(submit))
        .route("/api/jobs/{id}", get(read))
        .route("/api/jobs/{id}/logs", get(logs))
        .route("/api/jobs/{id}/stop", post(stop))
        .with_state(head.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (head, RayClient::new(http_client().unwrap(), base, TOKEN.into()))
}

#[tokio::test]
async fn submits_once_and_follows() {
    let (head, ray) = start().await;
    assert_eq!(ray.observe("a-1").await, Seen::Unknown { session: "session_0".into() });
    assert_eq!(ray.submit("a-1", "python train.py").await.unwrap(), Submitted::New);
    assert_eq!(ray.submit("a-1", "python train.py").await.unwrap(), Submitted::Known);
    assert_eq!(head.lock().unwrap().posts, 1, "an id that is known is not posted again");
    let seen = ray.observe("a-1").await;
    assert!(matches!(&seen, Seen::Job { state: RayState::Pending, .. }), "{seen:?}");
    head.lock().unwrap().jobs.insert(
        "a-1".into(),
        json!({
            "status": "FAILED",
            "message": "Job entrypoint command failed with exit code 127, last available logs (truncated to 20,000 chars):\nx",
            "start_time": 1_795_362_615_607i64, "end_time": 1_795_362_619_892i64
        }),
    );
    let Seen::Job { session, state, detail, times } = ray.observe("a-1").await else { panic!("no job") };
    assert_eq!((session.as_str(), state), ("session_0", RayState::Failed));
    assert_eq!(detail.message, "Job entrypoint command failed with exit code 127");
    assert_eq!(detail.log_tail, "one\nTraceback\nValueError: boom");
    assert_eq!(times.ended.unwrap().as_millisecond() - times.started.unwrap().as_millisecond(), 4285);
}

#[tokio::test]
async fn a_duplicate_id_is_a_success_also_when_the_answer_was_lost() {
    let (head, ray) = start().await;
    head.lock().unwrap().lose_answer = true;
    assert_eq!(ray.submit("a-1", "x").await.unwrap(), Submitted::Known);
    assert_eq!(head.lock().unwrap().posts, 1);
    // Ray itself answers 500 to a known id; the client sees it when it lost a race with itself.
    let post = ray.http.post(format!("{}/api/jobs/", ray.base)).json(&json!({ "submission_id": "a-1" }));
    let error = ray.send("t", post).await.unwrap_err();
    assert!(
        matches!(&error, RayError::Status { status, body, .. } if status.as_u16() == 500 && body.contains("already exists")),
        "{error}"
    );
}

#[tokio::test]
async fn an_answer_across_a_restart_counts_as_none() {
    let (head, ray) = start().await;
    ray.submit("a-1", "x").await.unwrap();
    head.lock().unwrap().restart = true;
    assert_eq!(ray.observe("a-1").await, Seen::Silent);
    assert_eq!(ray.observe("a-1").await, Seen::Unknown { session: "session_1".into() });
}

#[tokio::test]
async fn stops_what_is_there_and_what_is_not() {
    let (head, ray) = start().await;
    ray.stop("nope").await.unwrap();
    ray.submit("a-1", "x").await.unwrap();
    ray.stop("a-1").await.unwrap();
    assert_eq!(head.lock().unwrap().jobs["a-1"]["status"], "STOPPED");
}

#[tokio::test]
async fn a_wrong_token_and_a_dead_head_are_silence() {
    let (_head, mut ray) = start().await;
    ray.token = "wrong".into();
    assert_eq!(ray.observe("a-1").await, Seen::Silent);
    assert!(
        matches!(ray.submit("a-1", "x").await, Err(RayError::Status { status, .. }) if status.as_u16() == 403)
    );
    ray.base = "http://127.0.0.1:1".into();
    assert_eq!(ray.observe("a-1").await, Seen::Silent);
    assert!(matches!(ray.submit("a-1", "x").await, Err(RayError::Transport { .. })));
}
