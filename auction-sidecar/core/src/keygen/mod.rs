//! The seats make the key of the next epoch, or new shares of the old one, and agree on it.
//!
//! [`KeyGeneration::handle`] takes the time and messages and says what to log, send and broadcast; at the end it gives the
//! public keys, this seat's share and a certificate that a quorum signed. Before the agreement each seat announces the
//! key that values are sealed to, deals, and says whose dealings it holds good values of. Then the contributions are
//! agreed on in *attempts*: rounds of the auction's own protocol in a market that is derived for this, with a clock of
//! its own. An attempt out of which fewer than q good dealings come is followed by the next one, with the same dealings.
//!
//! Invariants: everything that is dealt follows from a secret that was stored before the start, so that after a restart
//! the same is said; of a dealer's values at most f ever become public, in all attempts together; of a generation at most
//! one key is certified, however many attempts it takes.

mod agreed;
mod attempts;
mod epoch;
mod intake;
mod restore;
mod terms;
mod word;

#[cfg(test)]
pub(crate) use epoch::dealt_next;
pub use epoch::{EpochError, Generation, check_next, next_record};
pub use restore::RestoreError;
pub use terms::{DEFAULT_NOTICE_MS, LEAST_NOTICE_MS, Terms, TermsError};
pub use word::{Voted, Word, WordError};

use crate::award::Certificate;
use crate::crypto::Crypto;
use crate::drops::{DropReason, Drops};
use crate::evidence::message_hash_by;
use crate::limits::Limits;
use crate::log::LogRecord;
use crate::proof::FaultProof;
use crate::record::MarketRecord;
use crate::wire::{Acks, Body, Deal, DealKeyMsg, Header, Kind, Message};
use attempts::Attempt;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use vendue_market::Digest;
use vendue_sealed_bid::SealShare;
use vendue_sealed_bid::dkg::{DealKey, Dealer, DealerSeed, DkgError, Outcome, Player, RecipientKey, Setup};

/// A seat's secrets for one generation: made anew for each, stored before it starts, wiped after it.
pub struct KeySecrets {
    /// Everything that the seat deals follows from it.
    pub seed: DealerSeed,
    /// Opens what is dealt to the seat.
    pub deal: DealKey,
    /// The share that is renewed, where that is what it is about.
    pub old: Option<SealShare>,
}

/// Input of a key generation.
#[derive(Debug, Clone)]
pub enum KeyInput {
    /// Time has passed.
    Tick,
    /// A message from a seat, as the transport knows it.
    Message {
        /// The seat.
        from: u16,
        /// The message.
        bytes: Vec<u8>,
    },
}

/// Output of a key generation.
pub enum KeyOutput {
    /// Make this durable, in a log of this generation, before anything else of the same call is carried out.
    Persist(LogRecord),
    /// Send to all other seats.
    Broadcast(Vec<u8>),
    /// Send to one seat.
    Send {
        /// The seat.
        to: u16,
        /// The message.
        bytes: Vec<u8>,
    },
    /// A seat did what no honest seat does; to be verified with the record of [`Terms::record`].
    Evidence(Box<FaultProof>),
    /// An attempt makes no key; another one follows.
    Fruitless {
        /// The attempt.
        attempt: u64,
        /// Why it makes none.
        reason: Fruitless,
    },
    /// The key is certified.
    Done(Box<Generated>),
}

/// Why an attempt that was agreed on makes no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fruitless {
    /// Too few seats contributed.
    #[error("{found} seats contributed, and {needed} are needed")]
    Contributions {
        /// Seats that contributed.
        found: usize,
        /// Seats that are needed.
        needed: usize,
    },
    /// The dealings make none.
    #[error(transparent)]
    Dealings(DkgError),
}

/// A certified key.
pub struct Generated {
    /// The public keys, and whose dealings they are made of.
    pub outcome: Outcome,
    /// The admitted set of contributions.
    pub set: Digest,
    /// A quorum's word for both.
    pub certificate: Certificate,
    /// This seat's share; none when it acknowledged a value that it does not have any more: the share is to be recovered.
    pub share: Option<SealShare>,
}

