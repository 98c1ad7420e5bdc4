//! The built library, loaded by the real nvml-wrapper as the agent does.

// Helpers of tests fail by panicking too; the lint's own exception covers only the test functions.
#![allow(clippy::expect_used, clippy::panic)]
// The raw entry points are called as a C program would, also with wrong arguments.
#![allow(unsafe_code)]

mod common;

use std::path::Path;
use std::ptr::{null, null_mut};

use common::{installed, save, state};
use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper_sys::bindings as sys;
use vendue_nvml_sim::state::{DeviceHealth, DriverHealth, Process};

fn load(library: &Path) -> Result<Nvml, NvmlError> {
    Nvml::builder().lib_path(library.as_os_str()).init()
}

#[test]
fn every_model_is_read_as_its_profile_says() {
    let (_dir, library, file) = installed(&[
        ("H100", 1),
        ("A100", 1),
        ("A100-40GB", 1),
        ("L40S", 1),
        ("T4", 1),
        ("H200", 1),
        ("B200", 1),
    ]);
    let nvml = load(&library).expect("init");
    assert_eq!(nvml.sys_driver_version().expect("driver"), "580.95.05");
    assert_eq!(nvml.sys_nvml_version().expect("nvml"), "13.580.95.05");
    assert_eq!(nvml.sys_cuda_driver_version().expect("cuda"), 13_000);
    let expected = [
        ("NVIDIA H100 80GB HBM3", 81_559, (9, 0), Some(false)),
        ("NVIDIA A100-SXM4-80GB", 81_920, (8, 0), Some(false)),
        ("NVIDIA A100-SXM4-40GB", 40_960, (8, 0), Some(false)),
        ("NVIDIA L40S", 46_068, (8, 9), None),
        ("Tesla T4", 15_360, (7, 5), None),
        ("NVIDIA H200", 143_771, (9, 0), Some(false)),
        ("NVIDIA B200", 183_359, (10, 0), Some(false)),
    ];
    assert_eq!(nvml.device_count().expect("count"), 7);
    let truth = vendue_nvml_sim::source::load(&file).expect("state");
    for ((index, (name, mib, compute, mig)), device) in (0..).zip(expected).zip(&truth.devices) {
        let gpu = nvml.device_by_index(index).expect("handle");
        assert_eq!(gpu.name().expect("name"), name);
        assert_eq!(gpu.uuid().expect("uuid"), device.uuid);
        assert_eq!(gpu.index().expect("index"), index);
        assert_eq!(gpu.memory_info().expect("memory").total, mib << 20);
        let capability = gpu.cuda_compute_capability().expect("compute capability");
        assert_eq!((capability.major, capability.minor), compute);
        assert_eq!(gpu.pci_info().expect("pci").bus_id, device.pci.long());
        assert_eq!(gpu.mig_mode().ok().map(|m| m.current == 1), mig, "{name}");
        assert_eq!(gpu.serial().expect("serial"), device.serial);
        assert_eq!(
            nvml.device_by_uuid(device.uuid.as_str()).expect("by uuid").index().expect("index"),
            index
        );
        let by_pci = nvml.device_by_pci_bus_id(device.pci.legacy()).expect("by pci");
        assert_eq!(by_pci.index().expect("index"), index);
    }
}

#[test]
fn sensors_and_processes_follow_the_state_file() {
    let (_dir, library, file) = installed(&[("L40S", 1)]);
    let nvml = load(&library).expect("init");
    let gpu = nvml.device_by_index(0).expect("handle");
    assert_eq!(gpu.power_usage().expect("power"), 33_000);
    assert!(gpu.running_compute_processes().expect("processes").is_empty());

    let mut busy = state(&[("L40S", 1)]);
    busy.devices[0].gpu_utilization_percent = 100;
    busy.devices[0].processes =
        (1..=40).map(|pid| Process { pid, memory_mib: 100, sm_percent: 2 }).collect::<Vec<_>>();
    save(&file, &busy);
    assert_eq!(gpu.utilization_rates().expect("load").gpu, 100);
    assert_eq!(gpu.power_usage().expect("power"), 350_000);
    assert_eq!(gpu.temperature(TemperatureSensor::Gpu).expect("temperature"), 85);
    assert_eq!(gpu.clock_info(Clock::SM).expect("clock"), 2520);
    assert_eq!(gpu.memory_info().expect("memory").used, 4_000 << 20);
    assert!(gpu.total_energy_consumption().expect("energy") > 0);
    let pids: Vec<u32> = gpu.running_compute_processes().expect("processes").iter().map(|p| p.pid).collect();
    assert_eq!(pids, (1..=40).collect::<Vec<u32>>());
    assert_eq!(gpu.process_utilization_stats(None).expect("shares").len(), 40);
    let values = gpu.field_values_for(&[field(83), field(9999)]).expect("fields");
    assert!(values[0].is_ok() && values[1].is_ok(), "each field has its own answer");
}

fn field(id: u32) -> nvml_wrapper::structs::device::FieldId {
    nvml_wrapper::structs::device::FieldId(id)
}

