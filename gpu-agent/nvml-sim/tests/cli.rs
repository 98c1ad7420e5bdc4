//! The command line as other programs use it, against the built library.

// Helpers of tests fail by panicking too; the lint's own exception covers only the test functions.
#![allow(clippy::expect_used, clippy::panic)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

struct Sim {
    dir: tempfile::TempDir,
}

impl Sim {
    /// Devices on a clock that stands still.
    fn start(groups: &[&str]) -> Self {
        let sim = Self { dir: tempfile::tempdir().expect("dir") };
        std::fs::copy(common::library(), sim.library()).expect("copy the library");
        let mut arguments = vec!["start", "--clock-rate", "0", "--seed", "cli"];
        arguments.extend(groups);
        sim.done(&arguments);
        sim
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state.json")
    }

    fn library(&self) -> PathBuf {
        self.dir.path().join("libnvidia-ml.so.1")
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nvml-sim"));
        command.args(arguments).env("VENDUE_NVML_STATE", self.state()).output().expect("run nvml-sim")
    }

    fn done(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    }

    fn refused(&self, arguments: &[&str], code: i32, message: &str) {
        let output = self.run(arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(text.contains(message), "{arguments:?}: {text}");
    }
}

fn load(library: &Path) -> Nvml {
    Nvml::builder().lib_path(library.as_os_str()).init().expect("init")
}

#[test]
fn loads_begin_and_end_and_are_counted_exactly() {
    let sim = Sim::start(&["--profile", "H100", "--count", "2"]);
    let nvml = load(&sim.library());
    let gpu = nvml.device_by_index(1).expect("device");
    let id = sim.done(&["load", "--device", "1", "--pid", "7", "--intensity", "50", "--memory-mib", "100"]);
    sim.done(&["clock", "--advance", "10"]);
    assert_eq!(gpu.power_usage().expect("power"), 385_000);
    assert_eq!(gpu.total_energy_consumption().expect("energy"), 3_850_000);
    assert!(sim.done(&["show"]).contains("process 7  50 %  100 MiB"));
    sim.done(&["load", "--end", &id]);
    assert_eq!(gpu.utilization_rates().expect("load").gpu, 0);
    sim.refused(&["load", "--device", "2", "--pid", "1"], 1, "device is 2, but there are 2 devices");
    sim.refused(&["load", "--device", "0"], 2, "--pid");

    let mut child = Command::new("sleep").arg("60").spawn().expect("spawn");
    sim.done(&["load", "--pid", &child.id().to_string(), "--watch", "--intensity", "30"]);
    assert!(sim.done(&["show"]).contains("30 %"));
    child.kill().expect("kill");
    child.wait().expect("wait");
    sim.refused(&["load", "--pid", &child.id().to_string(), "--watch"], 1, "no such process");
    let first = nvml.device_by_index(0).expect("device");
    let ended = || first.utilization_rates().expect("load").gpu == 0;
    let begin = std::time::Instant::now();
    while !ended() {
        assert!(begin.elapsed().as_secs() < 30, "the load of a process that died goes on");
        std::thread::yield_now();
    }
}

#[test]
fn faults_time_lines_and_instances_are_made_by_words() {
    let sim = Sim::start(&["--profile", "A100", "--count", "1"]);
    let nvml = load(&sim.library());
    let gpu = nvml.device_by_index(0).expect("device");
    sim.done(&["inject", "--device", "0", "lost", "--in", "60"]);
    assert!(gpu.uuid().is_ok());
    sim.done(&["clock", "--advance", "60"]);
    assert!(matches!(gpu.uuid(), Err(NvmlError::GpuLost)));
    sim.done(&["set", "--device", "0", "--health", "healthy"]);
    assert!(gpu.uuid().is_ok(), "what is set by hand counts");
    sim.refused(&["inject", "--device", "0", "fire"], 2, r#"fault is "fire""#);
    sim.refused(&["inject", "--device", "9", "recover"], 1, "device is 9, but there are 1 devices");

    sim.done(&["mig", "--device", "0", "--instances", "3g.40gb,2g.20gb"]);
    assert_eq!(gpu.mig_mode().expect("mode").current, 1);
    assert_eq!(sim.done(&["show"]).matches("MIG-").count(), 2);
    sim.refused(
        &["mig", "--device", "0", "--instances", "9g.1gb"],
        1,
        "accepted for NVIDIA A100-SXM4-80GB: 1g.10gb",
    );
    sim.done(&["mig", "--device", "0", "--disable"]);
    assert_eq!(gpu.mig_mode().expect("mode").current, 0);

    let length = |text: &str| serde_json::from_str::<Vec<serde_json::Value>>(text).expect("JSON").len();
    let before = length(&sim.done(&["timeline"]));
    let script = sim.dir.path().join("script.json");
    std::fs::write(&script, r#"[{"atNs": 5, "device": 0, "fault": {"kind": "xid", "code": 79}}]"#)
        .expect("write");
    let added = sim.done(&["timeline", "--add", &script.to_string_lossy()]);
    assert_eq!(length(&added), before + 1);
    let random = ["timeline", "--clear", "--generate", "7", "--seconds", "36000"];
    let (one, two) = (sim.done(&random), sim.done(&random));
    assert!(length(&one) > 0);
    assert_eq!(one, two, "the same seed gives the same faults");
    std::fs::write(&script, "[{]").expect("write");
    sim.refused(&["timeline", "--add", &script.to_string_lossy()], 1, "script.json: ");
}

#[test]
fn cards_deceive_and_old_libraries_lack_symbols() {
    let sim = Sim::start(&["--profile", "H100", "--count", "2", "--driver-version", "470.57.02"]);
    sim.done(&["set", "--device", "0", "--claimed-memory-mib", "188000", "--shown-power-percent", "50"]);
    sim.done(&["set", "--device", "1", "--real-profile", "L40S", "--real-clock-percent", "60"]);
    sim.done(&["set", "--uuid", "GPU-00000000-0000-0000-0000-000000000001"]);
    let built = sim.library();
    let old = sim.dir.path().join("old.so");
    let arguments =
        ["library", "--built", &built.to_string_lossy(), "--driver-version", "470.57.02", "--output"];
    let old_text = old.to_string_lossy().into_owned();
    let arguments: Vec<&str> = arguments.into_iter().chain([old_text.as_str()]).collect();
    assert!(sim.done(&arguments).ends_with("symbols left out"));
    let nvml = load(&built);
    let devices: Vec<_> = (0..2).map(|i| nvml.device_by_index(i).expect("device")).collect();
    assert_eq!(devices[0].memory_info().expect("memory").total, 188_000 << 20);
    assert_eq!(devices[0].power_usage().expect("power"), 35_000);
    assert_eq!(devices[1].name().expect("name"), "NVIDIA H100 80GB HBM3");
    assert_eq!(devices[0].uuid().expect("uuid"), devices[1].uuid().expect("uuid"));
    drop(nvml);
    let nvml = load(&old);
    let missing = nvml.device_by_index(0).expect("device").memory_info();
    assert!(matches!(missing, Err(NvmlError::FailedToLoadSymbol(_))));
    sim.refused(&["set", "--real-profile", "H900"], 1, "unknown profile \"H900\"");
    sim.refused(&["start", "--profile", "H100", "--count", "65"], 1, "65 devices, at most 64 are allowed");
}
