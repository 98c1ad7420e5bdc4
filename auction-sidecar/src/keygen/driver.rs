//! The task that drives one generation: messages in, time, records to the log, messages out, files at the end.
//!
//! Invariants: of what one call of the state machine gives, the records are durable before anything is sent; one request to
//! each seat at most is under way; every queue is bounded.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use vendue_auction_core::keygen::{Generated, KeyGeneration, KeyInput, KeyOutput, Terms, next_record};
use vendue_auction_core::log::LogRecord;
use vendue_auction_core::wire::{Body, Cert, Header, Kind, Message};
use vendue_auction_core::{Certificate, KeyError, MarketRecord, SeatCrypto, SeatKeys, secret};

use super::folder::Folder;
use super::progress::names;
use super::words::Words;
use super::{GenerateError, Progress};
use crate::engine::now_ms;
use crate::keys::KeysFile;
use crate::log::{Appender, ProofKeeper};
use crate::net::{Handle, Inbound, MemberId, NetError, Protocol, RoundEvent};

/// Longest sleep.
const LONGEST: Duration = Duration::from_millis(250);
/// Longest wait for the answer to a word.
const ANSWER: Duration = Duration::from_secs(3);
/// Shortest stay of a seat that has nothing to wait for: its last answer is to arrive.
const LEAVE_MS: u64 = 500;
/// How long a seat that comes when all attempts are over looks for somebody who has the keys, at most.
const LOOKS_MS: u64 = 60_000;
/// How often the log says what is waited for.
const REPORT_MS: u64 = 10_000;

/// What a driver is made of.
pub(super) struct Parts {
    pub(super) old: Arc<MarketRecord>,
    pub(super) terms: Terms,
    pub(super) seat: u16,
    pub(super) generation: KeyGeneration<SeatCrypto>,
    pub(super) log: Appender,
    pub(super) proofs: ProofKeeper,
    pub(super) net: Handle,
    pub(super) folder: Folder,
    pub(super) keys: KeysFile,
    pub(super) stay: Duration,
}

/// The answer of a seat to a word.
struct Answer {
    seat: u16,
    answer: Result<Bytes, NetError>,
}

/// The task.
pub(super) struct Driver<'p> {
    old: Arc<MarketRecord>,
    terms: Terms,
    seat: u16,
    generation: KeyGeneration<SeatCrypto>,
    log: Option<Appender>,
    proofs: ProofKeeper,
    net: Handle,
    folder: Folder,
    keys: KeysFile,
    stay_ms: u64,
    /// When a seat without a key gives up.
    gives_up_ms: u64,
    words: Words,
    progress: &'p watch::Sender<Progress>,
    /// The certified key, until it is stored.
    made: Option<Box<Generated>>,
    /// The stored record.
    next: Option<MarketRecord>,
    /// When everything was stored.
    finished_ms: Option<u64>,
    has_share: bool,
    /// When this seat ends, once there is nothing to wait for.
    leave_at: Option<u64>,
    asking: BTreeSet<u16>,
    ask_at: u64,
    report_at: u64,
}

/// The certificate in a next record.
fn certificate_of(next: &MarketRecord) -> Option<Certificate> {
    next.generation.as_ref()?.certificate.certificate(next.n()).ok()
}

/// When a seat without a key gives up: some time after the last attempt, or after it came, if it came later.
pub(super) fn gives_up_ms(ends_ms: u64, came_ms: u64, stay_ms: u64) -> u64 {
    ends_ms.max(came_ms).saturating_add(stay_ms.min(LOOKS_MS))
}

impl<'p> Driver<'p> {
    pub(super) fn new(parts: Parts, progress: &'p watch::Sender<Progress>) -> Result<Self, GenerateError> {
        let Parts { old, terms, seat, generation, log, proofs, net, folder, keys, stay } = parts;
        let next = folder.record(&old, &terms)?;
        let stay_ms = u64::try_from(stay.as_millis()).unwrap_or(u64::MAX);
        let gives_up_ms = gives_up_ms(terms.ends_ms(), now_ms(), stay_ms);
        let mut driver = Self {
            words: Words::new(terms.record().clone(), seat),
            old,
            terms,
            seat,
            generation,
            log: Some(log),
            proofs,
            net,
            folder,
            keys,
            stay_ms,
            gives_up_ms,
            progress,
            made: None,
            next,
            finished_ms: None,
            has_share: true,
            leave_at: None,
            asking: BTreeSet::new(),
            ask_at: 0,
            report_at: 0,
        };
        if let Some(chosen) = driver.next.as_ref().and_then(certificate_of)
            && driver.folder.has_keys()?
        {
            driver.finish(chosen);
        }
        Ok(driver)
    }

