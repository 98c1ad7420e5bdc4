//! What is read of one device: its identity, what changes slowly, what changes each second.
//!
//! What a card or driver does not offer is left out; an error is only what means that the device does not answer.

// Row remapping, ids of MIG instances and what only older drivers have are not wrapped by nvml-wrapper, so their raw entry
// points are called.
#![allow(unsafe_code)]

use std::sync::Arc;

use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::enums::device::SampleValue;
use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::sys_exports::field_id::NVML_FI_DEV_MEMORY_TEMP;
use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings::nvmlMemory_t;

use super::gpm::{Gpm, Part};
use super::links::nvlink_peers;
use super::numa::{Near, PciDevices};
use super::processes::processes;
use crate::inventory::{
    Activity, DeviceFault, DeviceIdentity, DeviceProcess, DeviceReading, MigInstance, Pcie, Sensors,
};

/// What changes slowly.
#[derive(Clone, Debug, Default)]
pub(super) struct Slow {
    compute_capability: Option<(i32, i32)>,
    mig_enabled: Option<bool>,
    mig: Vec<MigInstance>,
    rows: Option<Rows>,
    pcie_replays: Option<u32>,
    ecc_corrected: Option<u64>,
    ecc_uncorrected: Option<u64>,
    pcie: Option<Pcie>,
    numa_node: Option<u32>,
    nvlink_peers: Vec<String>,
    has_gpm: bool,
    processes: Option<Arc<[DeviceProcess]>>,
    /// The newest measurement of what processes use.
    processes_us: u64,
}

impl Slow {
    /// Whether MIG was on and which instances there were, without what they showed.
    pub fn split(&self) -> (Option<bool>, Vec<MigInstance>) {
        let named = |instance: &MigInstance| MigInstance {
            memory_used_bytes: None,
            memory_free_bytes: None,
            activity: Activity::default(),
            ..instance.clone()
        };
        (self.mig_enabled, self.mig.iter().map(named).collect())
    }
}

/// Rows of memory that were replaced, or are to be.
#[derive(Clone, Copy, Debug)]
struct Rows {
    corrected: u32,
    uncorrected: u32,
    is_pending: bool,
    has_failed: bool,
}

impl Rows {
    fn fault(self) -> Option<DeviceFault> {
        match (self.has_failed, self.is_pending) {
            (true, _) => Some(DeviceFault::RowRemapFailed),
            (false, true) => Some(DeviceFault::RowRemapPending),
            (false, false) => None,
        }
    }
}

/// How a frame buffer is used, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    total: u64,
    used: u64,
    free: u64,
    /// What driver and firmware keep; drivers before 510 leave it out of all figures.
    reserved: Option<u64>,
}

/// What the newest form of a call says, or on a driver that lacks it the form before.
pub(super) fn or_older<T>(
    newest: Result<T, NvmlError>,
    older: impl FnOnce() -> Result<T, NvmlError>,
) -> Result<T, NvmlError> {
    match newest {
        Err(NvmlError::FailedToLoadSymbol(_)) => older(),
        said => said,
    }
}

fn memory(nvml: &Nvml, device: &Device<'_>) -> Result<Memory, NvmlError> {
    let newest = device.memory_info().map(|m| Memory {
        total: m.total,
        used: m.used,
        free: m.free,
        reserved: Some(m.reserved),
    });
    or_older(newest, || {
        let symbol = nvml_sym(nvml.lib().nvmlDeviceGetMemoryInfo.as_ref())?;
        let mut memory = nvmlMemory_t { total: 0, free: 0, used: 0 };
        // SAFETY: the handle is valid while `nvml` lives, and the pointer points to our own struct.
        nvml_try(unsafe { symbol(device.handle(), &mut memory) })?;
        Ok(Memory { total: memory.total, used: memory.used, free: memory.free, reserved: None })
    })
}

/// How many processes compute on the device.
fn compute_processes(nvml: &Nvml, device: &Device<'_>) -> Option<u32> {
    let newest = device.running_compute_processes_count();
    let second = or_older(newest, || device.running_compute_processes_count_v2());
    let count = or_older(second, || {
        let symbol = nvml_sym(nvml.lib().nvmlDeviceGetComputeRunningProcesses.as_ref())?;
        let mut count = 0;
        // SAFETY: the handle is valid while `nvml` lives; without room for a list, which is allowed, only the count is written.
        let code = unsafe { symbol(device.handle(), &mut count, std::ptr::null_mut()) };
        match nvml_try(code) {
            Err(NvmlError::InsufficientSize(_)) => Ok(count),
            said => said.map(|()| 0),
        }
    });
    count.ok()
}

