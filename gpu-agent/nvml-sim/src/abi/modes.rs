//! Modes of operation, confidential computing, and the parts of a machine that simulated ones lack.

use std::ffi::c_uint;

use super::session::{answer, initialised, snapshot};
use super::{Outcome, code, exports, put, struct_version, sys};
use sys::nvmlDevice_t;

exports! {
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

    /// Where power comes from: the mains.
    fn nvmlDeviceGetPowerSource(device: nvmlDevice_t, source: *mut sys::nvmlPowerSource_t) {
        answer(device, source, |_| Ok(0))
    }

    /// Units of the S-class systems: none.
    fn nvmlUnitGetCount(count: *mut c_uint) {
        snapshot()?;
        put(count, 0)
    }

    /// Confidential-computing abilities of CPU and GPUs: not simulated, as on a machine without them.
    fn nvmlSystemGetConfComputeCapabilities(out: *mut sys::nvmlConfComputeSystemCaps_t) { unsupported(out) }

    /// Confidential-computing state.
    fn nvmlSystemGetConfComputeState(out: *mut sys::nvmlConfComputeSystemState_t) { unsupported(out) }

    /// Whether GPUs accept confidential work.
    fn nvmlSystemGetConfComputeGpusReadyState(out: *mut c_uint) { unsupported(out) }

    /// Confidential-computing settings.
    fn nvmlSystemGetConfComputeSettings(out: *mut sys::nvmlSystemConfComputeSettings_t) {
        initialised()?;
        let version = struct_version::<sys::nvmlSystemConfComputeSettings_v1_t>(1);
        super::check_version(out.cast_const().cast(), version)?;
        unsupported(out)
    }

    /// Protected memory.
    fn nvmlDeviceGetConfComputeMemSizeInfo(device: nvmlDevice_t, out: *mut sys::nvmlConfComputeMemSizeInfo_t) {
        answer(device, out, |_| Err(code::NOT_SUPPORTED))
    }

    /// Protected memory in use.
    fn nvmlDeviceGetConfComputeProtectedMemoryUsage(device: nvmlDevice_t, out: *mut sys::nvmlMemory_t) {
        answer(device, out, |_| Err(code::NOT_SUPPORTED))
    }

    /// The card's certificates.
    fn nvmlDeviceGetConfComputeGpuCertificate(
        device: nvmlDevice_t, out: *mut sys::nvmlConfComputeGpuCertificate_t,
    ) { answer(device, out, |_| Err(code::NOT_SUPPORTED)) }

    /// A report about the card, signed by it.
    fn nvmlDeviceGetConfComputeGpuAttestationReport(
        device: nvmlDevice_t, out: *mut sys::nvmlConfComputeGpuAttestationReport_t,
    ) { answer(device, out, |_| Err(code::NOT_SUPPORTED)) }
}

fn unsupported<T>(out: *mut T) -> Outcome {
    snapshot()?;
    Err(if out.is_null() { code::INVALID_ARGUMENT } else { code::NOT_SUPPORTED })
}
