//! The processes of one device, as the driver lists them.
//!
//! What compute and what graphics processes use is one list: the driver names a process in both when it does both, each
//! time with all its memory. What the driver does not tell is left out, and is no error.

use std::collections::BTreeMap;
use std::sync::Arc;

use nvml_wrapper::Device;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::{ProcessInfo, ProcessUtilizationSample};

use super::reading::or_older;
use crate::inventory::DeviceProcess;

/// How often a list that grows while it is read is asked for again.
const TRIES: usize = 3;

/// The processes, and the time of the newest measurement of their use, which the next call is to be given.
pub(super) fn processes(device: &Device<'_>, newest_us: u64) -> (Option<Arc<[DeviceProcess]>>, u64) {
    let compute = || or_older(device.running_compute_processes(), || device.running_compute_processes_v2());
    let graphics =
        || or_older(device.running_graphics_processes(), || device.running_graphics_processes_v2());
    let Some(compute) = whole(compute) else { return (None, newest_us) };
    let graphics = whole(graphics).unwrap_or_default();
    let used = device.process_utilization_stats(newest_us).unwrap_or_default();
    let newest_us = used.iter().map(|sample| sample.timestamp).max().unwrap_or(newest_us);
    (Some(joined(compute.iter().chain(&graphics), &used).into()), newest_us)
}

fn whole(ask: impl Fn() -> Result<Vec<ProcessInfo>, NvmlError>) -> Option<Vec<ProcessInfo>> {
    for _ in 0..TRIES {
        match ask() {
            Ok(list) => return Some(list),
            Err(NvmlError::InsufficientSize(_)) => {}
            Err(_) => return None,
        }
    }
    None
}

fn joined<'a>(
    listed: impl Iterator<Item = &'a ProcessInfo>,
    used: &[ProcessUtilizationSample],
) -> Vec<DeviceProcess> {
    let shares = shares(used);
    let mut all: BTreeMap<(u32, Option<u32>), DeviceProcess> = BTreeMap::new();
    for info in listed {
        let memory_bytes = match info.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        };
        let (pid, gpu_instance, sm_percent) =
            (info.pid, info.gpu_instance_id, shares.get(&info.pid).copied());
        let process = DeviceProcess { pid, gpu_instance, memory_bytes, sm_percent };
        let known = all.entry((pid, gpu_instance)).or_insert(process);
        known.memory_bytes = known.memory_bytes.max(memory_bytes);
    }
    all.into_values().collect()
}

/// The mean of each process's samples. Drivers that have nothing to say have been seen to say more than a hundred.
fn shares(used: &[ProcessUtilizationSample]) -> BTreeMap<u32, u32> {
    let mut sums: BTreeMap<u32, (u32, u32)> = BTreeMap::new();
    for sample in used.iter().filter(|sample| sample.sm_util <= 100) {
        let (sum, count) = sums.entry(sample.pid).or_default();
        (*sum, *count) = (sum.saturating_add(sample.sm_util), count.saturating_add(1));
    }
    sums.into_iter().map(|(pid, (sum, count))| (pid, sum / count)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(pid: u32, used_gpu_memory: UsedGpuMemory) -> ProcessInfo {
        ProcessInfo { pid, used_gpu_memory, gpu_instance_id: None, compute_instance_id: None }
    }

    fn sample(pid: u32, sm_util: u32) -> ProcessUtilizationSample {
        ProcessUtilizationSample { pid, timestamp: 1, sm_util, mem_util: 0, enc_util: 0, dec_util: 0 }
    }

    #[test]
    fn a_process_that_is_listed_twice_counts_once_and_nonsense_not_at_all() {
        let used = UsedGpuMemory::Used;
        let listed =
            [info(2, used(7)), info(1, used(5)), info(2, used(7)), info(3, UsedGpuMemory::Unavailable)];
        let samples = [sample(1, 20), sample(1, 30), sample(1, 4_000_000), sample(2, 101), sample(9, 5)];
        let process = |pid, memory_bytes, sm_percent| DeviceProcess {
            pid,
            gpu_instance: None,
            memory_bytes,
            sm_percent,
        };
        let expected = [process(1, Some(5), Some(25)), process(2, Some(7), None), process(3, None, None)];
        assert_eq!(joined(listed.iter(), &samples), expected);
    }

    #[test]
    fn a_list_that_grows_is_asked_for_again_but_not_for_ever() {
        let asked = std::cell::Cell::new(0);
        let grows = |until: usize| {
            asked.set(0);
            whole(|| {
                asked.set(asked.get() + 1);
                if asked.get() < until { Err(NvmlError::InsufficientSize(None)) } else { Ok(vec![]) }
            })
        };
        assert_eq!((grows(3).map(|list| list.len()), asked.get()), (Some(0), 3));
        assert_eq!((grows(9).map(|list| list.len()), asked.get()), (None, 3));
        assert!(whole(|| Err(NvmlError::NotSupported)).is_none());
    }
}
