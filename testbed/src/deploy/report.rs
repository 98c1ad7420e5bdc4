//! What a run of the demo measured, as JSON and as a time-line for people.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, IoContext as _, Result};

/// The demo's figures. Times are seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// From the apply to the award.
    pub award: f64,
    /// From the apply to a ready Ray cluster.
    pub provisioned: f64,
    /// From the apply to a running entry point.
    pub running: f64,
    /// From the apply to the end.
    pub finished: f64,
    /// From the start of the demo to five clusters ready.
    pub clusters_ready: f64,
    /// From the start of the demo to charts ready on all of them.
    pub charts_ready: f64,
    /// The whole run.
    pub total: f64,
    /// Provider that won.
    pub winner: String,
    /// Price per GPU-hour of the award.
    pub price: String,
    /// Accuracy of the trained model on the test set.
    pub accuracy: f64,
    /// Whether the certificate was verified against the market record.
    pub certificate_verified: bool,
}

impl Report {
    /// Writes the report as JSON.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text =
            serde_json::to_string_pretty(self).map_err(|e| Error::Invalid(format!("encode report: {e}")))?;
        std::fs::write(path, text + "\n").io("write", path)
    }

    /// The time-line that the demo prints at its end: one bar per phase.
    pub fn timeline(&self) -> String {
        let phases =
            [("clusters", 0.0, self.clusters_ready), ("charts", self.clusters_ready, self.charts_ready)];
        let applied = self.total - self.finished;
        let job = [
            ("auction", 0.0, self.award),
            ("provision", self.award, self.provisioned),
            ("start", self.provisioned, self.running),
            ("train", self.running, self.finished),
        ];
        let mut text = String::from("time-line (seconds since start)\n");
        let all = phases.into_iter().chain(job.into_iter().map(|(n, a, b)| (n, a + applied, b + applied)));
        for (name, from, to) in all {
            text.push_str(&bar(name, from, to, self.total));
        }
        text
    }
}

fn bar(name: &str, from: f64, to: f64, total: f64) -> String {
    const WIDTH: f64 = 60.0;
    let scale =
        |at: f64| if total > 0.0 { (at / total * WIDTH).round().clamp(0.0, WIDTH) as usize } else { 0 };
    let (begin, end) = (scale(from), scale(to).max(scale(from) + 1));
    format!(
        "  {name:<10} {:>7.1} {}{} {:.1} s\n",
        from,
        " ".repeat(begin),
        "#".repeat(end - begin),
        to - from
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeline_has_a_bar_for_each_phase() {
        let report = Report {
            award: 1.0,
            provisioned: 11.0,
            running: 14.0,
            finished: 40.0,
            clusters_ready: 20.0,
            charts_ready: 30.0,
            total: 70.0,
            ..Report::default()
        };
        let text = report.timeline();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 7);
        assert!(lines[6].contains("train") && lines[6].ends_with("26.0 s"), "{text}");
        assert_eq!(report.timeline(), text);
    }

    #[test]
    fn report_round_trips_through_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.json");
        let report = Report { winner: "alpha".into(), price: "2.10".into(), ..Report::default() };
        report.write(&path).unwrap();
        let read: Report = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(read, report);
    }
}
