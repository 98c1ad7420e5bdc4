//! Identity, rights, logs and outputs through the real router, with a stand-in for cluster and network.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::{Extension, Router};
use bytes::Bytes;
use http_body_util::BodyExt;
use sha2::{Digest, Sha256};
use tower::ServiceExt;
use vendue_receipts::{Evidence, FileAward, FileJob, ReceiptsFile, ReceiptsHeads, Record};

use super::identity::Trusted;
use super::*;
use crate::metrics::Metrics;
use crate::receipts::{Kept, Shelf, ShelfOptions};
use crate::store::Store;
use crate::testing::receipts::{AWARD, T, key, name, signed};
use crate::wire::{AwardRef, FileEntry, LOG_PATH};

const JOB: &str = "/apis/stream.vendue.dev/v1alpha1/namespaces/team/jobs/digits";

/// A provider whose log comes in pieces, then is gone because it was delivered.
struct Stage {
    located: Located,
    pieces: Mutex<Vec<Result<LogChunk, AccessError>>>,
    asked: Mutex<Vec<u64>>,
}

impl Backend for Stage {
    async fn authorize(
        &self,
        user: &User,
        namespace: &str,
        _: &str,
        sub: &'static str,
    ) -> Result<bool, AccessError> {
        Ok(namespace == "team"
            && (user.groups.contains(&"ops".to_owned()) || (user.name == "ann" && sub == "log")))
    }

    async fn locate(&self, _: &str, name: &str) -> Result<Located, AccessError> {
        if name == "digits" { Ok(self.located.clone()) } else { Err(AccessError::NoJob(name.to_owned())) }
    }

    async fn awards(&self, namespace: &str, name: &str) -> Result<(FileJob, Vec<FileAward>), AccessError> {
        if name != "digits" {
            return Err(AccessError::NoJob(name.to_owned()));
        }
        let job = FileJob { namespace: namespace.to_owned(), name: name.to_owned(), uid: "u-1".into() };
        let award = |id: &str| FileAward { id: id.into(), provider: "alpha".into(), ..FileAward::default() };
        Ok((job, vec![award("00000000000000aa"), award(AWARD)]))
    }

    async fn live_log(
        &self,
        _: &AwardRef,
        _: u16,
        offset: u64,
        _: Duration,
    ) -> Result<LogChunk, AccessError> {
        self.asked.lock().unwrap().push(offset);
        let mut pieces = self.pieces.lock().unwrap();
        if pieces.is_empty() { Err(AccessError::Gone) } else { pieces.remove(0) }
    }
}

