//! The agent's reading side against the simulated library, through real NVML calls.

// Helpers of tests fail by panicking too; the lint's own exception covers only the test functions.
#![allow(clippy::expect_used, clippy::panic)]

use std::path::PathBuf;
use std::time::Duration;

use vendue_crds::GpuHealth;
use vendue_gpu_agent::health::judge::{Judge, Times};
use vendue_gpu_agent::health::xid::{Class, Policy};
use vendue_gpu_agent::inventory::{
    Activity, DeviceFault, DeviceIdentity, DeviceReading, NodeInventory, Pcie, Sensors,
};
use vendue_gpu_agent::observe::Outcome;
use vendue_gpu_agent::probe::events::EventSink;
use vendue_gpu_agent::probe::numa::PciDevices;
use vendue_gpu_agent::probe::nvml::NvmlProbe;
use vendue_gpu_agent::probe::thread::ProbeThread;
use vendue_gpu_agent::probe::{DeviceProbe, ProbeError};
use vendue_nvml_sim::clock::Clock;
use vendue_nvml_sim::fault::Fault;
use vendue_nvml_sim::fleet::Fleet;
use vendue_nvml_sim::load::Work;
use vendue_nvml_sim::source;
use vendue_nvml_sim::state::{DeviceHealth, DriverHealth, Process, State};

fn built_library() -> PathBuf {
    let exe = std::env::current_exe().expect("path of the test");
    let name = "libvendue_nvml_sim.so";
    exe.ancestors().skip(1).map(|dir| dir.join(name)).find(|path| path.exists()).expect("built library")
}

/// A folder with a copy of the library and its state; each copy has a state of its own.
struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    fn new(state: &State) -> Self {
        let machine = Self { dir: tempfile::tempdir().expect("dir") };
        std::fs::copy(built_library(), machine.library()).expect("copy the library");
        machine.set(state);
        machine
    }

    fn library(&self) -> PathBuf {
        self.dir.path().join("libnvidia-ml.so.1")
    }

    fn set(&self, state: &State) {
        source::store(&self.dir.path().join("state.json"), state).expect("store");
    }

    /// The kernel lists no PCI device.
    fn probe(&self) -> NvmlProbe {
        let kernel = PciDevices::at(&self.dir.path().join("pci"));
        NvmlProbe::new(Some(self.library())).with_slow(Duration::ZERO).with_pci_devices(kernel)
    }

    /// The library as a driver of that version has it.
    fn with_driver(state: &State, version: &str) -> Self {
        let machine = Self::new(state);
        let built = std::fs::read(built_library()).expect("read");
        let missing = vendue_nvml_sim::library::missing(version).expect("list");
        let old = vendue_nvml_sim::library::without(&built, &missing).expect("copy");
        std::fs::write(machine.library(), old).expect("write");
        machine
    }
}

/// The next reading, without what happened since the one before.
fn looked(probe: &mut NvmlProbe) -> NodeInventory {
    let mut inventory = probe.read().expect("inventory");
    inventory.devices.iter_mut().for_each(|device| device.activity = Activity::default());
    inventory
}

fn state(groups: &[(&str, usize)]) -> State {
    let groups: Vec<_> = groups.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
    // A start in the future makes the energy counters stand still, so that readings can be compared whole.
    State::generate(&groups, "agent", u64::MAX).expect("state")
}

