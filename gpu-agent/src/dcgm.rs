//! The metrics under the names, labels and units of NVIDIA's dcgm-exporter, so that dashboards made for it work unchanged. Pure.
//!
//! * Inputs: what is believed of the devices, the last Xid of each, who holds them, the name of the node.
//! * Output: text for Prometheus. Names, types and units are those of `etc/default-counters.csv`, labels and their order those
//!   of `internal/pkg/rendermetrics` in <https://github.com/NVIDIA/dcgm-exporter> (4.5).
//! * Invariant: a value that NVML does not give is absent, never zero. Of the default list these are always absent, for NVML
//!   lacks them or gives a rate in their place: `DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL`, `DCGM_FI_DEV_PCIE_{TX,RX}_THROUGHPUT`,
//!   `DCGM_FI_DEV_VGPU_LICENSE_STATUS`; and `DCGM_FI_PROF_*` of cards before Hopper, which have no GPM.

use std::collections::BTreeMap;

use prometheus::proto::{LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder, TextEncoder};

use crate::families::{family, label, metric};
use crate::inventory::{Activity, DeviceFault, DeviceReading, MigInstance, NodeInventory};
use crate::pods::attribution::{Attribution, Holder};

const MIB: f64 = 1_048_576.0;

/// What a value is read from.
struct Source<'a> {
    device: &'a DeviceReading,
    /// The MIG instance, on a device that is split.
    instance: Option<&'a MigInstance>,
    driver_version: &'a str,
    xid: Option<u64>,
}

impl Source<'_> {
    /// Of an instance or its card, whichever is shown.
    fn activity(&self) -> &Activity {
        self.instance.map_or(&self.device.activity, |instance| &instance.activity)
    }

    fn memory_used(&self) -> Option<u64> {
        self.instance.map_or(self.device.sensors.memory_used_bytes, |instance| instance.memory_used_bytes)
    }

    fn memory_free(&self) -> Option<u64> {
        self.instance.map_or(self.device.sensors.memory_free_bytes, |instance| instance.memory_free_bytes)
    }
}

