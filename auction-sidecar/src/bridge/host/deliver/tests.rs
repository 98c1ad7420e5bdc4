//! A whole delivery in one process: a real courier, two peers over QUIC, home's server and store.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use kube::core::DeserializeGuard;
use kube::runtime::{reflector, watcher};
use libp2p::identity::Keypair;
use libp2p::{Multiaddr, PeerId};
use serde_json::json;
use tokio::sync::mpsc;

use super::send::WINDOW;
use super::*;
use crate::bridge::cluster::Cluster;
use crate::bridge::dispatch::{self, Sides};
use crate::bridge::home::{self, HomeContext};
use crate::bridge::host::courier::Courier;
use crate::bridge::stores::Guarded;
use crate::bridge::tests::{
    DEADLINE, Fixture, always, fixture, held_award, ordered_job, reference, user_key,
};
use crate::metrics::Metrics;
use crate::net::{self, CHUNK, Inbound, Member, Members, Net, NetConfig, Protocol};
use crate::store::Store;
use crate::testing::free_address;
use crate::wire::{Bulk, BulkReply, LOG_PATH, MAX_FILES, decode_bulk};

const TOKEN: &str = "0123456789abcdef";
const SEAT: MemberId = MemberId::Seat(1);
const HOME: MemberId = MemberId::Home(0);

struct Peer {
    keypair: Keypair,
    address: Multiaddr,
}

impl Peer {
    fn new() -> Self {
        Self { keypair: Keypair::generate_ed25519(), address: free_address() }
    }
}

/// Two peers that know each other; the home dials.
struct Market {
    seat: Peer,
    home: Peer,
}

impl Market {
    async fn start(&self, own: &Peer) -> Net {
        let member = |id, peer: &Peer, address: Option<Multiaddr>| {
            let (name, peer) = (format!("{id}"), PeerId::from(peer.keypair.public()));
            Member { id, name, peer, address }
        };
        let all =
            || [member(SEAT, &self.seat, Some(self.seat.address.clone())), member(HOME, &self.home, None)];
        let config = || NetConfig {
            keypair: own.keypair.clone(),
            members: Members::new(all(), PeerId::from(own.keypair.public())),
            own: vec![],
            listen: own.address.clone(),
            metrics: Arc::new(Metrics::new().unwrap()),
        };
        // After a cut the port is free when the old endpoint is gone.
        within(async {
            loop {
                match net::start(config()) {
                    Ok(net) => return net,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        })
        .await
    }
}

async fn within<T>(future: impl std::future::Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE * 2, future).await.expect("nothing happened in time")
}

fn write(root: &Path, path: &str, data: &[u8]) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, data).unwrap();
}

/// Bytes that do not repeat from piece to piece.
fn noise(len: usize) -> Vec<u8> {
    let step = |state: &mut u64| {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Some(state.to_be_bytes()[0])
    };
    std::iter::repeat_n((), len).scan(len as u64, |state, ()| step(state)).collect()
}

/// A courier over `root/outputs` and `root/ray`.
async fn courier(root: &Path) -> Courier {
    let router = crate::courier::router(TOKEN.to_owned(), root.join("outputs"), root.join("ray"));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    Courier::at(format!("http://{address}"), TOKEN)
}

/// The home's side. `cut_after` so many pieces, its network is gone.
struct Home {
    context: Arc<HomeContext>,
    pieces: Arc<AtomicUsize>,
    _awards: reflector::store::Writer<DeserializeGuard<Award>>,
}

fn start_home(f: &Fixture, net: Net, cut_after: usize) -> Home {
    let (awards, mut writer) = Guarded::empty();
    let mut award = held_award("0011223344556677", &"ab".repeat(32), "");
    award["spec"]["side"] = json!("Home");
    award["spec"]["job"]["name"] = json!("digits");
    let award: Award = serde_json::from_value(award).unwrap();
    writer.apply_watcher_event(&watcher::Event::Apply(DeserializeGuard(Ok(award))));
    let store = Arc::new(Store::open(&f.dir.path().join("store"), 64 << 20).unwrap());
    let (record, engine) = (f.record.clone(), f.engine.clone());
    let cluster = Cluster::new(always(ordered_job(64)), f.cluster.metrics.clone(), None);
    let metrics = cluster.metrics.clone();
    let home = (0, user_key(f));
    let context =
        Arc::new(HomeContext::new(cluster, record, home, net.handle.clone(), engine, awards, store));
    let pieces = Arc::new(AtomicUsize::new(0));
    let (forward, requests) = mpsc::channel(64);
    tokio::spawn(pass_on(net, forward, pieces.clone(), cut_after));
    tokio::spawn(dispatch::run(Sides { host: None, home: Some(context.clone()) }, requests, metrics));
    Home { context, pieces, _awards: writer }
}

async fn pass_on(mut net: Net, to: mpsc::Sender<Inbound>, pieces: Arc<AtomicUsize>, cut_after: usize) {
    while let Some(request) = net.requests.recv().await {
        if request.protocol == Protocol::Bulk && pieces.fetch_add(1, Ordering::SeqCst) == cut_after {
            return net.task.abort();
        }
        to.send(request).await.unwrap();
    }
}

async fn deliver_to_home(seat: &Net, courier: &Courier) -> Result<Delivered, DeliverError> {
    turn_to_home(seat, courier, || false).await
}

