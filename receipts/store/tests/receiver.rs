//! What a receiver takes from a signer, refuses, and keeps.

// Helpers of tests fail by panicking too; the lint's own exception covers only the test functions.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use vendue_receipts::{
    AwardId, Body, BootId, Chain, ChainName, Clock, Closed, Fault, NodeKey, Opened, Record, Used, Xids,
};
use vendue_receipts_store::{Chains, Options, StoreError, Taken};

const A: AwardId = AwardId([0xaa; 8]);

fn key(n: u8) -> NodeKey {
    NodeKey::from_bytes(&[n; 32]).unwrap()
}

fn name(award: AwardId) -> ChainName {
    ChainName::new(award, key(1).public())
}

fn options(dir: &Path) -> Options {
    Options { dir: dir.to_owned(), segment_bytes: 1, retain_ms: 5_000, max_bytes: 1 << 20, delivers: false }
}

fn open(dir: &Path) -> Chains {
    Chains::open(options(dir), None).unwrap().0
}

/// A chain of an opening, so many windows of a second, each with this driver, and a close.
fn signed(award: AwardId, by: &NodeKey, windows: u64, driver: &str) -> Vec<Record> {
    let mut chain = Chain::new(award, 0);
    let opened = Body::Opened(Opened { public_key: by.public(), boot: BootId([1; 16]), time_ms: 0 });
    let used = (0..windows).map(|n| {
        Body::Used(Used {
            device: "GPU-0".parse().unwrap(),
            t0_ms: n * 1_000,
            t1_ms: (n + 1) * 1_000,
            wall_ns: 1_000_000_000,
            energy: None,
            activity: None,
            memory_peak_bytes: None,
            xids: Xids::default(),
            driver: driver.parse().unwrap(),
        })
    });
    let closed = Body::Closed(Closed { time_ms: windows * 1_000 });
    let bodies: Vec<Body> = [opened].into_iter().chain(used).chain([closed]).collect();
    bodies.into_iter().map(|body| chain.sign(body, by).unwrap()).collect()
}

#[test]
fn what_comes_twice_or_too_early_is_taken_once_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let records = signed(A, &key(1), 3, "1");
    let mut chains = open(dir.path());
    assert_eq!(chains.take(name(A), &records[1..2]).unwrap(), Taken::UpTo(0), "nothing to continue");
    assert_eq!(chains.get(name(A)), None);
    assert_eq!(chains.take(name(A), &records[..2]).unwrap(), Taken::UpTo(2));
    assert_eq!(chains.take(name(A), &records[3..]).unwrap(), Taken::UpTo(2), "one is missing");
    assert_eq!(chains.take(name(A), &records[..4]).unwrap(), Taken::UpTo(4));
    assert_eq!(chains.take(name(A), &records[..4]).unwrap(), Taken::UpTo(4));
    drop(chains);
    let mut chains = open(dir.path());
    assert_eq!(chains.take(name(A), &[]).unwrap(), Taken::UpTo(4), "it is durable");
    assert_eq!(chains.take(name(A), &records[4..]).unwrap(), Taken::UpTo(5));
    let mut here = vec![];
    while here.len() < 5 {
        here.extend(chains.records(name(A), here.len() as u64, 9).unwrap());
    }
    assert_eq!(here, records);
}

#[test]
fn another_story_is_found_in_whichever_file_it_contradicts() {
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (signed(A, &key(1), 3, "1"), signed(A, &key(1), 3, "2"));
    let mut chains = open(dir.path());
    for part in [&one[..1], &one[1..2], &one[2..]] {
        chains.take(name(A), part).unwrap();
    }
    let told = [one[0].clone(), one[1].clone(), other[2].clone()];
    let Taken::Equivocation(both) = chains.take(name(A), &told).unwrap() else { panic!("not seen") };
    assert_eq!((&both.first, &both.second), (&one[2], &other[2]));
}

#[test]
fn another_story_is_kept_as_evidence_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (signed(A, &key(1), 3, "1"), signed(A, &key(1), 3, "2"));
    let mut chains = open(dir.path());
    chains.take(name(A), &one[..3]).unwrap();
    let Taken::Equivocation(both) = chains.take(name(A), &other).unwrap() else { panic!("not seen") };
    assert_eq!(both.verify(), Ok(key(1).public()));
    assert_eq!((both.first.sequence, &both.second), (1, &other[1]));
    // Told only from a place that is not here yet, it does not continue what is here.
    let error = chains.take(name(A), &other[3..]).unwrap_err();
    assert!(matches!(&error, StoreError::Chain { error, .. } if error.fault == Fault::Previous), "{error}");
    // Forged by somebody else, it accuses nobody.
    let forged = signed(A, &key(2), 3, "2");
    assert_eq!(chains.take(name(A), &forged[..3]).unwrap(), Taken::UpTo(3));
    assert_eq!(chains.get(name(A)).unwrap().next_sequence(), 3);
}

