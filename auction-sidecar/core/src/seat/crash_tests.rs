//! Four seats on a bus, one of which crashes at every point of its log and comes back from it.

use super::tests::{Rig, mk_rig};
use super::*;
use crate::crypto::SeatCrypto;
use crate::evidence::message_hash;
use crate::justify::proposer;
use crate::keys::SeatKeys;
use crate::log::{LogRecord, ReplayError, SegmentHead, Step, encode_frame, read_segment, replay};
use crate::proof::place;
use crate::wire::*;
use std::collections::{BTreeSet, VecDeque};
use std::sync::OnceLock;
use vendue_market::{AcceptRules, BidTerms, NodeCapacity, OfferNode, Order, Price};

const ROUND: u64 = 1;

/// What the network loses, by sender, message and receiver.
type Loses = fn(u16, &Message, u16) -> bool;

/// Where a batch is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// The record is lost with all that follows.
    Before,
    /// The record is durable, the rest of the batch is lost.
    After,
    /// The batch is durable and sent.
    Sent,
}

/// The seat that crashes, at which record of its log, and how.
#[derive(Debug, Clone, Copy)]
struct Crash {
    seat: u16,
    at: usize,
    cut: Cut,
    /// How long it is away.
    away_ms: u64,
    /// How many records of its log a bad disk gives back.
    keeps: usize,
}

struct Bus {
    record: Arc<MarketRecord>,
    keys: &'static [String],
    seats: Vec<Option<Seat<SeatCrypto>>>,
    logs: Vec<Vec<LogRecord>>,
    queue: VecDeque<(u16, Option<u16>, Vec<u8>)>,
    now: u64,
    loses: Loses,
    crash: Option<Crash>,
    back_at: Option<u64>,
    /// How often each message is delivered.
    copies: usize,
    /// What each seat said, by kind and view.
    said: BTreeMap<(u16, Kind, u32), Vec<u8>>,
    decided: BTreeMap<u16, Digest>,
}

/// The market of all these tests, dealt once, with an order for the round.
fn dealt() -> &'static (Arc<MarketRecord>, Vec<String>, Vec<u8>) {
    static DEALT: OnceLock<(Arc<MarketRecord>, Vec<String>, Vec<u8>)> = OnceLock::new();
    DEALT.get_or_init(|| {
        let rig = mk_rig();
        let order = Order { first_round: ROUND, ..rig.order(0) };
        let order = rig.say(0, Body::Order(OrderMsg { order }));
        let keys = rig.seats.iter().map(|k| k.to_json().to_string()).collect();
        (rig.record, keys, order)
    })
}

fn offer(seat: u16) -> SeatInput {
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
        price: Price::from_micros(2_000_000 + i64::from(seat)).unwrap(),
        nodes: vec![OfferNode::of("n", capacity)],
        rules: AcceptRules::any(),
        terms: BidTerms::default(),
    };
    SeatInput::Offers { offers: vec![offer], models: vec!["H100".parse().unwrap()] }
}

impl Bus {
    fn new(loses: Loses, crash: Option<Crash>) -> Self {
        let (record, keys, order) = dealt();
        let mut bus = Self {
            record: record.clone(),
            keys,
            seats: vec![],
            logs: vec![vec![]; 4],
            queue: VecDeque::new(),
            now: 500,
            loses,
            crash,
            back_at: None,
            copies: 1,
            said: BTreeMap::new(),
            decided: BTreeMap::new(),
        };
        bus.seats = (0..4).map(|i| Some(Seat::fresh(bus.record.clone(), i, bus.crypto(i), 0))).collect();
        bus.seats.iter_mut().flatten().for_each(|seat| seat.log_received(true));
        for seat in 0..4 {
            bus.give(seat, offer(seat));
            bus.give(seat, SeatInput::Message { from: Peer::Home(0), bytes: order.clone() });
        }
        bus
    }

    fn crypto(&self, seat: u16) -> SeatCrypto {
        let keys = SeatKeys::from_json(&self.keys[usize::from(seat)]).unwrap();
        SeatCrypto::new(self.record.clone(), keys)
    }