/// Who the device is, and how its memory is used.
pub(super) fn identity(
    nvml: &Nvml,
    device: &Device<'_>,
    index: u32,
) -> Result<(DeviceIdentity, Memory), NvmlError> {
    let memory = memory(nvml, device)?;
    let identity = DeviceIdentity {
        index,
        uuid: device.uuid()?,
        product_name: device.name()?,
        memory_bytes: memory.total,
        pci_bus_id: device.pci_info()?.bus_id,
        minor: device.minor_number().ok(),
    };
    Ok((identity, memory))
}

/// Reads what changes slowly of the device at a PCI address, anew since `before`; the processes only when they are wanted.
pub(super) fn slow(
    nvml: &Nvml,
    device: &Device<'_>,
    before: Option<&Slow>,
    (pci_devices, pci_bus_id): (&PciDevices, &str),
    wants_processes: bool,
) -> Result<Slow, NvmlError> {
    let errors = |kind| device.total_ecc_errors(kind, EccCounter::Volatile).ok();
    let mig_enabled = mig_enabled(device)?;
    let before_us = before.map_or(0, |slow| slow.processes_us);
    let (processes, processes_us) =
        if wants_processes { processes(device, before_us) } else { (None, before_us) };
    Ok(Slow {
        compute_capability: device.cuda_compute_capability().ok().map(|c| (c.major, c.minor)),
        mig: if mig_enabled == Some(true) { mig_instances(nvml, device) } else { vec![] },
        mig_enabled,
        rows: rows(nvml, device),
        pcie_replays: device.pcie_replay_counter().ok(),
        ecc_corrected: errors(MemoryError::Corrected),
        ecc_uncorrected: errors(MemoryError::Uncorrected),
        pcie: pcie(device),
        numa_node: match pci_devices.near(pci_bus_id) {
            Near::Node(node) => Some(node),
            Near::None => None,
            Near::Unknown => device.numa_node_id().ok(),
        },
        nvlink_peers: nvlink_peers(device, before.map_or(&[], |slow| &slow.nvlink_peers)),
        has_gpm: device.gpm_support().unwrap_or(false),
        processes,
        processes_us,
    })
}

/// Reads what changes each second, and adds the rest.
pub(super) fn fast(
    nvml: &Nvml,
    gpm: &mut Gpm,
    device: &Device<'_>,
    identity: DeviceIdentity,
    memory: Memory,
    slow: &Slow,
) -> DeviceReading {
    let (activity, mig) = activity(gpm, device, &identity.uuid, slow);
    let load = device.utilization_rates().ok();
    let reasons = device.current_throttle_reasons().unwrap_or(ThrottleReasons::empty());
    DeviceReading {
        identity,
        compute_capability: slow.compute_capability,
        mig_enabled: slow.mig_enabled,
        mig,
        fault: slow.rows.and_then(Rows::fault),
        thermal_slowdown: reasons
            .intersects(ThrottleReasons::HW_THERMAL_SLOWDOWN | ThrottleReasons::SW_THERMAL_SLOWDOWN),
        pcie: slow.pcie,
        numa_node: slow.numa_node,
        nvlink_peers: slow.nvlink_peers.clone(),
        compute_processes: compute_processes(nvml, device),
        processes: slow.processes.clone(),
        sensors: Sensors {
            memory_used_bytes: Some(memory.used),
            memory_free_bytes: Some(memory.free),
            memory_reserved_bytes: memory.reserved,
            memory_temperature_celsius: memory_temperature(device),
            encoder_utilization_percent: device.encoder_utilization().ok().map(|u| u.utilization),
            decoder_utilization_percent: device.decoder_utilization().ok().map(|u| u.utilization),
            pcie_replays: slow.pcie_replays,
            rows_remapped_corrected: slow.rows.map(|rows| rows.corrected),
            rows_remapped_uncorrected: slow.rows.map(|rows| rows.uncorrected),
            gpu_utilization_percent: load.as_ref().map(|l| l.gpu),
            memory_utilization_percent: load.as_ref().map(|l| l.memory),
            power_milliwatts: device.power_usage().ok(),
            energy_millijoules: device.total_energy_consumption().ok(),
            temperature_celsius: device.temperature(TemperatureSensor::Gpu).ok(),
            sm_clock_mhz: device.clock_info(Clock::SM).ok(),
            memory_clock_mhz: device.clock_info(Clock::Memory).ok(),
            ecc_corrected: slow.ecc_corrected,
            ecc_uncorrected: slow.ecc_uncorrected,
        },
        activity,
    }
}

