//! What Pods take from their nodes.
//!
//! Inputs: Pods, and the ResourceClaims that they name. Outputs: requests as the scheduler counts them, and GPUs that claims
//! were given. Invariant: what cannot be known is said to be unknown, and never counts as nothing.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus, ResourceRequirements};
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use vendue_crds::names;

use super::GPU_RESOURCE;
use crate::quantity::{count, mib_requested, millis_requested};

/// What a Pod takes from its node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodUse {
    /// Node that the Pod is bound to.
    pub node: String,
    /// Award that the Pod belongs to.
    pub award_id: Option<String>,
    /// GPUs requested.
    pub gpus: u32,
    /// CPU requested, thousandths of a core.
    pub cpu_millis: u64,
    /// Memory requested, MiB.
    pub memory_mib: u64,
    /// Ephemeral storage requested, MiB.
    pub disk_mib: u64,
    /// Its ResourceClaims, as `namespace/name`.
    pub claims: BTreeSet<String>,
    /// Whether it has a claim that its status does not name.
    pub unnamed_claim: bool,
}

/// What a Pod takes from its node; `None` when it takes nothing (not bound, or ended).
pub fn pod_use(pod: &Pod) -> Option<PodUse> {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
    if matches!(phase, "Succeeded" | "Failed") {
        return None;
    }
    let spec = pod.spec.as_ref()?;
    let node = spec.node_name.clone()?;
    let (claims, unnamed_claim) = claims(pod, spec);
    Some(PodUse {
        node,
        award_id: award_id(pod).cloned(),
        gpus: u32::try_from(requested(spec, GPU_RESOURCE, |q| u64::from(count(q)))).unwrap_or(u32::MAX),
        cpu_millis: requested(spec, "cpu", millis_requested),
        memory_mib: requested(spec, "memory", mib_requested),
        disk_mib: requested(spec, "ephemeral-storage", mib_requested),
        claims,
        unnamed_claim,
    })
}

/// The award that a Pod belongs to. A label alone does not make a Pod one of an award's, whose hold it would be counted by.
fn award_id(pod: &Pod) -> Option<&String> {
    let id = pod.metadata.labels.as_ref()?.get(names::AWARD_ID)?;
    (pod.metadata.namespace == Some(names::award_namespace(id))).then_some(id)
}

/// As the scheduler counts: containers run together with all sidecars, and each init container with the sidecars before it; the
/// larger is reserved, or what the Pod as a whole asks for, and what its runtime class adds.
fn requested(spec: &PodSpec, key: &str, number: fn(&Quantity) -> u64) -> u64 {
    let of = |container: &Container| request(container.resources.as_ref(), key, number);
    let (mut sidecars, mut starting) = (0u64, 0u64);
    for init in spec.init_containers.iter().flatten() {
        let own = of(init);
        starting = starting.max(sidecars.saturating_add(own.unwrap_or(0)));
        if init.restart_policy.as_deref() == Some("Always") {
            sidecars = sidecars.saturating_add(own.unwrap_or(0));
        }
    }
    let running = spec.containers.iter().filter_map(of).fold(sidecars, u64::saturating_add);
    let whole = request(spec.resources.as_ref(), key, number);
    let overhead = spec.overhead.as_ref().and_then(|all| all.get(key)).map_or(0, number);
    whole.unwrap_or_else(|| running.max(starting)).saturating_add(overhead)
}

fn request(resources: Option<&ResourceRequirements>, key: &str, number: fn(&Quantity) -> u64) -> Option<u64> {
    let of = |map: &Option<BTreeMap<String, Quantity>>| map.as_ref().and_then(|m| m.get(key)).map(number);
    // An extended resource with only a limit is requested at its limit.
    resources.and_then(|resources| of(&resources.requests).or_else(|| of(&resources.limits)))
}

/// The claims of a Pod, and whether there is one without a name yet.
fn claims(pod: &Pod, spec: &PodSpec) -> (BTreeSet<String>, bool) {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let (mut named, mut unnamed) = (BTreeSet::new(), false);
    let made = |status: &PodStatus| status.resource_claim_statuses.clone();
    let made = pod.status.as_ref().and_then(made).unwrap_or_default();
    for claim in spec.resource_claims.iter().flatten() {
        let name = match (&claim.resource_claim_name, made.iter().find(|made| made.name == claim.name)) {
            (Some(name), _) => Some(name),
            // Without a name there: the template makes no claim.
            (None, Some(made)) => made.resource_claim_name.as_ref(),
            (None, None) => {
                unnamed = true;
                None
            }
        };
        named.extend(name.map(|name| format!("{namespace}/{name}")));
    }
    (named, unnamed)
}

/// GPUs that a claim was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimedGpus {
    /// So many. A slice or a share counts as a whole one.
    Devices(u32),
    /// The claim says nothing of its devices yet.
    Unknown,
}

