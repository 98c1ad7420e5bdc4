//! The next key epoch, where the process is given it at its start, so that it goes over to it without another one.
//!
//! Inputs: the next market record, and the cluster's keys with their share in it. Outputs: the epochs that the seat starts
//! with; the record for the home and for whoever judges proofs. Invariant: a record that does not follow from the current
//! one, is signed by another issuer, or has keys that are not this seat's ends the start and is named.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use vendue_auction_core::{
    Epochs, Home, MarketRecord, NextEpochError, RecordError, SeatCrypto, SeatKeys, SignedMarketRecord,
};
use zeroize::Zeroizing;

use crate::args::NextArgs;
use crate::keys::{Keys, KeysError};

/// Why the process does not start with the next epoch.
#[derive(Debug, thiserror::Error)]
pub enum NextError {
    /// A file cannot be read.
    #[error("read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The record is refused by itself.
    #[error("{path}: {source}")]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        source: RecordError,
    },
    /// Somebody else has signed it.
    #[error("{0}: signed by another issuer than the current market record")]
    Issuer(PathBuf),
    /// The keys are refused.
    #[error("{path}: {source}")]
    Keys {
        /// The file.
        path: PathBuf,
        /// Why.
        source: KeysError,
    },
    /// It does not follow.
    #[error(transparent)]
    Next(#[from] NextEpochError),
    /// The seat would have no share.
    #[error("--next-market-record without this seat's keys in it: give --next-keys")]
    NoShare,
}

/// The next epoch.
pub struct NextEpoch {
    /// Its record.
    pub record: Arc<MarketRecord>,
    /// The seat's keys in it.
    seat: Option<SeatKeys>,
}

fn read_file(path: &Path) -> Result<String, NextError> {
    std::fs::read_to_string(path).map_err(|source| NextError::Read { path: path.into(), source })
}

impl NextEpoch {
    /// Reads the files, if the process is given any.
    pub fn read(args: &NextArgs, current: &SignedMarketRecord) -> Result<Option<Self>, NextError> {
        let Some(path) = &args.next_market_record else { return Ok(None) };
        let signed = SignedMarketRecord::from_json(&read_file(path)?)
            .map_err(|source| NextError::Record { path: path.clone(), source })?;
        if signed.issuer_key != current.issuer_key {
            return Err(NextError::Issuer(path.clone()));
        }
        let seat = match &args.next_keys {
            Some(path) => {
                let text = Zeroizing::new(read_file(path)?);
                let keys = Keys::from_json(&text, &signed.record);
                keys.map_err(|source| NextError::Keys { path: path.clone(), source })?.seat
            }
            None => None,
        };
        Ok(Some(Self { record: Arc::new(signed.record), seat }))
    }

    /// Gives the seat what it needs of the next epoch, beside the current one.
    pub fn give_seat(
        &mut self,
        epochs: &mut Epochs<Arc<SeatCrypto>>,
        index: u16,
        now_ms: u64,
    ) -> Result<(), NextError> {
        let keys = self.seat.take().ok_or(NextError::NoShare)?;
        let crypto = Arc::new(SeatCrypto::new(self.record.clone(), keys));
        let is_new = epochs.take_keys(index, now_ms, self.record.clone(), crypto)?;
        self.tell("seat", is_new);
        Ok(())
    }

    /// Gives the home the record.
    pub fn give_home(&self, home: &mut Home, now_ms: u64) -> Result<(), NextError> {
        home.take_next(now_ms, self.record.clone())?;
        self.tell("home", true);
        Ok(())
    }

    fn tell(&self, side: &str, is_new: bool) {
        let first = self.record.generation.as_ref().map(|made| made.first_round);
        tracing::info!(side, epoch = self.record.epoch, first_round = first, is_new, "next epoch known");
    }
}

#[cfg(test)]
pub(crate) mod tests;
