//! Faulty seats, each way of being faulty alone and in random mixes, with stand-in cryptography; what rests on the real one
//! is run with it. The invariants are checked at every send.
#![allow(clippy::unwrap_used)] // Helpers of tests fail like tests.

use std::collections::BTreeSet;
use vendue_auction_core::SeatOutput;
use vendue_auction_core::proof::Fault;
use vendue_auction_core::wire::{Body, OrderMsg};
use vendue_auction_sim::keys::{Keys, MockKeys, RealKeys};
use vendue_auction_sim::{
    Config, Deviation, Event, FalseRecords, Freeze, HomeFault, KindName, Partition, Report, Schedule, World,
    all_deviations, offer, requirements,
};
use vendue_market::{Order, Outcome, Terms};

fn run(schedule: &Schedule) -> Report {
    run_with::<MockKeys>(schedule)
}

fn run_with<K: Keys>(schedule: &Schedule) -> Report {
    let report = schedule.run_with::<K>().unwrap();
    if !report.violations.is_empty() {
        let smallest = schedule.shrink(|s| s.run_with::<K>().is_ok_and(|r| !r.violations.is_empty()));
        let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.json", schedule.seed));
        std::fs::write(&path, smallest.to_json()).unwrap();
        assert!(
            report.violations.is_empty(),
            "{:?}: replay with {}: {smallest:?}",
            report.violations,
            path.display()
        );
    }
    report
}

#[test]
fn each_deviation_of_one_of_four_alone() {
    for seat in [0, 3] {
        for deviation in all_deviations(4) {
            let report = run(&Schedule { deviations: vec![(seat, deviation)], ..Schedule::four(31) });
            assert_eq!(report.handed_over, 1, "{deviation:?} of seat {seat}");
            assert!(report.proven.iter().all(|(s, _)| *s == seat), "{deviation:?}: {:?}", report.proven);
        }
    }
}

#[test]
fn what_can_be_proven_is() {
    // Something must go wrong in view 0 for the views after it to be spoken in.
    let split = [Deviation::PartialBundle(1), Deviation::Only(KindName::Set, 1)];
    for (deviation, splits, fault) in [
        (Deviation::TwoBundles, false, Fault::TwoBundles),
        (Deviation::TwoSets, false, Fault::TwoSets),
        (Deviation::TwoAdmits, false, Fault::TwoVotes),
        // A LOCK for a second set in a view has no quorum of ADMITs to show.
        (Deviation::TwoLocks, false, Fault::Unjustified),
        (Deviation::FalseFull, false, Fault::Unjustified),
        (Deviation::ForgedCommit, false, Fault::Unjustified),
        (Deviation::WrongShare, false, Fault::BadShare),
        (Deviation::TwoAwards, false, Fault::WrongAward),
        (Deviation::WrongAward, false, Fault::WrongAward),
        (Deviation::MauledBundle(2), false, Fault::Garbage),
        (Deviation::CopiedBundle, false, Fault::Garbage),
        (Deviation::LateBundle(150), false, Fault::Absent),
        (Deviation::FalseProposal, true, Fault::Unjustified),
        (Deviation::ForgedNewView, true, Fault::Unjustified),
    ] {
        let mut deviations = vec![(1, deviation)];
        deviations.extend(split.iter().filter(|_| splits).map(|d| (1, *d)));
        // Without a fast path there are votes in every round.
        let slow = [Deviation::TwoLocks, Deviation::TwoSets, Deviation::TwoAdmits].contains(&deviation);
        deviations.extend(slow.then_some((1, Deviation::PartialBundle(1))));
        let mut schedule = Schedule { deviations, orders: 6, until_ms: 12_000, ..Schedule::four(32) };
        if deviation == Deviation::TwoSets {
            // Each half sees one SET, until NEWVIEWs show both.
            let side = BTreeSet::from([0, 1]);
            schedule.partitions = vec![Partition { from_ms: 1_125, until_ms: 2_000, side }];
            schedule.synchronous_from = Some(3_000);
        }
        let report = run_with::<RealKeys>(&schedule);
        assert_eq!(report.handed_over, 6, "{deviation:?}");
        let mock = run(&schedule);
        let faults = |report: &Report| report.proven.iter().map(|(_, f)| *f).collect::<BTreeSet<_>>();
        assert!(faults(&mock).contains(&fault), "{deviation:?}: {mock:?}");
        let kinds: BTreeSet<Fault> = report.proven.iter().map(|(_, fault)| *fault).collect();
        assert!(kinds.contains(&fault), "{deviation:?}: {report:?}");
    }
}

