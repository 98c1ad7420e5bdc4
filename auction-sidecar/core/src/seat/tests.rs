//! What a seat does with messages of homes, honest and not. Whole rounds are tested in the simulation.

use super::*;
use crate::award::{AwardTable, Certificate, Leaf, OrderLeaf};
use crate::crypto::SeatCrypto;
use crate::drops::DropReason;
use crate::evidence::{message_hash, order_hash};
use crate::home::{Home, HomeInput, HomeOutput, NewOrder};
use crate::keys::{DealSpec, HomeKeys, MemberSpec, SeatKeys, deal};
use crate::params::Params;
use crate::wire::tests::mk_order;
use crate::wire::*;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use vendue_market::{AcceptRules, Award, NodeCapacity, OfferNode, Order, Outcome, Price, Reason};

pub(super) struct Rig {
    pub record: Arc<MarketRecord>,
    pub seats: Vec<SeatKeys>,
    pub homes: Vec<HomeKeys>,
    pub seat: Seat<SeatCrypto>,
    pub now: u64,
}

pub(super) fn mk_rig() -> Rig {
    let member = |name: String| MemberSpec { peer_id: name.clone(), name, addresses: vec![] };
    let spec = DealSpec {
        name: "m".into(),
        params: Params { delay_ms: 100, period_ms: 600, genesis_ms: 1_000, handover_ms: 6000 },
        seats: (0..4).map(|i| member(format!("p{i}"))).collect(),
        homes: (0..2).map(|i| member(format!("home-{i}"))).collect(),
    };
    let mut dealt = deal(&spec, &mut ChaCha20Rng::seed_from_u64(4)).unwrap();
    let record = Arc::new(dealt.record.record);
    let keys = SeatKeys::from_json(&dealt.seats[0].to_json()).unwrap();
    let mut seat = Seat::fresh(record.clone(), 0, SeatCrypto::new(record.clone(), keys), 0);
    let capacity = NodeCapacity {
        model: "H100".parse().unwrap(),
        gpu_memory_mib: 81_920,
        free_gpus: 8,
        cpu_millis: 64_000,
        memory_mib: 64_000,
        disk_mib: 64_000,
    };
    let offer = Offer {
        name: "prov".into(),
        price: Price::from_micros(2_000_000).unwrap(),
        nodes: vec![OfferNode::of("n", capacity)],
        rules: AcceptRules::any(),
        terms: vendue_market::BidTerms::default(),
    };
    seat.handle(0, SeatInput::Offers { offers: vec![offer], models: vec!["H100".parse().unwrap()] });
    Rig { record, seats: std::mem::take(&mut dealt.seats), homes: dealt.homes, seat, now: 500 }
}

impl Rig {
    pub fn order(&self, home: usize) -> Order {
        let mut order = mk_order();
        order.market = self.record.market;
        order.user_key = self.homes[home].user.public_key();
        order.requirements.include_providers.clear();
        order.first_round = 0;
        order
    }

    fn signature(&self, home: usize, order: &Order) -> [u8; 65] {
        self.homes[home].user.sign(&order_hash(&self.record.market, order))
    }

    /// A home's message, signed by its key.
    pub fn say(&self, home: u16, body: Body) -> Vec<u8> {
        self.say_in(0, home, body)
    }

    pub fn say_in(&self, round: u64, home: u16, body: Body) -> Vec<u8> {
        let header =
            Header { kind: body.kind(), market: self.record.short_id(), epoch: 0, round, seat: home };
        let hash = message_hash(&self.record.market, &header, &body);
        let signature = header.kind.is_signed().then(|| self.homes[usize::from(home)].user.sign(&hash));
        Message { header, body, signature }.encode()
    }

    /// What the seat does about a home's message; what it writes to its log is another test's.
    pub fn give(&mut self, home: u16, bytes: Vec<u8>) -> Vec<SeatOutput> {
        let mut out = self.seat.handle(self.now, SeatInput::Message { from: Peer::Home(home), bytes });
        out.retain(|o| !matches!(o, SeatOutput::Persist(_)));
        out
    }

    pub fn count(&self, reason: DropReason) -> u64 {
        self.seat.dropped().count(reason)
    }

