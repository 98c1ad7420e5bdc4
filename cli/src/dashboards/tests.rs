//! Rules that every dashboard keeps, and the check that the committed files are the generated ones.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::files;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn panels() -> Vec<(String, Value)> {
    let mut all = vec![];
    for (file, text) in files().unwrap() {
        let board: Value = serde_json::from_str(&text).unwrap();
        for panel in board["panels"].as_array().unwrap() {
            all.push((format!("{file}: {}", panel["title"]), panel.clone()));
        }
    }
    all
}

/// Names of Vendue's metrics in an expression.
fn metrics(expr: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    expr.split(|c| !word(c)).filter(|w| w.starts_with("vendue_")).map(str::to_owned).collect()
}

/// Strings in the sources that are names of metrics by their ending.
fn quoted_metrics(sources: &str) -> BTreeSet<String> {
    let endings =
        ["_total", "_seconds", "_bytes", "_open", "_active", "_insecure", "_connected", "_free", "_held"];
    let name = |s: &&str| {
        s.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') && endings.iter().any(|e| s.ends_with(e))
    };
    sources.split('"').filter(name).map(str::to_owned).collect()
}

#[test]
fn committed_files_are_the_generated_ones() {
    for folder in ["manifests/dashboards", "charts/vendue/dashboards"] {
        for (name, text) in files().unwrap() {
            let path = root().join(folder).join(name);
            let found = fs::read_to_string(&path).unwrap_or_default();
            assert!(
                found == text,
                "{folder}/{name} differs; run: cargo run -p kubectl-vendue -- dashboards --out {folder}"
            );
        }
        assert_eq!(
            fs::read_dir(root().join(folder)).unwrap().count(),
            files().unwrap().len(),
            "files in {folder}"
        );
    }
}

#[test]
fn panels_say_what_they_show() {
    let mut titles = BTreeSet::new();
    for (name, panel) in panels() {
        assert!(titles.insert(panel["title"].to_string()), "{name}: title twice");
        assert!(
            panel["description"].as_str().is_some_and(|d| d.len() > 20 && d.ends_with('.')),
            "{name}: description"
        );
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{name}: unit");
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{name}: datasource");
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{name}: no query");
        for target in targets {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{name}: datasource of a query");
        }
    }
    assert!(titles.len() >= 12);
}

#[test]
fn rates_use_the_interval_of_the_panel_and_histograms_their_buckets() {
    for (name, panel) in panels() {
        for target in panel["targets"].as_array().unwrap() {
            let expr = target["expr"].as_str().unwrap();
            assert_eq!(
                expr.matches("rate(").count(),
                expr.matches("[$__rate_interval]").count(),
                "{name}: {expr}"
            );
            assert_eq!(expr.matches('(').count(), expr.matches(')').count(), "{name}: {expr}");
            for metric in metrics(expr).iter().filter(|m| m.ends_with("_total")) {
                let shown_whole = panel["type"] == "stat";
                assert!(expr.contains("rate(") || shown_whole, "{name}: counter {metric} without rate");
            }
        }
    }
}

#[test]
fn every_metric_is_in_the_reference_and_every_one_in_the_reference_exists() {
    let reference = fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    for (name, panel) in panels() {
        for target in panel["targets"].as_array().unwrap() {
            for metric in metrics(target["expr"].as_str().unwrap()) {
                let base = metric.trim_end_matches("_bucket").trim_end_matches("_count");
                assert!(reference.contains(&format!("`{base}`")), "{name}: {base} is not in docs/metrics.md");
            }
        }
    }
    let sources: String = [
        "auction-sidecar/src/metrics.rs",
        "controller/src/metrics.rs",
        "gpu-agent/src/meter/counters.rs",
        "gpu-agent/src/metrics.rs",
        "gpu-agent/src/pods/gauges.rs",
    ]
    .map(|file| fs::read_to_string(root().join(file)).unwrap())
    .concat();
    for name in quoted_metrics(&sources) {
        assert!(reference.contains(&name), "{name} is in no table of docs/metrics.md");
    }
    for metric in metrics(&reference) {
        let short = ["vendue_auction_", "vendue_controller_"]
            .iter()
            .fold(metric.as_str(), |m, p| m.trim_start_matches(p));
        assert!(
            sources.contains(&format!("{short}\"")),
            "docs/metrics.md names {metric}, which no component has"
        );
    }
}
