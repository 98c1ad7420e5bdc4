//! `nvml-sim`: makes, shows and changes simulated GPUs, and advertises them to kubelet.
//!
//! Input: arguments. Output: a state file, or its content on standard output. Exit codes: 0 done, 1 failed, 2 wrong
//! arguments.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tokio_util::sync::CancellationToken;
use vendue_nvml_sim::plugin::allocate::Layout;
use vendue_nvml_sim::plugin::{self, PluginError};
use vendue_nvml_sim::profile::Profile;
use vendue_nvml_sim::source::{self, SourceError};
use vendue_nvml_sim::state::{DeviceHealth, DriverHealth, Process, State, StateError};
use vendue_nvml_sim::telemetry;

/// Simulated NVIDIA GPUs: programs that load libnvidia-ml.so.1 see what the state file says.
#[derive(Debug, Parser)]
#[command(name = "nvml-sim", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a new state file with healthy, idle devices.
    Start(Start),
    /// Show the devices.
    Show(Show),
    /// Change devices or the driver.
    Set(Set),
    /// Advertise the devices to kubelet until stopped.
    DevicePlugin(DevicePlugin),
    /// List the built-in profiles.
    Profiles,
}

#[derive(Debug, Args)]
struct StateFile {
    /// The state file.
    #[arg(long, value_name = "FILE", env = "VENDUE_NVML_STATE")]
    state: PathBuf,
}

#[derive(Debug, Args)]
struct Start {
    #[command(flatten)]
    file: StateFile,
    /// Model of the devices; repeat together with --count for several models.
    #[arg(long, required = true)]
    profile: Vec<String>,
    /// Number of devices of the model at the same position.
    #[arg(long, required = true)]
    count: Vec<usize>,
    /// UUIDs and serial numbers derive from it; default is the file's absolute path.
    #[arg(long)]
    seed: Option<String>,
    /// Version of the simulated driver.
    #[arg(long, value_name = "VERSION")]
    driver_version: Option<String>,
}

#[derive(Debug, Args)]
struct Show {
    #[command(flatten)]
    file: StateFile,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// One line per device.
    Text,
    /// The whole state.
    Json,
}

