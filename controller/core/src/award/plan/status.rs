//! A plan in the making: the status that follows from the one before.
//!
//! Invariant: a condition is changed only through [`Draft::set`], which keeps its transition time while its status
//! stays.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use vendue_crds::conditions::{self, award as cond, reasons};
use vendue_crds::{Award, AwardRuntimeStatus, AwardStatus, FailureStatus};

use super::{Plan, RayAction, our_conditions};
use crate::award::usage::{self, NodeBill, Run};
use crate::{FinalizerStep, after, text};

/// A plan in the making.
pub(super) struct Draft<'a> {
    /// The award.
    pub award: &'a Award,
    /// The time.
    pub now: Timestamp,
    /// The plan so far.
    pub plan: Plan,
}

impl<'a> Draft<'a> {
    /// A plan that changes nothing.
    pub fn new(award: &'a Award, now: Timestamp) -> Self {
        let old = award.status.clone().unwrap_or_default();
        let status = AwardStatus {
            conditions: our_conditions(award),
            observed_generation: award.metadata.generation,
            ..old
        };
        let plan = Plan {
            finalizer: FinalizerStep::Keep,
            deletions: Vec::new(),
            children: Vec::new(),
            ray: RayAction::None,
            status,
            transitions: Vec::new(),
            requeue: None,
        };
        Self { award, now, plan }
    }

    /// Sets a condition.
    pub fn set(&mut self, type_: &str, status: bool, reason: &str, message: impl AsRef<str>) {
        let message = text::head(message.as_ref(), text::MAX_MESSAGE);
        let new =
            conditions::condition(type_, status, reason, message, self.award.metadata.generation, self.now);
        conditions::set(&mut self.plan.status.conditions, new);
    }

    /// Sets the word for people.
    pub fn state(&mut self, word: &str) {
        self.plan.status.state = Some(word.to_owned());
    }

    /// Whether one of the controller's conditions is True.
    pub fn is(&self, type_: &str) -> bool {
        conditions::is_true(&self.plan.status.conditions, type_)
    }

    /// The runtime's status, made when it is not there.
    pub fn runtime(&mut self) -> &mut AwardRuntimeStatus {
        self.plan.status.runtime.get_or_insert_with(|| AwardRuntimeStatus {
            backend: "native".to_owned(),
            attempt: 1,
            ..AwardRuntimeStatus::default()
        })
    }

    /// GPUs of the award.
    pub fn gpus(&self) -> u32 {
        let need = &self.award.spec.requirements;
        let number = |n: i32| u32::try_from(n).unwrap_or(0);
        number(need.workers).saturating_mul(number(need.gpus_per_worker))
    }

    /// Brings usage up to what receipts say; `None` when they were not looked at.
    pub fn meter(&mut self, bills: Option<&[NodeBill]>) {
        let Ok(price) = self.award.spec.price.price() else { return };
        let Some(run) = self.plan.status.runtime.as_ref().and_then(|runtime| Run::of(runtime, price)) else {
            return;
        };
        let restarts = self.runtime().attempt.saturating_sub(1).max(0);
        let old = self.plan.status.usage.take().unwrap_or_else(|| {
            usage::begin(self.gpus(), self.plan.status.devices.iter().map(|held| held.node.as_str()))
        });
        let new = bills.map(|bills| usage::usage(&old, run, bills, restarts, self.now));
        self.plan.status.usage = Some(match new {
            Some(new) => usage::throttled(&old, new, run),
            None => usage::within(&old, run),
        });
    }

    /// Whether receipts of the run may still come: then its end is not told as over. Counted from when it was found to have
    /// ended, which stays over a restart; the head's word of when that was may be long ago.
    pub fn awaits_receipts(&self) -> bool {
        let finished = conditions::find(&self.plan.status.conditions, cond::FINISHED);
        let since = finished.filter(|c| c.status == "True").map(|c| c.last_transition_time.0);
        let usage = self.plan.status.usage.as_ref().filter(|usage| !usage.complete && usage.gpus > 0);
        match (usage, since) {
            (Some(_), Some(at)) => self.now < after(at, usage::RECEIPTS_GRACE_SECONDS),
            _ => false,
        }
    }

    /// Ends the run, for good. `tail` are the last lines of the log.
    pub fn finish(&mut self, reason: &str, message: &str, tail: &str, ended: Option<Timestamp>) {
        // Nothing is made for a run that is over.
        self.plan.children.clear();
        let now = self.now;
        let runtime = self.runtime();
        let started = runtime.started_at.as_ref().map(|t| t.0);
        let ended = ended.unwrap_or(now).min(now).max(started.unwrap_or(Timestamp::MIN));
        runtime.ended_at.get_or_insert(Time(ended));
        let message = match tail.trim() {
            "" => message.to_owned(),
            // The end of the log says more than its beginning.
            tail => {
                let room = text::MAX_MESSAGE.saturating_sub(message.len() + 15);
                format!("{message}; last lines:\n{}", text::tail(tail, room))
            }
        };
        self.set(cond::RUNNING, false, reason, "the entry point does not run");
        self.set(cond::FINISHED, true, reason, message);
        if !tail.trim().is_empty() {
            self.plan.status.failure = Some(FailureStatus { log_tail: text::tail(tail, text::MAX_LOG_TAIL) });
        }
        self.state(if reason == reasons::SUCCEEDED {
            "Succeeded"
        } else if reason == reasons::CLOSED {
            "Closed"
        } else {
            "Failed"
        });
        self.meter(None);
    }
}
