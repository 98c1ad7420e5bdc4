//! Why messages are dropped: for each reason the messages that are dropped for it, and that each is counted once.

use super::tests::{Rig, mk_home, mk_rig};
use super::*;
use crate::crypto::SeatCrypto;
use crate::drops::DropReason;
use crate::evidence::message_hash;
use crate::home::HomeInput;
use crate::keys::SeatKeys;
use crate::wire::*;
use vendue_market::{Outcome, Reason};

/// A message of a seat; its header can be changed before it is signed.
fn say(rig: &Rig, seat: u16, round: u64, body: Body, change: impl Fn(&mut Header)) -> Vec<u8> {
    let mut header = Header { kind: body.kind(), market: rig.record.short_id(), epoch: 0, round, seat };
    change(&mut header);
    let hash = message_hash(&rig.record.market, &header, &body);
    let signature = header.kind.is_signed().then(|| rig.seats[usize::from(seat)].evidence.sign(&hash));
    Message { header, body, signature }.encode()
}

fn bundle(payload: u8) -> Body {
    Body::Bundle(Bundle { order_view: vec![].into(), u: [1; 48], v: [2; 32], payload: vec![payload] })
}

fn set(d: u8) -> Body {
    Body::Set(SetMsg { held: vec![[d; 32], [0; 32], [0; 32], [0; 32]], full: None })
}

fn order(rig: &Rig) -> Body {
    Body::Order(OrderMsg { order: rig.order(0) })
}

/// A case: who sends what at which time after which messages of seat 1, and why it is dropped.
struct Case {
    what: &'static str,
    reason: DropReason,
    before: Vec<Vec<u8>>,
    at: u64,
    from: Peer,
    bytes: Vec<u8>,
}

/// Round 0 begins at 1000 and collects until 1100; the seat has bid.
fn cases(rig: &Rig) -> Vec<Case> {
    let by = |seat, body| say(rig, seat, 0, body, |_| ());
    let case = |what, reason, from, bytes| Case { what, reason, before: vec![], at: 1_010, from, bytes };
    let of_1 = |what, reason, bytes| case(what, reason, Peer::Seat(1), bytes);
    let mut long = by(1, set(1));
    long.resize(MAX_MESSAGE + 1, 0);
    let mut broken = by(1, set(1));
    if let Some(last) = broken.last_mut() {
        *last ^= 1;
    }
    let cut = by(1, set(1)).split_off(30);
    let asked = by(1, Body::Fetch(Fetch::Set([1; 32])));
    let reply = Body::Reply(Reply::Bundle(by(2, bundle(1))));
    let good = by(1, bundle(1));
    use DropReason::*;
    vec![
        of_1("no message", Malformed, vec![]),
        of_1("a part of a message", Malformed, cut),
        of_1("a message with something after it", Malformed, [by(1, set(1)), vec![0]].concat()),
        of_1("a message above the limit", Oversize, long),
        of_1("another market", Foreign, say(rig, 1, 0, set(1), |h| h.market = [9; 8])),
        of_1("another epoch", Foreign, say(rig, 1, 0, set(1), |h| h.epoch = 1)),
        case("under another's name", WrongSender, Peer::Seat(2), by(1, set(1))),
        case("under this seat's name", WrongSender, Peer::Seat(0), by(0, set(1))),
        of_1("what homes say", WrongSender, rig.say(1, order(rig))),
        of_1("a changed signature", BadSignature, broken),
        Case { before: vec![good.clone()], ..of_1("a replay in the round", Duplicate, good.clone()) },
        Case { before: vec![by(1, set(1))], ..of_1("another version", Conflict, by(1, set(2))) },
        Case { at: 1_101, ..of_1("after its time", Late, good.clone()) },
        of_1("a round that is far ahead", WrongRound, say(rig, 1, 3, bundle(1), |_| ())),
        Case { at: rig.record.params.expiry(0), ..of_1("a replay of an old round", WrongRound, good) },
        of_1("what nobody asked for", Unexpected, by(1, reply)),
        of_1("what is for homes", Unexpected, by(1, Body::Accept(Accept { order: [1; 32] }))),
        Case { before: vec![asked.clone(); 64], ..of_1("one request too many in a round", Quota, asked) },
        Case {
            before: vec![by(1, set(1)); 256],
            ..of_1("one message too many in a second", Quota, by(1, set(1)))
        },
    ]
}

#[test]
fn what_a_seat_drops_is_counted_once_by_its_reason() {
    let mut seen = BTreeSet::new();
    let all = cases(&mk_rig());
    for case in all {
        let mut rig = mk_rig();
        let order = rig.order(0);
        rig.bid_in_round_0(&order);
        let give = |rig: &mut Rig, at, from, bytes| {
            rig.seat.handle(at, SeatInput::Message { from, bytes });
            (rig.count(case.reason), rig.seat.dropped().total())
        };
        for bytes in case.before {
            give(&mut rig, 1_010, Peer::Seat(1), bytes);
        }
        rig.seat.handle(case.at, SeatInput::Tick);
        let (of_reason, total) = (rig.count(case.reason), rig.seat.dropped().total());
        let after = give(&mut rig, case.at, case.from, case.bytes);
        assert_eq!(after, (of_reason + 1, total + 1), "{}: {:?}", case.what, rig.seat.dropped());
        seen.insert(case.reason);
    }
    // A seat that looks on after a restart.
    let rig = mk_rig();
    let keys = SeatKeys::from_json(&rig.seats[0].to_json()).unwrap();
    let mut seat = Seat::new(rig.record.clone(), 0, SeatCrypto::new(rig.record.clone(), keys), 900);
    seat.handle(1_010, SeatInput::Message { from: Peer::Seat(1), bytes: say(&rig, 1, 0, bundle(1), |_| ()) });
    assert_eq!((seat.dropped().count(DropReason::Observing), seat.dropped().total()), (1, 1));
    seen.insert(DropReason::Observing);
    assert_eq!(seen, DropReason::ALL.into_iter().collect(), "every reason has a case");
}

