//! State of a market for people who look into a failure: events, Pods, nodes, the components' logs.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Event, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use kube::ResourceExt as _;
use kube::api::{Api, ListParams, LogParams};
use serde::Serialize;

use crate::client::call;
use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::files;
use crate::market::Market;

/// Lines of each log that go into the summary.
const SUMMARY_LINES: usize = 5;
/// Lines of each container's log that are saved.
const LOG_LINES: i64 = 2000;

/// Writes the state of all clusters below `folder` and returns a summary. What cannot be read is named in
/// the summary: a dump is made when things are broken.
pub async fn market(market: &Market, folder: &Path) -> Result<String> {
    files::create_dir(folder)?;
    let mut summary = format!("state of {} clusters is in {}\n", market.clusters().len(), folder.display());
    for cluster in market.clusters() {
        summary.push_str(&one(cluster, &folder.join(cluster.name())).await?);
    }
    files::write(folder.join("summary.txt"), &summary)?;
    Ok(summary)
}

async fn one(cluster: &Cluster, folder: &Path) -> Result<String> {
    files::create_dir(folder)?;
    let mut text = format!("\n== {} ==\n", cluster.name());
    for part in [pods(cluster, folder).await, events(cluster, folder).await, others(cluster, folder).await] {
        text.push_str(&part.unwrap_or_else(|error| format!("  {error}\n")));
    }
    text.push_str(&components(cluster, folder).unwrap_or_default());
    Ok(text)
}

async fn pods(cluster: &Cluster, folder: &Path) -> Result<String> {
    let api: Api<Pod> = Api::all(cluster.client());
    let pods = call("list pods", api.list(&ListParams::default())).await?.items;
    save(folder, "pods", &pods)?;
    let mut text = String::new();
    for pod in &pods {
        let status = pod.status.clone().unwrap_or_default();
        let phase = status.phase.unwrap_or_default();
        let restarts: i32 = status.container_statuses.iter().flatten().map(|c| c.restart_count).sum();
        let waiting: Vec<String> = status
            .container_statuses
            .iter()
            .flatten()
            .filter_map(|c| c.state.as_ref()?.waiting.as_ref()?.message.clone())
            .collect();
        let namespace = pod.namespace().unwrap_or_default();
        let why = waiting.join("; ");
        text.push_str(&format!("  pod {namespace}/{} {phase} restarts={restarts} {why}\n", pod.name_any()));
        save_logs(cluster, pod, folder).await;
    }
    Ok(text)
}

async fn save_logs(cluster: &Cluster, pod: &Pod, folder: &Path) {
    let namespace = pod.namespace().unwrap_or_default();
    let api: Api<Pod> = Api::namespaced(cluster.client(), &namespace);
    for container in pod.spec.iter().flat_map(|s| &s.containers) {
        for previous in [false, true] {
            let params = LogParams {
                container: Some(container.name.clone()),
                tail_lines: Some(LOG_LINES),
                previous,
                ..LogParams::default()
            };
            // A container that never ran, or never ran before, has no log.
            let Ok(log) = call("read log", api.logs(&pod.name_any(), &params)).await else { continue };
            let suffix = if previous { ".previous" } else { "" };
            let name = format!("{namespace}_{}_{}{suffix}.log", pod.name_any(), container.name);
            let _ = files::write(folder.join("pods").join(name), log);
        }
    }
}

async fn events(cluster: &Cluster, folder: &Path) -> Result<String> {
    let api: Api<Event> = Api::all(cluster.client());
    let mut events = call("list events", api.list(&ListParams::default())).await?.items;
    events.sort_by_key(|e| e.metadata.creation_timestamp.as_ref().map(|t| t.0));
    save(folder, "events", &events)?;
    let warnings = events.iter().filter(|e| e.type_.as_deref() == Some("Warning"));
    let line = |e: &Event| {
        let object = &e.involved_object;
        let (kind, name) = (object.kind.clone().unwrap_or_default(), object.name.clone().unwrap_or_default());
        let reason = e.reason.clone().unwrap_or_default();
        format!("  warning {kind}/{name} {reason}: {}\n", e.message.clone().unwrap_or_default())
    };
    let lines: Vec<String> = warnings.map(line).collect();
    Ok(lines.iter().rev().take(10).rev().cloned().collect())
}

async fn others(cluster: &Cluster, folder: &Path) -> Result<String> {
    let nodes: Api<Node> = Api::all(cluster.client());
    save(folder, "nodes", &call("list nodes", nodes.list(&ListParams::default())).await?.items)?;
    let volumes: Api<PersistentVolume> = Api::all(cluster.client());
    save(folder, "volumes", &call("list volumes", volumes.list(&ListParams::default())).await?.items)?;
    let claims: Api<PersistentVolumeClaim> = Api::all(cluster.client());
    save(folder, "claims", &call("list claims", claims.list(&ListParams::default())).await?.items)?;
    for plural in ["jobs", "awards", "provisions", "bids", "gpunodes"] {
        let path = format!("/apis/vendue.dev/v1alpha1/{plural}");
        // Vendue may not be installed.
        if let Ok(text) = crate::client::get_text(&cluster.client(), &path).await {
            files::write(folder.join(format!("vendue-{plural}.json")), text)?;
        }
    }
    Ok(String::new())
}

fn components(cluster: &Cluster, folder: &Path) -> Result<String> {
    let logs = cluster.own()?.layout.logs();
    let mut text = String::new();
    for component in cluster.state()?.components {
        let log = logs.join(format!("{}.log", component.name));
        let _ = std::fs::create_dir_all(folder.join("components"));
        let _ = std::fs::copy(&log, folder.join("components").join(format!("{}.log", component.name)));
        if component.process.is_none_or(|p| !p.is_alive()) {
            text.push_str(&format!(
                "  {} is NOT RUNNING; its log ends:\n{}\n",
                component.name,
                tail_of(&log, SUMMARY_LINES)
            ));
        }
    }
    Ok(text)
}

fn save<T: Serialize>(folder: &Path, name: &str, value: &T) -> Result<PathBuf> {
    let text =
        serde_json::to_string_pretty(value).map_err(|e| Error::Invalid(format!("write {name}: {e}")))?;
    let path = folder.join(format!("{name}.json"));
    files::write(&path, text)?;
    Ok(path)
}

/// Last lines of a log file, indented.
pub fn tail_of(log: &Path, lines: usize) -> String {
    let text = std::fs::read(log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    let skip = all.len().saturating_sub(lines);
    all.iter()
        .skip(skip)
        .map(|l| format!("    {}", l.chars().take(400).collect::<String>()))
        .collect::<Vec<_>>()
        .join("\n")
}
