//! MIG devices, performance monitoring, field ids and topology through the built library.

// Helpers of tests fail by panicking too; the lint's own exception covers only the test functions.
#![allow(clippy::expect_used, clippy::panic)]
// Much of this is not in the wrapper, so raw entry points are called.
#![allow(unsafe_code)]

mod common;

use std::ptr::null_mut;
use std::time::Duration;

use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings as sys;
use sys::field_id as fi;
use vendue_nvml_sim::clock::Clock;
use vendue_nvml_sim::fault::{Fault, ThrottleReason};
use vendue_nvml_sim::fleet::Fleet;
use vendue_nvml_sim::load::Work;
use vendue_nvml_sim::{mig, profile};

struct Rig {
    nvml: Nvml,
    fleet: Fleet,
    _dir: tempfile::TempDir,
}

fn rig(groups: &[(&str, usize)]) -> Rig {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("state.json");
    let fleet = Fleet::create(&path, groups, "mig", Clock::stopped(0)).expect("fleet");
    let library = fleet.install(&common::library()).expect("install");
    Rig { nvml: Nvml::builder().lib_path(library.as_os_str()).init().expect("init"), fleet, _dir: dir }
}

fn split(rig: &Rig, model: &str, names: &[&str]) {
    let profile = profile::built_in(model).expect("profile").1;
    let instances = mig::layout(&profile, names, "salt").expect("layout");
    rig.fleet.inject(Some(0), Fault::Mig { enabled: true, instances }).expect("split");
}

/// MIG device by number, as a raw handle.
fn mig_device(nvml: &Nvml, parent: &Device<'_>, index: u32) -> Result<sys::nvmlDevice_t, u32> {
    let mut handle = null_mut();
    // SAFETY: handle and pointer are valid.
    let code = unsafe { nvml.lib().nvmlDeviceGetMigDeviceHandleByIndex(parent.handle(), index, &mut handle) };
    if code == 0 { Ok(handle) } else { Err(code) }
}

#[test]
fn each_model_is_split_as_its_guide_says() {
    for (model, name, sms, mib) in [
        ("A100", "1g.10gb", 14, 9_856),
        ("H100", "2g.20gb", 32, 20_480),
        ("H200", "3g.71gb", 48, 72_704),
        ("B200", "4g.90gb", 72, 92_160),
    ] {
        let rig = rig(&[(model, 1)]);
        split(&rig, model, &[name]);
        let parent = rig.nvml.device_by_index(0).expect("parent");
        assert_eq!(parent.mig_mode().expect("mode").current, 1);
        let handle = mig_device(&rig.nvml, &parent, 0).expect("MIG device");
        assert_eq!(mig_device(&rig.nvml, &parent, 1), Err(6));
        // SAFETY: the handle is one of this library, which lives as long as `rig`.
        let device = unsafe { Device::new(handle, &rig.nvml) };
        let mut out = sys::nvmlDeviceAttributes_t {
            multiprocessorCount: 0,
            sharedCopyEngineCount: 0,
            sharedDecoderCount: 0,
            sharedEncoderCount: 0,
            sharedJpegCount: 0,
            sharedOfaCount: 0,
            gpuInstanceSliceCount: 0,
            computeInstanceSliceCount: 0,
            memorySizeMB: 0,
        };
        // SAFETY: handle and pointer are valid.
        assert_eq!(unsafe { rig.nvml.lib().nvmlDeviceGetAttributes_v2(handle, &mut out) }, 0);
        assert_eq!((out.multiprocessorCount, out.memorySizeMB), (sms, mib), "{model}");
        assert_eq!(device.memory_info().expect("memory").total, mib << 20);
        let uuid = device.uuid().expect("uuid");
        assert!(uuid.starts_with("MIG-"), "{uuid}");
        assert!(device.name().expect("name").ends_with(&format!(" MIG {name}")));
        assert_eq!(device.index().expect("index"), 0, "its number within the device");
        let window = device.bar1_memory_info().expect("window").total;
        assert!(window > 0 && window < parent.bar1_memory_info().expect("window").total, "{model}");
        let found = rig.nvml.device_by_uuid(uuid).expect("by uuid");
        // SAFETY: only compared.
        assert_eq!(unsafe { found.handle() }, handle);
    }
}

