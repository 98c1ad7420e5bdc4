//! The benchmark in its short form: every key is there, and means something.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use vendue_auction_sim::bench::{Emulated, Matrix, Plan, Stage, UNFIT, run};

const KEYS: [&str; 13] = [
    "auctions_per_s_core_n100_k1000",
    "auctions_per_s_core_n16_k1000",
    "single_auction_ms_n100",
    "speedup_vs_threshold_crypto_verified_n100_k1",
    "speedup_vs_threshold_crypto_optimistic_n100_k1",
    "certificate_ms_n100_global_all_up",
    "certificate_ms_n100_global_f_silent",
    "upload_bytes_per_auction_per_seat_n100_k1000",
    "certificate_bytes_n100",
    "dkg_cpu_ms_per_node_n100",
    "clear_us_per_order_n100",
    "clear_us_per_order_n100_growth",
    "sim_rounds_per_s",
];

#[test]
fn a_short_run_gives_every_key() {
    let plan = Plan::quick();
    let report = run(&plan, None, |_| ()).unwrap();
    assert_eq!(report.keys.keys().map(String::as_str).collect::<BTreeSet<_>>(), BTreeSet::from(KEYS));
    for (key, value) in report.keys.iter().chain(&report.details) {
        assert!(value.is_finite() && *value > 0.0, "{key} is {value}");
    }
    for (key, spread) in &report.spread {
        assert!(spread.min <= spread.median && spread.median <= spread.max && spread.runs > 0, "{key}");
    }
    assert_eq!(report.details.get("n100_k1000 awarded"), Some(&(plan.orders as f64)), "all are served");
    let one = run(&plan, Some("clearing"), |_| ()).unwrap();
    assert!(one.keys.len() == 2 && one.keys.keys().all(|key| key.starts_with("clear_us_per_order_n100")));
    assert!(one.details.keys().any(|key| key.starts_with(UNFIT)), "{:?}", one.details);
    assert!(run(&plan, Some("nothing"), |_| ()).is_err());
    // HDR 25, root 32, one byte of bitmap, aggregate 48.
    assert_eq!(report.keys.get("certificate_bytes_n100"), Some(&106.0));
}

#[test]
fn silent_seats_cost_a_wait_and_no_certificate() {
    let (matrix, stage) = (Matrix::global().unwrap(), Stage::new(4, 2).unwrap());
    let certified = |silent: BTreeSet<u16>| {
        let mut emulated = Emulated::new(&matrix, &stage, &silent, 1).unwrap();
        emulated.run().unwrap();
        assert_eq!(emulated.certified_us.len(), 4 - silent.len());
        assert!(emulated.awarded_us.iter().all(|(seat, us)| us <= &emulated.certified_us[seat]));
        emulated.certified_us.into_values().max().unwrap()
    };
    let (all, fewer) = (certified(BTreeSet::new()), certified(BTreeSet::from([3])));
    // Bundles, SETs, shares and votes each cross the longest link; a silent seat makes the others wait for T1 first.
    assert!(all > 100_000 && fewer > 250_000 && fewer > all, "{all} {fewer}");
    let mut none = Emulated::new(&matrix, &stage, &BTreeSet::from([1, 2, 3]), 1).unwrap();
    assert!(none.run().is_err(), "one seat of four decides nothing");
}
