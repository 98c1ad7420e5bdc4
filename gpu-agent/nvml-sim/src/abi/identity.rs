//! Enumeration, and what a device is: name, UUID, PCI address, architecture.

use std::ffi::{c_char, c_int, c_uint};

use super::session::{answer, on_device, snapshot};
use super::{Outcome, code, exports, handle, handle_index, put, put_text, sys, text_argument, text_array};
use crate::profile::Architecture;
use crate::state::{Device, DeviceHealth};
use sys::{nvmlDevice_t, nvmlReturn_t};

exports! {
    /// Number of visible devices.
    fn nvmlDeviceGetCount_v2(count: *mut c_uint) {
        put(count, c_uint::try_from(snapshot()?.visible.len()).map_err(|_| code::UNKNOWN)?)
    }

    /// Older name.
    fn nvmlDeviceGetCount(count: *mut c_uint) {
        put(count, c_uint::try_from(snapshot()?.visible.len()).map_err(|_| code::UNKNOWN)?)
    }

    /// Handle by the index that this process sees.
    fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, device: *mut nvmlDevice_t) { by_index(index, device) }

    /// Older name.
    fn nvmlDeviceGetHandleByIndex(index: c_uint, device: *mut nvmlDevice_t) { by_index(index, device) }

    /// Handle by UUID.
    fn nvmlDeviceGetHandleByUUID(uuid: *const c_char, device: *mut nvmlDevice_t) {
        let uuid = text_argument(uuid)?;
        find(device, |d| d.uuid == uuid)
    }

    /// Handle by PCI address, in either notation and any case.
    fn nvmlDeviceGetHandleByPciBusId_v2(id: *const c_char, device: *mut nvmlDevice_t) {
        let id = text_argument(id)?;
        find(device, |d| is_pci_id(d, id))
    }

    /// Older name.
    fn nvmlDeviceGetHandleByPciBusId(id: *const c_char, device: *mut nvmlDevice_t) {
        let id = text_argument(id)?;
        find(device, |d| is_pci_id(d, id))
    }

    /// Index that this process sees.
    fn nvmlDeviceGetIndex(device: nvmlDevice_t, index: *mut c_uint) { answer(device, index, |v| Ok(v.index)) }

    /// Number of the device file, which is the position on the bus.
    fn nvmlDeviceGetMinorNumber(device: nvmlDevice_t, minor: *mut c_uint) {
        answer(device, minor, |v| Ok(v.device.index))
    }

    /// Position in the machine's modules.
    fn nvmlDeviceGetModuleId(device: nvmlDevice_t, id: *mut c_uint) {
        answer(device, id, |v| Ok(v.device.index + 1))
    }

    /// Product name.
    fn nvmlDeviceGetName(device: nvmlDevice_t, name: *mut c_char, length: c_uint) {
        on_device(device, |v| put_text(name, length, &v.profile.product_name))
    }

    /// UUID.
    fn nvmlDeviceGetUUID(device: nvmlDevice_t, uuid: *mut c_char, length: c_uint) {
        on_device(device, |v| put_text(uuid, length, &v.device.uuid))
    }

    /// Serial number.
    fn nvmlDeviceGetSerial(device: nvmlDevice_t, serial: *mut c_char, length: c_uint) {
        on_device(device, |v| put_text(serial, length, &v.device.serial))
    }

    /// Part number of the board.
    fn nvmlDeviceGetBoardPartNumber(device: nvmlDevice_t, number: *mut c_char, length: c_uint) {
        on_device(device, |v| put_text(number, length, &v.profile.board_part_number))
    }

    /// Version of the card's firmware.
    fn nvmlDeviceGetVbiosVersion(device: nvmlDevice_t, version: *mut c_char, length: c_uint) {
        on_device(device, |v| put_text(version, length, &v.profile.vbios_version))
    }

    /// Brand: data-centre cards all say NVIDIA.
    fn nvmlDeviceGetBrand(device: nvmlDevice_t, brand: *mut sys::nvmlBrandType_t) {
        answer(device, brand, |_| Ok(sys::nvmlBrandType_enum_NVML_BRAND_NVIDIA))
    }

    /// Architecture.
    fn nvmlDeviceGetArchitecture(device: nvmlDevice_t, architecture: *mut sys::nvmlDeviceArchitecture_t) {
        answer(device, architecture, |v| Ok(architecture_code(v.profile.architecture)))
    }

    /// CUDA compute capability.
    fn nvmlDeviceGetCudaComputeCapability(device: nvmlDevice_t, major: *mut c_int, minor: *mut c_int) {
        if minor.is_null() {
            return Err(code::INVALID_ARGUMENT);
        }
        answer(device, major, |v| {
            put(minor, v.profile.compute_capability[1])?;
            Ok(v.profile.compute_capability[0])
        })
    }

    /// Number of CUDA cores.
    fn nvmlDeviceGetNumGpuCores(device: nvmlDevice_t, cores: *mut c_uint) {
        answer(device, cores, |v| Ok(v.profile.cores))
    }

    /// PCI address and ids.
    fn nvmlDeviceGetPciInfo_v3(device: nvmlDevice_t, pci: *mut sys::nvmlPciInfo_t) { pci_info(device, pci) }

    /// Older name, same layout.
    fn nvmlDeviceGetPciInfo_v2(device: nvmlDevice_t, pci: *mut sys::nvmlPciInfo_t) { pci_info(device, pci) }

    /// Board id: one board per card.
    fn nvmlDeviceGetBoardId(device: nvmlDevice_t, id: *mut c_uint) { answer(device, id, |v| Ok(v.device.pci.bus << 8)) }

    /// Whether the board holds several GPUs: no.
    fn nvmlDeviceGetMultiGpuBoard(device: nvmlDevice_t, multi: *mut c_uint) { answer(device, multi, |_| Ok(0)) }

    /// Whether two handles sit on one board: only when they are the same device.
    fn nvmlDeviceOnSameBoard(one: nvmlDevice_t, two: nvmlDevice_t, same: *mut c_int) {
        let other = handle_index(two)?;
        answer(one, same, |v| Ok(c_int::from(v.device.index == other)))
    }
}

