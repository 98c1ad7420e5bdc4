//! The program as a process: what it prints, what it serves, what it measures, how it ends. No cluster is needed: its API
//! server is a closed port.

// Helpers of tests fail by panicking too; the lint's own exception covers only the test functions.
#![allow(clippy::expect_used)]

#[path = "../bench/node/mod.rs"]
#[allow(dead_code)]
mod node;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use node::Node;
use node::http::Connection;
use serde_json::Value;
use vendue_nvml_sim::clock::Clock;
use vendue_nvml_sim::load::Work;
use vendue_nvml_sim::source;
use vendue_nvml_sim::state::State;

const AGENT: &str = env!("CARGO_BIN_EXE_vendue-gpu-agent");

fn library() -> PathBuf {
    built("libvendue_nvml_sim.so")
}

fn built(name: &str) -> PathBuf {
    let exe = std::env::current_exe().expect("path of the test");
    exe.ancestors().skip(1).map(|dir| dir.join(name)).find(|path| path.exists()).expect("built library")
}

fn state_file(dir: &Path) -> PathBuf {
    let path = dir.join("state.json");
    let state = State::generate(&[("H100".to_owned(), 1)], "process", 0).expect("state");
    source::store(&path, &state).expect("store");
    path
}

fn inventory(library: &Path, state: &Path, format: &str) -> Output {
    let mut command = Command::new(AGENT);
    command.args(["inventory", "-o", format, "--nvml-library"]).arg(library);
    command.env("VENDUE_NVML_STATE", state).output().expect("run")
}

#[test]
fn inventory_prints_what_is_there_or_says_what_is_missing() {
    let dir = tempfile::tempdir().expect("dir");
    let state = state_file(dir.path());
    let output = inventory(&library(), &state, "json");
    assert!(output.status.success());
    let printed: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(printed["driverVersion"], "580.95.05");
    assert_eq!(printed["devices"][0]["identity"]["productName"], "NVIDIA H100 80GB HBM3");
    let text = String::from_utf8(inventory(&library(), &state, "text").stdout).expect("text");
    assert!(text.contains("  H100  NVIDIA H100 80GB HBM3  81559 MiB  00000000:10:00.0  Healthy"), "{text}");

    let output = inventory(Path::new("/nowhere/libnvidia-ml.so.1"), &state, "json");
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    let text = String::from_utf8(output.stderr).expect("text");
    assert!(text.starts_with("vendue-gpu-agent: load /nowhere/libnvidia-ml.so.1: "), "{text}");
}

#[test]
fn node_name_is_needed() {
    let output = Command::new(AGENT).env_remove("NODE_NAME").output().expect("run");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("NODE_NAME"));
}

