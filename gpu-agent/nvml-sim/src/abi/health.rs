//! Memory errors, MIG mode, links and modes of operation.

use std::ffi::{c_uint, c_ulonglong};

use super::session::{View, answer, on_device};
use super::{code, exports, put, sys};
use crate::state::DeviceHealth;
use sys::{nvmlDevice_t, nvmlReturn_t};

exports! {
    /// Whether memory errors are corrected: on all simulated cards.
    fn nvmlDeviceGetEccMode(
        device: nvmlDevice_t, current: *mut sys::nvmlEnableState_t, pending: *mut sys::nvmlEnableState_t,
    ) {
        if pending.is_null() {
            return Err(code::INVALID_ARGUMENT);
        }
        answer(device, current, |_| {
            put(pending, sys::nvmlEnableState_enum_NVML_FEATURE_ENABLED)?;
            Ok(sys::nvmlEnableState_enum_NVML_FEATURE_ENABLED)
        })
    }

    /// Mode of a new card.
    fn nvmlDeviceGetDefaultEccMode(device: nvmlDevice_t, mode: *mut sys::nvmlEnableState_t) {
        answer(device, mode, |_| Ok(sys::nvmlEnableState_enum_NVML_FEATURE_ENABLED))
    }

    /// Number of memory errors.
    fn nvmlDeviceGetTotalEccErrors(
        device: nvmlDevice_t,
        kind: sys::nvmlMemoryErrorType_t,
        counter: sys::nvmlEccCounterType_t,
        count: *mut c_ulonglong,
    ) {
        if counter >= sys::nvmlEccCounterType_enum_NVML_ECC_COUNTER_TYPE_COUNT {
            return Err(code::INVALID_ARGUMENT);
        }
        answer(device, count, |v| ecc_errors(v, kind))
    }

    /// Number of memory errors by place: all in device memory.
    fn nvmlDeviceGetMemoryErrorCounter(
        device: nvmlDevice_t,
        kind: sys::nvmlMemoryErrorType_t,
        counter: sys::nvmlEccCounterType_t,
        location: sys::nvmlMemoryLocation_t,
        count: *mut c_ulonglong,
    ) {
        if counter >= sys::nvmlEccCounterType_enum_NVML_ECC_COUNTER_TYPE_COUNT {
            return Err(code::INVALID_ARGUMENT);
        }
        answer(device, count, |v| {
            let all = ecc_errors(v, kind)?;
            Ok(if location == sys::nvmlMemoryLocation_enum_NVML_MEMORY_LOCATION_DEVICE_MEMORY { all } else { 0 })
        })
    }

    /// Rows of memory that were replaced by spare ones.
    fn nvmlDeviceGetRemappedRows(
        device: nvmlDevice_t,
        corrected: *mut c_uint,
        uncorrected: *mut c_uint,
        pending: *mut c_uint,
        failed: *mut c_uint,
    ) {
        if [corrected, uncorrected, pending, failed].iter().any(|p| p.is_null()) {
            return Err(code::INVALID_ARGUMENT);
        }
        on_device(device, |v| {
            put(corrected, 0)?;
            put(uncorrected, c_uint::try_from(v.device.ecc_uncorrected).unwrap_or(c_uint::MAX))?;
            put(pending, 0)?;
            put(failed, c_uint::from(v.device.health == DeviceHealth::EccFailed))
        })
    }

    /// Whether the card is split into instances; not every card can be.
    fn nvmlDeviceGetMigMode(device: nvmlDevice_t, current: *mut c_uint, pending: *mut c_uint) {
        if pending.is_null() {
            return Err(code::INVALID_ARGUMENT);
        }
        answer(device, current, |v| {
            if !v.profile.mig_capable {
                return Err(code::NOT_SUPPORTED);
            }
            let mode =
                if v.device.mig_enabled { sys::NVML_DEVICE_MIG_ENABLE } else { sys::NVML_DEVICE_MIG_DISABLE };
            put(pending, mode)?;
            Ok(mode)
        })
    }

    /// Highest number of instances: none can be made yet.
    fn nvmlDeviceGetMaxMigDeviceCount(device: nvmlDevice_t, count: *mut c_uint) { answer(device, count, |_| Ok(0)) }

    /// Instances by index: there are none.
    fn nvmlDeviceGetMigDeviceHandleByIndex(device: nvmlDevice_t, _index: c_uint, out: *mut nvmlDevice_t) {
        if out.is_null() {
            return Err(code::INVALID_ARGUMENT);
        }
        on_device(device, |_| Err(code::NOT_FOUND))
    }

    /// Whether a handle is an instance: never.
    fn nvmlDeviceIsMigDeviceHandle(device: nvmlDevice_t, is_mig: *mut c_uint) { answer(device, is_mig, |_| Ok(0)) }

    /// PCIe generation in use.
    fn nvmlDeviceGetCurrPcieLinkGeneration(device: nvmlDevice_t, generation: *mut c_uint) {
        answer(device, generation, |v| Ok(v.profile.pcie_generation))
    }

    /// Highest PCIe generation.
    fn nvmlDeviceGetMaxPcieLinkGeneration(device: nvmlDevice_t, generation: *mut c_uint) {
        answer(device, generation, |v| Ok(v.profile.pcie_generation))
    }

    /// PCIe lanes in use.
    fn nvmlDeviceGetCurrPcieLinkWidth(device: nvmlDevice_t, width: *mut c_uint) {
        answer(device, width, |v| Ok(v.profile.pcie_width))
    }

    /// Highest number of PCIe lanes.
    fn nvmlDeviceGetMaxPcieLinkWidth(device: nvmlDevice_t, width: *mut c_uint) {
        answer(device, width, |v| Ok(v.profile.pcie_width))
    }

    /// PCIe packets sent again.
    fn nvmlDeviceGetPcieReplayCounter(device: nvmlDevice_t, count: *mut c_uint) { answer(device, count, |_| Ok(0)) }

    /// PCIe traffic, in kB/s.
    fn nvmlDeviceGetPcieThroughput(device: nvmlDevice_t, _counter: sys::nvmlPcieUtilCounter_t, rate: *mut c_uint) {
        answer(device, rate, |_| Ok(0))
    }

    /// Width of the memory bus, in bits.
    fn nvmlDeviceGetMemoryBusWidth(device: nvmlDevice_t, width: *mut c_uint) {
        answer(device, width, |v| Ok(v.profile.memory_bus_width))
    }

    /// Whether the driver stays loaded without clients: yes.
    fn nvmlDeviceGetPersistenceMode(device: nvmlDevice_t, mode: *mut sys::nvmlEnableState_t) {
        answer(device, mode, |_| Ok(sys::nvmlEnableState_enum_NVML_FEATURE_ENABLED))
    }

    /// Who may compute: everybody.
    fn nvmlDeviceGetComputeMode(device: nvmlDevice_t, mode: *mut sys::nvmlComputeMode_t) {
        answer(device, mode, |_| Ok(sys::nvmlComputeMode_enum_NVML_COMPUTEMODE_DEFAULT))
    }

    /// Whether a display is connected: no.
    fn nvmlDeviceGetDisplayMode(device: nvmlDevice_t, mode: *mut sys::nvmlEnableState_t) {
        answer(device, mode, |_| Ok(sys::nvmlEnableState_enum_NVML_FEATURE_DISABLED))
    }

    /// Whether a display is drawn: no.
    fn nvmlDeviceGetDisplayActive(device: nvmlDevice_t, mode: *mut sys::nvmlEnableState_t) {
        answer(device, mode, |_| Ok(sys::nvmlEnableState_enum_NVML_FEATURE_DISABLED))
    }

    /// Virtualisation: none.
    fn nvmlDeviceGetVirtualizationMode(device: nvmlDevice_t, mode: *mut sys::nvmlGpuVirtualizationMode_t) {
        answer(device, mode, |_| Ok(sys::nvmlGpuVirtualizationMode_NVML_GPU_VIRTUALIZATION_MODE_NONE))
    }
}

fn ecc_errors(view: &View<'_>, kind: sys::nvmlMemoryErrorType_t) -> Result<c_ulonglong, nvmlReturn_t> {
    match kind {
        sys::nvmlMemoryErrorType_enum_NVML_MEMORY_ERROR_TYPE_CORRECTED => Ok(view.device.ecc_corrected),
        sys::nvmlMemoryErrorType_enum_NVML_MEMORY_ERROR_TYPE_UNCORRECTED => Ok(view.device.ecc_uncorrected),
        _ => Err(code::INVALID_ARGUMENT),
    }
}