async fn turn_to_home(
    seat: &Net,
    courier: &Courier,
    is_over: impl Fn() -> bool,
) -> Result<Delivered, DeliverError> {
    let mut connected = seat.handle.connected();
    within(connected.wait_for(|up| up.contains(&HOME))).await.unwrap();
    let award = reference();
    let sender = Sender { net: &seat.handle, home: HOME, award: &award, courier };
    within(sender.deliver(is_over)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_and_log_arrive_and_a_cut_in_the_middle_costs_only_what_is_missing() {
    let f = fixture();
    let root = f.dir.path();
    let mut files = vec![
        ("model.bin".to_owned(), noise(9 * CHUNK + 17)),
        ("empty".to_owned(), vec![]),
        ("deep/er/copy.bin".to_owned(), noise(9 * CHUNK + 17)),
    ];
    files.extend((0..40).map(|n| (format!("small/{n:02}"), noise(100 + n))));
    for (path, data) in &files {
        write(&root.join("outputs"), path, data);
    }
    let log = noise(2 * CHUNK + 5);
    write(&root.join("ray"), "session_1/logs/job-driver-vendue-u-1.log", &log);
    let courier = courier(root).await;
    let market = Market { seat: Peer::new(), home: Peer::new() };
    let seat = market.start(&market.seat).await;

    let home = start_home(&f, market.start(&market.home).await, 14);
    let cut = deliver_to_home(&seat, &courier).await;
    assert!(matches!(cut, Err(DeliverError::Net(_))), "{cut:?}");
    assert!(!home.context.store.job("u-1").unwrap().complete);
    drop(home);

    let total = files.iter().map(|(_, data)| data.len()).sum::<usize>() + log.len();
    let home = start_home(&f, market.start(&market.home).await, usize::MAX);
    let whole = deliver_to_home(&seat, &courier).await.unwrap();
    assert_eq!(whole, Delivered::All(total as u64));
    // 10 pieces of each large file, 40 small ones, 3 of the log; some were there.
    let sent = home.pieces.load(Ordering::SeqCst);
    assert!((1..63 - 6).contains(&sent), "{sent} pieces were sent after the cut");
    let store = &home.context.store;
    assert!(store.job("u-1").unwrap().complete);
    for (path, data) in &files {
        let (found, size) = store.read("u-1", path, 0, usize::MAX).unwrap();
        assert!(found == *data && size == data.len() as u64, "{path}");
    }
    assert!(store.read("u-1", LOG_PATH, 0, usize::MAX).unwrap().0 == log);

    assert_eq!(deliver_to_home(&seat, &courier).await.unwrap(), Delivered::All(total as u64));
    assert_eq!(home.pieces.load(Ordering::SeqCst), sent, "what is there is not sent again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_is_over_goes_on_in_the_next_one() {
    let f = fixture();
    let root = f.dir.path();
    write(&root.join("outputs"), "model.bin", &noise(40 * CHUNK));
    let courier = courier(root).await;
    let market = Market { seat: Peer::new(), home: Peer::new() };
    let seat = market.start(&market.seat).await;
    let home = start_home(&f, market.start(&market.home).await, usize::MAX);
    let first = turn_to_home(&seat, &courier, || true).await;
    assert!(matches!(first, Err(DeliverError::TurnOver)), "{first:?}");
    let sent = home.pieces.load(Ordering::SeqCst);
    assert!(sent < 40, "{sent}");
    let all = deliver_to_home(&seat, &courier).await.unwrap();
    assert_eq!(all, Delivered::All(40 * CHUNK as u64));
    // Pieces that were on their way when the first turn ended arrive too, and are sent again.
    let both = home.pieces.load(Ordering::SeqCst);
    assert!(both <= 40 + WINDOW, "{both} pieces in both turns");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_files_than_a_manifest_holds_are_told_and_the_log_arrives() {
    let f = fixture();
    let root = f.dir.path();
    for n in 0..=MAX_FILES {
        write(&root.join("outputs"), &format!("{n}"), b"");
    }
    write(&root.join("ray"), "session_1/logs/job-driver-vendue-u-1.log", b"line\n");
    let courier = courier(root).await;
    let market = Market { seat: Peer::new(), home: Peer::new() };
    let seat = market.start(&market.seat).await;
    let home = start_home(&f, market.start(&market.home).await, usize::MAX);
    let why = "there are more than 10000 output files".to_owned();
    assert_eq!(deliver_to_home(&seat, &courier).await.unwrap(), Delivered::LogOnly(why));
    assert_eq!(home.context.store.read("u-1", LOG_PATH, 0, 99).unwrap().0, b"line\n");
    assert_eq!(home.context.store.job("u-1").unwrap().files.len(), 1);
}

#[tokio::test]
async fn a_piece_that_overtook_another_waits_for_it() {
    let f = fixture();
    let market = Market { seat: Peer::new(), home: Peer::new() };
    let home = start_home(&f, market.start(&market.home).await, usize::MAX);
    let data = noise(CHUNK + 100);
    let sha256 = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&data));
    let file = crate::wire::FileEntry { path: "model".into(), size: data.len() as u64, sha256 };
    home.context.store.begin("u-1", vec![file]).unwrap();
    let put = |range: std::ops::Range<usize>| {
        let header = Bulk::Put { award: reference(), file: 0, offset: range.start as u64 };
        let data = bytes::Bytes::copy_from_slice(&data[range]);
        let context = home.context.clone();
        async move {
            let reply = home::serve_bulk(&context, SEAT, header, data).await.unwrap();
            decode_bulk::<BulkReply>("reply", &reply).unwrap().0
        }
    };
    let (late, early) = tokio::join!(put(CHUNK..CHUNK + 100), put(0..CHUNK));
    let stored = |offset: usize| BulkReply::Stored { offset: offset as u64 };
    assert_eq!((early, late), (stored(CHUNK), stored(CHUNK + 100)));
    home.context.store.complete("u-1").unwrap();
}
