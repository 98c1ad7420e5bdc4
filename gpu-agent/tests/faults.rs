//! What goes wrong around the agent, met by the real process on a node that exists only for it: what the GpuNode, the metrics
//! and the receipts say meanwhile, and that it goes on by itself when the fault is mended.

// Helpers of tests fail by panicking too; the lint's own exception covers only the test functions.
#![allow(clippy::expect_used, clippy::panic)]

#[path = "../bench/node/mod.rs"]
#[allow(dead_code)]
mod node;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use node::agent::Agent;
use node::http::value;
use node::receipts::Chains;
use node::{LIMIT, Node, condition};
use serde_json::Value;
use vendue_nvml_sim::clock::Clock;
use vendue_nvml_sim::fault::Fault;
use vendue_nvml_sim::fleet::Fleet;
use vendue_nvml_sim::load::Work;
use vendue_nvml_sim::state::{DriverHealth, State};
use vendue_receipts::{AwardId, Body, GapReason, Record};

const AGENT: &str = env!("CARGO_BIN_EXE_vendue-gpu-agent");
const NAMESPACE: &str = "vendue-a-0000000000000001";
const AWARD: AwardId = AwardId([0, 0, 0, 0, 0, 0, 0, 1]);

fn library() -> PathBuf {
    let exe = std::env::current_exe().expect("path of the test");
    let name = "libvendue_nvml_sim.so";
    exe.ancestors().skip(1).map(|dir| dir.join(name)).find(|path| path.exists()).expect("built library")
}

fn agent(node: &Node) -> Agent {
    node.agent(Path::new(AGENT)).expect("start the agent")
}

/// Waits until Ready has this reason, and gives its message.
fn reason(node: &Node, agent: &Agent, reason: &str) -> String {
    let status = node.api.wait(LIMIT, |status| condition(status, "Ready")["reason"] == reason);
    let (status, _) = status.unwrap_or_else(|| panic!("{}", agent.late(format!("Ready={reason}"))));
    condition(&status, "Ready")["message"].as_str().expect("message").to_owned()
}

fn uuids(fleet: &Fleet) -> Vec<String> {
    fleet.machine().expect("machine").state().devices.iter().map(|device| device.uuid.clone()).collect()
}

/// The value of a metric of the agent itself.
fn of_agent(metrics: &str, name: &str) -> f64 {
    value(metrics, name, &[]).unwrap_or_else(|| panic!("no {name} in {metrics}"))
}

#[test]
fn a_library_that_is_missing_or_broken_is_named_until_the_right_one_is_there() {
    let node = Node::start().expect("node");
    node.gpus(&[("H100", 1)], Clock::default()).expect("GPUs");
    // No device is offered before kubelet has said who has it.
    let _kubelet = node.kubelet().expect("kubelet");
    let agent = agent(&node);
    let message = reason(&node, &agent, "LibraryMissing");
    assert!(message.contains("libnvidia-ml.so.1") && message.contains("No such file"), "{message}");

    let put = |content: &[u8]| {
        fs::write(node.path("broken"), content).expect("write");
        node.install(&node.path("broken")).expect("install");
    };
    let told = |wanted: &str| {
        let is_told = |status: &Value| {
            condition(status, "Ready")["message"].as_str().is_some_and(|message| message.contains(wanted))
        };
        let (status, _) =
            node.api.wait(LIMIT, is_told).unwrap_or_else(|| panic!("{}", agent.late(wanted.to_owned())));
        assert_eq!(condition(&status, "Ready")["reason"], "LibraryMissing");
    };
    put(b"no library at all, though long enough to have the header of one, which has 64 bytes\n");
    told("invalid ELF header");
    let built = fs::read(library()).expect("read the library");
    put(&built[..built.len() / 2]);
    told("libnvidia-ml.so.1: ");
    // A library of another kind: loads, and is no NVML.
    let hidden = ["nvmlInit_v2", "nvmlInit", "nvmlInitWithFlags"].map(str::to_owned);
    put(&vendue_nvml_sim::library::without(&built, &hidden).expect("ELF"));
    told("is no NVML: ");
    node.install(&library()).expect("install");
    reason(&node, &agent, "Healthy");
}