/// One seat's part in a key generation.
pub struct KeyGeneration<C: Crypto> {
    terms: Terms,
    record: Arc<MarketRecord>,
    crypto: Arc<C>,
    index: u16,
    now: u64,
    setup: Arc<Setup>,
    secrets: KeySecrets,
    dealer: Dealer,
    player: Player,
    recipients: Vec<Option<RecipientKey>>,
    /// What each seat announced.
    announced: BTreeMap<u16, DealKeyMsg>,
    /// DEAL messages by dealer and digest of the commitment.
    heard: BTreeMap<(u16, Digest), Vec<u8>>,
    /// Which commitments of all dealers a seat says that it holds values of.
    said_held: BTreeMap<u16, Vec<Digest>>,
    /// Players whose values of the own polynomial are public.
    revealed: BTreeSet<u16>,
    /// Own messages outside of the attempts.
    sent: BTreeMap<Kind, Vec<u8>>,
    resend_at: u64,
    attempts: BTreeMap<u64, Attempt<C>>,
    /// The last attempt that began before a restart: in what is not later, if the log does not have it, this seat may have
    /// spoken.
    passed: Option<u64>,
    /// Seats that did not contribute to the last attempt that was agreed on.
    missed: BTreeSet<u16>,
    /// The last attempt in which this seat voted for a key.
    voted: Option<u64>,
    /// The first attempt in which it may vote: it contributed to this one, or voted in it.
    promised: u64,
    certified: Option<Certificate>,
    /// When a seat that goes on with another attempt was last given the certificate.
    helped: BTreeMap<u16, u64>,
    limits: Limits,
    drops: Drops,
}

impl<C: Crypto> KeyGeneration<C> {
    /// A seat's part in the generation that `terms` name. `crypto` is that of the current epoch: it signs and votes.
    pub fn new(
        terms: Terms,
        index: u16,
        crypto: Arc<C>,
        secrets: KeySecrets,
        now_ms: u64,
    ) -> Result<Self, DkgError> {
        let (record, setup) = (terms.record().clone(), terms.setup().clone());
        let dealer = Dealer::new(&setup, index, &secrets.seed)?;
        let player = Player::new(&setup, index, &secrets.deal)?;
        Ok(Self {
            recipients: vec![None; usize::from(record.n())],
            resend_at: terms.start_ms(),
            terms,
            record,
            crypto,
            index,
            now: now_ms,
            setup,
            secrets,
            dealer,
            player,
            announced: BTreeMap::new(),
            heard: BTreeMap::new(),
            said_held: BTreeMap::new(),
            revealed: BTreeSet::new(),
            sent: BTreeMap::new(),
            attempts: BTreeMap::new(),
            passed: None,
            missed: BTreeSet::new(),
            voted: None,
            promised: 0,
            certified: None,
            helped: BTreeMap::new(),
            limits: Limits::default(),
            drops: Drops::default(),
        })
    }

    /// Takes one input and says what to do.
    pub fn handle(&mut self, now_ms: u64, input: KeyInput) -> Vec<KeyOutput> {
        self.now = now_ms;
        let mut out = vec![];
        if now_ms < self.terms.start_ms() {
            return out;
        }
        if let KeyInput::Message { from, bytes } = input
            && let Err(reason) = self.intake(from, bytes, &mut out)
        {
            self.drops.add(reason);
        }
        self.announce(&mut out);
        self.deal(&mut out);
        self.acknowledge(&mut out);
        self.attempt(&mut out);
        self.resolve(&mut out);
        self.resend(&mut out);
        out
    }

    /// When [`KeyGeneration::handle`] must be called next, at the latest; `None` when nothing more comes of it.
    pub fn next_wake(&self) -> Option<u64> {
        let own = [self.terms.start_ms(), self.terms.deals_ms(), self.terms.acknowledges_ms()];
        let next = self.terms.next_attempt(self.now).filter(|_| !self.is_done());
        let next = next.map(|attempt| self.record.params.t0(attempt));
        let resend = (!self.is_done()).then_some(self.resend_at);
        let attempts = self.attempts.values().filter(|a| !self.is_over(a)).map(|a| a.next_wake(self.now));
        let all = own.into_iter().chain(next).chain(resend).chain(attempts);
        all.filter(|at| *at > self.now).min()
    }

    /// Messages that were dropped, by reason.
    pub fn dropped(&self) -> &Drops {
        &self.drops
    }
    /// Whether the key is certified, and this seat has it.
    pub fn is_done(&self) -> bool {
        self.certified.is_some()
    }

    fn header(&self, body: &Body) -> Header {
        let (market, epoch) = (self.record.short_id(), self.record.epoch);
        Header { kind: body.kind(), market, epoch, round: 0, seat: self.index }
    }

    /// Signs (where the kind is signed) and encodes a message outside of the attempts.
    fn encode(&self, body: Body) -> Vec<u8> {
        let header = self.header(&body);
        let hash = || message_hash_by::<C::Scheme>(&self.record.market, &header, &body);
        let signature = header.kind.is_signed().then(|| self.crypto.sign(&hash()));
        Message { header, body, signature }.encode()
    }

