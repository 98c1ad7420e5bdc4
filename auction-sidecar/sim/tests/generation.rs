//! Key generation in a seeded network (B37).

use std::collections::BTreeSet;
use vendue_auction_sim::generation::{Generation, KeyDeviation};

#[test]
fn every_deviation_alone_leaves_one_key_with_all_honest_seats() {
    for (seed, deviation) in (1u64..).zip(KeyDeviation::ALL) {
        let plan = Generation { faulty: [(3, deviation)].into(), ..Generation::of(seed, 4) };
        let made = plan.run().expect("a run");
        assert_eq!((made.violations.as_slice(), made.done), ([].as_slice(), 3), "{deviation:?}");
        let denied = matches!(deviation, KeyDeviation::Denies | KeyDeviation::TwoContributions);
        let attempt = u64::from(denied);
        assert_eq!(made.attempt, Some(attempt), "{deviation:?}");
        assert!(made.dealers.is_superset(&BTreeSet::from([0, 1, 2])), "{deviation:?}");
        let commits_late = [KeyDeviation::LateCommitment, KeyDeviation::OtherCommitment].contains(&deviation);
        assert!(!(commits_late && made.dealers.contains(&3)), "{deviation:?}");
        let accused = deviation == KeyDeviation::TwoContributions;
        assert_eq!(made.accused.contains(&3), accused, "{deviation:?}");
    }
}

#[test]
fn loss_delay_restarts_and_faults_together_never_make_two_keys() {
    let mut done = 0;
    for seed in 0..12u64 {
        let deviation = KeyDeviation::ALL[seed as usize % KeyDeviation::ALL.len()];
        let plan = Generation {
            loss: 5 * (seed % 4),
            delay_ms: if seed % 3 == 0 { 250 } else { 90 },
            faulty: [((seed % 4) as u16, deviation)].into(),
            restart: Some((((seed + 1) % 4) as u16, 37 * seed)),
            ..Generation::of(seed, 4)
        };
        let made = plan.run().expect("a run");
        assert_eq!(made.violations, [""; 0], "seed {seed}: {plan:?}");
        done += made.done;
    }
    assert!(done > 12, "most of them come to a key: {done}");
}

#[test]
fn a_seat_that_is_cut_off_and_votes_that_come_late_never_make_two_keys() {
    let (mut done, mut later) = (0, 0);
    for seed in 0..28u64 {
        let deviation = match seed % 4 {
            0 => KeyDeviation::ALL[seed as usize / 4 % KeyDeviation::ALL.len()],
            _ => KeyDeviation::KeepsLock,
        };
        let from = 500 + 97 * (seed % 7);
        let plan = Generation {
            delay_ms: if seed % 5 == 0 { 250 } else { 90 },
            faulty: [((seed % 4) as u16, deviation)].into(),
            cut_off: Some((((seed + 1) % 4) as u16, from..from + 1_000 + 200 * (seed % 9))),
            restart: (seed % 3 == 0).then_some((((seed + 2) % 4) as u16, 5_000 + 61 * seed)),
            attempts: 9,
            ..Generation::of(seed, 4)
        };
        let made = plan.run().expect("a run");
        assert_eq!(made.violations, [""; 0], "seed {seed}: {plan:?}");
        done += made.done;
        later += usize::from(made.attempt.is_some_and(|attempt| attempt > 0));
    }
    assert!(done > 56 && later > 6, "{done} are done, {later} runs took more than one attempt");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let plan = Generation { loss: 10, ..Generation::of(5, 4) };
    let (one, two) = (plan.run().expect("a run"), plan.run().expect("a run"));
    assert_eq!(one.trace, two.trace);
    let other = Generation { seed: 6, ..plan }.run().expect("a run");
    assert_ne!(one.trace, other.trace);
}

#[test]
fn seven_seats_with_two_that_deviate() {
    let faulty = [(1, KeyDeviation::TwoDealings), (5, KeyDeviation::BadShare)].into();
    let made = Generation { faulty, ..Generation::of(7, 7) }.run().expect("a run");
    assert_eq!((made.violations.as_slice(), made.done, made.attempt), ([].as_slice(), 5, Some(0)));
}
