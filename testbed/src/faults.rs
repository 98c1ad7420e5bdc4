//! Faults: cut a cluster off, kill, freeze and restart its components, kill a Pod's processes; and, by way of `clock`,
//! `disk` and `gpu`, a shifted clock, a full disk, a lost GPU.
//!
//! All that touch processes act on recorded or looked-up processes, never on names. Each is undone by its counterpart or by
//! Kubernetes itself.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::client::call;
use crate::cluster::{self, Cluster};
use crate::error::{Error, Result};
use crate::network;
use crate::process::{self, ProcessId};
use crate::store;

const GONE: Duration = Duration::from_secs(10);

/// One fault as data, so that a script of them can be stored and replayed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "fault")]
pub enum Fault {
    /// The cluster cannot reach the others, nor they it.
    Cut,
    /// Undoes `cut`.
    Heal,
    /// The component ends at once.
    Kill {
        /// Component, such as `kubelet`.
        component: String,
    },
    /// Undoes `kill`.
    Restart {
        /// Component.
        component: String,
    },
    /// The component stands still.
    Freeze {
        /// Component.
        component: String,
    },
    /// Undoes `freeze`.
    Thaw {
        /// Component.
        component: String,
    },
    /// All processes of a Pod's containers end at once.
    KillPod {
        /// Namespace.
        namespace: String,
        /// Pod.
        pod: String,
    },
    /// The disk of the cluster's volumes is full.
    FillDisk,
    /// Undoes `fill-disk`.
    EmptyDisk,
    /// The driver loses a GPU.
    LoseGpu {
        /// Index or UUID.
        device: String,
    },
    /// Undoes `lose-gpu`.
    ReturnGpu {
        /// Index or UUID.
        device: String,
    },
    /// The clock of the cluster's seat is off; 0 sets it right.
    ShiftClock {
        /// By how much it is ahead.
        seconds: i32,
    },
}

impl Cluster {
    /// Does one fault.
    pub async fn inflict(&self, fault: &Fault) -> Result<()> {
        match fault {
            Fault::Cut => self.cut().await,
            Fault::Heal => self.heal().await,
            Fault::Kill { component } => self.kill_component(component).await,
            Fault::Restart { component } => self.restart_component(component).await,
            Fault::Freeze { component } => self.freeze_component(component),
            Fault::Thaw { component } => self.thaw_component(component),
            Fault::KillPod { namespace, pod } => self.kill_pod(namespace, pod).await.map(|_| ()),
            Fault::FillDisk => self.fill_disk(),
            Fault::EmptyDisk => self.empty_disk(),
            Fault::LoseGpu { device } => self.lose_gpu(device).await,
            Fault::ReturnGpu { device } => self.return_gpu(device).await,
            Fault::ShiftClock { seconds } => self.shift_clock(*seconds).await,
        }
    }

    /// Cuts the cluster off from the others; the host still reaches it.
    pub async fn cut(&self) -> Result<()> {
        self.set_connected(false).await
    }

    /// Undoes [`Cluster::cut`].
    pub async fn heal(&self) -> Result<()> {
        self.set_connected(true).await
    }

    async fn set_connected(&self, connected: bool) -> Result<()> {
        let own = self.own()?;
        network::set_connected(&own.layout.place, connected).await?;
        own.shared.update(|market| {
            if let Some(cluster) = market.clusters.iter_mut().find(|c| c.place == own.layout.place) {
                cluster.cut = !connected;
            }
        })
    }

    /// Process of a component.
    pub fn component(&self, name: &str) -> Result<ProcessId> {
        let state = self.state()?;
        let names: Vec<_> = state.components.iter().map(|c| c.name.as_str()).collect();
        let component = state.components.iter().find(|c| c.name == name).ok_or_else(|| {
            Error::Invalid(format!(
                "cluster {} has no component {name}: it has {}",
                self.name(),
                names.join(", ")
            ))
        })?;
        component
            .process
            .filter(|p| p.is_alive())
            .ok_or_else(|| Error::Invalid(format!("{name} of cluster {} is not running", self.name())))
    }

    /// Kills a component and waits until it is gone. It stays down until [`Cluster::restart_component`].
    pub async fn kill_component(&self, name: &str) -> Result<()> {
        self.component(name)?.kill(GONE).await
    }

