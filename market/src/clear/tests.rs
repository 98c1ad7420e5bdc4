use super::*;
use crate::fit::tests::mk_node;
use crate::requirements::tests::mk_requirements;
use crate::{ScoreWeights, SeatFacts};

pub(super) const BEACON: Digest = [7; 32];

/// A round to clear: by default without seats' facts, of the latest rules.
#[derive(Debug)]
pub(super) struct Case {
    pub rules: ClearingRules,
    pub beacon: Digest,
    pub seats: u16,
    pub orders: Vec<OwnedOrder>,
    pub bundles: Vec<Bundle>,
    pub garbage: BTreeSet<u16>,
}

/// An order as it is listed, with what it needs and asks for.
#[derive(Debug, Clone)]
pub(crate) struct OwnedOrder {
    pub digest: Digest,
    pub requirements: Requirements,
    pub terms: Terms,
    pub ceiling: Option<Price>,
}

impl OwnedOrder {
    /// One that needs this, at its public ceiling.
    pub fn new(requirements: Requirements, terms: Terms) -> Self {
        Self { digest: [1; 32], ceiling: Some(requirements.max_price), requirements, terms }
    }
    pub fn listed(&self) -> ListedOrder<'_> {
        let Self { digest, requirements, terms, ceiling } = self;
        ListedOrder { digest: *digest, requirements, terms, ceiling: *ceiling }
    }
}

/// A bundle that owns what it says.
#[derive(Debug, Clone)]
pub(super) struct Bundle {
    pub seat: u16,
    pub provider: String,
    pub capacity: Vec<OfferCapacity>,
    pub records: Vec<(Digest, RecordKind)>,
}

