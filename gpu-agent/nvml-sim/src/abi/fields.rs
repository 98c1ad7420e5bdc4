//! Values by field id, buffers of samples, and violation times.
//!
//! Field ids 251 to 273 mean other things in drivers before 580.82 than in later ones; [`Scheme`] knows both.

use std::ffi::{c_int, c_uint, c_ulonglong};

use super::session::{View, answer, initialised, on_device};
use super::{Outcome, code, exports, put, sys};
use crate::fault::ThrottleReason;
use crate::state::Driver;
use sys::field_id as fi;
use sys::{nvmlDevice_t, nvmlFieldValue_t, nvmlReturn_t, nvmlValue_t, nvmlValueType_t};

/// Period of the driver's samples, in microseconds.
const SAMPLE_PERIOD_US: u64 = 20_000;

/// Samples that the driver keeps.
const SAMPLES: u64 = 120;

/// Which meaning field ids 251 to 273 have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    /// Up to CUDA 13.0: clock event reasons begin at 251.
    V12,
    /// From CUDA 13.0 update 1, driver 580.82, on: they begin at 269.
    V13Update1,
}

impl Scheme {
    fn of(driver: &Driver) -> Self {
        let mut numbers = driver.version.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        if version >= (580, 82) { Self::V13Update1 } else { Self::V12 }
    }

    /// First id of the block: software thermal, hardware thermal and power brake slowdown follow each other.
    fn clock_events(self) -> u32 {
        match self {
            Self::V12 => 251,
            Self::V13Update1 => 269,
        }
    }
}

exports! {
    /// Values by field id; each entry has its own return code.
    fn nvmlDeviceGetFieldValues(device: nvmlDevice_t, count: c_int, values: *mut nvmlFieldValue_t) {
        each_field(device, count, values, |view, entry| {
            let (kind, value) = field(view, entry.fieldId, entry.scopeId)?;
            entry.valueType = kind;
            entry.value = value;
            Ok(())
        })
    }

    /// Sets counters back: only an administrator may.
    fn nvmlDeviceClearFieldValues(device: nvmlDevice_t, count: c_int, values: *mut nvmlFieldValue_t) {
        each_field(device, count, values, |_, _| Err(code::NO_PERMISSION))
    }

    /// The driver's buffer of samples newer than a time; all hold the present value.
    fn nvmlDeviceGetSamples(
        device: nvmlDevice_t,
        kind: sys::nvmlSamplingType_t,
        last_seen_us: c_ulonglong,
        value_type: *mut nvmlValueType_t,
        count: *mut c_uint,
        out: *mut sys::nvmlSample_t,
    ) {
        initialised()?;
        if value_type.is_null() || count.is_null() {
            return Err(code::INVALID_ARGUMENT);
        }
        on_device(device, |v| {
            let value = sample(v, kind)?;
            put(value_type, sys::nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT)?;
            if out.is_null() {
                // The sizing call: how many there can be.
                return put(count, c_uint::try_from(SAMPLES).map_err(|_| code::UNKNOWN)?);
            }
            let newest = v.now_us() / SAMPLE_PERIOD_US;
            let times = (newest.saturating_sub(SAMPLES - 1)..=newest).map(|n| n * SAMPLE_PERIOD_US);
            let room = usize::try_from(count.read()).unwrap_or(usize::MAX);
            let new: Vec<_> = times
                .filter(|t| *t > last_seen_us)
                .take(room)
                .map(|t| sys::nvmlSample_t { timeStamp: t, sampleValue: nvmlValue_t { uiVal: value } })
                .collect();
            if new.is_empty() {
                return Err(code::NOT_FOUND);
            }
            put(count, c_uint::try_from(new.len()).map_err(|_| code::UNKNOWN)?)?;
            out.copy_from_nonoverlapping(new.as_ptr(), new.len());
            Ok(())
        })
    }

    /// How long clocks were held down for a reason: reference time in microseconds, the violation in nanoseconds.
    fn nvmlDeviceGetViolationStatus(
        device: nvmlDevice_t, policy: sys::nvmlPerfPolicyType_t, out: *mut sys::nvmlViolationTime_t,
    ) {
        answer(device, out, |v| {
            let reasons = match policy {
                sys::nvmlPerfPolicyType_enum_NVML_PERF_POLICY_POWER => ThrottleReason::SwPowerCap.bits(),
                sys::nvmlPerfPolicyType_enum_NVML_PERF_POLICY_THERMAL => THERMAL,
                sys::nvmlPerfPolicyType_enum_NVML_PERF_POLICY_TOTAL_APP_CLOCKS
                | sys::nvmlPerfPolicyType_enum_NVML_PERF_POLICY_TOTAL_BASE_CLOCKS => u64::MAX,
                p if p < sys::nvmlPerfPolicyType_enum_NVML_PERF_POLICY_COUNT => 0,
                _ => return Err(code::INVALID_ARGUMENT),
            };
            let violation = v.moment.timeline().time_throttled(reasons, v.moment.now_ns);
            Ok(sys::nvmlViolationTime_t { referenceTime: v.now_us(), violationTime: violation })
        })
    }
}

