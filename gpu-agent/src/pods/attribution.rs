//! From what containers were given to who holds which device. Pure.
//!
//! * Inputs: kubelet's list, the devices of the node, UUIDs of devices that claims name.
//! * Output: [`Attribution`]: the holders of each device by UUID, and what could not be matched.
//! * Invariant: a device is an award's only when every holder of it is in that award's namespace.

use std::collections::BTreeMap;

use vendue_crds::names;

use super::api::{ClaimResource, ListPodResourcesResponse, PodResources};
use super::slices::DeviceNames;

/// A device or MIG instance of the node, and the other names by which it is handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// UUID as NVML gives it; `MIG-...` for an instance.
    pub uuid: String,
    /// Number of its device file (`/dev/nvidia0`); plugins that hand out files use it. `None` for an instance.
    pub minor: Option<u32>,
}

/// A container that was given a device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// Namespace of the Pod.
    pub namespace: String,
    /// The Pod.
    pub pod: String,
    /// The container.
    pub container: String,
    /// The share of the device, where it is shared in time or by claims.
    pub share: Option<String>,
    /// The claim that gave it, where one did.
    pub claim: Option<Claim>,
}

/// A claim that gave a device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// Name of the ResourceClaim.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// The DRA driver.
    pub driver: String,
    /// The driver's pool.
    pub pool: String,
    /// The device in the pool.
    pub device: String,
}

/// Whom a device serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Serving {
    /// Nobody.
    Idle,
    /// The award with this id.
    Award([u8; 8]),
    /// Pods of the cluster itself.
    Local,
    /// Pods of several awards, or of an award and others: whose its use is cannot be told.
    Several,
}

/// Who holds which device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attribution {
    holders: BTreeMap<String, Vec<Holder>>,
    /// Devices of claims that no slice of this node names.
    pub unresolved: Vec<Claim>,
}

impl Attribution {
    /// The containers that have a device, in a fixed order.
    #[must_use]
    pub fn holders(&self, uuid: &str) -> &[Holder] {
        self.holders.get(uuid).map_or(&[], Vec::as_slice)
    }

    /// Whom a device serves.
    #[must_use]
    pub fn serving(&self, uuid: &str) -> Serving {
        let mut all = self.holders(uuid).iter().map(|h| serving(&h.namespace));
        let Some(first) = all.next() else { return Serving::Idle };
        if all.all(|other| other == first) { first } else { Serving::Several }
    }
}

/// Whom the Pods of a namespace work for.
fn serving(namespace: &str) -> Serving {
    award_id(namespace).map_or(Serving::Local, Serving::Award)
}

/// The award whose namespace this is.
#[must_use]
pub fn award_id(namespace: &str) -> Option<[u8; 8]> {
    let digits = namespace.strip_prefix(names::AWARD_NAMESPACE_PREFIX)?;
    let is_canonical = digits.len() == 16 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    is_canonical.then(|| u64::from_str_radix(digits, 16).ok().map(u64::to_be_bytes))?
}

/// Matches what kubelet lists with the devices of the node.
#[must_use]
pub fn attribute(list: &ListPodResourcesResponse, known: &[Known], claimed: &DeviceNames) -> Attribution {
    let mut found = Attribution::default();
    for pod in &list.pod_resources {
        attribute_pod(pod, known, claimed, &mut found);
    }
    for holders in found.holders.values_mut() {
        holders.sort();
        holders.dedup();
    }
    found.unresolved.sort();
    found.unresolved.dedup();
    found
}

