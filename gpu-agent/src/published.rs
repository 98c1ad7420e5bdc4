//! What NVIDIA's DRA driver publishes of this node's GPUs, against what NVML says of them.
//!
//! * Inputs: the `ResourceSlice`s of this node, an inventory. Output: the condition `SlicesContradict` of the GpuNode.
//! * Invariants: nothing is published here; a GPU that the driver leaves out contradicts nothing, for it leaves out those in
//!   slices and those that it finds unhealthy; of a pool only its newest generation counts, and only a whole one.
//!
//! Attributes `type`, `uuid`, `productName` and the capacity `memory`: kubernetes-sigs/dra-driver-nvidia-gpu,
//! cmd/gpu-kubelet-plugin/deviceinfo.go.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::resource::v1::{Device, ResourceSlice, ResourceSliceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ListParams};
use tokio::time::{Instant, timeout};
use vendue_crds::GpuNodeStatus;
use vendue_crds::conditions::{self, condition, gpu_node};

use crate::inventory::NodeInventory;

/// The driver whose devices are compared.
const DRIVER: &str = vendue_crds::names::NVIDIA_DRA_DRIVER;
/// Memory may differ by one part in so many: drivers differ in what they count as reserved.
const MEMORY_TOLERANCE: u64 = 50;
/// Longest message; what is longer is cut.
const MAX_MESSAGE: usize = 256;
/// Longest wait for the API server.
const LIMIT: Duration = Duration::from_secs(10);
/// So often the slices are read: they change when a driver starts or a card is exchanged.
const EVERY: Duration = Duration::from_secs(300);

/// Reasons of the condition, one sentence each.
pub mod reasons {
    /// The message names each device of which a slice says other than NVML.
    pub const SLICES_DIFFER: &str = "SlicesDiffer";
    /// No slice says other than NVML.
    pub const SLICES_AGREE: &str = "SlicesAgree";
}

/// A GPU as a slice has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedGpu {
    /// Name of the device in its pool.
    pub name: String,
    /// UUID.
    pub uuid: String,
    /// Name of the product.
    pub product: Option<String>,
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
}

/// The GPUs of these slices.
#[must_use]
pub fn gpus(slices: &[ResourceSlice]) -> Vec<PublishedGpu> {
    let mut pools: BTreeMap<&str, Vec<&ResourceSliceSpec>> = BTreeMap::new();
    for spec in slices.iter().map(|slice| &slice.spec).filter(|spec| spec.driver == DRIVER) {
        pools.entry(&spec.pool.name).or_default().push(spec);
    }
    let whole = pools.into_values().filter_map(|mut specs| {
        let newest = specs.iter().map(|spec| spec.pool.generation).max()?;
        specs.retain(|spec| spec.pool.generation == newest);
        let wanted = specs.first()?.pool.resource_slice_count;
        (usize::try_from(wanted) == Ok(specs.len())).then_some(specs)
    });
    whole.flatten().flat_map(|spec| spec.devices.iter().flatten()).filter_map(gpu).collect()
}

/// A whole GPU; MIG devices and others are none.
fn gpu(device: &Device) -> Option<PublishedGpu> {
    // Attributes without a domain are the driver's own.
    let text = |name: &str| {
        let all = device.attributes.as_ref()?;
        let found = all.get(name).or_else(|| all.get(&format!("{DRIVER}/{name}")))?;
        found.string.clone()
    };
    if text("type").as_deref() != Some("gpu") {
        return None;
    }
    let capacity = device.capacity.as_ref();
    let memory = capacity.and_then(|all| all.get("memory").or_else(|| all.get(&format!("{DRIVER}/memory"))));
    let memory_bytes = memory.and_then(|capacity| bytes(&capacity.value.0));
    Some(PublishedGpu {
        name: device.name.clone(),
        uuid: text("uuid")?,
        product: text("productName"),
        memory_bytes,
    })
}

