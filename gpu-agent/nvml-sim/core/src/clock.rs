//! Virtual time: what the simulated machine's clock shows at a moment of real time. Pure.
//!
//! Input: nanoseconds since 1970. Output: the same unit, on the simulated clock. Invariant: virtual time does not run
//! backwards while real time does not, also across a change of rate ([`Clock::rebased`]).

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How virtual time follows real time. The default is real time itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Clock {
    /// Virtual seconds per real second; 0 is a clock that only [`Clock::advanced`] moves.
    pub rate: u32,
    /// A moment of real time.
    pub real_ns: u64,
    /// What the simulated clock shows at that moment.
    pub virtual_ns: u64,
}

impl Default for Clock {
    fn default() -> Self {
        Self { rate: 1, real_ns: 0, virtual_ns: 0 }
    }
}

impl Clock {
    /// A clock that stands at `virtual_ns` until it is advanced.
    #[must_use]
    pub fn stopped(virtual_ns: u64) -> Self {
        Self { rate: 0, real_ns: 0, virtual_ns }
    }

    /// A clock that shows `virtual_ns` at `real_ns` and runs `rate` times as fast from then on.
    #[must_use]
    pub fn running(rate: u32, real_ns: u64, virtual_ns: u64) -> Self {
        Self { rate, real_ns, virtual_ns }
    }

    /// What the clock shows. Before its own start it shows its start.
    #[must_use]
    pub fn at(&self, real_ns: u64) -> u64 {
        let elapsed = real_ns.saturating_sub(self.real_ns);
        self.virtual_ns.saturating_add(elapsed.saturating_mul(u64::from(self.rate)))
    }

    /// The same clock from `real_ns` on, at another rate.
    #[must_use]
    pub fn rebased(&self, real_ns: u64, rate: u32) -> Self {
        Self { rate, real_ns, virtual_ns: self.at(real_ns) }
    }

    /// The same clock, set forward.
    #[must_use]
    pub fn advanced(&self, by: Duration) -> Self {
        let by = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        Self { virtual_ns: self.virtual_ns.saturating_add(by), ..*self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_steps() {
        assert_eq!(Clock::default().at(1_700), 1_700, "the default is real time");
        let fast = Clock::running(100, 1_000, 50);
        assert_eq!([fast.at(0), fast.at(1_000), fast.at(1_003)], [50, 50, 350]);
        let stopped = fast.rebased(1_003, 0);
        assert_eq!([stopped.at(1_003), stopped.at(9_999)], [350, 350]);
        assert_eq!(stopped.advanced(Duration::from_nanos(7)).at(0), 357);
        assert_eq!(Clock::running(u32::MAX, 0, u64::MAX - 1).at(u64::MAX), u64::MAX, "saturates");
    }
}