    /// Runs until everybody has finished, or nothing more can come of it.
    pub(super) async fn run(
        mut self,
        mut rounds: mpsc::Receiver<RoundEvent>,
        mut requests: mpsc::Receiver<Inbound>,
        stop: impl Future<Output = ()>,
    ) -> Result<MarketRecord, GenerateError> {
        let (answered, mut answers) = mpsc::channel(usize::from(self.old.n()).max(1));
        tokio::pin!(stop);
        self.give(KeyInput::Tick).await?;
        self.tell_stored().await?;
        loop {
            if self.generation.next_wake().is_some_and(|at| at <= now_ms()) {
                self.give(KeyInput::Tick).await?;
            }
            self.settle()?;
            if let Some(next) = self.end()? {
                return Ok(next);
            }
            self.ask(&answered);
            self.report();
            tokio::select! {
                biased;
                () = &mut stop => return self.stopped(),
                event = rounds.recv() => match event {
                    Some(RoundEvent::Message { from, bytes }) => self.message(from, &bytes).await?,
                    Some(RoundEvent::Up(_) | RoundEvent::Down(_)) => {}
                    None => return Err(GenerateError::Ended("network")),
                },
                request = requests.recv() => match request {
                    Some(request) => self.request(request).await?,
                    None => return Err(GenerateError::Ended("network")),
                },
                Some(answer) = answers.recv() => self.answer(answer).await?,
                () = tokio::time::sleep(self.sleep()) => {}
            }
        }
    }

    fn sleep(&self) -> Duration {
        let asks = (!self.open().is_empty() && self.has_certificate()).then_some(self.ask_at);
        let times = [self.generation.next_wake(), self.words.waits_until(), asks, self.leave_at];
        let wait = times.into_iter().flatten().map(|at| at.saturating_sub(now_ms())).min();
        wait.map_or(LONGEST, Duration::from_millis).clamp(Duration::from_millis(1), LONGEST)
    }

    fn has_certificate(&self) -> bool {
        self.made.is_some() || self.finished_ms.is_some()
    }

    /// Gives the state machine one input and carries out what it says.
    async fn give(&mut self, input: KeyInput) -> Result<(), GenerateError> {
        let (mut records, mut rest) = (vec![], vec![]);
        for output in self.generation.handle(now_ms(), input) {
            match output {
                KeyOutput::Persist(record) => records.push(record),
                other => rest.push(other),
            }
        }
        if !records.is_empty() {
            self.persist(records).await?;
        }
        rest.into_iter().for_each(|output| self.carry_out(output));
        Ok(())
    }

    async fn persist(&mut self, records: Vec<LogRecord>) -> Result<(), GenerateError> {
        let ended = || GenerateError::Ended("thread that writes the log");
        let mut log = self.log.take().ok_or_else(ended)?;
        let write = move || {
            let written = log.append(&records, now_ms());
            (log, written)
        };
        let (log, written) = tokio::task::spawn_blocking(write).await.map_err(|_| ended())?;
        self.log = Some(log);
        written?;
        Ok(())
    }

    fn carry_out(&mut self, output: KeyOutput) {
        match output {
            KeyOutput::Broadcast(bytes) => {
                self.note(self.seat, &bytes);
                let bytes = Bytes::from(bytes);
                for seat in (0..self.old.n()).filter(|seat| *seat != self.seat) {
                    self.net.send(MemberId::Seat(seat), bytes.clone());
                }
            }
            KeyOutput::Send { to, bytes } => self.net.send(MemberId::Seat(to), Bytes::from(bytes)),
            KeyOutput::Evidence(proof) => self.proofs.keep(*proof),
            KeyOutput::Fruitless { attempt, reason } => {
                tracing::warn!(attempt, %reason, "an attempt made no key; another one follows");
            }
            KeyOutput::Done(made) => self.certified(made),
            // Taken out before.
            KeyOutput::Persist(_) => {}
        }
    }

