//! The agent at work: everything made and joined, from the command line's values to the end.
//!
//! Inputs: arguments, a probe, when to stop. Outputs: none but what the parts do. Invariant: what can be wrong with the
//! arguments is found before anything runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::agent::{Agent, Devices, Outlets, View};
use crate::args::{Compat, Library, Run};
use crate::deliver::{self, Deliverer, Receiver};
use crate::health::judge::Judge;
use crate::health::memory::{self, Memory, MemoryError};
use crate::labels::Labeller;
use crate::metering::{Metering, MeteringError};
use crate::metrics::Metrics;
use crate::pods::kubelet::Kubelet;
use crate::pods::watch_processes::ProcessWatcher;
use crate::pods::watcher::{Seen, Slices, Watcher};
use crate::probe::events::EventSink;
use crate::probe::nvml::NvmlProbe;
use crate::probe::thread::ProbeThread;
use crate::publish::Publisher;
use crate::published::SliceCheck;
use crate::server::{self, Dcgm, Pulse, ServerError};
use crate::synthetic::Probes;
use crate::synthetic::book::Book;
use crate::synthetic::runner::Runner;
use crate::synthetic::store::Store;
use crate::synthetic::task::{Channels, Prober};
use crate::taints::Tainter;
use crate::writer::{Api, Beat, Writer};

/// The kernel's view of processes.
const PROC: &str = "/proc";

/// Longest wait for kubelet.
const KUBELET_LIMIT: Duration = Duration::from_secs(5);

