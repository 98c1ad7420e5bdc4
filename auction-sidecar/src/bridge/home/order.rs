//! One task per order: what its state machine says becomes `Job.status.auction`, the Award and the hand-over.
//!
//! Invariant: events of one order are worked on one after the other; orders do not wait for each other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use tokio::sync::mpsc;
use vendue_auction_core::{
    AwardFile, AwardProof, Certificate, CertificateFile, Choice, HomeInput, HomeOutput, KeyOrigin,
};
use vendue_crds::conditions::{self, award as condition, reasons};
use vendue_crds::{AuctionOutcome, AuctionStatus, AwardStatus, CertificateData, ExclusionCount};
use vendue_market::encode::to_hex;
use vendue_market::{Digest, GpuModel, Order, Outcome, Price};

use super::persist::{Removal, Written};
use super::{Entry, HomeContext, JobKey, handover};
use crate::bridge::devices::bound_devices;
use crate::bridge::objects::AwardFacts;
use crate::engine::now_ms;

const QUEUE: usize = 64;
/// How often a Job is told that rounds go by, and how often when what they say changes.
const TELL_AGAIN: Duration = Duration::from_secs(10);
const TELL_CHANGES: Duration = Duration::from_secs(2);

/// Everything a task knows of its order.
pub(super) struct OrderTask {
    pub(super) context: Arc<HomeContext>,
    pub(super) job: JobKey,
    pub(super) digest: Digest,
    pub(super) order: Order,
    signature: [u8; 65],
    pub(super) auction: AuctionStatus,
    made_ms: u64,
    pub(super) award: Option<(AwardFacts, CertificateData)>,
    /// The Award's spec as it was last written.
    pub(super) written: Option<Written>,
    /// The seat of the choice that is stored.
    chosen: Option<u16>,
    /// Whether the workload may have left.
    given: bool,
    /// Whether it was told that enough seats have the order.
    placed: bool,
    /// When it was last told that a round gave it to nobody.
    told: Option<Instant>,
}

/// An order was made: its task starts.
pub(super) fn started(
    context: &Arc<HomeContext>,
    digest: Digest,
    order: Order,
    signature: [u8; 65],
    starts_ms: u64,
) {
    let key = (order.job.clone(), order.attempt);
    let Some(job) = context.book(|book| book.jobs.get(&key).cloned()) else {
        // Withdrawn in the meantime. The state machine, which calls, must not wait for itself.
        let context = context.clone();
        tokio::spawn(async move { context.tell(HomeInput::Cancel { order: digest }).await });
        return;
    };
    let wait = starts_ms.saturating_sub(now_ms());
    tracing::info!(job = job.uid, order = %to_hex(&digest), round = order.first_round, wait_ms = wait, "order placed");
    context.metrics.orders.with_label_values(&["placed"]).inc();
    let message = format!("the order is on its way to {} providers", context.record.n());
    let mut task = OrderTask::new(context, job, digest, order, signature);
    task.auction.outcome = AuctionOutcome::Pending;
    task.auction.message = Some(message);
    task.spawn(true);
}

impl OrderTask {
    pub(super) fn new(
        context: &Arc<HomeContext>,
        job: JobKey,
        digest: Digest,
        order: Order,
        signature: [u8; 65],
    ) -> Self {
        let attempt = i32::try_from(order.attempt).unwrap_or(i32::MAX);
        let fresh = AuctionStatus { order_digest: Some(to_hex(&digest)), ..AuctionStatus::new(attempt) };
        // After a restart the search goes on, in another order.
        let mut auction = match job.auction.clone().filter(|before| before.attempt == fresh.attempt) {
            Some(before) => AuctionStatus { order_digest: fresh.order_digest, ..before },
            None => fresh,
        };
        auction.insecure_keys = context.record.key_origin == KeyOrigin::InsecureDealer;
        Self {
            context: context.clone(),
            job,
            digest,
            order,
            signature,
            auction,
            made_ms: now_ms(),
            award: None,
            written: None,
            chosen: None,
            given: false,
            placed: false,
            told: None,
        }
    }

    /// Takes up an order whose Award was found after a restart.
    pub(super) fn resumed(mut self, facts: AwardFacts, certificate: CertificateData) -> Self {
        self.auction.outcome = AuctionOutcome::Awarded;
        self.auction.round = i64::try_from(facts.round).ok();
        self.award = Some((facts, certificate));
        self
    }

    /// Starts the task.
    pub(super) fn spawn(self, write_first: bool) {
        let (events, receiver) = mpsc::channel(QUEUE);
        let job = (self.order.job.clone(), self.order.attempt);
        self.context.book(|book| {
            book.jobs.entry(job.clone()).or_insert_with(|| self.job.clone());
            book.orders.insert(self.digest, Entry { job, events });
        });
        tokio::spawn(self.run(receiver, write_first));
    }

