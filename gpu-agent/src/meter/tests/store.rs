//! What the store keeps, refuses and takes away.

use std::fs;
use std::path::{Path, PathBuf};

use vendue_receipts::{
    AwardId, Body, BootId, Chain, ChainName, Closed, Equivocation, Gap, GapReason, NodeKey, Record, Xids,
    verify, verify_node,
};

use super::memory::Memory;
use super::{A, B, IDLE, SECOND, key, name};
use vendue_receipts_store::{Options, StoreError};

use crate::meter::{Anchor, Draft, Found, Meter, Settings, Store, Tick, options};

fn open(dir: &Path) -> Store {
    open_by(options(dir), key(1)).unwrap().0
}

fn open_by(options: Options, key: NodeKey) -> Result<(Store, Found), StoreError> {
    Store::open(options, key)
}

fn opened(award: AwardId, by: &NodeKey, time_ms: u64) -> Draft {
    let body = vendue_receipts::Opened { public_key: by.public(), boot: BootId([1; 16]), time_ms };
    Draft { award, body: Body::Opened(body) }
}

fn used(award: AwardId, t0_ms: u64, t1_ms: u64) -> Draft {
    super::used(award, 0, t0_ms, t1_ms)
}

fn closed(award: AwardId, time_ms: u64) -> Draft {
    Draft { award, body: Body::Closed(Closed { time_ms }) }
}

/// Appends batches of one window each, from this second on.
fn windows(store: &mut Store, award: AwardId, from: u64, count: u64) {
    for n in from..from + count {
        let appended = store.append(&[used(award, n * SECOND, (n + 1) * SECOND)]);
        assert!(appended.failed.is_empty(), "{:?}", appended.errors);
    }
}

fn fault(store: &mut Store, drafts: &[Draft]) -> StoreError {
    let appended = store.append(drafts);
    assert_eq!(appended.records, 0);
    appended.errors.into_iter().next().unwrap()
}

fn name_of(award: AwardId) -> ChainName {
    ChainName::new(award, key(1).public())
}

/// The files of a chain with this ending.
fn files(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    all.retain(|path| path.to_str().unwrap().ends_with(ending));
    all.sort();
    all
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    files(dir, ".segment")
}

/// All records that are not acknowledged, which are then.
fn deliver(store: &mut Store) -> Vec<Record> {
    let mut delivered = vec![];
    loop {
        let Some((name, from)) = store.chains().undelivered().next() else { return delivered };
        let records = store.chains().records(name, from, 3).unwrap();
        let next = records.last().unwrap().sequence + 1;
        store.chains_mut().acknowledge(name, next).unwrap();
        delivered.extend(records);
    }
}

#[test]
fn what_was_stored_is_there_when_the_store_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, found) = open_by(options(dir.path()), key(1)).unwrap();
    assert_eq!(found, Found { fresh: true, torn: 0, foreign: 0 });
    let drafts =
        [opened(IDLE, &key(1), 0), used(IDLE, 0, 1_000), opened(A, &key(1), 1_000), closed(A, 2_000)];
    let appended = store.append(&drafts);
    assert_eq!((appended.records, appended.failed.len()), (4, 0));
    windows(&mut store, IDLE, 1, 3);
    let chains: Vec<(ChainName, Chain)> =
        store.chains().iter().map(|(name, chain)| (name, chain.clone())).collect();
    assert!(matches!(Store::open(options(dir.path()), key(1)), Err(StoreError::InUse(_))));
    drop(store);
    let (mut store, found) = open_by(options(dir.path()), key(1)).unwrap();
    assert_eq!(found, Found { fresh: false, torn: 0, foreign: 0 });
    assert!(store.chains().iter().map(|(name, chain)| (name, chain.clone())).eq(chains));
    let delivered = deliver(&mut store);
    let of = |award| delivered.iter().filter(|r| r.award == award).cloned().collect::<Vec<_>>();
    assert_eq!(verify(IDLE, Some(key(1).public()), 0, &of(IDLE)).unwrap().totals().records, 5);
    assert!(verify(A, Some(key(1).public()), 0, &of(A)).unwrap().is_closed());
    assert_eq!(store.resume().not_before_ms, 4_000);
}

