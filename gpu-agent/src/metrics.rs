//! Prometheus metrics: base units, bounded labels (`node`, `gpu_uuid`, `model`, `kind`, `result`, `pod_uid`,
//! `award`).
//!
//! Device metrics show the last good reading; when reading fails they go, so that nobody takes old values for new.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use prometheus::{
    CounterVec, Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts,
    Registry, TextEncoder,
};

use vendue_crds::{GpuHealth, GpuProbe, ProbeResult};

use crate::health::judge::Judge;
use crate::health::xid::{self, Class};
use crate::inventory::{DeviceReading, Sensors};
use crate::meter::{Kept, MeterCounters};
use crate::model;
use crate::observe::{Observation, Outcome};
use crate::pods::gauges::ProcessGauges;
use crate::pods::processes::DeviceUse;
use crate::synthetic::Probes;

/// Buckets for reading: the target is 5 ms for eight devices, the watchdog's limit 5 s.
const READ_BUCKETS: [f64; 10] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0];

/// Buckets for writing to the API server, whose limit is 10 s.
const WRITE_BUCKETS: [f64; 9] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 10.0];

const DEVICE_LABELS: [&str; 2] = ["gpu_uuid", "model"];

/// Where a gauge of a device gets its value from, in base units.
type Reading = fn(&DeviceReading) -> Option<f64>;

/// Gauges of a device: name, help, value.
const DEVICE_GAUGES: [(&str, &str, Reading); 9] = [
    ("vendue_gpu_memory_bytes", "Frame buffer of the device", |d| Some(float(d.identity.memory_bytes))),
    ("vendue_gpu_memory_used_bytes", "Frame buffer in use", |d| d.sensors.memory_used_bytes.map(float)),
    (
        "vendue_gpu_utilization_ratio",
        "Share of time that kernels ran; says nothing about how many SMs did",
        |d| d.sensors.gpu_utilization_percent.map(|p| f64::from(p) / 100.0),
    ),
    ("vendue_gpu_sm_active_ratio", "Share of the SMs that had work, over time; Hopper and later", |d| {
        d.activity.sm_millionths.map(|share| f64::from(share) / 1e6)
    }),
    ("vendue_gpu_memory_utilization_ratio", "Share of time that memory was read or written", |d| {
        d.sensors.memory_utilization_percent.map(|p| f64::from(p) / 100.0)
    }),
    ("vendue_gpu_power_watts", "Power drawn", |d| d.sensors.power_milliwatts.map(|mw| f64::from(mw) / 1e3)),
    ("vendue_gpu_temperature_celsius", "Temperature of the chip", |d| {
        d.sensors.temperature_celsius.map(f64::from)
    }),
    ("vendue_gpu_sm_clock_hertz", "Clock of the SMs", |d| {
        d.sensors.sm_clock_mhz.map(|mhz| f64::from(mhz) * 1e6)
    }),
    ("vendue_gpu_memory_clock_hertz", "Clock of the memory", |d| {
        d.sensors.memory_clock_mhz.map(|mhz| f64::from(mhz) * 1e6)
    }),
];

/// Where a gauge of a probe gets its value from, in base units; results of devices that were not probed have none.
type Finding = fn(&GpuProbe) -> Option<f64>;

/// Gauges of a device's probe: name, help, value.
const PROBE_GAUGES: [(&str, &str, Finding); 4] = [
    ("vendue_gpu_probe_passed", "1 when the device measured as it says, 0 when not", |p| match p.result {
        ProbeResult::Passed => Some(1.0),
        ProbeResult::Failed => Some(0.0),
        ProbeResult::NotRun => None,
    }),
    ("vendue_gpu_probe_memory_bytes", "Memory that held what the probe wrote to it", |p| {
        p.memory_mib.map(|mib| signed(mib) * f64::from(1 << 20))
    }),
    (
        "vendue_gpu_probe_memory_bandwidth_bytes_per_second",
        "Bandwidth of the memory in the probe, reading and writing added",
        |p| p.bandwidth_megabytes_per_second.map(|mbps| signed(mbps) * 1e6),
    ),
    ("vendue_gpu_probe_sm_clock_hertz", "Clock of the SMs under the load of the probe", |p| {
        p.sm_clock_mhz.map(|mhz| signed(mhz) * 1e6)
    }),
];

