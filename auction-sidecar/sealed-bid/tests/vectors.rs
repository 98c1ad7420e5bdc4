//! The interop vectors in the repository are what this crate computes.
#![allow(clippy::unwrap_used)] // Helpers of tests fail like tests.

mod support;

use serde_json::Value;
use std::collections::BTreeSet;

/// Files that the crate of the rounds computes and checks.
const OF_ROUNDS: [&str; 2] = ["certificate.json", "faults.json"];

#[test]
fn the_vectors_are_what_is_computed() {
    let mut computed = BTreeSet::new();
    for (name, expected) in support::vectors::all() {
        let text = std::fs::read_to_string(support::vectors::folder().join(name)).unwrap();
        let stored: Value = serde_json::from_str(&text).unwrap();
        assert!(stored == expected, "{name} has drifted: run the example `vectors` if that is meant");
        computed.insert(name.to_owned());
    }
    let stored: BTreeSet<String> = std::fs::read_dir(support::vectors::folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".json") && !OF_ROUNDS.contains(&name.as_str()))
        .collect();
    assert_eq!(stored, computed, "each file has a function that computes it");
}
