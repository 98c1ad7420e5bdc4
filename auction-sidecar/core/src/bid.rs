//! The bid engine: a provider's offers and a round's orders in, records and offered capacity out.
//!
//! For each order the cheapest offer that serves it is bid. When all orders that are bid for fit together, only what
//! they need is offered, so that rounds that overlap do not starve each other; else everything is. A host with GPUs
//! of several models is one entry per model, and its CPU, memory and disk are divided among them. What is offered
//! always fits into a bundle. An offer of one node whose devices are known binds them; one of several nodes does not say
//! which of them will serve.

use crate::plaintext::Plaintext;
use std::collections::BTreeMap;
use vendue_market::{
    BidTerms, Bidder, Digest, ListedOrder, MAX_NODES, MAX_OFFERS, NodeCapacity, Offer, OfferCapacity,
    Placement, Price, Reason, RecordKind, Requirements, fit, fit_offer, take,
};

/// An order that a seat may bid on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sought<'a> {
    /// The order.
    pub order: ListedOrder<'a>,
    /// Name of the home that placed it, as in the market record.
    pub home: &'a str,
}

/// A seat's own record for one order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnBid {
    /// The order.
    pub order: Digest,
    /// Bid or reason.
    pub kind: RecordKind,
}

/// What one offer puts into a round, with local names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfferedPart {
    /// The offer's local name.
    pub offer: String,
    /// Local names of the nodes, by position in `capacity`.
    pub nodes: Vec<String>,
    /// What is offered on them.
    pub capacity: OfferCapacity,
}

/// All of a seat's bids of a round.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalBids {
    /// Offered capacity; a bid's `spec` is the position.
    pub parts: Vec<OfferedPart>,
    /// Records, in the order of the orders given.
    pub records: Vec<OwnBid>,
}