    /// Starts a component again with the command it had; kills it first if it runs. Returns when containerd or
    /// the API server answers; for the others, when the process runs.
    pub async fn restart_component(&self, name: &str) -> Result<()> {
        if let Ok(process) = self.component(name) {
            process.kill(GONE).await?;
        }
        let own = self.own()?;
        let state = self.state()?;
        let component = state.components.iter().find(|c| c.name == name);
        let (Some(component), Some(node)) = (component, state.node) else {
            return Err(Error::Invalid(format!("cluster {} has no component {name}", self.name())));
        };
        cluster::start_component(&own.layout, &own.shared, node, name, &component.command).await?;
        match name {
            "containerd" => store::wait_for_socket(&own.layout.bin, &own.layout.containerd_socket()).await,
            "kube-apiserver" => cluster::wait_api(self).await,
            _ => Ok(()),
        }
    }

    /// Stops a component's clock: it keeps its connections but does nothing.
    pub fn freeze_component(&self, name: &str) -> Result<()> {
        self.component(name)?.signal(Signal::SIGSTOP)
    }

    /// Undoes [`Cluster::freeze_component`].
    pub fn thaw_component(&self, name: &str) -> Result<()> {
        let process = self.component(name)?;
        process.signal(Signal::SIGCONT)?;
        // nsenter, which started it and waits for it, stops itself together with its child.
        match process::parent(process).filter(|p| process::command_line(p.pid).starts_with("nsenter")) {
            Some(parent) => parent.signal(Signal::SIGCONT),
            None => Ok(()),
        }
    }

    /// Processes of a Pod's containers as the host sees them, without the sandbox.
    pub async fn pod_processes(&self, namespace: &str, pod: &str) -> Result<Vec<ProcessId>> {
        self.own()?;
        let api: Api<Pod> = Api::namespaced(self.client(), namespace);
        let found = call(&format!("get pod {namespace}/{pod}"), api.get(pod)).await?;
        let status = found.status.unwrap_or_default();
        let ids = status.container_statuses.into_iter().flatten().filter_map(|c| c.container_id);
        Ok(ids.filter_map(|id| id.strip_prefix("containerd://").map(process::in_cgroup)).flatten().collect())
    }

    /// Kills all processes of a Pod's containers and returns how many there were. kubelet then restarts
    /// them as the Pod's restart policy says.
    pub async fn kill_pod(&self, namespace: &str, pod: &str) -> Result<usize> {
        self.signal_pod(namespace, pod, Signal::SIGKILL).await
    }

    /// Freezes all processes of a Pod's containers.
    pub async fn freeze_pod(&self, namespace: &str, pod: &str) -> Result<usize> {
        self.signal_pod(namespace, pod, Signal::SIGSTOP).await
    }

    /// Undoes [`Cluster::freeze_pod`].
    pub async fn thaw_pod(&self, namespace: &str, pod: &str) -> Result<usize> {
        self.signal_pod(namespace, pod, Signal::SIGCONT).await
    }

    async fn signal_pod(&self, namespace: &str, pod: &str, signal: Signal) -> Result<usize> {
        let found = self.pod_processes(namespace, pod).await?;
        if found.is_empty() {
            return Err(Error::Invalid(format!("pod {namespace}/{pod} of {} has no process", self.name())));
        }
        for process in &found {
            process.signal(signal)?;
        }
        Ok(found.len())
    }

    /// Resident and proportional memory of all processes of the cluster, containers included, in bytes.
    pub fn memory(&self) -> Result<Memory> {
        let Some(node) = self.state()?.node else { return Ok(Memory::default()) };
        let mut memory = Memory::default();
        for process in process::in_pid_namespace_of(node) {
            memory.resident += process::resident_bytes(process.pid);
            memory.proportional += process::proportional_bytes(process.pid);
        }
        Ok(memory)
    }
}

/// Memory of a set of processes in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Resident set sizes added up; shared pages count once per process.
    pub resident: u64,
    /// Proportional set sizes added up; shared pages count once.
    pub proportional: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_data() {
        let fault = Fault::KillPod { namespace: "a".into(), pod: "b".into() };
        let text = serde_json::to_string(&fault).unwrap();
        assert_eq!(text, r#"{"fault":"kill-pod","namespace":"a","pod":"b"}"#);
        assert_eq!(serde_json::from_str::<Fault>(&text).unwrap(), fault);
        let shift: Fault = serde_json::from_str(r#"{"fault":"shift-clock","seconds":-5}"#).unwrap();
        assert_eq!(shift, Fault::ShiftClock { seconds: -5 });
    }
}
