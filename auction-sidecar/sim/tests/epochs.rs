//! Four seats that make the key of the next epoch, and go over to it in the middle of a stream of orders.
#![allow(clippy::unwrap_used)] // Helpers of tests fail like tests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use vendue_auction_core::{
    DropReason, HomeInput, HomeOutput, MarketRecord, NewOrder, Params, SeatKeys, SeatOutput, verify,
};
use vendue_auction_sim::{Config, Event, World, offer, requirements};
use vendue_sealed_bid::{RoundId, combine, verify_share};

/// A market in which the keys of the next epoch are made, and the first round with them.
fn mk_world(seed: u64) -> (World, Arc<MarketRecord>, u64) {
    let config = Config::four(seed);
    let offers = (0..config.seats)
        .map(|i| vec![offer(&format!("p{i}"), 2_000_000 + 100_000 * i64::from(i), 64).unwrap()])
        .collect();
    let mut world = World::new(config, offers).unwrap();
    let next = world.generate_next(2_000).unwrap();
    let first = next.generation.as_ref().unwrap().first_round;
    (world, next, first)
}

fn submit(world: &mut World, job: &str) {
    let order = NewOrder {
        terms: Box::default(),
        job: job.into(),
        attempt: 1,
        requirements: requirements(1, 5_000_000).unwrap(),
        commitment: [9; 32],
        expires_ms: world.now + 60_000,
    };
    world.tell_home(HomeInput::Submit(Box::new(order)));
}

/// Orders at a steady rate until a time.
fn stream(world: &mut World, until: u64) -> usize {
    let mut jobs = 0;
    while world.now < until {
        submit(world, &format!("{}", world.now));
        world.run_until(until.min(world.now + 350));
        jobs += 1;
    }
    jobs
}

/// Who was given each job, as often as that was.
fn handed_over(world: &World) -> BTreeMap<String, Vec<u16>> {
    let mut jobs = BTreeMap::new();
    let mut out = BTreeMap::<String, Vec<u16>>::new();
    for (_, event) in &world.events {
        match event {
            Event::Home(HomeOutput::Awarded { order, body, .. }) => {
                jobs.insert(*order, body.job.clone());
            }
            Event::Home(HomeOutput::HandOver { order, seat }) => {
                out.entry(jobs[order].clone()).or_default().push(*seat);
            }
            _ => {}
        }
    }
    out
}

/// The epochs of the certificates that seats found, by round, each verified with its own record and no other.
fn certified(world: &World, next: &MarketRecord, seat: Option<u16>) -> BTreeMap<u64, BTreeSet<u32>> {
    let mut rounds = BTreeMap::<u64, BTreeSet<u32>>::new();
    for (_, event) in &world.events {
        let Event::Seat(at, SeatOutput::Decided(decided)) = event else { continue };
        let certificate = &decided.certificate;
        let (own, other) = match certificate.epoch {
            0 => (&*world.record, next),
            _ => (next, &*world.record),
        };
        assert_eq!(verify::certificate(own, certificate), Ok(()));
        assert!(verify::certificate(other, certificate).is_err());
        if seat.is_none_or(|seat| seat == *at) {
            rounds.entry(certificate.round).or_default().insert(certificate.epoch);
        }
    }
    rounds
}

/// Each round is certified in the epoch of its number.
fn assert_epochs(rounds: &BTreeMap<u64, BTreeSet<u32>>, first: u64) {
    for (round, epochs) in rounds {
        assert_eq!(epochs, &BTreeSet::from([u32::from(*round >= first)]), "round {round}, first {first}");
    }
}

#[test]
fn orders_go_on_while_seats_change_epoch_in_time_late_and_from_their_log() {
    let (mut world, next, first) = mk_world(1);
    let params: Params = world.record.params;
    (0..3).for_each(|seat| world.seat_learns(seat).unwrap());
    world.home_learns().unwrap();
    world.run_until(params.t0(first) - 2_500);
    let mut jobs = stream(&mut world, params.t0(first - 1) + 150);
    // A seat restarts in the last round of the old epoch, and is in the first one of the new one.
    world.restart_with_log(2);
    assert!(world.seat(2).unwrap().round(first - 1).is_some_and(|round| round.is_recalled()));
    jobs += stream(&mut world, params.t0(first + 2) + 250);
    // Another one learns of the next epoch when its third round has begun.
    let late = world.seat(3).unwrap();
    assert!(late.dropped().count(DropReason::Foreign) > 0, "it could not know what the others said");
    assert!(late.round(first).is_some());
    world.seat_learns(3).unwrap();
    assert!(world.seat(3).unwrap().round(first).is_none());
    jobs += stream(&mut world, params.t0(first + 5));
    world.run_until(params.expiry(first + 6));

    let rounds = certified(&world, &next, None);
    assert_epochs(&rounds, first);
    assert!(rounds.range(..first).count() >= 2 && rounds.range(first..).count() >= 4, "{rounds:?}");
    let given = handed_over(&world);
    assert_eq!(given.len(), jobs, "{given:?}");
    assert!(given.values().all(|seats| seats.len() == 1), "{given:?}");
    let of_late = certified(&world, &next, Some(3));
    assert!(of_late.range(first..first + 3).next().is_none(), "{of_late:?}");
    assert!(of_late.range(first + 3..).next().is_some(), "it joins again: {of_late:?}");
    let of_restarted = certified(&world, &next, Some(2));
    assert!(of_restarted.contains_key(&first), "{of_restarted:?}");
}

#[test]
fn where_half_of_the_seats_know_the_next_epoch_no_round_is_certified_twice_and_orders_wait() {
    let (mut world, next, first) = mk_world(2);
    let params: Params = world.record.params;
    (0..2).for_each(|seat| world.seat_learns(seat).unwrap());
    world.run_until(params.t0(first) - 700);
    let jobs = stream(&mut world, params.t0(first + 3) + 50);
    assert!(certified(&world, &next, None).range(first..).next().is_none(), "neither half is a quorum");
    (2..4).for_each(|seat| world.seat_learns(seat).unwrap());
    world.home_learns().unwrap();
    world.run_until(params.expiry(first + 25));
    let rounds = certified(&world, &next, None);
    assert_epochs(&rounds, first);
    assert!(rounds.keys().all(|round| *round < first || *round > first + 3), "{rounds:?}");
    let given = handed_over(&world);
    assert!(given.len() == jobs && given.values().all(|seats| seats.len() == 1), "{given:?}");
}

#[test]
fn shares_of_the_old_key_open_nothing_of_the_next_epoch() {
    let (world, next, first) = mk_world(3);
    let id = RoundId { market: next.market, epoch: next.epoch, round: first };
    let keys = |seat: u16| SeatKeys::from_json(world.keys().seat_file(seat).unwrap()).unwrap();
    let old: Vec<(u16, [u8; 96])> = (0..4).map(|seat| (seat, keys(seat).share.sign(&id))).collect();
    for (seat, share) in &old {
        let key = |record: &MarketRecord| record.seat(*seat).unwrap().seal_share_key;
        assert!(!verify_share(&id, &key(&next), share));
        assert!(verify_share(&id, &key(&world.record), share), "of the old key it is a good share");
    }
    let key = |seat: u16| next.seat(seat).map(|s| &s.seal_share_key);
    assert!(combine(&id, &next.seal_key, next.q(), &old[..3], key).is_err());
}
