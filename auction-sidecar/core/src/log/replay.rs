//! A round once more, from the log: the same state machine is given what the seat was given, at the same times, and must
//! sign the same bytes.
//!
//! Inputs: the market record, the seat's number, and its log with what it received. Output: what the round came to, or the
//! first thing that the seat signed and this code would not have. No secret is needed: where the seat signed, the
//! signature is looked up in the log, and where the log has none the bytes differ.

mod decision;
mod lookup;

pub use decision::{Decision, Step};

use super::LogRecord;
use crate::award::Certificate;
use crate::clearing::Explained;
use crate::evidence::message_hash;
use crate::record::MarketRecord;
use crate::round::{RecallError, Round, RoundInput, RoundOutput};
use crate::wire::{Commit, Kind, Listed, Message, decode};
use decision::Story;
use lookup::Lookup;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use vendue_market::encode::to_hex;
use vendue_market::{Cleared, Digest, Order, tagged_hash};

/// What a replayed round came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Replayed {
    /// The round.
    pub round: u64,
    /// The admitted set and why it is final.
    pub commit: Option<(Digest, Commit)>,
    /// The admitted bundles.
    pub admitted: Vec<Listed>,
    /// What the seat decided, step by step.
    pub decisions: Vec<Decision>,
    /// The beacon.
    pub beacon: Option<Digest>,
    /// The award root that follows.
    pub root: Option<Digest>,
    /// The certificate.
    pub certificate: Option<Certificate>,
    /// Every order's outcome with reasons.
    pub cleared: Vec<Cleared>,
    /// Why each of them went where it did, in the same order.
    pub explained: Vec<Explained>,
    /// The bodies of these orders.
    pub orders: BTreeMap<Digest, Order>,
    /// Signed messages that were made again and are equal to those in the log.
    pub equal: usize,
    /// Messages that are made at the end and are not in the log, as when the process ended before it wrote them.
    pub unwritten: usize,
    /// How often the seat was restarted within the round.
    pub restarts: usize,
}

/// Where a replay and the log part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("record {record} of the round, at {at_ms} ms: {what}")]
pub struct Difference {
    /// Position among the round's records.
    pub record: usize,
    /// Time of the record.
    pub at_ms: u64,
    /// What differs.
    pub what: String,
}

/// Why a round cannot be replayed, or does not come out as it was signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// No record of the round.
    #[error("the log has no record of round {0}")]
    Nothing(u64),
    /// Only own messages are in it.
    #[error("the log has nothing that was received in round {0}: run the seat with --log-received")]
    NotReceived(u64),
    /// The log had no room for all that was received.
    #[error("the log leaves out a part of what was received in round {0}: there was too much of it")]
    Omitted(u64),
    /// A stored message is not the seat's.
    #[error(transparent)]
    Recall(#[from] RecallError),
    /// The replay disagrees with what was signed.
    #[error("the replay differs from the log: {0}")]
    Differs(Difference),
}

/// Replays a round of a seat from its log.
pub fn replay(
    record: &Arc<MarketRecord>,
    seat: u16,
    round: u64,
    log: &[LogRecord],
) -> Result<Replayed, ReplayError> {
    let of_round: Vec<&LogRecord> = log.iter().filter(|r| r.round() == Some(round)).collect();
    if of_round.is_empty() {
        return Err(ReplayError::Nothing(round));
    }
    if of_round.iter().any(|r| matches!(r, LogRecord::Omitted { .. })) {
        return Err(ReplayError::Omitted(round));
    }
    if !of_round.iter().any(|r| matches!(r, LogRecord::Heard { .. })) {
        return Err(ReplayError::NotReceived(round));
    }
    let crypto = Arc::new(Lookup::new(record.clone(), seat, round, &of_round));
    let mut run = Run {
        record: record.clone(),
        crypto,
        seat,
        round,
        machine: None,
        past: vec![],
        story: Story::default(),
        lacking: BTreeSet::new(),
        made: VecDeque::new(),
        asked: false,
        started: None,
        equal: 0,
        restarts: 0,
    };
    for entry in log.iter().filter(|r| r.round().is_none_or(|of| of == round)) {
        run.step(entry)?;
    }
    run.bids_sealed()?;
    let machine = run.machine.ok_or(ReplayError::Nothing(round))?;
    Ok(Replayed {
        round,
        commit: machine.commit().cloned(),
        admitted: machine.admitted().to_vec(),
        decisions: run.story.tell(),
        explained: machine.explain(),
        beacon: machine.beacon(),
        root: machine.cleared().map(|(root, _)| root),
        certificate: machine.certificate().cloned(),
        cleared: machine.cleared().map(|(_, cleared)| cleared.to_vec()).unwrap_or_default(),
        orders: machine.orders().iter().map(|(digest, order)| (*digest, Order::clone(order))).collect(),
        equal: run.equal,
        unwritten: run.made.len(),
        restarts: run.restarts,
    })
}

