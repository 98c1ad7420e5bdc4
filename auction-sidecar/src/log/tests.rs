//! The log on a real disk, whole, torn, damaged, full and fenced.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use vendue_auction_core::evidence::message_hash;
use vendue_auction_core::log::{HEAD_LEN, LogRecord, SegmentHead, read_segment};
use vendue_auction_core::proof::{Double, FaultProof, Signed};
use vendue_auction_core::wire::{Body, Bundle, Header, Kind, Message, SetMsg};
use vendue_auction_core::{MarketRecord, SeatOutput, SignedMarketRecord};

use super::files::{self, segments};
use super::proofs::Shelf;
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
        self.open_at(options, 0)
    }

    fn open_at(&self, options: LogOptions, now_ms: u64) -> Result<(Appender, Vec<LogRecord>), LogDirError> {
        Appender::open(options, &self.record, 1, now_ms).map(|(log, found)| (log, found.records))
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
    bad[HEAD_LEN + 27] ^= 1;
    std::fs::write(&file, &bad).unwrap();
    let before = rig.files();
    let error = rig.open(rig.options()).map(drop).unwrap_err().to_string();
    assert_eq!(rig.files(), before);
    let name = file.file_name().unwrap().to_str().unwrap();
    assert!(error.contains(name) && error.contains("at byte 79") && error.contains("empty one"), "{error}");
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
fn each_segment_has_a_random_seed_of_its_own_and_there_is_none_without() {
    let rig = Rig::new();
    let options = || LogOptions { segment_bytes: 1, ..rig.options() };
    let heads = || {
        let head = |path: &std::path::PathBuf| {
            let bytes = std::fs::read(path).unwrap();
            read_segment(&bytes, &rig.record.market, 1, 4, true).unwrap().head.unwrap()
        };
        rig.files().iter().map(head).collect::<Vec<SegmentHead>>()
    };
    let (mut log, _) = rig.open(options()).unwrap();
    log.append(&[observe(1), promise(50)], 1).unwrap();
    log.append(&[promise(50)], 1).unwrap();
    let seeds: BTreeSet<_> = heads().iter().map(|head| head.seed).collect();
    assert_eq!((seeds.len(), seeds.contains(&[0; 16])), (3, false));
    drop(log);
    let none = LogOptions { random: |_| Err(getrandom::Error::UNSUPPORTED), ..options() };
    let files = rig.files();
    assert!(matches!(rig.open(none).map(drop), Err(LogDirError::Random { .. })));
    assert_eq!(rig.files(), files);
    let fours = |seed: &mut [u8]| {
        seed.fill(4);
        Ok(())
    };
    let given = LogOptions { random: fours, ..options() };
    drop(rig.open(given).unwrap());
    assert_eq!(heads().last().unwrap().seed, [4; 16]);
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

fn heard(round: u64, bytes: usize) -> LogRecord {
    let header = Header { kind: Kind::Bundle, market: [1; 8], epoch: 0, round, seat: 3 };
    let mut message = header.to_bytes().to_vec();
    message.resize(bytes, 0);
    LogRecord::Heard { at_ms: 1, bytes: message }
}

#[test]
fn what_is_there_for_replay_takes_no_more_than_its_bytes_and_what_is_needed_stays() {
    let rig = Rig::new();
    let options = || LogOptions { segment_bytes: 400, max_bytes: 4_000, ..rig.options() };
    let now = rig.record.params.t0(100);
    let (mut log, _) = rig.open_at(options(), now).unwrap();
    log.append(&[observe(1)], now).unwrap();
    // Segments without anything that is needed go from the oldest on; the youngest round stays whole.
    for round in 1..=100 {
        log.append(&[heard(round, 300)], now).unwrap();
        assert!(log.bytes() <= 4_000, "{} bytes", log.bytes());
    }
    let on_disk = || read_dir(&rig.options().dir, &rig.record, 1).unwrap().records;
    let rounds = |is: fn(&LogRecord) -> bool| -> Vec<u64> {
        on_disk().iter().filter(|r| is(r)).filter_map(LogRecord::round).collect()
    };
    let is_heard = |r: &LogRecord| matches!(r, LogRecord::Heard { .. });
    let is_omitted = |r: &LogRecord| matches!(r, LogRecord::Omitted { .. });
    assert!(rounds(is_heard).ends_with(&[98, 99, 100]) && rounds(is_omitted).is_empty());
    // Behind what is needed no segment goes: then what is there for replay is left out, and what is needed is not.
    let until_ms = now + 1_000;
    log.append(&[promise(until_ms)], now).unwrap();
    for _ in 0..100 {
        log.append(&[heard(101, 300), heard(102, 300)], now).unwrap();
    }
    assert!(log.bytes() <= 4_100, "{} bytes", log.bytes());
    assert_eq!(rounds(is_omitted).into_iter().collect::<BTreeSet<_>>(), [101, 102].into());
    assert_eq!(rounds(is_omitted).len(), 2, "told once");
    for at in 0..50 {
        log.append(&[promise(until_ms + at)], now).unwrap();
    }
    drop(log);
    let needed =
        |records: &[LogRecord]| records.iter().filter(|r| matches!(r, LogRecord::Promise { .. })).count();
    let (mut log, found) = rig.open_at(options(), now).unwrap();
    assert_eq!(needed(&found), 51);
    // When that has expired there is room again.
    log.append(&[observe(2)], until_ms + 100).unwrap();
    log.append(&[heard(103, 300)], until_ms + 100).unwrap();
    assert_eq!((rounds(is_heard).last(), rounds(is_omitted)), (Some(&103), vec![]));
}

#[test]
fn a_full_volume_is_opened_again_when_its_records_have_expired() {
    let rig = Rig::new();
    let options = || LogOptions { segment_bytes: 200, ..rig.options() };
    let (mut log, _) = rig.open(options()).unwrap();
    log.append(&[observe(1), promise(1_000)], 1).unwrap();
    for at in 2..50 {
        log.append(&[promise(at)], at).unwrap();
    }
    drop(log);
    let full = rig.files().len();
    assert!(full > 5);
    // No segment can be made, as on a volume that is full.
    let open_full = |now_ms| {
        let no_room = |_: &Path, path: &Path, _: &[u8]| {
            Err(files::fail("create", path)(std::io::ErrorKind::StorageFull.into()))
        };
        Appender::open_by(options(), &rig.record, 1, now_ms, no_room).map(drop).unwrap_err().to_string()
    };
    assert!(open_full(1_000).contains("seat log: create"), "the error names the operation");
    assert_eq!(rig.files().len(), full, "all that is needed stays");
    open_full(1_001);
    assert_eq!(rig.files().len(), 1, "room was made before it was asked for");
    // What shows that there is a log is never thrown away.
    let (_log, found) = rig.open_at(options(), 5_000).unwrap();
    assert!(found.contains(&observe(1)), "{found:?}");
}

#[test]
fn what_the_next_start_may_replay_is_pruned_by_age_and_size_only() {
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
    drop(log);
    let kept = rig.files().len();
    drop(rig.open_at(options(1 << 20), 400).unwrap());
    assert_eq!(rig.files().len(), kept + 1);
    drop(rig.open_at(options(1_000), 400).unwrap());
    let bytes: u64 = rig.files().iter().map(|f| f.metadata().unwrap().len()).sum();
    assert!(bytes <= 1_000 + 200, "{bytes}");
    drop(rig.open_at(options(1 << 20), 600).unwrap());
    assert!(rig.files().len() <= 4, "{:?}", rig.files());
}

#[test]
fn a_file_that_cannot_be_filled_is_taken_away_and_one_that_was_there_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("000000000000-000000000001.log");
    let full =
        |_: &mut std::fs::File| Err(files::fail("write", &path)(std::io::ErrorKind::StorageFull.into()));
    assert!(files::create_by(dir.path(), &path, full).is_err());
    assert!(!path.exists());
    std::fs::write(&path, b"kept").unwrap();
    assert!(files::create(dir.path(), &path, b"new").is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"kept");
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
        passed.extend(gate.released(0));
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
        assert_eq!(gate.released(0), []);
    }
    assert!(gate.failed().unwrap().contains("a write failed before"));
    assert_eq!(gate.pass(vec![say]), []);
}

