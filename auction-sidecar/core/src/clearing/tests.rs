//! Sealed ceilings with real keys, and what a whole run makes of them.

use super::*;
use crate::keys::{DealSpec, Dealt, MemberSpec, deal};
use crate::params::Params;
use crate::wire::Kind;
use crate::wire::tests::mk_order;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use vendue_market::{Award, BidTerms, ClearingRules, NodeCapacity, OfferCapacity, Reason, RecordKind};
use vendue_sealed_bid::{Combined, combine, open};

const ROUND: u64 = 7;
const BEACON: Digest = [3; 32];

fn mk_market() -> Dealt {
    let member = |name: String| MemberSpec { peer_id: name.clone(), name, addresses: vec![] };
    let spec = DealSpec {
        name: "m".into(),
        params: Params { delay_ms: 100, period_ms: 600, genesis_ms: 0, handover_ms: 5000 },
        seats: (0..4).map(|i| member(format!("p{i}"))).collect(),
        homes: vec![member("home".into())],
    };
    deal(&spec, &mut ChaCha20Rng::seed_from_u64(4)).unwrap()
}

fn price(micros: i64) -> Price {
    Price::from_micros(micros).unwrap()
}

/// An order of this market with its ceiling sealed.
fn sealed_order(record: &MarketRecord, micros: i64) -> Order {
    let mut order = mk_order();
    order.market = record.market;
    order.requirements.include_providers.clear();
    let key = BidKey::from_bytes(&[9; 32]);
    order.terms.sealed_ceiling = Some(seal_ceiling(record, &order, price(micros), &key).unwrap());
    order
}

fn combined(market: &Dealt, round: u64) -> Combined {
    let record = &market.record.record;
    let id = RoundId { market: record.market, epoch: record.epoch, round };
    let shares: Vec<(u16, [u8; 96])> = market.seats.iter().map(|k| (k.seat, k.share.sign(&id))).collect();
    combine(&id, &record.seal_key, record.q(), &shares, |_| None).unwrap()
}

/// The ceilings of orders in a round, by order, opened by `open`.
fn ceilings(
    record: &MarketRecord,
    round: u64,
    orders: &[Order],
    open: impl Fn(&[u8], &Sealed) -> Option<Vec<u8>>,
) -> BTreeMap<Digest, Option<Price>> {
    let orders: BTreeMap<Digest, Arc<Order>> =
        orders.iter().map(|o| (o.digest(), Arc::new(o.clone()))).collect();
    let clearing = Clearing {
        record,
        round,
        set: [0; 32],
        list: &[],
        bundles: &BTreeMap::new(),
        known: None,
        orders: &orders,
    };
    let candidates = orders.keys().copied().collect();
    let listed = clearing.orders_to_clear(&candidates, &BEACON, open);
    listed.into_iter().map(|o| (o.digest, o.ceiling)).collect()
}

#[test]
fn a_sealed_ceiling_opens_with_its_round_and_for_its_order_only() {
    let market = mk_market();
    let record = &market.record.record;
    let by = |round: u64, order: &Order| {
        let combined = combined(&market, round);
        let orders = std::slice::from_ref(order);
        let found = ceilings(record, ROUND, orders, |header, s| open(&combined, header, s));
        found.get(&order.digest()).copied()
    };
    let order = sealed_order(record, 1_200_000);
    assert_eq!(by(ROUND, &order), Some(Some(price(1_200_000))));
    assert_eq!(by(ROUND + 1, &order), Some(None), "another round's signature");
    assert_eq!(
        by(ROUND, &sealed_order(record, 9_000_000)),
        Some(Some(price(2_500_000))),
        "the public one holds"
    );
    for change in [
        |o: &mut Order| o.job.push('2'),
        |o: &mut Order| o.attempt += 1,
        |o: &mut Order| o.commitment = [8; 32],
        |o: &mut Order| o.user_key = [5; 33],
        |o: &mut Order| o.terms.sealed_ceiling.as_mut().unwrap().payload[0] ^= 1,
        |o: &mut Order| o.terms.sealed_ceiling.as_mut().unwrap().v[31] ^= 1,
        |o: &mut Order| o.terms.sealed_ceiling.as_mut().unwrap().u = [0xc0; 48],
    ] {
        let mut other = order.clone();
        change(&mut other);
        assert_eq!(by(ROUND, &other), Some(None));
    }
    let next = ROUND + record.params.order_step();
    let plain = Order { terms: Box::default(), ..order.clone() };
    let found = ceilings(record, next, &[order, plain.clone()], |_, _| None);
    assert_eq!(
        found,
        BTreeMap::from([(plain.digest(), Some(price(2_500_000)))]),
        "it has its first round only"
    );
}

#[test]
fn the_number_of_opened_ceilings_is_bounded_by_the_order_of_service() {
    let market = mk_market();
    let order = sealed_order(&market.record.record, 1_000_000);
    let orders: Vec<Order> = (0..300).map(|attempt| Order { attempt, ..order.clone() }).collect();
    let found = ceilings(&market.record.record, ROUND, &orders, |_, _| Some(price(7).to_bytes()));
    let ranks = |opened: bool| {
        let those = found.iter().filter(move |(_, ceiling)| ceiling.is_some() == opened);
        those.map(|(digest, _)| rank(&BEACON, digest)).collect::<BTreeSet<_>>()
    };
    assert_eq!((ranks(true).len(), ranks(false).len()), (MAX_SEALED_CEILINGS, 300 - MAX_SEALED_CEILINGS));
    assert!(ranks(true).last() < ranks(false).first());
}