/// All metrics of the agent.
pub struct Metrics {
    registry: Registry,
    devices: Vec<(GaugeVec, Reading)>,
    findings: Vec<(GaugeVec, Finding)>,
    probes: IntCounterVec,
    healthy: GaugeVec,
    energy: CounterVec,
    ecc_errors: CounterVec,
    xids: IntCounterVec,
    metering: Gauge,
    metered: MeterCounters,
    receipts: IntCounter,
    looks_lost: IntCounter,
    unheard: Gauge,
    undelivered: Gauge,
    refused_chains: Gauge,
    lost_chains: Gauge,
    deliveries: IntCounterVec,
    ready: Gauge,
    device_count: Gauge,
    reads: IntCounterVec,
    read_seconds: Histogram,
    last_read: Gauge,
    publishes: IntCounterVec,
    publish_seconds: Histogram,
    last_publish: Gauge,
    processes: ProcessGauges,
    /// Held while what is shown is exchanged: a scrape in between would see counters that fell to nothing.
    exchange: Mutex<()>,
}

impl Metrics {
    /// Metrics of the agent on one node.
    ///
    /// # Errors
    /// When a definition is wrong; a test makes sure that this cannot ship.
    pub fn new(node: &str) -> Result<Self, prometheus::Error> {
        let labels = [("node".to_owned(), node.to_owned())].into();
        let registry = Registry::new_custom(None, Some(labels))?;
        let devices = DEVICE_GAUGES
            .iter()
            .map(|(name, help, reading)| Ok((gauges(&registry, name, help)?, *reading)))
            .collect::<Result<_, prometheus::Error>>()?;
        let findings = PROBE_GAUGES
            .iter()
            .map(|(name, help, finding)| Ok((gauges(&registry, name, help)?, *finding)))
            .collect::<Result<_, prometheus::Error>>()?;
        let probes = IntCounterVec::new(
            Opts::new(
                "vendue_agent_probes_total",
                "Probes that ended, by result (passed, failed, not_run) and reason",
            ),
            &["result", "reason"],
        )?;
        registry.register(Box::new(probes.clone()))?;
        let energy = counters(
            &registry,
            "vendue_gpu_energy_joules_total",
            "Energy since the driver was loaded",
            &DEVICE_LABELS,
        )?;
        let ecc_errors = counters(
            &registry,
            "vendue_gpu_ecc_errors_total",
            "Memory errors since the driver was loaded, by kind (corrected, uncorrected)",
            &["gpu_uuid", "model", "kind"],
        )?;
        let xids = IntCounterVec::new(
            Opts::new("vendue_agent_xids_total", "Xids since the agent began, by code and class"),
            &["code", "class"],
        )?;
        registry.register(Box::new(xids.clone()))?;
        let metered = MeterCounters::new()?;
        registry.register(Box::new(metered.clone()))?;
        Ok(Self {
            devices,
            findings,
            probes,
            healthy: gauges(&registry, "vendue_gpu_healthy", "1 when nothing is known against the device")?,
            energy,
            ecc_errors,
            xids,
            metering: gauge(&registry, "vendue_agent_metering", "1 while receipts can be stored")?,
            metered,
            receipts: int_counter(
                &registry,
                "vendue_agent_receipts_stored_total",
                "Receipts stored since the agent began",
            )?,
            undelivered: gauge(
                &registry,
                "vendue_agent_receipts_undelivered",
                "Receipts that the controller does not have yet",
            )?,
            refused_chains: gauge(
                &registry,
                "vendue_agent_receipt_chains_refused",
                "Chains of receipts that the controller refuses",
            )?,
            lost_chains: gauge(
                &registry,
                "vendue_agent_receipt_chains_lost",
                "Chains of which the controller lost receipts that are not here any more",
            )?,
            deliveries: int_counters(
                &registry,
                "vendue_agent_deliveries_total",
                "Batches of receipts told to the controller, by result (success, error)",
            )?,
            unheard: gauge(
                &registry,
                "vendue_agent_devices_without_events",
                "Devices whose Xids are not seen, because the driver refuses to tell of them",
            )?,
            looks_lost: int_counter(
                &registry,
                "vendue_agent_metering_looks_lost_total",
                "Readings that could not be metered since the agent began: each is a second of a gap",
            )?,
            ready: gauge(&registry, "vendue_agent_ready", "1 when the GpuNode's condition Ready is True")?,
            device_count: gauge(&registry, "vendue_agent_devices", "Devices in the last good reading")?,
            reads: int_counters(
                &registry,
                "vendue_agent_reads_total",
                "Readings, by result (success, error, hung)",
            )?,
            read_seconds: histogram(
                &registry,
                "vendue_agent_read_duration_seconds",
                "Time that a reading took",
                &READ_BUCKETS,
            )?,
            last_read: gauge(
                &registry,
                "vendue_agent_last_read_timestamp_seconds",
                "Time of the last good reading",
            )?,
            publishes: int_counters(
                &registry,
                "vendue_agent_publishes_total",
                "Writes of the GpuNode, by result (success, error)",
            )?,
            publish_seconds: histogram(
                &registry,
                "vendue_agent_publish_duration_seconds",
                "Time that a write of the GpuNode took",
                &WRITE_BUCKETS,
            )?,
            last_publish: gauge(
                &registry,
                "vendue_agent_last_publish_timestamp_seconds",
                "Time of the last good write of the GpuNode",
            )?,
            processes: ProcessGauges::new(&registry)?,
            exchange: Mutex::new(()),
            registry,
        })
    }

