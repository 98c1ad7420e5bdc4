//! Watches: what the bridge has seen of Provisions and Awards, and the offers that follow from it.
//!
//! Invariant: an object that does not parse is logged and left out; it never stops the watch.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::jiff::Timestamp;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::{OnceCell, mpsc};
use vendue_auction_core::{KeyOrigin, MarketRecord, SeatInput};
use vendue_crds::conditions::{self, provision, reasons};
use vendue_crds::{Award, ExclusionCount, Provision, names};

use super::cluster::{Cluster, ClusterError};
use super::offers::{Sale, sale};
use crate::engine::EngineCommand;

/// A store whose objects may not parse.
#[derive(Clone)]
pub struct Guarded<K>
where
    K: Resource + Clone + Debug + 'static,
    K::DynamicType: Eq + Hash + Clone + Default,
{
    store: Store<DeserializeGuard<K>>,
    /// One task at a time waits for the store, and all others for that one: a store wakes only whoever asked last
    /// (kube-runtime 5.0).
    ready: Arc<OnceCell<bool>>,
}

impl<K> Guarded<K>
where
    K: Resource + Clone + Debug + 'static,
    K::DynamicType: Eq + Hash + Clone + Default,
{
    /// Wraps a store that nobody else waits for.
    pub fn new(store: Store<DeserializeGuard<K>>) -> Self {
        Self { store, ready: Arc::default() }
    }

    /// An empty store and the writer that [`follow`] fills it with.
    ///
    /// A controller's own store cannot be wrapped: the controller waits for it.
    pub fn empty() -> (Self, reflector::store::Writer<DeserializeGuard<K>>) {
        let (store, writer) = reflector::store();
        (Self::new(store), writer)
    }

    /// The objects that parse.
    pub fn items(&self) -> Vec<K> {
        self.store.state().iter().filter_map(|object| object.0.as_ref().ok().cloned()).collect()
    }

    /// The first object that parses and fits.
    pub fn find(&self, fits: impl Fn(&K) -> bool) -> Option<K> {
        let found = self.store.find(|object| object.0.as_ref().is_ok_and(&fits))?;
        found.0.as_ref().ok().cloned()
    }

    /// Something of each object that parses and has it.
    pub fn collect<T>(&self, of: impl Fn(&K) -> Option<T>) -> Vec<T> {
        self.store.state().iter().filter_map(|object| object.0.as_ref().ok().and_then(&of)).collect()
    }

    /// Waits until the first list is here. Any number of tasks may.
    pub async fn ready(&self) -> bool {
        *self.ready.get_or_init(|| async { self.store.wait_until_ready().await.is_ok() }).await
    }
}

/// Follows a kind into a store, for ever. `changed` is called after each change.
pub async fn follow<K>(
    api: Api<DeserializeGuard<K>>,
    writer: reflector::store::Writer<DeserializeGuard<K>>,
    changed: impl Fn(),
) where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Eq + Hash + Clone + Default + Unpin,
{
    // Half a minute less than what load balancers cut.
    let config = watcher::Config::default().timeout(200);
    let stream = watcher(api, config).default_backoff().reflect(writer);
    let mut stream = std::pin::pin!(stream);
    while let Some(event) = stream.next().await {
        match event {
            Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => {}
            Ok(_) => changed(),
            Err(error) => tracing::warn!(%error, "watch broken; it starts again"),
        }
    }
}

fn offered(insecure: bool) -> &'static str {
    match insecure {
        true => {
            "the seat offers it in every round; for development only: one dealer made the keys of all seats and could read every bid"
        }
        false => "the seat offers it in every round",
    }
}

/// Tells the seat what it can offer, whenever that changes, and writes the condition Advertised.
pub struct Seller {
    provisions: Guarded<Provision>,
    awards: Guarded<Award>,
    engine: mpsc::Sender<EngineCommand>,
    opened: AtomicBool,
    last: Mutex<Option<Sale>>,
    exclusions: Mutex<BTreeMap<String, i32>>,
    insecure: bool,
}

impl Seller {
    /// A seller over two stores.
    pub fn new(
        provisions: Guarded<Provision>,
        awards: Guarded<Award>,
        engine: mpsc::Sender<EngineCommand>,
        record: &MarketRecord,
    ) -> Self {
        Self {
            provisions,
            awards,
            engine,
            opened: AtomicBool::new(false),
            last: Mutex::default(),
            exclusions: Mutex::default(),
            insecure: record.key_origin == KeyOrigin::InsecureDealer,
        }
    }