/// The view of a claim. Drivers other than NVIDIA's own give no GPUs that are sold, and who may look at a device that
/// others have takes none.
pub fn claim_view(claim: &ResourceClaim) -> ClaimedGpus {
    let Some(allocation) = claim.status.as_ref().and_then(|s| s.allocation.as_ref()) else {
        return ClaimedGpus::Unknown;
    };
    let results = allocation.devices.iter().flat_map(|devices| devices.results.iter().flatten());
    let takes = results
        .filter(|device| device.driver == names::NVIDIA_DRA_DRIVER && device.admin_access != Some(true));
    ClaimedGpus::Devices(u32::try_from(takes.count()).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value, status: Value) -> Option<PodUse> {
        let metadata = json!({ "name": "p", "namespace": "ns" });
        let pod = json!({ "metadata": metadata, "spec": spec, "status": status });
        pod_use(&serde_json::from_value(pod).unwrap())
    }

    fn cpu(name: &str, cpu: &str) -> Value {
        json!({ "name": name, "resources": { "requests": { "cpu": cpu } } })
    }

    #[test]
    fn pods_take_what_they_request_until_they_end() {
        let spec = json!({ "nodeName": "n1",
            "initContainers": [cpu("i", "2")],
            "containers": [
                { "name": "a", "resources": { "limits": { "nvidia.com/gpu": "2" }, "requests": { "cpu": "100m" } } },
                { "name": "b", "resources": { "requests": { "memory": "1Gi" } } }] });
        let used = pod(spec.clone(), json!({ "phase": "Running" })).unwrap();
        assert_eq!((used.gpus, used.cpu_millis, used.memory_mib), (2, 2000, 1024));
        assert_eq!((used.claims, used.unnamed_claim), (BTreeSet::new(), false));
        assert_eq!(pod(spec, json!({ "phase": "Succeeded" })), None);
    }

    #[test]
    fn only_pods_in_an_awards_namespace_are_the_awards() {
        let of = |namespace: &str| {
            let metadata = json!({ "namespace": namespace, "labels": { "vendue.dev/award-id": "a1" } });
            let pod = json!({ "metadata": metadata, "spec": { "nodeName": "n1", "containers": [] } });
            pod_use(&serde_json::from_value(pod).unwrap()).unwrap().award_id
        };
        assert_eq!((of("vendue-a-a1"), of("default")), (Some("a1".to_owned()), None));
    }

    #[test]
    fn sidecars_runtime_classes_and_whole_pods_count_as_for_the_scheduler() {
        let sidecar = |name: &str, millis: &str| {
            let mut container = cpu(name, millis);
            container["restartPolicy"] = json!("Always");
            container
        };
        let millis = |spec: Value| pod(spec, json!({})).unwrap().cpu_millis;
        let containers = json!([cpu("a", "1"), cpu("b", "500m")]);
        let inits = json!([cpu("i", "1"), sidecar("s", "300m"), cpu("j", "1400m"), sidecar("t", "200m")]);
        let mut spec = json!({ "nodeName": "n1", "containers": containers, "initContainers": inits });
        assert_eq!(millis(spec.clone()), 2000, "both sidecars run beside the containers");
        spec["initContainers"][2] = cpu("j", "1800m");
        assert_eq!(millis(spec.clone()), 2100, "the second init container runs beside the first sidecar");
        spec["overhead"] = json!({ "cpu": "250m" });
        assert_eq!(millis(spec.clone()), 2350);
        spec["resources"] = json!({ "requests": { "cpu": "4" } });
        assert_eq!(millis(spec), 4250);
    }

    #[test]
    fn claims_have_the_names_that_the_status_tells() {
        let spec = json!({ "nodeName": "n1", "containers": [], "resourceClaims": [
            { "name": "own", "resourceClaimName": "shared" },
            { "name": "made", "resourceClaimTemplateName": "t" },
            { "name": "none", "resourceClaimTemplateName": "t" },
        ] });
        let status = |names: Value| json!({ "resourceClaimStatuses": names });
        let known = status(json!([{ "name": "made", "resourceClaimName": "p-made-x" }, { "name": "none" }]));
        let used = pod(spec.clone(), known).unwrap();
        assert_eq!(used.claims, BTreeSet::from(["ns/shared".to_owned(), "ns/p-made-x".to_owned()]));
        assert!(!used.unnamed_claim);
        let used = pod(spec, json!({})).unwrap();
        assert_eq!((used.claims, used.unnamed_claim), (BTreeSet::from(["ns/shared".to_owned()]), true));
    }

    #[test]
    fn claims_count_the_devices_of_nvidias_driver() {
        let claim = |status: Value| {
            let spec = json!({ "devices": {} });
            claim_view(&serde_json::from_value(json!({ "spec": spec, "status": status })).unwrap())
        };
        let device = |driver: &str, name: &str| json!({ "driver": driver, "pool": "n1", "device": name, "request": "r" });
        let allocated = |results: Value| json!({ "allocation": { "devices": { "results": results } } });
        let mut looks = device("gpu.nvidia.com", "gpu-2");
        looks["adminAccess"] = json!(true);
        let results = json!([
            device("gpu.nvidia.com", "gpu-0"),
            device("gpu.nvidia.com", "gpu-1-mig-19-0-1"),
            device("net.example.com", "nic-0"),
            looks
        ]);
        assert_eq!(claim(allocated(results)), ClaimedGpus::Devices(2));
        assert_eq!(claim(allocated(json!([device("net.example.com", "nic-0")]))), ClaimedGpus::Devices(0));
        assert_eq!(claim(json!({})), ClaimedGpus::Unknown);
        assert_eq!(claim(Value::Null), ClaimedGpus::Unknown);
    }
}