    /// A certified award of the order to seat 0, as if round 0 had happened, and the RESERVE that goes with it.
    pub fn reserve(&self, order: &Order, winner: u16) -> Reserve {
        self.reserve_in(0, order, winner)
    }

    pub fn reserve_in(&self, round: u64, order: &Order, winner: u16) -> Reserve {
        let outcome = Outcome::Award(Award {
            seat: winner,
            price: Price::from_micros(2_000_000).unwrap(),
            spec: 0,
            devices: None,
            stand_bys: vec![],
        });
        Reserve {
            proof: self.certified(round, order, outcome),
            order: order.clone(),
            order_signature: self.signature(0, order),
        }
    }

    /// A certified outcome of the order, as if that round had happened.
    pub fn certified(&self, round: u64, order: &Order, outcome: Outcome) -> Proof {
        let expires_ms = self.record.params.expiry(round);
        let leaf = OrderLeaf { order: order.digest(), outcome, bundle: [7; 32], expires_ms };
        let table = AwardTable { leaves: vec![Leaf::Set([1; 32]), Leaf::Order(leaf)] };
        let root = table.root();
        let message = vote_bytes(VoteWord::Award, &self.record.market, 0, round, 0, &root);
        let votes: Vec<_> = self.seats.iter().map(|s| s.vote.sign(&message)).collect();
        let aggregate = vendue_sealed_bid::aggregate_votes(&votes).unwrap();
        let quorum = Quorum { signers: Signers::all(4), aggregate };
        let certificate = Certificate { market: self.record.market, epoch: 0, round, root, quorum };
        Proof { certificate, proof: table.proof(&order.digest()).unwrap() }
    }

    /// Lets the seat bid in round 0, so that it knows what it offered.
    pub fn bid_in_round_0(&mut self, order: &Order) {
        self.give(0, self.say(0, Body::Order(OrderMsg { order: order.clone() })));
        self.now = 1_000;
        let out = self.seat.handle(self.now, SeatInput::Tick);
        assert!(out.iter().any(|o| matches!(o, SeatOutput::Broadcast(_))), "{out:?}");
    }
}

pub(super) fn kinds(out: &[SeatOutput]) -> Vec<Kind> {
    out.iter()
        .filter_map(|o| match o {
            SeatOutput::Send { bytes, .. } | SeatOutput::Broadcast(bytes) => peek_kind(bytes),
            _ => None,
        })
        .collect()
}

#[test]
fn orders_are_checked_before_they_are_kept() {
    let mut rig = mk_rig();
    let order = rig.order(0);
    let good = rig.say(0, Body::Order(OrderMsg { order: order.clone() }));
    // Another home's order under the own name, a stranger's key, an expired order, another market.
    rig.give(1, rig.say(1, Body::Order(OrderMsg { order: order.clone() })));
    assert_eq!(rig.count(DropReason::BadSignature), 1);
    rig.give(1, good.clone());
    assert_eq!(rig.count(DropReason::WrongSender), 1);
    let expired = Order { expires_ms: 400, ..order.clone() };
    rig.give(0, rig.say(0, Body::Order(OrderMsg { order: expired })));
    assert_eq!(rig.count(DropReason::Late), 1);
    let foreign = Order { market: [9; 32], ..order.clone() };
    rig.give(0, rig.say(0, Body::Order(OrderMsg { order: foreign })));
    assert_eq!(rig.count(DropReason::Foreign), 1);
    assert_eq!(rig.seat.open_orders(), 0);

    assert_eq!(kinds(&rig.give(0, good.clone())), [Kind::Receipt]);
    assert_eq!(rig.seat.open_orders(), 1);
    assert_eq!(kinds(&rig.give(0, good)), [Kind::Receipt], "a receipt may have been lost");
    assert_eq!(rig.count(DropReason::Duplicate), 1);
}

#[test]
fn a_home_has_a_quota() {
    let mut rig = mk_rig();
    for attempt in 0..513 {
        let order = Order { attempt, ..rig.order(0) };
        rig.give(0, rig.say(0, Body::Order(OrderMsg { order })));
    }
    assert_eq!((rig.seat.open_orders(), rig.count(DropReason::Quota)), (512, 1));
    let other = rig.order(1);
    assert_eq!(kinds(&rig.give(1, rig.say(1, Body::Order(OrderMsg { order: other })))), [Kind::Receipt]);
}

