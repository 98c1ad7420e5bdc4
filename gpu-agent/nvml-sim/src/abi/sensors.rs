//! Memory, load, power, heat and clocks.

use std::ffi::{c_int, c_uint, c_ulonglong};

use super::session::{View, answer, on_device};
use super::{Outcome, code, exports, put, struct_version, sys};
use crate::source;
use sys::field_id::{
    NVML_FI_DEV_MEMORY_TEMP as FI_DEV_MEMORY_TEMP, NVML_FI_DEV_POWER_AVERAGE as FI_DEV_POWER_AVERAGE,
    NVML_FI_DEV_POWER_CURRENT_LIMIT as FI_DEV_POWER_CURRENT_LIMIT,
    NVML_FI_DEV_POWER_INSTANT as FI_DEV_POWER_INSTANT,
    NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION as FI_DEV_TOTAL_ENERGY_CONSUMPTION,
};
use sys::{nvmlDevice_t, nvmlReturn_t};

/// Sampling period that the video engines report, in microseconds.
const SAMPLING_PERIOD_US: c_uint = 167_000;

exports! {
    /// Frame buffer, first layout: what is reserved counts as used.
    fn nvmlDeviceGetMemoryInfo(device: nvmlDevice_t, memory: *mut sys::nvmlMemory_t) {
        answer(device, memory, |v| {
            let t = v.telemetry();
            Ok(sys::nvmlMemory_t {
                total: t.memory_total_bytes,
                free: t.memory_free_bytes,
                used: t.memory_used_bytes + t.memory_reserved_bytes,
            })
        })
    }

    /// Frame buffer, second layout: the caller states the layout that it was built with.
    fn nvmlDeviceGetMemoryInfo_v2(device: nvmlDevice_t, memory: *mut sys::nvmlMemory_v2_t) {
        let version = struct_version::<sys::nvmlMemory_v2_t>(2);
        if !memory.is_null() && (*memory).version != version {
            return Err(code::VERSION_MISMATCH);
        }
        answer(device, memory, |v| {
            let t = v.telemetry();
            Ok(sys::nvmlMemory_v2_t {
                version,
                total: t.memory_total_bytes,
                reserved: t.memory_reserved_bytes,
                free: t.memory_free_bytes,
                used: t.memory_used_bytes,
            })
        })
    }

    /// BAR1 window.
    fn nvmlDeviceGetBAR1MemoryInfo(device: nvmlDevice_t, memory: *mut sys::nvmlBAR1Memory_t) {
        answer(device, memory, |v| {
            let total = v.profile.bar1_mib << 20;
            let used = total.min(1 << 20);
            Ok(sys::nvmlBAR1Memory_t { bar1Total: total, bar1Free: total - used, bar1Used: used })
        })
    }

    /// Share of time that kernels ran and memory was used.
    fn nvmlDeviceGetUtilizationRates(device: nvmlDevice_t, rates: *mut sys::nvmlUtilization_t) {
        answer(device, rates, |v| {
            let d = v.device;
            Ok(sys::nvmlUtilization_t {
                gpu: d.gpu_utilization_percent.min(100),
                memory: d.memory_utilization_percent.min(100),
            })
        })
    }

    /// Video encoder: idle.
    fn nvmlDeviceGetEncoderUtilization(device: nvmlDevice_t, percent: *mut c_uint, period_us: *mut c_uint) {
        idle_engine(device, percent, period_us)
    }

    /// Video decoder: idle.
    fn nvmlDeviceGetDecoderUtilization(device: nvmlDevice_t, percent: *mut c_uint, period_us: *mut c_uint) {
        idle_engine(device, percent, period_us)
    }

    /// Power now, in milliwatts.
    fn nvmlDeviceGetPowerUsage(device: nvmlDevice_t, power: *mut c_uint) {
        answer(device, power, |v| Ok(v.telemetry().power_milliwatts))
    }

    /// Power limit in force.
    fn nvmlDeviceGetEnforcedPowerLimit(device: nvmlDevice_t, limit: *mut c_uint) { power_limit(device, limit) }

    /// Power limit set.
    fn nvmlDeviceGetPowerManagementLimit(device: nvmlDevice_t, limit: *mut c_uint) { power_limit(device, limit) }

    /// Power limit of a new card.
    fn nvmlDeviceGetPowerManagementDefaultLimit(device: nvmlDevice_t, limit: *mut c_uint) {
        power_limit(device, limit)
    }

    /// Range in which the power limit may be set.
    fn nvmlDeviceGetPowerManagementLimitConstraints(device: nvmlDevice_t, low: *mut c_uint, high: *mut c_uint) {
        if high.is_null() {
            return Err(code::INVALID_ARGUMENT);
        }
        answer(device, low, |v| {
            put(high, v.profile.power_limit_milliwatts)?;
            Ok(v.profile.min_power_limit_milliwatts)
        })
    }

    /// Whether power can be limited: yes.
    fn nvmlDeviceGetPowerManagementMode(device: nvmlDevice_t, mode: *mut sys::nvmlEnableState_t) {
        answer(device, mode, |_| Ok(sys::nvmlEnableState_enum_NVML_FEATURE_ENABLED))
    }

    /// Energy since the driver was loaded, in millijoules.
    fn nvmlDeviceGetTotalEnergyConsumption(device: nvmlDevice_t, energy: *mut c_ulonglong) {
        answer(device, energy, |v| Ok(v.telemetry().energy_millijoules))
    }

    /// Temperature of the chip, the only sensor of this call.
    fn nvmlDeviceGetTemperature(device: nvmlDevice_t, sensor: sys::nvmlTemperatureSensors_t, out: *mut c_uint) {
        gpu_sensor(sensor)?;
        answer(device, out, |v| Ok(v.telemetry().temperature_celsius))
    }

    /// The same, with a versioned struct.
    fn nvmlDeviceGetTemperatureV(device: nvmlDevice_t, out: *mut sys::nvmlTemperature_v1_t) {
        if out.is_null() {
            return Err(code::INVALID_ARGUMENT);
        }
        if (*out).version != struct_version::<sys::nvmlTemperature_v1_t>(1) {
            return Err(code::VERSION_MISMATCH);
        }
        gpu_sensor((*out).sensorType)?;
        answer(device, &raw mut (*out).temperature, |v| {
            c_int::try_from(v.telemetry().temperature_celsius).map_err(|_| code::UNKNOWN)
        })
    }

    /// Temperatures at which the card slows down or turns itself off.
    fn nvmlDeviceGetTemperatureThreshold(
        device: nvmlDevice_t,
        threshold: sys::nvmlTemperatureThresholds_t,
        out: *mut c_uint,
    ) {
        answer(device, out, |v| threshold_of(v, threshold))
    }

    /// Fan speed; data-centre cards have no fan.
    fn nvmlDeviceGetFanSpeed(device: nvmlDevice_t, percent: *mut c_uint) { fan(device, 0, percent) }

    /// Speed of one fan.
    fn nvmlDeviceGetFanSpeed_v2(device: nvmlDevice_t, number: c_uint, percent: *mut c_uint) {
        fan(device, number, percent)
    }

    /// Number of fans.
    fn nvmlDeviceGetNumFans(device: nvmlDevice_t, fans: *mut c_uint) { answer(device, fans, |v| Ok(v.profile.fans)) }

    /// Clock now.
    fn nvmlDeviceGetClockInfo(device: nvmlDevice_t, clock: sys::nvmlClockType_t, mhz: *mut c_uint) {
        answer(device, mhz, |v| clock_of(v, clock, v.telemetry().sm_clock_mhz))
    }

    /// Highest clock.
    fn nvmlDeviceGetMaxClockInfo(device: nvmlDevice_t, clock: sys::nvmlClockType_t, mhz: *mut c_uint) {
        answer(device, mhz, |v| clock_of(v, clock, v.profile.max_sm_clock_mhz))
    }

    /// Clock that applications ask for: the highest.
    fn nvmlDeviceGetApplicationsClock(device: nvmlDevice_t, clock: sys::nvmlClockType_t, mhz: *mut c_uint) {
        answer(device, mhz, |v| clock_of(v, clock, v.profile.max_sm_clock_mhz))
    }

    /// Clock by kind and use.
    fn nvmlDeviceGetClock(
        device: nvmlDevice_t,
        clock: sys::nvmlClockType_t,
        id: sys::nvmlClockId_t,
        mhz: *mut c_uint,
    ) {
        let now = id == sys::nvmlClockId_enum_NVML_CLOCK_ID_CURRENT;
        if id >= sys::nvmlClockId_enum_NVML_CLOCK_ID_COUNT {
            return Err(code::INVALID_ARGUMENT);
        }
        answer(device, mhz, |v| {
            clock_of(v, clock, if now { v.telemetry().sm_clock_mhz } else { v.profile.max_sm_clock_mhz })
        })
    }

    /// Performance state: 0 under load, 8 when idle.
    fn nvmlDeviceGetPerformanceState(device: nvmlDevice_t, state: *mut sys::nvmlPstates_t) {
        answer(device, state, |v| Ok(if v.device.gpu_utilization_percent == 0 { 8 } else { 0 }))
    }

    /// Why clocks are below their highest.
    fn nvmlDeviceGetCurrentClocksThrottleReasons(device: nvmlDevice_t, reasons: *mut c_ulonglong) {
        answer(device, reasons, |v| Ok(clock_reasons(v)))
    }

    /// Newer name.
    fn nvmlDeviceGetCurrentClocksEventReasons(device: nvmlDevice_t, reasons: *mut c_ulonglong) {
        answer(device, reasons, |v| Ok(clock_reasons(v)))
    }

    /// Values by field id; each entry has its own return code.
    fn nvmlDeviceGetFieldValues(device: nvmlDevice_t, count: c_int, values: *mut sys::nvmlFieldValue_t) {
        let count = usize::try_from(count).map_err(|_| code::INVALID_ARGUMENT)?;
        if values.is_null() || count == 0 {
            return Err(code::INVALID_ARGUMENT);
        }
        on_device(device, |v| {
            for entry in std::slice::from_raw_parts_mut(values, count) {
                fill_field(v, entry);
            }
            Ok(())
        })
    }
}

