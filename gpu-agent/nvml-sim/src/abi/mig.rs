//! MIG: mode, GPU instances, compute instances and MIG devices.
//!
//! Every GPU instance holds one compute instance that fills it, with id 0; the two make one MIG device. Instances are
//! made by the state file or its script, not by calls: those need rights that a reader lacks.

use std::ffi::c_uint;

use super::session::{View, answer, answer_any, initialised, on_any, on_device};
use super::{
    HANDLE_TAG, Handle, Outcome, code, exports, handle, put, put_list, struct_version, sys, text_array,
};
use crate::profile::MigProfile;
use crate::state::MigInstance;
use sys::{nvmlComputeInstance_t, nvmlDevice_t, nvmlGpuInstance_t, nvmlReturn_t};

/// Marks handles of GPU instances.
const GPU_INSTANCE_TAG: usize = 0x5644_4749 << 16;

/// Marks handles of compute instances.
const COMPUTE_INSTANCE_TAG: usize = 0x5644_4349 << 16;

/// Highest number of MIG devices on any card.
const MAX_MIG_DEVICES: c_uint = 7;

exports! {
    /// Whether the card is split into instances; not every card can be.
    fn nvmlDeviceGetMigMode(device: nvmlDevice_t, current: *mut c_uint, pending: *mut c_uint) {
        initialised()?;
        if pending.is_null() {
            return Err(code::INVALID_ARGUMENT);
        }
        answer(device, current, |v| {
            capable(v)?;
            let on = v.condition().mig.enabled;
            let mode = if on { sys::NVML_DEVICE_MIG_ENABLE } else { sys::NVML_DEVICE_MIG_DISABLE };
            put(pending, mode)?;
            Ok(mode)
        })
    }

    /// Sets the mode: only an administrator may.
    fn nvmlDeviceSetMigMode(device: nvmlDevice_t, _mode: c_uint, status: *mut nvmlReturn_t) {
        answer(device, status, |_| Err(code::NO_PERMISSION))
    }

    /// Highest number of MIG devices; none while the mode is off.
    fn nvmlDeviceGetMaxMigDeviceCount(device: nvmlDevice_t, count: *mut c_uint) {
        answer(device, count, |v| Ok(if v.condition().mig.enabled { MAX_MIG_DEVICES } else { 0 }))
    }

    /// MIG devices by number.
    fn nvmlDeviceGetMigDeviceHandleByIndex(device: nvmlDevice_t, index: c_uint, out: *mut nvmlDevice_t) {
        answer(device, out, |v| {
            capable(v)?;
            let instances = &v.condition().mig.instances;
            let instance = usize::try_from(index).ok().and_then(|i| instances.get(i)).ok_or(code::NOT_FOUND)?;
            Ok(instance_handle(v, instance).pointer(HANDLE_TAG))
        })
    }

    /// The device that a MIG device is a part of.
    fn nvmlDeviceGetDeviceHandleFromMigDeviceHandle(mig: nvmlDevice_t, out: *mut nvmlDevice_t) {
        answer_any(mig, out, |v| match v.instance {
            Some(_) => Ok(handle(v.device.index)),
            None => Err(code::INVALID_ARGUMENT),
        })
    }

    /// Whether a handle is a MIG device.
    fn nvmlDeviceIsMigDeviceHandle(device: nvmlDevice_t, is_mig: *mut c_uint) {
        answer_any(device, is_mig, |v| Ok(c_uint::from(v.instance.is_some())))
    }

    /// GPU instance of a MIG device.
    fn nvmlDeviceGetGpuInstanceId(device: nvmlDevice_t, id: *mut c_uint) {
        answer_any(device, id, |v| v.instance.map(|(i, _)| i.gpu_instance_id).ok_or(code::NOT_FOUND))
    }

    /// Compute instance of a MIG device.
    fn nvmlDeviceGetComputeInstanceId(device: nvmlDevice_t, id: *mut c_uint) {
        answer_any(device, id, |v| v.instance.map(|_| 0).ok_or(code::NOT_FOUND))
    }

    /// What a MIG device has.
    fn nvmlDeviceGetAttributes_v2(device: nvmlDevice_t, out: *mut sys::nvmlDeviceAttributes_t) {
        attributes(device, out)
    }

    /// Older name, same layout.
    fn nvmlDeviceGetAttributes(device: nvmlDevice_t, out: *mut sys::nvmlDeviceAttributes_t) { attributes(device, out) }

    /// A way to cut GPU instances, by number of the constant.
    fn nvmlDeviceGetGpuInstanceProfileInfo(
        device: nvmlDevice_t, profile: c_uint, out: *mut sys::nvmlGpuInstanceProfileInfo_t,
    ) {
        answer(device, out, |v| gpu_profile(v, profile).map(|m| sys::nvmlGpuInstanceProfileInfo_t {
            id: m.profile_id,
            isP2pSupported: 0,
            sliceCount: m.slices,
            instanceCount: m.max_instances,
            multiprocessorCount: m.multiprocessors,
            copyEngineCount: m.copy_engines,
            decoderCount: m.decoders,
            encoderCount: 0,
            jpegCount: m.jpeg_engines,
            ofaCount: m.ofa_engines,
            memorySizeMB: m.memory_mib,
        }))
    }

    /// The same with its name; the caller's version says which layout.
    fn nvmlDeviceGetGpuInstanceProfileInfoV(
        device: nvmlDevice_t, profile: c_uint, out: *mut sys::nvmlGpuInstanceProfileInfo_v2_t,
    ) {
        initialised()?;
        let v3 = struct_version::<sys::nvmlGpuInstanceProfileInfo_v3_t>(3);
        if super::check_version(out.cast_const().cast(), v3).is_ok() {
            let out = out.cast::<sys::nvmlGpuInstanceProfileInfo_v3_t>();
            return answer(device, out, |v| gpu_profile(v, profile).map(|m| profile_v3(m, v3)));
        }
        let v2 = struct_version::<sys::nvmlGpuInstanceProfileInfo_v2_t>(2);
        super::check_version(out.cast_const().cast(), v2)?;
        answer(device, out, |v| gpu_profile(v, profile).map(|m| profile_v2(m, v2)))
    }

    /// Where instances of a profile can begin, by the profile's id.
    fn nvmlDeviceGetGpuInstancePossiblePlacements_v2(
        device: nvmlDevice_t, profile_id: c_uint, out: *mut sys::nvmlGpuInstancePlacement_t, count: *mut c_uint,
    ) {
        initialised()?;
        if count.is_null() {
            return Err(code::INVALID_ARGUMENT);
        }
        on_device(device, |v| {
            let profile = by_id(v, profile_id)?;
            let place = |start: &u32| sys::nvmlGpuInstancePlacement_t { start: *start, size: profile.placement_size };
            let places: Vec<_> = profile.placement_starts.iter().map(place).collect();
            if out.is_null() {
                return put(count, c_uint::try_from(places.len()).map_err(|_| code::UNKNOWN)?);
            }
            put_list(count, out, &places)
        })
    }

    /// How many instances of a profile still fit.
    fn nvmlDeviceGetGpuInstanceRemainingCapacity(device: nvmlDevice_t, profile_id: c_uint, count: *mut c_uint) {
        answer(device, count, |v| {
            let profile = by_id(v, profile_id)?;
            if !v.condition().mig.enabled {
                return Err(code::NOT_SUPPORTED);
            }
            let taken: Vec<_> = v.condition().mig.instances.iter().filter_map(|i| slices_of(v, i)).collect();
            let free = |start: &&u32| {
                let end = start.saturating_add(profile.placement_size);
                !taken.iter().any(|(from, to)| **start < *to && *from < end)
            };
            let fit = c_uint::try_from(profile.placement_starts.iter().filter(free).count()).unwrap_or(0);
            Ok(fit.min(profile.max_instances))
        })
    }

    /// GPU instances of a profile.
    fn nvmlDeviceGetGpuInstances(
        device: nvmlDevice_t, profile_id: c_uint, out: *mut nvmlGpuInstance_t, count: *mut c_uint,
    ) {
        initialised()?;
        if out.is_null() || count.is_null() {
            return Err(code::INVALID_ARGUMENT);
        }
        on_device(device, |v| {
            let name = &by_id(v, profile_id)?.name;
            let wanted = v.condition().mig.instances.iter().filter(|i| i.profile == *name);
            let handles: Vec<_> = wanted.map(|i| instance_handle(v, i).pointer(GPU_INSTANCE_TAG)).collect();
            // By contract the array has room for as many instances as the profile allows; the count is only an answer.
            put(count, c_uint::try_from(handles.len()).map_err(|_| code::UNKNOWN)?)?;
            out.copy_from_nonoverlapping(handles.as_ptr(), handles.len());
            Ok(())
        })
    }

    /// GPU instance by id.
    fn nvmlDeviceGetGpuInstanceById(device: nvmlDevice_t, id: c_uint, out: *mut nvmlGpuInstance_t) {
        answer(device, out, |v| {
            capable(v)?;
            let instance = v.moment.instance(id).ok_or(code::NOT_FOUND)?;
            Ok(instance_handle(v, instance).pointer(GPU_INSTANCE_TAG))
        })
    }

    /// What a GPU instance is.
    fn nvmlGpuInstanceGetInfo(instance: nvmlGpuInstance_t, out: *mut sys::nvmlGpuInstanceInfo_t) {
        with_instance(instance.addr(), GPU_INSTANCE_TAG, out, |v, instance, profile| Ok(sys::nvmlGpuInstanceInfo_t {
            device: handle(v.device.index),
            id: instance.gpu_instance_id,
            profileId: profile.profile_id,
            placement: sys::nvmlGpuInstancePlacement_t { start: instance.start, size: profile.placement_size },
        }))
    }

    /// Compute instances of a GPU instance: the one that fills it.
    fn nvmlGpuInstanceGetComputeInstances(
        instance: nvmlGpuInstance_t, profile_id: c_uint, out: *mut nvmlComputeInstance_t, count: *mut c_uint,
    ) {
        initialised()?;
        if out.is_null() {
            return Err(code::INVALID_ARGUMENT);
        }
        let mut compute: nvmlComputeInstance_t = std::ptr::null_mut();
        with_instance(instance.addr(), GPU_INSTANCE_TAG, count, |v, i, profile| {
            if profile_id != compute_profile(profile) {
                return Ok(0);
            }
            compute = instance_handle(v, i).pointer(COMPUTE_INSTANCE_TAG);
            Ok(1)
        })?;
        if compute.is_null() { Ok(()) } else { put(out, compute) }
    }

    /// Compute instance by id.
    fn nvmlGpuInstanceGetComputeInstanceById(
        instance: nvmlGpuInstance_t, id: c_uint, out: *mut nvmlComputeInstance_t,
    ) {
        with_instance(instance.addr(), GPU_INSTANCE_TAG, out, |v, i, _| {
            if id == 0 { Ok(instance_handle(v, i).pointer(COMPUTE_INSTANCE_TAG)) } else { Err(code::NOT_FOUND) }
        })
    }

    /// What a compute instance is.
    fn nvmlComputeInstanceGetInfo_v2(instance: nvmlComputeInstance_t, out: *mut sys::nvmlComputeInstanceInfo_t) {
        with_instance(instance.addr(), COMPUTE_INSTANCE_TAG, out, |v, i, profile| Ok(sys::nvmlComputeInstanceInfo_t {
            device: handle(v.device.index),
            gpuInstance: instance_handle(v, i).pointer(GPU_INSTANCE_TAG),
            id: 0,
            profileId: compute_profile(profile),
            placement: sys::nvmlComputeInstancePlacement_t { start: 0, size: profile.slices },
        }))
    }

    /// A way to cut compute instances: the one as large as the GPU instance.
    fn nvmlGpuInstanceGetComputeInstanceProfileInfo(
        instance: nvmlGpuInstance_t, profile: c_uint, engines: c_uint, out: *mut sys::nvmlComputeInstanceProfileInfo_t,
    ) {
        with_instance(instance.addr(), GPU_INSTANCE_TAG, out, |_, _, mig| {
            if profile >= sys::NVML_COMPUTE_INSTANCE_PROFILE_COUNT
                || engines >= sys::NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_COUNT
            {
                return Err(code::INVALID_ARGUMENT);
            }
            if profile != compute_profile(mig) {
                return Err(code::NOT_SUPPORTED);
            }
            Ok(sys::nvmlComputeInstanceProfileInfo_t {
                id: profile,
                sliceCount: mig.slices,
                instanceCount: 1,
                multiprocessorCount: mig.multiprocessors,
                sharedCopyEngineCount: mig.copy_engines,
                sharedDecoderCount: mig.decoders,
                sharedEncoderCount: 0,
                sharedJpegCount: mig.jpeg_engines,
                sharedOfaCount: mig.ofa_engines,
            })
        })
    }

    /// Makes a GPU instance: only an administrator may.
    fn nvmlDeviceCreateGpuInstance(device: nvmlDevice_t, _profile_id: c_uint, out: *mut nvmlGpuInstance_t) {
        answer(device, out, |_| Err(code::NO_PERMISSION))
    }

    /// Makes a GPU instance at a place.
    fn nvmlDeviceCreateGpuInstanceWithPlacement(
        device: nvmlDevice_t,
        _profile_id: c_uint,
        _place: *const sys::nvmlGpuInstancePlacement_t,
        out: *mut nvmlGpuInstance_t,
    ) { answer(device, out, |_| Err(code::NO_PERMISSION)) }

    /// Ends a GPU instance.
    fn nvmlGpuInstanceDestroy(instance: nvmlGpuInstance_t) {
        let mut none = 0;
        with_instance(instance.addr(), GPU_INSTANCE_TAG, &raw mut none, |_, _, _| Err(code::NO_PERMISSION))
    }

    /// Makes a compute instance.
    fn nvmlGpuInstanceCreateComputeInstance(
        instance: nvmlGpuInstance_t, _profile_id: c_uint, out: *mut nvmlComputeInstance_t,
    ) { with_instance(instance.addr(), GPU_INSTANCE_TAG, out, |_, _, _| Err(code::NO_PERMISSION)) }

    /// Ends a compute instance.
    fn nvmlComputeInstanceDestroy(instance: nvmlComputeInstance_t) {
        let mut none = 0;
        with_instance(instance.addr(), COMPUTE_INSTANCE_TAG, &raw mut none, |_, _, _| Err(code::NO_PERMISSION))
    }
}

