//! Keeps asking who holds which device, and tells what was last heard.
//!
//! * Inputs: kubelet, the ResourceSlices of this node, the devices that the agent reads.
//! * Output: [`Seen`] through a watch channel.
//! * Invariant: what was last heard stays, with its time, when nothing new can be heard; the consumer decides how long it
//!   believes it.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::resource::v1::ResourceSlice;
use kube::api::{Api, ListParams};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::attribution::{Attribution, Known, attribute};
use super::kubelet::Kubelet;
use super::slices::DeviceNames;

/// Time between two questions to kubelet, which allows a hundred a second.
pub const EVERY: Duration = Duration::from_secs(2);

/// Longest wait for the API server.
const API_LIMIT: Duration = Duration::from_secs(10);

/// Least time between two questions for slices: they change when a driver starts or a card is exchanged.
const SLICES_EVERY: Duration = Duration::from_secs(30);

/// What was last heard.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Who holds which device, and when kubelet said so; `None` before the first answer.
    pub attribution: Option<(Arc<Attribution>, Instant)>,
    /// Why nothing newer is known.
    pub error: Option<String>,
}

/// Asks, again and again.
pub struct Watcher {
    kubelet: Kubelet,
    known: watch::Receiver<Vec<Known>>,
    slices: Option<Slices>,
}

/// Slices of this node, as the API server has them.
pub struct Slices {
    api: Api<ResourceSlice>,
    node: String,
    names: DeviceNames,
    asked: Option<Instant>,
}

impl Slices {
    /// Slices of a node, of which nothing is known yet.
    #[must_use]
    pub fn new(client: kube::Client, node: String) -> Self {
        Self { api: Api::all(client), node, names: DeviceNames::default(), asked: None }
    }

    /// Asks again, unless that was done just now. Clusters without dynamic resource allocation have no slices.
    async fn refresh(&mut self) -> Result<(), String> {
        if self.asked.is_some_and(|at| at.elapsed() < SLICES_EVERY) {
            return Ok(());
        }
        self.asked = Some(Instant::now());
        let of_node = ListParams::default().fields(&format!("spec.nodeName={}", self.node));
        match timeout(API_LIMIT, self.api.list(&of_node)).await {
            Ok(Ok(list)) => self.names = DeviceNames::from_slices(&list.items),
            Ok(Err(kube::Error::Api(status))) if status.is_not_found() => self.names = DeviceNames::default(),
            Ok(Err(error)) => return Err(format!("list ResourceSlices: {error}")),
            Err(_) => return Err(format!("list ResourceSlices: no answer within {} s", API_LIMIT.as_secs())),
        }
        Ok(())
    }
}

impl Watcher {
    /// A watcher of the devices in `known`; without `slices`, claims are not matched.
    #[must_use]
    pub fn new(kubelet: Kubelet, known: watch::Receiver<Vec<Known>>, slices: Option<Slices>) -> Self {
        Self { kubelet, known, slices }
    }

    /// Runs until `stop`.
    pub async fn run(mut self, seen: watch::Sender<Seen>, stop: CancellationToken) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = stop.cancelled() => return,
            }
            tokio::select! {
                () = self.ask(&seen) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Asks once.
    pub async fn ask(&mut self, seen: &watch::Sender<Seen>) {
        let list = self.kubelet.list().await;
        let at = Instant::now();
        let known = self.known.borrow_and_update().clone();
        let mut error = None;
        let found = match list {
            Ok(list) => {
                let uses_claims = list.pod_resources.iter().flat_map(|p| &p.containers);
                let uses_claims = uses_claims.flat_map(|c| &c.dynamic_resources).next().is_some();
                error = if uses_claims { self.refresh_slices().await } else { None };
                let none = DeviceNames::default();
                let names = self.slices.as_ref().map_or(&none, |slices| &slices.names);
                Some(attribute(&list, &known, names))
            }
            Err(failed) => {
                error.get_or_insert(failed.to_string());
                None
            }
        };
        let before = seen.borrow().error.clone();
        if before != error {
            match &error {
                Some(error) => tracing::warn!(%error, "who uses the GPUs is not known at present"),
                None => tracing::info!("who uses the GPUs is known again"),
            }
        }
        seen.send_modify(|seen| {
            if let Some(found) = found {
                seen.attribution = Some((Arc::new(found), at));
            }
            seen.error = error;
        });
    }

    async fn refresh_slices(&mut self) -> Option<String> {
        match &mut self.slices {
            Some(slices) => slices.refresh().await.err(),
            None => None,
        }
    }
}