/// What the device did since the look before, and its MIG instances with what they did. With MIG only GPU instances are
/// measured; one that several compute instances share says nothing of any of them.
fn activity(gpm: &mut Gpm, device: &Device<'_>, uuid: &str, slow: &Slow) -> (Activity, Vec<MigInstance>) {
    let mut mig = slow.mig.clone();
    if !slow.has_gpm {
        return (Activity::default(), mig);
    }
    if slow.mig_enabled != Some(true) {
        return (gpm.activity(device, Part::Device, uuid), mig);
    }
    for instance in &mut mig {
        let on_it = slow.mig.iter().filter(|other| other.gpu_instance == instance.gpu_instance).count();
        if let (Some(id), 1) = (instance.gpu_instance, on_it) {
            instance.activity = gpm.activity(device, Part::Instance(id), &instance.uuid);
        }
    }
    (Activity::default(), mig)
}

fn mig_enabled(device: &Device<'_>) -> Result<Option<bool>, NvmlError> {
    match device.mig_mode() {
        Ok(mode) => Ok(Some(mode.current == 1)),
        Err(NvmlError::NotSupported | NvmlError::FailedToLoadSymbol(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Places without an instance answer that there is none.
fn mig_instances(nvml: &Nvml, device: &Device<'_>) -> Vec<MigInstance> {
    let places = device.mig_device_count().unwrap_or(0);
    let instance = |index| {
        let instance = device.mig_device_by_index(index).ok()?;
        let memory = memory(nvml, &instance).ok();
        Some(MigInstance {
            uuid: instance.uuid().ok()?,
            name: instance.name().unwrap_or_default(),
            gpu_instance: instance_id(nvml, &instance, Id::Gpu),
            compute_instance: instance_id(nvml, &instance, Id::Compute),
            memory_bytes: memory.map(|m| m.total),
            memory_used_bytes: memory.map(|m| m.used),
            memory_free_bytes: memory.map(|m| m.free),
            activity: Activity::default(),
        })
    };
    (0..places).filter_map(instance).collect()
}

#[derive(Clone, Copy)]
enum Id {
    Gpu,
    Compute,
}

fn instance_id(nvml: &Nvml, instance: &Device<'_>, which: Id) -> Option<u32> {
    let symbol = match which {
        Id::Gpu => nvml.lib().nvmlDeviceGetGpuInstanceId.as_ref().ok()?,
        Id::Compute => nvml.lib().nvmlDeviceGetComputeInstanceId.as_ref().ok()?,
    };
    let mut id = 0;
    // SAFETY: the handle is valid while `nvml` lives, and the pointer points to our own number.
    let code = unsafe { symbol(instance.handle(), &mut id) };
    (code == 0).then_some(id)
}

/// Cards and drivers without row remapping have none to tell of.
fn rows(nvml: &Nvml, device: &Device<'_>) -> Option<Rows> {
    let (mut corrected, mut uncorrected, mut pending, mut failed) = (0, 0, 0, 0);
    let symbol = nvml.lib().nvmlDeviceGetRemappedRows.as_ref().ok()?;
    // SAFETY: the handle is valid while `nvml` lives, and the four pointers point to our own numbers.
    let code =
        unsafe { symbol(device.handle(), &mut corrected, &mut uncorrected, &mut pending, &mut failed) };
    (code == 0).then_some(Rows { corrected, uncorrected, is_pending: pending > 0, has_failed: failed > 0 })
}

/// Only cards with HBM have a sensor in the memory.
fn memory_temperature(device: &Device<'_>) -> Option<u32> {
    let mut values = device.field_values_for(&[FieldId(NVML_FI_DEV_MEMORY_TEMP)]).ok()?;
    match values.pop()?.ok()?.value.ok()? {
        SampleValue::U32(celsius) => Some(celsius),
        SampleValue::U64(celsius) => u32::try_from(celsius).ok(),
        _ => None,
    }
}

fn pcie(device: &Device<'_>) -> Option<Pcie> {
    Some(Pcie {
        generation: device.current_pcie_link_gen().ok()?,
        width: device.current_pcie_link_width().ok()?,
        max_generation: device.max_pcie_link_gen().ok()?,
        max_width: device.max_pcie_link_width().ok()?,
    })
}
