//! How much is looked at while a round is cleared, where a time would say nothing.

use super::book::Space;
use super::tests::{Bundle, Case, OwnedOrder, mk_bundle, mk_order, price};
use super::*;
use crate::SeatFacts;
use crate::fit::tests::mk_node;
use std::cmp::Reverse;

/// So many seats that bid on all orders, each with nodes of 50 kinds.
fn with_many_kinds(orders: Vec<OwnedOrder>, seats: u16, free_gpus: u32) -> Case {
    let bids: Vec<(u8, i64)> = orders.iter().map(|o| (o.digest[0], 1)).collect();
    let nodes: Vec<_> = (0..50).map(|kind| mk_node(&format!("M{kind}"), 80, free_gpus)).collect();
    let bundle =
        |seat| Bundle { capacity: vec![OfferCapacity::of(nodes.clone())], ..mk_bundle(seat, 0, &bids) };
    Case::new(seats, orders, (0..seats).map(bundle).collect())
}

/// The outcomes, and how often an order was held against the nodes of an offer.
fn tried(case: &Case) -> (Vec<Cleared>, usize) {
    case.with(|input| {
        let book = Book::new(input);
        let mut stock = Stock::new(&book);
        (clear_from(&book, &mut stock), stock.tried)
    })
}

/// Orders that need so many workers each of their own, or all the same.
fn orders(count: u8, is_alike: bool) -> Vec<OwnedOrder> {
    (0..count).map(|id| mk_order(id, if is_alike { 3 } else { 3 + u32::from(id) })).collect()
}

#[test]
fn an_offer_is_tried_once_for_all_orders_that_need_the_same_and_never_fit() {
    let case = with_many_kinds(orders(30, true), 5, 2);
    let (cleared, times) = tried(&case);
    assert!(cleared.iter().all(|c| matches!(c.outcome, Outcome::None(_))));
    assert_eq!(times, 5);
    let (cleared, times) = tried(&with_many_kinds(orders(30, false), 5, 2));
    assert!(cleared.iter().all(|c| c.no_bids.iter().all(|(_, reason)| *reason == Reason::FreeGpus)));
    assert_eq!(times, 30 * 5);
}

#[test]
fn an_offer_of_which_something_is_held_is_tried_at_most_three_times_for_an_order() {
    let mut case = with_many_kinds(orders(30, false), 5, 2);
    // An order of its own takes a little of all that there is.
    case.orders.push(mk_order(200, 1));
    for (seat, bundle) in (0..).zip(&mut case.bundles) {
        bundle.records.push(([200 + seat; 32], mk_bundle(0, 0, &[(0, 1)]).records[0].1));
    }
    case.orders.extend((1..5).map(|seat| mk_order(200 + seat, 1)));
    case.beacon = (0u32..)
        .map(|seed| crate::tagged_hash("BEACON", &[&seed.to_be_bytes()]))
        .find(|beacon| {
            let turn = |o: &OwnedOrder| rank(beacon, &o.digest);
            let small = case.orders.iter().skip(30).map(turn).max();
            small < case.orders.iter().skip(20).take(10).map(turn).min()
        })
        .unwrap();
    let (cleared, times) = tried(&case);
    assert_eq!(cleared.iter().filter(|c| matches!(c.outcome, Outcome::Award(_))).count(), 5);
    assert!(times > 30 * 5 + 10 * 5 && times <= 3 * 30 * 5 + 5, "{times}");
}

#[test]
fn bids_come_in_order_of_preference_however_many_are_wanted() {
    let bids = |seat: u16| vec![(1, 1 + i64::from(seat * 7 % 12))];
    let bundles = (0..40).map(|seat| mk_bundle(seat, 1, &bids(seat))).collect();
    let mut case = Case::new(40, vec![OwnedOrder { ceiling: Some(price(10)), ..mk_order(1, 1) }], bundles);
    case.rules.seats = (0..40).map(|seat| SeatFacts { standing: seat % 2, ..SeatFacts::default() }).collect();
    case.rules.score.standing = 1;
    let closed: Vec<bool> = (0..40).map(|seat| seat % 9 == 0).collect();
    case.with(|input| {
        let book = Book::new(input);
        let row = book.turns().next().unwrap();
        let mut wanted: Vec<_> = (0u16..40)
            .filter(|seat| seat % 9 != 0)
            .map(|seat| (bids(seat)[0].1, Reverse(seat % 2), book::tie(input.beacon, &[1; 32], seat), seat))
            .filter(|(micros, ..)| *micros <= 10)
            .collect();
        wanted.sort_unstable();
        let wanted: Vec<u16> = wanted.into_iter().map(|(.., seat)| seat).collect();
        let mut space = Space::default();
        for _ in 0..2 {
            let given: Vec<u16> = book.bids(row, &closed, &mut space).map(|bid| bid.seat).collect();
            assert_eq!(given, wanted);
        }
    });
}
