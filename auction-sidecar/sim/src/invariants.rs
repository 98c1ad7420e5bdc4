//! The invariants of the protocol, checked at every send, arrival and report of a simulated market.
//!
//! Inputs: what seats send (before the network loses it), what reaches them, what they and the home report. Output: the
//! violations. Seats that run a deviation count as faulty, unless a test says that they are to be taken for honest: then
//! the checks must speak up, which is how each of them is shown to be able to fail.
//!
//! I1 one committed set per round; I2 no honest share before a commit; I4 what is admitted was in an honest SET sent by
//! T1; I5 a bundle that f + 1 honest seats got in time is admitted (synchronous runs); I6 honest seats satisfy no fault
//! proof; I7 one hand-over per order, one living award of it (synchronous runs), nothing oversold; I9 rounds are certified
//! before voting stops (synchronous runs). I3, one award root per round, comes with I1.

use crate::world::Event;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use vendue_auction_core::evidence::message_hash;
use vendue_auction_core::proof::{
    AgainstLock, BadMessage, Double, Fault, FaultProof, Signed, SignedBundle, Verdict, verify,
};
use vendue_auction_core::wire::{Body, Kind, Listed, Message, decode};
use vendue_auction_core::{Decided, HomeOutput, Leaf, MarketRecord, SeatOutput, set_digest};
use vendue_market::{Digest, Outcome};

/// An invariant that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// When, in virtual time.
    pub at: u64,
    /// Which one.
    pub invariant: &'static str,
    /// What was seen.
    pub what: String,
}

/// What was seen of one round.
#[derive(Default)]
struct Seen {
    /// SETs of honest seats with the sender's time.
    sets: BTreeMap<u16, (u64, Vec<Digest>)>,
    /// Who voted for a set to be final: FULL, and LOCK by view.
    fulls: BTreeMap<Digest, BTreeSet<u16>>,
    locks: BTreeMap<(u32, Digest), BTreeSet<u16>>,
    /// Honest seats that got a bundle by their T1, as the first of its sender.
    in_time: BTreeMap<Listed, BTreeSet<u16>>,
    first: BTreeSet<(u16, u16)>,
    roots: BTreeSet<Digest>,
}

/// Statements of which a seat makes one: round, kind, view, seat.
type Place = (u64, Kind, u32, u16);

/// The watcher of one market.
pub struct Watch {
    record: Arc<MarketRecord>,
    faulty: BTreeSet<u16>,
    trusted: BTreeSet<u16>,
    /// From when on the network and all clocks are synchronous, and at most f seats faulty.
    synchronous_from: Option<u64>,
    rounds: BTreeMap<u64, Seen>,
    /// Rounds with two sets that can be final.
    split: BTreeSet<u64>,
    /// Messages of honest seats by place.
    said: BTreeMap<Place, Vec<u8>>,
    proposals: BTreeMap<Digest, Vec<u8>>,
    known: BTreeSet<[u8; 32]>,
    /// The first name of an order by its later ones.
    names: BTreeMap<Digest, Digest>,
    handed_over: BTreeSet<Digest>,
    awarded: BTreeMap<Digest, BTreeSet<u64>>,
    violations: Vec<Violation>,
}

impl Watch {
    pub(crate) fn new(record: Arc<MarketRecord>) -> Self {
        Self {
            record,
            faulty: BTreeSet::new(),
            trusted: BTreeSet::new(),
            synchronous_from: None,
            rounds: BTreeMap::new(),
            split: BTreeSet::new(),
            said: BTreeMap::new(),
            proposals: BTreeMap::new(),
            known: BTreeSet::new(),
            names: BTreeMap::new(),
            handed_over: BTreeSet::new(),
            awarded: BTreeMap::new(),
            violations: vec![],
        }
    }

