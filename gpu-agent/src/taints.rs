//! Taints of the node that tell schedulers of GPUs in trouble.
//!
//! * Inputs: what is judged of the devices, the Node as the API server has it. Output: the Node's taints.
//! * Invariants: of the Node only taints with the keys of [`names::TAINTS`] are ever changed; a Node that somebody else changes at the
//!   same time is read again first.
//!
//! | key | value | when |
//! |---|---|---|
//! | `vendue.dev/xid` | the code; `lost` | an Xid that is not the application's; a lost device |
//! | `vendue.dev/ecc` | | memory errors, rows that were not or not yet replaced |
//! | `vendue.dev/thermal` | | clocks are cut for heat |
//!
//! The effect is `NoSchedule`: what runs goes on.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Taint};
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tokio::time::Instant;
use vendue_crds::names::{self, TAINT_EFFECT as EFFECT, TAINTS as KEYS};

use crate::health::judge::{Cause, Judge};
use crate::inventory::NodeInventory;

/// Longest wait for the API server.
const LIMIT: Duration = Duration::from_secs(10);

/// How often a node that is to have taints is looked at again: others may take them away.
const LOOK: Duration = Duration::from_secs(60);

/// Taints by key, with their values.
pub type Wanted = BTreeMap<&'static str, String>;

/// The taints that a node with these devices should have. Of several devices with the same key the first is named; devices
/// that failed and cannot be named any more come last.
#[must_use]
pub fn wanted(inventory: &NodeInventory, judge: &Judge) -> Wanted {
    let mut wanted = Wanted::new();
    let named = inventory.devices.iter().filter_map(|d| judge.opinion(&d.identity.uuid).cause);
    let missing = judge.missing(inventory).filter_map(|(_, opinion)| opinion.cause);
    let unknown = inventory.unknown.iter().map(|_| Cause::Lost);
    for cause in named.chain(missing).chain(unknown) {
        let value = match cause {
            Cause::Xid(code) => code.to_string(),
            Cause::Lost => "lost".to_owned(),
            Cause::RowRemapFailed | Cause::RowRemapPending | Cause::Ecc | Cause::Thermal => String::new(),
        };
        wanted.entry(cause.taint()).or_insert(value);
    }
    wanted
}

/// The taints of a node with ours brought up to date; `None` when they are.
#[must_use]
pub fn change(current: &[Taint], wanted: &Wanted) -> Option<Vec<Taint>> {
    let is_ours = |taint: &&Taint| KEYS.contains(&taint.key.as_str());
    let ours: Vec<Taint> = wanted
        .iter()
        .map(|(key, value)| Taint {
            key: (*key).to_owned(),
            value: Some(value.clone()).filter(|value| !value.is_empty()),
            effect: EFFECT.to_owned(),
            time_added: None,
        })
        .collect();
    let same = |a: &Taint, b: &Taint| (&a.key, &a.effect, text(a)) == (&b.key, &b.effect, text(b));
    let now: Vec<&Taint> = current.iter().filter(is_ours).collect();
    if now.len() == ours.len() && ours.iter().all(|our| now.iter().any(|taint| same(taint, our))) {
        return None;
    }
    let others = current.iter().filter(|taint| !is_ours(taint)).cloned();
    Some(others.chain(ours).collect())
}

/// An absent value and an empty one are the same.
fn text(taint: &Taint) -> &str {
    taint.value.as_deref().unwrap_or_default()
}

/// Why the taints are not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum TaintError {
    /// The API server refused or could not be reached.
    #[error("{operation}: {source}")]
    Api {
        /// What was asked.
        operation: &'static str,
        /// What the client says.
        source: Box<kube::Error>,
    },
    /// The API server did not answer in time.
    #[error("{operation}: no answer within {} s", LIMIT.as_secs())]
    Timeout {
        /// What was asked.
        operation: &'static str,
    },
}

/// Writes the taints of one node.
pub struct Tainter {
    nodes: Api<Node>,
    node: String,
    enabled: bool,
    /// What the node was last seen to have, and when.
    applied: Option<(Wanted, Instant)>,
}

impl Tainter {
    /// A tainter of the node of that name, of which nothing is known yet; one that is not `enabled` takes back what one that
    /// was has left there.
    #[must_use]
    pub fn new(client: kube::Client, node: String, enabled: bool) -> Self {
        Self { nodes: Api::all(client), node, enabled, applied: None }
    }

    /// The taints to bring to a node that should have these, when a call is due.
    #[must_use]
    pub fn due(&self, wanted: &Wanted) -> Option<Wanted> {
        let wanted = if self.enabled { wanted.clone() } else { Wanted::new() };
        let is_done = match &self.applied {
            Some((taints, at)) => *taints == wanted && (wanted.is_empty() || at.elapsed() < LOOK),
            None => false,
        };
        (!is_done).then_some(wanted)
    }

    /// What people have to do where this agent may not.
    #[must_use]
    pub fn by_hand(&self) -> String {
        let keys = KEYS.map(|key| format!("{key}-")).join(" ");
        format!("kubectl taint node {} {keys}", self.node)
    }

