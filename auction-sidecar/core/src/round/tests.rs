//! One round among four seats whose messages the tests deliver, forge or withhold.

use super::*;
use crate::bid::{OfferedPart, OwnBid};
use crate::crypto::SeatCrypto;
use crate::evidence::message_hash;
use crate::keys::{DealSpec, MemberSpec, SeatKeys, deal};
use crate::params::Params;
use crate::wire::tests::mk_order;
use crate::wire::*;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use vendue_market::{BidTerms, NodeCapacity, OfferCapacity, Outcome, Price, RecordKind};

pub(crate) const ROUND: u64 = 7;

/// Four seats, their keys and their rounds.
pub(crate) struct Rig {
    pub record: Arc<MarketRecord>,
    pub keys: Vec<Arc<SeatCrypto>>,
    pub rounds: Vec<Round<SeatCrypto>>,
    order: Order,
    /// Messages by sender, in the order sent.
    pub sent: Vec<(u16, Vec<u8>)>,
    pub dropped: Vec<(u16, DropReason)>,
    pub decided: BTreeMap<u16, RoundDecided>,
    pub proofs: Vec<(u16, FaultProof)>,
    logged: BTreeSet<Vec<u8>>,
}

pub(crate) fn mk_rig() -> Rig {
    let member = |name: String| MemberSpec { peer_id: name.clone(), name, addresses: vec![] };
    let spec = DealSpec {
        name: "m".into(),
        params: Params { delay_ms: 100, period_ms: 600, genesis_ms: 0, handover_ms: 5000 },
        seats: (0..4).map(|i| member(format!("p{i}"))).collect(),
        homes: vec![member("home".into())],
    };
    let dealt = deal(&spec, &mut ChaCha20Rng::seed_from_u64(4)).unwrap();
    mk_rig_with(dealt.record.record, dealt.seats)
}

/// Four seats with these keys.
pub(crate) fn mk_rig_with(record: MarketRecord, seats: Vec<SeatKeys>) -> Rig {
    let record = Arc::new(record);
    let mut order = mk_order();
    order.market = record.market;
    order.user_key = record.homes[0].user_key;
    order.requirements.include_providers.clear();
    let keys: Vec<_> = seats.into_iter().map(|k| Arc::new(SeatCrypto::new(record.clone(), k))).collect();
    let rounds =
        (0u16..).zip(&keys).map(|(i, k)| Round::new(record.clone(), k.clone(), i, ROUND, 0)).collect();
    Rig {
        record,
        keys,
        rounds,
        order,
        sent: vec![],
        dropped: vec![],
        decided: BTreeMap::new(),
        proofs: vec![],
        logged: BTreeSet::new(),
    }
}

impl Rig {
    pub fn t0(&self) -> u64 {
        self.record.params.t0(ROUND)
    }

    pub fn bids(&self, seat: u16) -> LocalBids {
        let node = NodeCapacity {
            model: "H100".parse().unwrap(),
            gpu_memory_mib: 81_920,
            free_gpus: 2,
            cpu_millis: 8_000,
            memory_mib: 8_000,
            disk_mib: 8_000,
        };
        let price = Price::from_micros(1_000_000 + i64::from(seat)).unwrap();
        LocalBids {
            parts: vec![OfferedPart {
                offer: "o".into(),
                nodes: vec!["n".into()],
                capacity: OfferCapacity { nodes: vec![node], devices: Some([0xd0 | seat as u8; 32]) },
            }],
            records: vec![OwnBid {
                order: self.order.digest(),
                kind: RecordKind::Bid { price, spec: 0, terms: BidTerms::default() },
            }],
        }
    }

    /// Gives one seat an input and answers what it asks for.
    pub fn give(&mut self, now: u64, seat: u16, input: RoundInput) {
        let outputs = self.rounds[usize::from(seat)].handle(now, input);
        for output in outputs {
            match output {
                RoundOutput::Persist(LogRecord::Said { bytes, .. }) => drop(self.logged.insert(bytes)),
                RoundOutput::Persist(_) => {}
                RoundOutput::Broadcast(bytes) | RoundOutput::Send { bytes, .. } => {
                    let signed = peek_kind(&bytes).unwrap().is_signed();
                    assert!(!signed || self.logged.contains(&bytes), "said before it is in the log");
                    self.sent.push((seat, bytes))
                }
                RoundOutput::NeedBids { .. } => self.give(now, seat, RoundInput::Bids(self.bids(seat))),
                RoundOutput::NeedOrders(_) => {
                    let orders = vec![(self.order.digest(), Arc::new(self.order.clone()))];
                    self.give(now, seat, RoundInput::Orders(orders));
                }
                RoundOutput::Decided(d) => drop(self.decided.insert(seat, *d)),
                RoundOutput::Dropped(reason) => self.dropped.push((seat, reason)),
                RoundOutput::Evidence(proof) => self.proofs.push((seat, *proof)),
                RoundOutput::Keys(_) => {}
            }
        }
    }