fn idle_engine(device: nvmlDevice_t, percent: *mut c_uint, period_us: *mut c_uint) -> Outcome {
    if period_us.is_null() {
        return Err(code::INVALID_ARGUMENT);
    }
    // SAFETY: both pointers are checked for NULL before they are written.
    unsafe {
        answer(device, percent, |_| {
            put(period_us, SAMPLING_PERIOD_US)?;
            Ok(0)
        })
    }
}

fn power_limit(device: nvmlDevice_t, limit: *mut c_uint) -> Outcome {
    // SAFETY: `answer` checks for NULL.
    unsafe { answer(device, limit, |v| Ok(v.profile.power_limit_milliwatts)) }
}

fn gpu_sensor(sensor: sys::nvmlTemperatureSensors_t) -> Outcome {
    if sensor == sys::nvmlTemperatureSensors_enum_NVML_TEMPERATURE_GPU {
        Ok(())
    } else {
        Err(code::INVALID_ARGUMENT)
    }
}

fn threshold_of(
    view: &View<'_>,
    threshold: sys::nvmlTemperatureThresholds_t,
) -> Result<c_uint, nvmlReturn_t> {
    let p = view.profile;
    match threshold {
        sys::nvmlTemperatureThresholds_enum_NVML_TEMPERATURE_THRESHOLD_SHUTDOWN => {
            Ok(p.shutdown_temperature_celsius)
        }
        sys::nvmlTemperatureThresholds_enum_NVML_TEMPERATURE_THRESHOLD_SLOWDOWN => {
            Ok(p.slowdown_temperature_celsius)
        }
        sys::nvmlTemperatureThresholds_enum_NVML_TEMPERATURE_THRESHOLD_MEM_MAX => {
            Ok(p.slowdown_temperature_celsius + 6)
        }
        sys::nvmlTemperatureThresholds_enum_NVML_TEMPERATURE_THRESHOLD_GPU_MAX => {
            Ok(p.max_temperature_celsius)
        }
        t if t < sys::nvmlTemperatureThresholds_enum_NVML_TEMPERATURE_THRESHOLD_COUNT => {
            Err(code::NOT_SUPPORTED)
        }
        _ => Err(code::INVALID_ARGUMENT),
    }
}

