//! Orders whose ceiling is sealed: what each of their bodies has in it, and when it is made.

use super::again_tests::{mk_home_by, nobody, place, place_until, proof_of, relisted, say, sent, to_seat_2};
use super::handover_tests::from_seat;
use super::tests::{Rig, mk_rig};
use super::*;
use crate::clearing::opened_ceiling;
use crate::epochs::first_round;
use crate::home::{Home, HomeInput, HomeOutput, NewOrder};
use crate::keygen::dealt_next;
use crate::keys::HomeKeys;
use crate::wire::{Kind, OrderMsg, Receipt, Refuse};
use vendue_market::{Order, Price, Reason};
use vendue_sealed_bid::{RoundId, SealShare, combine, open};

const CEILING: i64 = 1_200_000;

fn mk_sealing_home(rig: &Rig) -> (Home, Digest, Order) {
    let ceiling = Price::from_micros(CEILING).unwrap();
    mk_home_by(rig, |order| HomeInput::SubmitSealed { order, ceiling })
}

/// What an order's sealed ceiling is when its first round is opened.
fn opened(rig: &Rig, order: &Order) -> Option<i64> {
    opened_by(&rig.record, rig.seats.iter().map(|keys| &keys.share), order)
}

fn opened_by<'s>(
    record: &MarketRecord,
    shares: impl Iterator<Item = &'s SealShare>,
    order: &Order,
) -> Option<i64> {
    let id = RoundId { market: record.market, epoch: record.epoch, round: order.first_round };
    let shares: Vec<_> = (0..).zip(shares).map(|(seat, share)| (seat, share.sign(&id))).collect();
    let combined = combine(&id, &record.seal_key, record.q(), &shares, |_| None).unwrap();
    opened_ceiling(order, |header, sealed| open(&combined, header, sealed)).map(Price::micros)
}

#[test]
fn a_ceiling_is_sealed_anew_in_each_body_and_seats_take_it() {
    let mut rig = mk_rig();
    let (mut home, _, order) = mk_sealing_home(&rig);
    assert_eq!((order.first_round, opened(&rig, &order)), (0, Some(CEILING)));
    let out = home.handle(1_200, proof_of(&rig, 1, rig.certified(0, &order, nobody())));
    let [Body::Again(second)] = &sent(&out, Kind::Again)[..] else { panic!("{out:?}") };
    assert_eq!((second.order.first_round, opened(&rig, &second.order)), (1, Some(CEILING)));
    rig.now = 1_250;
    assert_eq!(say(&mut rig, (**second).clone()), 1);
    let mut none = (**second).clone();
    none.order.terms.sealed_ceiling = None;
    assert_eq!(say(&mut rig, none), 0, "nobody takes it out");
    // Too few seats have that body when its round begins: it is lost, and another one takes its place.
    let begins = rig.record.params.t0(1);
    assert!(relisted(&home.handle(begins, HomeInput::Tick)).is_some());
    let out = sent(&home.handle(begins + 1, HomeInput::Tick), Kind::Order);
    let [Body::Order(third)] = &out[..] else { panic!("{} orders", out.len()) };
    assert!(third.order.first_round > 1 && opened(&rig, &third.order) == Some(CEILING));
}

#[test]
fn a_ceiling_is_sealed_to_the_epoch_of_its_round() {
    let rig = mk_rig();
    let (next, shares) = dealt_next(&rig.record, &rig.seats, 0);
    let (next, ceiling) = (Arc::new(next), Price::from_micros(CEILING).unwrap());
    let mut home = Home::new(rig.record.clone(), 0, HomeKeys::from_json(&rig.homes[0].to_json()).unwrap());
    home.take_next(1, next.clone()).unwrap();
    let begins = next.params.t0(first_round(&next));
    let sealed = |mut order: Box<NewOrder>, job: &str| {
        order.job = job.into();
        HomeInput::SubmitSealed { order, ceiling }
    };
    let (_, before) = place(&mut home, 500, |order| sealed(order, "before"));
    assert_eq!(opened(&rig, &before), Some(CEILING));
    let (_, order) = place(&mut home, begins, |order| sealed(order, "after"));
    assert_eq!(opened_by(&next, shares.iter(), &order), Some(CEILING));
    assert_eq!(opened(&rig, &order), None, "who has the old shares reads nothing");
}