/// A chain in memory with these batches of windows of a millisecond, the path of its file, and where each batch ends.
fn in_memory(batches: &[u64]) -> (Memory, PathBuf, Vec<usize>) {
    let files = Memory::default();
    let mut store = remembered(&files).unwrap().0;
    store.append(&[opened(IDLE, &key(1), 0)]);
    let (mut ends, mut at) = (vec![store.chains().bytes() as usize], 0);
    for count in batches {
        let batch: Vec<Draft> = (at..at + count).map(|n| used(IDLE, n, n + 1)).collect();
        assert!(store.append(&batch).failed.is_empty());
        at += count;
        ends.push(store.chains().bytes() as usize);
    }
    let path = files.0.borrow().files.keys().next().unwrap().clone();
    (files, path, ends)
}

fn remembered(files: &Memory) -> Result<(Store<Memory>, Found), StoreError> {
    Store::open_with(options("/receipts"), key(1), files.clone())
}

/// Length of the head of a file.
fn head_of(bytes: &[u8]) -> usize {
    8 + u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize
}

#[test]
fn a_file_that_ends_anywhere_is_read_up_to_its_last_whole_batch() {
    let (files, path, ends) = in_memory(&[2, 1, 3]);
    let whole = files.0.borrow().files[&path].clone();
    let head = head_of(&whole);
    for length in 0..=whole.len() {
        files.0.borrow_mut().files = [(path.clone(), whole[..length].to_vec())].into();
        let result = remembered(&files);
        // A file has its name when its first batch is in it.
        let Ok((mut store, found)) = result else {
            assert!(length < head, "cut at {length}: {:?}", result.err());
            continue;
        };
        let last = ends.iter().rposition(|end| *end <= length);
        let records = last.map_or(0, |last| [1, 3, 4, 7][last]);
        assert_eq!(found.torn as usize, length - last.map_or(head, |last| ends[last]), "cut at {length}");
        assert_eq!(store.chains().iter().next().unwrap().1.next_sequence(), records);
        // What is torn goes when the next batch comes.
        let next = if records == 0 { opened(IDLE, &key(1), 9) } else { used(IDLE, 9, 10) };
        assert!(store.append(&[next]).failed.is_empty());
        let (store, found) = remembered(&files).unwrap();
        assert_eq!(found.torn, 0);
        let delivered = store.chains().records(name_of(IDLE), 0, 99).unwrap();
        assert_eq!(verify(IDLE, None, 0, &delivered).unwrap().next_sequence(), records + 1);
    }
}

#[test]
fn a_byte_that_was_changed_later_is_an_error_with_its_place() {
    let (files, path, ends) = in_memory(&[1, 1]);
    let whole = files.0.borrow().files[&path].clone();
    let starts = [0, head_of(&whole), ends[0]];
    let change = |at: usize, bit: u8| {
        let mut changed = whole.clone();
        changed[at] ^= bit;
        files.0.borrow_mut().files.insert(path.clone(), changed);
    };
    for at in 0..ends[1] {
        change(at, 0x10);
        let result = remembered(&files);
        let Err(StoreError::Damaged { path: named, offset, .. }) = result else {
            panic!("byte {at} was changed")
        };
        let expected = starts.into_iter().rfind(|start| *start <= at).unwrap();
        assert_eq!((named, offset), (path.clone(), expected), "byte {at}");
    }
    // In the last batch it looks like a write that was cut off, unless the receiver has more.
    for at in ends[1]..ends[2] {
        change(at, 0x10);
        let (mut store, found) = remembered(&files).unwrap();
        assert_eq!(found.torn as usize, ends[2] - ends[1]);
        store.chains_mut().acknowledge(name_of(IDLE), 2).unwrap();
    }
    let delivered = path.with_file_name(format!("{}.delivered", name_of(IDLE)));
    files.0.borrow_mut().files.insert(delivered, b"3\n".to_vec());
    let error = remembered(&files).err().unwrap().to_string();
    assert!(error.contains("the receiver has 3 records, here are 2"), "{error}");
    assert!(error.contains(path.to_str().unwrap()), "{error}");
}

#[test]
fn what_a_failed_write_left_is_cut_and_a_file_that_lost_something_is_not_written_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    store.append(&[opened(IDLE, &key(1), 0)]);
    let path = segments(dir.path()).remove(0);
    let mut more = fs::read(&path).unwrap();
    let length = more.len();
    more.extend([9; 4_000]);
    fs::write(&path, more).unwrap();
    windows(&mut store, IDLE, 0, 1);
    assert_eq!(fs::metadata(&path).unwrap().len(), store.chains().bytes());
    fs::write(&path, &fs::read(&path).unwrap()[..length]).unwrap();
    let error = fault(&mut store, &[used(IDLE, 1_000, 2_000)]).to_string();
    assert!(error.contains("append to") && error.contains("shorter than what was stored"), "{error}");
    assert!(matches!(store.chains().records(name_of(IDLE), 0, 9), Err(StoreError::Damaged { .. })));
}

