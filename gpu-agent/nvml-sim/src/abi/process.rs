//! Process tables.

use std::ffi::{c_uint, c_ulonglong};

use super::session::{View, answer, on_device};
use super::{Outcome, code, exports, put_list, struct_version, sys};
use crate::source;
use sys::{nvmlDevice_t, nvmlProcessInfo_v1_t, nvmlProcessInfo_v2_t};

/// Says that a process belongs to no MIG instance.
const NO_INSTANCE: c_uint = c_uint::MAX;

exports! {
    /// Processes that compute, current layout.
    fn nvmlDeviceGetComputeRunningProcesses_v3(
        device: nvmlDevice_t, count: *mut c_uint, out: *mut nvmlProcessInfo_v2_t,
    ) { compute(device, count, out, info_v2) }

    /// Second layout, which is the same.
    fn nvmlDeviceGetComputeRunningProcesses_v2(
        device: nvmlDevice_t, count: *mut c_uint, out: *mut nvmlProcessInfo_v2_t,
    ) { compute(device, count, out, info_v2) }

    /// First layout, without MIG instances.
    fn nvmlDeviceGetComputeRunningProcesses(
        device: nvmlDevice_t, count: *mut c_uint, out: *mut nvmlProcessInfo_v1_t,
    ) { compute(device, count, out, info_v1) }

    /// Processes that draw: none.
    fn nvmlDeviceGetGraphicsRunningProcesses_v3(
        device: nvmlDevice_t, count: *mut c_uint, out: *mut nvmlProcessInfo_v2_t,
    ) { on_device(device, |_| put_list(count, out, &[])) }

    /// Second layout.
    fn nvmlDeviceGetGraphicsRunningProcesses_v2(
        device: nvmlDevice_t, count: *mut c_uint, out: *mut nvmlProcessInfo_v2_t,
    ) { on_device(device, |_| put_list(count, out, &[])) }

    /// First layout.
    fn nvmlDeviceGetGraphicsRunningProcesses(
        device: nvmlDevice_t, count: *mut c_uint, out: *mut nvmlProcessInfo_v1_t,
    ) { on_device(device, |_| put_list(count, out, &[])) }

    /// Processes that compute through MPS: none.
    fn nvmlDeviceGetMPSComputeRunningProcesses_v3(
        device: nvmlDevice_t, count: *mut c_uint, out: *mut nvmlProcessInfo_v2_t,
    ) { on_device(device, |_| put_list(count, out, &[])) }

    /// Shares of the processes, samples newer than a time.
    fn nvmlDeviceGetProcessUtilization(
        device: nvmlDevice_t,
        out: *mut sys::nvmlProcessUtilizationSample_t,
        count: *mut c_uint,
        last_seen_us: c_ulonglong,
    ) {
        let now = now_us();
        on_device(device, |v| {
            if v.device.processes.is_empty() || last_seen_us >= now {
                return Err(code::NOT_FOUND);
            }
            let sample = |p: &crate::state::Process| sys::nvmlProcessUtilizationSample_t {
                pid: p.pid,
                timeStamp: now,
                smUtil: p.sm_percent.min(100),
                memUtil: 0,
                encUtil: 0,
                decUtil: 0,
            };
            put_list(count, out, &v.device.processes.iter().map(sample).collect::<Vec<_>>())
        })
    }

    /// The same, with a versioned struct.
    fn nvmlDeviceGetProcessesUtilizationInfo(device: nvmlDevice_t, info: *mut sys::nvmlProcessesUtilizationInfo_v1_t) {
        if info.is_null() {
            return Err(code::INVALID_ARGUMENT);
        }
        if (*info).version != struct_version::<sys::nvmlProcessesUtilizationInfo_v1_t>(1) {
            return Err(code::VERSION_MISMATCH);
        }
        let now = now_us();
        let sample = |p: &crate::state::Process| sys::nvmlProcessUtilizationInfo_v1_t {
            timeStamp: now,
            pid: p.pid,
            smUtil: p.sm_percent.min(100),
            memUtil: 0,
            encUtil: 0,
            decUtil: 0,
            jpgUtil: 0,
            ofaUtil: 0,
        };
        on_device(device, |v| {
            if (*info).procUtilArray.is_null() {
                // The sizing call always asks for room, also when there is nothing: clients take success for an error.
                let room = c_uint::try_from(v.device.processes.len()).map_err(|_| code::UNKNOWN)?;
                (*info).processSamplesCount = room.max(1);
                return Err(code::INSUFFICIENT_SIZE);
            }
            if v.device.processes.is_empty() || (*info).lastSeenTimeStamp >= now {
                return Err(code::NOT_FOUND);
            }
            let samples: Vec<_> = v.device.processes.iter().map(sample).collect();
            put_list(&raw mut (*info).processSamplesCount, (*info).procUtilArray, &samples)
        })
    }

    /// Whether the driver keeps accounts of ended processes: no.
    fn nvmlDeviceGetAccountingMode(device: nvmlDevice_t, mode: *mut sys::nvmlEnableState_t) {
        answer(device, mode, |_| Ok(sys::nvmlEnableState_enum_NVML_FEATURE_DISABLED))
    }
}

fn compute<T: Copy>(
    device: nvmlDevice_t,
    count: *mut c_uint,
    out: *mut T,
    layout: fn(&crate::state::Process) -> T,
) -> Outcome {
    // SAFETY: `put_list` checks both pointers; the caller promises as much room as it states in `count`.
    on_device(device, |v: &View<'_>| unsafe {
        put_list(count, out, &v.device.processes.iter().map(layout).collect::<Vec<_>>())
    })
}

fn info_v1(p: &crate::state::Process) -> nvmlProcessInfo_v1_t {
    nvmlProcessInfo_v1_t { pid: p.pid, usedGpuMemory: p.memory_mib.saturating_mul(1 << 20) }
}

fn info_v2(p: &crate::state::Process) -> nvmlProcessInfo_v2_t {
    nvmlProcessInfo_v2_t {
        pid: p.pid,
        usedGpuMemory: p.memory_mib.saturating_mul(1 << 20),
        gpuInstanceId: NO_INSTANCE,
        computeInstanceId: NO_INSTANCE,
    }
}

fn now_us() -> c_ulonglong {
    source::now_unix_ms().saturating_mul(1000)
}
