//! Command line and environment.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::deliver::Receiver;
use crate::health::times::Times;
use crate::health::xid::Policy;
use crate::pods::kubelet;

/// What must outlast the agent's process lies here.
const STATE_DIR: &str = "/var/lib/vendue/gpu-agent";

/// Reads the GPUs of this node and publishes them as one GpuNode.
#[derive(Debug, Parser)]
#[command(name = "vendue-gpu-agent", version)]
pub struct Cli {
    /// What to do; without a command, run.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to run.
    #[command(flatten)]
    pub run: Run,
    /// How to read.
    #[command(flatten)]
    pub library: Library,
    /// How to log.
    #[command(flatten)]
    pub log: Log,
}

/// Commands beside running.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Read the devices once and print them; needs no cluster.
    Inventory {
        /// Output format.
        #[arg(short, long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// Measure devices that nobody uses and print what was found: memory, its bandwidth, clock under load; needs no
    /// cluster. All free memory of the device is used for some seconds.
    Probe {
        /// UUID of the device; default is all.
        #[arg(long, value_name = "UUID")]
        gpu: Option<String>,
        /// Output format.
        #[arg(short, long, value_enum, default_value_t = Output::Text)]
        output: Output,
        /// End when this process, which started the probe, ends.
        #[arg(long, hide = true, value_name = "PID")]
        parent: Option<i32>,
    },
    /// Draw the node's next key; the agent goes over to it at its next start.
    RotateKey {
        /// Folder on the node's disk with the key.
        #[arg(long, env = "VENDUE_STATE_DIR", default_value = STATE_DIR, value_name = "DIR")]
        state_dir: PathBuf,
    },
}

/// Output formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// One line per device.
    Text,
    /// Everything that was read.
    Json,
}

/// How to run.
#[derive(Clone, Debug, Args)]
pub struct Run {
    /// Name of the node, which the GpuNode takes.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: Option<String>,
    /// Address for /metrics, /healthz and /readyz.
    #[arg(long, env = "VENDUE_LISTEN", default_value = "0.0.0.0:9470")]
    pub listen: SocketAddr,
    /// Seconds between two readings.
    #[arg(long, env = "VENDUE_READ_SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub read_seconds: u64,
    /// Most seconds between two writes; changes are written at once.
    #[arg(long, env = "VENDUE_PUBLISH_SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=300))]
    pub publish_seconds: u64,
    /// A reading that takes longer counts as hung.
    #[arg(long, env = "VENDUE_HANG_SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub hang_seconds: u64,
    /// Folder on the node's disk for what must outlast this process: faults of GPUs, the node's key, receipts.
    #[arg(long, env = "VENDUE_STATE_DIR", default_value = STATE_DIR, value_name = "DIR")]
    pub state_dir: PathBuf,
    /// Folder with the socket of kubelet's PodResources API.
    #[arg(long, env = "VENDUE_POD_RESOURCES_DIR", default_value = kubelet::DEFAULT_DIR, value_name = "DIR")]
    pub pod_resources_dir: PathBuf,
    /// Serve the metrics under another exporter's names too.
    #[arg(long, env = "VENDUE_METRICS_COMPAT", value_enum, value_name = "EXPORTER")]
    pub metrics_compat: Option<Compat>,
    /// Address for the metrics under another exporter's names.
    #[arg(long, env = "VENDUE_COMPAT_LISTEN", default_value = "0.0.0.0:9400")]
    pub compat_listen: SocketAddr,
    /// Where receipts are told: https://host:port of the controller. Without it they stay on the node, and nothing accrues.
    #[arg(long, env = "VENDUE_RECEIPTS_URL", value_name = "URL")]
    pub receipts_url: Option<String>,
    /// File with the certificate authority of the controller.
    #[arg(
        long,
        env = "VENDUE_RECEIPTS_CA",
        default_value = "/etc/vendue/receipts/ca.crt",
        value_name = "FILE"
    )]
    pub receipts_ca: PathBuf,
    /// File with the token by which the controller knows this node's agent.
    #[arg(
        long,
        env = "VENDUE_RECEIPTS_TOKEN",
        default_value = "/var/run/secrets/vendue/token",
        value_name = "FILE"
    )]
    pub receipts_token: PathBuf,
    /// A probe of a device that takes longer is ended, and has failed.
    #[arg(long, env = "VENDUE_PROBE_SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(5..=600))]
    pub probe_seconds: u64,
    /// Do not taint the node while a GPU is in trouble.
    #[arg(long, env = "VENDUE_NO_TAINTS")]
    pub no_taints: bool,
    /// Label the node as NVIDIA's GPU feature discovery does, while nobody else does.
    #[arg(long, env = "VENDUE_GFD_LABELS")]
    pub gfd_labels: bool,
    /// Show which Pods use which GPUs by their processes too; the host's process ids must be visible (hostPID).
    #[arg(long, env = "VENDUE_PROCESS_ATTRIBUTION")]
    pub process_attribution: bool,
    /// Classes of Xids that differ from the catalogue's: CODE=CLASS, separated by commas; classes are informational,
    /// application, degraded, fatal.
    #[arg(long, env = "VENDUE_XID_CLASSES", default_value = "", value_name = "LIST")]
    pub xid_classes: Policy,
    /// How long signs of trouble must last and be away, where it differs from the defaults: NAME=TIME, separated by commas;
    /// times are whole numbers with s, m, h or d.
    #[arg(long, env = "VENDUE_HEALTH_TIMES", default_value = "", value_name = "LIST")]
    pub health_times: Times,
}

