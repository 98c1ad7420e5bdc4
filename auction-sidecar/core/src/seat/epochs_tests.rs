//! A seat that goes over to the next epoch: in time, late, and from its log.

use super::tests::{Rig, kinds, mk_rig};
use super::*;
use crate::crypto::SeatCrypto;
use crate::drops::DropReason;
use crate::epochs::{NextEpochError, first_round};
use crate::evidence::message_hash;
use crate::keygen::{EpochError, dealt_next};
use crate::keys::SeatKeys;
use crate::wire::*;
use vendue_market::{NodeCapacity, Order};
use vendue_sealed_bid::SealShare;

/// A seat of a market, and the next epoch's record and shares.
struct Change {
    rig: Rig,
    next: Arc<MarketRecord>,
    shares: Vec<SealShare>,
    first: u64,
}

fn mk_change() -> Change {
    let rig = mk_rig();
    let (next, shares) = dealt_next(&rig.record, &rig.seats, 0);
    Change { first: first_round(&next), next: Arc::new(next), shares, rig }
}

fn with_share(rig: &Rig, record: &Arc<MarketRecord>, seat: usize, share: &SealShare) -> Arc<SeatCrypto> {
    let mut keys = SeatKeys::from_json(&rig.seats[seat].to_json()).unwrap();
    keys.share = SealShare::from_bytes(&share.to_bytes()).unwrap();
    Arc::new(SeatCrypto::new(record.clone(), keys))
}

impl Change {
    fn crypto(&self, seat: usize) -> Arc<SeatCrypto> {
        with_share(&self.rig, &self.next, seat, &self.shares[seat])
    }

    fn learn(&mut self, now_ms: u64) -> Vec<SeatOutput> {
        let (next, crypto) = (self.next.clone(), self.crypto(0));
        self.rig.now = now_ms;
        self.rig.seat.take_next(now_ms, next, crypto).unwrap()
    }

    /// An order whose first round is this one, at the seat well before it.
    fn order(&mut self, job: &str, round: u64) -> Order {
        let (params, order) = (self.rig.record.params, self.rig.order(0));
        let expires_ms = params.expiry(round) + 60_000;
        let order = Order { first_round: round, expires_ms, job: job.into(), ..order };
        self.rig.now = params.t0(round) - 300;
        let said = self.rig.say(0, Body::Order(OrderMsg { order: order.clone() }));
        assert!(self.rig.give(0, said).iter().any(|o| matches!(o, SeatOutput::Send { .. })));
        order
    }

    fn start(&mut self, round: u64) -> Vec<SeatOutput> {
        self.rig.now = self.rig.record.params.t0(round);
        self.rig.seat.handle(self.rig.now, SeatInput::Tick)
    }

    fn free_gpus(&self) -> u32 {
        self.rig.seat.free_offers()[0].nodes[0].capacity.free_gpus
    }

    /// What seat 1 says in a round.
    fn of_1(&self, epoch: u32, round: u64, body: Body) -> Vec<u8> {
        let market = &self.rig.record.market;
        let header = Header { kind: body.kind(), market: self.rig.record.short_id(), epoch, round, seat: 1 };
        let signature = self.rig.seats[1].evidence.sign(&message_hash(market, &header, &body));
        Message { header, body, signature: Some(signature) }.encode()
    }

    fn drops(&mut self, from: Peer, bytes: Vec<u8>, reason: DropReason) -> bool {
        let before = self.rig.count(reason);
        self.rig.seat.handle(self.rig.now, SeatInput::Message { from, bytes });
        self.rig.count(reason) > before
    }

    /// A certified award of a round to this seat, with a certificate of that epoch.
    fn reserve(&self, epoch: u32, round: u64, order: &Order) -> Reserve {
        let mut reserve = self.rig.reserve_in(round, order, 0);
        let certificate = &mut reserve.proof.certificate;
        let message = vote_bytes(VoteWord::Award, &certificate.market, epoch, round, 0, &certificate.root);
        let votes: Vec<_> = self.rig.seats.iter().map(|s| s.vote.sign(&message)).collect();
        certificate.quorum.aggregate = vendue_sealed_bid::aggregate_votes(&votes).unwrap();
        certificate.epoch = epoch;
        reserve
    }

