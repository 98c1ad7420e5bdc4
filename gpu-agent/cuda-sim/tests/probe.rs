//! The built library, called as a probe of memory size, bandwidth and clock calls it.

// Helpers of tests fail by panicking too; the lint's own exception covers only the test functions.
#![allow(clippy::expect_used, clippy::panic)]
// A C library is called through its symbols.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_void};
use std::path::{Path, PathBuf};
use std::ptr::null_mut;
use std::time::Instant;

use libloading::Library;
use object::{Object, ObjectSymbol};
use vendue_gpu_sim::clock::Clock;
use vendue_gpu_sim::fault::{Fault, ThrottleReason};
use vendue_gpu_sim::fleet::{Fleet, FleetError};
use vendue_gpu_sim::state::{Device, DeviceHealth, DriverHealth};

const GIB: usize = 1 << 30;

fn built() -> PathBuf {
    let exe = std::env::current_exe().expect("path of the test");
    let name = "libvendue_cuda_sim.so";
    exe.ancestors().skip(1).map(|dir| dir.join(name)).find(|path| path.exists()).expect("built library")
}

/// One card with a library and a state of its own.
struct Rig {
    library: Library,
    fleet: Fleet,
    _dir: tempfile::TempDir,
}

macro_rules! call {
    ($rig:expr, $name:ident($($ty:ty),* $(,)?), $($value:expr),* $(,)?) => {{
        // SAFETY: the types are those of cuda.h, and pointers point to the test's own memory.
        unsafe {
            let symbol = $rig.library.get::<unsafe extern "C" fn($($ty),*) -> u32>(stringify!($name).as_bytes());
            symbol.unwrap_or_else(|e| panic!("{e}"))($($value),*)
        }
    }};
}

impl Rig {
    fn new(model: &str, change: impl Fn(&mut Device)) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("state.json");
        let fleet = Fleet::create(&path, &[(model, 1)], "cuda", Clock::stopped(0)).expect("fleet");
        let edit = |s: &mut vendue_gpu_sim::state::State, _| {
            for name in ["T4", "L40S"] {
                let profile = vendue_gpu_sim::profile::built_in(name).expect("profile").1;
                s.profiles.insert(name.to_owned(), profile);
            }
            change(&mut s.devices[0]);
            Ok(())
        };
        fleet.update::<FleetError>(edit).expect("change");
        let copy = dir.path().join("libcuda.so.1");
        std::fs::copy(built(), &copy).expect("copy the library");
        // SAFETY: the library runs no code when loaded.
        Self { library: unsafe { Library::new(&copy) }.expect("load"), fleet, _dir: dir }
    }

    fn with_context(model: &str, change: impl Fn(&mut Device)) -> Self {
        let rig = Self::new(model, change);
        assert_eq!(rig.init(), 0);
        assert_eq!(rig.context(), 0);
        rig
    }

    fn init(&self) -> u32 {
        call!(self, cuInit(u32), 0)
    }

    fn context(&self) -> u32 {
        let mut context: *mut c_void = null_mut();
        call!(self, cuCtxCreate_v2(*mut *mut c_void, u32, i32), &mut context, 0, 0)
    }

    fn total(&self) -> usize {
        let mut bytes = 0;
        assert_eq!(call!(self, cuDeviceTotalMem_v2(*mut usize, i32), &mut bytes, 0), 0);
        bytes
    }

    fn allocate(&self, bytes: usize) -> Result<u64, u32> {
        let mut address = 0;
        let code = call!(self, cuMemAlloc_v2(*mut u64, usize), &mut address, bytes);
        if code == 0 { Ok(address) } else { Err(code) }
    }

    fn event(&self) -> *mut c_void {
        let mut event = null_mut();
        assert_eq!(call!(self, cuEventCreate(*mut *mut c_void, u32), &mut event, 0), 0);
        event
    }

    /// Milliseconds that work takes, by the events around it.
    fn timed(&self, work: impl FnOnce()) -> f32 {
        let (start, end, mut ms) = (self.event(), self.event(), 0.0);
        assert_eq!(call!(self, cuEventRecord(*mut c_void, *mut c_void), start, null_mut()), 0);
        work();
        assert_eq!(call!(self, cuEventRecord(*mut c_void, *mut c_void), end, null_mut()), 0);
        assert_eq!(call!(self, cuEventSynchronize(*mut c_void), end), 0);
        let code = call!(self, cuEventElapsedTime(*mut f32, *mut c_void, *mut c_void), &mut ms, start, end);
        assert_eq!(code, 0);
        ms
    }

    /// Memory bandwidth in GB/s, by ten copies of a GiB.
    fn bandwidth(&self) -> f64 {
        let (from, to) = (self.allocate(GIB).expect("from"), self.allocate(GIB).expect("to"));
        let ms = self.timed(|| {
            for _ in 0..10 {
                assert_eq!(call!(self, cuMemcpyDtoD_v2(u64, u64, usize), to, from, GIB), 0);
            }
        });
        20.0 * GIB as f64 / f64::from(ms) / 1e6
    }

    /// SM clock under load in MHz, by a kernel that is busy for a known number of cycles.
    fn clock(&self) -> f64 {
        let (function, cycles) = (self.kernel(c"vendue_spin_cycles"), 1_000_000_000);
        let ms = self.timed(|| assert_eq!(self.launch(function, &mut [cycles]), 0));
        cycles as f64 / f64::from(ms) / 1e3
    }

    fn kernel(&self, name: &CStr) -> *mut c_void {
        let (mut module, mut function): (*mut c_void, *mut c_void) = (null_mut(), null_mut());
        let image = c"// any image";
        let code =
            call!(self, cuModuleLoadData(*mut *mut c_void, *const c_char), &mut module, image.as_ptr());
        assert_eq!(code, 0);
        assert_eq!(
            call!(
                self,
                cuModuleGetFunction(*mut *mut c_void, *mut c_void, *const c_char),
                &mut function,
                module,
                name.as_ptr()
            ),
            0
        );
        function
    }

    fn launch(&self, function: *mut c_void, arguments: &mut [u64]) -> u32 {
        let mut pointers: Vec<*mut c_void> = arguments.iter_mut().map(|a| (&raw mut *a).cast()).collect();
        call!(
            self,
            cuLaunchKernel(
                *mut c_void,
                u32,
                u32,
                u32,
                u32,
                u32,
                u32,
                u32,
                *mut c_void,
                *mut *mut c_void,
                *mut *mut c_void,
            ),
            function,
            132,
            1,
            1,
            32,
            1,
            1,
            0,
            null_mut(),
            pointers.as_mut_ptr(),
            null_mut()
        )
    }
}

