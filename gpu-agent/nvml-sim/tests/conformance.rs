//! Every exported symbol is called as the real library's documentation allows and forbids: without initialisation, with
//! good arguments, with NULL, with stray handles, with short buffers, with unknown struct versions, on a lost device.

// Helpers of tests fail by panicking too; the lint's own exception covers only the test functions.
#![allow(clippy::expect_used, clippy::panic)]
// Symbols are called by name with arguments that no type system checks: that is the subject.
#![allow(unsafe_code)]

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use libloading::Library;
use nvml_wrapper_sys::bindings as sys;
use object::{Object, ObjectSymbol};
use vendue_nvml_sim::clock::Clock;
use vendue_nvml_sim::fault::Fault;
use vendue_nvml_sim::fleet::Fleet;
use vendue_nvml_sim::mig;
use vendue_nvml_sim::state::DeviceHealth;

/// One line a symbol: name, arguments, code on a healthy H100. Arguments are
/// `d` device, `n` device in MIG mode, `m` MIG device, `g` GPU instance, `k` compute instance, `q` event set,
/// `w` one to be freed, `p` performance sample, `r` one to be freed, `o` room for an answer, `x` a pointer that may be NULL, `t` a buffer for text with
/// its length, `c` a count of 64, `s(N)` a struct with version N, `u` UUID, `i` PCI address, `z` serial, else a number.
const TABLE: &str = include_str!("symbols.txt");

/// Symbols that are called by the test itself and cannot be called in any state.
const SESSION: [&str; 5] =
    ["nvmlInit", "nvmlInit_v2", "nvmlInitWithFlags", "nvmlShutdown", "nvmlErrorString"];

const INVALID_ARGUMENT: u32 = 2;
const UNINITIALIZED: u32 = 1;
const INSUFFICIENT_SIZE: u32 = 7;
const GPU_IS_LOST: u32 = 15;
const VERSION_MISMATCH: u32 = 25;

/// Room for the largest struct, and then some.
const ROOM: usize = 32 << 10;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Handle,
    Pointer,
    Optional,
    Length,
    Versioned(u32),
    Value,
}

struct Row<'a> {
    name: &'a str,
    arguments: Vec<(Kind, usize)>,
    expected: u32,
    on_device: bool,
}

/// What the table's letters stand for in one session.
struct Handles {
    device: usize,
    split: usize,
    mig: usize,
    gpu_instance: usize,
    compute_instance: usize,
    events: usize,
    freed_events: usize,
    samples: [usize; 2],
    texts: [std::ffi::CString; 3],
}

struct Nvml {
    library: Library,
}

impl Nvml {
    fn call(&self, name: &str, arguments: &[usize]) -> u32 {
        let mut a = [0; 6];
        a[..arguments.len()].copy_from_slice(arguments);
        // SAFETY: on the platforms of this test all of NVML's arguments are integers or pointers in registers, in which
        // a callee ignores those that it does not take. What they point to is the test's own memory.
        unsafe {
            let symbol = self
                .library
                .get::<unsafe extern "C" fn(usize, usize, usize, usize, usize, usize) -> u32>(name.as_bytes())
                .unwrap_or_else(|e| panic!("{name}: {e}"));
            symbol(a[0], a[1], a[2], a[3], a[4], a[5])
        }
    }

    /// Calls a function whose last argument is room for a handle.
    fn handle(&self, name: &str, arguments: &[usize]) -> usize {
        let mut out: usize = 0;
        let mut all = arguments.to_vec();
        all.push((&raw mut out).addr());
        assert_eq!(self.call(name, &all), 0, "{name}");
        out
    }

    fn handles(&self, fleet: &Fleet) -> Handles {
        let state = vendue_nvml_sim::source::load(fleet.path()).expect("state");
        let first = &state.devices[0];
        let text = |s: &str| std::ffi::CString::new(s).expect("text");
        let device = self.handle("nvmlDeviceGetHandleByIndex_v2", &[0]);
        let split = self.handle("nvmlDeviceGetHandleByIndex_v2", &[1]);
        let gpu_instance = self.handle("nvmlDeviceGetGpuInstanceById", &[split, 1]);
        let samples = [0, 1].map(|_| self.handle("nvmlGpmSampleAlloc", &[]));
        for sample in samples {
            assert_eq!(self.call("nvmlGpmSampleGet", &[device, sample]), 0);
            fleet.advance(std::time::Duration::from_secs(1)).expect("advance");
        }
        Handles {
            device,
            split,
            mig: self.handle("nvmlDeviceGetMigDeviceHandleByIndex", &[split, 0]),
            gpu_instance,
            compute_instance: self.handle("nvmlGpuInstanceGetComputeInstanceById", &[gpu_instance, 0]),
            events: self.handle("nvmlEventSetCreate", &[]),
            freed_events: self.handle("nvmlEventSetCreate", &[]),
            samples,
            texts: [text(&first.uuid), text(&first.pci.long()), text(&first.serial)],
        }
    }
}

