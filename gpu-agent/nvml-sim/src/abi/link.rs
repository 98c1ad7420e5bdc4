//! PCIe, NVLink, topology and NUMA.
//!
//! The simulated machine has two sockets; the first half of its devices hangs on socket 0, the rest on socket 1. Cards
//! with NVLink are joined by switches, so each reaches every other.

use std::ffi::{c_uint, c_ulong, c_ulonglong};

use super::session::{Snapshot, View, answer, answer_versioned, initialised, on_device, snapshot};
use super::{Handle, Outcome, code, exports, handle, put, put_list, struct_version, sys, text_array};
use crate::profile::NvLink;
use sys::{nvmlDevice_t, nvmlReturn_t};

/// CPUs of one socket of the simulated machine.
const CPUS_PER_NODE: usize = 64;

/// Bits of one element of a CPU or node set.
const WORD: usize = c_ulong::BITS as usize;

exports! {
    /// PCIe generation in use.
    fn nvmlDeviceGetCurrPcieLinkGeneration(device: nvmlDevice_t, generation: *mut c_uint) {
        answer(device, generation, |v| Ok(v.profile.pcie_generation))
    }

    /// Highest PCIe generation of card and slot.
    fn nvmlDeviceGetMaxPcieLinkGeneration(device: nvmlDevice_t, generation: *mut c_uint) {
        answer(device, generation, |v| Ok(v.profile.pcie_generation))
    }

    /// Highest PCIe generation of the card.
    fn nvmlDeviceGetGpuMaxPcieLinkGeneration(device: nvmlDevice_t, generation: *mut c_uint) {
        answer(device, generation, |v| Ok(v.profile.pcie_generation))
    }

    /// PCIe lanes in use.
    fn nvmlDeviceGetCurrPcieLinkWidth(device: nvmlDevice_t, width: *mut c_uint) {
        answer(device, width, |v| Ok(v.profile.pcie_width))
    }

    /// Highest number of PCIe lanes.
    fn nvmlDeviceGetMaxPcieLinkWidth(device: nvmlDevice_t, width: *mut c_uint) {
        answer(device, width, |v| Ok(v.profile.pcie_width))
    }

    /// PCIe packets sent again.
    fn nvmlDeviceGetPcieReplayCounter(device: nvmlDevice_t, count: *mut c_uint) { answer(device, count, |_| Ok(0)) }

    /// PCIe traffic, in kB/s: none is simulated.
    fn nvmlDeviceGetPcieThroughput(device: nvmlDevice_t, counter: sys::nvmlPcieUtilCounter_t, rate: *mut c_uint) {
        answer(device, rate, |_| {
            if counter < sys::nvmlPcieUtilCounter_enum_NVML_PCIE_UTIL_COUNT { Ok(0) } else { Err(code::INVALID_ARGUMENT) }
        })
    }

    /// PCIe speed in use, in MB/s.
    fn nvmlDeviceGetPcieSpeed(device: nvmlDevice_t, speed: *mut c_uint) {
        answer(device, speed, |v| Ok(pcie_speed(v.profile.pcie_generation)))
    }

    /// Highest PCIe speed, as one of `NVML_PCIE_LINK_MAX_SPEED_*`, which count up with the generation.
    fn nvmlDeviceGetPcieLinkMaxSpeed(device: nvmlDevice_t, speed: *mut c_uint) {
        answer(device, speed, |v| Ok(v.profile.pcie_generation))
    }

    /// Kind of bus: PCIe.
    fn nvmlDeviceGetBusType(device: nvmlDevice_t, kind: *mut sys::nvmlBusType_t) {
        answer(device, kind, |_| Ok(sys::NVML_BUS_TYPE_PCIE))
    }

    /// Interrupt line.
    fn nvmlDeviceGetIrqNum(device: nvmlDevice_t, irq: *mut c_uint) { answer(device, irq, |v| Ok(100 + v.device.index)) }

    /// Width of the memory bus, in bits.
    fn nvmlDeviceGetMemoryBusWidth(device: nvmlDevice_t, width: *mut c_uint) {
        answer(device, width, |v| Ok(v.profile.memory_bus_width))
    }

    /// NUMA node of the socket that the device hangs on.
    fn nvmlDeviceGetNumaNodeId(device: nvmlDevice_t, node: *mut c_uint) { answer(device, node, |v| Ok(numa_node(v))) }

    /// CPUs near the device, as a bit set.
    fn nvmlDeviceGetCpuAffinity(device: nvmlDevice_t, size: c_uint, set: *mut c_ulong) {
        affinity(device, size, set, |node| node * CPUS_PER_NODE..(node + 1) * CPUS_PER_NODE)
    }

    /// The same, within the NUMA node or the socket, which are one here.
    fn nvmlDeviceGetCpuAffinityWithinScope(
        device: nvmlDevice_t, size: c_uint, set: *mut c_ulong, scope: sys::nvmlAffinityScope_t,
    ) {
        scope_check(scope)?;
        affinity(device, size, set, |node| node * CPUS_PER_NODE..(node + 1) * CPUS_PER_NODE)
    }

    /// NUMA nodes near the device, as a bit set.
    fn nvmlDeviceGetMemoryAffinity(
        device: nvmlDevice_t, size: c_uint, set: *mut c_ulong, scope: sys::nvmlAffinityScope_t,
    ) {
        scope_check(scope)?;
        affinity(device, size, set, |node| node..node + 1)
    }

    /// Where the ways of two devices meet: at the host bridge of a socket, or only beyond it.
    fn nvmlDeviceGetTopologyCommonAncestor(
        one: nvmlDevice_t, two: nvmlDevice_t, level: *mut sys::nvmlGpuTopologyLevel_t,
    ) {
        pair(one, two, level, |a, b| {
            if a.device.index == b { return Ok(sys::nvmlGpuLevel_enum_NVML_TOPOLOGY_INTERNAL) }
            Ok(level_of(a, b))
        })
    }

    /// Visible devices whose way to this one meets it at a level.
    fn nvmlDeviceGetTopologyNearestGpus(
        device: nvmlDevice_t, level: sys::nvmlGpuTopologyLevel_t, count: *mut c_uint, out: *mut nvmlDevice_t,
    ) {
        on_device(device, |v| {
            let others = v.snapshot.visible.iter().filter(|i| **i != v.device.index);
            let near: Vec<_> = others.filter(|i| level_of(v, **i) == level).map(|i| handle(*i)).collect();
            put_list(count, out, &near)
        })
    }

    /// Devices near a CPU.
    fn nvmlSystemGetTopologyGpuSet(cpu: c_uint, count: *mut c_uint, out: *mut nvmlDevice_t) {
        let snapshot = snapshot()?;
        let node = usize::try_from(cpu).unwrap_or(usize::MAX) / CPUS_PER_NODE;
        let near = snapshot.visible.iter().filter(|i| usize::try_from(node_of(&snapshot, **i)) == Ok(node));
        put_list(count, out, &near.map(|i| handle(*i)).collect::<Vec<_>>())
    }

    /// Whether two devices can use each other's memory: by PCIe within a socket, by NVLink everywhere.
    fn nvmlDeviceGetP2PStatus(
        one: nvmlDevice_t, two: nvmlDevice_t, kind: sys::nvmlGpuP2PCapsIndex_t, status: *mut sys::nvmlGpuP2PStatus_t,
    ) {
        pair(one, two, status, |a, b| {
            let nvlink = a.profile.nvlink.is_some() && other_nvlink(a, b);
            let same_socket = node_of(a.snapshot, a.device.index) == node_of(a.snapshot, b);
            match kind {
                sys::nvmlGpuP2PCapsIndex_enum_NVML_P2P_CAPS_INDEX_NVLINK
                | sys::nvmlGpuP2PCapsIndex_enum_NVML_P2P_CAPS_INDEX_ATOMICS => Ok(p2p(nvlink)),
                k if k < sys::nvmlGpuP2PCapsIndex_enum_NVML_P2P_CAPS_INDEX_UNKNOWN => Ok(p2p(nvlink || same_socket)),
                _ => Err(code::INVALID_ARGUMENT),
            }
        })
    }

    /// Whether a link is up: all are.
    fn nvmlDeviceGetNvLinkState(device: nvmlDevice_t, link: c_uint, state: *mut sys::nvmlEnableState_t) {
        answer(device, state, |v| nvlink(v, link).map(|_| sys::nvmlEnableState_enum_NVML_FEATURE_ENABLED))
    }

    /// Version of a link.
    fn nvmlDeviceGetNvLinkVersion(device: nvmlDevice_t, link: c_uint, version: *mut c_uint) {
        answer(device, version, |v| nvlink(v, link).map(|l| l.version))
    }

    /// What a link can: all but the bridges of old.
    fn nvmlDeviceGetNvLinkCapability(
        device: nvmlDevice_t, link: c_uint, capability: sys::nvmlNvLinkCapability_t, out: *mut c_uint,
    ) {
        answer(device, out, |v| {
            nvlink(v, link)?;
            match capability {
                sys::nvmlNvLinkCapability_enum_NVML_NVLINK_CAP_SLI_BRIDGE => Ok(0),
                c if c < sys::nvmlNvLinkCapability_enum_NVML_NVLINK_CAP_COUNT => Ok(1),
                _ => Err(code::INVALID_ARGUMENT),
            }
        })
    }

    /// What a link ends at: a switch.
    fn nvmlDeviceGetNvLinkRemoteDeviceType(
        device: nvmlDevice_t, link: c_uint, kind: *mut sys::nvmlIntNvLinkDeviceType_t,
    ) {
        answer(device, kind, |v| {
            nvlink(v, link).map(|_| sys::nvmlIntNvLinkDeviceType_enum_NVML_NVLINK_DEVICE_TYPE_SWITCH)
        })
    }

    /// PCI address of the switch that a link ends at: links are spread over four.
    fn nvmlDeviceGetNvLinkRemotePciInfo_v2(device: nvmlDevice_t, link: c_uint, pci: *mut sys::nvmlPciInfo_t) {
        answer(device, pci, |v| {
            nvlink(v, link)?;
            let bus = 5 + link % 4;
            Ok(sys::nvmlPciInfo_t {
                busIdLegacy: text_array(&format!("0000:{bus:02X}:00.0")),
                domain: 0,
                bus,
                device: 0,
                pciDeviceId: 0,
                pciSubSystemId: 0,
                busId: text_array(&format!("00000000:{bus:02X}:00.0")),
            })
        })
    }

    /// Errors of a link: none are simulated.
    fn nvmlDeviceGetNvLinkErrorCounter(
        device: nvmlDevice_t, link: c_uint, counter: sys::nvmlNvLinkErrorCounter_t, out: *mut c_ulonglong,
    ) {
        answer(device, out, |v| {
            nvlink(v, link)?;
            if counter < sys::nvmlNvLinkErrorCounter_enum_NVML_NVLINK_ERROR_COUNT { Ok(0) } else { Err(code::INVALID_ARGUMENT) }
        })
    }

    /// The fabric of a machine with switches: registered, one clique. Without NVLink there is none.
    fn nvmlDeviceGetGpuFabricInfo(device: nvmlDevice_t, out: *mut sys::nvmlGpuFabricInfo_t) {
        answer(device, out, |v| {
            Ok(sys::nvmlGpuFabricInfo_t { clusterUuid: [0; 16], status: code::SUCCESS, cliqueId: 0, state: fabric_state(v) })
        })
    }

    /// The same, with its health; the caller's version says which layout.
    fn nvmlDeviceGetGpuFabricInfoV(device: nvmlDevice_t, out: *mut sys::nvmlGpuFabricInfoV_t) {
        initialised()?;
        let (v2, v3) = (struct_version::<sys::nvmlGpuFabricInfo_v2_t>(2), struct_version::<sys::nvmlGpuFabricInfo_v3_t>(3));
        if super::check_version(out.cast_const().cast(), v3).is_ok() {
            return answer(device, out, |v| Ok(sys::nvmlGpuFabricInfo_v3_t {
                version: v3, clusterUuid: [0; 16], status: code::SUCCESS, cliqueId: 0, state: fabric_state(v),
                healthMask: 0, healthSummary: 0,
            }));
        }
        answer_versioned(device, out.cast::<sys::nvmlGpuFabricInfo_v2_t>(), v2, |v| Ok(sys::nvmlGpuFabricInfo_v2_t {
            version: v2, clusterUuid: [0; 16], status: code::SUCCESS, cliqueId: 0, state: fabric_state(v), healthMask: 0,
        }))
    }

    /// Place in a rack: the module's number; no rack is simulated.
    fn nvmlDeviceGetPlatformInfo(device: nvmlDevice_t, out: *mut sys::nvmlPlatformInfo_t) {
        let version = struct_version::<sys::nvmlPlatformInfo_v2_t>(2);
        answer_versioned(device, out, version, |v| Ok(sys::nvmlPlatformInfo_v2_t {
            version,
            ibGuid: [0; 16],
            chassisSerialNumber: [0; 16],
            slotNumber: 0,
            trayIndex: 0,
            hostId: 0,
            peerType: 0,
            moduleId: u8::try_from(v.device.index + 1).unwrap_or(u8::MAX),
        }))
    }

    /// Whether a CPU is joined chip to chip: no.
    fn nvmlDeviceGetC2cModeInfoV(device: nvmlDevice_t, out: *mut sys::nvmlC2cModeInfo_v1_t) {
        answer(device, out, |_| Ok(sys::nvmlC2cModeInfo_v1_t { isC2cEnabled: 0 }))
    }
}