/// Bids for a round. `commit` makes of a fingerprint what an offer binds its devices by.
pub fn bids(
    bidder: &Bidder<'_>,
    offers: &[Offer],
    orders: &[Sought<'_>],
    commit: impl Fn(&Digest) -> Digest,
) -> LocalBids {
    let offers = divided(offers);
    let mut records: Vec<OwnBid> = orders
        .iter()
        .map(|sought| OwnBid { order: sought.order.digest, kind: best(bidder, &offers, sought) })
        .collect();
    let mut wanted: BTreeMap<u16, Vec<&ListedOrder<'_>>> = BTreeMap::new();
    for (sought, record) in orders.iter().zip(&records) {
        if let RecordKind::Bid { spec, .. } = record.kind {
            wanted.entry(spec).or_default().push(&sought.order);
        }
    }
    // Only what is bid is put in, so a record's `spec` counts those parts.
    let position: BTreeMap<u16, u16> = wanted.keys().copied().zip(0..).take(MAX_OFFERS).collect();
    for record in &mut records {
        if let RecordKind::Bid { spec, .. } = &mut record.kind {
            match position.get(spec) {
                Some(at) => *spec = *at,
                None => record.kind = RecordKind::NoBid(Reason::NoOffer),
            }
        }
    }
    let bid = wanted.iter().take(MAX_OFFERS);
    // Others would not read a bundle with more than the rules know.
    let commit = |fingerprint: &Digest| bidder.rules.know_devices().then(|| commit(fingerprint));
    let parts = bid
        .filter_map(|(spec, orders)| Some(part(offers.get(usize::from(*spec))?, orders, commit)))
        .collect();
    let mut local = LocalBids { parts, records };
    while !local.plaintext().fits() && local.cut() {}
    local
}

/// Offers in which the entries of one host share its CPU, memory and disk, by their free GPUs.
fn divided(offers: &[Offer]) -> Vec<Offer> {
    let mut gpus: BTreeMap<&str, (u64, u32)> = BTreeMap::new();
    for node in offers.iter().flat_map(|o| &o.nodes) {
        let (sum, entries) = gpus.entry(&node.name).or_default();
        *sum += u64::from(node.capacity.free_gpus);
        *entries += 1;
    }
    let mut out = offers.to_vec();
    for node in out.iter_mut().flat_map(|o| &mut o.nodes) {
        let Some((sum, 2..)) = gpus.get(node.name.as_str()).copied() else { continue };
        let free = u64::from(node.capacity.free_gpus);
        let share = |whole: u64| {
            let part = u128::from(whole) * u128::from(free) / u128::from(sum.max(1));
            u64::try_from(part).unwrap_or(whole)
        };
        let c = &mut node.capacity;
        (c.cpu_millis, c.memory_mib, c.disk_mib) =
            (share(c.cpu_millis), share(c.memory_mib), share(c.disk_mib));
    }
    out
}

/// The cheapest offer that serves the order, or the reason of the offer that came closest.
fn best(bidder: &Bidder<'_>, offers: &[Offer], sought: &Sought<'_>) -> RecordKind {
    let mut bid: Option<(Price, u16, BidTerms)> = None;
    let mut closest = Reason::NoOffer;
    for (offer, spec) in offers.iter().zip(0u16..) {
        match fit_offer(&sought.order, sought.home, bidder, offer) {
            Ok(price) if bid.is_none_or(|(p, ..)| price < p) => bid = Some((price, spec, offer.terms)),
            Ok(_) => {}
            Err(reason) if reason.closeness() > closest.closeness() => closest = reason,
            Err(_) => {}
        }
    }
    bid.map_or(RecordKind::NoBid(closest), |(price, spec, terms)| RecordKind::Bid { price, spec, terms })
}

/// What one offer puts in for the orders that it is bid for.
fn part(
    offer: &Offer,
    wanted: &[&ListedOrder<'_>],
    commit: impl Fn(&Digest) -> Option<Digest>,
) -> OfferedPart {
    let whole: Vec<NodeCapacity> = offer.nodes.iter().map(|n| n.capacity.clone()).collect();
    let mut left = whole.clone();
    let together = wanted.iter().all(|order| match fit(order.requirements, &left) {
        Ok(placement) => {
            take(&mut left, order.requirements, &placement);
            true
        }
        Err(_) => false,
    });
    let mut out =
        OfferedPart { offer: offer.name.clone(), nodes: vec![], capacity: OfferCapacity::default() };
    for ((node, whole), left) in offer.nodes.iter().zip(whole).zip(left) {
        let offered = if together { difference(&whole, &left) } else { whole };
        if offered.free_gpus > 0 && out.nodes.len() < MAX_NODES {
            out.nodes.push(node.name.clone());
            out.capacity.nodes.push(offered);
        }
    }
    if let [node] = offer.nodes.as_slice() {
        out.capacity.devices = node.fingerprint.as_ref().and_then(commit);
    }
    out
}

fn difference(whole: &NodeCapacity, left: &NodeCapacity) -> NodeCapacity {
    NodeCapacity {
        model: whole.model.clone(),
        gpu_memory_mib: whole.gpu_memory_mib,
        free_gpus: whole.free_gpus - left.free_gpus.min(whole.free_gpus),
        cpu_millis: whole.cpu_millis - left.cpu_millis.min(whole.cpu_millis),
        memory_mib: whole.memory_mib - left.memory_mib.min(whole.memory_mib),
        disk_mib: whole.disk_mib - left.disk_mib.min(whole.disk_mib),
    }
}

/// Capacity in use on named nodes.
pub(crate) type Usage = Vec<(String, NodeCapacity)>;

impl LocalBids {
    /// What is sealed.
    pub(crate) fn plaintext(&self) -> Plaintext {
        Plaintext {
            capacity: self.parts.iter().map(|p| p.capacity.clone()).collect(),
            records: self.records.iter().map(|r| r.kind).collect(),
        }
    }

    /// Takes a quarter of the nodes out of the largest part; false when there is nothing left to take.
    fn cut(&mut self) -> bool {
        let Some(part) = self.parts.iter_mut().max_by_key(|p| p.nodes.len()) else { return false };
        let kept = part.nodes.len() * 3 / 4;
        let less = kept < part.nodes.len();
        part.nodes.truncate(kept);
        part.capacity.nodes.truncate(kept);
        less
    }

    /// All that is offered, by node.
    pub(crate) fn usage(&self) -> Usage {
        self.parts
            .iter()
            .flat_map(|p| p.nodes.iter().cloned().zip(p.capacity.nodes.iter().cloned()))
            .collect()
    }

    /// What a placement on one of the parts takes, by node.
    pub(crate) fn usage_of(&self, spec: u16, requirements: &Requirements, placement: &Placement) -> Usage {
        let Some(part) = self.parts.get(usize::from(spec)) else { return vec![] };
        let mut left = part.capacity.nodes.clone();
        take(&mut left, requirements, placement);
        let used = part.capacity.nodes.iter().zip(&left).map(|(whole, left)| difference(whole, left));
        part.nodes.iter().cloned().zip(used).collect()
    }
}

/// Offers less what is in use.
pub(crate) fn without<'u>(
    offers: &[Offer],
    used: impl Iterator<Item = &'u (String, NodeCapacity)>,
) -> Vec<Offer> {
    let mut offers = offers.to_vec();
    for (name, used) in used {
        for node in offers.iter_mut().flat_map(|o| &mut o.nodes).filter(|n| &n.name == name) {
            // Entries of one host under other models share everything but the GPUs.
            let gpus = node.capacity.free_gpus;
            node.capacity = difference(&node.capacity, used);
            if node.capacity.model != used.model {
                node.capacity.free_gpus = gpus;
            }
        }
    }
    offers
}

#[cfg(test)]
mod tests {
    use super::*;
    use vendue_market::{AcceptRules, ClearingRules, GpuModel, OfferNode, Requirements, SeatFacts, Terms};

    fn mk_offer(name: &str, price: i64, model: &str, gpus: u32) -> Offer {
        Offer {
            name: name.into(),
            price: Price::from_micros(price).unwrap(),
            nodes: vec![OfferNode::of(
                format!("{name}-node"),
                NodeCapacity {
                    model: model.parse().unwrap(),
                    gpu_memory_mib: 81_920,
                    free_gpus: gpus,
                    cpu_millis: 64_000,
                    memory_mib: 500_000,
                    disk_mib: 500_000,
                },
            )],
            rules: AcceptRules::any(),
            terms: BidTerms::default(),
        }
    }

    /// The bids of seat 0 in a market of the latest rules.
    fn bids(provider: &str, offers: &[Offer], orders: &[Wanted]) -> LocalBids {
        bids_by(&ClearingRules::latest(), provider, offers, orders)
    }

    fn bids_by(rules: &ClearingRules, provider: &str, offers: &[Offer], orders: &[Wanted]) -> LocalBids {
        let sought: Vec<Sought<'_>> = orders.iter().map(Wanted::sought).collect();
        // Told from what it is made of.
        super::bids(&mk_bidder(provider, rules), offers, &sought, |fingerprint| fingerprint.map(|b| b + 1))
    }

    /// An order that a home seeks offers for.
    #[derive(Clone)]
    struct Wanted {
        digest: Digest,
        requirements: Requirements,
        terms: Terms,
    }

    impl Wanted {
        fn listed(&self) -> ListedOrder<'_> {
            let Self { digest, requirements, terms } = self;
            ListedOrder { digest: *digest, requirements, terms, ceiling: Some(requirements.max_price) }
        }
        fn sought(&self) -> Sought<'_> {
            Sought { order: self.listed(), home: "home" }
        }
    }

    fn mk_bidder<'a>(provider: &'a str, rules: &'a ClearingRules) -> Bidder<'a> {
        Bidder { seat: 0, provider, rules, from_ms: 1_000_000 }
    }

    fn mk_price(micros: i64, terms: BidTerms) -> RecordKind {
        RecordKind::Bid { price: Price::from_micros(micros).unwrap(), spec: 0, terms }
    }

    fn mk_order(id: u8, workers: u32) -> Wanted {
        let requirements = Requirements {
            gpu_models: vec!["H100".parse().unwrap()],
            min_gpu_memory_mib: 0,
            workers,
            gpus_per_worker: 1,
            cpu_millis_per_worker: 1000,
            memory_mib_per_worker: 1000,
            disk_mib_per_worker: 0,
            max_price: Price::from_micros(10).unwrap(),
            run_seconds: 60,
            image: "i".into(),
            include_providers: vec![],
            exclude_providers: vec![],
        };
        Wanted { digest: [id; 32], requirements, terms: Terms::default() }
    }

    #[test]
    fn cheapest_fitting_offer_is_bid_and_only_what_is_needed_is_offered() {
        let offers = [mk_offer("a", 9, "H100", 8), mk_offer("b", 5, "H100", 8), mk_offer("c", 1, "L40S", 8)];
        let local = bids("alpha", &offers, &[mk_order(1, 2), mk_order(2, 1), mk_order(3, 9)]);
        let bid = mk_price(5, BidTerms::default());
        let kinds: Vec<_> = local.records.iter().map(|r| r.kind).collect();
        assert_eq!(kinds, [bid, bid, RecordKind::NoBid(Reason::FreeGpus)]);
        let gpus: Vec<u32> =
            local.parts.iter().map(|p| p.capacity.nodes.iter().map(|n| n.free_gpus).sum()).collect();
        assert_eq!((local.parts[0].offer.as_str(), gpus), ("b", vec![3]), "only what is bid is shown");
        let rest = without(&offers, local.usage().iter());
        assert_eq!(rest[1].nodes[0].capacity.free_gpus, 5);
        assert_eq!(rest[1].nodes[0].capacity.cpu_millis, 61_000);
    }

    #[test]
    fn an_offer_of_one_known_node_binds_its_devices() {
        let mut offer = mk_offer("a", 5, "H100", 3);
        let bound = |rules: &ClearingRules, offer: &Offer| {
            bids_by(rules, "alpha", std::slice::from_ref(offer), &[mk_order(1, 2)]).parts[0].capacity.devices
        };
        let latest = ClearingRules::latest();
        assert_eq!(bound(&latest, &offer), None, "nobody vouches for the node");
        offer.nodes[0].fingerprint = Some([7; 32]);
        assert_eq!(bound(&latest, &offer), Some([8; 32]));
        let earlier = ClearingRules { version: 2, ..ClearingRules::default() };
        assert_eq!(bound(&earlier, &offer), None, "others would not read the bundle");
        let mut second = offer.nodes[0].clone();
        second.name = "second".into();
        offer.nodes.push(second);
        assert_eq!(bound(&latest, &offer), None, "either node may serve");
    }

    #[test]
    fn everything_is_offered_when_not_all_fit_together() {
        let local = bids("alpha", &[mk_offer("a", 5, "H100", 3)], &[mk_order(1, 2), mk_order(2, 2)]);
        assert_eq!(local.parts[0].capacity.nodes[0].free_gpus, 3);
    }

    #[test]
    fn a_bundle_never_grows_beyond_what_others_accept() {
        let mut big = mk_offer("a", 5, "H100", 8);
        let node = big.nodes[0].clone();
        big.nodes = (0..MAX_NODES).map(|i| OfferNode { name: format!("n{i}"), ..node.clone() }).collect();
        let offers: Vec<Offer> = (0..100u8)
            .map(|i| {
                let mut offer = big.clone();
                let model: GpuModel = format!("M{i:02}").parse().unwrap();
                offer.nodes.iter_mut().for_each(|n| {
                    n.name = format!("{i}-{}", n.name);
                    n.capacity.model = model.clone();
                });
                offer
            })
            .collect();
        // One order for each offer, and each takes all of it.
        let orders: Vec<Wanted> = (0..100u8)
            .map(|i| {
                let mut order = mk_order(i, 8 * MAX_NODES as u32);
                order.requirements.gpu_models = vec![format!("M{i:02}").parse().unwrap()];
                order
            })
            .collect();
        let local = bids("alpha", &offers, &orders);
        assert_eq!(local.parts.len(), MAX_OFFERS);
        let bytes = local.plaintext().to_padded();
        assert!(bytes.len() + crate::plaintext::SEALING <= crate::wire::MAX_PAYLOAD, "{}", bytes.len());
        assert_eq!(Plaintext::from_padded(&bytes, 100).unwrap(), local.plaintext());
        assert!(local.parts.iter().all(|p| p.nodes.len() == p.capacity.nodes.len()));
    }

    #[test]
    fn a_host_with_two_models_offers_its_cpu_once() {
        let mut a = mk_offer("a", 5, "H100", 6);
        let mut b = mk_offer("b", 5, "L40S", 2);
        (a.nodes[0].name, b.nodes[0].name) = ("host".into(), "host".into());
        let order = |id, model: &str, workers, cpu| {
            let mut order = mk_order(id, workers);
            order.requirements.gpu_models = vec![model.parse().unwrap()];
            order.requirements.cpu_millis_per_worker = cpu;
            order
        };
        let offers = [a, b];
        let local = bids("alpha", &offers, &[order(1, "H100", 1, 48_000), order(2, "L40S", 1, 16_001)]);
        let kinds: Vec<bool> =
            local.records.iter().map(|r| matches!(r.kind, RecordKind::Bid { .. })).collect();
        assert_eq!(kinds, [true, false], "64 cores: 48 with the six, 16 with the two");
        let rest = without(&offers, local.usage().iter());
        let left = |i: usize| (rest[i].nodes[0].capacity.free_gpus, rest[i].nodes[0].capacity.cpu_millis);
        assert_eq!((left(0), left(1)), ((5, 16_000), (2, 16_000)));
    }

    #[test]
    fn homes_that_an_offer_does_not_serve_get_no_bid_on_it() {
        let mut picky = mk_offer("a", 1, "H100", 8);
        picky.rules.homes = vec!["lab".into()];
        let kind = |offers: &[Offer]| bids("alpha", offers, &[mk_order(1, 1)]).records[0].kind;
        assert_eq!(kind(std::slice::from_ref(&picky)), RecordKind::NoBid(Reason::Home));
        // Another offer of the seat may serve it, and what that one lacks is said rather than this.
        let dear = mk_price(5, BidTerms::default());
        assert_eq!(kind(&[picky.clone(), mk_offer("b", 5, "H100", 8)]), dear);
        assert_eq!(kind(&[picky.clone(), mk_offer("b", 5, "H100", 0)]), RecordKind::NoBid(Reason::FreeGpus));
        picky.rules.homes.push("home".into());
        assert!(matches!(kind(&[picky]), RecordKind::Bid { .. }));
    }

    #[test]
    fn an_offer_that_may_interrupt_is_bid_where_that_is_allowed() {
        let spot = BidTerms { may_interrupt: true, duration_s: 60, start_ms: 0 };
        let offers = [Offer { terms: spot, ..mk_offer("a", 2, "H100", 8) }, mk_offer("b", 5, "H100", 8)];
        let (mut lenient, strict) = (mk_order(1, 1), mk_order(2, 1));
        lenient.terms.interruptible = true;
        let local = bids("alpha", &offers, &[lenient.clone(), strict]);
        let kinds: Vec<_> = local.records.iter().map(|r| r.kind).collect();
        let RecordKind::Bid { price, spec: 1, terms } = kinds[1] else { panic!("{kinds:?}") };
        assert_eq!((price.micros(), terms), (5, BidTerms::default()));
        assert_eq!(kinds[0], mk_price(2, spot));
        let first = ClearingRules::default();
        lenient.terms = Terms::default();
        let local = bids_by(&first, "alpha", &offers, &[lenient]);
        assert_eq!(local.records[0].kind, mk_price(5, BidTerms::default()), "the first rules know no terms");
    }

    #[test]
    fn wishes_that_the_record_does_not_bear_out_get_no_bid() {
        let mut rules = ClearingRules::latest();
        rules.seats = vec![SeatFacts { region: "eu".into(), attestation: 1, standing: 3 }];
        let kind = |terms: Terms| {
            let mut order = mk_order(1, 1);
            order.terms = terms;
            bids_by(&rules, "alpha", &[mk_offer("a", 5, "H100", 8)], &[order]).records[0].kind
        };
        let none = Terms::default;
        assert!(matches!(kind(Terms { regions: vec!["eu".into()], ..none() }), RecordKind::Bid { .. }));
        for (terms, reason) in [
            (Terms { regions: vec!["us".into()], ..none() }, Reason::Region),
            (Terms { min_attestation: 2, ..none() }, Reason::Attestation),
            (Terms { min_standing: 4, ..none() }, Reason::Standing),
            (Terms { pinned: Some("bravo".into()), ..none() }, Reason::Pinned),
            (Terms { end_ms: 1_059_999, ..none() }, Reason::Window),
        ] {
            assert_eq!(kind(terms), RecordKind::NoBid(reason));
        }
    }

    #[test]
    fn reasons_without_a_bid() {
        let kind = |offers: &[Offer]| bids("alpha", offers, &[mk_order(1, 1)]).records[0].kind;
        assert_eq!(kind(&[]), RecordKind::NoBid(Reason::NoOffer));
        assert_eq!(
            kind(&[mk_offer("a", 11, "H100", 8), mk_offer("b", 5, "L40S", 8)]),
            RecordKind::NoBid(Reason::Price)
        );
    }
}
