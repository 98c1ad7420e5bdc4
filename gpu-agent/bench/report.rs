//! What was measured, against what it should be.
//!
//! Inputs: values. Outputs: JSON, a table, and whether every target is met. Invariant: each target is in the report, and one
//! that was not measured counts as missed.

use std::collections::BTreeMap;
use std::process::Command;

use serde::Serialize;
use serde_json::{Value, json};

/// What a number is to be at most.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Name of the number.
    pub key: &'static str,
    /// The part of the benchmark that measures it.
    pub part: &'static str,
    /// At most this.
    pub most: f64,
    /// Better this.
    pub stretch: Option<f64>,
}

const fn target(key: &'static str, part: &'static str, most: f64) -> Target {
    Target { key, part, most, stretch: None }
}

/// The targets.
pub const TARGETS: [Target; 9] = [
    Target { key: "rss_mb_8gpu", part: "agent", most: 30.0, stretch: Some(15.0) },
    target("cpu_core_share_8gpu", "agent", 0.01),
    target("scrape_ms_8gpu_p99", "agent", 5.0),
    target("scrape_ms_64gpu_p99", "large", 25.0),
    target("start_to_gpunode_s", "agent", 1.0),
    target("xid_to_condition_s", "agent", 2.0),
    target("energy_integral_error", "agent", 0.001),
    target("lost_or_doubled_gpu_seconds", "metering", 0.0),
    target("values_that_differ_from_python_tools", "tools", 0.0),
];

/// A number with its target.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// The number; none if it could not be measured.
    pub value: Option<f64>,
    /// At most this.
    pub target: f64,
    /// Better this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stretch: Option<f64>,
    /// Whether it is.
    pub met: bool,
}

/// Everything that was measured.
#[derive(Debug, Default)]
pub struct Report {
    keys: BTreeMap<&'static str, f64>,
    details: BTreeMap<String, f64>,
    /// Why the tools of others were not asked, where they were not.
    pub tools_missing: Option<String>,
}

impl Report {
    /// A number that has a target.
    pub fn key(&mut self, key: &'static str, value: f64) {
        self.keys.insert(key, value);
    }

    /// A number that is worth knowing.
    pub fn detail(&mut self, name: impl Into<String>, value: f64) {
        self.details.insert(name.into(), value);
    }

    /// Adds to such a number.
    pub fn add(&mut self, name: impl Into<String>, value: f64) {
        *self.details.entry(name.into()).or_default() += value;
    }

    /// The numbers of these parts with their targets. Tools that are not on this machine leave no number to judge.
    #[must_use]
    pub fn judged(&self, parts: &[&str]) -> Vec<(&'static str, Measured)> {
        let asked =
            |t: &&Target| parts.contains(&t.part) && !(t.part == "tools" && self.tools_missing.is_some());
        let judge = |t: &Target| {
            let value = self.keys.get(t.key).copied();
            let met = value.is_some_and(|value| value <= t.most);
            (t.key, Measured { value, target: t.most, stretch: t.stretch, met })
        };
        TARGETS.iter().filter(asked).map(judge).collect()
    }

    /// The report as JSON.
    #[must_use]
    pub fn json(&self, parts: &[&str], quick: bool) -> Value {
        let keys: BTreeMap<_, _> = self.judged(parts).into_iter().collect();
        json!({
            "keys": keys,
            "details": self.details,
            "pythonToolsMissing": self.tools_missing,
            "measuredOn": circumstances(quick),
        })
    }

    /// The report as a table.
    #[must_use]
    pub fn table(&self, parts: &[&str]) -> String {
        let mut text = format!("{:42} {:>12} {:>10}  met\n", "", "measured", "at most");
        for (key, Measured { value, target, stretch, met }) in self.judged(parts) {
            let value = value.map_or_else(|| "none".to_owned(), |value| format!("{value:.5}"));
            let stretch = match stretch {
                Some(stretch) => format!(" (stretch {stretch})"),
                None => String::new(),
            };
            let met = if met { "yes" } else { "NO" };
            text.push_str(&format!("{key:42} {value:>12} {target:>10}  {met}{stretch}\n"));
        }
        for (name, value) in &self.details {
            text.push_str(&format!("  {name:58} {value:>14.4}\n"));
        }
        if let Some(why) = &self.tools_missing {
            text.push_str(&format!("not compared with Python's tools: {why}\n"));
        }
        text
    }
}

/// Tells whoever waits what is being measured.
pub fn say(what: &str) {
    eprintln!("measuring: {what}");
}

/// The first value of a field of /proc/cpuinfo or /proc/meminfo.
fn field(file: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn git(arguments: &[&str]) -> Option<String> {
    let out = Command::new("git").args(arguments).output().ok().filter(|out| out.status.success())?;
    Some(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

/// The machine and the program.
fn circumstances(quick: bool) -> Value {
    let file = |path: &str| std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    json!({
        "cpu": field("/proc/cpuinfo", "model name"),
        "cores": std::thread::available_parallelism().map(usize::from).ok(),
        "memory": field("/proc/meminfo", "MemTotal"),
        "kernel": file("/proc/sys/kernel/osrelease"),
        "load": file("/proc/loadavg"),
        "commit": git(&["rev-parse", "HEAD"]),
        "changedSinceCommit": git(&["status", "--porcelain"]).map(|text| !text.is_empty()),
        "optimised": !cfg!(debug_assertions),
        "quick": quick,
    })
}

/// The value below which this share of the values lies; none of none.
#[must_use]
pub fn quantile(values: &[f64], share: f64) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let place = (values.len() as f64 * share).ceil() as usize;
    values.get(place.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_met_missed_or_not_measured() {
        let mut report = Report::default();
        report.key("scrape_ms_64gpu_p99", 25.0);
        report.key("rss_mb_8gpu", 30.1);
        let met = |report: &Report, parts: &[&str]| -> Vec<bool> {
            report.judged(parts).iter().map(|(_, m)| m.met).collect()
        };
        assert_eq!(met(&report, &["large"]), [true]);
        assert_eq!(met(&report, &["agent"]), [false; 6], "too much, and not measured");
        assert_eq!(met(&report, &["tools"]), [false]);
        report.tools_missing = Some("no Python".to_owned());
        assert!(met(&report, &["tools"]).is_empty());
        let (json, table) = (report.json(&["large", "tools"], true), report.table(&["agent", "tools"]));
        assert_eq!(json["keys"]["scrape_ms_64gpu_p99"]["met"], true);
        assert_eq!(
            (&json["pythonToolsMissing"], &json["measuredOn"]["quick"]),
            (&json!("no Python"), &json!(true))
        );
        assert!(
            table.contains("30.10000") && table.contains("NO (stretch 15)") && table.contains("no Python")
        );
    }

    #[test]
    fn quantiles() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(quantile(&values, 0.99), Some(99.0));
        assert_eq!(quantile(&values, 0.5), Some(50.0));
        assert_eq!((quantile(&[7.0], 0.99), quantile(&[], 0.99)), (Some(7.0), None));
    }
}
