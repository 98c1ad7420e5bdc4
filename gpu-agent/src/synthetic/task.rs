//! Probes the devices of this node, one at a time but beside those that hang, and tells what is known of each.
//!
//! * Inputs: what the loop reads, who holds which device, a runner, the store. Output: [`Probes`] through a watch channel.
//! * Invariants: a device is probed only after kubelet was asked since the device appeared; when it is given to a Pod
//!   while it is probed, the probe ends; nothing is held against a device that somebody else uses when its probe is over.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vendue_crds::{GpuProbe, ProbeResult};

use super::book::{Book, unfit};
use super::runner::Runner;
use super::store::Store;
use super::{Probes, reasons};
use crate::agent::View;
use crate::inventory::NodeInventory;
use crate::metrics::Metrics;
use crate::pods::attribution::Attribution;
use crate::pods::watcher::Seen;

/// An answer of kubelet's that is older says nothing about now; it is asked every two seconds.
const FRESH: Duration = Duration::from_secs(10);

/// What the task hears, and whom it tells.
pub struct Channels {
    /// What the devices say now.
    pub view: watch::Receiver<View>,
    /// Who holds which.
    pub pods: watch::Receiver<Seen>,
    /// What is known of each.
    pub probes: watch::Sender<Probes>,
}

/// Readings after the end of a probe until one has surely begun after it.
const READINGS_AFTER: u8 = 2;

/// A probe that runs: the device, and what was found.
type Running = BoxFuture<'static, (String, GpuProbe)>;

/// A finding against a device that is held back until it is read without the probe on it.
struct Suspect {
    uuid: String,
    probe: GpuProbe,
    readings: u8,
}

/// Everything that probing needs.
pub struct Prober {
    runner: Arc<Runner>,
    book: Book,
    store: Store,
    channels: Channels,
    metrics: Arc<Metrics>,
    began: Instant,
    running: FuturesUnordered<Running>,
    suspects: Vec<Suspect>,
    /// The devices of the last look, and since when they are these.
    devices: (BTreeSet<String>, Instant),
}

impl Prober {
    /// A prober that goes on with what the store has.
    #[must_use]
    pub fn new(runner: Runner, kept: (Store, Book), channels: Channels, metrics: Arc<Metrics>) -> Self {
        let (store, book) = kept;
        let now = Instant::now();
        Self {
            runner: Arc::new(runner),
            book,
            store,
            channels,
            metrics,
            began: now,
            running: FuturesUnordered::new(),
            suspects: vec![],
            devices: (BTreeSet::new(), now),
        }
    }

