//! A round of four seats in this process, logged as the engine logs it, and replayed from the files.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use vendue_auction_core::{
    Home, HomeInput, HomeOutput, NewOrder, Peer, Seat, SeatCrypto, SeatInput, SeatOutput,
};
use vendue_market::{AcceptRules, BidTerms, NodeCapacity, Offer, OfferNode, Requirements};

use super::*;
use crate::deal::{self, DealOptions};
use crate::keys::Keys;
use crate::log::{Appender, LogOptions};

struct Market {
    _dir: tempfile::TempDir,
    record_path: PathBuf,
    log: PathBuf,
}

fn offers(price: &str) -> SeatInput {
    let capacity = NodeCapacity {
        model: "H100".parse().unwrap(),
        gpu_memory_mib: 81_920,
        free_gpus: 8,
        cpu_millis: 64_000,
        memory_mib: 64_000,
        disk_mib: 64_000,
    };
    let offer = Offer {
        name: "default/p".into(),
        price: price.parse().unwrap(),
        nodes: vec![OfferNode { name: "n1".into(), capacity }],
        rules: AcceptRules::any(),
        terms: BidTerms::default(),
    };
    SeatInput::Offers { offers: vec![offer], models: vec![] }
}

fn order(now: u64) -> NewOrder {
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
        expires_ms: now + 600_000,
    }
}

/// Runs until a round is certified everywhere; writes the log of seat 0.
fn market() -> Market {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("deal");
    let names = ["alpha", "bravo", "charlie", "delta"];
    let address = |port: u16| format!("/ip4/127.0.0.1/udp/{port}/quic-v1").parse().unwrap();
    let record_path = deal::run(&DealOptions {
        regions: vec![],
        market: "test".into(),
        seats: names.iter().zip(4000..).map(|(n, port)| ((*n).to_owned(), address(port))).collect(),
        homes: vec!["home".into()],
        delay_ms: 100,
        period_ms: 600,
        handover_ms: 5000,
        out: out.clone(),
    })
    .unwrap();
    let record = read_record(&record_path);
    let keys = |name: &str| {
        Keys::from_json(&std::fs::read_to_string(out.join(format!("keys/{name}.json"))).unwrap(), &record)
            .unwrap()
    };
    let crypto = |name| SeatCrypto::new(record.clone(), keys(name).seat.unwrap());
    let mut now = record.params.genesis_ms;
    let mut seats: Vec<_> =
        (0u16..).zip(names).map(|(i, name)| Seat::fresh(record.clone(), i, crypto(name), now)).collect();
    let (index, user) = keys("home").home.unwrap();
    let mut home = Home::new(record.clone(), index, user);
    let log = dir.path().join("log");
    let (mut appender, _) = Appender::open(LogOptions::new(&log), &record, 0).unwrap();
    seats[0].log_received(true);
    let mut inputs: VecDeque<(u16, SeatInput)> =
        (0u16..).zip(["1.50", "0.90", "2.00", "4.00"]).map(|(i, price)| (i, offers(price))).collect();
    for output in home.handle(now, HomeInput::Submit(Box::new(order(now)))) {
        if let HomeOutput::Broadcast(bytes) = output {
            let to_all =
                (0..4).map(|i| (i, SeatInput::Message { from: Peer::Home(0), bytes: bytes.clone() }));
            inputs.extend(to_all);
        }
    }
    let mut decided = 0;
    while decided < 4 {
        while let Some((to, input)) = inputs.pop_front() {
            let outputs = seats[usize::from(to)].handle(now, input);
            let mut records = vec![];
            for output in outputs {
                match output {
                    SeatOutput::Persist(record) => records.push(*record),
                    SeatOutput::Broadcast(bytes) => {
                        let others = (0..4).filter(|other| *other != to);
                        let from = Peer::Seat(to);
                        inputs.extend(others.map(|i| (i, SeatInput::Message { from, bytes: bytes.clone() })));
                    }
                    SeatOutput::Send { to: Peer::Seat(other), bytes } => {
                        inputs.push_back((other, SeatInput::Message { from: Peer::Seat(to), bytes }));
                    }
                    SeatOutput::Decided(_) => decided += 1,
                    _ => {}
                }
            }
            if to == 0 && !records.is_empty() {
                appender.append(&records, now).unwrap();
            }
        }
        now = seats.iter().filter_map(Seat::next_wake).min().unwrap().max(now + 1);
        inputs.extend((0..4).map(|i| (i, SeatInput::Tick)));
    }
    Market { _dir: dir, record_path, log }
}

fn read_record(path: &Path) -> Arc<MarketRecord> {
    Arc::new(SignedMarketRecord::from_json(&std::fs::read_to_string(path).unwrap()).unwrap().record)
}

#[test]
fn a_round_is_replayed_from_its_folder_and_from_its_file() {
    let market = market();
    let record = read_record(&market.record_path);
    let exported = market.log.join("round.vlog");
    let args = ReplayArgs {
        log: market.log.clone(),
        round: None,
        seat: 0,
        market_record: market.record_path.clone(),
        output: ReplayForm::Text,
        export: Some(exported.clone()),
    };
    run(&args).unwrap();
    run(&ReplayArgs { log: exported.clone(), export: None, output: ReplayForm::Json, ..args.clone() })
        .unwrap();

    let records = read_file(&exported, &record, 0).unwrap().records;
    let replayed = replay(&record, 0, last_certified(&records).unwrap(), &records).unwrap();
    let text = print_as(ReplayForm::Text, &record, &replayed);
    for line in [
        "awarded to bravo at 0.9",
        "bravo: won: the cheapest that serves it",
        "alpha: stand-by 1 at 1.5",
        "charlie: stand-by 2 at 2",
        "delta: price",
        "of home (job u-1)",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&print_as(ReplayForm::Json, &record, &replayed)).unwrap();
    assert_eq!(json["orders"][0]["providers"]["delta"], "price");
    assert_eq!(json["awardRoot"], hex::encode(replayed.root.unwrap()));
    assert_eq!(json["certifiedBy"].as_array().map(Vec::len), Some(3));

    // Another seat's number, a round that is not there, a seat that is none.
    let failure = |args: ReplayArgs| run(&args).unwrap_err().to_string();
    assert!(failure(ReplayArgs { seat: 1, ..args.clone() }).contains("log of seat 0"));
    assert!(failure(ReplayArgs { round: Some(99), ..args.clone() }).contains("no record of round 99"));
    assert!(failure(ReplayArgs { seat: 9, ..args }).contains("no seat 9; it has 4"));
}
