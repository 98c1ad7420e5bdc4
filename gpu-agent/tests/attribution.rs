//! Which Pods use which devices, from the simulated driver's processes and a folder like /proc to metrics.

// Helpers of tests fail by panicking too; the lint's own exception covers only the test functions.
#![allow(clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use vendue_gpu_agent::agent::View;
use vendue_gpu_agent::inventory::NodeInventory;
use vendue_gpu_agent::metrics::Metrics;
use vendue_gpu_agent::pods::attribution::Attribution;
use vendue_gpu_agent::pods::processes::MAX_PODS;
use vendue_gpu_agent::pods::watch_processes::ProcessWatcher;
use vendue_gpu_agent::pods::watcher::Seen;
use vendue_gpu_agent::probe::DeviceProbe;
use vendue_gpu_agent::probe::nvml::NvmlProbe;
use vendue_nvml_sim::clock::Clock;
use vendue_nvml_sim::fleet::Fleet;
use vendue_nvml_sim::load::Work;
use vendue_nvml_sim::source;
use vendue_nvml_sim::state::{Process, State};

fn library() -> PathBuf {
    let exe = std::env::current_exe().expect("path of the test");
    let name = "libvendue_nvml_sim.so";
    exe.ancestors().skip(1).map(|dir| dir.join(name)).find(|path| path.exists()).expect("built library")
}

fn uid(pod: u32) -> String {
    format!("{pod:08x}-0011-4455-8899-aabbccddeeff")
}

/// A process of this Pod in a folder like /proc; of the node itself without one.
fn put(proc: &Path, pid: u32, pod: Option<u32>) {
    let path = proc.join(pid.to_string());
    std::fs::create_dir_all(&path).expect("dir");
    let unit = match pod {
        Some(pod) => format!("/kubepods.slice/kubepods-pod{}.slice/c.scope", uid(pod).replace('-', "_")),
        None => "/system.slice/xorg.service".to_owned(),
    };
    std::fs::write(path.join("cgroup"), format!("0::{unit}\n")).expect("file");
}

/// The watcher, and what the agent's loop and kubelet tell it.
struct Watched {
    probe: NvmlProbe,
    proc: tempfile::TempDir,
    view: watch::Sender<View>,
    pods: watch::Sender<Seen>,
    metrics: Arc<Metrics>,
    watcher: ProcessWatcher,
}

impl Watched {
    fn new(library: PathBuf) -> Self {
        let probe = NvmlProbe::new(Some(library)).with_slow(Duration::ZERO).with_processes(true);
        let proc = tempfile::tempdir().expect("dir");
        let ((view, viewed), (pods, seen)) =
            (watch::channel(View::default()), watch::channel(Seen::default()));
        let metrics = Arc::new(Metrics::new("n1").expect("metrics"));
        let watcher = ProcessWatcher::new(proc.path().to_owned(), viewed, seen, Arc::clone(&metrics));
        Self { probe, proc, view, pods, metrics, watcher }
    }

    fn read(&mut self) -> NodeInventory {
        let inventory = self.probe.read().expect("inventory");
        self.view.send_modify(|view| view.inventory = Some(Arc::new(inventory.clone())));
        inventory
    }

    /// Reads the devices and looks; the lines about processes.
    async fn look(&mut self) -> Vec<String> {
        self.read();
        self.watcher.look().await;
        self.lines()
    }

    fn lines(&self) -> Vec<String> {
        let text = self.metrics.render().expect("text");
        let about = ["vendue_gpu_pod_", "vendue_gpu_unknown_", "vendue_gpu_unassigned_"];
        let lines = text.lines().filter(|line| about.iter().any(|name| line.starts_with(name)));
        lines.map(str::to_owned).collect()
    }
}