fn mk_node() -> NodeCapacity {
    NodeCapacity {
        model: "H100".parse().unwrap(),
        gpu_memory_mib: 81_920,
        free_gpus: 2,
        cpu_millis: 8_000,
        memory_mib: 8_000,
        disk_mib: 8_000,
    }
}

/// One seat's bundle with one record, opened by a key that the test plays.
fn run(
    record: &MarketRecord,
    order: &Order,
    terms: BidTerms,
    ceiling: Option<Price>,
) -> (AwardTable, Vec<Cleared>) {
    let node = mk_node();
    let bid = RecordKind::Bid { price: price(1_000_000), spec: 0, terms };
    let plain = Plaintext { capacity: vec![OfferCapacity::of(vec![node])], records: vec![bid] };
    let header = Header { kind: Kind::Bundle, market: record.short_id(), epoch: 0, round: ROUND, seat: 1 };
    let bundle = Bundle { order_view: vec![order.digest()].into(), u: [1; 48], v: [2; 32], payload: vec![] };
    let listed = Listed { seat: 1, d: bundle.digest(&header) };
    let bundles = BTreeMap::from([(listed, Held { header, bundle, bytes: vec![] })]);
    let orders = BTreeMap::from([(order.digest(), Arc::new(order.clone()))]);
    let clearing = Clearing {
        record,
        round: ROUND,
        set: [0; 32],
        list: &[listed],
        bundles: &bundles,
        known: None,
        orders: &orders,
    };
    clearing.run(&BTreeSet::from([order.digest()]), &BEACON, |_, sealed| {
        if sealed.payload.is_empty() { Some(plain.to_padded()) } else { ceiling.map(|c| c.to_bytes()) }
    })
}

#[test]
fn what_this_seat_sealed_is_not_opened_again_and_is_that_of_no_other_bundle() {
    let market = mk_market();
    let record = &market.record.record;
    let plain = |free_gpus: u32| {
        let node = NodeCapacity { free_gpus, ..mk_node() };
        Plaintext { capacity: vec![OfferCapacity::of(vec![node])], records: vec![] }.to_padded()
    };
    let listed: Vec<(Listed, Held)> = [1, 2]
        .map(|seat| {
            let (market, epoch, round) = (record.short_id(), 0, ROUND);
            let header = Header { kind: Kind::Bundle, market, epoch, round, seat };
            let bundle = Bundle { order_view: vec![].into(), u: [1; 48], v: [2; 32], payload: vec![] };
            (Listed { seat, d: bundle.digest(&header) }, Held { header, bundle, bytes: vec![] })
        })
        .into();
    let list: Vec<Listed> = listed.iter().map(|(listed, _)| *listed).collect();
    let bundles = BTreeMap::from_iter(listed);
    let opened = |known: Option<&(Listed, Vec<u8>)>| {
        let times = std::cell::Cell::new(0);
        let (list, orders) = (&list, &BTreeMap::new());
        let clearing =
            Clearing { record, round: ROUND, set: [0; 32], list, bundles: &bundles, known, orders };
        let table = clearing.run(&BTreeSet::new(), &BEACON, |_, _| {
            times.set(times.get() + 1);
            Some(plain(3))
        });
        (table.0, times.get())
    };
    let (all, times) = opened(None);
    assert_eq!((times, opened(Some(&(list[0], plain(3))))), (2, (all.clone(), 1)));
    let other = Listed { seat: 1, d: [9; 32] };
    assert_eq!(opened(Some(&(other, plain(4)))), (all, 2));
}

#[test]
fn a_run_awards_below_an_opened_ceiling_and_says_why_not_otherwise() {
    let market = mk_market();
    let record = &market.record.record;
    let order = sealed_order(record, 1_000_000);
    let outcome = |ceiling| run(record, &order, BidTerms::default(), ceiling).1[0].outcome.clone();
    let reason = |ceiling| match outcome(ceiling) {
        Outcome::None(histogram) => histogram.counts.keys().next().copied(),
        Outcome::Award(_) => None,
    };
    assert!(matches!(outcome(Some(price(1_000_000))), Outcome::Award(Award { seat: 1, .. })));
    assert_eq!(reason(Some(price(999_999))), Some(Reason::Price));
    let Outcome::None(histogram) = outcome(None) else { panic!("awarded") };
    assert_eq!(histogram.to_string(), "0 of 4 providers: 3 silent, 1 sealed ceiling unreadable");
}

#[test]
fn the_record_decides_which_rules_hold() {
    let mut record = mk_market().record.record;
    let mut order = Order { terms: Box::default(), ..sealed_order(&record, 1_000_000) };
    let terms = BidTerms { duration_s: 600, ..BidTerms::default() };
    let is_garbage = |table: &AwardTable| table.leaves.iter().any(|l| matches!(l, Leaf::Garbage(_)));
    let (table, cleared) = run(&record, &order, terms, None);
    assert!(!is_garbage(&table) && matches!(cleared[0].outcome, Outcome::Award(_)));
    record.clearing = ClearingRules::default();
    assert!(
        is_garbage(&run(&record, &order, terms, None).0),
        "terms of a bid are malformed in the first rules"
    );
    order.terms.second_price = true;
    let (_, cleared) = run(&record, &order, BidTerms::default(), None);
    assert!(cleared[0].no_bids.contains(&(1, Reason::Rules)));
}
