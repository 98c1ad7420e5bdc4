//! The log on a real disk, whole, torn, damaged, full and fenced.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use vendue_auction_core::evidence::message_hash;
use vendue_auction_core::log::LogRecord;
use vendue_auction_core::proof::{Double, FaultProof, Signed};
use vendue_auction_core::wire::{Body, Header, Kind, Message, SetMsg};
use vendue_auction_core::{MarketRecord, SeatOutput, SignedMarketRecord};

use super::files::segments;
use super::*;
use crate::deal::{self, DealOptions};
use crate::metrics::Metrics;

fn record(dir: &Path) -> MarketRecord {
    let address = |port: u16| format!("/ip4/127.0.0.1/udp/{port}/quic-v1").parse().unwrap();
    let path = deal::run(&DealOptions {
        regions: vec![],
        market: "test".into(),
        seats: (0..4u16).map(|i| (format!("p{i}"), address(4000 + i))).collect(),
        homes: vec!["home".into()],
        delay_ms: 100,
        period_ms: 600,
        handover_ms: 5000,
        out: dir.join("deal"),
    })
    .unwrap();
    SignedMarketRecord::from_json(&std::fs::read_to_string(path).unwrap()).unwrap().record
}

struct Rig {
    dir: tempfile::TempDir,
    record: MarketRecord,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let record = record(dir.path());
        Self { dir, record }
    }

    fn options(&self) -> LogOptions {
        LogOptions::new(self.dir.path().join("log"))
    }

    fn open(&self, options: LogOptions) -> Result<(Appender, Vec<LogRecord>), LogDirError> {
        Appender::open(options, &self.record, 1).map(|(log, found)| (log, found.records))
    }

    fn files(&self) -> Vec<std::path::PathBuf> {
        segments(&self.options().dir).unwrap().into_iter().map(|s| s.path).collect()
    }
}

fn observe(at_ms: u64) -> LogRecord {
    LogRecord::Observe { at_ms, until_ms: at_ms }
}

fn promise(until_ms: u64) -> LogRecord {
    LogRecord::Promise { order: [1; 32], home: 0, round: 1, until_ms, usage: vec![] }
}

#[test]
fn what_was_appended_is_there_for_the_next_process() {
    let rig = Rig::new();
    let (mut log, found) = rig.open(rig.options()).unwrap();
    assert_eq!((found, log.generation()), (vec![], 1));
    log.append(&[observe(1), promise(50)], 1).unwrap();
    log.append(&[promise(60)], 2).unwrap();
    assert!(matches!(rig.open(rig.options()), Err(LogDirError::InUse(_))), "two processes of one seat");
    drop(log);
    let (log, found) = rig.open(rig.options()).unwrap();
    assert_eq!((found, log.generation()), (vec![observe(1), promise(50), promise(60)], 2));
}

#[test]
fn a_torn_tail_is_cut_and_damage_in_the_middle_is_refused_with_file_place_and_next_step() {
    let rig = Rig::new();
    let (mut log, _) = rig.open(rig.options()).unwrap();
    log.append(&[observe(1)], 1).unwrap();
    log.append(&[promise(50)], 2).unwrap();
    drop(log);
    let file = rig.files().pop().unwrap();
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() - 3]).unwrap();
    let (mut log, found) = rig.open(rig.options()).unwrap();
    assert_eq!(found, [observe(1)]);
    log.append(&[promise(70)], 3).unwrap();
    drop(log);
    // The segments after the torn one do not make damage of it.
    assert_eq!(rig.open(rig.options()).unwrap().1, [observe(1), promise(70)]);

    let mut bad = whole;
    bad[90] ^= 1;
    std::fs::write(&file, &bad).unwrap();
    let before = rig.files();
    let error = rig.open(rig.options()).map(drop).unwrap_err().to_string();
    assert_eq!(rig.files(), before);
    let name = file.file_name().unwrap().to_str().unwrap();
    assert!(error.contains(name) && error.contains("at byte 63") && error.contains("empty one"), "{error}");
}