    pub fn tick(&mut self, now: u64) {
        (0..4).for_each(|seat| self.give(now, seat, RoundInput::Tick));
    }

    pub fn deliver(&mut self, now: u64, to: u16, bytes: &[u8]) {
        let message = Box::new(decode(bytes, 4).unwrap());
        self.give(now, to, RoundInput::Message { message, bytes: bytes.to_vec() });
    }

    /// Delivers what was sent and what that leads to, as far as `passes` lets it.
    pub fn flow(&mut self, now: u64, passes: impl Fn(u16, Kind, u16) -> bool) {
        while !self.sent.is_empty() {
            for (from, bytes) in std::mem::take(&mut self.sent) {
                let kind = peek_kind(&bytes).unwrap();
                for to in (0..4).filter(|to| *to != from) {
                    if passes(from, kind, to) {
                        self.deliver(now, to, &bytes);
                    }
                }
            }
        }
    }

    /// Everybody is honest and on time.
    pub fn honest_round(&mut self) {
        let now = self.t0();
        self.tick(now);
        self.flow(now + 10, |_, _, _| true);
    }

    /// A message that a faulty seat signs properly.
    pub fn forge(&self, seat: u16, body: Body) -> Vec<u8> {
        let header =
            Header { kind: body.kind(), market: self.record.short_id(), epoch: 0, round: ROUND, seat };
        let key = &self.keys[usize::from(seat)];
        let signature =
            header.kind.is_signed().then(|| key.sign(&message_hash(&self.record.market, &header, &body)));
        Message { header, body, signature }.encode()
    }

    pub fn vote(&self, seat: u16, word: VoteWord, digest: &Digest) -> [u8; 48] {
        self.vote_in(0, seat, word, digest)
    }

    pub fn vote_in(&self, view: u32, seat: u16, word: VoteWord, digest: &Digest) -> [u8; 48] {
        self.keys[usize::from(seat)].vote(&vote_bytes(word, &self.record.market, 0, ROUND, view, digest))
    }

    /// The last message of a kind that a seat sent to all.
    pub fn sent_of(&self, seat: u16, kind: Kind) -> Vec<u8> {
        let sent = &self.rounds[usize::from(seat)].sent;
        sent.iter().rfind(|(h, _)| h.kind == kind).unwrap().1.clone()
    }

    pub fn last_drop(&self) -> Option<DropReason> {
        self.dropped.last().map(|(_, reason)| *reason)
    }

    pub fn winner(&self, seat: u16) -> Option<u16> {
        match &self.decided.get(&seat)?.cleared.first()?.outcome {
            Outcome::Award(a) => Some(a.seat),
            Outcome::None(_) => None,
        }
    }
}

#[test]
fn fast_path_all_decide_alike_before_t1() {
    let mut rig = mk_rig();
    let now = rig.t0();
    rig.tick(now);
    rig.flow(now + 10, |_, _, _| true);
    assert_eq!(rig.decided.len(), 4);
    assert!((0..4).all(|s| rig.winner(s) == Some(0)));
    assert!(rig.decided.values().all(|d| d.table == rig.decided[&0].table));
    assert!(rig.dropped.is_empty(), "{:?}", rig.dropped);
}

#[test]
fn a_share_with_a_forged_commit_is_refused_and_answered_by_none() {
    let mut rig = mk_rig();
    let now = rig.t0();
    rig.tick(now);
    rig.sent.clear();
    let set = [1; 32];
    let share = rig.keys[3].share(ROUND);
    let own: Vec<_> = (0..4).map(|_| rig.vote(3, VoteWord::Lock, &set)).collect();
    let aggregate = rig.keys[3].aggregate(&own).unwrap();
    for commit in [
        Commit::Fast { aggregate },
        Commit::Locked { view: 0, quorum: Quorum { signers: Signers::new(4, [3]), aggregate: own[0] } },
        Commit::Locked { view: 0, quorum: Quorum { signers: Signers::new(4, [0, 1, 3]), aggregate } },
    ] {
        let open = rig.forge(3, Body::Open(OpenShare { set, commit: commit.clone(), share }));
        rig.deliver(now, 0, &open);
        assert_eq!(rig.last_drop(), Some(DropReason::BadSignature));
        let alone = rig.forge(3, Body::Commit(CommitMsg { set, commit }));
        rig.deliver(now, 0, &alone);
        assert_eq!(rig.last_drop(), Some(DropReason::BadSignature));
    }
    assert!(!rig.rounds[0].is_committed() && !rig.rounds[0].has_opened());
}

