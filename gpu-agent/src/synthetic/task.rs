//! Probes the devices of this node, one at a time, and tells what is known of each.
//!
//! * Inputs: what the loop reads, who holds which device, a runner, the store. Output: [`Probes`] through a watch channel.
//! * Invariants: a device is probed only after kubelet was asked since the device appeared; when it is given to a Pod
//!   while it is probed, the probe ends.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vendue_crds::{GpuProbe, ProbeResult};

use super::book::Book;
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

/// Everything that probing needs.
pub struct Prober {
    runner: Runner,
    book: Book,
    store: Store,
    channels: Channels,
    metrics: Arc<Metrics>,
    began: Instant,
    /// The devices of the last look, and since when they are these.
    devices: (BTreeSet<String>, Instant),
}

impl Prober {
    /// A prober that goes on with what the store has.
    #[must_use]
    pub fn new(runner: Runner, kept: (Store, Book), channels: Channels, metrics: Arc<Metrics>) -> Self {
        let (store, book) = kept;
        let now = Instant::now();
        Self { runner, book, store, channels, metrics, began: now, devices: (BTreeSet::new(), now) }
    }

    /// Runs until `stop`, or until nobody reads the devices any more.
    pub async fn run(mut self, stop: CancellationToken) {
        let stopped = stop.clone();
        let work = async {
            while self.channels.view.changed().await.is_ok() {
                let inventory = self.channels.view.borrow_and_update().inventory.clone();
                if let Some(inventory) = inventory {
                    self.turn(&inventory).await;
                }
            }
            stop.cancelled().await;
        };
        tokio::select! {
            () = work => {}
            // A probe that runs is given up, which ends its process.
            () = stopped.cancelled() => {}
        }
    }

    async fn turn(&mut self, inventory: &NodeInventory) {
        self.notice(inventory);
        self.book.see(inventory);
        let holders = self.holders();
        let next = self.book.next(inventory, holders.as_deref(), self.began.elapsed());
        self.tell(inventory);
        let Some(uuid) = next else { return };
        tracing::info!(gpu = uuid, "probe begins");
        let probe = tokio::select! {
            probe = self.runner.probe(&uuid) => probe,
            pod = given(&mut self.channels.pods, &uuid) => {
                let message = format!("Pod {pod} was given the device while it was probed");
                GpuProbe::without_figures(ProbeResult::NotRun, reasons::BUSY, message)
            }
        };
        tracing::info!(gpu = uuid, result = ?probe.result, reason = probe.reason, detail = probe.message, "probe ends");
        self.metrics.count_probe(&probe);
        self.book.take(inventory, &uuid, probe, self.began.elapsed(), Timestamp::now());
        if let Err(error) = self.store.keep(self.book.entries()) {
            tracing::warn!(%error, "results of probes will not outlast this process");
        }
        self.tell(inventory);
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
