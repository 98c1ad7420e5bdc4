//! Messages of kubelet's device-plugin API, `v1beta1`, written by hand from its `api.proto`: no code generator is
//! needed for eight small messages. Field numbers and names are the API's.

use std::collections::HashMap;

use prost::Message;

/// Version that kubelet expects in a registration.
pub const VERSION: &str = "v1beta1";

/// Health of a device that may be handed out.
pub const HEALTHY: &str = "Healthy";

/// Health of a device that may not.
pub const UNHEALTHY: &str = "Unhealthy";

/// Path of kubelet's registration call.
pub const REGISTER: &str = "/v1beta1.Registration/Register";

/// Name of the service that the plugin offers.
pub const DEVICE_PLUGIN: &str = "v1beta1.DevicePlugin";

/// No content.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Empty {}

/// What optional calls the plugin wants: none.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct DevicePluginOptions {
    /// Whether kubelet must call `PreStartContainer`.
    #[prost(bool, tag = "1")]
    pub pre_start_required: bool,
    /// Whether the plugin can say which devices fit well together.
    #[prost(bool, tag = "2")]
    pub get_preferred_allocation_available: bool,
}

/// Announces the plugin to kubelet.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RegisterRequest {
    /// [`VERSION`].
    #[prost(string, tag = "1")]
    pub version: String,
    /// File name of the plugin's socket, in the folder of kubelet's own.
    #[prost(string, tag = "2")]
    pub endpoint: String,
    /// Resource that the devices are advertised as.
    #[prost(string, tag = "3")]
    pub resource_name: String,
    /// Optional calls.
    #[prost(message, optional, tag = "4")]
    pub options: Option<DevicePluginOptions>,
}

/// All devices, sent anew on every change.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ListAndWatchResponse {
    /// The devices.
    #[prost(message, repeated, tag = "1")]
    pub devices: Vec<Device>,
}

/// One device.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Device {
    /// Its id, at most 63 characters: here the UUID.
    #[prost(string, tag = "1")]
    pub id: String,
    /// [`HEALTHY`] or [`UNHEALTHY`].
    #[prost(string, tag = "2")]
    pub health: String,
}

/// Asks for devices for the containers of one Pod.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct AllocateRequest {
    /// One entry per container.
    #[prost(message, repeated, tag = "1")]
    pub container_requests: Vec<ContainerAllocateRequest>,
}

/// Devices that kubelet chose for one container.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ContainerAllocateRequest {
    /// Their ids.
    #[prost(string, repeated, tag = "1")]
    pub devices_ids: Vec<String>,
}

/// What the containers need.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct AllocateResponse {
    /// One entry per container of the request.
    #[prost(message, repeated, tag = "1")]
    pub container_responses: Vec<ContainerAllocateResponse>,
}

/// What one container needs to use its devices. Device files, annotations and CDI names (fields 3 to 5) are left
/// out: simulated devices have none.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ContainerAllocateResponse {
    /// Environment variables.
    #[prost(map = "string, string", tag = "1")]
    pub envs: HashMap<String, String>,
    /// Mounts.
    #[prost(message, repeated, tag = "2")]
    pub mounts: Vec<Mount>,
}

/// One mount.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Mount {
    /// Path in the container.
    #[prost(string, tag = "1")]
    pub container_path: String,
    /// Path on the node.
    #[prost(string, tag = "2")]
    pub host_path: String,
    /// Whether the container may only read.
    #[prost(bool, tag = "3")]
    pub read_only: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_bytes_follow_the_field_numbers() {
        let request = RegisterRequest {
            version: "v".to_owned(),
            endpoint: "e".to_owned(),
            resource_name: "r".to_owned(),
            options: Some(DevicePluginOptions { pre_start_required: true, ..Default::default() }),
        };
        assert_eq!(request.encode_to_vec(), b"\x0a\x01v\x12\x01e\x1a\x01r\x22\x02\x08\x01");
        let mount = Mount { container_path: "c".to_owned(), host_path: "h".to_owned(), read_only: true };
        let response = ContainerAllocateResponse {
            envs: HashMap::from([("K".to_owned(), "V".to_owned())]),
            mounts: vec![mount],
        };
        assert_eq!(response.encode_to_vec(), b"\x0a\x06\x0a\x01K\x12\x01V\x12\x08\x0a\x01c\x12\x01h\x18\x01");
    }
}
