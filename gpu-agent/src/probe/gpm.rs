//! What devices did between two looks, by NVML's performance monitoring (GPM): Hopper and later.
//!
//! * Inputs: at each look, the devices and GPU instances that have it. Output: their [`Activity`] since the look before.
//! * Invariants: a figure is of exactly the time between two looks in succession that both worked; what was not looked at is
//!   forgotten; each sample is freed, once, and before the library is let go.
//!
//! A driver may refuse samples at any time (<https://github.com/NVIDIA/DCGM/issues/214>). What did not work is left alone for a
//! while: a source of activity that came and went with each look would cut receipts into windows of a second.

// A sample lives from one look to the next, longer than the borrow of the library that nvml-wrapper's own type needs.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings as sys;

use crate::inventory::Activity;

/// Looks for which a device is left alone after a failure.
const REST: u32 = 60;

/// Where a percentage is still one: the driver's arithmetic may end a little above a hundred.
const MAX_PERCENT: f64 = 101.0;

const MIB: f64 = 1_048_576.0;

/// What is asked for, in the order in which [`activity`] takes the answers.
const METRICS: [sys::nvmlGpmMetricId_t; 6] = [
    sys::nvmlGpmMetricId_t_NVML_GPM_METRIC_GRAPHICS_UTIL,
    sys::nvmlGpmMetricId_t_NVML_GPM_METRIC_SM_UTIL,
    sys::nvmlGpmMetricId_t_NVML_GPM_METRIC_ANY_TENSOR_UTIL,
    sys::nvmlGpmMetricId_t_NVML_GPM_METRIC_DRAM_BW_UTIL,
    sys::nvmlGpmMetricId_t_NVML_GPM_METRIC_PCIE_TX_PER_SEC,
    sys::nvmlGpmMetricId_t_NVML_GPM_METRIC_PCIE_RX_PER_SEC,
];

/// What is looked at.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part {
    /// The whole device.
    Device,
    /// The GPU instance of this id.
    Instance(u32),
}

/// The samples of all devices, by UUID: another MIG layout has other instances, also under the same ids.
pub(super) struct Gpm {
    nvml: Arc<Nvml>,
    kept: BTreeMap<String, Kept>,
    look: u64,
}

/// What is kept of a device or instance.
#[derive(Default)]
struct Kept {
    before: Option<Sample>,
    /// The sample before that one, to be filled again.
    spare: Option<Sample>,
    /// Looks for which it is left alone.
    rest: u32,
    look: u64,
}

/// A sample in the driver's library.
struct Sample {
    nvml: Arc<Nvml>,
    handle: sys::nvmlGpmSample_t,
}

// SAFETY: NVML's entry points may be called from any thread, and a sample is used by whoever owns it only.
unsafe impl Send for Sample {}

impl Gpm {
    /// Nothing was looked at yet.
    pub fn new(nvml: Arc<Nvml>) -> Self {
        Self { nvml, kept: BTreeMap::new(), look: 0 }
    }

    /// A look at all devices begins: what the one before did not see is forgotten.
    pub fn begin(&mut self) {
        let before = self.look;
        self.kept.retain(|_, kept| kept.look == before);
        self.look += 1;
    }

    /// What a part of a device did since the look before; nothing is known at the first one, and after a failure.
    pub fn activity(&mut self, device: &Device<'_>, part: Part, uuid: &str) -> Activity {
        let kept = self.kept.entry(uuid.to_owned()).or_default();
        kept.look = self.look;
        if kept.rest > 0 {
            kept.rest -= 1;
            return Activity::default();
        }
        match kept.next(&self.nvml, device, part) {
            Ok(activity) => activity,
            Err(error) => {
                tracing::debug!(uuid, %error, "no performance monitoring for {REST} looks");
                *kept = Kept { rest: REST, look: self.look, ..Kept::default() };
                Activity::default()
            }
        }
    }
}

impl Kept {
    fn next(&mut self, nvml: &Arc<Nvml>, device: &Device<'_>, part: Part) -> Result<Activity, NvmlError> {
        let sample = self.spare.take().map_or_else(|| Sample::new(nvml), Ok)?;
        sample.fill(device, part)?;
        let Some(before) = self.before.take() else {
            self.before = Some(sample);
            return Ok(Activity::default());
        };
        let answers = between(nvml, before.handle, sample.handle)?;
        (self.before, self.spare) = (Some(sample), Some(before));
        Ok(activity(answers))
    }
}