fn attribute_pod(pod: &PodResources, known: &[Known], claimed: &DeviceNames, found: &mut Attribution) {
    for container in &pod.containers {
        let holder = |share: Option<&str>, claim| Holder {
            namespace: pod.namespace.clone(),
            pod: pod.name.clone(),
            container: container.name.clone(),
            share: share.map(str::to_owned),
            claim,
        };
        for id in container.devices.iter().flat_map(|devices| &devices.device_ids) {
            let (name, share) = split_share(id);
            if let Some(uuid) = known.iter().find(|k| is_named(k, name)).map(|k| k.uuid.clone()) {
                found.holders.entry(uuid).or_default().push(holder(share, None));
            }
        }
        for dynamic in &container.dynamic_resources {
            for device in &dynamic.claim_resources {
                let claim = claim(dynamic.claim_name.clone(), dynamic.claim_namespace.clone(), device);
                match claimed.uuid(&device.driver_name, &device.pool_name, &device.device_name) {
                    Some(uuid) => {
                        let held = holder(device.share_id.as_deref(), Some(claim));
                        found.holders.entry(uuid.to_owned()).or_default().push(held);
                    }
                    None if claimed.is_gpu_driver(&device.driver_name) => found.unresolved.push(claim),
                    None => {}
                }
            }
        }
    }
}

fn claim(name: String, namespace: String, device: &ClaimResource) -> Claim {
    Claim {
        name,
        namespace,
        driver: device.driver_name.clone(),
        pool: device.pool_name.clone(),
        device: device.device_name.clone(),
    }
}

/// An id without the suffix by which device plugins tell shares of one device apart (`GPU-...::3`).
fn split_share(id: &str) -> (&str, Option<&str>) {
    match id.split_once("::") {
        Some((name, share)) => (name, Some(share)),
        None => (id, None),
    }
}

/// Plugins hand out UUIDs, or, as GKE's, names of device files.
fn is_named(known: &Known, name: &str) -> bool {
    known.uuid == name
        || known
            .minor
            .is_some_and(|minor| name.strip_prefix("nvidia").and_then(|n| n.parse().ok()) == Some(minor))
}

#[cfg(test)]
mod tests {
    use super::super::api::{ContainerDevices, ContainerResources, DynamicResource};
    use super::*;

    const AWARD: &str = "vendue-a-00112233445566ff";
    const AWARD_ID: [u8; 8] = [0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0xff];

    fn known() -> Vec<Known> {
        let gpu = |n: u32| Known { uuid: format!("GPU-{n}"), minor: Some(n) };
        vec![gpu(0), gpu(1), gpu(2), Known { uuid: "MIG-7".to_owned(), minor: None }]
    }

    fn pod(namespace: &str, name: &str, ids: &[&str]) -> PodResources {
        let devices = ContainerDevices {
            resource_name: "nvidia.com/gpu".to_owned(),
            device_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        };
        let container =
            ContainerResources { name: "main".to_owned(), devices: vec![devices], dynamic_resources: vec![] };
        PodResources { name: name.to_owned(), namespace: namespace.to_owned(), containers: vec![container] }
    }

    fn run(pods: Vec<PodResources>, claimed: &DeviceNames) -> Attribution {
        attribute(&ListPodResourcesResponse { pod_resources: pods }, &known(), claimed)
    }

    fn holder(namespace: &str, pod: &str, share: Option<&str>) -> Holder {
        Holder {
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            container: "main".to_owned(),
            share: share.map(str::to_owned),
            claim: None,
        }
    }

    #[test]
    fn devices_serve_the_award_whose_namespace_has_them() {
        let names = DeviceNames::default();
        let found = run(
            vec![
                pod(AWARD, "w", &["GPU-0", "MIG-7"]),
                pod("default", "p", &["nvidia1"]),
                pod("x", "n", &["cpu-3"]),
            ],
            &names,
        );
        let served = ["GPU-0", "GPU-1", "GPU-2", "MIG-7"].map(|uuid| found.serving(uuid));
        let award = Serving::Award(AWARD_ID);
        assert_eq!(served, [award, Serving::Local, Serving::Idle, award]);
        assert_eq!(found.holders("GPU-0"), [holder(AWARD, "w", None)]);
        assert_eq!(found.holders("GPU-2"), []);
    }

