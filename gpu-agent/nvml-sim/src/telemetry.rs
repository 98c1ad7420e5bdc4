//! What the sensors of one device read at one moment. Pure: the same state and time give the same values.
//!
//! Power, temperature and clocks follow utilisation linearly between the profile's idle and full-load figures. The
//! energy counter is the exact integral of that power, because power is constant between two [`EnergyMark`]s and
//! every change of load sets a new mark ([`settle_energy`]).

use crate::profile::Profile;
use crate::state::{Device, DeviceHealth, EnergyMark};

const MIB: u64 = 1 << 20;

/// Readings of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Telemetry {
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

/// Reads all sensors at `now_unix_ms`.
#[must_use]
pub fn read(device: &Device, profile: &Profile, now_unix_ms: u64) -> Telemetry {
    let load = device.gpu_utilization_percent.min(100);
    let between = |idle: u32, full: u32| idle + (full.saturating_sub(idle)) * load / 100;
    let power = power_milliwatts(device, profile);
    let temperature = between(profile.idle_temperature_celsius, profile.max_temperature_celsius);
    let total = profile.memory_mib * MIB;
    let reserved = (profile.reserved_memory_mib * MIB).min(total);
    let held: u64 =
        device.processes.iter().map(|p| p.memory_mib.saturating_mul(MIB)).fold(0, u64::saturating_add);
    let used = held.min(total - reserved);
    Telemetry {
        power_milliwatts: power,
        energy_millijoules: energy(device.energy, power, now_unix_ms),
        temperature_celsius: temperature,
        memory_temperature_celsius: temperature + 6,
        sm_clock_mhz: between(profile.idle_sm_clock_mhz, profile.max_sm_clock_mhz),
        memory_total_bytes: total,
        memory_reserved_bytes: reserved,
        memory_used_bytes: used,
        memory_free_bytes: total - reserved - used,
    }
}

/// Moves the energy mark to `now_unix_ms`. To be called before anything that changes the power.
pub fn settle_energy(device: &mut Device, profile: &Profile, now_unix_ms: u64) {
    let power = power_milliwatts(device, profile);
    device.energy = EnergyMark {
        millijoules: energy(device.energy, power, now_unix_ms),
        at_unix_ms: now_unix_ms.max(device.energy.at_unix_ms),
    };
}

fn power_milliwatts(device: &Device, profile: &Profile) -> u32 {
    if device.health == DeviceHealth::Lost {
        return 0;
    }
    let span = u64::from(profile.power_limit_milliwatts.saturating_sub(profile.idle_power_milliwatts));
    let above_idle = span * u64::from(device.gpu_utilization_percent.min(100)) / 100;
    profile.idle_power_milliwatts.saturating_add(u32::try_from(above_idle).unwrap_or(u32::MAX))
}

/// A clock that went back adds nothing: the counter never falls.
fn energy(mark: EnergyMark, power_milliwatts: u32, now_unix_ms: u64) -> u64 {
    let elapsed_ms = now_unix_ms.saturating_sub(mark.at_unix_ms);
    mark.millijoules.saturating_add(elapsed_ms.saturating_mul(u64::from(power_milliwatts)) / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Process, State};

    fn h100() -> (Device, Profile) {
        let state = State::generate(&[("H100".to_owned(), 1)], "s", 1_000).expect("state");
        (state.devices[0].clone(), state.profiles["H100"].clone())
    }

    #[test]
    fn idle_and_loaded_readings() {
        let (mut device, profile) = h100();
        let idle = read(&device, &profile, 11_000);
        let expected = Telemetry {
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
        assert_eq!(idle, expected);

        settle_energy(&mut device, &profile, 11_000);
        device.gpu_utilization_percent = 50;
        device.processes = vec![Process { pid: 1, memory_mib: 1_008, sm_percent: 50 }];
        let busy = read(&device, &profile, 12_000);
        let expected = Telemetry {
            power_milliwatts: 385_000,
            energy_millijoules: 1_085_000,
            temperature_celsius: 57,
            memory_temperature_celsius: 63,
            sm_clock_mhz: 1_162,
            memory_used_bytes: 1_008 * MIB,
            memory_free_bytes: 80_000 * MIB,
            ..expected
        };
        assert_eq!(busy, expected);
    }

    #[test]
    fn energy_never_falls_when_the_clock_does() {
        let (mut device, profile) = h100();
        settle_energy(&mut device, &profile, 5_000);
        let before = device.energy;
        settle_energy(&mut device, &profile, 2_000);
        assert_eq!(device.energy, before);
    }

    #[test]
    fn absurd_process_memory_is_capped_by_the_card() {
        let (mut device, profile) = h100();
        device.processes = vec![Process { pid: 1, memory_mib: u64::MAX, sm_percent: 0 }; 2];
        let t = read(&device, &profile, 1_000);
        assert_eq!((t.memory_free_bytes, t.memory_used_bytes), (0, 81_008 * MIB));
    }
}
