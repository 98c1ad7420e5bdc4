//! Receipts over real HTTPS, with reviews of tokens by a scripted API server.

use std::path::Path;
use std::sync::Arc;

use http::{Method, StatusCode};
use serde_json::{Value, json};
use vendue_controller_core::provision::ProvisionView;
use vendue_crds::Award;
use vendue_receipts::delivery::{Answer, Batch, Piece};
use vendue_receipts::{
    AwardId, Body, BootId, Chain, ChainName, NodeKey, Opened, Record, SignedHour, Tree, Used, Xids,
    hour_leaves, read_records, verify,
};

use super::{Book, Desk, Door, system_ms};
use crate::award::Ledger;
use crate::metrics::Metrics;
use crate::testing::{Exchange, award_json, script};

mod book;

const SECOND: u64 = 1_000;
const AWARD: AwardId = AwardId([0xa1; 8]);

fn key(n: u8) -> NodeKey {
    NodeKey::from_bytes(&[n; 32]).unwrap()
}

fn name(award: AwardId) -> ChainName {
    ChainName::new(award, key(1).public())
}

/// An opening and windows of ten seconds, of two devices each, by the key 1.
fn signed(award: AwardId, windows: u64, driver: &str) -> Vec<Record> {
    let mut chain = Chain::new(award, 0);
    let opened = Body::Opened(Opened { public_key: key(1).public(), boot: BootId([1; 16]), time_ms: 0 });
    let windows = (0..windows).flat_map(|n| ["GPU-0", "GPU-1"].map(|device| (n * 10 * SECOND, device)));
    let used = windows.map(|(t0_ms, device)| {
        Body::Used(Used {
            device: device.parse().unwrap(),
            t0_ms,
            t1_ms: t0_ms + 10 * SECOND,
            wall_ns: 10_000_000_000,
            energy: None,
            activity: None,
            memory_peak_bytes: None,
            xids: Xids::default(),
            driver: driver.parse().unwrap(),
        })
    });
    [opened].into_iter().chain(used).map(|body| chain.sign(body, &key(1)).unwrap()).collect()
}

#[test]
fn an_award_is_over_when_it_is_released_or_gone_and_that_is_known() {
    assert_eq!(Ledger::default().is_over("a1"), None, "nothing was listed yet");
    let provision = ProvisionView {
        namespace: "default".into(),
        name: "gpus".into(),
        spec: serde_json::from_value(json!({ "price": "1", "storageClassName": "local" })).unwrap(),
    };
    let running: Award = serde_json::from_value(award_json("b2")).unwrap();
    let mut over = award_json("c3");
    over["status"] = json!({ "conditions": [{ "type": "Released", "status": "True", "reason": "TornDown",
        "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" }] });
    let over: Award = serde_json::from_value(over).unwrap();
    let ledger = Ledger::with(vec![], vec![], provision, &[running, over]);
    assert_eq!(["a1", "b2", "c3"].map(|id| ledger.is_over(id)), [Some(true), Some(false), Some(true)]);
}

/// The answer of the API server to a review.
fn review(token: &str, account: &str, node: Option<&str>) -> Exchange {
    let extra = node.map(|n| json!({ "authentication.kubernetes.io/node-name": [n] }));
    let user =
        json!({ "username": format!("system:serviceaccount:vendue-system:{account}"), "extra": extra });
    let status = json!({ "authenticated": true, "audiences": ["vendue-controller"], "user": user });
    reviewed(token, status)
}

fn reviewed(token: &str, status: Value) -> Exchange {
    Exchange {
        method: Method::POST,
        uri: "/apis/authentication.k8s.io/v1/tokenreviews?".into(),
        body: vec![("/spec/token", json!(token)), ("/spec/audiences", json!(["vendue-controller"]))],
        status: StatusCode::CREATED,
        answer: json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {}, "status": status }),
    }
}

/// A server on a port of its own, and a client that trusts it.
struct Served {
    client: reqwest::Client,
    base: String,
    book: Arc<Book>,
    task: tokio::task::JoinHandle<()>,
    reviews: tokio::task::JoinHandle<()>,
}

async fn serve(dir: &Path, awards: &[Award], reviews: Vec<Exchange>) -> Served {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let pem = made.cert.pem();
    std::fs::write(dir.join("tls.crt"), &pem).unwrap();
    std::fs::write(dir.join("tls.key"), made.signing_key.serialize_pem()).unwrap();
    let (api, reviews) = script(reviews);
    let provision: ProvisionView = ProvisionView {
        namespace: "default".into(),
        name: "gpus".into(),
        spec: serde_json::from_value(json!({ "price": "1", "storageClassName": "local" })).unwrap(),
    };
    let ledger = Arc::new(Ledger::with(vec![], vec![], provision, awards));
    let book = Arc::new(Book::open(&dir.join("receipts"), 1 << 30, system_ms).unwrap());
    let desk = Desk::new(book.clone(), Door::new(api, "vendue-system"), ledger, Metrics::new().unwrap());
    // A port that was free a moment ago; the server says when it is there by answering.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = ([127, 0, 0, 1], port).into();
    let tls = dir.to_owned();
    let task = tokio::spawn(async move { super::serve(address, &tls, desk).await.unwrap() });
    let certificate = reqwest::Certificate::from_pem(pem.as_bytes()).unwrap();
    let client = reqwest::Client::builder().tls_certs_only([certificate]).no_proxy().build().unwrap();
    let base = format!("https://localhost:{port}");
    // Nobody is reviewed without a token.
    while client.get(format!("{base}/v1/chains")).send().await.is_err() {
        tokio::task::yield_now().await;
    }
    Served { client, base, book, task, reviews }
}

