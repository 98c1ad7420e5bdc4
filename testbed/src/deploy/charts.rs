//! Installing Vendue on running clusters, with the charts that users install.
//!
//! Inputs: a cluster's kubeconfig, the dealt keys and the market record. Outputs: releases `vendue-crds` and `vendue`.
//! Invariant: nothing is applied that a provider or user would not apply by hand.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::command::{command, run, run_with_input};
use crate::error::Result;

/// Namespace of the release.
pub const NAMESPACE: &str = "vendue-system";
const LIMIT: Duration = Duration::from_secs(240);

/// What a cluster is in the market.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Its users buy.
    Home,
    /// It holds a seat and sells.
    Provider,
}

impl Profile {
    /// The chart's word.
    pub fn value(self) -> &'static str {
        match self {
            Self::Home => "home",
            Self::Provider => "provider",
        }
    }
}

/// The two programs a user needs, bound to one cluster.
#[derive(Clone, Debug)]
pub struct Tools {
    /// helm.
    pub helm: PathBuf,
    /// kubectl.
    pub kubectl: PathBuf,
    /// The cluster's kubeconfig.
    pub kubeconfig: PathBuf,
    /// Context in it; empty for the current one.
    pub context: String,
}

impl Tools {
    /// `kubectl ARGS` on the cluster.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.kubectl_with_input(args, "").await
    }

    /// `kubectl ARGS` with text on its standard input.
    pub async fn kubectl_with_input(&self, args: &[&str], input: &str) -> Result<String> {
        let mut kubectl = command(&self.kubectl, ["--kubeconfig"]);
        kubectl.arg(&self.kubeconfig);
        if !self.context.is_empty() {
            kubectl.args(["--context", &self.context]);
        }
        kubectl.args(args);
        run_with_input("kubectl", LIMIT, kubectl, input).await
    }

    /// `helm ARGS` on the cluster.
    pub async fn helm(&self, args: &[&str]) -> Result<String> {
        let mut helm = command(&self.helm, args);
        helm.arg("--kubeconfig").arg(&self.kubeconfig);
        if !self.context.is_empty() {
            helm.args(["--kube-context", &self.context]);
        }
        run("helm", LIMIT, helm).await
    }
}

/// What one release needs to know.
#[derive(Clone, Debug)]
pub struct Release<'a> {
    /// Folder with the charts.
    pub charts: &'a Path,
    /// Market record.
    pub record: &'a Path,
    /// Manifest with the Secret of this cluster's keys.
    pub keys: &'a Path,
    /// What the cluster is.
    pub profile: Profile,
    /// Folder on the node with the simulated NVML library and its state.
    pub nvml: Option<&'a Path>,
    /// Storage class of home's store.
    pub storage_class: &'a str,
}

/// Installs or upgrades both charts and waits until their Pods are ready.
pub async fn install(tools: &Tools, release: &Release<'_>) -> Result<()> {
    let crds = path(&release.charts.join("vendue-crds"));
    tools
        .helm(&["upgrade", "--install", "vendue-crds", &crds, "--namespace", NAMESPACE, "--create-namespace"])
        .await?;
    tools.kubectl(&["apply", "--namespace", NAMESPACE, "-f", &path(release.keys)]).await?;
    let chart = path(&release.charts.join("vendue"));
    let record = format!("market.record={}", release.record.display());
    let mut set = vec![
        format!("profile={}", release.profile.value()),
        format!("auction.store.storageClassName={}", release.storage_class),
    ];
    if let Some(dir) = release.nvml {
        set.push(format!("gpuAgent.nvml.hostPath={}", dir.display()));
        set.push(format!("gpuAgent.nvml.libraryPath={}", dir.join("libnvidia-ml.so.1").display()));
        set.push(format!("gpuAgent.nvml.statePath={}", dir.join("state.json").display()));
    }
    let set = set.join(",");
    tools
        .helm(&[
            "upgrade",
            "--install",
            "vendue",
            &chart,
            "--namespace",
            NAMESPACE,
            "--wait",
            "--timeout",
            "180s",
            "--set-file",
            &record,
            "--set",
            &set,
        ])
        .await?;
    Ok(())
}

fn path(path: &Path) -> String {
    path.display().to_string()
}
