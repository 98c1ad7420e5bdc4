use super::tests::{Bundle, Case, OwnedOrder, mk_bid, mk_bundle, mk_order, price};
use super::*;
use crate::tagged_hash;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// A round of up to six orders, some pinned, some at the second price, and up to six seats.
fn rounds() -> impl Strategy<Value = Case> {
    let order = (1u32..5, any::<bool>(), prop::option::of(0u16..6), 5i64..25);
    let bid = prop::option::of((1i64..20, any::<bool>()));
    let seat = (0u32..10, prop::collection::vec(bid, 6));
    let parts = (prop::collection::vec(order, 1..7), prop::collection::vec(seat, 1..7), any::<[u8; 32]>());
    parts.prop_map(|(orders, seats, beacon)| {
        let orders: Vec<OwnedOrder> = orders
            .into_iter()
            .zip(0u8..)
            .map(|((workers, second_price, pin, ceiling), id)| {
                let pinned = pin.filter(|_| !second_price).map(|seat| format!("p{seat}"));
                let terms = Terms { second_price, pinned, ..Terms::default() };
                OwnedOrder { terms, ceiling: Some(price(ceiling)), ..mk_order(id, workers) }
            })
            .collect();
        let bundles = seats.into_iter().zip(0u16..).map(|((gpus, bids), seat)| {
            let record = |(id, (micros, may_interrupt)): (u8, (i64, bool))| {
                ([id; 32], mk_bid(micros, BidTerms { may_interrupt, ..BidTerms::default() }))
            };
            let bids = (0u8..).zip(bids).filter_map(|(id, bid)| Some((id, bid?)));
            Bundle { records: bids.map(record).collect(), ..mk_bundle(seat, gpus, &[]) }
        });
        let bundles: Vec<Bundle> = bundles.collect();
        Case { beacon, ..Case::new(bundles.len() as u16, orders, bundles) }
    })
}

fn awards(cleared: &[Cleared]) -> impl Iterator<Item = (&Digest, &Award)> {
    cleared.iter().filter_map(|c| match &c.outcome {
        Outcome::Award(award) => Some((&c.order, award)),
        Outcome::None(_) => None,
    })
}

fn bid_of(case: &Case, seat: u16, order: &Digest) -> Price {
    let record = case.bundles[usize::from(seat)].records.iter().find(|(o, _)| o == order).unwrap();
    match record.1 {
        RecordKind::Bid { price, .. } => price,
        RecordKind::NoBid(reason) => panic!("{reason}"),
    }
}

proptest! {
    #[test]
    fn sequence_does_not_matter(mut case in rounds(), turn in any::<usize>()) {
        let cleared = case.clear();
        let (orders, bundles) = (case.orders.len(), case.bundles.len());
        case.orders.rotate_left(turn % orders);
        case.bundles.rotate_left(turn % bundles);
        case.bundles.iter_mut().for_each(|b| b.records.reverse());
        prop_assert_eq!(cleared, case.clear());
    }

    #[test]
    fn nothing_is_oversold(case in rounds()) {
        let cleared = case.clear();
        let mut used: BTreeMap<u16, u32> = BTreeMap::new();
        for (c, order) in cleared.iter().zip(&case.orders) {
            let seats: Vec<u16> = c.holdings.iter().map(|h| h.seat).collect();
            if let Outcome::Award(a) = &c.outcome {
                prop_assert_eq!(&seats, &std::iter::once(a.seat).chain(a.stand_bys.iter().map(|s| s.seat)).collect::<Vec<_>>());
                prop_assert_eq!(seats.iter().collect::<BTreeSet<_>>().len(), seats.len());
            }
            for h in &c.holdings {
                prop_assert_eq!(h.placement.workers.iter().map(|w| w.1).sum::<u32>(), order.requirements.workers);
                *used.entry(h.seat).or_default() += order.requirements.gpus();
            }
        }
        for (seat, used) in used {
            prop_assert!(used <= case.bundles[usize::from(seat)].capacity[0].nodes[0].free_gpus);
        }
    }

    #[test]
    fn what_is_paid_lies_between_the_bid_and_the_ceiling(case in rounds()) {
        let cleared = case.clear();
        for (digest, award) in awards(&cleared) {
            let order = case.orders.iter().find(|o| &o.digest == digest).unwrap();
            let bid = bid_of(&case, award.seat, digest);
            prop_assert!(bid <= award.price && Some(award.price) <= order.ceiling);
            prop_assert!(order.terms.second_price || award.price == bid);
            for s in &award.stand_bys {
                prop_assert_eq!(s.price, bid_of(&case, s.seat, digest));
                prop_assert!(s.price >= bid && Some(s.price) <= order.ceiling);
                prop_assert!(!order.terms.second_price || s.price >= award.price);
            }
        }
    }

    #[test]
    fn pinned_orders_go_to_nobody_else_and_no_run_is_interrupted_that_must_not_be(case in rounds()) {
        let cleared = case.clear();
        for (digest, award) in awards(&cleared) {
            let order = case.orders.iter().find(|o| &o.digest == digest).unwrap();
            for seat in award.stand_bys.iter().map(|s| s.seat).chain([award.seat]) {
                let bundle = &case.bundles[usize::from(seat)];
                prop_assert!(order.terms.pinned.as_ref().is_none_or(|p| p == &bundle.provider));
                let kind = bundle.records.iter().find(|(o, _)| o == digest).unwrap().1;
                let interrupts = matches!(kind, RecordKind::Bid { terms, .. } if terms.may_interrupt);
                prop_assert!(!interrupts);
            }
        }
    }

    #[test]
    fn a_bid_that_lost_changes_no_winner(
        mut case in rounds(), seat in any::<prop::sample::Index>(), bid in any::<prop::sample::Index>(),
    ) {
        let cleared = case.clear();
        let seat = seat.index(case.bundles.len());
        let bundle = &mut case.bundles[seat];
        if !bundle.records.is_empty() {
            let removed = bundle.records.remove(bid.index(bundle.records.len())).0;
            let won = awards(&cleared).any(|(order, a)| order == &removed && usize::from(a.seat) == seat);
            let after = case.clear();
            let winners = |c: &[Cleared]| awards(c).map(|(order, a)| (*order, a.seat)).collect::<Vec<_>>();
            if !won {
                prop_assert_eq!(winners(&cleared), winners(&after));
            } else {
                prop_assert_ne!(winners(&cleared), winners(&after), "a bid that won matters");
            }
        }
    }

    #[test]
    fn explanations_agree_with_the_outcome(case in rounds()) {
        let cleared = case.clear();
        for c in &cleared {
            let explained = case.explain(&cleared, &c.order).unwrap();
            prop_assert_eq!(explained.seats.len(), usize::from(case.seats));
            let is_won = |v: &Verdict| matches!(v, Verdict::Won { .. });
            let winners: Vec<u16> =
                explained.seats.iter().filter(|s| is_won(&s.verdict)).map(|s| s.seat).collect();
            match &c.outcome {
                Outcome::Award(a) => {
                    prop_assert_eq!(winners, [a.seat]);
                    for (s, rank) in a.stand_bys.iter().zip(1..) {
                        prop_assert_eq!(explained.seats[usize::from(s.seat)].stand_by, Some(rank));
                    }
                }
                Outcome::None(histogram) => {
                    prop_assert!(winners.is_empty());
                    for s in &explained.seats {
                        let given = c.no_bids.iter().find(|(seat, _)| *seat == s.seat).unwrap().1;
                        match &s.verdict {
                            Verdict::NotFeasible(reason) => prop_assert_eq!(*reason, given),
                            Verdict::CapacityTaken { by } => {
                                prop_assert_eq!(given, Reason::Outbid);
                                prop_assert!(awards(&cleared).any(|(order, a)| order == by && a.seat == s.seat));
                            }
                            other => prop_assert!(false, "{other:?}"),
                        }
                    }
                    prop_assert_eq!(histogram.total(), case.seats);
                }
            }
        }
    }

    #[test]
    fn outcomes_read_back_and_no_bytes_are_read_twice(
        case in rounds(), bytes in prop::collection::vec(0u8..4, 0..40),
    ) {
        for c in case.clear() {
            prop_assert_eq!(Outcome::from_bytes(&c.outcome.to_bytes()).unwrap(), c.outcome);
        }
        if let Ok(outcome) = Outcome::from_bytes(&bytes) {
            prop_assert_eq!(outcome.to_bytes(), bytes);
        }
    }
}

