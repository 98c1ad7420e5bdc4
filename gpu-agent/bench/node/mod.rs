//! A node that exists for one agent: simulated GPUs, an API server and a kubelet that keep what a test or a measurement
//! looks at, and the agent itself as a process.
//!
//! * Inputs: what the GPUs do, who holds them. Outputs: what the agent writes, serves, logs and stores.
//! * Invariants: servers listen on 127.0.0.1 or in a temporary folder only; every wait has a limit; the process ends with
//!   its handle.

pub mod agent;
pub mod api_server;
pub mod http;
pub mod kubelet;
pub mod receipts;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use vendue_gpu_sim::clock::Clock;
use vendue_gpu_sim::fleet::{Fleet, FleetError};

use agent::Agent;
use api_server::ApiServer;
use kubelet::Kubelet;

/// Name of the node.
pub const NAME: &str = "n1";

/// Longest wait for anything that the agent is to do.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Why something with the node did not work.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The system refused something.
    #[error("{operation}: {source}")]
    Io {
        /// What was tried.
        operation: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The simulated GPUs did not do what they were told.
    #[error(transparent)]
    Fleet(#[from] FleetError),
    /// The agent did not do something in time, or ended first.
    #[error("{what}: not within {} s; the agent's log ends with\n{log}", LIMIT.as_secs())]
    Late {
        /// What was waited for.
        what: String,
        /// The end of the agent's log.
        log: String,
    },
    /// The agent's answer or what it stored is not what it should be.
    #[error("{what}: {detail}")]
    Wrong {
        /// What was looked at.
        what: String,
        /// What is wrong.
        detail: String,
    },
}

/// Names what was tried.
pub fn io(operation: impl Into<String>) -> impl FnOnce(std::io::Error) -> NodeError {
    let operation = operation.into();
    move |source| NodeError::Io { operation, source }
}

/// Names what was looked at.
pub fn wrong<E: ToString>(what: impl Into<String>) -> impl FnOnce(E) -> NodeError {
    let what = what.into();
    move |detail| NodeError::Wrong { what, detail: detail.to_string() }
}

/// The condition of this type in a status; null if there is none.
#[must_use]
pub fn condition<'a>(status: &'a Value, kind: &str) -> &'a Value {
    let conditions = status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().find(|condition| condition["type"] == kind).unwrap_or(&Value::Null)
}

/// The programs under test.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The agent.
    pub agent: PathBuf,
    /// The simulated NVML library.
    pub library: PathBuf,
}

/// A node without an agent.
pub struct Node {
    runtime: Runtime,
    dir: TempDir,
    /// What the agent writes to.
    pub api: ApiServer,
}

impl Node {
    /// A node without GPUs and without a kubelet.
    ///
    /// # Errors
    /// When folder or servers cannot be had.
    pub fn start() -> Result<Self, NodeError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(io("start the servers' runtime"))?;
        let dir = tempfile::tempdir().map_err(io("make a temporary folder"))?;
        std::fs::create_dir(dir.path().join("kubelet")).map_err(io("make the kubelet's folder"))?;
        let api = runtime.block_on(ApiServer::start())?;
        std::fs::write(dir.path().join("kubeconfig"), api.kubeconfig()).map_err(io("write kubeconfig"))?;
        Ok(Self { runtime, dir, api })
    }

    /// A file or folder of the node.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Simulated GPUs, which are there once [`Node::install`] has put the library beside their state.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub fn gpus(&self, groups: &[(&str, usize)], clock: Clock) -> Result<Fleet, NodeError> {
        Ok(Fleet::create(&self.path("gpus/state.json"), groups, "node", clock)?)
    }

    /// Where the agent looks for the library.
    #[must_use]
    pub fn library(&self) -> PathBuf {
        self.path("gpus/libnvidia-ml.so.1")
    }

    /// Puts a library where the agent looks for it.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn install(&self, library: &Path) -> Result<(), NodeError> {
        std::fs::create_dir_all(self.path("gpus")).map_err(io("make the GPUs' folder"))?;
        // Under its name at once and as another file: an agent may have the old one open.
        let new = self.path("gpus/new");
        std::fs::copy(library, &new).map_err(io(format!("copy {}", library.display())))?;
        std::fs::rename(new, self.library()).map_err(io("put the library in its place"))
    }

    /// A kubelet that has given out nothing yet.
    ///
    /// # Errors
    /// When its socket cannot be had.
    pub fn kubelet(&self) -> Result<Kubelet, NodeError> {
        let _inside = self.runtime.enter();
        Kubelet::start(&self.path("kubelet")).map_err(io("bind the kubelet's socket"))
    }

    /// Where the agent keeps what outlasts it.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.path("agent")
    }

    /// The agent's command line on this node.
    #[must_use]
    pub fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> =
            ["--node-name", NAME, "--listen", "127.0.0.1:0", "--log-format", "json"].map(Into::into).into();
        arguments.extend(["--metrics-compat", "dcgm", "--compat-listen", "127.0.0.1:0"].map(Into::into));
        for (name, path) in [
            ("--state-dir", self.state_dir()),
            ("--pod-resources-dir", self.path("kubelet")),
            ("--nvml-library", self.library()),
        ] {
            arguments.extend([name.into(), path.into_os_string()]);
        }
        arguments
    }

    /// Starts the agent and waits until it serves.
    ///
    /// # Errors
    /// When it does not start.
    pub fn agent(&self, program: &Path) -> Result<Agent, NodeError> {
        self.agent_by(&mut self.command(program))
    }

    /// The agent as a command that is still to be started.
    #[must_use]
    pub fn command(&self, program: &Path) -> std::process::Command {
        let mut command = std::process::Command::new(program);
        command.args(self.arguments()).env("KUBECONFIG", self.path("kubeconfig"));
        command.env_remove("VENDUE_NVML_STATE").env_remove("NODE_NAME");
        command
    }

    /// Starts the agent by a command, and waits until it serves.
    ///
    /// # Errors
    /// When it does not start.
    pub fn agent_by(&self, command: &mut std::process::Command) -> Result<Agent, NodeError> {
        Agent::start(command)
    }
}