/// A replay that is under way.
struct Run<'l> {
    record: Arc<MarketRecord>,
    crypto: Arc<Lookup>,
    seat: u16,
    round: u64,
    machine: Option<Round<Lookup>>,
    past: Vec<&'l LogRecord>,
    story: Story,
    /// Orders whose bodies the machine asked for and the log has not shown yet.
    lacking: BTreeSet<Digest>,
    /// What the machine signed and the log has not shown yet.
    made: VecDeque<Vec<u8>>,
    asked: bool,
    /// When the process that wrote the next records started.
    started: Option<u64>,
    equal: usize,
    restarts: usize,
}

impl<'l> Run<'l> {
    fn step(&mut self, entry: &'l LogRecord) -> Result<(), ReplayError> {
        match entry {
            LogRecord::Observe { at_ms, .. } => return self.restart(*at_ms),
            LogRecord::Bids { at_ms, bids, .. } => {
                if !self.asked {
                    self.give(*at_ms, RoundInput::Tick);
                }
                self.written(*at_ms)?;
                self.give(*at_ms, RoundInput::Bids(bids.as_ref().clone()));
            }
            LogRecord::Heard { at_ms, bytes } => {
                self.written(*at_ms)?;
                let message = self.check(*at_ms, bytes)?;
                self.give(*at_ms, RoundInput::Message { message: Box::new(message), bytes: bytes.clone() });
            }
            LogRecord::Orders { at_ms, orders, .. } => {
                self.written(*at_ms)?;
                let orders: Vec<_> =
                    orders.iter().map(|order| (order.digest(), Arc::new(order.clone()))).collect();
                for (digest, _) in &orders {
                    self.lacking.remove(digest);
                }
                self.give(*at_ms, RoundInput::Orders(orders));
            }
            LogRecord::Said { at_ms, bytes } => self.said(*at_ms, bytes)?,
            LogRecord::Certified { at_ms, certificate } => self.certified(*at_ms, certificate)?,
            _ => {}
        }
        if entry.round() == Some(self.round) {
            self.past.push(entry);
        }
        Ok(())
    }

    /// The process was started anew: what it had made and not written it never sent.
    fn restart(&mut self, at_ms: u64) -> Result<(), ReplayError> {
        // A segment repeats the start that its process had.
        if self.started.replace(at_ms) == Some(at_ms) {
            return Ok(());
        }
        if self.past.is_empty() || at_ms >= self.record.params.expiry(self.round) {
            return Ok(());
        }
        let (record, crypto) = (self.record.clone(), self.crypto.clone());
        let past = self.past.iter().copied();
        self.machine = Some(Round::recall(record, crypto, self.seat, self.round, at_ms, past)?);
        self.made.clear();
        self.restarts += 1;
        self.story.restart(at_ms);
        self.give(at_ms, RoundInput::Tick);
        Ok(())
    }

    fn give(&mut self, at_ms: u64, input: RoundInput) {
        let (record, crypto, seat, round) = (self.record.clone(), self.crypto.clone(), self.seat, self.round);
        let machine = self.machine.get_or_insert_with(|| Round::new(record, crypto, seat, round, at_ms));
        for output in machine.handle(at_ms, input) {
            match output {
                RoundOutput::Persist(LogRecord::Said { bytes, .. }) => self.made.push_back(bytes),
                RoundOutput::NeedBids { .. } => self.asked = true,
                RoundOutput::NeedOrders(wanted) => self.lacking.extend(wanted),
                _ => {}
            }
        }
        self.story.look(at_ms, machine);
    }