#[test]
fn partial_bundles_cost_a_view_and_no_round() {
    for seed in 0..3 {
        let deviations = vec![(3, Deviation::PartialBundle(1)), (3, Deviation::Only(KindName::Set, 1))];
        let schedule = Schedule { deviations, orders: 8, until_ms: 14_000, ..Schedule::four(seed) };
        let report = run(&schedule);
        println!("seed {seed}: {:?}, {} NEWVIEWs", report.certified, report.new_views);
        assert_eq!(report.handed_over, 8);
        assert!(report.new_views > 0, "view 0 does not always commit");
    }
}

#[test]
fn a_faulty_proposer_costs_its_views_only() {
    use Deviation::{FalseProposal, Mute, Only, PartialBundle, TwoProposals};
    for proposer in [Mute(KindName::Propose), TwoProposals, FalseProposal, Only(KindName::Propose, 1)] {
        let split = [PartialBundle(1), Only(KindName::Set, 1), proposer];
        let deviations = split.map(|d| (2, d)).to_vec();
        let schedule = Schedule { deviations, orders: 8, until_ms: 16_000, ..Schedule::four(5) };
        let report = run(&schedule);
        assert_eq!(report.handed_over, 8, "{proposer:?}");
        assert!(report.new_views > 0);
    }
}

#[test]
fn a_partition_that_heals_before_voting_stops_costs_no_round() {
    // Round 0 starts at 1000, votes from 1100 and stops voting at 5000.
    for (from_ms, until_ms) in [(1_000, 1_250), (1_090, 2_000), (1_150, 2_700), (1_040, 4_000)] {
        for side in [BTreeSet::from([0, 1]), BTreeSet::from([1]), BTreeSet::from([0, 2, 3])] {
            let partitions = vec![Partition { from_ms, until_ms, side: side.clone() }];
            let schedule = Schedule { partitions, synchronous_from: Some(until_ms), ..Schedule::four(6) };
            let report = run(&schedule);
            assert_eq!(report.handed_over, 1);
            assert!(report.certified.contains_key(&0), "{from_ms} to {until_ms}, {side:?}: {report:?}");
        }
    }
}

#[test]
fn skewed_clocks_cost_time_and_nothing_else() {
    for skew in [-500, -90, 90, 500] {
        let mut schedule = Schedule { synchronous_from: None, orders: 3, ..Schedule::four(7) };
        schedule.skew_ms.insert(1, skew);
        let report = run(&schedule);
        assert!(report.handed_over >= 2, "{skew}: {report:?}");
    }
}

#[test]
fn clocks_that_are_set_or_stand_still_break_nothing() {
    for at in [1_020, 1_110, 1_180, 1_300, 1_600] {
        for by in [-3_000, -500, 90, 500, 3_000] {
            let clocks_set = vec![(at, 1, by)];
            run(&Schedule { synchronous_from: None, clocks_set, orders: 3, ..Schedule::four(10) });
        }
        let freezes = vec![Freeze { seat: 2, from_ms: at, until_ms: at + 700 }];
        run(&Schedule { synchronous_from: None, freezes, orders: 3, ..Schedule::four(11) });
    }
}

#[test]
fn a_home_that_cheats_hurts_itself_only() {
    for fault in [HomeFault::OrderToFew(1), HomeFault::TwoBodies, HomeFault::FalseCertificate] {
        let home_faults = BTreeSet::from([fault]);
        let schedule = Schedule { home_faults, orders: 3, until_ms: 12_000, ..Schedule::four(12) };
        let report = run(&schedule);
        if fault == HomeFault::FalseCertificate {
            assert_eq!(report.handed_over, 3, "{report:?}");
        }
    }
}