    fn say(&self, epoch: u32, round: u64, body: Body) -> Vec<u8> {
        let market = &self.rig.record.market;
        let header = Header { kind: body.kind(), market: self.rig.record.short_id(), epoch, round, seat: 0 };
        let signature = self.rig.homes[0].user.sign(&message_hash(market, &header, &body));
        Message { header, body, signature: Some(signature) }.encode()
    }
}

fn headers(out: &[SeatOutput]) -> Vec<Header> {
    let bytes = out.iter().filter_map(|o| match o {
        SeatOutput::Send { bytes, .. } | SeatOutput::Broadcast(bytes) => Some(bytes),
        _ => None,
    });
    bytes.map(|bytes| decode(bytes, 4).unwrap().header).collect()
}

fn one_gpu(seat: &Seat<SeatCrypto>) -> Vec<(String, NodeCapacity)> {
    let all = seat.offers[0].nodes[0].capacity.clone();
    let one = NodeCapacity { free_gpus: 1, cpu_millis: 1_000, memory_mib: 1_000, disk_mib: 1_000, ..all };
    vec![("n".to_string(), one)]
}

fn records(out: &[SeatOutput]) -> Vec<LogRecord> {
    let of = |o: &SeatOutput| match o {
        SeatOutput::Persist(record) => Some(record.as_ref().clone()),
        _ => None,
    };
    out.iter().filter_map(of).collect()
}

#[test]
fn only_what_follows_is_taken_and_what_is_wrong_is_named() {
    let mut change = mk_change();
    let (now, next, own) = (change.rig.now, change.next.clone(), change.crypto(0));
    let old = change.rig.record.clone();
    let mut take = |now: u64, record: &Arc<MarketRecord>, crypto: &Arc<SeatCrypto>| {
        change.rig.seat.take_next(now, record.clone(), crypto.clone()).map(|_| ())
    };
    let early = Arc::new({
        let mut record = MarketRecord::clone(&next);
        record.generation.as_mut().unwrap().first_round -= 1;
        record
    });
    let why = EpochError::Differs;
    assert_eq!(take(now, &early, &own), Err(NextEpochError::Follows { found: 1, current: 0, why }));
    let other = with_share(&change.rig, &next, 0, &change.shares[1]);
    let not_its_own = Err(NextEpochError::Share { seat: 0, epoch: 1 });
    let mut take = |now: u64, record: &Arc<MarketRecord>, crypto: &Arc<SeatCrypto>| {
        change.rig.seat.take_next(now, record.clone(), crypto.clone()).map(|_| ())
    };
    assert_eq!(take(now, &next, &other), not_its_own);
    assert_eq!(take(now, &next, &own), Ok(()));
    assert_eq!(take(now, &next, &own), Ok(()), "once more changes nothing");
    assert_eq!(take(now, &early, &own), Err(NextEpochError::Another(1)));
    assert_eq!(take(now, &old, &own), Ok(()), "the current one is held too");

    let (third, shares) = dealt_next(&next, &change.rig.seats, 60_000);
    let third = Arc::new(third);
    let (crypto, params) = (with_share(&change.rig, &third, 0, &shares[0]), old.params);
    let mut take = |now: u64, record: &Arc<MarketRecord>, crypto: &Arc<SeatCrypto>| {
        change.rig.seat.take_next(now, record.clone(), crypto.clone()).map(|_| ())
    };
    let over = params.expiry(change.first - 1);
    assert_eq!(take(over - 1, &third, &crypto), Err(NextEpochError::Early { found: 2, current: 0 }));
    assert_eq!(take(over, &third, &crypto), Ok(()));
    assert_eq!(take(over, &old, &crypto), Err(NextEpochError::Over { found: 0, current: 1 }));
}

