//! Rounds of four seats in this process, logged as the engine logs them, and replayed from the files.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use vendue_auction_core::SignedMarketRecord;
use vendue_auction_core::evidence::EvidenceKey;
use vendue_auction_core::keygen::next_record;
use vendue_auction_core::log::read_segment;
use vendue_auction_core::wire::{Kind, peek_kind};
use vendue_auction_core::{
    Home, HomeInput, HomeOutput, NewOrder, Peer, Seat, SeatCrypto, SeatInput, SeatKeys, SeatOutput,
};
use vendue_market::{AcceptRules, BidTerms, NodeCapacity, Offer, OfferNode, Requirements};

use super::*;
use crate::deal::{self, DealOptions};
use crate::keys::{IssuerFile, Keys};
use crate::log::{Appender, LogOptions};
use crate::next_epoch::tests::{generate, terms};

const NAMES: [&str; 4] = ["alpha", "bravo", "charlie", "delta"];

struct Market {
    dir: tempfile::TempDir,
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
        nodes: vec![OfferNode::of("n1", capacity)],
        rules: AcceptRules::any(),
        terms: BidTerms::default(),
    };
    SeatInput::Offers { offers: vec![offer], models: vec![] }
}

fn order(job: &str, now: u64) -> NewOrder {
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
        job: job.into(),
        attempt: 1,
        requirements,
        commitment: [7; 32],
        expires_ms: now + 600_000,
    }
}

/// The seats and the home at work.
struct Play {
    record: Arc<MarketRecord>,
    out: PathBuf,
    seats: Vec<Seat<SeatCrypto>>,
    home: Home,
    log: Appender,
    inputs: VecDeque<(u16, SeatInput)>,
    decided: usize,
    now: u64,
}

impl Play {
    fn new(dir: &Path) -> Self {
        let out = dir.join("deal");
        let address = |port: u16| format!("/ip4/127.0.0.1/udp/{port}/quic-v1").parse().unwrap();
        let record_path = deal::run(&DealOptions {
            regions: vec![],
            market: "test".into(),
            seats: NAMES.iter().zip(4000..).map(|(n, port)| ((*n).to_owned(), address(port))).collect(),
            homes: vec!["home".into()],
            delay_ms: 100,
            period_ms: 600,
            handover_ms: 5000,
            out: out.clone(),
        });
        let record = read_record(&record_path.unwrap());
        let now = record.params.genesis_ms;
        let seat = |i: u16| {
            let keys = keys(&out, NAMES[usize::from(i)], &record).seat.unwrap();
            Seat::fresh(record.clone(), i, SeatCrypto::new(record.clone(), keys), now)
        };
        let mut seats: Vec<_> = (0..4).map(seat).collect();
        seats[0].log_received(true);
        let (index, user) = keys(&out, "home", &record).home.unwrap();
        let (log, _) = Appender::open(LogOptions::new(dir.join("log")), &record, 0, now).unwrap();
        let inputs =
            (0u16..).zip(["1.50", "0.90", "2.00", "4.00"]).map(|(i, price)| (i, offers(price))).collect();
        Self {
            home: Home::new(record.clone(), index, user),
            record,
            out,
            seats,
            log,
            inputs,
            decided: 0,
            now,
        }
    }

    fn submit(&mut self, job: &str) {
        for output in self.home.handle(self.now, HomeInput::Submit(Box::new(order(job, self.now)))) {
            if let HomeOutput::Broadcast(bytes) = output {
                let message = |i| (i, SeatInput::Message { from: Peer::Home(0), bytes: bytes.clone() });
                self.inputs.extend((0..4).map(message));
            }
        }
    }

    fn carry_out(&mut self, seat: u16, outputs: Vec<SeatOutput>) {
        let mut records = vec![];
        let message = |bytes| SeatInput::Message { from: Peer::Seat(seat), bytes };
        for output in outputs {
            match output {
                SeatOutput::Persist(record) => records.push(*record),
                SeatOutput::Broadcast(bytes) => {
                    let others = (0..4).filter(|other| *other != seat);
                    self.inputs.extend(others.map(|i| (i, message(bytes.clone()))));
                }
                SeatOutput::Send { to: Peer::Seat(other), bytes } => {
                    self.inputs.push_back((other, message(bytes)));
                }
                SeatOutput::Decided(_) => self.decided += 1,
                _ => {}
            }
        }
        if seat == 0 && !records.is_empty() {
            self.log.append(&records, self.now).unwrap();
        }
    }

    /// Runs until so many times a seat had a certified round.
    fn until(&mut self, decided: usize) {
        while self.decided < decided {
            while let Some((to, input)) = self.inputs.pop_front() {
                let outputs = self.seats[usize::from(to)].handle(self.now, input);
                self.carry_out(to, outputs);
            }
            self.now = self.seats.iter().filter_map(Seat::next_wake).min().unwrap().max(self.now + 1);
            self.inputs.extend((0..4).map(|i| (i, SeatInput::Tick)));
        }
    }