#[test]
fn a_crash_of_the_same_generation_leaves_no_tail_behind() {
    let rig = Rig::new();
    let options = || LogOptions { generation: Some(7), ..rig.options() };
    for torn in [3, 1_000] {
        let (mut log, _) = rig.open(options()).unwrap();
        log.append(&[observe(1)], 1).unwrap();
        drop(log);
        let file = rig.files().pop().unwrap();
        let whole = std::fs::read(&file).unwrap();
        std::fs::write(&file, &whole[..whole.len().saturating_sub(torn)]).unwrap();
        let (mut log, _) = rig.open(options()).unwrap();
        log.append(&[observe(2)], 2).unwrap();
        drop(log);
        assert_eq!(rig.open(options()).unwrap().1.last(), Some(&observe(2)));
    }
}

#[test]
fn who_has_a_lower_generation_neither_opens_nor_appends() {
    let rig = Rig::new();
    let with = |generation| LogOptions { generation: Some(generation), ..rig.options() };
    let (mut old, _) = rig.open(with(4)).unwrap();
    old.append(&[observe(1)], 1).unwrap();
    // The seat moves on while the old process lives, on another machine, where the lock does not hold it back.
    let path = rig.options().dir.join("000000000001-000000000005.log");
    std::fs::write(&path, b"").unwrap();
    let fenced = old.append(&[promise(9)], 2).unwrap_err();
    assert!(matches!(fenced, LogDirError::Fenced { ours: 4, found: 5, .. }));
    assert!(matches!(old.append(&[promise(9)], 3), Err(LogDirError::Broken(_))), "it never writes again");
    drop(old);
    assert!(matches!(rig.open(with(4)).map(drop), Err(LogDirError::Fenced { ours: 4, found: 5, .. })));
    assert!(rig.open(with(5)).is_ok());
}

#[test]
fn segments_go_when_nothing_in_them_matters_and_the_log_still_shows_that_it_is_one() {
    let rig = Rig::new();
    let options = || LogOptions { segment_bytes: 200, ..rig.options() };
    let (mut log, _) = rig.open(options()).unwrap();
    log.append(&[observe(1), promise(1_000)], 1).unwrap();
    for at in 2..100 {
        log.append(&[promise(at)], at).unwrap();
    }
    assert!(rig.files().len() > 10, "the first segment holds what matters until 1000");
    log.append(&[promise(0)], 1_001).unwrap();
    assert!(rig.files().len() <= 2, "{:?}", rig.files());
    drop(log);
    let (_log, found) = rig.open(options()).unwrap();
    assert!(found.contains(&observe(1)), "{found:?}");
}

#[test]
fn rounds_that_are_over_stay_as_long_and_as_many_as_asked_for() {
    let rig = Rig::new();
    let options = |max_bytes| LogOptions {
        segment_bytes: 200,
        retain: Duration::from_millis(500),
        max_bytes,
        ..rig.options()
    };
    let (mut log, _) = rig.open(options(1 << 20)).unwrap();
    log.append(&[observe(1)], 1).unwrap();
    for at in 2..50 {
        log.append(&[promise(at)], at).unwrap();
    }
    let kept = rig.files().len();
    assert!(kept > 10);
    drop(log);
    let (mut log, _) = rig.open(options(2_000)).unwrap();
    log.append(&[observe(60)], 60).unwrap();
    assert!(rig.files().len() < kept && log.bytes() <= 2_000);
    log.append(&[promise(0)], 600).unwrap();
    assert!(rig.files().len() <= 2);
}

fn gate(log: Appender) -> Gate {
    Gate::new(log, Arc::new(Metrics::new().unwrap())).unwrap()
}

fn persist(record: LogRecord) -> SeatOutput {
    SeatOutput::Persist(Box::new(record))
}

