//! Notices that the system's clock was set, by comparing it with the clock that only counts.
//!
//! Inputs: readings of both clocks. Output: by how much the one jumped against the other. Slow corrections and a process
//! that is stopped between two readings are no steps.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    before: Instant,
    system_ms: i128,
    after: Instant,
}

impl Reading {
    /// Reads both clocks.
    pub fn now() -> Self {
        let before = Instant::now();
        let system_ms = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => i128::try_from(since.as_millis()).unwrap_or(i128::MAX),
            Err(error) => -i128::try_from(error.duration().as_millis()).unwrap_or(i128::MAX),
        };
        Self { before, system_ms, after: Instant::now() }
    }
}

/// The reading that the next one is compared with.
#[derive(Debug)]
pub struct Clock {
    last: Reading,
}

impl Clock {
    /// Starts to watch.
    pub fn new(now: Reading) -> Self {
        Self { last: now }
    }

    /// By how many milliseconds the system's clock was set since the last reading; none for up to `tolerated_ms`.
    pub fn step(&mut self, now: Reading, tolerated_ms: u64) -> Option<i64> {
        let last = std::mem::replace(&mut self.last, now);
        let ms = |from: Instant, to: Instant| {
            i128::try_from(to.saturating_duration_since(from).as_millis()).unwrap_or(i128::MAX)
        };
        let by = (now.system_ms - last.system_ms) - ms(last.before, now.before);
        // The process may be stopped while it reads, so a reading is only as sharp as it was quick.
        let blur = ms(last.before, last.after) + ms(now.before, now.after) + 2;
        let step = by.abs() > i128::from(tolerated_ms) + blur;
        step.then(|| i64::try_from(by).unwrap_or(if by < 0 { i64::MIN } else { i64::MAX }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn steps_are_told_from_time_that_passes() {
        let start = Instant::now();
        let at = |counted: u64, read_for: u64, system_ms: i128| Reading {
            before: start + Duration::from_millis(counted),
            system_ms,
            after: start + Duration::from_millis(counted + read_for),
        };
        let mut clock = Clock::new(at(0, 0, 1_000_000));
        assert_eq!(clock.step(at(500, 0, 1_000_500), 100), None);
        assert_eq!(clock.step(at(1_000, 0, 1_001_050), 100), None, "slewed");
        assert_eq!(clock.step(at(1_500, 0, 4_601_550), 100), Some(3_600_000));
        assert_eq!(clock.step(at(2_000, 0, 1_002_000), 100), Some(-3_600_050));
        assert_eq!(clock.step(at(2_500, 9_000, 1_011_400), 100), None, "stopped between the two clocks");
        assert_eq!(clock.step(at(12_000, 0, 1_012_000), 100), None);
        let mut boot = Clock::new(at(0, 0, 5));
        assert_eq!(boot.step(at(4_000, 0, 1_700_000_000_000), 100), Some(1_699_999_995_995));
    }
}