impl Case {
    pub fn new(seats: u16, orders: Vec<OwnedOrder>, bundles: Vec<Bundle>) -> Self {
        let rules = ClearingRules::latest();
        Self { rules, beacon: BEACON, seats, orders, bundles, garbage: BTreeSet::new() }
    }
    /// What `work` makes of the round.
    pub fn with<T>(&self, work: impl FnOnce(&ClearingInput<'_>) -> T) -> T {
        let records: Vec<(Vec<Digest>, Vec<RecordKind>)> =
            self.bundles.iter().map(|b| b.records.iter().copied().unzip()).collect();
        let bundles: Vec<OpenedBundle<'_>> = self
            .bundles
            .iter()
            .zip(&records)
            .map(|(Bundle { seat, provider, capacity, .. }, (orders, records))| OpenedBundle {
                seat: *seat,
                provider,
                capacity,
                orders,
                records,
            })
            .collect();
        let orders: Vec<ListedOrder<'_>> = self.orders.iter().map(OwnedOrder::listed).collect();
        work(&ClearingInput {
            rules: &self.rules,
            beacon: &self.beacon,
            expires_ms: 1_000_000,
            seats: self.seats,
            orders: &orders,
            bundles: &bundles,
            garbage: &self.garbage,
        })
    }
    pub fn clear(&self) -> Vec<Cleared> {
        self.with(clear)
    }
    pub fn explain(&self, cleared: &[Cleared], order: &Digest) -> Option<Explanation> {
        self.with(|input| explain(input, cleared, order))
    }
    /// The award of the first order.
    fn award(&self) -> Award {
        match &self.clear()[0].outcome {
            Outcome::Award(award) => award.clone(),
            Outcome::None(histogram) => panic!("{histogram}"),
        }
    }
    /// The seat that serves the first order, or the one reason why nobody does.
    fn winner(&self) -> Result<u16, Reason> {
        match &self.clear()[0].outcome {
            Outcome::Award(award) => Ok(award.seat),
            Outcome::None(histogram) => {
                assert_eq!(histogram.counts.len(), 1, "{histogram}");
                Err(*histogram.counts.keys().next().unwrap())
            }
        }
    }
    fn verdict(&self, order: u8, seat: usize) -> Verdict {
        self.explain(&self.clear(), &[order; 32]).unwrap().seats[seat].verdict.clone()
    }
}

pub(super) fn price(micros: i64) -> Price {
    Price::from_micros(micros).unwrap()
}

pub(super) fn mk_order(id: u8, workers: u32) -> OwnedOrder {
    OwnedOrder { digest: [id; 32], ..OwnedOrder::new(mk_requirements(workers, 1), Terms::default()) }
}

pub(super) fn mk_bid(micros: i64, terms: BidTerms) -> RecordKind {
    RecordKind::Bid { price: price(micros), spec: 0, terms }
}

pub(super) fn mk_bundle(seat: u16, gpus: u32, bids: &[(u8, i64)]) -> Bundle {
    let record = |(order, micros): &(u8, i64)| ([*order; 32], mk_bid(*micros, BidTerms::default()));
    Bundle {
        seat,
        provider: format!("p{seat}"),
        capacity: vec![OfferCapacity::of(vec![mk_node("H100", 80, gpus)])],
        records: bids.iter().map(record).collect(),
    }
}

/// Four seats that bid 10, 20, 30 and 40 on one order with these terms.
fn with_terms(terms: Terms) -> Case {
    let bundles = (0..4).map(|seat| mk_bundle(seat, 8, &[(1, 10 + 10 * i64::from(seat))])).collect();
    Case::new(4, vec![OwnedOrder { terms, ..mk_order(1, 2) }], bundles)
}

#[test]
fn cheapest_wins_at_its_own_price_with_ranked_stand_bys() {
    let bundles = vec![
        mk_bundle(0, 4, &[(1, 30)]),
        mk_bundle(1, 4, &[(1, 10)]),
        mk_bundle(2, 1, &[(1, 5)]),
        mk_bundle(3, 4, &[(1, 20)]),
    ];
    let cleared = Case::new(4, vec![mk_order(1, 2)], bundles).clear();
    assert_eq!(
        cleared,
        [Cleared {
            order: [1; 32],
            outcome: Outcome::Award(Award {
                seat: 1,
                price: price(10),
                spec: 0,
                devices: None,
                stand_bys: vec![
                    StandBy { seat: 3, price: price(20), spec: 0, devices: None },
                    StandBy { seat: 0, price: price(30), spec: 0, devices: None },
                ],
            }),
            no_bids: vec![],
            holdings: [1, 3, 0]
                .map(|seat| Holding { seat, spec: 0, placement: Placement { workers: vec![(0, 2)] } })
                .to_vec(),
        }]
    );
    let bytes = cleared[0].outcome.to_bytes();
    assert_eq!(Outcome::from_bytes(&bytes).unwrap(), cleared[0].outcome);
}

#[test]
fn an_award_says_what_its_offers_bind_their_devices_by() {
    let bids = [(0, 30), (1, 10), (2, 20)];
    let mut bundles = bids.map(|(seat, micros)| mk_bundle(seat, 4, &[(1, micros)])).to_vec();
    bundles[1].capacity[0].devices = Some([11; 32]);
    bundles[0].capacity[0].devices = Some([10; 32]);
    let award = Case::new(4, vec![mk_order(1, 2)], bundles).award();
    assert_eq!(award.bound().collect::<Vec<_>>(), [(1, Some([11; 32])), (2, None), (0, Some([10; 32]))]);
    let bytes = Outcome::Award(award.clone()).to_bytes();
    // Kind, seat, price, offer, two stand-bys; then who binds devices, and by what.
    let plain = 1 + 12 + 4 + 2 * 12;
    assert_eq!((bytes[0], bytes[plain], bytes.len()), (2, 0b101, plain + 1 + 64));
    assert_eq!(Outcome::from_bytes(&bytes), Ok(Outcome::Award(award)));
    for mask in [0, 0b111, 0b1101] {
        let mut other = bytes.clone();
        other[plain] = mask;
        assert!(Outcome::from_bytes(&other).is_err(), "{mask:b}");
    }
}

#[test]
fn nobody_fits_gives_a_histogram_over_all_seats() {
    let mut no_bid = mk_bundle(0, 4, &[]);
    no_bid.records = vec![([1; 32], RecordKind::NoBid(Reason::Model))];
    let mut case = Case::new(5, vec![mk_order(1, 2)], vec![no_bid, mk_bundle(1, 4, &[(1, 6_000_000)])]);
    case.bundles.push(mk_bundle(4, 4, &[(2, 1)]));
    case.garbage.insert(2);
    let cleared = case.clear();
    let Outcome::None(histogram) = &cleared[0].outcome else { panic!("awarded") };
    assert_eq!(
        histogram.to_string(),
        "0 of 5 providers: 1 model, 1 price, 1 not listed, 1 silent, 1 unreadable bundle"
    );
    let reasons = [Reason::Model, Reason::Price, Reason::Garbage, Reason::Silent, Reason::NotListed];
    assert_eq!(cleared[0].no_bids, (0..).zip(reasons).collect::<Vec<_>>());
}

#[test]
fn capacity_is_shared_between_orders_of_a_round() {
    let case = Case::new(1, vec![mk_order(1, 2), mk_order(2, 2)], vec![mk_bundle(0, 3, &[(1, 10), (2, 10)])]);
    let cleared = case.clear();
    let [won, lost] = [true, false]
        .map(|is| cleared.iter().find(|c| matches!(c.outcome, Outcome::Award(_)) == is).unwrap());
    assert_eq!(lost.no_bids, [(0, Reason::Outbid)]);
    assert_eq!(case.verdict(lost.order[0], 0), Verdict::CapacityTaken { by: won.order });
    assert_eq!(case.verdict(won.order[0], 0), Verdict::Won { paid: price(10) });
}

#[test]
fn bids_for_unlisted_orders_and_unknown_offers_are_ignored() {
    let mut bundle = mk_bundle(0, 4, &[(1, 10), (9, 1)]);
    bundle.records[0].1 = RecordKind::Bid { price: price(10), spec: 3, terms: BidTerms::default() };
    let cleared = Case::new(1, vec![mk_order(1, 1)], vec![bundle]).clear();
    assert_eq!(cleared.len(), 1);
    assert_eq!(cleared[0].no_bids, [(0, Reason::NoOffer)]);
}

#[test]
fn a_pinned_order_goes_to_its_provider_only() {
    let pinned = |name: &str| with_terms(Terms { pinned: Some(name.into()), ..Terms::default() });
    let award = pinned("p2").award();
    assert_eq!((award.seat, award.price, award.stand_bys), (2, price(30), vec![]));
    assert_eq!(pinned("p9").winner(), Err(Reason::Pinned));
    assert_eq!(pinned("p2").verdict(1, 0), Verdict::NotFeasible(Reason::Pinned));
}

#[test]
fn lists_of_providers_are_kept() {
    let mut case = with_terms(Terms::default());
    let (a, b) = ("p0".to_owned(), "p1".to_owned());
    case.orders[0].requirements.exclude_providers = vec![a.clone()];
    assert_eq!(case.winner(), Ok(1));
    case.orders[0].requirements.include_providers = vec![a.clone(), b.clone()];
    assert_eq!((case.winner(), case.award().stand_bys), (Ok(1), vec![]));
    assert_eq!(case.verdict(1, 0), Verdict::NotFeasible(Reason::Excluded));
    assert_eq!(case.verdict(1, 2), Verdict::NotFeasible(Reason::NotIncluded));
}

#[test]
fn region_attestation_and_standing_are_those_of_the_record() {
    let facts =
        |region: &str, attestation, standing| SeatFacts { region: region.into(), attestation, standing };
    let winner = |terms: Terms| {
        let mut case = with_terms(terms);
        let table = [facts("us", 0, 5), facts("eu", 1, 9), facts("eu", 2, 2), facts("", 0, 0)];
        case.rules.seats = table.to_vec();
        case.winner()
    };
    assert_eq!(winner(Terms::default()), Ok(0));
    assert_eq!(winner(Terms { regions: vec!["eu".into()], ..Terms::default() }), Ok(1));
    assert_eq!(winner(Terms { regions: vec!["eu".into(), "us".into()], ..Terms::default() }), Ok(0));
    assert_eq!(winner(Terms { regions: vec!["asia".into()], ..Terms::default() }), Err(Reason::Region));
    assert_eq!(winner(Terms { min_attestation: 2, ..Terms::default() }), Ok(2));
    assert_eq!(winner(Terms { min_attestation: 3, ..Terms::default() }), Err(Reason::Attestation));
    assert_eq!(winner(Terms { min_standing: 6, ..Terms::default() }), Ok(1));
    assert_eq!(winner(Terms { min_standing: 10, ..Terms::default() }), Err(Reason::Standing));
}

#[test]
fn interruption_and_time_of_a_bid_are_judged() {
    let winner = |terms: Terms, bid: BidTerms| {
        let mut case = with_terms(terms);
        case.bundles[0].records[0].1 = mk_bid(1, bid);
        case.winner()
    };
    let spot = BidTerms { may_interrupt: true, ..BidTerms::default() };
    assert_eq!(winner(Terms { interruptible: true, ..Terms::default() }, spot), Ok(0));
    assert_eq!(winner(Terms::default(), spot), Ok(1));
    // Awards expire at 1000 s and the order runs for 600 s.
    let late = BidTerms { start_ms: 1_100_000, ..BidTerms::default() };
    assert_eq!(winner(Terms { end_ms: 1_700_000, ..Terms::default() }, late), Ok(0));
    assert_eq!(winner(Terms { end_ms: 1_699_999, ..Terms::default() }, late), Ok(1));
    let short = BidTerms { duration_s: 700, ..BidTerms::default() };
    assert_eq!(winner(Terms { start_ms: 1_100_000, ..Terms::default() }, short), Ok(0));
    assert_eq!(winner(Terms { start_ms: 1_100_001, ..Terms::default() }, short), Ok(1));
    let never = with_terms(Terms { end_ms: 1, ..Terms::default() });
    assert_eq!(never.winner(), Err(Reason::Window));
}

#[test]
fn second_price_is_the_next_feasible_one_or_the_ceiling() {
    let second = || Terms { second_price: true, ..Terms::default() };
    let award = with_terms(second()).award();
    assert_eq!((award.seat, award.price), (0, price(20)));
    assert_eq!(award.stand_bys[0], StandBy { seat: 1, price: price(20), spec: 0, devices: None });
    let mut case = with_terms(second());
    case.bundles[1].capacity.clear();
    case.orders[0].ceiling = Some(price(35));
    assert_eq!(case.award().price, price(30), "the next that is feasible");
    case.orders[0].ceiling = Some(price(29));
    assert_eq!(case.award().price, price(29), "nobody else is below the ceiling");
}

#[test]
fn a_ceiling_that_does_not_open_awards_nothing_and_says_so() {
    let mut case = with_terms(Terms::default());
    case.orders[0].ceiling = Some(price(9));
    assert_eq!(case.winner(), Err(Reason::Price));
    case.orders[0].ceiling = None;
    assert_eq!(case.winner(), Err(Reason::Ceiling));
    assert_eq!(case.verdict(1, 0), Verdict::NotFeasible(Reason::Ceiling));
}

#[test]
fn the_first_rules_award_as_ever_and_no_terms() {
    let mut case = with_terms(Terms { second_price: true, ..Terms::default() });
    case.rules = ClearingRules::default();
    assert_eq!(case.winner(), Err(Reason::Rules));
    let mut plain = with_terms(Terms::default());
    let latest = plain.clear();
    plain.rules = ClearingRules::default();
    assert_eq!(plain.clear(), latest);
}

#[test]
fn equal_prices_go_by_score_and_then_by_the_beacon() {
    let mut case = with_terms(Terms::default());
    case.bundles = (0..4).map(|seat| mk_bundle(seat, 8, &[(1, 10 + i64::from(seat / 3))])).collect();
    let hash = |seat: u16| book::tie(&BEACON, &[1; 32], seat);
    let luck = (0..3).min_by_key(|seat| hash(*seat)).unwrap();
    assert_eq!(case.winner(), Ok(luck));
    let loser = (0..3).find(|seat| *seat != luck).unwrap();
    assert_eq!(
        case.verdict(1, usize::from(loser)),
        Verdict::TieLost { hash: hash(loser), winning: hash(luck) }
    );
    assert_eq!(case.verdict(1, 3), Verdict::PriceHigher { winning: price(10) });
    // A score decides before the beacon, and after the price.
    let facts = |seat: u16, attestation| SeatFacts {
        standing: if seat == loser { 9 } else { 5 },
        attestation,
        ..SeatFacts::default()
    };
    case.rules.seats = (0..4).map(|seat| facts(seat, if seat == 3 { 200 } else { 0 })).collect();
    case.rules.score = ScoreWeights { standing: 2, attestation: 1 };
    assert_eq!(case.winner(), Ok(loser));
    assert_eq!(case.verdict(1, usize::from(luck)), Verdict::ScoreLower { score: 10, winning: 18 });
    assert_eq!(case.verdict(1, 3), Verdict::PriceHigher { winning: price(10) });
}

#[test]
fn every_seat_and_its_rank_is_explained() {
    let mut case = with_terms(Terms::default());
    case.garbage.insert(1);
    case.bundles[3].capacity[0].nodes[0].free_gpus = 1;
    let cleared = case.clear();
    let explained = case.explain(&cleared, &[1; 32]).unwrap();
    assert_eq!(
        explained.to_string(),
        format!(
            "order {}, turn 1\n  seat 0: bid 0.00001, won, is paid 0.00001\n  \
             seat 1: not feasible: unreadable bundle\n  \
             seat 2: bid 0.00003, stand-by 1, price is above 0.00001\n  \
             seat 3: bid 0.00004, not feasible: free GPUs",
            "01".repeat(32)
        )
    );
    assert_eq!(case.explain(&cleared, &[2; 32]), None);
    let json = serde_json::to_value(&explained).unwrap();
    assert_eq!(json["seats"][2]["verdict"]["price_higher"]["winning"], "0.00001");
}
