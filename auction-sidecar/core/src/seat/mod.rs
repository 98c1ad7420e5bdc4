//! A seat: the market's member that bids.

mod io;

pub use io::{BidResult, Decided, HoldRequest, OwnResult, ReleaseCause, SeatInput, SeatOutput};

use crate::crypto::Crypto;
use crate::drops::Drops;
use crate::record::MarketRecord;
use std::sync::Arc;

/// A seat of a market: its rounds, order pool, holds and offers.
pub struct Seat<C: Crypto> {
    record: Arc<MarketRecord>,
    crypto: Arc<C>,
    index: u16,
    drops: Drops,
}

impl<C: Crypto> Seat<C> {
    /// A seat that starts at `now_ms`.
    pub fn new(record: Arc<MarketRecord>, index: u16, crypto: C, now_ms: u64) -> Self {
        let _ = now_ms;
        Self { record, crypto: Arc::new(crypto), index, drops: Drops::default() }
    }
    /// Takes one input and says what to do.
    pub fn handle(&mut self, now_ms: u64, input: SeatInput) -> Vec<SeatOutput> {
        let _ = (now_ms, input, &self.record, &self.crypto, self.index);
        Vec::new()
    }
    /// When [`Seat::handle`] must be called next, at the latest; `None` when only an input can change anything.
    pub fn next_wake(&self) -> Option<u64> {
        None
    }
    /// Messages that were dropped, by reason.
    pub fn dropped(&self) -> &Drops {
        &self.drops
    }
    /// Until when the seat only observes, because it may have spoken in rounds before a restart.
    pub fn observes_until(&self) -> u64 {
        0
    }
    /// Rounds that are open.
    pub fn open_rounds(&self) -> usize {
        0
    }
    /// Orders that may still be listed.
    pub fn open_orders(&self) -> usize {
        0
    }
}
