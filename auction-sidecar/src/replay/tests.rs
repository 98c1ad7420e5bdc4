//! A round of four seats in this process, logged as the engine logs it, and replayed from the files.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use vendue_auction_core::log::read_segment;
use vendue_auction_core::wire::{Kind, peek_kind};
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
    let (mut appender, _) = Appender::open(LogOptions::new(&log), &record, 0, now).unwrap();
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

fn args(market: &Market) -> ReplayArgs {
    ReplayArgs {
        log: market.log.clone(),
        round: None,
        seat: 0,
        market_record: market.record_path.clone(),
        output: ReplayForm::Text,
        export: None,
    }
}

#[test]
fn a_round_is_replayed_from_its_folder_and_from_its_file() {
    let market = market();
    let args = args(&market);
    let exported = market.log.join("round.vlog");
    run(&ReplayArgs { export: Some(exported.clone()), ..args.clone() }).unwrap();
    run(&ReplayArgs { log: exported.clone(), output: ReplayForm::Json, ..args.clone() }).unwrap();

    let report = replayed(&ReplayArgs { log: exported, ..args.clone() }).unwrap();
    report.verdict().unwrap();
    let text = report.to_string();
    for line in [
        "log of seat 0 (alpha) of market test",
        "admitted     alpha, bravo, charlie, delta",
        "final        all seats had the same complete set",
        "+0 ms  sealed its bundle: bids on 1 of 1 listed orders",
        "had all 4 of 4 bundles in time, and votes for them at once",
        "sent its share of the round's key",
        "opened the round: beacon",
        "voted for the awards under root",
        "are certified",
        "of home (job u-1), turn 1",
        "awarded to bravo at 0.90, ceiling 3.00",
        "bravo    bid 0.90; won, is paid 0.90",
        "alpha    bid 1.50; stand-by 1; price is above 0.90",
        "charlie  bid 2.00; stand-by 2; price is above 0.90",
        "delta    not feasible: price",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert_eq!(text, replayed(&args).unwrap().to_string(), "the same from the folder");
    let json = serde_json::json!(report);
    let round = &json["rounds"][0];
    assert_eq!(round["orders"][0]["providers"]["delta"]["why"], "not feasible: price");
    assert_eq!(round["orders"][0]["providers"]["alpha"]["standBy"], 1);
    assert_eq!(round["certifiedBy"].as_array().map(Vec::len), Some(3));
    assert_eq!(round["decisions"].as_array().map(Vec::len), Some(7));

    // Another seat's number, a round that is not there, a seat that is none.
    let failure = |args: ReplayArgs| run(&args).unwrap_err().to_string();
    assert!(failure(ReplayArgs { seat: 1, ..args.clone() }).contains("log of seat 0"));
    assert!(failure(ReplayArgs { round: Some(99), ..args.clone() }).contains("no record of round 99"));
    assert!(failure(ReplayArgs { seat: 9, ..args }).contains("no seat 9; it has 4"));
}

#[test]
fn a_log_with_a_changed_byte_is_named_whether_its_checksum_says_so_or_not() {
    let market = market();
    let args = args(&market);
    let exported = market.log.join("round.vlog");
    run(&ReplayArgs { export: Some(exported.clone()), ..args.clone() }).unwrap();
    let args = ReplayArgs { log: exported.clone(), ..args };
    let whole = std::fs::read(&exported).unwrap();

    let mut bytes = whole.clone();
    bytes[whole.len() / 2] ^= 1;
    std::fs::write(&exported, &bytes).unwrap();
    let error = replayed(&args).unwrap_err().to_string();
    assert!(
        error.contains("round.vlog") && error.contains("at byte") && error.contains("damaged"),
        "{error}"
    );
    // The end may be what a crash left; it is told.
    std::fs::write(&exported, &whole[..whole.len() - 5]).unwrap();
    assert!(replayed(&args).unwrap().to_string().contains("were never durable"));

    // With right checksums: a vote for other awards.
    let record = read_record(&market.record_path);
    std::fs::write(&exported, &whole).unwrap();
    let mut records = read_file(&exported, &record, 0).unwrap().records;
    let round = records.iter().find_map(LogRecord::round).unwrap();
    let award = records.iter_mut().find_map(|r| match r {
        LogRecord::Said { bytes, .. } if peek_kind(bytes) == Some(Kind::Award) => Some(bytes),
        _ => None,
    });
    award.unwrap()[30] ^= 1;
    std::fs::write(&exported, export(&record, 0, &[round].into(), &records)).unwrap();
    let report = replayed(&args).unwrap();
    assert!(report.to_string().contains(&format!("round {round}: DIFFERS: record ")), "{report}");
    let error = run(&args).unwrap_err().to_string();
    assert_eq!(error, format!("the log differs from what follows from it, in round {round}"));
}

#[test]
fn a_round_whose_beginning_was_removed_is_not_held_against_the_seat() {
    let market = market();
    let record = read_record(&market.record_path);
    let found = read_dir(&market.log, &record, 0).unwrap();
    let round = found.records.iter().find_map(LogRecord::round).unwrap();
    // A later segment that begins with the second half of the round.
    let half = found.records[found.records.len() / 2..].to_vec();
    let bytes = export(&record, 0, &[round].into(), &half);
    let first = read_segment(&bytes, &record.market, 0, record.n(), false).unwrap().head.unwrap();
    let head = SegmentHead { number: 3, ..first }.encode();
    let later = [&head, &bytes[head.len()..]].concat();
    let path = market.log.join("later.vlog");
    std::fs::write(&path, later).unwrap();
    let args = ReplayArgs { log: path.clone(), ..args(&market) };
    assert!(replayed(&args).unwrap().to_string().contains("not replayed: the log begins within it"));
    let error = run(&args).unwrap_err().to_string();
    assert_eq!(error, "no round of the log can be replayed; the log begins within it");
    // The same records as the first segment there is: then the seat did not write what it should have.
    std::fs::write(&path, bytes).unwrap();
    assert!(run(&args).unwrap_err().to_string().contains("differs"));
}