fn fan(device: nvmlDevice_t, number: c_uint, percent: *mut c_uint) -> Outcome {
    let read = |v: &View<'_>| {
        if v.profile.fans == 0 {
            return Err(code::NOT_SUPPORTED);
        }
        if number >= v.profile.fans {
            return Err(code::INVALID_ARGUMENT);
        }
        Ok(30 + v.device.gpu_utilization_percent.min(100) / 2)
    };
    // SAFETY: `answer` checks for NULL.
    unsafe { answer(device, percent, read) }
}

fn clock_of(view: &View<'_>, clock: sys::nvmlClockType_t, sm_mhz: u32) -> Result<c_uint, nvmlReturn_t> {
    match clock {
        sys::nvmlClockType_enum_NVML_CLOCK_GRAPHICS | sys::nvmlClockType_enum_NVML_CLOCK_SM => Ok(sm_mhz),
        sys::nvmlClockType_enum_NVML_CLOCK_MEM => Ok(view.profile.memory_clock_mhz),
        sys::nvmlClockType_enum_NVML_CLOCK_VIDEO => Ok(view.profile.video_clock_mhz),
        _ => Err(code::INVALID_ARGUMENT),
    }
}

fn clock_reasons(view: &View<'_>) -> c_ulonglong {
    if view.device.gpu_utilization_percent == 0 {
        c_ulonglong::from(sys::nvmlClocksEventReasonGpuIdle)
    } else {
        0
    }
}

/// These field ids are the same in all of NVML's numberings.
fn fill_field(view: &View<'_>, entry: &mut sys::nvmlFieldValue_t) {
    let t = view.telemetry();
    let unsigned =
        |value| (sys::nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT, sys::nvmlValue_t { uiVal: value });
    let answer = match entry.fieldId {
        FI_DEV_MEMORY_TEMP => Some(unsigned(t.memory_temperature_celsius)),
        FI_DEV_TOTAL_ENERGY_CONSUMPTION => Some((
            sys::nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG_LONG,
            sys::nvmlValue_t { ullVal: t.energy_millijoules },
        )),
        FI_DEV_POWER_AVERAGE | FI_DEV_POWER_INSTANT => Some(unsigned(t.power_milliwatts)),
        FI_DEV_POWER_CURRENT_LIMIT => Some(unsigned(view.profile.power_limit_milliwatts)),
        _ => None,
    };
    entry.timestamp = i64::try_from(source::now_unix_ms()).unwrap_or(i64::MAX).saturating_mul(1000);
    entry.latencyUsec = 0;
    match answer {
        Some((kind, value)) => {
            entry.nvmlReturn = code::SUCCESS;
            entry.valueType = kind;
            entry.value = value;
        }
        None => entry.nvmlReturn = code::NOT_SUPPORTED,
    }
}