#[test]
fn a_driver_that_does_not_fit_or_counts_no_gpu_is_a_condition_until_it_is_mended() {
    let node = Node::start().expect("node");
    let fleet = node.gpus(&[], Clock::default()).expect("no GPUs");
    node.install(&library()).expect("install");
    let _kubelet = node.kubelet().expect("kubelet");
    let driver = |health| {
        let groups = [("H100".to_owned(), 2)];
        let mut state = State::generate(&groups, "node", 0).expect("state");
        state.driver.health = health;
        Fleet::replace(fleet.path(), &state).expect("store");
    };
    let agent = agent(&node);
    let message = reason(&node, &agent, "NoDevices");
    assert!(message.contains("counts no GPU"), "{message}");
    driver(DriverHealth::Mismatch);
    let message = reason(&node, &agent, "DriverMismatch");
    assert!(message.contains("reboot the node"), "{message}");
    let metrics = agent.metrics().expect("metrics");
    assert!(!metrics.contains("vendue_gpu_power_watts{"), "nobody takes old values for new: {metrics}");
    driver(DriverHealth::NotLoaded);
    reason(&node, &agent, "DriverNotLoaded");
    driver(DriverHealth::Loaded);
    let message = reason(&node, &agent, "Healthy");
    assert!(message.contains("2 GPUs"), "{message}");
    agent.metrics_when("devices", |text| text.contains("vendue_gpu_power_watts{")).expect("values again");
}

#[test]
fn a_file_of_faults_that_was_cut_keeps_the_agent_from_forgetting_them() {
    let node = Node::start().expect("node");
    fs::create_dir(node.state_dir()).expect("folder");
    fs::write(node.state_dir().join("faults.json"), "{\"bootId\": \"").expect("write");
    let output = node.command(Path::new(AGENT)).stdout(Stdio::null()).output().expect("run");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("faults.json: ") && text.contains("remove the file to forget"), "{text}");
}

#[test]
fn while_kubelet_is_not_there_nothing_is_charged_and_then_it_is() {
    let node = Node::start().expect("node");
    let fleet = node.gpus(&[("H100", 1)], Clock::default()).expect("GPUs");
    node.install(&library()).expect("install");
    let mut agent = agent(&node);
    let told = agent.logged("who uses the GPUs is not known at present").expect("log");
    assert!(told["error"].as_str().expect("error").contains("kubelet.sock"), "{told}");
    reason(&node, &agent, "Probing");
    let lost = |text: &str| of_agent(text, "vendue_agent_metering_looks_lost_total") >= 1.0;
    let metrics = agent.metrics_when("looks that are lost", lost).expect("metrics");
    assert_eq!(of_agent(&metrics, "vendue_agent_receipts_stored_total"), 0.0);
    assert_eq!(of_agent(&metrics, "vendue_agent_metering"), 1.0);

    let kubelet = node.kubelet().expect("kubelet");
    kubelet.give(&[(NAMESPACE, &[uuids(&fleet)[0].as_str()])]);
    agent.logged("who uses the GPUs is known again").expect("log");
    reason(&node, &agent, "Healthy");
    let stored = |text: &str| of_agent(text, "vendue_agent_receipts_stored_total") >= 2.0;
    agent.metrics_when("receipts", stored).expect("receipts");
    assert!(agent.stop().expect("stop").success());
    let chains = Chains::read(&node.state_dir()).expect("receipts");
    chains.verify().expect("chains");
    assert!(chains.records.contains_key(&AWARD), "{:?}", chains.records.keys());
}

