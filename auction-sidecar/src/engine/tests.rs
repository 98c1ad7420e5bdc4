//! Four seats and a home with dealt keys over real QUIC on 127.0.0.1; the test plays the bridges.

use std::path::Path;

use vendue_auction_core::{NewOrder, SignedMarketRecord};
use vendue_market::{AcceptRules, GpuModel, NodeCapacity, Offer, OfferNode, Requirements};

use super::*;
use crate::deal::{self, DealOptions};
use crate::keys::Keys;
use crate::log::{Appender, LogOptions};
use crate::net::{self, NetConfig};
use crate::testing::free_address;

const DEADLINE: Duration = Duration::from_secs(60);

struct Process {
    commands: mpsc::Sender<EngineCommand>,
    events: mpsc::Receiver<EngineEvent>,
    metrics: Arc<Metrics>,
    address: libp2p::Multiaddr,
}

/// Every seat waits for a log of its own.
fn log(dir: &Path, record: &MarketRecord, seat: Option<u16>, metrics: &Arc<Metrics>) -> Gate {
    let Some(seat) = seat else { return Gate::default() };
    let options = LogOptions::new(dir.join(format!("log-{seat}")));
    Gate::new(Appender::open(options, record, seat, now_ms()).unwrap().0, metrics.clone()).unwrap()
}

fn start(dir: &Path, record: &Arc<MarketRecord>, name: &str, address: &libp2p::Multiaddr) -> Process {
    let text = std::fs::read_to_string(dir.join(format!("keys/{name}.json"))).unwrap();
    let keys = Keys::from_json(&text, record).unwrap();
    let metrics = Arc::new(Metrics::new().unwrap());
    let own = keys.transport.public().to_peer_id();
    let net = net::start(NetConfig {
        keypair: keys.transport.clone(),
        members: crate::run::members(record, own).unwrap(),
        own: vec![],
        listen: address.clone(),
        metrics: metrics.clone(),
    })
    .unwrap();
    let own_seat = keys.seat.as_ref().map(|k| k.seat);
    let seat =
        keys.seat.map(|k| (k.seat, Seat::new(record.clone(), k.seat, SeatCrypto::new(record.clone(), k), 0)));
    let home = keys.home.map(|(index, k)| (index, Home::new(record.clone(), index, k)));
    let config = EngineConfig {
        record: record.clone(),
        seat,
        home,
        net: net.handle,
        metrics: metrics.clone(),
        ready: Readiness::default(),
        gate: log(dir, record, own_seat, &metrics),
        proofs: ProofKeeper::start(None, vec![record.clone()], metrics.clone()).unwrap(),
    };
    let ((commands, commands_rx), (events_tx, events)) = (mpsc::channel(64), mpsc::channel(256));
    tokio::spawn(Engine::new(config, events_tx).run(net.rounds, commands_rx));
    Process { commands, events, metrics, address: address.clone() }
}

fn offers(model: &str, gpus: u32, price: &str) -> SeatInput {
    let capacity = NodeCapacity {
        model: model.parse().unwrap(),
        gpu_memory_mib: 81_920,
        free_gpus: gpus,
        cpu_millis: 64_000,
        memory_mib: 65_536,
        disk_mib: 65_536,
    };
    let offer = Offer {
        name: "default/p".into(),
        price: price.parse().unwrap(),
        nodes: vec![OfferNode::of("n1", capacity)],
        rules: AcceptRules::any(),
        terms: vendue_market::BidTerms::default(),
    };
    let models: Vec<GpuModel> = vec![model.parse().unwrap()];
    SeatInput::Offers { offers: vec![offer], models }
}

fn order() -> NewOrder {
    let requirements = Requirements {
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
    };
    NewOrder {
        terms: Box::default(),
        job: "u-1".into(),
        attempt: 1,
        requirements,
        commitment: [7; 32],
        expires_ms: now_ms() + 600_000,
    }
}

