//! What is believed, on its way to the API server: in a task of its own, so that a server that takes calls and never answers
//! holds up no look at the devices.
//!
//! * Input: the newest wish of the loop; older ones are forgotten. Outputs: the GpuNode, the Node's taints and labels.
//! * Invariants: each call has a time limit; one call at a time; while a kind of call fails it is tried again less and less
//!   often, and what is written then is the newest.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vendue_crds::GpuNodeStatus;
use vendue_crds::conditions::find;

use crate::inventory::NodeInventory;
use crate::labels::Labeller;
use crate::metrics::Metrics;
use crate::publish::{PublishError, Publisher};
use crate::published::SliceCheck;
use crate::server::Pulse;
use crate::status::{self, Due};
use crate::taints::{Tainter, Wanted};

/// Longest pause after failed writes.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// Pause after a failed call about labels, which nobody waits for.
const LABEL_PAUSE: Duration = Duration::from_secs(60);

/// Pause after a failed call that was to take taints back: where it is not allowed, somebody has to do it by hand.
const TAKE_BACK_PAUSE: Duration = Duration::from_secs(3600);

/// What is to be at the API server.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The GpuNode's status, but for what the API server says (generation) and what others publish (slices); `None` while it
    /// is to stay as it is.
    pub status: Option<GpuNodeStatus>,
    /// What the devices say now; `None` while there is no good reading: then taints and labels stay as they are.
    pub good: Option<Good>,
}

/// What a good reading says.
#[derive(Clone, Debug)]
pub struct Good {
    /// The devices.
    pub inventory: Arc<NodeInventory>,
    /// The taints that follow from them.
    pub taints: Wanted,
}

/// What writes to the API server.
pub struct Api {
    /// The GpuNode.
    pub publisher: Publisher,
    /// The Node's taints.
    pub tainter: Tainter,
    /// The Node's labels.
    pub labeller: Labeller,
    /// Reads what others publish of the devices.
    pub slices: SliceCheck,
}

/// How often to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// Most time between two writes.
    pub heartbeat: Duration,
    /// The first pause after a failed write.
    pub pause: Duration,
}

/// Writes what is wished.
pub struct Writer {
    beat: Beat,
    wishes: watch::Receiver<Option<Wish>>,
    publisher: Publisher,
    tainter: Tainter,
    taint_not_before: Instant,
    labeller: Labeller,
    label_not_before: Instant,
    slices: SliceCheck,
    metrics: Arc<Metrics>,
    pulse: Arc<Pulse>,
    /// What was written last, and when.
    last: Option<(GpuNodeStatus, Timestamp)>,
    failures: u32,
    not_before: Instant,
}

impl Writer {
    /// A writer that has written nothing yet.
    #[must_use]
    pub fn new(
        beat: Beat,
        wishes: watch::Receiver<Option<Wish>>,
        api: Api,
        metrics: Arc<Metrics>,
        pulse: Arc<Pulse>,
    ) -> Self {
        let Api { publisher, tainter, labeller, slices } = api;
        let now = Instant::now();
        Self {
            beat,
            wishes,
            publisher,
            tainter,
            taint_not_before: now,
            labeller,
            label_not_before: now,
            slices,
            metrics,
            pulse,
            last: None,
            failures: 0,
            not_before: now,
        }
    }