    /// Ends when the order is taken out of the book.
    async fn run(mut self, mut events: mpsc::Receiver<HomeOutput>, write_first: bool) {
        if write_first {
            self.write_auction().await;
        }
        while let Some(event) = events.recv().await {
            let last = matches!(event, HomeOutput::GivenUp { .. });
            self.on(event).await;
            if last {
                self.context.forget(&(self.order.job.clone(), self.order.attempt)).await;
                return;
            }
        }
        // Withdrawn: an Award that nobody was chosen for would be taken up again.
        if self.chosen.is_none() && !self.given {
            self.clear_award().await;
        }
    }

    /// Every event names the order by its body of that time.
    fn follow(&mut self, event: &HomeOutput) {
        if let Some(digest) = super::digest_of(event).filter(|digest| *digest != self.digest) {
            self.digest = digest;
            self.auction.order_digest = Some(to_hex(&digest));
        }
    }

    async fn on(&mut self, event: HomeOutput) {
        self.follow(&event);
        match event {
            HomeOutput::Received { seats, enough, models, .. } => {
                self.auction.receipts = i32::try_from(seats.len()).unwrap_or(i32::MAX);
                self.set_models(models);
                // Each body is sent and received anew; that it arrives at all is told once.
                if enough && !self.placed {
                    self.placed = true;
                    self.write_auction().await;
                }
            }
            HomeOutput::Awarded { body, signature, certificate, proof, .. } => {
                (self.order, self.signature) = (*body, signature);
                self.on_awarded(&certificate, &proof).await;
            }
            HomeOutput::NotAwarded { round, histogram, models, .. } => {
                self.auction.exclusions = histogram
                    .counts
                    .iter()
                    .map(|(reason, n)| ExclusionCount {
                        reason: reason.name().to_owned(),
                        providers: i32::from(*n),
                    })
                    .collect();
                self.set_models(models);
                self.clear_stale_award().await;
                self.lost_round(round, AuctionOutcome::NoFeasibleBid, histogram.to_string()).await;
            }
            HomeOutput::Delayed { round, receipts, .. } => {
                self.auction.receipts = i32::from(receipts);
                self.auction.message = Some(format!(
                    "round {round} gives no result yet: {receipts} of {} providers have the order, {} must take part",
                    self.context.record.n(),
                    self.context.record.q()
                ));
                if is_to_be_told(self.told.map(|at| at.elapsed()), true) {
                    self.told = Some(Instant::now());
                    self.write_auction().await;
                }
            }
            HomeOutput::RoundMissed { round, receipts, .. } => {
                self.auction.receipts = i32::from(receipts);
                let n = self.context.record.n();
                let message = format!(
                    "round {round} did not decide: {receipts} of {n} providers have the order, {} must take part; it is tried again",
                    self.context.record.q()
                );
                self.clear_stale_award().await;
                self.lost_round(round, AuctionOutcome::Undecided, message).await;
            }
            HomeOutput::Reserving { seat, rank, .. } => self.on_reserving(seat, rank).await,
            HomeOutput::PassedOver { seat, reason, .. } => {
                let why = reason
                    .map_or_else(|| "it did not answer in time".to_owned(), |r| format!("it refused: {r}"));
                let note = format!("provider {} is passed over: {why}", self.provider(seat));
                tracing::warn!(job = self.job.uid, order = %to_hex(&self.digest), note);
                self.persist_award(Some(held_status(false, reasons::CAPACITY_GONE, &why))).await;
                self.event(true, "PassedOver", note);
            }
            HomeOutput::Unserved { .. } => self.on_unserved().await,
            HomeOutput::Choose(choice) => self.on_choose(*choice).await,
            HomeOutput::HandOver { seat, .. } => {
                self.given = true;
                handover::hand_over(self, seat).await;
            }
            HomeOutput::GivenUp { .. } => {
                self.clear_award().await;
                self.auction.outcome = AuctionOutcome::Expired;
                self.auction.message = Some("the time to look for a provider is over".to_owned());
                self.context.metrics.orders.with_label_values(&["expired"]).inc();
                self.write_auction().await;
            }
            _ => {}
        }
    }

    fn provider(&self, seat: u16) -> String {
        self.context.record.seat(seat).map(|s| s.provider.clone()).unwrap_or_default()
    }

    fn set_models(&mut self, models: impl IntoIterator<Item = GpuModel>) {
        let mut names: Vec<String> = models.into_iter().map(|m| m.as_str().to_owned()).collect();
        names.truncate(64);
        if !names.is_empty() {
            self.auction.known_models = names;
        }
    }