#[test]
fn energy_of_the_time_of_a_hung_call_is_in_the_gap_and_in_no_window() {
    let node = Node::start().expect("node");
    let fleet = node.gpus(&[("H100", 2)], Clock::default()).expect("GPUs");
    node.install(&library()).expect("install");
    let _kubelet = node.kubelet().expect("kubelet");
    let mut command = node.command(Path::new(AGENT));
    let mut agent = node.agent_by(command.args(["--hang-seconds", "1"])).expect("start the agent");
    let stored = |text: &str| of_agent(text, "vendue_agent_receipts_stored_total") >= 2.0;
    agent.metrics_when("receipts", stored).expect("receipts");
    // The first device is read before the call on the second one hangs.
    fleet.inject(Some(1), Fault::Hang { for_ns: Some(3_000_000_000) }).expect("inject");
    agent.logged("devices can be read again").expect("log");
    let reads = |text: &str| value(text, "vendue_agent_reads_total", &["success"]).unwrap_or_default();
    let before = reads(&agent.metrics().expect("metrics"));
    agent.metrics_when("readings", |text| reads(text) >= before + 5.0).expect("readings");
    assert!(agent.stop().expect("stop").success());
    let chains = Chains::read(&node.state_dir()).expect("receipts");
    chains.verify().expect("chains");
    // Idle H100s draw 70 W, and nothing works on these.
    let (mut windows, mut gaps) = (0, 0);
    for record in chains.all() {
        match &record.body {
            Body::Used(used) => {
                let (length, used) = (used.t1_ms - used.t0_ms, used.energy.expect("energy").used_mj);
                assert!(used <= 70 * (length + 300), "{used} mJ in {length} ms");
                windows += 1;
            }
            Body::Gap(gap) if gap.reason == GapReason::DeviceNotReadable => {
                gaps += gap.energy.map_or(0, |energy| energy.used_mj);
            }
            _ => {}
        }
    }
    assert!(windows >= 4 && gaps >= 2 * 70 * 2_500, "{windows} windows, {gaps} mJ in gaps");
}

/// The agent with its folder on a disk of its own that only it sees: a real one that gets full.
fn on_small_disk(node: &Node) -> Command {
    fs::create_dir(node.state_dir()).expect("folder");
    let mount = "mount -t tmpfs -o size=192k none \"$0\" && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "--", "sh", "-c", mount]);
    command.arg(node.state_dir()).arg(AGENT).args(node.arguments());
    command.env("KUBECONFIG", node.path("kubeconfig"));
    command
}

#[test]
fn a_full_disk_stops_metering_loudly_and_costs_a_gap() {
    let node = Node::start().expect("node");
    let mut command = on_small_disk(&node);
    let fleet = node.gpus(&[("H100", 8)], Clock::default()).expect("GPUs");
    node.install(&library()).expect("install");
    let (kubelet, uuids) = (node.kubelet().expect("kubelet"), uuids(&fleet));
    let first_half: Vec<&str> = uuids.iter().take(4).map(String::as_str).collect();
    kubelet.give(&[(NAMESPACE, &first_half)]);
    let mut agent = node.agent_by(&mut command).expect(
        "start the agent on a small disk; it needs unshare, and user namespaces or root to mount a tmpfs",
    );
    let metering = |text: &str| of_agent(text, "vendue_agent_metering");
    let stored = |text: &str| of_agent(text, "vendue_agent_receipts_stored_total");
    agent.metrics_when("receipts", |text| stored(text) >= 10.0).expect("receipts");

    let seen = PathBuf::from(format!("/proc/{}/root{}", agent.id(), node.state_dir().display()));
    let filler = seen.join("filler");
    let mut content = vec![0; 1 << 20];
    while !content.is_empty() && fs::write(&filler, &content).is_err() {
        content.truncate(content.len() - 2048.min(content.len()));
    }
    // A window ends at an Xid; the last page of a file may still have room for some.
    let metrics = agent
        .metrics_when("metering stops", |text| {
            fleet.inject(None, Fault::Xid { code: 31 }).expect("inject");
            std::thread::sleep(Duration::from_millis(200));
            metering(text) == 0.0
        })
        .expect("metering stops");
    let told = agent.logged("receipts cannot be stored: what is used now is not metered").expect("log");
    assert!(told["error"].as_str().expect("error").contains("No space left"), "{told}");
    assert_eq!(told["level"], "ERROR");
    let is_told = |status: &Value| condition(status, "Metered")["reason"] == "NotStored";
    let (status, _) = node.api.wait(LIMIT, is_told).unwrap_or_else(|| panic!("{}", agent.late("NotStored")));
    assert_eq!(condition(&status, "Metered")["status"], "False");
    let message = reason(&node, &agent, "NotMetered");
    assert!(message.contains("nothing is metered: ") && message.contains("No space left"), "{message}");
    let before = stored(&metrics);
    fs::remove_file(&filler).expect("free");
    agent.logged("receipts can be stored again").expect("log");
    agent
        .metrics_when("receipts again", |text| metering(text) == 1.0 && stored(text) > before)
        .expect("receipts");
    reason(&node, &agent, "Healthy");
    let chains = Chains::read(&seen).expect("receipts");
    let totals = chains.verify().expect("chains");
    assert!(totals.values().all(|sums| sums.missing_ms == 0), "every second is accounted for");
    let failed =
        |record: &&Record| matches!(&record.body, Body::Gap(gap) if gap.reason == GapReason::StoreFailed);
    assert!(chains.all().filter(failed).count() >= 1, "what was not stored is a gap");
}

