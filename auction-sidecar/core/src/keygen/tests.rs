//! Four seats that make a key together while messages are lost, late or wrong, and seats are restarted.

use super::*;
use crate::crypto::SeatCrypto;
use crate::evidence::message_hash;
use crate::keys::{DealSpec, Dealt, MemberSpec, SeatKeys, deal};
use crate::params::Params;
use crate::wire::{Bundle, Cert, decode, peek_kind};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use std::collections::BTreeSet;
use vendue_sealed_bid::dkg::{KeySet, Purpose};
use vendue_sealed_bid::{BidKey, RoundId, combine, open, seal};

pub(super) const START: u64 = 1_000_000;
pub(super) const NOTICE: u64 = DEFAULT_NOTICE_MS;
pub(super) const D: u64 = 100;

pub(super) fn mk_dealt(n: u16) -> Dealt {
    let member = |name: String| MemberSpec { peer_id: name.clone(), name, addresses: vec![] };
    let spec = DealSpec {
        name: "m".into(),
        params: Params { delay_ms: D, period_ms: 600, genesis_ms: 0, handover_ms: 5000 },
        seats: (0..n).map(|i| member(format!("p{i}"))).collect(),
        homes: vec![member("home".into())],
    };
    deal(&spec, &mut ChaCha20Rng::seed_from_u64(4)).unwrap()
}

pub(super) fn mk_secrets(seat: u16, old: Option<SealShare>) -> KeySecrets {
    let byte = |label: u8| [label + seat as u8; 32];
    let deal = DealKey::generate(&byte(10)).unwrap();
    KeySecrets { seed: DealerSeed::from_bytes(&byte(50)), deal, old }
}

/// A message on its way.
pub(super) struct Sent {
    at: u64,
    from: u16,
    to: u16,
    bytes: Vec<u8>,
}

/// The seats, what is on its way, and what came out.
pub(super) struct Rig {
    pub(super) old: MarketRecord,
    pub(super) terms: Terms,
    pub(super) crypto: Vec<Arc<SeatCrypto>>,
    pub(super) seats: Vec<Option<KeyGeneration<SeatCrypto>>>,
    pub(super) logs: Vec<Vec<LogRecord>>,
    pub(super) queue: Vec<Sent>,
    pub(super) now: u64,
    pub(super) done: BTreeMap<u16, Generated>,
    pub(super) proofs: Vec<FaultProof>,
    pub(super) fruitless: BTreeSet<(u64, String)>,
    /// Everything that was said, with its sender.
    pub(super) said: BTreeSet<(u16, Vec<u8>)>,
}

/// What becomes of a message: how long it takes, if it arrives at all, and as what.
pub(super) type Fate<'f> = &'f dyn Fn(u16, u16, &[u8]) -> Vec<(u64, Vec<u8>)>;

pub(super) fn on_time(_: u16, _: u16, bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    vec![(D / 2, bytes.to_vec())]
}

impl Rig {
    pub(super) fn new(n: u16) -> Self {
        let dealt = mk_dealt(n);
        Self::with(dealt.record.record, dealt.seats, Purpose::Key, |_| None)
    }

    fn with(
        old: MarketRecord,
        keys: Vec<SeatKeys>,
        purpose: Purpose,
        mut share: impl FnMut(u16) -> Option<SealShare>,
    ) -> Self {
        let terms = Terms::new(&old, purpose, START, NOTICE).unwrap();
        let record = Arc::new(old.clone());
        let crypto: Vec<_> = keys.into_iter().map(|k| Arc::new(SeatCrypto::new(record.clone(), k))).collect();
        let seats = (0u16..).zip(&crypto).map(|(seat, crypto)| {
            let secrets = mk_secrets(seat, share(seat));
            Some(KeyGeneration::new(terms.clone(), seat, crypto.clone(), secrets, START).unwrap())
        });
        let seats: Vec<_> = seats.collect();
        let logs = seats.iter().map(|_| vec![]).collect();
        Self {
            old,
            terms,
            crypto,
            logs,
            seats,
            queue: vec![],
            now: START,
            done: BTreeMap::new(),
            proofs: vec![],
            fruitless: BTreeSet::new(),
            said: BTreeSet::new(),
        }
    }

