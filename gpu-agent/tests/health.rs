//! What is believed of devices and told of them over restarts of the agent and upgrades of the driver, by the real process on a
//! node that exists only for it.

// Helpers of tests fail by panicking too; the lint's own exception covers only the test functions.
#![allow(clippy::expect_used, clippy::panic)]

#[path = "../bench/node/mod.rs"]
#[allow(dead_code)]
mod node;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Instant;

use node::agent::Agent;
use node::http::value;
use node::{LIMIT, Node, condition};
use serde_json::{Value, json};
use vendue_gpu_agent::probe::events::{AGAIN, ASK_AGAIN, EventSink, EventThread};
use vendue_nvml_sim::clock::Clock;
use vendue_nvml_sim::fault::Fault;
use vendue_nvml_sim::fleet::FleetError;
use vendue_nvml_sim::state::{DeviceHealth, State};

const AGENT: &str = env!("CARGO_BIN_EXE_vendue-gpu-agent");

fn library() -> PathBuf {
    let exe = std::env::current_exe().expect("path of the test");
    let name = "libvendue_nvml_sim.so";
    exe.ancestors().skip(1).map(|dir| dir.join(name)).find(|path| path.exists()).expect("built library")
}

fn agent(node: &Node) -> Agent {
    node.agent(Path::new(AGENT)).expect("start the agent")
}

/// Waits until Ready has this reason, and gives the status.
fn reason(node: &Node, agent: &Agent, reason: &str) -> Value {
    let status = node.api.wait(LIMIT, |status| condition(status, "Ready")["reason"] == reason);
    status.unwrap_or_else(|| panic!("{}", agent.late(format!("Ready={reason}")))).0
}

/// Waits for some more readings.
fn more_readings(agent: &Agent) {
    let reads = |text: &str| value(text, "vendue_agent_reads_total", &["success"]).unwrap_or_default();
    let before = reads(&agent.metrics().expect("metrics"));
    agent.metrics_when("readings", |text| reads(text) >= before + 3.0).expect("readings");
}

/// Waits until the agent says that its driver was replaced, and ends; gives what it says of it.
fn replaced(mut agent: Agent) -> String {
    let told = agent.logged("the driver was replaced: this process ends").expect("log");
    let (status, said) = agent.ended().expect("it ends");
    assert_eq!(status.code(), Some(3), "{said}");
    told["detail"].as_str().expect("detail").to_owned()
}

#[test]
fn a_node_that_was_ready_stays_so_when_its_agent_is_started_anew() {
    let node = Node::start().expect("node");
    node.gpus(&[("H100", 2)], Clock::default()).expect("GPUs");
    node.install(&library()).expect("install");
    let _kubelet = node.kubelet().expect("kubelet");
    let first = agent(&node);
    let before = reason(&node, &first, "Healthy");
    assert!(first.stop().expect("stop").success());
    let mut again = agent(&node);
    let told = again.logged("GpuNode written").expect("a write");
    assert_eq!(told["reason"], "Healthy", "nothing else is told first: {told}");
    more_readings(&again);
    let after = reason(&node, &again, "Healthy");
    let since = |status: &Value| condition(status, "Ready")["lastTransitionTime"].clone();
    assert_eq!(since(&after), since(&before), "no transition");
}

#[test]
fn a_lost_gpu_keeps_its_taint_when_the_agent_is_started_anew() {
    let node = Node::start().expect("node");
    let fleet = node.gpus(&[("H100", 2)], Clock::default()).expect("GPUs");
    node.install(&library()).expect("install");
    let _kubelet = node.kubelet().expect("kubelet");
    let mut first = agent(&node);
    reason(&node, &first, "Healthy");
    fleet.inject(Some(1), Fault::Health { health: DeviceHealth::Lost }).expect("inject");
    reason(&node, &first, "DeviceLost");
    more_readings(&first);
    let taints = || node.api.node()["spec"]["taints"].clone();
    let lost = json!([{ "key": "vendue.dev/xid", "value": "lost", "effect": "NoSchedule" }]);
    assert_eq!(taints(), lost);
    first.kill();

    // The driver still counts it, and does not say which it is.
    let mut second = agent(&node);
    second.logged("GpuNode written").expect("a write");
    more_readings(&second);
    assert_eq!(
        (taints(), condition(&reason(&node, &second, "DeviceLost"), "Ready")["status"].clone()),
        (lost.clone(), json!("False"))
    );
    second.kill();

    // It is no longer counted either.
    fleet
        .update::<FleetError>(|state: &mut State, _| {
            state.devices.truncate(1);
            state.events.clear();
            Ok(())
        })
        .expect("change");
    let mut third = agent(&node);
    let told = third.logged("GpuNode written").expect("a write");
    more_readings(&third);
    assert_eq!((taints(), told["reason"].clone()), (lost, json!("DeviceLost")));
}