#[test]
fn a_silent_api_server_makes_no_gap() {
    let node = Node::start().expect("node");
    let fleet = node.gpus(&[("H100", 1)], Clock::default()).expect("GPUs");
    node.install(&library()).expect("install");
    let _kubelet = node.kubelet().expect("kubelet");
    let mut agent = agent(&node);
    reason(&node, &agent, "Healthy");
    let stored = |text: &str| of_agent(text, "vendue_agent_receipts_stored_total");
    let before = agent.metrics_when("receipts", |text| stored(text) >= 2.0).expect("receipts");
    node.api.fall_silent();
    // Something to write: the server takes it, and the agent waits ten seconds for an answer.
    fleet.inject(None, Fault::Xid { code: 119 }).expect("inject");
    let failed = |text: &str| value(text, "vendue_agent_publishes_total", &["error"]) >= Some(1.0);
    let told = agent.logged("GpuNode not written").expect("log");
    assert!(told["error"].as_str().expect("error").contains("no answer within 10 s"), "{told}");
    let after = agent.metrics_when("the failed write", failed).expect("metrics");
    assert!(stored(&after) > stored(&before), "receipts are stored meanwhile");
    assert!(agent.stop().expect("stop").success());
    let chains = Chains::read(&node.state_dir()).expect("receipts");
    chains.verify().expect("chains");
    let gaps = chains.all().filter_map(|record| match &record.body {
        Body::Gap(gap) if gap.t0_ms < gap.t1_ms => Some((gap.reason, gap.t1_ms - gap.t0_ms)),
        _ => None,
    });
    assert_eq!(gaps.collect::<Vec<_>>(), [], "looks went on each second");
}

#[test]
fn sixty_four_gpus_with_five_hundred_processes() {
    let node = Node::start().expect("node");
    let fleet = node.gpus(&[("H100", 64)], Clock::default()).expect("GPUs");
    node.install(&library()).expect("install");
    for pid in 0..500 {
        let work = Work { pid, device: pid % 64, intensity: 5, memory_mib: 1_000, ..Work::default() };
        fleet.load(work).expect("load");
    }
    let agent = agent(&node);
    let (status, _) = node.api.wait(LIMIT, |status| status["deviceCount"] == 64).expect("GpuNode");
    assert_eq!(status["devices"].as_array().map(Vec::len), Some(64));
    let metrics = agent.metrics().expect("metrics");
    // 500 = 52 devices with eight processes, 12 with seven.
    for (index, uuid) in uuids(&fleet).iter().enumerate() {
        let processes = if index < 52 { 8.0 } else { 7.0 };
        let labels = format!("gpu_uuid=\"{uuid}\"");
        let used = value(&metrics, "vendue_gpu_memory_used_bytes", &[&labels]);
        assert_eq!(used, Some(processes * 1_000.0 * 1_048_576.0), "GPU {index}");
        let load = value(&metrics, "vendue_gpu_utilization_ratio", &[&labels]);
        assert_eq!(load, Some(processes * 5.0 / 100.0), "GPU {index}");
    }
}

/// Numbers that look random and are the same each time (splitmix64).
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