#[test]
fn calls_that_say_nothing_do_not_fill_the_gate_and_do_not_overtake() {
    let rig = Rig::new();
    let (mut gate, disk) = Gate::before_test_disk(rig.record.params, Arc::new(Metrics::new().unwrap()));
    // Records without a message hold back what is said later.
    assert_eq!(gate.pass(vec![persist(observe(1))]), []);
    for _ in 0..100_000 {
        assert_eq!(gate.pass(vec![]), []);
    }
    assert!(!gate.is_full());
    let say = SeatOutput::Broadcast(vec![1]);
    assert_eq!(gate.pass(vec![say.clone()]), []);
    assert_eq!(gate.released(0), []);
    disk.sync(1);
    assert_eq!(gate.released(0), std::slice::from_ref(&say));
    assert_eq!(gate.pass(vec![say]).len(), 1);
    gate.fill();
    assert!(gate.is_full() && gate.failed().is_none(), "time and bridge still have room");
    disk.sync(u64::MAX);
    gate.released(0);
    gate.pass(vec![persist(observe(2)), SeatOutput::Broadcast(vec![0; 33 << 20])]);
    assert!(gate.is_full(), "bytes are bounded too");
}

#[test]
fn a_bundle_or_set_that_the_disk_kept_too_long_is_not_said_and_is_counted() {
    let rig = Rig::new();
    let metrics = Arc::new(Metrics::new().unwrap());
    let (mut gate, disk) = Gate::before_test_disk(rig.record.params, metrics.clone());
    let params = rig.record.params;
    let message = |kind, round| {
        let header = Header { kind, market: rig.record.short_id(), epoch: rig.record.epoch, round, seat: 1 };
        header.to_bytes()
    };
    let said = |kind, round| {
        let bytes = message(kind, round);
        vec![persist(LogRecord::Said { at_ms: 1, bytes: bytes.clone() }), SeatOutput::Broadcast(bytes)]
    };
    let mut calls = 0;
    let mut passes = |outputs, at_ms| {
        gate.pass(outputs);
        calls += 1;
        disk.sync(calls);
        gate.released(at_ms).len()
    };
    // Half of D, 100 ms, is left for the way, the clocks and the receiver.
    for (round, after_t0, passed) in [(1, 0, 1), (2, 50, 1), (3, 51, 0), (4, 99, 0), (5, 100, 0), (6, 101, 0)]
    {
        let at_ms = params.t0(round) + after_t0;
        assert_eq!(passes(said(Kind::Bundle, round), at_ms), passed, "{after_t0} ms after T0");
    }
    let (t1, t3) = (params.t1(7), params.t3(7));
    assert_eq!([t1 + 1, t3].map(|at| passes(said(Kind::Set, 7), at)), [1, 1]);
    let again = || vec![persist(observe(1)), SeatOutput::Broadcast(message(Kind::Set, 7))];
    assert_eq!(passes(again(), t3 + 1), 1, "what was said in time is said again");
    assert_eq!(passes(said(Kind::Set, 7), t3 + 1), 0);
    assert_eq!(passes(again(), t3 + 1), 0, "what was not said is not said later");
    assert_eq!(passes(said(Kind::Lock, 7), t3 + 1), 1, "a vote is never too late");
    assert_eq!(metrics.dropped_count("log_late"), 5);
}

