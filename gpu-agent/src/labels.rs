//! Labels of the node as NVIDIA's GPU feature discovery (GFD) writes them, for clusters without it.
//!
//! * Inputs: an inventory, the Node as the API server has it. Output: the Node's labels with the keys of [`KEYS`].
//! * Invariants: while anybody else has one of these labels on the node, or GFD has been there, none is written, and those
//!   that were are taken back; a label of another owner is never changed; turned off, the labels go.
//!
//! The labels and their forms are those of NVIDIA/k8s-device-plugin, internal/lm (nvml.go, resource.go). Left out is what
//! depends on the configuration of a device plugin (replicas, sharing, MIG strategy) and what NVML does not tell (mode,
//! machine). What differs between the GPUs of a node has no label.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tokio::time::Instant;
use vendue_crds::gfd;

use crate::inventory::{DeviceReading, NodeInventory};

/// Who owns the labels that this agent writes.
pub const MANAGER: &str = "vendue-gpu-agent-labels";

/// Every label that may be written.
pub const KEYS: [&str; 19] = [
    "nvidia.com/cuda.driver-version.full",
    "nvidia.com/cuda.driver-version.major",
    "nvidia.com/cuda.driver-version.minor",
    "nvidia.com/cuda.driver-version.revision",
    "nvidia.com/cuda.driver.major",
    "nvidia.com/cuda.driver.minor",
    "nvidia.com/cuda.driver.rev",
    "nvidia.com/cuda.runtime-version.full",
    "nvidia.com/cuda.runtime-version.major",
    "nvidia.com/cuda.runtime-version.minor",
    "nvidia.com/cuda.runtime.major",
    "nvidia.com/cuda.runtime.minor",
    "nvidia.com/gpu.compute.major",
    "nvidia.com/gpu.compute.minor",
    "nvidia.com/gpu.family",
    "nvidia.com/mig.capable",
    gfd::COUNT,
    gfd::MEMORY,
    gfd::PRODUCT,
];

/// Longest wait for the API server.
const LIMIT: Duration = Duration::from_secs(10);

/// So often it is looked whether somebody else labels the node by now.
const LOOK: Duration = Duration::from_secs(300);

/// Labels by key.
pub type Labels = BTreeMap<String, String>;

/// The labels that a node with these devices should have; none without devices.
#[must_use]
pub fn wanted(inventory: &NodeInventory) -> Labels {
    let devices = &inventory.devices;
    let mut labels = Labels::new();
    if devices.is_empty() {
        return labels;
    }
    let mut put = |key: &str, value: String| _ = labels.insert(key.to_owned(), value);
    put(gfd::COUNT, devices.len().to_string());
    put("nvidia.com/mig.capable", devices.iter().any(|d| d.mig_enabled.is_some()).to_string());
    if let Some(product) = same(devices, |d| Some(gfd::product(&d.identity.product_name))) {
        put(gfd::PRODUCT, product);
    }
    if let Some(bytes) = same(devices, |d| Some(d.identity.memory_bytes)) {
        put(gfd::MEMORY, (bytes >> 20).to_string());
    }
    if let Some((major, minor)) = same(devices, |d| d.compute_capability) {
        put("nvidia.com/gpu.compute.major", major.to_string());
        put("nvidia.com/gpu.compute.minor", minor.to_string());
        put("nvidia.com/gpu.family", family(major, minor).to_owned());
    }
    versions(inventory, put);
    labels
}

/// What all devices have; none when one has another.
fn same<T: PartialEq>(devices: &[DeviceReading], of: impl Fn(&DeviceReading) -> Option<T>) -> Option<T> {
    let first = of(devices.first()?)?;
    devices.iter().all(|d| of(d).as_ref() == Some(&first)).then_some(first)
}

/// Versions of driver and CUDA, under their names of today and those of before.
fn versions(inventory: &NodeInventory, mut put: impl FnMut(&str, String)) {
    let parts: Vec<&str> = inventory.driver_version.split('.').collect();
    if let [major, minor, rest @ ..] = parts.as_slice()
        && rest.len() <= 1
    {
        let revision = rest.first().copied().unwrap_or_default();
        for (key, value) in [
            ("driver-version.full", inventory.driver_version.as_str()),
            ("driver-version.major", major),
            ("driver-version.minor", minor),
            ("driver-version.revision", revision),
            ("driver.major", major),
            ("driver.minor", minor),
            ("driver.rev", revision),
        ] {
            put(&format!("nvidia.com/cuda.{key}"), value.to_owned());
        }
    }
    if let Some((full, (major, minor))) =
        inventory.cuda_version.as_ref().and_then(|v| Some((v, v.split_once('.')?)))
    {
        for (key, value) in [
            ("runtime-version.full", full.as_str()),
            ("runtime-version.major", major),
            ("runtime-version.minor", minor),
            ("runtime.major", major),
            ("runtime.minor", minor),
        ] {
            put(&format!("nvidia.com/cuda.{key}"), value.to_owned());
        }
    }
}

