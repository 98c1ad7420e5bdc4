//! From belief to `GpuNodeStatus`, and whether it is worth a write. Pure: time is an argument.
//!
//! Condition `Ready`:
//!
//! | status | reason | when |
//! |---|---|---|
//! | True | `Healthy` | every device answers and reports no fault |
//! | False | `NoDevices` | the driver answers and counts no device |
//! | False | `LibraryMissing` | `libnvidia-ml.so.1` cannot be loaded |
//! | False | `DriverNotLoaded` | the kernel driver is not there |
//! | False | `DriverMismatch` | library and kernel driver differ in version |
//! | False | `DeviceLost` | the driver lost a device, or names one no more that had failed |
//! | False | `DeviceFaulty` | a device reports a fault, or a reading of one device failed |
//! | False | `Probing` | the first probe of a device is not over |
//! | False | `NotMetered` | nothing else is wrong, and receipts cannot be signed or stored |
//! | False | `Unmonitored` | a reading hangs or fails; devices are those of the last good reading, health `Unknown` |
//!
//! Condition `Probed`: whether every device was measured and is what it says ([`synthetic`](crate::synthetic)). A device
//! that failed its probe is `Failed`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use vendue_crds::conditions::{condition, find, gpu_node, is_true};
use vendue_crds::{
    GpuDevice, GpuHealth, GpuNodeStatus, GpuProbe, MigDevice, MigMode, NvLinks, PcieLink, ProbeResult,
};

use crate::fingerprint;
use crate::health::judge::{Cause, Judge, Opinion};
use crate::inventory::{DeviceReading, MigInstance, NodeInventory, Pcie};
use crate::model;
use crate::observe::{Observation, Problem};
use crate::synthetic::{Probes, told};

/// Reasons of the condition `Ready`, one sentence each.
pub mod reasons {
    /// Every device answers and reports no fault.
    pub const HEALTHY: &str = "Healthy";
    /// The driver answers and counts no device.
    pub const NO_DEVICES: &str = "NoDevices";
    /// The management library cannot be loaded.
    pub const LIBRARY_MISSING: &str = "LibraryMissing";
    /// The kernel driver is not there.
    pub const DRIVER_NOT_LOADED: &str = "DriverNotLoaded";
    /// Library and kernel driver differ in version.
    pub const DRIVER_MISMATCH: &str = "DriverMismatch";
    /// The driver lost a device.
    pub const DEVICE_LOST: &str = "DeviceLost";
    /// A device reports a fault, or a reading of one device failed.
    pub const DEVICE_FAULTY: &str = "DeviceFaulty";
    /// The first probe of a device is not over.
    pub const PROBING: &str = "Probing";
    /// Receipts cannot be signed or stored: what is used now would be paid by nobody.
    pub const NOT_METERED: &str = "NotMetered";
    /// A reading hangs or fails.
    pub const UNMONITORED: &str = "Unmonitored";
}

/// Most devices that the API takes.
const MAX_DEVICES: usize = 64;

/// Most MIG devices of one GPU that the API takes; cards have at most seven.
const MAX_MIG_DEVICES: usize = 16;

/// Longest message of a condition and longest reason of a device that the API takes; ours stay far below.
const MAX_TEXT: usize = 256;

/// The status that says what is believed. `previous` is what was last written, for the time of the last transition.
#[must_use]
pub fn build(
    observation: &Observation,
    judge: &Judge,
    probes: &Probes,
    previous: Option<&GpuNodeStatus>,
    generation: Option<i64>,
    now: Timestamp,
) -> GpuNodeStatus {
    let trusted = observation.problem.is_none();
    let inventory = observation.last_good.as_ref().map(|(inventory, _)| inventory);
    let (ready, reason, message) = verdict(observation, judge, probes);
    let (probed, probed_reason, probed_message) = told::condition(inventory, probes);
    let conditions = [
        condition(gpu_node::READY, ready, reason, cut(message), generation, now),
        condition(gpu_node::PROBED, probed, &probed_reason, cut(probed_message), generation, now),
    ];
    let devices = inventory.map(|i| devices(i, judge, probes, trusted)).unwrap_or_default();
    GpuNodeStatus {
        conditions: conditions.map(|condition| since(condition, previous)).to_vec(),
        observed_generation: generation,
        observed_at: observation.last_good.as_ref().map(|(_, at)| Time(*at)),
        driver_version: inventory.map(|i| i.driver_version.clone()),
        cuda_driver_version: inventory.and_then(|i| i.cuda_version.clone()),
        // Of what cannot be read at present, nothing can be sworn to.
        fingerprint: inventory.filter(|_| trusted).and_then(fingerprint::of),
        public_key: None,
        device_count: i32::try_from(devices.len()).unwrap_or(i32::MAX),
        devices,
    }
}

