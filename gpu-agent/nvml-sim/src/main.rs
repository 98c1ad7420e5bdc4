//! `nvml-sim`: makes, shows and changes simulated GPUs, and advertises them to kubelet.
//!
//! Input: arguments. Output: a state file, or its content on standard output. Exit codes: 0 done, 1 failed, 2 wrong
//! arguments.

mod commands;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use vendue_nvml_sim::fleet::FleetError;
use vendue_nvml_sim::library::LibraryError;
use vendue_nvml_sim::mig::LayoutError;
use vendue_nvml_sim::plugin::PluginError;
use vendue_nvml_sim::source::SourceError;
use vendue_nvml_sim::state::StateError;

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
    /// Register what a process does on a device, or end it.
    Load(Load),
    /// Make something happen, now or later.
    Inject(Inject),
    /// Show the scripted events, add to them, or drop them.
    Timeline(Timeline),
    /// Split a device into MIG instances, or undo that.
    Mig(Mig),
    /// Show the simulated clock, set it forward, or change its rate.
    Clock(ClockArgs),
    /// Write the library as an older driver would have it, without the symbols that came later.
    Library(LibraryArgs),
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
    /// Simulated seconds per real second; 0 is a clock that only `clock --advance` moves.
    #[arg(long, value_name = "RATE", default_value_t = 1)]
    clock_rate: u32,
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
    /// UUID that the devices have from now on; given to several, they are clones.
    #[arg(long)]
    uuid: Option<String>,
    /// The card that the devices really are, behind the one that they say they are.
    #[arg(long, value_name = "PROFILE")]
    real_profile: Option<String>,
    /// Memory that the devices say they have.
    #[arg(long, value_name = "MIB")]
    claimed_memory_mib: Option<u64>,
    /// Share of the true power that sensors show.
    #[arg(long, value_name = "PERCENT")]
    shown_power_percent: Option<u32>,
    /// Share of the clock shown that the devices really run at.
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..=100))]
    real_clock_percent: Option<u32>,
}

#[derive(Debug, Args)]
struct Load {
    #[command(flatten)]
    file: StateFile,
    /// Index of the device.
    #[arg(long, default_value_t = 0)]
    device: u32,
    /// Share of the SMs, in percent.
    #[arg(long, value_name = "PERCENT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=100))]
    intensity: u32,
    /// Share of the time in which a kernel runs, in percent, where that is more than the share of the SMs.
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100))]
    time_percent: u32,
    /// Device memory that the process holds.
    #[arg(long, value_name = "MIB", default_value_t = 0)]
    memory_mib: u64,
    /// Process id that NVML reports.
    #[arg(long, required_unless_present = "end")]
    pid: Option<u32>,
    /// GPU instance, on a device in MIG mode.
    #[arg(long, value_name = "ID")]
    gpu_instance: Option<u32>,
    /// End the load when the process does.
    #[arg(long)]
    watch: bool,
    /// End the load with this id, which `load` printed when it began.
    #[arg(long, value_name = "ID", conflicts_with_all = ["pid", "watch"])]
    end: Option<u64>,
}

#[derive(Debug, Args)]
struct Inject {
    #[command(flatten)]
    file: StateFile,
    /// Index of the device; without it, all devices.
    #[arg(long)]
    device: Option<u32>,
    /// Seconds from now on the simulated clock.
    #[arg(long = "in", value_name = "SECONDS", default_value_t = 0)]
    after: u64,
    /// Seconds that hang, throttle and driver-reload last.
    #[arg(long = "for", value_name = "SECONDS")]
    lasting: Option<u64>,
    /// xid=CODE, ecc-corrected=N, ecc-uncorrected=N, sram-uncorrected=N, remapped=N, remap-pending, remap-failed,
    /// throttle=hw-thermal:PERCENT (or sw-thermal, hw-power-brake, sw-power-cap), hang, lost, recover, driver-reload,
    /// uuid=UUID.
    fault: String,
}

#[derive(Debug, Args)]
struct Timeline {
    #[command(flatten)]
    file: StateFile,
    /// Add the events of a JSON file; their times count from now.
    #[arg(long, value_name = "FILE")]
    add: Option<PathBuf>,
    /// Add random events from this seed.
    #[arg(long, value_name = "SEED")]
    generate: Option<u64>,
    /// Length of the random time-line.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    seconds: u64,
    /// Mean time between two random faults of one device.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    mean_gap: u64,
    /// Drop all events first, also those that happened.
    #[arg(long)]
    clear: bool,
}

#[derive(Debug, Args)]
struct Mig {
    #[command(flatten)]
    file: StateFile,
    /// Index of the device.
    #[arg(long)]
    device: u32,
    /// Instances, for example 3g.40gb,1g.10gb; empty for MIG mode without instances.
    #[arg(long, value_name = "LIST", required_unless_present = "disable")]
    instances: Option<String>,
    /// Turn MIG mode off.
    #[arg(long, conflicts_with = "instances")]
    disable: bool,
}

#[derive(Debug, Args)]
struct ClockArgs {
    #[command(flatten)]
    file: StateFile,
    /// Set the clock forward.
    #[arg(long, value_name = "SECONDS")]
    advance: Option<u64>,
    /// Simulated seconds per real second from now on.
    #[arg(long, value_name = "RATE")]
    rate: Option<u32>,
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
struct LibraryArgs {
    /// The built library.
    #[arg(long, value_name = "FILE")]
    built: PathBuf,
    /// Version of the driver, for example 470.57.02.
    #[arg(long, value_name = "VERSION")]
    driver_version: String,
    /// Where the copy goes.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
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
    Fleet(#[from] FleetError),
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    Library(#[from] LibraryError),
    #[error(transparent)]
    Plugin(#[from] PluginError),
    #[error("{0}")]
    Usage(String),
    #[error("{operation}: {source}")]
    System { operation: String, source: std::io::Error },
    #[error("{operation}: {source}")]
    Json { operation: String, source: serde_json::Error },
}

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match commands::dispatch(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nvml-sim: {error}");
            if matches!(error, Failure::Usage(_)) { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}
