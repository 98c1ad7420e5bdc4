//! Each check of an invariant is able to fail: a rule is broken on purpose, or more than f seats are faulty.
#![allow(clippy::unwrap_used)] // Helpers of tests fail like tests.

use std::collections::BTreeSet;
use vendue_auction_core::wire::Kind;
use vendue_auction_core::{HomeInput, HomeOutput, NewOrder};
use vendue_auction_sim::keys::MockKeys;
use vendue_auction_sim::{
    Config, Deviation, Event, FalseRecords, Fault, KindName, Schedule, World, offer, requirements,
};

fn broken(schedule: &Schedule) -> BTreeSet<&'static str> {
    schedule.run().unwrap().violations.iter().map(|v| v.invariant).collect()
}

/// All seats that deviate are taken for honest ones.
fn trusted(deviations: Vec<(u16, Deviation)>) -> Schedule {
    let trusted = deviations.iter().map(|(seat, _)| *seat).collect();
    Schedule { deviations, trusted, ..Schedule::four(41) }
}

#[test]
fn i1_two_final_sets() {
    // The fast path is out of the way, and everybody locks two sets.
    let mut deviations: Vec<_> = (0..3).map(|seat| (seat, Deviation::TwoLocks)).collect();
    deviations.push((3, Deviation::Silent));
    assert!(broken(&trusted(deviations)).contains("I1"));
}

#[test]
fn i2_a_share_before_the_commit() {
    let broken = broken(&trusted(vec![(1, Deviation::EarlyShare)]));
    assert!(broken.contains("I2"), "{broken:?}");
}

#[test]
fn i3_an_honest_seat_that_votes_for_another_root() {
    let broken = broken(&trusted(vec![(1, Deviation::WrongAward)]));
    assert!(broken.contains("I3"), "{broken:?}");
}

#[test]
fn i4_a_bundle_that_no_honest_seat_listed() {
    // One more than f: two faulty seats admit what only they have.
    let schedule = Schedule {
        deviations: vec![
            (0, Deviation::Only(KindName::Bundle, 1)),
            (1, Deviation::Only(KindName::Bundle, 3)),
        ],
        synchronous_from: None,
        ..Schedule::four(42)
    };
    assert_eq!(broken(&schedule), BTreeSet::from(["I4"]));
}

#[test]
fn i4_a_bundle_that_an_honest_seat_lists_and_has_from_somebody_else_only() {
    // Seat 3 gives its bundle to seat 0, which forwards it, and seat 1 lists it for that.
    let deviations =
        vec![(3, Deviation::Only(KindName::Bundle, 1)), (0, Deviation::Replay), (1, Deviation::ClaimAll)];
    let schedule = Schedule { deviations, trusted: vec![1], synchronous_from: None, ..Schedule::four(47) };
    let violations = schedule.run().unwrap().violations;
    let not_had = "a bundle of seat 3 is in no honest SET in time";
    assert!(violations.iter().any(|v| v.invariant == "I4" && v.what.ends_with(not_had)), "{violations:?}");
}

#[test]
fn i5_a_bundle_in_time_that_is_left_out() {
    let broken = broken(&trusted((0..4).map(|seat| (seat, Deviation::Omit(0))).collect()));
    assert!(broken.contains("I5"), "{broken:?}");
}

#[test]
fn i6_statements_that_no_honest_seat_makes() {
    for deviation in [
        Deviation::TwoBundles,
        Deviation::TwoSets,
        Deviation::FalseFull,
        Deviation::WrongShare,
        Deviation::ForgedCommit,
        Deviation::TwoAwards,
        Deviation::WrongAward,
        Deviation::MauledBundle(0),
        Deviation::LateBundle(150),
    ] {
        let broken = broken(&trusted(vec![(2, deviation)]));
        assert!(broken.contains("I6"), "{deviation:?}: {broken:?}");
    }
    let with_views = |deviation| {
        let deviations: Vec<_> = [Deviation::PartialBundle(1), Deviation::Only(KindName::Set, 1), deviation]
            .map(|d| (2, d))
            .to_vec();
        Schedule { orders: 6, ..trusted(deviations) }
    };
    for deviation in [Deviation::TwoAdmits, Deviation::ForgedNewView, Deviation::FalseProposal] {
        let broken = broken(&with_views(deviation));
        assert!(broken.contains("I6"), "{deviation:?}: {broken:?}");
    }
}

#[test]
fn i6_a_made_up_proof_that_holds() {
    // Who is taken for honest and is not can be framed with the truth.
    let deviations = vec![(1, Deviation::Frame), (2, Deviation::WrongAward)];
    let schedule = Schedule { deviations, trusted: vec![2], ..Schedule::four(46) };
    let violations = schedule.run_with::<MockKeys>().unwrap().violations;
    assert!(
        violations.iter().any(|v| v.what == "seat 1 proves WrongAward of honest seat 2"),
        "{violations:?}"
    );
}

#[test]
fn i8_a_quorum_of_shares_with_nothing_final() {
    let broken = broken(&trusted((0..3).map(|seat| (seat, Deviation::EarlyShare)).collect()));
    assert!(broken.contains("I8"), "{broken:?}");
}

