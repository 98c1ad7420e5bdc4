//! What an agent says that the devices of its node are.
//!
//! Inputs: the status of a GpuNode. Outputs: the few facts of each device that others may contradict.
//! Invariant: every device of the node is here, also one that is not sold.

use vendue_crds::{GpuDevice, GpuHealth, GpuNodeStatus, MigMode};

/// One device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// UUID as NVML gives it.
    pub uuid: String,
    /// Name of the product as NVML gives it.
    pub product: String,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Whether it works in slices.
    pub sliced: bool,
    /// Whether it is healthy.
    pub healthy: bool,
}

impl From<&GpuDevice> for Device {
    fn from(device: &GpuDevice) -> Self {
        Self {
            uuid: device.uuid.clone(),
            product: device.product_name.clone(),
            memory_mib: u64::try_from(device.memory_mib).unwrap_or(0),
            sliced: device.mig_mode == MigMode::Enabled,
            healthy: device.health == GpuHealth::Healthy,
        }
    }
}

/// The devices of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// The agent's fingerprint of them; none while it does not know them all.
    pub fingerprint: Option<String>,
    /// Each device.
    pub devices: Vec<Device>,
}

impl From<&GpuNodeStatus> for Known {
    fn from(status: &GpuNodeStatus) -> Self {
        Self {
            fingerprint: status.fingerprint.clone(),
            devices: status.devices.iter().map(Device::from).collect(),
        }
    }
}