    /// Whether taints are written, and not only taken back.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Brings the node's taints up to date; says whether that took a write.
    ///
    /// # Errors
    /// When the API server refuses, fails or does not answer; also when the node was changed in between, which the next
    /// call takes into account.
    pub async fn apply(&mut self, wanted: &Wanted) -> Result<bool, TaintError> {
        self.applied = None;
        let node = limited("get node", self.nodes.get(&self.node)).await?;
        let current = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
        let change = change(&current, wanted);
        if let Some(taints) = &change {
            // The list has no keys to the API server: it is replaced whole, and only if it is still the one that was read.
            let patch = json!({
                "metadata": { "resourceVersion": node.metadata.resource_version },
                "spec": { "taints": taints },
            });
            let parameters = PatchParams {
                field_manager: Some(names::MANAGER_AGENT.to_owned()),
                ..PatchParams::default()
            };
            let patch = Patch::Merge(&patch);
            limited("patch taints of node", self.nodes.patch(&self.node, &parameters, &patch)).await?;
        }
        self.applied = Some((wanted.clone(), Instant::now()));
        Ok(change.is_some())
    }
}

async fn limited<T>(
    operation: &'static str,
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, TaintError> {
    match tokio::time::timeout(LIMIT, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(TaintError::Api { operation, source: Box::new(source) }),
        Err(_) => Err(TaintError::Timeout { operation }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::judge::{Lasting, Times};
    use crate::health::xid::Policy;
    use crate::inventory::{DeviceFault, DeviceIdentity, DeviceReading, UnknownDevice};

    fn taint(key: &str, value: Option<&str>) -> Taint {
        Taint {
            key: key.to_owned(),
            value: value.map(str::to_owned),
            effect: EFFECT.to_owned(),
            time_added: None,
        }
    }

    #[test]
    fn each_fault_has_its_key_and_the_xid_its_code() {
        let device = |n: u32, fault| DeviceReading {
            fault,
            ..DeviceReading::of(DeviceIdentity {
                index: n,
                uuid: format!("GPU-{n}"),
                product_name: String::new(),
                memory_bytes: 0,
                pci_bus_id: String::new(),
                minor: None,
            })
        };
        let devices = vec![device(0, None), device(1, Some(DeviceFault::RowRemapPending)), device(2, None)];
        let mut judge = Judge::new(Policy::default(), Times::default(), vec![]);
        devices.iter().for_each(|d| judge.reading(d, Duration::ZERO));
        judge.xid("GPU-0", 31, Duration::ZERO);
        judge.xid("GPU-2", 94, Duration::ZERO);
        let inventory = NodeInventory { devices, ..NodeInventory::default() };
        let expected = Wanted::from([("vendue.dev/ecc", String::new()), ("vendue.dev/xid", "94".to_owned())]);
        assert_eq!(wanted(&inventory, &judge), expected);
    }

    #[test]
    fn what_cannot_be_named_keeps_its_taint() {
        let lost = || Wanted::from([("vendue.dev/xid", "lost".to_owned())]);
        let judge = |lasting| Judge::new(Policy::default(), Times::default(), lasting);
        // Never read by this process: the driver counts it and does not give its name.
        let unknown = vec![UnknownDevice { index: 0, error: "lost".to_owned() }];
        let inventory = NodeInventory { unknown, ..NodeInventory::default() };
        assert_eq!(wanted(&inventory, &judge(vec![])), lost());
        // Not even counted: remembered from before.
        let of = |cause| Lasting { uuid: "GPU-0".to_owned(), cause, energy_millijoules: None };
        assert_eq!(wanted(&NodeInventory::default(), &judge(vec![of(Cause::Lost)])), lost());
        let fatal = wanted(&NodeInventory::default(), &judge(vec![of(Cause::Xid(79))]));
        assert_eq!(fatal, Wanted::from([("vendue.dev/xid", "79".to_owned())]));
        assert_eq!(wanted(&NodeInventory::default(), &judge(vec![])), Wanted::new());
    }

    #[test]
    fn only_our_taints_are_changed() {
        let theirs = taint("node.kubernetes.io/not-ready", None);
        let wanted = Wanted::from([("vendue.dev/ecc", String::new()), ("vendue.dev/xid", "79".to_owned())]);
        let (ecc, xid) = (taint("vendue.dev/ecc", None), taint("vendue.dev/xid", Some("79")));
        let all = vec![theirs.clone(), ecc.clone(), xid.clone()];
        assert_eq!(change(std::slice::from_ref(&theirs), &wanted), Some(all.clone()));
        assert_eq!(change(&all, &wanted), None);
        // The order does not matter, nor whether an empty value is there.
        assert_eq!(change(&[xid.clone(), taint("vendue.dev/ecc", Some("")), theirs.clone()], &wanted), None);
        let old = taint("vendue.dev/xid", Some("48"));
        assert_eq!(change(&[old, theirs.clone(), ecc], &wanted), Some(all.clone()));
        assert_eq!(change(&all, &Wanted::new()), Some(vec![theirs.clone()]));
        assert_eq!(change(&[theirs], &Wanted::new()), None);
        let stronger = Taint { effect: "NoExecute".to_owned(), ..xid };
        assert!(change(&[stronger], &Wanted::from([("vendue.dev/xid", "79".to_owned())])).is_some());
    }

    #[test]
    fn keys_are_those_of_the_causes() {
        let mut keys: Vec<&str> = [
            Cause::Lost,
            Cause::Xid(1),
            Cause::RowRemapFailed,
            Cause::RowRemapPending,
            Cause::Ecc,
            Cause::Thermal,
        ]
        .map(Cause::taint)
        .into();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys, KEYS);
    }
}