    /// Runs until `stop`, or until nobody wishes any more.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let changed = tokio::select! {
                changed = self.wishes.changed() => changed,
                () = stop.cancelled() => return,
            };
            if changed.is_err() {
                return;
            }
            let Some(wish) = self.wishes.borrow_and_update().clone() else { continue };
            tokio::select! {
                () = self.turn(wish) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    async fn turn(&mut self, Wish { status, good }: Wish) {
        if let Some(status) = status {
            self.publish(status, good.as_ref()).await;
        }
        if let Some(Good { inventory, taints }) = &good {
            self.taint(taints).await;
            self.label(inventory).await;
        }
        if let Err(error) = self.slices.refresh().await {
            tracing::warn!(%error, "what others publish of the devices is not compared");
        }
    }

    async fn publish(&mut self, status: GpuNodeStatus, good: Option<&Good>) {
        let now = Timestamp::now();
        let next = self.whole(status, good, now);
        let last = self.last.as_ref().map(|(status, at)| (status, *at));
        let due = status::due(last, &next, now, self.beat.heartbeat);
        if due == Due::Nothing || Instant::now() < self.not_before {
            return;
        }
        let started = Instant::now();
        let written = match due {
            Due::Time => self.publisher.touch(&next).await,
            Due::Nothing | Due::Everything => self.publisher.write(&next).await,
        };
        let at = Timestamp::now();
        self.metrics.count_publish(written.is_ok(), started.elapsed(), at);
        match written {
            Ok(status) => {
                self.log_change(&status);
                self.failures = 0;
                self.pulse.written();
                self.last = Some((status, at));
            }
            Err(error) => self.back_off(&error),
        }
    }

    /// The status with what only is known here.
    fn whole(&self, mut status: GpuNodeStatus, good: Option<&Good>, now: Timestamp) -> GpuNodeStatus {
        let (generation, before) =
            (self.publisher.generation(), self.last.as_ref().map(|(status, _)| status));
        let inventory = good.map(|good| &*good.inventory);
        status.conditions.extend(self.slices.condition(inventory, before, generation, now));
        status.observed_generation = generation;
        for condition in &mut status.conditions {
            condition.observed_generation = generation;
            // What was written may have its time from an agent before this one.
            let before = before.and_then(|status| find(&status.conditions, &condition.type_));
            if let Some(before) = before.filter(|before| before.status == condition.status) {
                condition.last_transition_time = before.last_transition_time.clone();
            }
        }
        status
    }

    async fn taint(&mut self, wanted: &Wanted) {
        let Some(wanted) = self.tainter.due(wanted) else { return };
        if Instant::now() < self.taint_not_before {
            return;
        }
        match self.tainter.apply(&wanted).await {
            Ok(true) => tracing::info!(?wanted, "taints of the node were written"),
            Ok(false) => {}
            Err(error) if self.tainter.is_enabled() => {
                self.taint_not_before = Instant::now() + LONGEST_PAUSE;
                tracing::warn!(%error, "taints of the node are not up to date");
            }
            Err(error) => {
                self.taint_not_before = Instant::now() + TAKE_BACK_PAUSE;
                let by_hand = self.tainter.by_hand();
                tracing::warn!(%error, by_hand, "taints that were written before --no-taints stay on the node");
            }
        }
    }

    /// While a device is not known, the labels stay as they are.
    async fn label(&mut self, inventory: &NodeInventory) {
        if !inventory.unknown.is_empty() || Instant::now() < self.label_not_before {
            return;
        }
        let Some(wanted) = self.labeller.due(inventory) else { return };
        match self.labeller.apply(&wanted).await {
            Ok(true) => tracing::info!(?wanted, "labels of the node were written"),
            Ok(false) => {}
            Err(error) => {
                self.label_not_before = Instant::now() + LABEL_PAUSE;
                tracing::warn!(%error, "labels of the node are not up to date");
            }
        }
    }

    fn log_change(&self, next: &GpuNodeStatus) {
        let reason =
            |status: &GpuNodeStatus| status.conditions.first().map(|c| (c.reason.clone(), c.message.clone()));
        if self.last.as_ref().and_then(|(status, _)| reason(status)) != reason(next) {
            let (reason, message) = reason(next).unwrap_or_default();
            tracing::info!(devices = next.device_count, reason, detail = message, "GpuNode written");
        }
    }

    /// The first failure is tried again with the next reading, later ones after 2, 4, 8 and at most 15 s.
    fn back_off(&mut self, error: &PublishError) {
        self.failures = self.failures.saturating_add(1);
        let pause = self.beat.pause.saturating_mul(1 << self.failures.min(5)) / 2;
        self.not_before = Instant::now() + pause.min(LONGEST_PAUSE);
        tracing::warn!(%error, failures = self.failures, "GpuNode not written");
    }
}
