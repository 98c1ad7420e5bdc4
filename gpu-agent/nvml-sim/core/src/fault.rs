//! What can happen to a device or to the driver, and when.
//!
//! A state file holds a list of [`Event`]s; each takes effect once the simulated clock reaches its time and stays in
//! force unless it has a duration. `at_ns` may lie in the future (a script) or be now (an injection).

use serde::{Deserialize, Serialize};

use crate::state::{DeviceHealth, MigInstance};

/// Something that happens at one moment of virtual time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Event {
    /// When, in nanoseconds on the simulated clock.
    pub at_ns: u64,
    /// Index of the device; without it, all devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<u32>,
    /// What.
    pub fault: Fault,
}

impl Event {
    /// Whether it happens to the device.
    #[must_use]
    pub fn concerns(&self, device: u32) -> bool {
        self.device.is_none_or(|d| d == device)
    }
}

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "kind", deny_unknown_fields)]
pub enum Fault {
    /// The driver reports an Xid. It has no other effect: script those beside it.
    Xid {
        /// Code in NVIDIA's Xid catalogue.
        code: u64,
    },
    /// Memory errors; counted, and reported as single-bit and double-bit events.
    Ecc {
        /// Number of corrected (single-bit) errors.
        #[serde(default)]
        corrected: u64,
        /// Number of uncorrected (double-bit) errors.
        #[serde(default)]
        uncorrected: u64,
        /// Whether they are in SRAM rather than in device memory.
        #[serde(default)]
        sram: bool,
    },
    /// Rows of memory are, or are to be, replaced by spare ones.
    RowRemap {
        /// Rows replaced for corrected errors.
        #[serde(default)]
        correctable: u32,
        /// Rows replaced for uncorrected errors.
        #[serde(default)]
        uncorrectable: u32,
        /// Whether a replacement waits for a reset; a driver reload clears it.
        #[serde(default)]
        pending: bool,
        /// Whether a replacement failed for want of spare rows.
        #[serde(default)]
        failed: bool,
    },
    /// Clocks are cut.
    Throttle {
        /// Why.
        reason: ThrottleReason,
        /// Highest clock that is left, in percent of the profile's.
        clock_percent: u32,
        /// For how long; without it, until `recover`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        for_ns: Option<u64>,
    },
    /// Calls on the device block.
    Hang {
        /// For how long; without it, until `recover`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        for_ns: Option<u64>,
    },
    /// The device takes on a condition: `lost` falls off the bus and stays lost.
    Health {
        /// The condition.
        health: DeviceHealth,
    },
    /// The device is healthy again and runs at full clocks; counters stay.
    Recover,
    /// The kernel module is unloaded and, after the time given, loaded again. Counters that the driver keeps start at
    /// zero, pending row remaps are done, and every session of before is stale. Lost devices stay lost until `Recover`.
    DriverReload {
        /// How long no driver is there.
        #[serde(default)]
        for_ns: u64,
    },
    /// The device answers with another UUID from now on.
    Uuid {
        /// The new UUID.
        uuid: String,
    },
    /// MIG mode and instances are set anew.
    Mig {
        /// Whether MIG mode is on.
        enabled: bool,
        /// The instances.
        #[serde(default)]
        instances: Vec<MigInstance>,
    },
}

/// Why clocks are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ThrottleReason {
    /// The chip reached its slowdown temperature.
    HwThermal,
    /// The driver keeps the chip below its highest operating temperature.
    SwThermal,
    /// The board's power brake is pulled, as by a power supply.
    HwPowerBrake,
    /// The power limit holds clocks down.
    SwPowerCap,
}

impl ThrottleReason {
    /// Bits of NVML's `nvmlClocksEventReason*`; hardware reasons set the common hardware bit too.
    #[must_use]
    pub fn bits(self) -> u64 {
        match self {
            Self::HwThermal => 0x40 | 0x08,
            Self::SwThermal => 0x20,
            Self::HwPowerBrake => 0x80 | 0x08,
            Self::SwPowerCap => 0x04,
        }
    }

    /// Whether heat is the reason: the device then reads its slowdown temperature.
    #[must_use]
    pub fn is_thermal(self) -> bool {
        matches!(self, Self::HwThermal | Self::SwThermal)
    }
}