#[test]
fn inventory_is_what_the_driver_says() {
    let mut state = state(&[("H100", 1), ("L40S", 1)]);
    state.devices[1].gpu_utilization_percent = 100;
    state.devices[1].memory_utilization_percent = 40;
    state.devices[1].processes = vec![Process { pid: 1, memory_mib: 1024, sm_percent: 100 }];
    state.devices[1].ecc_corrected = 7;
    let inventory = Machine::new(&state).probe().read().expect("inventory");
    let identity = |index: u32, name: &str, mib: u64, pci: &str| DeviceIdentity {
        index,
        uuid: state.devices[usize::try_from(index).expect("index")].uuid.clone(),
        product_name: name.to_owned(),
        memory_bytes: mib << 20,
        pci_bus_id: pci.to_owned(),
        minor: Some(index),
    };
    let idle = Sensors {
        memory_used_bytes: Some(0),
        memory_free_bytes: Some((81_559 - 551) << 20),
        memory_reserved_bytes: Some(551 << 20),
        gpu_utilization_percent: Some(0),
        memory_utilization_percent: Some(0),
        encoder_utilization_percent: Some(0),
        decoder_utilization_percent: Some(0),
        power_milliwatts: Some(70_000),
        energy_millijoules: Some(0),
        temperature_celsius: Some(30),
        memory_temperature_celsius: Some(36),
        sm_clock_mhz: Some(345),
        memory_clock_mhz: Some(2619),
        pcie_replays: Some(0),
        rows_remapped_corrected: Some(0),
        rows_remapped_uncorrected: Some(0),
        ecc_corrected: Some(0),
        ecc_uncorrected: Some(0),
    };
    let busy = Sensors {
        memory_used_bytes: Some(1 << 30),
        memory_free_bytes: Some((46_068 - 588 - 1024) << 20),
        memory_reserved_bytes: Some(588 << 20),
        memory_temperature_celsius: Some(91),
        gpu_utilization_percent: Some(100),
        memory_utilization_percent: Some(40),
        power_milliwatts: Some(350_000),
        temperature_celsius: Some(85),
        sm_clock_mhz: Some(2520),
        memory_clock_mhz: Some(9001),
        ecc_corrected: Some(7),
        ..idle
    };
    let pcie = |generation| Some(Pcie { generation, width: 16, max_generation: generation, max_width: 16 });
    let expected = NodeInventory {
        driver_version: "580.95.05".to_owned(),
        cuda_version: Some("13.0".to_owned()),
        devices: vec![
            DeviceReading {
                compute_capability: Some((9, 0)),
                mig_enabled: Some(false),
                pcie: pcie(5),
                numa_node: Some(0),
                compute_processes: Some(0),
                // Eighteen links to four switches.
                nvlink_peers: [(5, 5), (6, 5), (7, 4), (8, 4)]
                    .iter()
                    .flat_map(|(bus, links)| vec![format!("00000000:{bus:02x}:00.0"); *links])
                    .collect(),
                sensors: idle,
                ..DeviceReading::of(identity(0, "NVIDIA H100 80GB HBM3", 81_559, "00000000:10:00.0"))
            },
            DeviceReading {
                compute_capability: Some((8, 9)),
                pcie: pcie(4),
                numa_node: Some(1),
                compute_processes: Some(1),
                sensors: busy,
                ..DeviceReading::of(identity(1, "NVIDIA L40S", 46_068, "00000000:13:00.0"))
            },
        ],
        unknown: Vec::new(),
    };
    assert_eq!(inventory, expected);
}

#[test]
fn a_lost_device_is_named_if_it_was_ever_seen() {
    let healthy = state(&[("H100", 2)]);
    let machine = Machine::new(&healthy);
    let mut probe = machine.probe();
    let before = probe.read().expect("inventory");

    let mut broken = healthy.clone();
    broken.devices[0].health = DeviceHealth::Lost;
    broken.devices[1].health = DeviceHealth::EccFailed;
    machine.set(&broken);
    let faults: Vec<_> =
        probe.read().expect("inventory").devices.into_iter().map(|d| (d.identity, d.fault)).collect();
    let expected = [
        (before.devices[0].identity.clone(), Some(DeviceFault::Lost)),
        (before.devices[1].identity.clone(), Some(DeviceFault::RowRemapFailed)),
    ];
    assert_eq!(faults, expected);
    let after_restart = machine.probe().read().expect("inventory");
    let unknown: Vec<u32> = after_restart.unknown.iter().map(|d| d.index).collect();
    assert_eq!(unknown, [0], "nothing is known of it but its place");

    machine.set(&healthy);
    assert_eq!(looked(&mut probe), before);
}

#[test]
fn library_and_driver_trouble_is_told_apart_and_tried_again() {
    let machine = Machine::new(&state(&[]));
    let mut missing = NvmlProbe::new(Some(machine.dir.path().join("absent.so")));
    assert!(matches!(missing.read(), Err(ProbeError::LibraryMissing { .. })));

    let mut probe = machine.probe();
    assert_eq!(probe.read().expect("a driver without devices").devices, []);
    let mut broken = state(&[("H100", 1)]);
    broken.driver.health = DriverHealth::NotLoaded;
    machine.set(&broken);
    assert!(matches!(probe.read(), Err(ProbeError::DriverNotLoaded)));
    broken.driver.health = DriverHealth::Mismatch;
    machine.set(&broken);
    assert!(matches!(probe.read(), Err(ProbeError::DriverMismatch)));
    machine.set(&state(&[("H100", 1)]));
    assert_eq!(probe.read().expect("driver is back").devices.len(), 1);
}

