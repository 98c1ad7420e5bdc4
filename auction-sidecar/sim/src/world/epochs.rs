//! The change of key epoch: each member learns of the next one when the caller says so.

use super::{Node, World};
use crate::epochs::NextEpoch;
use crate::generation::GenerationError;
use crate::keys::{Keys, RealKeys};
use std::sync::Arc;
use vendue_auction_core::{Epochs, KeyError, MarketRecord, NextEpochError};

/// Why a member does not go over to the next epoch.
#[derive(Debug, thiserror::Error)]
pub enum LearnError {
    /// There is none, or its keys do not parse.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// It is refused.
    #[error(transparent)]
    Next(#[from] NextEpochError),
}

impl World<RealKeys> {
    /// Lets the seats make the keys of the next epoch, of which nobody knows yet.
    pub fn generate_next(&mut self, start_ms: u64) -> Result<Arc<MarketRecord>, GenerationError> {
        let next = NextEpoch::generate(&self.keys, start_ms)?;
        let record = next.record.clone();
        self.watch.add_epoch(record.clone());
        self.keys.set_next(next);
        Ok(record)
    }
}

impl<K: Keys> World<K> {
    /// A seat learns of the next epoch.
    pub fn seat_learns(&mut self, seat: u16) -> Result<(), LearnError> {
        self.learned.insert(seat);
        let local_ms = self.local(seat);
        for node in self.nodes_of(seat) {
            let (record, crypto) = self.keys.next(seat)?;
            let Some(Node { core, .. }) = self.nodes.get_mut(node) else { continue };
            let outputs = core.take_next(local_ms, record, Arc::new(crypto))?;
            self.take_outputs(node, outputs);
        }
        Ok(())
    }

    /// The home learns of it.
    pub fn home_learns(&mut self) -> Result<(), LearnError> {
        let (record, _) = self.keys.next(0)?;
        Ok(self.home.take_next(self.now, record)?)
    }

    /// The epochs that a seat is given when it starts.
    pub(super) fn epochs(&self, seat: u16) -> Result<Epochs<Arc<K::Seat>>, LearnError> {
        let mut epochs = Epochs::new(self.record.clone(), Arc::new(self.keys.seat(seat)?));
        if self.learned.contains(&seat) {
            let (record, crypto) = self.keys.next(seat)?;
            epochs.take_keys(seat, self.local(seat), record, Arc::new(crypto))?;
        }
        Ok(epochs)
    }
}
