//! What the market and the winner report, folded into the Job's status.
//!
//! Inputs: the Award at home, the auction's part of the Job's status. Outputs: conditions and summaries.
//! Invariant: a Job that has finished never says otherwise again.

use k8s_openapi::jiff::Timestamp;
use vendue_crds::conditions::{self, award, job as cond, reasons};
use vendue_crds::{AuctionOutcome, AuctionStatus, Award, AwardSummary, JobStatus};

use crate::text;

/// A status in the making.
pub(super) struct Folder<'a> {
    /// The status so far.
    pub status: &'a mut JobStatus,
    /// Generation that it speaks of.
    pub generation: Option<i64>,
    /// The time.
    pub now: Timestamp,
}

impl Folder<'_> {
    /// Sets a condition.
    pub fn set(&mut self, type_: &str, status: bool, reason: &str, message: impl AsRef<str>) {
        let message = text::head(message.as_ref(), text::MAX_MESSAGE);
        let new = conditions::condition(type_, status, reason, message, self.generation, self.now);
        conditions::set(&mut self.status.conditions, new);
    }

    /// Sets the word for people.
    pub fn state(&mut self, word: &str) {
        self.status.state = Some(word.to_owned());
    }

    /// Whether a condition is True.
    pub fn is(&self, type_: &str) -> bool {
        conditions::is_true(&self.status.conditions, type_)
    }

    /// While no seat has the order: what the last round said.
    pub fn auction(&mut self, auction: Option<&AuctionStatus>, attempt: i32) {
        let known = auction.filter(|a| a.attempt == attempt);
        let said = known.and_then(|a| a.message.clone()).unwrap_or_default();
        let (reason, message) = match known.map(|a| a.outcome) {
            Some(AuctionOutcome::NoFeasibleBid) => (reasons::NO_FEASIBLE_BID, with_models(&said, known)),
            Some(AuctionOutcome::Undecided) => (reasons::ROUND_UNDECIDED, said),
            Some(AuctionOutcome::Awarded) => (reasons::RESERVING, said),
            _ if said.is_empty() => (reasons::AUCTION_PENDING, "the market is asked for bids".to_owned()),
            _ => (reasons::AUCTION_PENDING, said),
        };
        self.set(cond::AWARDED, false, reason, message);
        self.state("Bidding");
    }

    /// When a seat has the order.
    pub fn award(&mut self, object: &Award) {
        let spec = &object.spec;
        let none = Default::default();
        let status = object.status.as_ref().unwrap_or(&none);
        self.status.award = Some(AwardSummary {
            name: object.metadata.name.clone().unwrap_or_default(),
            provider: spec.provider.clone(),
            price: spec.price.clone(),
            round: spec.round,
        });
        let held = conditions::find(&status.conditions, award::HELD);
        match held.map(|c| c.status.as_str()) {
            Some("True") => {
                let text =
                    format!("{} at {} per GPU-hour, round {}", spec.provider, spec.price.0, spec.round);
                self.set(cond::AWARDED, true, reasons::CERTIFIED, text);
                self.state("Awarded");
            }
            Some("False") => {
                let why = held.map(|c| c.message.clone()).unwrap_or_default();
                let text = format!("{} refused ({why}); the next provider is asked", spec.provider);
                self.set(cond::AWARDED, false, reasons::RESERVING, text);
                self.state("Bidding");
            }
            _ => {
                let text = format!("{} was asked to hold the devices", spec.provider);
                self.set(cond::AWARDED, false, reasons::RESERVING, text);
                self.state("Bidding");
            }
        }
        self.progress(status);
    }

    fn progress(&mut self, status: &vendue_crds::AwardStatus) {
        for (theirs, ours, word) in [
            (award::PROVISIONED, cond::PROVISIONED, "Provisioned"),
            (award::RUNNING, cond::RUNNING, "Running"),
            (award::FINISHED, cond::FINISHED, "Failed"),
        ] {
            let Some(c) = conditions::find(&status.conditions, theirs) else { continue };
            let yes = c.status == "True";
            if ours != cond::FINISHED || !self.is(cond::FINISHED) {
                self.set(ours, yes, &c.reason, &c.message);
            }
            if yes {
                self.state(if c.reason == reasons::SUCCEEDED { "Succeeded" } else { word });
            }
        }
        if let Some(c) = conditions::find(&status.conditions, award::DELIVERED) {
            self.set(cond::DELIVERED, c.status == "True", &c.reason, &c.message);
        }
        let is = |type_| conditions::is_true(&status.conditions, type_);
        if is(award::RELEASED) && is(award::HANDED_OVER) && !self.is(cond::FINISHED) {
            let text = "the provider has released everything and never said how the work ended";
            self.set(cond::FINISHED, true, reasons::RUNTIME_ERROR, text);
            self.state("Failed");
        }
        if status.usage.is_some() {
            self.status.usage.clone_from(&status.usage);
        }
        if status.failure.is_some() {
            self.status.failure.clone_from(&status.failure);
        }
    }
}

fn with_models(said: &str, auction: Option<&AuctionStatus>) -> String {
    match auction.map(|a| a.known_models.as_slice()).unwrap_or_default() {
        [] => said.to_owned(),
        models => format!("{said}; models that the market knows: {}", models.join(", ")),
    }
}

/// Whether the award was given up before any workload was handed over: the order may be made again.
pub(super) fn fell_through(object: &Award) -> bool {
    object.status.as_ref().is_some_and(|s| {
        let is = |type_| conditions::is_true(&s.conditions, type_);
        is(award::RELEASED) && !is(award::HANDED_OVER) && !is(award::FINISHED)
    })
}
