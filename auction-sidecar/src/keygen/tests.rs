//! Four seats that make a key over real QUIC on 127.0.0.1. Every wait is for an event, with a deadline.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;

use bytes::Bytes;
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use vendue_auction_core::keygen::{LEAST_NOTICE_MS, check_next};
use vendue_auction_core::{KeyOrigin, SignedMarketRecord};
use vendue_sealed_bid::{BidKey, RoundId, combine, open, seal};

use super::*;
use crate::deal::{self, DealOptions};
use crate::keys::IssuerFile;
use crate::log::LogDirError;
use crate::net::{RoundEvent, StartError};
use crate::next_epoch::tests::generated;
use crate::testing::free_address;

const DEADLINE: Duration = Duration::from_secs(60);
/// Time for all seats of a test to be there.
const SOON_MS: u64 = 800;
const NAMES: [&str; 4] = ["alpha", "bravo", "charlie", "delta"];

/// Names and addresses.
type Seats = Vec<(String, Multiaddr)>;

/// A market of one dealer, whose seats are on this machine.
pub(super) struct Market {
    dir: TempDir,
    /// Where the seats run.
    addresses: Vec<Multiaddr>,
    /// Where they make keys.
    elsewhere: Vec<Multiaddr>,
}

impl Market {
    pub(super) fn new(delay_ms: u64) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let free = || NAMES.iter().map(|_| free_address()).collect();
        let (addresses, elsewhere): (Vec<_>, _) = (free(), free());
        let options = DealOptions {
            market: "m".into(),
            seats: NAMES.iter().zip(&addresses).map(|(n, a)| ((*n).to_owned(), a.clone())).collect(),
            homes: vec!["home".into()],
            regions: vec![],
            delay_ms,
            period_ms: 6 * delay_ms,
            handover_ms: 5_000,
            out: dir.path().join("deal"),
        };
        deal::run(&options).unwrap();
        Self { dir, addresses, elsewhere }
    }

    fn record_path(&self) -> PathBuf {
        self.dir.path().join("deal/market.json")
    }
    pub(super) fn record(&self) -> MarketRecord {
        let text = fs::read_to_string(self.record_path()).unwrap();
        SignedMarketRecord::from_json(&text).unwrap().record
    }
    pub(super) fn keys(&self, seat: u16) -> SeatKeys {
        let text = fs::read_to_string(self.args(seat, 0).keys).unwrap();
        Keys::from_json(&text, &self.record()).unwrap().seat.unwrap()
    }

    fn args(&self, seat: u16, start: u64) -> GenerateKeysArgs {
        let name = NAMES[usize::from(seat)];
        GenerateKeysArgs {
            market_record: self.record_path(),
            keys: self.dir.path().join(format!("deal/keys/{name}.json")),
            start,
            notice: LEAST_NOTICE_MS,
            p2p_listen: self.elsewhere[usize::from(seat)].clone(),
            seats: NAMES.iter().zip(&self.elsewhere).map(|(n, a)| ((*n).to_owned(), a.clone())).collect(),
            stay_seconds: 600,
            out: self.dir.path().join(format!("out/{name}")),
            marker_dir: None,
        }
    }

    /// What is beside the clusters' keys and is none.
    fn markers(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.dir.path().join("deal/keys")).unwrap().map(|e| e.unwrap().path());
        files.filter(|path| path.extension().is_none_or(|ext| ext != "json")).collect()
    }

    fn file(&self, seat: u16, name: &str) -> PathBuf {
        self.args(seat, 0).out.join(name)
    }

    /// What a seat wrote: the next record, and its keys by it.
    fn written(&self, seat: u16) -> (MarketRecord, SeatKeys) {
        let record = fs::read_to_string(self.file(seat, "next-record.json")).unwrap();
        let record = serde_json::from_str(&record).unwrap();
        let keys = fs::read_to_string(self.file(seat, "keys.json")).unwrap();
        let keys = Keys::from_json(&keys, &record).unwrap();
        assert_eq!(keys.own(), [vendue_auction_core::Peer::Seat(seat)]);
        (record, keys.seat.unwrap())
    }

    /// That these seats wrote the same record, that it follows, and that their shares open what is sealed to it.
    fn check(&self, seats: &[u16]) -> MarketRecord {
        let (records, keys): (Vec<_>, Vec<_>) = seats.iter().map(|seat| self.written(*seat)).unzip();
        let next = records[0].clone();
        assert!(records.iter().all(|other| *other == next), "the records differ");
        assert_eq!(check_next(&self.record(), &next), Ok(()));
        assert_eq!((next.epoch, next.key_origin), (1, KeyOrigin::Distributed));
        let id = RoundId { market: next.market, epoch: next.epoch, round: 9 };
        let sealed = seal(&id, &next.seal_key, b"seat 0", b"a bid", &BidKey::from_bytes(&[3; 32])).unwrap();
        let q = next.q();
        let shares: Vec<_> =
            keys.iter().rev().take(usize::from(q)).map(|k| (k.seat, k.share.sign(&id))).collect();
        let key_of = |seat: u16| next.seat(seat).map(|seat| &seat.seal_share_key);
        let signature = combine(&id, &next.seal_key, q, &shares, key_of).unwrap();
        assert_eq!(open(&signature, b"seat 0", &sealed).unwrap(), b"a bid");
        next
    }
}