    pub(super) fn give(&mut self, seat: u16, input: KeyInput, fate: Fate<'_>) {
        let Some(generation) = &mut self.seats[usize::from(seat)] else { return };
        for output in generation.handle(self.now, input) {
            match output {
                KeyOutput::Persist(record) => {
                    // Through its bytes, as a real log keeps it.
                    let bytes = record.encode();
                    assert_eq!(LogRecord::decode(&bytes, self.old.n()).as_ref(), Ok(&record));
                    self.logs[usize::from(seat)].push(record);
                }
                KeyOutput::Broadcast(bytes) => {
                    (0..self.old.n()).for_each(|to| self.send(seat, to, &bytes, fate));
                }
                KeyOutput::Send { to, bytes } => self.send(seat, to, &bytes, fate),
                KeyOutput::Evidence(proof) => self.proofs.push(*proof),
                KeyOutput::Fruitless { attempt, reason } => {
                    self.fruitless.insert((attempt, reason.to_string()));
                }
                KeyOutput::Done(generated) => {
                    assert!(self.done.insert(seat, *generated).is_none(), "seat {seat} is done twice");
                }
            }
        }
    }

    fn send(&mut self, from: u16, to: u16, bytes: &[u8], fate: Fate<'_>) {
        let signed = peek_kind(bytes).unwrap().is_signed();
        let logged = |r: &LogRecord| matches!(r, LogRecord::Said { bytes: b, .. } if b == bytes);
        assert!(!signed || self.logs[usize::from(from)].iter().any(logged), "said before it is in the log");
        self.said.insert((from, bytes.to_vec()));
        if from != to {
            let sent = fate(from, to, bytes).into_iter();
            self.queue.extend(sent.map(|(delay, bytes)| Sent { at: self.now + delay, from, to, bytes }));
        }
    }

    /// Goes on until nothing happens any more, or until a time.
    pub(super) fn run(&mut self, until: u64, fate: Fate<'_>) {
        loop {
            let wakes = self.seats.iter().flatten().filter_map(|s| s.next_wake());
            let next = wakes.chain(self.queue.iter().map(|s| s.at)).min();
            let Some(next) = next.filter(|at| *at <= until) else { break };
            self.now = self.now.max(next);
            let (due, later): (Vec<_>, Vec<_>) =
                std::mem::take(&mut self.queue).into_iter().partition(|s| s.at <= self.now);
            self.queue = later;
            for sent in due {
                self.give(sent.to, KeyInput::Message { from: sent.from, bytes: sent.bytes }, fate);
            }
            (0..self.old.n()).for_each(|seat| self.give(seat, KeyInput::Tick, fate));
            if self.done.len() == self.seats.iter().flatten().count() {
                break;
            }
        }
    }

    pub(super) fn begin(&mut self, fate: Fate<'_>) {
        (0..self.old.n()).for_each(|seat| self.give(seat, KeyInput::Tick, fate));
    }

    /// The seat again from its log, as it was up to a record.
    pub(super) fn restart(&mut self, seat: u16, records: usize) {
        let s = usize::from(seat);
        self.logs[s].truncate(records);
        let (crypto, secrets) = (self.crypto[s].clone(), mk_secrets(seat, None));
        let terms = self.terms.clone();
        let again = KeyGeneration::restore(terms, seat, crypto, secrets, self.now, &self.logs[s]);
        self.seats[s] = Some(again.unwrap());
        // What the process sent after its last record is lost with it, and what was on its way.
        self.queue.retain(|sent| sent.from != seat);
        let logged = |bytes: &Vec<u8>| {
            self.logs[s].iter().any(|r| matches!(r, LogRecord::Said { bytes: b, .. } if b == bytes))
        };
        self.said.retain(|(from, bytes)| *from != seat || logged(bytes));
        self.done.remove(&seat);
    }

