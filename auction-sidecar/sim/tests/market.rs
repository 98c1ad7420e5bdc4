//! Whole rounds and hand-overs among real seats and a real home.
#![allow(clippy::unwrap_used)] // Helpers of tests fail like tests.

use vendue_auction_core::wire::Kind;
use vendue_auction_core::{BidResult, DropReason, HomeInput, HomeOutput, NewOrder, Peer, SeatOutput, verify};
use vendue_auction_sim::{Answer, Config, Event, Fault, World, offer, requirements};
use vendue_market::{Digest, Order, Outcome, Reason, commit_devices};

fn world_of(config: Config, gpus: u32) -> World {
    let offers = (0..config.seats)
        .map(|i| vec![offer(&format!("p{i}"), 2_000_000 + 100_000 * i64::from(i), gpus).unwrap()])
        .collect();
    World::new(config, offers).unwrap()
}

fn new_order(job: &str, workers: u32) -> NewOrder {
    NewOrder {
        terms: Box::default(),
        job: job.into(),
        attempt: 1,
        requirements: requirements(workers, 5_000_000).unwrap(),
        commitment: [9; 32],
        expires_ms: 60_000,
    }
}

fn submit(world: &mut World, job: &str, workers: u32) -> Digest {
    world.tell_home(HomeInput::Submit(Box::new(new_order(job, workers))));
    let ordered = world.events.iter().rev().find_map(|(_, e)| match e {
        Event::Home(HomeOutput::Ordered { digest, .. }) => Some(*digest),
        _ => None,
    });
    ordered.unwrap()
}

fn home_events(world: &World) -> Vec<&HomeOutput> {
    world.events.iter().filter_map(|(_, e)| if let Event::Home(o) = e { Some(o) } else { None }).collect()
}

fn handed_over(world: &World) -> Vec<(Digest, u16)> {
    let find = |o: &&HomeOutput| match o {
        HomeOutput::HandOver { order, seat } => Some((*order, *seat)),
        _ => None,
    };
    home_events(world).iter().filter_map(find).collect()
}

fn shares_sent(world: &World) -> u64 {
    world.sent.iter().filter(|((kind, _), _)| *kind == Kind::Open).map(|(_, n)| n).sum()
}

#[test]
fn all_up_cheapest_wins_on_the_fast_path_and_gets_the_workload() {
    let mut world = world_of(Config::four(1), 8);
    world.run_until(500);
    let order = submit(&mut world, "job", 2);
    world.run_until(4_000);
    assert_eq!(handed_over(&world), [(order, 0)]);
    let awarded = world.events.iter().find_map(|(at, e)| match e {
        Event::Home(HomeOutput::Awarded { certificate, proof, .. }) => Some((*at, certificate, proof)),
        _ => None,
    });
    let (at, certificate, _) = awarded.unwrap();
    verify::certificate(&world.record, certificate).unwrap();
    // Bundle, set, open, award, proof: five hops of at most 30 ms after the start of the round.
    assert!(at <= world.record.params.t0(certificate.round) + 5 * 30, "{at}");
    assert!(world.sent.keys().all(|(kind, _)| !matches!(kind, Kind::Admit | Kind::Lock)));
    let own: Vec<_> = world
        .events
        .iter()
        .filter_map(|(_, e)| match e {
            Event::Seat(seat, SeatOutput::Decided(d)) => Some((*seat, d.own[0].result)),
            _ => None,
        })
        .collect();
    assert_eq!(own.len(), 4);
    for (seat, result) in [
        (0, BidResult::Won),
        (1, BidResult::StandBy { rank: 1 }),
        (2, BidResult::StandBy { rank: 2 }),
        (3, BidResult::Lost),
    ] {
        assert!(own.contains(&(seat, result)), "{seat} {own:?}");
    }
    assert!(world.events.iter().any(|(_, e)| matches!(e, Event::Seat(0, SeatOutput::Taken { .. }))));
}

