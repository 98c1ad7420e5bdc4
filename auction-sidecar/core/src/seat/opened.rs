//! The numbers of the rounds that a seat has opened since it started, so that none is ever opened again.

use std::collections::BTreeSet;

/// Most rounds remembered one by one; with a period of 600 ms these are more than half an hour.
const MAX_KNOWN: usize = 4096;

/// Rounds that were opened.
#[derive(Debug, Default)]
pub(super) struct Opened {
    known: BTreeSet<u64>,
    /// Every round below counts as opened.
    floor: u64,
}

impl Opened {
    pub(super) fn has(&self, round: u64) -> bool {
        round < self.floor || self.known.contains(&round)
    }

    pub(super) fn add(&mut self, round: u64) {
        self.known.insert(round);
        if self.known.len() > MAX_KNOWN
            && let Some(lowest) = self.known.pop_first()
        {
            self.floor = lowest.saturating_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgets_the_lowest_and_then_takes_all_below_for_opened() {
        let mut opened = Opened::default();
        opened.add(1_000_000);
        (10..10 + MAX_KNOWN as u64).for_each(|round| opened.add(round));
        assert_eq!((opened.known.len(), opened.floor), (MAX_KNOWN, 11));
        assert!([0, 9, 10, 11, 1_000_000].into_iter().all(|round| opened.has(round)));
        assert!(!opened.has(999_999) && !opened.has(1_000_001));
    }
}
