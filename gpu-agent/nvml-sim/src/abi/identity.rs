//! Enumeration, and what a device is: name, UUID, PCI address, architecture.

use std::ffi::{c_char, c_int, c_uint};

use super::session::{
    Snapshot, View, answer, answer_any, answer_versioned, initialised, on_any, on_device, snapshot,
};
use super::{
    HANDLE_TAG, Handle, Outcome, code, exports, handle, put, put_text, struct_version, sys, text_argument,
    text_array,
};
use crate::machine::Moment;
use crate::profile::Architecture;
use crate::state::DeviceHealth;
use sys::{nvmlDevice_t, nvmlReturn_t};

/// PCI class of a display controller.
const PCI_CLASS_DISPLAY: c_uint = 3;

/// PCI subclass of a 3D controller, which cards without an output are.
const PCI_SUBCLASS_3D: c_uint = 2;

/// `NVML_UUID_TYPE_ASCII`.
const UUID_ASCII: c_uint = 1;

/// `NVML_UUID_TYPE_BINARY`.
const UUID_BINARY: c_uint = 2;

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
        initialised()?;
        by_uuid(text_argument(uuid)?, device)
    }

    /// Handle by UUID, as text or as 16 bytes.
    fn nvmlDeviceGetHandleByUUIDV(uuid: *const sys::nvmlUUID_t, device: *mut nvmlDevice_t) {
        initialised()?;
        super::check_version(uuid.cast(), struct_version::<sys::nvmlUUID_v1_t>(1))?;
        match (*uuid).type_ {
            UUID_ASCII => by_uuid(text_argument((&raw const (*uuid).value.str_).cast())?, device),
            UUID_BINARY => {
                let bytes = (*uuid).value.bytes;
                find(device, |m| binary_uuid(&m.condition().uuid) == Some(bytes))
            }
            _ => Err(code::INVALID_ARGUMENT),
        }
    }

    /// Handle by PCI address, in either notation and any case.
    fn nvmlDeviceGetHandleByPciBusId_v2(id: *const c_char, device: *mut nvmlDevice_t) {
        initialised()?;
        let id = text_argument(id)?;
        find(device, |m| is_pci_id(m, id))
    }

    /// Older name.
    fn nvmlDeviceGetHandleByPciBusId(id: *const c_char, device: *mut nvmlDevice_t) {
        initialised()?;
        let id = text_argument(id)?;
        find(device, |m| is_pci_id(m, id))
    }

    /// Index that this process sees; of a MIG device, its number within the device.
    fn nvmlDeviceGetIndex(device: nvmlDevice_t, index: *mut c_uint) {
        answer_any(device, index, |v| {
            let Some((own, _)) = v.instance else { return Ok(v.index) };
            let position = v.condition().mig.instances.iter().position(|i| i == own);
            position.and_then(|p| c_uint::try_from(p).ok()).ok_or(code::NOT_FOUND)
        })
    }

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
        on_any(device, |v| match v.instance {
            None => put_text(name, length, &v.profile.product_name),
            Some((_, mig)) => put_text(name, length, &format!("{} MIG {}", v.profile.product_name, mig.name)),
        })
    }

    /// UUID.
    fn nvmlDeviceGetUUID(device: nvmlDevice_t, uuid: *mut c_char, length: c_uint) {
        on_any(device, |v| match v.instance {
            None => put_text(uuid, length, &v.condition().uuid),
            Some((instance, _)) => put_text(uuid, length, &instance.uuid),
        })
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

    /// Brand: data-centre cards since Ampere say NVIDIA, older ones Tesla.
    fn nvmlDeviceGetBrand(device: nvmlDevice_t, brand: *mut sys::nvmlBrandType_t) {
        answer_any(device, brand, |v| match v.profile.architecture {
            Architecture::Turing => Ok(sys::nvmlBrandType_enum_NVML_BRAND_TESLA),
            _ => Ok(sys::nvmlBrandType_enum_NVML_BRAND_NVIDIA),
        })
    }

    /// Version of one part of the card's information ROM.
    fn nvmlDeviceGetInforomVersion(
        device: nvmlDevice_t, object: sys::nvmlInforomObject_t, version: *mut c_char, length: c_uint,
    ) {
        initialised()?;
        let text = match object {
            sys::nvmlInforomObject_enum_NVML_INFOROM_OEM => "2.1",
            sys::nvmlInforomObject_enum_NVML_INFOROM_ECC => "7.16",
            sys::nvmlInforomObject_enum_NVML_INFOROM_POWER => "1.0",
            o if o < sys::nvmlInforomObject_enum_NVML_INFOROM_COUNT => return Err(code::NOT_SUPPORTED),
            _ => return Err(code::INVALID_ARGUMENT),
        };
        on_device(device, |_| put_text(version, length, text))
    }

    /// Version of the whole information ROM.
    fn nvmlDeviceGetInforomImageVersion(device: nvmlDevice_t, version: *mut c_char, length: c_uint) {
        on_device(device, |v| put_text(version, length, &format!("{}.01", v.profile.board_part_number)))
    }

    /// Checksum of the information ROM.
    fn nvmlDeviceGetInforomConfigurationChecksum(device: nvmlDevice_t, checksum: *mut c_uint) {
        answer(device, checksum, |v| Ok(v.profile.pci_device_id.0.rotate_left(7) ^ v.profile.cores))
    }

    /// Whether the information ROM is intact: yes.
    fn nvmlDeviceValidateInforom(device: nvmlDevice_t) { on_device(device, |_| Ok(())) }

    /// Version of the firmware of the card's own driver processor, into a buffer of 64 bytes by contract.
    fn nvmlDeviceGetGspFirmwareVersion(device: nvmlDevice_t, version: *mut c_char) {
        on_device(device, |v| put_text(version, 64, &v.snapshot.machine.state().driver.version))
    }

    /// Whether that processor is used: yes, by default.
    fn nvmlDeviceGetGspFirmwareMode(device: nvmlDevice_t, enabled: *mut c_uint, default: *mut c_uint) {
        initialised()?;
        if default.is_null() {
            return Err(code::INVALID_ARGUMENT);
        }
        answer(device, enabled, |_| {
            put(default, 1)?;
            Ok(1)
        })
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
        answer(device, cores, |v| v.without_mig().map(|()| v.profile.cores))
    }

    /// PCI address and ids.
    fn nvmlDeviceGetPciInfo_v3(device: nvmlDevice_t, pci: *mut sys::nvmlPciInfo_t) { pci_info(device, pci) }

    /// PCI address, ids and class.
    fn nvmlDeviceGetPciInfoExt(device: nvmlDevice_t, pci: *mut sys::nvmlPciInfoExt_t) {
        let version = struct_version::<sys::nvmlPciInfoExt_v1_t>(1);
        answer_versioned(device, pci, version, |v| {
            let address = v.device.pci;
            Ok(sys::nvmlPciInfoExt_v1_t {
                version,
                domain: address.domain,
                bus: address.bus,
                device: address.device,
                pciDeviceId: v.profile.pci_device_id.0,
                pciSubSystemId: v.profile.pci_subsystem_id.0,
                baseClass: PCI_CLASS_DISPLAY,
                subClass: PCI_SUBCLASS_3D,
                busId: text_array(&address.long()),
            })
        })
    }

    /// Older name, same layout.
    fn nvmlDeviceGetPciInfo_v2(device: nvmlDevice_t, pci: *mut sys::nvmlPciInfo_t) { pci_info(device, pci) }

    /// Board id: one board per card.
    fn nvmlDeviceGetBoardId(device: nvmlDevice_t, id: *mut c_uint) { answer(device, id, |v| Ok(v.device.pci.bus << 8)) }

    /// Whether the board holds several GPUs: no.
    fn nvmlDeviceGetMultiGpuBoard(device: nvmlDevice_t, multi: *mut c_uint) { answer(device, multi, |_| Ok(0)) }

    /// Whether two handles sit on one board: only when they are the same device.
    fn nvmlDeviceOnSameBoard(one: nvmlDevice_t, two: nvmlDevice_t, same: *mut c_int) {
        initialised()?;
        let other = Handle::of(two)?.device;
        answer(one, same, |v| Ok(c_int::from(v.device.index == other)))
    }
}

