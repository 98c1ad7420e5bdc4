//! A stretch of time of one device that becomes one record.
//!
//! Inputs: intervals between ticks. Output: the body of a record. Invariant: all of a span is of one award and one kind,
//! and its energy is the difference of the readings at its two ends.

use vendue_receipts::{
    Activity, ActivitySource, AwardId, Body, DeviceId, DriverVersion, Energy, Gap, GapReason, Used, Xids,
};

use super::clock::MS;
use super::tick::Reading;

/// What happened in an interval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// It was observed from end to end.
    Use {
        /// The driver that answered at both ends.
        driver: DriverVersion,
        /// What its activity is a share of.
        source: Option<ActivitySource>,
    },
    /// It was not.
    Gap(GapReason),
}

/// A span that may go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Span {
    pub award: AwardId,
    pub kind: Kind,
    pub t0_ns: u64,
    pub t1_ns: u64,
    /// The energy counter at the start, or before a gap.
    from_mj: Option<u64>,
    /// The energy counter at the end.
    to_mj: Option<u64>,
    /// Activity in millionths times nanoseconds.
    active: u128,
    memory_peak_bytes: Option<u64>,
    pub xids: Xids,
}

impl Span {
    /// A span that begins here.
    pub fn new(award: AwardId, kind: Kind, t0_ns: u64, from_mj: Option<u64>) -> Self {
        Self {
            award,
            kind,
            t0_ns,
            t1_ns: t0_ns,
            from_mj,
            to_mj: None,
            active: 0,
            memory_peak_bytes: None,
            xids: Xids::default(),
        }
    }

    /// Goes on to a tick that shows this.
    pub fn extend(&mut self, t1_ns: u64, reading: Option<&Reading>) {
        let length = t1_ns.saturating_sub(self.t1_ns);
        self.t1_ns = t1_ns;
        self.to_mj = reading.and_then(|r| r.energy_mj);
        let share = reading.and_then(|r| r.activity).map_or(0, |(_, millionths)| millionths.min(1_000_000));
        self.active += u128::from(share) * u128::from(length);
        self.memory_peak_bytes = self.memory_peak_bytes.max(reading.and_then(|r| r.memory_used_bytes));
    }

    fn energy(&self) -> Option<Energy> {
        let counter_mj = self.to_mj?;
        // A counter that began anew says nothing about the time before.
        Some(Energy { used_mj: counter_mj.checked_sub(self.from_mj?)?, counter_mj })
    }

    /// The record of this span.
    pub fn body(self, device: DeviceId) -> Body {
        let (t0_ms, t1_ms, energy) = (self.t0_ns / MS, self.t1_ns / MS, self.energy());
        let wall_ns = self.t1_ns.saturating_sub(self.t0_ns);
        match self.kind {
            Kind::Gap(reason) => {
                Body::Gap(Gap { device: Some(device), t0_ms, t1_ms, reason, energy, xids: self.xids })
            }
            Kind::Use { driver, source } => {
                let average = self.active.checked_div(u128::from(wall_ns)).unwrap_or_default();
                let activity = source.map(|source| Activity { source, average_millionths: average as u32 });
                Body::Used(Used {
                    device,
                    t0_ms,
                    t1_ms,
                    wall_ns,
                    energy,
                    activity,
                    memory_peak_bytes: self.memory_peak_bytes,
                    xids: self.xids,
                    driver,
                })
            }
        }
    }
}
