//! The record: what it says, and its JSON form. Its bytes are made in `encoding`.
//!
//! Invariant: a record that was read, from bytes or JSON, is well formed; whether it is true to its chain is for
//! [`crate::Chain`] to say.

use crate::names::{AwardId, BootId, DeviceId, DriverVersion, PublicKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use vendue_market::Digest;
use vendue_market::encode::{DecodeError, hex_array};

/// The version of the format, a number in JSON. There is one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Version;

impl Version {
    /// The number.
    pub const NUMBER: u8 = 1;
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u8(Self::NUMBER)
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        match u8::deserialize(d)? {
            Self::NUMBER => Ok(Self),
            other => Err(D::Error::custom(format!("version {other}; accepted is {}", Self::NUMBER))),
        }
    }
}

/// One link of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Version of the format.
    pub version: Version,
    /// The award; zero for idle time.
    pub award: AwardId,
    /// Counts the records of the chain from 0.
    pub sequence: u64,
    /// Digest of the record before; zero for the first.
    #[serde(with = "hex_array")]
    pub previous: Digest,
    /// What it says.
    pub body: Body,
    /// The node's signature, `r | s | recovery id`.
    #[serde(with = "hex_array")]
    pub signature: [u8; 65],
}

/// What a record says. Times are chain time: Unix milliseconds at the node's first opening plus the time that has passed
/// since, whatever is done to the system clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    /// The chain begins.
    Opened(Opened),
    /// A device was used and observed.
    Used(Used),
    /// A device was not observed.
    Gap(Gap),
    /// The system clock was found away from chain time.
    Clock(Clock),
    /// Another key signs from here on.
    Rotated(Rotated),
    /// The chain ends.
    Closed(Closed),
}

/// The first record of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Opened {
    /// The node's key, which signs this record.
    pub public_key: PublicKey,
    /// The boot in which the chain began.
    pub boot: BootId,
    /// When.
    pub time_ms: u64,
}

/// A window in which a device was observed from end to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Used {
    /// The device.
    pub device: DeviceId,
    /// Start.
    pub t0_ms: u64,
    /// End.
    pub t1_ms: u64,
    /// Length by the steady clock; within a millisecond of the difference of the times.
    pub wall_ns: u64,
    /// Energy; none on a device without a counter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy: Option<Energy>,
    /// How busy it was; none where the driver does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activity: Option<Activity>,
    /// The most memory in use at any reading; none where the driver does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_peak_bytes: Option<u64>,
    /// Xid events.
    #[serde(default, skip_serializing_if = "Xids::is_empty")]
    pub xids: Xids,
    /// Version of the driver.
    pub driver: DriverVersion,
}

/// Energy between two readings of a device's counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Energy {
    /// The difference of the readings in millijoules.
    pub used_mj: u64,
    /// The later reading. The next window begins with it, so that no energy is in two windows and none in between.
    pub counter_mj: u64,
}

/// Share of time, averaged over a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Activity {
    /// What is averaged.
    pub source: ActivitySource,
    /// In millionths; at most 1,000,000.
    pub average_millionths: u32,
}

/// What an activity is the average of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActivitySource {
    /// Share of the SMs with a warp assigned (GPM's SM utilization).
    SmActive,
    /// Share of time in which any kernel ran (NVML's GPU utilization): one small kernel is 100 %.
    Utilization,
}

/// A window in which a device was not observed. It costs nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gap {
    /// The device; none for all devices of the chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
    /// Start.
    pub t0_ms: u64,
    /// End.
    pub t1_ms: u64,
    /// Why.
    pub reason: GapReason,
    /// Energy since the last reading before the gap, where the counter went on: nobody's, but there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy: Option<Energy>,
    /// Xid events.
    #[serde(default, skip_serializing_if = "Xids::is_empty")]
    pub xids: Xids,
}

/// Why a device was not observed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GapReason {
    /// The agent did not run, or did not get to look.
    AgentDown,
    /// The machine was down.
    Reboot,
    /// The driver lost the device.
    DeviceLost,
    /// The device was there but did not answer.
    DeviceNotReadable,
    /// The energy counter began anew: the driver was loaded again.
    CounterReset,
    /// Records could not be stored.
    StoreFailed,
    /// The stored records were lost.
    DiskLost,
    /// The steady clock jumped.
    Clock,
    /// The machine was suspended.
    Suspend,
}

impl GapReason {
    /// All of them, by code.
    pub const ALL: [Self; 9] = [
        Self::AgentDown,
        Self::Reboot,
        Self::DeviceLost,
        Self::DeviceNotReadable,
        Self::CounterReset,
        Self::StoreFailed,
        Self::DiskLost,
        Self::Clock,
        Self::Suspend,
    ];

    /// Whether the energy counter after such a gap has nothing to do with the one before.
    pub fn resets_counter(self) -> bool {
        matches!(self, Self::Reboot | Self::CounterReset | Self::DiskLost)
    }
}

