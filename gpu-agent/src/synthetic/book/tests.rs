//! What is probed when, and what is said meanwhile.

use super::super::told;
use super::*;
use crate::inventory::{DeviceFault, DeviceIdentity, Sensors};
use crate::pods::api::{ContainerDevices, ContainerResources, ListPodResourcesResponse, PodResources};
use crate::pods::attribution::{Known, attribute};
use crate::pods::slices::DeviceNames;

const GPU: &str = "GPU-0";

fn device(index: u32) -> DeviceReading {
    let identity = DeviceIdentity {
        index,
        uuid: format!("GPU-{index}"),
        product_name: "NVIDIA L4".to_owned(),
        memory_bytes: 1 << 34,
        pci_bus_id: String::new(),
        minor: Some(index),
    };
    let sensors =
        Sensors { energy_millijoules: Some(1_000), memory_used_bytes: Some(0), ..Sensors::default() };
    DeviceReading { compute_processes: Some(0), sensors, ..DeviceReading::of(identity) }
}

fn node(count: u32) -> NodeInventory {
    let driver_version = "580.95.05".to_owned();
    NodeInventory { driver_version, devices: (0..count).map(device).collect(), ..NodeInventory::default() }
}

fn changed(change: impl FnOnce(&mut DeviceReading)) -> NodeInventory {
    let mut node = node(1);
    change(&mut node.devices[0]);
    node
}

fn held(uuids: &[&str]) -> Attribution {
    let pod = |uuid: &&str| {
        let devices = vec![ContainerDevices {
            resource_name: "nvidia.com/gpu".to_owned(),
            device_ids: vec![(*uuid).to_owned()],
        }];
        let container = ContainerResources { name: "main".to_owned(), devices, dynamic_resources: vec![] };
        PodResources { name: "p".to_owned(), namespace: "ns".to_owned(), containers: vec![container] }
    };
    let known: Vec<_> = (0..4).map(|n| Known { uuid: format!("GPU-{n}"), minor: Some(n) }).collect();
    let list = ListPodResourcesResponse { pod_resources: uuids.iter().map(pod).collect() };
    attribute(&list, &known, &DeviceNames::default())
}

fn probe(result: ProbeResult, reason: &str) -> GpuProbe {
    GpuProbe::without_figures(result, reason, "text".to_owned())
}

fn passed() -> GpuProbe {
    probe(ProbeResult::Passed, reasons::PASSED)
}

