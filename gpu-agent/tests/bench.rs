//! The benchmark in its short form.

// Helpers of tests fail by panicking too; the lint's own exception covers only the test functions.
#![allow(clippy::expect_used)]

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

const BENCH: &str = env!("CARGO_BIN_EXE_agent-bench");

#[test]
fn ten_minutes_cut_to_seconds_lose_and_double_nothing() {
    let dir = tempfile::tempdir().expect("dir");
    let report = dir.path().join("report.json");
    let exe = std::env::current_exe().expect("path of the test");
    let name = "libvendue_nvml_sim.so";
    let library: Option<PathBuf> =
        exe.ancestors().skip(1).map(|dir| dir.join(name)).find(|path| path.exists());
    let mut bench = Command::new(BENCH);
    bench.args([
        "--quick",
        "--only",
        "metering",
        "--agent",
        env!("CARGO_BIN_EXE_vendue-gpu-agent"),
        "--library",
    ]);
    bench.arg(library.expect("built library")).arg("--json").arg(&report);
    let output = bench.output().expect("run");
    let (table, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{table}{log}");
    let report: Value = serde_json::from_slice(&std::fs::read(report).expect("report")).expect("JSON");
    let measured = &report["keys"]["lost_or_doubled_gpu_seconds"];
    assert_eq!((&measured["value"], &measured["met"]), (&0.0.into(), &true.into()));
    let detail = |name: &str| report["details"][name].as_f64().expect("number");
    assert!(detail("metering: GPU-seconds of awards") > 50.0, "{report}");
    assert!(detail("metering: kills of the agent") >= 3.0, "{report}");
    assert!(detail("metering: ticks that the disk did not take") > 0.0);
}

#[test]
fn wrong_arguments_are_refused_with_what_is_accepted() {
    let output = Command::new(BENCH).args(["--only", "everything"]).output().expect("run");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2));
    assert!(text.contains("everything") && text.contains("agent, large, metering, tools"), "{text}");
}