    pub(super) fn until(&self, attempts: u64) -> u64 {
        self.terms.record().params.t0(attempts)
    }

    /// All who are done have one key, and their shares open what is sealed to it.
    pub(super) fn check(&self, least: usize) -> KeySet {
        assert!(self.done.len() >= least, "{} are done", self.done.len());
        let first = self.done.values().next().unwrap();
        let keys = &first.outcome.keys;
        for (seat, made) in &self.done {
            assert_eq!((&made.outcome, made.set), (&first.outcome, first.set), "seat {seat}");
            assert!(keys.fits(*seat, made.share.as_ref().unwrap()), "share of seat {seat}");
        }
        let next = next_record(&self.old, &self.terms, first.set, keys, &first.certificate).unwrap();
        let id = RoundId { market: next.market, epoch: next.epoch, round: 3 };
        let quorum = self.done.iter().rev().take(usize::from(keys.quorum()));
        let shares: Vec<_> = quorum.map(|(s, made)| (*s, made.share.as_ref().unwrap().sign(&id))).collect();
        let combined = combine(&id, &next.seal_key, next.q(), &shares, |s| keys.share_key(s)).unwrap();
        let sealed = seal(&id, &next.seal_key, b"h", b"bid", &BidKey::from_bytes(&[5; 32])).unwrap();
        assert_eq!(open(&combined, b"h", &sealed).as_deref(), Some(b"bid".as_slice()));
        keys.clone()
    }

    /// A message signed with a seat's key.
    pub(super) fn forge(&self, seat: u16, round: u64, body: Body) -> Vec<u8> {
        let record = self.terms.record();
        let (market, epoch) = (record.short_id(), record.epoch);
        let header = Header { kind: body.kind(), market, epoch, round, seat };
        let signature = self.crypto[usize::from(seat)].sign(&message_hash(&record.market, &header, &body));
        Message { header, body, signature: Some(signature) }.encode()
    }

    /// This message of a seat with another body.
    pub(super) fn instead(&self, bytes: &[u8], change: impl Fn(Body) -> Body) -> Vec<u8> {
        let message = decode(bytes, self.old.n()).unwrap();
        self.forge(message.header.seat, message.header.round, change(message.body))
    }
}

#[test]
fn all_seats_come_to_one_certified_key() {
    for n in [4, 7] {
        let mut rig = Rig::new(n);
        rig.begin(&on_time);
        rig.run(rig.until(1), &on_time);
        rig.check(usize::from(n));
        assert!(rig.done.values().all(|made| made.outcome.dealers.len() == usize::from(n)));
        assert!(rig.proofs.is_empty() && rig.done[&0].outcome.public.is_empty());
        assert_eq!(rig.done[&0].certificate.round, 0);
    }
}

#[test]
fn a_silent_seat_costs_nothing_but_its_own_share() {
    let mut rig = Rig::new(4);
    rig.seats[2] = None;
    rig.begin(&on_time);
    rig.run(rig.until(1), &on_time);
    rig.check(3);
    assert_eq!(rig.done[&0].outcome.public.iter().collect::<Vec<_>>(), [2]);
    assert_eq!(rig.done[&0].outcome.dealers.keys().copied().collect::<Vec<_>>(), [0, 1, 3]);
}