fn proxy() -> FrontProxy {
    let data: BTreeMap<String, String> = [
        ("requestheader-client-ca-file", "pem"),
        ("requestheader-allowed-names", r#"["front-proxy"]"#),
        ("requestheader-username-headers", r#"["X-Remote-User"]"#),
        ("requestheader-group-headers", r#"["X-Remote-Group"]"#),
        ("requestheader-extra-headers-prefix", r#"["X-Remote-Extra-"]"#),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .into_iter()
    .collect();
    FrontProxy::from_data(&data).unwrap()
}

struct Fixture {
    _dir: tempfile::TempDir,
    shared: Arc<Shared<Stage>>,
}

fn fixture(place: Place, pieces: Vec<Result<LogChunk, AccessError>>) -> Fixture {
    located(Located { uid: "u-1".into(), place, ended: false }, pieces)
}

fn located(located: Located, pieces: Vec<Result<LogChunk, AccessError>>) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(dir.path(), 1 << 20).unwrap());
    let backend = Stage { located, pieces: Mutex::new(pieces), asked: Mutex::default() };
    let folder = dir.path().join("receipts");
    let options = ShelfOptions { dir: folder, segment_bytes: 1, max_bytes: 1 << 20, retain_ms: 1_000 };
    let receipts = Some(Arc::new(Shelf::open(options).unwrap()));
    let shared = Arc::new(Shared { backend, store, receipts, metrics: Arc::new(Metrics::new().unwrap()) });
    Fixture { _dir: dir, shared }
}

fn deliver(fixture: &Fixture, files: &[(&str, &[u8])]) {
    let manifest = files
        .iter()
        .map(|(path, data)| FileEntry {
            path: (*path).into(),
            size: data.len() as u64,
            sha256: hex::encode(Sha256::digest(data)),
        })
        .collect();
    fixture.shared.store.begin("u-1", manifest).unwrap();
    for (number, (_, data)) in files.iter().enumerate() {
        fixture.shared.store.put("u-1", number, 0, data).unwrap();
    }
    fixture.shared.store.complete("u-1").unwrap();
}

fn app(fixture: &Fixture, trusted: bool) -> Router {
    router(fixture.shared.clone()).layer(Extension(Arc::new(proxy()))).layer(Extension(Trusted(trusted)))
}

async fn ask(fixture: &Fixture, trusted: bool, uri: &str, headers: &[(&str, &str)]) -> (StatusCode, String) {
    let mut request = Request::get(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = app(fixture, trusted).oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

const ANN: &[(&str, &str)] = &[("X-Remote-User", "ann")];
const OPS: &[(&str, &str)] =
    &[("X-Remote-User", "root"), ("X-Remote-Group", "dev"), ("X-Remote-Group", "ops")];

fn award() -> AwardRef {
    AwardRef { id: "0".repeat(16), order: "0".repeat(64), job: "u-1".into(), attempt: 1 }
}

fn chunk(data: &'static str, size: u64, ended: bool) -> Result<LogChunk, AccessError> {
    Ok(LogChunk { data: Bytes::from_static(data.as_bytes()), size, ended })
}

#[tokio::test]
async fn headers_count_only_with_the_proxys_certificate() {
    let f = fixture(Place::Nowhere("its state is Pending".into()), vec![]);
    deliver(&f, &[(LOG_PATH, b"line\n")]);
    for (trusted, headers, code) in [
        (false, OPS, StatusCode::UNAUTHORIZED),
        (true, &[][..], StatusCode::UNAUTHORIZED),
        (true, &[("X-Remote-User", "")][..], StatusCode::UNAUTHORIZED),
        (true, &[("X-Remote-User", "eve")][..], StatusCode::FORBIDDEN),
        (true, ANN, StatusCode::OK),
        (true, OPS, StatusCode::OK),
    ] {
        assert_eq!(ask(&f, trusted, &format!("{JOB}/log"), headers).await.0, code, "{trusted} {headers:?}");
    }
    // Ann may read the log and not the outputs.
    let (code, body) = ask(&f, true, &format!("{JOB}/outputs"), ANN).await;
    assert_eq!(code, StatusCode::FORBIDDEN);
    let status: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status["kind"].as_str(), status["code"].as_u64()), (Some("Status"), Some(403)));
}

#[test]
fn certificates_by_name_and_extra_headers() {
    let key = rcgen::KeyPair::generate().unwrap();
    let named = |name: &str| {
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.self_signed(&key).unwrap().der().clone()
    };
    assert!(proxy().accepts(&named("front-proxy")));
    assert!(!proxy().accepts(&named("system:admin")));
    let any = FrontProxy { allowed_names: vec![], ..proxy() };
    assert!(any.accepts(&named("anybody")));
    let mut headers = axum::http::HeaderMap::new();
    headers.insert("x-remote-user", "ann".parse().unwrap());
    headers.insert("x-remote-extra-example.org%2fscope", "a".parse().unwrap());
    let user = proxy().user(&headers).unwrap();
    assert_eq!(user.extra, BTreeMap::from([("example.org/scope".to_owned(), vec!["a".to_owned()])]));
}

#[tokio::test]
async fn outputs_are_listed_and_read() {
    let f = fixture(Place::Nowhere("its state is Succeeded".into()), vec![]);
    let uri = format!("{JOB}/outputs");
    let (code, body) = ask(&f, true, &uri, OPS).await;
    assert_eq!(code, StatusCode::NOT_FOUND);
    assert!(body.contains("its state is Succeeded"), "{body}");
    deliver(&f, &[("model.pt", b"weights"), (LOG_PATH, b"line\n")]);
    let (code, body) = ask(&f, true, &uri, OPS).await;
    assert_eq!(code, StatusCode::OK);
    assert!(body.contains("model.pt") && !body.contains(LOG_PATH), "{body}");
    assert_eq!(ask(&f, true, &format!("{uri}?path=model.pt"), OPS).await, (StatusCode::OK, "weights".into()));
    for path in ["..%2Fjobs%2Fu-1.json", "%2F%2Flog", "nothing"] {
        assert_eq!(
            ask(&f, true, &format!("{uri}?path={path}"), OPS).await.0,
            StatusCode::NOT_FOUND,
            "{path}"
        );
    }
    assert_eq!(ask(&f, true, &uri.replace("digits", "other"), OPS).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn receipts_are_one_file_of_all_awards() {
    let f = fixture(Place::Nowhere("its state is Succeeded".into()), vec![]);
    let uri = format!("{JOB}/receipts");
    assert_eq!(ask(&f, true, &uri, ANN).await.0, StatusCode::FORBIDDEN, "who may read logs only");
    let shelf = f.shared.receipts.clone().unwrap();
    let chains = [(1, signed(&key(1), "GPU-0", 9, "1")), (2, signed(&key(2), "GPU-1", 3, "1"))];
    for (n, records) in &chains {
        // In several files of the shelf.
        for records in records.chunks(4) {
            let bytes: Vec<u8> = records.iter().flat_map(Record::encode).collect();
            let kept = shelf.take("alpha", (name(&key(*n)), &format!("n{n}")), &bytes, (10_000, T)).unwrap();
            assert!(matches!(kept, Kept::New(..)));
        }
    }
    let chain = name(&key(1)).to_string();
    let evidence = Evidence::Refused { chain, sequence: 9, reason: "r".into() };
    shelf.accuse(name(&key(1)), &evidence).unwrap();
    let (code, body) = ask(&f, true, &uri, OPS).await;
    assert_eq!(code, StatusCode::OK);
    let file: ReceiptsFile = serde_json::from_str(&body).unwrap();
    assert_eq!((file.version, file.job.uid.as_str(), file.awards.len()), (1, "u-1", 2));
    assert_eq!((&file.awards[0].chains, &file.awards[0].evidence), (&vec![], &vec![]));
    assert_eq!((&file.awards[1].provider[..], &file.awards[1].evidence), ("alpha", &vec![evidence]));
    let mut found: Vec<_> = file.awards[1].chains.iter().map(|c| (c.node.as_str(), &c.records)).collect();
    found.sort_by_key(|(node, _)| *node);
    assert_eq!(found, [("n1", &chains[0].1), ("n2", &chains[1].1)]);
    assert_eq!(ask(&f, true, &uri.replace("digits", "other"), OPS).await.0, StatusCode::NOT_FOUND);

    let (code, body) = ask(&f, true, &format!("{uri}?heads=true"), OPS).await;
    let heads: ReceiptsHeads = serde_json::from_str(&body).unwrap();
    assert_eq!((code, heads.awards.len(), heads.job), (StatusCode::OK, 2, file.job));
    let mut found: Vec<_> =
        heads.awards[1].chains.iter().map(|c| (c.node.as_str(), c.records, c.until_ms, c.closed)).collect();
    found.sort_unstable();
    assert_eq!(found, [("n1", 11, T + 9_000, true), ("n2", 5, T + 3_000, true)]);
}

#[tokio::test]
async fn receipts_that_cannot_be_read_are_said_to_be_so() {
    let mut f = fixture(Place::Nowhere(String::new()), vec![]);
    Arc::get_mut(&mut f.shared).unwrap().receipts = None;
    let (code, body) = ask(&f, true, &format!("{JOB}/receipts"), OPS).await;
    assert!(code == StatusCode::SERVICE_UNAVAILABLE && body.contains("cannot read its receipts"), "{body}");
}

#[tokio::test]
async fn who_waits_for_outputs_is_told_whether_they_are_on_their_way() {
    let uri = format!("{JOB}/outputs");
    let place = || Place::Provider { award: award(), seat: 0 };
    for (ended, code) in [(false, StatusCode::NOT_FOUND), (true, StatusCode::SERVICE_UNAVAILABLE)] {
        let f = located(Located { uid: "u-1".into(), place: place(), ended }, vec![]);
        assert_eq!(ask(&f, true, &uri, OPS).await.0, code);
        deliver(&f, &[("model.pt", b"weights")]);
        assert_eq!(ask(&f, true, &uri, OPS).await.0, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_follower_goes_on_in_the_store() {
    let f = fixture(
        Place::Provider { award: award(), seat: 0 },
        vec![
            chunk("one\n", 4, false),
            Err(AccessError::Unavailable("cut off".into())),
            chunk("two\n", 8, false),
        ],
    );
    let wait = async {
        let shared = f.shared.clone();
        // When the provider has nothing more to say, the delivery is there.
        while shared.backend.asked.lock().unwrap().len() < 4 {
            tokio::task::yield_now().await;
        }
        deliver(&f, &[(LOG_PATH, b"one\ntwo\nthree\n")]);
    };
    let uri = format!("{JOB}/log?follow=true");
    let (answer, ()) = tokio::join!(ask(&f, true, &uri, OPS), wait);
    assert_eq!(answer, (StatusCode::OK, "one\ntwo\nthree\n".into()));
    assert_eq!(f.shared.backend.asked.lock().unwrap()[..4], [0, 4, 4, 8]);
}

#[tokio::test]
async fn without_follow_the_log_so_far() {
    let f = fixture(
        Place::Provider { award: award(), seat: 0 },
        vec![chunk("one\n", 4, false), chunk("", 4, false)],
    );
    assert_eq!(ask(&f, true, &format!("{JOB}/log"), OPS).await, (StatusCode::OK, "one\n".into()));
    let waiting = fixture(Place::Nowhere("its state is Bidding".into()), vec![]);
    let (code, body) = ask(&waiting, true, &format!("{JOB}/log"), OPS).await;
    assert_eq!(code, StatusCode::NOT_FOUND);
    assert!(body.contains("its state is Bidding"), "{body}");
    assert_eq!(ask(&f, true, &format!("{JOB}/log?tailLines=x"), OPS).await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn the_last_lines_from_the_store() {
    let f = fixture(Place::Nowhere(String::new()), vec![]);
    deliver(&f, &[(LOG_PATH, b"one\ntwo\nthree\n")]);
    assert_eq!(ask(&f, true, &format!("{JOB}/log?tailLines=2"), OPS).await.1, "two\nthree\n");
    assert_eq!(ask(&f, true, &format!("{JOB}/log?tailLines=0&follow=true"), OPS).await.1, "");
}

#[tokio::test]
async fn discovery_needs_no_job() {
    let f = fixture(Place::Nowhere(String::new()), vec![]);
    for (uri, kind) in [
        ("/apis", "APIGroupList"),
        ("/apis/stream.vendue.dev", "APIGroup"),
        ("/apis/stream.vendue.dev/v1alpha1", "APIResourceList"),
    ] {
        let (code, body) = ask(&f, true, uri, ANN).await;
        assert_eq!(code, StatusCode::OK);
        assert!(body.contains(kind), "{body}");
    }
    assert_eq!(ask(&f, true, "/nothing", ANN).await.0, StatusCode::NOT_FOUND);
    assert_eq!(ask(&f, false, "/healthz", &[]).await.0, StatusCode::OK);
}
