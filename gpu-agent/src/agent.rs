//! The loop: read, believe, show, and write when it is worth it.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use vendue_crds::GpuNodeStatus;

use crate::metrics::Metrics;
use crate::observe::Observation;
use crate::probe::thread::ProbeThread;
use crate::publish::{PublishError, Publisher};
use crate::server::Pulse;
use crate::status;

/// Longest pause after failed writes.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// How often to read and to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Time between two readings.
    pub read: Duration,
    /// Most time between two writes.
    pub heartbeat: Duration,
}

/// Everything that the loop needs.
pub struct Agent {
    pace: Pace,
    probe: ProbeThread,
    publisher: Publisher,
    metrics: Arc<Metrics>,
    pulse: Arc<Pulse>,
    observation: Observation,
    last: Option<(GpuNodeStatus, Timestamp)>,
    failures: u32,
    not_before: Instant,
}

impl Agent {
    /// An agent that has not read yet.
    #[must_use]
    pub fn new(
        pace: Pace,
        probe: ProbeThread,
        publisher: Publisher,
        metrics: Arc<Metrics>,
        pulse: Arc<Pulse>,
    ) -> Self {
        Self {
            pace,
            probe,
            publisher,
            metrics,
            pulse,
            observation: Observation::default(),
            last: None,
            failures: 0,
            not_before: Instant::now(),
        }
    }

    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut ticks = interval(self.pace.read);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = stop.cancelled() => return,
            }
            tokio::select! {
                () = self.turn() => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// One turn of the loop.
    pub async fn turn(&mut self) {
        let started = Instant::now();
        let outcome = self.probe.read().await;
        self.metrics.count_read(&outcome, started.elapsed());
        let now = Timestamp::now();
        let before = self.observation.problem.clone();
        self.observation = std::mem::take(&mut self.observation).after(outcome, now);
        if before != self.observation.problem {
            match &self.observation.problem {
                Some(problem) => tracing::warn!(?problem, "devices cannot be read"),
                None => tracing::info!("devices can be read again"),
            }
        }
        let previous = self.last.as_ref().map(|(status, _)| status);
        let next = status::build(&self.observation, previous, self.publisher.generation(), now);
        self.metrics.show(&self.observation, status::is_ready(&next));
        let last = self.last.as_ref().map(|(status, at)| (status, *at));
        if Instant::now() >= self.not_before && status::should_publish(last, &next, now, self.pace.heartbeat)
        {
            self.publish(next, now).await;
        }
        self.pulse.turned();
    }

    async fn publish(&mut self, next: GpuNodeStatus, now: Timestamp) {
        let started = Instant::now();
        let written = self.publisher.write(&next).await;
        self.metrics.count_publish(written.is_ok(), started.elapsed(), now);
        match written {
            Ok(status) => {
                self.log_change(&status);
                self.failures = 0;
                self.pulse.written();
                self.last = Some((status, now));
            }
            Err(error) => self.back_off(&error),
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
        let pause = self.pace.read.saturating_mul(1 << self.failures.min(5)) / 2;
        self.not_before = Instant::now() + pause.min(LONGEST_PAUSE);
        tracing::warn!(%error, failures = self.failures, "GpuNode not written");
    }
}
