//! Process tables and accounts.

use std::ffi::{c_uint, c_ulonglong};

use super::session::{View, answer, initialised, on_any, on_device};
use super::{Outcome, code, exports, put_list, struct_version, sys};
use crate::machine::Running;
use sys::{nvmlDevice_t, nvmlProcessInfo_v1_t, nvmlProcessInfo_v2_t};

/// Says that a process belongs to no MIG instance.
const NO_INSTANCE: c_uint = c_uint::MAX;

/// Processes whose accounts a driver keeps.
const ACCOUNTS: c_uint = 4000;

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
    ) { on_any(device, |_| put_list(count, out, &[])) }

    /// Second layout.
    fn nvmlDeviceGetGraphicsRunningProcesses_v2(
        device: nvmlDevice_t, count: *mut c_uint, out: *mut nvmlProcessInfo_v2_t,
    ) { on_any(device, |_| put_list(count, out, &[])) }

    /// First layout.
    fn nvmlDeviceGetGraphicsRunningProcesses(
        device: nvmlDevice_t, count: *mut c_uint, out: *mut nvmlProcessInfo_v1_t,
    ) { on_any(device, |_| put_list(count, out, &[])) }

    /// Processes that compute through MPS: none.
    fn nvmlDeviceGetMPSComputeRunningProcesses_v3(
        device: nvmlDevice_t, count: *mut c_uint, out: *mut nvmlProcessInfo_v2_t,
    ) { on_any(device, |_| put_list(count, out, &[])) }

    /// Second layout.
    fn nvmlDeviceGetMPSComputeRunningProcesses_v2(
        device: nvmlDevice_t, count: *mut c_uint, out: *mut nvmlProcessInfo_v2_t,
    ) { on_any(device, |_| put_list(count, out, &[])) }

    /// First layout.
    fn nvmlDeviceGetMPSComputeRunningProcesses(
        device: nvmlDevice_t, count: *mut c_uint, out: *mut nvmlProcessInfo_v1_t,
    ) { on_any(device, |_| put_list(count, out, &[])) }

    /// Processes with their memory; mode 0 is compute, 1 graphics, 2 MPS.
    fn nvmlDeviceGetRunningProcessDetailList(device: nvmlDevice_t, list: *mut sys::nvmlProcessDetailList_t) {
        initialised()?;
        super::check_version(list.cast_const().cast(), struct_version::<sys::nvmlProcessDetailList_v1_t>(1))?;
        let mode = (*list).mode;
        if mode > 2 {
            return Err(code::INVALID_ARGUMENT);
        }
        on_any(device, |v| {
            let running = if mode == 0 { v.processes() } else { Vec::new() };
            let details: Vec<_> = running.iter().map(detail).collect();
            put_list(&raw mut (*list).numProcArrayEntries, (*list).procArray, &details)
        })
    }

    /// Shares of the processes, samples newer than a time. Not measured under MIG.
    fn nvmlDeviceGetProcessUtilization(
        device: nvmlDevice_t,
        out: *mut sys::nvmlProcessUtilizationSample_t,
        count: *mut c_uint,
        last_seen_us: c_ulonglong,
    ) {
        initialised()?;
        if count.is_null() {
            return Err(code::INVALID_ARGUMENT);
        }
        on_device(device, |v| {
            let now = v.now_us();
            let sample = |p: &Running| sys::nvmlProcessUtilizationSample_t {
                pid: p.pid,
                timeStamp: now,
                smUtil: p.sm_percent,
                memUtil: 0,
                encUtil: 0,
                decUtil: 0,
            };
            put_list(count, out, &sampled(v, last_seen_us)?.iter().map(sample).collect::<Vec<_>>())
        })
    }

    /// The same, with a versioned struct.
    fn nvmlDeviceGetProcessesUtilizationInfo(device: nvmlDevice_t, info: *mut sys::nvmlProcessesUtilizationInfo_v1_t) {
        initialised()?;
        let version = struct_version::<sys::nvmlProcessesUtilizationInfo_v1_t>(1);
        super::check_version(info.cast_const().cast(), version)?;
        on_device(device, |v| {
            if (*info).procUtilArray.is_null() {
                v.without_mig()?;
                // The sizing call always asks for room, also when there is nothing: clients take success for an error.
                let room = c_uint::try_from(v.processes().len()).map_err(|_| code::UNKNOWN)?;
                (*info).processSamplesCount = room.max(1);
                return Err(code::INSUFFICIENT_SIZE);
            }
            let now = v.now_us();
            let sample = |p: &Running| sys::nvmlProcessUtilizationInfo_v1_t {
                timeStamp: now,
                pid: p.pid,
                smUtil: p.sm_percent,
                memUtil: 0,
                encUtil: 0,
                decUtil: 0,
                jpgUtil: 0,
                ofaUtil: 0,
            };
            let samples: Vec<_> = sampled(v, (*info).lastSeenTimeStamp)?.iter().map(sample).collect();
            put_list(&raw mut (*info).processSamplesCount, (*info).procUtilArray, &samples)
        })
    }

    /// Whether the driver keeps accounts of processes: no, as on a new installation.
    fn nvmlDeviceGetAccountingMode(device: nvmlDevice_t, mode: *mut sys::nvmlEnableState_t) {
        answer(device, mode, |_| Ok(sys::nvmlEnableState_enum_NVML_FEATURE_DISABLED))
    }

    /// Processes with accounts: none while the mode is off.
    fn nvmlDeviceGetAccountingPids(device: nvmlDevice_t, count: *mut c_uint, pids: *mut c_uint) {
        on_device(device, |_| put_list(count, pids, &[]))
    }

    /// Account of one process: none while the mode is off.
    fn nvmlDeviceGetAccountingStats(device: nvmlDevice_t, _pid: c_uint, stats: *mut sys::nvmlAccountingStats_t) {
        answer(device, stats, |_| Err(code::NOT_FOUND))
    }

    /// Number of accounts that the driver would keep.
    fn nvmlDeviceGetAccountingBufferSize(device: nvmlDevice_t, size: *mut c_uint) {
        answer(device, size, |_| Ok(ACCOUNTS))
    }
}