    fn note(&self, seat: u16, message: &[u8]) {
        self.progress.send_modify(|progress| progress.note(self.terms.record(), seat, message));
    }

    fn certified(&mut self, made: Box<Generated>) {
        let record = self.terms.record();
        let dealers = made.outcome.dealers.keys().copied().collect();
        self.progress.send_modify(|progress| progress.certify(made.certificate.round, &dealers, record));
        let public: Vec<u16> = made.outcome.public.iter().collect();
        if !public.is_empty() {
            let seats = names(record, public);
            tracing::warn!(seats, "their shares are public: they did not say in time what they hold");
        }
        if self.finished_ms.is_none() {
            self.words.certified(made.certificate.clone(), now_ms());
            self.made = Some(made);
            self.ask_at = 0;
        }
    }

    async fn message(&mut self, from: MemberId, bytes: &Bytes) -> Result<(), GenerateError> {
        let MemberId::Seat(seat) = from else { return Ok(()) };
        let dropped = self.generation.dropped().total();
        self.give(KeyInput::Message { from: seat, bytes: bytes.to_vec() }).await?;
        if self.generation.dropped().total() == dropped && now_ms() >= self.terms.start_ms() {
            self.note(seat, bytes);
        }
        Ok(())
    }

    async fn request(&mut self, request: Inbound) -> Result<(), GenerateError> {
        let MemberId::Seat(seat) = request.from else { return Ok(()) };
        if self.hear(seat, &request.body).await? {
            request.reply.send(Bytes::from(self.words.own(seat)));
        }
        Ok(())
    }

    async fn answer(&mut self, Answer { seat, answer }: Answer) -> Result<(), GenerateError> {
        self.asking.remove(&seat);
        match answer {
            Ok(word) => {
                self.hear(seat, &word).await?;
            }
            Err(error) => tracing::debug!(seat, %error, "word not answered"),
        }
        Ok(())
    }

    /// Takes a seat's word; whether it was one. A certificate in it is one for the state machine too.
    async fn hear(&mut self, seat: u16, word: &[u8]) -> Result<bool, GenerateError> {
        let Some(heard) = self.words.hear(seat, word) else { return Ok(false) };
        if self.words.has_finished(seat) {
            self.progress.send_modify(|progress| progress.finish(seat, self.terms.record()));
        }
        if let Some(certificate) = heard.filter(|_| !self.has_certificate()) {
            self.tell(seat, certificate).await?;
        }
        Ok(true)
    }

    /// Gives the state machine a certificate as a seat's message.
    async fn tell(&mut self, seat: u16, certificate: Certificate) -> Result<(), GenerateError> {
        let body = Body::Cert(Cert { root: certificate.root, quorum: certificate.quorum });
        let (market, epoch) = (self.terms.record().short_id(), certificate.epoch);
        let header = Header { kind: Kind::Cert, market, epoch, round: certificate.round, seat };
        let bytes = Message { header, body, signature: None }.encode();
        self.give(KeyInput::Message { from: seat, bytes }).await
    }

    /// What is stored of a certified key, where the process ended before its keys were.
    async fn tell_stored(&mut self) -> Result<(), GenerateError> {
        let stored = self.next.as_ref().and_then(certificate_of).filter(|_| !self.has_certificate());
        let Some(certificate) = stored else { return Ok(()) };
        let signer = certificate.quorum.signers.iter().find(|signer| *signer != self.seat);
        match signer {
            Some(signer) => self.tell(signer, certificate).await,
            None => Ok(()),
        }
    }

    /// Stores record and keys as soon as it is clear which certificate the record carries.
    fn settle(&mut self) -> Result<(), GenerateError> {
        if self.made.is_none() {
            return Ok(());
        }
        let stored = self.next.as_ref().and_then(certificate_of);
        let Some(chosen) = stored.or_else(|| self.words.choose(now_ms())) else { return Ok(()) };
        let Some(made) = self.made.take() else { return Ok(()) };
        let Generated { outcome, set, share, .. } = *made;
        let next = match self.next.take() {
            Some(next) => next,
            None => {
                let next = next_record(&self.old, &self.terms, set, &outcome.keys, &chosen)?;
                self.folder.write_record(&next)?;
                next
            }
        };
        self.has_share = share.is_some();
        if let Some(share) = share {
            let file = self.keys.seat.as_ref().ok_or(KeyError::Mismatch("seat"))?;
            let keys = SeatKeys { share, ..SeatKeys::from_file(file)? };
            keys.check(&next)?;
            self.keys.seat = Some(keys.to_file());
            let json = secret::to_json(&self.keys).map_err(GenerateError::Encode)?;
            self.folder.write_keys(json.as_bytes())?;
        }
        self.next = Some(next);
        self.finish(chosen);
        Ok(())
    }