    /// Runs until `stop`, or until nobody reads the devices any more. Probes that run then are given up, which ends their
    /// processes.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let ended = tokio::select! {
                changed = self.channels.view.changed() => match changed {
                    Ok(()) => None,
                    Err(_) => return stop.cancelled().await,
                },
                Some(ended) = self.running.next() => Some(ended),
                () = stop.cancelled() => return,
            };
            let inventory = self.channels.view.borrow_and_update().inventory.clone();
            let is_reading = ended.is_none();
            if let Some((uuid, probe)) = ended {
                self.hear(inventory.as_deref(), uuid, probe);
            }
            if let Some(inventory) = inventory {
                self.turn(&inventory, is_reading);
            }
        }
    }

    fn turn(&mut self, inventory: &NodeInventory, is_reading: bool) {
        self.notice(inventory);
        self.book.see(inventory);
        if is_reading {
            self.reconsider(inventory);
        }
        let holders = self.holders();
        let next = self.book.next(inventory, holders.as_deref(), self.began.elapsed());
        self.tell(inventory);
        let Some(uuid) = next else { return };
        tracing::info!(gpu = uuid, "probe begins");
        let (runner, mut pods) = (Arc::clone(&self.runner), self.channels.pods.clone());
        self.running.push(Box::pin(async move {
            let probe = tokio::select! {
                probe = runner.probe(&uuid) => probe,
                pod = given(&mut pods, &uuid) => {
                    let message = format!("Pod {pod} was given the device while it was probed");
                    GpuProbe::without_figures(ProbeResult::NotRun, reasons::ALLOCATED, message)
                }
            };
            (uuid, probe)
        }));
    }

    /// Takes what a probe found. What is held against the device waits: somebody may have come while it was measured.
    fn hear(&mut self, inventory: Option<&NodeInventory>, uuid: String, probe: GpuProbe) {
        let is_disturbable = !matches!(probe.reason.as_str(), reasons::TIMED_OUT | reasons::CRASHED);
        if probe.result == ProbeResult::Failed && is_disturbable {
            self.suspects.push(Suspect { uuid, probe, readings: READINGS_AFTER });
        } else {
            self.take(inventory, &uuid, probe);
        }
    }

    /// Findings against devices that others use now say nothing of the device.
    fn reconsider(&mut self, inventory: &NodeInventory) {
        for suspect in &mut self.suspects {
            suspect.readings = suspect.readings.saturating_sub(1);
        }
        let (over, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.suspects).into_iter().partition(|suspect| suspect.readings == 0);
        self.suspects = waiting;
        for Suspect { uuid, probe, .. } in over {
            let device = inventory.devices.iter().find(|device| device.identity.uuid == uuid);
            let disturbed = device.and_then(unfit).filter(|(reason, _)| *reason == reasons::BUSY);
            let probe = disturbed.map_or(probe, |(reason, message)| {
                let message = format!("somebody came while it was probed: {message}");
                GpuProbe::without_figures(ProbeResult::NotRun, reason, message)
            });
            self.take(Some(inventory), &uuid, probe);
        }
    }

    fn take(&mut self, inventory: Option<&NodeInventory>, uuid: &str, probe: GpuProbe) {
        tracing::info!(gpu = uuid, result = ?probe.result, reason = probe.reason, detail = probe.message, "probe ends");
        self.metrics.count_probe(&probe);
        let nothing = NodeInventory::default();
        self.book.take(inventory.unwrap_or(&nothing), uuid, probe, self.began.elapsed(), Timestamp::now());
        if let Err(error) = self.store.keep(self.book.entries()) {
            tracing::warn!(%error, "results of probes will not outlast this process");
        }
    }

    /// Other devices than before: what kubelet said of those tells nothing about these.
    fn notice(&mut self, inventory: &NodeInventory) {
        let present: BTreeSet<_> = inventory.devices.iter().map(|d| d.identity.uuid.clone()).collect();
        if self.devices.0 != present {
            self.devices = (present, Instant::now());
        }
    }

    /// Who holds which device, if kubelet has said so lately and of these devices.
    fn holders(&self) -> Option<Arc<Attribution>> {
        let seen = self.channels.pods.borrow();
        let (attribution, at) = seen.attribution.as_ref()?;
        (*at > self.devices.1 && at.elapsed() < FRESH).then(|| Arc::clone(attribution))
    }

    fn tell(&self, inventory: &NodeInventory) {
        let probes = self.book.probes(inventory, self.holders().as_deref());
        self.channels.probes.send_if_modified(|old| {
            let changed = *old != probes;
            *old = probes;
            changed
        });
    }
}

/// Waits until a Pod has the device.
async fn given(pods: &mut watch::Receiver<Seen>, uuid: &str) -> String {
    let is_held = |seen: &Seen| seen.attribution.as_ref().is_some_and(|(a, _)| !a.holders(uuid).is_empty());
    let pod = match pods.wait_for(is_held).await {
        Ok(seen) => seen.attribution.as_ref().and_then(|(a, _)| a.holders(uuid).first().cloned()),
        Err(_) => None,
    };
    match pod {
        Some(holder) => format!("{}/{}", holder.namespace, holder.pod),
        // Nobody asks kubelet any more: the agent ends.
        None => std::future::pending().await,
    }
}
