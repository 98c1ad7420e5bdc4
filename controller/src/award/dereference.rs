//! Reads what an Award's plan depends on.
//!
//! Invariants: what is looked at follows from the Award alone ([`look`]); Ray is asked only when its head is ready.

use std::sync::PoisonError;

use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use vendue_controller_core::award::allocate::Allocation;
use vendue_controller_core::award::needs_hold;
use vendue_controller_core::award::objects::{Terms, Tokens};
use vendue_controller_core::award::plan::{Look, Observed, Phase, current_submission, look, metered, phase};
use vendue_controller_core::award::ray_job::{RayState, Seen};
use vendue_controller_core::award::usage::NodeBill;
use vendue_controller_core::provision::{PodUse, pod_use};
use vendue_crds::workload::Workload;
use vendue_crds::{Award, names};
use vendue_receipts::AwardId;

use super::ledger::nodes;
use super::{Awards, client, provisioned};
use crate::io::{IoError, ReadError, get_opt, timed};
use crate::runtime::Runtime;

/// Reads.
pub async fn dereference<R: Runtime>(
    award: &Award,
    all: &Awards<R>,
    now: Timestamp,
) -> Result<Observed, ReadError> {
    let mut observed = Observed::default();
    if needs_hold(award, now) {
        observed.allocation = all.ledger.allocate(award);
        if let Some(Allocation::Held(devices)) = &observed.allocation {
            let nodes: Vec<String> = devices.iter().map(|d| d.node.clone()).collect();
            let pods = pods_on(all, &nodes).await?;
            observed.allocation = all.ledger.confirm(award, &nodes, pods);
            observed.fingerprint = nodes.first().and_then(|node| all.ledger.fingerprint(node));
        }
        return Ok(observed);
    }
    let held = award.status.as_ref().and_then(|s| s.devices.first());
    observed.fingerprint = held.and_then(|devices| all.ledger.fingerprint(&devices.node));
    let look = look(award, now);
    if look == Look::Nothing {
        all.workloads.lock().unwrap_or_else(PoisonError::into_inner).remove(&uid(award));
        all.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&uid(award));
        return Ok(observed);
    }
    observed.bills = bills(award, all, now).await;
    let cluster = all.runtime.observe(award, look == Look::All).await?;
    observed.pods = cluster.pods;
    observed.present = cluster.present;
    if phase(award, now) != Phase::Working {
        return Ok(observed);
    }
    observed.workload = workload(award, all).await?;
    let namespace = award.spec.provision_namespace.as_deref().unwrap_or_default();
    let name = award.spec.provision.as_deref().unwrap_or_default();
    // Asked first: what comes between the two questions must not look gone.
    let known = all.ledger.ready();
    observed.terms = all
        .ledger
        .provision(namespace, name)
        .map(|p| Terms { storage_class_name: p.spec.storage_class_name, isolation: p.spec.isolation });
    if observed.terms.is_none() && !known {
        // Not known yet is not gone.
        observed.workload = None;
    }
    if look == Look::All {
        observed.fresh_tokens = Some(fresh_tokens().map_err(ReadError::Random)?);
    }
    let head_ready = observed.pods.iter().any(|p| p.head && p.ready && !p.deleting);
    if provisioned(award)
        && head_ready
        && let Some(ray) = client(award, all).await?
    {
        observed.ray = ray.observe(&current_submission(award)).await;
        observed.seen_running = seen_running(award, all, &observed.ray, now);
    }
    Ok(observed)
}

/// When Ray last said that the entry point runs.
fn seen_running<R: Runtime>(award: &Award, all: &Awards<R>, ray: &Seen, now: Timestamp) -> Option<Timestamp> {
    let mut running = all.running.lock().unwrap_or_else(PoisonError::into_inner);
    if matches!(ray, Seen::Job { state: RayState::Running, .. }) {
        running.insert(uid(award), now);
    }
    running.get(&uid(award)).copied()
}