#[test]
fn rounds_below_the_first_one_end_in_the_old_epoch_and_the_others_are_of_the_new_one() {
    let mut change = mk_change();
    let first = change.first;
    change.learn(500);
    change.order("a", first - 1);
    let old = change.start(first - 1);
    change.order("b", first);
    let new = change.start(first);
    let bundle = |out: &[SeatOutput]| headers(out).into_iter().find(|h| h.kind == Kind::Bundle).unwrap();
    assert_eq!((bundle(&old).epoch, bundle(&old).round), (0, first - 1));
    assert_eq!((bundle(&new).epoch, bundle(&new).round), (1, first));
    // A message is of its round's epoch.
    let set = Body::Set(SetMsg { held: vec![[0; 32]; 4], full: None });
    for (epoch, round) in [(1, first - 1), (0, first), (2, first), (1, 0)] {
        let bytes = change.of_1(epoch, round, set.clone());
        assert!(change.drops(Peer::Seat(1), bytes, DropReason::Foreign), "epoch {epoch}, round {round}");
    }
    for (epoch, round) in [(0, first - 1), (1, first)] {
        let (bytes, dropped) = (change.of_1(epoch, round, set.clone()), change.rig.seat.dropped().total());
        change.drops(Peer::Seat(1), bytes, DropReason::Foreign);
        assert_eq!(change.rig.seat.dropped().total(), dropped, "epoch {epoch}, round {round}");
    }
    let set = change.rig.seat.handle(change.rig.record.params.t1(first), SeatInput::Tick);
    let epochs: BTreeSet<_> = headers(&set).into_iter().map(|h| (h.round >= first, h.epoch)).collect();
    assert!(epochs.contains(&(true, 1)) && epochs.iter().all(|(new, epoch)| u32::from(*new) == *epoch));
}

#[test]
fn what_is_about_no_round_is_taken_in_any_epoch_that_was_held_and_said_in_the_one_that_it_is() {
    let mut change = mk_change();
    let (first, params) = (change.first, change.rig.record.params);
    change.learn(500);
    let ends = params.expiry(first - 1);
    for (at, said_in, epoch) in [
        (params.t0(first) - 1, 0, 0),
        (params.t0(first) - 1, 1, 0),
        (params.t0(first), 0, 1),
        (params.t0(first), 1, 1),
        (ends, 0, 1),
        (ends, 1, 1),
    ] {
        let round = params.round_from(at + 300);
        let job = format!("{at} {said_in}");
        let order = Order { first_round: round, expires_ms: at + 60_000, job, ..change.rig.order(0) };
        change.rig.now = at;
        let bytes = change.say(said_in, 0, Body::Order(OrderMsg { order }));
        let out = change.rig.give(0, bytes);
        let receipts: Vec<_> = headers(&out).into_iter().filter(|h| h.kind == Kind::Receipt).collect();
        assert_eq!(receipts.iter().map(|h| h.epoch).collect::<Vec<_>>(), [epoch], "at {at} in {said_in}");
    }
    let order = Order { expires_ms: ends + 60_000, ..change.rig.order(0) };
    let bytes = change.say(2, 0, Body::Order(OrderMsg { order }));
    assert!(change.drops(Peer::Home(0), bytes, DropReason::Foreign), "of an epoch that nobody knows");
}

#[test]
fn the_old_keys_are_dropped_when_the_last_old_round_has_expired_and_no_sooner() {
    let mut change = mk_change();
    let (first, params) = (change.first, change.rig.record.params);
    let old = Arc::downgrade(&change.rig.seat.epochs.at(0).keys);
    change.learn(500);
    change.order("a", first - 1);
    change.start(first - 1);
    change.order("b", first);
    change.start(first);
    let ends = params.expiry(first - 1);
    change.rig.seat.handle(ends - 1, SeatInput::Tick);
    assert!(old.upgrade().is_some() && change.rig.seat.round(first - 1).is_some());
    let wake = change.rig.seat.next_wake();
    assert!(wake.is_some_and(|at| at <= ends), "{wake:?}");
    change.rig.seat.handle(ends, SeatInput::Tick);
    assert_eq!(old.strong_count(), 0, "nothing holds the old share any more");
    assert!(change.rig.seat.round(first).is_some(), "the new epoch's round is open");
    // A clock that is set back does not bring the old epoch back.
    let set = Body::Set(SetMsg { held: vec![[0; 32]; 4], full: None });
    let bytes = change.of_1(0, first - 1, set);
    change.rig.now = params.t0(first - 1);
    change.drops(Peer::Seat(1), bytes, DropReason::WrongRound);
    assert!(change.rig.seat.round(first - 1).is_none());
}

