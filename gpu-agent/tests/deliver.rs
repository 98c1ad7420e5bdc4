//! Receipts from the metering thread to a receiver over HTTPS, with everything that goes wrong on the way.

// Helpers of tests fail by panicking too; the lint's own exception covers only the test functions.
#![allow(clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::{Json, Router};
use axum_server::tls_rustls::RustlsConfig;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use vendue_gpu_agent::deliver::{Deliverer, Pace, Receiver};
use vendue_gpu_agent::meter::key;
use vendue_gpu_agent::meter::{DeviceTick, Keeper, Reading, Tick};
use vendue_gpu_agent::metrics::Metrics;
use vendue_receipts::delivery::{Answer, Answered, Batch, BookId};
use vendue_receipts::{
    AwardId, Body, BootId, Chain, GapReason, Record, SignedHour, Tree, hour_leaves, hour_of, verify,
};
use vendue_receipts_store::{Chains, Options, Taken};

const A: AwardId = AwardId([0xaa; 8]);
const START_MS: u64 = 1_800_000_000_000;
const TOKEN: &str = "a-token";

/// What the receiver keeps, and what it says.
struct Desk {
    chains: Chains,
    ended: Vec<AwardId>,
    /// Requests that are answered with an error first.
    failures: u32,
    /// Answers that get lost after the records were stored.
    lost_answers: u32,
    hours: Vec<SignedHour>,
    /// Its own disk is full.
    full: bool,
    book: BookId,
}

type Shared = Arc<Mutex<Desk>>;

fn lock(desk: &Shared) -> MutexGuard<'_, Desk> {
    desk.lock().expect("lock")
}

fn open(dir: &Path) -> Chains {
    let options = Options {
        dir: dir.join("received"),
        segment_bytes: 1 << 20,
        retain_ms: 1 << 40,
        max_bytes: 1 << 30,
        delivers: false,
    };
    Chains::open(options, None).expect("open").0
}

async fn take(
    State(desk): State<Shared>,
    headers: HeaderMap,
    Json(batch): Json<Batch>,
) -> Result<Json<Answer>, (StatusCode, &'static str)> {
    let mut desk = lock(&desk);
    if headers.get("authorization").is_none_or(|value| value != "Bearer a-token") {
        return Err((StatusCode::UNAUTHORIZED, "no"));
    }
    if desk.failures > 0 {
        desk.failures -= 1;
        return Err((StatusCode::INTERNAL_SERVER_ERROR, "the disk is full"));
    }
    let answer = |piece: vendue_receipts::delivery::Piece| {
        if desk.full {
            let error = Some("no room".to_owned());
            return Answered { name: piece.name, next: None, error, later: true };
        }
        let taken = desk.chains.take(piece.name, &piece.records);
        let (next, error) = match taken {
            Ok(Taken::UpTo(next)) => (Some(next), None),
            Ok(Taken::Gone) => (None, None),
            Ok(Taken::Equivocation(_)) => (None, Some("two stories".to_owned())),
            Err(error) => (None, Some(error.to_string())),
        };
        Answered { name: piece.name, next, error, later: false }
    };
    let chains = batch.chains.into_iter().map(answer).collect();
    if desk.lost_answers > 0 {
        desk.lost_answers -= 1;
        return Err((StatusCode::BAD_GATEWAY, "lost"));
    }
    let hours = batch.hours.iter().map(|said| said.statement.hour).collect();
    desk.hours.extend(batch.hours);
    Ok(Json(Answer { chains, ended: desk.ended.clone(), book: Some(desk.book), hours }))
}

async fn chains(State(desk): State<Shared>) -> Json<Vec<Chain>> {
    Json(lock(&desk).chains.iter().map(|(_, chain)| chain.clone()).collect())
}

/// A receiver at a port of its own, and what an agent needs to tell it.
struct Served {
    desk: Shared,
    receiver: Receiver,
    task: tokio::task::JoinHandle<()>,
}

