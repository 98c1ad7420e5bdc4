//! What simulated memory holds: a few large runs instead of gigabytes. Pure.
//!
//! Invariant: runs do not overlap; what was never written reads as zero.

use std::collections::BTreeMap;
use std::sync::Arc;

/// What a run of memory is filled with.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Content {
    /// One 32-bit word over and over; the second number is the phase of the run's first byte in the word.
    Word(u32, u64),
    /// Bytes, from a position on.
    Bytes(Arc<[u8]>, u64),
}

impl Content {
    fn skip(&self, bytes: u64) -> Self {
        match self {
            Self::Word(word, phase) => Self::Word(*word, (phase + bytes) % 4),
            Self::Bytes(data, from) => Self::Bytes(Arc::clone(data), from + bytes),
        }
    }

    fn byte(&self, at: u64) -> u8 {
        match self {
            Self::Word(word, phase) => {
                let position = usize::try_from((phase + at) % 4).unwrap_or_default();
                word.to_le_bytes()[position]
            }
            Self::Bytes(data, from) => {
                usize::try_from(from + at).ok().and_then(|i| data.get(i)).copied().unwrap_or_default()
            }
        }
    }
}

/// Memory by address.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Runs by start: end and content.
    runs: BTreeMap<u64, (u64, Content)>,
}

impl Memory {
    /// Forgets what lies between two addresses.
    pub(crate) fn clear(&mut self, start: u64, end: u64) {
        let touched: Vec<u64> = self
            .runs
            .range(..end)
            .filter(|(_, (run_end, _))| *run_end > start)
            .map(|(run, _)| *run)
            .collect();
        for run in touched {
            let Some((run_end, content)) = self.runs.remove(&run) else { continue };
            if run < start {
                self.runs.insert(run, (start, content.clone()));
            }
            if run_end > end {
                self.runs.insert(end, (run_end, content.skip(end - run)));
            }
        }
    }

    fn put(&mut self, start: u64, end: u64, content: Content) {
        self.clear(start, end);
        if start < end {
            self.runs.insert(start, (end, content));
        }
    }

    /// Fills with a word.
    pub(crate) fn fill(&mut self, start: u64, bytes: u64, word: u32) {
        self.put(start, start.saturating_add(bytes), Content::Word(word, 0));
    }

    /// Writes bytes.
    pub(crate) fn write(&mut self, start: u64, data: &[u8]) {
        let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
        self.put(start, start.saturating_add(length), Content::Bytes(data.into(), 0));
    }

    /// Copies within memory; the ranges may overlap.
    pub(crate) fn copy(&mut self, from: u64, to: u64, bytes: u64) {
        let end = from.saturating_add(bytes);
        let parts: Vec<_> = self
            .runs
            .range(..end)
            .filter(|(_, (run_end, _))| *run_end > from)
            .map(|(run, (run_end, content))| {
                let start = (*run).max(from);
                (start - from, (*run_end).min(end) - start, content.skip(start - run))
            })
            .collect();
        self.clear(to, to.saturating_add(bytes));
        for (offset, length, content) in parts {
            self.put(to + offset, to + offset + length, content);
        }
    }

    /// Reads bytes.
    pub(crate) fn read(&self, start: u64, out: &mut [u8]) {
        out.fill(0);
        let end = start.saturating_add(u64::try_from(out.len()).unwrap_or(u64::MAX));
        for (run, (run_end, content)) in self.runs.range(..end).filter(|(_, (run_end, _))| *run_end > start) {
            for address in (*run).max(start)..(*run_end).min(end) {
                let slot = usize::try_from(address - start).ok().and_then(|i| out.get_mut(i));
                if let Some(slot) = slot {
                    *slot = content.byte(address - run);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(memory: &Memory, start: u64, length: usize) -> Vec<u8> {
        let mut out = vec![9; length];
        memory.read(start, &mut out);
        out
    }

    #[test]
    fn later_writes_win_and_the_rest_stays() {
        let mut memory = Memory::default();
        memory.fill(100, 1 << 40, 0x0403_0201);
        memory.write(106, &[70, 71, 72]);
        assert_eq!(bytes(&memory, 98, 14), [0, 0, 1, 2, 3, 4, 1, 2, 70, 71, 72, 2, 3, 4]);
        memory.copy(104, 110, 6);
        assert_eq!(bytes(&memory, 104, 14), [1, 2, 70, 71, 72, 2, 1, 2, 70, 71, 72, 2, 1, 2]);
        memory.clear(0, u64::MAX);
        assert_eq!(bytes(&memory, 100, 2), [0, 0]);
    }

    #[test]
    fn overlapping_copies_take_what_was_there_before() {
        let mut memory = Memory::default();
        memory.write(0, &[1, 2, 3, 4, 5, 6]);
        memory.copy(0, 2, 4);
        assert_eq!(bytes(&memory, 0, 6), [1, 2, 1, 2, 3, 4]);
        memory.copy(2, 0, 4);
        assert_eq!(bytes(&memory, 0, 6), [1, 2, 3, 4, 3, 4]);
    }
}