/// Exporters whose names are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Compat {
    /// NVIDIA's dcgm-exporter.
    Dcgm,
}

impl Run {
    /// Time between two readings.
    #[must_use]
    pub fn read_interval(&self) -> Duration {
        Duration::from_secs(self.read_seconds)
    }

    /// Most time between two writes.
    #[must_use]
    pub fn heartbeat(&self) -> Duration {
        Duration::from_secs(self.publish_seconds)
    }

    /// Where receipts are told, if they are.
    #[must_use]
    pub fn receiver(&self) -> Option<Receiver> {
        let url = self.receipts_url.as_deref().filter(|url| !url.is_empty())?;
        let url = url.trim_end_matches('/').to_owned();
        Some(Receiver { url, ca: self.receipts_ca.clone(), token: self.receipts_token.clone() })
    }

    /// Time after which a probe is ended.
    #[must_use]
    pub fn probe_limit(&self) -> Duration {
        Duration::from_secs(self.probe_seconds)
    }

    /// Time after which a reading counts as hung.
    #[must_use]
    pub fn hang_limit(&self) -> Duration {
        Duration::from_secs(self.hang_seconds)
    }
}

/// How to read.
#[derive(Clone, Debug, Args)]
pub struct Library {
    /// Path of libnvidia-ml.so.1; default is what the loader finds.
    #[arg(long, global = true, env = "VENDUE_NVML_LIBRARY", value_name = "FILE")]
    pub nvml_library: Option<PathBuf>,
    /// Path of libcuda.so.1, for probes; default is what the loader finds.
    #[arg(long, global = true, env = "VENDUE_CUDA_LIBRARY", value_name = "FILE")]
    pub cuda_library: Option<PathBuf>,
}

impl Library {
    /// The path, if one is set; an empty one is none.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        self.nvml_library.clone().filter(|path| !path.as_os_str().is_empty())
    }

    /// The path of CUDA's library, if one is set; an empty one is none.
    #[must_use]
    pub fn cuda_path(&self) -> Option<PathBuf> {
        self.cuda_library.clone().filter(|path| !path.as_os_str().is_empty())
    }
}

/// How to log.
#[derive(Clone, Debug, Args)]
pub struct Log {
    /// Filter, for example `info` or `vendue_gpu_agent=debug`.
    #[arg(long, global = true, env = "VENDUE_LOG", default_value = "info")]
    pub log: String,
    /// Format of log lines.
    #[arg(long, global = true, env = "VENDUE_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// Formats of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// For people.
    Text,
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_definition_is_sound_and_commands_parse() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
        let cli =
            Cli::try_parse_from(["a", "inventory", "-o", "json", "--nvml-library", "/x"]).expect("parse");
        assert!(matches!(cli.command, Some(Command::Inventory { output: Output::Json })));
        assert_eq!(cli.library.path(), Some("/x".into()));
        assert!(Cli::try_parse_from(["a", "--read-seconds", "0"]).is_err());
        let cli =
            Cli::try_parse_from(["a", "--cuda-library", "/c", "probe", "--gpu", "GPU-1"]).expect("parse");
        assert!(matches!(
            cli.command,
            Some(Command::Probe { gpu: Some(_), output: Output::Text, parent: None })
        ));
        assert_eq!(cli.library.cuda_path(), Some("/c".into()));
        let cli = Cli::try_parse_from(["a", "rotate-key", "--state-dir", "/s"]).expect("parse");
        assert!(
            matches!(cli.command, Some(Command::RotateKey { state_dir }) if state_dir == Path::new("/s"))
        );
        assert_eq!(Library { nvml_library: None, cuda_library: Some("".into()) }.cuda_path(), None);
    }
}