/// A node that cannot meter earns nothing, so it offers nothing: Ready is False while `Metered` says that nothing is stored.
/// Receipts that are stored and wait for the controller hold nothing back.
pub fn hold_back(
    status: &mut GpuNodeStatus,
    metered: &Condition,
    previous: Option<&GpuNodeStatus>,
    now: Timestamp,
) {
    let is_stored = metered.reason != gpu_node::reasons::NOT_STORED;
    if is_stored || !is_ready(status) {
        return;
    }
    let message = cut(format!("nothing is metered: {}", metered.message));
    let ready =
        condition(gpu_node::READY, false, reasons::NOT_METERED, message, status.observed_generation, now);
    status.conditions.retain(|condition| condition.type_ != gpu_node::READY);
    status.conditions.insert(0, since(ready, previous));
}

/// A condition whose status is the one that was written before keeps the time of its transition.
fn since(mut condition: Condition, previous: Option<&GpuNodeStatus>) -> Condition {
    let before = previous.and_then(|status| find(&status.conditions, &condition.type_));
    if let Some(before) = before.filter(|before| before.status == condition.status) {
        condition.last_transition_time = before.last_transition_time.clone();
    }
    condition
}

/// What a status is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// No write yet.
    Nothing,
    /// A write of the time only: the last one is old, and nothing else has changed.
    Time,
    /// A write of the whole status.
    Everything,
}

/// What `next` is worth: a write at once when it differs in more than its times, else one of its time when the last write
/// is `heartbeat` old.
#[must_use]
pub fn due(
    last: Option<(&GpuNodeStatus, Timestamp)>,
    next: &GpuNodeStatus,
    now: Timestamp,
    heartbeat: Duration,
) -> Due {
    let Some((last, written)) = last else { return Due::Everything };
    if timeless(last) != timeless(next) {
        return Due::Everything;
    }
    let age = Duration::try_from(now.duration_since(written)).unwrap_or_default();
    if age >= heartbeat { Due::Time } else { Due::Nothing }
}

/// Whether a status says Ready.
#[must_use]
pub fn is_ready(status: &GpuNodeStatus) -> bool {
    is_true(&status.conditions, gpu_node::READY)
}

/// Whether all that keeps a status from Ready are probes whose results are awaited.
#[must_use]
pub fn is_probing(status: &GpuNodeStatus) -> bool {
    find(&status.conditions, gpu_node::READY).is_some_and(|ready| ready.reason == reasons::PROBING)
}

fn timeless(status: &GpuNodeStatus) -> GpuNodeStatus {
    let mut status = status.clone();
    status.observed_at = None;
    for condition in &mut status.conditions {
        condition.last_transition_time = Time(Timestamp::UNIX_EPOCH);
    }
    status
}

fn verdict(observation: &Observation, judge: &Judge, probes: &Probes) -> (bool, &'static str, String) {
    match &observation.problem {
        Some(Problem::LibraryMissing(text)) => (false, reasons::LIBRARY_MISSING, text.clone()),
        Some(Problem::DriverNotLoaded(text)) => (false, reasons::DRIVER_NOT_LOADED, text.clone()),
        Some(Problem::DriverMismatch(text) | Problem::Replaced(text)) => {
            (false, reasons::DRIVER_MISMATCH, text.clone())
        }
        Some(Problem::ReadFailed(text)) => (false, reasons::UNMONITORED, text.clone()),
        // The driver of a node without persistence mode wakes each GPU at the first call, which takes seconds each.
        Some(Problem::Hung) if observation.last_good.is_none() => (
            false,
            reasons::UNMONITORED,
            "the first reading of the devices takes long; if it lasts, reboot the node".to_owned(),
        ),
        Some(Problem::Hung) => (
            false,
            reasons::UNMONITORED,
            "a call into the driver does not come back; reboot the node".to_owned(),
        ),
        None => observation.last_good.as_ref().map_or_else(
            || (false, reasons::UNMONITORED, "the devices were not read yet".to_owned()),
            |(inventory, _)| inventory_verdict(inventory, judge, probes),
        ),
    }
}

fn inventory_verdict(
    inventory: &NodeInventory,
    judge: &Judge,
    probes: &Probes,
) -> (bool, &'static str, String) {
    let missing: Vec<String> = judge.missing(inventory).map(|(uuid, _)| format!("GPU {uuid}")).collect();
    // What the driver counts and does not name are those that are missing by name, as far as anybody can tell.
    let unnamed = inventory.unknown.len().max(missing.len());
    let total = inventory.devices.len() + unnamed;
    if total == 0 {
        let message = format!("driver {} counts no GPU", inventory.driver_version);
        return (false, reasons::NO_DEVICES, message);
    }
    let judged: Vec<(&DeviceReading, Opinion)> =
        inventory.devices.iter().map(|d| (d, opinion(d, judge, probes))).collect();
    let lost = judged.iter().filter(|(_, o)| o.cause == Some(Cause::Lost)).map(|(d, _)| name(d));
    let unknown = inventory.unknown.iter().map(|d| format!("GPU {} ({})", d.index, d.error));
    let missing = missing.into_iter().filter(|_| inventory.unknown.is_empty());
    let lost: Vec<String> = lost.chain(unknown).chain(missing).collect();
    if !lost.is_empty() {
        return (false, reasons::DEVICE_LOST, format!("{} of {total} lost: {}", lost.len(), lost.join(", ")));
    }
    let faulty: Vec<String> = judged
        .iter()
        .filter_map(|(d, o)| o.reason.as_ref().map(|reason| format!("{} ({reason})", name(d))))
        .collect();
    if !faulty.is_empty() {
        let message = format!("{} of {total} faulty: {}", faulty.len(), faulty.join(", "));
        return (false, reasons::DEVICE_FAULTY, message);
    }
    if let Some(message) = told::waiting(inventory, probes) {
        return (false, reasons::PROBING, message);
    }
    (true, reasons::HEALTHY, format!("{total} GPUs answer and report no fault"))
}