fn by_index(index: c_uint, out: *mut nvmlDevice_t) -> Outcome {
    let visible = snapshot()?.visible;
    let wanted = usize::try_from(index).ok().and_then(|i| visible.get(i)).ok_or(code::INVALID_ARGUMENT)?;
    find(out, |m| m.device.index == *wanted)
}

/// UUIDs name whole devices and MIG devices. Of two devices with one UUID the first is found.
fn by_uuid(uuid: &str, out: *mut nvmlDevice_t) -> Outcome {
    if out.is_null() {
        return Err(code::INVALID_ARGUMENT);
    }
    let snapshot = snapshot()?;
    for moment in visible(&snapshot) {
        let instance = moment.condition().mig.instances.iter().find(|i| i.uuid == uuid);
        if let Some(instance) = instance {
            let handle = Handle { device: moment.device.index, instance: Some(instance.gpu_instance_id) };
            // SAFETY: checked for NULL by `put`; the caller promises room for one handle.
            return unsafe { put(out, handle.pointer(HANDLE_TAG)) };
        }
    }
    find(out, |m| &*m.condition().uuid == uuid)
}

/// The 16 bytes that a UUID's digits stand for.
fn binary_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.strip_prefix("GPU-")?.chars().filter(|c| *c != '-').collect();
    u128::from_str_radix(&digits, 16).ok().map(u128::to_be_bytes)
}

fn visible(snapshot: &Snapshot) -> impl Iterator<Item = Moment<'_>> {
    snapshot.visible.iter().filter_map(|i| snapshot.machine.device(*i, snapshot.now_ns))
}

/// Handle of the visible device that `matches`.
pub(super) fn find(out: *mut nvmlDevice_t, matches: impl Fn(&Moment<'_>) -> bool) -> Outcome {
    if out.is_null() {
        return Err(code::INVALID_ARGUMENT);
    }
    let snapshot = snapshot()?;
    let found = visible(&snapshot).find(|m| matches(m)).ok_or(code::NOT_FOUND)?;
    if found.condition().health == DeviceHealth::Lost {
        return Err(code::GPU_IS_LOST);
    }
    // SAFETY: checked for NULL by `put`; the caller promises room for one handle.
    unsafe { put(out, handle(found.device.index)) }
}

fn is_pci_id(moment: &Moment<'_>, id: &str) -> bool {
    let pci = moment.device.pci;
    id.eq_ignore_ascii_case(&pci.long()) || id.eq_ignore_ascii_case(&pci.legacy())
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
    let read = |view: &View<'_>| -> Result<sys::nvmlPciInfo_t, nvmlReturn_t> {
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