#[test]
fn a_seat_that_was_away_gets_its_share_of_a_key_that_is_certified() {
    let mut rig = Rig::new(4);
    rig.seats[2] = None;
    rig.begin(&on_time);
    rig.run(rig.until(1), &on_time);
    rig.now = rig.until(1);
    rig.restart(2, 0);
    let signed = |rig: &Rig, kind| {
        let of = |b: &Vec<u8>| peek_kind(b) == Some(kind) && decode(b, 4).unwrap().header.round == 0;
        rig.said.iter().any(|(from, bytes)| *from == 2 && of(bytes))
    };
    // A certificate that nobody signed opens nothing.
    let made = &rig.done[&0];
    let mut quorum = made.certificate.quorum.clone();
    quorum.aggregate = [1; 48];
    let forged = rig.forge(0, 0, Body::Cert(Cert { root: made.certificate.root, quorum }));
    let forged = forged[..forged.len() - 65].to_vec();
    rig.give(2, KeyInput::Message { from: 0, bytes: forged }, &on_time);
    assert_eq!(rig.seats[2].as_ref().unwrap().dropped().count(DropReason::BadSignature), 1);
    rig.run(rig.until(3), &on_time);
    rig.check(4);
    let all = [Kind::Award, Kind::Bundle, Kind::Set].map(|kind| signed(&rig, kind));
    assert_eq!(all, [true, false, false], "award, bundle, set");
    assert!(rig.proofs.is_empty());
}

#[test]
fn losses_are_made_up_for() {
    // Each message is lost towards somebody; what matters is said again or asked for.
    for lost in 0..4u16 {
        let mut rig = Rig::new(4);
        let count = std::cell::Cell::new(0u16);
        let fate = move |_: u16, to: u16, bytes: &[u8]| {
            count.set(count.get() + 1);
            let lose = (count.get() / 3 + to) % 4 == lost;
            if lose { vec![] } else { on_time(0, to, bytes) }
        };
        rig.begin(&fate);
        rig.run(rig.until(4), &fate);
        rig.check(4);
    }
}

#[test]
fn messages_that_are_all_late_delay_the_key_and_no_more() {
    let mut rig = Rig::new(4);
    let slow = |_: u16, _: u16, bytes: &[u8]| vec![(3 * D, bytes.to_vec())];
    rig.begin(&slow);
    rig.run(rig.until(0), &slow);
    rig.run(rig.until(8), &on_time);
    rig.check(4);
}

#[test]
fn a_restart_at_any_record_says_the_same_and_comes_to_the_same_key() {
    let whole = {
        let mut rig = Rig::new(4);
        rig.begin(&on_time);
        rig.run(rig.until(1), &on_time);
        rig
    };
    let key = whole.check(4);
    for records in 0..=whole.logs[1].len() {
        let mut rig = Rig::new(4);
        rig.begin(&on_time);
        let mut crashed = false;
        for _ in 0..2000 {
            if !crashed && rig.logs[1].len() >= records {
                crashed = true;
                rig.restart(1, records);
            }
            let next = rig.seats.iter().flatten().filter_map(|s| s.next_wake());
            let Some(next) = next.chain(rig.queue.iter().map(|s| s.at)).min() else { break };
            rig.run(next, &on_time);
            if rig.done.len() == 4 || rig.now > rig.until(3) {
                break;
            }
        }
        if !crashed {
            // The last records are written as the key is certified.
            assert!(records + 2 >= whole.logs[1].len(), "{records}");
            continue;
        }
        let made = rig.check(3);
        assert!(rig.proofs.is_empty(), "restart after {records} records");
        // What it dealt before and after is the same.
        let of = |kind| rig.said.iter().filter(|(from, b)| *from == 1 && peek_kind(b) == Some(kind)).count();
        assert!([Kind::DealKey, Kind::Acks].into_iter().all(|kind| of(kind) <= 1), "{records}");
        if rig.done[&0].outcome.dealers.len() == 4 && rig.done[&0].certificate.round == 0 {
            assert_eq!(made, key);
        }
    }
}

