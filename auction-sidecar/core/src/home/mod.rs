//! A home: the market's member that places orders.

mod io;

pub use io::{Choice, HomeInput, HomeOutput, NewOrder};

use crate::drops::Drops;
use crate::keys::HomeKeys;
use crate::record::MarketRecord;
use std::sync::Arc;

/// A home of a market and its orders.
pub struct Home {
    record: Arc<MarketRecord>,
    index: u16,
    keys: HomeKeys,
    drops: Drops,
}

impl Home {
    /// The home at position `index` of the record ([`HomeKeys::check`] gives it).
    pub fn new(record: Arc<MarketRecord>, index: u16, keys: HomeKeys) -> Self {
        Self { record, index, keys, drops: Drops::default() }
    }
    /// Takes one input and says what to do.
    pub fn handle(&mut self, now_ms: u64, input: HomeInput) -> Vec<HomeOutput> {
        let _ = (now_ms, input, &self.record, self.index, &self.keys);
        Vec::new()
    }
    /// When [`Home::handle`] must be called next, at the latest; `None` when only an input can change anything.
    pub fn next_wake(&self) -> Option<u64> {
        None
    }
    /// Messages that were dropped, by reason.
    pub fn dropped(&self) -> &Drops {
        &self.drops
    }
}