#[test]
fn other_files_that_are_no_such_files_are_named() {
    for (file, text) in
        [("anchor.json", "{}"), ("removed", "zz\n"), ("removed", "0011223344556677\n"), ("removed", "\u{e9}")]
    {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(file), text).unwrap();
        let error = open_by(options(dir.path()), key(1)).err().unwrap().to_string();
        assert!(error.contains(file) && error.contains("damaged"), "{error}");
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(format!("{}.delivered", name_of(A))), "many").unwrap();
    let error = open_by(options(dir.path()), key(1)).err().unwrap().to_string();
    assert!(error.contains("\"many\" is not a number"), "{error}");
}

#[test]
fn a_file_in_the_middle_that_is_missing_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 1, ..options(dir.path()) };
    let mut store = open_by(options.clone(), key(1)).unwrap().0;
    store.append(&[opened(IDLE, &key(1), 0)]);
    windows(&mut store, IDLE, 0, 3);
    drop(store);
    let paths = segments(dir.path());
    assert_eq!(paths.len(), 4);
    fs::remove_file(&paths[1]).unwrap();
    let error = open_by(options, key(1)).err().unwrap();
    assert!(matches!(&error, StoreError::Damaged { path, .. } if *path == paths[2]), "{error}");
}

#[test]
fn only_the_last_file_of_a_chain_may_end_in_the_middle_of_a_batch() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 1, ..options(dir.path()) };
    let mut store = open_by(options.clone(), key(1)).unwrap().0;
    store.append(&[opened(IDLE, &key(1), 0)]);
    windows(&mut store, IDLE, 0, 2);
    drop(store);
    let path = segments(dir.path()).remove(1);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let error = open_by(options, key(1)).err().unwrap();
    let StoreError::Damaged { path: named, offset, .. } = error else { panic!("{error}") };
    assert_eq!((named, offset), (path, head_of(&whole)));
}

#[test]
fn a_record_that_does_not_continue_its_chain_is_damage_however_well_it_is_framed() {
    let (files, path, ends) = in_memory(&[1, 1]);
    let whole = files.0.borrow().files[&path].clone();
    let twice = [&whole[..], &whole[ends[1]..]].concat();
    files.0.borrow_mut().files.insert(path.clone(), twice);
    let error = remembered(&files).err().unwrap();
    let StoreError::Damaged { path: named, offset, what } = error else { panic!("{error}") };
    assert_eq!((named, offset), (path, whole.len()));
    assert!(what.contains("has sequence 2 where 3 is expected"), "{what}");
}

#[test]
fn a_chain_that_cannot_go_on_does_not_hold_up_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    store.append(&[opened(IDLE, &key(1), 0), opened(A, &key(1), 0)]);
    let appended = store.append(&[used(IDLE, 0, 1_000), used(A, 5, 6), used(A, 0, 1)]);
    assert_eq!((appended.records, &appended.failed), (1, &[A].into()));
    assert!(matches!(appended.errors[..], [StoreError::Chain { award: A, .. }]));
    let of_a = store.chains().iter().find(|(name, _)| name.award == A).unwrap().1;
    assert_eq!(of_a.next_sequence(), 1, "of a chain all is stored or nothing");
    assert!(matches!(fault(&mut store, &[used(B, 0, 1)]), StoreError::Chain { award: B, .. }));
}

