//! Who holds which GPUs: the one place where devices are given out.
//!
//! Inputs: caches of nodes, GPUs, Pods, their claims, Provisions and Awards. Outputs: snapshots and allocations.
//! Invariants: an allocation is assumed in memory before it is written and forgotten only when the API server refuses the
//! write, so two reconciles never get the same device; nothing is given out before every cache has seen a complete list.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::join_all;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::PartialObjectMeta;
use kube::core::DeserializeGuard;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use vendue_controller_core::award::allocate::{Allocation, allocate, hold};
use vendue_controller_core::provision::{
    ClaimedGpus, GpuNodeView, Hold, NodeView, PodUse, ProvisionView, Snapshot, claim_view, free_nodes,
    gpu_node_view, hold_view, node_view, pod_use,
};
use vendue_crds::conditions::{award as cond, find, is_true};
use vendue_crds::{Award, AwardSide, AwardStatus, GpuNode, Provision};

use crate::agents::Agents;
use crate::cache::{Cache, feed, feed_if_served};
use crate::metrics::Metrics;

/// An assumption about an Award that no cache knows is dropped after this long: the Award is gone.
const ASSUMED_FOR: Duration = Duration::from_secs(60);

/// What the ledger knows of an Award.
#[derive(Clone, Debug, PartialEq)]
pub struct AwardView {
    id: String,
    /// Whether the condition Held was written, or nothing will be held any more.
    decided: bool,
    hold: Option<Hold>,
    state: &'static str,
    /// Nothing of it is left.
    released: bool,
    /// The nodes whose devices it holds or held.
    nodes: Vec<String>,
}

/// States of awards in the metric.
const STATES: [&str; 10] = [
    "Pending",
    "Refused",
    "Held",
    "Provisioning",
    "Provisioned",
    "Running",
    "Succeeded",
    "Failed",
    "Closed",
    "Released",
];

fn award_view(award: &Award) -> Option<AwardView> {
    if award.spec.side != AwardSide::Host {
        return None;
    }
    let status = award.status.as_ref();
    let word = status.and_then(|s| s.state.as_deref()).unwrap_or("Pending");
    Some(AwardView {
        id: award.spec.id.clone(),
        decided: status.is_some_and(|s| {
            find(&s.conditions, cond::HELD).is_some() || is_true(&s.conditions, cond::RELEASED)
        }),
        hold: hold_view(award),
        nodes: status.map(nodes).unwrap_or_default(),
        released: status.is_some_and(|s| is_true(&s.conditions, cond::RELEASED)),
        state: STATES.iter().find(|s| **s == word).copied().unwrap_or("other"),
    })
}

/// The nodes whose devices an award holds, and those whose receipts count for it, which outlast them.
pub fn nodes(status: &AwardStatus) -> Vec<String> {
    let held = status.devices.iter().map(|devices| devices.node.clone());
    let counted = status.usage.iter().flat_map(|usage| &usage.receipts).map(|receipts| receipts.node.clone());
    let all: BTreeSet<String> = held.chain(counted).collect();
    all.into_iter().collect()
}

/// Capacity and holds of this cluster.
#[derive(Default)]
pub struct Ledger {
    nodes: Arc<Cache<NodeView>>,
    gpu_nodes: Arc<Cache<GpuNodeView>>,
    pods: Arc<Cache<PodUse>>,
    claims: Arc<Cache<ClaimedGpus>>,
    provisions: Arc<Cache<ProvisionView>>,
    awards: Arc<Cache<AwardView>>,
    storage_classes: Arc<Cache<()>>,
    runtime_classes: Arc<Cache<()>>,
    agents: Arc<Agents>,
    assumed: Mutex<BTreeMap<String, (Hold, Instant)>>,
    changed: Arc<Notify>,
}

/// A view of objects that may be unreadable; those are left out.
fn readable<K, V>(view: impl Fn(&K) -> Option<V>) -> impl Fn(&DeserializeGuard<K>) -> Option<V> {
    move |object| object.0.as_ref().ok().and_then(&view)
}

/// The name of an object without a namespace, whose key is "/name".
fn bare(key: String) -> String {
    key.trim_start_matches('/').to_owned()
}

