//! Bodies that come early: what a seat accepts of a home, and what a home makes of a round's result.

use super::handover_tests::from_seat;
use super::tests::{Rig, kinds, mk_rig};
use super::*;
use crate::drops::DropReason;
use crate::home::{Home, HomeInput, HomeOutput, NewOrder};
use crate::keys::HomeKeys;
use crate::pool::Closed;
use crate::wire::tests::mk_order;
use crate::wire::{Again, Cancel, Kind, OrderMsg, Proof, Receipt, Taken, Withdraw, decode, peek_kind};
use vendue_market::{Award, Histogram, Order, Outcome, Price, Reason, Unserved};

pub(super) fn nobody() -> Outcome {
    let mut histogram = Histogram::new(4);
    (0..4).for_each(|_| histogram.add(Reason::FreeGpus));
    Outcome::None(histogram)
}

pub(super) fn to_seat_2() -> Outcome {
    let price = Price::from_micros(2_000_000).unwrap();
    Outcome::Award(Award { seat: 2, price, spec: 0, devices: None, stand_bys: vec![] })
}

/// The next body of an order that round `round` gave to nobody.
fn again(rig: &Rig, before: &Order, round: u64, first_round: u64) -> Again {
    let proof = rig.certified(round, before, nobody());
    let after = Some(Unserved { order: before.digest(), round, root: proof.certificate.root });
    Again { order: Order { first_round, after, ..before.clone() }, before: before.clone(), proof }
}

/// Receipts of the seat for a body that its home sends.
pub(super) fn say(rig: &mut Rig, again: Again) -> usize {
    let bytes = rig.say(0, Body::Again(Box::new(again)));
    kinds(&rig.give(0, bytes)).iter().filter(|k| **k == Kind::Receipt).count()
}

fn bids_in(rig: &mut Rig, round: u64) -> bool {
    rig.now = rig.record.params.t0(round);
    kinds(&rig.seat.handle(rig.now, SeatInput::Tick)).contains(&Kind::Bundle)
}

#[test]
fn a_certificate_without_an_award_puts_the_new_body_in_the_place_of_the_old() {
    let mut rig = mk_rig();
    let order = rig.order(0);
    rig.bid_in_round_0(&order);
    rig.now = 1_150;
    let next = again(&rig, &order, 0, 1);
    let digest = next.order.digest();
    assert_eq!(say(&mut rig, next.clone()), 1);
    assert_eq!(say(&mut rig, next), 1, "a receipt may have been lost");
    assert_eq!((rig.count(DropReason::Duplicate), rig.seat.open_orders()), (1, 1));
    assert!(rig.seat.pool.get(&digest).is_some());
    // The old body stays out, however late it comes.
    let late = rig.say(0, Body::Order(OrderMsg { order: order.clone() }));
    rig.give(0, late);
    assert!(rig.seat.pool.get(&order.digest()).is_none());
    assert!(bids_in(&mut rig, 1), "in the very next round");
    let step = rig.record.params.order_step();
    assert!(!bids_in(&mut rig, step) && bids_in(&mut rig, step + 1), "and from there by its own schedule");
}

#[test]
fn bodies_that_come_early_without_their_proof_are_refused() {
    let mut rig = mk_rig();
    let order = rig.order(0);
    rig.bid_in_round_0(&order);
    rig.now = 1_150;
    let good = again(&rig, &order, 0, 1);
    let step = rig.record.params.order_step();
    let mut cases = vec![];
    let awarded = rig.certified(0, &order, to_seat_2());
    let mut named = good.clone();
    named.order.after = named.order.after.map(|a| Unserved { root: awarded.certificate.root, ..a });
    cases.push(("an award", Again { proof: awarded.clone(), ..named }));
    cases.push(("the proof of another round than is named", Again { proof: awarded, ..good.clone() }));
    let mut lie = good.clone();
    lie.proof.proof.leaf.outcome = to_seat_2();
    cases.push(("a leaf that is not certified", lie));
    let mut weak = good.clone();
    weak.proof.certificate.quorum.signers = crate::wire::Signers::new(4, [0, 1]);
    cases.push(("too few seats", weak));
    let mut other = good.clone();
    other.order.requirements.workers = 3;
    cases.push(("another order", other));
    cases.push(("a round before", again(&rig, &order, 0, 0)));
    cases.push(("a round that is not early", again(&rig, &order, 0, step)));
    cases.push(("a round that was none of the order's", again(&rig, &order, 1, 2)));
    let expected = cases.len() as u64;
    for (what, case) in cases {
        assert_eq!(say(&mut rig, case), 0, "{what}");
    }
    assert_eq!(rig.count(DropReason::BadSignature), expected);
    // Not as a plain order, and not by another home.
    let plain = rig.say(0, Body::Order(OrderMsg { order: good.order.clone() }));
    assert!(rig.give(0, plain).is_empty());
    assert_eq!(rig.count(DropReason::Unexpected), 1);
    let stranger = rig.say(1, Body::Again(Box::new(good)));
    assert!(rig.give(1, stranger).is_empty());
    assert!(rig.seat.pool.get(&order.digest()).is_some() && rig.seat.open_orders() == 1, "nothing changed");
}

