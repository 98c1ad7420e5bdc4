//! From simulated GPUs to receipts that somebody else verifies: what is metered is what the cards used.

// Helpers of tests fail by panicking too; the lint's own exception covers only the test functions.
#![allow(clippy::expect_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vendue_gpu_agent::inventory::NodeInventory;
use vendue_gpu_agent::meter::{Clocks, Keeper, Sights, Store, options};
use vendue_gpu_agent::pods::api::{
    ContainerDevices, ContainerResources, ListPodResourcesResponse, PodResources,
};
use vendue_gpu_agent::pods::attribution::{Attribution, Known, attribute};
use vendue_gpu_agent::pods::slices::DeviceNames;
use vendue_gpu_agent::probe::DeviceProbe;
use vendue_gpu_agent::probe::nvml::NvmlProbe;
use vendue_nvml_sim::clock::Clock;
use vendue_nvml_sim::fleet::Fleet;
use vendue_nvml_sim::load::Work;
use vendue_receipts::{AwardId, BootId, NodeKey, Record, verify, verify_node};

const SECOND: u64 = 1_000_000_000;
const AWARD: AwardId = AwardId([0, 0, 0, 0, 0, 0, 0, 1]);

fn library() -> PathBuf {
    let exe = std::env::current_exe().expect("path of the test");
    let name = "libvendue_nvml_sim.so";
    exe.ancestors().skip(1).map(|dir| dir.join(name)).find(|path| path.exists()).expect("built library")
}

/// Who has the first device.
fn held(inventory: &NodeInventory, namespace: Option<&str>) -> Attribution {
    let uuid = inventory.devices[0].identity.uuid.clone();
    let pods = namespace.map(|namespace| PodResources {
        name: "w".to_owned(),
        namespace: namespace.to_owned(),
        containers: vec![ContainerResources {
            name: "c".to_owned(),
            devices: vec![ContainerDevices {
                resource_name: "nvidia.com/gpu".to_owned(),
                device_ids: vec![uuid.clone()],
            }],
            dynamic_resources: vec![],
        }],
    });
    let list = ListPodResourcesResponse { pod_resources: pods.into_iter().collect() };
    attribute(&list, &[Known { uuid, minor: None }], &DeviceNames::default())
}

/// All records of a store, chain by chain, as a receiver gets them.
fn records(dir: &Path) -> BTreeMap<AwardId, Vec<Record>> {
    let text = std::fs::read_to_string(dir.join("node.key")).expect("key");
    let bytes: Vec<u8> =
        (0..32).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).expect("digits")).collect();
    let key = NodeKey::from_bytes(&bytes.try_into().expect("32 bytes")).expect("key");
    let (mut store, _) = Store::open(options(dir.join("receipts")), key).expect("store");
    let mut all: BTreeMap<AwardId, Vec<Record>> = BTreeMap::new();
    loop {
        let Some((name, from)) = store.chains().undelivered().next() else { return all };
        let next = store.chains().records(name, from, 100).expect("records");
        let last = next.last().expect("a record").sequence;
        all.entry(name.award).or_default().extend(next);
        store.chains_mut().acknowledge(name, last + 1).expect("acknowledge");
    }
}

#[test]
fn receipts_hold_the_energy_and_the_time_that_the_simulator_knows() {
    let dir = tempfile::tempdir().expect("dir");
    let start = 1_800_000_000 * SECOND;
    let fleet = Fleet::create(&dir.path().join("state.json"), &[("H100", 2)], "meter", Clock::stopped(start))
        .expect("fleet");
    let mut probe = NvmlProbe::new(Some(fleet.install(&library()).expect("install")));
    let keeper = Keeper::start(dir.path(), false).expect("keeper");
    let mut sights = Sights::new(BootId([7; 16]));
    let mut step = |sights: &mut Sights, namespace: Option<&str>| {
        fleet.advance(Duration::from_secs(1)).expect("advance");
        let inventory = probe.read().expect("inventory");
        let now = fleet.now_ns().expect("time");
        let clocks = Clocks { steady_ns: now - start, suspended_ns: 0, system_ms: now / 1_000_000 };
        sights.see(clocks, &inventory, true, BTreeMap::new());
        let pods = held(&inventory, namespace);
        sights.answer(&inventory, &pods).into_iter().for_each(|tick| keeper.put(tick));
        now
    };
    let award = Some("vendue-a-0000000000000001");
    (0..20).for_each(|_| _ = step(&mut sights, None));
    let work = fleet
        .load(Work { pid: 1, device: 0, gpu_instance: None, intensity: 80, memory_mib: 1_000 })
        .expect("load");
    // Awarded at the first answer that names it; the reading of that moment is not its own yet.
    step(&mut sights, award);
    let first = step(&mut sights, award);
    let last = (0..60).map(|_| step(&mut sights, award)).last().expect("steps");
    fleet.end(work).expect("end");
    (0..20).for_each(|_| _ = step(&mut sights, None));
    let public_key = keeper.public_key();
    drop(keeper);

    let all = records(dir.path());
    let chain = verify(AWARD, Some(public_key), 3_600_000_000, &all[&AWARD]).expect("chain");
    let totals = chain.totals();
    assert_eq!(totals.gpu_ns, last - first);
    assert_eq!(totals.cost_micros, (last - first) / SECOND * 1_000_000, "3600 per GPU-hour is 1 per second");
    let truth = fleet.energy_between(0, first, last).expect("energy").millijoules();
    assert!(totals.energy_mj.abs_diff(truth) <= 1, "{} {truth}", totals.energy_mj);
    let chains: Vec<&[Record]> = all.values().map(Vec::as_slice).collect();
    verify_node(public_key, &chains).expect("no window of a device is in two chains");
}