/// A value in dcgm-exporter's unit.
type Value = fn(&Source<'_>) -> Option<f64>;

/// Name, type, help, value.
const FIELDS: &[(&str, MetricType, &str, Value)] = &[
    ("DCGM_FI_DEV_SM_CLOCK", MetricType::GAUGE, "Clock of the SMs (MHz)", |s| {
        s.device.sensors.sm_clock_mhz.map(f64::from)
    }),
    ("DCGM_FI_DEV_MEM_CLOCK", MetricType::GAUGE, "Clock of the memory (MHz)", |s| {
        s.device.sensors.memory_clock_mhz.map(f64::from)
    }),
    ("DCGM_FI_DEV_MEMORY_TEMP", MetricType::GAUGE, "Temperature of the memory (C)", |s| {
        s.device.sensors.memory_temperature_celsius.map(f64::from)
    }),
    ("DCGM_FI_DEV_GPU_TEMP", MetricType::GAUGE, "Temperature of the GPU (C)", |s| {
        s.device.sensors.temperature_celsius.map(f64::from)
    }),
    ("DCGM_FI_DEV_POWER_USAGE", MetricType::GAUGE, "Power drawn (W)", |s| {
        s.device.sensors.power_milliwatts.map(|mw| f64::from(mw) / 1e3)
    }),
    (
        "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
        MetricType::COUNTER,
        "Energy since the driver was loaded (mJ)",
        |s| s.device.sensors.energy_millijoules.map(float),
    ),
    ("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", MetricType::COUNTER, "Packets repeated on PCIe", |s| {
        s.device.sensors.pcie_replays.map(f64::from)
    }),
    ("DCGM_FI_DEV_GPU_UTIL", MetricType::GAUGE, "Share of time that kernels ran (%)", |s| {
        s.device.sensors.gpu_utilization_percent.map(f64::from)
    }),
    ("DCGM_FI_DEV_MEM_COPY_UTIL", MetricType::GAUGE, "Share of time that memory was used (%)", |s| {
        s.device.sensors.memory_utilization_percent.map(f64::from)
    }),
    ("DCGM_FI_DEV_ENC_UTIL", MetricType::GAUGE, "Share of time that the encoder ran (%)", |s| {
        s.device.sensors.encoder_utilization_percent.map(f64::from)
    }),
    ("DCGM_FI_DEV_DEC_UTIL", MetricType::GAUGE, "Share of time that the decoder ran (%)", |s| {
        s.device.sensors.decoder_utilization_percent.map(f64::from)
    }),
    ("DCGM_FI_DEV_XID_ERRORS", MetricType::GAUGE, "The last Xid; 0 for none", |s| {
        Some(float(s.xid.unwrap_or(0)))
    }),
    ("DCGM_FI_DEV_FB_FREE", MetricType::GAUGE, "Frame buffer that is free (MiB)", |s| {
        s.memory_free().map(mib)
    }),
    ("DCGM_FI_DEV_FB_USED", MetricType::GAUGE, "Frame buffer in use (MiB)", |s| s.memory_used().map(mib)),
    ("DCGM_FI_DEV_FB_RESERVED", MetricType::GAUGE, "Frame buffer that the driver keeps (MiB)", |s| {
        s.device.sensors.memory_reserved_bytes.map(mib)
    }),
    (
        "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS",
        MetricType::COUNTER,
        "Rows replaced after errors that were not corrected",
        |s| s.device.sensors.rows_remapped_uncorrected.map(f64::from),
    ),
    (
        "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS",
        MetricType::COUNTER,
        "Rows replaced after errors that were corrected",
        |s| s.device.sensors.rows_remapped_corrected.map(f64::from),
    ),
    ("DCGM_FI_DEV_ROW_REMAP_FAILURE", MetricType::GAUGE, "1 when rows could not be replaced", |s| {
        s.device.sensors.rows_remapped_corrected?;
        Some(f64::from(u8::from(s.device.fault == Some(DeviceFault::RowRemapFailed))))
    }),
    ("DCGM_FI_PROF_GR_ENGINE_ACTIVE", MetricType::GAUGE, "Ratio of time that the engine was active", |s| {
        s.activity().engine_millionths.map(ratio)
    }),
    (
        "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",
        MetricType::GAUGE,
        "Ratio of cycles in which tensor pipes were active",
        |s| s.activity().tensor_millionths.map(ratio),
    ),
    (
        "DCGM_FI_PROF_DRAM_ACTIVE",
        MetricType::GAUGE,
        "Ratio of cycles in which the interface of the memory was active",
        |s| s.activity().memory_millionths.map(ratio),
    ),
    ("DCGM_FI_PROF_PCIE_TX_BYTES", MetricType::GAUGE, "Bytes a second sent over PCIe", |s| {
        s.activity().pcie_sent_bytes_per_second.map(float)
    }),
    ("DCGM_FI_PROF_PCIE_RX_BYTES", MetricType::GAUGE, "Bytes a second received over PCIe", |s| {
        s.activity().pcie_received_bytes_per_second.map(float)
    }),
];

fn ratio(millionths: u32) -> f64 {
    f64::from(millionths) / 1e6
}

/// Exact up to 2^53.
#[allow(clippy::cast_precision_loss)]
fn float(value: u64) -> f64 {
    value as f64
}

fn mib(bytes: u64) -> f64 {
    (float(bytes) / MIB).floor()
}

/// The metrics as text.
///
/// # Errors
/// When a metric cannot be written as text.
pub fn render(
    inventory: &NodeInventory,
    xids: &BTreeMap<String, u64>,
    pods: &Attribution,
    node: &str,
) -> Result<String, prometheus::Error> {
    let families: Vec<MetricFamily> = FIELDS
        .iter()
        .filter_map(|(name, kind, help, value)| {
            let metrics: Vec<Metric> = inventory
                .devices
                .iter()
                .flat_map(|device| sources(device, &inventory.driver_version, xids))
                .filter_map(|source| Some((value(&source)?, source)))
                .flat_map(|(value, source)| series(&source, pods, node, *kind, value))
                .collect();
            // The encoder refuses a family without series.
            (!metrics.is_empty()).then(|| family(name, *kind, help, metrics))
        })
        .collect();
    let mut text = Vec::new();
    TextEncoder::new().encode(&families, &mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The device; in MIG mode its instances in its place, as dcgm-exporter shows them.
fn sources<'a>(
    device: &'a DeviceReading,
    driver_version: &'a str,
    xids: &BTreeMap<String, u64>,
) -> Vec<Source<'a>> {
    let xid = xids.get(&device.identity.uuid).copied();
    let of = |instance| Source { device, instance, driver_version, xid };
    if device.mig.is_empty() {
        return vec![of(None)];
    }
    device.mig.iter().map(|instance| of(Some(instance))).collect()
}

/// One series for each holder; one without a Pod when there is none.
fn series(source: &Source<'_>, pods: &Attribution, node: &str, kind: MetricType, value: f64) -> Vec<Metric> {
    let Source { device, instance, .. } = source;
    let holders = pods.holders(instance.map_or(&device.identity.uuid, |instance| &instance.uuid));
    let labels = labels(source, node);
    if holders.is_empty() {
        return vec![metric(labels, kind, value)];
    }
    holders.iter().map(|h| metric([labels.clone(), pod_labels(h)].concat(), kind, value)).collect()
}

fn labels(source: &Source<'_>, node: &str) -> Vec<LabelPair> {
    let id = &source.device.identity;
    let mut labels = vec![
        label("gpu", id.index.to_string()),
        label("UUID", id.uuid.clone()),
        label("pci_bus_id", id.pci_bus_id.clone()),
        label("device", format!("nvidia{}", id.minor.unwrap_or(id.index))),
        label("modelName", id.product_name.clone()),
    ];
    if let Some(instance) = source.instance {
        let profile = instance.name.split_whitespace().next_back().unwrap_or_default();
        labels.push(label("GPU_I_PROFILE", profile));
        labels.push(label("GPU_I_ID", instance.gpu_instance.map_or_else(String::new, |id| id.to_string())));
    }
    labels.push(label("Hostname", node));
    labels.push(label("DCGM_FI_DRIVER_VERSION", source.driver_version));
    labels
}

fn pod_labels(holder: &Holder) -> Vec<LabelPair> {
    let mut labels = vec![
        label("namespace", holder.namespace.clone()),
        label("pod", holder.pod.clone()),
        label("container", holder.container.clone()),
    ];
    if let Some(claim) = &holder.claim {
        labels.push(label("dra_claim_name", claim.name.clone()));
        labels.push(label("dra_claim_namespace", claim.namespace.clone()));
        labels.push(label("dra_driver_name", claim.driver.clone()));
        labels.push(label("dra_pool_name", claim.pool.clone()));
        labels.push(label("dra_device_name", claim.device.clone()));
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::{DeviceIdentity, Sensors};
    use crate::pods::api::{ContainerDevices, ContainerResources, ListPodResourcesResponse, PodResources};
    use crate::pods::attribution::{Known, attribute};
    use crate::pods::slices::DeviceNames;

    fn inventory() -> NodeInventory {
        let identity = |n: u32| DeviceIdentity {
            index: n,
            uuid: format!("GPU-{n}"),
            product_name: "NVIDIA H100 80GB HBM3".to_owned(),
            memory_bytes: 80 << 30,
            pci_bus_id: format!("00000000:1{n}:00.0"),
            minor: Some(n),
        };
        let mut plain = DeviceReading::of(identity(0));
        plain.sensors = Sensors {
            power_milliwatts: Some(70_500),
            energy_millijoules: Some(1_000),
            memory_free_bytes: Some((3 << 20) + 1),
            ..Sensors::default()
        };
        plain.activity.engine_millionths = Some(1_000_000);
        plain.activity.pcie_sent_bytes_per_second = Some(1_500);
        let mut sliced = DeviceReading::of(identity(1));
        sliced.mig = vec![MigInstance {
            uuid: "MIG-1".to_owned(),
            name: "NVIDIA H100 80GB HBM3 MIG 1g.10gb".to_owned(),
            gpu_instance: Some(7),
            compute_instance: Some(0),
            memory_bytes: None,
            memory_used_bytes: None,
            memory_free_bytes: Some(9 << 20),
            activity: Activity { engine_millionths: Some(250_000), ..Activity::default() },
        }];
        // What is the whole card's is not shown as the instance's.
        sliced.sensors.memory_free_bytes = Some(70 << 30);
        sliced.activity.engine_millionths = Some(900_000);
        let driver_version = "580.95.05".to_owned();
        NodeInventory { driver_version, devices: vec![plain, sliced], ..NodeInventory::default() }
    }

    fn pods() -> Attribution {
        let container = |name: &str, id: &str| ContainerResources {
            name: name.to_owned(),
            devices: vec![ContainerDevices {
                resource_name: "nvidia.com/gpu".to_owned(),
                device_ids: vec![id.to_owned()],
            }],
            dynamic_resources: vec![],
        };
        let pod = PodResources {
            name: "p".to_owned(),
            namespace: "n".to_owned(),
            containers: vec![container("a", "GPU-0::0"), container("b", "GPU-0::1"), container("c", "MIG-1")],
        };
        let known = ["GPU-0", "MIG-1"].map(|uuid| Known { uuid: uuid.to_owned(), minor: None });
        attribute(&ListPodResourcesResponse { pod_resources: vec![pod] }, &known, &DeviceNames::default())
    }

    #[test]
    fn series_have_the_labels_of_dcgm_exporter_in_its_order() {
        let xids = [("GPU-1".to_owned(), 31)].into();
        let text = render(&inventory(), &xids, &pods(), "node-1").expect("text");
        let gpu0 = r#"gpu="0",UUID="GPU-0",pci_bus_id="00000000:10:00.0",device="nvidia0",modelName="NVIDIA H100 80GB HBM3",Hostname="node-1",DCGM_FI_DRIVER_VERSION="580.95.05",namespace="n",pod="p""#;
        let gpu1 = r#"gpu="1",UUID="GPU-1",pci_bus_id="00000000:11:00.0",device="nvidia1",modelName="NVIDIA H100 80GB HBM3",GPU_I_PROFILE="1g.10gb",GPU_I_ID="7",Hostname="node-1",DCGM_FI_DRIVER_VERSION="580.95.05",namespace="n",pod="p""#;
        let expected = [
            "# HELP DCGM_FI_DEV_POWER_USAGE Power drawn (W)".to_owned(),
            "# TYPE DCGM_FI_DEV_POWER_USAGE gauge".to_owned(),
            format!(r#"DCGM_FI_DEV_POWER_USAGE{{{gpu0},container="a"}} 70.5"#),
            format!(r#"DCGM_FI_DEV_POWER_USAGE{{{gpu0},container="b"}} 70.5"#),
            "# HELP DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION Energy since the driver was loaded (mJ)".to_owned(),
            "# TYPE DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION counter".to_owned(),
            format!(r#"DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{{gpu0},container="a"}} 1000"#),
            format!(r#"DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{{gpu0},container="b"}} 1000"#),
            "# HELP DCGM_FI_DEV_XID_ERRORS The last Xid; 0 for none".to_owned(),
            "# TYPE DCGM_FI_DEV_XID_ERRORS gauge".to_owned(),
            format!(r#"DCGM_FI_DEV_XID_ERRORS{{{gpu0},container="a"}} 0"#),
            format!(r#"DCGM_FI_DEV_XID_ERRORS{{{gpu0},container="b"}} 0"#),
            format!(r#"DCGM_FI_DEV_XID_ERRORS{{{gpu1},container="c"}} 31"#),
            "# HELP DCGM_FI_DEV_FB_FREE Frame buffer that is free (MiB)".to_owned(),
            "# TYPE DCGM_FI_DEV_FB_FREE gauge".to_owned(),
            format!(r#"DCGM_FI_DEV_FB_FREE{{{gpu0},container="a"}} 3"#),
            format!(r#"DCGM_FI_DEV_FB_FREE{{{gpu0},container="b"}} 3"#),
            format!(r#"DCGM_FI_DEV_FB_FREE{{{gpu1},container="c"}} 9"#),
            "# HELP DCGM_FI_PROF_GR_ENGINE_ACTIVE Ratio of time that the engine was active".to_owned(),
            "# TYPE DCGM_FI_PROF_GR_ENGINE_ACTIVE gauge".to_owned(),
            format!(r#"DCGM_FI_PROF_GR_ENGINE_ACTIVE{{{gpu0},container="a"}} 1"#),
            format!(r#"DCGM_FI_PROF_GR_ENGINE_ACTIVE{{{gpu0},container="b"}} 1"#),
            format!(r#"DCGM_FI_PROF_GR_ENGINE_ACTIVE{{{gpu1},container="c"}} 0.25"#),
            "# HELP DCGM_FI_PROF_PCIE_TX_BYTES Bytes a second sent over PCIe".to_owned(),
            "# TYPE DCGM_FI_PROF_PCIE_TX_BYTES gauge".to_owned(),
            format!(r#"DCGM_FI_PROF_PCIE_TX_BYTES{{{gpu0},container="a"}} 1500"#),
            format!(r#"DCGM_FI_PROF_PCIE_TX_BYTES{{{gpu0},container="b"}} 1500"#),
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
        // A device that nobody has, has a series without a Pod.
        let free = render(&inventory(), &BTreeMap::new(), &Attribution::default(), "node-1").expect("text");
        let no_pod = r#"Hostname="node-1",DCGM_FI_DRIVER_VERSION="580.95.05"} 70.5"#;
        assert!(free.contains(no_pod), "{free}");
    }
}