fn capable(view: &View<'_>) -> Outcome {
    if view.profile.mig_capable() { Ok(()) } else { Err(code::NOT_SUPPORTED) }
}

fn instance_handle(view: &View<'_>, instance: &MigInstance) -> Handle {
    Handle { device: view.device.index, instance: Some(instance.gpu_instance_id) }
}

fn attributes(device: nvmlDevice_t, out: *mut sys::nvmlDeviceAttributes_t) -> Outcome {
    // SAFETY: `answer_any` checks for NULL; the caller promises room for one struct.
    unsafe {
        answer_any(device, out, |v| {
            let (_, mig) = v.instance.ok_or(code::NOT_SUPPORTED)?;
            Ok(sys::nvmlDeviceAttributes_t {
                multiprocessorCount: mig.multiprocessors,
                sharedCopyEngineCount: mig.copy_engines,
                sharedDecoderCount: mig.decoders,
                sharedEncoderCount: 0,
                sharedJpegCount: mig.jpeg_engines,
                sharedOfaCount: mig.ofa_engines,
                gpuInstanceSliceCount: mig.slices,
                computeInstanceSliceCount: mig.slices,
                memorySizeMB: mig.memory_mib,
            })
        })
    }
}

fn gpu_profile<'a>(view: &View<'a>, constant: c_uint) -> Result<&'a MigProfile, nvmlReturn_t> {
    // Newer drivers know more constants than the bindings; none of them is on a simulated card.
    if constant > 0x1F {
        return Err(code::INVALID_ARGUMENT);
    }
    view.profile.mig.iter().find(|m| m.gpu_instance_profile == constant).ok_or(code::NOT_SUPPORTED)
}

