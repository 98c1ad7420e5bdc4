//! Probes of simulated cards, through both simulated libraries and in child processes.

// Helpers of tests fail by panicking too; the lint's own exception covers only the test functions.
#![allow(clippy::expect_used, clippy::panic)]

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use vendue_crds::{GpuProbe, ProbeResult};
use vendue_gpu_agent::synthetic::command::{self, Probed};
use vendue_gpu_agent::synthetic::cuda::{Cuda, CudaError};
use vendue_gpu_agent::synthetic::measure::{Block, Card, Figures, Memory, measure};
use vendue_gpu_agent::synthetic::runner::Runner;
use vendue_nvml_sim::clock::Clock;
use vendue_nvml_sim::fault::{Fault, ThrottleReason};
use vendue_nvml_sim::fleet::{Fleet, FleetError};
use vendue_nvml_sim::load::Work;
use vendue_nvml_sim::profile;
use vendue_nvml_sim::state::{Device, DeviceHealth, DriverHealth};

const AGENT: &str = env!("CARGO_BIN_EXE_vendue-gpu-agent");
const DEADLINE: Duration = Duration::from_secs(30);

fn built(name: &str) -> PathBuf {
    let exe = std::env::current_exe().expect("path of the test");
    exe.ancestors().skip(1).map(|dir| dir.join(name)).find(|path| path.exists()).expect("built library")
}

/// Cards with both libraries and a state of their own.
struct Rig {
    fleet: Fleet,
    nvml: PathBuf,
    cuda: PathBuf,
    _dir: tempfile::TempDir,
}

impl Rig {
    fn new(cards: &[(&str, usize)]) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let fleet =
            Fleet::create(&dir.path().join("state.json"), cards, "probe", Clock::stopped(0)).expect("fleet");
        let nvml = fleet.install(&built("libvendue_nvml_sim.so")).expect("install");
        let cuda = dir.path().join("libcuda.so.1");
        std::fs::copy(built("libvendue_cuda_sim.so"), &cuda).expect("copy");
        Self { fleet, nvml, cuda, _dir: dir }
    }

    /// One card that deceives, or is in some condition.
    fn with(model: &str, change: impl Fn(&mut Device)) -> Self {
        let rig = Self::new(&[(model, 1)]);
        let edit = |s: &mut vendue_nvml_sim::state::State, _| {
            for name in ["A100", "L40S"] {
                s.profiles.insert(name.to_owned(), profile::built_in(name).expect("profile").1);
            }
            change(&mut s.devices[0]);
            Ok(())
        };
        rig.fleet.update::<FleetError>(edit).expect("change");
        rig
    }

    fn probe(&self) -> Vec<Probed> {
        command::probe(Some(self.nvml.clone()), Some(&self.cuda), None).expect("probe")
    }

    fn only(&self) -> GpuProbe {
        self.probe().pop().expect("one card").probe
    }

    fn uuid(&self) -> String {
        self.fleet.machine().expect("machine").state().devices[0].uuid.clone()
    }

    fn libraries(&self) -> [OsString; 4] {
        ["--nvml-library".into(), self.nvml.clone().into(), "--cuda-library".into(), self.cuda.clone().into()]
    }

    fn run(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let output = Command::new(AGENT).args(self.libraries()).args(arguments).output().expect("run");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        (output.status.code(), text(output.stdout), text(output.stderr))
    }
}

fn outcome(probe: &GpuProbe) -> (ProbeResult, &str) {
    (probe.result, &probe.reason)
}

#[test]
fn honest_cards_of_every_model_pass() {
    let cards: Vec<_> = profile::names().into_iter().map(|name| (name, 1)).collect();
    assert!(cards.len() >= 6, "{cards:?}");
    for Probed { product_name, probe, .. } in Rig::new(&cards).probe() {
        assert_eq!(outcome(&probe), (ProbeResult::Passed, "Passed"), "{product_name}: {probe:?}");
    }
    let h100 = Rig::new(&[("H100", 1)]).only();
    // Whole blocks of 256 MiB of 81008 MiB; 92 % of 3350 GB/s.
    assert_eq!((h100.memory_mib, h100.sm_clock_mhz), (Some(80_896), Some(1_980)));
    let bandwidth = h100.bandwidth_megabytes_per_second.expect("bandwidth");
    assert!((3_040_000..3_090_000).contains(&bandwidth), "{bandwidth}");
}