/// What an agent has on disk, by name and length.
fn on_disk(node: &Node) -> Vec<(PathBuf, u64)> {
    let list = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().flatten();
    let files = list(node.state_dir()).chain(list(node.state_dir().join("receipts")));
    let mut files: Vec<_> =
        files.filter_map(|file| Some((file.path(), file.metadata().ok()?.len()))).collect();
    files.sort();
    files
}

/// Starts an agent and kills it a moment after it has changed its files so often, and has stored receipts if it should.
fn kill_after(node: &Node, changes: u64, receipts: bool, moment: Duration) {
    let mut command = node.command(Path::new(AGENT));
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start the agent");
    let (deadline, mut seen, mut count) = (Instant::now() + LIMIT, on_disk(node), 0);
    let is_segment = |(path, _): &(PathBuf, u64)| path.extension().is_some_and(|ending| ending == "segment");
    while count < changes || (receipts && !seen.iter().any(is_segment)) {
        assert!(Instant::now() < deadline, "{count} of {changes} changes: {seen:?}");
        std::thread::sleep(Duration::from_micros(100));
        let now = on_disk(node);
        count += u64::from(now != seen);
        seen = now;
    }
    let at = Instant::now() + moment;
    while Instant::now() < at {
        std::hint::spin_loop();
    }
    child.kill().expect("kill");
    child.wait().expect("wait");
}

/// What is on disk verifies, and continues what was there before.
fn continues(node: &Node, before: Option<&Chains>) -> Chains {
    let chains = Chains::read(&node.state_dir()).expect("receipts");
    chains.verify().expect("chains of a killed agent");
    if let Some(before) = before {
        assert_eq!(before.key, chains.key, "the node keeps its key");
        for (award, old) in &before.records {
            let kept = chains.records.get(award).and_then(|now| now.get(..old.len()));
            assert_eq!(kept, Some(old.as_slice()), "nothing that was stored is lost");
        }
    }
    chains
}

#[test]
fn killed_at_any_moment_it_goes_on_with_chains_that_verify() {
    let node = Node::start().expect("node");
    let fleet = node.gpus(&[("H100", 2)], Clock::default()).expect("GPUs");
    node.install(&library()).expect("install");
    let (kubelet, uuids) = (node.kubelet().expect("kubelet"), uuids(&fleet));
    kubelet.give(&[(NAMESPACE, &[uuids[0].as_str()])]);
    let mut random = Seeded(20);
    let mut before: Option<Chains> = None;
    // While it starts for the first time: folder, store, key; then while it stores its first records.
    for (changes, receipts) in [(1, false), (2, false), (3, false), (1, true)] {
        kill_after(&node, changes, receipts, Duration::from_micros(random.below(3_000)));
        // What was never whole is not there.
        if node.state_dir().join("receipts").exists() {
            before = Some(continues(&node, before.as_ref()));
        }
    }
    let before = before.expect("receipts");
    assert!(before.count() > 0, "the last one was killed when it had stored something");

    // Again, with a fault that has to outlast the agent.
    let mut killed = agent(&node);
    let heard = |text: &str| {
        // The first may come before the agent listens.
        fleet.inject(Some(1), Fault::Xid { code: 119 }).expect("inject");
        text.contains("vendue_agent_xids_total{")
    };
    killed.metrics_when("the Xid", heard).expect("the Xid");
    let told = reason(&node, &killed, "DeviceFaulty");
    killed.kill();
    let written = node.api.writes();
    let agent = agent(&node);
    let stored = |text: &str| of_agent(text, "vendue_agent_receipts_stored_total") >= 2.0;
    agent.metrics_when("receipts", stored).expect("it goes on");
    assert!(node.api.writes() > written);
    assert_eq!(reason(&node, &agent, "DeviceFaulty"), told, "the fault outlasts the agent");
    assert!(agent.stop().expect("stop").success());
    let down = |record: &&Record| match &record.body {
        Body::Gap(gap) => gap.reason == GapReason::AgentDown && gap.t0_ms < gap.t1_ms,
        _ => false,
    };
    let last = continues(&node, Some(&before));
    assert!(last.all().filter(down).count() >= 1, "the time between is a gap: {:?}", last.records);
}
