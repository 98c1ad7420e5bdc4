//! `vendue-gpu-agent probe`: reads the devices through NVML, measures them through CUDA, says what it found. Runs as the
//! agent's child, and for people.
//!
//! * Inputs: the two libraries, which device. Output: [`Probed`] for each.
//! * Invariant: a device that somebody uses by NVML's word is not touched, whoever asks.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};
use serde::{Deserialize, Serialize};
use vendue_crds::{GpuProbe, ProbeResult};

use super::book::unfit;
use super::cuda::{Cuda, CudaError, code};
use super::judge::{Claim, judge};
use super::measure::measure;
use super::reasons;
use super::table::Table;
use crate::inventory::DeviceReading;
use crate::probe::nvml::NvmlProbe;
use crate::probe::{DeviceProbe, ProbeError};

/// Why nothing was probed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The devices cannot be read.
    #[error(transparent)]
    Read(#[from] ProbeError),
    /// There is no such device.
    #[error("--gpu is {given}; accepted: {}", if known.is_empty() { "nothing, for there is no GPU".to_owned() } else { known.join(", ") })]
    NoSuchDevice {
        /// What was asked for.
        given: String,
        /// What there is.
        known: Vec<String>,
    },
    /// The table of models cannot be read.
    #[error("read the table of models: {0}")]
    Table(#[from] serde_json::Error),
    /// The agent has ended before its child began.
    #[error("process {0}, which started this one, has ended")]
    Orphan(i32),
}

/// A device and what its probe found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Probed {
    /// The device.
    pub uuid: String,
    /// Its name.
    pub product_name: String,
    /// What was found.
    pub probe: GpuProbe,
}

/// Lets the kernel end this process when the one that started it ends.
///
/// # Errors
/// When that has happened already.
pub fn end_with(parent: i32) -> Result<(), CommandError> {
    // Where the kernel refuses, the parent's own end still kills the child in all but one case: when the parent is killed.
    if let Err(error) = set_pdeathsig(Signal::SIGKILL) {
        tracing::warn!(%error, "this process may outlive the one that started it");
    }
    if getppid() == Pid::from_raw(parent) { Ok(()) } else { Err(CommandError::Orphan(parent)) }
}

/// Probes one device or all.
///
/// # Errors
/// When the devices cannot be read or the one is not there. What a probe finds is no error.
pub fn probe(
    nvml: Option<PathBuf>,
    cuda: Option<&Path>,
    gpu: Option<&str>,
) -> Result<Vec<Probed>, CommandError> {
    let table = Table::built_in()?;
    let devices = NvmlProbe::new(nvml).read()?.devices;
    if let Some(given) = gpu.filter(|uuid| devices.iter().all(|d| d.identity.uuid != *uuid)) {
        let known = devices.into_iter().map(|d| d.identity.uuid).collect();
        return Err(CommandError::NoSuchDevice { given: given.to_owned(), known });
    }
    let wanted = |device: &&DeviceReading| gpu.is_none_or(|uuid| device.identity.uuid == uuid);
    let probed = |device: &DeviceReading| Probed {
        uuid: device.identity.uuid.clone(),
        product_name: device.identity.product_name.clone(),
        probe: probe_device(&table, cuda, device),
    };
    // Two devices with one UUID are one: the first.
    Ok(devices.iter().filter(wanted).take(if gpu.is_some() { 1 } else { usize::MAX }).map(probed).collect())
}

fn probe_device(table: &Table, library: Option<&Path>, device: &DeviceReading) -> GpuProbe {
    if let Some((reason, message)) = unfit(device) {
        return GpuProbe::without_figures(ProbeResult::NotRun, reason, message);
    }
    let id = &device.identity;
    let claim = Claim { product_name: &id.product_name, memory_bytes: id.memory_bytes };
    let mut card = match Cuda::open(library, &id.uuid) {
        Ok(card) => card,
        Err(error) => return not_opened(&error),
    };
    match measure(&mut card, salt()) {
        Ok(measured) => judge(table, claim, &measured),
        Err(error) => failed(&error),
    }
}

/// What it means that a device cannot be opened.
fn not_opened(error: &CudaError) -> GpuProbe {
    let reason = match error {
        CudaError::Load { .. } | CudaError::Initialise { .. } => reasons::NO_CUDA_DRIVER,
        CudaError::NotVisible(_) => reasons::NOT_VISIBLE,
        CudaError::Call { code: code::OUT_OF_MEMORY | code::DEVICE_UNAVAILABLE, .. } => reasons::BUSY,
        CudaError::Call { .. } => return failed(error),
    };
    GpuProbe::without_figures(ProbeResult::NotRun, reason, error.to_string())
}

fn failed(error: &CudaError) -> GpuProbe {
    GpuProbe::without_figures(ProbeResult::Failed, reasons::CALL_FAILED, error.to_string())
}

/// Nothing depends on it but that patterns differ from one run to the next.
fn salt() -> u32 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.subsec_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_opened_is_told_apart() {
        let call = |code| CudaError::Call { operation: "open the device", code, name: "N".to_owned() };
        let load = CudaError::Load { library: "l".into(), detail: "d".to_owned() };
        let init = CudaError::Initialise { code: 100, name: "CUDA_ERROR_NO_DEVICE".to_owned() };
        for (error, result, reason) in [
            (load, ProbeResult::NotRun, "NoCudaDriver"),
            (init, ProbeResult::NotRun, "NoCudaDriver"),
            (CudaError::NotVisible("GPU-1".to_owned()), ProbeResult::NotRun, "NotVisible"),
            (call(2), ProbeResult::NotRun, "Busy"),
            (call(46), ProbeResult::NotRun, "Busy"),
            (call(719), ProbeResult::Failed, "CallFailed"),
        ] {
            let probe = not_opened(&error);
            assert_eq!((probe.result, probe.reason.as_str()), (result, reason), "{error}");
        }
        assert_eq!(failed(&call(719)).message.as_deref(), Some("open the device: N (719)"));
    }
}