#[test]
fn the_next_key_is_drawn_by_command_and_the_agent_goes_over_to_it() {
    let node = Node::start().expect("node");
    node.gpus(&[("H100", 1)], Clock::stopped(0)).expect("GPUs");
    node.install(&library()).expect("install");
    let rotate = || {
        let mut command = Command::new(AGENT);
        let output = command.arg("rotate-key").arg("--state-dir").arg(node.state_dir()).output();
        let output = output.expect("run");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let shown = |wanted: &dyn Fn(&str) -> bool| {
        let told = |status: &Value| status["publicKey"].as_str().is_some_and(wanted);
        let (status, _) = node.api.wait(node::LIMIT, told).expect("GpuNode with the key");
        status["publicKey"].as_str().expect("key").to_owned()
    };
    let (code, _, error) = rotate();
    assert!(code == Some(1) && error.contains("rotate the key: there is no "), "{error}");

    let mut agent = node.agent(Path::new(AGENT)).expect("start");
    let first = shown(&|_| true);
    agent.kill();
    let (code, next, _) = rotate();
    assert_eq!(code, Some(0));
    let (code, printed, error) = rotate();
    assert!((code, printed.as_str()) == (Some(1), "") && error.contains("is there already"), "{error}");
    let _agent = node.agent(Path::new(AGENT)).expect("start");
    assert_eq!(shown(&|key| key != first), next.trim());
}

#[test]
fn processes_are_shown_when_that_is_asked_for() {
    let node = Node::start().expect("node");
    let fleet = node.gpus(&[("H100", 1)], Clock::stopped(0)).expect("GPUs");
    node.install(&library()).expect("install");
    // This one, and one that the kernel does not give: ids end far below.
    for pid in [std::process::id(), u32::MAX - 1] {
        let work = Work { pid, device: 0, intensity: 10, memory_mib: 1024, ..Work::default() };
        fleet.load(work).expect("load");
    }
    let mut command = node.command(Path::new(AGENT));
    let agent = node.agent_by(command.arg("--process-attribution")).expect("start");
    let pods = |text: &str| text.contains("vendue_gpu_pod_processes{");
    let shown = agent.metrics_when("processes", pods).expect("metrics");
    let unknown = shown.lines().find(|line| line.starts_with("vendue_gpu_unknown_processes{"));
    assert!(unknown.is_some_and(|line| line.ends_with(" 1")), "{shown}");
    assert!(shown.contains("vendue_gpu_pod_memory_used_bytes{"), "{shown}");
}

#[test]
fn without_an_api_server_it_goes_on_serving_and_stops_on_a_signal() {
    let node = Node::start().expect("node");
    node.gpus(&[("H100", 1)], Clock::stopped(0)).expect("GPUs");
    node.install(&library()).expect("install");
    let closed = TcpListener::bind("127.0.0.1:0").expect("port").local_addr().expect("address");
    let config = std::fs::read_to_string(node.path("kubeconfig")).expect("read");
    let server = config.find("http://").expect("server");
    let end = server + config[server..].find('\'').expect("end");
    let config = format!("{}http://{closed}{}", &config[..server], &config[end..]);
    std::fs::write(node.path("kubeconfig"), config).expect("write");
    let mut agent = node.agent(Path::new(AGENT)).expect("start");
    let failed = agent.logged("GpuNode not written").expect("log");
    assert!(failed["error"].as_str().expect("error").starts_with("get node: "), "{failed}");

    let mut own = Connection::open(agent.address).expect("connect");
    let (code, metrics) = own.get("/metrics").expect("metrics");
    assert_eq!(code, 200);
    assert!(metrics.contains(r#"vendue_agent_publishes_total{result="error",node="n1"}"#), "{metrics}");
    assert!(metrics.contains(r#"model="H100",node="n1"} 85520809984"#), "{metrics}");
    let (code, metrics) =
        Connection::open(agent.compatible).expect("connect").get("/metrics").expect("metrics");
    assert_eq!(code, 200);
    assert!(metrics.contains("DCGM_FI_DEV_POWER_USAGE{gpu=\"0\",UUID=\"GPU-"), "{metrics}");
    assert_eq!(own.get("/healthz").expect("health").0, 200);
    let (code, text) = own.get("/readyz").expect("readiness");
    assert_eq!((code, text.as_str()), (503, "the GpuNode was not written yet"));
    drop(own);
    assert!(agent.stop().expect("status").success());
}

#[test]
fn an_idle_device_is_measured_and_the_result_kept() {
    let node = Node::start().expect("node");
    node.gpus(&[("H100", 1)], Clock::stopped(0)).expect("GPUs");
    node.install(&library()).expect("install");
    let _kubelet = node.kubelet().expect("kubelet");
    let mut command = node.command(Path::new(AGENT));
    command.args(["--cuda-library".as_ref(), built("libvendue_cuda_sim.so").as_os_str()]);
    command.env("VENDUE_NVML_STATE", node.path("gpus/state.json"));
    let mut agent = node.agent_by(&mut command).expect("start");
    let ended = agent.logged("probe ends").expect("log");
    assert_eq!((&ended["result"], &ended["reason"]), (&"Passed".into(), &"Passed".into()), "{ended}");

    let clock = r#"model="H100",node="n1"} 1980000000"#;
    let metrics = agent.metrics_when("the clock", |text| text.contains(clock)).expect("metrics");
    assert!(metrics.contains("vendue_gpu_probe_passed{"), "{metrics}");
    let kept = std::fs::read_to_string(node.state_dir().join("probes.json")).expect("kept");
    assert!(kept.contains("\"reason\": \"Passed\""), "{kept}");
    assert!(agent.stop().expect("status").success());
}
