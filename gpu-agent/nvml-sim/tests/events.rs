//! Event sets, driver reloads, and loads of other processes, through the built library.

// Helpers of tests fail by panicking too; the lint's own exception covers only the test functions.
#![allow(clippy::expect_used, clippy::panic)]
// Event sets with a timeout of the caller's choice are not in the wrapper.
#![allow(unsafe_code)]

mod common;

use std::path::Path;
use std::ptr::null_mut;
use std::time::{Duration, Instant};

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper_sys::bindings as sys;
use vendue_nvml_sim::clock::Clock;
use vendue_nvml_sim::fault::{Event, Fault, ThrottleReason};
use vendue_nvml_sim::fleet::Fleet;
use vendue_nvml_sim::load::Work;
use vendue_nvml_sim::state::DeviceHealth;

const SECOND: u64 = 1_000_000_000;
const XID: u64 = 8;

struct Rig {
    // Before the folder, so that the library is closed before its file goes.
    nvml: Nvml,
    fleet: Fleet,
    dir: tempfile::TempDir,
}

impl Rig {
    /// Devices on a clock that stands still.
    fn new(groups: &[(&str, usize)]) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("state.json");
        let fleet = Fleet::create(&path, groups, "events", Clock::stopped(1_000 * SECOND)).expect("fleet");
        let library = fleet.install(&common::library()).expect("install");
        Self { nvml: load(&library).expect("init"), fleet, dir }
    }

    fn advance(&self, seconds: u64) {
        self.fleet.advance(Duration::from_secs(seconds)).expect("advance");
    }

    fn set(&self, devices: &[u32], types: u64) -> sys::nvmlEventSet_t {
        let mut set = null_mut();
        // SAFETY: all pointers are valid, the handles belong to this library.
        unsafe {
            assert_eq!((self.nvml.lib().nvmlEventSetCreate.as_ref().expect("symbol"))(&mut set), 0);
            for device in devices {
                let device = self.nvml.device_by_index(*device).expect("device");
                assert_eq!(self.nvml.lib().nvmlDeviceRegisterEvents(device.handle(), types, set), 0);
            }
        }
        set
    }

    /// Type and data of the next event, or the code of the error.
    fn wait(&self, set: sys::nvmlEventSet_t, timeout_ms: u32) -> Result<(u64, u64), u32> {
        let mut data = sys::nvmlEventData_t {
            device: null_mut(),
            eventType: 0,
            eventData: 0,
            gpuInstanceId: 0,
            computeInstanceId: 0,
        };
        // SAFETY: the set is one of this library, `data` is valid.
        let code = unsafe { self.nvml.lib().nvmlEventSetWait_v2(set, &mut data, timeout_ms) };
        if code == 0 { Ok((data.eventType, data.eventData)) } else { Err(code) }
    }
}

fn load(library: &Path) -> Result<Nvml, NvmlError> {
    Nvml::builder().lib_path(library.as_os_str()).init()
}

#[test]
fn each_event_reaches_each_set_once_and_only_those_that_wait_for_it() {
    let rig = Rig::new(&[("H100", 2)]);
    rig.fleet.inject(Some(0), Fault::Xid { code: 1 }).expect("inject");
    let (both, second) = (rig.set(&[0, 1], XID), rig.set(&[1], XID | 1 | 2));
    assert_eq!(rig.wait(both, 0), Err(10), "what happened before the registration is not delivered");
    for (device, code) in [(0, 79), (1, 13), (1, 13)] {
        rig.fleet.inject(Some(device), Fault::Xid { code }).expect("inject");
    }
    rig.fleet.inject(Some(1), Fault::Ecc { corrected: 1, uncorrected: 1, sram: false }).expect("inject");
    let drain = |set| std::iter::from_fn(|| rig.wait(set, 0).ok()).collect::<Vec<_>>();
    assert_eq!(drain(both), [(8, 79), (8, 13), (8, 13)]);
    assert_eq!(drain(second), [(8, 13), (8, 13), (1, 0), (2, 0)]);
    assert_eq!((drain(both), drain(second)), (Vec::new(), Vec::new()));
    rig.fleet.inject(Some(1), Fault::Xid { code: 31 }).expect("inject");
    // An older caller's struct is this much shorter.
    let mut old = [u64::MAX; 4];
    // SAFETY: the same file is the same library to the loader; the set is one of it; there is room for the whole struct.
    let code = unsafe {
        let library = libloading::Library::new(rig.dir.path().join("libnvidia-ml.so.1")).expect("load");
        type Wait = unsafe extern "C" fn(sys::nvmlEventSet_t, *mut u64, u32) -> u32;
        library.get::<Wait>(b"nvmlEventSetWait").expect("symbol")(both, old.as_mut_ptr(), 0)
    };
    assert_eq!((code, old[1], old[2], old[3]), (0, 8, 31, u64::MAX), "nothing is written beyond its end");
    // SAFETY: freeing and waiting for a freed set is the contract under test.
    unsafe {
        let free = *rig.nvml.lib().nvmlEventSetFree.as_ref().expect("symbol");
        assert_eq!((free(both), free(both)), (0, 2));
        assert_eq!(rig.nvml.lib().nvmlDeviceRegisterEvents(null_mut(), XID, second), 2);
        let device = rig.nvml.device_by_index(0).expect("device");
        assert_eq!(rig.nvml.lib().nvmlDeviceRegisterEvents(device.handle(), 1 << 40, second), 3);
    }
    assert_eq!(rig.wait(both, 0), Err(2));
}

