//! UUIDs of devices that DRA drivers publish: claims name a device by driver, pool and name only. Pure.
//!
//! Input: the `ResourceSlice`s of this node. Output: [`DeviceNames`]. Invariant: of a pool only its newest generation
//! counts, as for the scheduler.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::resource::v1::{DeviceAttribute, ResourceSlice};
use vendue_crds::names;

/// The attribute in which drivers of GPUs tell the UUID.
const UUID: &str = "uuid";

/// UUIDs by driver, pool and device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceNames {
    uuids: BTreeMap<(String, String, String), String>,
    drivers: BTreeSet<String>,
}

impl DeviceNames {
    /// From driver, pool, device, UUID.
    #[must_use]
    pub fn new<'a>(names: impl IntoIterator<Item = (&'a str, &'a str, &'a str, &'a str)>) -> Self {
        let mut all = Self::default();
        for (driver, pool, device, uuid) in names {
            all.drivers.insert(driver.to_owned());
            all.uuids.insert((driver.to_owned(), pool.to_owned(), device.to_owned()), uuid.to_owned());
        }
        all
    }

    /// From the slices of a node.
    #[must_use]
    pub fn from_slices(slices: &[ResourceSlice]) -> Self {
        let mut newest: BTreeMap<(&str, &str), i64> = BTreeMap::new();
        for spec in slices.iter().map(|slice| &slice.spec) {
            let generation = newest.entry((&spec.driver, &spec.pool.name)).or_insert(i64::MIN);
            *generation = spec.pool.generation.max(*generation);
        }
        let current = slices.iter().map(|slice| &slice.spec).filter(|spec| {
            newest.get(&(spec.driver.as_str(), spec.pool.name.as_str())) == Some(&spec.pool.generation)
        });
        Self::new(current.flat_map(|spec| {
            spec.devices.iter().flatten().filter_map(|device| {
                let uuid = device.attributes.as_ref().and_then(|all| uuid(all, &spec.driver))?;
                Some((spec.driver.as_str(), spec.pool.name.as_str(), device.name.as_str(), uuid))
            })
        }))
    }

    /// The UUID of a device.
    #[must_use]
    pub fn uuid(&self, driver: &str, pool: &str, device: &str) -> Option<&str> {
        let key = (driver.to_owned(), pool.to_owned(), device.to_owned());
        self.uuids.get(&key).map(String::as_str)
    }

    /// Whether a driver hands out GPUs of this node: NVIDIA's own always, also before its slices are known; others when they
    /// publish devices with UUIDs.
    #[must_use]
    pub fn is_gpu_driver(&self, driver: &str) -> bool {
        driver == names::NVIDIA_DRA_DRIVER || self.drivers.contains(driver)
    }
}

/// Attributes without a domain are the driver's own.
fn uuid<'a>(attributes: &'a BTreeMap<String, DeviceAttribute>, driver: &str) -> Option<&'a str> {
    let qualified = format!("{driver}/{UUID}");
    let attribute = attributes.get(UUID).or_else(|| attributes.get(&qualified))?;
    attribute.string.as_deref().filter(|text| text.starts_with("GPU-") || text.starts_with("MIG-"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn slice(pool: &str, generation: i64, devices: serde_json::Value) -> ResourceSlice {
        let slice = json!({
            "apiVersion": "resource.k8s.io/v1",
            "kind": "ResourceSlice",
            "metadata": { "name": format!("{pool}-{generation}") },
            "spec": {
                "driver": "gpu.nvidia.com",
                "nodeName": "n1",
                "pool": { "name": pool, "generation": generation, "resourceSliceCount": 1 },
                "devices": devices,
            },
        });
        serde_json::from_value(slice).expect("slice")
    }

    #[test]
    fn uuids_of_the_newest_generation() {
        let device = |name: &str, uuid: &str| json!({ "name": name, "attributes": { "uuid": { "string": uuid }, "index": { "int": 0 } } });
        let names = DeviceNames::from_slices(&[
            slice("n1", 1, json!([device("gpu-0", "GPU-old"), device("gpu-9", "GPU-gone")])),
            slice(
                "n1",
                2,
                json!([
                    device("gpu-0", "GPU-new"),
                    device("odd", "not a uuid"),
                    { "name": "gpu-1", "attributes": { "gpu.nvidia.com/uuid": { "string": "MIG-1" } } },
                    { "name": "bare" },
                ]),
            ),
            slice("n2", 1, json!([device("gpu-0", "GPU-other")])),
        ]);
        let expected = DeviceNames::new([
            ("gpu.nvidia.com", "n1", "gpu-0", "GPU-new"),
            ("gpu.nvidia.com", "n1", "gpu-1", "MIG-1"),
            ("gpu.nvidia.com", "n2", "gpu-0", "GPU-other"),
        ]);
        assert_eq!(names, expected);
        assert_eq!(names.uuid("gpu.nvidia.com", "n1", "gpu-9"), None);
        assert!(names.is_gpu_driver("gpu.nvidia.com") && !names.is_gpu_driver("net.example.com"));
        // Before any slice is known.
        let none = DeviceNames::default();
        assert!(none.is_gpu_driver("gpu.nvidia.com") && !none.is_gpu_driver("net.example.com"));
    }
}
