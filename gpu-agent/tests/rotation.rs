//! Key rotation with the files of a node, as a crash at each of its steps leaves them.

// Helpers of tests fail by panicking too; the lint's own exception covers only the test functions.
#![allow(clippy::expect_used)]

use std::path::{Path, PathBuf};

use vendue_gpu_agent::meter::key::{self, KEY_FILE, NEXT_FILE};
use vendue_gpu_agent::meter::{DeviceTick, Keeper, Reading, Store, Tick, options};
use vendue_receipts::{AwardId, Body, BootId, NodeKey, PublicKey, Record, hour_of, verify_node};

const A: AwardId = AwardId([0xaa; 8]);
const START_MS: u64 = 1_800_000_000_000;

/// So many seconds pass, of which the device serves this award.
fn serve(keeper: &Keeper, award: AwardId, seconds: std::ops::Range<u64>) {
    for second in seconds {
        let reading = Reading {
            energy_mj: Some(second * 700_000),
            activity: None,
            memory_used_bytes: None,
            driver: "580.1".parse().expect("driver"),
        };
        let device = "GPU-0".parse().expect("device");
        keeper.put(Tick {
            steady_ns: second * 1_000_000_000,
            suspended_ns: 0,
            system_ms: START_MS + second * 1_000,
            boot: BootId([7; 16]),
            devices: vec![DeviceTick { device, award, xids: vec![], reading: Ok(reading) }],
            ended: vec![],
        });
    }
}

fn read_key(path: &Path) -> NodeKey {
    let text = std::fs::read_to_string(path).expect("key");
    let byte = |i: usize| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).expect("digits");
    NodeKey::from_bytes(&std::array::from_fn(byte)).expect("key")
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("folder");
    for entry in std::fs::read_dir(from).expect("list").map(|entry| entry.expect("entry").path()) {
        let target = to.join(entry.file_name().expect("name"));
        match entry.is_dir() {
            true => copy(&entry, &target),
            false => _ = std::fs::copy(&entry, target).expect("copy"),
        }
    }
}

/// A node that has metered and has the next key waiting; the key before and the next.
fn node(dir: &Path, seconds: u64) -> (PublicKey, PublicKey) {
    std::fs::create_dir_all(dir).expect("folder");
    let keeper = Keeper::start(dir, false).expect("keeper");
    let first = keeper.public_key();
    serve(&keeper, AwardId::IDLE, 0..5);
    serve(&keeper, A, 5..seconds);
    drop(keeper);
    (first, key::draw_next(dir).expect("next key"))
}

/// Every chain is rotated, and the agent killed.
fn rotate(dir: &Path) {
    let (mut store, _) =
        Store::open(options(dir.join("receipts")), read_key(&dir.join(KEY_FILE))).expect("store");
    store.take_over(&read_key(&dir.join(NEXT_FILE)), 0).expect("rotated");
}

fn idle_file(dir: &Path) -> PathBuf {
    let files = std::fs::read_dir(dir.join("receipts")).expect("list").map(|e| e.expect("entry").path());
    let is_idle = |path: &PathBuf| {
        path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("0000000000000000-"))
            && path.extension().is_some_and(|e| e == "segment")
    };
    files.into_iter().find(is_idle).expect("the idle chain")
}

/// The records of each chain.
fn records(dir: &Path) -> Vec<Vec<Record>> {
    let (store, _) =
        Store::open(options(dir.join("receipts")), read_key(&dir.join(KEY_FILE))).expect("store");
    let names: Vec<_> = store.chains().iter().map(|(name, chain)| (name, chain.next_sequence())).collect();
    let all = |(name, next): (_, u64)| {
        let mut all: Vec<Record> = vec![];
        while (all.len() as u64) < next {
            all.extend(store.chains().records(name, all.len() as u64, 1_000).expect("records"));
        }
        all
    };
    names.into_iter().map(all).collect()
}