#[test]
fn a_refresh_keeps_the_key_and_old_shares_do_not_mix_with_new_ones() {
    let mut first = Rig::new(4);
    first.begin(&on_time);
    first.run(first.until(1), &on_time);
    let keys = first.check(4);
    let made = &first.done[&0];
    let record = next_record(&first.old, &first.terms, made.set, &keys, &made.certificate).unwrap();
    let share = |seat: u16| {
        let bytes = first.done[&seat].share.as_ref().unwrap().to_bytes();
        SealShare::from_bytes(&bytes).unwrap()
    };
    let mut rig =
        Rig::with(record.clone(), mk_dealt(4).seats, Purpose::Refresh(keys.clone()), |s| Some(share(s)));
    rig.begin(&on_time);
    rig.run(rig.until(1), &on_time);
    let renewed = rig.check(4);
    assert_eq!(renewed.seal_key(), keys.seal_key());
    assert_ne!(renewed.share_keys(), keys.share_keys());
    let id = RoundId { market: record.market, epoch: 2, round: 1 };
    let mut shares: Vec<_> = (0..3u16).map(|s| (s, rig.done[&s].share.as_ref().unwrap().sign(&id))).collect();
    shares[1].1 = share(1).sign(&id);
    let mixed = combine(&id, renewed.seal_key(), 3, &shares, |s| renewed.share_key(s));
    assert_eq!(mixed.err(), Some(vendue_sealed_bid::CryptoError::BadShares(vec![1])));
    // A refresh of a key that is not the epoch's has no terms.
    let refused = Terms::new(&first.old, Purpose::Refresh(keys), START, NOTICE).err();
    assert_eq!(refused, Some(TermsError::NotTheKey));
}

#[test]
fn the_next_record_follows_from_the_old_one_and_the_certificate_only() {
    let mut rig = Rig::new(4);
    rig.begin(&on_time);
    rig.run(rig.until(1), &on_time);
    let keys = rig.check(4);
    let made = &rig.done[&2];
    let next = next_record(&rig.old, &rig.terms, made.set, &keys, &made.certificate).unwrap();
    assert_eq!((next.epoch, next.key_origin), (1, crate::record::KeyOrigin::Distributed));
    assert_eq!(check_next(&rig.old, &next), Ok(()));
    let generation = next.generation.clone().unwrap();
    assert_eq!(generation.first_round, next.params.round_from(START + NOTICE));
    let json = String::from_utf8(next.to_bytes()).unwrap();
    assert_eq!(serde_json::from_str::<MarketRecord>(&json).unwrap(), next);

    let changed = |change: &dyn Fn(&mut MarketRecord)| {
        let mut other = next.clone();
        change(&mut other);
        check_next(&rig.old, &other)
    };
    let generation =
        |change: &dyn Fn(&mut Generation)| changed(&|record| record.generation.iter_mut().for_each(change));
    assert_eq!(changed(&|r| r.generation = None), Err(EpochError::NotGenerated));
    assert_eq!(changed(&|r| r.seal_key = rig.old.seal_key), Err(EpochError::OtherKeys));
    assert_eq!(changed(&|r| r.seats.swap(0, 1)), Err(EpochError::OtherKeys));
    assert_eq!(changed(&|r| r.epoch = 2), Err(EpochError::Differs));
    assert_eq!(changed(&|r| r.params.delay_ms += 1), Err(EpochError::Differs));
    assert_eq!(changed(&|r| r.seats[0].peer_id.push('x')), Err(EpochError::Differs));
    assert_eq!(generation(&|g| g.first_round -= 1), Err(EpochError::Differs));
    assert_eq!(generation(&|g| g.proofs_epoch = 1), Err(EpochError::Differs));
    assert_eq!(generation(&|g| g.set[0] ^= 1), Err(EpochError::OtherKeys));
    for error in [
        generation(&|g| g.start_ms += 1),
        generation(&|g| g.notice_ms += 1),
        generation(&|g| g.refresh = true),
        generation(&|g| g.certificate.aggregate = [1; 48]),
        generation(&|g| g.certificate.round += 1),
        generation(&|g| g.certificate.root[0] ^= 1),
    ] {
        assert!(matches!(error, Err(EpochError::Certificate(_))), "{error:?}");
    }
    // A generation after this one starts from this record; the proofs of the vote keys are those of the first.
    assert_eq!(next.proofs_epoch(), 0);
    assert_eq!(next.validate(), Ok(()));
}

