//! What the sensors of one device read at one moment. Pure: the same state, loads and time give the same values.
//!
//! Power, temperature and clocks follow load linearly between the profile's idle and full-load figures; what cuts
//! clocks cuts power with them.

use crate::machine::Moment;

const MIB: u64 = 1 << 20;

/// Readings of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Telemetry {
    /// Share of time that kernels ran, in percent.
    pub gpu_percent: u32,
    /// Share of time that memory was read or written, in percent.
    pub memory_percent: u32,
    /// Power now, in milliwatts.
    pub power_milliwatts: u32,
    /// Energy since the driver was loaded, in millijoules.
    pub energy_millijoules: u64,
    /// Temperature of the chip.
    pub temperature_celsius: u32,
    /// Temperature of the memory.
    pub memory_temperature_celsius: u32,
    /// SM and graphics clock, in MHz.
    pub sm_clock_mhz: u32,
    /// Whole frame buffer, in bytes.
    pub memory_total_bytes: u64,
    /// Bytes that driver and firmware keep.
    pub memory_reserved_bytes: u64,
    /// Bytes that processes hold.
    pub memory_used_bytes: u64,
    /// Bytes that are free.
    pub memory_free_bytes: u64,
}

/// Reads all sensors.
#[must_use]
pub fn read(moment: &Moment<'_>) -> Telemetry {
    let (device, profile, condition) = (moment.device, moment.profile, moment.condition());
    let load = condition.busy / 100;
    let percent = |value: u32, percent: u32| {
        u32::try_from(u64::from(value) * u64::from(percent) / 100).unwrap_or(u32::MAX)
    };
    let between = |idle: u32, full: u32| idle.saturating_add(percent(full.saturating_sub(idle), load));
    let cool = between(profile.idle_temperature_celsius, profile.max_temperature_celsius);
    let temperature = if condition.too_hot { profile.slowdown_temperature_celsius.max(cool) } else { cool };
    let registered = load.saturating_sub(device.gpu_utilization_percent.min(100));
    let total = device.disguise.memory_mib.unwrap_or(profile.memory_mib).saturating_mul(MIB);
    let reserved = profile.reserved_memory_mib.saturating_mul(MIB).min(total);
    let used = condition.memory_mib.saturating_mul(MIB).min(total - reserved);
    Telemetry {
        gpu_percent: condition.kernel_time / 100,
        memory_percent: device.memory_utilization_percent.saturating_add(registered / 2).min(100),
        power_milliwatts: moment.segment.power_milliwatts,
        energy_millijoules: moment.timeline().counter(moment.now_ns).millijoules(),
        temperature_celsius: temperature,
        memory_temperature_celsius: temperature.saturating_add(6),
        sm_clock_mhz: between(profile.idle_sm_clock_mhz, profile.max_sm_clock_mhz)
            .min(percent(profile.max_sm_clock_mhz, condition.clock_percent)),
        memory_total_bytes: total,
        memory_reserved_bytes: reserved,
        memory_used_bytes: used,
        memory_free_bytes: total - reserved - used,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::machine::Machine;
    use crate::state::{Device, Process, State};

    const SECOND: u64 = 1_000_000_000;

    fn h100(change: impl Fn(&mut Device)) -> Machine {
        let mut state = State::generate(&[("H100".to_owned(), 1)], "s", 1_000).expect("state");
        change(&mut state.devices[0]);
        Machine::new(Arc::new(state), &[])
    }

    fn at(machine: &Machine, seconds: u64) -> Telemetry {
        read(&machine.device(0, seconds * SECOND).expect("device"))
    }

    #[test]
    fn idle_and_loaded_readings() {
        let idle = Telemetry {
            gpu_percent: 0,
            memory_percent: 0,
            power_milliwatts: 70_000,
            energy_millijoules: 700_000,
            temperature_celsius: 30,
            memory_temperature_celsius: 36,
            sm_clock_mhz: 345,
            memory_total_bytes: 81_559 * MIB,
            memory_reserved_bytes: 551 * MIB,
            memory_used_bytes: 0,
            memory_free_bytes: 81_008 * MIB,
        };
        assert_eq!(at(&h100(|_| {}), 11), idle);
        let busy = h100(|device| {
            device.gpu_utilization_percent = 50;
            device.processes = vec![Process { pid: 1, memory_mib: 1_008, sm_percent: 50 }];
        });
        let expected = Telemetry {
            gpu_percent: 50,
            power_milliwatts: 385_000,
            energy_millijoules: 385_000,
            temperature_celsius: 57,
            memory_temperature_celsius: 63,
            sm_clock_mhz: 1_162,
            memory_used_bytes: 1_008 * MIB,
            memory_free_bytes: 80_000 * MIB,
            ..idle
        };
        assert_eq!(at(&busy, 2), expected);
    }

    #[test]
    fn absurd_process_memory_is_capped_by_the_card() {
        let machine = h100(|device| {
            device.processes = vec![Process { pid: 1, memory_mib: u64::MAX, sm_percent: 0 }; 2];
        });
        let t = at(&machine, 1);
        assert_eq!((t.memory_free_bytes, t.memory_used_bytes), (0, 81_008 * MIB));
    }

    #[test]
    fn absurd_figures_are_read_without_overflow() {
        let mut state = State::generate(&[("H100".to_owned(), 1)], "s", 0).expect("state");
        let profile = state.profiles.get_mut("H100").expect("profile");
        (profile.memory_mib, profile.reserved_memory_mib) = (u64::MAX, u64::MAX);
        (profile.max_sm_clock_mhz, profile.slowdown_temperature_celsius) = (u32::MAX, u32::MAX);
        (profile.power_limit_milliwatts, profile.max_temperature_celsius) = (u32::MAX, u32::MAX);
        profile.multiprocessors = 0;
        state.devices[0].gpu_utilization_percent = u32::MAX;
        state.devices[0].memory_utilization_percent = u32::MAX;
        let machine = Machine::new(Arc::new(state), &[]);
        let t = read(&machine.device(0, u64::MAX).expect("device"));
        assert_eq!((t.sm_clock_mhz, t.power_milliwatts, t.memory_percent), (u32::MAX, u32::MAX, 100));
        assert_eq!((t.memory_free_bytes, t.memory_temperature_celsius), (0, u32::MAX));
    }

    #[test]
    fn a_disguised_card_says_what_it_wants() {
        let machine = h100(|device| {
            device.disguise.memory_mib = Some(188_000);
            device.disguise.power_percent = Some(50);
        });
        let t = at(&machine, 11);
        assert_eq!((t.memory_total_bytes, t.power_milliwatts), (188_000 * MIB, 35_000));
        let truth = machine.timeline(0).expect("device").used_between(SECOND, 11 * SECOND).expect("known");
        assert_eq!((t.energy_millijoules, truth.millijoules()), (350_000, 700_000));
    }
}