/// Pearson's statistic of counts against equal shares.
fn chi_square(counts: &[u32]) -> f64 {
    let expected = f64::from(counts.iter().sum::<u32>()) / counts.len() as f64;
    counts.iter().map(|c| (f64::from(*c) - expected).powi(2) / expected).sum()
}

/// Each of eight seats bids the same, and each has room for what it wins; the counts of wins over many beacons.
fn wins(orders: &[OwnedOrder], beacons: u32) -> Vec<u32> {
    let bids: Vec<(u8, i64)> = orders.iter().map(|o| (o.digest[0], 10)).collect();
    let bundles = (0..8).map(|seat| mk_bundle(seat, 64, &bids)).collect();
    let mut case = Case::new(8, orders.to_vec(), bundles);
    let mut counts = vec![0; 8];
    for seed in 0..beacons {
        case.beacon = tagged_hash("BEACON", &[&seed.to_be_bytes()]);
        awards(&case.clear()).for_each(|(_, a)| counts[usize::from(a.seat)] += 1);
    }
    counts
}

#[test]
fn ties_are_broken_uniformly_whatever_the_order_is_called() {
    // 0.1 % of uniform samples are above 24.3 at seven degrees of freedom.
    for id in [0, 1, 255] {
        let counts = wins(&[mk_order(id, 1)], 800);
        assert!(chi_square(&counts) < 24.3, "{id}: {counts:?}");
    }
    let all = wins(&(0..8).map(|id| mk_order(id, 1)).collect::<Vec<_>>(), 100);
    assert!(chi_square(&all) < 24.3, "{all:?}");
    assert!(chi_square(&[130, 100, 100, 100, 100, 100, 100, 70]) > 15.0, "the measure sees a difference");
}

#[test]
fn the_turn_of_an_order_is_uniform_too() {
    // One seat with room for one order: whose turn comes first wins.
    let orders: Vec<OwnedOrder> = (0..8).map(|id| mk_order(id, 1)).collect();
    let bids: Vec<(u8, i64)> = (0..8).map(|id| (id, 10)).collect();
    let mut case = Case::new(1, orders, vec![mk_bundle(0, 1, &bids)]);
    let mut counts = [0; 8];
    for seed in 0..800u32 {
        case.beacon = tagged_hash("BEACON", &[&seed.to_be_bytes()]);
        awards(&case.clear()).for_each(|(order, _)| counts[usize::from(order[0])] += 1);
    }
    assert_eq!(counts.iter().sum::<u32>(), 800);
    assert!(chi_square(&counts) < 24.3, "{counts:?}");
}