#[test]
fn only_the_own_home_closes_an_order() {
    let mut rig = mk_rig();
    let order = rig.order(0);
    let digest = order.digest();
    rig.give(0, rig.say(0, Body::Order(OrderMsg { order: order.clone() })));
    rig.give(1, rig.say(1, Body::Cancel(Cancel { order: digest })));
    assert_eq!((rig.seat.open_orders(), rig.count(DropReason::WrongSender)), (1, 1));
    rig.give(0, rig.say(0, Body::Cancel(Cancel { order: digest })));
    assert_eq!(rig.seat.open_orders(), 0);
    rig.give(0, rig.say(0, Body::Order(OrderMsg { order })));
    assert_eq!(rig.seat.open_orders(), 0, "a closed order stays closed");
}

#[test]
fn a_last_word_that_overtakes_its_order_counts_and_another_home_s_does_not() {
    let mut rig = mk_rig();
    let (mine, theirs) = (rig.order(0), rig.order(1));
    rig.give(0, rig.say(0, Body::Cancel(Cancel { order: mine.digest() })));
    rig.give(0, rig.say(0, Body::Cancel(Cancel { order: theirs.digest() })));
    rig.give(0, rig.say(0, Body::Order(OrderMsg { order: mine })));
    rig.give(1, rig.say(1, Body::Order(OrderMsg { order: theirs })));
    assert_eq!(rig.seat.open_orders(), 1);
}

#[test]
fn reserve_hold_accept_taken() {
    let mut rig = mk_rig();
    let order = rig.order(0);
    rig.bid_in_round_0(&order);
    let reserve = rig.say(0, Body::Reserve(Box::new(rig.reserve(&order, 0))));
    let out = rig.give(0, reserve.clone());
    let held: Vec<_> =
        out.iter().filter(|o| matches!(o, SeatOutput::Hold(h) if h.offer == "prov" && h.rank == 0)).collect();
    assert_eq!(held.len(), 1, "{out:?}");
    assert!(kinds(&rig.give(0, reserve.clone())).is_empty(), "asked once, answered when the controller has");
    let digest = order.digest();
    let out = rig.seat.handle(rig.now, SeatInput::Reserved { order: digest, round: 0, result: Ok(()) });
    assert_eq!(kinds(&out), [Kind::Accept]);
    assert_eq!(kinds(&rig.give(0, reserve)), [Kind::Accept], "the answer may have been lost");
    let out = rig.give(0, rig.say(0, Body::Taken(Taken { order: digest, seat: 0 })));
    assert_eq!(out, [SeatOutput::Taken { order: digest, home: 0 }]);
    // Nothing is let go when the award expires: the order runs here.
    let out = rig.seat.handle(rig.record.params.expiry(0) + 1_000, SeatInput::Tick);
    assert!(!out.iter().any(|o| matches!(o, SeatOutput::Released { .. })));
}

#[test]
fn refusal_expiry_and_other_winners() {
    let mut rig = mk_rig();
    let order = rig.order(0);
    let digest = order.digest();
    rig.bid_in_round_0(&order);
    rig.give(0, rig.say(0, Body::Reserve(Box::new(rig.reserve(&order, 0)))));
    let refused = SeatInput::Reserved { order: digest, round: 0, result: Err(Reason::FreeGpus) };
    assert_eq!(kinds(&rig.seat.handle(rig.now, refused)), [Kind::Refuse]);

    let mut rig = mk_rig();
    rig.bid_in_round_0(&order);
    rig.give(0, rig.say(0, Body::Reserve(Box::new(rig.reserve(&order, 0)))));
    rig.seat.handle(rig.now, SeatInput::Reserved { order: digest, round: 0, result: Ok(()) });
    let out = rig.seat.handle(rig.record.params.expiry(0) + 500, SeatInput::Tick);
    assert!(out.contains(&SeatOutput::Released { order: digest, cause: ReleaseCause::Expired }));

    let mut rig = mk_rig();
    rig.bid_in_round_0(&order);
    rig.give(0, rig.say(0, Body::Reserve(Box::new(rig.reserve(&order, 0)))));
    let out = rig.give(0, rig.say(0, Body::Taken(Taken { order: digest, seat: 2 })));
    assert_eq!(out, [SeatOutput::Released { order: digest, cause: ReleaseCause::TakenElsewhere }]);
    let late = SeatInput::Reserved { order: digest, round: 0, result: Ok(()) };
    assert!(kinds(&rig.seat.handle(rig.now, late)).is_empty(), "no ACCEPT after the order is gone");
}