fn version(name: &str) -> u32 {
    let (size, number) = match name {
        "Memory2" => (size_of::<sys::nvmlMemory_v2_t>(), 2),
        "Temperature1" => (size_of::<sys::nvmlTemperature_v1_t>(), 1),
        "MarginTemperature1" => (size_of::<sys::nvmlMarginTemperature_v1_t>(), 1),
        "ProcessesUtilizationInfo1" => (size_of::<sys::nvmlProcessesUtilizationInfo_v1_t>(), 1),
        "ProcessDetailList1" => (size_of::<sys::nvmlProcessDetailList_v1_t>(), 1),
        "PciInfoExt1" => (size_of::<sys::nvmlPciInfoExt_v1_t>(), 1),
        "EccSramErrorStatus1" => (size_of::<sys::nvmlEccSramErrorStatus_v1_t>(), 1),
        "GpuFabricInfo3" => (size_of::<sys::nvmlGpuFabricInfo_v3_t>(), 3),
        "PlatformInfo2" => (size_of::<sys::nvmlPlatformInfo_v2_t>(), 2),
        "GpuInstanceProfileInfo2" => (size_of::<sys::nvmlGpuInstanceProfileInfo_v2_t>(), 2),
        "ConfComputeSettings1" => (size_of::<sys::nvmlSystemConfComputeSettings_v1_t>(), 1),
        "DriverBranch1" => (size_of::<sys::nvmlSystemDriverBranchInfo_v1_t>(), 1),
        "UUID1" => (size_of::<sys::nvmlUUID_v1_t>(), 1),
        // Without a size, by NVML's own choice.
        "Gpm" => (0, 0),
        other => panic!("symbols.txt: unknown struct {other}"),
    };
    if name == "Gpm" { 1 } else { u32::try_from(size).expect("small") | number << 24 }
}

fn rows<'a>(handles: &Handles, scratch: &mut [Vec<u8>]) -> Vec<Row<'a>> {
    let lines = TABLE.lines().filter(|l| !l.is_empty() && !l.starts_with('#'));
    lines.map(|line| row(line, handles, scratch)).collect()
}

fn row<'a>(line: &'a str, handles: &Handles, scratch: &mut [Vec<u8>]) -> Row<'a> {
    let (call, expected) = line.split_once('=').unwrap_or_else(|| panic!("{line}"));
    let mut words = call.split_whitespace();
    let name = words.next().unwrap_or_default();
    let mut arguments = Vec::new();
    for word in words {
        let room = scratch[arguments.len()].as_mut_ptr().addr();
        let text = |n: usize| (Kind::Pointer, handles.texts[n].as_ptr().addr());
        arguments.push(match word {
            "d" => (Kind::Handle, handles.device),
            "n" => (Kind::Handle, handles.split),
            "m" => (Kind::Handle, handles.mig),
            "g" => (Kind::Handle, handles.gpu_instance),
            "k" => (Kind::Handle, handles.compute_instance),
            "q" => (Kind::Handle, handles.events),
            "p" => (Kind::Handle, handles.samples[0]),
            "r" => (Kind::Handle, handles.samples[1]),
            "w" => (Kind::Handle, handles.freed_events),
            "o" | "t" | "c" => (Kind::Pointer, room),
            "x" => (Kind::Optional, room),
            "u" => text(0),
            "i" => text(1),
            "z" => text(2),
            w if w.starts_with("s(") => (Kind::Versioned(version(&w[2..w.len() - 1])), room),
            w => (Kind::Value, w.parse().unwrap_or_else(|_| panic!("{line}: {w}"))),
        });
        if word == "t" {
            arguments.push((Kind::Length, 96));
        }
    }
    let on_device = call.split_whitespace().any(|w| matches!(w, "d" | "n" | "m" | "g" | "k"));
    Row { name, arguments, expected: expected.trim().parse().expect("code"), on_device }
}

struct Bench {
    nvml: Nvml,
    scratch: Vec<Vec<u8>>,
    samples: [usize; 2],
    failures: Vec<String>,
}

impl Bench {
    /// Calls with some arguments replaced; structs get their versions first, counts of 64.
    fn check(&mut self, row: &Row<'_>, what: &str, replace: Option<(usize, usize)>, expected: u32) {
        for (position, (kind, _)) in row.arguments.iter().enumerate() {
            self.scratch[position].fill(0);
            let first = match (kind, replace) {
                (Kind::Versioned(v), Some((at, new))) if at == position && new != 0 => v + 1,
                (Kind::Versioned(v), _) => *v,
                _ => 64,
            };
            self.scratch[position][..4].copy_from_slice(&first.to_ne_bytes());
            if row.name == "nvmlGpmMetricsGet" {
                self.fill_metrics(position);
            }
            if row.name == "nvmlDeviceGetHandleByUUIDV" {
                self.scratch[0][4..8].copy_from_slice(&2_u32.to_ne_bytes());
            }
        }
        let mut values: Vec<usize> = row.arguments.iter().map(|(_, value)| *value).collect();
        if let Some((at, new)) = replace {
            let keep = matches!(row.arguments[at].0, Kind::Versioned(_)) && new != 0;
            if !keep {
                values[at] = new;
            }
        }
        let code = self.nvml.call(row.name, &values);
        if code != expected {
            self.failures.push(format!("{} {what}: {code}, expected {expected}", row.name));
        }
    }