impl Ledger {
    /// Feeds the caches, for ever.
    pub async fn feed(&self, client: Client) {
        let (api, changed) = (Guarded(client.clone()), || self.changed.clone());
        let nodes: Api<Node> = Api::all(client.clone());
        let pods: Api<Pod> = Api::all(client.clone());
        let claims: Api<ResourceClaim> = Api::all(client.clone());
        let claim = |c: &ResourceClaim| Some(claim_view(c));
        let storage_classes: Api<PartialObjectMeta<StorageClass>> = Api::all(client.clone());
        let runtime_classes: Api<PartialObjectMeta<RuntimeClass>> = Api::all(client);
        let node = |n: &Node| Some(node_view(n));
        let tasks: Vec<futures::future::BoxFuture<'_, ()>> = vec![
            Box::pin(feed("nodes", nodes, self.nodes.clone(), changed(), node)),
            Box::pin(feed("pods", pods, self.pods.clone(), changed(), pod_use)),
            Box::pin(feed_if_served("resourceclaims", claims, self.claims.clone(), changed(), claim)),
            Box::pin(feed(
                "storageclasses",
                storage_classes,
                self.storage_classes.clone(),
                changed(),
                |_| Some(()),
            )),
            Box::pin(feed(
                "runtimeclasses",
                runtime_classes,
                self.runtime_classes.clone(),
                changed(),
                |_| Some(()),
            )),
            Box::pin(feed(
                "gpunodes",
                api.all::<GpuNode>(),
                self.gpu_nodes.clone(),
                changed(),
                readable(self.gpu_node_view()),
            )),
            Box::pin(feed(
                "provisions",
                api.all::<Provision>(),
                self.provisions.clone(),
                changed(),
                readable(|p: &Provision| Some(ProvisionView::from(p))),
            )),
            Box::pin(feed(
                "awards",
                api.all::<Award>(),
                self.awards.clone(),
                changed(),
                readable(award_view),
            )),
        ];
        let agents = self.agents.watch(|| self.gpu_node_names(), &self.changed);
        futures::future::join(join_all(tasks), agents).await;
    }

    /// The view of GpuNodes; their heartbeats are taken note of on the way, and are not in it.
    fn gpu_node_view(&self) -> impl Fn(&GpuNode) -> Option<GpuNodeView> + Send + 'static {
        let (agents, changed) = (self.agents.clone(), self.changed.clone());
        move |node| {
            agents.hear(node, &changed);
            Some(gpu_node_view(node))
        }
    }

    fn gpu_node_names(&self) -> BTreeSet<String> {
        self.gpu_nodes.keys().into_iter().map(bare).collect()
    }

    /// Wakes when capacity changed.
    pub fn changed(&self) -> Arc<Notify> {
        self.changed.clone()
    }

    /// Whether every cache has seen a complete list.
    pub fn ready(&self) -> bool {
        self.nodes.ready()
            && self.gpu_nodes.ready()
            && self.pods.ready()
            && self.claims.ready()
            && self.provisions.ready()
            && self.awards.ready()
            && self.storage_classes.ready()
            && self.runtime_classes.ready()
    }

    /// The fingerprint of a node's devices; none while it is not known.
    pub fn fingerprint(&self, node: &str) -> Option<String> {
        self.gpu_nodes.get("", node)?.known.fingerprint
    }

    /// A Provision by name.
    pub fn provision(&self, namespace: &str, name: &str) -> Option<ProvisionView> {
        self.provisions.get(namespace, name)
    }

    /// Everything that capacity is counted from; `None` while a cache is incomplete.
    pub fn snapshot(&self) -> Option<Snapshot> {
        let mut assumed = self.assumed.lock().unwrap_or_else(PoisonError::into_inner);
        self.ready().then(|| self.count(&mut assumed))
    }

    fn count(&self, assumed: &mut BTreeMap<String, (Hold, Instant)>) -> Snapshot {
        let awards = self.awards.all();
        // What was written and has come back is no assumption any more.
        assumed.retain(|id, (_, since)| match awards.values().find(|a| a.id == *id) {
            Some(award) => !award.decided,
            None => since.elapsed() < ASSUMED_FOR,
        });
        let mut holds: Vec<Hold> = awards.into_values().filter_map(|a| a.hold).collect();
        holds.extend(assumed.values().map(|(hold, _)| hold.clone()));
        let names = |cache: &Cache<()>| -> BTreeSet<String> { cache.keys().into_iter().map(bare).collect() };
        Snapshot {
            nodes: self.nodes.all().into_iter().map(|(k, v)| (bare(k), v)).collect(),
            gpu_nodes: self.gpu_nodes.all().into_iter().map(|(k, v)| (bare(k), v)).collect(),
            silent: self.agents.silent(),
            pods: self.pods.all().into_values().collect(),
            claims: self.claims.all(),
            holds,
            storage_classes: names(&self.storage_classes),
            runtime_classes: names(&self.runtime_classes),
        }
    }

    /// Gives devices to an award, and assumes that it has them. `None` while a cache is incomplete.
    pub fn allocate(&self, award: &Award) -> Option<Allocation> {
        let mut assumed = self.assumed.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.ready() {
            return None;
        }
        if let Some((hold, _)) = assumed.get(&award.spec.id) {
            return Some(Allocation::Held(hold.devices.clone()));
        }
        let snapshot = self.count(&mut assumed);
        let namespace = award.spec.provision_namespace.as_deref().unwrap_or_default();
        let name = award.spec.provision.as_deref().unwrap_or_default();
        let Some(provision) = self.provision(namespace, name) else {
            return Some(Allocation::Refused(format!("the Provision {namespace}/{name} does not exist")));
        };
        let allocation = allocate(&snapshot, &provision.spec, award);
        if let Allocation::Held(devices) = &allocation {
            assumed.insert(award.spec.id.clone(), (hold(award, devices.clone()), Instant::now()));
            self.changed.notify_one();
        }
        Some(allocation)
    }

    /// Looks again whether what was just given to an award is free, by what Pods take from its nodes now. If it is not, it
    /// is taken back.
    pub fn confirm(&self, award: &Award, nodes: &[String], pods: Vec<PodUse>) -> Option<Allocation> {
        let mut assumed = self.assumed.lock().unwrap_or_else(PoisonError::into_inner);
        let given = assumed.get(&award.spec.id)?.0.devices.clone();
        let mut snapshot = self.count(&mut assumed);
        snapshot.holds.retain(|hold| hold.award_id != award.spec.id);
        snapshot.pods.retain(|pod| !nodes.contains(&pod.node));
        snapshot.pods.extend(pods);
        snapshot.nodes.retain(|name, _| nodes.contains(name));
        let namespace = award.spec.provision_namespace.as_deref().unwrap_or_default();
        let name = award.spec.provision.as_deref().unwrap_or_default();
        let provision = self.provision(namespace, name)?;
        match allocate(&snapshot, &provision.spec, award) {
            Allocation::Held(_) => Some(Allocation::Held(given)),
            refused @ Allocation::Refused(_) => {
                assumed.remove(&award.spec.id);
                self.changed.notify_one();
                Some(refused)
            }
        }
    }

    /// Whether an award of this host is over: released, or not there any more. `None` while that is not known.
    pub fn is_over(&self, award_id: &str) -> Option<bool> {
        let assumed = self.assumed.lock().unwrap_or_else(PoisonError::into_inner).contains_key(award_id);
        let found = self.awards.ready().then(|| self.awards.find(|award| award.id == award_id))?;
        Some(!assumed && found.is_none_or(|award| award.released))
    }

    /// The nodes that hold or held devices of an award, as long as it is there.
    pub fn nodes_of(&self, award_id: &str) -> Vec<String> {
        self.awards.find(|award| award.id == award_id).map(|award| award.nodes).unwrap_or_default()
    }

    /// Takes an assumption back, because the API server refused to write it.
    pub fn forget(&self, award_id: &str) {
        self.assumed.lock().unwrap_or_else(PoisonError::into_inner).remove(award_id);
        self.changed.notify_one();
    }

    /// Brings the gauges up to date.
    pub fn gauge(&self, metrics: &Metrics) {
        let Some(snapshot) = self.snapshot() else { return };
        metrics.gpus_held.set(snapshot.holds.iter().map(|h| i64::from(h.gpus())).sum());
        let silent =
            snapshot.gpu_nodes.iter().filter(|(name, gpus)| gpus.ready && snapshot.silent.contains(*name));
        metrics.agents_silent.set(i64::try_from(silent.count()).unwrap_or(i64::MAX));
        // Provisions may overlap; a node counts once.
        let mut free: BTreeMap<String, i64> = BTreeMap::new();
        for provision in self.provisions.all().values() {
            for node in free_nodes(&snapshot, &provision.spec) {
                free.insert(node.node, i64::from(node.gpus));
            }
        }
        metrics.gpus_free.set(free.values().sum());
        let awards = self.awards.all();
        for state in STATES.into_iter().chain(["other"]) {
            let count = awards.values().filter(|a| a.state == state).count();
            metrics.awards.with_label_values(&[state]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
}

/// Makes APIs of kinds whose objects may be unreadable.
struct Guarded(Client);

impl Guarded {
    fn all<K>(&self) -> Api<DeserializeGuard<K>>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        Api::all(self.0.clone())
    }
}

#[cfg(test)]
impl Ledger {
    /// A ledger whose caches hold these views.
    pub fn with(
        nodes: Vec<(&str, NodeView)>,
        gpu_nodes: Vec<(&str, GpuNodeView)>,
        provision: ProvisionView,
        awards: &[Award],
    ) -> Self {
        let bare = |name: &str| format!("/{name}");
        let key = format!("{}/{}", provision.namespace, provision.name);
        let views = awards.iter().filter_map(|a| Some((a.spec.id.clone(), award_view(a)?)));
        Self {
            nodes: Arc::new(Cache::filled(nodes.into_iter().map(|(n, v)| (bare(n), v)))),
            gpu_nodes: Arc::new(Cache::filled(gpu_nodes.into_iter().map(|(n, v)| (bare(n), v)))),
            pods: Arc::new(Cache::filled([])),
            claims: Arc::new(Cache::filled([])),
            provisions: Arc::new(Cache::filled([(key, provision)])),
            awards: Arc::new(Cache::filled(views)),
            storage_classes: Arc::new(Cache::filled([])),
            runtime_classes: Arc::new(Cache::filled([])),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, stream};
    use kube::runtime::watcher::Event;
    use serde_json::json;
    use vendue_controller_core::provision::SILENT_AFTER;

    use super::*;
    use crate::cache::consume;

    fn gpu_node(name: &str, second: u32, health: &str) -> GpuNode {
        serde_json::from_value(json!({
            "apiVersion": "vendue.dev/v1alpha1", "kind": "GpuNode",
            "metadata": { "name": name, "resourceVersion": second.to_string() }, "spec": {},
            "status": {
                "observedAt": format!("2026-01-01T00:00:{second:02}Z"), "deviceCount": 1,
                "conditions": [{ "type": "Ready", "status": "True", "reason": "Healthy", "message": "",
                    "lastTransitionTime": "2026-01-01T00:00:00Z" }],
                "devices": [{ "uuid": format!("GPU-{name}"), "index": 0, "model": "H100", "productName": "H100",
                    "memoryMib": 81_920, "pciBusId": "0", "migMode": "Disabled", "health": health,
                    "probe": { "result": "Passed", "reason": "Passed" } }],
            },
        }))
        .unwrap()
    }

    /// A ledger of one node with a GPU, whose GpuNode these events bring.
    struct Bench(Ledger);

    impl Bench {
        fn new() -> Self {
            let node = NodeView { usable: true, gpus: 1, cpu_millis: 64_000, ..NodeView::default() };
            let spec =
                serde_json::from_value(json!({ "price": "1.80", "storageClassName": "local" })).unwrap();
            let provision = ProvisionView { namespace: "default".into(), name: "gpus".into(), spec };
            Self(Ledger::with(vec![("n1", node)], vec![], provision, &[]))
        }

        async fn bring(&self, events: Vec<Event<GpuNode>>) {
            let events = stream::iter(events.into_iter().map(Ok));
            let view = self.0.gpu_node_view();
            consume("gpunodes", events, &self.0.gpu_nodes, &self.0.changed, view).await;
        }

        fn is_woken(&self) -> bool {
            self.0.changed.notified().now_or_never().is_some()
        }

        fn free(&self) -> i32 {
            let spec = self.0.provision("default", "gpus").unwrap().spec;
            free_nodes(&self.0.snapshot().unwrap(), &spec).iter().map(|n| n.gpus).sum()
        }
    }

    #[tokio::test]
    async fn heartbeats_that_change_nothing_but_the_time_look_at_no_provision() {
        let bench = Bench::new();
        let names: Vec<String> = (0..5000).map(|n| format!("n{n}")).collect();
        let round = |second| names.iter().map(move |name| gpu_node(name, second, "Healthy"));
        let list = std::iter::once(Event::Init).chain(round(0).map(Event::InitApply));
        bench.bring(list.chain([Event::InitDone]).collect()).await;
        assert!(bench.is_woken(), "the first list says what there is");
        for second in [15, 30] {
            bench.bring(round(second).map(Event::Apply).collect()).await;
            assert!(!bench.is_woken(), "heartbeats at {second} s");
        }
        bench.bring(vec![Event::Apply(gpu_node("n7", 31, "Degraded"))]).await;
        assert!(bench.is_woken(), "a device that is not healthy any more");
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_whose_agent_is_silent_sells_nothing_until_it_is_heard() {
        let bench = Bench::new();
        let list =
            |second| vec![Event::Init, Event::InitApply(gpu_node("n1", second, "Healthy")), Event::InitDone];
        bench.bring(list(0)).await;
        assert_eq!(bench.free(), 1, "after a start an agent has a minute");
        let metrics = Metrics::new().unwrap();
        let silent = || {
            bench.0.gauge(&metrics);
            metrics.agents_silent.get()
        };
        assert_eq!(silent(), 0);
        tokio::time::advance(SILENT_AFTER).await;
        assert_eq!((bench.free(), silent()), (0, 1));
        // A watch that begins anew brings the last heartbeat again.
        bench.bring(list(0)).await;
        assert_eq!(bench.free(), 0);
        bench.bring(vec![Event::Apply(gpu_node("n1", 1, "Healthy"))]).await;
        assert_eq!(bench.free(), 1);
    }
}
