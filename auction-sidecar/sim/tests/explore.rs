//! All runs of one round within bounds, in short. The long form is `auction-sim explore`.
#![allow(clippy::unwrap_used)] // Helpers of tests fail like tests.

use vendue_auction_sim::explore::{Bounds, Broken, Conduct, Found, explore, explore_broken};

const BOUNDS: Bounds = Bounds {
    views: 1,
    deviations: 0,
    only: None,
    conduct: Conduct::Anything,
    versions: 1,
    states: 5_000_000,
    every_order: false,
};

fn all(bounds: Bounds) -> Found {
    let found = explore(&bounds, |_| {}).unwrap();
    assert!(found.violations.is_empty(), "{:#?}", found.violations);
    assert!(found.complete, "{found:?}");
    found
}

/// The invariant does not hold with this rule broken, and the search says so.
fn caught(broken: Broken, invariant: &str, bounds: Bounds) {
    let found = explore_broken(&bounds, broken, invariant).unwrap();
    let names: Vec<&String> = found.violations.keys().collect();
    assert!(names.iter().any(|name| name.starts_with(invariant)), "{broken:?}: {names:?}");
}

#[test]
fn one_message_late_or_lost_and_a_seat_that_is_silent() {
    let found = all(Bounds { views: 2, deviations: 1, conduct: Conduct::Silent, ..BOUNDS });
    assert!(found.committed > 10 && found.depth == 17, "{found:?}");
}

#[test]
fn a_faulty_seat_that_votes_in_view_0() {
    let found = all(Bounds { views: 0, conduct: Conduct::Votes, ..BOUNDS });
    assert!(found.committed > 10 && found.compared > 10, "{found:?}");
}

#[test]
fn two_orders_stand_for_all() {
    let bounds = Bounds { views: 0, conduct: Conduct::Votes, ..BOUNDS };
    let (two, every) = (all(bounds), all(Bounds { every_order: true, ..bounds }));
    assert_eq!((two.states, two.committed, two.undecided), (every.states, every.committed, every.undecided));
}

#[test]
fn a_seat_that_admits_twice() {
    caught(Broken::AdmitsTwice, "I6", BOUNDS);
}

#[test]
fn a_seat_that_ignores_its_lock() {
    caught(Broken::IgnoresLock, "I6: an honest seat is guilty of AgainstLock", BOUNDS);
}

#[test]
fn a_lock_without_a_quorum() {
    caught(Broken::LocksWithoutQuorum, "I6", BOUNDS);
}

#[test]
fn a_share_before_the_commit() {
    caught(Broken::OpensBeforeCommit, "I2", BOUNDS);
    caught(Broken::OpensBeforeCommit, "I8", BOUNDS);
}

#[test]
fn one_lister_is_enough() {
    caught(Broken::AdmitsWhatOneLists, "I4", BOUNDS);
}

#[test]
fn f_plus_1_listers_are_not_enough() {
    caught(Broken::AdmitsWhatQuorumLists, "I5", BOUNDS);
}

#[test]
fn nobody_locks() {
    caught(Broken::NeverLocks, "I9", Bounds { conduct: Conduct::Silent, ..BOUNDS });
}

#[test]
fn awards_of_its_own() {
    caught(Broken::AwardsOfItsOwn, "I3", BOUNDS);
}
