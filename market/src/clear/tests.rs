use super::*;
use crate::fit::tests::mk_node;
use crate::requirements::tests::mk_requirements;
use proptest::prelude::*;

const BEACON: Digest = [7; 32];

fn mk_order(id: u8, workers: u32) -> ListedOrder {
    ListedOrder { digest: [id; 32], requirements: mk_requirements(workers, 1) }
}

fn mk_bundle(seat: u16, gpus: u32, bids: &[(u8, i64)]) -> OpenedBundle {
    OpenedBundle {
        seat,
        provider: format!("p{seat}"),
        capacity: vec![OfferCapacity { nodes: vec![mk_node("H100", 80, gpus)] }],
        records: bids
            .iter()
            .map(|(order, price)| Record {
                order: [*order; 32],
                kind: RecordKind::Bid { price: Price::from_micros(*price).unwrap(), spec: 0 },
            })
            .collect(),
    }
}

#[test]
fn cheapest_wins_at_its_own_price_with_ranked_stand_bys() {
    let orders = [mk_order(1, 2)];
    let bundles = [
        mk_bundle(0, 4, &[(1, 30)]),
        mk_bundle(1, 4, &[(1, 10)]),
        mk_bundle(2, 1, &[(1, 5)]),
        mk_bundle(3, 4, &[(1, 20)]),
    ];
    let cleared = clear(&BEACON, 4, &orders, &bundles, &BTreeSet::new());
    let price = |p| Price::from_micros(p).unwrap();
    assert_eq!(
        cleared,
        [Cleared {
            order: [1; 32],
            outcome: Outcome::Award(Award {
                seat: 1,
                price: price(10),
                spec: 0,
                stand_bys: vec![
                    StandBy { seat: 3, price: price(20), spec: 0 },
                    StandBy { seat: 0, price: price(30), spec: 0 },
                ],
            }),
            no_bids: vec![(2, Reason::FreeGpus)],
            holdings: [1, 3, 0]
                .map(|seat| Holding { seat, spec: 0, placement: Placement { workers: vec![(0, 2)] } })
                .to_vec(),
        }]
    );
    let bytes = cleared[0].outcome.to_bytes();
    assert_eq!(Outcome::from_bytes(&bytes).unwrap(), cleared[0].outcome);
}

#[test]
fn nobody_fits_gives_a_histogram_over_all_seats() {
    let orders = [mk_order(1, 2)];
    let mut no_bid = mk_bundle(0, 4, &[]);
    no_bid.records = vec![Record { order: [1; 32], kind: RecordKind::NoBid(Reason::Model) }];
    let too_dear = mk_bundle(1, 4, &[(1, 6_000_000)]);
    let garbage = BTreeSet::from([2]);
    let cleared = clear(&BEACON, 4, &orders, &[no_bid, too_dear], &garbage);
    let Outcome::None(histogram) = &cleared[0].outcome else { panic!("awarded") };
    assert_eq!(histogram.to_string(), "0 of 4 providers: 1 model, 1 price, 1 silent, 1 unreadable bundle");
}

#[test]
fn capacity_is_shared_between_orders_of_a_round() {
    let orders = [mk_order(1, 2), mk_order(2, 2)];
    let cleared = clear(&BEACON, 1, &orders, &[mk_bundle(0, 3, &[(1, 10), (2, 10)])], &BTreeSet::new());
    let awards = cleared.iter().filter(|c| matches!(c.outcome, Outcome::Award(_))).count();
    assert_eq!(awards, 1);
    assert!(cleared.iter().any(|c| c.no_bids == [(0, Reason::Outbid)]));
}

#[test]
fn bids_for_unlisted_orders_and_unknown_offers_are_ignored() {
    let mut bundle = mk_bundle(0, 4, &[(1, 10), (9, 1)]);
    bundle.records[0].kind = RecordKind::Bid { price: Price::from_micros(10).unwrap(), spec: 3 };
    let cleared = clear(&BEACON, 1, &[mk_order(1, 1)], &[bundle], &BTreeSet::new());
    assert_eq!(cleared.len(), 1);
    assert_eq!(cleared[0].no_bids, [(0, Reason::NoOffer)]);
}

/// GPUs given away per seat, stand-bys included.
fn gpus_used(cleared: &[Cleared], orders: &[ListedOrder]) -> BTreeMap<u16, u32> {
    let mut used = BTreeMap::new();
    for c in cleared {
        let gpus = orders.iter().find(|o| o.digest == c.order).map_or(0, |o| o.requirements.gpus());
        if let Outcome::Award(a) = &c.outcome {
            for seat in a.stand_bys.iter().map(|s| s.seat).chain([a.seat]) {
                *used.entry(seat).or_default() += gpus;
            }
        }
    }
    used
}

proptest! {
    #[test]
    fn sequence_does_not_matter_and_nothing_is_oversold(
        wants in prop::collection::vec(1u32..5, 1..6),
        seats in prop::collection::vec((0u32..10, prop::collection::vec(1i64..20, 6)), 1..6),
        beacon in any::<[u8; 32]>(),
        turn in any::<usize>(),
    ) {
        let orders: Vec<_> = wants.iter().enumerate().map(|(i, w)| mk_order(i as u8, *w)).collect();
        let bundles: Vec<_> = seats.iter().enumerate().map(|(seat, (gpus, prices))| {
            let bids: Vec<_> = prices.iter().take(orders.len()).enumerate().map(|(i, p)| (i as u8, *p)).collect();
            mk_bundle(seat as u16, *gpus, &bids)
        }).collect();
        let n = bundles.len() as u16;
        let cleared = clear(&beacon, n, &orders, &bundles, &BTreeSet::new());
        let (mut orders2, mut bundles2) = (orders.clone(), bundles.clone());
        orders2.rotate_left(turn % orders.len());
        bundles2.rotate_left(turn % bundles.len());
        bundles2.iter_mut().for_each(|b| b.records.reverse());
        prop_assert_eq!(&cleared, &clear(&beacon, n, &orders2, &bundles2, &BTreeSet::new()));
        for (seat, used) in gpus_used(&cleared, &orders) {
            prop_assert!(used <= seats[usize::from(seat)].0);
        }
    }
}