/// A seat at work.
struct Running {
    task: JoinHandle<Result<Generated, GenerateError>>,
    progress: watch::Receiver<Progress>,
    stop: oneshot::Sender<()>,
}

impl Running {
    fn start(args: GenerateKeysArgs) -> Self {
        let (tell, progress) = watch::channel(Progress::default());
        let (stop, stopped) = oneshot::channel();
        let stopped = async {
            let _ = stopped.await;
        };
        let task = tokio::spawn(async move { generate(&args, &tell, stopped).await });
        Self { task, progress, stop }
    }

    async fn until(&mut self, what: impl FnMut(&Progress) -> bool) {
        within(self.progress.wait_for(what)).await.expect("the seat ended");
    }

    async fn end(self) -> Result<Generated, GenerateError> {
        // A seat that is stopped by nobody ends by itself.
        let result = within(self.task).await.unwrap();
        drop(self.stop);
        result
    }

    async fn stop(self) -> Result<Generated, GenerateError> {
        let _ = self.stop.send(());
        within(self.task).await.unwrap()
    }
}

/// A seat that is started again, as soon as its port is free: when the old endpoint has said goodbye.
async fn started(args: GenerateKeysArgs, mut what: impl FnMut(&Progress) -> bool) -> Running {
    within(async {
        loop {
            let mut again = Running::start(args.clone());
            if again.progress.wait_for(&mut what).await.is_ok() {
                return again;
            }
            let ended = again.end().await;
            let Err(GenerateError::Net(StartError::Listen { .. })) = ended else {
                panic!("{ended:?}");
            };
        }
    })
    .await
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("nothing happened in time")
}

fn soon() -> u64 {
    now_ms() + SOON_MS
}

