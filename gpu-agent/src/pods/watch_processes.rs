//! Shows which Pods use which devices, by their processes: looks whenever the driver was asked anew.
//!
//! * Inputs: what the loop reads, what kubelet gave to whom, `/proc`. Output: metrics, and a warning when a Pod uses a
//!   device that it was not given.
//! * Invariant: what is shown is of the last reading; while devices cannot be read, nothing is.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::cgroup;
use super::processes::{DeviceUse, Listed, NO_POD, Suspects, group, is_same, listed};
use super::watcher::Seen;
use crate::agent::View;
use crate::metrics::Metrics;

/// An answer of kubelet's that is older says nothing about now; it is asked every two seconds.
const FRESH: Duration = Duration::from_secs(10);

/// Watches, again and again.
pub struct ProcessWatcher {
    proc: PathBuf,
    own: Option<String>,
    view: watch::Receiver<View>,
    pods: watch::Receiver<Seen>,
    metrics: Arc<Metrics>,
    seen: Vec<Listed>,
    suspects: Suspects,
}

impl ProcessWatcher {
    /// A watcher that finds processes in `proc`, which is `/proc` but in tests.
    #[must_use]
    pub fn new(
        proc: PathBuf,
        view: watch::Receiver<View>,
        pods: watch::Receiver<Seen>,
        metrics: Arc<Metrics>,
    ) -> Self {
        // Processes of this Pod measure devices that nobody was given.
        let own = cgroup::pod_of(&proc, std::process::id()).ok().flatten();
        Self { proc, own, view, pods, metrics, seen: vec![], suspects: Suspects::default() }
    }

    /// Runs until `stop`, or until nobody reads the devices any more.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                changed = self.view.changed() => if changed.is_err() {
                    return stop.cancelled().await;
                },
                () = stop.cancelled() => return,
            }
            self.look().await;
        }
    }

    /// Looks at the last reading, if it is new.
    pub async fn look(&mut self) {
        let inventory = self.view.borrow_and_update().inventory.clone();
        let now = inventory.as_deref().map(listed).unwrap_or_default();
        if is_same(&self.seen, &now) {
            return;
        }
        self.seen.clone_from(&now);
        let mut uses = self.group(now).await;
        let pods = self.pods.borrow().attribution.clone();
        let given = pods.filter(|(_, at)| at.elapsed() < FRESH).map(|(given, _)| given);
        for uuid in self.suspects.judge(&self.seen, &mut uses, given.as_deref()) {
            let used = uses.iter().filter(|used| used.uuid == uuid);
            let pods: Vec<&String> =
                used.flat_map(|used| used.pods.keys()).filter(|pod| *pod != NO_POD).collect();
            tracing::warn!(gpu = uuid, ?pods, "Pods use a GPU that kubelet gave to nobody");
        }
        self.metrics.show_processes(&uses);
    }

    /// Thousands of files are read: not where others wait.
    async fn group(&self, devices: Vec<Listed>) -> Vec<DeviceUse> {
        let (proc, own) = (self.proc.clone(), self.own.clone());
        let grouped = tokio::task::spawn_blocking(move || group(&devices, &proc, own.as_deref())).await;
        grouped.unwrap_or_else(|error| {
            tracing::error!(%error, "processes are not attributed");
            vec![]
        })
    }
}
