//! Hand-over between a home and a seat where messages are late, lost, stale or come twice.

use super::tests::{Rig, kinds, mk_rig};
use super::*;
use crate::crypto::SeatCrypto;
use crate::drops::DropReason;
use crate::evidence::message_hash;
use crate::home::{Home, HomeInput, HomeOutput, NewOrder};
use crate::keys::{HomeKeys, SeatKeys};
use crate::pool::Closed;
use crate::wire::tests::mk_order;
use crate::wire::{Accept, Fetch, Kind, OrderMsg, Refuse, peek_kind};
use vendue_market::{Cleared, Holding, Order, Reason, fit};

#[test]
fn an_answer_about_one_award_is_none_about_the_next() {
    let mut rig = mk_rig();
    let order = rig.order(0);
    let digest = order.digest();
    rig.bid_in_round_0(&order);
    rig.give(0, rig.say(0, Body::Reserve(Box::new(rig.reserve(&order, 0)))));
    let held = SeatInput::Reserved { order: digest, round: 0, result: Ok(()) };
    assert_eq!(kinds(&rig.seat.handle(rig.now, held)), [Kind::Accept]);
    // A RESERVE under the number of another round than its certificate's proves nothing.
    rig.give(0, rig.say_in(1, 0, Body::Reserve(Box::new(rig.reserve(&order, 0)))));
    assert_eq!(rig.count(DropReason::WrongRound), 1);

    // The order's next round, while the seat still remembers the hand-over of the one before.
    let next = rig.record.params.order_step();
    rig.now = rig.record.params.t0(next);
    rig.seat.handle(rig.now, SeatInput::Tick);
    rig.now += 50;
    assert!(rig.seat.handovers.contains_key(&digest));
    let again = rig.say_in(next, 0, Body::Reserve(Box::new(rig.reserve_in(next, &order, 0))));
    let out = rig.give(0, again);
    assert!(kinds(&out).is_empty(), "the devices of the old award are no answer: {out:?}");
    let released = SeatOutput::Released { order: digest, cause: ReleaseCause::Expired };
    assert!(out.contains(&released) && out.iter().any(|o| matches!(o, SeatOutput::Hold(_))), "{out:?}");
    // Nor is what the controller says about the old award.
    let stale = SeatInput::Reserved { order: digest, round: 0, result: Err(Reason::NoOffer) };
    assert!(kinds(&rig.seat.handle(rig.now, stale)).is_empty());
    let held = SeatInput::Reserved { order: digest, round: next, result: Ok(()) };
    let out = rig.seat.handle(rig.now, held);
    assert_eq!(kinds(&out), [Kind::Accept]);
    let Some(SeatOutput::Send { bytes, .. }) = out.last() else { panic!("no message") };
    assert_eq!(crate::wire::decode(bytes, 4).unwrap().header.round, next);
}

#[test]
fn a_hand_over_that_was_first_keeps_or_ends_the_promise() {
    for (stage, promised) in
        [(Stage::Asked, true), (Stage::Held, false), (Stage::Refused(Reason::NoOffer), false)]
    {
        let mut rig = mk_rig();
        let order = rig.order(0);
        let digest = order.digest();
        rig.bid_in_round_0(&order);
        let until_ms = rig.record.params.expiry(0) + 400;
        rig.seat.handovers.insert(digest, HandOver { home: 0, round: 0, until_ms, stage });
        let nodes = &rig.seat.rounds[&0].bids.parts[0].capacity.nodes;
        let placement = fit(&order.requirements, nodes).unwrap();
        let cleared = Cleared {
            order: digest,
            outcome: rig.reserve(&order, 0).proof.proof.leaf.outcome,
            no_bids: vec![],
            holdings: vec![Holding { seat: 0, spec: 0, placement }],
        };
        let orders = BTreeMap::from([(digest, Arc::new(order))]);
        rig.seat.promise(0, &cleared, &orders, rig.record.params.expiry(0), &mut vec![]);
        let promise = rig.seat.promises.get(&digest);
        assert_eq!(promise.map(|p| p.until_ms), promised.then_some(until_ms), "{stage:?}");
    }
}