#[tokio::test(flavor = "multi_thread")]
async fn four_seats_make_one_key_and_end() {
    let market = Market::new(60);
    let start = soon();
    let seats: Vec<_> = (0..4).map(|seat| Running::start(market.args(seat, start))).collect();
    for seat in seats {
        let made = seat.end().await.unwrap();
        assert_eq!(made.next.epoch, 1);
    }
    market.check(&[0, 1, 2, 3]);
    for seat in 0..4 {
        let mode = fs::metadata(market.file(seat, "keys.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!market.file(seat, "secrets.json").exists(), "the secrets are forgotten");
        assert!(market.markers().is_empty(), "nothing is left beside the keys");
    }
    let again = generate(&market.args(0, start), &watch::channel(Progress::default()).0, async {}).await;
    assert!(matches!(again, Err(GenerateError::Exists(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seat_that_is_absent_is_not_needed() {
    let market = Market::new(40);
    let start = soon();
    let mut seats: Vec<_> = (0..3).map(|seat| Running::start(market.args(seat, start))).collect();
    for seat in &mut seats {
        seat.until(|progress| progress.finished.len() == 3).await;
    }
    // Who has finished goes on from its folder too, for the others.
    assert!(seats.remove(0).stop().await.is_ok());
    seats.push(started(market.args(0, start), |progress| progress.finished.contains(&0)).await);
    for seat in seats {
        // What is stored is good, though they would have stayed for the fourth.
        assert!(seat.stop().await.is_ok());
    }
    market.check(&[0, 1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seat_that_was_stopped_goes_on_from_its_folder() {
    let market = Market::new(60);
    let start = soon();
    let others: Vec<_> = (0..3).map(|seat| Running::start(market.args(seat, start))).collect();
    let mut stopped = Running::start(market.args(3, start));
    stopped.until(|progress| progress.dealt.contains(&3)).await;
    let result = stopped.stop().await;
    assert!(matches!(&result, Err(GenerateError::Stopped(_))), "{result:?}");
    let again = started(market.args(3, start), |progress| progress.finished.contains(&3)).await;
    for seat in others.into_iter().chain([again]) {
        let result = seat.end().await;
        assert!(result.is_ok(), "{result:?}");
    }
    market.check(&[0, 1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seat_that_comes_back_after_all_others_have_finished_gets_its_keys() {
    let market = Market::new(40);
    let start = soon();
    let mut others: Vec<_> = (0..3).map(|seat| Running::start(market.args(seat, start))).collect();
    let mut away = Running::start(market.args(3, start));
    away.until(|progress| progress.announced.contains(&3)).await;
    assert!(matches!(away.stop().await, Err(GenerateError::Stopped(_))));
    for seat in &mut others {
        seat.until(|progress| progress.finished.len() == 3).await;
    }
    let back = started(market.args(3, start), |progress| progress.finished.contains(&3)).await;
    for seat in others.into_iter().chain([back]) {
        let result = seat.end().await;
        assert!(result.is_ok(), "{result:?}");
    }
    market.check(&[0, 1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seat_that_ended_between_record_and_keys_gets_them_from_those_who_stay() {
    let market = Market::new(40);
    let start = soon();
    let mut seats: Vec<_> = (0..3).map(|seat| Running::start(market.args(seat, start))).collect();
    for seat in &mut seats {
        seat.until(|progress| progress.finished.len() == 3).await;
    }
    assert!(seats.remove(0).stop().await.is_ok());
    let record = fs::read(market.file(0, "next-record.json")).unwrap();
    fs::remove_file(market.file(0, "keys.json")).unwrap();
    let again = started(market.args(0, start), |progress| progress.finished.contains(&0)).await;
    for seat in seats.into_iter().chain([again]) {
        assert!(seat.stop().await.is_ok());
    }
    assert_eq!(fs::read(market.file(0, "next-record.json")).unwrap(), record, "it is not written again");
    market.check(&[0, 1, 2]);
}

#[test]
fn who_comes_late_looks_for_others_before_it_gives_up() {
    use super::driver::gives_up_ms;
    // A seat that was there all the time, one that came when it was over, and those that are told to stay for a shorter time.
    assert_eq!(gives_up_ms(100_000, 0, 600_000), 160_000);
    assert_eq!(gives_up_ms(100_000, 150_000, 600_000), 210_000);
    assert_eq!(gives_up_ms(100_000, 150_000, 1_000), 151_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seat_that_is_alone_makes_no_key_and_says_what_to_do() {
    let market = Market::new(1);
    let args = GenerateKeysArgs { stay_seconds: 1, ..market.args(0, now_ms() + 200) };
    let error = Running::start(args).end().await.unwrap_err();
    assert!(matches!(&error, GenerateError::NoKey { .. }), "{error}");
    assert_eq!(error.exit_code(), 3);
    let text = error.to_string();
    assert!(text.contains("bravo, charlie, delta") && text.contains("agree on a new --start"), "{text}");
}

async fn refused(args: GenerateKeysArgs) -> GenerateError {
    Running::start(args).end().await.unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_with_a_reason() {
    let (market, foreign) = (Market::new(100), Market::new(100));
    let later = now_ms() + 3_600_000;
    let args = || market.args(0, later);
    let late = refused(market.args(0, now_ms() - 5_000)).await;
    assert!(matches!(&late, GenerateError::Past { .. }));
    assert!(late.to_string().contains("--start is 5 s ago"), "{late}");
    let wrong = refused(GenerateKeysArgs { keys: foreign.args(0, 0).keys, ..args() }).await.to_string();
    assert!(wrong.contains("does not match the market record"), "{wrong}");
    let home = market.dir.path().join("deal/keys/home.json");
    let home = refused(GenerateKeysArgs { keys: home, ..args() }).await;
    assert!(matches!(home, GenerateError::NoSeat(_)));
    let with = |change: &dyn Fn(&mut Seats)| {
        let mut args = args();
        change(&mut args.seats);
        args
    };
    let unknown = refused(with(&|seats| seats.push(("echo".into(), free_address())))).await;
    assert!(matches!(unknown, GenerateError::UnknownSeat(name) if name == "echo"));
    let twice = refused(with(&|seats| seats.push(("bravo".into(), free_address())))).await;
    assert!(matches!(twice, GenerateError::SeatTwice(name) if name == "bravo"));
    let forgotten = refused(with(&|seats| drop(seats.remove(1)))).await.to_string();
    assert!(forgotten.contains("bravo=MULTIADDR"), "{forgotten}");
    let address = &market.addresses[2];
    let running = refused(with(&|seats| seats[1].1 = address.clone())).await.to_string();
    assert!(running.contains(&format!("--seat bravo={address}")), "{running}");
    assert!(
        running.contains("the running seat of charlie") && running.contains("a port of its own"),
        "{running}"
    );
    let folder = market.dir.path().join("existing");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("keys.json"), "mine").unwrap();
    let existing = refused(GenerateKeysArgs { out: folder.clone(), ..args() }).await;
    assert!(matches!(existing, GenerateError::Exists(_)));
    assert_eq!(fs::read_to_string(folder.join("keys.json")).unwrap(), "mine");
}

/// A running market's process, as far as its links go.
struct Linked {
    net: net::Net,
    metrics: Arc<Metrics>,
}

impl Linked {
    fn start(market: &Market, seat: u16) -> Self {
        let record = market.record();
        let text = fs::read_to_string(market.args(seat, 0).keys).unwrap();
        let keypair = Keys::from_json(&text, &record).unwrap().transport;
        let port = market.addresses[usize::from(seat)].iter().nth(1).unwrap();
        let metrics = Arc::new(Metrics::new().unwrap());
        let net = net::start(NetConfig {
            members: crate::run::members(&record, keypair.public().to_peer_id()).unwrap(),
            keypair,
            own: vec![MemberId::Seat(seat)],
            listen: Multiaddr::from_iter([Protocol::Ip4(Ipv4Addr::UNSPECIFIED), port, Protocol::QuicV1]),
            metrics: metrics.clone(),
        });
        Self { net: net.unwrap(), metrics }
    }

    async fn up(&self, seat: u16) {
        let mut connected = self.net.handle.connected();
        within(connected.wait_for(|up| up.contains(&MemberId::Seat(seat)))).await.unwrap();
    }

    /// Takes so many messages, and no word of a link that broke.
    async fn take(&mut self, count: usize) {
        let mut taken = 0;
        while taken < count {
            match within(self.net.rounds.recv()).await.unwrap() {
                RoundEvent::Message { .. } => taken += 1,
                RoundEvent::Up(_) => {}
                RoundEvent::Down(member) => panic!("{member} is cut off"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_makes_keys_is_refused_by_a_running_seat_and_touches_none_of_its_links() {
    const COUNT: usize = 40;
    let market = Market::new(100);
    let (mut alpha, mut bravo) = (Linked::start(&market, 0), Linked::start(&market, 1));
    alpha.up(1).await;
    bravo.up(0).await;
    // The same machine under an address that is not in the record.
    let mut args = market.args(0, now_ms() + 3_600_000);
    let loopback = Protocol::Ip4(Ipv4Addr::new(127, 0, 0, 2));
    args.seats[1].1 = market.addresses[1].replace(0, |_| Some(loopback)).unwrap();
    let generating = Running::start(args);
    within(async {
        while bravo.metrics.dropped_count("foreign_peer") == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for _ in 0..COUNT {
        alpha.net.handle.send(MemberId::Seat(1), Bytes::from_static(b"to bravo"));
        bravo.net.handle.send(MemberId::Seat(0), Bytes::from_static(b"to alpha"));
    }
    alpha.take(COUNT).await;
    bravo.take(COUNT).await;
    assert!(matches!(generating.stop().await, Err(GenerateError::Stopped(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_belongs_to_one_generation_and_one_process() {
    let market = Market::new(100);
    let later = now_ms() + 3_600_000;
    // The folder is taken before the port is.
    let terms = Terms::new(&market.record(), Purpose::Key, later, LEAST_NOTICE_MS).unwrap();
    let taken = Folder::open(&market.args(0, later).out, marker(&market.args(0, later), &terms, 0)).unwrap();
    assert!(matches!(refused(market.args(0, later)).await, GenerateError::InUse(_)));
    drop(taken);
    let first = generate(&market.args(0, later), &watch::channel(Progress::default()).0, async {}).await;
    assert!(matches!(first, Err(GenerateError::Stopped(_))));
    let mode = fs::metadata(market.file(0, "secrets.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let other = refused(market.args(0, later + 1)).await;
    assert!(matches!(other, GenerateError::OtherGeneration(_)), "{other}");
    fs::remove_file(market.file(0, "secrets.json")).unwrap();
    assert!(matches!(refused(market.args(0, later)).await, GenerateError::NoSecrets(_)));
}

/// How a seat ends that is stopped at once; it is started again while an earlier one still has the port.
async fn stopped(args: GenerateKeysArgs) -> GenerateError {
    within(async {
        loop {
            match generate(&args, &watch::channel(Progress::default()).0, async {}).await.unwrap_err() {
                GenerateError::Net(StartError::Listen { .. }) => tokio::task::yield_now().await,
                ended => return ended,
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_generation_has_one_folder() {
    let market = Market::new(100);
    let later = now_ms() + 3_600_000;
    let elsewhere =
        |start| GenerateKeysArgs { out: market.dir.path().join("second"), ..market.args(0, start) };
    assert!(matches!(stopped(market.args(0, later)).await, GenerateError::Stopped(_)));
    let second = refused(elsewhere(later)).await;
    assert!(matches!(&second, GenerateError::OtherFolder { .. }), "{second}");
    assert!(second.to_string().contains("out/alpha"), "{second}");
    assert!(!elsewhere(later).out.join("secrets.json").exists());
    // The same folder, another seat or another start are no second folder.
    assert!(matches!(stopped(market.args(0, later)).await, GenerateError::Stopped(_)));
    assert!(matches!(stopped(market.args(1, later)).await, GenerateError::Stopped(_)));
    assert!(matches!(stopped(elsewhere(later + 1)).await, GenerateError::Stopped(_)));
    assert_eq!(market.markers().len(), 3);
    let nowhere = Some(market.dir.path().join("none"));
    let unwritten = refused(GenerateKeysArgs { marker_dir: nowhere, ..market.args(2, later) }).await;
    assert!(unwritten.to_string().contains("give --marker-dir"), "{unwritten}");
    assert!(!market.file(2, "secrets.json").exists());
}

#[test]
fn a_record_of_a_later_epoch_beside_the_given_one_is_found() {
    let market = Market::new(100);
    let (args, old) = (market.args(0, 0), market.record());
    assert_eq!(later(&args, &old), []);
    let text = fs::read_to_string(market.dir.path().join("deal/issuer.json")).unwrap();
    let issuer = IssuerFile::read(&text).unwrap();
    let next = generated(&old, (0..4).map(|seat| market.keys(seat)).collect(), 10_000);
    let path = market.record_path().with_file_name("market-1.json");
    fs::write(&path, SignedMarketRecord::sign(next, &issuer).to_json()).unwrap();
    assert_eq!(later(&args, &old), [(path, 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_stored_is_not_said() {
    let market = Market::new(40);
    let start = soon();
    let mut other = Running::start(market.args(1, start));
    let broken = Running::start(market.args(0, start));
    let log = market.file(0, "log");
    // The log is open when its folder for proofs is there; from then on it belongs to somebody else.
    within(async {
        while !log.join("proofs").exists() && !broken.task.is_finished() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    if broken.task.is_finished() {
        panic!("ended before it had a log: {:?}", broken.end().await);
    }
    fs::write(log.join("000000000009-000000000009.log"), "").unwrap();
    let error = broken.end().await.unwrap_err();
    assert!(matches!(error, GenerateError::Log(LogDirError::Fenced { .. })), "{error}");
    other.until(|progress| progress.announced.contains(&1)).await;
    assert!(!other.progress.borrow().announced.contains(&0));
    assert!(matches!(other.stop().await, Err(GenerateError::Stopped(_))));
}