#[test]
fn a_chain_under_the_name_of_another_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut chains = open(dir.path());
    let error = chains.take(name(A), &signed(A, &key(2), 1, "1")).unwrap_err();
    assert!(error.to_string().contains("another key than its name says"), "{error}");
    let b = AwardId([0xbb; 8]);
    let error = chains.take(name(A), &signed(b, &key(1), 1, "1")).unwrap_err();
    assert!(matches!(error, StoreError::Chain { .. }), "{error}");
    assert_eq!(chains.iter().count(), 0);
}

#[test]
fn chains_that_are_over_go_when_they_are_old_and_awards_that_go_on_stay_whole() {
    let dir = tempfile::tempdir().unwrap();
    let mut chains = open(dir.path());
    let (idle, b) = (AwardId::IDLE, AwardId([0xbb; 8]));
    chains.take(name(A), &signed(A, &key(1), 3, "1")).unwrap();
    for award in [idle, b] {
        signed(award, &key(1), 3, "1")[..4].iter().for_each(|record| {
            chains.take(name(award), std::slice::from_ref(record)).unwrap();
        });
    }
    chains.prune(7_999).unwrap();
    assert_eq!(chains.first_kept(name(A)), Some(0), "not old yet");
    chains.prune(8_000).unwrap();
    assert_eq!(chains.first_kept(name(A)), None);
    assert_eq!(chains.take(name(A), &signed(A, &key(1), 3, "1")).unwrap(), Taken::Gone);
    assert_eq!(chains.first_kept(name(idle)), Some(3), "all but the last file");
    assert_eq!(chains.first_kept(name(b)), Some(0));
    assert_eq!(chains.get(name(idle)).unwrap().next_sequence(), 4);
}

/// A chain whose node's system clock is found to be so far ahead of chain time, and that is then closed.
fn with_clock(award: AwardId, offset_ms: i64) -> Vec<Record> {
    let mut records = signed(award, &key(1), 1, "1");
    records.pop();
    let mut chain = Chain::new(award, 0);
    records.iter().for_each(|record| chain.push(record).unwrap());
    let system_ms = 1_000_u64.saturating_add_signed(offset_ms);
    let clock = Body::Clock(Clock { time_ms: 1_000, system_ms });
    let closed = Body::Closed(Closed { time_ms: 1_000 });
    records.extend([clock, closed].map(|body| chain.sign(body, &key(1)).unwrap()));
    records
}

#[test]
fn age_is_judged_by_the_clock_that_the_node_was_set_to_and_room_by_none() {
    let dir = tempfile::tempdir().unwrap();
    let mut chains = open(dir.path());
    chains.take(name(A), &with_clock(A, 1_000_000)).unwrap();
    chains.prune(1_005_999).unwrap();
    assert_eq!(chains.first_kept(name(A)), Some(0), "it began with a clock that was behind, and is not old");
    chains.prune(1_006_000).unwrap();
    assert_eq!(chains.first_kept(name(A)), None);
    // Of a clock that is far ahead, nothing ever gets old: it goes when there is no room.
    let b = AwardId([0xbb; 8]);
    chains.take(name(b), &with_clock(b, 1 << 50)).unwrap();
    chains.prune_older(1_006_000, 1).unwrap();
    assert_eq!(chains.first_kept(name(b)), Some(0));
    chains.prune_older(1_006_000, 0).unwrap();
    assert_eq!(chains.first_kept(name(b)), None);
}

#[test]
fn without_room_the_oldest_goes_first_and_no_more_than_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    let mut chains = open(dir.path());
    let awards = [1, 2, 3].map(|n| AwardId([n; 8]));
    for (award, windows) in awards.into_iter().zip([4, 2, 3]) {
        chains.take(name(award), &signed(award, &key(1), windows, "1")).unwrap();
    }
    let bytes = chains.bytes();
    drop(chains);
    let options = Options { max_bytes: bytes + 10, ..options(dir.path()) };
    let mut chains = Chains::open(options, None).unwrap().0;
    chains.take(name(A), &signed(A, &key(1), 1, "1")[..1]).unwrap();
    let left = awards.map(|award| chains.first_kept(name(award)).is_some());
    assert_eq!(left, [true, false, true]);
    assert_eq!(chains.gone_ms(), Some(2_000));
}