#[test]
fn what_is_certified_binds_the_devices_of_those_that_may_serve() {
    let of_seat = |i: u16| {
        let mut offer = offer(&format!("p{i}"), 2_000_000 + 100_000 * i64::from(i), 8).unwrap();
        // The second seat does not say.
        offer.nodes[0].fingerprint = (i != 1).then_some([0xf0 + i as u8; 32]);
        vec![offer]
    };
    let mut world = World::new(Config::four(1), (0..4).map(of_seat).collect()).unwrap();
    world.run_until(500);
    submit(&mut world, "job", 2);
    world.run_until(4_000);
    let proven = home_events(&world).into_iter().find_map(|event| match event {
        HomeOutput::Awarded { certificate, proof, .. } => Some((certificate.round, &proof.leaf.outcome)),
        _ => None,
    });
    let Some((round, Outcome::Award(award))) = proven else { panic!("no award: {proven:?}") };
    let bound = |seat, byte| (seat, Some(commit_devices(&world.record.market, round, seat, &[byte; 32])));
    assert_eq!(award.bound().collect::<Vec<_>>(), [bound(0, 0xf0), (1, None), bound(2, 0xf2)]);
}

#[test]
fn one_of_four_silent_still_decides() {
    for silent in 0..4 {
        let mut world = world_of(Config::four(2), 8);
        world.faults.entry(silent).or_default().insert(Fault::CutOff);
        world.run_until(500);
        let order = submit(&mut world, "job", 2);
        world.run_until(4_000);
        assert_eq!(handed_over(&world), [(order, u16::from(silent == 0))], "seat {silent} silent");
    }
}

#[test]
fn two_of_four_silent_decides_nothing_and_nobody_sends_a_share_until_they_are_back() {
    let mut world = world_of(Config::four(3), 8);
    for seat in [1, 2] {
        world.faults.entry(seat).or_default().insert(Fault::CutOff);
    }
    world.run_until(500);
    let order = submit(&mut world, "job", 2);
    world.run_until(11_000);
    assert_eq!(shares_sent(&world), 0);
    assert!(handed_over(&world).is_empty());
    let delayed = |o: &&HomeOutput| matches!(o, HomeOutput::Delayed { receipts: 2, .. });
    assert!(home_events(&world).iter().any(delayed), "{:?}", home_events(&world));
    world.run_until(11_100);
    assert!(home_events(&world).iter().any(|o| matches!(o, HomeOutput::RoundMissed { .. })));
    assert!(world.events.iter().any(|(_, e)| matches!(e, Event::Seat(0, SeatOutput::Expired { .. }))));
    world.faults.clear();
    world.run_until(16_000);
    assert_eq!(handed_over(&world), [(order, 0)]);
}

#[test]
fn same_seed_same_trace_and_another_seed_another() {
    let run = |seed| {
        let mut config = Config::four(seed);
        config.lost_per_mille = 30;
        let mut world = world_of(config, 4);
        world.run_until(500);
        for i in 0..3 {
            submit(&mut world, &format!("job-{i}"), 1);
        }
        world.run_until(30_000);
        world.trace_hash()
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}

#[test]
fn losses_and_jitter_never_oversell_or_hand_over_twice() {
    for seed in 0..12 {
        let mut config = Config::four(seed);
        config.lost_per_mille = 60;
        config.delay_ms = (5, 140);
        let mut world = world_of(config, 6);
        world.run_until(500);
        let mut orders = vec![];
        for i in 0..6 {
            orders.push(submit(&mut world, &format!("job-{i}"), 1 + i % 2));
            world.run_until(500 + 300 * u64::from(i + 1));
        }
        world.run_until(58_000);
        let missed =
            home_events(&world).iter().filter(|o| matches!(o, HomeOutput::RoundMissed { .. })).count();
        println!("seed {seed}: {missed} missed");
        let handed = handed_over(&world);
        let mut unique: Vec<_> = handed.iter().map(|(order, _)| *order).collect();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), handed.len(), "seed {seed}: one hand-over per order");
        assert_eq!(handed.len(), orders.len(), "seed {seed}: everything fits, so everything is served");
        assert_eq!(world.controllers.iter().map(|c| c.oversold).sum::<u32>(), 0, "seed {seed}");
    }
}