async fn serve(dir: &Path) -> Served {
    // Another test of this process may have done it.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("certificate");
    let (ca, token) = (dir.join("ca.crt"), dir.join("token"));
    std::fs::write(&ca, made.cert.pem()).expect("ca");
    std::fs::write(&token, format!("{TOKEN}\n")).expect("token");
    let key = made.signing_key.serialize_pem().into_bytes();
    let config = RustlsConfig::from_pem(made.cert.pem().into_bytes(), key).await.expect("tls");
    let desk = Desk {
        chains: open(dir),
        ended: vec![],
        failures: 0,
        lost_answers: 0,
        hours: vec![],
        full: false,
        book: BookId([1; 16]),
    };
    let desk = Arc::new(Mutex::new(desk));
    let router = Router::new()
        .route("/v1/receipts", post(take))
        .route("/v1/chains", get(chains))
        .with_state(Arc::clone(&desk));
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("bind");
    listener.set_nonblocking(true).expect("nonblocking");
    let url = format!("https://localhost:{}", listener.local_addr().expect("address").port());
    let server = axum_server::from_tcp_rustls(listener, config).expect("server");
    let task = tokio::spawn(async move { server.serve(router.into_make_service()).await.expect("serve") });
    Served { desk, receiver: Receiver { url, ca, token }, task }
}