#[test]
fn who_waits_for_nothing_else_is_woken_to_drop_the_old_keys() {
    let mut change = mk_change();
    let (first, params) = (change.first, change.rig.record.params);
    change.learn(500);
    assert_eq!(change.rig.seat.next_wake(), Some(params.expiry(first - 1)));
}

#[test]
fn who_learns_late_leaves_the_rounds_that_are_not_of_the_old_epoch_and_stays_out_of_them() {
    let mut change = mk_change();
    let (first, params) = (change.first, change.rig.record.params);
    let mut log = vec![LogRecord::Observe { at_ms: 0, until_ms: 0 }];
    let order = change.order("a", first - 1);
    log.extend(records(&change.start(first - 1)));
    change.order("b", first);
    log.extend(records(&change.start(first)));
    assert_eq!(change.free_gpus(), 4, "two GPUs in each of the rounds");
    let at = params.t0(first) + 50;
    let left = change.learn(at);
    let expired = left.iter().any(|o| matches!(o, SeatOutput::Expired { round, .. } if *round == first));
    assert!(expired, "{left:?}");
    let lives = |seat: &Seat<SeatCrypto>| (seat.round(first - 1).is_some(), seat.round(first).is_some());
    assert_eq!((lives(&change.rig.seat), change.free_gpus()), ((true, false), 6));
    // Whatever comes, it does not speak in that round again, and neither does a process after it.
    let set = Body::Set(SetMsg { held: vec![[0; 32]; 4], full: None });
    let bytes = change.of_1(1, first, set.clone());
    assert!(change.drops(Peer::Seat(1), bytes.clone(), DropReason::WrongRound));
    log.extend(records(&left));
    let crypto = |change: &Change| {
        let old = with_share(&change.rig, &change.rig.record, 0, &change.rig.seats[0].share);
        let mut epochs = Epochs::new(change.rig.record.clone(), old);
        assert_eq!(epochs.take_keys(0, at, change.next.clone(), change.crypto(0)), Ok(true));
        epochs
    };
    change.rig.seat = Seat::restore_in(crypto(&change), 0, at, &log).unwrap();
    assert_eq!(lives(&change.rig.seat), (true, false));
    assert!(change.rig.seat.round(first - 1).is_some_and(Round::is_recalled));
    change.rig.now = at;
    assert!(change.drops(Peer::Seat(1), bytes, DropReason::Observing));
    // In the next round it is there again, with what it knows of orders and promises.
    let bytes = change.of_1(1, first + 1, set);
    change.rig.seat.handle(params.t0(first + 1), SeatInput::Message { from: Peer::Seat(1), bytes });
    assert!(change.rig.seat.round(first + 1).is_some());
    // An award of the old epoch's last round is good in the new one, too.
    let reserve = Body::Reserve(Box::new(change.reserve(0, first - 1, &order)));
    let out = change.rig.give(0, change.say(0, first - 1, reserve));
    assert!(out.iter().any(|o| matches!(o, SeatOutput::Hold(_))), "{out:?}");
}