    async fn lost_round(&mut self, round: u64, outcome: AuctionOutcome, message: String) {
        let (label, reason) = match outcome {
            AuctionOutcome::NoFeasibleBid => ("no_feasible_bid", reasons::NO_FEASIBLE_BID),
            _ => ("undecided", reasons::ROUND_UNDECIDED),
        };
        self.context.metrics.orders.with_label_values(&[label]).inc();
        let changed = self.auction.outcome != outcome || self.auction.message.as_ref() != Some(&message);
        self.auction.outcome = outcome;
        self.auction.round = i64::try_from(round).ok();
        self.auction.rounds_tried = self.auction.rounds_tried.saturating_add(1);
        self.auction.message = Some(message.clone());
        if !is_to_be_told(self.told.map(|at| at.elapsed()), changed) {
            tracing::debug!(job = self.job.uid, round, message, "no award");
            return;
        }
        self.told = Some(Instant::now());
        tracing::warn!(job = self.job.uid, round, message, "no award");
        self.write_auction().await;
        self.event(true, reason, message);
    }

    async fn on_awarded(&mut self, certificate: &Certificate, proof: &AwardProof) {
        let Some(facts) = facts(&self.context, &self.order, certificate, proof) else { return };
        let Ok(data) = certificate_data(&self.order, &self.signature, certificate, proof) else {
            tracing::error!(job = self.job.uid, "the certificate cannot be written as JSON");
            return;
        };
        if self.award.as_ref().is_some_and(|(known, _)| known.id() == facts.id()) {
            // Known from before a restart.
            return;
        }
        let took = Duration::from_millis(now_ms().saturating_sub(self.made_ms));
        self.context.metrics.time_to_award.observe(took.as_secs_f64());
        self.context.metrics.orders.with_label_values(&["awarded"]).inc();
        let message = format!("{} won round {} at {} per GPU-hour", facts.seat.1, facts.round, facts.seat.2);
        tracing::info!(
            job = self.job.uid,
            round = facts.round,
            award = facts.id(),
            took_ms = took.as_millis(),
            message
        );
        self.auction.outcome = AuctionOutcome::Awarded;
        self.auction.round = i64::try_from(facts.round).ok();
        self.auction.rounds_tried = self.auction.rounds_tried.saturating_add(1);
        self.auction.message = Some(message.clone());
        self.auction.exclusions.clear();
        self.award = Some((facts, data));
        self.persist_award(None).await;
        self.write_auction().await;
        self.event(false, "Awarded", message);
    }

    async fn on_reserving(&mut self, seat: u16, rank: u8) {
        if rank == 0 {
            return;
        }
        let name = self.provider(seat);
        if let Some((facts, _)) = &mut self.award {
            promote(facts, seat, &name);
        }
        self.persist_award(None).await;
        let note = format!("stand-by {name} takes over without a new round");
        self.auction.message = Some(note.clone());
        self.write_auction().await;
        self.event(false, "Promoted", note);
    }

    /// Stores the choice of seat, and only then says that it is stored.
    async fn on_choose(&mut self, choice: Choice) {
        // It is given out until it is stored, and the Award may have moved on since.
        if self.chosen == Some(choice.seat) {
            self.context.tell(HomeInput::Stored { order: self.digest }).await;
            return;
        }
        let name = self.provider(choice.seat);
        if self.award.is_none()
            && let Some(facts) = facts(&self.context, &self.order, &choice.certificate, &choice.proof)
            && let Ok(data) =
                certificate_data(&self.order, &self.signature, &choice.certificate, &choice.proof)
        {
            self.award = Some((facts, data));
        }
        if let Some((facts, _)) = &mut self.award {
            facts.seat = (choice.seat, name.clone(), choice.price);
        }
        let message = format!("provider {name} holds the devices");
        let status = held_status(true, reasons::DEVICES_HELD, &message);
        let stored = self.persist_award(Some(status)).await || self.came_to_be_stored(choice.seat).await;
        if stored {
            self.chosen = Some(choice.seat);
            self.context.tell(HomeInput::Stored { order: self.digest }).await;
            self.event(false, reasons::DEVICES_HELD, message);
        }
    }