#[test]
fn cards_that_deceive_are_found() {
    let cases: [(Rig, &str, &str); 5] = [
        (
            Rig::with("H100", |d| d.disguise.memory_mib = Some(188_000)),
            "MemoryMissing",
            "memory: 80896 MiB hold what is written to them, 188000 MiB are said to be there",
        ),
        (
            Rig::with("H100", |d| d.disguise.real_profile = Some("L40S".to_owned())),
            "MemoryMissing",
            "792 GB/s, the model has 3350 GB/s",
        ),
        // As large, but slower.
        (
            Rig::with("H100", |d| d.disguise.real_profile = Some("A100".to_owned())),
            "BandwidthLow",
            "1410 MHz, the model has 1980 MHz",
        ),
        (
            Rig::with("H100", |d| d.disguise.clock_percent = Some(50)),
            "ClockLow",
            "clock under load: 990 MHz, the model has 1980 MHz",
        ),
        (
            Rig::with("T4", |d| d.disguise.clock_percent = Some(75)),
            "ClockLow",
            "1192 MHz, the model has 1590 MHz",
        ),
    ];
    for (rig, reason, text) in cases {
        let probe = rig.only();
        assert_eq!(outcome(&probe), (ProbeResult::Failed, reason), "{probe:?}");
        let message = probe.message.expect("message");
        assert!(message.contains(text), "{message}");
    }
    let hot = Rig::new(&[("H100", 1)]);
    let cut = Fault::Throttle { reason: ThrottleReason::HwThermal, clock_percent: 25, for_ns: None };
    hot.fleet.inject(Some(0), cut).expect("inject");
    assert_eq!(outcome(&hot.only()), (ProbeResult::Failed, "ClockLow"));
}

#[test]
fn without_a_cuda_driver_nothing_is_measured_and_that_is_said() {
    let rig = Rig::new(&[("H100", 2)]);
    let probed = command::probe(Some(rig.nvml.clone()), Some(Path::new("/nowhere/libcuda.so.1")), None);
    for Probed { probe, .. } in probed.expect("probe") {
        assert_eq!(outcome(&probe), (ProbeResult::NotRun, "NoCudaDriver"));
        assert!(probe.message.expect("message").starts_with("load /nowhere/libcuda.so.1: "));
    }
    // A driver that CUDA cannot use.
    let broken = Rig::new(&[("H100", 1)]);
    let set = |s: &mut vendue_nvml_sim::state::State, _| {
        s.driver.health = DriverHealth::Mismatch;
        Ok(())
    };
    let uuid = broken.uuid();
    broken.fleet.update::<FleetError>(set).expect("driver");
    let Err(error) = vendue_gpu_agent::synthetic::cuda::Cuda::open(Some(&broken.cuda), &uuid) else {
        panic!("the versions differ")
    };
    assert_eq!(error.to_string(), "initialise CUDA: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803)");
}

#[test]
fn what_is_used_sliced_or_broken_is_left_alone() {
    let used = Rig::new(&[("H100", 1)]);
    let work = Work { pid: std::process::id(), device: 0, intensity: 50, memory_mib: 10, ..Work::default() };
    used.fleet.load(work).expect("load");
    let sliced = Rig::new(&[("A100", 1)]);
    sliced.fleet.inject(Some(0), Fault::Mig { enabled: true, instances: vec![] }).expect("slice");
    let broken = Rig::with("H100", |d| d.health = DeviceHealth::EccFailed);
    for (rig, reason) in [(used, "Busy"), (sliced, "MigEnabled"), (broken, "Faulty")] {
        let probe = rig.only();
        assert_eq!(outcome(&probe), (ProbeResult::NotRun, reason), "{probe:?}");
        assert_eq!(probe.memory_mib, None);
    }
}