#[test]
fn an_order_with_a_sealed_ceiling_goes_on_without_a_certificate_and_ends_with_what_its_home_forgot() {
    let rig = mk_rig();
    let params = rig.record.params;
    let receipts = |home: &mut Home, order: &Order| {
        for seat in [1, 2] {
            let body = Body::Receipt(Receipt { order: order.digest(), from_round: 0, models: vec![] });
            home.handle(600, from_seat(&rig, seat, 0, body));
        }
    };
    let (mut home, _, order) = mk_sealing_home(&rig);
    receipts(&mut home, &order);
    for at in (1_000..params.expiry(0)).step_by(100) {
        assert_eq!(relisted(&home.handle(at, HomeInput::Tick)), None);
    }
    assert!(relisted(&home.handle(params.expiry(0), HomeInput::Tick)).is_some());
    let out = sent(&home.handle(params.expiry(0) + 1, HomeInput::Tick), Kind::Order);
    let [Body::Order(next)] = &out[..] else { panic!("{} orders", out.len()) };
    assert!(next.order.after.is_none() && opened(&rig, &next.order) == Some(CEILING));
    let step = params.order_step();
    assert!(next.order.first_round >= step, "no two of its rounds are open together");
    // A home that has only the body.
    let keys = || HomeKeys::from_json(&rig.homes[0].to_json()).unwrap();
    let resumed = |at| {
        let mut home = Home::new(rig.record.clone(), 0, keys());
        let resume = HomeInput::Resume { order: Box::new(order.clone()), choice: None };
        (home.handle(at, resume), home)
    };
    let given_up = HomeOutput::GivenUp { order: order.digest() };
    let (out, mut home) = resumed(params.t0(0) + 50);
    assert!(!out.contains(&given_up));
    let asks = (1_100..params.expiry(0)).step_by(100).flat_map(|at| home.handle(at, HomeInput::Tick));
    assert!(sent(&asks.collect::<Vec<_>>(), Kind::Fetch).len() > 1, "the round may have awarded it");
    assert!(home.handle(params.expiry(0), HomeInput::Tick).contains(&given_up));
    assert!(resumed(params.expiry(0)).0.contains(&given_up));
}

/// A sealed order that round 0 gave to seat 2, which does not serve it: what the home says then.
fn refused(rig: &Rig, home: &mut Home, order: &Order) -> Vec<HomeOutput> {
    home.handle(1_200, proof_of(rig, 1, rig.certified(0, order, to_seat_2())));
    let refuse = Refuse { order: order.digest(), reason: Reason::FreeGpus };
    home.handle(1_300, from_seat(rig, 2, 0, Body::Refuse(refuse)))
}

#[test]
fn a_body_with_a_sealed_ceiling_is_made_when_its_round_is_the_first_that_it_can_name() {
    let rig = mk_rig();
    let params = rig.record.params;
    let (round, due_ms) = (params.order_step(), params.named_from(params.order_step()));
    let (mut home, _, order) = mk_sealing_home(&rig);
    let out = refused(&rig, &mut home, &order);
    let unserved = HomeOutput::Unserved { order: order.digest(), retry_ms: params.t0(round) };
    assert!(out.contains(&unserved), "{out:?}");
    for at in (1_300..due_ms).step_by(50).chain([due_ms - 1]) {
        assert_eq!(home.handle(at, HomeInput::Tick), [], "{at}");
        assert_eq!(home.next_wake(), Some(due_ms), "{at}");
    }
    assert!(relisted(&home.handle(due_ms, HomeInput::Tick)).is_some());
    let out = sent(&home.handle(due_ms + 1, HomeInput::Tick), Kind::Order);
    let [Body::Order(next)] = &out[..] else { panic!("{} orders", out.len()) };
    assert_eq!((next.order.first_round, next.order.after), (round, None));
    assert_eq!(opened(&rig, &next.order), Some(CEILING));

    // It is not waited for in vain.
    let short = |home: &mut Home| {
        let ceiling = Price::from_micros(CEILING).unwrap();
        place_until(home, 500, due_ms, |order| HomeInput::SubmitSealed { order, ceiling }).1
    };
    let mut home = Home::new(rig.record.clone(), 0, HomeKeys::from_json(&rig.homes[0].to_json()).unwrap());
    let order = short(&mut home);
    assert!(refused(&rig, &mut home, &order).contains(&HomeOutput::GivenUp { order: order.digest() }));
}

#[test]
fn a_home_that_forgot_a_sealed_order_withdraws_every_body_of_it() {
    let mut rig = mk_rig();
    let params = rig.record.params;
    let (mut home, _, order) = mk_sealing_home(&rig);
    let bytes = rig.say(0, Body::Order(OrderMsg { order: order.clone() }));
    rig.give(0, bytes);
    let mut out = refused(&rig, &mut home, &order);
    // It stops at some time after that, and the user withdraws the order from the next process.
    for at in (1_400..params.t0(params.order_step())).step_by(200) {
        out.extend(home.handle(at, HomeInput::Tick));
        for message in out.drain(..) {
            let HomeOutput::Broadcast(bytes) = message else { continue };
            rig.now = at;
            rig.give(0, bytes);
        }
        assert_eq!(rig.seat.open_orders(), 1, "{at}");
        let mut next =
            Home::new(rig.record.clone(), 0, HomeKeys::from_json(&rig.homes[0].to_json()).unwrap());
        let said = next.handle(at, HomeInput::Withdraw { job: order.job.clone(), attempt: order.attempt });
        let [Body::Withdraw(word)] = &sent(&said, Kind::Withdraw)[..] else { panic!("{said:?}") };
        let over = rig.seat.pool.made_until(0, &word.job, word.attempt, word.round);
        assert_eq!(over.len(), 1, "{at}: withdrawn up to round {}", word.round);
    }
}