    /// The seats make the keys of the next epoch, take its record, and it begins. Gives the signed record.
    fn change_epoch(&mut self) -> SignedMarketRecord {
        let (old, out) = (self.record.clone(), self.out.clone());
        let stored = |seat: u16| keys(&out, NAMES[usize::from(seat)], &old).seat.unwrap();
        let mut made = generate(&old, &terms(&old), (0..4).map(stored).collect());
        let first = &made[&0];
        let next = next_record(&old, &terms(&old), first.set, &first.outcome.keys, &first.certificate);
        let next = Arc::new(next.unwrap());
        for seat in 0..4 {
            let keys = SeatKeys { share: made.remove(&seat).unwrap().share.unwrap(), ..stored(seat) };
            let crypto = Arc::new(SeatCrypto::new(next.clone(), keys));
            let taken = self.seats[usize::from(seat)].take_next(self.now, next.clone(), crypto).unwrap();
            self.carry_out(seat, taken);
        }
        self.home.take_next(self.now, next.clone()).unwrap();
        self.now = next.params.t0(next.generation.as_ref().unwrap().first_round);
        let issuer = IssuerFile::read(&std::fs::read_to_string(self.out.join("issuer.json")).unwrap());
        SignedMarketRecord::sign((*next).clone(), &issuer.unwrap())
    }
}

fn keys(out: &Path, name: &str, record: &MarketRecord) -> Keys {
    let text = std::fs::read_to_string(out.join(format!("keys/{name}.json"))).unwrap();
    Keys::from_json(&text, record).unwrap()
}

/// Runs until a round is certified everywhere; writes the log of seat 0.
fn market() -> Market {
    let dir = tempfile::tempdir().unwrap();
    let mut play = Play::new(dir.path());
    play.submit("u-1");
    play.until(4);
    Market { record_path: play.out.join("market.json"), log: dir.path().join("log"), dir }
}

/// The same, and another round in the next epoch. Gives its record too.
fn market_of_two_epochs() -> (Market, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let mut play = Play::new(dir.path());
    play.submit("u-1");
    play.until(4);
    let next = play.change_epoch();
    play.submit("u-2");
    play.until(8);
    let path = dir.path().join("market-1.json");
    std::fs::write(&path, next.to_json()).unwrap();
    (Market { record_path: play.out.join("market.json"), log: dir.path().join("log"), dir }, path)
}

fn read_record(path: &Path) -> Arc<MarketRecord> {
    Arc::new(SignedMarketRecord::from_json(&std::fs::read_to_string(path).unwrap()).unwrap().record)
}

fn args(market: &Market) -> ReplayArgs {
    ReplayArgs {
        log: market.log.clone(),
        round: None,
        seat: 0,
        market_record: vec![market.record_path.clone()],
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
fn a_log_of_two_epochs_is_replayed_with_the_record_of_each_round() {
    let (market, next) = market_of_two_epochs();
    let args = args(&market);
    let with = |records: &[&PathBuf]| ReplayArgs {
        market_record: records.iter().map(|path| (*path).clone()).collect(),
        ..args.clone()
    };
    for both in [[&market.record_path, &next], [&next, &market.record_path]] {
        let report = replayed(&with(&both)).unwrap();
        report.verdict().unwrap();
        let text = report.to_string();
        assert!(
            text.contains("(job u-1)") && text.contains("(job u-2)") && !text.contains("not replayed"),
            "{text}"
        );
        assert!(text.contains("of epoch 0, from") && text.contains("of epoch 1, from"), "{text}");
    }
    // With one record the rounds of the other epoch are left out; nothing is held against the seat.
    for (record, has, lacks, other) in [(&market.record_path, "u-1", "u-2", 1), (&next, "u-2", "u-1", 0)] {
        let args = with(&[record]);
        run(&args).unwrap();
        let report = replayed(&args).unwrap();
        let text = report.to_string();
        assert!(text.contains(has) && !text.contains(lacks), "{text}");
        assert!(text.contains(&format!("it is of epoch {other}; give the record of that epoch")), "{text}");
        let last = text.lines().last().unwrap();
        assert_eq!(last, format!("rounds not replayed for want of the market record of epoch {other}: 1"));
        assert_eq!(serde_json::json!(report)["epochsWithoutRecord"], serde_json::json!([other]));
    }
    let alone = replayed(&with(&[&next])).unwrap().rounds[0].round;
    let error = run(&ReplayArgs { round: Some(alone), ..with(&[&next]) }).unwrap_err().to_string();
    assert!(error.contains("no round of the log can be replayed; it is of epoch 0"), "{error}");
}

#[test]
fn records_that_do_not_belong_together_are_refused() {
    let (one, other) = (market(), market());
    let issuer = EvidenceKey::from_bytes(&[7; 32]).unwrap();
    let refused = |path: &Path| {
        let market_record = vec![one.record_path.clone(), path.to_owned()];
        run(&ReplayArgs { market_record, ..args(&one) }).unwrap_err().to_string()
    };
    assert!(refused(&other.record_path).contains("another market or issuer"));
    let path = one.dir.path().join("other.json");
    let mut record = (*read_record(&one.record_path)).clone();
    std::fs::write(&path, SignedMarketRecord::sign(record.clone(), &issuer).to_json()).unwrap();
    assert!(refused(&path).contains("another market or issuer"));
    record.name = "renamed".into();
    let text = std::fs::read_to_string(one.record_path.with_file_name("issuer.json")).unwrap();
    let issuer = IssuerFile::read(&text).unwrap();
    std::fs::write(&path, SignedMarketRecord::sign(record, &issuer).to_json()).unwrap();
    assert!(refused(&path).contains("a second record of epoch 0"));
    let none = ReplayArgs { market_record: vec![], ..args(&one) };
    assert!(matches!(run(&none), Err(ReplayFailure::NoRecord)));
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
