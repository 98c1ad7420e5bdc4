//! The arrows between the workspace's crates, and nothing beside them; and what a pure crate may not know.
//!
//! Cargo unifies features over a workspace, so a fence that is only a convention erodes without anybody noticing.

// The lint's exception for tests covers test functions only, not what they share.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Crate -> the crates of this workspace that it may depend on. `docs/architecture.md` draws the same arrows.
const ARROWS: &[(&str, &[&str])] = &[
    ("vendue-market", &[]),
    ("vendue-signatures", &[]),
    ("vendue-receipts", &["vendue-market", "vendue-signatures"]),
    ("vendue-receipts-store", &["vendue-receipts"]),
    ("vendue-gpu-sim", &[]),
    ("vendue-nvml-sim", &["vendue-gpu-sim"]),
    ("vendue-cuda-sim", &["vendue-gpu-sim"]),
    ("vendue-sealed-bid", &[]),
    ("vendue-crds", &["vendue-market"]),
    ("vendue-controller-core", &["vendue-crds", "vendue-market", "vendue-receipts"]),
    (
        "vendue-controller",
        &[
            "vendue-controller-core",
            "vendue-crds",
            "vendue-market",
            "vendue-receipts",
            "vendue-receipts-store",
        ],
    ),
    ("vendue-auction-core", &["vendue-market", "vendue-sealed-bid", "vendue-signatures"]),
    (
        "vendue-auction",
        &[
            "vendue-auction-core",
            "vendue-sealed-bid",
            "vendue-market",
            "vendue-receipts",
            "vendue-receipts-store",
            "vendue-crds",
        ],
    ),
    ("vendue-auction-sim", &["vendue-auction-core", "vendue-sealed-bid", "vendue-market"]),
    (
        "vendue-auction-fuzz",
        &[
            "vendue-auction-sim",
            "vendue-auction-core",
            "vendue-sealed-bid",
            "vendue-market",
            "vendue-receipts",
            "vendue-crds",
        ],
    ),
    // Its benchmark, a program of its own, simulates GPUs.
    ("vendue-gpu-agent", &["vendue-crds", "vendue-receipts", "vendue-receipts-store", "vendue-gpu-sim"]),
    ("kubectl-vendue", &["vendue-auction-core", "vendue-market", "vendue-receipts", "vendue-crds"]),
    ("vendue-testbed", &["vendue-crds", "vendue-market"]),
];

/// Crates that decide and therefore may do no IO.
const PURE: &[&str] = &[
    "vendue-market",
    "vendue-signatures",
    "vendue-receipts",
    "vendue-sealed-bid",
    "vendue-auction-core",
    "vendue-controller-core",
];

/// What a pure crate may not reach, however far away.
const IO: &[&str] = &["tokio", "libp2p", "kube-client", "kube-runtime", "hyper", "reqwest", "axum"];

fn metadata(extra: &[&str]) -> Value {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline", "--manifest-path", manifest])
        .args(extra)
        .output()
        .expect("run cargo metadata");
    assert!(out.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).expect("cargo metadata prints JSON")
}

#[test]
fn crates_depend_only_along_the_arrows() {
    let meta = metadata(&["--no-deps"]);
    let allowed: BTreeMap<&str, BTreeSet<&str>> =
        ARROWS.iter().map(|(name, to)| (*name, to.iter().copied().collect())).collect();
    let packages = meta["packages"].as_array().expect("packages");
    let names: BTreeSet<&str> = packages.iter().filter_map(|p| p["name"].as_str()).collect();
    assert_eq!(
        names,
        allowed.keys().copied().collect(),
        "every crate of the workspace has its arrows listed"
    );
    for package in packages {
        let from = package["name"].as_str().expect("name");
        for dep in package["dependencies"].as_array().expect("dependencies") {
            let to = dep["name"].as_str().expect("dependency name");
            // A test may look at more than the code that ships.
            let ships = dep["kind"].is_null() || dep["kind"] == "build";
            if ships && names.contains(to) {
                assert!(allowed[from].contains(to), "{from} may not depend on {to}");
            }
        }
    }
}

#[test]
fn pure_crates_reach_no_io() {
    for name in PURE {
        let out = Command::new(env!("CARGO"))
            .args([
                "tree",
                "--locked",
                "--offline",
                "--edges",
                "normal,build",
                "--prefix",
                "none",
                "--package",
                name,
            ])
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
            .output()
            .expect("run cargo tree");
        assert!(out.status.success(), "cargo tree {name}: {}", String::from_utf8_lossy(&out.stderr));
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let reached: BTreeSet<&str> = text.lines().filter_map(|line| line.split(' ').next()).collect();
        for io in IO {
            assert!(!reached.contains(io), "{name} reaches {io}");
        }
    }
}
