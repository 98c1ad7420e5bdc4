//! GPU performance monitoring: what was busy between two samples. Hopper and later.
//!
//! A sample notes device and time; the metrics are averages over the device's history between two of them.

use std::collections::BTreeMap;
use std::ffi::c_uint;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::session::{View, answer, initialised, on_any, on_device, snapshot};
use super::{Outcome, code, exports, put, sys};
use crate::profile::Architecture;
use sys::{nvmlDevice_t, nvmlGpmMetric_t, nvmlGpmSample_t, nvmlReturn_t};

/// More samples than any program needs; a program that leaks them is told.
const MAX_SAMPLES: usize = 4096;

/// Marks handles of samples, so that a stray pointer is noticed.
const SAMPLE_TAG: usize = 0x5644_4750 << 16;

#[derive(Clone, Copy)]
struct Sample {
    device: u32,
    instance: Option<u32>,
    at_ns: u64,
}

struct Samples {
    last: usize,
    samples: BTreeMap<usize, Option<Sample>>,
}

static SAMPLES: Mutex<Samples> = Mutex::new(Samples { last: 0, samples: BTreeMap::new() });

fn lock() -> MutexGuard<'static, Samples> {
    // A panic under the lock leaves nothing half-written.
    SAMPLES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn sample_id(sample: nvmlGpmSample_t) -> Result<usize, nvmlReturn_t> {
    let address = sample.addr();
    if address & !0xFFFF_usize != SAMPLE_TAG {
        return Err(code::INVALID_ARGUMENT);
    }
    let id = address & 0xFFFF;
    if lock().samples.contains_key(&id) { Ok(id) } else { Err(code::INVALID_ARGUMENT) }
}

exports! {
    /// Whether the device has performance monitoring.
    fn nvmlGpmQueryDeviceSupport(device: nvmlDevice_t, out: *mut sys::nvmlGpmSupport_t) {
        initialised()?;
        super::check_version(out.cast_const().cast(), sys::NVML_GPM_SUPPORT_VERSION)?;
        answer(device, out, |v| Ok(sys::nvmlGpmSupport_t {
            version: sys::NVML_GPM_SUPPORT_VERSION,
            isSupportedDevice: c_uint::from(supported(v).is_ok()),
        }))
    }

    /// A new, empty sample.
    fn nvmlGpmSampleAlloc(out: *mut nvmlGpmSample_t) {
        snapshot()?;
        if out.is_null() {
            return Err(code::INVALID_ARGUMENT);
        }
        let mut samples = lock();
        if samples.samples.len() >= MAX_SAMPLES {
            return Err(code::INSUFFICIENT_RESOURCES);
        }
        let mut id = samples.last;
        while samples.samples.contains_key(&id) {
            id = (id + 1) & 0xFFFF;
        }
        samples.last = (id + 1) & 0xFFFF;
        samples.samples.insert(id, None);
        put(out, std::ptr::without_provenance_mut(SAMPLE_TAG | id))
    }

    /// Ends a sample.
    fn nvmlGpmSampleFree(sample: nvmlGpmSample_t) {
        initialised()?;
        let id = sample_id(sample)?;
        lock().samples.remove(&id);
        Ok(())
    }

    /// Takes a sample of a device or MIG device.
    fn nvmlGpmSampleGet(device: nvmlDevice_t, sample: nvmlGpmSample_t) {
        initialised()?;
        let id = sample_id(sample)?;
        on_any(device, |v| {
            supported(v)?;
            match v.instance {
                Some((instance, _)) => take(id, v, Some(instance.gpu_instance_id)),
                // Under MIG only instances are measured.
                None => v.without_mig().and_then(|()| take(id, v, None)),
            }
        })
    }

    /// Takes a sample of a GPU instance.
    fn nvmlGpmMigSampleGet(device: nvmlDevice_t, instance: c_uint, sample: nvmlGpmSample_t) {
        initialised()?;
        let id = sample_id(sample)?;
        on_device(device, |v| {
            supported(v)?;
            v.moment.instance(instance).ok_or(code::INVALID_ARGUMENT)?;
            take(id, v, Some(instance))
        })
    }

    /// Metrics of the time between two samples of one device; each has its own return code.
    fn nvmlGpmMetricsGet(out: *mut sys::nvmlGpmMetricsGet_t) {
        initialised()?;
        super::check_version(out.cast_const().cast(), sys::NVML_GPM_METRICS_GET_VERSION)?;
        let snapshot = snapshot()?;
        let (first, second) = (taken((*out).sample1)?, taken((*out).sample2)?);
        if (first.device, first.instance) != (second.device, second.instance) || second.at_ns <= first.at_ns {
            return Err(code::INVALID_ARGUMENT);
        }
        let count = usize::try_from((*out).numMetrics).unwrap_or(usize::MAX);
        if count > (*out).metrics.len() {
            return Err(code::INVALID_ARGUMENT);
        }
        let (machine, span) = (&snapshot.machine, first.at_ns..second.at_ns);
        let busy = machine.busy_percent(first.device, first.instance, span.clone());
        let kernels = machine.kernel_percent(first.device, first.instance, span);
        // Not a slice of the whole array: an older caller's is shorter, and only so many entries are promised.
        let metrics = (&raw mut (*out).metrics).cast::<nvmlGpmMetric_t>();
        for metric in std::slice::from_raw_parts_mut(metrics, count) {
            let (code, value) = metric_value(metric.metricId, busy, kernels)
                .map_or_else(|e| (e, 0.0), |v| (code::SUCCESS, v));
            metric.nvmlReturn = code;
            metric.value = value;
        }
        Ok(())
    }
}

