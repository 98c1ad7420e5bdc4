//! Memory errors, retired pages and remapped rows.

use std::ffi::{c_uint, c_ulonglong};

use super::session::{View, answer, answer_versioned, initialised, on_device};
use super::{code, exports, put, put_list, struct_version, sys};
use crate::state::DeviceHealth;
use crate::timeline::EccCounts;
use sys::{nvmlDevice_t, nvmlReturn_t};

/// Banks of memory per GiB, each with its own spare rows.
const BANKS_PER_GIB: u64 = 16;

exports! {
    /// Whether memory errors are corrected: on all simulated cards.
    fn nvmlDeviceGetEccMode(
        device: nvmlDevice_t, current: *mut sys::nvmlEnableState_t, pending: *mut sys::nvmlEnableState_t,
    ) {
        initialised()?;
        if pending.is_null() {
            return Err(code::INVALID_ARGUMENT);
        }
        answer(device, current, |_| {
            put(pending, sys::nvmlEnableState_enum_NVML_FEATURE_ENABLED)?;
            Ok(sys::nvmlEnableState_enum_NVML_FEATURE_ENABLED)
        })
    }

    /// Mode of a new card.
    fn nvmlDeviceGetDefaultEccMode(device: nvmlDevice_t, mode: *mut sys::nvmlEnableState_t) {
        answer(device, mode, |_| Ok(sys::nvmlEnableState_enum_NVML_FEATURE_ENABLED))
    }

    /// Number of memory errors: volatile since the driver was loaded, aggregate in the card's life.
    fn nvmlDeviceGetTotalEccErrors(
        device: nvmlDevice_t,
        kind: sys::nvmlMemoryErrorType_t,
        counter: sys::nvmlEccCounterType_t,
        count: *mut c_ulonglong,
    ) { answer(device, count, |v| errors(counts(v, counter)?, kind).map(|(all, _)| all)) }

    /// Number of memory errors by place: device memory or SRAM.
    fn nvmlDeviceGetMemoryErrorCounter(
        device: nvmlDevice_t,
        kind: sys::nvmlMemoryErrorType_t,
        counter: sys::nvmlEccCounterType_t,
        location: sys::nvmlMemoryLocation_t,
        count: *mut c_ulonglong,
    ) {
        answer(device, count, |v| {
            let (all, sram) = errors(counts(v, counter)?, kind)?;
            match location {
                sys::nvmlMemoryLocation_enum_NVML_MEMORY_LOCATION_DEVICE_MEMORY => Ok(all - sram),
                sys::nvmlMemoryLocation_enum_NVML_MEMORY_LOCATION_SRAM => Ok(sram),
                l if l < sys::nvmlMemoryLocation_enum_NVML_MEMORY_LOCATION_COUNT => Err(code::NOT_SUPPORTED),
                _ => Err(code::INVALID_ARGUMENT),
            }
        })
    }

    /// The same, all places at once; what is in SRAM counts as L2 cache.
    fn nvmlDeviceGetDetailedEccErrors(
        device: nvmlDevice_t,
        kind: sys::nvmlMemoryErrorType_t,
        counter: sys::nvmlEccCounterType_t,
        out: *mut sys::nvmlEccErrorCounts_t,
    ) {
        answer(device, out, |v| {
            let (all, sram) = errors(counts(v, counter)?, kind)?;
            Ok(sys::nvmlEccErrorCounts_t { l1Cache: 0, l2Cache: sram, deviceMemory: all - sram, registerFile: 0 })
        })
    }

    /// Errors in SRAM. The threshold is exceeded by the first uncorrected one.
    fn nvmlDeviceGetSramEccErrorStatus(device: nvmlDevice_t, out: *mut sys::nvmlEccSramErrorStatus_t) {
        let version = struct_version::<sys::nvmlEccSramErrorStatus_v1_t>(1);
        answer_versioned(device, out, version, |v| {
            let (now, ever) = (v.condition().ecc, v.condition().ecc_aggregate);
            Ok(sys::nvmlEccSramErrorStatus_v1_t {
                version,
                aggregateUncParity: 0,
                aggregateUncSecDed: ever.sram_uncorrected,
                aggregateCor: ever.sram_corrected,
                volatileUncParity: 0,
                volatileUncSecDed: now.sram_uncorrected,
                volatileCor: now.sram_corrected,
                aggregateUncBucketL2: ever.sram_uncorrected,
                aggregateUncBucketSm: 0,
                aggregateUncBucketPcie: 0,
                aggregateUncBucketMcu: 0,
                aggregateUncBucketOther: 0,
                bThresholdExceeded: c_uint::from(ever.sram_uncorrected > 0),
            })
        })
    }

    /// Rows of memory that were replaced by spare ones. Not told while there are MIG instances.
    fn nvmlDeviceGetRemappedRows(
        device: nvmlDevice_t,
        corrected: *mut c_uint,
        uncorrected: *mut c_uint,
        pending: *mut c_uint,
        failed: *mut c_uint,
    ) {
        initialised()?;
        if [corrected, uncorrected, pending, failed].iter().any(|p| p.is_null()) {
            return Err(code::INVALID_ARGUMENT);
        }
        on_device(device, |v| {
            let rows = v.condition().rows;
            with_rows(v)?;
            if !v.condition().mig.instances.is_empty() {
                return Err(code::NOT_SUPPORTED);
            }
            put(corrected, rows.correctable)?;
            put(uncorrected, rows.uncorrectable.max(fixed_rows(v)))?;
            put(pending, c_uint::from(rows.pending))?;
            put(failed, c_uint::from(remap_failed(v)))
        })
    }

    /// How many banks have how many spare rows left.
    fn nvmlDeviceGetRowRemapperHistogram(
        device: nvmlDevice_t, out: *mut sys::nvmlRowRemapperHistogramValues_t,
    ) {
        answer(device, out, |v| {
            with_rows(v)?;
            let rows = v.condition().rows;
            let banks = c_uint::try_from((v.profile.memory_mib / 1024 + 1) * BANKS_PER_GIB).unwrap_or(c_uint::MAX);
            let touched = rows.correctable.saturating_add(rows.uncorrectable.max(fixed_rows(v))).min(banks);
            // A bank that could not remap has no spare row left.
            let empty = c_uint::from(remap_failed(v)).min(banks);
            let high = touched.saturating_sub(empty);
            Ok(sys::nvmlRowRemapperHistogramValues_t {
                max: banks - high - empty,
                high,
                partial: 0,
                low: 0,
                none: empty,
            })
        })
    }

    /// Pages taken out of use, on cards that cannot remap rows: none.
    fn nvmlDeviceGetRetiredPages(
        device: nvmlDevice_t,
        cause: sys::nvmlPageRetirementCause_t,
        count: *mut c_uint,
        addresses: *mut c_ulonglong,
    ) {
        initialised()?;
        page_cause(cause, count)?;
        on_device(device, |v| {
            without_rows(v)?;
            put_list(count, addresses, &[])
        })
    }

    /// The same, with times.
    fn nvmlDeviceGetRetiredPages_v2(
        device: nvmlDevice_t,
        cause: sys::nvmlPageRetirementCause_t,
        count: *mut c_uint,
        addresses: *mut c_ulonglong,
        _times: *mut c_ulonglong,
    ) {
        initialised()?;
        page_cause(cause, count)?;
        on_device(device, |v| {
            without_rows(v)?;
            put_list(count, addresses, &[])
        })
    }

    /// Whether pages wait to be retired.
    fn nvmlDeviceGetRetiredPagesPendingStatus(device: nvmlDevice_t, pending: *mut sys::nvmlEnableState_t) {
        answer(device, pending, |v| {
            without_rows(v)?;
            Ok(sys::nvmlEnableState_enum_NVML_FEATURE_DISABLED)
        })
    }
}

