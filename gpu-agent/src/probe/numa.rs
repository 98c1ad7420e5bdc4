//! The NUMA node that a PCI device is near to, as the kernel says it.
//!
//! * Input: the device's PCI address as NVML writes it. Output: the node, or that there is none.
//! * Invariant: what the kernel does not tell (a machine with one node, another file system) is left out, never guessed.
//!
//! NVML's own number is another one: that of the memory of a GPU which is itself a NUMA node (Grace Hopper).

use std::path::{Path, PathBuf};

/// Where the kernel lists PCI devices.
const SYSFS: &str = "/sys/bus/pci/devices";

/// PCI devices as the kernel lists them.
#[derive(Clone, Debug)]
pub struct PciDevices(PathBuf);

impl Default for PciDevices {
    fn default() -> Self {
        Self(SYSFS.into())
    }
}

/// What the kernel says of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Near {
    /// It is near to this node.
    Node(u32),
    /// It is as near to one as to another.
    None,
    /// It does not list the device, or not the node.
    Unknown,
}

impl PciDevices {
    /// Devices that are listed in this folder.
    #[must_use]
    pub fn at(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    /// The node of the device with this address, `00000000:3B:00.0`.
    pub(super) fn near(&self, pci_bus_id: &str) -> Near {
        let text = address(pci_bus_id)
            .and_then(|address| std::fs::read_to_string(self.0.join(address).join("numa_node")).ok());
        match text.as_deref().map(str::trim).map(str::parse::<i64>) {
            Some(Ok(-1)) => Near::None,
            Some(Ok(node)) => u32::try_from(node).map_or(Near::Unknown, Near::Node),
            Some(Err(_)) | None => Near::Unknown,
        }
    }
}

/// The kernel's form of an address: lower case, a domain of four digits or as many as it needs. `None` for what is no
/// address, which must not become a path.
fn address(nvml: &str) -> Option<String> {
    let mut parts = nvml.split(':');
    let (domain, bus, rest) = (parts.next()?, parts.next()?, parts.next()?);
    let (device, function) = rest.split_once('.')?;
    let hex = |text: &str| u32::from_str_radix(text, 16).ok();
    let (domain, bus, device, function) = (hex(domain)?, hex(bus)?, hex(device)?, hex(function)?);
    parts.next().is_none().then(|| format!("{domain:04x}:{bus:02x}:{device:02x}.{function:x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_word_is_found_under_its_own_form_of_the_address() {
        let dir = tempfile::tempdir().expect("dir");
        let says = |address: &str, text: &str| {
            std::fs::create_dir(dir.path().join(address)).expect("device");
            std::fs::write(dir.path().join(address).join("numa_node"), text).expect("write");
        };
        says("0000:3b:00.0", "1\n");
        says("0000:d8:00.0", "-1\n");
        says("10000:01:00.0", "7");
        says("0000:af:00.0", "-2\n");
        says("0000:b0:00.0", "");
        let devices = PciDevices::at(dir.path());
        for (nvml, near) in [
            ("00000000:3B:00.0", Near::Node(1)),
            ("0000:3b:00.0", Near::Node(1)),
            ("00000000:D8:00.0", Near::None),
            ("00010000:01:00.0", Near::Node(7)),
            ("00000000:AF:00.0", Near::Unknown),
            ("00000000:B0:00.0", Near::Unknown),
            ("00000000:3C:00.0", Near::Unknown),
            ("../3b:00:0.0", Near::Unknown),
            ("", Near::Unknown),
        ] {
            assert_eq!(devices.near(nvml), near, "{nvml}");
        }
    }
}