#[test]
fn a_seat_s_cluster_asks_for_proofs_as_home_and_homes_ask_for_nothing_else() {
    let mut rig = mk_rig();
    let mut record = (*rig.record).clone();
    record.homes[1].peer_id = record.seats[2].peer_id.clone();
    let record = Arc::new(record);
    let keys = SeatKeys::from_json(&rig.seats[0].to_json()).unwrap();
    rig.seat = Seat::fresh(record.clone(), 0, SeatCrypto::new(record, keys), 0);
    rig.seat.handle(500, SeatInput::Tick);
    rig.seat.proven.insert([5; 32], Proven { bytes: vec![1], round: 0, until_ms: 90_000 });
    let ask = rig.say(1, Body::Fetch(Fetch::Proof([5; 32])));
    // The transport knows that cluster as a seat.
    let out = rig.seat.handle(500, SeatInput::Message { from: Peer::Seat(2), bytes: ask.clone() });
    assert_eq!(out, [SeatOutput::Send { to: Peer::Seat(2), bytes: vec![1] }]);
    rig.seat.handle(500, SeatInput::Message { from: Peer::Seat(3), bytes: ask });
    assert_eq!(rig.count(DropReason::WrongSender), 1);
    for fetch in [Fetch::Set([1; 32]), Fetch::Bundles(vec![]), Fetch::Orders(vec![[1; 32]])] {
        rig.give(0, rig.say(0, Body::Fetch(fetch)));
    }
    assert_eq!(rig.count(DropReason::WrongSender), 4);
}

#[test]
fn an_order_that_wants_to_live_for_ever_is_refused() {
    let mut rig = mk_rig();
    let order = Order { expires_ms: u64::MAX, ..rig.order(0) };
    rig.give(0, rig.say(0, Body::Order(OrderMsg { order })));
    assert_eq!((rig.seat.open_orders(), rig.count(DropReason::Quota)), (0, 1));
}

fn mk_new() -> NewOrder {
    let mut requirements = mk_order().requirements;
    requirements.include_providers.clear();
    NewOrder {
        terms: Box::default(),
        job: "j".into(),
        attempt: 1,
        requirements,
        commitment: [1; 32],
        expires_ms: 90_000,
    }
}

#[test]
fn a_job_that_was_withdrawn_may_be_submitted_again() {
    let rig = mk_rig();
    let mut home = Home::new(rig.record.clone(), 0, HomeKeys::from_json(&rig.homes[0].to_json()).unwrap());
    let ordered = |out: &[HomeOutput]| {
        out.iter().find_map(|o| match o {
            HomeOutput::Ordered { digest, .. } => Some(*digest),
            _ => None,
        })
    };
    let first = ordered(&home.handle(500, HomeInput::Submit(Box::new(mk_new())))).unwrap();
    assert_eq!(ordered(&home.handle(600, HomeInput::Submit(Box::new(mk_new())))), None, "it is known");
    home.handle(700, HomeInput::Cancel { order: first });
    let again = ordered(&home.handle(40_000, HomeInput::Submit(Box::new(mk_new()))));
    assert!(again.is_some_and(|order| order != first));
}

/// A home whose order was awarded to seat 2 alone in round 0, and that has just asked it.
fn reserving(rig: &Rig) -> (Home, Digest) {
    let keys = HomeKeys::from_json(&rig.homes[0].to_json()).unwrap();
    let mut home = Home::new(rig.record.clone(), 0, keys);
    let out = home.handle(500, HomeInput::Submit(Box::new(mk_new())));
    let order = out.iter().find_map(|o| match o {
        HomeOutput::Ordered { order, .. } => Some((**order).clone()),
        _ => None,
    });
    let order = order.unwrap();
    let proof = rig.reserve(&order, 2).proof;
    let out = home.handle(1_500, from_seat(rig, 2, 0, Body::Proof(Box::new(proof))));
    assert_eq!(reserves(&out), 1);
    (home, order.digest())
}