/// Processes with a sample newer than a time.
fn sampled(view: &View<'_>, last_seen_us: u64) -> Result<Vec<Running>, sys::nvmlReturn_t> {
    view.without_mig()?;
    let processes = view.processes();
    if processes.is_empty() || last_seen_us >= view.now_us() {
        return Err(code::NOT_FOUND);
    }
    Ok(processes)
}

fn compute<T: Copy>(
    device: nvmlDevice_t,
    count: *mut c_uint,
    out: *mut T,
    layout: fn(&Running) -> T,
) -> Outcome {
    // SAFETY: `put_list` checks both pointers; the caller promises as much room as it states in `count`.
    on_any(device, |v| unsafe { put_list(count, out, &v.processes().iter().map(layout).collect::<Vec<_>>()) })
}

fn info_v1(p: &Running) -> nvmlProcessInfo_v1_t {
    nvmlProcessInfo_v1_t { pid: p.pid, usedGpuMemory: p.memory_bytes }
}

/// The simulated compute instance of a GPU instance is its only one, with id 0.
fn instances(p: &Running) -> (c_uint, c_uint) {
    p.gpu_instance.map_or((NO_INSTANCE, NO_INSTANCE), |id| (id, 0))
}

fn info_v2(p: &Running) -> nvmlProcessInfo_v2_t {
    let (gpu, compute) = instances(p);
    nvmlProcessInfo_v2_t {
        pid: p.pid,
        usedGpuMemory: p.memory_bytes,
        gpuInstanceId: gpu,
        computeInstanceId: compute,
    }
}

fn detail(p: &Running) -> sys::nvmlProcessDetail_v1_t {
    let (gpu, compute) = instances(p);
    sys::nvmlProcessDetail_v1_t {
        pid: p.pid,
        usedGpuMemory: p.memory_bytes,
        gpuInstanceId: gpu,
        computeInstanceId: compute,
        usedGpuCcProtectedMemory: 0,
    }
}