async fn home_event<T>(process: &mut Process, pick: impl Fn(HomeOutput) -> Option<T>) -> T {
    let wait = async {
        loop {
            if let EngineEvent::Home(event) = process.events.recv().await.unwrap()
                && let Some(found) = pick(*event)
            {
                return found;
            }
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.expect("the home said nothing in time")
}

async fn seat_event<T>(process: &mut Process, pick: impl Fn(SeatOutput) -> Option<T>) -> T {
    let wait = async {
        loop {
            if let EngineEvent::Seat(event) = process.events.recv().await.unwrap()
                && let Some(found) = pick(event)
            {
                return found;
            }
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.expect("the seat said nothing in time")
}

struct Market {
    _dir: tempfile::TempDir,
    seats: Vec<Process>,
    home: Process,
}

/// A market whose seats are not observers any more, since they claim to have started long ago.
async fn market() -> Market {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("deal");
    let names = ["alpha", "bravo", "charlie", "delta"];
    let addresses: Vec<_> = names.iter().map(|_| free_address()).collect();
    let record = deal::run(&DealOptions {
        regions: vec![],
        market: "test".into(),
        seats: names.iter().map(|n| (*n).to_owned()).zip(addresses.iter().cloned()).collect(),
        homes: vec!["home".into()],
        delay_ms: 250,
        period_ms: 1500,
        handover_ms: 5000,
        out: out.clone(),
    })
    .unwrap();
    let record = SignedMarketRecord::from_json(&std::fs::read_to_string(record).unwrap()).unwrap().record;
    let record = Arc::new(record);
    let seats =
        names.iter().zip(&addresses).map(|(name, address)| start(&out, &record, name, address)).collect();
    let home = start(&out, &record, "home", &free_address());
    Market { _dir: dir, seats, home }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_order_is_awarded_reserved_chosen_and_handed_over() {
    let mut market = market().await;
    let goods = [("L40S", 2, "1.10"), ("A100", 4, "1.80"), ("H100", 1, "0.90"), ("H100", 8, "2.50")];
    for (seat, (model, gpus, price)) in market.seats.iter().zip(goods) {
        seat.commands.send(EngineCommand::Seat(offers(model, gpus, price))).await.unwrap();
        assert_ne!(seat.address, market.home.address);
    }
    let submit = HomeInput::Submit(Box::new(order()));
    market.home.commands.send(EngineCommand::Home(Box::new(submit))).await.unwrap();
    let digest = home_event(&mut market.home, |e| match e {
        HomeOutput::Ordered { digest, .. } => Some(digest),
        _ => None,
    })
    .await;
    // Charlie is the cheapest and has too few GPUs: alpha wins.
    let winner = home_event(&mut market.home, |e| match e {
        HomeOutput::Reserving { seat, rank: 0, .. } => Some(seat),
        _ => None,
    })
    .await;
    assert_eq!(winner, 0);
    assert!(
        market.seats[0].metrics.shares_sent.get() > 0,
        "the round was opened with its share among others"
    );
    assert_eq!(market.home.metrics.shares_sent.get(), 0);
    let hold = seat_event(&mut market.seats[0], |e| match e {
        SeatOutput::Hold(request) => Some(request),
        _ => None,
    })
    .await;
    assert_eq!((hold.order.digest(), hold.price.to_string().as_str(), hold.rank), (digest, "1.10", 0));
    let held = SeatInput::Reserved { order: digest, round: hold.certificate.round, result: Ok(()) };
    market.seats[0].commands.send(EngineCommand::Seat(held)).await.unwrap();
    let choice = home_event(&mut market.home, |e| match e {
        HomeOutput::Choose(choice) => Some(choice),
        _ => None,
    })
    .await;
    assert_eq!((choice.seat, choice.order), (0, digest));
    market
        .home
        .commands
        .send(EngineCommand::Home(Box::new(HomeInput::Stored { order: digest })))
        .await
        .unwrap();
    let to = home_event(&mut market.home, |e| match e {
        HomeOutput::HandOver { seat, .. } => Some(seat),
        _ => None,
    })
    .await;
    assert_eq!(to, 0);
    let taken = seat_event(&mut market.seats[0], |e| match e {
        SeatOutput::Taken { order, home } => Some((order, home)),
        _ => None,
    })
    .await;
    assert_eq!(taken, (digest, 0));
    assert!(
        market.seats[0]
            .metrics
            .render()
            .unwrap()
            .contains("vendue_auction_rounds_total{result=\"certified\"} 1")
    );
}

struct Alone {
    dir: tempfile::TempDir,
    record: Arc<MarketRecord>,
    metrics: Arc<Metrics>,
}

impl Alone {
    /// The first of four seats, whose network nobody answers.
    fn new() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let options = DealOptions {
            regions: vec![],
            market: "test".into(),
            seats: ["a", "b", "c", "d"].iter().map(|n| ((*n).to_owned(), free_address())).collect(),
            homes: vec![],
            delay_ms: 250,
            period_ms: 1500,
            handover_ms: 5000,
            out: dir.path().join("deal"),
        };
        let record = std::fs::read_to_string(deal::run(&options).unwrap()).unwrap();
        let record = Arc::new(SignedMarketRecord::from_json(&record).unwrap().record);
        Self { dir, record, metrics: Arc::new(Metrics::new().unwrap()) }
    }

    /// What the engine is made of, with its network's messages.
    fn config(&self, gate: Gate) -> (EngineConfig, net::Net) {
        let text = std::fs::read_to_string(self.dir.path().join("deal/keys/a.json")).unwrap();
        let keys = Keys::from_json(&text, &self.record).unwrap();
        let (record, metrics) = (self.record.clone(), self.metrics.clone());
        let net = net::start(NetConfig {
            keypair: keys.transport.clone(),
            members: crate::run::members(&record, keys.transport.public().to_peer_id()).unwrap(),
            own: vec![],
            listen: free_address(),
            metrics: metrics.clone(),
        })
        .unwrap();
        let crypto = SeatCrypto::new(record.clone(), keys.seat.unwrap());
        let config = EngineConfig {
            seat: Some((0, Seat::new(record.clone(), 0, crypto, 0))),
            home: None,
            net: net.handle.clone(),
            metrics: metrics.clone(),
            ready: Readiness::default(),
            gate,
            proofs: ProofKeeper::start(None, vec![record.clone()], metrics).unwrap(),
            record,
        };
        (config, net)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_whose_log_fails_ends_with_the_reason() {
    let alone = Alone::new();
    let folder = alone.dir.path().join("log");
    let options = LogOptions { segment_bytes: 1, ..LogOptions::new(&folder) };
    let (log, _) = Appender::open(options, &alone.record, 0, now_ms()).unwrap();
    // The next segment cannot be made.
    std::fs::create_dir(folder.join("000000000001-000000000001.log")).unwrap();
    let (config, net) = alone.config(Gate::new(log, alone.metrics.clone()).unwrap());
    let ((commands, commands_rx), (events_tx, _events)) = (mpsc::channel(64), mpsc::channel(256));
    commands.send(EngineCommand::Seat(SeatInput::Tick)).await.unwrap();
    let engine = Engine::new(config, events_tx).run(net.rounds, commands_rx);
    let error = tokio::time::timeout(DEADLINE, engine).await.expect("the engine goes on without its log");
    let text = error.to_string();
    assert!(matches!(error, EngineError::Log(_)) && text.contains("000000000001-000000000001.log"), "{text}");
    assert_eq!(alone.metrics.seat_active.get(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_wait_in_the_network_while_too_much_waits_for_the_disk() {
    let alone = Alone::new();
    let (mut gate, disk) = Gate::before_test_disk(alone.record.params, alone.metrics.clone());
    gate.fill();
    let (config, _net) = alone.config(gate);
    let (rounds, rounds_rx) = mpsc::channel(1);
    let ((commands, commands_rx), (events_tx, _events)) = (mpsc::channel(1), mpsc::channel(256));
    let message = RoundEvent::Message { from: MemberId::Seat(1), bytes: Bytes::from_static(b"junk") };
    rounds.send(message).await.unwrap();
    let engine = tokio::spawn(Engine::new(config, events_tx).run(rounds_rx, commands_rx));
    for _ in 0..20 {
        commands.send(EngineCommand::Seat(SeatInput::Tick)).await.unwrap();
    }
    assert_eq!(rounds.capacity(), 0, "the message is not taken");
    disk.sync(u64::MAX);
    let taken = tokio::time::timeout(DEADLINE, rounds.reserve()).await;
    drop(taken.expect("the message is never taken").unwrap());
    while alone.metrics.dropped_count("malformed") == 0 {
        tokio::task::yield_now().await;
    }
    engine.abort();
}