    /// Counts an attempt to read.
    pub fn count_read(&self, outcome: &Outcome, took: Duration) {
        let result = match outcome {
            Outcome::Read(_) => "success",
            Outcome::Failed(_) => "error",
            Outcome::Hung { .. } => "hung",
        };
        self.reads.with_label_values(&[result]).inc();
        self.read_seconds.observe(took.as_secs_f64());
    }

    /// Counts an Xid.
    pub fn count_xid(&self, code: u64, class: Class) {
        // Codes that nobody knows share a label: what a broken driver makes up must not make series.
        let code = xid::meaning(code).map_or_else(|| "other".to_owned(), |_| code.to_string());
        self.xids.with_label_values(&[code.as_str(), class.name()]).inc();
    }

    /// Counts a batch of receipts that was told, or was not.
    pub fn count_delivery(&self, is_ok: bool) {
        self.deliveries.with_label_values(&[if is_ok { "success" } else { "error" }]).inc();
    }

    /// Counts a probe.
    pub fn count_probe(&self, probe: &GpuProbe) {
        let result = match probe.result {
            ProbeResult::Passed => "passed",
            ProbeResult::Failed => "failed",
            ProbeResult::NotRun => "not_run",
        };
        self.probes.with_label_values(&[result, probe.reason.as_str()]).inc();
    }

    /// Shows how metering goes.
    pub fn show_metering(&self, kept: &Kept, dropped: u64) {
        self.metering.set(f64::from(u8::from(kept.error.is_none())));
        self.metered.show(Arc::clone(&kept.tally));
        raise(&self.receipts, kept.records);
        self.undelivered.set(float(kept.undelivered));
        self.refused_chains.set(float(kept.stuck_chains));
        self.lost_chains.set(float(kept.lost_chains));
        raise(&self.looks_lost, dropped.saturating_add(kept.dropped_ticks));
    }

    /// Shows of how many devices no events are heard.
    pub fn show_unheard(&self, devices: u64) {
        self.unheard.set(float(devices));
    }

    /// Counts a write.
    pub fn count_publish(&self, worked: bool, took: Duration, now: Timestamp) {
        self.publishes.with_label_values(&[if worked { "success" } else { "error" }]).inc();
        self.publish_seconds.observe(took.as_secs_f64());
        if worked {
            self.last_publish.set(seconds(now));
        }
    }

    /// Shows what processes use of the devices.
    pub fn show_processes(&self, uses: &[DeviceUse]) {
        let _exchange = self.exchange();
        self.processes.show(uses);
    }

