//! Replays of the rounds of a bus: the same bytes, every decision, and what in a log does not follow.

use super::*;
use vendue_market::{RecordKind, Verdict};

/// The log of a seat in a round with or without a crash, as a replay gets it.
fn heard(loses: Loses, seat: u16, crash: Option<Crash>) -> (Bus, Vec<LogRecord>) {
    let mut bus = Bus::new(loses, crash);
    bus.run(seat);
    let log = bus.logs[usize::from(seat)].clone();
    (bus, log)
}

#[test]
fn a_replay_signs_the_same_bytes_in_every_kind_of_round() {
    for loses in [none, partial, later_view] as [Loses; 3] {
        for seat in [0, proposer(&dealt().0, ROUND, 1)] {
            let (bus, log) = heard(loses, seat, None);
            let replayed = replay(&bus.record, seat, ROUND, &log).unwrap();
            assert_eq!(replayed.root, bus.decided.get(&seat).copied());
            assert_eq!(replayed.certificate.as_ref().map(|c| c.root), replayed.root);
            assert_eq!((replayed.equal, replayed.unwritten), (kinds_said(&log).len(), 0));
            assert!(replayed.beacon.is_some() && replayed.commit.is_some());
            assert_eq!((replayed.cleared.len(), replayed.orders.len()), (1, 1));
            assert_eq!(replayed.admitted.len(), 4);
        }
    }
}

#[test]
fn repeats_are_not_in_the_log_and_a_replay_without_them_signs_the_same_bytes() {
    for loses in [none, partial, later_view] as [Loses; 3] {
        let mut bus = Bus::new(loses, None);
        bus.copies = 5;
        bus.run(1);
        let log = &bus.logs[1];
        let heard = log.iter().filter_map(|r| match r {
            LogRecord::Heard { bytes, .. } => Some(bytes),
            _ => None,
        });
        let (all, distinct) = (heard.clone().count(), heard.collect::<BTreeSet<_>>().len());
        assert!(all == distinct && all > 6, "{distinct} of {all}");
        let replayed = replay(&bus.record, 1, ROUND, log).unwrap();
        assert_eq!((replayed.root, replayed.equal), (bus.decided.get(&1).copied(), kinds_said(log).len()));
    }
}

#[test]
fn a_replay_of_a_round_with_a_restart_in_it_agrees() {
    let log = records_without_crash(partial, 1);
    let lock = log.iter().position(|r| kinds_said(std::slice::from_ref(r)) == [Kind::Lock]).unwrap();
    let crash = Crash { seat: 1, at: lock, cut: Cut::Sent, away_ms: 20, keeps: usize::MAX };
    let (bus, log) = heard(partial, 1, Some(crash));
    let replayed = replay(&bus.record, 1, ROUND, &log).unwrap();
    assert_eq!((replayed.restarts, replayed.root), (1, bus.decided.get(&1).copied()));
}

#[test]
fn a_replay_finds_what_was_signed_and_does_not_follow() {
    let (bus, log) = heard(partial, 1, None);
    let differs = |log: &[LogRecord]| match replay(&bus.record, 1, ROUND, log) {
        Err(ReplayError::Differs(difference)) => difference.what,
        other => panic!("{other:?}"),
    };
    // Another award than the one that follows, properly signed.
    let award = log.iter().position(|r| kinds_said(std::slice::from_ref(r)) == [Kind::Award]).unwrap();
    let Some(LogRecord::Said { at_ms, bytes }) = log.get(award) else { panic!("no award") };
    let mut message = decode(bytes, 4).unwrap();
    let crypto = bus.crypto(1);
    let voted = vote_bytes(VoteWord::Award, &bus.record.market, 0, ROUND, 0, &[9; 32]);
    message.body = Body::Award(AwardVote { root: [9; 32], vote: crypto.vote(&voted) });
    message.signature = Some(crypto.sign(&message_hash(&bus.record.market, &message.header, &message.body)));
    let mut wrong = log.clone();
    wrong[award] = LogRecord::Said { at_ms: *at_ms, bytes: message.encode() };
    assert!(differs(&wrong).contains("signed award"), "{}", differs(&wrong));
    // A vote that is missing, and one that nothing led to.
    let admit = log.iter().position(|r| kinds_said(std::slice::from_ref(r)) == [Kind::Admit]).unwrap();
    let mut less = log.clone();
    less.remove(admit);
    assert!(differs(&less).contains("replay signs admit"), "{}", differs(&less));
    let sets =
        |r: &LogRecord| matches!(r, LogRecord::Heard { bytes, .. } if peek_kind(bytes) == Some(Kind::Set));
    let deaf: Vec<_> = log.iter().filter(|r| !sets(r)).cloned().collect();
    assert!(differs(&deaf).contains("the replay nothing"), "{}", differs(&deaf));
    // A message that was changed on its way into the log.
    let mut forged = log.clone();
    let heard = forged.iter_mut().find(|r| sets(r)).unwrap();
    let LogRecord::Heard { bytes, .. } = heard else { panic!("nothing heard") };
    bytes[40] ^= 1;
    assert!(differs(&forged).contains("not its sender's"));
    // Nothing to replay.
    assert_eq!(replay(&bus.record, 1, 99, &log), Err(ReplayError::Nothing(99)));
    let own: Vec<_> = log.iter().filter(|r| !matches!(r, LogRecord::Heard { .. })).cloned().collect();
    assert_eq!(replay(&bus.record, 1, ROUND, &own), Err(ReplayError::NotReceived(ROUND)));
    // What was left out is not held against the seat.
    let omitted = [log.as_slice(), &[LogRecord::Omitted { at_ms: 1, round: ROUND }]].concat();
    assert_eq!(replay(&bus.record, 1, ROUND, &omitted), Err(ReplayError::Omitted(ROUND)));
}

