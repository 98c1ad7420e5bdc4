//! What conditions, devices and writes follow from what was seen.

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
    let lasting = |n: u32| Lasting { uuid: format!("GPU-{n}"), cause: Cause::Lost, energy_millijoules: None };
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
        let metered = condition(gpu_node::METERED, false, reason, "the disk is full", Some(1), at(second));
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
