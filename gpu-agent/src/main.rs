//! `vendue-gpu-agent`: arguments, logs, signals, wiring.
//!
//! Exit codes: 0 stopped by a signal or printed, 1 failed, 2 wrong arguments.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio::net::TcpListener;
use tokio::sync::watch;
use vendue_gpu_agent::agent::{Agent, Devices, Outlets, Pace, View};
use vendue_gpu_agent::args::{Cli, Command, Compat, Library, Log, LogFormat, Output, Run};
use vendue_gpu_agent::health::judge::{Judge, Times};
use vendue_gpu_agent::health::memory::{self, Memory, MemoryError};
use vendue_gpu_agent::inventory::NodeInventory;
use vendue_gpu_agent::metrics::Metrics;
use vendue_gpu_agent::model;
use vendue_gpu_agent::pods::kubelet::Kubelet;
use vendue_gpu_agent::pods::watcher::{Seen, Slices, Watcher};
use vendue_gpu_agent::probe::events::EventSink;
use vendue_gpu_agent::probe::nvml::NvmlProbe;
use vendue_gpu_agent::probe::thread::ProbeThread;
use vendue_gpu_agent::probe::{DeviceProbe, ProbeError};
use vendue_gpu_agent::publish::Publisher;
use vendue_gpu_agent::server::{self, Dcgm, Pulse, ServerError};

/// Longest wait for kubelet.
const KUBELET_LIMIT: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("--node-name or NODE_NAME is needed: the name of the node that this process runs on")]
    NoNodeName,
    #[error("read filter of --log: {0}")]
    LogFilter(#[from] tracing_subscriber::filter::ParseError),
    #[error("start: {0}")]
    Start(std::io::Error),
    #[error("install the TLS provider: another one is installed")]
    Tls,
    #[error("find the API server: {0}")]
    Config(#[from] kube::config::InferConfigError),
    #[error("make the API client: {0}")]
    Client(#[source] Box<kube::Error>),
    #[error("define metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error(transparent)]
    Probe(#[from] ProbeError),
    #[error("make --state-dir {}: {1}", .0.display())]
    StateDir(PathBuf, std::io::Error),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error("print: {0}")]
    Print(#[from] serde_json::Error),
}

fn main() -> ExitCode {
    let Cli { command, run, library, log } = Cli::parse();
    let done = start_logs(&log).and_then(|()| match command {
        Some(Command::Inventory { output }) => print_inventory(&library, output),
        None => start(run, &library),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vendue-gpu-agent: {error}");
            if matches!(error, Failure::NoNodeName | Failure::LogFilter(_)) {
                ExitCode::from(2)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn start_logs(log: &Log) -> Result<(), Failure> {
    let filter = tracing_subscriber::EnvFilter::builder().parse(&log.log)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match log.log_format {
        LogFormat::Json => builder.json().flatten_event(true).init(),
        LogFormat::Text => builder.init(),
    }
    Ok(())
}

fn print_inventory(library: &Library, output: Output) -> Result<(), Failure> {
    let inventory = NvmlProbe::new(library.path()).read()?;
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&inventory)?),
        Output::Text => print_table(&inventory),
    }
    Ok(())
}

fn print_table(inventory: &NodeInventory) {
    println!("driver {}", inventory.driver_version);
    for device in &inventory.devices {
        let id = &device.identity;
        let model = model::from_product_name(&id.product_name);
        let health = device.fault.as_ref().map_or_else(|| "Healthy".to_owned(), |f| format!("{f:?}"));
        println!(
            "{:>2}  {}  {}  {}  {} MiB  {}  {health}",
            id.index,
            id.uuid,
            model,
            id.product_name,
            id.memory_bytes >> 20,
            id.pci_bus_id
        );
    }
    for device in &inventory.unknown {
        println!("{:>2}  {}", device.index, device.error);
    }
}

fn start(run: Run, library: &Library) -> Result<(), Failure> {
    let node_name = run.node_name.clone().filter(|name| !name.is_empty()).ok_or(Failure::NoNodeName)?;
    rustls::crypto::aws_lc_rs::default_provider().install_default().map_err(|_| Failure::Tls)?;
    // One thread is enough for one small object and one scrape, and keeps the process small.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::Start)?;
    runtime.block_on(run_agent(run, node_name, NvmlProbe::new(library.path())))
}

async fn run_agent(run: Run, node_name: String, probe: NvmlProbe) -> Result<(), Failure> {
    let stop = stop_on_signal()?;
    let listener = server::listen(run.listen).await?;
    let metrics = Arc::new(Metrics::new(&node_name)?);
    let pulse = Arc::new(Pulse::new(run.heartbeat()));
    let mut config = kube::Config::infer().await?;
    // The loop tries again by itself, with what it has read by then.
    config.default_retry = false;
    let client = kube::Client::try_from(config).map_err(|error| Failure::Client(Box::new(error)))?;
    let (sink, events) = EventSink::new();
    let probe = ProbeThread::start(probe.with_events(sink), run.hang_limit()).map_err(Failure::Start)?;
    std::fs::create_dir_all(&run.state_dir).map_err(|error| Failure::StateDir(run.state_dir.clone(), error))?;
    let (memory, lasting) = Memory::open(&run.state_dir, memory::boot_id(Path::new(memory::BOOT_ID))?)?;
    let judge = Judge::new(run.xid_classes.clone(), Times::default(), lasting);
    let devices = Devices { probe, events, judge, memory };
    let (known, devices_known) = watch::channel(vec![]);
    let (view, viewed) = watch::channel(View::default());
    let (seen, pods) = watch::channel(Seen::default());
    let slices = Slices::new(client.clone(), node_name.clone());
    let watcher = Watcher::new(Kubelet::new(&run.pod_resources_dir, KUBELET_LIMIT), devices_known, Some(slices));
    let publisher = Publisher::new(client, node_name.clone());
    let pace = Pace { read: run.read_interval(), heartbeat: run.heartbeat() };
    let outlets = Outlets { known, view };
    let agent = Agent::new(pace, devices, outlets, publisher, Arc::clone(&metrics), Arc::clone(&pulse));
    let address = listener.local_addr().map_err(Failure::Start)?;
    let dcgm = match run.metrics_compat {
        Some(Compat::Dcgm) => Some(server::listen(run.compat_listen).await?),
        None => None,
    };
    tracing::info!(node = node_name, listen = %address, "started");
    let served = server::serve(listener, metrics, pulse, stop.clone());
    let compatible = serve_compatible(dcgm, Dcgm { view: viewed, pods, node: node_name }, stop.clone());
    tokio::select! {
        ended = served => ended.map_err(Failure::from),
        ended = compatible => ended,
        () = watcher.run(seen, stop.clone()) => Ok(()),
        () = agent.run(stop.clone()) => Ok(()),
    }
}

/// Serves under another exporter's names, where that is asked for.
async fn serve_compatible(
    listener: Option<TcpListener>,
    dcgm: Dcgm,
    stop: CancellationToken,
) -> Result<(), Failure> {
    match listener {
        Some(listener) => {
            let address = listener.local_addr().map_err(Failure::Start)?;
            tracing::info!(listen = %address, "metrics under the names of dcgm-exporter");
            Ok(server::serve_dcgm(listener, dcgm, stop).await?)
        }
        None => {
            stop.cancelled().await;
            Ok(())
        }
    }
}

fn stop_on_signal() -> Result<CancellationToken, Failure> {
    let stop = CancellationToken::new();
    let told = stop.clone();
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::Start)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::Start)?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        told.cancel();
    });
    Ok(stop)
}
