//! Metrics of processes by Pod. They are shown whole each time, so that what is gone is gone.

use prometheus::{GaugeVec, Opts, Registry};

use super::processes::{DeviceUse, PodUse};

/// Where a gauge gets its value from, in base units.
type Value = fn(&PodUse) -> Option<f64>;

/// Gauges of a Pod on a device: name, help, value.
const POD_GAUGES: [(&str, &str, Value); 3] = [
    ("vendue_gpu_pod_processes", "Processes of the Pod on the device", |used| {
        Some(f64::from(used.processes))
    }),
    ("vendue_gpu_pod_memory_used_bytes", "Frame buffer that processes of the Pod hold", |used| {
        used.memory_bytes.map(float)
    }),
    (
        "vendue_gpu_pod_utilization_ratio",
        "Share of time that kernels of the Pod ran; says nothing about how many SMs did",
        |used| used.utilization_percent.map(|percent| f64::from(percent) / 100.0),
    ),
];

/// The gauges.
pub struct ProcessGauges {
    pods: Vec<(GaugeVec, Value)>,
    unknown: GaugeVec,
    unassigned: GaugeVec,
}

impl ProcessGauges {
    /// Gauges in this registry.
    ///
    /// # Errors
    /// When a definition is wrong.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let make = |name: &str, help: &str, labels: &[&str]| {
            let gauge = GaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let pod = |(name, help, value): &(&str, &str, Value)| {
            Ok((make(name, help, &["gpu_uuid", "model", "pod_uid"])?, *value))
        };
        Ok(Self {
            pods: POD_GAUGES.iter().map(pod).collect::<Result<_, prometheus::Error>>()?,
            unknown: make(
                "vendue_gpu_unknown_processes",
                "Processes on the device that are not to be found on the node",
                &["gpu_uuid", "model"],
            )?,
            unassigned: make(
                "vendue_gpu_unassigned_processes",
                "Processes of Pods on the device while kubelet has given it to nobody",
                &["gpu_uuid", "model"],
            )?,
        })
    }

    /// Shows this and nothing else.
    pub fn show(&self, uses: &[DeviceUse]) {
        self.pods.iter().for_each(|(gauge, _)| gauge.reset());
        self.unknown.reset();
        self.unassigned.reset();
        for DeviceUse { uuid, model, pods, unknown, unassigned } in uses {
            self.unknown.with_label_values(&[uuid, model]).set(f64::from(*unknown));
            if let Some(count) = unassigned {
                self.unassigned.with_label_values(&[uuid, model]).set(f64::from(*count));
            }
            for (uid, used) in pods {
                for (gauge, value) in &self.pods {
                    if let Some(value) = value(used) {
                        gauge.with_label_values(&[uuid, model, uid]).set(value);
                    }
                }
            }
        }
    }
}

/// Exact up to 2^53 bytes.
#[allow(clippy::cast_precision_loss)]
fn float(value: u64) -> f64 {
    value as f64
}
