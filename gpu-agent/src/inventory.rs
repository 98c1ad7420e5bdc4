//! What one reading of a node's GPUs gives: plain data, free of NVML's types.

use serde::Serialize;

/// The GPUs of a node at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeInventory {
    /// Version of the NVIDIA driver.
    pub driver_version: String,
    /// CUDA version that the driver supports, for example `13.0`.
    pub cuda_version: Option<String>,
    /// Devices that are known, in order of index.
    pub devices: Vec<DeviceReading>,
    /// Devices that the driver counts and that were never read, so that nothing is known but their index.
    pub unknown: Vec<UnknownDevice>,
}

/// One device.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceReading {
    /// What it is.
    pub identity: DeviceIdentity,
    /// Whether MIG is on; `None` on a card that has no MIG.
    pub mig_enabled: Option<bool>,
    /// Fault, if any.
    pub fault: Option<DeviceFault>,
    /// Sensors.
    pub sensors: Sensors,
}

/// What a device is: the same for as long as the card is in its slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceIdentity {
    /// Index in NVML's order.
    pub index: u32,
    /// UUID as NVML gives it.
    pub uuid: String,
    /// Name as NVML gives it.
    pub product_name: String,
    /// Frame buffer in bytes.
    pub memory_bytes: u64,
    /// PCI address, for example `00000000:01:00.0`.
    pub pci_bus_id: String,
}

/// What is wrong with a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "kind", content = "detail")]
pub enum DeviceFault {
    /// The driver lost it.
    Lost,
    /// Damaged memory rows could not be replaced.
    RowRemapFailed,
    /// Damaged memory rows are replaced at the next reset.
    RowRemapPending,
    /// It answers, but a reading failed.
    Unreadable(String),
}

/// Sensors; what a card does not offer is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sensors {
    /// Bytes of the frame buffer in use.
    pub memory_used_bytes: Option<u64>,
    /// Share of time that kernels ran, in percent.
    pub gpu_utilization_percent: Option<u32>,
    /// Share of time that memory was used, in percent.
    pub memory_utilization_percent: Option<u32>,
    /// Power in milliwatts.
    pub power_milliwatts: Option<u32>,
    /// Energy since the driver was loaded, in millijoules.
    pub energy_millijoules: Option<u64>,
    /// Temperature of the chip.
    pub temperature_celsius: Option<u32>,
    /// SM clock in MHz.
    pub sm_clock_mhz: Option<u32>,
    /// Memory clock in MHz.
    pub memory_clock_mhz: Option<u32>,
    /// Memory errors corrected since the driver was loaded.
    pub ecc_corrected: Option<u64>,
    /// Memory errors not corrected since the driver was loaded.
    pub ecc_uncorrected: Option<u64>,
}

/// A device that was never read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UnknownDevice {
    /// Index in NVML's order.
    pub index: u32,
    /// What the driver says.
    pub error: String,
}