/// Per lane and direction, in MB/s, as NVML gives it.
fn pcie_speed(generation: u32) -> c_uint {
    match generation {
        1 => 2500,
        2 => 5000,
        n => 8000 << n.saturating_sub(3).min(4),
    }
}

fn nvlink<'a>(view: &View<'a>, link: c_uint) -> Result<&'a NvLink, nvmlReturn_t> {
    let nvlink = view.profile.nvlink.as_ref().ok_or(code::NOT_SUPPORTED)?;
    if link < nvlink.links { Ok(nvlink) } else { Err(code::INVALID_ARGUMENT) }
}

fn other_nvlink(view: &View<'_>, other: u32) -> bool {
    let other = view.snapshot.machine.state().device(other);
    other.is_some_and(|(_, profile)| profile.nvlink.is_some())
}

fn p2p(works: bool) -> sys::nvmlGpuP2PStatus_t {
    if works {
        sys::nvmlGpuP2PStatus_enum_NVML_P2P_STATUS_OK
    } else {
        sys::nvmlGpuP2PStatus_enum_NVML_P2P_STATUS_NOT_SUPPORTED
    }
}

/// Registered, on a card with NVLink.
fn fabric_state(view: &View<'_>) -> u8 {
    let state = if view.profile.nvlink.is_some() {
        sys::NVML_GPU_FABRIC_STATE_COMPLETED
    } else {
        sys::NVML_GPU_FABRIC_STATE_NOT_SUPPORTED
    };
    u8::try_from(state).unwrap_or_default()
}