    fn give(&mut self, to: u16, input: SeatInput) {
        let Some(seat) = &mut self.seats[usize::from(to)] else { return };
        let outputs = seat.handle(self.now, input);
        self.carry_out(to, outputs);
    }

    /// What the process around a seat does: records first, then the rest; or a part of it, and the end.
    fn carry_out(&mut self, seat: u16, outputs: Vec<SeatOutput>) {
        let (records, rest): (Vec<_>, Vec<_>) =
            outputs.into_iter().partition(|o| matches!(o, SeatOutput::Persist(_)));
        for record in records {
            let SeatOutput::Persist(record) = record else { continue };
            let log = &mut self.logs[usize::from(seat)];
            let crash = self.crash.filter(|c| c.seat == seat && c.at == log.len());
            if crash.is_none_or(|c| c.cut != Cut::Before) {
                log.push(*record);
            }
            if crash.is_some_and(|c| c.cut != Cut::Sent) {
                return self.stop(seat);
            }
        }
        for output in rest {
            match output {
                SeatOutput::Broadcast(bytes) => self.say(seat, None, bytes),
                SeatOutput::Send { to: Peer::Seat(to), bytes } => self.say(seat, Some(to), bytes),
                SeatOutput::Decided(d) => {
                    self.decided.insert(seat, d.certificate.root);
                }
                SeatOutput::Evidence(proof) => panic!("against an honest seat: {proof:?}"),
                _ => {}
            }
        }
        if self.crash.is_some_and(|c| c.seat == seat && c.at < self.logs[usize::from(seat)].len()) {
            self.stop(seat);
        }
    }

    fn stop(&mut self, seat: u16) {
        let Some(crash) = self.crash.take() else { return };
        self.seats[usize::from(seat)] = None;
        self.logs[usize::from(seat)].truncate(crash.keeps);
        self.back_at = Some(self.now + crash.away_ms);
        self.crash = None;
    }

    fn restart(&mut self, seat: u16) {
        self.back_at = None;
        let (record, crypto) = (self.record.clone(), self.crypto(seat));
        let log = &self.logs[usize::from(seat)];
        let mut restored = Seat::restore(record, seat, crypto, self.now, log).unwrap();
        restored.log_received(true);
        self.seats[usize::from(seat)] = Some(restored);
        self.give(seat, offer(seat));
    }

    /// Whatever a seat says in a round it says once.
    fn say(&mut self, from: u16, to: Option<u16>, bytes: Vec<u8>) {
        let message = decode(&bytes, 4).unwrap();
        let view = place(&message.body).map_or(0, |(view, _)| view);
        let kind = message.header.kind;
        if message.header.round == ROUND && kind.is_signed() && !kind.is_for_home() {
            let known = self.said.entry((from, kind, view)).or_insert_with(|| bytes.clone());
            // A commit has several proofs, all for one set.
            if !matches!(kind, Kind::Commit | Kind::Open) {
                assert_eq!(*known, bytes, "seat {from} says another {kind:?} in view {view}");
            }
        }
        self.queue.push_back((from, to, bytes));
    }

    fn deliver(&mut self) {
        while let Some((from, only, bytes)) = self.queue.pop_front() {
            let message = decode(&bytes, 4).unwrap();
            for to in (0..4).filter(|to| *to != from && only.is_none_or(|only| only == *to)) {
                let copies = if (self.loses)(from, &message, to) { 0 } else { self.copies };
                for _ in 0..copies {
                    self.give(to, SeatInput::Message { from: Peer::Seat(from), bytes: bytes.clone() });
                }
            }
        }
    }

    /// Runs until the round has expired. Messages take 5 ms.
    fn run(&mut self, crashes: u16) {
        let end = self.record.params.expiry(ROUND);
        while self.now < end {
            let wakes = self.seats.iter().flatten().filter_map(|s| s.next_wake());
            let next = wakes.chain(self.back_at).min().unwrap_or(end).max(self.now + 1);
            self.now = if self.queue.is_empty() { next.min(end) } else { self.now + 5 };
            if self.back_at.is_some_and(|at| at <= self.now) {
                self.restart(crashes);
            }
            (0..4).for_each(|seat| self.give(seat, SeatInput::Tick));
            self.deliver();
        }
    }
}