#[test]
fn lost_devices_say_so_and_the_others_go_on() {
    let (_dir, library, file) = installed(&[("H100", 2)]);
    let nvml = load(&library).expect("init");
    let (first, second) = (nvml.device_by_index(0).expect("0"), nvml.device_by_index(1).expect("1"));
    let mut broken = state(&[("H100", 2)]);
    broken.devices[0].health = DeviceHealth::Lost;
    broken.devices[1].health = DeviceHealth::EccFailed;
    broken.devices[1].ecc_uncorrected = 3;
    save(&file, &broken);
    assert_eq!(nvml.device_count().expect("count"), 2, "the driver still counts it");
    assert!(matches!(first.uuid(), Err(NvmlError::GpuLost)));
    assert!(matches!(nvml.device_by_index(0), Err(NvmlError::GpuLost)));
    let (mut corrected, mut uncorrected, mut pending, mut failed) = (9, 9, 9, 9);
    // SAFETY: the handle is valid while `nvml` lives; all pointers are.
    let code = unsafe {
        nvml.lib().nvmlDeviceGetRemappedRows(
            second.handle(),
            &mut corrected,
            &mut uncorrected,
            &mut pending,
            &mut failed,
        )
    };
    assert_eq!((code, corrected, uncorrected, pending, failed), (0, 0, 3, 0, 1));
    save(&file, &state(&[("H100", 2)]));
    assert!(first.uuid().is_ok(), "healed");
}

#[test]
fn broken_file_leaves_the_last_good_state_and_no_file_is_no_driver() {
    let (dir, library, file) = installed(&[("H100", 1)]);
    let nvml = load(&library).expect("init");
    let text = std::fs::read(&file).expect("read");
    for length in [0, 1, text.len() / 2, text.len() - 3] {
        std::fs::write(&file, &text[..length]).expect("truncate");
        assert_eq!(nvml.device_count().expect("last good"), 1, "{length} bytes");
    }
    std::fs::remove_file(&file).expect("remove");
    assert_eq!(nvml.device_count().expect("last good"), 1);
    drop(nvml);

    std::fs::write(&file, "{").expect("break");
    assert!(matches!(load(&library), Err(NvmlError::DriverNotLoaded)), "nothing good was ever read");
    let mut mismatch = state(&[("H100", 1)]);
    mismatch.driver.health = DriverHealth::Mismatch;
    save(&file, &mismatch);
    assert!(matches!(load(&library), Err(NvmlError::LibRmVersionMismatch)));
    save(&file, &state(&[]));
    assert_eq!(load(&library).expect("a driver without devices").device_count().expect("count"), 0);
    drop(dir);
}

#[test]
fn hung_device_blocks_until_it_heals() {
    let (_dir, library, file) = installed(&[("H100", 1)]);
    let nvml = load(&library).expect("init");
    let mut hung = state(&[("H100", 1)]);
    hung.devices[0].health = DeviceHealth::Hung;
    save(&file, &hung);
    std::thread::scope(|scope| {
        let gpu = nvml.device_by_index(0).expect("handle");
        let call = scope.spawn(move || gpu.power_usage());
        assert_eq!(nvml.device_count().expect("other calls go on"), 1);
        save(&file, &state(&[("H100", 1)]));
        assert_eq!(call.join().expect("thread").expect("power"), 70_000);
    });
}

#[test]
fn sixty_four_devices() {
    let (_dir, library, _file) = installed(&[("A100", 64)]);
    let nvml = load(&library).expect("init");
    assert_eq!(nvml.device_count().expect("count"), 64);
    assert!(nvml.device_by_index(63).expect("last").uuid().is_ok());
    assert!(matches!(nvml.device_by_index(64), Err(NvmlError::InvalidArg)));
}