#[test]
fn an_award_of_the_wrong_epoch_is_void_and_frees_what_was_promised() {
    let mut change = mk_change();
    let (first, params) = (change.first, change.rig.record.params);
    let promise = |round: u64, order: u8| {
        let usage = one_gpu(&change.rig.seat);
        let until_ms = params.expiry(round) + 1_000;
        ([order; 32], Promise { home: 0, round, until_ms, usage })
    };
    let all = [promise(first - 1, 1), promise(first, 2), promise(first + 1, 3)];
    let void = change.order("void", first);
    let reserve = change.reserve(0, first, &void);
    let root = reserve.proof.certificate.root;
    for round in [first - 1, first] {
        change.rig.seat.certified.insert(round, root);
        let proven = Proven { bytes: vec![], round, until_ms: u64::MAX };
        change.rig.seat.proven.insert([(round + 1 - first) as u8; 32], proven);
    }
    let handover = |round: u64, stage| HandOver { home: 0, round, until_ms: u64::MAX, stage };
    change.rig.seat.promises.extend(all);
    change.rig.seat.handovers.insert([3; 32], handover(first + 1, Stage::Asked));
    change.rig.seat.handovers.insert([4; 32], handover(first + 1, Stage::Held));
    let left = change.learn(params.t0(first + 1));
    let freed = [LogRecord::Freed { order: [2; 32] }];
    assert_eq!(records(&left).iter().filter(|r| **r == freed[0]).count(), 1);
    let kept: Vec<_> = change.rig.seat.promises.keys().map(|order| order[0]).collect();
    assert_eq!(kept, [1, 3], "the old epoch's, and what the controller was asked for");
    assert_eq!(change.rig.seat.handovers.len(), 2);
    assert_eq!(change.rig.seat.proven.keys().map(|order| order[0]).collect::<Vec<_>>(), [0]);
    assert!(change.rig.seat.certified.contains_key(&(first - 1)));
    // What was certified in the wrong epoch is not taken for known in the right one.
    let mut forged = reserve;
    forged.proof.certificate.epoch = 1;
    let bytes = change.say(1, first, Body::Reserve(Box::new(forged)));
    assert!(change.drops(Peer::Home(0), bytes, DropReason::BadSignature));

    // A certificate counts in the epoch of its round only.
    let order = change.order("a", first + 2);
    change.start(first + 2);
    for (certified_in, said_in, reason) in
        [(0, 1, DropReason::BadSignature), (0, 0, DropReason::Foreign), (1, 0, DropReason::Foreign)]
    {
        let reserve = Body::Reserve(Box::new(change.reserve(certified_in, first + 2, &order)));
        let bytes = change.say(said_in, first + 2, reserve);
        assert!(change.drops(Peer::Home(0), bytes, reason), "{certified_in} in {said_in}");
    }
    let reserve = Body::Reserve(Box::new(change.reserve(1, first + 2, &order)));
    let out = change.rig.give(0, change.say(1, first + 2, reserve));
    assert!(out.iter().any(|o| matches!(o, SeatOutput::Hold(_))), "{out:?}");
    let held = SeatInput::Reserved { order: order.digest(), round: first + 2, result: Ok(()) };
    let out = change.rig.seat.handle(change.rig.now, held);
    assert_eq!(kinds(&out), [Kind::Accept]);
    assert_eq!((headers(&out)[0].epoch, headers(&out)[0].round), (1, first + 2));
}

#[test]
fn a_promise_in_the_log_of_a_round_that_was_spoken_in_in_the_old_epoch_is_void() {
    let mut change = mk_change();
    let (first, params) = (change.first, change.rig.record.params);
    let mut log = vec![LogRecord::Observe { at_ms: 0, until_ms: 0 }];
    change.order("a", first);
    log.extend(records(&change.start(first)));
    let usage = one_gpu(&change.rig.seat);
    let until_ms = params.expiry(first);
    let order = change.rig.order(0);
    let certificate = change.reserve(0, first, &order).proof.certificate;
    log.push(LogRecord::Certified { at_ms: until_ms - 15_000, certificate });
    log.push(LogRecord::Promise { order: [2; 32], home: 0, round: first, until_ms, usage });
    let at = params.t0(first) + 50;
    let old = with_share(&change.rig, &change.rig.record, 0, &change.rig.seats[0].share);
    let restored = |late: bool| {
        let mut epochs = Epochs::new(change.rig.record.clone(), old.clone());
        if late {
            epochs.take_keys(0, at, change.next.clone(), change.crypto(0)).unwrap();
        }
        let seat = Seat::restore_in(epochs, 0, at, &log).unwrap();
        (seat.promises.len(), seat.certified.len())
    };
    assert_eq!((restored(false), restored(true)), ((1, 1), (0, 0)));
}
