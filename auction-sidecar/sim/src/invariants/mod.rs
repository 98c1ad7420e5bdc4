//! The invariants of the protocol, checked at every send, arrival and report of a simulated market.
//!
//! Inputs: what seats send (before the network loses it), what reaches them, what they and the home report. Output: the
//! violations. Seats that run a deviation count as faulty, unless a test says that they are to be taken for honest: then
//! the checks must speak up, which is how each of them is shown to be able to fail.
//!
//! | invariant | where it is checked |
//! |---|---|
//! | I1 one committed set per round | here, at each FULL, LOCK, OPEN, COMMIT and certificate; that a seat speaks in a round in one epoch only, at each of its statements |
//! | I2 no honest share before a commit | here, at each OPEN |
//! | I3 one award root for one set and beacon | here, at each AWARD of an honest seat; recomputed in the core's proof of wrong awards |
//! | I4 what is admitted is in an honest SET, whose owner had it before T1 | here, at each certificate |
//! | I5 a bundle that f + 1 honest seats got in time is admitted (synchronous) | here, at each certificate |
//! | I6 honest seats satisfy no fault proof | here, at each statement and each proof that a seat shows |
//! | I7 one hand-over per order, one living award (synchronous), nothing oversold | here, at each hand-over, certificate and hold |
//! | I8 without a commit fewer than q shares | here, at each OPEN |
//! | I9 certified before voting stops (synchronous) | here, at each certificate and expiry |
//! | I10 another outcome than that of the honest run has a culprit | [`crate::Schedule::compare`] |
//! | I11, I12 clearing is a function of the set of inputs; ties are uniform | tests of the crate `market` |
//! | I13 one encoding per value, no panic | tests of the core's `wire` |
//! | I14 copied or mauled ciphertexts open for nobody | tests of `sealed-bid`; here behaviours B7 and B8 |
//! | I15 a restart contradicts nothing | here, as I6; replicas of one seat count as faulty (B33) |
//! | I16 messages and bytes within budget | here, at each message of an honest seat |
//! | I17, I18 any q shares give one beacon; the libraries agree | tests of `sealed-bid` |
//! | I19 the gate | here, at each OPEN |
//! | I20 beyond f: two commits or certificates prove f + 1 seats faulty | here, at the end of a run that holds seats accountable |

mod agreement;
mod blame;
mod results;

use crate::world::{Event, Letter};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use vendue_auction_core::evidence::message_hash_by;
use vendue_auction_core::proof::{FaultProof, Verdict, verify_by};
use vendue_auction_core::wire::{Body, Header, Kind, Listed};
use vendue_auction_core::{HomeOutput, MarketRecord, Peer, Scheme, SeatOutput};
use vendue_market::Digest;

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
    sets: BTreeMap<u16, Vec<Digest>>,
    /// Who voted for a set to be final: FULL, and LOCK by view.
    fulls: BTreeMap<Digest, BTreeSet<u16>>,
    locks: BTreeMap<(u32, Digest), BTreeSet<u16>>,
    /// Honest seats that got a bundle by their T1, as the first of its sender.
    in_time: BTreeMap<Listed, BTreeSet<u16>>,
    first: BTreeSet<(u16, u16)>,
    /// Roots that are certified.
    roots: BTreeSet<Digest>,
    /// Roots that honest seats voted for.
    awards: BTreeSet<Digest>,
    /// Sets that honest seats took for final.
    commits: BTreeSet<Digest>,
    /// Who gave a share away.
    sharers: BTreeSet<u16>,
    /// Whose shares reached whom.
    opened: BTreeSet<(u16, u16)>,
    /// The epoch that an honest seat speaks in.
    epochs: BTreeMap<u16, u32>,
    /// Messages and bytes of an honest seat.
    spent: BTreeMap<u16, (u64, u64)>,
}

/// What judges fault proofs and names proposals, with the cryptography of the market.
#[derive(Clone, Copy)]
pub(crate) struct Judge {
    verify: fn(&FaultProof, &MarketRecord) -> Verdict,
    hash: fn(&Digest, &Header, &Body) -> Digest,
}

impl Judge {
    pub(crate) fn by<S: Scheme>() -> Self {
        Self { verify: verify_by::<S>, hash: message_hash_by::<S> }
    }
}

/// Statements of which a seat makes one: round, kind, view, seat.
type Place = (u64, Kind, u32, u16);

/// The watcher of one market.
pub struct Watch {
    record: Arc<MarketRecord>,
    next: Option<Arc<MarketRecord>>,
    faulty: BTreeSet<u16>,
    trusted: BTreeSet<u16>,
    /// From when on the network and all clocks are synchronous, and at most f seats faulty.
    synchronous_from: Option<u64>,
    rounds: BTreeMap<u64, Seen>,
    /// Rounds with two sets that can be final.
    split: BTreeSet<u64>,
    /// Messages of honest seats by place.
    said: BTreeMap<Place, Letter>,
    proposals: BTreeMap<Digest, Letter>,
    known: HashSet<(u16, [u8; 16])>,
    judge: Judge,
    /// Whether proofs against faulty seats are collected, and which there are, by round.
    accountable: bool,
    provable: BTreeMap<u64, BTreeSet<u16>>,
    /// The first name of an order by its later ones.
    names: BTreeMap<Digest, Digest>,
    handed_over: BTreeSet<Digest>,
    awarded: BTreeMap<Digest, BTreeSet<u64>>,
    /// Proofs that faulty seats made up.
    made_up: u64,
    violations: Vec<Violation>,
}

