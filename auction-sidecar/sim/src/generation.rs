//! A key generation in a seeded network: real state machines and cryptography, virtual time, loss, delay, faulty seats
//! (B37) and restarts.
//!
//! Inputs: a [`Generation`]. Output: a [`Made`] with the keys, every certificate that was seen, who was accused, and what
//! did not hold. The same input gives the same trace hash.

use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use vendue_auction_core::evidence::message_hash;
use vendue_auction_core::keygen::{
    DEFAULT_NOTICE_MS, EpochError, Generated, KeyGeneration, KeyInput, KeyOutput, KeySecrets, RestoreError,
    Terms, TermsError, Word, next_record,
};
use vendue_auction_core::log::LogRecord;
use vendue_auction_core::proof::{self, Verdict};
use vendue_auction_core::wire::{Body, Deal, Kind, Message, decode, peek_kind};
use vendue_auction_core::{Crypto, DealSpec, KeyError, MarketRecord, MemberSpec, Params, SeatCrypto, deal};
use vendue_sealed_bid::CryptoError;
use vendue_sealed_bid::dkg::{Contribution, DealKey, Dealer, DealerSeed, DkgError, Purpose, RecipientKey};

/// What a faulty seat does in a key generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyDeviation {
    /// It says nothing.
    Silent,
    /// It seals a wrong value to every second seat.
    BadShare,
    /// It deals to every second seat only.
    Withheld,
    /// Its commitment has a point too many.
    WrongDegree,
    /// It deals last of all.
    Rushing,
    /// It deals two polynomials, each to every second seat.
    TwoDealings,
    /// It acknowledges, and denies it when it counts.
    Denies,
    /// It makes two contributions.
    TwoContributions,
    /// It commits when the others have dealt.
    LateCommitment,
    /// It deals something else than what it announced.
    OtherCommitment,
    /// It keeps its LOCK back until the next attempt, shows it to every second seat only, and votes for nothing.
    KeepsLock,
}

impl KeyDeviation {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Silent,
        Self::BadShare,
        Self::Withheld,
        Self::WrongDegree,
        Self::Rushing,
        Self::TwoDealings,
        Self::Denies,
        Self::TwoContributions,
        Self::LateCommitment,
        Self::OtherCommitment,
        Self::KeepsLock,
    ];
}

/// One simulated generation.
#[derive(Debug, Clone)]
pub struct Generation {
    /// Everything random follows from it.
    pub seed: u64,
    /// Seats.
    pub seats: u16,
    /// Messages that are lost, in a hundred.
    pub loss: u64,
    /// Longest time that a message takes, in milliseconds; D is 100.
    pub delay_ms: u64,
    /// Faulty seats.
    pub faulty: BTreeMap<u16, KeyDeviation>,
    /// A seat that is restarted from its log, and when, after the start.
    pub restart: Option<(u16, u64)>,
    /// A seat that is cut off from then until then, after the start.
    pub cut_off: Option<(u16, std::ops::Range<u64>)>,
    /// Attempts that are waited for.
    pub attempts: u64,
}