/// The steps of a replayed round in one word each.
fn steps(loses: Loses, seat: u16) -> Vec<&'static str> {
    let (bus, log) = heard(loses, seat, None);
    let replayed = replay(&bus.record, seat, ROUND, &log).unwrap();
    let times: Vec<u64> = replayed.decisions.iter().map(|d| d.at_ms).collect();
    assert!(times.is_sorted());
    let word = |step: &Step| match step {
        Step::Restart => "restart",
        Step::Bundle { orders: 1, bids: 1 } => "bundle",
        Step::Bundle { .. } => "bundle of something else",
        Step::Set { listed: 4, full: true } => "full",
        Step::Set { listed: 4, full: false } => "set",
        Step::Set { .. } => "part",
        Step::NewView { view: 1 } => "view 1",
        Step::NewView { .. } => "view",
        Step::Propose { .. } => "propose",
        Step::Admit { .. } => "admit",
        Step::Lock { .. } => "lock",
        Step::Committed { commit: Commit::Fast { .. }, .. } => "fast",
        Step::Committed { commit: Commit::Locked { .. }, .. } => "locked",
        Step::Share => "share",
        Step::Opened { .. } => "opened",
        Step::Award { .. } => "award",
        Step::Certified { .. } => "certified",
    };
    replayed.decisions.iter().map(|d| word(&d.step)).collect()
}

#[test]
fn a_replay_tells_every_decision_of_a_round() {
    let end = ["share", "opened", "award", "certified"];
    assert_eq!(steps(none, 0), [["bundle", "full", "fast"].as_slice(), &end].concat());
    assert_eq!(steps(partial, 2), [["bundle", "part", "admit", "lock", "locked"].as_slice(), &end].concat());
    let seat = proposer(&dealt().0, ROUND, 1);
    let first = if seat == 2 { "part" } else { "full" };
    let view_1 = ["view 1", "propose", "admit", "lock", "locked"];
    let told = steps(later_view, seat);
    assert_eq!(told[..2], ["bundle", first]);
    assert!(told.ends_with(&[view_1.as_slice(), &end].concat()), "{told:?}");
}

#[test]
fn a_replay_explains_every_order_for_every_seat() {
    let (bus, log) = heard(none, 3, None);
    let replayed = replay(&bus.record, 3, ROUND, &log).unwrap();
    let [explained] = replayed.explained.as_slice() else { panic!("one order") };
    assert_eq!((explained.why.order, explained.why.turn), (replayed.cleared[0].order, 1));
    assert_eq!(explained.ceiling, Some(replayed.orders[&explained.why.order].requirements.max_price));
    let price = |micros| Price::from_micros(micros).unwrap();
    let bids: Vec<_> = explained.why.seats.iter().map(|s| (s.seat, s.bid, s.stand_by)).collect();
    let bid = |seat: u16, rank| (seat, Some(price(2_000_000 + i64::from(seat))), rank);
    assert_eq!(bids, [bid(0, None), bid(1, Some(1)), bid(2, Some(2)), bid(3, None)]);
    assert_eq!(explained.why.seats[0].verdict, Verdict::Won { paid: price(2_000_000) });
    assert_eq!(explained.why.seats[3].verdict, Verdict::PriceHigher { winning: price(2_000_000) });
}

