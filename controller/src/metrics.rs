//! Metrics, all with the prefix `vendue_controller_`.
//!
//! Invariant: labels come from fixed sets; names of objects, prices and error texts are never labels.

use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};
use vendue_controller_core::transition::{Transition, bounded_reason};

/// The controller's metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    /// Seconds of each reconcile, by controller and result.
    pub reconcile: HistogramVec,
    /// Transitions of conditions, by condition and reason.
    pub transitions: IntCounterVec,
    /// Awards on this host, by state.
    pub awards: IntGaugeVec,
    /// Submissions to Ray, by result.
    pub ray_submit: IntCounterVec,
    /// Records that nodes told, by result.
    pub receipts: IntCounterVec,
    /// Nodes whose receipts are kept.
    pub receipts_nodes: IntGauge,
    /// Bytes of receipts that are kept.
    pub receipts_bytes: IntGauge,
    /// Watches that broke, by controller.
    pub watch_errors: IntCounterVec,
    /// GPUs that are free.
    pub gpus_free: IntGauge,
    /// GPUs that awards hold.
    pub gpus_held: IntGauge,
    /// GpuNodes that say Ready and whose agents are silent.
    pub agents_silent: IntGauge,
    /// Seconds from a Job's creation to its entry point running.
    pub time_to_running: prometheus::Histogram,
}

impl Metrics {
    /// Makes and registers the metrics.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new_custom(Some("vendue_controller".to_owned()), None)?;
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            HistogramOpts::new(name, help).buckets(buckets.to_vec())
        };
        let reconcile = HistogramVec::new(
            histogram(
                "reconcile_duration_seconds",
                "Seconds of each reconcile.",
                &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0],
            ),
            &["controller", "result"],
        )?;
        let counter =
            |name: &str, help: &str, labels: &[&str]| IntCounterVec::new(Opts::new(name, help), labels);
        let transitions = counter(
            "job_transitions_total",
            "Transitions of conditions of Jobs and Awards.",
            &["condition", "reason"],
        )?;
        let ray_submit = counter("ray_submit_total", "Submissions to Ray.", &["result"])?;
        let receipts = counter("receipts_total", "Records that nodes told.", &["result"])?;
        let receipts_nodes = IntGauge::new("receipts_nodes", "Nodes whose receipts are kept.")?;
        let receipts_bytes = IntGauge::new("receipts_stored_bytes", "Bytes of receipts that are kept.")?;
        let watch_errors =
            counter("watch_errors_total", "Watches that broke and were started again.", &["controller"])?;
        let awards = IntGaugeVec::new(Opts::new("awards", "Awards on this host."), &["state"])?;
        let gpus_free = IntGauge::new("gpus_free", "GPUs that nobody holds or uses.")?;
        let gpus_held = IntGauge::new("gpus_held", "GPUs that awards hold.")?;
        let agents_silent = IntGauge::new(
            "agents_silent",
            "GPU nodes that sell nothing because their agents are not heard.",
        )?;
        let time_to_running = prometheus::Histogram::with_opts(histogram(
            "time_to_running_seconds",
            "Seconds from a Job's creation to its entry point running.",
            &[2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 120.0, 300.0, 600.0],
        ))?;
        registry.register(Box::new(reconcile.clone()))?;
        registry.register(Box::new(transitions.clone()))?;
        registry.register(Box::new(ray_submit.clone()))?;
        registry.register(Box::new(receipts.clone()))?;
        registry.register(Box::new(receipts_nodes.clone()))?;
        registry.register(Box::new(receipts_bytes.clone()))?;
        registry.register(Box::new(watch_errors.clone()))?;
        registry.register(Box::new(awards.clone()))?;
        registry.register(Box::new(gpus_free.clone()))?;
        registry.register(Box::new(gpus_held.clone()))?;
        registry.register(Box::new(agents_silent.clone()))?;
        registry.register(Box::new(time_to_running.clone()))?;
        Ok(Self {
            registry,
            reconcile,
            transitions,
            awards,
            ray_submit,
            receipts,
            receipts_nodes,
            receipts_bytes,
            watch_errors,
            gpus_free,
            gpus_held,
            agents_silent,
            time_to_running,
        })
    }

    /// Counts transitions.
    pub fn count(&self, transitions: &[Transition]) {
        for transition in transitions {
            let reason = bounded_reason(&transition.reason);
            self.transitions.with_label_values(&[transition.condition.as_str(), reason]).inc();
        }
    }

    /// The text that Prometheus reads.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}
