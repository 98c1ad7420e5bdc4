//! The market records that a replay is given: one for each epoch that the log spans.
//!
//! Inputs: files, the records of a round in the log. Output: the market record of a round. Invariants: all are of one market and
//! one issuer; a round is of the epoch that its messages are of, so it is never held against the record of another one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vendue_auction_core::log::LogRecord;
use vendue_auction_core::wire::Header;
use vendue_auction_core::{MarketRecord, SignedMarketRecord};
use vendue_market::encode::Reader;

use super::{ReplayFailure, file};

/// Records of one market, by epoch.
pub(super) struct Records {
    first: Arc<MarketRecord>,
    by_epoch: BTreeMap<u32, Arc<MarketRecord>>,
}

fn read(path: &Path) -> Result<SignedMarketRecord, ReplayFailure> {
    let text = std::fs::read_to_string(path).map_err(file("read", path))?;
    let refused = |source| ReplayFailure::Record { path: path.to_owned(), source };
    SignedMarketRecord::from_json(&text).map_err(refused)
}

/// The epoch that a record of the log is of, where it says so.
fn epoch_of(record: &LogRecord) -> Option<u32> {
    match record {
        LogRecord::Said { bytes, .. } | LogRecord::Heard { bytes, .. } => {
            Header::read(&mut Reader::new(bytes)).ok().map(|header| header.epoch)
        }
        LogRecord::Certified { certificate, .. } => Some(certificate.epoch),
        _ => None,
    }
}

impl Records {
    pub(super) fn read(paths: &[PathBuf]) -> Result<Self, ReplayFailure> {
        let (path, others) = paths.split_first().ok_or(ReplayFailure::NoRecord)?;
        let SignedMarketRecord { record, issuer_key, .. } = read(path)?;
        let first = Arc::new(record);
        let mut by_epoch = BTreeMap::from([(first.epoch, first.clone())]);
        for path in others {
            let next = read(path)?;
            if next.record.market != first.market || next.issuer_key != issuer_key {
                return Err(ReplayFailure::OtherMarket(path.clone()));
            }
            let record = Arc::new(next.record);
            match by_epoch.insert(record.epoch, record.clone()) {
                Some(other) if other != record => {
                    return Err(ReplayFailure::SameEpoch(path.clone(), record.epoch));
                }
                _ => {}
            }
        }
        Ok(Self { first, by_epoch })
    }

    /// What does not depend on the epoch: names, clock, number of seats.
    pub(super) fn any(&self) -> &Arc<MarketRecord> {
        &self.first
    }

    /// The record of a round, or the epoch that one is missing of. What the seat said counts before what it heard.
    pub(super) fn of_round(&self, round: u64, log: &[LogRecord]) -> Result<&Arc<MarketRecord>, u32> {
        let of_round = || log.iter().filter(|record| record.round() == Some(round));
        let said = of_round().filter(|record| matches!(record, LogRecord::Said { .. })).find_map(epoch_of);
        match said.or_else(|| of_round().find_map(epoch_of)) {
            Some(epoch) => self.by_epoch.get(&epoch).ok_or(epoch),
            None => Ok(&self.first),
        }
    }
}
