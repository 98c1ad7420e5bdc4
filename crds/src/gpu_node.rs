//! `GpuNode`: the GPUs of one node as NVML tells them.
//!
//! Writer: `vendue-gpu-agent` on that node. Invariant: named as the node; the devices are those of the last good
//! reading, and the condition Ready says how old or broken that is.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A GpuNode lists the GPUs of the node of the same name.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "vendue.dev",
    version = "v1alpha1",
    kind = "GpuNode",
    plural = "gpunodes",
    shortname = "vgpu",
    category = "vendue",
    status = "GpuNodeStatus",
    derive = "PartialEq",
    cel,
    doc = "A GpuNode lists the GPUs of the node of the same name, as the agent on that node reads them through NVML.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status",
        description = "Whether the agent reads the devices and all of them are usable; else nothing of the node is sold."
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason",
        description = "Why it is Ready or not."
    ),
    printcolumn(
        name = "GPUs",
        type_ = "integer",
        json_path = ".status.deviceCount",
        description = "Devices of the node."
    ),
    printcolumn(
        name = "Model",
        type_ = "string",
        json_path = ".status.devices[0].model",
        description = "Model of the first device."
    ),
    printcolumn(
        name = "Driver",
        type_ = "string",
        json_path = ".status.driverVersion",
        description = "Version of the NVIDIA driver."
    ),
    printcolumn(
        name = "Probed",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Probed')].status",
        description = "Whether every device was measured and is what it says."
    ),
    printcolumn(
        name = "Metered",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Metered')].status",
        description = "Whether receipts are signed, stored and delivered."
    ),
    printcolumn(
        name = "Seen",
        type_ = "date",
        json_path = ".status.observedAt",
        description = "Time since the devices were last read, by the node's clock; more than a minute means that the agent is silent or the driver hangs."
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].message",
        description = "What is wrong, in a sentence.",
        priority = 1
    ),
    printcolumn(
        name = "CUDA",
        type_ = "string",
        json_path = ".status.cudaDriverVersion",
        description = "CUDA version that the driver supports.",
        priority = 1
    ),
    printcolumn(
        name = "Fingerprint",
        type_ = "string",
        json_path = ".status.fingerprint",
        description = "What bids are bound to.",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
pub struct GpuNodeSpec {}

/// The GPUs of a node.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GpuNodeStatus {
    /// conditions: Ready, Probed, Metered, SlicesContradict.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// observedGeneration is the generation of spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// observedAt is when the devices were last read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_at: Option<Time>,
    /// driverVersion of the NVIDIA driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 80))]
    pub driver_version: Option<String>,
    /// cudaDriverVersion that the driver supports, for example "13.0".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub cuda_driver_version: Option<String>,
    /// fingerprint of the devices: SHA-256 over driver version, UUIDs, product names, memory and NVLinks, in hexadecimal
    /// digits. It is absent while a device could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub fingerprint: Option<String>,
    /// publicKey by which the receipts of this node are verified, 66 hex digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 66))]
    pub public_key: Option<String>,
    /// deviceCount counts the devices.
    #[serde(default)]
    pub device_count: i32,
    /// devices of the node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["uuid".into()]))]
    pub devices: Vec<GpuDevice>,
}

/// Whether a device works in slices.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum MigMode {
    /// MIG is on.
    Enabled,
    /// MIG is off.
    Disabled,
    /// The device has no MIG.
    NotSupported,
}

/// Whether a device can be sold.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuHealth {
    /// The device answers and reports no fault.
    Healthy,
    /// The device answers and reports a fault that will end its use.
    Degraded,
    /// The device is lost or reports a fatal fault.
    Failed,
    /// The device could not be read.
    Unknown,
}

/// One GPU.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GpuDevice {
    /// uuid as NVML gives it, for example "GPU-2d0c...".
    #[schemars(length(max = 96))]
    pub uuid: String,
    /// index in NVML's order.
    pub index: i32,
    /// model in short, for example "H100"; orders name this.
    #[schemars(length(max = 63))]
    pub model: String,
    /// productName as NVML gives it, for example "NVIDIA H100 80GB HBM3".
    #[schemars(length(max = 96))]
    pub product_name: String,
    /// memoryMib is the memory of the device, MiB.
    pub memory_mib: i64,
    /// pciBusId, for example "00000000:01:00.0".
    #[schemars(length(max = 32))]
    pub pci_bus_id: String,
    /// migMode of the device.
    pub mig_mode: MigMode,
    /// migDevices of the device, where MIG is on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["uuid".into()]))]
    pub mig_devices: Vec<MigDevice>,
    /// pcie is the link to the host at its best.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pcie: Option<PcieLink>,
    /// numaNode that the device is near to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa_node: Option<i32>,
    /// nvlinks that are up, by what they lead to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["peer".into()]))]
    pub nvlinks: Vec<NvLinks>,
    /// health of the device.
    pub health: GpuHealth,
    /// healthReason says why it is not healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub health_reason: Option<String>,
    /// probe: what measuring the device found. A Provision counts devices that Passed, and with acceptUnprobed those that are
    /// NotRun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<GpuProbe>,
}

/// How a probe of a device ended.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeResult {
    /// What was measured is as the device says.
    Passed,
    /// What was measured is not as the device says, or the device did not work.
    Failed,
    /// Nothing was measured.
    NotRun,
}

/// What measuring a device found.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct GpuProbe {
    /// result of the probe.
    pub result: ProbeResult,
    /// reason in one word, for example "BandwidthLow" or "NoCudaDriver".
    #[schemars(length(max = 63))]
    pub reason: String,
    /// message says what was measured and what was expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub message: Option<String>,
    /// memoryMib that held what was written to it, MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<i64>,
    /// bandwidthMegabytesPerSecond of the memory, reading and writing added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_megabytes_per_second: Option<i64>,
    /// smClockMhz is the clock of the multiprocessors under load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sm_clock_mhz: Option<i64>,
    /// at is when it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Time>,
}

impl GpuProbe {
    /// A probe that measured nothing.
    #[must_use]
    pub fn without_figures(result: ProbeResult, reason: &str, message: String) -> Self {
        Self {
            result,
            reason: reason.to_owned(),
            message: Some(message),
            memory_mib: None,
            bandwidth_megabytes_per_second: None,
            sm_clock_mhz: None,
            at: None,
        }
    }
}

/// A MIG device: a slice of a GPU.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MigDevice {
    /// uuid as NVML gives it, "MIG-...".
    #[schemars(length(max = 96))]
    pub uuid: String,
    /// profile of the slice, for example "1g.10gb".
    #[schemars(length(max = 32))]
    pub profile: String,
    /// memoryMib of the slice, MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<i64>,
}

/// A link to the host.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PcieLink {
    /// generation of PCIe.
    pub generation: i32,
    /// width in lanes.
    pub width: i32,
}

/// NVLinks from a GPU to one other end.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NvLinks {
    /// peer: UUID of the other GPU, or the PCI address of a switch.
    #[schemars(length(max = 96))]
    pub peer: String,
    /// links that are up.
    pub links: i32,
}