#[tokio::test]
async fn a_hung_driver_is_noticed_and_its_end_too() {
    let healthy = state(&[("H100", 1)]);
    let machine = Machine::new(&healthy);
    let mut hung = healthy.clone();
    hung.devices[0].health = DeviceHealth::Hung;
    machine.set(&hung);
    let mut thread = ProbeThread::start(machine.probe(), Duration::from_millis(50)).expect("thread");
    assert!(matches!(thread.read().await, Outcome::Hung { .. }));
    machine.set(&healthy);
    let recovered = async {
        loop {
            if let Outcome::Read(inventory) = thread.read().await {
                return inventory;
            }
        }
    };
    let inventory = tokio::time::timeout(Duration::from_secs(30), recovered).await.expect("in time");
    assert_eq!(inventory.devices.len(), 1);
}

#[test]
fn sixty_four_devices_are_read() {
    let inventory = Machine::new(&state(&[("A100", 64)])).probe().read().expect("inventory");
    assert_eq!(inventory.devices.len(), 64);
}

#[tokio::test]
async fn an_xid_is_heard_as_it_happens_and_a_reset_of_the_device_is_seen() {
    let dir = tempfile::tempdir().expect("dir");
    let fleet = Fleet::create(
        &dir.path().join("state.json"),
        &[("H100", 2)],
        "xids",
        Clock::stopped(1_000_000_000_000),
    )
    .expect("fleet");
    let library = fleet.install(&built_library()).expect("install");
    let (sink, mut events) = EventSink::new();
    let mut probe = NvmlProbe::new(Some(library)).with_slow(Duration::ZERO).with_events(sink);
    let mut judge = Judge::new(Policy::default(), Times::default(), vec![]);
    let mut look = |judge: &mut Judge, second: u64| {
        let inventory = probe.read().expect("inventory");
        inventory.devices.iter().for_each(|d| judge.reading(d, Duration::from_secs(second)));
        inventory.devices.into_iter().map(|d| d.identity.uuid).collect::<Vec<_>>()
    };
    fleet.advance(Duration::from_secs(10)).expect("advance");
    let uuids = look(&mut judge, 0);
    fleet.inject(Some(1), Fault::Xid { code: 119 }).expect("inject");
    let event = tokio::time::timeout(Duration::from_secs(30), events.recv()).await.expect("in time");
    let event = event.expect("event");
    assert_eq!((event.uuid.as_str(), event.xid), (uuids[1].as_str(), 119));
    assert_eq!(judge.xid(&event.uuid, event.xid, Duration::from_secs(1)), Class::Fatal);
    look(&mut judge, 2);
    assert_eq!(judge.opinion(&uuids[1]).health, GpuHealth::Failed);
    assert_eq!(judge.opinion(&uuids[0]).health, GpuHealth::Healthy);
    assert!(events.try_recv().is_err(), "each Xid is told once");

    fleet.inject(None, Fault::DriverReload { for_ns: 0 }).expect("inject");
    // The session of before ends with the driver; the next one is the new driver's.
    let again = (0..3).find_map(|_| probe.read().ok()).expect("the driver is back");
    again.devices.iter().for_each(|d| judge.reading(d, Duration::from_secs(3)));
    assert_eq!(judge.opinion(&uuids[1]).health, GpuHealth::Healthy);
}

#[test]
fn a_state_of_the_simulator_that_was_cut_leaves_the_last_good_one_in_force() {
    let healthy = state(&[("H100", 2)]);
    let machine = Machine::new(&healthy);
    let path = machine.dir.path().join("state.json");
    let whole = std::fs::read(&path).expect("read");
    let mut probe = machine.probe();
    let before = probe.read().expect("inventory");
    for length in [whole.len() / 2, 1, 0] {
        std::fs::write(&path, &whole[..length]).expect("write");
        assert_eq!(looked(&mut probe), before, "{length} bytes");
    }
    // A program that starts then has no good state to go by.
    let other = Machine::new(&healthy);
    std::fs::write(other.dir.path().join("state.json"), &whole[..whole.len() / 2]).expect("write");
    assert!(matches!(other.probe().read(), Err(ProbeError::DriverNotLoaded)));
    machine.set(&state(&[("H100", 1)]));
    assert_eq!(probe.read().expect("inventory").devices.len(), 1);
}

