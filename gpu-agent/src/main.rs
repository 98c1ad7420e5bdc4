//! `vendue-gpu-agent`: arguments, logs, signals, wiring.
//!
//! Exit codes: 0 stopped by a signal or printed, 1 failed, 2 wrong arguments, 3 the driver was replaced under it.

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use vendue_gpu_agent::args::{Cli, Command, Library, Log, LogFormat, Output, Run};
use vendue_gpu_agent::inventory::NodeInventory;
use vendue_gpu_agent::meter::key::{self, KeyError};
use vendue_gpu_agent::model;
use vendue_gpu_agent::probe::nvml::NvmlProbe;
use vendue_gpu_agent::probe::{DeviceProbe, ProbeError};
use vendue_gpu_agent::run::{self, RunError};
use vendue_gpu_agent::synthetic::command::{self, CommandError, Probed};

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
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Probe(#[from] ProbeError),
    #[error(transparent)]
    Synthetic(#[from] CommandError),
    #[error("rotate the key: {0}")]
    RotateKey(#[from] KeyError),
    #[error("print: {0}")]
    Print(#[from] serde_json::Error),
}

fn main() -> ExitCode {
    let Cli { command, run, library, log } = Cli::parse();
    let done = start_logs(&log).and_then(|()| match command {
        Some(Command::Inventory { output }) => print_inventory(&library, output),
        Some(Command::Probe { gpu, output, parent }) => {
            print_probes(&library, gpu.as_deref(), output, parent)
        }
        Some(Command::RotateKey { state_dir }) => rotate_key(&state_dir),
        None => start(run, &library),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vendue-gpu-agent: {error}");
            match error {
                Failure::NoNodeName
                | Failure::LogFilter(_)
                | Failure::Synthetic(CommandError::NoSuchDevice { .. }) => ExitCode::from(2),
                Failure::Run(RunError::Replaced(_)) => ExitCode::from(3),
                _ => ExitCode::FAILURE,
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

fn print_probes(
    library: &Library,
    gpu: Option<&str>,
    output: Output,
    parent: Option<i32>,
) -> Result<(), Failure> {
    parent.map_or(Ok(()), command::end_with)?;
    let probed = command::probe(library.path(), library.cuda_path().as_deref(), gpu)?;
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&probed)?),
        Output::Text => {
            for Probed { uuid, product_name, probe } in &probed {
                let message = probe.message.as_deref().unwrap_or_default();
                println!("{uuid}  {product_name}  {:?}  {}  {message}", probe.result, probe.reason);
            }
        }
    }
    Ok(())
}

fn rotate_key(dir: &Path) -> Result<(), Failure> {
    let public_key = key::draw_next(dir)?;
    println!("{public_key}");
    eprintln!("the next key is drawn; the agent goes over to it when it is restarted");
    Ok(())
}

fn start(run: Run, library: &Library) -> Result<(), Failure> {
    let node_name = run.node_name.clone().filter(|name| !name.is_empty()).ok_or(Failure::NoNodeName)?;
    rustls::crypto::aws_lc_rs::default_provider().install_default().map_err(|_| Failure::Tls)?;
    // One thread is enough for one small object and one scrape, and keeps the process small.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::Start)?;
    runtime.block_on(async {
        let stop = stop_on_signal()?;
        Ok(run::run(run, node_name, library, stop).await?)
    })
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