    /// A seat deviates from the protocol.
    pub(crate) fn set_faulty(&mut self, seat: u16) {
        self.faulty.insert(seat);
    }
    /// Takes a deviating seat for an honest one, so that what it does must be noticed.
    pub fn trust(&mut self, seat: u16) {
        self.trusted.insert(seat);
    }
    /// From this time on also what holds in synchronous runs only is checked.
    pub fn expect_synchrony(&mut self, from_ms: u64) {
        self.synchronous_from = Some(from_ms);
    }
    /// What did not hold so far; it counts as seen.
    pub fn take_violations(&mut self) -> Vec<Violation> {
        std::mem::take(&mut self.violations)
    }
    /// What did not hold so far.
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    fn is_honest(&self, seat: u16) -> bool {
        !self.faulty.contains(&seat) || self.trusted.contains(&seat)
    }
    fn is_synchronous(&self, round: u64) -> bool {
        self.synchronous_from.is_some_and(|from| self.record.params.t0(round) >= from)
    }
    fn break_(&mut self, at: u64, invariant: &'static str, what: String) {
        self.violations.push(Violation { at, invariant, what });
    }

    /// A seat sends a message of a round to another seat; `local_ms` is the sender's clock.
    pub(crate) fn sent(&mut self, now: u64, local_ms: u64, from: u16, bytes: &[u8]) {
        let mut key = Sha256::new();
        key.update(from.to_be_bytes());
        key.update(bytes);
        if !self.known.insert(key.finalize().into()) {
            return;
        }
        let Ok(message) = decode(bytes, self.record.n()) else { return };
        if message.header.seat != from {
            return;
        }
        self.count_votes(from, &message);
        if !self.is_honest(from) {
            self.note_proposal(&message, bytes);
            return;
        }
        if let Body::Set(set) = &message.body {
            let seen = self.rounds.entry(message.header.round).or_default();
            seen.sets.entry(from).or_insert((local_ms, set.held.clone()));
        }
        if let Body::Open(open) = &message.body {
            self.check_share(now, from, message.header.round, &open.set);
        }
        self.note_proposal(&message, bytes);
        self.check_innocence(now, from, &message, bytes);
        self.check_finality(now, message.header.round);
    }

    fn note_proposal(&mut self, message: &Message, bytes: &[u8]) {
        if let Body::Propose(_) = &message.body {
            let digest = message_hash(&self.record.market, &message.header, &message.body);
            self.proposals.insert(digest, bytes.to_vec());
        }
    }

    fn count_votes(&mut self, from: u16, message: &Message) {
        let round = message.header.round;
        let seen = self.rounds.entry(round).or_default();
        match &message.body {
            Body::Set(set) if set.full.is_some() => {
                let list: Vec<Listed> =
                    set.held.iter().zip(0u16..).map(|(d, seat)| Listed { seat, d: *d }).collect();
                let digest = set_digest(&self.record, round, &list);
                seen.fulls.entry(digest).or_default().insert(from);
            }
            Body::Lock(lock) => {
                seen.locks.entry((lock.view, lock.set)).or_default().insert(from);
            }
            _ => {}
        }
    }

    /// Whether so many seats voted, where faulty ones may have voted for anything; at least one honest seat did.
    fn may_be_enough(&self, voters: &BTreeSet<u16>, needed: usize) -> bool {
        let honest = voters.iter().filter(|v| self.is_honest(**v)).count();
        honest > 0 && honest + self.faulty.difference(&self.trusted).count() >= needed
    }

    /// Sets of a round that n FULLs or q LOCKs in one view may have made final.
    fn final_sets(&self, round: u64) -> BTreeSet<Digest> {
        let (n, q) = (usize::from(self.record.n()), usize::from(self.record.q()));
        let Some(seen) = self.rounds.get(&round) else { return BTreeSet::new() };
        let full = seen.fulls.iter().filter(|(_, v)| self.may_be_enough(v, n)).map(|(set, _)| *set);
        let locked = seen.locks.iter().filter(|(_, v)| self.may_be_enough(v, q)).map(|((_, set), _)| *set);
        full.chain(locked).collect()
    }

    /// I1: two sets that may both be final are one too many.
    fn check_finality(&mut self, now: u64, round: u64) {
        let sets = self.final_sets(round);
        if sets.len() > 1 && self.split.insert(round) {
            self.break_(now, "I1", format!("round {round}: two sets can be final"));
        }
    }

    /// I2: q LOCKs in one view or n FULLs for the set were sent before an honest share. That the commit beside the share
    /// proves it is part of I6.
    fn check_share(&mut self, now: u64, from: u16, round: u64, set: &Digest) {
        if !self.final_sets(round).contains(set) {
            self.break_(now, "I2", format!("seat {from} opens round {round}, whose set is not final"));
        }
    }

