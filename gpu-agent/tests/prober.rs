//! When devices are probed: the task between readings, kubelet and the children that it starts.

// Helpers of tests fail by panicking too; the lint's own exception covers only the test functions.
#![allow(clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use vendue_crds::{GpuProbe, ProbeResult};
use vendue_gpu_agent::agent::View;
use vendue_gpu_agent::inventory::{DeviceIdentity, DeviceReading, NodeInventory};
use vendue_gpu_agent::metrics::Metrics;
use vendue_gpu_agent::pods::api::{
    ContainerDevices, ContainerResources, ListPodResourcesResponse, PodResources,
};
use vendue_gpu_agent::pods::attribution::{Known, attribute};
use vendue_gpu_agent::pods::slices::DeviceNames;
use vendue_gpu_agent::pods::watcher::Seen;
use vendue_gpu_agent::synthetic::Probes;
use vendue_gpu_agent::synthetic::book::Book;
use vendue_gpu_agent::synthetic::command::Probed;
use vendue_gpu_agent::synthetic::runner::Runner;
use vendue_gpu_agent::synthetic::store::Store;
use vendue_gpu_agent::synthetic::task::{Channels, Prober};

const LIMIT: Duration = Duration::from_secs(30);
const GPU: &str = "GPU-0";

fn inventory() -> Arc<NodeInventory> {
    let device = DeviceReading::of(DeviceIdentity {
        index: 0,
        uuid: GPU.to_owned(),
        product_name: "NVIDIA L4".to_owned(),
        memory_bytes: 1 << 34,
        pci_bus_id: String::new(),
        minor: Some(0),
    });
    Arc::new(NodeInventory { devices: vec![device], ..NodeInventory::default() })
}

fn seen(uuids: &[&str], at: Instant) -> Seen {
    let pod = |uuid: &&str| {
        let devices = vec![ContainerDevices {
            resource_name: "nvidia.com/gpu".to_owned(),
            device_ids: vec![(*uuid).to_owned()],
        }];
        let container = ContainerResources { name: "main".to_owned(), devices, dynamic_resources: vec![] };
        PodResources { name: "p".to_owned(), namespace: "ns".to_owned(), containers: vec![container] }
    };
    let list = ListPodResourcesResponse { pod_resources: uuids.iter().map(pod).collect() };
    let known = [Known { uuid: GPU.to_owned(), minor: Some(0) }];
    let attribution = attribute(&list, &known, &DeviceNames::default());
    Seen { attribution: Some((Arc::new(attribution), at)), error: None }
}

