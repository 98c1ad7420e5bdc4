//! The bridge against a scripted API server: exact method, path, manager; an unexpected call fails the test.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{Request, Response};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use kube::core::DeserializeGuard;
use kube::runtime::reflector;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tower_test::mock::{self, Handle};
use vendue_auction_core::evidence::EvidenceKey;
use vendue_auction_core::{
    Certificate, Choice, HoldRequest, HomeInput, HomeOutput, MarketRecord, SeatInput, SeatOutput,
    SignedMarketRecord,
};
use vendue_crds::{Award, Provision, workload};
use vendue_market::{Outcome, StandBy};

use super::bids::BidWriter;
use super::cluster::Cluster;
use super::home::{self, HomeContext, JobKey};
use super::host::{self, CourierClient, HostContext};
use super::stores::{Guarded, Seller};
use crate::deal::{self, DealOptions};
use crate::engine::{EngineCommand, now_ms};
use crate::keys::Keys;
use crate::metrics::Metrics;
use crate::net::{self, MemberId, Members, NetConfig};
use crate::store::Store;
use crate::wire::{AwardRef, Handover, HandoverReply};

mod orders;
mod unstored;

pub(super) const DEADLINE: Duration = Duration::from_secs(20);

/// One expected call and its answer.
pub(crate) struct Call {
    method: &'static str,
    path: String,
    /// Field manager, for patches.
    manager: Option<&'static str>,
    /// Part of the body that must be there: pointer and value.
    body: Vec<(&'static str, Value)>,
    status: u16,
    answer: Answer,
}

impl Call {
    /// The same with another answer.
    pub(super) fn answered(self, answer: Value) -> Self {
        Self { answer: Answer::Json(answer), ..self }
    }
}

pub(super) enum Answer {
    Json(Value),
    /// What was sent, as an API server would answer an apply.
    Echo,
}

pub(crate) fn get(path: &str, answer: Option<Value>) -> Call {
    let (status, answer) = match answer {
        Some(value) => (200, value),
        None => (
            404,
            json!({ "kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404, "message": "" }),
        ),
    };
    Call {
        method: "GET",
        path: path.into(),
        manager: None,
        body: vec![],
        status,
        answer: Answer::Json(answer),
    }
}

pub(super) fn apply(path: &str, manager: &'static str, body: Vec<(&'static str, Value)>) -> Call {
    Call {
        method: "PATCH",
        path: path.into(),
        manager: Some(manager),
        body,
        status: 200,
        answer: Answer::Echo,
    }
}

/// How the paths of Events begin.
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/";

fn event() -> Call {
    Call {
        method: "POST",
        path: EVENTS.into(),
        manager: None,
        body: vec![],
        status: 201,
        answer: Answer::Echo,
    }
}

/// An Event of this type, Normal or Warning.
pub(super) fn event_of(type_: &str) -> Call {
    Call { body: vec![("/type", json!(type_))], ..event() }
}

/// Plays the API server: each call in its order, exactly; Events come beside, at any time, in the number expected.
pub(crate) async fn play(mut handle: Handle<Request<Body>, Response<Body>>, script: Vec<Call>) {
    let (events, calls): (Vec<_>, Vec<_>) =
        script.into_iter().partition(|c| c.method == "POST" && c.manager.is_none() && c.path == EVENTS);
    let (mut events, mut calls) = (events.into_iter(), calls.into_iter().enumerate().peekable());
    while calls.peek().is_some() || events.len() > 0 {
        let wanted = calls.peek().map_or("an Event".to_owned(), |(n, c)| format!("call {n} to {}", c.path));
        let next = tokio::time::timeout(DEADLINE, handle.next_request());
        let (request, send) = next.await.unwrap_or_else(|_| panic!("{wanted} did not come")).unwrap();
        let is_event = request.method() == "POST" && request.uri().path().starts_with(EVENTS);
        let call = if is_event { events.next().map(|c| (usize::MAX, c)) } else { calls.next() };
        let (number, call) =
            call.unwrap_or_else(|| panic!("unexpected: {} {}", request.method(), request.uri()));
        let response = answer(number, call, request).await;
        send.send_response(response);
    }
    let more = tokio::time::timeout(Duration::from_millis(200), handle.next_request()).await;
    if let Ok(Some((request, _))) = more {
        panic!("unexpected call: {} {}", request.method(), request.uri());
    }
}

/// A client whose server answers every call with one object.
pub(super) fn always(object: Value) -> Client {
    let (service, mut server) = mock::pair::<Request<Body>, Response<Body>>();
    tokio::spawn(async move {
        while let Some((_, send)) = server.next_request().await {
            let body = Body::from(serde_json::to_vec(&object).unwrap());
            send.send_response(Response::new(body));
        }
    });
    Client::new(service, "default")
}

/// The Job "digits" of the award's home, with a volume of so many MiB.
pub(crate) fn ordered_job(volume_mib: u32) -> Value {
    let workers = json!({ "replicas": 1, "gpus": 1, "cpuMillis": 1, "memoryMib": 1 });
    let train =
        json!({ "image": "ray:1", "entrypoint": "true", "volumeMib": volume_mib, "workers": workers });
    json!({
        "apiVersion": "vendue.dev/v1alpha1", "kind": "Job",
        "metadata": { "name": "digits", "namespace": "team", "uid": "u-1" },
        "spec": { "maxPrice": "1", "runDeadlineSeconds": 60, "train": train },
    })
}

/// Compares a call with what was expected and makes the answer.
async fn answer(number: usize, call: Call, request: Request<Body>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let fits = if call.method == "POST" { path.starts_with(&call.path) } else { path == call.path };
    assert!(
        fits && parts.method == call.method,
        "call {number}: {} {path}, wanted {} {}",
        parts.method,
        call.method,
        call.path
    );
    let query = parts.uri.query().unwrap_or_default();
    if let Some(manager) = call.manager {
        let wanted = format!("fieldManager={}", manager.replace('/', "%2F"));
        assert!(query.contains(&wanted) && query.contains("force=true"), "call {number}: {query}");
        assert_eq!(parts.headers["content-type"], "application/apply-patch+yaml");
    }
    let bytes = body.collect().await.unwrap().to_bytes();
    let sent: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    for (pointer, value) in &call.body {
        assert_eq!(sent.pointer(pointer), Some(value), "call {number} {path} {pointer}: {sent}");
    }
    let answer = match call.answer {
        Answer::Json(value) => value,
        Answer::Echo => echo(sent, &path),
    };
    let response = Response::builder().status(call.status).header("content-type", "application/json");
    response.body(Body::from(serde_json::to_vec(&answer).unwrap())).unwrap()
}

/// An applied object as the API server returns it; a status apply lacks the spec, which the types want.
fn echo(mut sent: Value, path: &str) -> Value {
    if path.ends_with("/status") && path.contains("/awards/") {
        sent["metadata"] = json!({ "name": "award", "namespace": "n" });
        sent["spec"] = host_award("Host")["spec"].clone();
    }
    if path.ends_with("/status") && path.contains("/jobs/") {
        sent["metadata"] = json!({ "name": "digits", "namespace": "team" });
        sent["spec"] = json!({ "maxPrice": "1", "runDeadlineSeconds": 10 });
    }
    sent
}

pub(crate) struct Fixture {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) record: Arc<MarketRecord>,
    pub(crate) cluster: Cluster,
    pub(crate) server: Handle<Request<Body>, Response<Body>>,
    pub(crate) engine: mpsc::Sender<EngineCommand>,
    pub(crate) commands: mpsc::Receiver<EngineCommand>,
    pub(crate) net: net::Handle,
}

pub(crate) fn fixture() -> Fixture {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let dir = tempfile::tempdir().unwrap();
    let address: libp2p::Multiaddr = "/ip4/127.0.0.1/udp/1/quic-v1".parse().unwrap();
    let options = DealOptions {
        regions: vec![],
        market: "test".into(),
        seats: ["alpha", "bravo", "charlie", "delta"].map(|n| (n.to_owned(), address.clone())).to_vec(),
        homes: vec!["home".into()],
        delay_ms: 125,
        period_ms: 750,
        handover_ms: 5000,
        out: dir.path().join("deal"),
    };
    let text = std::fs::read_to_string(deal::run(&options).unwrap()).unwrap();
    let record = Arc::new(SignedMarketRecord::from_json(&text).unwrap().record);
    let (service, server) = mock::pair::<Request<Body>, Response<Body>>();
    let metrics = Arc::new(Metrics::new().unwrap());
    let cluster = Cluster::new(Client::new(service, "default"), metrics.clone(), None);
    let (engine, commands) = mpsc::channel(16);
    let net = net::start(NetConfig {
        keypair: libp2p::identity::Keypair::generate_ed25519(),
        members: Members::default(),
        own: vec![],
        listen: "/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap(),
        metrics,
    });
    Fixture { dir, record, cluster, server, engine, commands, net: net.unwrap().handle }
}

pub(super) fn host_context(f: &Fixture) -> Arc<HostContext> {
    let (provisions, _) = reflector::store::<DeserializeGuard<Provision>>();
    let (awards, _) = Guarded::empty();
    let seller = Arc::new(Seller::new(Guarded::new(provisions), awards.clone(), f.engine.clone(), &f.record));
    let bids = BidWriter::start(f.cluster.clone(), "vendue-system".into(), f.record.clone(), seller.clone());
    let courier = (CourierClient::new(f.cluster.clone()).unwrap(), None);
    let (record, net, engine) = (f.record.clone(), f.net.clone(), f.engine.clone());
    Arc::new(HostContext::new(f.cluster.clone(), record, 1, net, engine, awards, courier, bids, seller))
}

pub(super) fn order(f: &Fixture, commitment: [u8; 32]) -> vendue_market::Order {
    vendue_market::Order {
        market: f.record.market,
        job: "u-1".into(),
        attempt: 1,
        requirements: vendue_market::Requirements {
            gpu_models: vec![],
            min_gpu_memory_mib: 0,
            workers: 2,
            gpus_per_worker: 1,
            cpu_millis_per_worker: 500,
            memory_mib_per_worker: 512,
            disk_mib_per_worker: 0,
            max_price: "3".parse().unwrap(),
            run_seconds: 60,
            image: "ray:1".into(),
            include_providers: vec![],
            exclude_providers: vec![],
        },
        commitment,
        first_round: 5,
        expires_ms: u64::MAX / 2,
        user_key: f.record.homes[0].user_key,
        after: None,
        terms: Box::default(),
    }
}

fn certificate(f: &Fixture) -> Certificate {
    let quorum = vendue_auction_core::wire::Quorum {
        signers: vendue_auction_core::wire::Signers::all(4),
        aggregate: [9; 48],
    };
    Certificate { market: f.record.market, epoch: 0, round: 7, root: [3; 32], quorum }
}

/// Seat 0 won, seat 1 stands by.
pub(super) fn proof(order: &vendue_market::Order) -> vendue_auction_core::AwardProof {
    let award = vendue_market::Award {
        seat: 0,
        price: "1.10".parse().unwrap(),
        spec: 0,
        devices: None,
        stand_bys: vec![StandBy { seat: 1, price: "1.80".parse().unwrap(), spec: 0, devices: None }],
    };
    let leaf = vendue_auction_core::OrderLeaf {
        order: order.digest(),
        outcome: Outcome::Award(award),
        bundle: [4; 32],
        expires_ms: now_ms() + 60_000,
    };
    let path = vendue_auction_core::merkle::Tree::new(&[vec![1], vec![2]]).path(0).unwrap();
    vendue_auction_core::AwardProof { leaf, path }
}

pub(super) fn award_id(f: &Fixture, order: &vendue_market::Order) -> String {
    use vendue_market::encode::to_hex;
    vendue_crds::names::award_id(&to_hex(&f.record.market), 7, &to_hex(&order.digest()), 0)
}

fn host_award(side: &str) -> Value {
    json!({
        "apiVersion": "vendue.dev/v1alpha1", "kind": "Award",
        "metadata": { "name": "award", "namespace": "n", "uid": "award-uid" },
        "spec": {
            "side": side, "id": "0011223344556677", "marketId": "", "round": 7, "orderDigest": "00",
            "provider": "bravo", "seat": 1, "job": { "home": "home", "uid": "u-1", "attempt": 1 }, "price": "1.80",
            "expiresAt": "2126-01-01T00:00:00Z",
            "requirements": { "workers": 2, "gpusPerWorker": 1, "cpuMillisPerWorker": 500,
                "memoryMibPerWorker": 512, "runDeadlineSeconds": 60, "image": "ray:1" },
        },
    })
}

pub(super) const BRIDGE: &str = vendue_crds::names::MANAGER_AUCTION;
pub(super) const RELAY: &str = vendue_crds::names::MANAGER_RELAY;

pub(super) fn hold_request(f: &Fixture) -> HoldRequest {
    let order = order(f, [7; 32]);
    HoldRequest {
        proof: proof(&order),
        order,
        order_signature: [0; 65],
        home: 0,
        certificate: certificate(f),
        rank: 1,
        price: "1.80".parse().unwrap(),
        offer: "gpus/a100".into(),
        expires_ms: now_ms() + 30_000,
    }
}

fn provision(homes: &[&str]) -> Value {
    json!({
        "apiVersion": "vendue.dev/v1alpha1", "kind": "Provision", "metadata": { "name": "a100", "namespace": "gpus" },
        "spec": { "price": "1.80", "storageClassName": "local", "accept": { "homes": homes } },
    })
}

#[tokio::test]
async fn a_reservation_is_a_namespace_and_then_an_award() {
    let mut f = fixture();
    let context = host_context(&f);
    let request = hold_request(&f);
    let id = award_id(&f, &request.order);
    let namespace = format!("vendue-a-{id}");
    let awards = format!("/apis/vendue.dev/v1alpha1/namespaces/{namespace}/awards/award");
    let script = vec![
        get("/apis/vendue.dev/v1alpha1/namespaces/gpus/provisions/a100", Some(provision(&["home"]))),
        get(&awards, None),
        apply(
            &format!("/api/v1/namespaces/{namespace}"),
            BRIDGE,
            vec![
                ("/metadata/labels/pod-security.kubernetes.io~1enforce", json!("restricted")),
                ("/metadata/labels/vendue.dev~1award-id", json!(id)),
            ],
        ),
        apply(
            &awards,
            BRIDGE,
            vec![
                ("/spec/side", json!("Host")),
                ("/spec/id", json!(id)),
                ("/spec/seat", json!(1)),
                ("/spec/price", json!("1.80")),
                ("/spec/provision", json!("a100")),
                ("/spec/provisionNamespace", json!("gpus")),
                ("/spec/job", json!({ "home": "home", "uid": "u-1", "attempt": 1 })),
                ("/metadata/annotations/vendue.dev~1commitment", json!("07".repeat(32))),
            ],
        ),
        event(),
    ];
    host::on_event(&context, SeatOutput::Hold(Box::new(request)));
    play(f.server, script).await;
    assert!(f.commands.try_recv().is_err(), "the seat is answered when the controller has spoken");
}

#[tokio::test]
async fn a_home_that_the_provision_does_not_serve_is_refused() {
    let mut f = fixture();
    let context = host_context(&f);
    let script = vec![get(
        "/apis/vendue.dev/v1alpha1/namespaces/gpus/provisions/a100",
        Some(provision(&["somebody-else"])),
    )];
    host::on_event(&context, SeatOutput::Hold(Box::new(hold_request(&f))));
    play(f.server, script).await;
    let answer = tokio::time::timeout(DEADLINE, f.commands.recv()).await.unwrap();
    assert!(matches!(answer, Some(EngineCommand::Seat(SeatInput::Reserved { result: Err(_), .. }))));
}

/// A host's Award as it stands after the controller's Held.
pub(super) fn held_award(id: &str, order: &str, commitment: &str) -> Value {
    let mut award = host_award("Host");
    award["metadata"]["namespace"] = json!(format!("vendue-a-{id}"));
    award["metadata"]["annotations"] = json!({ "vendue.dev/commitment": commitment });
    award["spec"]["id"] = json!(id);
    award["spec"]["orderDigest"] = json!(order);
    award["status"] = json!({ "conditions": [{ "type": "Held", "status": "True", "reason": "DevicesHeld",
        "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" }] });
    award
}

pub(super) fn some_workload() -> String {
    let train = json!({ "image": "ray:1", "entrypoint": "python t.py", "files": {}, "env": {}, "secretEnv": {},
        "workers": 2, "gpusPerWorker": 1, "cpuMillisPerWorker": 500, "memoryMibPerWorker": 512,
        "sharedMemoryMibPerWorker": 64, "diskMibPerWorker": 0, "volumeMib": 1, "retries": 0, "runDeadlineSeconds": 60 });
    let parsed: workload::Workload = serde_json::from_value(json!({ "version": 1, "train": train })).unwrap();
    String::from_utf8(parsed.encode().unwrap()).unwrap()
}

pub(super) fn reference() -> AwardRef {
    AwardRef { id: "0011223344556677".into(), order: "ab".repeat(32), job: "u-1".into(), attempt: 1 }
}

#[tokio::test]
async fn a_workload_that_matches_becomes_a_secret_then_the_awards_word_then_the_condition() {
    let f = fixture();
    let context = host_context(&f);
    let workload = some_workload();
    let commitment = hex::encode(vendue_market::commitment(&[5; 32], workload.as_bytes()));
    let base = "/apis/vendue.dev/v1alpha1/namespaces/vendue-a-0011223344556677/awards/award";
    let script = vec![
        get(base, Some(held_award("0011223344556677", &"ab".repeat(32), &commitment))),
        get(base, Some(held_award("0011223344556677", &"ab".repeat(32), &commitment))),
        apply(
            "/api/v1/namespaces/vendue-a-0011223344556677/secrets/vendue-workload",
            BRIDGE,
            vec![
                ("/stringData/workload.json", json!(workload)),
                ("/metadata/ownerReferences/0/uid", json!("award-uid")),
            ],
        ),
        apply(
            base,
            BRIDGE,
            vec![
                ("/spec/workloadSecret", json!("vendue-workload")),
                ("/spec/seat", json!(1)),
                ("/metadata/annotations/vendue.dev~1commitment", json!(commitment)),
            ],
        ),
        apply(
            &format!("{base}/status"),
            RELAY,
            vec![
                ("/status/conditions/0/type", json!("HandedOver")),
                ("/status/conditions/0/status", json!("True")),
            ],
        ),
        event(),
    ];
    let request = Handover::Workload { award: reference(), workload, salt: "05".repeat(32) };
    let (reply, ()) = tokio::join!(host::serve(&context, MemberId::Home(0), request), play(f.server, script));
    assert_eq!(reply, Some(HandoverReply::Ok));
}

#[tokio::test]
async fn another_workload_ends_the_reservation_and_is_not_stored() {
    let f = fixture();
    let context = host_context(&f);
    let base = "/apis/vendue.dev/v1alpha1/namespaces/vendue-a-0011223344556677/awards/award";
    let script = vec![
        get(base, Some(held_award("0011223344556677", &"ab".repeat(32), &"00".repeat(32)))),
        get(base, Some(held_award("0011223344556677", &"ab".repeat(32), &"00".repeat(32)))),
        apply(base, BRIDGE, vec![("/spec/close/reason", json!("NotTaken"))]),
        event(),
    ];
    let request = Handover::Workload { award: reference(), workload: some_workload(), salt: "05".repeat(32) };
    let (reply, ()) = tokio::join!(host::serve(&context, MemberId::Home(0), request), play(f.server, script));
    assert!(matches!(reply, Some(HandoverReply::Refused { .. })), "{reply:?}");
}

#[tokio::test]
async fn only_its_own_home_can_close_an_award() {
    let f = fixture();
    let context = host_context(&f);
    let base = "/apis/vendue.dev/v1alpha1/namespaces/vendue-a-0011223344556677/awards/award";
    let award = held_award("0011223344556677", &"ab".repeat(32), &"00".repeat(32));
    let script = vec![
        get(base, Some(award.clone())),
        get(base, Some(award.clone())),
        get(base, Some(award)),
        apply(base, BRIDGE, vec![("/spec/close/reason", json!("UserClosed"))]),
        event(),
    ];
    let (market, user) = (f.record.market, user_key(&f));
    let close = || Handover::close(&market, reference(), false, &user).unwrap();
    let Handover::Close { signature, .. } = close() else { panic!("another message") };
    // Of another seat; of the way that was not signed; of a signature of something else; none. Nobody is asked.
    let unsigned = [
        (MemberId::Seat(3), close()),
        (
            MemberId::Home(0),
            Handover::Close { award: reference(), not_taken: true, signature: signature.clone() },
        ),
        (
            MemberId::Home(0),
            Handover::Close {
                award: AwardRef { id: "00".repeat(8), ..reference() },
                not_taken: false,
                signature,
            },
        ),
        (
            MemberId::Home(0),
            Handover::Close { award: reference(), not_taken: false, signature: String::new() },
        ),
    ];
    for (from, request) in unsigned {
        let reply = host::serve(&context, from, request).await;
        assert!(matches!(reply, Some(HandoverReply::Refused { .. })), "{reply:?}");
    }
    assert_eq!(context.metrics.dropped_count("unsigned_close"), 4);
    let requests = async {
        let other = AwardRef { job: "u-2".into(), ..reference() };
        let other = Handover::close(&market, other, false, &user).unwrap();
        let foreign = host::serve(&context, MemberId::Home(0), other).await;
        let own = host::serve(&context, MemberId::Home(0), close()).await;
        (foreign, own)
    };
    let (replies, ()) = tokio::join!(requests, play(f.server, script));
    assert_eq!(replies, (Some(HandoverReply::Unknown), Some(HandoverReply::Ok)));
    assert_eq!(context.metrics.dropped_count("foreign_award"), 1);
}

fn home_context(f: &Fixture) -> Arc<HomeContext> {
    let (awards, _) = reflector::store::<DeserializeGuard<Award>>();
    let store = Arc::new(Store::open(&f.dir.path().join("store"), 1 << 20).unwrap());
    let (record, net, engine) = (f.record.clone(), f.net.clone(), f.engine.clone());
    let home = (0, user_key(f));
    Arc::new(HomeContext::new(f.cluster.clone(), record, home, net, engine, Guarded::new(awards), store))
}

pub(super) fn user_key(f: &Fixture) -> Arc<EvidenceKey> {
    let text = std::fs::read_to_string(f.dir.path().join("deal/keys/home.json")).unwrap();
    Keys::from_json(&text, &f.record).unwrap().home.unwrap().1.user
}

fn job_key() -> JobKey {
    JobKey {
        namespace: "team".into(),
        name: "digits".into(),
        uid: "u-1".into(),
        reference: serde_json::from_value(json!({ "kind": "Job", "namespace": "team", "name": "digits" }))
            .unwrap(),
        owner: serde_json::from_value(
            json!({ "apiVersion": "vendue.dev/v1alpha1", "kind": "Job", "name": "digits",
            "uid": "u-1", "controller": true }),
        )
        .unwrap(),
        secret: "digits-order-1".into(),
        auction: None,
    }
}

fn ordered(order: &vendue_market::Order) -> HomeOutput {
    let (digest, order) = (order.digest(), Box::new(order.clone()));
    HomeOutput::Ordered { digest, order, signature: [1; 65], starts_ms: now_ms() }
}

fn awarded(
    order: &vendue_market::Order,
    certificate: &Certificate,
    proof: &vendue_auction_core::AwardProof,
) -> HomeOutput {
    HomeOutput::Awarded {
        order: order.digest(),
        body: Box::new(order.clone()),
        signature: [1; 65],
        certificate: certificate.clone(),
        proof: proof.clone(),
    }
}
