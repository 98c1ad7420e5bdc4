//! Modes of operation, confidential computing, and the parts of a machine that simulated ones lack.

use std::ffi::c_uint;

use super::session::{answer, answer_any, initialised, on_device, snapshot};
use super::{Outcome, code, exports, put, put_list, put_text, struct_version, sys};
use sys::nvmlDevice_t;

exports! {
    /// Whether the driver stays loaded without clients: yes.
    fn nvmlDeviceGetPersistenceMode(device: nvmlDevice_t, mode: *mut sys::nvmlEnableState_t) {
        answer(device, mode, |_| Ok(sys::nvmlEnableState_enum_NVML_FEATURE_ENABLED))
    }

    /// Who may compute: everybody.
    fn nvmlDeviceGetComputeMode(device: nvmlDevice_t, mode: *mut sys::nvmlComputeMode_t) {
        answer_any(device, mode, |_| Ok(sys::nvmlComputeMode_enum_NVML_COMPUTEMODE_DEFAULT))
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

    /// Driver model, which only Windows has.
    fn nvmlDeviceGetDriverModel(
        device: nvmlDevice_t, current: *mut sys::nvmlDriverModel_t, pending: *mut sys::nvmlDriverModel_t,
    ) { unsupported_pair(device, current, pending) }

    /// The same, with the models of newer versions of Windows.
    fn nvmlDeviceGetDriverModel_v2(
        device: nvmlDevice_t, current: *mut sys::nvmlDriverModel_t, pending: *mut sys::nvmlDriverModel_t,
    ) { unsupported_pair(device, current, pending) }

    /// Mode of the workstation cards of old.
    fn nvmlDeviceGetGpuOperationMode(
        device: nvmlDevice_t, current: *mut sys::nvmlGpuOperationMode_t, pending: *mut sys::nvmlGpuOperationMode_t,
    ) { unsupported_pair(device, current, pending) }

    /// Automatic boost of clocks, which cards since Pascal lack.
    fn nvmlDeviceGetAutoBoostedClocksEnabled(
        device: nvmlDevice_t, enabled: *mut sys::nvmlEnableState_t, default: *mut sys::nvmlEnableState_t,
    ) { unsupported_pair(device, enabled, default) }

    /// Bridge chips of boards with several GPUs.
    fn nvmlDeviceGetBridgeChipInfo(device: nvmlDevice_t, out: *mut sys::nvmlBridgeChipHierarchy_t) {
        answer(device, out, |_| Err(code::NOT_SUPPORTED))
    }

    /// Whether only an administrator may set clocks: yes.
    fn nvmlDeviceGetAPIRestriction(
        device: nvmlDevice_t, api: sys::nvmlRestrictedAPI_t, restricted: *mut sys::nvmlEnableState_t,
    ) {
        answer(device, restricted, |_| match api {
            0 => Ok(sys::nvmlEnableState_enum_NVML_FEATURE_ENABLED),
            1 => Err(code::NOT_SUPPORTED),
            _ => Err(code::INVALID_ARGUMENT),
        })
    }

    /// Video encoding: no session.
    fn nvmlDeviceGetEncoderStats(
        device: nvmlDevice_t, sessions: *mut c_uint, frames_per_second: *mut c_uint, latency_us: *mut c_uint,
    ) {
        initialised()?;
        if frames_per_second.is_null() || latency_us.is_null() {
            return Err(code::INVALID_ARGUMENT);
        }
        answer(device, sessions, |_| {
            put(frames_per_second, 0)?;
            put(latency_us, 0)?;
            Ok(0)
        })
    }

    /// Sessions of video encoding: none.
    fn nvmlDeviceGetEncoderSessions(
        device: nvmlDevice_t, count: *mut c_uint, out: *mut sys::nvmlEncoderSessionInfo_t,
    ) { on_device(device, |_| put_list(count, out, &[])) }

    /// Frame-buffer capture: no session.
    fn nvmlDeviceGetFBCStats(device: nvmlDevice_t, out: *mut sys::nvmlFBCStats_t) {
        answer(device, out, |_| Ok(sys::nvmlFBCStats_t { sessionsCount: 0, averageFPS: 0, averageLatency: 0 }))
    }

    /// Branch that the driver's version belongs to, for example `r580`.
    fn nvmlSystemGetDriverBranch(out: *mut sys::nvmlSystemDriverBranchInfo_t, length: c_uint) {
        initialised()?;
        super::check_version(out.cast_const().cast(), struct_version::<sys::nvmlSystemDriverBranchInfo_v1_t>(1))?;
        let snapshot = snapshot()?;
        let version = &snapshot.machine.state().driver.version;
        let branch = format!("r{}", version.split('.').next().unwrap_or_default());
        let room = length.min(c_uint::try_from((*out).branch.len()).unwrap_or(0));
        put_text((&raw mut (*out).branch).cast(), room, &branch)
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

fn unsupported_pair<T>(device: nvmlDevice_t, one: *mut T, two: *mut T) -> Outcome {
    initialised()?;
    if two.is_null() {
        return Err(code::INVALID_ARGUMENT);
    }
    // SAFETY: `answer` checks for NULL, and nothing is written.
    unsafe { answer(device, one, |_| Err(code::NOT_SUPPORTED)) }
}

fn unsupported<T>(out: *mut T) -> Outcome {
    snapshot()?;
    Err(if out.is_null() { code::INVALID_ARGUMENT } else { code::NOT_SUPPORTED })
}