fn by_id<'a>(view: &View<'a>, profile_id: c_uint) -> Result<&'a MigProfile, nvmlReturn_t> {
    capable(view)?;
    view.profile.mig.iter().find(|m| m.profile_id == profile_id).ok_or(code::INVALID_ARGUMENT)
}

/// The constant of the compute instance that fills a GPU instance: slices 1, 2, 3, 4 and 7 count from 0.
fn compute_profile(profile: &MigProfile) -> c_uint {
    match profile.slices {
        7 => sys::NVML_COMPUTE_INSTANCE_PROFILE_7_SLICE,
        slices => slices.saturating_sub(1),
    }
}

/// Memory slices of an instance.
fn slices_of(view: &View<'_>, instance: &MigInstance) -> Option<(u32, u32)> {
    let profile = view.profile.mig_profile(&instance.profile)?;
    Some((instance.start, instance.start.saturating_add(profile.placement_size)))
}

fn profile_v2(m: &MigProfile, version: c_uint) -> sys::nvmlGpuInstanceProfileInfo_v2_t {
    sys::nvmlGpuInstanceProfileInfo_v2_t {
        version,
        id: m.profile_id,
        isP2pSupported: 0,
        sliceCount: m.slices,
        instanceCount: m.max_instances,
        multiprocessorCount: m.multiprocessors,
        copyEngineCount: m.copy_engines,
        decoderCount: m.decoders,
        encoderCount: 0,
        jpegCount: m.jpeg_engines,
        ofaCount: m.ofa_engines,
        memorySizeMB: m.memory_mib,
        name: text_array(&format!("MIG {}", m.name)),
    }
}