#[test]
fn nobody_opens_without_a_commit_whatever_time_it_is() {
    let mut rig = mk_rig();
    rig.tick(rig.t0());
    // Bundles arrive, but nobody hears the SETs.
    rig.flow(rig.t0() + 10, |_, kind, _| kind == Kind::Bundle);
    for after in [100, 200, 400, 1_000, 3_999, 5_000] {
        rig.tick(rig.t0() + after);
        rig.sent.clear();
    }
    assert!(rig.rounds.iter().all(|r| !r.has_opened()));
}

#[test]
fn locks_of_a_quorum_commit_when_one_set_is_missing() {
    let mut rig = mk_rig();
    rig.tick(rig.t0());
    // Seat 3 is silent: three identical SETs, without FULL votes.
    rig.flow(rig.t0() + 10, |from, _, to| from != 3 && to != 3);
    rig.tick(rig.t0() + 100);
    rig.flow(rig.t0() + 110, |from, _, to| from != 3 && to != 3);
    assert!((0..3).all(|s| rig.winner(s) == Some(0)), "{:?}", rig.dropped);
    assert!(matches!(rig.rounds[0].commit, Some((_, Commit::Locked { view: 0, .. }))));
}

#[test]
fn contradictions_are_refused() {
    let mut rig = mk_rig();
    let now = rig.t0();
    rig.tick(now);
    rig.sent.clear();
    for held in [[1; 32], [2; 32]] {
        let set = rig.forge(1, Body::Set(SetMsg { held: vec![held, [0; 32], [0; 32], [0; 32]], full: None }));
        rig.deliver(now, 0, &set);
    }
    assert_eq!(rig.last_drop(), Some(DropReason::Conflict));

    for digest in [[1; 32], [2; 32]] {
        let vote = rig.vote(1, VoteWord::Admit, &digest);
        let admit = rig.forge(1, Body::Admit(Admit { view: 0, set: digest, proposal: [0; 32], vote }));
        rig.deliver(now, 0, &admit);
    }
    assert_eq!(rig.dropped.len(), 2);
    assert_eq!(rig.last_drop(), Some(DropReason::Conflict));

    let vote = rig.vote(1, VoteWord::Lock, &[1; 32]);
    let quorum = Quorum { signers: Signers::new(4, [0, 1, 2]), aggregate: vote };
    let lock = rig.forge(1, Body::Lock(Lock { view: 0, set: [1; 32], quorum, vote }));
    rig.deliver(now, 0, &lock);
    assert_eq!(rig.last_drop(), Some(DropReason::BadSignature));
}

#[test]
fn at_most_one_of_each_is_ever_signed() {
    let mut rig = mk_rig();
    let now = rig.t0();
    rig.tick(now);
    let mut seen: BTreeMap<(u16, Kind, u32), Vec<Vec<u8>>> = BTreeMap::new();
    for after in (0..11_000).step_by(50) {
        rig.tick(now + after);
        for (from, bytes) in &rig.sent {
            let view = match decode(bytes, 4).unwrap().body {
                Body::Admit(a) => a.view,
                Body::Lock(l) => l.view,
                Body::NewView(v) => v.view,
                Body::Propose(p) => p.view,
                _ => 0,
            };
            let versions = seen.entry((*from, peek_kind(bytes).unwrap(), view)).or_default();
            if !versions.contains(bytes) {
                versions.push(bytes.clone());
            }
        }
        // Every third message is lost, so there is much to send again.
        let lost = after / 50 % 3;
        rig.flow(now + after + 5, |from, kind, to| (u64::from(from + to) + kind as u64) % 3 != lost);
    }
    for ((seat, kind, view), versions) in seen {
        if kind.is_signed() {
            assert_eq!(versions.len(), 1, "seat {seat} {kind:?} {view}");
        }
    }
    assert_eq!(rig.decided.len(), 4);
}

#[test]
fn invalid_shares_are_thrown_out() {
    let mut rig = mk_rig();
    let now = rig.t0();
    rig.tick(now);
    rig.flow(now + 10, |_, kind, _| kind != Kind::Open);
    let (set, commit) = rig.rounds[0].commit.clone().unwrap();
    let wrong = rig.keys[1].share(ROUND + 1);
    let bad = rig.forge(1, Body::Open(OpenShare { set, commit: commit.clone(), share: wrong }));
    rig.deliver(now + 10, 0, &bad);
    for seat in [2, 3] {
        let share = rig.keys[usize::from(seat)].share(ROUND);
        let open = rig.forge(seat, Body::Open(OpenShare { set, commit: commit.clone(), share }));
        rig.deliver(now + 10, 0, &open);
    }
    assert!(rig.dropped.contains(&(0, DropReason::BadSignature)));
    assert!(rig.rounds[0].result.is_some(), "three good shares, the own one among them, are enough");
}

