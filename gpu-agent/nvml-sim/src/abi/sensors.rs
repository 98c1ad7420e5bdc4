//! Memory, load, power, heat and clocks.

use std::ffi::{c_int, c_uint, c_ulonglong};

use super::session::{View, answer, answer_any, answer_versioned, initialised};
use super::{Outcome, code, exports, put, put_list, struct_version, sys};
use sys::{nvmlDevice_t, nvmlReturn_t};

/// Sampling period that the video engines report, in microseconds.
const SAMPLING_PERIOD_US: c_uint = 167_000;

/// Idle, application clocks, and what a script can impose.
const SUPPORTED_REASONS: c_ulonglong = 0x01 | 0x02 | 0x04 | 0x08 | 0x20 | 0x40 | 0x80;

exports! {
    /// Frame buffer, first layout: what is reserved counts as used.
    fn nvmlDeviceGetMemoryInfo(device: nvmlDevice_t, memory: *mut sys::nvmlMemory_t) {
        answer_any(device, memory, |v| {
            let m = memory_of(v);
            Ok(sys::nvmlMemory_t { total: m.total, free: m.free, used: m.used + m.reserved })
        })
    }

    /// Frame buffer, second layout: the caller states the layout that it was built with.
    fn nvmlDeviceGetMemoryInfo_v2(device: nvmlDevice_t, memory: *mut sys::nvmlMemory_v2_t) {
        initialised()?;
        super::check_version(memory.cast(), struct_version::<sys::nvmlMemory_v2_t>(2))?;
        answer_any(device, memory, |v| Ok(memory_of(v)))
    }

    /// BAR1 window.
    fn nvmlDeviceGetBAR1MemoryInfo(device: nvmlDevice_t, memory: *mut sys::nvmlBAR1Memory_t) {
        answer_any(device, memory, |v| {
            // A MIG device has the part of the window that it has of the memory slices, which are eight.
            let slices = v.instance.map_or(8, |(_, mig)| u64::from(mig.placement_size));
            let total = (v.profile.bar1_mib / 8).saturating_mul(slices) << 20;
            let used = total.min(1 << 20);
            Ok(sys::nvmlBAR1Memory_t { bar1Total: total, bar1Free: total - used, bar1Used: used })
        })
    }

    /// Share of time that kernels ran and memory was used. Not measured under MIG.
    fn nvmlDeviceGetUtilizationRates(device: nvmlDevice_t, rates: *mut sys::nvmlUtilization_t) {
        answer(device, rates, |v| {
            v.without_mig()?;
            let t = v.telemetry();
            Ok(sys::nvmlUtilization_t { gpu: t.gpu_percent, memory: t.memory_percent })
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

    /// JPEG engine: idle.
    fn nvmlDeviceGetJpgUtilization(device: nvmlDevice_t, percent: *mut c_uint, period_us: *mut c_uint) {
        idle_engine(device, percent, period_us)
    }

    /// Optical-flow engine: idle.
    fn nvmlDeviceGetOfaUtilization(device: nvmlDevice_t, percent: *mut c_uint, period_us: *mut c_uint) {
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
        initialised()?;
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
        initialised()?;
        gpu_sensor(sensor)?;
        answer(device, out, |v| Ok(v.telemetry().temperature_celsius))
    }

    /// The same, with a versioned struct.
    fn nvmlDeviceGetTemperatureV(device: nvmlDevice_t, out: *mut sys::nvmlTemperature_v1_t) {
        initialised()?;
        super::check_version(out.cast_const().cast(), struct_version::<sys::nvmlTemperature_v1_t>(1))?;
        gpu_sensor((*out).sensorType)?;
        answer(device, &raw mut (*out).temperature, |v| {
            c_int::try_from(v.telemetry().temperature_celsius).map_err(|_| code::UNKNOWN)
        })
    }

    /// Degrees left until clocks are cut.
    fn nvmlDeviceGetMarginTemperature(device: nvmlDevice_t, out: *mut sys::nvmlMarginTemperature_t) {
        let version = struct_version::<sys::nvmlMarginTemperature_v1_t>(1);
        answer_versioned(device, out, version, |v| {
            let left = i64::from(v.profile.slowdown_temperature_celsius) - i64::from(v.telemetry().temperature_celsius);
            let margin = c_int::try_from(left).map_err(|_| code::UNKNOWN)?;
            Ok(sys::nvmlMarginTemperature_v1_t { version, marginTemperature: margin })
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

    /// Clock of a new card under applications: the highest.
    fn nvmlDeviceGetDefaultApplicationsClock(
        device: nvmlDevice_t, clock: sys::nvmlClockType_t, mhz: *mut c_uint,
    ) { answer(device, mhz, |v| clock_of(v, clock, v.profile.max_sm_clock_mhz)) }

    /// Highest clock that a customer may ask for.
    fn nvmlDeviceGetMaxCustomerBoostClock(device: nvmlDevice_t, clock: sys::nvmlClockType_t, mhz: *mut c_uint) {
        answer(device, mhz, |v| clock_of(v, clock, v.profile.max_sm_clock_mhz))
    }

    /// Memory clocks that may be asked for: the one there is.
    fn nvmlDeviceGetSupportedMemoryClocks(device: nvmlDevice_t, count: *mut c_uint, mhz: *mut c_uint) {
        super::session::on_device(device, |v| put_list(count, mhz, &[v.profile.memory_clock_mhz]))
    }

    /// Graphics clocks that may be asked for at a memory clock, highest first, in steps of 15 MHz.
    fn nvmlDeviceGetSupportedGraphicsClocks(
        device: nvmlDevice_t, memory_mhz: c_uint, count: *mut c_uint, mhz: *mut c_uint,
    ) {
        super::session::on_device(device, |v| {
            if memory_mhz != v.profile.memory_clock_mhz {
                return Err(code::NOT_FOUND);
            }
            let clocks = v.profile.idle_sm_clock_mhz..=v.profile.max_sm_clock_mhz;
            put_list(count, mhz, &clocks.rev().step_by(15).collect::<Vec<_>>())
        })
    }

    /// Performance state: 0 under load, 8 when idle.
    fn nvmlDeviceGetPerformanceState(device: nvmlDevice_t, state: *mut sys::nvmlPstates_t) { pstate(device, state) }

    /// Older name.
    fn nvmlDeviceGetPowerState(device: nvmlDevice_t, state: *mut sys::nvmlPstates_t) { pstate(device, state) }

    /// Why clocks are below their highest.
    fn nvmlDeviceGetCurrentClocksThrottleReasons(device: nvmlDevice_t, reasons: *mut c_ulonglong) {
        answer(device, reasons, |v| Ok(clock_reasons(v)))
    }

    /// Newer name.
    fn nvmlDeviceGetCurrentClocksEventReasons(device: nvmlDevice_t, reasons: *mut c_ulonglong) {
        answer(device, reasons, |v| Ok(clock_reasons(v)))
    }

    /// Reasons that can be reported.
    fn nvmlDeviceGetSupportedClocksThrottleReasons(device: nvmlDevice_t, reasons: *mut c_ulonglong) {
        answer(device, reasons, |_| Ok(SUPPORTED_REASONS))
    }

    /// Newer name.
    fn nvmlDeviceGetSupportedClocksEventReasons(device: nvmlDevice_t, reasons: *mut c_ulonglong) {
        answer(device, reasons, |_| Ok(SUPPORTED_REASONS))
    }
}

/// What a device or MIG device says of its memory. A MIG device's processes are those that run on it.
fn memory_of(view: &View<'_>) -> sys::nvmlMemory_v2_t {
    let version = struct_version::<sys::nvmlMemory_v2_t>(2);
    let t = view.telemetry();
    let Some((_, mig)) = view.instance else {
        return sys::nvmlMemory_v2_t {
            version,
            total: t.memory_total_bytes,
            reserved: t.memory_reserved_bytes,
            free: t.memory_free_bytes,
            used: t.memory_used_bytes,
        };
    };
    let total = mig.memory_mib << 20;
    let held = view.processes().iter().map(|p| p.memory_bytes).fold(0, u64::saturating_add);
    let used = held.min(total);
    sys::nvmlMemory_v2_t { version, total, reserved: 0, free: total - used, used }
}

fn pstate(device: nvmlDevice_t, state: *mut sys::nvmlPstates_t) -> Outcome {
    // SAFETY: `answer` checks for NULL.
    unsafe { answer(device, state, |v| Ok(if v.condition().busy == 0 { 8 } else { 0 })) }
}

fn idle_engine(device: nvmlDevice_t, percent: *mut c_uint, period_us: *mut c_uint) -> Outcome {
    initialised()?;
    if period_us.is_null() {
        return Err(code::INVALID_ARGUMENT);
    }
    // SAFETY: both pointers are checked for NULL before they are written.
    unsafe {
        answer(device, percent, |v| {
            v.without_mig()?;
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
            Ok(p.slowdown_temperature_celsius.saturating_add(6))
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
        Ok(30 + v.telemetry().gpu_percent / 2)
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

/// Idle cards say that they are idle; what cuts clocks is said at any load.
fn clock_reasons(view: &View<'_>) -> c_ulonglong {
    let idle = if view.condition().busy == 0 { sys::nvmlClocksEventReasonGpuIdle } else { 0 };
    c_ulonglong::from(idle) | view.condition().throttle_reasons
}