#[test]
fn what_an_old_driver_lacks_is_absent_and_the_device_is_read() {
    for version in ["450.80.02", "470.57.02", "495.44", "510.47.03", "535.54.03"] {
        let mut state = state(&[("A100", 1)]);
        state.driver.version = version.to_owned();
        state.devices[0].processes = vec![Process { pid: 1, memory_mib: 1024, sm_percent: 100 }];
        let newest = Machine::new(&state).probe().with_processes(true).read().expect("inventory");
        let machine = Machine::with_driver(&state, version);
        let old = machine.probe().with_processes(true).read().expect("inventory");
        assert_eq!(
            (old.driver_version.as_str(), old.unknown.len(), old.devices.len()),
            (version, 0, 1),
            "{version}"
        );
        // But for these, all is there.
        let (mut expected, device) = (newest.devices[0].clone(), &old.devices[0]);
        if version < "510" {
            expected.sensors.memory_reserved_bytes = None;
            expected.sensors.memory_used_bytes = device.sensors.memory_used_bytes;
            assert!(device.sensors.memory_used_bytes >= Some(1 << 30), "{version}");
        }
        if version < "455" {
            assert_eq!(device.processes, None, "{version}: the list without instances is not read");
            expected.processes = None;
        }
        if version < "550" {
            expected.numa_node = None;
        }
        assert_eq!(device.compute_processes, Some(1), "{version}");
        assert_eq!(*device, expected, "{version}");
    }
}

#[test]
fn instances_of_an_old_driver_are_read_too() {
    let mut state = state(&[("H100", 1)]);
    state.driver.version = "470.57.02".to_owned();
    let profile = vendue_nvml_sim::profile::built_in("H100").expect("profile").1;
    state.devices[0].mig_enabled = true;
    state.devices[0].mig_instances =
        vendue_nvml_sim::mig::layout(&profile, &["3g.40gb"], "old").expect("layout");
    let inventory = Machine::with_driver(&state, "470.57.02").probe().read().expect("inventory");
    let instance = &inventory.devices[0].mig[0];
    assert!(instance.memory_bytes.is_some_and(|bytes| bytes > 30 << 30), "{instance:?}");
    assert_eq!(instance.activity, Activity::default(), "monitoring came later");
}

#[test]
fn the_kernel_says_which_node_a_device_is_near_to_and_nvml_only_what_it_does_not() {
    let machine = Machine::new(&state(&[("H100", 3)]));
    let nodes = || {
        let devices = machine.probe().read().expect("inventory").devices.into_iter();
        devices.map(|d| (d.identity.pci_bus_id, d.numa_node)).collect::<Vec<_>>()
    };
    let of_nvml = nodes();
    assert!(of_nvml.iter().all(|(_, node)| node.is_some_and(|node| node < 2)), "{of_nvml:?}");
    // The kernel does not list the third.
    for ((address, _), node) in of_nvml.iter().zip(["5\n", "-1\n"]) {
        let device = machine.dir.path().join("pci").join(&address[4..]);
        std::fs::create_dir_all(&device).expect("device");
        std::fs::write(device.join("numa_node"), node).expect("write");
    }
    let read: Vec<_> = nodes().into_iter().map(|(_, node)| node).collect();
    assert_eq!(read, [Some(5), None, of_nvml[2].1]);
}

#[test]
fn samples_of_performance_monitoring_are_used_again_and_freed() {
    // The library has room for 4096 samples, and a probe needs two of each device.
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("state.json");
    let fleet =
        Fleet::create(&path, &[("H100", 32)], "samples", Clock::stopped(1_000_000_000_000)).expect("fleet");
    let library = fleet.install(&built_library()).expect("install");
    let busy = Work { pid: 1, device: 31, intensity: 30, time_percent: 100, ..Work::default() };
    fleet.load(busy).expect("load");
    let probe = || NvmlProbe::new(Some(library.clone()));
    let look = |probe: &mut NvmlProbe| {
        fleet.advance(Duration::from_secs(1)).expect("advance");
        probe.read().expect("inventory").devices[31].activity
    };
    // The library stays loaded, and so do samples that nobody frees.
    let mut first = probe();
    assert_eq!(look(&mut first), Activity::default(), "there is nothing to compare with yet");
    let expected = Activity {
        engine_millionths: Some(1_000_000),
        sm_millionths: Some(300_000),
        tensor_millionths: Some(150_000),
        memory_millionths: Some(150_000),
        pcie_sent_bytes_per_second: Some(300 << 20),
        pcie_received_bytes_per_second: Some(600 << 20),
    };
    for _ in 0..130 {
        assert_eq!(look(&mut first), expected);
    }
    for _ in 0..64 {
        let mut next = probe();
        look(&mut next);
        assert_eq!(look(&mut next), expected);
    }
}