impl Sample {
    fn new(nvml: &Arc<Nvml>) -> Result<Self, NvmlError> {
        let symbol = nvml_sym(nvml.lib().nvmlGpmSampleAlloc.as_ref())?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the pointer points to our own variable.
        nvml_try(unsafe { symbol(&mut handle) })?;
        Ok(Self { nvml: Arc::clone(nvml), handle })
    }

    fn fill(&self, device: &Device<'_>, part: Part) -> Result<(), NvmlError> {
        let lib = self.nvml.lib();
        // SAFETY: device and sample are handles of this library, which lives as long as the sample.
        let code = unsafe {
            match part {
                Part::Device => nvml_sym(lib.nvmlGpmSampleGet.as_ref())?(device.handle(), self.handle),
                Part::Instance(id) => {
                    nvml_sym(lib.nvmlGpmMigSampleGet.as_ref())?(device.handle(), id, self.handle)
                }
            }
        };
        nvml_try(code)
    }
}

impl Drop for Sample {
    fn drop(&mut self) {
        if let Ok(free) = &self.nvml.lib().nvmlGpmSampleFree {
            // SAFETY: the sample is of this library, and nobody else has its handle. An error has no use here.
            let _ = unsafe { free(self.handle) };
        }
    }
}

/// Each metric between two samples that are filled; `None` where the driver has no answer.
fn between(
    nvml: &Nvml,
    before: sys::nvmlGpmSample_t,
    after: sys::nvmlGpmSample_t,
) -> Result<[Option<f64>; METRICS.len()], NvmlError> {
    let symbol = nvml_sym(nvml.lib().nvmlGpmMetricsGet.as_ref())?;
    // SAFETY: the struct is plain numbers and pointers, for which zero is a value.
    let mut request: sys::nvmlGpmMetricsGet_t = unsafe { std::mem::zeroed() };
    request.version = sys::NVML_GPM_METRICS_GET_VERSION;
    request.numMetrics = METRICS.len() as u32;
    (request.sample1, request.sample2) = (before, after);
    request.metrics.iter_mut().zip(METRICS).for_each(|(metric, id)| metric.metricId = id);
    // SAFETY: the pointer points to our own struct, which says how many metrics it asks for; both samples live.
    nvml_try(unsafe { symbol(&mut request) })?;
    let mut answers = [None; METRICS.len()];
    for (answer, metric) in answers.iter_mut().zip(&request.metrics) {
        *answer = Some(metric.value).filter(|_| metric.nvmlReturn == 0);
    }
    Ok(answers)
}

fn activity([engine, sm, tensor, memory, sent, received]: [Option<f64>; METRICS.len()]) -> Activity {
    Activity {
        engine_millionths: engine.and_then(millionths),
        sm_millionths: sm.and_then(millionths),
        tensor_millionths: tensor.and_then(millionths),
        memory_millionths: memory.and_then(millionths),
        pcie_sent_bytes_per_second: sent.and_then(bytes),
        pcie_received_bytes_per_second: received.and_then(bytes),
    }
}

/// Of a percentage. A driver that does not know says NaN; what is no percentage is not believed.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn millionths(percent: f64) -> Option<u32> {
    (0.0..MAX_PERCENT).contains(&percent).then(|| (percent.min(100.0) * 10_000.0).round() as u32)
}

/// Of MiB, in which NVML counts.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn bytes(mib: f64) -> Option<u64> {
    (mib.is_finite() && mib >= 0.0).then(|| (mib * MIB).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_figure_is_left_out() {
        let known = [Some(100.4), Some(30.0), Some(0.0), Some(33.333_333), Some(1.5), Some(0.0)];
        let expected = Activity {
            engine_millionths: Some(1_000_000),
            sm_millionths: Some(300_000),
            tensor_millionths: Some(0),
            memory_millionths: Some(333_333),
            pcie_sent_bytes_per_second: Some(3 << 19),
            pcie_received_bytes_per_second: Some(0),
        };
        assert_eq!(activity(known), expected);
        let nonsense = [None, Some(f64::NAN), Some(-1.0), Some(4e6), Some(f64::INFINITY), Some(-0.5)];
        assert_eq!(activity(nonsense), Activity::default());
    }
}