fn node_of(snapshot: &Snapshot, device: u32) -> c_uint {
    let count = snapshot.machine.state().devices.len();
    c_uint::from(usize::try_from(device).is_ok_and(|d| d >= count.div_ceil(2)))
}

fn numa_node(view: &View<'_>) -> c_uint {
    node_of(view.snapshot, view.device.index)
}

fn level_of(view: &View<'_>, other: u32) -> sys::nvmlGpuTopologyLevel_t {
    if numa_node(view) == node_of(view.snapshot, other) {
        sys::nvmlGpuLevel_enum_NVML_TOPOLOGY_NODE
    } else {
        sys::nvmlGpuLevel_enum_NVML_TOPOLOGY_SYSTEM
    }
}

/// Answers about two devices; both handles must be good.
fn pair<T>(
    one: nvmlDevice_t,
    two: nvmlDevice_t,
    out: *mut T,
    body: impl FnOnce(&View<'_>, u32) -> Result<T, nvmlReturn_t>,
) -> Outcome {
    initialised()?;
    let other = Handle::of(two)?.device;
    // SAFETY: `answer` checks for NULL; the caller promises room for one value.
    unsafe {
        answer(one, out, |v| {
            if v.snapshot.visible.contains(&other) { body(v, other) } else { Err(code::INVALID_ARGUMENT) }
        })
    }
}

fn scope_check(scope: sys::nvmlAffinityScope_t) -> Outcome {
    initialised()?;
    if scope <= sys::NVML_AFFINITY_SCOPE_SOCKET { Ok(()) } else { Err(code::INVALID_ARGUMENT) }
}

/// Fills a bit set of `size` words.
fn affinity(
    device: nvmlDevice_t,
    size: c_uint,
    set: *mut c_ulong,
    near: impl Fn(usize) -> std::ops::Range<usize>,
) -> Outcome {
    initialised()?;
    if set.is_null() || size == 0 {
        return Err(code::INVALID_ARGUMENT);
    }
    on_device(device, |v| {
        let near = near(usize::try_from(numa_node(v)).unwrap_or_default());
        for word in 0..usize::try_from(size).unwrap_or_default() {
            let bits = (0..WORD).filter(|bit| near.contains(&(word * WORD + bit)));
            let value = bits.fold(0, |set, bit| set | (1 as c_ulong) << bit);
            // SAFETY: not NULL; the caller promises `size` words.
            unsafe { put(set.add(word), value)? };
        }
        Ok(())
    })
}