/// All votes: the bundle of seat 3 misses seat 2, so no set is complete.
fn partial(from: u16, message: &Message, to: u16) -> bool {
    message.header.kind == Kind::Bundle && from == 3 && to == 2
}

/// No ADMIT of view 0 gets through either: view 1 decides.
fn later_view(from: u16, message: &Message, to: u16) -> bool {
    partial(from, message, to) || matches!(&message.body, Body::Admit(a) if a.view == 0)
}

fn none(_: u16, _: &Message, _: u16) -> bool {
    false
}

/// Runs a round with a crash and gives the bus.
fn crashed(loses: Loses, crash: Crash) -> Bus {
    let mut bus = Bus::new(loses, Some(crash));
    bus.run(crash.seat);
    bus
}

fn records_without_crash(loses: Loses, seat: u16) -> Vec<LogRecord> {
    let mut bus = Bus::new(loses, None);
    bus.run(seat);
    assert_eq!(bus.decided.len(), 4);
    bus.logs.swap_remove(usize::from(seat))
}

fn kinds_said(log: &[LogRecord]) -> Vec<Kind> {
    let said = |r: &LogRecord| match r {
        LogRecord::Said { bytes, .. } => peek_kind(bytes),
        _ => None,
    };
    log.iter().filter_map(said).collect()
}

/// Crashes at each record of the round, in each way. The others decide, and so does the one that came back.
fn crash_everywhere(loses: Loses, seat: u16, expected: &[Kind]) {
    let log = records_without_crash(loses, seat);
    let said = kinds_said(&log);
    assert!(expected.iter().all(|kind| said.contains(kind)), "{said:?}");
    for at in 1..log.len() {
        // What was received matters to a replay only.
        if matches!(log[at], LogRecord::Heard { .. } | LogRecord::Orders { .. }) {
            continue;
        }
        // Before a record is after the one before it, but for the first.
        for cut in [Cut::Before, Cut::After, Cut::Sent].into_iter().skip(usize::from(at > 1)) {
            let crash = Crash { seat, at, cut, away_ms: 20, keeps: usize::MAX };
            let bus = crashed(loses, crash);
            let roots: BTreeSet<Digest> = bus.decided.values().copied().collect();
            assert_eq!(roots.len(), 1, "{crash:?}");
            let others = bus.decided.keys().filter(|s| **s != seat).count();
            assert_eq!(others, 3, "{crash:?}");
            // Nothing is known of a round whose first record was lost: there the seat observes.
            let knew = at > 1 || cut != Cut::Before;
            let log = &bus.logs[usize::from(seat)];
            let certified = log.iter().any(|r| matches!(r, LogRecord::Certified { .. }));
            assert!(!knew || certified, "{crash:?}: {:?}", kinds_said(log));
        }
    }
}

#[test]
fn a_crash_at_any_record_of_the_fast_path_contradicts_nothing() {
    crash_everywhere(none, 0, &[Kind::Bundle, Kind::Set, Kind::Open, Kind::Award]);
}

#[test]
fn a_crash_at_any_record_of_view_0_contradicts_nothing() {
    crash_everywhere(partial, 1, &[Kind::Bundle, Kind::Set, Kind::Admit, Kind::Lock, Kind::Award]);
}

#[test]
fn a_crash_of_the_proposer_at_any_record_of_view_1_contradicts_nothing() {
    let seat = proposer(&dealt().0, ROUND, 1);
    crash_everywhere(later_view, seat, &[Kind::NewView, Kind::Propose, Kind::Admit, Kind::Lock]);
}