#[test]
fn the_gate_holds_shares_back_and_shares_of_others_lift_it() {
    let mut rig = mk_rig();
    let now = rig.t0();
    rig.tick(now);
    // SETs come so late that the next round already collects.
    let sets_late = now + 350;
    rig.flow(now + 10, |_, kind, _| kind == Kind::Bundle);
    rig.tick(now + 100);
    let sets: Vec<_> = rig.rounds.iter().flat_map(|r| r.sent.clone()).map(|(_, bytes)| bytes).collect();
    rig.sent.clear();
    for bytes in &sets {
        let from = decode(bytes, 4).unwrap().header.seat;
        (0..4).filter(|to| *to != from).for_each(|to| rig.deliver(sets_late, to, bytes));
    }
    assert!(rig.rounds.iter().all(|r| r.is_committed() && !r.has_opened()));
    assert!(rig.sent.iter().any(|(_, b)| peek_kind(b) == Some(Kind::Commit)), "commits are not held back");
    rig.sent.clear();
    let (set, commit) = rig.rounds[0].commit.clone().unwrap();
    for (count, seat) in [(1, 1u16), (2, 2)] {
        let share = rig.keys[usize::from(seat)].share(ROUND);
        let open = rig.forge(seat, Body::Open(OpenShare { set, commit: commit.clone(), share }));
        rig.deliver(sets_late, 0, &open);
        assert_eq!(rig.rounds[0].has_opened(), count == 2, "f + 1 shares of others lift the gate");
    }
    rig.tick(rig.record.params.t1(ROUND + 1) + 101);
    assert!(rig.rounds.iter().all(Round::has_opened), "after the gate everybody opens");
}

#[test]
fn a_set_that_comes_after_the_vote_does_not_hide_what_was_voted_for() {
    let mut rig = mk_rig();
    let now = rig.t0();
    rig.tick(now);
    // Seat 3's bundle is in time at seat 0 only, and its SET, which lists itself, comes after the ADMITs.
    rig.flow(now + 10, |from, kind, to| kind == Kind::Bundle && (from != 3 || to == 0));
    rig.tick(now + 100);
    let (_, late) = rig.rounds[3].sent.iter().find(|(h, _)| h.kind == Kind::Set).unwrap().clone();
    rig.flow(now + 110, |from, _, _| from != 3);
    (0..3).for_each(|seat| rig.give(now + 401, seat, RoundInput::Tick));
    (0..3).for_each(|to| rig.deliver(now + 401, to, &late));
    rig.flow(now + 410, |from, _, _| from != 3);
    for after in [610, 801, 1010] {
        rig.tick(now + after);
        rig.flow(now + after, |from, _, _| from != 3);
    }
    assert!(
        (0..3).all(|s| rig.rounds[s].has_opened() && rig.winner(s as u16) == Some(0)),
        "{:?}",
        rig.dropped
    );
    // A seat that derives another list is given the one that was voted for.
    let mut served = vec![];
    let fetch = rig.forge(3, Body::Fetch(Fetch::Set(rig.rounds[1].commit.clone().unwrap().0)));
    rig.deliver(now + 1010, 1, &fetch);
    served.append(&mut rig.sent);
    assert!(served.iter().any(|(from, bytes)| *from == 1 && peek_kind(bytes) == Some(Kind::Reply)));
}

#[test]
fn a_certificate_does_not_end_the_search_for_the_awards() {
    let mut rig = mk_rig();
    let now = rig.t0();
    rig.tick(now);
    rig.flow(now + 10, |_, kind, to| kind != Kind::Open || to != 3);
    assert!(rig.rounds[3].certificate.is_some() && !rig.rounds[3].is_decided());
    for after in [201, 402] {
        rig.tick(now + after);
        rig.flow(now + after, |_, _, _| true);
    }
    assert_eq!(rig.winner(3), Some(0), "who repeats itself is helped");
}

#[test]
fn a_bad_share_is_judged_once() {
    let mut rig = mk_rig();
    let now = rig.t0();
    rig.tick(now);
    rig.flow(now + 10, |_, kind, _| kind != Kind::Open);
    let (set, commit) = rig.rounds[0].commit.clone().unwrap();
    let open = |rig: &Rig, seat: u16, round| {
        let share = rig.keys[usize::from(seat)].share(round);
        rig.forge(seat, Body::Open(OpenShare { set, commit: commit.clone(), share }))
    };
    for message in [open(&rig, 1, ROUND + 1), open(&rig, 2, ROUND)] {
        rig.deliver(now + 10, 0, &message);
    }
    assert!(!rig.rounds[0].opens.contains_key(&1));
    let another = open(&rig, 1, ROUND + 2);
    rig.deliver(now + 10, 0, &another);
    assert_eq!(rig.last_drop(), Some(DropReason::BadSignature));
    assert!(!rig.rounds[0].opens.contains_key(&1), "it does not cost another check");
}