/// Software and hardware thermal slowdown.
const THERMAL: u64 = 0x20 | 0x40;

fn each_field(
    device: nvmlDevice_t,
    count: c_int,
    values: *mut nvmlFieldValue_t,
    fill: impl Fn(&View<'_>, &mut nvmlFieldValue_t) -> Outcome,
) -> Outcome {
    initialised()?;
    let count = usize::try_from(count).map_err(|_| code::INVALID_ARGUMENT)?;
    if values.is_null() || count == 0 {
        return Err(code::INVALID_ARGUMENT);
    }
    on_device(device, |v| {
        // SAFETY: not NULL; the caller promises `count` readable and writable entries.
        for entry in unsafe { std::slice::from_raw_parts_mut(values, count) } {
            entry.timestamp = i64::try_from(v.now_us()).unwrap_or(i64::MAX);
            entry.latencyUsec = 0;
            entry.nvmlReturn = fill(v, entry).err().unwrap_or(code::SUCCESS);
        }
        Ok(())
    })
}

type Value = (nvmlValueType_t, nvmlValue_t);

fn int(value: u32) -> Value {
    (sys::nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT, nvmlValue_t { uiVal: value })
}

fn long(value: u64) -> Value {
    (sys::nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, nvmlValue_t { ullVal: value })
}

fn field(view: &View<'_>, id: u32, scope: u32) -> Result<Value, nvmlReturn_t> {
    let p = view.profile;
    let value = match id {
        fi::NVML_FI_DEV_ECC_CURRENT | fi::NVML_FI_DEV_ECC_PENDING => int(1),
        fi::NVML_FI_DEV_MEMORY_TEMP => int(view.telemetry().memory_temperature_celsius),
        fi::NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION => long(view.telemetry().energy_millijoules),
        fi::NVML_FI_DEV_PCIE_REPLAY_COUNTER | fi::NVML_FI_DEV_PCIE_REPLAY_ROLLOVER_COUNTER => int(0),
        fi::NVML_FI_DEV_POWER_AVERAGE | fi::NVML_FI_DEV_POWER_INSTANT => {
            int(view.telemetry().power_milliwatts)
        }
        fi::NVML_FI_DEV_POWER_MIN_LIMIT => int(p.min_power_limit_milliwatts),
        fi::NVML_FI_DEV_POWER_MAX_LIMIT
        | fi::NVML_FI_DEV_POWER_DEFAULT_LIMIT
        | fi::NVML_FI_DEV_POWER_CURRENT_LIMIT
        | fi::NVML_FI_DEV_POWER_REQUESTED_LIMIT => int(p.power_limit_milliwatts),
        fi::NVML_FI_DEV_PERF_POLICY_POWER => long(throttled(view, ThrottleReason::SwPowerCap.bits())),
        fi::NVML_FI_DEV_PERF_POLICY_THERMAL => long(throttled(view, THERMAL)),
        fi::NVML_FI_DEV_PERF_POLICY_SYNC_BOOST..=fi::NVML_FI_DEV_PERF_POLICY_TOTAL_BASE_CLOCKS => long(0),
        _ => {
            return ecc_field(view, id)
                .or_else(|| link_field(view, id, scope))
                .or_else(|| clock_event_field(view, id))
                .ok_or(code::NOT_SUPPORTED);
        }
    };
    Ok(value)
}

/// Memory errors, retired pages and remapped rows.
fn ecc_field(view: &View<'_>, id: u32) -> Option<Value> {
    let (now, ever, rows) = (view.condition().ecc, view.condition().ecc_aggregate, view.condition().rows);
    let remaps = view.profile.row_remapping;
    let value = match id {
        fi::NVML_FI_DEV_ECC_SBE_VOL_TOTAL => long(now.corrected),
        fi::NVML_FI_DEV_ECC_DBE_VOL_TOTAL => long(now.uncorrected),
        fi::NVML_FI_DEV_ECC_SBE_AGG_TOTAL => long(ever.corrected),
        fi::NVML_FI_DEV_ECC_DBE_AGG_TOTAL => long(ever.uncorrected),
        fi::NVML_FI_DEV_ECC_SBE_VOL_DEV => long(now.corrected - now.sram_corrected),
        fi::NVML_FI_DEV_ECC_DBE_VOL_DEV => long(now.uncorrected - now.sram_uncorrected),
        fi::NVML_FI_DEV_ECC_SBE_AGG_DEV => long(ever.corrected - ever.sram_corrected),
        fi::NVML_FI_DEV_ECC_DBE_AGG_DEV => long(ever.uncorrected - ever.sram_uncorrected),
        fi::NVML_FI_DEV_RETIRED_SBE..=fi::NVML_FI_DEV_RETIRED_PENDING if !remaps => long(0),
        fi::NVML_FI_DEV_REMAPPED_COR if remaps => int(rows.correctable),
        fi::NVML_FI_DEV_REMAPPED_UNC if remaps => int(rows.uncorrectable),
        fi::NVML_FI_DEV_REMAPPED_PENDING if remaps => int(u32::from(rows.pending)),
        fi::NVML_FI_DEV_REMAPPED_FAILURE if remaps => int(u32::from(super::health::remap_failed(view))),
        _ => return None,
    };
    Some(value)
}

/// NVLink: speeds and states by link, traffic as none.
fn link_field(view: &View<'_>, id: u32, scope: u32) -> Option<Value> {
    let link = view.profile.nvlink.as_ref()?;
    let by_number = |number: u32| (number < link.links).then(|| int(link.mbps));
    match id {
        fi::NVML_FI_DEV_NVLINK_LINK_COUNT => Some(int(link.links)),
        fi::NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON => Some(int(link.mbps)),
        fi::NVML_FI_DEV_NVLINK_SPEED_MBPS_L0..=fi::NVML_FI_DEV_NVLINK_SPEED_MBPS_L5 => {
            by_number(id - fi::NVML_FI_DEV_NVLINK_SPEED_MBPS_L0)
        }
        fi::NVML_FI_DEV_NVLINK_SPEED_MBPS_L6..=fi::NVML_FI_DEV_NVLINK_SPEED_MBPS_L11 => {
            by_number(id - fi::NVML_FI_DEV_NVLINK_SPEED_MBPS_L6 + 6)
        }
        fi::NVML_FI_DEV_NVLINK_GET_SPEED => by_number(scope),
        fi::NVML_FI_DEV_NVLINK_GET_STATE => (scope < link.links).then(|| int(1)),
        fi::NVML_FI_DEV_NVLINK_GET_VERSION => (scope < link.links).then(|| int(link.version)),
        fi::NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL
        | fi::NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL
        | fi::NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL
        | fi::NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL
        | fi::NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX..=fi::NVML_FI_DEV_NVLINK_THROUGHPUT_RAW_RX => {
            Some(long(0))
        }
        _ => None,
    }
}

/// Time in which clocks were cut, by reason, at the ids of the driver's scheme.
fn clock_event_field(view: &View<'_>, id: u32) -> Option<Value> {
    let first = Scheme::of(&view.snapshot.machine.state().driver).clock_events();
    let bits = match id.checked_sub(first)? {
        0 => 0x20,
        1 => 0x40,
        2 => 0x80,
        _ => return None,
    };
    Some(long(throttled(view, bits)))
}

/// Nanoseconds, as the fields of performance policies and clock events count.
fn throttled(view: &View<'_>, reasons: u64) -> u64 {
    view.moment.timeline().time_throttled(reasons, view.moment.now_ns)
}

fn sample(view: &View<'_>, kind: sys::nvmlSamplingType_t) -> Result<u32, nvmlReturn_t> {
    let t = view.telemetry();
    let utilisation = |percent: u32| view.without_mig().map(|()| percent);
    match kind {
        sys::nvmlSamplingType_enum_NVML_TOTAL_POWER_SAMPLES => Ok(t.power_milliwatts),
        sys::nvmlSamplingType_enum_NVML_GPU_UTILIZATION_SAMPLES => utilisation(t.gpu_percent),
        sys::nvmlSamplingType_enum_NVML_MEMORY_UTILIZATION_SAMPLES => utilisation(t.memory_percent),
        sys::nvmlSamplingType_enum_NVML_ENC_UTILIZATION_SAMPLES
        | sys::nvmlSamplingType_enum_NVML_DEC_UTILIZATION_SAMPLES
        | sys::nvmlSamplingType_enum_NVML_JPG_UTILIZATION_SAMPLES
        | sys::nvmlSamplingType_enum_NVML_OFA_UTILIZATION_SAMPLES => utilisation(0),
        sys::nvmlSamplingType_enum_NVML_PROCESSOR_CLK_SAMPLES => Ok(t.sm_clock_mhz),
        sys::nvmlSamplingType_enum_NVML_MEMORY_CLK_SAMPLES => Ok(view.profile.memory_clock_mhz),
        k if k < sys::nvmlSamplingType_enum_NVML_SAMPLINGTYPE_COUNT => Err(code::NOT_SUPPORTED),
        _ => Err(code::INVALID_ARGUMENT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::DriverHealth;

    #[test]
    fn the_scheme_follows_the_drivers_version() {
        let scheme = |version: &str| {
            Scheme::of(&Driver {
                version: version.to_owned(),
                cuda_version: 13_000,
                health: DriverHealth::Loaded,
            })
        };
        for old in ["535.104.05", "580.65.06", "", "x.y"] {
            assert_eq!(scheme(old), Scheme::V12, "{old}");
        }
        for new in ["580.82.07", "580.95.05", "590.1"] {
            assert_eq!(scheme(new), Scheme::V13Update1, "{new}");
        }
    }
}