#[test]
fn a_share_in_the_log_that_may_never_have_left_waits_for_the_gate() {
    let log = records_without_crash(none, 0);
    let open = log.iter().position(|r| kinds_said(std::slice::from_ref(r)) == [Kind::Open]).unwrap();
    let bus = Bus::new(none, None);
    let params = bus.record.params;
    let restored = |at| Seat::restore(bus.record.clone(), 0, bus.crypto(0), at, &log[..=open]).unwrap();
    let opens = |seat: &mut Seat<SeatCrypto>, at: u64| {
        let out = seat.handle(at, SeatInput::Tick);
        out.iter().any(|o| matches!(o, SeatOutput::Broadcast(b) if peek_kind(b) == Some(Kind::Open)))
    };
    let at_once = params.t1(ROUND) + 50;
    assert_eq!(params.gate(ROUND, at_once), at_once);
    assert!(opens(&mut restored(at_once), at_once));
    let in_gate = params.t0(ROUND + 1);
    let ends = params.gate(ROUND, in_gate);
    let mut seat = restored(in_gate);
    assert!(ends > in_gate && !opens(&mut seat, in_gate));
    assert!(!opens(&mut seat, ends - 1) && opens(&mut seat, ends));
}

#[test]
fn a_log_that_lost_any_number_of_its_last_records_contradicts_nothing() {
    let seat = proposer(&dealt().0, ROUND, 1);
    let log = records_without_crash(later_view, seat);
    let kinds = kinds_said(&log);
    let lock = log.iter().position(|r| kinds_said(std::slice::from_ref(r)) == [Kind::Lock]).unwrap();
    assert!(kinds.contains(&Kind::Propose));
    for at in [lock, log.len() - 1] {
        let said = |keeps: &usize| !matches!(log.get(*keeps), Some(LogRecord::Heard { .. }));
        for keeps in (0..=at).filter(said) {
            crashed(later_view, Crash { seat, at, cut: Cut::Sent, away_ms: 20, keeps });
        }
    }
}

#[test]
fn a_segment_cut_at_any_byte_gives_the_records_before_the_cut() {
    let record = &dealt().0;
    let log = records_without_crash(partial, 1);
    let head = SegmentHead { market: record.market, seat: 1, generation: 3, number: 0, seed: [7; 16] };
    let (mut bytes, mut ends) = (head.encode(), vec![]);
    for record in &log {
        bytes.extend(encode_frame(&record.encode(), &head, bytes.len() as u64));
        ends.push(bytes.len());
    }
    for cut in 0..bytes.len() {
        let read = read_segment(&bytes[..cut], &record.market, 1, 4, true).unwrap();
        let whole = ends.iter().filter(|end| **end <= cut).count();
        assert_eq!(read.records, log[..whole]);
    }
}

#[test]
fn who_comes_back_with_its_log_takes_part_in_the_next_round_and_without_one_observes() {
    let log = records_without_crash(none, 0);
    let rig = mk_rig();
    let bus = Bus::new(none, None);
    let (now, params) = (rig.record.params.t1(ROUND), rig.record.params);
    let restore =
        |log: &[LogRecord], now| Seat::restore(rig.record.clone(), 0, bus.crypto(0), now, log).unwrap();
    let until: Vec<_> = log.iter().take_while(|r| r.at_ms().is_none_or(|at| at <= now)).cloned().collect();
    let seat = restore(&until, now);
    assert!(seat.takes_part(ROUND) && seat.takes_part(ROUND + 1) && !seat.takes_part(ROUND - 1));
    assert!(seat.round(ROUND).is_some_and(|r| r.is_recalled()));
    // Neither an empty log nor one of the future says what was said before.
    for seat in [restore(&[], now), restore(&log, 400)] {
        assert!(!seat.takes_part(ROUND + 2));
    }
    assert_eq!(restore(&[], now).observes_until(), now + params.lifetime());
    // A process that still observed goes on doing so.
    let observed = [LogRecord::Observe { at_ms: now - 10, until_ms: now + 3_000 }];
    assert_eq!(restore(&observed, now).observes_until(), now + 3_000);
}

#[test]
fn the_log_of_another_key_is_refused() {
    let log = records_without_crash(none, 0);
    let bus = Bus::new(none, None);
    let now = bus.record.params.t1(ROUND);
    let restored = Seat::restore(bus.record.clone(), 1, bus.crypto(1), now, &log);
    assert_eq!(restored.err(), Some(crate::RecallError::NotOurs(ROUND)));
}