/// Why the agent ended, or did not begin.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The system does not give what is needed.
    #[error("start: {0}")]
    Start(std::io::Error),
    /// No folder for what must outlast the process.
    #[error("make --state-dir {}: {source}", path.display())]
    StateDir {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Faults from before cannot be read.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Metering cannot begin.
    #[error(transparent)]
    Metering(#[from] MeteringError),
    /// There is no configuration for a client.
    #[error("find the API server: {0}")]
    Config(#[from] kube::config::InferConfigError),
    /// No client can be made of it.
    #[error("make the API client: {0}")]
    Client(#[source] Box<kube::Error>),
    /// A definition of a metric is wrong.
    #[error("define metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The driver was replaced: the next process loads what is there now.
    #[error("{0}; this process ends, so that the next one loads the driver that is there now")]
    Replaced(String),
    /// Metrics cannot be served.
    #[error(transparent)]
    Server(#[from] ServerError),
}

/// Runs until `stop`, or until something fails for good.
///
/// # Errors
/// When a part cannot be made, or a server ends.
pub async fn run(run: Run, node: String, library: &Library, stop: CancellationToken) -> Result<(), RunError> {
    let listener = server::listen(run.listen).await?;
    let dcgm = match run.metrics_compat {
        Some(Compat::Dcgm) => Some(server::listen(run.compat_listen).await?),
        None => None,
    };
    let metrics = Arc::new(Metrics::new(&node)?);
    let pulse = Arc::new(Pulse::new(run.heartbeat()));
    let boot = memory::boot_id(Path::new(memory::BOOT_ID))?;
    let (probes, probed) = watch::channel(Probes::new());
    let devices = devices(&run, NvmlProbe::new(library.path()), boot.clone(), probed)?;
    let client = client().await?;
    let (known, devices_known) = watch::channel(vec![]);
    let (view, viewed) = watch::channel(View::default());
    let (seen, pods) = watch::channel(Seen::default());
    let receiver = run.receiver();
    let metering = Metering::start(&run.state_dir, &boot, pods.clone(), receiver.is_some())?;
    tracing::info!(public_key = %metering.public_key(), "receipts are signed by this key");
    let delivered = deliverer(receiver, &metering, &metrics, stop.clone());
    let kubelet = Kubelet::new(&run.pod_resources_dir, KUBELET_LIMIT);
    let watcher = Watcher::new(kubelet, devices_known, Some(Slices::new(client.clone(), node.clone())));
    let beat = Beat { heartbeat: run.heartbeat(), pause: run.read_interval() };
    let tainter = Tainter::new(client.clone(), node.clone(), !run.no_taints);
    let labeller = Labeller::new(client.clone(), node.clone(), run.gfd_labels);
    let slices = SliceCheck::new(client.clone(), node.clone());
    let api = Api { publisher: Publisher::new(client, node.clone()), tainter, labeller, slices };
    let (wishes, wished) = watch::channel(None);
    let writer = Writer::new(beat, wished, api, Arc::clone(&metrics), Arc::clone(&pulse));
    let outlets = Outlets { known, view, metering, wishes };
    let channels = Channels { view: viewed.clone(), pods: pods.clone(), probes };
    let prober = prober(&run, library, boot, channels, Arc::clone(&metrics))?;
    let processes = processes(&run, (&viewed, &pods), &metrics, stop.clone());
    let agent = Agent::new(run.read_interval(), devices, outlets, Arc::clone(&metrics), Arc::clone(&pulse));

    let address = listener.local_addr().map_err(RunError::Start)?;
    tracing::info!(node, listen = %address, "started");
    let served = server::serve(listener, metrics, pulse, stop.clone());
    let compatible = serve_compatible(dcgm, Dcgm { view: viewed, pods, node }, stop.clone());
    tokio::select! {
        ended = served => Ok(ended?),
        ended = compatible => ended,
        () = delivered => Ok(()),
        () = watcher.run(seen, stop.clone()) => Ok(()),
        () = prober.run(stop.clone()) => Ok(()),
        () = processes => Ok(()),
        () = writer.run(stop.clone()) => Ok(()),
        ended = agent.run(stop.clone()) => match ended {
            Some(what) => Err(RunError::Replaced(what)),
            None => Ok(()),
        },
    }
}

/// The devices, and what is remembered against them.
fn devices(
    run: &Run,
    probe: NvmlProbe,
    boot: String,
    probes: watch::Receiver<Probes>,
) -> Result<Devices, RunError> {
    let dir = &run.state_dir;
    std::fs::create_dir_all(dir).map_err(|source| RunError::StateDir { path: dir.clone(), source })?;
    let (memory, lasting) = Memory::open(dir, boot)?;
    let times = run.health_times;
    let judge = Judge::new(run.xid_classes.clone(), times, lasting);
    let (sink, events) = EventSink::new();
    let probe = ProbeThread::start(
        probe.with_events(sink.clone()).with_processes(run.process_attribution),
        run.hang_limit(),
    )
    .map_err(RunError::Start)?;
    Ok(Devices { probe, events, sink, judge, times, memory, probes })
}

/// What measures the devices: this program again, as a child.
fn prober(
    run: &Run,
    library: &Library,
    boot: String,
    channels: Channels,
    metrics: Arc<Metrics>,
) -> Result<Prober, RunError> {
    let program = std::env::current_exe().map_err(RunError::Start)?;
    let mut arguments = vec![];
    for (name, path) in [("--nvml-library", library.path()), ("--cuda-library", library.cuda_path())] {
        arguments.extend(path.map(|path| [name.into(), path.into_os_string()]).into_iter().flatten());
    }
    let (store, kept) = Store::open(&run.state_dir, boot);
    let runner = Runner::new(program, arguments, run.probe_limit());
    Ok(Prober::new(runner, (store, Book::new(kept).with_times(run.health_times)), channels, metrics))
}

/// Shows which Pods use which devices, where that is asked for.
fn processes(
    run: &Run,
    (view, pods): (&watch::Receiver<View>, &watch::Receiver<Seen>),
    metrics: &Arc<Metrics>,
    stop: CancellationToken,
) -> impl Future<Output = ()> + use<> {
    let watcher = run
        .process_attribution
        .then(|| ProcessWatcher::new(PROC.into(), view.clone(), pods.clone(), Arc::clone(metrics)));
    async move {
        match watcher {
            Some(watcher) => watcher.run(stop).await,
            None => stop.cancelled().await,
        }
    }
}

/// Tells receipts where there is somebody to tell.
fn deliverer(
    receiver: Option<Receiver>,
    metering: &Metering,
    metrics: &Arc<Metrics>,
    stop: CancellationToken,
) -> impl Future<Output = ()> + use<> {
    let deliverer = receiver.zip(metering.counter()).map(|(receiver, (counter, ended))| {
        Deliverer::new(receiver, deliver::Pace::default(), counter, ended, Arc::clone(metrics))
    });
    async move {
        match deliverer {
            Some(deliverer) => deliverer.run(stop).await,
            None => {
                tracing::warn!("--receipts-url is not set: receipts stay on this node, and nothing accrues");
                stop.cancelled().await;
            }
        }
    }
}

async fn client() -> Result<kube::Client, RunError> {
    let mut config = kube::Config::infer().await?;
    // The loop tries again by itself, with what it has read by then.
    config.default_retry = false;
    kube::Client::try_from(config).map_err(|error| RunError::Client(Box::new(error)))
}

/// Serves under another exporter's names, where that is asked for.
async fn serve_compatible(
    listener: Option<TcpListener>,
    dcgm: Dcgm,
    stop: CancellationToken,
) -> Result<(), RunError> {
    match listener {
        Some(listener) => {
            let address = listener.local_addr().map_err(RunError::Start)?;
            tracing::info!(listen = %address, "metrics under the names of dcgm-exporter");
            Ok(server::serve_dcgm(listener, dcgm, stop).await?)
        }
        None => {
            stop.cancelled().await;
            Ok(())
        }
    }
}
