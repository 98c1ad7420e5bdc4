//! Simulated GPUs of a node: the libraries and their state where an administrator would install a driver, and
//! the device plugin that advertises them.
//!
//! On every node the libraries are `/var/lib/vendue/nvml/libnvidia-ml.so.1` and, for the agent's probe,
//! `/var/lib/vendue/nvml/libcuda.so.1`, their state `/var/lib/vendue/nvml/state.json`, whatever the cluster.

use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::Api;

use crate::client::call;
use crate::cluster::Cluster;
use crate::command::{command, run};
use crate::config::Layout;
use crate::error::{Error, IoContext, Result};
use crate::files;
use crate::spec::Gpus;
use crate::wait::{self, Poll};

/// Folder of libraries and state as seen on the node.
pub const NODE_FOLDER: &str = "/var/lib/vendue/nvml";
/// Resource that the device plugin advertises.
pub const RESOURCE: &str = "nvidia.com/gpu";
const LIBRARY: &str = "libnvidia-ml.so.1";
const CUDA_LIBRARY: &str = "libcuda.so.1";
const STATE: &str = "state.json";

/// The simulator's files among the built programs.
#[derive(Clone, Debug)]
pub struct Simulator {
    program: PathBuf,
    library: PathBuf,
    cuda_library: PathBuf,
}

impl Simulator {
    /// Finds them in a Cargo target folder such as `target/debug`.
    pub fn in_folder(programs: &Path) -> Result<Self> {
        let simulator = Self {
            program: programs.join("nvml-sim"),
            library: programs.join("libvendue_nvml_sim.so"),
            cuda_library: programs.join("libvendue_cuda_sim.so"),
        };
        for file in [&simulator.program, &simulator.library, &simulator.cuda_library] {
            if !file.exists() {
                return Err(Error::Machine(format!(
                    "{} is missing, and simulated GPUs need it: cargo build -p vendue-nvml-sim -p vendue-cuda-sim",
                    file.display()
                )));
            }
        }
        Ok(simulator)
    }

    /// Puts libraries, state and program on a node, and returns the device plugin's command line.
    pub async fn install(&self, layout: &Layout, gpus: &Gpus) -> Result<Vec<String>> {
        let folder = layout.node().join("nvml");
        files::create_dir(&folder)?;
        // Copies: a rebuild on the host must not change a running cluster.
        let program = layout.node().join("nvml-sim");
        std::fs::copy(&self.program, &program).io("copy", &self.program)?;
        std::fs::copy(&self.library, folder.join(LIBRARY)).io("copy", &self.library)?;
        std::fs::copy(&self.cuda_library, folder.join(CUDA_LIBRARY)).io("copy", &self.cuda_library)?;
        let state = folder.join(STATE);
        let mut start =
            command(&program, ["start", "--profile", &gpus.profile, "--count", &gpus.count.to_string()]);
        start
            .arg("--state")
            .arg(&state)
            .args(["--seed", &format!("{}/{}", layout.place.market, layout.place.cluster)]);
        run("make simulated GPUs", Duration::from_secs(10), start).await?;
        make_readable(&folder)?;
        Ok(vec![
            "/var/lib/vendue/nvml-sim".into(),
            "device-plugin".into(),
            format!("--state={NODE_FOLDER}/{STATE}"),
            format!("--library={NODE_FOLDER}/{LIBRARY}"),
            "--kubelet-dir=/var/lib/kubelet/device-plugins".into(),
        ])
    }
}

/// Containers read libraries and state as any user.
fn make_readable(folder: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    for entry in std::fs::read_dir(folder).io("list", folder)?.flatten() {
        std::fs::set_permissions(entry.path(), std::fs::Permissions::from_mode(0o644))
            .io("set mode of", entry.path())?;
    }
    Ok(())
}

/// Path, on the host, of a node's state file; tests change it with the simulator's own program.
pub fn state_file(layout: &Layout) -> PathBuf {
    layout.node().join("nvml").join(STATE)
}

impl Cluster {
    /// The driver loses a simulated GPU, given by index or UUID: what asks for it gets "GPU is lost", and kubelet gives
    /// it to nobody.
    pub async fn lose_gpu(&self, device: &str) -> Result<()> {
        self.set_gpu(device, "lost").await
    }

    /// Undoes [`Cluster::lose_gpu`].
    pub async fn return_gpu(&self, device: &str) -> Result<()> {
        self.set_gpu(device, "healthy").await
    }

    async fn set_gpu(&self, device: &str, health: &str) -> Result<()> {
        let layout = &self.own()?.layout;
        let state = state_file(layout);
        if !state.exists() {
            return Err(Error::Invalid(format!("cluster {} has no simulated GPUs", self.name())));
        }
        let mut set =
            command(layout.node().join("nvml-sim"), ["set", "--device", device, "--health", health]);
        set.arg("--state").arg(&state);
        run("change a simulated GPU", Duration::from_secs(10), set).await.map(drop)
    }
}

/// Waits until the node offers this many GPUs.
pub async fn wait_advertised(client: &Client, node: &str, count: u32, limit: Duration) -> Result<()> {
    let api: Api<Node> = Api::all(client.clone());
    let wanted = count.to_string();
    wait::until(&format!("wait for {count} GPUs on {node}"), limit, Duration::from_millis(200), || async {
        let found = call("get node", api.get(node)).await?;
        let allocatable = found.status.and_then(|s| s.allocatable).unwrap_or_default();
        let seen = allocatable.get(RESOURCE).map_or("0", |q| q.0.as_str());
        Ok(if seen == wanted { Poll::Ready(()) } else { Poll::Pending(format!("{seen} advertised")) })
    })
    .await
}