/// Chain time and the system clock at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clock {
    /// Chain time.
    pub time_ms: u64,
    /// The system clock.
    pub system_ms: u64,
}

impl Clock {
    /// How far the system clock is ahead of chain time.
    #[must_use]
    pub fn offset_ms(&self) -> i64 {
        let difference = i128::from(self.system_ms) - i128::from(self.time_ms);
        i64::try_from(difference).unwrap_or(if difference < 0 { i64::MIN } else { i64::MAX })
    }
}

/// The next key, named by the old one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotated {
    /// When.
    pub time_ms: u64,
    /// What signs the records after this one.
    pub next_key: PublicKey,
}

/// The last record of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Closed {
    /// When.
    pub time_ms: u64,
}

/// Xid events of one code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Xid {
    /// NVIDIA's code; 0 for all codes for which there was no room.
    pub code: u32,
    /// How many.
    pub count: u32,
}

/// Most codes in a record.
pub const MAX_XIDS: usize = 64;

/// Xid events by code, codes ascending, at most [`MAX_XIDS`] codes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Vec<Xid>", try_from = "Vec<Xid>")]
pub struct Xids(Vec<Xid>);

impl Xids {
    /// Counts one more event. What there is no room for counts as code 0.
    pub fn add(&mut self, code: u32) {
        self.count(Xid { code, count: 1 });
    }
    /// Counts the events of others too.
    pub fn merge(&mut self, others: &Xids) {
        others.0.iter().for_each(|xid| self.count(*xid));
    }
    fn count(&mut self, more: Xid) {
        match self.0.binary_search_by_key(&more.code, |xid| xid.code) {
            Ok(at) => {
                if let Some(xid) = self.0.get_mut(at) {
                    xid.count = xid.count.saturating_add(more.count);
                }
            }
            // One place is kept for code 0.
            Err(at) if more.code == 0 || self.0.len() + 1 < MAX_XIDS => self.0.insert(at, more),
            Err(_) => self.count(Xid { code: 0, ..more }),
        }
    }
    /// Whether there was none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// By code.
    pub fn as_slice(&self) -> &[Xid] {
        &self.0
    }
}

impl From<Xids> for Vec<Xid> {
    fn from(xids: Xids) -> Self {
        xids.0
    }
}

impl TryFrom<Vec<Xid>> for Xids {
    type Error = DecodeError;
    fn try_from(xids: Vec<Xid>) -> Result<Self, DecodeError> {
        if xids.len() > MAX_XIDS {
            return Err(DecodeError::TooLong { what: "xids", found: xids.len(), max: MAX_XIDS });
        }
        let ascend = xids.windows(2).all(|pair| matches!(pair, [a, b] if a.code < b.code));
        let counted = xids.iter().all(|xid| xid.count > 0);
        if ascend && counted { Ok(Self(xids)) } else { Err(DecodeError::Invalid("xids")) }
    }
}

impl Body {
    /// The moment at which it is said: the end of a window.
    pub fn time_ms(&self) -> u64 {
        match self {
            Self::Opened(opened) => opened.time_ms,
            Self::Used(used) => used.t1_ms,
            Self::Gap(gap) => gap.t1_ms,
            Self::Clock(clock) => clock.time_ms,
            Self::Rotated(rotated) => rotated.time_ms,
            Self::Closed(closed) => closed.time_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xids_are_counted_by_code_and_bounded() {
        let mut xids = Xids::default();
        [79, 31, 79].into_iter().for_each(|code| xids.add(code));
        assert_eq!(xids.as_slice(), [Xid { code: 31, count: 1 }, Xid { code: 79, count: 2 }]);
        (1_000..1_100).for_each(|code| xids.add(code));
        assert_eq!(xids.as_slice().len(), MAX_XIDS);
        // Two codes were there, one place is for code 0.
        assert_eq!(xids.as_slice()[0], Xid { code: 0, count: 100 - (MAX_XIDS as u32 - 3) });
        xids.add(79);
        let all: u32 = xids.as_slice().iter().map(|x| x.count).sum();
        assert_eq!(all, 104);
        assert_eq!(Xids::try_from(xids.as_slice().to_vec()), Ok(xids));
    }

    #[test]
    fn lists_of_xids_in_another_form_are_refused() {
        let xid = |code, count| Xid { code, count };
        for bad in [vec![xid(2, 1), xid(1, 1)], vec![xid(1, 1), xid(1, 1)], vec![xid(1, 0)]] {
            assert_eq!(Xids::try_from(bad), Err(DecodeError::Invalid("xids")));
        }
        let many: Vec<Xid> = (0..65).map(|code| xid(code, 1)).collect();
        assert_eq!(
            Xids::try_from(many),
            Err(DecodeError::TooLong { what: "xids", found: 65, max: MAX_XIDS })
        );
    }
}