    /// Lets offers out: Awards and Provisions are known.
    pub fn open(&self) {
        self.opened.store(true, Ordering::Release);
        self.offer();
    }

    /// Computes the offers from what the stores hold, and sends them when they changed.
    pub fn offer(&self) {
        if !self.opened.load(Ordering::Acquire) {
            return;
        }
        let (provisions, awards) = (self.provisions.items(), self.awards.items());
        let now = sale(&provisions, &awards);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref() == Some(&now) {
            return;
        }
        let input = SeatInput::Offers { offers: now.offers.clone(), models: now.models.clone() };
        match self.engine.try_send(EngineCommand::Seat(input)) {
            Ok(()) => *last = Some(now),
            // The next tick of the caller tries again, since nothing was remembered.
            Err(error) => tracing::warn!(%error, "offers not passed on"),
        }
    }

    /// Counts why this seat did not serve orders of its last rounds.
    pub fn count_exclusion(&self, reason: &str) {
        let mut counts = self.exclusions.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(reason.to_owned()).or_default();
        *count = count.saturating_add(1);
    }

    /// Writes Advertised and the exclusions to every Provision where they changed.
    async fn advertise(&self, cluster: &Cluster, active: bool) -> Result<(), ClusterError> {
        let sale = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or_default();
        let exclusions: Vec<_> = {
            let counts = self.exclusions.lock().unwrap_or_else(PoisonError::into_inner);
            counts.iter().map(|(r, n)| ExclusionCount { reason: r.clone(), providers: *n }).collect()
        };
        for found in self.provisions.items() {
            let key = (found.namespace().unwrap_or_default(), found.name_any());
            let (status, reason, message) = match (sale.not_offered.get(&key), active) {
                (Some(why), _) => (false, reasons::SEAT_NOT_ACTIVE, why.clone()),
                (None, false) => {
                    (false, reasons::SEAT_NOT_ACTIVE, "the seat does not take part in rounds yet".into())
                }
                (None, true) => (true, reasons::OFFERED, offered(self.insecure).into()),
            };
            let observed = found.metadata.generation;
            let old = found.status.clone().unwrap_or_default();
            let new = conditions::condition(
                provision::ADVERTISED,
                status,
                reason,
                message,
                observed,
                Timestamp::now(),
            );
            let mut list =
                conditions::find(&old.conditions, provision::ADVERTISED).cloned().into_iter().collect();
            let before: Vec<_> = Clone::clone(&list);
            conditions::set(&mut list, new);
            if conditions::same(&before, &list) && old.exclusions == exclusions {
                continue;
            }
            let body = json!({
                "apiVersion": format!("{}/{}", vendue_crds::GROUP, vendue_crds::VERSION),
                "kind": "Provision",
                "status": { "conditions": list, "exclusions": exclusions },
            });
            let api: Api<Provision> = Api::namespaced(cluster.client.clone(), &key.0);
            cluster.apply_status("provision_status", &api, names::MANAGER_AUCTION, &key.1, &body).await?;
        }
        Ok(())
    }

    /// Offers and advertises from time to time, for ever; changes are offered at once by the watch.
    pub async fn run(self: Arc<Self>, cluster: Cluster) {
        let mut tick = tokio::time::interval(Duration::from_secs(2));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.offer();
            let active = cluster.metrics.seat_active.get() == 1;
            if let Err(error) = self.advertise(&cluster, active).await {
                tracing::warn!(%error, "Provision status not written");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn everybody_who_waits_for_the_first_list_is_woken() {
        let (awards, mut writer) = Guarded::<Award>::empty();
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let awards = awards.clone();
                tokio::spawn(async move { awards.ready().await })
            })
            .collect();
        // All of them wait by then: this runtime has one thread, and a task that yields is asked last.
        tokio::task::yield_now().await;
        writer.apply_watcher_event(&watcher::Event::Init);
        writer.apply_watcher_event(&watcher::Event::InitDone);
        let all = futures::future::try_join_all(waiting);
        let woken = tokio::time::timeout(Duration::from_secs(5), all).await;
        assert_eq!(woken.unwrap().unwrap(), [true; 3]);
    }
}
