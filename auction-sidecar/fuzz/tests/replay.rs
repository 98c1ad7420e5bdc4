//! Every target on its corpus and on seeded changes of it, for a bounded time; and that targets can fail.
#![allow(clippy::unwrap_used)] // Helpers of tests fail like tests.

use std::collections::BTreeSet;
use vendue_auction_fuzz::drive::Campaign;
use vendue_auction_fuzz::{Cost, Target, all, by_name, corpus};

/// Changed inputs for each target, by cost.
fn executions(cost: Cost) -> u64 {
    match cost {
        Cost::Bytes => 1_500,
        Cost::Signature => 60,
        Cost::Pairing => 12,
        Cost::Round => 3,
    }
}

fn campaigns(part: usize) {
    for target in all().collect::<Vec<_>>().into_iter().skip(part).step_by(2) {
        let seeds = corpus::seeds(target.name);
        assert!(!seeds.is_empty(), "{} has no corpus", target.name);
        let mut campaign = Campaign::new(target, 1);
        campaign.replay().unwrap();
        let accepted = campaign.tally.accepted;
        assert_eq!(accepted, seeds.len() as u64, "{} refuses what was really said", target.name);
        campaign.run(executions(target.cost)).unwrap();
        assert!(campaign.tally.accepted < campaign.tally.executions, "{} refuses nothing", target.name);
    }
}

#[test]
fn the_corpus_and_changes_of_it_hold_in_every_other_target() {
    campaigns(0);
}

#[test]
fn the_corpus_and_changes_of_it_hold_in_the_other_targets() {
    campaigns(1);
}

#[test]
fn names_are_unique_and_every_target_has_a_binary_of_libfuzzer() {
    let names: BTreeSet<&str> = all().map(|t| t.name).collect();
    assert_eq!(names.len(), all().count());
    let manifest = include_str!("../libfuzzer/Cargo.toml");
    let lines = manifest.lines().filter_map(|l| l.strip_prefix("[[bin]] # ")).collect::<BTreeSet<&str>>();
    assert_eq!(lines, names, "libfuzzer/Cargo.toml and the targets differ");
    assert!(names.iter().all(|name| manifest.contains(&format!("name = \"{name}\"\n"))));
}

fn caught(run: fn(&[u8]) -> bool) -> String {
    let target = Target { run, ..by_name("wire_set").unwrap() };
    let mut campaign = Campaign::new(target, 1);
    let failure = campaign.replay().and_then(|()| campaign.run(2_000)).unwrap_err();
    assert!((by_name("wire_set").unwrap().run)(&corpus::seeds("wire_set")[0]), "the real one accepts it");
    failure.message
}

#[test]
fn a_decoder_that_breaks_a_promise_is_caught() {
    use vendue_auction_fuzz::bounds::bounded;
    // Believes a length; has two encodings of a value; goes beyond the end.
    let greedy = |bytes: &[u8]| {
        let len = bytes.iter().map(|b| usize::from(*b)).sum::<usize>() * 100_000;
        bounded(bytes.len(), 4, || Vec::<u8>::with_capacity(len)).capacity() > 0
    };
    assert!(caught(greedy).contains("bytes allocated"));
    let loose = |bytes: &[u8]| {
        let value = bytes.first().map(|b| b % 6);
        assert_eq!(value, bytes.first().copied(), "two encodings");
        true
    };
    assert!(caught(loose).contains("two encodings"));
    let careless = |bytes: &[u8]| bytes[bytes.len() - 1] == bytes[40];
    assert!(caught(careless).contains("out of bounds") || caught(careless).contains("overflow"));
}

#[test]
fn the_same_seed_makes_the_same_inputs() {
    let tally = |seed| {
        let mut campaign = Campaign::new(by_name("wire_proof").unwrap(), seed);
        campaign.run(500).unwrap();
        campaign.tally.accepted
    };
    assert_eq!(tally(3), tally(3));
}