#[test]
fn delivered_records_go_when_they_are_old_and_closed_chains_do_not_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 1, retain_ms: 5_000, ..options(dir.path()) };
    let mut store = open_by(options.clone(), key(1)).unwrap().0;
    store.append(&[opened(IDLE, &key(1), 0), opened(A, &key(1), 0), used(A, 0, 1_000)]);
    store.append(&[closed(A, 2_000)]);
    windows(&mut store, IDLE, 2, 3);
    store.chains_mut().prune(100_000).unwrap();
    assert_eq!(segments(dir.path()).len(), 6, "nothing was delivered");
    deliver(&mut store);
    store.chains_mut().prune(5_999).unwrap();
    assert_eq!(segments(dir.path()).len(), 5, "one opening is older than five seconds, no more");
    store.chains_mut().prune(6_999).unwrap();
    assert_eq!(
        (segments(dir.path()).len(), store.chains().iter().count()),
        (5, 2),
        "the close is not yet, and what is before it stays with it"
    );
    store.chains_mut().prune(7_000).unwrap();
    assert_eq!(store.chains().iter().count(), 1, "the closed chain is gone");
    store.chains_mut().prune(100_000).unwrap();
    assert_eq!(segments(dir.path()).len(), 1, "of an open chain the last file stays");
    for _ in 0..2 {
        assert!(matches!(fault(&mut store, &[opened(A, &key(1), 9_000)]), StoreError::Removed(_)));
        assert_eq!(store.resume().removed, [A].into());
        drop(store);
        store = open_by(options.clone(), key(1)).unwrap().0;
    }
    windows(&mut store, IDLE, 6, 1);
    assert_eq!(deliver(&mut store).len(), 1, "and the open one goes on");
}

#[test]
fn a_full_store_says_so_and_goes_on_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 1_000, max_bytes: 6_000, ..options(dir.path()) };
    let mut store = open_by(options, key(1)).unwrap().0;
    store.append(&[opened(IDLE, &key(1), 0)]);
    let mut stored = 0;
    let error = loop {
        let appended = store.append(&[used(IDLE, stored * SECOND, (stored + 1) * SECOND)]);
        match appended.errors.into_iter().next() {
            None => stored += 1,
            Some(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::Full { max_bytes: 6_000, .. }), "{error}");
    assert!(store.chains().bytes() <= 6_000 && stored > 10);
    assert_eq!(deliver(&mut store).len() as u64, stored + 1, "nothing of it was dropped");
    for n in 0..30 {
        windows(&mut store, IDLE, stored + 3 * n, 3);
        assert_eq!(deliver(&mut store).len(), 3);
        assert!(store.chains().bytes() <= 6_000);
    }
}

#[test]
fn acknowledgements_only_grow_and_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    store.append(&[opened(IDLE, &key(1), 0)]);
    windows(&mut store, IDLE, 0, 4);
    let idle = name_of(IDLE);
    store.chains_mut().acknowledge(idle, 3).unwrap();
    store.chains_mut().acknowledge(idle, 1).unwrap();
    assert!(matches!(store.chains_mut().acknowledge(idle, 6), Err(StoreError::Name { .. })));
    assert!(matches!(store.chains_mut().acknowledge(name_of(A), 0), Err(StoreError::Name { .. })));
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.chains().undelivered().collect::<Vec<_>>(), [(idle, 3)]);
    let next = store.chains().records(idle, 3, 9).unwrap();
    assert_eq!(next.iter().map(|r| r.sequence).collect::<Vec<_>>(), [3, 4]);
}

#[test]
fn every_open_chain_goes_over_to_the_next_key() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    store.append(&[opened(IDLE, &key(1), 0), opened(A, &key(1), 0), opened(B, &key(1), 0), closed(B, 1)]);
    store.take_over(&key(2), 500).unwrap();
    // Rotated: nothing can be said by the one before any more.
    assert!(matches!(fault(&mut store, &[closed(A, 600)]), StoreError::Chain { award: A, .. }));
    store.take_over(&key(2), 600).unwrap();
    store.set_key(key(2));
    drop(store);
    let (mut store, found) = open_by(options(dir.path()), key(2)).unwrap();
    assert_eq!(found.foreign, 0);
    let over: Vec<AwardId> =
        store.resume().chains.iter().filter(|chain| chain.is_closed()).map(Chain::award).collect();
    assert_eq!((store.resume().chains.len(), over), (3, vec![B]), "what was closed before stays closed");
    let appended = store.append(&[used(IDLE, 500, 1_500), used(A, 1_500, 2_500)]);
    assert!(appended.failed.is_empty());
    let delivered = deliver(&mut store);
    let chains: Vec<&[Record]> = delivered.chunk_by(|a, b| a.award == b.award).collect();
    assert_eq!(verify_node(key(1).public(), &chains).unwrap()[&name(0)].awards_ns, 1_000_000_000);
}

