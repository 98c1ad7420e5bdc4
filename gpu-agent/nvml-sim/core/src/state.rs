//! The state file: which simulated GPUs exist, and how they fare.
//!
//! Input: JSON text, or a list of profiles with counts and a seed. Output: [`State`]. Invariant: a [`State`] that
//! came through [`State::parse`] or [`State::generate`] is consistent: each device names a profile that is there,
//! and indexes count up from 0.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use crate::energy::EnergyMark;

use crate::clock::Clock;
use crate::fault::Event;
use crate::profile::{self, Profile, ProfileError};

/// Highest number of devices in one state file.
pub const MAX_DEVICES: usize = 64;

/// Highest number of events in one state file; every reader goes through all of them.
pub const MAX_EVENTS: usize = 65_536;

/// Driver version that new state files get; from 580.82 on NVML's newer numbering of field ids applies.
pub const DEFAULT_DRIVER_VERSION: &str = "580.95.05";

/// Everything the simulated driver knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct State {
    /// The simulated driver.
    pub driver: Driver,
    /// Profiles in use, by name.
    pub profiles: BTreeMap<String, Profile>,
    /// The devices, in order of index.
    pub devices: Vec<Device>,
    /// The simulated clock.
    #[serde(default)]
    pub clock: Clock,
    /// What happens, and when; in any order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<Event>,
}

/// The simulated driver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Driver {
    /// Version of the kernel driver, for example `580.95.05`.
    pub version: String,
    /// CUDA version as NVML encodes it: 1000 times major plus 10 times minor.
    pub cuda_version: i32,
    /// Whether the driver answers.
    #[serde(default)]
    pub health: DriverHealth,
}

impl Driver {
    /// Version of the management library that belongs to the driver.
    #[must_use]
    pub fn nvml_version(&self) -> String {
        format!("{}.{}", self.cuda_version / 1000, self.version)
    }
}

/// Whether the driver answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DriverHealth {
    /// It answers.
    #[default]
    Loaded,
    /// The kernel module is missing: initialisation fails.
    NotLoaded,
    /// Library and kernel module differ in version, as after an upgrade without a reboot: initialisation fails.
    Mismatch,
}

/// Condition of one device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DeviceHealth {
    /// It works.
    #[default]
    Healthy,
    /// It fell off the bus: its handle cannot be had, and every call on an older handle says `GPU_IS_LOST`.
    Lost,
    /// Its memory is damaged beyond repair: row remapping failed, uncorrected errors are counted.
    EccFailed,
    /// Reads of its sensors block until the state changes, as with a wedged firmware.
    Hung,
}

/// One simulated GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Device {
    /// Position on the bus, from 0.
    pub index: u32,
    /// Name of its profile in [`State::profiles`].
    pub profile: String,
    /// UUID as NVML gives it, for example `GPU-5fb3...`.
    pub uuid: String,
    /// Serial number.
    pub serial: String,
    /// Place on the PCI bus.
    pub pci: PciAddress,
    /// Condition.
    #[serde(default)]
    pub health: DeviceHealth,
    /// Whether MIG mode is on (on a card that can).
    #[serde(default)]
    pub mig_enabled: bool,
    /// MIG instances, if the mode is on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mig_instances: Vec<MigInstance>,
    /// Share of time that kernels ran, in percent.
    #[serde(default)]
    pub gpu_utilization_percent: u32,
    /// Share of time that memory was read or written, in percent.
    #[serde(default)]
    pub memory_utilization_percent: u32,
    /// Processes that hold the device.
    #[serde(default)]
    pub processes: Vec<Process>,
    /// Energy used so far.
    #[serde(default)]
    pub energy: EnergyMark,
    /// Memory errors that were corrected.
    #[serde(default)]
    pub ecc_corrected: u64,
    /// Memory errors that were not.
    #[serde(default)]
    pub ecc_uncorrected: u64,
    /// How the card deceives.
    #[serde(default, skip_serializing_if = "Disguise::is_none")]
    pub disguise: Disguise,
}

/// How what a card is differs from what it says. Measurements through the CUDA driver show the truth.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Disguise {
    /// Name, in [`State::profiles`], of the card that it really is; `profile` is what it says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub real_profile: Option<String>,
    /// Memory that it says it has, in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// Share of the true power that sensor and energy counter show, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power_percent: Option<u32>,
    /// Share of the clock shown that it really runs at, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_percent: Option<u32>,
}

impl Disguise {
    /// Whether the card is honest.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// One MIG device: a GPU instance with one compute instance that fills it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MigInstance {
    /// Id of the GPU instance.
    pub gpu_instance_id: u32,
    /// Name of its profile, for example `1g.10gb`.
    pub profile: String,
    /// First memory slice that it takes.
    pub start: u32,
    /// UUID, for example `MIG-5fb3...`.
    pub uuid: String,
}

/// Place on the PCI bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PciAddress {
    /// PCI domain.
    pub domain: u32,
    /// PCI bus.
    pub bus: u32,
    /// PCI device.
    pub device: u32,
}