#[test]
fn a_bundle_that_names_no_order_may_leave_until_t1() {
    let rig = Rig::new();
    let metrics = Arc::new(Metrics::new().unwrap());
    let (mut gate, disk) = Gate::before_test_disk(rig.record.params, metrics.clone());
    let params = rig.record.params;
    let (mut round, mut calls) = (0, 0);
    let mut passes = |orders: &[[u8; 32]], after_t0| {
        round += 1;
        let header = Header {
            kind: Kind::Bundle,
            market: rig.record.short_id(),
            epoch: rig.record.epoch,
            round,
            seat: 1,
        };
        let order_view = orders.to_vec().into();
        let body = Body::Bundle(Bundle { order_view, u: [0; 48], v: [0; 32], payload: vec![0; 16] });
        let bytes = Message { header, body, signature: Some([0; 65]) }.encode();
        let record = LogRecord::Said { at_ms: 1, bytes: bytes.clone() };
        gate.pass(vec![persist(record), SeatOutput::Broadcast(bytes)]);
        calls += 1;
        disk.sync(calls);
        gate.released(params.t0(round) + after_t0).len()
    };
    // D is 100 ms.
    assert_eq!([50, 51, 100].map(|after_t0| passes(&[[7; 32]], after_t0)), [1, 0, 0]);
    assert_eq!([50, 51, 100, 101].map(|after_t0| passes(&[], after_t0)), [1, 1, 1, 0]);
    assert_eq!(metrics.dropped_count("log_late"), 3);
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
    // The process may know two epochs, and a proof is of one of them.
    let next = MarketRecord { epoch: rig.record.epoch + 1, ..rig.record.clone() };
    let records = vec![Arc::new(next), Arc::new(rig.record.clone())];
    let keeper = ProofKeeper::start(Some(dir.clone()), records, metrics.clone()).unwrap();
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

#[test]
fn proofs_are_bounded_in_bytes_with_those_of_earlier_processes_and_each_file_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = || -> u64 {
        std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum()
    };
    // A process that ended while it wrote.
    std::fs::write(dir.path().join("unfinished"), [0; 60]).unwrap();
    for _ in 0..2 {
        let mut shelf = Shelf::open(dir.path(), 100).unwrap();
        for seat in 0..4 {
            shelf.put(&[seat], "two_sets", &[b'x'; 30]).unwrap();
            shelf.put(&[seat], "two_sets", &[b'y'; 30]).unwrap();
        }
        assert_eq!(bytes(), 90, "what was there before counts");
    }
    let names = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name());
    assert!(names.into_iter().all(|name| name.to_str().unwrap().ends_with(".json")));
}

#[test]
fn of_large_proofs_one_is_kept_and_no_file_takes_the_place_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let mut shelf = Shelf::open(dir.path(), 1 << 30).unwrap();
    let large = vec![b'x'; (1 << 20) + 1];
    assert!(shelf.put(&[3], "wrong_award", &large).unwrap().is_some());
    assert!(shelf.put(&[3], "wrong_award", &large).unwrap().is_none());
    assert!(shelf.put(&[4], "wrong_award", &large).unwrap().is_some());
    for proof in [b"a", b"b"] {
        shelf.put(&[5], "two_sets", proof).unwrap();
    }
    std::fs::remove_file(dir.path().join("seat-5-two_sets.0.json")).unwrap();
    let path = Shelf::open(dir.path(), 1 << 30).unwrap().put(&[5], "two_sets", b"c").unwrap().unwrap();
    assert_eq!(path, dir.path().join("seat-5-two_sets.0.json"));
    assert_eq!(std::fs::read(dir.path().join("seat-5-two_sets.1.json")).unwrap(), b"b");
}