#[test]
fn a_last_word_about_either_body_counts() {
    let word = |how: Closed, order: Digest| match how {
        Closed::Taken(seat) => Body::Taken(Taken { order, seat }),
        Closed::Cancelled => Body::Cancel(Cancel { order }),
    };
    for how in [Closed::Cancelled, Closed::Taken(1)] {
        for overtakes in [false, true] {
            let mut rig = mk_rig();
            let order = rig.order(0);
            rig.bid_in_round_0(&order);
            rig.now = 1_150;
            let next = again(&rig, &order, 0, 1);
            let about = if overtakes { next.order.digest() } else { order.digest() };
            let last = rig.say(0, word(how, about));
            rig.give(0, last);
            assert_eq!(say(&mut rig, next), 0);
            assert_eq!(rig.seat.open_orders(), 0, "{how:?} {overtakes}");
        }
    }
}

#[test]
fn an_award_that_lives_keeps_every_early_body_of_its_order_out() {
    let mut rig = mk_rig();
    let order = rig.order(0);
    rig.bid_in_round_0(&order);
    let step = rig.record.params.order_step();
    // Round 0 gave it to nobody, the next of its rounds to a seat; then its home shows the certificate of round 0.
    rig.now = rig.record.params.t0(step) + 150;
    let expiry = rig.record.params.expiry(step);
    rig.seat.pool.awarded(0, &order, expiry);
    let next = again(&rig, &order, 0, step - 1);
    assert_eq!(say(&mut rig, next), 1);
    let mut listed = vec![];
    for round in step + 1..=3 * step {
        if bids_in(&mut rig, round) {
            listed.push(round);
        }
    }
    assert_eq!(listed, [3 * step - 1]);
    assert!(rig.record.params.t0(3 * step - 1) >= expiry);
}

fn mk_home(rig: &Rig) -> (Home, Digest, Order) {
    mk_home_by(rig, HomeInput::Submit)
}

pub(super) fn mk_home_by(
    rig: &Rig,
    submit: impl FnOnce(Box<NewOrder>) -> HomeInput,
) -> (Home, Digest, Order) {
    let mut home = Home::new(rig.record.clone(), 0, HomeKeys::from_json(&rig.homes[0].to_json()).unwrap());
    let (digest, order) = place(&mut home, 500, submit);
    (home, digest, order)
}

/// The home places an order that expires a minute later.
pub(super) fn place(
    home: &mut Home,
    now: u64,
    submit: impl FnOnce(Box<NewOrder>) -> HomeInput,
) -> (Digest, Order) {
    place_until(home, now, now + 59_500, submit)
}

pub(super) fn place_until(
    home: &mut Home,
    now: u64,
    expires_ms: u64,
    submit: impl FnOnce(Box<NewOrder>) -> HomeInput,
) -> (Digest, Order) {
    let mut requirements = mk_order().requirements;
    requirements.include_providers.clear();
    let new = NewOrder {
        terms: Box::default(),
        job: "j".into(),
        attempt: 1,
        requirements,
        commitment: [1; 32],
        expires_ms,
    };
    let out = home.handle(now, submit(Box::new(new)));
    let ordered = out.into_iter().find_map(|o| match o {
        HomeOutput::Ordered { digest, order, .. } => Some((digest, *order)),
        _ => None,
    });
    ordered.unwrap()
}

pub(super) fn proof_of(rig: &Rig, seat: u16, proof: Proof) -> HomeInput {
    let header = Header { kind: Kind::Proof, market: rig.record.short_id(), epoch: 0, round: 0, seat };
    let bytes = Message { header, body: Body::Proof(Box::new(proof)), signature: None }.encode();
    HomeInput::Message { from: seat, bytes }
}

pub(super) fn relisted(out: &[HomeOutput]) -> Option<Digest> {
    out.iter().find_map(|o| match o {
        HomeOutput::Relisted { digest, .. } => Some(*digest),
        _ => None,
    })
}