#[test]
fn a_lost_key_leaves_its_chains_to_be_delivered_and_a_new_key_opens_new_ones() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    store.append(&[opened(IDLE, &key(1), 0), used(IDLE, 0, 7_000)]);
    drop(store);
    let (mut store, found) = open_by(options(dir.path()), key(3)).unwrap();
    assert_eq!(found.foreign, 1);
    let resume = store.resume();
    assert!(resume.chains.is_empty());
    let mut meter = Meter::new(Settings::new(key(3).public()), resume);
    let (steady_ns, suspended_ns, system_ms) = (5, 0, 1_000);
    let (boot, devices, ended) = (BootId([2; 16]), vec![], vec![]);
    let tick = Tick { steady_ns, suspended_ns, system_ms, boot, devices, ended };
    let drafts = meter.tick(&tick).unwrap().to_vec();
    assert!(store.append(&drafts).failed.is_empty());
    assert_eq!(meter.time_ms(), 7_000, "time goes on where the lost key left it");
    let delivered = deliver(&mut store);
    assert_eq!(delivered.len(), 4, "two records of each key, one of them of the clock");
    assert_eq!(store.chains().iter().count(), 2);
    // What was delivered of the lost key goes like what is closed; idle time goes on.
    store.chains_mut().prune(100_000_000).unwrap();
    assert_eq!(store.chains().iter().count(), 1);
    assert!(store.resume().removed.is_empty());
    drop(store);
    let (mut store, found) = open_by(options(dir.path()), key(3)).unwrap();
    assert_eq!(found.foreign, 0);
    windows(&mut store, IDLE, 7, 1);
}

#[test]
fn removing_one_chain_of_an_award_leaves_that_of_a_lost_key() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { retain_ms: 0, ..options(dir.path()) };
    let mut store = open_by(options.clone(), key(1)).unwrap().0;
    store.append(&[opened(A, &key(1), 0), used(A, 0, 1_000)]);
    drop(store);
    let mut store = open_by(options.clone(), key(3)).unwrap().0;
    store.append(&[opened(A, &key(3), 1_000), closed(A, 2_000)]);
    store.chains_mut().acknowledge(ChainName::new(A, key(3).public()), 2).unwrap();
    store.chains_mut().prune(2_000).unwrap();
    drop(store);
    let (mut store, found) = open_by(options, key(3)).unwrap();
    assert_eq!((found.foreign, store.chains().iter().count()), (1, 1));
    assert_eq!(deliver(&mut store).len(), 2);
}

#[test]
fn a_lost_disk_goes_on_from_what_was_delivered_without_two_histories() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    store.append(&[opened(IDLE, &key(1), 0), used(IDLE, 0, 1_000)]);
    let mut received = deliver(&mut store);
    windows(&mut store, IDLE, 1, 1);
    drop(store);
    let empty = tempfile::tempdir().unwrap();
    let (mut store, found) = open_by(options(empty.path()), key(1)).unwrap();
    assert!(found.fresh);
    let known = verify(IDLE, None, 0, &received).unwrap();
    store.adopt(known.clone()).unwrap();
    assert!(matches!(store.adopt(known.clone()), Err(StoreError::Name { .. })));
    let other = Chain::new(A, 0);
    assert!(matches!(store.adopt(other), Err(StoreError::Name { .. })));
    drop(store);
    // Even if what is delivered was not noted before a crash.
    fs::remove_file(files(empty.path(), ".delivered").remove(0)).unwrap();
    let mut store = open(empty.path());
    assert!(store.chains().undelivered().next().is_none());
    assert_eq!(store.resume().chains, [known]);
    let (device, xids) = (Some(name(0)), Xids::default());
    let gap = Gap { device, t0_ms: 1_000, t1_ms: 3_000, reason: GapReason::DiskLost, energy: None, xids };
    assert!(store.append(&[Draft { award: IDLE, body: Body::Gap(gap) }]).failed.is_empty());
    received.extend(deliver(&mut store));
    assert_eq!(verify(IDLE, None, 0, &received).unwrap().totals().gap_ns, 2_000_000_000);
    // Had it begun anew, its own signatures would convict it.
    let fresh = tempfile::tempdir().unwrap();
    let mut store = open(fresh.path());
    store.append(&[opened(IDLE, &key(1), 9)]);
    let [first, second] = [received[0].clone(), deliver(&mut store).remove(0)];
    assert_eq!(Equivocation { first, second }.verify(), Ok(key(1).public()));
}

#[test]
fn the_anchor_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let anchor = Some(Anchor { boot: BootId([7; 16]), steady_ns: 5, chain_ns: 9 });
    store.keep_anchor(anchor).unwrap();
    store.keep_anchor(None).unwrap();
    drop(store);
    assert_eq!(open(dir.path()).resume().anchor, anchor);
}
