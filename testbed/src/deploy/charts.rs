//! Installing Vendue on running clusters, with the charts that users install.
//!
//! Inputs: a cluster's kubeconfig, the dealt keys and the market record. Outputs: releases `vendue-crds` and `vendue`.
//! Invariant: nothing is applied that a provider or user would not apply by hand.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::command::{command, run_with_input};
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
        self.helm_with_input(args, "").await
    }

    /// `helm ARGS` with text on its standard input.
    pub async fn helm_with_input(&self, args: &[&str], input: &str) -> Result<String> {
        let mut helm = command(&self.helm, args);
        helm.arg("--kubeconfig").arg(&self.kubeconfig);
        if !self.context.is_empty() {
            helm.args(["--kube-context", &self.context]);
        }
        run_with_input("helm", LIMIT, helm, input).await
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
    /// Folder on the node with the simulated libraries (NVML, CUDA) and their state.
    pub nvml: Option<&'a Path>,
    /// Storage class of home's store.
    pub storage_class: &'a str,
    /// More values; they win over those that follow from the above.
    pub more: Value,
}

impl Release<'_> {
    /// Values of the chart `vendue`, without the record.
    fn values(&self) -> Value {
        let mut values = json!({
            "profile": self.profile.value(),
            "auction": { "store": { "storageClassName": self.storage_class } },
        });
        if let Some(dir) = self.nvml {
            values["gpuAgent"]["nvml"] = json!({
                "hostPath": dir, "libraryPath": dir.join("libnvidia-ml.so.1"), "statePath": dir.join("state.json"),
            });
            values["gpuAgent"]["cuda"] = json!({ "libraryPath": dir.join("libcuda.so.1") });
        }
        merge(&mut values, &self.more);
        values
    }
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key.as_str()).or_insert(Value::Null), value);
            }
        }
        (into, from) if !from.is_null() => *into = from.clone(),
        _ => {}
    }
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
    let mut args = vec!["upgrade", "--install", "vendue", &chart, "--namespace", NAMESPACE, "--wait"];
    // JSON is YAML.
    args.extend(["--timeout", "180s", "--set-file", &record, "--values", "-"]);
    tools.helm_with_input(&args, &release.values().to_string()).await?;
    Ok(())
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_values_go_into_what_is_there() {
        let release = Release {
            charts: Path::new("charts"),
            record: Path::new("market.json"),
            keys: Path::new("keys.yaml"),
            profile: Profile::Provider,
            nvml: Some(Path::new("/sim")),
            storage_class: "fast",
            more: json!({ "auction": { "p2p": { "nodePort": 31000 } }, "image": { "tag": "1,2" }, "log": null }),
        };
        assert_eq!(
            release.values(),
            json!({
                "profile": "provider", "image": { "tag": "1,2" }, "log": null,
                "auction": { "store": { "storageClassName": "fast" }, "p2p": { "nodePort": 31000 } },
                "gpuAgent": { "nvml": { "hostPath": "/sim", "libraryPath": "/sim/libnvidia-ml.so.1",
                                        "statePath": "/sim/state.json" },
                              "cuda": { "libraryPath": "/sim/libcuda.so.1" } },
            })
        );
    }
}