pub(super) fn sent(out: &[HomeOutput], kind: Kind) -> Vec<Body> {
    let bytes = out.iter().filter_map(|o| match o {
        HomeOutput::Broadcast(bytes) | HomeOutput::Send { bytes, .. } => Some(bytes),
        _ => None,
    });
    bytes.filter(|b| peek_kind(b) == Some(kind)).map(|b| decode(b, 4).unwrap().body).collect()
}

#[test]
fn a_home_lists_an_unserved_order_again_in_the_next_possible_round() {
    let rig = mk_rig();
    let (mut home, first, order) = mk_home(&rig);
    let none = rig.certified(0, &order, nobody());
    let out = home.handle(1_200, proof_of(&rig, 1, none.clone()));
    let second = relisted(&out).unwrap();
    assert!(matches!(out[0], HomeOutput::NotAwarded { order, retry_ms: Some(1_600), .. } if order == first));
    let [Body::Again(sent_again)] = &sent(&out, Kind::Again)[..] else { panic!("{out:?}") };
    assert_eq!((sent_again.order.first_round, sent_again.order.digest()), (1, second));
    assert_eq!(sent_again.before, order);
    // A seat takes it as it is.
    let mut rig = rig;
    rig.now = 1_250;
    assert_eq!(say(&mut rig, (**sent_again).clone()), 1);
    // What the others say about the same round changes nothing.
    assert_eq!(relisted(&home.handle(1_210, proof_of(&rig, 2, none))), None);
    // Too late for the round after the next one: the round is chosen by the clock.
    let none = rig.certified(1, &sent_again.order, nobody());
    let out = home.handle(1_800, proof_of(&rig, 1, none));
    let [Body::Again(third)] = &sent(&out, Kind::Again)[..] else { panic!("{out:?}") };
    assert_eq!(third.order.first_round, 2);
    assert_eq!(third.order.after.map(|a| (a.order, a.round)), Some((second, 1)));

    // Whoever knows it by an old name may withdraw it, and what a seat awards under one is refused.
    let awarded = rig.certified(0, &order, to_seat_2());
    let out = home.handle(1_900, proof_of(&rig, 2, awarded));
    assert_eq!(sent(&out, Kind::Cancel), [Body::Cancel(Cancel { order: first })]);
    assert!(!out.iter().any(|o| matches!(o, HomeOutput::Awarded { .. })));
    let out = home.handle(2_000, HomeInput::Cancel { order: first });
    let last = third.order.digest();
    assert_eq!(sent(&out, Kind::Cancel), [Body::Cancel(Cancel { order: last })]);
    let all = Withdraw { job: order.job.clone(), attempt: order.attempt, round: 2, except: last };
    assert_eq!(sent(&out, Kind::Withdraw), [Body::Withdraw(all)], "some seats may know the others only");
    home.handle(2_100, HomeInput::Forget { order: second });
    home.handle(10_000, HomeInput::Tick);
    assert_eq!(home.next_wake(), None, "the last words were repeated, and nothing else is left");
}

#[test]
fn an_awarded_order_is_not_listed_again_before_its_award_has_expired() {
    let rig = mk_rig();
    let (mut home, first, order) = mk_home(&rig);
    let out = home.handle(1_200, proof_of(&rig, 1, rig.certified(0, &order, to_seat_2())));
    assert!(out.iter().any(|o| matches!(o, HomeOutput::Awarded { body, .. } if **body == order)));
    assert_eq!(relisted(&home.handle(1_300, proof_of(&rig, 1, rig.certified(0, &order, nobody())))), None);
    let expiry = rig.record.params.expiry(0);
    let mut out = vec![];
    for at in (1_400..expiry + 10).step_by(100).chain([expiry + 10]) {
        out.extend(home.handle(at, HomeInput::Tick));
    }
    let step = rig.record.params.order_step();
    let retry = rig.record.params.t0(step);
    assert!(retry >= expiry);
    assert!(out.contains(&HomeOutput::Unserved { order: first, retry_ms: retry }), "{out:?}");
    assert_eq!(relisted(&out), None);
}

#[test]
fn a_late_result_waits_for_the_schedule() {
    let rig = mk_rig();
    let step = rig.record.params.order_step();
    for (at, early) in [(10_200, true), (10_900, false)] {
        let (mut home, first, order) = mk_home(&rig);
        let out = home.handle(at, proof_of(&rig, 1, rig.certified(0, &order, nobody())));
        assert_eq!(relisted(&out).is_some(), early, "{at}");
        let scheduled = rig.record.params.t0(step);
        let waits = |o: &HomeOutput| matches!(o, HomeOutput::NotAwarded { order, retry_ms: Some(at), .. } if *order == first && *at == scheduled);
        assert_eq!(out.iter().any(waits), !early, "{out:?}");
    }
}