#[test]
fn a_crash_at_any_step_is_gone_on_from_and_the_chains_verify() {
    let dir = tempfile::tempdir().expect("dir");
    let drawn = dir.path().join("drawn");
    let (first, next) = node(&drawn, 30);
    let [some, all, renamed] = ["some", "all", "renamed"].map(|step| dir.path().join(step));
    [&some, &all, &renamed].into_iter().for_each(|step| copy(&drawn, step));
    [&all, &renamed].into_iter().for_each(|step| rotate(step));
    // Each chain is written and synced for itself.
    std::fs::copy(idle_file(&all), idle_file(&some)).expect("copy");
    std::fs::rename(renamed.join(NEXT_FILE), renamed.join(KEY_FILE)).expect("rename");

    for step in [drawn, some, all, renamed] {
        let keeper = Keeper::start(&step, false).expect("keeper");
        assert_eq!(keeper.public_key(), next, "{}", step.display());
        assert!(!step.join(NEXT_FILE).exists());
        serve(&keeper, A, 32..55);
        assert_eq!(keeper.kept().error, None);
        drop(keeper);
        assert_eq!(read_key(&step.join(KEY_FILE)).public(), next);

        let chains = records(&step);
        assert_eq!(chains.len(), 2, "no chain is begun anew");
        for chain in &chains {
            let rotated = chain.iter().filter(|r| matches!(&r.body, Body::Rotated(r) if r.next_key == next));
            assert_eq!(rotated.count(), 1, "{}", step.display());
        }
        let chains: Vec<&[Record]> = chains.iter().map(Vec::as_slice).collect();
        let totals = verify_node(first, &chains).expect("from the first key on");
        let sums = &totals[&"GPU-0".parse().expect("device")];
        assert_eq!((sums.missing_ms, sums.awards_ns / 1_000_000_000), (0, 24 + 22), "{}", step.display());
        // The next start has nothing left to do.
        assert_eq!(Keeper::start(&step, false).expect("keeper").public_key(), next);
    }
}

#[test]
fn no_rotation_is_in_an_hour_that_is_stated() {
    let dir = tempfile::tempdir().expect("dir");
    let keeper = Keeper::start(dir.path(), false).expect("keeper");
    // The award's chain stays open and says nothing more; nor does the idle one, for the device is away.
    serve(&keeper, A, 0..20);
    for second in [3_600, 3_700, 3_710] {
        let (suspended_ns, devices, ended) = (0, vec![], vec![]);
        let (steady_ns, system_ms) = (second * 1_000_000_000, START_MS + second * 1_000);
        keeper.put(Tick { steady_ns, suspended_ns, system_ms, boot: BootId([7; 16]), devices, ended });
    }
    drop(keeper);
    let stated = std::fs::read_to_string(dir.path().join("receipts/hours.json")).expect("hours");
    assert!(stated.contains(&format!("\"last\":{}", hour_of(START_MS))), "{stated}");
    let next = key::draw_next(dir.path()).expect("next key");
    drop(Keeper::start(dir.path(), false).expect("keeper"));
    let chains = records(dir.path());
    let rotated: Vec<u64> = chains
        .iter()
        .flatten()
        .filter(|record| matches!(&record.body, Body::Rotated(r) if r.next_key == next))
        .map(|record| hour_of(record.body.time_ms()))
        .collect();
    assert!(!rotated.is_empty() && rotated.iter().all(|hour| *hour > hour_of(START_MS)), "{rotated:?}");
}

#[test]
fn a_key_that_was_in_force_before_rotates_nothing_and_that_is_told() {
    let dir = tempfile::tempdir().expect("dir");
    let (key, aside, next) =
        (dir.path().join(KEY_FILE), dir.path().join("aside"), dir.path().join(NEXT_FILE));
    node(dir.path(), 20);
    std::fs::copy(&key, &aside).expect("copy");
    let keeper = Keeper::start(dir.path(), false).expect("keeper");
    // A chain that the key before has not signed would take it.
    serve(&keeper, AwardId([0xbb; 8]), 20..35);
    let second = keeper.public_key();
    drop(keeper);
    std::fs::rename(&aside, &next).expect("rename");

    let before = records(dir.path());
    let keeper = Keeper::start(dir.path(), false).expect("keeper");
    serve(&keeper, A, 40..60);
    assert_eq!(keeper.public_key(), second);
    let error = keeper.kept().error.expect("told");
    assert!(error.starts_with("go over to the next key: "), "{error}");
    drop(keeper);
    assert_eq!(records(dir.path()), before, "nothing is signed by either");

    std::fs::remove_file(&next).expect("given up");
    let keeper = Keeper::start(dir.path(), false).expect("keeper");
    serve(&keeper, A, 60..80);
    assert_eq!((keeper.public_key(), keeper.kept().error.clone()), (second, None));
    drop(keeper);
    assert!(records(dir.path()).iter().flatten().count() > before.iter().flatten().count());
}