    /// Says something once, and keeps the bytes so that the same is said again.
    fn say(&mut self, body: Body, out: &mut Vec<KeyOutput>) {
        let (kind, bytes) = (body.kind(), self.encode(body));
        out.push(KeyOutput::Persist(LogRecord::Said { at_ms: self.now, bytes: bytes.clone() }));
        out.push(KeyOutput::Broadcast(bytes.clone()));
        self.sent.insert(kind, bytes);
    }

    fn announce(&mut self, out: &mut Vec<KeyOutput>) {
        if self.sent.contains_key(&Kind::DealKey) || self.voted.is_some() {
            return;
        }
        let Ok(key) = self.secrets.deal.public_key() else { return };
        let announced = DealKeyMsg { key, commitment: self.dealer.digest() };
        // Nobody else's word comes under the own number.
        let _ = self.learn_key(self.index, &announced);
        self.say(Body::DealKey(announced), out);
    }

    /// Keeps what a seat announces: the key that its values are sealed to, and what it commits to. The first counts, and
    /// the commitment only where this seat has not dealt yet; whether it does.
    fn learn_key(&mut self, seat: u16, announced: &DealKeyMsg) -> Result<bool, DropReason> {
        let key = RecipientKey::from_bytes(&announced.key).map_err(|_| DropReason::Malformed)?;
        match self.announced.get(&seat) {
            Some(known) if known == announced => return Err(DropReason::Duplicate),
            Some(_) => return Err(DropReason::Conflict),
            None => {}
        }
        let place = self.recipients.get_mut(usize::from(seat)).ok_or(DropReason::WrongSender)?;
        *place = Some(key);
        self.announced.insert(seat, announced.clone());
        Ok(self.player.announce(seat, announced.commitment))
    }

    /// Deals when all keys are known, or when it is time and a quorum's are.
    fn deal(&mut self, out: &mut Vec<KeyOutput>) {
        let due = self.is_due(self.recipients.iter().flatten().count(), self.terms.deals_ms());
        if self.sent.contains_key(&Kind::Deal) || !due || self.voted.is_some() {
            return;
        }
        let Ok(dealing) = self.dealer.dealing(&self.recipients) else { return };
        self.player.deals();
        self.say(Body::Deal(Deal { dealing: dealing.to_bytes() }), out);
        if let Some(bytes) = self.sent.get(&Kind::Deal) {
            self.heard.insert((self.index, dealing.digest()), bytes.clone());
        }
        // Its own value is sealed to this seat like all others.
        let _ = self.player.receive(dealing, &self.secrets.deal);
    }

    /// Acknowledges when all dealings are there, or when it is time and a quorum's are.
    fn acknowledge(&mut self, out: &mut Vec<KeyOutput>) {
        let dealers: BTreeSet<u16> = self.heard.keys().map(|(dealer, _)| *dealer).collect();
        let due = self.is_due(dealers.len(), self.terms.acknowledges_ms());
        if self.sent.contains_key(&Kind::Acks) || !due || self.voted.is_some() {
            return;
        }
        let held = self.acks();
        self.said_held.insert(self.index, held.clone());
        self.say(Body::Acks(Acks { held }), out);
    }

    /// Whether it is time for something that all or, from then on, a quorum must have gone before.
    fn is_due(&self, found: usize, from_ms: u64) -> bool {
        let (all, enough) = (usize::from(self.record.n()), usize::from(self.record.q()));
        found == all || (self.now >= from_ms && found >= enough)
    }

    /// The commitments that this seat holds good values of.
    fn acks(&mut self) -> Vec<Digest> {
        // What is wrong is not acknowledged, and that is all that follows from it.
        let _ = self.player.check(&self.secrets.deal);
        self.player.acks()
    }

    /// Says everything again, often until the attempts begin and now and then until one comes to a key.
    fn resend(&mut self, out: &mut Vec<KeyOutput>) {
        if self.now < self.resend_at || self.is_done() {
            return;
        }
        let again = self.now > self.terms.start_ms();
        let delays = if self.now >= self.record.params.t0(0) { 12 } else { 2 };
        self.resend_at = self.now + delays * self.record.params.delay_ms;
        if again {
            out.extend(self.sent.values().map(|bytes| KeyOutput::Broadcast(bytes.clone())));
        }
    }
}

#[cfg(test)]
mod attempts_tests;
#[cfg(test)]
mod faulty_tests;
#[cfg(test)]
mod tests;