#[test]
fn what_was_promised_and_held_survives_a_restart() {
    let mut rig = mk_rig();
    let order = rig.order(0);
    let digest = order.digest();
    let mut log = vec![];
    let mut note = |out: &[SeatOutput]| {
        for output in out {
            if let SeatOutput::Persist(record) = output {
                log.push(record.as_ref().clone());
            }
        }
    };
    note(&[SeatOutput::Persist(Box::new(LogRecord::Observe { at_ms: 0, until_ms: 0 }))]);
    rig.give(0, rig.say(0, Body::Order(OrderMsg { order: order.clone() })));
    rig.now = 1_000;
    note(&rig.seat.handle(rig.now, SeatInput::Tick));
    let restart = |rig: &mut Rig, log: &[LogRecord]| {
        let keys = SeatKeys::from_json(&rig.seats[0].to_json()).unwrap();
        let crypto = SeatCrypto::new(rig.record.clone(), keys);
        rig.seat = Seat::restore(rig.record.clone(), 0, crypto, rig.now, log).unwrap();
        rig.seat.handle(rig.now, offer(0));
    };
    // Two of eight GPUs are in round 0, which is open.
    restart(&mut rig, &log);
    assert_eq!(rig.seat.free_offers()[0].nodes[0].capacity.free_gpus, 6);

    // Home asks for the devices, by the round's certificate; the controller holds them.
    let out = rig.give(0, rig.say(0, Body::Reserve(Box::new(rig.reserve(&order, 0)))));
    assert!(out.iter().any(|o| matches!(o, SeatOutput::Hold(h) if h.offer == "prov")), "{out:?}");
    let out = rig.seat.handle(rig.now, SeatInput::Reserved { order: digest, round: 0, result: Ok(()) });
    let record = out.iter().position(|o| matches!(o, SeatOutput::Persist(_)));
    let accept = out.iter().position(|o| matches!(o, SeatOutput::Send { .. }));
    assert!(record < accept && record.is_some(), "{out:?}");
    let records = out.iter().filter_map(|o| match o {
        SeatOutput::Persist(record) => Some(record.as_ref().clone()),
        _ => None,
    });
    log.extend(records);
    restart(&mut rig, &log);
    // Asked again, the seat says again what it said, and asks the controller for nothing.
    let out = rig.give(0, rig.say(0, Body::Reserve(Box::new(rig.reserve(&order, 0)))));
    assert_eq!(super::tests::kinds(&out), [Kind::Accept]);
    let out = rig.give(0, rig.say(0, Body::Taken(Taken { order: digest, seat: 0 })));
    assert!(out.contains(&SeatOutput::Taken { order: digest, home: 0 }), "{out:?}");
}

#[test]
fn what_a_decided_round_won_is_kept_until_it_expires_or_is_freed() {
    let log = records_without_crash(none, 0);
    let bus = Bus::new(none, None);
    let now = log.iter().filter_map(LogRecord::at_ms).max().unwrap() + 1;
    let free = |log: &[LogRecord], now| {
        let mut seat = Seat::restore(bus.record.clone(), 0, bus.crypto(0), now, log).unwrap();
        seat.handle(now, offer(0));
        seat.free_offers()[0].nodes[0].capacity.free_gpus
    };
    let order = log.iter().find_map(|r| match r {
        LogRecord::Promise { order, .. } => Some(*order),
        _ => None,
    });
    assert_eq!(free(&log, now), 6);
    assert_eq!(free(&log, bus.record.params.expiry(ROUND)), 8);
    let freed = [log.as_slice(), &[LogRecord::Freed { order: order.unwrap() }]].concat();
    assert_eq!(free(&freed, now), 8);
    // Without the certificate the whole bid counts, which here is the same.
    let bids = |r: &&LogRecord| matches!(r, LogRecord::Bids { .. } | LogRecord::Observe { .. });
    let open: Vec<_> = log.iter().filter(bids).cloned().collect();
    assert_eq!(free(&open, now), 6);
}

mod replays;