#[test]
fn a_split_card_has_no_utilisation_and_its_instances_have_their_processes() {
    let rig = rig(&[("H100", 1)]);
    split(&rig, "H100", &["3g.40gb", "1g.10gb"]);
    let on =
        |pid, gpu_instance| Work { pid, gpu_instance, intensity: 100, memory_mib: 5_000, ..Work::default() };
    for work in [on(1, Some(1)), on(2, Some(7)), on(3, None)] {
        rig.fleet.load(work).expect("load");
    }
    let parent = rig.nvml.device_by_index(0).expect("parent");
    assert!(matches!(parent.utilization_rates(), Err(NvmlError::NotSupported)));
    assert!(matches!(parent.process_utilization_stats(None), Err(NvmlError::NotSupported)));
    let table = |device: &Device<'_>| -> Vec<_> {
        let processes = device.running_compute_processes().expect("processes");
        processes.into_iter().map(|p| (p.pid, p.gpu_instance_id)).collect()
    };
    assert_eq!(table(&parent), [(1, Some(1)), (2, Some(7))], "a process needs an instance");
    let handle = mig_device(&rig.nvml, &parent, 1).expect("MIG device");
    // SAFETY: the handle is one of this library, which lives as long as `rig`.
    let small = unsafe { Device::new(handle, &rig.nvml) };
    assert_eq!(table(&small), [(2, Some(7))]);
    let used = &small.running_compute_processes().expect("processes")[0].used_gpu_memory;
    assert!(matches!(used, UsedGpuMemory::Used(bytes) if *bytes == 5_000 << 20), "{used:?}");
    assert_eq!(small.memory_info().expect("memory").used, 5_000 << 20);
    // 48 and 16 of 132 SMs, so power is between idle and half.
    let power = parent.power_usage().expect("power");
    assert_eq!(power, 70_000 + 630_000 / 10_000 * (3_636 + 1_212));

    rig.fleet.inject(Some(0), Fault::Mig { enabled: false, instances: Vec::new() }).expect("undo");
    assert!(matches!(small.uuid(), Err(NvmlError::NotFound)), "the instance is gone");
    assert_eq!(parent.utilization_rates().expect("load").gpu, 100, "process 3 runs again");
}

fn metric(rig: &Rig, parent: &Device<'_>, instance: Option<u32>, id: u32) -> Result<f64, u32> {
    let lib = rig.nvml.lib();
    let mut samples: [sys::nvmlGpmSample_t; 2] = [null_mut(); 2];
    // SAFETY: all pointers are valid; NVML's structs are plain numbers and pointers, for which zero is a value.
    unsafe {
        for sample in &mut samples {
            assert_eq!(lib.nvmlGpmSampleAlloc(sample), 0);
            let code = match instance {
                None => lib.nvmlGpmSampleGet(parent.handle(), *sample),
                Some(id) => lib.nvmlGpmMigSampleGet(parent.handle(), id, *sample),
            };
            if code != 0 {
                return Err(code);
            }
            rig.fleet.advance(Duration::from_secs(10)).expect("advance");
        }
        let mut get: Box<sys::nvmlGpmMetricsGet_t> = Box::new(std::mem::zeroed());
        (get.version, get.numMetrics, get.sample1, get.sample2) = (1, 1, samples[0], samples[1]);
        get.metrics[0].metricId = id;
        assert_eq!(lib.nvmlGpmMetricsGet(&mut *get), 0);
        for sample in samples {
            assert_eq!(lib.nvmlGpmSampleFree(sample), 0);
        }
        if get.metrics[0].nvmlReturn == 0 { Ok(get.metrics[0].value) } else { Err(get.metrics[0].nvmlReturn) }
    }
}

#[test]
fn performance_monitoring_averages_over_the_time_between_samples() {
    let rig = rig(&[("H100", 1), ("A100", 1)]);
    let parent = rig.nvml.device_by_index(0).expect("parent");
    assert_eq!(metric(&rig, &parent, None, 2), Ok(0.0));
    rig.fleet.load(Work { pid: 1, intensity: 40, ..Work::default() }).expect("load");
    assert_eq!(metric(&rig, &parent, None, 2), Ok(40.0));
    assert_eq!(metric(&rig, &parent, None, 10), Ok(20.0), "memory bandwidth follows");
    assert_eq!(metric(&rig, &parent, None, 4), Err(3), "integer pipes are not simulated");
    // A small kernel without a pause: all of the time, some of the SMs.
    rig.fleet.load(Work { pid: 3, intensity: 10, time_percent: 60, ..Work::default() }).expect("load");
    assert_eq!((metric(&rig, &parent, None, 2), metric(&rig, &parent, None, 1)), (Ok(50.0), Ok(100.0)));
    assert_eq!(parent.utilization_rates().expect("load").gpu, 100);
    assert_eq!(metric(&rig, &parent, None, 21), Ok(1_000.0), "MiB received in a second");
    split(&rig, "H100", &["3g.40gb"]);
    rig.fleet.load(Work { pid: 2, gpu_instance: Some(1), intensity: 90, ..Work::default() }).expect("load");
    assert_eq!((metric(&rig, &parent, Some(1), 2), metric(&rig, &parent, Some(1), 1)), (Ok(90.0), Ok(90.0)));
    assert_eq!(metric(&rig, &parent, None, 2), Err(3), "a split card is measured by instance");
    let older = rig.nvml.device_by_index(1).expect("A100");
    assert_eq!(metric(&rig, &older, None, 2), Err(3), "Hopper and later");
}