fn supported(view: &View<'_>) -> Outcome {
    match view.profile.architecture {
        Architecture::Hopper | Architecture::Blackwell => Ok(()),
        Architecture::Turing | Architecture::Ampere | Architecture::Ada => Err(code::NOT_SUPPORTED),
    }
}

fn take(id: usize, view: &View<'_>, instance: Option<u32>) -> Outcome {
    let sample = Sample { device: view.device.index, instance, at_ns: view.moment.now_ns };
    lock().samples.insert(id, Some(sample));
    Ok(())
}

fn taken(sample: nvmlGpmSample_t) -> Result<Sample, nvmlReturn_t> {
    let id = sample_id(sample)?;
    lock().samples.get(&id).copied().flatten().ok_or(code::INVALID_ARGUMENT)
}

/// Simulated work keeps half the warps of a busy SM active, half its time in tensor pipes, and half the memory bus; for
/// each percent of the SMs it sends 10 MiB/s over PCIe and gets 20.
fn metric_value(id: c_uint, busy: f64, kernels: f64) -> Result<f64, nvmlReturn_t> {
    match id {
        sys::nvmlGpmMetricId_t_NVML_GPM_METRIC_GRAPHICS_UTIL => Ok(kernels),
        sys::nvmlGpmMetricId_t_NVML_GPM_METRIC_SM_UTIL => Ok(busy),
        sys::nvmlGpmMetricId_t_NVML_GPM_METRIC_SM_OCCUPANCY
        | sys::nvmlGpmMetricId_t_NVML_GPM_METRIC_ANY_TENSOR_UTIL
        | sys::nvmlGpmMetricId_t_NVML_GPM_METRIC_HMMA_TENSOR_UTIL
        | sys::nvmlGpmMetricId_t_NVML_GPM_METRIC_DRAM_BW_UTIL => Ok(busy / 2.0),
        sys::nvmlGpmMetricId_t_NVML_GPM_METRIC_PCIE_TX_PER_SEC => Ok(busy * 10.0),
        sys::nvmlGpmMetricId_t_NVML_GPM_METRIC_PCIE_RX_PER_SEC => Ok(busy * 20.0),
        sys::nvmlGpmMetricId_t_NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC
        | sys::nvmlGpmMetricId_t_NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC => Ok(0.0),
        id if id > 0 && id < sys::nvmlGpmMetricId_t_NVML_GPM_METRIC_MAX => Err(code::NOT_SUPPORTED),
        _ => Err(code::INVALID_ARGUMENT),
    }
}
