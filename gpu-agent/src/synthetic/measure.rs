//! The measurement, step by step, on whatever is a [`Card`]. Pure: the card's calls are its only effects.
//!
//! * Inputs: a card that nobody else uses, a salt. Output: [`Measured`].
//! * Invariant: memory counts only when it still holds its own pattern after all of it was filled, so that addresses that
//!   lead to the same cells count once.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Memory is taken and checked in blocks of this size: far larger than any cache, and small beside any card.
pub const BLOCK: u64 = 256 << 20;

/// Words of a block that are read back: its two ends and some between.
const SAMPLES: u64 = 8;

/// Copies of a block that are timed; on the slowest cards they take 100 ms.
const COPIES: u32 = 48;

/// For so long the clock is raised, and then measured.
const SPIN: Duration = Duration::from_millis(250);

/// Clocks that a card can claim; what lies outside is taken for the nearest.
const CLOCKS_MHZ: (u64, u64) = (100, 5_000);

/// What a card says of itself to CUDA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Figures {
    /// Highest clock of the multiprocessors.
    pub sm_clock_mhz: u64,
    /// Clock of the memory.
    pub memory_clock_mhz: u64,
    /// Lines of the memory.
    pub memory_bus_bits: u64,
}

impl Figures {
    /// Bandwidth of the memory in MB/s: two bits for each line and cycle.
    #[must_use]
    pub fn bandwidth_mbps(&self) -> u64 {
        self.memory_clock_mhz.saturating_mul(2).saturating_mul(self.memory_bus_bits) / 8
    }
}

/// A block of the card's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its address on the card.
    pub address: u64,
}

/// Free and whole memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Bytes that can be taken, by what the card says.
    pub free: u64,
    /// All bytes, by what the card says.
    pub total: u64,
}

/// A card on which programs can be run.
pub trait Card {
    /// What a failed call leaves.
    type Error;

    /// What the card says of itself.
    fn figures(&self) -> Figures;

    /// Free and whole memory.
    ///
    /// # Errors
    /// When the call fails.
    fn memory(&mut self) -> Result<Memory, Self::Error>;

    /// Takes a block of [`BLOCK`] bytes; `None` when there is no room.
    ///
    /// # Errors
    /// When the call fails otherwise.
    fn allocate(&mut self) -> Result<Option<Block>, Self::Error>;

    /// Returns a block.
    ///
    /// # Errors
    /// When the call fails.
    fn release(&mut self, block: Block) -> Result<(), Self::Error>;

    /// Fills a block with a word.
    ///
    /// # Errors
    /// When the call fails.
    fn fill(&mut self, block: Block, word: u32) -> Result<(), Self::Error>;

    /// Reads a word of a block; the position counts words.
    ///
    /// # Errors
    /// When the call fails.
    fn read(&mut self, block: Block, position: u64) -> Result<u32, Self::Error>;

    /// Time that copying a block onto another so often takes.
    ///
    /// # Errors
    /// When the call fails.
    fn time_copies(&mut self, to: Block, from: Block, count: u32) -> Result<Duration, Self::Error>;

    /// Time that so many cycles of the multiprocessors' clock take while all of them are busy.
    ///
    /// # Errors
    /// When the call fails.
    fn time_cycles(&mut self, cycles: u64) -> Result<Duration, Self::Error>;
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    /// What the card says of itself.
    pub figures: Figures,
    /// What it says of its memory.
    pub memory: Memory,
    /// Bytes that held what was written to them.
    pub intact: u64,
    /// Bandwidth of the memory in MB/s, reading and writing added; 0 when there was too little memory to measure it.
    pub bandwidth_mbps: u64,
    /// Clock of the multiprocessors under load.
    pub sm_clock_mhz: u64,
}

