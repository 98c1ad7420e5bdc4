//! What a node's GPUs are, in 32 bytes: a bid names them, and a change of them under an award can be shown. Pure.
//!
//! * Input: an inventory. Output: SHA-256 over the driver's version and, for each device in order of UUID, its UUID, product
//!   name, memory and what its NVLinks lead to.
//! * Invariants: while one device cannot be read there is none, for of that device nobody can say what it is now and what its
//!   NVLinks lead to; the order in which NVML counts devices, their places on the bus and everything that changes with load are no
//!   part of it; no two inventories that differ in a part have the same bytes under the hash.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use crate::inventory::{DeviceFault, NodeInventory};

/// Separates these hashes from all others.
const DOMAIN: &[u8] = b"VENDUE-V1-GPU-FINGERPRINT";

/// The fingerprint of a node's devices, in hexadecimal digits; `None` while a device is not known or cannot be read.
#[must_use]
pub fn of(inventory: &NodeInventory) -> Option<String> {
    let is_unread =
        |fault: &Option<DeviceFault>| matches!(fault, Some(DeviceFault::Lost | DeviceFault::Unreadable(_)));
    let any_unread = inventory.devices.iter().any(|device| is_unread(&device.fault));
    if inventory.devices.is_empty() || !inventory.unknown.is_empty() || any_unread {
        return None;
    }
    let uuids: BTreeMap<&str, &str> = inventory
        .devices
        .iter()
        .map(|d| (d.identity.pci_bus_id.as_str(), d.identity.uuid.as_str()))
        .collect();
    let mut devices: Vec<_> = inventory.devices.iter().collect();
    devices.sort_by(|a, b| a.identity.uuid.cmp(&b.identity.uuid));

    let mut hash = Sha256::new_with_prefix(DOMAIN);
    put(&mut hash, &inventory.driver_version);
    hash.update(length(devices.len()));
    for device in devices {
        let id = &device.identity;
        put(&mut hash, &id.uuid);
        put(&mut hash, &id.product_name);
        hash.update(id.memory_bytes.to_be_bytes());
        // Of a switch there is no UUID; what leads to one is told from what leads to a GPU.
        let ends = device.nvlink_peers.iter().map(|bus| uuids.get(bus.as_str()).copied().unwrap_or("switch"));
        let mut ends: Vec<&str> = ends.collect();
        ends.sort_unstable();
        hash.update(length(ends.len()));
        ends.into_iter().for_each(|end| put(&mut hash, end));
    }
    Some(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn put(hash: &mut Sha256, text: &str) {
    hash.update(length(text.len()));
    hash.update(text);
}

fn length(of: usize) -> [u8; 8] {
    (of as u64).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::{DeviceIdentity, DeviceReading, UnknownDevice};

    fn inventory() -> NodeInventory {
        let device = |n: u32, peers: &[&str]| {
            let identity = DeviceIdentity {
                index: n,
                uuid: format!("GPU-{n}"),
                product_name: "NVIDIA H100 80GB HBM3".to_owned(),
                memory_bytes: 80 << 30,
                pci_bus_id: format!("bus-{n}"),
                minor: Some(n),
            };
            let nvlink_peers = peers.iter().map(|p| (*p).to_owned()).collect();
            DeviceReading { nvlink_peers, ..DeviceReading::of(identity) }
        };
        NodeInventory {
            driver_version: "580.95.05".to_owned(),
            cuda_version: None,
            devices: vec![device(0, &["bus-1", "bus-1"]), device(1, &["bus-0", "bus-0"])],
            unknown: vec![],
        }
    }

    fn changed(change: impl FnOnce(&mut NodeInventory)) -> Option<String> {
        let mut inventory = inventory();
        change(&mut inventory);
        of(&inventory)
    }

    #[test]
    fn it_follows_what_the_devices_are() {
        let plain = of(&inventory());
        assert_eq!(plain.as_ref().map(String::len), Some(64));
        let others = [
            changed(|i| i.driver_version = "580.95.06".to_owned()),
            changed(|i| i.devices[0].identity.uuid = "GPU-9".to_owned()),
            changed(|i| i.devices[0].identity.product_name = "NVIDIA H200".to_owned()),
            changed(|i| i.devices[0].identity.memory_bytes -= 1),
            changed(|i| _ = i.devices[0].nvlink_peers.pop()),
            changed(|i| i.devices[0].nvlink_peers[0] = "bus-of-a-switch".to_owned()),
            changed(|i| _ = i.devices.pop()),
        ];
        for (at, other) in others.iter().enumerate() {
            assert!(other.is_some() && *other != plain, "change {at}");
            assert!(!others[..at].contains(other), "change {at} is like an earlier one");
        }
    }

    #[test]
    fn order_places_and_load_are_no_part_of_it() {
        let plain = of(&inventory());
        let renumber = |i: &mut NodeInventory| {
            i.devices.reverse();
            for (n, device) in (0..).zip(&mut i.devices) {
                device.identity.index = n;
                device.identity.minor = Some(n);
                device.identity.pci_bus_id = device.identity.pci_bus_id.replace("bus", "slot");
                device.nvlink_peers.iter_mut().for_each(|p| *p = p.replace("bus", "slot"));
            }
        };
        assert_eq!(changed(renumber), plain);
        assert_eq!(changed(|i| i.devices[0].sensors.gpu_utilization_percent = Some(50)), plain);
        assert_eq!(changed(|i| i.unknown = vec![UnknownDevice { index: 2, error: String::new() }]), None);
        assert_eq!(changed(|i| i.devices.clear()), None);
    }

    #[test]
    fn a_device_that_cannot_be_read_is_no_change() {
        for fault in [DeviceFault::Lost, DeviceFault::Unreadable("timeout".to_owned())] {
            let unread = |i: &mut NodeInventory| {
                // What is told of such a device: who it was, and no links.
                i.devices[1] = DeviceReading::of(i.devices[1].identity.clone());
                i.devices[1].fault = Some(fault.clone());
            };
            assert_eq!(changed(unread), None);
        }
        // A device that says of itself that it is damaged still says what it is.
        assert_eq!(changed(|i| i.devices[1].fault = Some(DeviceFault::RowRemapFailed)), of(&inventory()));
    }
}