pub(super) fn from_seat(rig: &Rig, seat: u16, round: u64, body: Body) -> HomeInput {
    let header = Header { kind: body.kind(), market: rig.record.short_id(), epoch: 0, round, seat };
    let hash = message_hash(&rig.record.market, &header, &body);
    let signature = header.kind.is_signed().then(|| rig.seats[usize::from(seat)].evidence.sign(&hash));
    HomeInput::Message { from: seat, bytes: Message { header, body, signature }.encode() }
}

fn count(out: &[HomeOutput], kind: Kind) -> usize {
    let is = |o: &&HomeOutput| match o {
        HomeOutput::Send { bytes, .. } | HomeOutput::Broadcast(bytes) => peek_kind(bytes) == Some(kind),
        _ => false,
    };
    out.iter().filter(is).count()
}

fn reserves(out: &[HomeOutput]) -> usize {
    count(out, Kind::Reserve)
}

fn chosen(out: &[HomeOutput]) -> bool {
    out.iter().any(|o| matches!(o, HomeOutput::Choose(c) if c.seat == 2))
}

#[test]
fn the_last_candidate_is_asked_again_and_waited_for_until_the_award_expires() {
    let rig = mk_rig();
    let (mut home, order) = reserving(&rig);
    assert_eq!(reserves(&home.handle(1_899, HomeInput::Tick)), 0);
    assert_eq!(reserves(&home.handle(1_900, HomeInput::Tick)), 1, "the first one may be lost");
    let out = home.handle(9_000, HomeInput::Tick);
    assert_eq!(reserves(&out), 1);
    assert!(
        out.iter().all(|o| !matches!(o, HomeOutput::Unserved { .. } | HomeOutput::PassedOver { .. })),
        "{out:?}"
    );
    // What was said about another round's award counts for nothing here.
    assert!(!chosen(&home.handle(9_000, from_seat(&rig, 2, 3, Body::Accept(Accept { order })))));
    let refuse = Refuse { order, reason: Reason::NoOffer };
    assert!(home.handle(9_000, from_seat(&rig, 2, 3, Body::Refuse(refuse))).is_empty());
    assert_eq!(home.dropped().count(DropReason::WrongRound), 2);
    assert!(chosen(&home.handle(10_000, from_seat(&rig, 2, 0, Body::Accept(Accept { order })))));

    let (mut home, order) = reserving(&rig);
    let expiry = rig.record.params.expiry(0);
    let out = home.handle(expiry, from_seat(&rig, 2, 0, Body::Accept(Accept { order })));
    assert!(!chosen(&out) && out.iter().any(|o| matches!(o, HomeOutput::Unserved { .. })), "{out:?}");
    assert_eq!(home.dropped().count(DropReason::Late), 1);
}

#[test]
fn a_choice_is_given_out_until_it_is_stored() {
    let rig = mk_rig();
    let (mut home, order) = reserving(&rig);
    assert!(chosen(&home.handle(2_000, from_seat(&rig, 2, 0, Body::Accept(Accept { order })))));
    assert_eq!(home.next_wake(), Some(3_600));
    assert!(!chosen(&home.handle(3_599, HomeInput::Tick)));
    assert!(chosen(&home.handle(3_600, HomeInput::Tick)), "it may be lost on its way");
    let out = home.handle(3_700, HomeInput::Stored { order });
    assert!(out.contains(&HomeOutput::HandOver { order, seat: 2 }));
    assert!(!chosen(&home.handle(9_000, HomeInput::Tick)));
}

#[test]
fn an_order_withdrawn_while_its_choice_is_stored_follows_what_was_stored() {
    let rig = mk_rig();
    let (mut home, order) = reserving(&rig);
    home.handle(2_000, from_seat(&rig, 2, 0, Body::Accept(Accept { order })));
    assert_eq!(count(&home.handle(2_100, HomeInput::Cancel { order }), Kind::Cancel), 0);
    let out = home.handle(2_200, HomeInput::Stored { order });
    assert_eq!(count(&out, Kind::Taken), 1, "a restart would say the same");
    assert!(out.iter().all(|o| !matches!(o, HomeOutput::HandOver { .. })), "{out:?}");

    let (mut home, order) = reserving(&rig);
    home.handle(2_000, from_seat(&rig, 2, 0, Body::Accept(Accept { order })));
    home.handle(2_100, HomeInput::Cancel { order });
    assert!(!chosen(&home.handle(4_000, HomeInput::Tick)));
    let out = home.handle(rig.record.params.expiry(0) + 2_000, HomeInput::Tick);
    assert_eq!(count(&out, Kind::Cancel), 1, "never stored");
}