/// Measures a card. The salt makes the patterns differ from those of an earlier measurement.
///
/// # Errors
/// When a call fails.
pub fn measure<C: Card>(card: &mut C, salt: u32) -> Result<Measured, C::Error> {
    let (figures, memory) = (card.figures(), card.memory()?);
    let blocks = take_all(card, memory)?;
    for (word, block) in words(salt).zip(&blocks) {
        card.fill(*block, word)?;
    }
    let mut intact = 0;
    for (word, block) in words(salt).zip(&blocks) {
        intact += if holds(card, *block, word)? { BLOCK } else { 0 };
    }
    let bandwidth_mbps = match blocks[..] {
        [first, second, ref others @ ..] => {
            // A card whose memory is full has no room for what the driver needs to run a kernel.
            others.iter().try_for_each(|block| card.release(*block))?;
            bandwidth(card, first, second)?
        }
        _ => 0,
    };
    Ok(Measured { figures, memory, intact, bandwidth_mbps, sm_clock_mhz: clock(card, figures)? })
}

/// Takes all there is. A card that claims more than there is to be had ends the taking by refusing.
fn take_all<C: Card>(card: &mut C, memory: Memory) -> Result<Vec<Block>, C::Error> {
    let mut blocks = vec![];
    for _ in 0..memory.total / BLOCK {
        match card.allocate()? {
            Some(block) => blocks.push(block),
            None => break,
        }
    }
    Ok(blocks)
}

/// A word for each block: all different, for the factor is odd.
fn words(salt: u32) -> impl Iterator<Item = u32> {
    (0_u32..).map(move |n| n.wrapping_add(salt).wrapping_mul(0x9e37_79b1))
}

fn holds<C: Card>(card: &mut C, block: Block, word: u32) -> Result<bool, C::Error> {
    let last = BLOCK / 4 - 1;
    for sample in 0..SAMPLES {
        // The ends, and places between them that differ from block to block.
        let place = last * sample / (SAMPLES - 1);
        let shift = if sample == 0 || sample == SAMPLES - 1 { 0 } else { u64::from(word) % (last / SAMPLES) };
        if card.read(block, (place + shift).min(last))? != word {
            return Ok(false);
        }
    }
    Ok(true)
}

fn bandwidth<C: Card>(card: &mut C, from: Block, to: Block) -> Result<u64, C::Error> {
    // The first copies wake the card.
    card.time_copies(to, from, COPIES / 4)?;
    let took = card.time_copies(to, from, COPIES)?;
    Ok(per_microsecond(2 * BLOCK * u64::from(COPIES), took))
}

fn clock<C: Card>(card: &mut C, figures: Figures) -> Result<u64, C::Error> {
    let claimed = figures.sm_clock_mhz.clamp(CLOCKS_MHZ.0, CLOCKS_MHZ.1);
    let cycles = claimed * u64::try_from(SPIN.as_micros()).unwrap_or(u64::MAX);
    card.time_cycles(cycles)?;
    let took = card.time_cycles(cycles)?;
    Ok(per_microsecond(cycles, took))
}