    /// Two samples and one metric.
    fn fill_metrics(&mut self, position: usize) {
        let buffer = &mut self.scratch[position];
        buffer[4..8].copy_from_slice(&1_u32.to_ne_bytes());
        buffer[8..16].copy_from_slice(&self.samples[0].to_ne_bytes());
        buffer[16..24].copy_from_slice(&self.samples[1].to_ne_bytes());
        buffer[24..28].copy_from_slice(&1_u32.to_ne_bytes());
    }

    fn arguments(&mut self, row: &Row<'_>) {
        self.check(row, "with good arguments", None, row.expected);
        for (position, (kind, _)) in row.arguments.iter().enumerate() {
            let at = |value| Some((position, value));
            match kind {
                Kind::Pointer => {
                    self.check(row, &format!("with NULL as argument {position}"), at(0), INVALID_ARGUMENT);
                }
                Kind::Handle => {
                    self.check(row, "with a NULL handle", at(0), INVALID_ARGUMENT);
                    self.check(row, "with a stray handle", at(0x1234_5678), INVALID_ARGUMENT);
                }
                Kind::Versioned(_) => {
                    self.check(row, "with NULL for a struct", at(0), INVALID_ARGUMENT);
                    self.check(row, "with an unknown version", at(1), VERSION_MISMATCH);
                }
                Kind::Length if row.expected == 0 => {
                    self.check(row, "with a short buffer", at(1), INSUFFICIENT_SIZE);
                }
                Kind::Length | Kind::Optional | Kind::Value => {}
            }
        }
    }
}

fn exported(library: &Path) -> BTreeSet<String> {
    let bytes = std::fs::read(library).expect("read");
    let file = object::File::parse(&*bytes).expect("ELF");
    let defined = file.dynamic_symbols().filter(|s| s.is_definition()).filter_map(|s| s.name().ok());
    defined.filter(|n| n.starts_with("nvml")).map(str::to_owned).collect()
}

/// Device 0 as it comes, device 1 in MIG mode with one instance.
fn fleet(dir: &Path) -> Fleet {
    let path = dir.join("state.json");
    let fleet = Fleet::create(&path, &[("H100", 2)], "conformance", Clock::stopped(0)).expect("fleet");
    let profile = vendue_nvml_sim::profile::built_in("H100").expect("profile").1;
    let instances = mig::layout(&profile, &["3g.40gb"], "x").expect("layout");
    fleet.inject(Some(1), Fault::Mig { enabled: true, instances }).expect("split");
    fleet
}

#[test]
fn every_exported_symbol_keeps_nvmls_contract() {
    let dir = tempfile::tempdir().expect("dir");
    let fleet = fleet(dir.path());
    let path = fleet.install(&common::library()).expect("install");
    // SAFETY: the library runs no code when loaded.
    let nvml = Nvml { library: unsafe { Library::new(&path) }.expect("load") };
    assert_eq!(nvml.call("nvmlInitWithFlags", &[0]), 0);
    let handles = nvml.handles(&fleet);
    let scratch = vec![vec![0_u8; ROOM]; 6];
    let mut bench = Bench { nvml, scratch, samples: handles.samples, failures: Vec::new() };
    let rows = rows(&handles, &mut bench.scratch);

    let named: BTreeSet<String> = rows.iter().map(|r| r.name.to_owned()).collect();
    let known: BTreeSet<String> = SESSION.iter().map(|s| (*s).to_owned()).chain(named).collect();
    let exported = exported(&path);
    assert_eq!(
        exported.difference(&known).collect::<Vec<_>>(),
        Vec::<&String>::new(),
        "symbols without a row"
    );
    assert_eq!(
        known.difference(&exported).collect::<Vec<_>>(),
        Vec::<&String>::new(),
        "rows without a symbol"
    );

    let listed = vendue_nvml_sim::library::missing("0").expect("list of symbols");
    let stray: Vec<_> = listed.iter().filter(|s| !exported.contains(*s)).collect();
    assert_eq!(stray, Vec::<&String>::new(), "symbols.json names what is not exported");

    for row in &rows {
        bench.arguments(row);
    }
    for device in [0, 1] {
        fleet.inject(Some(device), Fault::Health { health: DeviceHealth::Lost }).expect("lose");
    }
    // A wrong argument is wrong on a lost device too, and freed handles are gone.
    let live = |r: &&Row<'_>| r.on_device && r.expected != INVALID_ARGUMENT;
    for row in rows.iter().filter(live) {
        bench.check(row, "on a lost device", None, GPU_IS_LOST);
    }
    assert_eq!(bench.nvml.call("nvmlShutdown", &[]), 0);
    for row in &rows {
        bench.check(row, "without initialisation", None, UNINITIALIZED);
    }
    assert_eq!(bench.nvml.call("nvmlShutdown", &[]), UNINITIALIZED);
    assert_eq!(bench.failures, Vec::<String>::new());
    assert!(rows.len() > 150, "{}", rows.len());
}