    #[test]
    fn shares_have_one_device_and_two_awards_on_it_are_nobodys() {
        let names = DeviceNames::default();
        let shared = |namespace| pod(namespace, "b", &["GPU-0::1", "GPU-0::1"]);
        let one = run(vec![pod(AWARD, "a", &["GPU-0::0"]), shared(AWARD)], &names);
        assert_eq!(one.serving("GPU-0"), Serving::Award(AWARD_ID));
        // Listed twice, held once.
        assert_eq!(one.holders("GPU-0"), [holder(AWARD, "a", Some("0")), holder(AWARD, "b", Some("1"))]);
        for other in ["vendue-a-00112233445566fe", "default"] {
            let two = run(vec![pod(AWARD, "a", &["GPU-0::0"]), shared(other)], &names);
            assert_eq!(two.serving("GPU-0"), Serving::Several, "{other}");
        }
    }

    #[test]
    fn only_sixteen_lower_case_digits_make_a_namespace_an_awards() {
        assert_eq!(award_id(AWARD), Some(AWARD_ID));
        for other in [
            "vendue-a-",
            "vendue-a-00112233445566f",
            "vendue-a-00112233445566ff0",
            "vendue-a-00112233445566FF",
            "vendue-a-+0112233445566ff",
            "vendue-b-00112233445566ff",
        ] {
            assert_eq!(award_id(other), None, "{other}");
        }
    }

    #[test]
    fn claims_are_matched_by_driver_pool_and_device() {
        let names = DeviceNames::new([("gpu.nvidia.com", "n1", "gpu-0", "GPU-0")]);
        let device = |pool: &str, driver: &str| ClaimResource {
            driver_name: driver.to_owned(),
            pool_name: pool.to_owned(),
            device_name: "gpu-0".to_owned(),
            share_id: None,
        };
        let dynamic = DynamicResource {
            claim_name: "c".to_owned(),
            claim_namespace: AWARD.to_owned(),
            claim_resources: vec![
                device("n1", "gpu.nvidia.com"),
                device("n2", "gpu.nvidia.com"),
                device("n1", "net.example.com"),
            ],
        };
        let container =
            ContainerResources { name: "main".to_owned(), devices: vec![], dynamic_resources: vec![dynamic] };
        let claiming =
            PodResources { name: "w".to_owned(), namespace: AWARD.to_owned(), containers: vec![container] };
        let found = run(vec![claiming], &names);
        assert_eq!(found.serving("GPU-0"), Serving::Award(AWARD_ID));
        let claim = |pool: &str| Claim {
            name: "c".to_owned(),
            namespace: AWARD.to_owned(),
            driver: "gpu.nvidia.com".to_owned(),
            pool: pool.to_owned(),
            device: "gpu-0".to_owned(),
        };
        assert_eq!(found.holders("GPU-0")[0].claim, Some(claim("n1")));
        // Of a GPU driver's device that no slice names, somebody has to be told; of others' not.
        assert_eq!(found.unresolved, [claim("n2")]);
    }

    /// The driver's slices come later than the first Pod, or cannot be read: its claims are of GPUs all the same.
    #[test]
    fn claims_of_nvidias_driver_are_of_gpus_before_any_slice_is_known() {
        let device = |driver: &str| ClaimResource {
            driver_name: driver.to_owned(),
            pool_name: "n1".to_owned(),
            device_name: "gpu-0".to_owned(),
            share_id: None,
        };
        let dynamic = DynamicResource {
            claim_name: "c".to_owned(),
            claim_namespace: "default".to_owned(),
            claim_resources: vec![device("gpu.nvidia.com"), device("net.example.com")],
        };
        let container =
            ContainerResources { name: "main".to_owned(), devices: vec![], dynamic_resources: vec![dynamic] };
        let claiming = PodResources {
            name: "w".to_owned(),
            namespace: "default".to_owned(),
            containers: vec![container],
        };
        let found = run(vec![claiming], &DeviceNames::default());
        let drivers: Vec<&str> = found.unresolved.iter().map(|claim| claim.driver.as_str()).collect();
        assert_eq!(drivers, ["gpu.nvidia.com"]);
    }
}