/// A card of which somebody takes nearly all memory after the probe has taken its first block.
struct Contended<'a> {
    card: Cuda,
    fleet: &'a Fleet,
    begun: bool,
}

impl Card for Contended<'_> {
    type Error = CudaError;

    fn figures(&self) -> Figures {
        self.card.figures()
    }

    fn memory(&mut self) -> Result<Memory, CudaError> {
        self.card.memory()
    }

    fn allocate(&mut self) -> Result<Option<Block>, CudaError> {
        let block = self.card.allocate();
        if !std::mem::replace(&mut self.begun, true) {
            let work = Work { pid: 7, device: 0, intensity: 50, memory_mib: 80_000, ..Work::default() };
            self.fleet.load(work).expect("load");
        }
        block
    }

    fn release(&mut self, block: Block) -> Result<(), CudaError> {
        self.card.release(block)
    }

    fn fill(&mut self, block: Block, word: u32) -> Result<(), CudaError> {
        self.card.fill(block, word)
    }

    fn read(&mut self, block: Block, position: u64) -> Result<u32, CudaError> {
        self.card.read(block, position)
    }

    fn time_copies(&mut self, to: Block, from: Block, count: u32) -> Result<Duration, CudaError> {
        self.card.time_copies(to, from, count)
    }

    fn time_cycles(&mut self, cycles: u64) -> Result<Duration, CudaError> {
        self.card.time_cycles(cycles)
    }
}

#[test]
fn memory_that_somebody_takes_meanwhile_ends_the_taking_and_leaves_him_seen() {
    let rig = Rig::new(&[("H100", 1)]);
    let card = Cuda::open(Some(&rig.cuda), &rig.uuid()).expect("open");
    let mut contended = Contended { card, fleet: &rig.fleet, begun: false };
    let measured = measure(&mut contended, 1).expect("no call fails");
    assert!(measured.intact >> 20 < 2_000, "{measured:?}");
    drop(contended);
    // What the agent sees when the probe is over: it is not the device's fault.
    assert_eq!(outcome(&rig.only()), (ProbeResult::NotRun, "Busy"));
}

#[test]
fn the_command_prints_what_it_found_and_names_what_it_knows() {
    let rig = Rig::new(&[("T4", 2)]);
    let uuid = rig.uuid();
    let (code, out, _) = rig.run(&["probe", "--gpu", &uuid, "-o", "json"]);
    assert_eq!(code, Some(0));
    let printed: Vec<Probed> = serde_json::from_str(&out).expect("JSON");
    assert_eq!(
        (printed.len(), &printed[0].uuid, outcome(&printed[0].probe)),
        (1, &uuid, (ProbeResult::Passed, "Passed"))
    );
    let (code, out, _) = rig.run(&["probe"]);
    assert_eq!((code, out.lines().count()), (Some(0), 2));
    assert!(out.starts_with(&format!("{uuid}  Tesla T4  Passed  Passed  ")), "{out}");
    let (code, out, error) = rig.run(&["probe", "--gpu", "GPU-9"]);
    assert_eq!((code, out.as_str()), (Some(2), ""));
    assert!(error.contains("--gpu is GPU-9; accepted: ") && error.contains(&uuid), "{error}");
    // A child whose parent is gone has nobody to answer to.
    let (code, _, error) = rig.run(&["probe", "--parent", "1"]);
    assert_eq!(code, Some(1));
    assert!(error.contains("process 1, which started this one, has ended"), "{error}");
}

fn runner(rig: &Rig, limit: Duration) -> Runner {
    Runner::new(AGENT.into(), rig.libraries().to_vec(), limit)
}

/// A program in the probe's place.
fn script(text: &str, limit: Duration) -> Runner {
    Runner::new("/bin/sh".into(), vec!["-c".into(), text.into()], limit)
}

fn is_gone(pid: &str) -> bool {
    // A process that ended and was not waited for is a zombie.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.map_or(true, |stat| stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
}

