//! The program as a process: what it prints, what it serves, what it measures, how it ends. No cluster is needed: its API
//! server is a closed port.

// Helpers of tests fail by panicking too; the lint's own exception covers only the test functions.
#![allow(clippy::expect_used, clippy::panic)]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use vendue_gpu_agent::pods::api::ListPodResourcesResponse;
use vendue_nvml_sim::source;
use vendue_nvml_sim::state::{Process, State};

const AGENT: &str = env!("CARGO_BIN_EXE_vendue-gpu-agent");
const DEADLINE: Duration = Duration::from_secs(30);

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
    let dir = tempfile::tempdir().expect("dir");
    let state = dir.path().join("agent");
    let rotate = || {
        let mut command = Command::new(AGENT);
        let output = command.arg("rotate-key").arg("--state-dir").arg(&state).output().expect("run");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    std::fs::create_dir(&state).expect("folder");
    let (code, _, error) = rotate();
    assert!(code == Some(1) && error.contains("rotate the key: there is no "), "{error}");

    let first = start(dir.path()).public_key.clone();
    let (code, next, _) = rotate();
    assert_eq!(code, Some(0));
    let (code, printed, error) = rotate();
    assert!((code, printed.as_str()) == (Some(1), "") && error.contains("is there already"), "{error}");
    let now = start(dir.path()).public_key.clone();
    assert_eq!(now, next.trim());
    assert_ne!(now, first);
}

#[test]
fn processes_are_shown_when_that_is_asked_for() {
    let dir = tempfile::tempdir().expect("dir");
    let mut state = State::generate(&[("H100".to_owned(), 1)], "process", 0).expect("state");
    let process = |pid| Process { pid, memory_mib: 1024, sm_percent: 50 };
    // This one, and one that the kernel does not give: ids end far below.
    state.devices[0].processes = vec![process(std::process::id()), process(u32::MAX - 1)];
    let path = dir.path().join("state.json");
    source::store(&path, &state).expect("store");
    let shows = |agent: &Running| {
        let begin = Instant::now();
        while begin.elapsed() < DEADLINE {
            let metrics = get(&agent.address, "/metrics").1;
            // Told after the devices, in a turn of its own.
            if metrics.contains("vendue_gpu_memory_used_bytes{") {
                let begin = Instant::now();
                while begin.elapsed() < Duration::from_secs(2) {
                    let metrics = get(&agent.address, "/metrics").1;
                    if metrics.contains("vendue_gpu_pod_processes{") {
                        return Some(metrics);
                    }
                }
                return None;
            }
        }
        panic!("no devices within {DEADLINE:?}");
    };
    let shown = shows(&start_with(dir.path(), &path, &["--process-attribution"])).expect("processes");
    let unknown = shown.lines().find(|line| line.starts_with("vendue_gpu_unknown_processes{"));
    assert!(unknown.is_some_and(|line| line.ends_with(" 1")), "{shown}");
    assert!(shown.contains("vendue_gpu_pod_memory_used_bytes{"), "{shown}");
    assert_eq!(shows(&start_with(dir.path(), &path, &[])), None);
}

/// A running agent; killed when the test ends early.
struct Running {
    child: Child,
    address: String,
    compatible: String,
    public_key: String,
    log: BufReader<std::process::ChildStderr>,
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Starts the agent with an API server that refuses every connection.
fn start(dir: &Path) -> Running {
    start_with(dir, &state_file(dir), &[])
}

/// The same, with this state of the simulated library and these arguments.
fn start_with(dir: &Path, state: &Path, arguments: &[&str]) -> Running {
    let closed = TcpListener::bind("127.0.0.1:0").expect("port").local_addr().expect("address");
    let config = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: c, cluster: {{server: 'http://{closed}'}}}}]\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\nusers: [{{name: u, user: {{}}}}]\n"
    );
    let kubeconfig = dir.join("kubeconfig");
    std::fs::write(&kubeconfig, config).expect("write");
    let mut child = Command::new(AGENT)
        .args(["--node-name", "n1", "--listen", "127.0.0.1:0", "--log-format", "json"])
        .args(["--metrics-compat", "dcgm", "--compat-listen", "127.0.0.1:0"])
        .args(["--state-dir".as_ref(), dir.join("agent").as_os_str()])
        .args(["--pod-resources-dir".as_ref(), dir.as_os_str()])
        .args(["--nvml-library".as_ref(), library().as_os_str()])
        .args(["--cuda-library".as_ref(), built("libvendue_cuda_sim.so").as_os_str()])
        .args(arguments)
        .env("VENDUE_NVML_STATE", state)
        .env("KUBECONFIG", kubeconfig)
        .stderr(Stdio::piped())
        .spawn()
        .expect("start");
    let mut log = BufReader::new(child.stderr.take().expect("stderr"));
    let signed = next_log(&mut log, "receipts are signed by this key");
    let started = next_log(&mut log, "started");
    let compatible = next_log(&mut log, "metrics under the names of dcgm-exporter");
    let address = |line: Value| line["listen"].as_str().expect("address").to_owned();
    let public_key = signed["public_key"].as_str().expect("key").to_owned();
    Running { child, address: address(started), compatible: address(compatible), public_key, log }
}