#[tokio::test]
async fn pods_show_what_their_processes_use_and_are_gone_when_these_are() {
    let dir = tempfile::tempdir().expect("dir");
    let clock = Clock::stopped(1_800_000_000_000_000_000);
    let fleet = Fleet::create(&dir.path().join("state.json"), &[("H100", 1)], "pods", clock).expect("fleet");
    let mut watched = Watched::new(fleet.install(&library()).expect("install"));
    let work = |pid, intensity, memory_mib| {
        let work = Work { pid, device: 0, intensity, memory_mib, ..Work::default() };
        fleet.load(work).expect("load")
    };
    let loads = [work(11, 30, 1024), work(12, 10, 512), work(13, 5, 256), work(14, 5, 128)];
    put(watched.proc.path(), 11, Some(1));
    put(watched.proc.path(), 12, Some(1));
    put(watched.proc.path(), 13, None);
    let lines = watched.look().await;
    let gpu = watched.read().devices[0].identity.uuid.clone();
    let of = |name: &str, pod: Option<String>, value: &str| {
        let pod = pod.map_or(String::new(), |uid| format!(r#"pod_uid="{uid}","#));
        format!(r#"vendue_gpu_{name}{{gpu_uuid="{gpu}",model="H100",{pod}node="n1"}} {value}"#)
    };
    let (none, one) = (Some(String::new()), Some(uid(1)));
    let expected = [
        of("pod_memory_used_bytes", none.clone(), "268435456"),
        of("pod_memory_used_bytes", one.clone(), "1610612736"),
        of("pod_processes", none.clone(), "1"),
        of("pod_processes", one.clone(), "2"),
        of("pod_utilization_ratio", none.clone(), "0.05"),
        of("pod_utilization_ratio", one.clone(), "0.4"),
        of("unknown_processes", None, "1"),
    ];
    assert_eq!(lines, expected, "who was given what is not known yet");

    // Kubelet gave the device to nobody; the second look says so.
    let heard = || Some((Arc::new(Attribution::default()), tokio::time::Instant::now()));
    watched.pods.send_modify(|seen| seen.attribution = heard());
    watched.look().await;
    assert!(watched.look().await.contains(&of("unassigned_processes", None, "2")), "{:?}", watched.lines());

    fleet.end(loads[0]).expect("end");
    fleet.end(loads[1]).expect("end");
    fleet.end(loads[3]).expect("end");
    let lines = watched.look().await;
    assert!(lines.contains(&of("unknown_processes", None, "0")), "{lines:?}");
    assert!(lines.contains(&of("pod_processes", none, "1")), "{lines:?}");
    assert!(lines.contains(&of("unassigned_processes", None, "0")), "{lines:?}");
    assert!(!lines.iter().any(|line| line.contains(&uid(1))), "{lines:?}");

    // Nothing old is shown while devices cannot be read.
    watched.view.send_modify(|view| view.inventory = None);
    watched.watcher.look().await;
    assert_eq!(watched.lines(), Vec::<String>::new());
}

#[tokio::test]
async fn processes_are_not_read_unless_that_is_asked_for() {
    let dir = tempfile::tempdir().expect("dir");
    let clock = Clock::stopped(1_800_000_000_000_000_000);
    let fleet = Fleet::create(&dir.path().join("state.json"), &[("T4", 1)], "off", clock).expect("fleet");
    let work = Work { pid: 11, device: 0, intensity: 30, memory_mib: 1, ..Work::default() };
    fleet.load(work).expect("load");
    let mut probe = NvmlProbe::new(Some(fleet.install(&library()).expect("install")));
    assert_eq!(probe.read().expect("inventory").devices[0].processes, None);
    let mut probe = probe.with_processes(true).with_slow(Duration::ZERO);
    let processes = probe.read().expect("inventory").devices[0].processes.clone().expect("processes");
    assert_eq!(processes.iter().map(|process| process.pid).collect::<Vec<_>>(), [11]);
}

#[tokio::test]
async fn sixty_four_gpus_with_five_hundred_processes_each_take_bounded_time_and_series() {
    const GPUS: u32 = 64;
    const PROCESSES: u32 = 500;
    let dir = tempfile::tempdir().expect("dir");
    let mut state = State::generate(&[("H100".to_owned(), GPUS as usize)], "many", u64::MAX).expect("state");
    // On each device the same, as those of a program on all of them.
    for device in &mut state.devices {
        let process = |pid| Process { pid, memory_mib: 100, sm_percent: 0 };
        device.processes = (1..=PROCESSES).map(process).collect();
    }
    std::fs::copy(library(), dir.path().join("libnvidia-ml.so.1")).expect("copy the library");
    source::store(&dir.path().join("state.json"), &state).expect("store");
    let mut watched = Watched::new(dir.path().join("libnvidia-ml.so.1"));
    (1..=PROCESSES).for_each(|pid| put(watched.proc.path(), pid, Some(pid % 100)));
    let begin = Instant::now();
    watched.read();
    let read = begin.elapsed();
    let lines = watched.look().await;
    let processes: Vec<&String> =
        lines.iter().filter(|l| l.starts_with("vendue_gpu_pod_processes")).collect();
    assert_eq!(processes.len(), GPUS as usize * (MAX_PODS + 1), "those that are named, and the others");
    let sum: f64 = processes.iter().filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum();
    assert!((sum - f64::from(GPUS * PROCESSES)).abs() < 0.5, "{sum}");
    println!("read in {read:?}, read and shown again by {:?}", begin.elapsed());
    assert!(begin.elapsed() < Duration::from_secs(5), "read in {read:?}, all in {:?}", begin.elapsed());
}