#[test]
fn reserves_that_prove_nothing_are_refused() {
    let mut rig = mk_rig();
    let order = rig.order(0);
    rig.bid_in_round_0(&order);
    let good = rig.reserve(&order, 0);
    let mut cases = vec![];
    let mut price = good.clone();
    if let Outcome::Award(a) = &mut price.proof.proof.leaf.outcome {
        a.price = Price::from_micros(2_400_000).unwrap();
    }
    cases.push(price);
    let mut votes = good.clone();
    votes.proof.certificate.quorum.signers = Signers::new(4, [0, 1, 2]);
    cases.push(votes);
    let mut unsigned = good.clone();
    unsigned.order_signature[3] ^= 1;
    cases.push(unsigned);
    let mut another = good.clone();
    another.order.attempt = 9;
    another.order_signature = rig.signature(0, &another.order);
    cases.push(another);
    for (i, case) in cases.into_iter().enumerate() {
        let out = rig.give(0, rig.say(0, Body::Reserve(Box::new(case))));
        assert!(out.is_empty(), "case {i}: {out:?}");
        assert_eq!(rig.count(DropReason::BadSignature), i as u64 + 1);
    }
    // Another home shows this home's award; an award of another seat; an award that has expired.
    rig.give(1, rig.say(1, Body::Reserve(Box::new(good.clone()))));
    assert_eq!(rig.count(DropReason::BadSignature), 5);
    rig.give(0, rig.say(0, Body::Reserve(Box::new(rig.reserve(&order, 2)))));
    assert_eq!(rig.count(DropReason::Unexpected), 1);
    rig.now = rig.record.params.expiry(0);
    rig.give(0, rig.say(0, Body::Reserve(Box::new(good))));
    assert_eq!(rig.count(DropReason::Late), 1);
}

#[test]
fn a_seat_that_does_not_know_what_it_offered_refuses() {
    let mut rig = mk_rig();
    let order = rig.order(0);
    rig.now = 1_200;
    let out = rig.give(0, rig.say(0, Body::Reserve(Box::new(rig.reserve(&order, 0)))));
    assert_eq!(kinds(&out), [Kind::Refuse]);
}

/// A home that has placed an order for round 0.
pub(super) fn mk_home(rig: &Rig) -> (Home, Order) {
    let keys = HomeKeys::from_json(&rig.homes[0].to_json()).unwrap();
    let mut home = Home::new(rig.record.clone(), 0, keys);
    let mut requirements = mk_order().requirements;
    requirements.include_providers.clear();
    let new = NewOrder {
        terms: Box::default(),
        job: "j".into(),
        attempt: 1,
        requirements,
        commitment: [1; 32],
        expires_ms: 90_000,
    };
    let out = home.handle(500, HomeInput::Submit(Box::new(new)));
    let ordered = out.into_iter().find_map(|o| match o {
        HomeOutput::Ordered { order, .. } => Some(*order),
        _ => None,
    });
    (home, ordered.unwrap())
}