#[test]
fn many_orders_at_once_fill_the_market_exactly() {
    let mut world = world_of(Config::four(5), 2);
    world.run_until(500);
    for i in 0..10 {
        submit(&mut world, &format!("job-{i}"), 1);
    }
    world.run_until(50_000);
    assert_eq!(handed_over(&world).len(), 8);
    assert_eq!(world.controllers.iter().map(|c| c.held()).sum::<usize>(), 8);
    assert_eq!(world.controllers.iter().map(|c| c.oversold).sum::<u32>(), 0);
}

/// The digest that an order has now: that of its last body.
fn name_now(world: &World, order: Digest) -> Digest {
    home_events(world).iter().fold(order, |now, o| match o {
        HomeOutput::Relisted { order, digest } if *order == now => *digest,
        _ => now,
    })
}

fn awards(world: &World) -> Vec<(u64, u64)> {
    let award = |(at, e): &(u64, Event)| match e {
        Event::Home(HomeOutput::Awarded { certificate, .. }) => Some((*at, certificate.round)),
        _ => None,
    };
    world.events.iter().filter_map(award).collect()
}

#[test]
fn nobody_fits_gives_the_histogram_and_the_order_is_served_as_soon_as_it_fits() {
    let mut world = world_of(Config::four(6), 1);
    world.run_until(500);
    let order = submit(&mut world, "job", 2);
    world.run_until(3_000);
    let texts: Vec<String> = home_events(&world)
        .iter()
        .filter_map(|o| match o {
            HomeOutput::NotAwarded { histogram, models, .. } => Some(format!("{histogram}; {models:?}")),
            _ => None,
        })
        .collect();
    assert!(texts.len() >= 3, "round after round: {texts:?}");
    assert!(texts.iter().all(|t| t == "0 of 4 providers: 4 free GPUs; {GpuModel(\"H100\")}"), "{texts:?}");
    world.controllers[2].sell(vec![offer("p2", 4_000_000, 8).unwrap()]);
    world.advertise(2);
    let last = world.record.params.round_at(world.now);
    world.run_until(20_000);
    assert_eq!(handed_over(&world), [(name_now(&world, order), 2)]);
    let [(_, round)] = awards(&world)[..] else { panic!("{:?}", awards(&world)) };
    assert!(
        (last + 1..=last + 5).contains(&round),
        "capacity came in round {last}, the award in round {round}"
    );
}

#[test]
fn an_unserved_order_is_listed_again_soon_at_first_and_every_few_rounds_later() {
    let mut config = Config::four(22);
    config.delay_ms = (5, 90);
    let mut world = world_of(config, 1);
    world.run_until(500);
    submit(&mut world, "job", 2);
    world.run_until(20_000);
    let rounds: Vec<u64> = home_events(&world)
        .iter()
        .filter_map(|o| match o {
            HomeOutput::NotAwarded { round, .. } => Some(*round),
            _ => None,
        })
        .collect();
    let gaps: Vec<u64> = rounds.windows(2).map(|w| w[1] - w[0]).collect();
    assert!(gaps.len() >= 6 && gaps[0] <= 2, "{rounds:?}");
    assert!(gaps.iter().all(|gap| (1..=5).contains(gap)), "well before its own next round: {rounds:?}");
    assert!((0..4).all(|s| world.seat(s).unwrap().open_orders() == 1), "one body of it is known");
}

#[test]
fn an_awarded_order_is_never_listed_before_its_award_has_expired() {
    let mut world = world_of(Config::four(23), 8);
    // Everybody wins and nobody delivers: each award binds for its whole time.
    world.controllers.iter_mut().for_each(|c| c.answer = Answer::Refuse(Reason::FreeGpus));
    world.run_until(500);
    submit(&mut world, "job", 2);
    world.run_until(40_000);
    let awards = awards(&world);
    assert!(awards.len() >= 3, "{awards:?}");
    let params = world.record.params;
    for pair in awards.windows(2) {
        assert!(params.t0(pair[1].1) >= params.expiry(pair[0].1), "{awards:?}");
    }
    let decided: std::collections::BTreeSet<u64> = world
        .events
        .iter()
        .filter_map(|(_, e)| match e {
            Event::Seat(_, SeatOutput::Decided(d)) => Some(d.certificate.round),
            _ => None,
        })
        .collect();
    assert_eq!(decided, awards.iter().map(|(_, round)| *round).collect(), "and there is no other round");
    assert!(!home_events(&world).iter().any(|o| matches!(o, HomeOutput::Relisted { .. })));
}