#[test]
fn what_a_home_drops_is_counted_once_by_its_reason() {
    let rig = mk_rig();
    let order = mk_home(&rig).1;
    let receipt = |order| Body::Receipt(Receipt { order, from_round: 0, models: vec![] });
    let known = receipt(order.digest());
    let by = |seat, body: &Body| say(&rig, seat, 0, body.clone(), |_| ());
    let proof = |round| {
        let none = Outcome::None(vendue_market::Histogram::new(4));
        Body::Proof(Box::new(rig.certified(round, &order, none)))
    };
    let mut forged = rig.certified(0, &order, rig.reserve(&order, 2).proof.proof.leaf.outcome);
    forged.certificate.quorum.signers = Signers::new(4, [0, 1]);
    let mut long = by(1, &known);
    long.resize(MAX_MESSAGE + 1, 0);
    let mut broken = by(1, &known);
    if let Some(last) = broken.last_mut() {
        *last ^= 1;
    }
    let refuse = Body::Refuse(Refuse { order: order.digest(), reason: Reason::FreeGpus });
    let step = rig.record.params.order_step();
    use DropReason::*;
    let cases = [
        ("no message", Malformed, 600, 1, vec![]),
        ("a message above the limit", Oversize, 600, 1, long),
        ("another market", Foreign, 600, 1, say(&rig, 1, 0, known.clone(), |h| h.market = [9; 8])),
        ("another epoch", Foreign, 600, 1, say(&rig, 1, 0, known.clone(), |h| h.epoch = 1)),
        ("under another's name", WrongSender, 600, 2, by(1, &known)),
        ("a seat that is none", WrongSender, 600, 7, say(&rig, 1, 0, known.clone(), |h| h.seat = 7)),
        ("a changed signature", BadSignature, 600, 1, broken),
        ("a certificate below quorum", BadSignature, 1_500, 1, by(1, &Body::Proof(Box::new(forged)))),
        ("an unknown order", Unexpected, 600, 1, by(1, &receipt([9; 32]))),
        ("what is for seats", Unexpected, 600, 1, by(1, &set(1))),
        ("a word that nobody asked for", Unexpected, 600, 1, by(1, &refuse)),
        ("a round that is ahead", WrongRound, 1_500, 1, by(1, &proof(step))),
    ];
    for (what, reason, at, from, bytes) in cases {
        let (mut home, _) = mk_home(&rig);
        home.handle(at, HomeInput::Message { from, bytes });
        assert_eq!(
            (home.dropped().count(reason), home.dropped().total()),
            (1, 1),
            "{what}: {:?}",
            home.dropped()
        );
    }
    let (mut home, _) = mk_home(&rig);
    for _ in 0..2 {
        home.handle(600, HomeInput::Message { from: 1, bytes: by(1, &known) });
    }
    assert_eq!((home.dropped().count(Duplicate), home.dropped().total()), (1, 1));
}

#[test]
fn the_log_holds_of_a_flood_what_told_the_seat_something() {
    let mut rig = mk_rig();
    let order = rig.order(0);
    rig.seat.log_received(true);
    rig.bid_in_round_0(&order);
    rig.now = 1_010;
    let mut kept = |seat: u16, bytes: Vec<u8>| {
        rig.now += 10;
        let message = SeatInput::Message { from: Peer::Seat(seat), bytes: bytes.clone() };
        let heard = LogRecord::Heard { at_ms: rig.now, bytes };
        let outputs = rig.seat.handle(rig.now, message);
        outputs.iter().filter(|o| matches!(o, SeatOutput::Persist(record) if **record == heard)).count()
    };
    let rig = mk_rig();
    let by = |seat, body| say(&rig, seat, 0, body, |_| ());
    // A bundle, a second one as evidence, and no third; likewise the SETs.
    let bundles = [1, 1, 1, 2, 2, 1, 3].map(|payload| kept(1, by(1, bundle(payload))));
    assert_eq!(bundles, [1, 0, 0, 1, 0, 0, 0]);
    assert_eq!([1, 1, 2, 1, 2, 3].map(|d| kept(1, by(1, set(d)))), [1, 0, 1, 0, 0, 0]);
    // What does not hold: once, as evidence.
    let lock = |set| {
        let quorum = Quorum { signers: Signers::new(4, [0, 1, 2]), aggregate: [4; 48] };
        by(1, Body::Lock(Lock { view: 0, set: [set; 32], quorum, vote: [5; 48] }))
    };
    assert_eq!([1, 2, 1, 2].map(|set| kept(1, lock(set))), [1, 0, 0, 0]);
    assert_eq!(kept(1, by(1, Body::Fetch(Fetch::Bundles(vec![])))), 0);
    // After T1 a bundle is evidence and no more.
    assert_eq!([7, 7, 7].map(|payload| kept(2, by(2, bundle(payload)))), [1, 0, 0]);
}