    /// A choice was not written in time, or so it seems. Either it is in the Award all the same, or the Award goes, and
    /// the state machine hears that the choice came to nothing; while neither is sure, the choice is given out again.
    async fn came_to_be_stored(&mut self, chosen: u16) -> bool {
        let Some(id) = self.facts().map(AwardFacts::id) else {
            tracing::error!(job = self.job.uid, "the choice is of an award that was never told");
            self.context.tell(HomeInput::NotStored { order: self.digest }).await;
            return false;
        };
        match self.remove_award().await {
            Ok(Removal::Held { id: held, seat }) if held == id && seat == i32::from(chosen) => true,
            Ok(Removal::Held { id: held, seat }) => {
                tracing::error!(
                    job = self.job.uid,
                    award = id,
                    held,
                    seat,
                    "another choice is stored already"
                );
                self.context.tell(HomeInput::Cancel { order: self.digest }).await;
                self.context.tell(HomeInput::NotStored { order: self.digest }).await;
                false
            }
            Ok(Removal::Gone) => {
                self.award = None;
                self.context.tell(HomeInput::NotStored { order: self.digest }).await;
                false
            }
            Err(error) => {
                tracing::warn!(job = self.job.uid, %error, "not known whether the choice is stored");
                false
            }
        }
    }

    /// A round without an award: what a restart found of an earlier one is over.
    async fn clear_stale_award(&mut self) {
        if self.chosen.is_none() && !self.given {
            self.clear_award().await;
        }
    }

    async fn on_unserved(&mut self) {
        self.clear_award().await;
        self.auction.outcome = AuctionOutcome::Undecided;
        let message = "the winner and its stand-bys could not serve the order; it is tried again".to_owned();
        self.auction.message = Some(message.clone());
        self.write_auction().await;
        self.event(true, reasons::CAPACITY_GONE, message);
    }

    pub(super) fn event(&self, warning: bool, reason: &str, note: String) {
        self.context.cluster.event(&self.job.reference, warning, "Auction", reason, note);
    }

    pub(super) fn facts(&self) -> Option<&AwardFacts> {
        self.award.as_ref().map(|(facts, _)| facts)
    }
}

/// Whether a round without an award is written and made an Event: the first, and then from time to time, since rounds
/// may end several times in a second.
fn is_to_be_told(since: Option<Duration>, changed: bool) -> bool {
    since.is_none_or(|since| since >= if changed { TELL_CHANGES } else { TELL_AGAIN })
}

/// The status of an Award before its workload is handed over.
fn held_status(held: bool, reason: &str, message: &str) -> AwardStatus {
    let condition = conditions::condition(condition::HELD, held, reason, message, None, Timestamp::now());
    let state = if held { "Held" } else { "Reserving" };
    AwardStatus { conditions: vec![condition], state: Some(state.to_owned()), ..AwardStatus::default() }
}

/// Makes a stand-by the seat that serves, at its own price.
fn promote(facts: &mut AwardFacts, seat: u16, name: &str) {
    let price: Option<Price> = facts.stand_bys.iter().find(|(s, _, _)| *s == seat).map(|(_, _, p)| *p);
    if let Some(price) = price {
        facts.seat = (seat, name.to_owned(), price);
    }
}

/// What the Award says, from a verified certificate and proof.
pub(super) fn facts(
    context: &HomeContext,
    order: &Order,
    certificate: &Certificate,
    proof: &AwardProof,
) -> Option<AwardFacts> {
    let Outcome::Award(award) = &proof.leaf.outcome else { return None };
    if proof.leaf.order != order.digest() {
        return None;
    }
    let named = |seat: u16, price: Price| {
        context.record.seat(seat).map(|record| (seat, record.provider.clone(), price))
    };
    Some(AwardFacts {
        market: certificate.market,
        round: certificate.round,
        order: order.clone(),
        winner: award.seat,
        seat: named(award.seat, award.price)?,
        stand_bys: award.stand_bys.iter().filter_map(|s| named(s.seat, s.price)).collect(),
        devices: bound_devices(award),
        expires_ms: proof.leaf.expires_ms,
        home: context.name(),
    })
}

fn certificate_data(
    order: &Order,
    signature: &[u8; 65],
    certificate: &Certificate,
    proof: &AwardProof,
) -> Result<CertificateData, serde_json::Error> {
    let file = AwardFile { order: order.clone(), order_signature: *signature, proof: proof.clone() };
    Ok(CertificateData {
        certificate: serde_json::to_string(&CertificateFile::from(certificate))?,
        award: serde_json::to_string(&file)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_without_an_award_are_told_at_first_and_then_from_time_to_time() {
        let ms = Duration::from_millis;
        for (since, changed, want) in [
            (None, false, true),
            (Some(ms(600)), false, false),
            (Some(ms(600)), true, false),
            (Some(ms(2_000)), true, true),
            (Some(ms(9_999)), false, false),
            (Some(ms(10_000)), false, true),
        ] {
            assert_eq!(is_to_be_told(since, changed), want, "{since:?} {changed}");
        }
    }
}