    /// I6: no statement of an honest seat, alone or with an earlier one, is a fault.
    fn check_innocence(&mut self, now: u64, from: u16, message: &Message, bytes: &[u8]) {
        let round = message.header.round;
        let kind = message.header.kind;
        let view = match &message.body {
            Body::Admit(a) => a.view,
            Body::Lock(l) => l.view,
            Body::NewView(v) => v.view,
            Body::Propose(p) => p.view,
            Body::Bundle(_) | Body::Set(_) | Body::Award(_) | Body::Open(_) | Body::Commit(_) => 0,
            _ => return,
        };
        let place = (round, kind, view, from);
        let mut proofs = vec![];
        match self.said.get(&place) {
            Some(first) => proofs.extend(self.double(first, message, bytes)),
            None => {
                self.said.insert(place, bytes.to_vec());
            }
        }
        if kind != Kind::Bundle {
            proofs.push(FaultProof::BadMessage(BadMessage { message: Signed(bytes.to_vec()) }));
        }
        if matches!(kind, Kind::Admit | Kind::Lock) {
            proofs.extend(self.against_locks(round, from));
        }
        for proof in proofs {
            if let Verdict::Guilty { fault, .. } = verify(&proof, &self.record) {
                self.break_(now, "I6", format!("seat {from} in round {round}: {fault:?}"));
            }
        }
    }

    fn double(&self, first: &[u8], message: &Message, bytes: &[u8]) -> Option<FaultProof> {
        let header = message.header;
        if !matches!(message.body, Body::Bundle(_)) {
            let (first, second) = (Signed(first.to_vec()), Signed(bytes.to_vec()));
            return Some(FaultProof::Double(Double::Messages { first, second }));
        }
        let head = |message: Message| match message.body {
            Body::Bundle(b) => Some(SignedBundle { d: b.digest(&header), signature: message.signature? }),
            _ => None,
        };
        let first = head(decode(first, self.record.n()).ok()?)?;
        let second = head(message.clone())?;
        Some(FaultProof::Double(Double::Bundles { seat: header.seat, round: header.round, first, second }))
    }

    /// Every ADMIT of a seat with its proposal, and every earlier LOCK of it.
    fn against_locks(&self, round: u64, seat: u16) -> Vec<FaultProof> {
        let of = |kind: Kind| {
            let places = self.said.range((round, kind, 0, 0)..=(round, kind, u32::MAX, u16::MAX));
            places
                .filter(|((_, _, _, s), _)| *s == seat)
                .map(|((_, _, view, _), bytes)| (*view, bytes.clone()))
        };
        let locks: Vec<(u32, Vec<u8>)> = of(Kind::Lock).collect();
        let mut proofs = vec![];
        for (view, bytes) in of(Kind::Admit).filter(|(view, _)| *view > 0) {
            let Ok(Message { body: Body::Admit(admit), .. }) = decode(&bytes, self.record.n()) else {
                continue;
            };
            let Some(proposal) = self.proposals.get(&admit.proposal) else { continue };
            let lower =
                locks.iter().filter(|(locked, _)| *locked < view).map(|(_, b)| Some(Signed(b.clone())));
            for lock in lower.chain([None]) {
                let (admit, proposal) = (Signed(bytes.clone()), Signed(proposal.clone()));
                proofs.push(FaultProof::AgainstLock(AgainstLock { admit, proposal, lock }));
            }
        }
        proofs
    }

    /// A message reaches a seat at its local time.
    pub(crate) fn arrived(&mut self, local_ms: u64, to: u16, bytes: &[u8]) {
        let Ok(message) = decode(bytes, self.record.n()) else { return };
        let Body::Bundle(bundle) = &message.body else { return };
        let (round, seat) = (message.header.round, message.header.seat);
        if !self.is_honest(to) || local_ms > self.record.params.t1(round) {
            return;
        }
        let seen = self.rounds.entry(round).or_default();
        if seen.first.insert((to, seat)) {
            let listed = Listed { seat, d: bundle.digest(&message.header) };
            seen.in_time.entry(listed).or_default().insert(to);
        }
    }

