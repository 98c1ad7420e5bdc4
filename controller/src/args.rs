//! Command line and environment.
//!
//! Invariant: every flag has an environment variable of the same name, and both are the whole configuration.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// What this cluster does in the market.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Profile {
    /// Users apply Jobs here.
    Home,
    /// Provisions are offered here.
    Provider,
    /// Both.
    Both,
}

impl Profile {
    /// Whether Jobs are reconciled.
    pub fn home(self) -> bool {
        matches!(self, Self::Home | Self::Both)
    }

    /// Whether Provisions and Awards are reconciled.
    pub fn provider(self) -> bool {
        matches!(self, Self::Provider | Self::Both)
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Reconciles Provisions, Jobs and Awards.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Args {
    /// What this cluster does in the market.
    #[arg(long, env = "VENDUE_PROFILE", default_value = "both")]
    pub profile: Profile,
    /// Namespace that Vendue is installed in.
    #[arg(long, env = "VENDUE_NAMESPACE", default_value = "vendue-system")]
    pub namespace: String,
    /// Address of /metrics, /healthz and /readyz.
    #[arg(long, env = "VENDUE_LISTEN", default_value = "0.0.0.0:9471")]
    pub listen: SocketAddr,
    /// Image of the courier, the container beside each Ray head that serves logs and outputs.
    #[arg(long, env = "VENDUE_IMAGE", default_value = "vendue.local/vendue:dev")]
    pub image: String,
    /// Pull policy of that image.
    #[arg(long, env = "VENDUE_IMAGE_PULL_POLICY", default_value = "IfNotPresent")]
    pub image_pull_policy: String,
    /// Cluster domain of Services.
    #[arg(long, env = "VENDUE_CLUSTER_DOMAIN", default_value = "")]
    pub cluster_domain: String,
    /// Address at which agents tell receipts, over HTTPS.
    #[arg(long, env = "VENDUE_RECEIPTS_LISTEN", default_value = "0.0.0.0:9473")]
    pub receipts_listen: SocketAddr,
    /// Folder with tls.crt and tls.key for receipts. Without it none are taken, and nothing accrues.
    #[arg(long, env = "VENDUE_RECEIPTS_TLS", value_name = "DIR")]
    pub receipts_tls: Option<PathBuf>,
    /// Folder in which receipts are kept.
    #[arg(long, env = "VENDUE_RECEIPTS_DIR", default_value = "/var/lib/vendue/receipts", value_name = "DIR")]
    pub receipts_dir: PathBuf,
    /// Most MiB of receipts: chains that are over go earlier, then nothing more is taken.
    #[arg(long, env = "VENDUE_RECEIPTS_MAX_MIB", default_value_t = 921, value_name = "MIB")]
    pub receipts_max_mib: u64,
    /// What to log, as an env-filter: "info", "vendue_controller=debug".
    #[arg(long, env = "VENDUE_LOG", default_value = "info")]
    pub log: String,
    /// How log lines look.
    #[arg(long, env = "VENDUE_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// Name of this Pod, for Events.
    #[arg(long, env = "POD_NAME", default_value = "vendue-controller")]
    pub pod_name: String,
}