/// The next log line with this message.
fn next_log(log: &mut impl BufRead, message: &str) -> Value {
    let start = Instant::now();
    while start.elapsed() < DEADLINE {
        let mut line = String::new();
        assert!(log.read_line(&mut line).expect("read the log") > 0, "the log ended before {message:?}");
        let entry: Value = serde_json::from_str(&line).expect("JSON log");
        if entry["message"] == message {
            return entry;
        }
    }
    panic!("no {message:?} within {DEADLINE:?}");
}

fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("connect");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n").expect("ask");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answer");
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("status line");
    (code, answer)
}

#[test]
fn without_an_api_server_it_goes_on_serving_and_stops_on_a_signal() {
    let dir = tempfile::tempdir().expect("dir");
    let mut agent = start(dir.path());
    let failed = next_log(&mut agent.log, "GpuNode not written");
    assert!(failed["error"].as_str().expect("error").starts_with("get node: "), "{failed}");

    let (code, metrics) = get(&agent.address, "/metrics");
    assert_eq!(code, 200);
    assert!(metrics.contains(r#"vendue_agent_publishes_total{result="error",node="n1"}"#), "{metrics}");
    assert!(metrics.contains(r#"model="H100",node="n1"} 85520809984"#), "{metrics}");
    let (code, metrics) = get(&agent.compatible, "/metrics");
    assert_eq!(code, 200);
    assert!(metrics.contains("DCGM_FI_DEV_POWER_USAGE{gpu=\"0\",UUID=\"GPU-"), "{metrics}");
    assert_eq!(get(&agent.address, "/healthz").0, 200);
    let (code, text) = get(&agent.address, "/readyz");
    assert_eq!((code, text.ends_with("the GpuNode was not written yet")), (503, true), "{text}");

    let id = agent.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().expect("kill").success());
    next_log(&mut agent.log, "stopping");
    assert!(agent.child.wait().expect("status").success());
}

#[test]
fn an_idle_device_is_measured_and_the_result_kept() {
    let dir = tempfile::tempdir().expect("dir");
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let nobody = Arc::new(Mutex::new(Ok(ListPodResourcesResponse::default())));
    let _context = runtime.enter();
    let kubelet = common::serve(dir.path(), &nobody);
    let mut agent = start(dir.path());
    let ended = next_log(&mut agent.log, "probe ends");
    assert_eq!((&ended["result"], &ended["reason"]), (&"Passed".into(), &"Passed".into()), "{ended}");

    let begin = Instant::now();
    let shown = |text: &str| text.contains(r#"model="H100",node="n1"} 1980000000"#);
    let metrics = loop {
        let (_, metrics) = get(&agent.address, "/metrics");
        if shown(&metrics) {
            break metrics;
        }
        assert!(begin.elapsed() < DEADLINE, "{metrics}");
    };
    assert!(metrics.contains("vendue_gpu_probe_passed{"), "{metrics}");
    let kept = std::fs::read_to_string(dir.path().join("agent/probes.json")).expect("kept");
    assert!(kept.contains("\"reason\": \"Passed\""), "{kept}");
    kubelet.abort();
}