#[derive(Debug, Args)]
struct Set {
    #[command(flatten)]
    file: StateFile,
    /// Index or UUID of the device; without it, all devices.
    #[arg(long)]
    device: Option<String>,
    /// New condition of the devices.
    #[arg(long, value_enum)]
    health: Option<Health>,
    /// Share of time that kernels run, 0 to 100.
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(0..=100))]
    utilization: Option<u32>,
    /// Processes as PID:MEMORY_MIB, separated by commas; empty for none.
    #[arg(long, value_name = "LIST")]
    processes: Option<String>,
    /// MIG mode of the devices, on cards that can.
    #[arg(long, value_name = "BOOL")]
    mig: Option<bool>,
    /// New condition of the driver.
    #[arg(long, value_enum)]
    driver: Option<DriverState>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Health {
    Healthy,
    Lost,
    EccFailed,
    Hung,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DriverState {
    Loaded,
    NotLoaded,
    Mismatch,
}

#[derive(Debug, Args)]
struct DevicePlugin {
    #[command(flatten)]
    file: StateFile,
    /// The simulated library, which is mounted into containers as libnvidia-ml.so.1.
    #[arg(long, value_name = "FILE")]
    library: PathBuf,
    /// Kubelet's device-plugins folder.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet/device-plugins")]
    kubelet_dir: PathBuf,
    /// Resource to advertise.
    #[arg(long, default_value = "nvidia.com/gpu")]
    resource: String,
    /// Folder in containers for library and state.
    #[arg(long, value_name = "DIR", default_value = "/usr/local/nvidia-sim")]
    container_dir: PathBuf,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Plugin(#[from] PluginError),
    #[error("{0}")]
    Usage(String),
    #[error("start runtime: {0}")]
    Runtime(std::io::Error),
    #[error("print: {0}")]
    Print(#[from] serde_json::Error),
}

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match dispatch(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nvml-sim: {error}");
            if matches!(error, Failure::Usage(_)) { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::Start(args) => start(args),
        Command::Show(args) => show(&args),
        Command::Set(args) => set(&args),
        Command::DevicePlugin(args) => device_plugin(args),
        Command::Profiles => {
            for name in vendue_nvml_sim::profile::names() {
                println!("{name}");
            }
            Ok(())
        }
    }
}

fn start(args: Start) -> Result<(), Failure> {
    let Start { file, profile, count, seed, driver_version } = args;
    if profile.len() != count.len() {
        return Err(Failure::Usage(format!("{} --profile but {} --count", profile.len(), count.len())));
    }
    let seed = seed.unwrap_or_else(|| {
        std::path::absolute(&file.state).unwrap_or_else(|_| file.state.clone()).to_string_lossy().into_owned()
    });
    let groups: Vec<_> = profile.into_iter().zip(count).collect();
    let mut state = State::generate(&groups, &seed, source::now_unix_ms())?;
    if let Some(version) = driver_version {
        state.driver.version = version;
    }
    source::store(&file.state, &state)?;
    print_table(&state);
    Ok(())
}

fn show(args: &Show) -> Result<(), Failure> {
    let state = source::load(&args.file.state)?;
    match args.output {
        Format::Text => print_table(&state),
        Format::Json => println!("{}", serde_json::to_string_pretty(&state)?),
    }
    Ok(())
}

fn print_table(state: &State) {
    println!("driver {} ({:?})", state.driver.version, state.driver.health);
    let now = source::now_unix_ms();
    for (device, profile) in state.devices.iter().filter_map(|d| state.device(d.index)) {
        let t = telemetry::read(device, profile, now);
        println!(
            "{:>2}  {}  {}  {}  {:?}  {} %  {} W  {} MiB used",
            device.index,
            device.uuid,
            profile.product_name,
            device.pci.long(),
            device.health,
            device.gpu_utilization_percent,
            t.power_milliwatts / 1000,
            t.memory_used_bytes >> 20,
        );
    }
}

fn set(args: &Set) -> Result<(), Failure> {
    let mut state = source::load(&args.file.state)?;
    if let Some(driver) = args.driver {
        state.driver.health = match driver {
            DriverState::Loaded => DriverHealth::Loaded,
            DriverState::NotLoaded => DriverHealth::NotLoaded,
            DriverState::Mismatch => DriverHealth::Mismatch,
        };
    }
    let processes = args.processes.as_deref().map(parse_processes).transpose()?;
    let profiles: std::collections::BTreeMap<String, Profile> = state.profiles.clone();
    let now = source::now_unix_ms();
    let mut matched = 0;
    for device in &mut state.devices {
        let wanted = |id: &String| *id == device.uuid || id.parse() == Ok(device.index);
        if !args.device.as_ref().is_none_or(wanted) {
            continue;
        }
        matched += 1;
        if let Some(profile) = profiles.get(&device.profile) {
            telemetry::settle_energy(device, profile, now);
        }
        if let Some(health) = args.health {
            device.health = device_health(health);
            device.ecc_uncorrected += u64::from(device.health == DeviceHealth::EccFailed);
        }
        device.gpu_utilization_percent = args.utilization.unwrap_or(device.gpu_utilization_percent);
        device.mig_enabled = args.mig.unwrap_or(device.mig_enabled);
        if let Some(processes) = &processes {
            device.processes.clone_from(processes);
        }
    }
    if let (Some(id), 0) = (&args.device, matched) {
        return Err(Failure::Usage(format!("no device {id:?}; see nvml-sim show")));
    }
    source::store(&args.file.state, &state)?;
    print_table(&state);
    Ok(())
}

fn device_health(health: Health) -> DeviceHealth {
    match health {
        Health::Healthy => DeviceHealth::Healthy,
        Health::Lost => DeviceHealth::Lost,
        Health::EccFailed => DeviceHealth::EccFailed,
        Health::Hung => DeviceHealth::Hung,
    }
}

fn parse_processes(list: &str) -> Result<Vec<Process>, Failure> {
    let parse = |entry: &str| {
        let (pid, memory) = entry.split_once(':')?;
        Some(Process { pid: pid.parse().ok()?, memory_mib: memory.parse().ok()?, sm_percent: 0 })
    };
    list.split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
        .map(|entry| parse(entry).ok_or_else(|| Failure::Usage(format!("{entry:?} is not PID:MEMORY_MIB"))))
        .collect()
}

fn device_plugin(args: DevicePlugin) -> Result<(), Failure> {
    let DevicePlugin { file, library, kubelet_dir, resource, container_dir } = args;
    let layout = Layout { library, state: file.state, container_dir };
    let config = plugin::Config { layout, kubelet_dir, resource };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::Runtime)?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let signalled = stop.clone();
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
            .map_err(Failure::Runtime)?;
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            signalled.cancel();
        });
        plugin::run(config, stop).await.map_err(Failure::from)
    })
}