#[tokio::test]
async fn nothing_passes_before_its_records_are_durable_and_all_passes_in_order() {
    let rig = Rig::new();
    let (log, _) = rig.open(rig.options()).unwrap();
    let mut gate = gate(log);
    let say = |byte| SeatOutput::Broadcast(vec![byte]);
    assert_eq!(gate.pass(vec![say(0)]), [say(0)], "nothing to wait for");
    assert_eq!(gate.pass(vec![say(1), persist(observe(1)), say(2)]), []);
    assert_eq!(gate.pass(vec![say(3)]), [], "what was said later does not overtake");
    let mut passed = vec![];
    while passed.len() < 3 {
        gate.changed().await;
        passed.extend(gate.released());
        let on_disk = read_dir(&rig.options().dir, &rig.record, 1).unwrap().records;
        assert!(passed.is_empty() || on_disk == [observe(1)]);
    }
    assert_eq!(passed, [say(1), say(2), say(3)]);
    assert_eq!(gate.pass(vec![say(4)]), [say(4)]);
}

#[tokio::test]
async fn after_a_write_that_fails_nothing_passes_any_more() {
    let rig = Rig::new();
    let (mut log, _) = rig.open(LogOptions { segment_bytes: 1, ..rig.options() }).unwrap();
    // A segment that cannot be made stands for a disk that is full.
    let dir = rig.options().dir;
    std::fs::create_dir(dir.join("000000000001-000000000001.log")).unwrap();
    assert!(log.append(&[observe(1)], 1).is_err());
    let mut gate = gate(log);
    let say = SeatOutput::Broadcast(vec![1]);
    assert_eq!(gate.pass(vec![persist(observe(2)), say.clone()]), []);
    while gate.failed().is_none() {
        gate.changed().await;
        assert_eq!(gate.released(), []);
    }
    assert!(gate.failed().unwrap().contains("a write failed before"));
    assert_eq!(gate.pass(vec![say]), []);
}

/// A SET of seat 3, signed twice with different content.
fn two_sets(dir: &Path, record: &MarketRecord) -> FaultProof {
    let text = std::fs::read_to_string(dir.join("deal/keys/p3.json")).unwrap();
    let keys = crate::keys::Keys::from_json(&text, record).unwrap().seat.unwrap();
    let [first, second] = [1, 2].map(|byte| {
        let held = vec![[byte; 32], [0; 32], [0; 32], [0; 32]];
        let body = Body::Set(SetMsg { held, full: None });
        let header =
            Header { kind: Kind::Set, market: record.short_id(), epoch: record.epoch, round: 7, seat: 3 };
        let hash = message_hash(&record.market, &header, &body);
        Signed(Message { header, body, signature: Some(keys.evidence.sign(&hash)) }.encode())
    });
    FaultProof::Double(Double::Messages { first, second })
}

#[test]
fn proofs_are_kept_counted_and_bounded() {
    let rig = Rig::new();
    let dir = rig.options().dir;
    let proof = two_sets(rig.dir.path(), &rig.record);
    let metrics = Arc::new(Metrics::new().unwrap());
    let record = Arc::new(rig.record.clone());
    let keeper = ProofKeeper::start(Some(dir.clone()), record, metrics.clone()).unwrap();
    assert!(metrics.render().unwrap().contains("vendue_fault_proofs_total{fault=\"two_sets\"} 0"));
    let counted = || metrics.fault_proofs.with_label_values(&["two_sets"]).get();
    for round in 1..=10 {
        keeper.keep(proof.clone());
        while counted() < round {
            std::thread::yield_now();
        }
    }
    drop(keeper);
    let file = dir.join("proofs/seat-3-two_sets.0.json");
    let kept = FaultProof::from_json(&std::fs::read_to_string(file).unwrap()).unwrap();
    assert_eq!(kept, proof);
    assert!(std::fs::read_dir(dir.join("proofs")).unwrap().count() <= 8);
}