#[test]
fn the_end_of_the_search_is_kept() {
    let rig = mk_rig();
    let (_, _, order) = mk_home(&rig);
    let mut home = Home::new(rig.record.clone(), 0, HomeKeys::from_json(&rig.homes[0].to_json()).unwrap());
    let short = Order { expires_ms: 1_700, ..order };
    home.handle(600, HomeInput::Resume { order: Box::new(short.clone()), choice: None });
    let out = home.handle(1_550, proof_of(&rig, 1, rig.certified(0, &short, nobody())));
    let ends = |o: &HomeOutput| matches!(o, HomeOutput::NotAwarded { retry_ms: None, .. });
    assert!(out.iter().any(ends) && relisted(&out).is_none(), "{out:?}");
    assert!(out.contains(&HomeOutput::GivenUp { order: short.digest() }), "{out:?}");
}

#[test]
fn a_home_that_lost_the_certificate_starts_its_search_over() {
    let rig = mk_rig();
    let (_, _, order) = mk_home(&rig);
    let early = again(&rig, &order, 0, 1).order;
    let home = || Home::new(rig.record.clone(), 0, HomeKeys::from_json(&rig.homes[0].to_json()).unwrap());
    // Its round may still give a result: it is asked for, and nothing is sent that seats could not check.
    let mut open = home();
    let resume = HomeInput::Resume { order: Box::new(early.clone()), choice: None };
    let out = open.handle(2_000, resume.clone());
    assert!(sent(&out, Kind::Order).is_empty() && sent(&out, Kind::Again).is_empty(), "{out:?}");
    let out = open.handle(2_700, proof_of(&rig, 1, rig.certified(1, &early, to_seat_2())));
    assert!(out.iter().any(|o| matches!(o, HomeOutput::Awarded { body, .. } if **body == early)));

    let mut over = home();
    let now = rig.record.params.expiry(1) + 1;
    let out = over.handle(now, resume);
    let [Body::Order(sent_order)] = &sent(&out, Kind::Order)[..] else { panic!("{out:?}") };
    assert_eq!(
        (sent_order.order.after, sent_order.order.first_round),
        (None, rig.record.params.first_round(now))
    );
    assert_eq!(relisted(&out), Some(sent_order.order.digest()));
}

#[test]
fn an_order_that_nobody_can_serve_is_listed_again_less_often() {
    let rig = mk_rig();
    let (mut home, _, mut order) = mk_home(&rig);
    let mut gaps = vec![];
    for _ in 0..7 {
        let round = order.first_round;
        let none = rig.certified(round, &order, nobody());
        let out = home.handle(rig.record.params.t0(round) + 50, proof_of(&rig, 1, none));
        let [Body::Again(again)] = &sent(&out, Kind::Again)[..] else { panic!("{out:?}") };
        order = again.order.clone();
        gaps.push(order.first_round - round);
    }
    assert_eq!(gaps, [1, 1, 2, 4, 4, 4, 4]);
    assert!(rig.record.params.order_step() > 4, "more often than its own rounds all the same");
}

#[test]
fn an_order_that_reaches_the_seats_too_late_goes_on_in_the_next_possible_round() {
    let rig = mk_rig();
    let (mut home, first, order) = mk_home(&rig);
    let (start, round) = (rig.record.params.t0(order.first_round), order.first_round);
    let receipt = |seat, order, from_round| {
        from_seat(&rig, seat, 0, Body::Receipt(Receipt { order, from_round, models: vec![] }))
    };
    home.handle(start - 20, receipt(1, first, round));
    // These two have it too late to list it in that round.
    home.handle(start - 10, receipt(2, first, round + 1));
    home.handle(start - 10, receipt(3, first, round + 1));
    assert_eq!(home.next_wake(), Some(start));
    let out = home.handle(start, HomeInput::Tick);
    let second = relisted(&out).unwrap();
    let delayed = out.iter().find_map(|o| match o {
        HomeOutput::Delayed { order, receipts, retry_ms, .. } => Some((*order, *receipts, *retry_ms)),
        _ => None,
    });
    let next = rig.record.params.t0(rig.record.params.first_round(start));
    assert_eq!(delayed, Some((second, 3, next)));
    // With f + 1 seats it waits for the result.
    let round = rig.record.params.first_round(start);
    home.handle(next - 20, receipt(1, second, round));
    home.handle(next - 10, receipt(2, second, round));
    assert_eq!(relisted(&home.handle(next, HomeInput::Tick)), None);

    // After a restart home does not know what seats have; the round may award it.
    let (mut home, _, order) = mk_home(&rig);
    let mut again = Home::new(rig.record.clone(), 0, HomeKeys::from_json(&rig.homes[0].to_json()).unwrap());
    again.handle(start - 50, HomeInput::Resume { order: Box::new(order), choice: None });
    assert_eq!(relisted(&again.handle(start, HomeInput::Tick)), None);
    assert!(relisted(&home.handle(start, HomeInput::Tick)).is_some());
}