/// Megabytes per second are bytes per microsecond, megahertz cycles per microsecond.
fn per_microsecond(count: u64, time: Duration) -> u64 {
    let nanoseconds = time.as_nanos().max(1);
    let rounded = (u128::from(count) * 1_000 + nanoseconds / 2) / nanoseconds;
    u64::try_from(rounded).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(super) mod fake {
    use std::collections::BTreeMap;
    use std::convert::Infallible;

    use super::*;

    /// A card in memory whose blocks may lead to the same cells.
    pub(crate) struct Fake {
        pub(crate) figures: Figures,
        pub(crate) memory: Memory,
        /// Blocks that can be taken.
        pub(crate) room: u64,
        /// Blocks that there are: addresses behind them begin anew.
        pub(crate) real: u64,
        pub(crate) bandwidth_mbps: u64,
        pub(crate) sm_clock_mhz: u64,
        pub(crate) taken: u64,
        pub(crate) released: u64,
        pub(crate) cells: BTreeMap<u64, u32>,
        /// Word of a block's that does not keep what is written.
        pub(crate) broken: Option<(u64, u64)>,
    }

    impl Fake {
        pub(crate) fn honest(blocks: u64) -> Self {
            Self {
                figures: Figures { sm_clock_mhz: 1_000, memory_clock_mhz: 1_000, memory_bus_bits: 4_096 },
                memory: Memory { free: blocks * BLOCK, total: blocks * BLOCK },
                room: blocks,
                real: blocks,
                bandwidth_mbps: 900_000,
                sm_clock_mhz: 1_000,
                taken: 0,
                released: 0,
                cells: BTreeMap::new(),
                broken: None,
            }
        }

        fn nanoseconds(count: u64, per_microsecond: u64) -> Duration {
            let time = u128::from(count) * 1_000 / u128::from(per_microsecond);
            Duration::from_nanos(u64::try_from(time).expect("short"))
        }
    }

    impl Card for Fake {
        type Error = Infallible;

        fn figures(&self) -> Figures {
            self.figures
        }

        fn memory(&mut self) -> Result<Memory, Infallible> {
            Ok(self.memory)
        }

        fn allocate(&mut self) -> Result<Option<Block>, Infallible> {
            let block = Block { address: self.taken };
            self.taken += 1;
            Ok((self.taken <= self.room).then_some(block))
        }

        fn release(&mut self, _: Block) -> Result<(), Infallible> {
            self.released += 1;
            Ok(())
        }

        fn fill(&mut self, block: Block, word: u32) -> Result<(), Infallible> {
            self.cells.insert(block.address % self.real, word);
            Ok(())
        }

        fn read(&mut self, block: Block, position: u64) -> Result<u32, Infallible> {
            assert!(position < BLOCK / 4, "within the block");
            let word = self.cells[&(block.address % self.real)];
            Ok(if self.broken == Some((block.address, position)) { !word } else { word })
        }

        fn time_copies(&mut self, _: Block, _: Block, count: u32) -> Result<Duration, Infallible> {
            assert_eq!(self.taken.min(self.room) - self.released, 2, "there is room to work in");
            Ok(Self::nanoseconds(2 * BLOCK * u64::from(count), self.bandwidth_mbps))
        }

        fn time_cycles(&mut self, cycles: u64) -> Result<Duration, Infallible> {
            Ok(Self::nanoseconds(cycles, self.sm_clock_mhz))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fake::Fake;
    use super::*;

    fn measured(mut card: Fake) -> Measured {
        measure(&mut card, 7).expect("measure")
    }

    #[test]
    fn an_honest_card_measures_as_it_is() {
        let card = Fake::honest(320);
        let expected = Measured {
            figures: card.figures,
            memory: card.memory,
            intact: 320 * BLOCK,
            bandwidth_mbps: 900_000,
            sm_clock_mhz: 1_000,
        };
        assert_eq!(measured(card), expected);
        assert_eq!(expected.figures.bandwidth_mbps(), 1_024_000);
    }

    #[test]
    fn a_card_that_refuses_and_one_that_wraps_have_what_there_is() {
        let refuses = Fake { room: 100, ..Fake::honest(320) };
        assert_eq!(measured(refuses).intact, 100 * BLOCK);
        let wraps = Fake { real: 100, ..Fake::honest(320) };
        assert_eq!(measured(wraps).intact, 100 * BLOCK, "the last that were written to each cell");
    }

    #[test]
    fn both_ends_of_a_block_are_looked_at() {
        for position in [0, BLOCK / 4 - 1] {
            let broken = Fake { broken: Some((5, position)), ..Fake::honest(16) };
            assert_eq!(measured(broken).intact, 15 * BLOCK, "word {position}");
        }
    }

    #[test]
    fn absurd_claims_make_no_absurd_work() {
        for clock in [0, u64::MAX] {
            let mut card = Fake::honest(2);
            card.figures.sm_clock_mhz = clock;
            assert_eq!(measured(card).sm_clock_mhz, 1_000);
        }
        let small = measured(Fake { room: 1, ..Fake::honest(4) });
        assert_eq!((small.intact, small.bandwidth_mbps), (BLOCK, 0));
    }
}