    /// A seat or the home reports something.
    pub(crate) fn reported(&mut self, now: u64, event: &Event) {
        match event {
            Event::Seat(seat, SeatOutput::Decided(decided)) if self.is_honest(*seat) => {
                self.check_decided(now, *seat, decided);
            }
            Event::Seat(seat, SeatOutput::Expired { round, .. })
                if self.is_honest(*seat) && self.is_synchronous(*round) =>
            {
                self.break_(now, "I9", format!("round {round} is not certified at seat {seat}"));
            }
            Event::Seat(seat, SeatOutput::Evidence(proof)) if self.is_honest(*seat) => {
                self.check_evidence(now, *seat, proof);
            }
            Event::Home(HomeOutput::Relisted { order, digest }) => {
                let first = self.names.get(order).copied().unwrap_or(*order);
                self.names.insert(*digest, first);
            }
            Event::Home(HomeOutput::HandOver { order, seat }) => {
                let first = self.names.get(order).copied().unwrap_or(*order);
                if !self.handed_over.insert(first) {
                    self.break_(now, "I7", format!("an order is handed over again, to seat {seat}"));
                }
            }
            _ => {}
        }
    }

    /// I6 for what seats show of each other: it holds, and is not against an honest seat.
    fn check_evidence(&mut self, now: u64, by: u16, proof: &FaultProof) {
        match verify(proof, &self.record) {
            Verdict::Guilty { seats, fault } => {
                let round_is_synchronous = self.synchronous_from.is_some_and(|from| from == 0);
                for seat in seats.into_iter().filter(|s| self.is_honest(*s)).collect::<Vec<_>>() {
                    if fault != Fault::Absent || round_is_synchronous {
                        self.break_(now, "I6", format!("seat {by} proves {fault:?} of honest seat {seat}"));
                    }
                }
            }
            Verdict::Unproven(why) => {
                self.break_(now, "I6", format!("seat {by} shows a proof that is none: {why}"));
            }
        }
    }

    /// I1, I4, I5, I7 and I9 for a certified round.
    fn check_decided(&mut self, now: u64, seat: u16, decided: &Decided) {
        let round = decided.certificate.round;
        let t1 = self.record.params.t1(round);
        let synchronous = self.is_synchronous(round);
        let admitted: BTreeSet<Listed> = decided
            .table
            .leaves
            .iter()
            .filter_map(|leaf| match leaf {
                Leaf::Opened { bundle, .. } | Leaf::Garbage(bundle) => Some(*bundle),
                _ => None,
            })
            .collect();
        let f = usize::from(self.record.f());
        let seen = self.rounds.entry(round).or_default();
        let mut broken = vec![];
        if seen.roots.insert(decided.certificate.root) && seen.roots.len() > 1 {
            broken.push(("I1", "two award roots are certified".to_string()));
        }
        for bundle in &admitted {
            let lists = |(at, held): &(u64, Vec<Digest>)| {
                *at <= t1 && held.get(usize::from(bundle.seat)) == Some(&bundle.d)
            };
            if !seen.sets.values().any(lists) {
                broken.push(("I4", format!("a bundle of seat {} is in no honest SET in time", bundle.seat)));
            }
        }
        let owed = seen.in_time.iter().filter(|(_, seats)| seats.len() > f).map(|(listed, _)| *listed);
        for bundle in owed.filter(|b| synchronous && !admitted.contains(b)) {
            broken.push(("I5", format!("a bundle of seat {} was in time and is not admitted", bundle.seat)));
        }
        if synchronous && now > self.record.params.x(round) {
            broken.push(("I9", format!("certified after voting stopped, at {now}")));
        }
        for (order, outcome) in &decided.outcomes {
            if let Outcome::Award(_) = outcome {
                let rounds = self.awarded.entry(*order).or_default();
                let params = self.record.params;
                let lives = |r: &u64| *r != round && params.t0(round.max(*r)) < params.expiry(round.min(*r));
                if synchronous && rounds.iter().any(lives) {
                    broken.push(("I7", "two awards of an order live together".to_string()));
                }
                rounds.insert(round);
            }
        }
        for (invariant, what) in broken {
            self.break_(now, invariant, format!("round {round} at seat {seat}: {what}"));
        }
    }

    /// A provider's controller was asked for devices that are not there.
    pub(crate) fn oversold(&mut self, now: u64, seat: u16) {
        if self.is_honest(seat) {
            self.break_(now, "I7", format!("seat {seat} sold more than it has"));
        }
    }
}