/// Why a generation could not be simulated.
#[derive(Debug, thiserror::Error)]
pub enum GenerationError {
    /// Keys could not be made.
    #[error("making keys: {0}")]
    Keys(#[from] KeyError),
    /// A deal key could not be made.
    #[error("making deal keys: {0}")]
    Crypto(#[from] CryptoError),
    /// The terms are refused.
    #[error(transparent)]
    Terms(#[from] TermsError),
    /// A seat could not start.
    #[error(transparent)]
    Dkg(#[from] DkgError),
    /// A seat could not start again.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// No record follows from what was made.
    #[error(transparent)]
    Epoch(#[from] EpochError),
    /// A seat has no share of a certified key.
    #[error("the generation ended without a share for each seat")]
    Unfinished,
}

/// What a generation came to.
#[derive(Debug)]
pub struct Made {
    /// Honest seats that have the certified key.
    pub done: usize,
    /// The attempt that was certified.
    pub attempt: Option<u64>,
    /// Whose dealings count.
    pub dealers: BTreeSet<u16>,
    /// Who was proven faulty.
    pub accused: BTreeSet<u16>,
    /// What did not hold.
    pub violations: Vec<String>,
    /// A hash over every delivery.
    pub trace: [u8; 32],
}

const START: u64 = 1_000_000;
const D: u64 = 100;

fn hash(seed: u64, label: &str, number: u64) -> [u8; 32] {
    let start = Sha256::new().chain_update(seed.to_be_bytes()).chain_update(label);
    start.chain_update(number.to_be_bytes()).finalize().into()
}

fn number(seed: u64, label: &str, at: u64) -> u64 {
    let [a, b, c, d, ..] = hash(seed, label, at);
    u64::from(u32::from_be_bytes([a, b, c, d]))
}

struct Sent {
    at: u64,
    from: u16,
    to: u16,
    bytes: Vec<u8>,
}

struct Run<'g> {
    plan: &'g Generation,
    old: MarketRecord,
    terms: Terms,
    crypto: Vec<Arc<SeatCrypto>>,
    seats: Vec<KeyGeneration<SeatCrypto>>,
    logs: Vec<Vec<LogRecord>>,
    queue: Vec<Sent>,
    now: u64,
    sent: u64,
    done: BTreeMap<u16, Generated>,
    accused: BTreeSet<u16>,
    certified: BTreeSet<[u8; 32]>,
    violations: Vec<String>,
    trace: Sha256,
}

pub(crate) fn secrets(seed: u64, seat: u16) -> Result<KeySecrets, CryptoError> {
    let deal = DealKey::generate(&hash(seed, "deal key", u64::from(seat)))?;
    let seed = DealerSeed::from_bytes(&hash(seed, "dealer", u64::from(seat)));
    Ok(KeySecrets { seed, deal, old: None })
}

impl<'g> Run<'g> {
    fn new(plan: &'g Generation) -> Result<Self, GenerationError> {
        use rand_chacha::rand_core::SeedableRng;
        let member =
            |i: u16| MemberSpec { name: format!("p{i}"), peer_id: format!("p{i}"), addresses: vec![] };
        let spec = DealSpec {
            name: "market".into(),
            params: Params { delay_ms: D, period_ms: 600, genesis_ms: 0, handover_ms: 5_000 },
            seats: (0..plan.seats).map(member).collect(),
            homes: vec![],
        };
        let dealt = deal(&spec, &mut rand_chacha::ChaCha20Rng::seed_from_u64(plan.seed))?;
        let old = dealt.record.record;
        let terms = Terms::new(&old, Purpose::Key, START, DEFAULT_NOTICE_MS)?;
        let record = Arc::new(old.clone());
        let crypto: Vec<_> =
            dealt.seats.into_iter().map(|k| Arc::new(SeatCrypto::new(record.clone(), k))).collect();
        let mut seats = vec![];
        for (seat, crypto) in (0u16..).zip(&crypto) {
            let secrets = secrets(plan.seed, seat)?;
            seats.push(KeyGeneration::new(terms.clone(), seat, crypto.clone(), secrets, START)?);
        }
        let logs = seats.iter().map(|_| vec![]).collect();
        Ok(Self {
            plan,
            old,
            terms,
            crypto,
            seats,
            logs,
            queue: vec![],
            now: START,
            sent: 0,
            done: BTreeMap::new(),
            accused: BTreeSet::new(),
            certified: BTreeSet::new(),
            violations: vec![],
            trace: Sha256::new(),
        })
    }

    fn give(&mut self, seat: u16, input: KeyInput) {
        let Some(generation) = self.seats.get_mut(usize::from(seat)) else { return };
        for output in generation.handle(self.now, input) {
            match output {
                KeyOutput::Persist(record) => {
                    if let Some(log) = self.logs.get_mut(usize::from(seat)) {
                        log.push(record);
                    }
                }
                KeyOutput::Broadcast(bytes) => {
                    for to in (0..self.plan.seats).filter(|to| *to != seat) {
                        self.send(seat, to, &bytes);
                    }
                }
                KeyOutput::Send { to, bytes } => self.send(seat, to, &bytes),
                KeyOutput::Evidence(shown) => match proof::verify(&shown, self.terms.record()) {
                    Verdict::Guilty { seats, .. } => self.accused.extend(seats),
                    Verdict::Unproven(_) => self.violations.push("a proof proves nothing".into()),
                },
                KeyOutput::Fruitless { .. } => {}
                KeyOutput::Done(made) => {
                    self.certified.insert(made.certificate.root);
                    self.done.insert(seat, *made);
                }
            }
        }
    }

    /// Puts a message on its way, as its sender's deviation changes it.
    fn send(&mut self, from: u16, to: u16, bytes: &[u8]) {
        for (late, bytes) in self.deviate(from, to, bytes) {
            self.sent += 1;
            let is_cut = |(seat, during): &(u16, std::ops::Range<u64>)| {
                (from == *seat || to == *seat) && during.contains(&(self.now - START))
            };
            let is_lost = number(self.plan.seed, "loss", self.sent) % 100 < self.plan.loss;
            if is_lost || self.plan.cut_off.as_ref().is_some_and(is_cut) {
                continue;
            }
            let delay = 1 + number(self.plan.seed, "delay", self.sent) % self.plan.delay_ms.max(1);
            self.queue.push(Sent { at: self.now + delay + late, from, to, bytes });
        }
    }

    fn deviate(&self, from: u16, to: u16, bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let same = vec![(0, bytes.to_vec())];
        let Some(deviation) = self.plan.faulty.get(&from) else { return same };
        let (kind, every_second) = (peek_kind(bytes), to.is_multiple_of(2));
        match (deviation, kind) {
            (KeyDeviation::Silent, _) => vec![],
            (KeyDeviation::Withheld, Some(Kind::Deal)) if every_second => vec![],
            (KeyDeviation::Rushing, Some(Kind::Deal)) => vec![(3 * D, bytes.to_vec())],
            // The values lie behind the commitment and the ephemeral key.
            (KeyDeviation::BadShare, Some(Kind::Deal)) => self.instead(bytes, |dealing| {
                let values = dealing.len().saturating_sub(48 * usize::from(self.plan.seats));
                dealing.iter_mut().skip(values).step_by(96).for_each(|byte| *byte ^= 1);
            }),
            (KeyDeviation::WrongDegree, Some(Kind::Deal)) => {
                self.instead(bytes, |dealing| dealing.extend_from_within(35..131))
            }
            (KeyDeviation::TwoDealings, Some(Kind::Deal)) if every_second => self.other_dealing(from, bytes),
            (KeyDeviation::Denies, Some(Kind::Bundle)) => {
                self.contribution(bytes, |said| said.acks.iter_mut().for_each(|ack| *ack = [0; 32]))
            }
            (KeyDeviation::TwoContributions, Some(Kind::Bundle)) if every_second => {
                self.contribution(bytes, |said| said.acks.iter_mut().take(1).for_each(|ack| *ack = [0; 32]))
            }
            (KeyDeviation::LateCommitment, Some(Kind::DealKey)) => vec![(4 * D, bytes.to_vec())],
            (KeyDeviation::OtherCommitment, Some(Kind::DealKey)) => self.other_commitment(bytes),
            (KeyDeviation::KeepsLock, Some(Kind::Commit | Kind::Award)) => vec![],
            (KeyDeviation::KeepsLock, Some(Kind::Lock)) if every_second => {
                let period = self.terms.record().params.period_ms;
                vec![(number(self.plan.seed, "kept", self.sent) % (2 * period), bytes.to_vec())]
            }
            (KeyDeviation::KeepsLock, Some(Kind::Lock)) => vec![],
            _ => same,
        }
    }

    fn other_commitment(&self, bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let Ok(message) = decode(bytes, self.plan.seats) else { return vec![] };
        let Body::DealKey(mut announced) = message.body.clone() else { return vec![] };
        announced.commitment[0] ^= 1;
        self.sign(message, Body::DealKey(announced))
    }

    /// The message with another body, signed by its sender.
    fn sign(&self, message: Message, body: Body) -> Vec<(u64, Vec<u8>)> {
        let hash = message_hash(&self.terms.record().market, &message.header, &body);
        let key = self.crypto.get(usize::from(message.header.seat));
        let signature = key.map(|key| key.sign(&hash));
        vec![(0, Message { header: message.header, body, signature }.encode())]
    }

    fn instead(&self, bytes: &[u8], change: impl Fn(&mut Vec<u8>)) -> Vec<(u64, Vec<u8>)> {
        match decode(bytes, self.plan.seats) {
            Ok(message) => match message.body.clone() {
                Body::Deal(mut deal) => {
                    change(&mut deal.dealing);
                    self.sign(message, Body::Deal(deal))
                }
                _ => vec![],
            },
            Err(_) => vec![],
        }
    }

    fn other_dealing(&self, from: u16, bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let other = DealerSeed::from_bytes(&hash(self.plan.seed, "other", u64::from(from)));
        let keys = (0..self.plan.seats).map(|seat| {
            let key = secrets(self.plan.seed, seat).ok()?.deal.public_key().ok()?;
            RecipientKey::from_bytes(&key).ok()
        });
        let keys: Vec<_> = keys.collect();
        let dealing = Dealer::new(self.terms.setup(), from, &other).and_then(|dealer| dealer.dealing(&keys));
        match (decode(bytes, self.plan.seats), dealing) {
            (Ok(message), Ok(dealing)) => {
                self.sign(message, Body::Deal(Deal { dealing: dealing.to_bytes() }))
            }
            _ => vec![],
        }
    }

    fn contribution(&self, bytes: &[u8], change: impl Fn(&mut Contribution)) -> Vec<(u64, Vec<u8>)> {
        let Ok(message) = decode(bytes, self.plan.seats) else { return vec![] };
        let Body::Bundle(mut bundle) = message.body.clone() else { return vec![] };
        let Ok(mut said) = Word::read(self.terms.setup(), &bundle.payload) else { return vec![] };
        change(&mut said.contribution);
        bundle.payload = said.to_bytes(self.terms.setup());
        self.sign(message, Body::Bundle(bundle))
    }

    /// The seat again from its log; what it sent is on its way.
    fn restart(&mut self, seat: u16) -> Result<(), GenerationError> {
        let at = usize::from(seat);
        let (Some(crypto), Some(log)) = (self.crypto.get(at), self.logs.get(at)) else { return Ok(()) };
        let (terms, secrets) = (self.terms.clone(), secrets(self.plan.seed, seat)?);
        let again = KeyGeneration::restore(terms, seat, crypto.clone(), secrets, self.now, log)?;
        if let Some(place) = self.seats.get_mut(at) {
            *place = again;
        }
        Ok(())
    }

    fn honest(&self) -> impl Iterator<Item = u16> + '_ {
        (0..self.plan.seats).filter(|seat| !self.plan.faulty.contains_key(seat))
    }

    fn run(&mut self) -> Result<(), GenerationError> {
        let until = self.terms.record().params.t0(self.plan.attempts);
        let mut restart = self.plan.restart;
        (0..self.plan.seats).for_each(|seat| self.give(seat, KeyInput::Tick));
        while self.honest().any(|seat| !self.done.contains_key(&seat)) {
            let wakes = self.seats.iter().filter_map(KeyGeneration::next_wake);
            let next = wakes.chain(self.queue.iter().map(|sent| sent.at)).min();
            let Some(next) = next.filter(|at| *at <= until) else { break };
            self.now = self.now.max(next);
            if let Some((seat, _)) = restart.filter(|(_, after)| self.now >= START + after) {
                restart = None;
                self.restart(seat)?;
            }
            let now = self.now;
            let (due, later): (Vec<_>, Vec<_>) =
                std::mem::take(&mut self.queue).into_iter().partition(|sent| sent.at <= now);
            self.queue = later;
            for Sent { from, to, bytes, .. } in due {
                self.trace.update(now.to_be_bytes());
                self.trace.update([from.to_be_bytes(), to.to_be_bytes()].concat());
                self.trace.update(Sha256::digest(&bytes));
                self.give(to, KeyInput::Message { from, bytes });
            }
            (0..self.plan.seats).for_each(|seat| self.give(seat, KeyInput::Tick));
        }
        Ok(())
    }

    /// What must hold whatever happened.
    fn check(&mut self) {
        if self.certified.len() > 1 {
            self.violations.push("two keys are certified".into());
        }
        let honest: Vec<u16> = self.honest().collect();
        let first = honest.iter().find_map(|seat| self.done.get(seat));
        let f = usize::from(self.old.f());
        for (seat, made) in self.done.iter().filter(|(seat, _)| honest.contains(seat)) {
            if first.is_some_and(|first| (&first.outcome, first.set) != (&made.outcome, made.set)) {
                self.violations.push(format!("seat {seat} has another outcome"));
            }
            if !made.share.as_ref().is_some_and(|share| made.outcome.keys.fits(*seat, share)) {
                self.violations.push(format!("seat {seat} has no share"));
            }
            if made.outcome.public.len() > f {
                self.violations.push("more than f shares are public".into());
            }
            if let Err(error) =
                next_record(&self.old, &self.terms, made.set, &made.outcome.keys, &made.certificate)
            {
                self.violations.push(format!("the next record of seat {seat} is refused: {error}"));
            }
        }
        for seat in honest.iter().filter(|seat| self.accused.contains(seat)) {
            self.violations.push(format!("seat {seat} is honest and accused"));
        }
        for (seat, log) in (0u16..).zip(&self.logs).filter(|(seat, _)| honest.contains(seat)) {
            let deal = |r: &&LogRecord| matches!(r, LogRecord::Said { bytes, .. } if peek_kind(bytes) == Some(Kind::Deal));
            if log.iter().filter(deal).count() > 1 {
                self.violations.push(format!("seat {seat} dealt twice"));
            }
        }
    }
}

impl Generation {
    /// All honest and on time.
    pub fn of(seed: u64, seats: u16) -> Self {
        let faulty = BTreeMap::new();
        Self { seed, seats, loss: 0, delay_ms: D, faulty, restart: None, cut_off: None, attempts: 3 }
    }

    /// Runs it to its end.
    pub fn run(&self) -> Result<Made, GenerationError> {
        let mut run = Run::new(self)?;
        run.run()?;
        run.check();
        let done = run.honest().filter(|seat| run.done.contains_key(seat)).count();
        let first = run.honest().find_map(|seat| run.done.get(&seat));
        Ok(Made {
            done,
            attempt: first.map(|made| made.certificate.round),
            dealers: first.map(|made| made.outcome.dealers.keys().copied().collect()).unwrap_or_default(),
            accused: run.accused,
            violations: run.violations,
            trace: run.trace.finalize().into(),
        })
    }
}