fn until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn a_probe_in_a_process_of_its_own_finds_the_same() {
    let rig = Rig::with("H100", |d| d.disguise.clock_percent = Some(50));
    let probe = runner(&rig, DEADLINE).probe(&rig.uuid()).await;
    assert_eq!(probe, rig.only());
    let probe = runner(&rig, DEADLINE).probe("GPU-9").await;
    assert_eq!(outcome(&probe), (ProbeResult::NotRun, "ProbeError"));
    let message = probe.message.expect("message");
    assert!(message.contains("--gpu is GPU-9"), "{message}");
}

#[tokio::test]
async fn a_call_that_hangs_is_ended_with_its_process() {
    let rig = Rig::with("H100", |d| d.health = DeviceHealth::Hung);
    let probe = runner(&rig, Duration::from_millis(300)).probe(&rig.uuid()).await;
    assert_eq!(outcome(&probe), (ProbeResult::Failed, "TimedOut"));
    assert_eq!(probe.message.as_deref(), Some("the probe did not end within 0.3 s"));

    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("pid");
    let text = format!("echo $$ > {}; exec sleep 600", file.display());
    let hangs = script(&text, Duration::from_millis(300));
    assert_eq!(outcome(&hangs.probe("GPU-1").await), (ProbeResult::Failed, "TimedOut"));
    let pid = std::fs::read_to_string(&file).expect("it ran").trim().to_owned();
    assert!(is_gone(&pid), "{pid} still runs");
    assert_eq!(hangs.probe("GPU-1").await.reason, "TimedOut", "it can be tried again");
}

#[tokio::test]
async fn crashes_and_nonsense_are_told_apart() {
    for (text, result, reason, message) in [
        ("kill -SEGV $$", ProbeResult::Failed, "Crashed", "the probe was ended by signal 11"),
        (
            "echo why >&2; exit 3",
            ProbeResult::NotRun,
            "ProbeError",
            "the probe ended with exit status: 3: why",
        ),
        ("echo []", ProbeResult::NotRun, "ProbeError", "the probe says nothing of the device"),
        ("echo nonsense", ProbeResult::NotRun, "ProbeError", "read what the probe found: "),
    ] {
        let probe = script(text, DEADLINE).probe("GPU-1").await;
        assert_eq!(outcome(&probe), (result, reason), "{text}");
        assert!(probe.message.as_deref().unwrap_or_default().starts_with(message), "{probe:?}");
    }
    let missing = Runner::new("/nowhere/agent".into(), vec![], DEADLINE).probe("GPU-1").await;
    assert_eq!(outcome(&missing), (ProbeResult::NotRun, "ProbeError"));
}

#[tokio::test]
async fn a_probe_that_nobody_waits_for_ends() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("pid");
    let hangs = script(&format!("echo $$ > {}; exec sleep 600", file.display()), DEADLINE);
    let written = || std::fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n'));
    let started = async {
        while !written() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        probe = hangs.probe("GPU-1") => panic!("{probe:?}"),
        () = started => {}
    }
    let pid = std::fs::read_to_string(&file).expect("pid").trim().to_owned();
    until("the child ends", || is_gone(&pid));
}

#[test]
fn a_probe_ends_with_an_agent_that_is_killed() {
    let rig = Rig::with("H100", |d| d.health = DeviceHealth::Hung);
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("pid");
    let text = format!(
        "{AGENT} --nvml-library {} probe --parent $$ & echo $! > {}; wait",
        rig.nvml.display(),
        file.display()
    );
    let mut parent = Command::new("/bin/sh").args(["-c", &text]).spawn().expect("start");
    until("the child starts", || std::fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n')));
    let pid = std::fs::read_to_string(&file).expect("pid").trim().to_owned();
    // It waits in the driver: it has asked the kernel by then to end with its parent.
    let waits = || {
        std::fs::read_to_string(format!("/proc/{pid}/maps"))
            .is_ok_and(|maps| maps.contains("libnvidia-ml.so.1"))
    };
    until("the child calls the driver", waits);
    parent.kill().expect("kill");
    parent.wait().expect("status");
    until("the child ends", || is_gone(&pid));
}