/// The bytes of a quantity in its binary form, which the driver writes; none for others.
fn bytes(quantity: &str) -> Option<u64> {
    let digits = quantity.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match quantity.strip_prefix(digits)? {
        "" => 0,
        "Ki" => 10,
        "Mi" => 20,
        "Gi" => 30,
        "Ti" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// What slices say that NVML does not.
#[must_use]
pub fn contradictions(published: &[PublishedGpu], inventory: &NodeInventory) -> Vec<String> {
    let judge = |gpu: &PublishedGpu| {
        let PublishedGpu { name, uuid, product, memory_bytes } = gpu;
        let Some(device) = inventory.devices.iter().find(|d| d.identity.uuid == *uuid) else {
            return Some(format!("{name} is {uuid}, which NVML does not list"));
        };
        let id = &device.identity;
        if let Some(product) = product.as_ref().filter(|product| **product != id.product_name) {
            return Some(format!("{name} is {product:?}, by NVML {:?}", id.product_name));
        }
        let far = |bytes: &u64| bytes.abs_diff(id.memory_bytes) > id.memory_bytes / MEMORY_TOLERANCE;
        let bytes = memory_bytes.filter(far)?;
        Some(format!("{name} has {} MiB, by NVML {} MiB", bytes >> 20, id.memory_bytes >> 20))
    };
    published.iter().filter_map(judge).collect()
}

/// Reads the slices of one node from time to time.
pub struct SliceCheck {
    api: Api<ResourceSlice>,
    node: String,
    asked: Option<Instant>,
    published: Vec<PublishedGpu>,
}

impl SliceCheck {
    /// A check of the node of that name, of whose slices nothing is known yet.
    #[must_use]
    pub fn new(client: kube::Client, node: String) -> Self {
        Self { api: Api::all(client), node, asked: None, published: vec![] }
    }

    /// Reads the slices, unless that was done a while ago. What was known stays when they cannot be read; clusters without
    /// dynamic resource allocation have none.
    ///
    /// # Errors
    /// Why they cannot be read.
    pub async fn refresh(&mut self) -> Result<(), String> {
        if self.asked.is_some_and(|at| at.elapsed() < EVERY) {
            return Ok(());
        }
        self.asked = Some(Instant::now());
        let of_node = ListParams::default().fields(&format!("spec.nodeName={}", self.node));
        match timeout(LIMIT, self.api.list(&of_node)).await {
            Ok(Ok(list)) => self.published = gpus(&list.items),
            Ok(Err(kube::Error::Api(status))) if status.is_not_found() => self.published.clear(),
            Ok(Err(error)) => return Err(format!("list ResourceSlices: {error}")),
            Err(_) => return Err(format!("list ResourceSlices: no answer within {} s", LIMIT.as_secs())),
        }
        Ok(())
    }

    /// The condition of the GpuNode; none as long as there never was a contradiction. While devices cannot be read it stays as
    /// it was.
    #[must_use]
    pub fn condition(
        &self,
        inventory: Option<&NodeInventory>,
        previous: Option<&GpuNodeStatus>,
        generation: Option<i64>,
        now: Timestamp,
    ) -> Option<Condition> {
        const TYPE: &str = gpu_node::SLICES_CONTRADICT;
        let before = previous.and_then(|status| conditions::find(&status.conditions, TYPE)).cloned();
        let Some(inventory) = inventory.filter(|inventory| inventory.unknown.is_empty()) else {
            return before;
        };
        let found = contradictions(&self.published, inventory);
        let new = match (found.is_empty(), &before) {
            (true, None) => return None,
            (true, Some(_)) => condition(
                TYPE,
                false,
                reasons::SLICES_AGREE,
                "no slice says other than NVML",
                generation,
                now,
            ),
            (false, _) => {
                let message: String = found.join("; ").chars().take(MAX_MESSAGE).collect();
                condition(TYPE, true, reasons::SLICES_DIFFER, message, generation, now)
            }
        };
        let mut list: Vec<Condition> = before.into_iter().collect();
        conditions::set(&mut list, new);
        list.pop()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::inventory::{DeviceIdentity, DeviceReading};

    fn slice(pool: &str, (generation, count): (i64, i64), devices: Value) -> ResourceSlice {
        serde_json::from_value(json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": { "name": "s" },
            "spec": { "driver": DRIVER, "nodeName": "n1", "devices": devices,
                "pool": { "name": pool, "generation": generation, "resourceSliceCount": count } },
        }))
        .unwrap()
    }

    fn device(name: &str, uuid: &str, product: &str, memory: &str) -> Value {
        json!({ "name": name, "capacity": { "memory": { "value": memory } }, "attributes": {
            "type": { "string": "gpu" }, "uuid": { "string": uuid }, "productName": { "string": product } } })
    }

    fn inventory() -> NodeInventory {
        let reading = |n: u32| {
            DeviceReading::of(DeviceIdentity {
                index: n,
                uuid: format!("GPU-{n}"),
                product_name: "NVIDIA H100".to_owned(),
                memory_bytes: 81_559 << 20,
                pci_bus_id: String::new(),
                minor: None,
            })
        };
        NodeInventory { devices: vec![reading(0), reading(1)], ..NodeInventory::default() }
    }

    #[test]
    fn gpus_are_those_of_whole_pools_of_the_newest_generation() {
        let h100 = |name: &str, uuid: &str| device(name, uuid, "NVIDIA H100", "81559Mi");
        let mig = json!({ "name": "mig", "attributes": { "type": { "string": "mig" }, "uuid": { "string": "MIG-1" } } });
        let mut other = slice("n1", (9, 1), json!([h100("nic", "GPU-nic")]));
        other.spec.driver = "net.example.com".to_owned();
        let found = gpus(&[
            slice("n1", (1, 1), json!([h100("gpu-0", "GPU-old")])),
            slice("n1", (2, 2), json!([h100("gpu-0", "GPU-0"), mig])),
            slice(
                "n1",
                (2, 2),
                json!([{ "name": "gpu-1", "attributes": {
                "gpu.nvidia.com/type": { "string": "gpu" }, "gpu.nvidia.com/uuid": { "string": "GPU-1" } } }]),
            ),
            slice("half", (1, 2), json!([h100("gpu-9", "GPU-9")])),
            other,
        ]);
        let whole = PublishedGpu {
            name: "gpu-0".to_owned(),
            uuid: "GPU-0".to_owned(),
            product: Some("NVIDIA H100".to_owned()),
            memory_bytes: Some(81_559 << 20),
        };
        let bare = PublishedGpu {
            name: "gpu-1".to_owned(),
            uuid: "GPU-1".to_owned(),
            product: None,
            memory_bytes: None,
        };
        assert_eq!(found, [whole, bare]);
    }

    #[test]
    fn quantities_are_read_in_their_binary_form() {
        let cases = [("7", Some(7)), ("2Ki", Some(2048)), ("80Gi", Some(80 << 30)), ("1Ti", Some(1 << 40))];
        for (text, want) in
            cases.into_iter().chain([("80G", None), ("1.5Gi", None), ("", None), ("Gi", None)])
        {
            assert_eq!(bytes(text), want, "{text}");
        }
        assert_eq!(bytes("18446744073709551615Gi"), None);
    }

    #[test]
    fn what_a_slice_says_of_a_device_is_compared() {
        let judged = |uuid: &str, product: &str, memory: &str| {
            let published = gpus(&[slice("n1", (1, 1), json!([device("gpu-0", uuid, product, memory)]))]);
            contradictions(&published, &inventory())
        };
        assert_eq!(judged("GPU-0", "NVIDIA H100", "80Gi"), Vec::<String>::new(), "within 2 %");
        assert_eq!(judged("GPU-7", "NVIDIA H100", "80Gi"), ["gpu-0 is GPU-7, which NVML does not list"]);
        assert_eq!(
            judged("GPU-1", "NVIDIA H200", "80Gi"),
            ["gpu-0 is \"NVIDIA H200\", by NVML \"NVIDIA H100\""]
        );
        assert_eq!(judged("GPU-1", "NVIDIA H100", "141Gi"), ["gpu-0 has 144384 MiB, by NVML 81559 MiB"]);
        assert_eq!(contradictions(&[], &inventory()), Vec::<String>::new(), "what is left out says nothing");
    }

    #[test]
    fn the_condition_comes_with_a_contradiction_and_stays_to_say_that_it_is_over() {
        let (service, _server) =
            tower_test::mock::pair::<http::Request<kube::client::Body>, http::Response<kube::client::Body>>();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _guard = runtime.enter();
        let mut check = SliceCheck::new(kube::Client::new(service, "default"), "n1".to_owned());
        let at = |second| Timestamp::from_second(second).unwrap();
        let known = inventory();
        assert_eq!(check.condition(Some(&known), None, None, at(1)), None);
        let wrong = json!([device("gpu-0", "GPU-7", "NVIDIA H100", "80Gi")]);
        check.published = gpus(&[slice("n1", (1, 1), wrong)]);
        let first = check.condition(Some(&known), None, Some(1), at(2)).unwrap();
        assert_eq!((first.status.as_str(), first.reason.as_str()), ("True", reasons::SLICES_DIFFER));
        let status = GpuNodeStatus { conditions: vec![first.clone()], ..GpuNodeStatus::default() };
        assert_eq!(check.condition(Some(&known), Some(&status), Some(1), at(3)), Some(first.clone()));
        assert_eq!(
            check.condition(None, Some(&status), Some(1), at(3)),
            Some(first),
            "nothing can be read now"
        );
        check.published.clear();
        let over = check.condition(Some(&known), Some(&status), Some(1), at(4)).unwrap();
        assert_eq!((over.status.as_str(), over.reason.as_str()), ("False", reasons::SLICES_AGREE));
    }
}