fn profile_v3(m: &MigProfile, version: c_uint) -> sys::nvmlGpuInstanceProfileInfo_v3_t {
    sys::nvmlGpuInstanceProfileInfo_v3_t {
        version,
        id: m.profile_id,
        sliceCount: m.slices,
        instanceCount: m.max_instances,
        multiprocessorCount: m.multiprocessors,
        copyEngineCount: m.copy_engines,
        decoderCount: m.decoders,
        encoderCount: 0,
        jpegCount: m.jpeg_engines,
        ofaCount: m.ofa_engines,
        memorySizeMB: m.memory_mib,
        name: text_array(&format!("MIG {}", m.name)),
        capabilities: 0,
    }
}

/// Answers about the instance behind a handle of the kind that `tag` marks.
fn with_instance<T>(
    address: usize,
    tag: usize,
    out: *mut T,
    body: impl FnOnce(&View<'_>, &MigInstance, &MigProfile) -> Result<T, nvmlReturn_t>,
) -> Outcome {
    initialised()?;
    if address & !0xFFFF_usize != tag || out.is_null() {
        return Err(code::INVALID_ARGUMENT);
    }
    let device: nvmlDevice_t = std::ptr::without_provenance_mut(HANDLE_TAG | address & 0xFFFF);
    on_any(device, |v| {
        let (instance, profile) = v.instance.ok_or(code::INVALID_ARGUMENT)?;
        // SAFETY: checked for NULL; the caller promises room for one value.
        unsafe { put(out, body(v, instance, profile)?) }
    })
}