fn close(value: f64, wanted: f64) -> bool {
    (value - wanted).abs() < wanted * 0.005
}

#[test]
fn an_honest_card_measures_as_its_data_sheet_says_and_nobody_waits() {
    let begin = Instant::now();
    let rig = Rig::with_context("H100", |_| {});
    let total = rig.total();
    assert_eq!(total, (81_559 - 551) << 20);
    let bandwidth = rig.bandwidth();
    assert!(close(bandwidth, 3_350.0 * 0.92), "{bandwidth}");
    let clock = rig.clock();
    assert!(close(clock, 1_980.0), "{clock}");
    assert!(rig.allocate(total - 2 * GIB).is_ok(), "all of it is there");
    assert_eq!(rig.allocate(1), Err(2));
    assert!(begin.elapsed().as_secs() < 2, "ten copies and a billion cycles are simulated");
}

#[test]
fn a_card_that_lies_about_its_memory_runs_out_of_it() {
    let rig = Rig::with_context("H100", |d| d.disguise.memory_mib = Some(188_000));
    let total = rig.total();
    assert!(total > 180 * GIB, "it claims so");
    assert_eq!(rig.allocate(total - GIB), Err(2));
    assert!(rig.allocate(78 * GIB).is_ok());
}

#[test]
fn relabelled_and_throttled_cards_are_slower_than_they_say() {
    let relabelled = Rig::with_context("H100", |d| d.disguise.real_profile = Some("L40S".to_owned()));
    let mut name = [0_u8; 64];
    let code = call!(relabelled, cuDeviceGetName(*mut u8, i32, i32), name.as_mut_ptr(), 64, 0);
    assert_eq!((code, name.starts_with(b"NVIDIA H100")), (0, true));
    assert_eq!(relabelled.allocate(60 * GIB), Err(2));
    assert!(close(relabelled.bandwidth(), 864.0 * 0.92));

    let throttled = Rig::with_context("H100", |d| d.disguise.clock_percent = Some(50));
    assert!(close(throttled.clock(), 990.0));
    let hot = Rig::with_context("H100", |_| {});
    let cut = Fault::Throttle { reason: ThrottleReason::HwThermal, clock_percent: 25, for_ns: None };
    hot.fleet.inject(Some(0), cut).expect("inject");
    assert!(close(hot.clock(), 495.0));
}

#[test]
fn a_kernel_copies_units_as_fast_as_the_memory_is() {
    let rig = Rig::with_context("T4", |_| {});
    let (from, to) = (rig.allocate(GIB).expect("from"), rig.allocate(GIB).expect("to"));
    let copy = rig.kernel(c"vendue_copy_units");
    assert_eq!(call!(rig, cuMemsetD32_v2(u64, u32, usize), from, 7, GIB / 4), 0);
    let ms = rig.timed(|| assert_eq!(rig.launch(copy, &mut [to, from, GIB as u64 / 16]), 0));
    let bandwidth = 2.0 * GIB as f64 / f64::from(ms) / 1e6;
    assert!(close(bandwidth, 320.0 * 0.92), "{bandwidth}");
    let mut word = 0_u32;
    let last = to + GIB as u64 - 4;
    assert_eq!(call!(rig, cuMemcpyDtoH_v2(*mut u32, u64, usize), &mut word, last, 4), 0);
    assert_eq!(word, 7);
    assert_eq!(rig.launch(copy, &mut [to, from, GIB as u64 / 16 + 1]), 1);
    assert_eq!(rig.launch(copy, &mut [to, from, u64::MAX]), 1);
    assert_eq!(rig.launch(null_mut(), &mut [1]), 400);
}