/// What the driver says counts first; a device that nothing is known against and that failed its probe has failed.
fn opinion(device: &DeviceReading, judge: &Judge, probes: &Probes) -> Opinion {
    let opinion = judge.opinion(&device.identity.uuid);
    let probe = probes.get(&device.identity.uuid).filter(|probe| probe.result == ProbeResult::Failed);
    match probe {
        Some(probe) if opinion.health == GpuHealth::Healthy => {
            let message = probe.message.as_deref().unwrap_or(&probe.reason);
            Opinion { health: GpuHealth::Failed, reason: Some(format!("probe: {message}")), ..opinion }
        }
        _ => opinion,
    }
}

fn name(device: &DeviceReading) -> String {
    format!("GPU {} {}", device.identity.index, device.identity.uuid)
}

/// Devices as the API has them. A second device with the UUID of a first is left out: the API's list is keyed by
/// UUID, and a card that copies another's identity is not to be sold.
fn devices(inventory: &NodeInventory, judge: &Judge, probes: &Probes, trusted: bool) -> Vec<GpuDevice> {
    let mut seen = BTreeSet::new();
    inventory
        .devices
        .iter()
        .filter(|d| seen.insert(d.identity.uuid.as_str()))
        .take(MAX_DEVICES)
        .map(|d| GpuDevice { nvlinks: nvlinks(d, inventory), ..device(d, judge, probes, trusted) })
        .collect()
}

fn nvlinks(device: &DeviceReading, inventory: &NodeInventory) -> Vec<NvLinks> {
    let mut links: BTreeMap<&str, i32> = BTreeMap::new();
    for bus in &device.nvlink_peers {
        let peer = inventory.devices.iter().find(|d| d.identity.pci_bus_id == *bus);
        *links.entry(peer.map_or(bus.as_str(), |d| d.identity.uuid.as_str())).or_default() += 1;
    }
    links.into_iter().map(|(peer, links)| NvLinks { peer: peer.to_owned(), links }).collect()
}

fn mig_device(instance: &MigInstance) -> MigDevice {
    MigDevice {
        uuid: instance.uuid.clone(),
        // The profile is the last word of the name: `NVIDIA H100 80GB HBM3 MIG 1g.10gb`.
        profile: instance.name.split_whitespace().next_back().unwrap_or_default().to_owned(),
        memory_mib: instance.memory_bytes.map(|bytes| i64::try_from(bytes >> 20).unwrap_or(i64::MAX)),
    }
}

fn pcie(link: Pcie) -> PcieLink {
    let number = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
    PcieLink { generation: number(link.max_generation), width: number(link.max_width) }
}

fn device(reading: &DeviceReading, judge: &Judge, probes: &Probes, trusted: bool) -> GpuDevice {
    let id = &reading.identity;
    let (health, reason) = if trusted {
        let Opinion { health, reason, .. } = opinion(reading, judge, probes);
        (health, reason)
    } else {
        (GpuHealth::Unknown, Some("not read at present".to_owned()))
    };
    GpuDevice {
        uuid: id.uuid.clone(),
        index: i32::try_from(id.index).unwrap_or(i32::MAX),
        model: model::from_product_name(&id.product_name),
        product_name: id.product_name.clone(),
        memory_mib: i64::try_from(id.memory_bytes >> 20).unwrap_or(i64::MAX),
        pci_bus_id: id.pci_bus_id.clone(),
        mig_mode: match reading.mig_enabled {
            None => MigMode::NotSupported,
            Some(true) => MigMode::Enabled,
            Some(false) => MigMode::Disabled,
        },
        mig_devices: reading.mig.iter().take(MAX_MIG_DEVICES).map(mig_device).collect(),
        pcie: reading.pcie.map(pcie),
        numa_node: reading.numa_node.and_then(|n| i32::try_from(n).ok()),
        nvlinks: vec![],
        health,
        health_reason: reason.map(cut),
        probe: Some(probe(told::of(probes, &id.uuid))),
    }
}

fn probe(probe: GpuProbe) -> GpuProbe {
    GpuProbe { message: probe.message.map(cut), ..probe }
}

fn cut(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(MAX_TEXT) {
        text.truncate(end);
    }
    text
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
