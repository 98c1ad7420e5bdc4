//! Keeps a trouble that comes and goes from being news each time. Pure.
//!
//! * Inputs: whether the trouble is there, the time. Output: the trouble to tell of, if any.
//! * Invariants: a trouble is told at once; one that was away for long is over at once when it is over; one that comes back
//!   soon after is over only after a quiet time, twice as long each time.

use std::time::Duration;

use super::times::Times;

/// One kind of trouble.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold<T> {
    told: Option<T>,
    /// When it was last there.
    last: Duration,
    /// For how long it must be away; zero when it did not come back.
    quiet: Duration,
}

impl<T> Default for Hold<T> {
    fn default() -> Self {
        Self { told: None, last: Duration::ZERO, quiet: Duration::ZERO }
    }
}

impl<T> Hold<T> {
    /// Takes what is wrong now, if something is.
    pub fn see(&mut self, trouble: Option<T>, now: Duration, times: &Times) {
        match trouble {
            Some(trouble) => {
                if self.told.is_none() {
                    self.quiet = self.quiet_after(now, times);
                }
                (self.told, self.last) = (Some(trouble), now);
            }
            None if now.saturating_sub(self.last) >= self.quiet => self.told = None,
            None => {}
        }
    }

    /// What to tell of.
    #[must_use]
    pub fn told(&self) -> Option<&T> {
        self.told.as_ref()
    }

    /// How long a trouble that begins now has to be away.
    fn quiet_after(&self, now: Duration, times: &Times) -> Duration {
        // Nothing was there before the first one, and what was away for so long is another one.
        let is_first = self.last.is_zero() && self.quiet.is_zero();
        if is_first || now.saturating_sub(self.last) >= times.unsteady_window.max(self.quiet * 2) {
            return Duration::ZERO;
        }
        (self.quiet * 2).clamp(times.unsteady_quiet, times.longest_quiet.max(times.unsteady_quiet))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> Duration {
        Duration::from_secs(second)
    }

    fn see(
        hold: &mut Hold<&'static str>,
        trouble: Option<&'static str>,
        second: u64,
    ) -> Option<&'static str> {
        hold.see(trouble, at(second), &Times::default());
        hold.told().copied()
    }

    #[test]
    fn one_that_does_not_come_back_is_over_at_once() {
        let mut hold = Hold::default();
        assert_eq!(see(&mut hold, None, 1), None);
        assert_eq!(see(&mut hold, Some("a"), 2), Some("a"));
        assert_eq!(see(&mut hold, Some("b"), 3), Some("b"), "what is told is what is there now");
        assert_eq!(see(&mut hold, None, 4), None);
        // An hour later it is another one.
        assert_eq!(see(&mut hold, Some("a"), 3_600), Some("a"));
        assert_eq!(see(&mut hold, None, 3_601), None);
    }

    #[test]
    fn one_that_comes_and_goes_each_second_is_told_without_a_pause() {
        let mut hold = Hold::default();
        let mut changes = 0;
        let mut before = None;
        for second in 10..1_000 {
            let told = see(&mut hold, (second % 2 == 0).then_some("hung"), second);
            changes += u32::from(told != before);
            before = told;
        }
        assert_eq!((changes, before), (3, Some("hung")), "told, over, told again and held");
        // It is over when it stays away.
        assert_eq!(see(&mut hold, None, 1_002), Some("hung"));
        assert_eq!(see(&mut hold, None, 998 + 10), None);
    }

    #[test]
    fn each_time_it_has_to_be_away_for_longer_up_to_the_most() {
        let (mut hold, mut now) = (Hold::default(), 10);
        see(&mut hold, Some("hung"), now);
        assert_eq!(see(&mut hold, None, now + 1), None);
        now += 1;
        for quiet in [10, 20, 40, 80, 160] {
            now += 1;
            see(&mut hold, Some("hung"), now);
            assert_eq!(see(&mut hold, None, now + quiet - 1), Some("hung"), "{quiet}");
            now += quiet;
            assert_eq!(see(&mut hold, None, now), None, "{quiet}");
        }
    }
}