#[test]
fn clock_event_fields_are_where_the_drivers_numbering_has_them() {
    for (version, software, hardware) in [("580.65.06", 251, 252), ("580.95.05", 269, 270)] {
        let rig = rig(&[("H100", 1)]);
        let gpu = rig.nvml.device_by_index(0).expect("device");
        rig.fleet
            .update::<vendue_nvml_sim::fleet::FleetError>(|state, _| {
                state.driver.version = version.to_owned();
                Ok(())
            })
            .expect("version");
        let reason = ThrottleReason::HwThermal;
        let cut = Fault::Throttle { reason, clock_percent: 50, for_ns: None };
        rig.fleet.inject(Some(0), cut).expect("inject");
        rig.fleet.advance(Duration::from_secs(3)).expect("advance");
        let raw = |id: u32| {
            // SAFETY: zero is a value of the struct; handle and pointer are valid.
            unsafe {
                let mut value: sys::nvmlFieldValue_t = std::mem::zeroed();
                value.fieldId = id;
                assert_eq!(rig.nvml.lib().nvmlDeviceGetFieldValues(gpu.handle(), 1, &mut value), 0);
                (value.nvmlReturn == 0).then_some(value.value.ullVal)
            }
        };
        assert_eq!((raw(software), raw(hardware)), (Some(0), Some(3_000_000_000)), "{version}");
        let other = if software == 251 { 270 } else { 252 };
        assert_eq!(raw(other), None, "{version}: the id means something else there");
        assert_eq!(raw(fi::NVML_FI_DEV_NVLINK_LINK_COUNT).map(|v| v & 0xFFFF_FFFF), Some(18));
        assert_eq!(raw(fi::NVML_FI_DEV_RETIRED_SBE), None, "rows are remapped, pages not retired");
    }
}

#[test]
fn sockets_and_switches() {
    let rig = rig(&[("H100", 3), ("L40S", 1)]);
    let devices: Vec<_> = (0..4).map(|i| rig.nvml.device_by_index(i).expect("device")).collect();
    let lib = rig.nvml.lib();
    let (mut level, mut status, mut node, mut cpus) = (0, 0, 0, [0; 2]);
    // SAFETY: handles and pointers are valid, the set has the length given.
    unsafe {
        let mut meets = |a: usize, b: usize| {
            let (a, b) = (devices[a].handle(), devices[b].handle());
            assert_eq!(lib.nvmlDeviceGetTopologyCommonAncestor(a, b, &mut level), 0);
            level
        };
        assert_eq!([meets(0, 1), meets(0, 2), meets(2, 3), meets(1, 1)], [40, 50, 40, 0]);
        let mut nvlink = |a: usize, b: usize| {
            let (a, b) = (devices[a].handle(), devices[b].handle());
            assert_eq!(lib.nvmlDeviceGetP2PStatus(a, b, 2, &mut status), 0);
            status
        };
        assert_eq!([nvlink(0, 2), nvlink(0, 3)], [0, 5], "the card without NVLink is left out");
        assert_eq!(lib.nvmlDeviceGetNumaNodeId(devices[3].handle(), &mut node), 0);
        assert_eq!(lib.nvmlDeviceGetCpuAffinity(devices[3].handle(), 2, cpus.as_mut_ptr()), 0);
        let mut version = 0;
        assert_eq!(lib.nvmlDeviceGetNvLinkVersion(devices[0].handle(), 17, &mut version), 0);
        assert_eq!(version, 6);
        assert_eq!(lib.nvmlDeviceGetNvLinkVersion(devices[3].handle(), 0, &mut version), 3);
    }
    assert_eq!((node, cpus), (1, [0, u64::MAX]));
}