/// Name of an architecture by compute capability.
fn family(major: i32, minor: i32) -> &'static str {
    match (major, minor) {
        (5, _) => "maxwell",
        (6, _) => "pascal",
        (7, 0..=4) => "volta",
        (7, _) => "turing",
        (8, 0..=8) => "ampere",
        (8, _) => "ada-lovelace",
        (9, _) => "hopper",
        (10 | 12, _) => "blackwell",
        _ => "undefined",
    }
}

/// The labels of a node that this agent owns.
fn owned(node: &Node) -> Labels {
    let fields = node.metadata.managed_fields.iter().flatten();
    let ours =
        fields.filter(|f| f.manager.as_deref() == Some(MANAGER) && f.operation.as_deref() == Some("Apply"));
    let keys: BTreeSet<String> = ours
        .filter_map(|f| f.fields_v1.as_ref()?.0.pointer("/f:metadata/f:labels")?.as_object())
        .flat_map(|labels| labels.keys().filter_map(|key| key.strip_prefix("f:").map(str::to_owned)))
        .collect();
    let labels = node.metadata.labels.iter().flatten();
    labels.filter(|(key, _)| keys.contains(*key)).map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// The labels to apply, so that the node has those that are wanted and nobody else's are touched; `None` when nothing is
/// to be done.
#[must_use]
pub fn change(node: &Node, wanted: &Labels) -> Option<Labels> {
    let owned = owned(node);
    let is_anothers =
        |key: &String| key == gfd::TIMESTAMP || KEYS.contains(&key.as_str()) && !owned.contains_key(key);
    let others = node.metadata.labels.iter().flatten().any(|(key, _)| is_anothers(key));
    let target = if others { Labels::new() } else { wanted.clone() };
    (owned != target).then_some(target)
}

/// Why the labels are not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum LabelError {
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

/// Writes the labels of one node, or takes them back.
pub struct Labeller {
    nodes: Api<Node>,
    node: String,
    enabled: bool,
    /// What was wanted when the node was last brought up to date, and when.
    applied: Option<(Labels, Instant)>,
}

impl Labeller {
    /// A labeller of the node of that name; one that is not `enabled` takes back what one that was has written.
    #[must_use]
    pub fn new(client: kube::Client, node: String, enabled: bool) -> Self {
        Self { nodes: Api::all(client), node, enabled, applied: None }
    }

    /// The labels to bring to the node, when a call is due.
    #[must_use]
    pub fn due(&self, inventory: &NodeInventory) -> Option<Labels> {
        let wanted = if self.enabled { wanted(inventory) } else { Labels::new() };
        let is_done = match &self.applied {
            // What is turned off stays off.
            Some((labels, at)) => *labels == wanted && (!self.enabled || at.elapsed() < LOOK),
            None => false,
        };
        (!is_done).then_some(wanted)
    }

    /// Brings the node's labels up to date; says whether that took a write.
    ///
    /// # Errors
    /// When the API server refuses, fails or does not answer; also when somebody else took a label in between, which the
    /// next call takes into account.
    pub async fn apply(&mut self, wanted: &Labels) -> Result<bool, LabelError> {
        self.applied = None;
        let node = limited("get node", self.nodes.get(&self.node)).await?;
        let change = change(&node, wanted);
        if let Some(labels) = &change {
            let object = json!({
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": { "name": self.node, "labels": labels },
            });
            // Not forced: whoever else owns a label keeps it.
            let (parameters, patch) = (PatchParams::apply(MANAGER), Patch::Apply(&object));
            limited("apply labels of node", self.nodes.patch(&self.node, &parameters, &patch)).await?;
        }
        self.applied = Some((wanted.clone(), Instant::now()));
        Ok(change.is_some())
    }
}

async fn limited<T>(
    operation: &'static str,
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, LabelError> {
    match tokio::time::timeout(LIMIT, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(LabelError::Api { operation, source: Box::new(source) }),
        Err(_) => Err(LabelError::Timeout { operation }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::inventory::DeviceIdentity;

    fn device(product: &str, mib: u64, capability: (i32, i32)) -> DeviceReading {
        let identity = DeviceIdentity {
            index: 0,
            uuid: "GPU-0".to_owned(),
            product_name: product.to_owned(),
            memory_bytes: mib << 20,
            pci_bus_id: String::new(),
            minor: None,
        };
        DeviceReading {
            mig_enabled: Some(false),
            compute_capability: Some(capability),
            ..DeviceReading::of(identity)
        }
    }

    fn inventory(devices: Vec<DeviceReading>) -> NodeInventory {
        NodeInventory {
            driver_version: "580.95.05".to_owned(),
            cuda_version: Some("13.0".to_owned()),
            devices,
            unknown: vec![],
        }
    }

    fn sorted_keys() -> impl Iterator<Item = &'static str> {
        BTreeSet::from(KEYS).into_iter()
    }

    fn labels(list: &[(&str, &str)]) -> Labels {
        list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    /// A node with labels, some of which are this agent's.
    fn node(ours: &[(&str, &str)], theirs: &[(&str, &str)]) -> Node {
        let fields: serde_json::Map<String, Value> =
            ours.iter().map(|(key, _)| (format!("f:{key}"), json!({}))).collect();
        let all: Labels = labels(ours).into_iter().chain(labels(theirs)).collect();
        serde_json::from_value(json!({ "metadata": { "name": "n1", "labels": all, "managedFields": [
            { "manager": MANAGER, "operation": "Apply", "fieldsV1": { "f:metadata": { "f:labels": fields } } },
            { "manager": "kubelet", "operation": "Update", "fieldsV1": { "f:metadata": { "f:labels": { "f:zone": {} } } } },
        ] } }))
        .unwrap()
    }

    #[test]
    fn labels_are_those_of_feature_discovery() {
        let h100 = || device("NVIDIA H100 80GB HBM3", 81_559, (9, 0));
        let found = wanted(&inventory(vec![h100(), h100()]));
        let expected = labels(&[
            ("nvidia.com/cuda.driver-version.full", "580.95.05"),
            ("nvidia.com/cuda.driver-version.major", "580"),
            ("nvidia.com/cuda.driver-version.minor", "95"),
            ("nvidia.com/cuda.driver-version.revision", "05"),
            ("nvidia.com/cuda.driver.major", "580"),
            ("nvidia.com/cuda.driver.minor", "95"),
            ("nvidia.com/cuda.driver.rev", "05"),
            ("nvidia.com/cuda.runtime-version.full", "13.0"),
            ("nvidia.com/cuda.runtime-version.major", "13"),
            ("nvidia.com/cuda.runtime-version.minor", "0"),
            ("nvidia.com/cuda.runtime.major", "13"),
            ("nvidia.com/cuda.runtime.minor", "0"),
            ("nvidia.com/gpu.compute.major", "9"),
            ("nvidia.com/gpu.compute.minor", "0"),
            ("nvidia.com/gpu.count", "2"),
            ("nvidia.com/gpu.family", "hopper"),
            ("nvidia.com/gpu.memory", "81559"),
            ("nvidia.com/gpu.product", "NVIDIA-H100-80GB-HBM3"),
            ("nvidia.com/mig.capable", "true"),
        ]);
        assert_eq!(found, expected);
        assert!(found.keys().map(String::as_str).eq(sorted_keys()), "each is in the list, and nothing else");
        assert_eq!(wanted(&inventory(vec![])), Labels::new());
    }

    #[test]
    fn what_differs_between_devices_has_no_label() {
        let mut devices = vec![device("NVIDIA H100", 81_559, (9, 0)), device("NVIDIA L40S", 46_068, (8, 9))];
        let found = wanted(&inventory(devices.clone()));
        assert_eq!(found["nvidia.com/gpu.count"], "2");
        for key in [gfd::PRODUCT, gfd::MEMORY, "nvidia.com/gpu.family", "nvidia.com/gpu.compute.major"] {
            assert!(!found.contains_key(key), "{key}");
        }
        devices.iter_mut().for_each(|d| d.mig_enabled = None);
        let mut old = inventory(devices);
        (old.driver_version, old.cuda_version) = ("470.1".to_owned(), None);
        let found = wanted(&old);
        assert_eq!(found["nvidia.com/mig.capable"], "false");
        assert_eq!(found["nvidia.com/cuda.driver.rev"], "");
        assert!(!found.keys().any(|key| key.contains("runtime")));
        old.driver_version = "unknown".to_owned();
        assert!(!wanted(&old).keys().any(|key| key.contains("driver")));
    }

    #[test]
    fn families_are_told_apart() {
        let expected =
            ["volta", "turing", "ampere", "ada-lovelace", "hopper", "blackwell", "blackwell", "undefined"];
        let found = [(7, 0), (7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (12, 0), (42, 0)];
        assert_eq!(found.map(|(major, minor)| family(major, minor)), expected);
    }

    #[test]
    fn only_labels_of_nobody_else_are_written() {
        let (count, old) = ([(gfd::COUNT, "2")], [(gfd::COUNT, "8")]);
        let wanted = labels(&count);
        assert_eq!(change(&node(&[], &[("zone", "a")]), &wanted), Some(wanted.clone()));
        assert_eq!(change(&node(&count, &[("zone", "a")]), &wanted), None);
        assert_eq!(change(&node(&old, &[]), &wanted), Some(wanted.clone()));
        // Feature discovery came, or somebody labels by hand, with the same value too: ours go.
        for theirs in [(gfd::TIMESTAMP, "1"), (gfd::PRODUCT, "x"), ("nvidia.com/mig.capable", "true")] {
            assert_eq!(change(&node(&count, &[theirs]), &wanted), Some(Labels::new()), "{theirs:?}");
            assert_eq!(change(&node(&[], &[theirs]), &wanted), None, "{theirs:?}");
        }
        assert_eq!(change(&node(&[], &count), &wanted), None);
        // Turned off.
        assert_eq!(change(&node(&count, &[]), &Labels::new()), Some(Labels::new()));
        assert_eq!(change(&node(&[], &count), &Labels::new()), None);
    }
}