/// What receipts of the award add up to. Receipts that cannot be read hold nothing up: nothing accrues meanwhile. It is noted
/// too which nodes held its devices, before the Award forgets it.
async fn bills<R: Runtime>(award: &Award, all: &Awards<R>, now: Timestamp) -> Option<Vec<NodeBill>> {
    let book = all.book.clone()?;
    let (id, nodes) = (award.spec.id.parse::<AwardId>().ok()?, nodes(award.status.as_ref()?));
    let run = metered(award, now);
    if run.is_none() && (nodes.is_empty() || book.knows(id, &nodes)) {
        return None;
    }
    let read = tokio::task::spawn_blocking(move || {
        book.note_held(id, &nodes)?;
        run.map(|run| book.bills(id, run, &nodes)).transpose()
    });
    match read.await {
        Ok(Ok(bills)) => bills,
        Ok(Err(error)) => {
            tracing::error!(%error, "receipts of the award cannot be read");
            None
        }
        Err(error) => {
            tracing::error!(%error, "receipts of the award cannot be read");
            None
        }
    }
}

/// What Pods take from these nodes, as the API server knows it now: the cache may be behind, and devices that are gone must
/// not be promised.
async fn pods_on<R: Runtime>(all: &Awards<R>, nodes: &[String]) -> Result<Vec<PodUse>, IoError> {
    let api: Api<Pod> = Api::all(all.context.client.clone());
    let mut uses = Vec::new();
    for node in nodes {
        let on_node = ListParams::default().fields(&format!("spec.nodeName={node}"));
        let pods = timed("list the node's Pods", api.list(&on_node)).await?;
        uses.extend(pods.items.iter().filter_map(pod_use));
    }
    Ok(uses)
}

fn uid(award: &Award) -> String {
    award.uid().unwrap_or_default()
}

/// The workload. Its files are kept only until they are in a Secret of their own.
async fn workload<R: Runtime>(
    award: &Award,
    all: &Awards<R>,
) -> Result<Option<Result<Workload, String>>, IoError> {
    if provisioned(award) {
        let known = all.workloads.lock().unwrap_or_else(PoisonError::into_inner).get(&uid(award)).cloned();
        if let Some(known) = known {
            return Ok(Some(Ok(known)));
        }
    }
    let name = award.spec.workload_secret.as_deref().unwrap_or_default();
    let api: Api<Secret> =
        Api::namespaced(all.context.client.clone(), &award.namespace().unwrap_or_default());
    let Some(secret) = get_opt("read the workload", &api, name).await? else {
        return Ok(Some(Err(format!("the Secret \"{name}\" with the workload is gone"))));
    };
    let bytes = secret.data.as_ref().and_then(|d| d.get(names::WORKLOAD_KEY));
    let Some(bytes) = bytes else {
        return Ok(Some(Err(format!("the Secret \"{name}\" has no key {}", names::WORKLOAD_KEY))));
    };
    let workload = match Workload::decode(&bytes.0) {
        Ok(workload) => workload,
        Err(error) => return Ok(Some(Err(error.to_string()))),
    };
    if provisioned(award) {
        let mut small = workload.clone();
        small.train.files.clear();
        all.workloads.lock().unwrap_or_else(PoisonError::into_inner).insert(uid(award), small);
    }
    Ok(Some(Ok(workload)))
}

fn fresh_tokens() -> Result<Tokens, getrandom::Error> {
    let token = || -> Result<String, getrandom::Error> {
        let mut bytes = [0u8; 32];
        getrandom::fill(&mut bytes)?;
        Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
    };
    Ok(Tokens { ray: token()?, courier: token()? })
}

/// Ray's token of the award.
pub(super) async fn ray_token<R: Runtime>(
    all: &Awards<R>,
    namespace: &str,
) -> Result<Option<String>, IoError> {
    let api: Api<Secret> = Api::namespaced(all.context.client.clone(), namespace);
    let secret = get_opt("read the award's tokens", &api, names::TOKENS_SECRET).await?;
    let token = secret.and_then(|s| s.data?.remove(names::RAY_TOKEN_KEY));
    Ok(token.and_then(|t| String::from_utf8(t.0).ok()))
}
