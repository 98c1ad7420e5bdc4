//! Labels of GPU feature discovery against what the agent says of the same node.
//!
//! Inputs: a node's labels, the devices that its agent knows. Outputs: a sentence for each label that contradicts them.
//! Invariants: a label that is not there contradicts nothing; a node whose agent does not know all devices is not judged,
//! nor is one that works in slices, whose labels count and name the slices.

use std::collections::BTreeMap;

use vendue_crds::gfd::{COUNT, MEMORY, PRODUCT, SHARED, product};

use super::known::Known;

/// Memory may differ by one part in so many: drivers differ in what they count as reserved.
const MEMORY_TOLERANCE: u64 = 50;
/// Longest value of a label that is quoted; longer ones are none of Kubernetes'.
const MAX_VALUE: usize = 63;

/// What the labels of a node say that its agent does not.
pub fn contradictions(labels: &BTreeMap<String, String>, known: &Known) -> Vec<String> {
    let devices = &known.devices;
    if known.fingerprint.is_none() || devices.iter().any(|d| d.sliced) {
        return vec![];
    }
    let mut found = vec![];
    let mut judge = |key: &str, right: &dyn Fn(&str) -> bool, agent: String| {
        if let Some(value) = labels.get(key).filter(|value| !right(value)) {
            let value: String = value.chars().take(MAX_VALUE).collect();
            found.push(format!("{key} is \"{value}\", the agent says {agent}"));
        }
    };
    judge(COUNT, &|value| value.parse() == Ok(devices.len()), devices.len().to_string());
    let products: Vec<String> = sorted(devices.iter().map(|d| product(&d.product)));
    let named = |value: &str| products.iter().any(|p| p == value.strip_suffix(SHARED).unwrap_or(value));
    judge(PRODUCT, &named, products.join(", "));
    // Of different GPUs the label names one.
    let near = |value: &str| {
        value.parse::<u64>().is_ok_and(|mib| {
            devices.iter().any(|d| mib.abs_diff(d.memory_mib) <= d.memory_mib / MEMORY_TOLERANCE)
        })
    };
    let sizes = sorted(devices.iter().map(|d| d.memory_mib.to_string()));
    judge(MEMORY, &near, format!("{} MiB", sizes.join(", ")));
    found
}

fn sorted(items: impl Iterator<Item = String>) -> Vec<String> {
    let mut items: Vec<String> = items.collect();
    items.sort_unstable();
    items.dedup();
    items
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provision::known::Device;

    fn known() -> Known {
        let device = Device {
            uuid: "GPU-0".into(),
            product: "NVIDIA H100 80GB HBM3".into(),
            memory_mib: 81_559,
            sliced: false,
            healthy: true,
        };
        Known { fingerprint: Some("ab".repeat(32)), devices: vec![device.clone(), device] }
    }

    fn judged(labels: &[(&str, &str)], known: &Known) -> Vec<String> {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        contradictions(&labels, known)
    }

    #[test]
    fn labels_that_agree_or_are_not_there_say_nothing() {
        assert_eq!(judged(&[], &known()), Vec::<String>::new());
        for (product, memory) in [
            ("NVIDIA-H100-80GB-HBM3", "81559"),
            ("NVIDIA-H100-80GB-HBM3-SHARED", "80000"),
            ("NVIDIA-H100-80GB-HBM3", "83190"),
        ] {
            let labels = [(COUNT, "2"), (PRODUCT, product), (MEMORY, memory), ("nvidia.com/gpu.family", "x")];
            assert_eq!(judged(&labels, &known()), Vec::<String>::new(), "{product} {memory}");
        }
        let mut mixed = known();
        mixed.devices[1].product = "NVIDIA L40S".into();
        mixed.devices[1].memory_mib = 46_068;
        assert_eq!(judged(&[(PRODUCT, "NVIDIA-L40S"), (MEMORY, "46068")], &mixed), Vec::<String>::new());
    }

    #[test]
    fn each_label_that_differs_is_named() {
        let labels = [(COUNT, "8"), (PRODUCT, "NVIDIA-H200"), (MEMORY, "143771")];
        assert_eq!(
            judged(&labels, &known()),
            [
                "nvidia.com/gpu.count is \"8\", the agent says 2",
                "nvidia.com/gpu.product is \"NVIDIA-H200\", the agent says NVIDIA-H100-80GB-HBM3",
                "nvidia.com/gpu.memory is \"143771\", the agent says 81559 MiB",
            ]
        );
        for memory in ["79000", "84000", "many"] {
            assert_eq!(judged(&[(MEMORY, memory)], &known()).len(), 1, "{memory}");
        }
    }

    #[test]
    fn slices_and_unknown_devices_are_not_judged() {
        let mut other = known();
        other.fingerprint = None;
        assert_eq!(judged(&[(COUNT, "8")], &other), Vec::<String>::new());
        other = known();
        other.devices[1].sliced = true;
        assert_eq!(judged(&[(COUNT, "8")], &other), Vec::<String>::new());
    }
}