#[test]
fn a_seat_that_missed_bodies_of_an_order_follows_the_last_one() {
    let mut world = world_of(Config::four(24), 1);
    world.run_until(500);
    let order = submit(&mut world, "job", 2);
    world.run_until(1_300);
    world.faults.entry(3).or_default().insert(Fault::CutOff);
    world.run_until(9_000);
    world.faults.clear();
    // Only the seat that was away could serve it, and it must hear of a body that is alive.
    world.controllers[3].sell(vec![offer("p3", 4_000_000, 8).unwrap()]);
    world.advertise(3);
    world.run_until(14_000);
    assert_eq!(handed_over(&world), [(name_now(&world, order), 3)]);
    assert!((0..4).all(|s| world.seat(s).unwrap().open_orders() == 0), "no body is left anywhere");
}

#[test]
fn an_order_cancelled_under_its_last_name_but_one_ends_everywhere() {
    let mut world = world_of(Config::four(25), 1);
    world.run_until(500);
    let order = submit(&mut world, "job", 2);
    world.run_until(6_000);
    assert_ne!(name_now(&world, order), order);
    // Only the last few names are remembered; this one is given by way of the latest.
    let order = name_now(&world, order);
    world.run_until(10_000);
    assert_ne!(name_now(&world, order), order, "it has another name by now");
    world.tell_home(HomeInput::Cancel { order });
    world.run_until(11_500);
    assert!((0..4).all(|s| world.seat(s).unwrap().open_orders() == 0));
}

#[test]
fn refusal_and_silence_of_the_controller_promote_the_stand_bys() {
    for answer in [Answer::Refuse(Reason::FreeGpus), Answer::Never] {
        let mut world = world_of(Config::four(9), 8);
        world.controllers[0].answer = answer;
        world.run_until(500);
        let order = submit(&mut world, "job", 2);
        world.run_until(8_000);
        assert_eq!(handed_over(&world), [(order, 1)], "{answer:?}");
        let passed = |o: &&HomeOutput| matches!(o, HomeOutput::PassedOver { seat: 0, .. });
        assert_eq!(home_events(&world).iter().filter(|o| passed(o)).count(), 1);
        let certified =
            home_events(&world).iter().filter(|o| matches!(o, HomeOutput::Awarded { .. })).count();
        assert_eq!(certified, 1, "no new round");
    }
}

#[test]
fn a_late_accept_of_the_passed_over_winner_does_not_give_two_hand_overs() {
    let mut world = world_of(Config::four(10), 8);
    // Both winner and first stand-by take longer than home waits, so several hold devices at once.
    world.controllers.iter_mut().for_each(|c| c.answer = Answer::After(2_500));
    world.run_until(500);
    submit(&mut world, "job", 2);
    world.run_until(20_000);
    assert_eq!(handed_over(&world).len(), 1);
    assert_eq!(world.controllers.iter().map(|c| c.held()).sum::<usize>(), 1, "the others let go");
}

#[test]
fn a_cancelled_order_frees_everything() {
    let mut world = world_of(Config::four(11), 8);
    world.controllers.iter_mut().for_each(|c| c.answer = Answer::After(400));
    world.run_until(500);
    let order = submit(&mut world, "job", 2);
    world.run_until(1_500);
    assert_eq!(world.controllers[0].held(), 1);
    world.tell_home(HomeInput::Cancel { order });
    world.run_until(3_000);
    assert!(handed_over(&world).is_empty());
    assert_eq!(world.controllers[0].held(), 0);
    assert!((0..4).all(|s| world.seat(s).unwrap().open_orders() == 0));
}

#[test]
fn without_orders_nobody_says_anything() {
    let mut world = world_of(Config::four(12), 8);
    world.run_until(20_000);
    assert!(world.sent.is_empty());
}