impl Served {
    async fn post(&self, token: &str, body: String) -> (StatusCode, String) {
        let request = self.client.post(format!("{}/v1/receipts", self.base)).bearer_auth(token).body(body);
        Self::answer(request).await
    }

    async fn get(&self, token: &str, path: &str) -> (StatusCode, String) {
        Self::answer(self.client.get(format!("{}{path}", self.base)).bearer_auth(token)).await
    }

    async fn answer(request: reqwest::RequestBuilder) -> (StatusCode, String) {
        let answer = request.send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    }

    async fn end(self) {
        self.task.abort();
        drop(self.client);
        let _ = self.task.await;
        self.reviews.await.unwrap();
    }
}

fn batch(pieces: Vec<(ChainName, &[Record])>) -> String {
    let chains =
        pieces.into_iter().map(|(name, records)| Piece { name, records: records.to_vec() }).collect();
    serde_json::to_string(&Batch { chains, hours: vec![] }).unwrap()
}

#[tokio::test]
async fn an_agent_tells_and_hears_from_where_to_go_on_and_what_is_over() {
    let dir = tempfile::tempdir().unwrap();
    // The award of the receipts is not there any more; another one runs.
    let running: Award = serde_json::from_value(award_json("b2b2b2b2b2b2b2b2")).unwrap();
    let reviews =
        vec![review("agent", "vendue-gpu-agent", Some("n1")), review("seat", "vendue-auction", None)];
    let served = serve(dir.path(), &[running], reviews).await;
    let (idle, b) = (AwardId::IDLE, AwardId([0xb2; 8]));
    let (of_idle, of_a, of_b) = (signed(idle, 1, "1"), signed(AWARD, 2, "1"), signed(b, 1, "1"));
    let all = batch(vec![(name(idle), &of_idle), (name(AWARD), &of_a), (name(b), &of_b[1..])]);
    let (status, text) = served.post("agent", all).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    let answer: Answer = serde_json::from_str(&text).unwrap();
    let next: Vec<Option<u64>> = answer.chains.iter().map(|chain| chain.next).collect();
    assert_eq!(next, [Some(3), Some(5), Some(0)]);
    assert_eq!((answer.ended, answer.book), (vec![AWARD], Some(served.book.id())));
    let again = Book::open(&dir.path().join("another"), 1 << 30, system_ms).unwrap();
    assert_ne!(again.id(), served.book.id(), "each book that is opened is another one");

    // A bad chain holds up no other, and is answered with the reason.
    let other = signed(AWARD, 2, "2");
    let two = batch(vec![(name(AWARD), &other), (name(b), &of_b)]);
    let (status, text) = served.post("agent", two).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    let answer: Answer = serde_json::from_str(&text).unwrap();
    assert!(answer.chains[0].error.as_ref().unwrap().contains("told before with another content"), "{text}");
    assert_eq!((answer.chains[0].next, answer.chains[1].next), (None, Some(3)));

    // A node that lost its disk hears where its chains are.
    let (_, text) = served.get("agent", "/v1/chains").await;
    let chains: Vec<Chain> = serde_json::from_str(&text).unwrap();
    assert_eq!(chains.iter().map(Chain::next_sequence).collect::<Vec<_>>(), [3, 5, 3]);

    // The seat reads an award's records as they were signed, of the nodes that held its devices.
    served.book.note_held(AWARD, &["n1".to_owned()]).unwrap();
    served.book.take("n2", name(AWARD), &of_a).unwrap();
    let (status, text) = served.get("seat", &format!("/v1/awards/{AWARD}/chains")).await;
    let heads: Value = serde_json::from_str(&text).unwrap();
    let expected = json!({ "chains": [{ "name": name(AWARD), "node": "n1", "next": 5, "closed": false }] });
    assert_eq!((status, heads), (StatusCode::OK, expected));
    let path = format!("{}/v1/awards/{AWARD}/chains/{}/records?from=2", served.base, name(AWARD));
    let bytes = served.client.get(path).bearer_auth("seat").send().await.unwrap().bytes().await.unwrap();
    let read = read_records(&bytes).unwrap();
    assert_eq!(read, of_a[2..]);
    let whole = [&of_a[..2], &read].concat();
    assert!(verify(AWARD, Some(key(1).public()), 0, &whole).is_ok());
    assert_eq!(served.book.size().0, 2);
    served.end().await;
}