    /// Shows what is believed.
    pub fn show(&self, observation: &Observation, judge: &Judge, probes: &Probes, ready: bool) {
        let _exchange = self.exchange();
        self.ready.set(if ready { 1.0 } else { 0.0 });
        self.devices.iter().for_each(|(gauge, _)| gauge.reset());
        self.findings.iter().for_each(|(gauge, _)| gauge.reset());
        self.healthy.reset();
        self.energy.reset();
        self.ecc_errors.reset();
        let Some((inventory, at)) = &observation.last_good else { return };
        self.last_read.set(seconds(*at));
        self.device_count.set(float(u64::try_from(inventory.devices.len()).unwrap_or(u64::MAX)));
        if observation.problem.is_none() {
            for device in &inventory.devices {
                self.show_device(device, judge, probes);
            }
        }
    }

    fn show_device(&self, device: &DeviceReading, judge: &Judge, probes: &Probes) {
        let model = model::from_product_name(&device.identity.product_name);
        let labels = [device.identity.uuid.as_str(), model.as_str()];
        let probe = probes.get(labels[0]);
        let is_healthy = judge.opinion(labels[0]).health == GpuHealth::Healthy
            && probe.is_none_or(|probe| probe.result != ProbeResult::Failed);
        for (gauge, finding) in &self.findings {
            if let Some(value) = probe.and_then(finding) {
                gauge.with_label_values(&labels).set(value);
            }
        }
        self.healthy.with_label_values(&labels).set(f64::from(u8::from(is_healthy)));
        for (gauge, reading) in &self.devices {
            if let Some(value) = reading(device) {
                gauge.with_label_values(&labels).set(value);
            }
        }
        let Sensors { energy_millijoules, ecc_corrected, ecc_uncorrected, .. } = device.sensors;
        if let Some(millijoules) = energy_millijoules {
            // Counters of the driver: set whole after the reset above, so that they fall only when the driver's do.
            self.energy.with_label_values(&labels).inc_by(float(millijoules) / 1e3);
        }
        for (kind, count) in [("corrected", ecc_corrected), ("uncorrected", ecc_uncorrected)] {
            if let Some(count) = count {
                self.ecc_errors.with_label_values(&[labels[0], labels[1], kind]).inc_by(float(count));
            }
        }
    }

    /// The text that Prometheus scrapes.
    ///
    /// # Errors
    /// When a metric cannot be written as text.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        let mut text = Vec::new();
        let families = {
            let _exchange = self.exchange();
            self.registry.gather()
        };
        TextEncoder::new().encode(&families, &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    fn exchange(&self) -> std::sync::MutexGuard<'_, ()> {
        // It guards no data that a panic could leave half-way.
        self.exchange.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Raises a counter to a count that is kept elsewhere and only grows.
fn raise(counter: &IntCounter, count: u64) {
    counter.inc_by(count.saturating_sub(counter.get()));
}

/// Exact up to 2^53: byte counts and energy counters stay far below.
#[allow(clippy::cast_precision_loss)]
fn float(value: u64) -> f64 {
    value as f64
}

#[allow(clippy::cast_precision_loss)]
fn signed(value: i64) -> f64 {
    value as f64
}

fn seconds(at: Timestamp) -> f64 {
    at.as_duration().as_secs_f64()
}

fn gauges(registry: &Registry, name: &str, help: &str) -> Result<GaugeVec, prometheus::Error> {
    let metric = GaugeVec::new(Opts::new(name, help), &DEVICE_LABELS)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> Result<Gauge, prometheus::Error> {
    let metric = Gauge::new(name, help)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn int_counter(registry: &Registry, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
    let metric = IntCounter::new(name, help)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<CounterVec, prometheus::Error> {
    let metric = CounterVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn int_counters(registry: &Registry, name: &str, help: &str) -> Result<IntCounterVec, prometheus::Error> {
    let metric = IntCounterVec::new(Opts::new(name, help), &["result"])?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn histogram(
    registry: &Registry,
    name: &str,
    help: &str,
    buckets: &[f64],
) -> Result<Histogram, prometheus::Error> {
    let metric = Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