#[test]
fn a_seat_that_bids_what_it_has_not_is_passed_over_or_unreadable() {
    use FalseRecords::{AllOrders, ForeignOrders, NegativePrice, NoCapacity, OutOfCapacity, TwiceEach};
    for how in [OutOfCapacity, NoCapacity, NegativePrice, TwiceEach, ForeignOrders, AllOrders] {
        let deviations = vec![(3, Deviation::FalseRecords(how))];
        let schedule = Schedule { deviations, orders: 3, until_ms: 12_000, ..Schedule::four(13) };
        let report = run(&schedule);
        assert_eq!(report.handed_over, 3, "{how:?}");
        let unreadable = matches!(how, NoCapacity | NegativePrice | TwiceEach);
        assert_eq!(report.proven.contains(&(3, Fault::Garbage)), unreadable, "{how:?}: {report:?}");
    }
}

#[test]
fn shares_that_cancel_or_are_stolen_open_nothing_else() {
    let deviations = vec![(1, Deviation::ShiftedShare), (2, Deviation::ShiftedShare)];
    let report = run(&Schedule { seats: 7, deviations, ..Schedule::four(14) });
    assert_eq!(report.handed_over, 1);
    let report = run(&Schedule { deviations: vec![(0, Deviation::StolenShare)], ..Schedule::four(15) });
    assert_eq!(report.handed_over, 1);
    assert!(report.proven.iter().all(|(seat, _)| *seat == 0), "nobody is framed: {report:?}");
}

#[test]
fn proofs_that_are_made_up_hold_against_nobody() {
    for seats in [4, 7] {
        let deviations = vec![(1, Deviation::Frame), (1, Deviation::PartialBundle(1))];
        let report = run(&Schedule { seats, deviations, orders: 3, until_ms: 7_000, ..Schedule::four(16) });
        assert!(report.made_up > 100, "{report:?}");
        assert!(report.proven.iter().all(|(seat, _)| *seat == 1), "{report:?}");
    }
    let deviations = vec![(1, Deviation::Frame)];
    let real = run_with::<RealKeys>(&Schedule { deviations, ..Schedule::four(17) });
    assert!(real.made_up > 30);
}

/// The prices that a round of one order with a second price pays, by winner.
fn second_price(shill: Option<i64>) -> BTreeSet<(u16, i64)> {
    let params = vendue_auction_sim::clock();
    let config = Config { params, ..Config::four(18) };
    let price = |seat: i64| 2_000_000 + 100_000 * seat;
    let offers = (0..4).map(|seat| offer(&format!("p{seat}"), price(seat), 8).into_iter().collect());
    let mut world = World::<MockKeys>::with_keys(config, offers.collect()).unwrap();
    if let Some(price) = shill {
        world.deviate(3, Deviation::FalseRecords(FalseRecords::Shill(price))).unwrap();
    }
    let order = Order {
        market: world.record.market,
        job: "job".into(),
        attempt: 1,
        requirements: requirements(1, 5_000_000).unwrap(),
        commitment: [9; 32],
        first_round: params.first_round(0),
        expires_ms: 60_000,
        user_key: world.record.home(0).unwrap().user_key,
        after: None,
        terms: Box::new(Terms { second_price: true, ..Terms::default() }),
    };
    world.home_says(Body::Order(OrderMsg { order })).unwrap();
    world.run_until(4_000);
    let decided = world.events.iter().filter_map(|(_, event)| match event {
        Event::Seat(_, SeatOutput::Decided(decided)) => Some(decided),
        _ => None,
    });
    let paid = decided.flat_map(|d| &d.outcomes).filter_map(|(_, outcome)| match outcome {
        Outcome::Award(award) => Some((award.seat, award.price.micros())),
        Outcome::None(_) => None,
    });
    paid.collect()
}

#[test]
fn a_shill_lowers_a_second_price_at_most_to_the_winners_own_bid_and_is_bound_by_what_it_bids() {
    assert_eq!(second_price(None), BTreeSet::from([(0, 2_100_000)]));
    assert_eq!(second_price(Some(2_050_000)), BTreeSet::from([(0, 2_050_000)]));
    assert_eq!(second_price(Some(1_950_000)), BTreeSet::from([(3, 2_000_000)]), "it has won");
    // At first prices it moves nothing but its own chances.
    for price in [2_050_000, 4_000_000] {
        let deviations = vec![(3, Deviation::FalseRecords(FalseRecords::Shill(price)))];
        let report = run(&Schedule { deviations, orders: 3, until_ms: 12_000, ..Schedule::four(19) });
        assert_eq!(report.handed_over, 3);
    }
}