#[test]
fn bad_messages_are_dropped_and_counted() {
    let mut world = world_of(Config::four(13), 8);
    let mut other = world_of(Config::four(14), 8);
    world.run_until(500);
    other.run_until(500);
    let count = |world: &World, reason| world.seat(0).unwrap().dropped().count(reason);

    world.inject(0, Peer::Seat(1), b"garbage".to_vec());
    assert_eq!(count(&world, DropReason::Malformed), 1);
    world.inject(0, Peer::Seat(1), vec![0; (1 << 20) + 1]);
    assert_eq!(count(&world, DropReason::Oversize), 1);

    // A whole round of another market, replayed to seat 0.
    submit(&mut other, "job", 1);
    let mut foreign = vec![];
    other.tap(&mut foreign, 3_000);
    for (from, bytes) in foreign.iter().filter(|(from, _)| *from != 0) {
        world.inject(0, Peer::Seat(*from), bytes.clone());
    }
    assert!(count(&world, DropReason::Foreign) > 10);

    // The own market's messages once more, and under another seat's name.
    submit(&mut world, "job", 1);
    let mut seen = vec![];
    world.tap(&mut seen, 2_500);
    let before = world.events.len();
    for (from, bytes) in seen.iter().filter(|(from, _)| *from != 0) {
        world.inject(0, Peer::Seat(*from), bytes.clone());
        world.inject(0, Peer::Seat(*from % 3 + 1), bytes.clone());
        let mut changed = bytes.clone();
        *changed.last_mut().unwrap() ^= 1;
        world.inject(0, Peer::Seat(*from), changed);
    }
    assert!(count(&world, DropReason::Duplicate) > 10);
    assert!(count(&world, DropReason::WrongSender) > 10);
    assert!(count(&world, DropReason::BadSignature) > 10);
    assert_eq!(world.events.len(), before, "nothing of it had an effect");
    world.run_until(4_000);
    assert_eq!(handed_over(&world).len(), 1);
}

#[test]
fn lost_bundles_are_fetched() {
    let mut world = world_of(Config::four(15), 8);
    // Seat 3's bundle reaches seats 0 and 1 only: two owners list it, so it is admitted; seat 2 must fetch it.
    world.faults.entry(3).or_default().insert(Fault::Keep(Kind::Bundle, 2));
    world.run_until(500);
    let order = submit(&mut world, "job", 2);
    world.run_until(4_000);
    assert_eq!(handed_over(&world), [(order, 0)]);
    let decided = |e: &Event| matches!(e, Event::Seat(2, SeatOutput::Decided(_)));
    assert!(world.events.iter().any(|(_, e)| decided(e)));
    assert!(world.sent.keys().any(|(kind, _)| *kind == Kind::Reply));
}

#[test]
fn withheld_locks_and_awards_of_one_seat_do_not_stop_the_round() {
    for kind in [Kind::Set, Kind::Admit, Kind::Lock, Kind::Open, Kind::Award] {
        let mut world = world_of(Config::four(16), 8);
        world.faults.entry(1).or_default().insert(Fault::Mute(kind));
        world.run_until(500);
        let order = submit(&mut world, "job", 2);
        world.run_until(4_000);
        assert_eq!(handed_over(&world), [(order, 0)], "{kind:?}");
    }
}

#[test]
fn a_restarted_seat_observes_and_then_takes_part_again() {
    let mut world = world_of(Config::four(17), 8);
    world.run_until(500);
    submit(&mut world, "first", 1);
    world.run_until(1_650);
    world.restart(0).unwrap();
    let sent_before: u64 = world.sent.iter().filter(|((_, s), _)| *s == 0).map(|(_, n)| n).sum();
    let until = world.seat(0).unwrap().observes_until();
    assert_eq!(until, 1_650 + world.record.params.lifetime());
    world.run_until(3_000);
    let second = submit(&mut world, "second", 1);
    world.run_until(6_000);
    let round_messages = [Kind::Bundle, Kind::Set, Kind::Admit, Kind::Lock, Kind::Open, Kind::Award];
    let spoke = world.sent.iter().filter(|((k, s), _)| *s == 0 && round_messages.contains(k)).map(|(_, n)| n);
    assert!(spoke.sum::<u64>() <= sent_before, "silent in rounds while observing");
    assert!(handed_over(&world).contains(&(second, 1)), "the others decided without it");
    assert!(world.seat(0).unwrap().dropped().count(DropReason::Observing) > 0);
    world.run_until(until + 700);
    let third = submit(&mut world, "third", 1);
    world.run_until(until + 4_000);
    assert!(handed_over(&world).contains(&(third, 0)), "{:?}", handed_over(&world));
}

