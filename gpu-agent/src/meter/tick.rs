//! What the meter is told.

use vendue_receipts::{ActivitySource, AwardId, BootId, DeviceId, DriverVersion};

/// One look at all devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tick {
    /// `CLOCK_BOOTTIME`: it goes on while the machine is suspended, and nobody can set it.
    pub steady_ns: u64,
    /// For how long the machine was suspended since it was started: `CLOCK_BOOTTIME` less `CLOCK_MONOTONIC`.
    pub suspended_ns: u64,
    /// The system clock, in milliseconds since 1970.
    pub system_ms: u64,
    /// The boot.
    pub boot: BootId,
    /// The devices that are there or ought to be. One that is not named was taken out.
    pub devices: Vec<DeviceTick>,
    /// Awards that have ended.
    pub ended: Vec<AwardId>,
}

/// One device at a tick.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceTick {
    /// Which.
    pub device: DeviceId,
    /// Whom it serves now.
    pub award: AwardId,
    /// Xid events since the tick before.
    pub xids: Vec<u32>,
    /// What it shows.
    pub reading: Result<Reading, Unreadable>,
}

/// What a device shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// The energy counter in millijoules.
    pub energy_mj: Option<u64>,
    /// How busy it was since the tick before, in millionths, and what that is a share of.
    pub activity: Option<(ActivitySource, u32)>,
    /// Memory in use.
    pub memory_used_bytes: Option<u64>,
    /// Version of the driver.
    pub driver: DriverVersion,
}

/// Why a device shows nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreadable {
    /// The driver has lost it.
    Lost,
    /// It does not answer, or the driver does not.
    NotReadable,
}