#[test]
fn i10_another_outcome_and_nobody_to_blame() {
    // Not a fault: a bid that is cheaper than the honest run's, and binding.
    let deviations = vec![(3, Deviation::FalseRecords(FalseRecords::OutOfCapacity))];
    let schedule = Schedule { deviations, ..Schedule::four(45) };
    let report = schedule.run_with::<MockKeys>().unwrap();
    let violations = schedule.compare::<MockKeys>(&report).unwrap();
    assert_eq!(violations.iter().map(|v| v.invariant).collect::<Vec<_>>(), ["I10"]);
    // The cheapest seat keeps its bundle to itself: that explains it.
    let deviations = vec![(0, Deviation::Only(KindName::Bundle, 0))];
    let schedule = Schedule { deviations, ..Schedule::four(45) };
    let report = schedule.run_with::<MockKeys>().unwrap();
    assert_eq!(schedule.compare::<MockKeys>(&report).unwrap(), []);
}

#[test]
fn i16_a_seat_that_floods_the_others() {
    let flood = trusted(vec![(1, Deviation::FetchFlood(1_200))]);
    let broken = broken(&Schedule { orders: 3, ..flood });
    assert!(broken.contains("I16"), "{broken:?}");
}

#[test]
fn i19_a_share_in_the_gate() {
    // Rounds that need a second view commit while the next one collects.
    let deviations = vec![
        (2, Deviation::PartialBundle(1)),
        (2, Deviation::Only(KindName::Set, 1)),
        (1, Deviation::Ungated),
    ];
    let schedule = Schedule { deviations, trusted: vec![1], orders: 6, ..Schedule::four(46) };
    let report = schedule.run_with::<MockKeys>().unwrap();
    assert!(report.violations.iter().any(|v| v.invariant == "I19"), "{:?}", report.violations);
}

#[test]
fn i9_a_round_that_expires_although_the_network_is_good() {
    let deviations = vec![(0, Deviation::Silent), (1, Deviation::Silent)];
    let schedule = Schedule { until_ms: 14_000, deviations, ..Schedule::four(43) };
    assert!(broken(&schedule).contains("I9"));
}

fn one_order() -> World {
    let offers = (0..4).map(|i| vec![offer(&format!("p{i}"), 2_000_000 + i, 8).unwrap()]).collect();
    let mut world = World::new(Config::four(44), offers).unwrap();
    world.run_until(500);
    world.tell_home(HomeInput::Submit(Box::new(NewOrder {
        terms: Box::default(),
        job: "job".into(),
        attempt: 1,
        requirements: requirements(1, 5_000_000).unwrap(),
        commitment: [9; 32],
        expires_ms: 60_000,
    })));
    world
}

#[test]
fn i6_a_seat_that_restarts_and_speaks_again() {
    let mut contradictions = 0;
    for at in [1_010, 1_040, 1_090, 1_110] {
        let mut world = one_order();
        // There is no fast path, and the order reaches the seat again after its restart.
        world.faults.entry(3).or_default().insert(Fault::Keep(Kind::Bundle, 1));
        world.run_until(at);
        world.restart_without_caution(1).unwrap();
        world.run_until(4_000);
        contradictions += world.watch.take_violations().iter().filter(|v| v.invariant == "I6").count();
    }
    assert!(contradictions > 0);
}

#[test]
fn i7_devices_that_are_not_there() {
    let mut world = one_order();
    // The provider sells something else behind the back of its seat.
    world.controllers[0].sell(vec![]);
    world.run_until(4_000);
    let broken: Vec<_> = world.watch.take_violations().iter().map(|v| v.invariant).collect();
    assert_eq!(broken, ["I7"]);
}

#[test]
fn i7_an_order_that_is_handed_over_again() {
    let mut world = one_order();
    let handed = |world: &World| {
        world.events.iter().filter(|(_, e)| matches!(e, Event::Home(HomeOutput::HandOver { .. }))).count()
    };
    let body = world.events.iter().find_map(|(_, e)| match e {
        Event::Home(HomeOutput::Ordered { order, .. }) => Some((**order).clone()),
        _ => None,
    });
    let chosen = |w: &World| w.events.iter().any(|(_, e)| matches!(e, Event::Home(HomeOutput::Choose(_))));
    while !chosen(&world) {
        world.run_until(world.now + 1);
    }
    // Nobody hears that the order is taken, home loses its choice, and the chosen seat does not answer any more.
    for seat in 0..4 {
        world.faults.entry(seat).or_default().insert(Fault::CutOff);
    }
    world.run_until(world.now + 10);
    world.faults.retain(|seat, _| *seat == 0);
    world.restart_home(vec![(body.unwrap(), None)]).unwrap();
    world.run_until(12_000);
    let broken: BTreeSet<_> = world.watch.take_violations().iter().map(|v| v.invariant).collect();
    assert_eq!((handed(&world), broken), (2, BTreeSet::from(["I7"])));
}

#[test]
fn a_failing_schedule_is_made_smaller_and_runs_again_from_its_file() {
    let mut schedule = Schedule::random(3, 4);
    schedule.deviations = vec![
        (1, Deviation::PartialBundle(1)),
        (1, Deviation::EarlyShare),
        (1, Deviation::Mute(KindName::Award)),
    ];
    schedule.trusted = vec![1];
    let opens = |s: &Schedule| s.run().is_ok_and(|r| r.violations.iter().any(|v| v.invariant == "I2"));
    let smallest = schedule.shrink(opens);
    assert_eq!(smallest.deviations, [(1, Deviation::EarlyShare)]);
    assert_eq!((smallest.orders, smallest.partitions.len()), (1, 0));
    let read = Schedule::from_json(&smallest.to_json()).unwrap();
    assert_eq!(read, smallest);
    assert!(opens(&read));
}