/// A metering thread with one device, and the deliverer beside it.
struct Node {
    keeper: Keeper,
    second: u64,
    ended: watch::Receiver<BTreeSet<AwardId>>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Node {
    fn start(dir: &Path, served: &Served, second: u64) -> Self {
        std::fs::create_dir_all(dir.join("state")).expect("folder");
        let keeper = Keeper::start(&dir.join("state"), true).expect("keeper");
        let (told, ended) = watch::channel(BTreeSet::new());
        let pace = Pace { look: Duration::from_millis(5), ask: Duration::from_millis(20) };
        let metrics = Arc::new(Metrics::new("n1").expect("metrics"));
        let counter = keeper.counter().expect("counter");
        let deliverer = Deliverer::new(served.receiver.clone(), pace, counter, told, metrics);
        let stop = CancellationToken::new();
        let task = tokio::spawn(deliverer.run(stop.clone()));
        Self { keeper, second, ended, stop, task }
    }

    /// So many seconds pass, of which the device serves this award.
    fn serve(&mut self, award: AwardId, seconds: u64, ended: &[AwardId]) {
        for _ in 0..seconds {
            self.second += 1;
            let reading = Reading {
                energy_mj: Some(self.second * 700_000),
                activity: None,
                memory_used_bytes: None,
                driver: "580.1".parse().expect("driver"),
            };
            let device = "GPU-0".parse().expect("device");
            self.keeper.put(Tick {
                steady_ns: self.second * 1_000_000_000,
                suspended_ns: 0,
                system_ms: START_MS + self.second * 1_000,
                boot: BootId([7; 16]),
                devices: vec![DeviceTick { device, award, xids: vec![], reading: Ok(reading) }],
                ended: ended.to_vec(),
            });
        }
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.expect("deliverer");
    }
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let wait = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// The records of an award as the receiver has them.
fn received(desk: &Shared, award: AwardId) -> Vec<Record> {
    let desk = lock(desk);
    let names: Vec<_> =
        desk.chains.of_award(award).map(|(name, chain)| (name, chain.next_sequence())).collect();
    let mut all = vec![];
    for (name, next) in names {
        let mut of_chain: Vec<Record> = vec![];
        while (of_chain.len() as u64) < next {
            of_chain.extend(desk.chains.records(name, of_chain.len() as u64, 1_000).expect("records"));
        }
        all.extend(of_chain);
    }
    all
}

fn seconds(records: &[Record]) -> u64 {
    let used = records.iter().map(|record| match &record.body {
        Body::Used(used) => used.wall_ns,
        _ => 0,
    });
    used.sum::<u64>() / 1_000_000_000
}

fn closed(records: &[Record]) -> bool {
    records.last().is_some_and(|record| matches!(record.body, Body::Closed(_)))
}

#[tokio::test]
async fn records_arrive_once_whatever_the_receiver_does() {
    let dir = tempfile::tempdir().expect("dir");
    let served = serve(dir.path()).await;
    (lock(&served.desk).failures, lock(&served.desk).lost_answers) = (2, 2);
    let mut node = Node::start(dir.path(), &served, 0);
    node.serve(AwardId::IDLE, 5, &[]);
    node.serve(A, 25, &[]);
    until("windows of the award", || seconds(&received(&served.desk, A)) >= 14).await;
    lock(&served.desk).ended = vec![A];
    until("the end is heard", || node.ended.borrow().contains(&A)).await;
    node.serve(AwardId::IDLE, 12, &[A]);
    until("the close", || closed(&received(&served.desk, A))).await;
    until("nothing is left", || node.keeper.kept().undelivered == 0).await;
    let records = received(&served.desk, A);
    let chain = verify(A, Some(node.keeper.public_key()), 0, &records).expect("verifies");
    assert_eq!(chain.totals().gpu_ns, 24_000_000_000, "of 25 readings 24 intervals");
    assert_eq!(node.keeper.kept().error, None);
    node.end().await;
    served.task.abort();
}

#[tokio::test]
async fn each_hour_is_stated_once_with_the_root_over_its_records() {
    let dir = tempfile::tempdir().expect("dir");
    let served = serve(dir.path()).await;
    // The hour is over 20 s from here.
    let mut node = Node::start(dir.path(), &served, 3_580);
    node.serve(A, 15, &[]);
    node.serve(AwardId::IDLE, 96, &[]);
    until("the statement", || !lock(&served.desk).hours.is_empty()).await;
    let said = lock(&served.desk).hours.clone();
    let all = [received(&served.desk, A), received(&served.desk, AwardId::IDLE)].concat();
    let hour = hour_of(START_MS);
    let tree = Tree::new(&hour_leaves(hour, all.iter()));
    let expected: Vec<_> =
        said.iter().map(|s| (s.statement.hour, s.statement.count, s.statement.root)).collect();
    assert_eq!(expected, [(hour, tree.count(), tree.root())]);
    assert!(tree.count() >= 4 && said[0].verify().is_ok());
    assert_eq!(said[0].statement.public_key, node.keeper.public_key());
    let second = node.second;
    node.end().await;
    let mut node = Node::start(dir.path(), &served, second);
    node.serve(AwardId::IDLE, 30, &[]);
    until("all is told", || node.keeper.kept().records > 0 && node.keeper.kept().undelivered == 0).await;
    assert_eq!(lock(&served.desk).hours.len(), 1, "not again");
    node.end().await;
    served.task.abort();
}

/// The receiver loses its disk, and is another book from then on.
fn lose(desk: &Shared, dir: &Path) {
    let mut desk = lock(desk);
    // The old one has the folder's lock.
    desk.chains = open(&dir.join("spare"));
    std::fs::remove_dir_all(dir.join("received")).expect("remove");
    desk.chains = open(dir);
    desk.book.0[0] += 1;
}

#[tokio::test]
async fn a_receiver_that_lost_its_disk_gets_what_is_over_too_while_nothing_new_comes_of_it() {
    let dir = tempfile::tempdir().expect("dir");
    let served = serve(dir.path()).await;
    let mut node = Node::start(dir.path(), &served, 0);
    node.serve(A, 25, &[]);
    node.serve(AwardId::IDLE, 12, &[A]);
    until("the close", || closed(&received(&served.desk, A))).await;
    until("nothing is left", || node.keeper.kept().undelivered == 0).await;
    let before = received(&served.desk, A);
    lose(&served.desk, dir.path());
    until("all of it again", || received(&served.desk, A) == before).await;
    until("nothing is left", || node.keeper.kept().undelivered == 0).await;
    node.end().await;
    served.task.abort();
}

#[tokio::test]
async fn a_receiver_without_room_accuses_no_chain_and_takes_it_later() {
    let dir = tempfile::tempdir().expect("dir");
    let served = serve(dir.path()).await;
    lock(&served.desk).full = true;
    let mut node = Node::start(dir.path(), &served, 0);
    node.serve(A, 25, &[]);
    until("records wait", || node.keeper.kept().undelivered > 0).await;
    until("it was asked", || node.ended.has_changed().unwrap_or_default()).await;
    assert_eq!(node.keeper.kept().stuck_chains, 0);
    lock(&served.desk).full = false;
    until("they arrive", || seconds(&received(&served.desk, A)) == 19).await;
    node.end().await;
    served.task.abort();
}

#[tokio::test]
async fn a_chain_whose_beginning_everybody_lost_ends_neither_metering_nor_other_chains() {
    let dir = tempfile::tempdir().expect("dir");
    let served = serve(dir.path()).await;
    let mut node = Node::start(dir.path(), &served, 0);
    node.serve(A, 25, &[]);
    until("what there is", || seconds(&received(&served.desk, A)) == 19).await;
    let second = node.second;
    node.end().await;
    // First the node loses what it had told, then the receiver loses what it was told.
    std::fs::remove_dir_all(dir.path().join("state/receipts")).expect("remove");
    let mut node = Node::start(dir.path(), &served, second);
    until("the chains are taken over", || node.keeper.kept().error.is_none()).await;
    lose(&served.desk, dir.path());
    node.serve(A, 25, &[]);
    until("it is known", || node.keeper.kept().lost_chains == 2).await;
    until("nothing waits", || node.keeper.kept().undelivered == 0).await;
    assert_eq!((node.keeper.kept().error, node.keeper.kept().stuck_chains), (None, 0));
    let b = AwardId([0xbb; 8]);
    node.serve(b, 25, &[]);
    until("another award", || seconds(&received(&served.desk, b)) >= 14).await;
    until("nothing waits", || node.keeper.kept().undelivered == 0).await;
    assert_eq!(received(&served.desk, A), []);
    node.end().await;
    served.task.abort();
}

#[tokio::test]
async fn a_receiver_that_lost_its_disk_is_told_again() {
    let dir = tempfile::tempdir().expect("dir");
    let served = serve(dir.path()).await;
    let mut node = Node::start(dir.path(), &served, 0);
    node.serve(A, 25, &[]);
    until("what there is", || seconds(&received(&served.desk, A)) == 19).await;
    lose(&served.desk, dir.path());
    node.serve(A, 10, &[]);
    until("all of it again", || seconds(&received(&served.desk, A)) == 29).await;
    assert!(verify(A, None, 0, &received(&served.desk, A)).is_ok());
    node.end().await;
    served.task.abort();
}

#[tokio::test]
async fn a_node_that_lost_its_receipts_but_not_its_key_goes_on_where_the_receiver_is() {
    let dir = tempfile::tempdir().expect("dir");
    let served = serve(dir.path()).await;
    let mut node = Node::start(dir.path(), &served, 0);
    node.serve(A, 25, &[]);
    until("what there is", || seconds(&received(&served.desk, A)) == 19).await;
    let (key, second) = (node.keeper.public_key(), node.second);
    node.end().await;
    std::fs::remove_dir_all(dir.path().join("state/receipts")).expect("remove");

    // While the receiver does not say where the chains stand, nothing is signed.
    let up = served.receiver.url.clone();
    let down = Served {
        receiver: Receiver { url: "https://localhost:1".to_owned(), ..served.receiver.clone() },
        ..served
    };
    let mut node = Node::start(dir.path(), &down, second + 60);
    node.serve(A, 5, &[]);
    until("the ticks are refused", || node.keeper.kept().dropped_ticks == 5).await;
    assert!(node.keeper.kept().error.is_some_and(|error| error.contains("where its chains stand")));
    let second = node.second;
    node.end().await;

    // The same after a crash in between: it is not taken for a new node.
    let served = Served { receiver: Receiver { url: up, ..down.receiver.clone() }, ..down };
    let mut node = Node::start(dir.path(), &served, second);
    assert_eq!(node.keeper.public_key(), key);
    until("the chains are taken over", || node.keeper.kept().error.is_none()).await;
    node.serve(A, 25, &[]);
    until("more of it", || seconds(&received(&served.desk, A)) == 38).await;
    let records = received(&served.desk, A);
    verify(A, Some(key), 0, &records).expect("one chain, nothing signed twice");
    let lost = records.iter().any(|r| matches!(&r.body, Body::Gap(gap) if gap.reason == GapReason::DiskLost));
    assert!(lost, "the time in between is a gap");
    node.end().await;
    served.task.abort();
}

#[tokio::test]
async fn a_rotated_key_goes_on_with_the_chains_that_the_receiver_has() {
    let dir = tempfile::tempdir().expect("dir");
    let served = serve(dir.path()).await;
    let mut node = Node::start(dir.path(), &served, 3_550);
    node.serve(AwardId::IDLE, 5, &[]);
    node.serve(A, 25, &[]);
    until("what there is", || node.keeper.kept().undelivered == 0).await;
    let (first, second) = (node.keeper.public_key(), node.second);
    node.end().await;
    let next = key::draw_next(&dir.path().join("state")).expect("next key");

    let mut node = Node::start(dir.path(), &served, second);
    assert_eq!(node.keeper.public_key(), next);
    node.serve(A, 15, &[]);
    node.serve(AwardId::IDLE, 12, &[A]);
    until("the close", || closed(&received(&served.desk, A))).await;
    let records = received(&served.desk, A);
    let chain = verify(A, Some(first), 0, &records).expect("verifies from the first key on");
    assert_eq!((chain.keys(), chain.is_closed()), (&[first, next][..], true));
    node.serve(AwardId::IDLE, 90, &[]);
    until("the hour of the rotation", || !lock(&served.desk).hours.is_empty()).await;
    let all = [records, received(&served.desk, AwardId::IDLE)].concat();
    let tree = Tree::new(&hour_leaves(hour_of(START_MS), all.iter()));
    let said = lock(&served.desk).hours[0].statement;
    assert_eq!((said.public_key, said.count, said.root), (next, tree.count(), tree.root()));
    node.end().await;
    served.task.abort();
}

#[tokio::test]
async fn chains_that_are_taken_over_from_the_receiver_are_rotated_then() {
    let dir = tempfile::tempdir().expect("dir");
    let served = serve(dir.path()).await;
    let mut node = Node::start(dir.path(), &served, 0);
    node.serve(A, 25, &[]);
    until("what there is", || seconds(&received(&served.desk, A)) == 19).await;
    let (first, second) = (node.keeper.public_key(), node.second);
    node.end().await;
    let next = key::draw_next(&dir.path().join("state")).expect("next key");
    std::fs::remove_dir_all(dir.path().join("state/receipts")).expect("remove");

    let mut node = Node::start(dir.path(), &served, second + 60);
    until("the chains are taken over", || node.keeper.kept().error.is_none()).await;
    assert_eq!(node.keeper.public_key(), next);
    node.serve(A, 25, &[]);
    until("more of it", || seconds(&received(&served.desk, A)) >= 38).await;
    let chain = verify(A, Some(first), 0, &received(&served.desk, A)).expect("one chain");
    assert_eq!(chain.keys(), [first, next]);
    node.end().await;
    served.task.abort();
}

#[tokio::test]
async fn a_wrong_token_and_a_wrong_authority_are_told_and_nothing_is_lost() {
    let dir = tempfile::tempdir().expect("dir");
    let served = serve(dir.path()).await;
    std::fs::write(&served.receiver.token, "stale").expect("token");
    let mut node = Node::start(dir.path(), &served, 0);
    node.serve(A, 15, &[]);
    until("records wait", || node.keeper.kept().undelivered > 0).await;
    assert_eq!(received(&served.desk, A), []);
    // Kubelet renews the token.
    std::fs::write(&served.receiver.token, TOKEN).expect("token");
    until("they arrive", || node.keeper.kept().undelivered == 0).await;
    node.end().await;

    let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("certificate");
    std::fs::write(&served.receiver.ca, other.cert.pem()).expect("ca");
    let before = received(&served.desk, A).len();
    let mut node = Node::start(dir.path(), &served, 20);
    node.serve(A, 15, &[]);
    until("records wait", || node.keeper.kept().undelivered > 0).await;
    assert_eq!(received(&served.desk, A).len(), before, "nobody else is told");
    node.end().await;
    served.task.abort();
}