    /// A message that was received and taken in carries its sender's signature.
    fn check(&self, at_ms: u64, bytes: &[u8]) -> Result<Message, ReplayError> {
        let foreign = || self.differs(at_ms, "a received message is not its sender's".to_owned());
        let message = decode(bytes, self.record.n()).map_err(|_| foreign())?;
        let sender = self.record.seat(message.header.seat).ok_or_else(foreign)?;
        if let Some(signature) = &message.signature {
            let hash = message_hash(&self.record.market, &message.header, &message.body);
            crate::evidence::verify(&hash, signature, &sender.evidence_key).map_err(|_| foreign())?;
        }
        Ok(message)
    }

    fn said(&mut self, at_ms: u64, bytes: &[u8]) -> Result<(), ReplayError> {
        if self.crypto.is_forged(bytes) {
            let what = "has a signature, vote or share that is not the seat's";
            return Err(self.differs(at_ms, format!("{} {what}", self.name(bytes))));
        }
        if self.made.is_empty() {
            self.give(at_ms, RoundInput::Tick);
        }
        match self.made.pop_front() {
            Some(made) if made == bytes => {
                self.equal += 1;
                self.story.said(at_ms, bytes, self.record.n(), &self.past);
                Ok(())
            }
            Some(made) => Err(self.differs(
                at_ms,
                format!("the seat signed {}, the replay signs {}", self.name(bytes), self.name(&made)),
            )),
            None => {
                let lacks = self.lacking.first().map(|order| {
                    format!(
                        ": the log lacks the bodies of {} orders, {} among them",
                        self.lacking.len(),
                        to_hex(order)
                    )
                });
                let lacks = lacks.unwrap_or_default();
                Err(self.differs(
                    at_ms,
                    format!("the seat signed {}, the replay nothing{lacks}", self.name(bytes)),
                ))
            }
        }
    }

    /// Before the next input, the log shows all that the last one led to.
    fn written(&self, at_ms: u64) -> Result<(), ReplayError> {
        match self.made.front() {
            Some(made) => {
                Err(self.differs(at_ms, format!("the replay signs {}, the seat did not", self.name(made))))
            }
            None => Ok(()),
        }
    }

    fn certified(&mut self, at_ms: u64, certificate: &Certificate) -> Result<(), ReplayError> {
        let found = |run: &Self| run.machine.as_ref().and_then(|m| m.certificate().cloned());
        if found(self).is_none() {
            self.give(at_ms, RoundInput::Tick);
        }
        match found(self) {
            Some(made) if made == *certificate => Ok(()),
            Some(made) => Err(self.differs(
                at_ms,
                format!(
                    "the certificate is for root {}, the replay's for {}",
                    to_hex(&certificate.root),
                    to_hex(&made.root)
                ),
            )),
            None => Err(self.differs(at_ms, "the round is certified, in the replay it is not".to_owned())),
        }
    }

    /// The bundle holds what the log says that the seat bid.
    fn bids_sealed(&self) -> Result<(), ReplayError> {
        let bids = |r: &&&LogRecord| matches!(r, LogRecord::Bids { .. });
        let at_ms = self.past.iter().find(bids).and_then(|r| r.at_ms()).unwrap_or_default();
        if self.crypto.has_sealed_other() {
            return Err(self.differs(at_ms, "the seat sealed other bids than those in its log".to_owned()));
        }
        Ok(())
    }

    /// A message in words.
    fn name(&self, bytes: &[u8]) -> String {
        let kind = crate::wire::peek_kind(bytes).map_or("nothing known", Kind::name);
        let digest = tagged_hash("VENDUE-V1-REPLAYED", &[bytes]);
        let short = to_hex(digest.get(..6).unwrap_or_default());
        match decision::subject(bytes, self.record.n()) {
            Some(subject) => format!("{kind} for {} ({short})", to_hex(&subject)),
            None => format!("{kind} ({short})"),
        }
    }

    fn differs(&self, at_ms: u64, what: String) -> ReplayError {
        ReplayError::Differs(Difference { record: self.past.len(), at_ms, what })
    }
}