#[test]
fn sixteen_seats_with_five_silent() {
    let mut config = Config::four(18);
    config.seats = 16;
    let mut world = world_of(config, 2);
    for seat in 3..8 {
        world.faults.entry(seat).or_default().insert(Fault::CutOff);
    }
    world.run_until(500);
    let order = submit(&mut world, "job", 2);
    world.run_until(4_000);
    assert_eq!(handed_over(&world), [(order, 0)]);
}

#[test]
fn small_markets_work_with_the_same_messages() {
    for seats in 1..4 {
        let mut config = Config::four(19);
        config.seats = seats;
        let mut world = world_of(config, 2);
        world.run_until(500);
        let order = submit(&mut world, "job", 2);
        world.run_until(4_000);
        assert_eq!(handed_over(&world), [(order, 0)], "{seats} seats");
    }
}

fn body_of(world: &World) -> Order {
    let ordered = world.events.iter().find_map(|(_, e)| match e {
        Event::Home(HomeOutput::Ordered { order, .. }) => Some((**order).clone()),
        _ => None,
    });
    ordered.unwrap()
}

#[test]
fn a_home_that_restarts_before_its_choice_finds_the_award_again() {
    let mut world = world_of(Config::four(20), 8);
    world.run_until(500);
    let order = submit(&mut world, "job", 2);
    world.run_until(990);
    let body = body_of(&world);
    // Nothing of the round's result reaches the home before it restarts.
    world.restart_home(vec![]).unwrap();
    world.run_until(2_500);
    assert!(handed_over(&world).is_empty());
    world.restart_home(vec![(body, None)]).unwrap();
    world.run_until(6_000);
    assert_eq!(handed_over(&world), [(order, 0)], "in the same round, from the proof that the seats keep");
}

#[test]
fn a_home_that_restarts_after_its_choice_keeps_to_it() {
    let mut world = world_of(Config::four(21), 8);
    world.run_until(500);
    let order = submit(&mut world, "job", 2);
    let chosen = |world: &World| {
        world.events.iter().find_map(|(_, e)| match e {
            Event::Home(HomeOutput::Choose(choice)) => Some((**choice).clone()),
            _ => None,
        })
    };
    while chosen(&world).is_none() {
        world.run_until(world.now + 1);
    }
    let (body, choice) = (body_of(&world), chosen(&world));
    world.restart_home(vec![(body, choice)]).unwrap();
    world.run_until(30_000);
    assert_eq!(handed_over(&world), [(order, 0)]);
    assert_eq!(world.controllers.iter().map(|c| c.held()).sum::<usize>(), 1);
}

#[test]
fn the_only_provider_may_be_slow_and_its_answers_may_be_lost() {
    let mut world = world_of(Config::four(21), 0);
    world.controllers[3].sell(vec![offer("p3", 4_000_000, 8).unwrap()]);
    world.advertise(3);
    // Longer than home waits for one candidate, and the answer does not arrive for a while either.
    world.controllers[3].answer = Answer::After(3_000);
    world.faults.entry(3).or_default().insert(Fault::Mute(Kind::Accept));
    world.run_until(500);
    let order = submit(&mut world, "job", 2);
    world.run_until(7_000);
    assert_eq!((world.controllers[3].held(), handed_over(&world).len()), (1, 0));
    world.faults.clear();
    world.run_until(8_000);
    assert_eq!(handed_over(&world), [(order, 3)]);
    let certified = home_events(&world).iter().filter(|o| matches!(o, HomeOutput::Awarded { .. })).count();
    assert_eq!(certified, 1, "in the same round");
}