#[test]
fn a_search_is_withdrawn_whatever_its_bodies_are_called() {
    let mut rig = mk_rig();
    let order = rig.order(0);
    let say_order = |rig: &mut Rig, order: &Order| {
        let bytes = rig.say(0, Body::Order(OrderMsg { order: order.clone() }));
        kinds(&rig.give(0, bytes)).len()
    };
    let withdraw = |rig: &mut Rig, home: u16, round: u64, except: Digest| {
        let (job, attempt) = (order.job.clone(), order.attempt);
        let bytes = rig.say(home, Body::Withdraw(Withdraw { job, attempt, round, except }));
        rig.give(home, bytes);
        rig.seat.open_orders()
    };
    assert_eq!(say_order(&mut rig, &order), 1);
    rig.now = 1_200;
    let early = again(&rig, &order, 0, 3);
    assert_eq!(say(&mut rig, early.clone()), 1);
    // The early body was made in round 0, though it names round 3.
    assert_eq!(withdraw(&mut rig, 1, 9, [0; 32]), 1, "another home");
    assert_eq!(withdraw(&mut rig, 0, 9, early.order.digest()), 1, "that one has its own last word");
    assert_eq!(withdraw(&mut rig, 0, 1, [0; 32]), 0);
    // What is placed afterwards is news, also where the old body named a later round.
    assert_eq!(say_order(&mut rig, &Order { first_round: 2, ..order.clone() }), 1);

    let mut rig = mk_rig();
    assert_eq!(say_order(&mut rig, &order), 1);
    rig.now = 1_200;
    let early = again(&rig, &order, 0, 3);
    assert_eq!(say(&mut rig, early), 1);
    assert_eq!(say_order(&mut rig, &Order { first_round: 2, ..order }), 1, "a home that came back soon");
    assert_eq!(rig.seat.open_orders(), 1);
}

#[test]
fn a_home_withdraws_what_only_the_seats_know_and_places_it_anew() {
    let rig = mk_rig();
    let (_, _, order) = mk_home(&rig);
    let (job, attempt) = (order.job.clone(), order.attempt);
    let mut home = Home::new(rig.record.clone(), 0, HomeKeys::from_json(&rig.homes[0].to_json()).unwrap());
    let out = home.handle(500, HomeInput::Withdraw { job: job.clone(), attempt });
    let [Body::Withdraw(word)] = &sent(&out, Kind::Withdraw)[..] else { panic!("{out:?}") };
    assert_eq!((&word.job, word.attempt), (&job, attempt));
    // In the same moment: the word must not reach the new order, in whatever order the two arrive.
    let new = NewOrder {
        terms: Box::default(),
        job,
        attempt,
        requirements: order.requirements.clone(),
        commitment: order.commitment,
        expires_ms: order.expires_ms,
    };
    let out = home.handle(501, HomeInput::Submit(Box::new(new)));
    let [Body::Order(placed)] = &sent(&out, Kind::Order)[..] else { panic!("{out:?}") };
    assert!(placed.order.first_round > word.round);
}

#[test]
fn a_home_that_resumes_takes_each_search_up_once() {
    let rig = mk_rig();
    let (mut home, first, order) = mk_home(&rig);
    let none = rig.certified(0, &order, nobody());
    assert!(relisted(&home.handle(1_200, proof_of(&rig, 1, none))).is_some());
    let resume = HomeInput::Resume { order: Box::new(order.clone()), choice: None };
    assert!(home.handle(1_250, resume.clone()).is_empty(), "{first:?} is known under another name");
    home.handle(1_300, HomeInput::Cancel { order: first });
    // Withdrawn and wanted again: seats would not take the same body.
    let out = home.handle(1_400, resume);
    let [Body::Order(placed)] = &sent(&out, Kind::Order)[..] else { panic!("{out:?}") };
    assert!(placed.order.first_round > order.first_round);
}