#[test]
fn an_abandoned_chain_is_gone_for_good_and_the_others_stay() {
    let dir = tempfile::tempdir().unwrap();
    let mut chains = open(dir.path());
    let b = AwardId([0xbb; 8]);
    for award in [A, b] {
        chains.take(name(award), &signed(award, &key(1), 3, "1")[..3]).unwrap();
    }
    chains.abandon(&[name(A)]).unwrap();
    drop(chains);
    let mut chains = open(dir.path());
    assert_eq!(chains.iter().map(|(name, _)| name).collect::<Vec<_>>(), [name(b)]);
    assert_eq!(chains.take(name(A), &signed(A, &key(1), 3, "1")).unwrap(), Taken::Gone);
}

fn segment(dir: &Path, first: u64) -> std::path::PathBuf {
    dir.join(format!("{}-{first:016x}.segment", name(A)))
}

#[test]
fn opened_at_its_end_a_chain_is_what_it_is_when_all_of_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let records = signed(A, &key(1), 5, "1");
    let mut chains = open(dir.path());
    for record in &records[..6] {
        chains.take(name(A), std::slice::from_ref(record)).unwrap();
    }
    drop(chains);
    let whole = open(dir.path());
    let all = (whole.get(name(A)).cloned(), whole.bytes(), whole.first_kept(name(A)));
    let between = whole.records_between(name(A), 1_000, 3_000).unwrap();
    drop(whole);
    let (mut chains, _) = Chains::open_at_ends(options(dir.path())).unwrap();
    assert_eq!((chains.get(name(A)).cloned(), chains.bytes(), chains.first_kept(name(A))), all);
    assert_eq!(chains.records_between(name(A), 1_000, 3_000).unwrap(), between);
    assert_eq!(chains.files_of(name(A)).next(), Some(segment(dir.path(), 0).as_path()));
    assert!(chains.drop_first(name(A)).unwrap());
    assert_eq!((chains.first_kept(name(A)), segment(dir.path(), 0).exists()), (Some(1), false));
    assert_eq!(chains.take(name(A), &records[5..]).unwrap(), Taken::UpTo(7), "it goes on");
}

#[test]
fn opened_at_its_end_damage_before_it_is_found_when_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let records = signed(A, &key(1), 4, "1");
    let mut chains = open(dir.path());
    for record in &records {
        chains.take(name(A), std::slice::from_ref(record)).unwrap();
    }
    drop(chains);
    let change = |first: u64, at: usize| {
        let mut bytes = std::fs::read(segment(dir.path(), first)).unwrap();
        let at = if at == 0 { bytes.len() - 1 } else { at };
        bytes[at] ^= 1;
        std::fs::write(segment(dir.path(), first), bytes).unwrap();
    };
    change(2, 0);
    assert!(matches!(Chains::open(options(dir.path()), None), Err(StoreError::Damaged { .. })));
    let (chains, _) = Chains::open_at_ends(options(dir.path())).unwrap();
    assert!(matches!(chains.records(name(A), 2, 1), Err(StoreError::Damaged { .. })));
    assert_eq!(chains.records(name(A), 3, 1).unwrap(), records[3..4]);
    drop(chains);
    for (first, at) in [(1, 20), (5, 20)] {
        change(first, at);
        let opened = Chains::open_at_ends(options(dir.path()));
        assert!(matches!(opened, Err(StoreError::Damaged { .. })), "{first}");
        change(first, at);
    }
}

/// How long a folder with a day of eight GPUs takes to open: `cargo test --release -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn a_day_of_eight_gpus() {
    let dir = tempfile::tempdir().unwrap();
    let mut chains =
        Chains::open(Options { segment_bytes: 1 << 20, max_bytes: u64::MAX, ..options(dir.path()) }, None)
            .unwrap()
            .0;
    let records = signed(A, &key(1), 69_120, "580.95.05");
    let mut chain = Chain::new(A, 0);
    for batch in records.chunks(1_000) {
        batch.iter().for_each(|record| chain.replay(record).unwrap());
        chains.extend(name(A), chain.clone(), batch).unwrap();
    }
    let bytes = chains.bytes();
    drop(chains);
    let time = |open: &dyn Fn()| {
        let start = std::time::Instant::now();
        open();
        start.elapsed()
    };
    let all = time(&|| drop(Chains::open(options(dir.path()), None).unwrap()));
    let ends = time(&|| drop(Chains::open_at_ends(options(dir.path())).unwrap()));
    println!("{} records, {bytes} bytes: read whole {all:?}, at its end {ends:?}", records.len());
}
