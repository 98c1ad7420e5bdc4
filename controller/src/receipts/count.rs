//! A bill as far as its records were counted. Pure.
//!
//! Inputs: the records of a chain, one after another; the run. Output: a bill over the run. Invariant: the bill is that of
//! all records below [`Counted::next`], each counted once; when the end of the run becomes known, only the last records are
//! counted again.

use vendue_controller_core::award::usage::Run;
use vendue_receipts::{Bill, Record};

/// Records between two places to which counting can go back.
const APART: u64 = 1_000;

/// The bill of all records of a chain below a sequence.
#[derive(Clone, Debug)]
struct Mark {
    next: u64,
    bill: Bill,
}

/// A bill as far as it was counted.
#[derive(Debug)]
pub struct Counted {
    run: Run,
    now: Mark,
    /// Up to two places before, the later one last.
    before: Vec<Mark>,
}

impl Counted {
    /// Nothing was counted; records begin here.
    pub fn new(run: Run, first: u64) -> Self {
        Self { run, now: Mark { next: first, bill: run.bill() }, before: vec![] }
    }

    /// The bill over another run: from the last place at which the two did not differ, or from the first record on.
    pub fn over(self, run: Run, first: u64) -> Self {
        let Run { price_micros, from_ms, until_ms } = run;
        if run == self.run {
            return self;
        }
        let only_ends =
            (self.run.price_micros, self.run.from_ms, self.run.until_ms) == (price_micros, from_ms, None);
        let marks = self.before.into_iter().chain([self.now]).rev();
        let kept = until_ms.filter(|_| only_ends).and_then(|until_ms| {
            let mut kept = marks.filter_map(|mark| Some(Mark { bill: mark.bill.ending(until_ms)?, ..mark }));
            kept.next()
        });
        kept.map_or_else(|| Self::new(run, first), |now| Self { run, now, before: vec![] })
    }

    /// Sequence of the record that is to be counted next.
    pub fn next(&self) -> u64 {
        self.now.next
    }

    /// Counts a record, if it is the next one.
    pub fn add(&mut self, record: &Record) {
        if record.sequence != self.now.next {
            return;
        }
        let since = self.before.last().map_or(0, |mark| mark.next);
        if self.run.until_ms.is_none() && self.now.next >= since.saturating_add(APART) {
            self.before.drain(..self.before.len().saturating_sub(1));
            self.before.push(self.now.clone());
        }
        self.now.bill.add(record);
        self.now.next += 1;
    }

    /// The bill so far.
    pub fn bill(&self) -> &Bill {
        &self.now.bill
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vendue_receipts::{AwardId, Body, Used, Version, Xids};

    /// The window of ten seconds with this sequence.
    fn record(sequence: u64) -> Record {
        let (t0_ms, t1_ms) = (sequence * 10_000, (sequence + 1) * 10_000);
        let body = Body::Used(Used {
            device: "GPU-0".parse().unwrap(),
            t0_ms,
            t1_ms,
            wall_ns: 10_000_000_000,
            energy: None,
            activity: None,
            memory_peak_bytes: None,
            xids: Xids::default(),
            driver: "1".parse().unwrap(),
        });
        let award = AwardId([1; 8]);
        Record { version: Version, award, sequence, previous: [0; 32], body, signature: [0; 65] }
    }

    #[test]
    fn when_the_end_is_known_only_the_last_records_are_counted_again() {
        let run = |until_ms| Run { price_micros: 3_600_000, from_ms: 0, until_ms };
        let counted_to = |end: u64| {
            let mut counted = Counted::new(run(None), 0);
            (0..end).for_each(|sequence| counted.add(&record(sequence)));
            counted.add(&record(end + 1));
            counted
        };
        assert_eq!(counted_to(10).next(), 10, "no record is left out");
        for (end, until, from) in [
            (2_500, 25_000_000, 2_500),
            (2_500, 24_999_999, 2_000),
            (2_500, 20_000_000, 2_000),
            (2_500, 15_000_000, 1_000),
            (2_500, 9_000_000, 0),
            (3_500, 15_000_000, 0),
        ] {
            let mut counted = counted_to(end).over(run(Some(until)), 0);
            assert_eq!(counted.next(), from, "{end} {until}");
            (from..end).for_each(|sequence| counted.add(&record(sequence)));
            assert_eq!(counted.bill().sums().gpu_ns, until * 1_000_000);
        }
        let other = Run { from_ms: 5, ..run(None) };
        assert_eq!(counted_to(2_500).over(other, 7).next(), 7, "another run");
    }
}