fn by_index(index: c_uint, out: *mut nvmlDevice_t) -> Outcome {
    let visible = snapshot()?.visible;
    let wanted = usize::try_from(index).ok().and_then(|i| visible.get(i)).ok_or(code::INVALID_ARGUMENT)?;
    find(out, |d| d.index == *wanted)
}

/// Handle of the visible device that `matches`.
pub(super) fn find(out: *mut nvmlDevice_t, matches: impl Fn(&Device) -> bool) -> Outcome {
    let snapshot = snapshot()?;
    let mut visible = snapshot.visible.iter().filter_map(|i| snapshot.state.device(*i));
    let (device, _) = visible.find(|(d, _)| matches(d)).ok_or(code::NOT_FOUND)?;
    if device.health == DeviceHealth::Lost {
        return Err(code::GPU_IS_LOST);
    }
    // SAFETY: checked for NULL by `put`; the caller promises room for one handle.
    unsafe { put(out, handle(device.index)) }
}

fn is_pci_id(device: &Device, id: &str) -> bool {
    id.eq_ignore_ascii_case(&device.pci.long()) || id.eq_ignore_ascii_case(&device.pci.legacy())
}

fn architecture_code(architecture: Architecture) -> sys::nvmlDeviceArchitecture_t {
    match architecture {
        Architecture::Turing => sys::NVML_DEVICE_ARCH_TURING,
        Architecture::Ampere => sys::NVML_DEVICE_ARCH_AMPERE,
        Architecture::Ada => sys::NVML_DEVICE_ARCH_ADA,
        Architecture::Hopper => sys::NVML_DEVICE_ARCH_HOPPER,
        Architecture::Blackwell => sys::NVML_DEVICE_ARCH_BLACKWELL,
    }
}

fn pci_info(device: nvmlDevice_t, out: *mut sys::nvmlPciInfo_t) -> Outcome {
    let read = |view: &super::session::View<'_>| -> Result<sys::nvmlPciInfo_t, nvmlReturn_t> {
        let pci = view.device.pci;
        Ok(sys::nvmlPciInfo_t {
            busIdLegacy: text_array(&pci.legacy()),
            domain: pci.domain,
            bus: pci.bus,
            device: pci.device,
            pciDeviceId: view.profile.pci_device_id.0,
            pciSubSystemId: view.profile.pci_subsystem_id.0,
            busId: text_array(&pci.long()),
        })
    };
    // SAFETY: `answer` checks for NULL; the caller promises room for one struct.
    unsafe { answer(device, out, read) }
}