/// The task, and what it hears and tells.
struct Rig {
    view: watch::Sender<View>,
    pods: watch::Sender<Seen>,
    probes: watch::Receiver<Probes>,
    metrics: Arc<Metrics>,
    /// One line for each probe that was started.
    log: PathBuf,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Rig {
    /// A task whose probes are a shell script; `then` is what it does after it has written its line.
    fn start(dir: &Path, then: &str) -> Self {
        let (view, viewed) = watch::channel(View::default());
        let (pods, heard) = watch::channel(Seen::default());
        let (told, probes) = watch::channel(Probes::new());
        let log = dir.join("log");
        let text = format!("echo $$ >> {}; {then}", log.display());
        let runner = Runner::new("/bin/sh".into(), vec!["-c".into(), text.into()], LIMIT);
        let metrics = Arc::new(Metrics::new("n1").expect("metrics"));
        let (store, kept) = Store::open(dir, "boot".to_owned());
        let channels = Channels { view: viewed, pods: heard, probes: told };
        let prober = Prober::new(runner, (store, Book::new(kept)), channels, Arc::clone(&metrics));
        let stop = CancellationToken::new();
        let task = tokio::spawn(prober.run(stop.clone()));
        Self { view, pods, probes, metrics, log, stop, task }
    }

    fn look(&self) {
        self.view.send_modify(|view| view.inventory = Some(inventory()));
    }

    /// Reads again and again, as the loop does, until the device is told to be so.
    async fn until(&mut self, reason: &str) -> GpuProbe {
        let wait = async {
            loop {
                self.look();
                let told = self.probes.borrow_and_update().get(GPU).cloned();
                match told {
                    Some(probe) if probe.reason == reason => return probe,
                    _ => tokio::task::yield_now().await,
                }
            }
        };
        timeout(LIMIT, wait)
            .await
            .unwrap_or_else(|_| panic!("not {reason}: {:?}", self.probes.borrow().get(GPU)))
    }

    fn runs(&self) -> usize {
        std::fs::read_to_string(&self.log).unwrap_or_default().lines().count()
    }

    async fn end(self) {
        self.stop.cancel();
        timeout(LIMIT, self.task).await.expect("in time").expect("no panic");
    }
}

/// A script that says that the device passed.
fn passes(dir: &Path) -> String {
    let probe = GpuProbe::without_figures(ProbeResult::Passed, "Passed", "16384 MiB".to_owned());
    let answer = vec![Probed { uuid: GPU.to_owned(), product_name: "NVIDIA L4".to_owned(), probe }];
    let file = dir.join("answer.json");
    std::fs::write(&file, serde_json::to_vec(&answer).expect("JSON")).expect("write");
    format!("cat {}", file.display())
}

#[tokio::test]
async fn an_idle_device_is_probed_once_also_over_a_restart() {
    let dir = tempfile::tempdir().expect("dir");
    let mut rig = Rig::start(dir.path(), &passes(dir.path()));
    let waits = rig.until("Pending").await;
    assert_eq!(waits.message.as_deref(), Some("kubelet has not said who has the device"));
    rig.pods.send_replace(seen(&[], Instant::now()));
    let probe = rig.until("Passed").await;
    assert!(probe.at.is_some());
    assert_eq!(rig.runs(), 1);
    let counted = r#"vendue_agent_probes_total{reason="Passed",result="passed",node="n1"} 1"#;
    assert!(rig.metrics.render().expect("text").contains(counted));
    rig.end().await;

    // A tenant has it when the agent is started anew: what was found before is told, nothing is touched.
    let mut rig = Rig::start(dir.path(), "exit 1");
    rig.pods.send_replace(seen(&[GPU], Instant::now()));
    assert_eq!(rig.until("Passed").await, probe);
    rig.pods.send_replace(seen(&[], Instant::now()));
    rig.until("Passed").await;
    assert_eq!(rig.runs(), 1);
    rig.end().await;

    // Another boot of the node.
    let (_, kept) = Store::open(dir.path(), "another".to_owned());
    assert!(kept.is_empty());
}

#[tokio::test]
async fn a_device_that_a_pod_has_is_left_alone_until_it_is_free() {
    let dir = tempfile::tempdir().expect("dir");
    let mut rig = Rig::start(dir.path(), &passes(dir.path()));
    rig.until("Pending").await;
    rig.pods.send_replace(seen(&[GPU], Instant::now()));
    let busy = rig.until("Allocated").await;
    assert_eq!(
        (busy.result, busy.message.as_deref()),
        (ProbeResult::NotRun, Some("Pod ns/p has the device"))
    );
    assert_eq!(rig.runs(), 0);
    rig.pods.send_replace(seen(&[], Instant::now()));
    rig.until("Passed").await;
    rig.end().await;
}

#[tokio::test]
async fn what_kubelet_said_before_the_device_was_known_counts_for_nothing() {
    let dir = tempfile::tempdir().expect("dir");
    let mut rig = Rig::start(dir.path(), &passes(dir.path()));
    // Asked about no device, it named none.
    rig.pods.send_replace(seen(&[], Instant::now()));
    tokio::task::yield_now().await;
    rig.until("Pending").await;
    rig.look();
    tokio::task::yield_now().await;
    assert_eq!(rig.until("Pending").await.result, ProbeResult::NotRun);
    assert_eq!(rig.runs(), 0);
    rig.pods.send_replace(seen(&[], Instant::now()));
    rig.until("Passed").await;
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_kubelet_said_long_ago_counts_for_nothing() {
    let dir = tempfile::tempdir().expect("dir");
    let mut rig = Rig::start(dir.path(), &passes(dir.path()));
    rig.until("Pending").await;
    let answered = Instant::now();
    tokio::time::advance(Duration::from_secs(11)).await;
    rig.pods.send_replace(seen(&[], answered));
    assert_eq!(rig.until("Pending").await.result, ProbeResult::NotRun);
    assert_eq!(rig.runs(), 0);
    rig.end().await;
}

#[tokio::test]
async fn a_pod_that_is_given_the_device_ends_its_probe() {
    let dir = tempfile::tempdir().expect("dir");
    let mut rig = Rig::start(dir.path(), "exec sleep 600");
    rig.until("Pending").await;
    rig.pods.send_replace(seen(&[], Instant::now()));
    let started = async {
        while rig.runs() == 0 {
            rig.look();
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, started).await.expect("a probe starts");
    rig.pods.send_replace(seen(&[GPU], Instant::now()));
    rig.until("Allocated").await;
    let pid = std::fs::read_to_string(&rig.log).expect("pid").trim().to_owned();
    let gone = async {
        // A process that was killed and not yet waited for is a zombie.
        let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat"));
        while stat().is_ok_and(|stat| !stat.contains(") Z")) {
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, gone).await.expect("the probe ends");
    rig.end().await;
}

#[test]
fn a_file_that_cannot_be_read_counts_for_nothing() {
    let dir = tempfile::tempdir().expect("dir");
    std::fs::write(dir.path().join("probes.json"), "{\"bootId\":").expect("write");
    assert!(Store::open(dir.path(), "boot".to_owned()).1.is_empty());
}

fn two() -> Arc<NodeInventory> {
    let mut inventory = inventory().as_ref().clone();
    let mut second = inventory.devices[0].clone();
    (second.identity.index, second.identity.uuid) = (1, "GPU-1".to_owned());
    inventory.devices.push(second);
    Arc::new(inventory)
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_hangs_does_not_hold_up_the_next_device() {
    let dir = tempfile::tempdir().expect("dir");
    let answer = passes(dir.path()).replace("cat ", "sed s/GPU-0/GPU-1/ ");
    let mut rig = Rig::start(dir.path(), &format!("[ \"$4\" = GPU-1 ] || exec sleep 600; {answer}"));
    let look = |rig: &Rig| {
        rig.view.send_modify(|view| view.inventory = Some(two()));
        rig.pods.send_replace(seen(&[], Instant::now()));
    };
    let deadline = std::time::Instant::now() + LIMIT;
    let told = |rig: &mut Rig| rig.probes.borrow_and_update().get("GPU-1").map(|probe| probe.reason.clone());
    while rig.runs() == 0 {
        look(&rig);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(std::time::Instant::now() < deadline, "the first probe starts");
    }
    for _ in 0..100 {
        look(&rig);
        tokio::task::yield_now().await;
    }
    assert_eq!((rig.runs(), told(&mut rig).as_deref()), (1, Some("Pending")), "one at a time");
    tokio::time::advance(Duration::from_secs(11)).await;
    while told(&mut rig).as_deref() != Some("Passed") {
        look(&rig);
        tokio::task::yield_now().await;
        assert!(std::time::Instant::now() < deadline, "{:?}", rig.probes.borrow());
    }
    assert_eq!(rig.probes.borrow()[GPU].reason, "Pending", "the first still runs");
    rig.end().await;
}

#[tokio::test]
async fn nothing_is_held_against_a_device_that_somebody_used_meanwhile() {
    let missing = GpuProbe::without_figures(ProbeResult::Failed, "MemoryMissing", "8 MiB".to_owned());
    for (used, expected) in [(20 << 30, "Busy"), (0, "MemoryMissing")] {
        let dir = tempfile::tempdir().expect("dir");
        let said =
            Probed { uuid: GPU.to_owned(), product_name: "NVIDIA L4".to_owned(), probe: missing.clone() };
        let file = dir.path().join("answer.json");
        std::fs::write(&file, serde_json::to_vec(&[said]).expect("JSON")).expect("write");
        let mut rig = Rig::start(dir.path(), &format!("cat {}", file.display()));
        rig.until("Pending").await;
        rig.pods.send_replace(seen(&[], Instant::now()));
        let ended = async {
            while rig.runs() == 0 {
                rig.look();
                tokio::task::yield_now().await;
            }
            // A stranger came after the probe had begun.
            let mut inventory = inventory().as_ref().clone();
            inventory.devices[0].sensors.memory_used_bytes = Some(used);
            let inventory = Arc::new(inventory);
            loop {
                rig.view.send_modify(|view| view.inventory = Some(Arc::clone(&inventory)));
                let told = rig.probes.borrow_and_update().get(GPU).cloned();
                match told {
                    Some(probe) if probe.reason != "Pending" => return probe,
                    _ => tokio::task::yield_now().await,
                }
            }
        };
        let probe = timeout(LIMIT, ended).await.expect("the probe ends");
        assert_eq!(probe.reason, expected, "{probe:?}");
        rig.end().await;
    }
}
