//! Seats that stop at any instant and come back with their log or without it (I15), with stand-in cryptography.
#![allow(clippy::unwrap_used)] // Helpers of tests fail like tests.

use vendue_auction_sim::keys::MockKeys;
use vendue_auction_sim::{Deviation, KindName, Report, Schedule, Stop};

fn run(schedule: &Schedule) -> Report {
    let report = schedule.run_with::<MockKeys>().unwrap();
    assert!(report.violations.is_empty(), "{:?}: {}", report.violations, schedule.to_json());
    report
}

/// Rounds with votes and views in them, so that there is much to contradict.
fn slow(seed: u64) -> Schedule {
    let deviations = vec![(3, Deviation::PartialBundle(1)), (3, Deviation::Only(KindName::Set, 1))];
    Schedule { deviations, orders: 3, until_ms: 9_000, synchronous_from: None, ..Schedule::four(seed) }
}

#[test]
fn a_seat_that_stops_after_any_record_contradicts_nothing() {
    let mut again = 0;
    for records in 1..60 {
        let stops = vec![Stop { seat: 1, records, down_ms: 40 * (records % 4) }];
        again += run(&Schedule { stops, ..slow(records) }).restarts;
    }
    assert!(again >= 40, "{again}: most logs have that many records");
}

#[test]
fn a_seat_that_restarts_with_its_log_at_any_time_contradicts_nothing_and_keeps_its_word() {
    for at in (1_000..2_000).step_by(25) {
        let report = run(&Schedule { logged_restarts: vec![(at, 1)], ..slow(at) });
        assert_eq!(report.restarts, 1);
    }
    // The cheapest seat has won; it comes back, and serves what it has won before it offers it again.
    for at in (1_300..3_000).step_by(100) {
        let logged_restarts = vec![(at, 0), (at + 700, 0), (at + 710, 0)];
        let schedule = Schedule { logged_restarts, orders: 6, until_ms: 16_000, ..Schedule::four(at) };
        let report = run(&Schedule { synchronous_from: None, ..schedule });
        assert!(report.handed_over >= 5, "{at}: {report:?}");
    }
}

#[test]
fn two_seats_of_seven_that_come_and_go_break_nothing() {
    for seed in 0..3 {
        let stops = (0..2).map(|seat| Stop { seat, records: 3 + 7 * seed, down_ms: 300 }).collect();
        let (restarts, logged_restarts) = (vec![(2_100, 2)], vec![(1_600, 3), (2_900, 4)]);
        let report =
            run(&Schedule { stops, restarts, logged_restarts, seats: 7, until_ms: 7_000, ..slow(seed) });
        assert!(report.restarts >= 4);
    }
}

#[test]
fn a_process_that_is_down_says_nothing_when_its_clock_is_set() {
    // It stops at any record of the votes and shares of its third round, and its clock is set before it starts again.
    let (mut runs, mut set) = (0, 0);
    for records in 28..40 {
        for at in (3_105..4_003).step_by(180) {
            let stops = vec![Stop { seat: 0, records, down_ms: 1_222 }];
            let schedule = Schedule { stops, clocks_set: vec![(at, 0, -156)], ..Schedule::four(39_225) };
            let report = run(&Schedule { orders: 12, until_ms: 1_625, synchronous_from: None, ..schedule });
            runs += 1;
            set += report.set_while_down;
        }
    }
    assert!(set >= runs / 2, "{set} of {runs}: most are down by then");
}