fn page_cause(cause: sys::nvmlPageRetirementCause_t, count: *const c_uint) -> super::Outcome {
    if !count.is_null() && cause < sys::nvmlPageRetirementCause_enum_NVML_PAGE_RETIREMENT_CAUSE_COUNT {
        Ok(())
    } else {
        Err(code::INVALID_ARGUMENT)
    }
}

fn with_rows(view: &View<'_>) -> super::Outcome {
    if view.profile.row_remapping { Ok(()) } else { Err(code::NOT_SUPPORTED) }
}

fn without_rows(view: &View<'_>) -> super::Outcome {
    if view.profile.row_remapping { Err(code::NOT_SUPPORTED) } else { Ok(()) }
}

/// Uncorrected errors that the state file gives the card have each cost a row.
fn fixed_rows(view: &View<'_>) -> c_uint {
    c_uint::try_from(view.device.ecc_uncorrected).unwrap_or(c_uint::MAX)
}

/// Whether a row could not be replaced.
pub(super) fn remap_failed(view: &View<'_>) -> bool {
    view.condition().rows.failed || view.condition().health == DeviceHealth::EccFailed
}

fn counts(view: &View<'_>, counter: sys::nvmlEccCounterType_t) -> Result<EccCounts, nvmlReturn_t> {
    match counter {
        sys::nvmlEccCounterType_enum_NVML_VOLATILE_ECC => Ok(view.condition().ecc),
        sys::nvmlEccCounterType_enum_NVML_AGGREGATE_ECC => Ok(view.condition().ecc_aggregate),
        _ => Err(code::INVALID_ARGUMENT),
    }
}

/// All errors of a kind, and those of them in SRAM.
fn errors(counts: EccCounts, kind: sys::nvmlMemoryErrorType_t) -> Result<(u64, u64), nvmlReturn_t> {
    match kind {
        sys::nvmlMemoryErrorType_enum_NVML_MEMORY_ERROR_TYPE_CORRECTED => {
            Ok((counts.corrected, counts.sram_corrected))
        }
        sys::nvmlMemoryErrorType_enum_NVML_MEMORY_ERROR_TYPE_UNCORRECTED => {
            Ok((counts.uncorrected, counts.sram_uncorrected))
        }
        _ => Err(code::INVALID_ARGUMENT),
    }
}