#[test]
fn an_agent_whose_driver_was_replaced_ends_and_the_next_one_goes_on() {
    let node = Node::start().expect("node");
    let fleet = node.gpus(&[("H100", 1)], Clock::default()).expect("GPUs");
    node.install(&library()).expect("install");
    let _kubelet = node.kubelet().expect("kubelet");
    let first = agent(&node);
    reason(&node, &first, "Healthy");
    // The file is another one; nothing has happened to the kernel's part yet.
    node.install(&library()).expect("install");
    let said = replaced(first);
    assert!(said.contains("libnvidia-ml.so.1 is another file now"), "{said}");

    // What the first one wrote is still there: only what this one says shows that it has read the driver's version.
    let mut second = agent(&node);
    second.logged("GpuNode written").expect("a write");
    fleet
        .update::<FleetError>(|state: &mut State, _| {
            state.driver.version = "590.10.01".to_owned();
            Ok(())
        })
        .expect("change");
    let said = replaced(second);
    assert!(said.contains("it was version") && said.contains("is 590.10.01"), "{said}");

    let mut third = agent(&node);
    third.logged("GpuNode written").expect("a write");
    assert_eq!(reason(&node, &third, "Healthy")["driverVersion"], "590.10.01");
}

#[test]
fn times_that_are_wrong_are_named_before_anything_runs() {
    let node = Node::start().expect("node");
    let mut command = node.command(Path::new(AGENT));
    let output =
        command.args(["--health-times", "error-quiet=soon"]).stdout(Stdio::null()).output().expect("run");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(
        text.contains("--health-times") && text.contains("error-quiet is \"soon\"; accepted: "),
        "{text}"
    );
}

#[test]
fn a_driver_without_what_came_later_is_healthy_and_what_is_absent_is_told() {
    let node = Node::start().expect("node");
    node.gpus(&[("H100", 2)], Clock::default()).expect("GPUs");
    let hidden = [
        "nvmlEventSetCreate",
        "nvmlDeviceGetTemperature",
        "nvmlDeviceGetTotalEccErrors",
        "nvmlDeviceGetRemappedRows",
        "nvmlDeviceGetCurrPcieLinkGeneration",
        "nvmlDeviceGetNvLinkState",
        "nvmlDeviceGetMigMode",
        "nvmlDeviceGetFieldValues",
        "nvmlDeviceGetEncoderUtilization",
        "nvmlDeviceGetCurrentClocksThrottleReasons",
    ];
    let built = std::fs::read(library()).expect("read the library");
    let cut = vendue_nvml_sim::library::without(&built, &hidden.map(str::to_owned)).expect("ELF");
    std::fs::write(node.path("old"), cut).expect("write");
    node.install(&node.path("old")).expect("install");
    let _kubelet = node.kubelet().expect("kubelet");
    let mut agent = agent(&node);
    let told = agent.logged("no events of the driver: Xids are not seen").expect("log");
    assert!(told["error"].as_str().is_some_and(|error| !error.is_empty()), "{told}");
    let status = reason(&node, &agent, "Healthy");
    let device = &status["devices"][0];
    assert_eq!(device["migMode"], "NotSupported");
    assert!(device["pcie"].is_null() && device["nvlinks"].as_array().is_none_or(Vec::is_empty), "{device}");
    assert!(status["fingerprint"].is_string(), "{status}");
    let metrics = agent.metrics().expect("metrics");
    assert_eq!(value(&metrics, "vendue_agent_devices_without_events", &[]), Some(2.0), "{metrics}");
    assert!(
        metrics.contains("vendue_gpu_power_watts{") && !metrics.contains("vendue_gpu_temperature_celsius{")
    );
    assert!(!metrics.contains("vendue_gpu_ecc_errors_total{"), "{metrics}");
}

#[test]
fn a_thread_of_events_that_has_ended_begins_anew_after_a_while() {
    let node = Node::start().expect("node");
    node.gpus(&[("H100", 2)], Clock::default()).expect("GPUs");
    let built = std::fs::read(library()).expect("read the library");
    let cut = vendue_nvml_sim::library::without(&built, &["nvmlEventSetCreate".to_owned()]).expect("ELF");
    let uuids = vec!["GPU-0".to_owned(), "GPU-1".to_owned()];
    for (file, content, ends) in [("broken", &cut, true), ("whole", &built, false)] {
        let path = node.path("gpus").join(file);
        std::fs::write(&path, content).expect("write");
        let nvml = nvml_wrapper::Nvml::builder().lib_path(path.as_os_str()).init().expect("NVML");
        let (sink, _events) = EventSink::new();
        let began = Instant::now();
        let thread = EventThread::start(Arc::new(nvml), uuids.clone(), sink.clone()).expect("thread");
        assert_eq!(sink.unheard(), 2, "no events at all, or these GPUs are not there");
        // The thread has said that it ends, and may take a moment.
        while ends && thread.watches(&uuids, began + AGAIN * 2) {
            std::thread::yield_now();
            assert!(began.elapsed() < LIMIT, "it begins anew");
        }
        assert!(thread.watches(&uuids, began), "not at once");
        assert!(!thread.watches(&uuids[..1], began), "other devices");
        if !ends {
            assert!(thread.watches(&uuids, began + AGAIN * 2), "it still waits");
            assert!(!thread.watches(&uuids, began + ASK_AGAIN * 2), "those that refused are asked again");
        }
    }
}
