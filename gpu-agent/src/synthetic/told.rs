//! What a GpuNode says of the probes: the condition Probed, and for how long Ready has to wait. Pure.

use vendue_crds::{GpuProbe, ProbeResult};

use super::{Probes, reasons};
use crate::inventory::NodeInventory;

/// What is known of a device; one that nothing is known of waits for its probe.
#[must_use]
pub fn of(probes: &Probes, uuid: &str) -> GpuProbe {
    let waits = || {
        let message = "the probe is about to run".to_owned();
        GpuProbe::without_figures(ProbeResult::NotRun, reasons::PENDING, message)
    };
    probes.get(uuid).cloned().unwrap_or_else(waits)
}

/// Why the node cannot be Ready yet: the devices whose first probe is not over and nothing but time stands against.
#[must_use]
pub fn waiting(inventory: &NodeInventory, probes: &Probes) -> Option<String> {
    let known = inventory.devices.iter().map(|d| (d, of(probes, &d.identity.uuid)));
    let waiting: Vec<_> = known.filter(|(_, probe)| probe.reason == reasons::PENDING).collect();
    let (device, probe) = waiting.first()?;
    let count = format!("{} of {} wait for their first probe", waiting.len(), inventory.devices.len());
    let id = &device.identity;
    Some(format!("{count}: GPU {} {}: {}", id.index, id.uuid, probe.message.as_deref().unwrap_or_default()))
}

/// The condition Probed: its status, reason and message.
#[must_use]
pub fn condition(inventory: Option<&NodeInventory>, probes: &Probes) -> (bool, String, String) {
    let devices = inventory.map(|inventory| inventory.devices.as_slice()).unwrap_or_default();
    if devices.is_empty() {
        return (false, "NoDevices".to_owned(), "there is no device to probe".to_owned());
    }
    let known: Vec<_> = devices.iter().map(|d| (&d.identity, of(probes, &d.identity.uuid))).collect();
    let of_result = |result| known.iter().filter(move |(_, probe)| probe.result == result);
    let (failed, not_run) = (of_result(ProbeResult::Failed), of_result(ProbeResult::NotRun));
    let Some((id, probe)) = failed.clone().chain(not_run.clone()).next() else {
        let message = format!("{} GPUs measure as they say", devices.len());
        return (true, reasons::PASSED.to_owned(), message);
    };
    let message = format!(
        "of {} GPUs {} failed and {} were not probed: GPU {} {}: {}",
        devices.len(),
        failed.count(),
        not_run.count(),
        id.index,
        id.uuid,
        probe.message.as_deref().unwrap_or_default()
    );
    (false, probe.reason.clone(), message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::{DeviceIdentity, DeviceReading};

    fn inventory(count: u32) -> NodeInventory {
        let device = |index| {
            DeviceReading::of(DeviceIdentity {
                index,
                uuid: format!("GPU-{index}"),
                product_name: "NVIDIA L4".to_owned(),
                memory_bytes: 1 << 34,
                pci_bus_id: String::new(),
                minor: None,
            })
        };
        NodeInventory { devices: (0..count).map(device).collect(), ..NodeInventory::default() }
    }

    fn probes(list: &[(ProbeResult, &str)]) -> Probes {
        let probe = |(n, (result, reason)): (usize, &(ProbeResult, &str))| {
            (format!("GPU-{n}"), GpuProbe::without_figures(*result, reason, format!("text {n}")))
        };
        list.iter().enumerate().map(probe).collect()
    }

    #[test]
    fn the_worst_device_gives_the_reason() {
        use ProbeResult::{Failed, NotRun, Passed};
        let told = |list: &[(ProbeResult, &str)]| condition(Some(&inventory(2)), &probes(list));
        let all = told(&[(Passed, "Passed"), (Passed, "Passed")]);
        assert_eq!(all, (true, "Passed".to_owned(), "2 GPUs measure as they say".to_owned()));
        let (is_probed, reason, message) = told(&[(NotRun, "NoCudaDriver"), (Failed, "ClockLow")]);
        assert_eq!((is_probed, reason.as_str()), (false, "ClockLow"));
        assert_eq!(message, "of 2 GPUs 1 failed and 1 were not probed: GPU 1 GPU-1: text 1");
        assert_eq!(told(&[(Passed, "Passed"), (NotRun, "Busy")]).1, "Busy");
        assert_eq!(told(&[(Passed, "Passed")]).1, "Pending", "nothing is known of the second");
        assert_eq!(condition(None, &Probes::new()).1, "NoDevices");
    }

    #[test]
    fn only_devices_that_can_be_probed_are_waited_for() {
        use ProbeResult::{Failed, NotRun, Passed};
        let over = [(Passed, "Passed"), (Failed, "ClockLow"), (NotRun, "Busy"), (NotRun, "NoCudaDriver")];
        assert_eq!(waiting(&inventory(4), &probes(&over)), None);
        let first = waiting(&inventory(4), &probes(&over[..3])).expect("one waits");
        assert_eq!(first, "1 of 4 wait for their first probe: GPU 3 GPU-3: the probe is about to run");
    }
}