fn second(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn at() -> Timestamp {
    Timestamp::from_second(1_000).expect("time")
}

/// A book that has just probed the only device of a node.
fn probed(probe: GpuProbe) -> Book {
    let mut book = Book::default();
    book.see(&node(1));
    assert_eq!(book.next(&node(1), Some(&held(&[])), second(0)).as_deref(), Some(GPU));
    book.take(&node(1), GPU, probe, second(1), at());
    book
}

fn reason(book: &Book, node: &NodeInventory, holders: Option<&Attribution>) -> String {
    told::of(&book.probes(node, holders), GPU).reason
}

#[test]
fn idle_devices_are_probed_one_after_the_other() {
    let (mut book, node, nobody) = (Book::default(), node(3), held(&[]));
    let mut order = vec![];
    while let Some(uuid) = book.next(&node, Some(&nobody), second(0)) {
        assert_eq!(
            told::of(&book.probes(&node, Some(&nobody)), &uuid).message.as_deref(),
            Some("the probe runs")
        );
        book.take(&node, &uuid, passed(), second(0), at());
        order.push(uuid);
    }
    assert_eq!(order, ["GPU-0", "GPU-1", "GPU-2"]);
    let first = told::of(&book.probes(&node, Some(&nobody)), GPU);
    assert_eq!((first.result, first.at), (ProbeResult::Passed, Some(Time(at()))));
}

#[test]
fn devices_that_somebody_has_or_may_have_are_left_alone() {
    let nobody = held(&[]);
    let mut claimed = held(&[]);
    claimed.unresolved.push(crate::pods::attribution::Claim {
        name: "c".to_owned(),
        namespace: "ns".to_owned(),
        driver: "gpu.nvidia.com".to_owned(),
        pool: "n1".to_owned(),
        device: "gpu-0".to_owned(),
    });
    let cases = [
        (node(1), None, reasons::PENDING),
        (node(1), Some(held(&[GPU])), reasons::ALLOCATED),
        (node(1), Some(claimed), reasons::BUSY),
        (changed(|d| d.compute_processes = Some(1)), Some(nobody.clone()), reasons::BUSY),
        (changed(|d| d.sensors.memory_used_bytes = Some(1 << 30)), Some(nobody.clone()), reasons::BUSY),
        (changed(|d| d.fault = Some(DeviceFault::Lost)), Some(nobody.clone()), reasons::FAULTY),
        (changed(|d| d.mig_enabled = Some(true)), Some(nobody), reasons::MIG_ENABLED),
    ];
    for (node, holders, expected) in cases {
        let mut book = Book::default();
        book.see(&node);
        assert_eq!(book.next(&node, holders.as_ref(), second(0)), None, "{expected}");
        assert_eq!(reason(&book, &node, holders.as_ref()), expected);
    }
    // One that is held does not keep another from its probe.
    let (mut book, others) = (Book::default(), held(&["GPU-0", "GPU-1"]));
    assert_eq!(book.next(&node(3), Some(&others), second(0)).as_deref(), Some("GPU-2"));
}

#[test]
fn a_result_holds_while_the_device_is_the_same_and_was_not_reset() {
    let nobody = held(&[]);
    let again = |node: &NodeInventory| {
        let mut book = probed(passed());
        book.see(node);
        book.next(node, Some(&nobody), second(10)).is_some()
    };
    assert!(!again(&changed(|d| d.sensors.energy_millijoules = Some(2_000))));
    assert!(!again(&changed(|d| d.nvlink_peers = vec!["bus".to_owned()])), "links are not measured");
    assert!(!again(&changed(|d| d.sensors.energy_millijoules = None)), "a counter that cannot be read");
    assert!(again(&changed(|d| d.sensors.energy_millijoules = Some(999))), "a reset");
    assert!(again(&changed(|d| d.identity.uuid = "GPU-9".to_owned())));
    assert!(again(&changed(|d| d.identity.product_name = "NVIDIA L40S".to_owned())));
    assert!(again(&changed(|d| d.identity.memory_bytes += 1)));
    let mut driver = node(1);
    driver.driver_version = "590.10.01".to_owned();
    assert!(again(&driver));
}

#[test]
fn a_device_that_was_reset_under_a_tenant_waits_for_its_end() {
    let mut book = probed(passed());
    let reset = changed(|d| d.sensors.energy_millijoules = Some(1));
    book.see(&reset);
    assert_eq!(book.next(&reset, Some(&held(&[GPU])), second(10)), None);
    assert_eq!(reason(&book, &reset, Some(&held(&[GPU]))), reasons::ALLOCATED);
    assert_eq!(book.next(&reset, Some(&held(&[])), second(11)).as_deref(), Some(GPU));
}

#[test]
fn an_agent_that_is_started_anew_goes_on_with_what_was_kept() {
    let kept = probed(passed()).entries().clone();
    let mut book = Book::new(kept.clone());
    let busy = changed(|d| (d.compute_processes, d.sensors.energy_millijoules) = (Some(1), Some(5_000)));
    book.see(&busy);
    assert_eq!(book.next(&busy, Some(&held(&[GPU])), second(0)), None);
    assert_eq!(reason(&book, &busy, Some(&held(&[GPU]))), reasons::PASSED);
    // Reset while no agent ran.
    let mut book = Book::new(kept);
    let reset = changed(|d| d.sensors.energy_millijoules = Some(10));
    book.see(&reset);
    assert_eq!(book.next(&reset, Some(&held(&[])), second(0)).as_deref(), Some(GPU));
}

#[test]
fn what_did_not_pass_is_tried_again_after_a_pause_that_grows() {
    let (node, nobody) = (node(1), held(&[]));
    let slow = || probe(ProbeResult::Failed, reasons::CLOCK_LOW);
    let mut book = probed(slow());
    let mut now = 1;
    for pause in [600, 1_200, 2_400, 4_800, 9_600, 19_200, 21_600, 21_600] {
        assert_eq!(book.next(&node, Some(&nobody), second(now + pause - 1)), None, "{pause}");
        assert_eq!(reason(&book, &node, Some(&nobody)), reasons::CLOCK_LOW, "what was found stays");
        now += pause;
        assert_eq!(book.next(&node, Some(&nobody), second(now)).as_deref(), Some(GPU), "{pause}");
        assert_eq!(reason(&book, &node, Some(&nobody)), reasons::CLOCK_LOW, "also while it is probed again");
        book.take(&node, GPU, slow(), second(now), at());
    }
    // Success ends it, and the next failure begins anew.
    book.take(&node, GPU, passed(), second(now), at());
    assert_eq!(book.next(&node, Some(&nobody), second(now + 1_000_000)), None);
}

#[test]
fn a_probe_that_found_the_device_in_use_is_tried_again_soon() {
    let (node, nobody) = (node(1), held(&[]));
    let mut book = probed(probe(ProbeResult::NotRun, reasons::BUSY));
    assert_eq!(book.next(&node, Some(&nobody), second(10)), None);
    assert_eq!(reason(&book, &node, Some(&nobody)), reasons::BUSY);
    assert_eq!(book.next(&node, Some(&nobody), second(11)).as_deref(), Some(GPU));
    assert_eq!(reason(&book, &node, Some(&nobody)), reasons::PENDING, "the probe runs");
}

#[test]
fn a_device_that_was_in_use_is_told_so_over_a_restart_until_kubelet_has_said_more() {
    let (node, nobody) = (node(1), held(&[]));
    for found in [reasons::BUSY, reasons::ALLOCATED] {
        let mut book = Book::new(probed(probe(ProbeResult::NotRun, found)).entries().clone());
        book.see(&node);
        assert_eq!(book.next(&node, None, second(0)), None);
        assert_eq!(reason(&book, &node, None), found, "a node that was Ready stays so");
        assert_eq!(reason(&book, &node, Some(&held(&[GPU]))), reasons::ALLOCATED);
        assert_eq!(book.next(&node, Some(&nobody), second(0)).as_deref(), Some(GPU));
    }
}

#[test]
fn a_device_that_went_into_slices_says_so_and_keeps_its_result() {
    let mut book = probed(passed());
    let sliced = changed(|d| d.mig_enabled = Some(true));
    book.see(&sliced);
    assert_eq!(reason(&book, &sliced, Some(&held(&[]))), reasons::MIG_ENABLED);
    assert_eq!(book.next(&sliced, Some(&held(&[])), second(10)), None);
    assert_eq!(reason(&book, &node(1), Some(&held(&[]))), reasons::PASSED);
}

#[test]
fn the_book_stays_small() {
    let mut book = Book::default();
    for n in 0..300 {
        let node = changed(|d| d.identity.uuid = format!("GPU-{n}"));
        book.see(&node);
        book.take(&node, &format!("GPU-{n}"), passed(), second(0), at());
    }
    assert!(book.entries().len() <= MAX_ENTRIES + 1, "{}", book.entries().len());
    assert!(book.energy.len() <= MAX_ENTRIES + 1);
}