#[test]
fn a_wait_without_events_takes_the_callers_time_and_an_event_ends_it() {
    let rig = Rig::new(&[("H100", 1)]);
    let set = rig.set(&[0], XID);
    let begin = Instant::now();
    assert_eq!(rig.wait(set, 150), Err(10));
    assert!(begin.elapsed() >= Duration::from_millis(150), "{:?}", begin.elapsed());

    let at_ns = rig.fleet.now_ns().expect("now") + 60 * SECOND;
    let scripted = Event { at_ns, device: Some(0), fault: Fault::Xid { code: 48 } };
    rig.fleet.script(vec![scripted]).expect("script");
    assert_eq!(rig.wait(set, 0), Err(10), "not yet");
    let fleet = &rig.fleet;
    std::thread::scope(|scope| {
        scope.spawn(|| fleet.advance(Duration::from_secs(60)).expect("advance"));
        assert_eq!(rig.wait(set, 30_000), Ok((8, 48)));
    });
}

#[test]
fn a_reloaded_driver_needs_a_new_session() {
    let Rig { nvml, fleet, dir } = Rig::new(&[("H100", 1)]);
    let gpu = nvml.device_by_index(0).expect("device");
    fleet.advance(Duration::from_secs(100)).expect("advance");
    assert_eq!(gpu.total_energy_consumption().expect("energy"), 7_000_000);
    fleet.inject(None, Fault::DriverReload { for_ns: 10 * SECOND }).expect("inject");
    assert!(matches!(gpu.power_usage(), Err(NvmlError::DriverNotLoaded)));
    let library = dir.path().join("libnvidia-ml.so.1");
    fleet.advance(Duration::from_secs(11)).expect("advance");
    assert!(matches!(gpu.power_usage(), Err(NvmlError::Unknown)), "the session is of the old driver");
    drop(nvml);
    let nvml = load(&library).expect("a new session");
    let energy = nvml.device_by_index(0).expect("device").total_energy_consumption();
    assert_eq!(energy.expect("energy"), 70_000, "counts from the new driver's start");
}

#[test]
fn a_script_changes_what_the_library_says() {
    let rig = Rig::new(&[("A100", 1)]);
    let gpu = rig.nvml.device_by_index(0).expect("device");
    let uuid = gpu.uuid().expect("uuid");
    let throttle =
        Fault::Throttle { reason: ThrottleReason::HwThermal, clock_percent: 50, for_ns: Some(10 * SECOND) };
    rig.fleet.inject(Some(0), throttle).expect("inject");
    let reasons = gpu.current_throttle_reasons_strict().expect("reasons");
    assert_eq!(reasons.bits(), 0x01 | 0x08 | 0x40);
    rig.advance(4);
    // SAFETY: handle and pointer are valid.
    let violation = unsafe {
        let mut out = sys::nvmlViolationTime_t { referenceTime: 0, violationTime: 0 };
        let policy = sys::nvmlPerfPolicyType_enum_NVML_PERF_POLICY_THERMAL;
        assert_eq!(rig.nvml.lib().nvmlDeviceGetViolationStatus(gpu.handle(), policy, &mut out), 0);
        out
    };
    assert_eq!(violation.violationTime, 4 * SECOND);
    rig.fleet.inject(Some(0), Fault::Uuid { uuid: "GPU-changed".to_owned() }).expect("inject");
    assert_eq!(gpu.uuid().expect("uuid"), "GPU-changed");
    assert!(matches!(rig.nvml.device_by_uuid(uuid), Err(NvmlError::NotFound)));
    rig.fleet.inject(Some(0), Fault::Health { health: DeviceHealth::Lost }).expect("inject");
    assert!(matches!(gpu.uuid(), Err(NvmlError::GpuLost)));
}

#[test]
fn the_library_counts_exactly_what_loads_use_at_a_hundred_times_the_speed() {
    let rig = Rig::new(&[("H100", 1)]);
    let gpu = rig.nvml.device_by_index(0).expect("device");
    let start = rig.fleet.now_ns().expect("now");
    rig.fleet.set_rate(100).expect("rate");
    let mut last = 0;
    for intensity in [20, 100, 0, 65] {
        let work = Work { pid: 7, device: 0, intensity, memory_mib: 1_000, ..Work::default() };
        let id = rig.fleet.load(work).expect("load");
        assert_eq!(gpu.utilization_rates().expect("load").gpu, intensity);
        assert_eq!(gpu.running_compute_processes().expect("processes").len(), 1);
        let energy = gpu.total_energy_consumption().expect("energy");
        assert!(energy >= last);
        last = energy;
        rig.fleet.end(id).expect("end");
    }
    rig.fleet.set_rate(0).expect("stop");
    let (now, shown) = (rig.fleet.now_ns().expect("now"), gpu.total_energy_consumption().expect("energy"));
    let truth = rig.fleet.energy_between(0, start, now).expect("truth").millijoules();
    assert_eq!(shown, truth);
    assert!(gpu.running_compute_processes().expect("processes").is_empty());
}