#[test]
fn an_auction_runs_with_keys_that_were_generated() {
    let mut rig = Rig::new(4);
    rig.begin(&on_time);
    rig.run(rig.until(1), &on_time);
    let keys = rig.check(4);
    let made = &rig.done[&0];
    let next = next_record(&rig.old, &rig.terms, made.set, &keys, &made.certificate).unwrap();
    let seats: Vec<SeatKeys> = mk_dealt(4)
        .seats
        .into_iter()
        .map(|mut k| {
            k.share = SealShare::from_bytes(&rig.done[&k.seat].share.as_ref().unwrap().to_bytes()).unwrap();
            k
        })
        .collect();
    let mut auction = crate::round::tests::mk_rig_with(next, seats);
    auction.honest_round();
    assert_eq!((0..4).map(|seat| auction.winner(seat)).collect::<Vec<_>>(), [Some(0); 4]);
}

#[test]
fn what_is_foreign_malformed_too_much_or_out_of_order_is_dropped_and_counted() {
    let mut rig = Rig::new(4);
    rig.begin(&on_time);
    let deal_key = Body::DealKey(DealKeyMsg {
        key: mk_secrets(3, None).deal.public_key().unwrap(),
        commitment: [7; 32],
    });
    let other = Body::DealKey(DealKeyMsg {
        key: mk_secrets(8, None).deal.public_key().unwrap(),
        commitment: [7; 32],
    });
    let mut refused = |from: u16, bytes: Vec<u8>, reason: DropReason| {
        let generation = rig.seats[0].as_mut().unwrap();
        let before = generation.dropped().count(reason);
        generation.handle(START + 1, KeyInput::Message { from, bytes });
        assert_eq!(generation.dropped().count(reason), before + 1, "{reason:?}");
    };
    let good = Rig::new(4).forge(3, 0, deal_key.clone());
    let forger = Rig::new(4);
    let mut foreign = good.clone();
    foreign[4] ^= 1;
    refused(3, foreign, DropReason::Foreign);
    refused(2, good.clone(), DropReason::WrongSender);
    let mut bad = good.clone();
    bad[40] ^= 1;
    refused(3, bad, DropReason::BadSignature);
    refused(3, good[..good.len() - 1].to_vec(), DropReason::Malformed);
    refused(3, vec![0; MAX_LEN], DropReason::Oversize);
    refused(3, forger.forge(3, 1, deal_key), DropReason::WrongRound);
    let infinity = Body::DealKey(DealKeyMsg { key: [0; 48], commitment: [7; 32] });
    refused(3, forger.forge(3, 0, infinity), DropReason::Malformed);
    forger_gives(&mut rig, &good);
    let mut refused = |from: u16, bytes: Vec<u8>, reason: DropReason| {
        let generation = rig.seats[0].as_mut().unwrap();
        let before = generation.dropped().count(reason);
        generation.handle(START + 1, KeyInput::Message { from, bytes });
        assert_eq!(generation.dropped().count(reason), before + 1, "{reason:?}");
    };
    refused(3, good.clone(), DropReason::Duplicate);
    refused(3, forger.forge(3, 0, other), DropReason::Conflict);
    let bundle = Bundle { order_view: vec![].into(), u: [0; 48], v: [0; 32], payload: vec![] };
    refused(3, forger.forge(3, 1, Body::Bundle(bundle.clone())), DropReason::WrongRound);
    refused(3, forger.forge(3, 99, Body::Bundle(bundle)), DropReason::WrongRound);
    for _ in 0..2000 {
        rig.seats[0].as_mut().unwrap().handle(START + 1, KeyInput::Message { from: 3, bytes: good.clone() });
    }
    assert!(rig.seats[0].as_ref().unwrap().dropped().count(DropReason::Quota) > 900);
}

const MAX_LEN: usize = crate::wire::MAX_MESSAGE + 1;

fn forger_gives(rig: &mut Rig, bytes: &[u8]) {
    rig.give(0, KeyInput::Message { from: 3, bytes: bytes.to_vec() }, &on_time);
}
