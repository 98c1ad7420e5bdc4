//! Sweeps in short. The long forms are commands of the program `auction-sim`.
#![allow(clippy::unwrap_used)] // Helpers of tests fail like tests.

use std::collections::{BTreeMap, BTreeSet};
use vendue_auction_sim::keys::{MockKeys, RealKeys};
use vendue_auction_sim::sweep::{Plan, Tally, sweep};
use vendue_auction_sim::{Deviation, Hold, KindName, Schedule, all_deviations};

fn plan(seats: u16, rounds: u64) -> Plan {
    Plan { seats, rounds, seed: 100, beyond: false }
}

fn run(plan: &Plan) -> Tally {
    let tally = sweep::<MockKeys>(plan, |_| {}).unwrap();
    let failed: Vec<_> = tally.failures.iter().map(|f| (&f.violations, f.schedule.to_json())).collect();
    assert!(failed.is_empty(), "{failed:?}");
    tally
}

#[test]
fn a_sweep_of_four_seats() {
    let tally = run(&plan(4, 200));
    assert!(tally.certified * 10 > tally.rounds * 5, "{tally:?}");
    assert!(tally.alone > 0 && tally.new_views > 0 && !tally.proven.is_empty());
}

#[test]
fn a_sweep_of_seven_seats() {
    run(&plan(7, 24));
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let (first, again) = (run(&plan(4, 100)), run(&plan(4, 100)));
    assert_eq!(first.trace, again.trace);
    assert_eq!((first.rounds, first.messages), (again.rounds, again.messages));
    let other = run(&Plan { seed: 101, ..plan(4, 100) });
    assert_ne!(first.trace, other.trace);
    let real = |seed| Schedule::four(seed).run_with::<RealKeys>().unwrap().trace;
    assert_eq!(real(3), real(3));
    assert_ne!(real(3), real(4));
}

#[test]
fn every_behaviour_has_its_turn_alone() {
    let plan = plan(4, 1);
    let alone: Vec<_> = (0..400).map(|at| plan.schedule(at)).filter(|s| s.deviations.len() == 1).collect();
    for deviation in all_deviations(4) {
        assert!(alone.iter().any(|s| s.deviations[0].1 == deviation), "{deviation:?}");
    }
}

#[test]
fn one_beyond_f_the_rest_still_holds() {
    let tally = run(&Plan { beyond: true, ..plan(4, 60) });
    assert!(!tally.beyond.is_empty(), "something does not hold with two faulty seats of four: {tally:?}");
}

#[test]
fn who_splits_a_round_beyond_f_is_proven_to_have_done_it() {
    // Seats 2 and 3 are kept apart and differ about the bundle of seat 0; seats 0 and 1 vote with both.
    let hold = |kind, from: u16, to: u16| {
        let (from, to) = (BTreeSet::from([from]), BTreeSet::from([to]));
        Hold { kind, from, to, from_ms: 1_000, until_ms: 4_000 }
    };
    let kinds = [KindName::Set, KindName::Admit, KindName::Lock, KindName::Commit, KindName::Open];
    let holds = kinds.iter().flat_map(|kind| [hold(*kind, 2, 3), hold(*kind, 3, 2)]);
    let schedule = Schedule {
        holds: holds.collect(),
        deviations: vec![
            (0, Deviation::Only(KindName::Bundle, 2)),
            (0, Deviation::Echo),
            (1, Deviation::Omit(0)),
            (1, Deviation::Echo),
        ],
        synchronous_from: None,
        ..Schedule::four(51)
    };
    let report = schedule.run_with::<MockKeys>().unwrap();
    assert!(report.violations.iter().any(|v| v.invariant == "I1"), "{report:?}");
    assert!(report.violations.iter().all(|v| v.invariant != "I20"), "{:?}", report.violations);
    assert_eq!(report.splits, BTreeMap::from([(0, BTreeSet::from([0, 1]))]));
    // Both are needed for it: with one of them there is no split.
    for alone in [0, 1] {
        let deviations = schedule.deviations.iter().filter(|(seat, _)| *seat == alone).copied().collect();
        let report = Schedule { deviations, ..schedule.clone() }.run_with::<MockKeys>().unwrap();
        assert_eq!((report.splits.len(), report.violations), (0, vec![]));
    }
}

#[test]
fn a_schedule_that_fails_is_found_and_made_small() {
    // Rules that hold with at most f faulty seats are asked of a market with more.
    let strict = plan(4, 1);
    let beyond = Plan { beyond: true, ..strict };
    let failing = (0..400).map(|at| beyond.schedule(at)).find_map(|schedule| {
        let (_, violations) = strict.judge::<MockKeys>(&schedule).unwrap();
        let failure = vendue_auction_sim::sweep::Failure { schedule, violations };
        (!failure.violations.is_empty()).then_some(failure)
    });
    let failing = failing.unwrap();
    let small = failing.shrunk::<MockKeys>(&strict);
    assert!(small.deviations.len() <= failing.schedule.deviations.len());
    let read = Schedule::from_json(&small.to_json()).unwrap();
    assert!(!strict.judge::<MockKeys>(&read).unwrap().1.is_empty());
}