#[test]
fn two_processes_with_one_key_are_one_faulty_seat() {
    for seed in 0..6 {
        let deviations = vec![(2, Deviation::TwoReplicas), (2, Deviation::PartialBundle(1))];
        let report = run(&Schedule { deviations, delay_ms: (5, 95), orders: 3, ..Schedule::four(seed) });
        assert!(report.proven.iter().all(|(seat, _)| *seat == 2));
    }
}

/// How many random schedules to run; more with `VENDUE_SIM_SCHEDULES`.
fn wanted(by_default: u64) -> u64 {
    std::env::var("VENDUE_SIM_SCHEDULES").ok().and_then(|n| n.parse().ok()).unwrap_or(by_default)
}

#[test]
fn a_seat_that_restarts_contradicts_nothing_that_it_said() {
    for at in (1_000..1_200).step_by(10).chain([1_550, 1_720]) {
        let deviations = vec![(3, Deviation::PartialBundle(1))];
        let schedule = Schedule {
            deviations,
            restarts: vec![(at, 1)],
            synchronous_from: None,
            until_ms: 6_000,
            ..Schedule::four(at)
        };
        run(&schedule);
    }
}

#[test]
fn random_mixes_up_to_f() {
    for seed in 0..wanted(24) {
        let schedule = Schedule::random(seed, 4);
        let report = run(&schedule);
        if schedule.synchronous_from == Some(0) {
            assert_eq!(report.handed_over, 3, "{schedule:?}");
        }
    }
}

#[test]
fn random_mixes_of_two_of_seven() {
    for seed in 10_000..10_000 + wanted(4) {
        run(&Schedule::random(seed, 7));
    }
}

#[test]
fn a_network_that_holds_back_what_it_likes_splits_nothing() {
    for seed in 0..wanted(40) {
        run(&Schedule::adversarial(seed, 4));
    }
    for seed in 20_000..20_000 + wanted(40) / 8 {
        run(&Schedule::adversarial(seed, 7));
    }
}

#[test]
fn two_of_seven_together() {
    use Deviation::{ClaimAll, EarlyShare, LastMoment, Mute, Omit, Only, PartialBundle, StarvedSet};
    let both = |ways: &[Deviation]| ways.iter().flat_map(|w| [(1, *w), (4, *w)]).collect::<Vec<_>>();
    for deviations in [
        // B14: the victim is left out by all f. B16: and by starved SETs.
        both(&[Omit(0)]),
        both(&[Omit(0), StarvedSet]),
        // B3, B28: admitted by just enough, and then kept from the rest.
        both(&[Only(KindName::Bundle, 3), Mute(KindName::Reply)]),
        // B15: bundles that only faulty seats claim are not admitted.
        [both(&[ClaimAll]), vec![(1, PartialBundle(2))]].concat(),
        // B20: f shares are there before anything is final.
        both(&[EarlyShare]),
        // B19: the quorum hinges on f votes, which come last.
        [both(&[LastMoment(KindName::Admit), LastMoment(KindName::Lock)]), vec![(1, PartialBundle(2))]]
            .concat(),
    ] {
        let schedule = Schedule { seats: 7, deviations, ..Schedule::four(9) };
        let report = run(&schedule);
        assert_eq!(report.handed_over, 1, "{schedule:?}");
    }
}

#[test]
fn sixteen_seats_five_of_them_partial_and_silent_proposers() {
    let deviations = (0..5)
        .flat_map(|seat| {
            [
                (seat, Deviation::PartialBundle(2)),
                (seat, Deviation::Only(KindName::Set, 3)),
                (seat, Deviation::Mute(KindName::Propose)),
            ]
        })
        .collect();
    let schedule = Schedule { seats: 16, deviations, orders: 2, until_ms: 8_000, ..Schedule::four(8) };
    let report = run(&schedule);
    assert_eq!(report.handed_over, 2, "{report:?}");
}