fn difference(bus: &Bus, seat: u16, log: &[LogRecord]) -> Option<String> {
    match replay(&bus.record, seat, ROUND, log) {
        Ok(_) => None,
        Err(error) => Some(error.to_string()),
    }
}

/// The orders' bodies are in the log, and a replay finds them nowhere else.
#[test]
fn a_replay_without_the_orders_of_the_log_says_which_are_missing() {
    let (bus, log) = heard(none, 0, None);
    let is_orders = |r: &LogRecord| matches!(r, LogRecord::Orders { round: ROUND, .. });
    assert!(log.iter().any(is_orders));
    let without: Vec<_> = log.iter().filter(|r| !is_orders(r)).cloned().collect();
    let replayed = replay(&bus.record, 0, ROUND, &log).unwrap();
    let named = vendue_market::encode::to_hex(&replayed.cleared[0].order);
    let why = difference(&bus, 0, &without).unwrap();
    assert!(why.contains("the bodies of 1 orders") && why.contains(&named), "{why}");
    // Another body is another order.
    let mut other = log.clone();
    for record in other.iter_mut().filter(|r| is_orders(r)) {
        let LogRecord::Orders { orders, .. } = record else { panic!("no orders") };
        orders[0].attempt += 1;
    }
    assert!(difference(&bus, 0, &other).unwrap().contains("the bodies of 1 orders"));
}

#[test]
fn a_replay_names_a_log_in_which_any_byte_was_changed() {
    for (loses, seat) in [(none as Loses, 0), (partial, 2)] {
        let (bus, log) = heard(loses, seat, None);
        assert_eq!(difference(&bus, seat, &log), None);
        for at in 0..log.len() {
            let (LogRecord::Said { bytes, .. } | LogRecord::Heard { bytes, .. }) = &log[at] else { continue };
            // What is not signed proves itself or is not used.
            if !peek_kind(bytes).is_some_and(Kind::is_signed) {
                continue;
            }
            // A few places of each part: header, body, signature.
            for place in [0, 12, 30, 60, bytes.len() / 2, bytes.len() - 70, bytes.len() - 2] {
                let mut changed = log.clone();
                let (LogRecord::Said { bytes, .. } | LogRecord::Heard { bytes, .. }) = &mut changed[at]
                else {
                    panic!("a message")
                };
                bytes[place] ^= 4;
                assert!(difference(&bus, seat, &changed).is_some(), "byte {place} of {:?}", log[at]);
            }
        }
    }
}

#[test]
fn a_replay_finds_bids_that_are_not_those_that_were_sealed() {
    let (bus, mut log) = heard(none, 0, None);
    let bids = log.iter_mut().find_map(|r| match r {
        LogRecord::Bids { bids, .. } => Some(bids),
        _ => None,
    });
    let Some(RecordKind::Bid { price, .. }) = bids.map(|b| &mut b.records[0].kind) else { panic!("no bid") };
    *price = Price::from_micros(1_999_999).unwrap();
    assert!(difference(&bus, 0, &log).unwrap().contains("sealed other bids"));
}

/// Whoever has the seat's evidence key can sign anything; a vote or share needs the other keys too.
#[test]
fn a_replay_finds_a_vote_and_a_share_that_are_not_the_seat_s() {
    let (bus, log) = heard(partial, 2, None);
    let crypto = bus.crypto(2);
    for (kind, other) in [(Kind::Admit, 1), (Kind::Open, 1)] {
        let at = log.iter().position(|r| kinds_said(std::slice::from_ref(r)) == [kind]).unwrap();
        let LogRecord::Said { at_ms, bytes } = &log[at] else { panic!("said") };
        let mut message = decode(bytes, 4).unwrap();
        match &mut message.body {
            Body::Admit(a) => a.vote = bus.crypto(other).vote(b"something"),
            Body::Open(o) => o.share = bus.crypto(other).share(ROUND),
            _ => panic!("another kind"),
        }
        let hash = message_hash(&bus.record.market, &message.header, &message.body);
        message.signature = Some(crypto.sign(&hash));
        let mut changed = log.clone();
        changed[at] = LogRecord::Said { at_ms: *at_ms, bytes: message.encode() };
        let why = difference(&bus, 2, &changed).unwrap();
        assert!(why.contains("not the seat's"), "{why}");
    }
}
