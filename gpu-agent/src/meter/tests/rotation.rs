//! Going over to another key, with a process that ends at each write of it.

use std::path::PathBuf;

use vendue_receipts::{AwardId, Body, BootId, Closed, Record, verify_node};
use vendue_receipts_store::{Options, StoreError};

use super::memory::{Done, Memory};
use super::{A, B, IDLE, key, used};
use crate::meter::hours::Hours;
use crate::meter::{Draft, Store};

fn open(files: &Memory, seed: u8, max_bytes: u64) -> Store<Memory> {
    let (dir, delivers) = (PathBuf::from("/receipts"), true);
    let options = Options { dir, segment_bytes: 1 << 20, retain_ms: 1 << 40, max_bytes, delivers };
    Store::open_with(options, key(seed), files.clone()).unwrap().0
}

fn opened(award: AwardId) -> Draft {
    opened_by(award, 1)
}

fn opened_by(award: AwardId, seed: u8) -> Draft {
    let (public_key, boot) = (key(seed).public(), BootId([1; 16]));
    Draft { award, body: Body::Opened(vendue_receipts::Opened { public_key, boot, time_ms: 0 }) }
}

/// Two open chains and one that is closed.
fn begun(files: &Memory) -> Store<Memory> {
    let mut store = open(files, 1, 1 << 20);
    let closed = Draft { award: B, body: Body::Closed(Closed { time_ms: 300 }) };
    let drafts = [opened(IDLE), opened(A), opened(B), used(A, 0, 0, 200), used(B, 1, 0, 300), closed];
    assert!(store.append(&drafts).failed.is_empty());
    store
}

fn deliver(store: &mut Store<Memory>) -> Vec<Record> {
    let mut delivered = vec![];
    let waiting: Vec<_> = store.chains().undelivered().collect();
    for (name, from) in waiting {
        let records = store.chains().records(name, from, 100).unwrap();
        store.chains_mut().acknowledge(name, records.last().unwrap().sequence + 1).unwrap();
        delivered.extend(records);
    }
    delivered
}

fn writes_of_a_rotation() -> u64 {
    let files = Memory::default();
    let mut store = begun(&files);
    let before = files.0.borrow().writes;
    store.take_over(&key(2), 500).unwrap();
    let writes = files.0.borrow().writes;
    writes - before
}

#[test]
fn a_rotation_that_ends_at_any_write_goes_on_where_it_was() {
    let writes = writes_of_a_rotation();
    assert!(writes >= 2, "a write for each open chain");
    for at in 1..=writes {
        for done in [Done::Nothing, Done::Half, Done::All] {
            let files = Memory::default();
            let mut store = begun(&files);
            let before = files.0.borrow().writes;
            files.0.borrow_mut().fail = Some((before + at, done, true));
            store.take_over(&key(2), 500).unwrap_err();
            drop(store);
            files.0.borrow_mut().fail = None;

            let mut store = open(&files, 1, 1 << 20);
            store.take_over(&key(2), 600).unwrap();
            store.set_key(key(2));
            let more = [used(A, 0, 600, 700), used(IDLE, 1, 600, 700)];
            assert!(store.append(&more).failed.is_empty());
            let records = deliver(&mut store);
            let rotated = records.iter().filter(|r| matches!(r.body, Body::Rotated(_))).count();
            assert_eq!(rotated, 2, "once in each open chain");
            let chains: Vec<&[Record]> = records.chunk_by(|a, b| a.award == b.award).collect();
            assert_eq!(chains.len(), 3);
            verify_node(key(1).public(), &chains).unwrap();
        }
    }
}

#[test]
fn while_keys_change_no_chain_goes_for_its_key() {
    let files = Memory::default();
    let mut store = begun(&files);
    let before = store.chains().bytes();
    store.take_over(&key(2), 500).unwrap();
    let one = (store.chains().bytes() - before) / 2;
    drop(store);

    // There is room for the record of one chain, the idle one.
    let files = Memory::default();
    drop(begun(&files));
    let mut store = open(&files, 1, before + one + one / 2);
    let full = store.take_over(&key(2), 500).unwrap_err();
    assert!(matches!(full, StoreError::Full { .. }), "{full}");
    let open_chains = |store: &Store<Memory>| {
        store.chains().iter().filter(|(_, c)| !c.is_closed()).map(|(name, _)| name.award).collect::<Vec<_>>()
    };
    // The receiver has all of it; of what may go then, a chain that goes on is not.
    deliver(&mut store);
    store.take_over(&key(2), 500).unwrap();
    assert_eq!(open_chains(&store), [IDLE, A]);
    assert_eq!(store.chains().iter().count(), 2, "the closed one made room");
    store.set_key(key(2));
    assert_eq!(store.resume().chains.len(), 2);
}

#[test]
fn an_hour_is_stated_over_the_chains_of_all_keys_that_rotations_join() {
    let files = Memory::default();
    let mut store = begun(&files);
    store.take_over(&key(2), 500).unwrap();
    store.set_key(key(2));
    let stated = |store: &mut Store<Memory>, hour: u64| {
        let mut hours = Hours::open(store.chains()).unwrap();
        assert_eq!(hours.open_from_ms(), 0, "nothing is stated yet");
        store.state(&mut hours, hour).unwrap();
        assert_eq!(hours.open_from_ms(), (hour + 1) * 3_600_000);
        let said = hours.waiting()[0];
        (said.statement.public_key, said.statement.count)
    };
    assert_eq!(stated(&mut store, 0), (key(2).public(), 8), "two rotated, and one that was closed before");
    drop(store);

    // A key that was lost is nothing to the next one.
    let files = Memory::default();
    drop(begun(&files));
    let mut store = open(&files, 3, 1 << 20);
    assert!(store.append(&[opened_by(IDLE, 3)]).failed.is_empty());
    assert_eq!(stated(&mut store, 0), (key(3).public(), 1));
    assert_eq!(store.resume().chains.len(), 1);
}