#[test]
fn an_order_whose_choice_is_never_stored_goes_on_in_its_next_round() {
    let rig = mk_rig();
    let (mut home, order) = reserving(&rig);
    home.handle(2_000, from_seat(&rig, 2, 0, Body::Accept(Accept { order })));
    let expiry = rig.record.params.expiry(0);
    assert!(chosen(&home.handle(expiry + 1, HomeInput::Tick)), "only the store knows what became of it");
    let out = home.handle(expiry + 2, HomeInput::NotStored { order });
    let retry = out.iter().find_map(|o| match o {
        HomeOutput::Unserved { retry_ms, .. } => Some(*retry_ms),
        _ => None,
    });
    assert!(retry.is_some_and(|at| at > expiry), "{out:?}");
    let out = home.handle(expiry + 3, HomeInput::Stored { order });
    assert!(out.iter().all(|o| !matches!(o, HomeOutput::HandOver { .. })), "{out:?}");

    let (mut home, order) = reserving(&rig);
    home.handle(2_000, from_seat(&rig, 2, 0, Body::Accept(Accept { order })));
    home.handle(2_100, HomeInput::Cancel { order });
    assert_eq!(count(&home.handle(2_200, HomeInput::NotStored { order }), Kind::Cancel), 1);
}

fn mk_home(rig: &Rig) -> Home {
    Home::new(rig.record.clone(), 0, HomeKeys::from_json(&rig.homes[0].to_json()).unwrap())
}

#[test]
fn an_order_withdrawn_a_moment_ago_is_not_made_again_as_it_was() {
    let rig = mk_rig();
    let submit = |home: &mut Home, at| {
        let out = home.handle(at, HomeInput::Submit(Box::new(mk_new())));
        out.iter().find_map(|o| match o {
            HomeOutput::Ordered { digest, order, .. } => Some((*digest, order.first_round)),
            _ => None,
        })
    };
    let (first, round) = submit(&mut mk_home(&rig), 500).unwrap();
    // The home restarts, withdraws what its status names, and places the order of the same Job at once.
    let mut home = mk_home(&rig);
    home.handle(501, HomeInput::Cancel { order: first });
    let (second, later) = submit(&mut home, 501).unwrap();
    assert_ne!(first, second);
    assert_eq!(later, round + 1);
}

#[test]
fn an_order_from_before_a_restart_can_be_withdrawn_and_the_word_is_repeated() {
    let rig = mk_rig();
    let mut home = mk_home(&rig);
    assert_eq!(count(&home.handle(1_000, HomeInput::Cancel { order: [7; 32] }), Kind::Cancel), 1);
    let again = home.next_wake().unwrap();
    assert_eq!(
        count(&home.handle(again, HomeInput::Tick), Kind::Cancel),
        1,
        "seats may not be connected yet"
    );
}

#[test]
fn a_home_that_orders_anew_leaves_nothing_behind() {
    let mut rig = mk_rig();
    let old = rig.order(0);
    let order = |first_round| Order { first_round, ..old.clone() };
    let say = |rig: &mut Rig, order: &Order| {
        let bytes = rig.say(0, Body::Order(OrderMsg { order: order.clone() }));
        kinds(&rig.give(0, bytes))
    };
    assert_eq!(say(&mut rig, &order(3)), [Kind::Receipt]);
    assert_eq!(say(&mut rig, &order(5)), [Kind::Receipt]);
    assert_eq!(
        (rig.seat.open_orders(), rig.seat.pool.closed(&order(3).digest(), 0)),
        (1, Some(Closed::Cancelled))
    );
    // What was on its way for longer is no news, and another search is another matter.
    assert_eq!(say(&mut rig, &order(4)), []);
    let another = Order { attempt: old.attempt + 1, ..order(4) };
    assert_eq!(say(&mut rig, &another), [Kind::Receipt]);
    assert_eq!(rig.seat.open_orders(), 2);
}
