//! Whether a reading says what was at its time. Pure.
//!
//! A reading takes as long as its calls: what was read first is that old at its end. When each takes equally long, each device is
//! read equally late each time, and what changed between two readings changed between them; only a change of how long they take
//! moves energy from one second to another.
//!
//! * Input: how long each reading took. Output: whether it is late.
//! * Invariants: no reading that is not late moves a device's time by more than `LATE` against one of the two before it that were
//!   not, or that it agrees with; nothing longer than `LONGEST` counts.

use std::time::Duration;

/// By so much readings may differ in length.
const LATE: Duration = Duration::from_secs(1);

/// Longest reading that can be right: behind it, awards could have ended and begun.
const LONGEST: Duration = Duration::from_secs(4);

/// How long the readings of before took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lateness {
    /// The last one.
    last: Duration,
    /// The last one that was not late.
    good: Duration,
}

impl Lateness {
    /// Takes how long a reading took; says whether it is late.
    pub fn is_late(&mut self, took: Duration) -> bool {
        // A length that is new is believed when it comes a second time.
        let is_usual = took.abs_diff(self.good) <= LATE || took.abs_diff(self.last) <= LATE;
        let is_good = took <= LATE || (is_usual && took <= LONGEST);
        self.last = took;
        if is_good {
            self.good = took;
        }
        !is_good
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn late(milliseconds: &[u64]) -> Vec<bool> {
        let mut lateness = Lateness::default();
        milliseconds.iter().map(|ms| lateness.is_late(Duration::from_millis(*ms))).collect()
    }

    #[test]
    fn a_reading_that_takes_longer_than_the_others_is_late() {
        assert_eq!(late(&[5, 5, 3_000, 5, 5]), [false, false, true, false, false]);
        assert_eq!(late(&[1_000, 1_001]), [false, false]);
    }

    #[test]
    fn readings_that_always_take_long_are_not_late() {
        // 64 devices of 17 calls of 2 ms.
        assert_eq!(late(&[2_176, 2_180, 2_170, 2_400, 2_176]), [true, false, false, false, false]);
        // A hang among them, and one that is over.
        assert_eq!(late(&[2_200, 2_200, 3_900, 2_200]), [true, false, true, false]);
        // A device more, or a driver that became slower.
        assert_eq!(late(&[100, 100, 2_200, 2_200]), [false, false, true, false]);
    }

    #[test]
    fn nothing_that_takes_very_long_is_right() {
        assert_eq!(late(&[4_100, 4_100, 4_100]), [true, true, true]);
    }
}