#[test]
fn a_home_believes_only_what_verifies() {
    let rig = mk_rig();
    let (mut home, order) = mk_home(&rig);
    assert_eq!(order.first_round, 0);
    let good = rig.reserve(&order, 2).proof;
    let say = |seat: u16, body: Body| {
        let header = Header { kind: body.kind(), market: rig.record.short_id(), epoch: 0, round: 0, seat };
        let hash = message_hash(&rig.record.market, &header, &body);
        let signature = header.kind.is_signed().then(|| rig.seats[usize::from(seat)].evidence.sign(&hash));
        Message { header, body, signature }.encode()
    };
    let reported = |o: &HomeOutput| !matches!(o, HomeOutput::Broadcast(_) | HomeOutput::Send { .. });
    for seat in [1, 2] {
        let receipt = Body::Receipt(Receipt { order: order.digest(), from_round: 0, models: vec![] });
        home.handle(600, HomeInput::Message { from: seat, bytes: say(seat, receipt) });
    }
    let mut give = |from: u16, bytes: Vec<u8>| {
        let out = home.handle(1_500, HomeInput::Message { from, bytes });
        out.into_iter().filter(reported).collect::<Vec<_>>()
    };

    let mut forged = good.clone();
    if let Outcome::Award(a) = &mut forged.proof.leaf.outcome {
        a.seat = 3;
    }
    assert!(give(3, say(3, Body::Proof(Box::new(forged)))).is_empty());
    let mut weak = good.clone();
    weak.certificate.quorum.signers = Signers::new(4, [2, 3]);
    assert!(give(3, say(3, Body::Proof(Box::new(weak)))).is_empty());
    let accept = Accept { order: order.digest() };
    assert!(give(2, say(2, Body::Accept(accept.clone()))).is_empty(), "nobody was asked yet");

    let out = give(1, say(1, Body::Proof(Box::new(good))));
    assert!(out.iter().any(|o| matches!(o, HomeOutput::Reserving { seat: 2, rank: 0, .. })), "{out:?}");
    assert!(give(3, say(3, Body::Accept(accept.clone()))).is_empty(), "seat 3 was not asked");
    assert!(give(3, say(2, Body::Accept(accept.clone()))).is_empty(), "seat 3 speaks for seat 2");
    let out = give(2, say(2, Body::Accept(accept)));
    assert!(matches!(out.as_slice(), [HomeOutput::Choose(c)] if c.seat == 2));
    let out = home.handle(1_600, HomeInput::Stored { order: order.digest() });
    assert!(out.contains(&HomeOutput::HandOver { order: order.digest(), seat: 2 }));
    assert_eq!(home.dropped().count(DropReason::BadSignature), 2);
}

#[test]
fn a_clock_that_goes_back_does_not_open_a_round_again() {
    let mut rig = mk_rig();
    let order = rig.order(0);
    rig.bid_in_round_0(&order);
    let (t0, expiry) = (rig.record.params.t0(0), rig.record.params.expiry(0));
    rig.seat.handle(expiry, SeatInput::Tick);
    assert!(rig.seat.round(0).is_none());
    let header = Header { kind: Kind::Bundle, market: rig.record.short_id(), epoch: 0, round: 0, seat: 1 };
    let body = Body::Bundle(Bundle {
        order_view: vec![order.digest()].into(),
        u: [1; 48],
        v: [2; 32],
        payload: vec![],
    });
    let hash = message_hash(&rig.record.market, &header, &body);
    let bytes = Message { header, body, signature: Some(rig.seats[1].evidence.sign(&hash)) }.encode();
    let out = rig.seat.handle(t0 + 10, SeatInput::Message { from: Peer::Seat(1), bytes });
    assert!(out.is_empty() && rig.seat.round(0).is_none(), "{out:?}");
    assert_eq!(rig.count(DropReason::WrongRound), 1);
    // The rounds after it are this seat's as before.
    let out = rig.seat.handle(rig.record.params.t0(order_step(&rig)), SeatInput::Tick);
    assert_eq!(kinds(&out), [Kind::Bundle]);
}

fn order_step(rig: &Rig) -> u64 {
    rig.record.params.order_step()
}

#[test]
fn a_clock_that_is_set_makes_the_seat_observe_and_a_slow_one_at_start_does_not_excuse_it() {
    let mut rig = mk_rig();
    let keys = SeatKeys::from_json(&rig.seats[0].to_json()).unwrap();
    let lifetime = rig.record.params.lifetime();
    // A clock before the market's first round says nothing about what was signed before a restart.
    let mut seat = Seat::new(rig.record.clone(), 0, SeatCrypto::new(rig.record.clone(), keys), 0);
    assert_eq!(seat.observes_until(), lifetime);
    seat.clock_was_set(50_000);
    assert_eq!(seat.observes_until(), 50_000 + lifetime);
    // A clock that was ahead: what it set back to counts.
    seat.clock_was_set(2_000);
    assert_eq!(seat.observes_until(), 2_000 + lifetime);
    let order = rig.order(0);
    rig.bid_in_round_0(&order);
    rig.seat.clock_was_set(1_010);
    assert!(rig.seat.round(0).is_some(), "what is open goes on");
    let next = rig.seat.handle(rig.record.params.t0(order_step(&rig)), SeatInput::Tick);
    assert_eq!(kinds(&next), [Kind::Bundle]);
}
