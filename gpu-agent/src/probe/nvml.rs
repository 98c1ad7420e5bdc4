//! Reads devices through NVIDIA's management library.
//!
//! The library is loaded and initialised at the first reading and kept; a failed initialisation, a lost driver and a
//! machine without devices are tried afresh at the next reading. Identities are remembered by index, so that a device
//! that falls off the bus can still be named.

// Row remapping is not wrapped by nvml-wrapper, so its raw entry point is called.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use nvml_wrapper::enum_wrappers::device::{Clock, EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use super::{DeviceProbe, ProbeError};
use crate::inventory::{DeviceFault, DeviceIdentity, DeviceReading, NodeInventory, Sensors, UnknownDevice};

/// What the loader is asked for when no path is given.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// Reads through NVML.
pub struct NvmlProbe {
    library: PathBuf,
    nvml: Option<Nvml>,
    known: BTreeMap<u32, DeviceIdentity>,
}

impl NvmlProbe {
    /// A probe that loads `library`, or what the loader finds.
    #[must_use]
    pub fn new(library: Option<PathBuf>) -> Self {
        Self { library: library.unwrap_or_else(|| LIBRARY.into()), nvml: None, known: BTreeMap::new() }
    }

    fn initialise(&self) -> Result<Nvml, ProbeError> {
        Nvml::builder().lib_path(self.library.as_os_str()).init().map_err(|error| match error {
            NvmlError::LibloadingError(error) => {
                ProbeError::LibraryMissing { library: self.library.clone(), detail: error.to_string() }
            }
            NvmlError::DriverNotLoaded => ProbeError::DriverNotLoaded,
            NvmlError::LibRmVersionMismatch => ProbeError::DriverMismatch,
            other => call("initialise NVML")(other),
        })
    }
}

impl DeviceProbe for NvmlProbe {
    fn read(&mut self) -> Result<NodeInventory, ProbeError> {
        let nvml = match self.nvml.take() {
            Some(nvml) => nvml,
            None => self.initialise()?,
        };
        let inventory = read_all(&nvml, &mut self.known)?;
        // The driver counts devices when it is initialised: with none, look again from the start.
        if !inventory.devices.is_empty() || !inventory.unknown.is_empty() {
            self.nvml = Some(nvml);
        }
        Ok(inventory)
    }
}

fn call(operation: &'static str) -> impl Fn(NvmlError) -> ProbeError {
    move |error| match error {
        NvmlError::DriverNotLoaded => ProbeError::DriverNotLoaded,
        NvmlError::LibRmVersionMismatch => ProbeError::DriverMismatch,
        other => ProbeError::Call { operation, detail: other.to_string() },
    }
}

fn read_all(nvml: &Nvml, known: &mut BTreeMap<u32, DeviceIdentity>) -> Result<NodeInventory, ProbeError> {
    let mut inventory = NodeInventory {
        driver_version: nvml.sys_driver_version().map_err(call("read driver version"))?,
        cuda_version: nvml.sys_cuda_driver_version().ok().map(cuda_version),
        ..NodeInventory::default()
    };
    let count = nvml.device_count().map_err(call("count devices"))?;
    known.retain(|index, _| *index < count);
    for index in 0..count {
        match read_device(nvml, index) {
            Ok(reading) => {
                known.insert(index, reading.identity.clone());
                inventory.devices.push(reading);
            }
            Err(error) => match known.get(&index) {
                Some(identity) => inventory.devices.push(broken(identity.clone(), &error)),
                None => inventory.unknown.push(UnknownDevice { index, error: error.to_string() }),
            },
        }
    }
    Ok(inventory)
}

/// NVML encodes 13.0 as 13000.
fn cuda_version(code: i32) -> String {
    format!("{}.{}", code / 1000, code % 1000 / 10)
}

fn broken(identity: DeviceIdentity, error: &NvmlError) -> DeviceReading {
    let fault = match error {
        NvmlError::GpuLost => DeviceFault::Lost,
        other => DeviceFault::Unreadable(other.to_string()),
    };
    DeviceReading { identity, mig_enabled: None, fault: Some(fault), sensors: Sensors::default() }
}

fn read_device(nvml: &Nvml, index: u32) -> Result<DeviceReading, NvmlError> {
    let device = nvml.device_by_index(index)?;
    let memory = device.memory_info()?;
    let identity = DeviceIdentity {
        index,
        uuid: device.uuid()?,
        product_name: device.name()?,
        memory_bytes: memory.total,
        pci_bus_id: device.pci_info()?.bus_id,
    };
    Ok(DeviceReading {
        identity,
        mig_enabled: mig_enabled(&device)?,
        fault: row_fault(nvml, &device),
        sensors: sensors(&device, memory.used),
    })
}

fn mig_enabled(device: &Device<'_>) -> Result<Option<bool>, NvmlError> {
    match device.mig_mode() {
        Ok(mode) => Ok(Some(mode.current == 1)),
        Err(NvmlError::NotSupported | NvmlError::FailedToLoadSymbol(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Cards and drivers without row remapping report no fault.
fn row_fault(nvml: &Nvml, device: &Device<'_>) -> Option<DeviceFault> {
    let (mut corrected, mut uncorrected, mut pending, mut failed) = (0, 0, 0, 0);
    let symbol = nvml.lib().nvmlDeviceGetRemappedRows.as_ref().ok()?;
    // SAFETY: the handle is valid while `nvml` lives, and the four pointers point to our own numbers.
    let code =
        unsafe { symbol(device.handle(), &mut corrected, &mut uncorrected, &mut pending, &mut failed) };
    match (code, pending, failed) {
        (0, _, 1..) => Some(DeviceFault::RowRemapFailed),
        (0, 1.., 0) => Some(DeviceFault::RowRemapPending),
        _ => None,
    }
}

fn sensors(device: &Device<'_>, memory_used: u64) -> Sensors {
    let load = device.utilization_rates().ok();
    let errors = |kind| device.total_ecc_errors(kind, EccCounter::Volatile).ok();
    Sensors {
        memory_used_bytes: Some(memory_used),
        gpu_utilization_percent: load.as_ref().map(|l| l.gpu),
        memory_utilization_percent: load.as_ref().map(|l| l.memory),
        power_milliwatts: device.power_usage().ok(),
        energy_millijoules: device.total_energy_consumption().ok(),
        temperature_celsius: device.temperature(TemperatureSensor::Gpu).ok(),
        sm_clock_mhz: device.clock_info(Clock::SM).ok(),
        memory_clock_mhz: device.clock_info(Clock::Memory).ok(),
        ecc_corrected: errors(MemoryError::Corrected),
        ecc_uncorrected: errors(MemoryError::Uncorrected),
    }
}