    fn finish(&mut self, chosen: Certificate) {
        self.words.finish(chosen);
        self.finished_ms = Some(now_ms());
        self.ask_at = 0;
        self.progress.send_modify(|progress| progress.finish(self.seat, self.terms.record()));
    }

    /// The record, when this seat need not stay; why there is none, when there will be none.
    fn end(&mut self) -> Result<Option<MarketRecord>, GenerateError> {
        let now = now_ms();
        let Some(finished) = self.finished_ms else {
            if now <= self.gives_up_ms || self.made.is_some() {
                return Ok(None);
            }
            let waiting_for = || self.progress.borrow().waits_for(self.terms.record());
            return Err(match &self.next {
                Some(_) => GenerateError::NoKeys(self.folder.record_path()),
                None => GenerateError::NoKey { waiting_for: waiting_for() },
            });
        };
        let open = self.open();
        if open.is_empty() {
            let soon = now + LEAVE_MS.max(4 * self.terms.record().params.delay_ms);
            if now < *self.leave_at.get_or_insert(soon) {
                return Ok(None);
            }
        } else if now < finished.saturating_add(self.stay_ms) {
            return Ok(None);
        }
        if !open.is_empty() {
            let seats = names(self.terms.record(), open);
            tracing::warn!(seats, "ends without these seats having said that they have their keys");
        }
        self.folder.forget()?;
        if !self.has_share {
            return Err(GenerateError::NoShare(self.folder.record_path()));
        }
        Ok(self.next.take())
    }

    /// Seats to stay for: those without keys, and those that wait for this seat to have its own. Who has finished and gone
    /// waits for nobody.
    fn open(&self) -> Vec<u16> {
        let stays =
            |seat: &u16| !self.words.has_finished(*seat) || self.net.is_connected(MemberId::Seat(*seat));
        self.words.open().into_iter().filter(stays).collect()
    }

    /// What a signal leaves behind: what is stored is good, and otherwise the folder is gone on with.
    fn stopped(mut self) -> Result<MarketRecord, GenerateError> {
        match self.next.take().filter(|_| self.finished_ms.is_some()) {
            Some(next) if self.has_share => Ok(next),
            Some(_) => Err(GenerateError::NoShare(self.folder.record_path())),
            None => Err(GenerateError::Stopped(self.folder.path().to_owned())),
        }
    }

    /// Tells the own word to the seats that have not finished or do not know that this one has.
    fn ask(&mut self, answered: &mpsc::Sender<Answer>) {
        let now = now_ms();
        if !self.has_certificate() || now < self.ask_at {
            return;
        }
        self.ask_at = now + (2 * self.terms.record().params.delay_ms).max(100);
        for seat in self.open() {
            let to = MemberId::Seat(seat);
            if self.asking.contains(&seat) || !self.net.is_connected(to) {
                continue;
            }
            self.asking.insert(seat);
            let (net, word, answered) =
                (self.net.clone(), Bytes::from(self.words.own(seat)), answered.clone());
            tokio::spawn(async move {
                let answer = net.request(to, Protocol::Handover, word, ANSWER).await;
                let _ = answered.send(Answer { seat, answer }).await;
            });
        }
    }

    fn report(&mut self) {
        let now = now_ms();
        if now < self.report_at {
            return;
        }
        self.report_at = now + REPORT_MS;
        let connected = self.net.connected().borrow().len();
        let in_s = self.terms.start_ms().saturating_sub(now) / 1000;
        if in_s > 0 {
            return tracing::info!(connected, in_s, "waiting for the start");
        }
        let waiting_for = self.progress.borrow().waits_for(self.terms.record());
        tracing::info!(connected, waiting_for, dropped = self.generation.dropped().total(), "making keys");
    }
}
