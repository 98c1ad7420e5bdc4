//! What one reading of a node's GPUs gives: plain data, free of NVML's types.

use std::sync::Arc;

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
    /// Compute capability, major and minor; `None` where the driver does not tell.
    pub compute_capability: Option<(i32, i32)>,
    /// Whether MIG is on; `None` on a card that has no MIG.
    pub mig_enabled: Option<bool>,
    /// Its MIG instances.
    pub mig: Vec<MigInstance>,
    /// Fault, if any.
    pub fault: Option<DeviceFault>,
    /// Whether clocks are cut at this moment because the device is too hot.
    pub thermal_slowdown: bool,
    /// Its link to the host; `None` where the driver does not tell.
    pub pcie: Option<Pcie>,
    /// The NUMA node that it is near to.
    pub numa_node: Option<u32>,
    /// The PCI address at the other end of each NVLink that is up, in order.
    pub nvlink_peers: Vec<String>,
    /// Processes that compute on it, as far as the driver shows them to this one; `None` where it does not tell.
    pub compute_processes: Option<u32>,
    /// Its processes; `None` where the driver does not tell, and where it is not asked. New ones are another list.
    #[serde(skip)]
    pub processes: Option<Arc<[DeviceProcess]>>,
    /// Sensors.
    pub sensors: Sensors,
    /// What it did since the reading before.
    pub activity: Activity,
}

impl DeviceReading {
    /// A device of which nothing but its identity is known.
    #[must_use]
    pub fn of(identity: DeviceIdentity) -> Self {
        Self {
            identity,
            compute_capability: None,
            mig_enabled: None,
            mig: vec![],
            fault: None,
            thermal_slowdown: false,
            pcie: None,
            numa_node: None,
            nvlink_peers: vec![],
            compute_processes: None,
            processes: None,
            sensors: Sensors::default(),
            activity: Activity::default(),
        }
    }
}

/// A process on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceProcess {
    /// Its id, as the driver gives it.
    pub pid: u32,
    /// The GPU instance that it is on, with MIG.
    pub gpu_instance: Option<u32>,
    /// Bytes of the frame buffer that it holds; `None` where the driver does not tell.
    pub memory_bytes: Option<u64>,
    /// Share of time that its kernels ran, in percent; `None` where the driver does not tell, as with MIG.
    pub sm_percent: Option<u32>,
}

/// A link to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pcie {
    /// Generation at this moment; links of idle cards slow down.
    pub generation: u32,
    /// Lanes at this moment.
    pub width: u32,
    /// Highest generation of card and slot.
    pub max_generation: u32,
    /// Most lanes of card and slot.
    pub max_width: u32,
}

/// A MIG instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MigInstance {
    /// UUID as NVML gives it, `MIG-...`.
    pub uuid: String,
    /// Name as NVML gives it, with the profile (`... MIG 1g.10gb`).
    pub name: String,
    /// Id of the GPU instance.
    pub gpu_instance: Option<u32>,
    /// Id of the compute instance.
    pub compute_instance: Option<u32>,
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Bytes of it in use.
    pub memory_used_bytes: Option<u64>,
    /// Bytes of it that are free.
    pub memory_free_bytes: Option<u64>,
    /// What its GPU instance did since the reading before, where no other compute instance is on that.
    pub activity: Activity,
}

/// What a device or GPU instance did since the reading before, as its performance monitoring says. Cards before Hopper have
/// none; what is not known is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Activity {
    /// Share of time that any kernel ran, in millionths.
    pub engine_millionths: Option<u32>,
    /// Share of its SMs that had work, over time, in millionths.
    pub sm_millionths: Option<u32>,
    /// Share of time that tensor pipes worked, over its SMs, in millionths.
    pub tensor_millionths: Option<u32>,
    /// Share of the memory's bandwidth that was used, in millionths.
    pub memory_millionths: Option<u32>,
    /// Bytes a second that it sent over PCIe.
    pub pcie_sent_bytes_per_second: Option<u64>,
    /// Bytes a second that came to it over PCIe.
    pub pcie_received_bytes_per_second: Option<u64>,
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
    /// Number of its device file, `/dev/nvidia0`.
    pub minor: Option<u32>,
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
    /// Temperature of the memory.
    pub memory_temperature_celsius: Option<u32>,
    /// Bytes of the frame buffer that are free.
    pub memory_free_bytes: Option<u64>,
    /// Bytes of the frame buffer that driver and firmware keep.
    pub memory_reserved_bytes: Option<u64>,
    /// Share of time that the video encoder ran, in percent.
    pub encoder_utilization_percent: Option<u32>,
    /// Share of time that the video decoder ran, in percent.
    pub decoder_utilization_percent: Option<u32>,
    /// Packets that the link to the host repeated.
    pub pcie_replays: Option<u32>,
    /// Memory rows replaced after errors that were corrected.
    pub rows_remapped_corrected: Option<u32>,
    /// Memory rows replaced after errors that were not.
    pub rows_remapped_uncorrected: Option<u32>,
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