#[tokio::test]
async fn what_the_receiver_cannot_keep_is_wanted_later_and_the_rest_of_the_answer_comes() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("receipts/n1");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(format!("{}-{:016x}.segment", name(AWARD), 0)), b"rust").unwrap();
    let reviews = vec![
        review("agent", "vendue-gpu-agent", Some("n1")),
        review("sound", "vendue-gpu-agent", Some("n2")),
    ];
    let served = serve(dir.path(), &[], reviews).await;
    let records = signed(AWARD, 1, "1");
    let tree = Tree::new(&hour_leaves(0, records.iter()));
    let hours = vec![SignedHour::sign(0, tree.count(), tree.root(), &key(1))];
    let chains = vec![Piece { name: name(AWARD), records }];
    let batch = serde_json::to_string(&Batch { chains, hours }).unwrap();
    let (status, text) = served.post("agent", batch.clone()).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    let answer: Answer = serde_json::from_str(&text).unwrap();
    assert!(answer.chains[0].later && answer.chains[0].error.as_ref().unwrap().contains("damaged"), "{text}");
    assert_eq!((answer.hours, answer.ended), (vec![], vec![]));

    // Statements that cannot be kept: in the place of their folder there is a file.
    std::fs::create_dir_all(dir.path().join("receipts/n2")).unwrap();
    std::fs::write(dir.path().join("receipts/n2/hours"), b"").unwrap();
    let (status, text) = served.post("sound", batch).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    let answer: Answer = serde_json::from_str(&text).unwrap();
    assert_eq!((answer.chains[0].next, answer.chains[0].later, answer.hours), (Some(3), false, vec![]));
    served.end().await;
}

#[tokio::test]
async fn who_has_no_business_here_gets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let refused = json!({ "authenticated": false, "error": "expired" });
    let elsewhere = json!({ "authenticated": true, "audiences": ["api"], "user": { "username": "u" } });
    let reviews = vec![
        reviewed("old", refused),
        reviewed("other", elsewhere),
        review("pod", "default", Some("n1")),
        review("free", "vendue-gpu-agent", None),
        review("agent", "vendue-gpu-agent", Some("n1")),
        review("seat", "vendue-auction", None),
    ];
    let served = serve(dir.path(), &[], reviews).await;
    let empty = || batch(vec![]);
    for (token, expected, says) in [
        ("", StatusCode::UNAUTHORIZED, "no bearer token"),
        ("old", StatusCode::UNAUTHORIZED, "expired"),
        ("other", StatusCode::UNAUTHORIZED, "not authenticated"),
        ("pod", StatusCode::FORBIDDEN, "vendue-system:default may neither tell nor read"),
        ("free", StatusCode::FORBIDDEN, "bound to no node"),
    ] {
        let (status, text) = served.post(token, empty()).await;
        assert_eq!(status, expected, "{token}: {text}");
        assert!(text.contains(says), "{token}: {text}");
    }
    let (status, text) = served.post("agent", "{\"chains\": 7}".to_owned()).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(text.contains("a batch of records as JSON"), "{text}");
    let chains = format!("/v1/awards/{AWARD}/chains");
    for (token, path, expected) in [
        ("agent", chains.as_str(), StatusCode::FORBIDDEN),
        ("seat", "/v1/chains", StatusCode::FORBIDDEN),
        ("seat", "/v1/awards/zz/chains", StatusCode::BAD_REQUEST),
        ("seat", &format!("{chains}/{}/records", name(AwardId::IDLE)), StatusCode::BAD_REQUEST),
        ("seat", &format!("{chains}/x/records"), StatusCode::BAD_REQUEST),
    ] {
        assert_eq!(served.get(token, path).await.0, expected, "{token} {path}");
    }
    let huge = "x".repeat(vendue_receipts::delivery::MAX_BODY + 1);
    assert_eq!(served.post("agent", huge).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    served.end().await;
}

#[tokio::test]
async fn nothing_of_a_body_is_read_before_the_token_was_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let refused = json!({ "authenticated": false, "error": "expired" });
    let reviews = vec![reviewed("old", refused), review("seat", "vendue-auction", None)];
    let (api, reviews) = script(reviews);
    let book = Arc::new(Book::open(dir.path(), 1 << 30, system_ms).unwrap());
    let door = Door::new(api, "vendue-system");
    let desk = Desk::new(book, door, Arc::new(Ledger::default()), Metrics::new().unwrap());
    let router = super::api::router(desk);
    for (token, expected) in
        [("", StatusCode::UNAUTHORIZED), ("old", StatusCode::UNAUTHORIZED), ("seat", StatusCode::FORBIDDEN)]
    {
        // A body that never comes.
        let body =
            axum::body::Body::from_stream(futures::stream::pending::<Result<Vec<u8>, std::io::Error>>());
        let request = http::Request::post("/v1/receipts").header("authorization", format!("Bearer {token}"));
        let mut router = router.clone();
        let answer = tower::Service::call(&mut router, request.body(body).unwrap()).await.unwrap();
        assert_eq!(answer.status(), expected, "{token}");
    }
    drop(router);
    reviews.await.unwrap();
}