/// What event sets hear of a fault: nothing of most.
#[must_use]
pub fn occurrences(fault: &Fault) -> Vec<Occurrence> {
    match fault {
        Fault::Xid { code } => vec![Occurrence { kind: OccurrenceKind::Xid, data: *code }],
        Fault::Ecc { corrected, uncorrected, .. } => {
            let single = Occurrence { kind: OccurrenceKind::SingleBitEcc, data: 0 };
            let double = Occurrence { kind: OccurrenceKind::DoubleBitEcc, data: 0 };
            let mut list = vec![single; usize::from(*corrected > 0)];
            list.extend(vec![double; usize::from(*uncorrected > 0)]);
            list
        }
        Fault::Mig { .. } => vec![Occurrence { kind: OccurrenceKind::MigConfigChange, data: 0 }],
        _ => Vec::new(),
    }
}

/// Something that an NVML event set hears of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Occurrence {
    /// Type of the event.
    pub kind: OccurrenceKind,
    /// The Xid, or 0.
    pub data: u64,
}

/// Types of NVML events that the simulator delivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OccurrenceKind {
    /// `nvmlEventTypeXidCriticalError`.
    Xid,
    /// `nvmlEventTypeSingleBitEccError`.
    SingleBitEcc,
    /// `nvmlEventTypeDoubleBitEccError`.
    DoubleBitEcc,
    /// `nvmlEventMigConfigChange`.
    MigConfigChange,
}

impl OccurrenceKind {
    /// Bit of the event type.
    #[must_use]
    pub fn bit(self) -> u64 {
        match self {
            Self::SingleBitEcc => 0x1,
            Self::DoubleBitEcc => 0x2,
            Self::Xid => 0x8,
            Self::MigConfigChange => 0x100,
        }
    }
}

/// All bits of [`OccurrenceKind`].
pub const SUPPORTED_EVENTS: u64 = 0x1 | 0x2 | 0x8 | 0x100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_plain_json() {
        let text = r#"[
            {"atNs": 5, "device": 1, "fault": {"kind": "xid", "code": 79}},
            {"atNs": 6, "fault": {"kind": "driverReload", "forNs": 3}},
            {"atNs": 7, "device": 0, "fault": {"kind": "throttle", "reason": "hwThermal", "clockPercent": 50}},
            {"atNs": 8, "device": 0, "fault": {"kind": "health", "health": "lost"}}
        ]"#;
        let events: Vec<Event> = serde_json::from_str(text).expect("parse");
        assert_eq!(events[0].fault, Fault::Xid { code: 79 });
        assert!(events[0].concerns(1) && !events[0].concerns(0) && events[1].concerns(7));
        let again: Vec<Event> =
            serde_json::from_str(&serde_json::to_string(&events).expect("json")).expect("parse");
        assert_eq!(again, events);
        let wrong = serde_json::from_str::<Event>(r#"{"atNs":1,"fault":{"kind":"xid","cod":1}}"#);
        assert!(wrong.is_err(), "unknown fields are refused");
    }

    #[test]
    fn event_bits_are_those_of_nvml() {
        use nvml_wrapper_sys::bindings as sys;
        assert_eq!(OccurrenceKind::Xid.bit(), u64::from(sys::nvmlEventTypeXidCriticalError));
        assert_eq!(OccurrenceKind::SingleBitEcc.bit(), u64::from(sys::nvmlEventTypeSingleBitEccError));
        assert_eq!(OccurrenceKind::DoubleBitEcc.bit(), u64::from(sys::nvmlEventTypeDoubleBitEccError));
        assert_eq!(ThrottleReason::SwThermal.bits(), u64::from(sys::nvmlClocksEventReasonSwThermalSlowdown));
        let hardware = u64::from(sys::nvmlClocksThrottleReasonHwSlowdown);
        assert_eq!(
            ThrottleReason::HwThermal.bits(),
            hardware | u64::from(sys::nvmlClocksThrottleReasonHwThermalSlowdown)
        );
        assert_eq!(
            ThrottleReason::HwPowerBrake.bits(),
            hardware | u64::from(sys::nvmlClocksThrottleReasonHwPowerBrakeSlowdown)
        );
        assert_eq!(ThrottleReason::SwPowerCap.bits(), u64::from(sys::nvmlClocksThrottleReasonSwPowerCap));
    }
}