#[test]
fn memory_keeps_what_is_written_and_refuses_what_lies_outside() {
    let rig = Rig::with_context("T4", |_| {});
    let address = rig.allocate(12 * GIB).expect("allocate");
    let far = address + 11 * GIB as u64;
    assert_eq!(call!(rig, cuMemsetD32_v2(u64, u32, usize), address, 0xAABB_CCDD, 3 * GIB), 0);
    assert_eq!(call!(rig, cuMemcpyHtoD_v2(u64, *const u8, usize), address, [1_u8, 2].as_ptr(), 2), 0);
    assert_eq!(call!(rig, cuMemcpyDtoD_v2(u64, u64, usize), far, address, 8), 0);
    let mut out = [0_u8; 12];
    assert_eq!(call!(rig, cuMemcpyDtoH_v2(*mut u8, u64, usize), out.as_mut_ptr(), far, 12), 0);
    assert_eq!(out, [1, 2, 0xBB, 0xAA, 0xDD, 0xCC, 0xBB, 0xAA, 0xDD, 0xCC, 0xBB, 0xAA]);
    let beyond = address + 12 * GIB as u64 - 4;
    assert_eq!(call!(rig, cuMemsetD32_v2(u64, u32, usize), beyond, 0, 2), 1);
    assert_eq!(call!(rig, cuMemsetD32_v2(u64, u32, usize), 16, 0, 1), 1);
    assert_eq!(call!(rig, cuMemsetD32_v2(u64, u32, usize), address, 0, usize::MAX), 1);
    assert_eq!(call!(rig, cuMemFree_v2(u64), address), 0);
    assert_eq!(call!(rig, cuMemFree_v2(u64), address), 1);
    assert_eq!(call!(rig, cuMemAlloc_v2(*mut u64, usize), null_mut(), 1), 1);
}

#[test]
fn trouble_has_cudas_codes() {
    let rig = Rig::new("H100", |_| {});
    let mut count = 0;
    assert_eq!(call!(rig, cuDeviceGetCount(*mut i32), &mut count), 3, "not initialised");
    assert_eq!(call!(rig, cuInit(u32), 1), 1);
    assert_eq!(rig.init(), 0);
    assert_eq!((call!(rig, cuDeviceGetCount(*mut i32), &mut count), count), (0, 1));
    assert_eq!(rig.allocate(1), Err(201), "no context");
    assert_eq!(call!(rig, cuDeviceGet(*mut i32, i32), &mut count, 1), 101);
    assert_eq!(rig.context(), 0);
    rig.fleet.inject(Some(0), Fault::Health { health: DeviceHealth::Lost }).expect("lose");
    assert_eq!((rig.allocate(1), rig.context()), (Err(46), 46));
    let mut name: *const c_char = std::ptr::null();
    assert_eq!(call!(rig, cuGetErrorName(u32, *mut *const c_char), 46, &mut name), 0);
    // SAFETY: the library's texts live as long as it is loaded.
    assert_eq!(unsafe { CStr::from_ptr(name) }, c"CUDA_ERROR_DEVICE_UNAVAILABLE");
    assert_eq!(call!(rig, cuGetErrorName(u32, *mut *const c_char), 12345, &mut name), 1);

    for (health, code) in [(DriverHealth::NotLoaded, 100), (DriverHealth::Mismatch, 803)] {
        let rig = Rig::new("H100", |_| {});
        let set = |s: &mut vendue_gpu_sim::state::State, _| {
            s.driver.health = health;
            Ok(())
        };
        rig.fleet.update::<FleetError>(set).expect("driver");
        assert_eq!(rig.init(), code);
    }
}

#[test]
fn the_library_has_nvidias_name_and_no_symbols_but_cudas() {
    let library: &Path = &built();
    let bytes = std::fs::read(library).expect("read");
    let name = b"\0libcuda.so.1\0";
    assert!(bytes.windows(name.len()).any(|window| window == name));
    let file = object::File::parse(&*bytes).expect("ELF");
    let defined = file.dynamic_symbols().filter(|s| s.is_definition()).filter_map(|s| s.name().ok());
    let foreign: Vec<_> = defined.filter(|n| !n.starts_with("cu")).collect();
    assert_eq!(foreign, Vec::<&str>::new());
}