#[test]
fn wrong_arguments_get_codes_not_crashes() {
    let (_dir, library, _file) = installed(&[("H100", 1)]);
    let nvml = load(&library).expect("init");
    let (lib, gpu) = (nvml.lib(), nvml.device_by_index(0).expect("handle"));
    let stray = std::ptr::without_provenance_mut(0x1234);
    let mut text = [0; 8];
    let mut memory = sys::nvmlMemory_v2_t { version: 1, total: 0, reserved: 0, free: 0, used: 0 };
    let mut count = 0;
    // SAFETY: this is the contract under test: NULL, short buffers, stray handles and unknown versions are refused.
    unsafe {
        let device = gpu.handle();
        assert_eq!(lib.nvmlDeviceGetName(device, text.as_mut_ptr(), 8), 7, "short buffer");
        assert_eq!(lib.nvmlDeviceGetName(device, null_mut(), 96), 2);
        assert_eq!(lib.nvmlDeviceGetName(null_mut(), text.as_mut_ptr(), 8), 2);
        assert_eq!(lib.nvmlDeviceGetName(stray, text.as_mut_ptr(), 8), 2);
        assert_eq!(lib.nvmlDeviceGetMemoryInfo_v2(device, &mut memory), 25, "unknown version");
        assert_eq!(lib.nvmlDeviceGetMemoryInfo_v2(device, null_mut()), 2);
        assert_eq!(lib.nvmlDeviceGetCount_v2(null_mut()), 2);
        assert_eq!(lib.nvmlDeviceGetHandleByUUID(null(), null_mut()), 2);
        let mut found = null_mut();
        assert_eq!(lib.nvmlDeviceGetHandleByUUID(c"GPU-none".as_ptr(), null_mut()), 2);
        assert_eq!(lib.nvmlDeviceGetHandleByUUID(c"GPU-none".as_ptr(), &mut found), 6);
        assert_eq!(lib.nvmlDeviceGetComputeRunningProcesses_v3(device, &mut count, null_mut()), 0, "none");
        assert_eq!(lib.nvmlDeviceGetComputeRunningProcesses_v3(device, null_mut(), null_mut()), 2);
        assert_eq!(lib.nvmlDeviceGetMigMode(device, &mut count, null_mut()), 2);
        let mut shares = sys::nvmlProcessesUtilizationInfo_v1_t {
            version: 0x0100_0018,
            processSamplesCount: 0,
            lastSeenTimeStamp: 0,
            procUtilArray: null_mut(),
        };
        assert_eq!(
            lib.nvmlDeviceGetProcessesUtilizationInfo(device, &mut shares),
            7,
            "sizing call, also for none"
        );
        assert_eq!(shares.processSamplesCount, 1);
        shares.version = 1;
        assert_eq!(lib.nvmlDeviceGetProcessesUtilizationInfo(device, &mut shares), 25);
        assert_eq!(lib.nvmlDeviceGetFanSpeed_v2(device, 0, &mut count), 3, "no fan");
        assert!(!lib.nvmlErrorString(12345).is_null());
    }
}

#[test]
fn an_old_drivers_library_lacks_later_symbols() {
    let (_dir, library, file) = installed(&[("T4", 1)]);
    let built = std::fs::read(common::library()).expect("read");
    let missing = vendue_nvml_sim::library::missing("470.57.02").expect("list");
    let old = vendue_nvml_sim::library::without(&built, &missing).expect("copy");
    std::fs::write(&library, old).expect("write");
    let mut state = state(&[("T4", 1)]);
    state.driver.version = "470.57.02".to_owned();
    save(&file, &state);
    let nvml = load(&library).expect("init");
    assert_eq!(nvml.sys_driver_version().expect("driver"), "470.57.02");
    let gpu = nvml.device_by_index(0).expect("device");
    assert!(matches!(gpu.memory_info(), Err(NvmlError::FailedToLoadSymbol(_))), "came with 510");
    assert!(nvml.lib().nvmlDeviceGetSramEccErrorStatus.is_err() && nvml.lib().nvmlGpmSampleAlloc.is_err());
    assert_eq!(gpu.power_usage().expect("power"), 9_000);
    let mut memory = sys::nvmlMemory_t { total: 0, free: 0, used: 0 };
    // SAFETY: handle and pointer are valid.
    assert_eq!(unsafe { nvml.lib().nvmlDeviceGetMemoryInfo(gpu.handle(), &mut memory) }, 0);
    assert_eq!(memory.total, 15_360 << 20);
}

#[test]
fn library_carries_nvidias_name() {
    let bytes = std::fs::read(common::library()).expect("read");
    let name = b"\0libnvidia-ml.so.1\0";
    assert!(bytes.windows(name.len()).any(|window| window == name));
}

/// Environment variables belong to a whole process, so this runs itself again with them set.
#[test]
fn visible_devices_narrow_the_view() {
    const CHILD: &str = "VISIBLE_TEST_LIBRARY";
    if let Some(library) = std::env::var_os(CHILD) {
        let nvml = load(Path::new(&library)).expect("init");
        let uuids: Vec<String> = (0..nvml.device_count().expect("count"))
            .map(|i| nvml.device_by_index(i).expect("handle").uuid().expect("uuid"))
            .collect();
        println!("UUIDS={}=", uuids.join(","));
        return;
    }
    let (_dir, library, file) = installed(&[("H100", 3)]);
    let uuids: Vec<String> = state(&[("H100", 3)]).devices.into_iter().map(|d| d.uuid).collect();
    for (value, expected) in [
        (uuids[2].clone(), uuids[2].clone()),
        (format!("{},{}", uuids[2], uuids[0]), format!("{},{}", uuids[0], uuids[2])),
        ("all".to_owned(), uuids.join(",")),
        ("void".to_owned(), String::new()),
    ] {
        let output = std::process::Command::new(std::env::current_exe().expect("path of the test"))
            .args(["--exact", "visible_devices_narrow_the_view", "--nocapture"])
            .env(CHILD, &library)
            .env("VENDUE_NVML_STATE", &file)
            .env("NVIDIA_VISIBLE_DEVICES", &value)
            .output()
            .expect("run");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains(&format!("UUIDS={expected}=")), "{value}: {text}");
    }
}