impl PciAddress {
    /// With the eight-digit domain that current drivers print, for example `00000000:1B:00.0`.
    #[must_use]
    pub fn long(&self) -> String {
        format!("{:08X}:{:02X}:{:02X}.0", self.domain, self.bus, self.device)
    }

    /// With the four-digit domain of older drivers, for example `0000:1B:00.0`.
    #[must_use]
    pub fn legacy(&self) -> String {
        format!("{:04X}:{:02X}:{:02X}.0", self.domain & 0xFFFF, self.bus, self.device)
    }
}

/// A process that holds a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Device memory that it holds, in MiB.
    pub memory_mib: u64,
    /// Its share of the SMs, in percent.
    #[serde(default)]
    pub sm_percent: u32,
}

/// Why a text is no usable state.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It is not JSON of the right shape.
    #[error("parse state: {0}")]
    Json(#[from] serde_json::Error),
    /// It contradicts itself.
    #[error("check state: {0}")]
    Inconsistent(String),
    /// A profile is missing.
    #[error(transparent)]
    Profile(#[from] ProfileError),
}

impl State {
    /// Parses and checks a state file's text.
    ///
    /// # Errors
    /// When the text is no JSON of this shape or contradicts itself.
    pub fn parse(text: &[u8]) -> Result<Self, StateError> {
        let state: Self = serde_json::from_slice(text)?;
        state.check()?;
        Ok(state)
    }

    /// New, healthy, idle devices. The same seed gives the same devices, on any machine.
    ///
    /// # Errors
    /// When a profile is unknown or there are more than [`MAX_DEVICES`].
    pub fn generate(groups: &[(String, usize)], seed: &str, now_unix_ms: u64) -> Result<Self, StateError> {
        let mut state = Self {
            driver: Driver {
                version: DEFAULT_DRIVER_VERSION.to_owned(),
                cuda_version: 13_000,
                health: DriverHealth::Loaded,
            },
            profiles: BTreeMap::new(),
            devices: Vec::new(),
            clock: Clock::default(),
            events: Vec::new(),
        };
        for (name, count) in groups {
            let (name, profile) = profile::built_in(name)?;
            state.profiles.insert(name.clone(), profile);
            for _ in 0..(*count).min(MAX_DEVICES + 1) {
                let index = u32::try_from(state.devices.len()).unwrap_or(u32::MAX);
                state.devices.push(Device::new(index, &name, seed, now_unix_ms));
            }
        }
        state.check()?;
        Ok(state)
    }

    /// Whether the state is consistent.
    ///
    /// # Errors
    /// When it contradicts itself; the message names the field.
    pub fn check(&self) -> Result<(), StateError> {
        if self.devices.len() > MAX_DEVICES {
            let message = format!("{} devices, at most {MAX_DEVICES} are allowed", self.devices.len());
            return Err(StateError::Inconsistent(message));
        }
        for (position, device) in self.devices.iter().enumerate() {
            if usize::try_from(device.index).ok() != Some(position) {
                let message = format!("devices[{position}].index is {}, expected {position}", device.index);
                return Err(StateError::Inconsistent(message));
            }
            let real = device.disguise.real_profile.as_ref();
            for (field, name) in [("profile", Some(&device.profile)), ("disguise.realProfile", real)] {
                if let Some(name) = name.filter(|name| !self.profiles.contains_key(*name)) {
                    let message = format!("devices[{position}].{field} {name:?} is not in profiles");
                    return Err(StateError::Inconsistent(message));
                }
            }
            self.check_mig(position, device)?;
        }
        if self.events.len() > MAX_EVENTS {
            let message = format!("{} events, at most {MAX_EVENTS} are allowed", self.events.len());
            return Err(StateError::Inconsistent(message));
        }
        for (position, event) in self.events.iter().enumerate() {
            if let Some(device) = event.device.filter(|d| self.device(*d).is_none()) {
                let message = format!(
                    "events[{position}].device is {device}, but there are {} devices",
                    self.devices.len()
                );
                return Err(StateError::Inconsistent(message));
            }
        }
        Ok(())
    }

    fn check_mig(&self, position: usize, device: &Device) -> Result<(), StateError> {
        let Some(profile) = self.profiles.get(&device.profile) else { return Ok(()) };
        match device.mig_instances.iter().find(|i| profile.mig_profile(&i.profile).is_none()) {
            None => Ok(()),
            Some(instance) => Err(StateError::Inconsistent(format!(
                "devices[{position}].migInstances has profile {:?}, accepted for {}: {}",
                instance.profile,
                device.profile,
                profile.mig_profile_names()
            ))),
        }
    }

    /// The card that a device really is.
    #[must_use]
    pub fn real_profile(&self, device: &Device) -> Option<&Profile> {
        self.profiles.get(device.disguise.real_profile.as_ref().unwrap_or(&device.profile))
    }

    /// The device with its profile.
    #[must_use]
    pub fn device(&self, index: u32) -> Option<(&Device, &Profile)> {
        let device = self.devices.get(usize::try_from(index).ok()?)?;
        Some((device, self.profiles.get(&device.profile)?))
    }
}

impl Device {
    fn new(index: u32, profile: &str, seed: &str, now_unix_ms: u64) -> Self {
        let high = mix(seed_hash(seed), u64::from(index) * 2);
        let low = mix(high, u64::from(index) * 2 + 1);
        Self {
            index,
            profile: profile.to_owned(),
            uuid: uuid("GPU", high, low),
            serial: format!("16{:011}", mix(low, 3) % 100_000_000_000),
            pci: PciAddress { domain: 0, bus: 0x10 + index * 3 % 0xE0, device: 0 },
            health: DeviceHealth::Healthy,
            mig_enabled: false,
            mig_instances: Vec::new(),
            gpu_utilization_percent: 0,
            memory_utilization_percent: 0,
            processes: Vec::new(),
            energy: EnergyMark { at_ns: now_unix_ms.saturating_mul(1_000_000), ..EnergyMark::default() },
            ecc_corrected: 0,
            ecc_uncorrected: 0,
            disguise: Disguise::default(),
        }
    }
}

/// FNV-1a: enough to spread seeds, with no dependency and the same on every machine.
fn seed_hash(seed: &str) -> u64 {
    seed.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// One step of SplitMix64.
fn mix(seed: u64, step: u64) -> u64 {
    let mut z = seed.wrapping_add(step.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// 128 bits in NVML's notation.
fn uuid(prefix: &str, high: u64, low: u64) -> String {
    let hex = format!("{high:016x}{low:016x}");
    format!("{prefix}-{}-{}-{}-{}-{}", &hex[0..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..32])
}

/// A UUID that follows from a text and a number.
#[must_use]
pub fn derived_uuid(prefix: &str, text: &str, number: u32) -> String {
    let high = mix(seed_hash(text), u64::from(number));
    uuid(prefix, high, mix(high, u64::from(number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(list: &[(&str, usize)]) -> Vec<(String, usize)> {
        list.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }

    #[test]
    fn same_seed_same_devices_other_seed_other_uuids() {
        let make = |seed| State::generate(&groups(&[("H100", 2), ("L40S", 1)]), seed, 5).expect("state");
        let (a, b, c) = (make("alpha"), make("alpha"), make("bravo"));
        assert_eq!(a, b);
        let uuids = |s: &State| s.devices.iter().map(|d| d.uuid.clone()).collect::<Vec<_>>();
        assert!(uuids(&a).iter().all(|u| !uuids(&c).contains(u)));
        let profiles: Vec<_> = a.devices.iter().map(|d| d.profile.as_str()).collect();
        assert_eq!(profiles, ["H100", "H100", "L40S"]);
        assert!(
            a.devices[0].uuid.len() == 40 && a.devices[0].uuid.starts_with("GPU-"),
            "{}",
            a.devices[0].uuid
        );
    }

    #[test]
    fn sixty_four_devices_are_distinct_and_sixty_five_are_refused() {
        let state = State::generate(&groups(&[("A100", 64)]), "s", 0).expect("64 devices");
        let distinct = |key: fn(&Device) -> String| {
            state.devices.iter().map(key).collect::<std::collections::BTreeSet<_>>().len()
        };
        assert_eq!(
            [distinct(|d| d.uuid.clone()), distinct(|d| d.pci.long()), distinct(|d| d.serial.clone())],
            [64; 3]
        );
        let error = State::generate(&groups(&[("A100", 65)]), "s", 0).expect_err("65 devices");
        assert_eq!(error.to_string(), "check state: 65 devices, at most 64 are allowed");
    }

    #[test]
    fn text_round_trips_and_contradictions_are_named() {
        let state = State::generate(&groups(&[("H100", 1)]), "s", 7).expect("state");
        let text = serde_json::to_string(&state).expect("json");
        assert_eq!(State::parse(text.as_bytes()).expect("parse"), state);

        let bent = text.replace(r#""index":0"#, r#""index":4"#);
        let error = State::parse(bent.as_bytes()).expect_err("wrong index");
        assert_eq!(error.to_string(), "check state: devices[0].index is 4, expected 0");
        let event = Event { at_ns: 0, device: None, fault: crate::fault::Fault::Recover };
        let crowded = State { events: vec![event; MAX_EVENTS + 1], ..state.clone() };
        let error = crowded.check().expect_err("too many events");
        assert_eq!(error.to_string(), "check state: 65537 events, at most 65536 are allowed");
        let bent = text.replace(r#""profile":"H100""#, r#""profile":"B300""#);
        let error = State::parse(bent.as_bytes()).expect_err("missing profile");
        assert_eq!(error.to_string(), r#"check state: devices[0].profile "B300" is not in profiles"#);
        assert!(State::parse(&text.as_bytes()[..text.len() / 2]).is_err(), "truncated");
    }

    #[test]
    fn pci_addresses_have_both_notations() {
        let pci = PciAddress { domain: 0, bus: 0x1b, device: 0 };
        assert_eq!((pci.long(), pci.legacy()), ("00000000:1B:00.0".to_owned(), "0000:1B:00.0".to_owned()));
    }
}