impl Watch {
    pub(crate) fn new(record: Arc<MarketRecord>, judge: Judge) -> Self {
        Self {
            record,
            next: None,
            faulty: BTreeSet::new(),
            trusted: BTreeSet::new(),
            synchronous_from: None,
            rounds: BTreeMap::new(),
            split: BTreeSet::new(),
            said: BTreeMap::new(),
            proposals: BTreeMap::new(),
            known: HashSet::new(),
            judge,
            accountable: false,
            provable: BTreeMap::new(),
            names: BTreeMap::new(),
            handed_over: BTreeSet::new(),
            awarded: BTreeMap::new(),
            made_up: 0,
            violations: vec![],
        }
    }

    /// Another epoch is to come.
    pub(crate) fn add_epoch(&mut self, record: Arc<MarketRecord>) {
        self.next = Some(record);
    }

    fn of_epoch(&self, epoch: u32) -> &MarketRecord {
        self.next.as_ref().filter(|next| next.epoch == epoch).unwrap_or(&self.record)
    }

    /// Judges a proof by the records of all epochs: it does not say which one it is of.
    fn judge(&self, proof: &FaultProof) -> Verdict {
        let verdict = (self.judge.verify)(proof, &self.record);
        match (&verdict, &self.next) {
            (Verdict::Unproven(_), Some(next)) => (self.judge.verify)(proof, next),
            _ => verdict,
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
    /// From now on what can be proven of faulty seats is collected.
    pub fn hold_accountable(&mut self) {
        self.accountable = true;
    }
    /// Seats that can be proven faulty, by round.
    pub fn provable(&self) -> &BTreeMap<u64, BTreeSet<u16>> {
        &self.provable
    }
    /// Proofs that faulty seats made up.
    pub fn made_up(&self) -> u64 {
        self.made_up
    }
    /// Counts a proof that a faulty seat made up, and judges it.
    pub(crate) fn framed(&mut self, now: u64, by: u16, proof: &FaultProof) {
        self.made_up += 1;
        self.check_framing(now, by, proof);
    }
    /// Rounds in which anything was said.
    pub fn rounds(&self) -> usize {
        self.rounds.len()
    }
    /// Whether each bundle of a round that reached an honest seat in time reached all of them in time.
    pub fn all_got_all(&self, round: u64) -> bool {
        let honest = (0..self.record.n()).filter(|s| self.is_honest(*s)).count();
        let full = |(listed, seats): (&Listed, &BTreeSet<u16>)| {
            seats.len() + usize::from(self.is_honest(listed.seat)) == honest
        };
        let seen = self.rounds.get(&round);
        seen.is_some_and(|seen| {
            let senders: BTreeSet<u16> = seen.in_time.keys().map(|l| l.seat).collect();
            senders.len() == usize::from(self.record.n()) && seen.in_time.iter().all(full)
        })
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

    /// A seat sends a message of a round to so many other seats; `local_ms` is the sender's clock.
    pub(crate) fn sent(&mut self, now: u64, local_ms: u64, from: u16, letter: &Letter, copies: u16) {
        self.spend(now, from, letter.bytes(), copies);
        if !self.known.insert((from, letter.id())) {
            return;
        }
        let Some(message) = letter.message() else { return };
        if message.header.seat != from {
            return;
        }
        let round = message.header.round;
        self.count_votes(from, message);
        self.note_proposal(message, letter);
        if let Body::Open(_) = &message.body {
            self.check_sharers(now, from, round);
        }
        if !self.is_honest(from) {
            if self.accountable {
                self.hold_to_account(from, message, letter);
            }
            return;
        }
        if let Body::Set(set) = &message.body {
            let seen = self.rounds.entry(round).or_default();
            seen.sets.entry(from).or_insert(set.held.clone());
        }
        match &message.body {
            Body::Open(open) => {
                self.check_share(now, from, round, &open.set);
                self.check_gate(now, local_ms, from, round);
                self.note_commit(now, round, open.set);
            }
            Body::Commit(commit) => self.note_commit(now, round, commit.set),
            Body::Award(award) => self.check_award(now, from, round, award.root),
            _ => {}
        }
        self.check_epoch(now, from, message);
        self.check_innocence(now, from, message, letter);
        self.check_finality(now, round);
    }

    /// A message from `from` reaches a seat at its local time. A bundle that comes from anybody but its seat has not come:
    /// no core takes it, and whoever forwards it decides when.
    pub(crate) fn arrived(&mut self, local_ms: u64, from: Peer, to: u16, letter: &Letter) {
        if !matches!(letter.kind(), Some(Kind::Bundle | Kind::Open)) {
            return;
        }
        let Some(message) = letter.message() else { return };
        let (round, seat) = (message.header.round, message.header.seat);
        if let Body::Open(_) = &message.body {
            self.rounds.entry(round).or_default().opened.insert((to, seat));
        }
        let Some(d) = letter.bundle() else { return };
        let is_late = local_ms >= self.record.params.t1(round);
        if from != Peer::Seat(seat) || !self.is_honest(to) || is_late {
            return;
        }
        let seen = self.rounds.entry(round).or_default();
        if seen.first.insert((to, seat)) {
            let listed = Listed { seat, d };
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

    /// A seat does not come back from its log.
    pub(crate) fn lost(&mut self, now: u64, seat: u16, why: &str) {
        self.break_(now, "I15", format!("seat {seat} does not start again: {why}"));
    }

    /// A provider's controller was asked for devices that are not there.
    pub(crate) fn oversold(&mut self, now: u64, seat: u16) {
        if self.is_honest(seat) {
            self.break_(now, "I7", format!("seat {seat} sold more than it has"));
        }
    }
}
