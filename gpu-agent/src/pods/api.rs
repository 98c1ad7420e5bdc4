//! Messages of kubelet's PodResources API, `v1`, written by hand from its `api.proto`
//! (k8s.io/kubelet/pkg/apis/podresources/v1): no code generator is needed for seven small messages. Field numbers and
//! names are the API's; what the agent does not use (CPUs, memory, topology) is skipped when it is read.

use prost::Message;

/// Path of the call that lists the resources of all Pods.
pub const LIST: &str = "/v1.PodResourcesLister/List";

/// Asks for all Pods of the node.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct ListPodResourcesRequest {}

/// Resources of all Pods of the node.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ListPodResourcesResponse {
    /// One entry per Pod.
    #[prost(message, repeated, tag = "1")]
    pub pod_resources: Vec<PodResources>,
}

/// Resources of one Pod.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PodResources {
    /// The Pod's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its namespace.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// One entry per container.
    #[prost(message, repeated, tag = "3")]
    pub containers: Vec<ContainerResources>,
}

/// Resources of one container.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ContainerResources {
    /// The container's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// What device plugins gave it.
    #[prost(message, repeated, tag = "2")]
    pub devices: Vec<ContainerDevices>,
    /// What its claims gave it.
    #[prost(message, repeated, tag = "5")]
    pub dynamic_resources: Vec<DynamicResource>,
}

/// Devices of one resource.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ContainerDevices {
    /// The resource, for example `nvidia.com/gpu`.
    #[prost(string, tag = "1")]
    pub resource_name: String,
    /// Ids as the device plugin names them.
    #[prost(string, repeated, tag = "2")]
    pub device_ids: Vec<String>,
}

/// One claim.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct DynamicResource {
    /// Name of the ResourceClaim.
    #[prost(string, tag = "2")]
    pub claim_name: String,
    /// Its namespace.
    #[prost(string, tag = "3")]
    pub claim_namespace: String,
    /// What was allocated for it.
    #[prost(message, repeated, tag = "4")]
    pub claim_resources: Vec<ClaimResource>,
}

/// One device of a claim. CDI names (field 1) are left out: they name no device.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ClaimResource {
    /// The DRA driver, for example `gpu.nvidia.com`.
    #[prost(string, tag = "2")]
    pub driver_name: String,
    /// The driver's pool, as a rule the node.
    #[prost(string, tag = "3")]
    pub pool_name: String,
    /// The device in the pool, for example `gpu-0`.
    #[prost(string, tag = "4")]
    pub device_name: String,
    /// The share of it, where several claims have one.
    #[prost(string, optional, tag = "5")]
    pub share_id: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_bytes_follow_the_field_numbers() {
        let devices = ContainerDevices { resource_name: "r".to_owned(), device_ids: vec!["d".to_owned()] };
        let claim = ClaimResource {
            driver_name: "v".to_owned(),
            pool_name: "p".to_owned(),
            device_name: "e".to_owned(),
            share_id: Some("s".to_owned()),
        };
        let dynamic = DynamicResource {
            claim_name: "c".to_owned(),
            claim_namespace: "n".to_owned(),
            claim_resources: vec![claim],
        };
        let container = ContainerResources {
            name: "k".to_owned(),
            devices: vec![devices],
            dynamic_resources: vec![dynamic],
        };
        let expected: &[u8] = b"\x0a\x01k\x12\x06\x0a\x01r\x12\x01d\
            \x2a\x14\x12\x01c\x1a\x01n\x22\x0c\x12\x01v\x1a\x01p\x22\x01e\x2a\x01s";
        assert_eq!(container.encode_to_vec(), expected);
        // CPUs, memory with topology, and what a later version may add are skipped.
        let more = [expected, b"\x18\x07\x22\x03\x0a\x01m\xfa\x01\x01z"].concat();
        assert_eq!(ContainerResources::decode(more.as_slice()), Ok(container));
    }
}
