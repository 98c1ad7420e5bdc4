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
mod tests {
    use super::*;
    use crate::health::judge::{Lasting, Times};
    use crate::health::xid::Policy;
    use crate::inventory::{DeviceFault, DeviceIdentity, UnknownDevice};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("time")
    }

    fn reading(index: u32, fault: Option<DeviceFault>) -> DeviceReading {
        let identity = DeviceIdentity {
            index,
            uuid: format!("GPU-{index}"),
            product_name: "NVIDIA H100 80GB HBM3".to_owned(),
            memory_bytes: 81_559 << 20,
            pci_bus_id: format!("00000000:1{index}:00.0"),
            minor: None,
        };
        DeviceReading { mig_enabled: Some(false), fault, ..DeviceReading::of(identity) }
    }

    /// What follows from a first reading.
    fn judged(observation: &Observation) -> Judge {
        let mut judge = Judge::new(Policy::default(), Times::default(), vec![]);
        for device in observation.last_good.iter().flat_map(|(inventory, _)| &inventory.devices) {
            judge.reading(device, Duration::ZERO);
        }
        judge
    }

    fn build(
        observation: &Observation,
        previous: Option<&GpuNodeStatus>,
        generation: Option<i64>,
        now: Timestamp,
    ) -> GpuNodeStatus {
        super::build(observation, &judged(observation), &passed(observation), previous, generation, now)
    }

    fn passed_one() -> GpuProbe {
        GpuProbe::without_figures(ProbeResult::Passed, "Passed", "80384 MiB".to_owned())
    }

    /// Every device passed.
    fn passed(observation: &Observation) -> Probes {
        let devices = observation.last_good.iter().flat_map(|(inventory, _)| &inventory.devices);
        devices.map(|d| (d.identity.uuid.clone(), passed_one())).collect()
    }

    fn observation(devices: Vec<DeviceReading>) -> Observation {
        let inventory = NodeInventory {
            driver_version: "580.95.05".to_owned(),
            cuda_version: Some("13.0".to_owned()),
            devices,
            unknown: Vec::new(),
        };
        Observation { last_good: Some((inventory, at(100))), problem: None }
    }

    fn gpu(index: i32, health: GpuHealth, reason: Option<&str>) -> GpuDevice {
        GpuDevice {
            uuid: format!("GPU-{index}"),
            index,
            model: "H100".to_owned(),
            product_name: "NVIDIA H100 80GB HBM3".to_owned(),
            memory_mib: 81_559,
            pci_bus_id: format!("00000000:1{index}:00.0"),
            mig_mode: MigMode::Disabled,
            mig_devices: vec![],
            pcie: None,
            numa_node: None,
            nvlinks: vec![],
            health,
            health_reason: reason.map(str::to_owned),
            probe: Some(passed_one()),
        }
    }

    fn ready(status: &str, reason: &str, message: &str, since: i64) -> Condition {
        named("Ready", status, reason, message, since)
    }

    fn named(type_: &str, status: &str, reason: &str, message: &str, since: i64) -> Condition {
        Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            observed_generation: Some(1),
            last_transition_time: Time(at(since)),
        }
    }

    fn ready_of(observation: &Observation) -> (String, String, String) {
        let condition = build(observation, None, Some(1), at(100)).conditions.remove(0);
        (condition.status, condition.reason, condition.message)
    }

    fn words(status: &str, reason: &str, message: &str) -> (String, String, String) {
        (status.to_owned(), reason.to_owned(), message.to_owned())
    }

    #[test]
    fn healthy_devices() {
        let observed = observation(vec![reading(0, None), reading(1, None)]);
        let status = build(&observed, None, Some(1), at(100));
        let expected = GpuNodeStatus {
            conditions: vec![
                ready("True", "Healthy", "2 GPUs answer and report no fault", 100),
                named("Probed", "True", "Passed", "2 GPUs measure as they say", 100),
            ],
            observed_generation: Some(1),
            observed_at: Some(Time(at(100))),
            driver_version: Some("580.95.05".to_owned()),
            cuda_driver_version: Some("13.0".to_owned()),
            fingerprint: observed.last_good.as_ref().and_then(|(inventory, _)| fingerprint::of(inventory)),
            public_key: None,
            device_count: 2,
            devices: vec![gpu(0, GpuHealth::Healthy, None), gpu(1, GpuHealth::Healthy, None)],
        };
        assert_eq!(status, expected);
        assert!(status.fingerprint.is_some());
    }

    #[test]
    fn a_hang_keeps_the_devices_as_unknown_and_the_time_of_the_last_good_reading() {
        let mut observation = observation(vec![reading(0, None)]);
        let before = build(&observation, None, Some(1), at(100));
        observation.problem = Some(Problem::Hung);
        let status = build(&observation, Some(&before), Some(1), at(106));
        let message = "a call into the driver does not come back; reboot the node";
        let expected = GpuNodeStatus {
            conditions: vec![ready("False", "Unmonitored", message, 106), before.conditions[1].clone()],
            fingerprint: None,
            devices: vec![gpu(0, GpuHealth::Unknown, Some("not read at present"))],
            ..before
        };
        assert_eq!(status, expected);
        let later = build(&observation, Some(&status), Some(1), at(110));
        assert_eq!(later.conditions, expected.conditions, "the transition keeps its time");
    }

    #[test]
    fn faults_of_devices() {
        let observation = observation(vec![
            reading(0, Some(DeviceFault::Lost)),
            reading(1, Some(DeviceFault::RowRemapPending)),
            reading(2, Some(DeviceFault::Unreadable("timeout".to_owned()))),
        ]);
        let status = build(&observation, None, Some(1), at(100));
        let expected = vec![
            gpu(0, GpuHealth::Failed, Some("the driver lost the device")),
            gpu(1, GpuHealth::Degraded, Some("damaged memory rows are replaced at the next reset")),
            gpu(2, GpuHealth::Unknown, Some("timeout")),
        ];
        assert_eq!(status.devices, expected);
        assert_eq!(ready_of(&observation), words("False", "DeviceLost", "1 of 3 lost: GPU 0 GPU-0"));
    }

    #[test]
    fn reasons_say_what_is_wrong() {
        assert_eq!(
            ready_of(&observation(Vec::new())),
            words("False", "NoDevices", "driver 580.95.05 counts no GPU")
        );
        let faulty = observation(vec![reading(0, None), reading(1, Some(DeviceFault::RowRemapFailed))]);
        let message = "1 of 2 faulty: GPU 1 GPU-1 (damaged memory rows could not be replaced)";
        assert_eq!(ready_of(&faulty), words("False", "DeviceFaulty", message));
        let mut unknown = observation(vec![reading(0, None)]);
        if let Some((inventory, _)) = &mut unknown.last_good {
            inventory.unknown = vec![UnknownDevice { index: 1, error: "lost".to_owned() }];
        }
        assert_eq!(ready_of(&unknown), words("False", "DeviceLost", "1 of 2 lost: GPU 1 (lost)"));
        for (problem, reason) in [
            (Problem::LibraryMissing("text".to_owned()), "LibraryMissing"),
            (Problem::DriverNotLoaded("text".to_owned()), "DriverNotLoaded"),
            (Problem::DriverMismatch("text".to_owned()), "DriverMismatch"),
            (Problem::ReadFailed("text".to_owned()), "Unmonitored"),
        ] {
            let observation = Observation { last_good: None, problem: Some(problem) };
            assert_eq!(ready_of(&observation), words("False", reason, "text"));
        }
    }

    #[test]
    fn a_call_that_hangs_is_told_apart_from_a_slow_first_reading() {
        let mut seen = observation(vec![reading(0, None)]);
        seen.problem = Some(Problem::Hung);
        let message = "a call into the driver does not come back; reboot the node";
        assert_eq!(ready_of(&seen), words("False", "Unmonitored", message));
        seen.last_good = None;
        let message = "the first reading of the devices takes long; if it lasts, reboot the node";
        assert_eq!(ready_of(&seen), words("False", "Unmonitored", message));
    }

    #[test]
    fn a_failed_device_that_is_named_no_more_keeps_the_node_from_ready() {
        let lasting =
            |n: u32| Lasting { uuid: format!("GPU-{n}"), cause: Cause::Lost, energy_millijoules: None };
        let told = |observation: &Observation, lasting: Vec<Lasting>| {
            let judge = Judge::new(Policy::default(), Times::default(), lasting);
            let status = super::build(observation, &judge, &passed(observation), None, Some(1), at(100));
            let ready = &status.conditions[0];
            (ready.status.clone(), ready.reason.clone(), ready.message.clone())
        };
        let mut seen = observation(vec![reading(0, None)]);
        assert_eq!(told(&seen, vec![lasting(1)]), words("False", "DeviceLost", "1 of 2 lost: GPU GPU-1"));
        assert_eq!(told(&observation(vec![]), vec![lasting(1)]).1, "DeviceLost", "the only one");
        // What the driver counts without a name is the same device, not another one.
        if let Some((inventory, _)) = &mut seen.last_good {
            inventory.unknown = vec![UnknownDevice { index: 1, error: "lost".to_owned() }];
        }
        assert_eq!(told(&seen, vec![lasting(1)]), words("False", "DeviceLost", "1 of 2 lost: GPU 1 (lost)"));
    }

    #[test]
    fn a_node_whose_receipts_cannot_be_stored_offers_nothing_until_they_can() {
        let healthy = build(&observation(vec![reading(0, None)]), None, Some(1), at(100));
        let told = |reason: &str, previous: &GpuNodeStatus, second: i64| {
            let seen = observation(vec![reading(0, None)]);
            let mut status = build(&seen, Some(previous), Some(1), at(second));
            let metered =
                condition(gpu_node::METERED, false, reason, "the disk is full", Some(1), at(second));
            hold_back(&mut status, &metered, Some(previous), at(second));
            status
        };
        let held = told("NotStored", &healthy, 200);
        let ready = &held.conditions[0];
        assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "NotMetered"));
        assert_eq!(ready.message, "nothing is metered: the disk is full");
        assert_eq!((ready.last_transition_time.0, held.conditions.len()), (at(200), 2));
        assert!(!is_ready(&held) && held.devices == healthy.devices);
        let later = told("NotStored", &held, 300);
        assert_eq!(later.conditions[0].last_transition_time.0, at(200), "the transition keeps its time");
        assert!(is_ready(&told("NotDelivered", &later, 400)), "what is stored is not lost");
        // What is wrong with the devices is said first.
        let mut lost = build(&observation(vec![reading(0, Some(DeviceFault::Lost))]), None, Some(1), at(1));
        let metered = condition(gpu_node::METERED, false, "NotStored", "full", Some(1), at(1));
        hold_back(&mut lost, &metered, None, at(1));
        assert_eq!(lost.conditions[0].reason, "DeviceLost");
    }

    #[test]
    fn a_copied_uuid_is_left_out_and_long_messages_are_cut() {
        let mut copy = reading(1, None);
        copy.identity.uuid = "GPU-0".to_owned();
        let status = build(&observation(vec![reading(0, None), copy]), None, Some(1), at(1));
        assert_eq!((status.device_count, status.devices.len()), (1, 1));
        let lost = (0..64).map(|i| reading(i, Some(DeviceFault::Lost))).collect();
        assert_eq!(ready_of(&observation(lost)).2.chars().count(), 256);
    }

    #[test]
    fn a_node_waits_for_its_first_probes_and_one_that_failed_is_a_fault() {
        let seen = observation(vec![reading(0, None), reading(1, None)]);
        let status = |probes: &Probes| super::build(&seen, &judged(&seen), probes, None, Some(1), at(100));
        let conditions = |status: &GpuNodeStatus| {
            status.conditions.iter().map(|c| (c.status.clone(), c.reason.clone())).collect::<Vec<_>>()
        };
        let words = |status: &str, reason: &str| (status.to_owned(), reason.to_owned());
        let mut probes = Probes::from([("GPU-0".to_owned(), passed_one())]);
        let waits = status(&probes);
        assert_eq!(conditions(&waits), [words("False", "Probing"), words("False", "Pending")]);
        assert_eq!(waits.devices[1].health, GpuHealth::Healthy);
        assert_eq!(waits.devices[1].probe.as_ref().map(|p| p.result), Some(ProbeResult::NotRun));

        let message = format!("memory bandwidth: {}", "x".repeat(300));
        let slow = GpuProbe::without_figures(ProbeResult::Failed, "BandwidthLow", message);
        probes.insert("GPU-1".to_owned(), slow);
        let failed = status(&probes);
        assert_eq!(conditions(&failed), [words("False", "DeviceFaulty"), words("False", "BandwidthLow")]);
        assert_eq!(failed.devices[1].health, GpuHealth::Failed);
        assert_eq!(failed.devices[0].health, GpuHealth::Healthy);
        let reason = failed.devices[1].health_reason.clone().unwrap_or_default();
        assert!(reason.starts_with("probe: memory bandwidth: xx"), "{reason}");
        let texts = failed.devices[1].probe.iter().filter_map(|p| p.message.clone());
        let texts = texts.chain(failed.conditions.iter().map(|c| c.message.clone()));
        assert!(texts.chain([reason]).all(|text| text.chars().count() <= 256));

        // What could not be measured is for the Provision to decide.
        let none = GpuProbe::without_figures(ProbeResult::NotRun, "NoCudaDriver", "load".to_owned());
        probes.insert("GPU-1".to_owned(), none);
        assert_eq!(conditions(&status(&probes)), [words("True", "Healthy"), words("False", "NoCudaDriver")]);
    }

    #[test]
    fn the_drivers_word_comes_before_the_probes() {
        let lost = observation(vec![reading(0, Some(DeviceFault::Lost))]);
        let slow = GpuProbe::without_figures(ProbeResult::Failed, "ClockLow", "clock".to_owned());
        let probes = Probes::from([("GPU-0".to_owned(), slow)]);
        let status = super::build(&lost, &judged(&lost), &probes, None, Some(1), at(100));
        assert_eq!(status.devices[0].health_reason.as_deref(), Some("the driver lost the device"));
        assert_eq!(status.conditions[0].reason, "DeviceLost");
    }

    #[test]
    fn writes_on_change_and_by_heartbeat_only() {
        let heartbeat = Duration::from_secs(15);
        let mut seen = observation(vec![reading(0, None)]);
        let written = build(&seen, None, Some(1), at(100));
        assert_eq!(due(None, &written, at(100), heartbeat), Due::Everything);
        let same = build(&seen, Some(&written), Some(1), at(110));
        let last = Some((&written, at(100)));
        let due = |next, second| due(last, next, at(second), heartbeat);
        assert_eq!(due(&same, 114), Due::Nothing, "a newer time is no change");
        assert_eq!(due(&same, 115), Due::Time);
        assert_eq!(due(&same, 90), Due::Nothing, "a clock that went back");
        seen.problem = Some(Problem::Hung);
        let changed = build(&seen, Some(&written), Some(1), at(101));
        assert_eq!(due(&changed, 101), Due::Everything);
    }
}
