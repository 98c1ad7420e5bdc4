//! `vendue-auction replay`: a round once more from a seat's log, and why each order went where it did.
//!
//! Inputs: a log or a part of one, and the market record. Output: text or JSON, and whether the seat signed what follows
//! from what it was given. Invariant: nothing is asked of anybody, and no secret is needed.

mod report;

use std::path::PathBuf;
use std::sync::Arc;

use vendue_auction_core::log::{LogRecord, ReplayError, Replayed, SegmentHead, encode_frame, replay};
use vendue_auction_core::{MarketRecord, RecordError, SignedMarketRecord};

use crate::args::{ReplayArgs, ReplayForm};
use crate::log::{LogDirError, read_dir, read_file};
pub use report::Report;

/// Why nothing can be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayFailure {
    /// A file.
    #[error("{operation} {path}: {source}")]
    File {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The market record is refused.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The market has no such seat.
    #[error("market {market} has no seat {seat}; it has {seats}")]
    Seat {
        /// The market.
        market: String,
        /// The seat asked for.
        seat: u16,
        /// How many there are.
        seats: u16,
    },
    /// The log.
    #[error(transparent)]
    Log(#[from] LogDirError),
    /// No round is certified in the log.
    #[error("no round of the log is certified; name one with --round. In the log: {0}")]
    NoRound(String),
    /// The round.
    #[error(transparent)]
    Replay(#[from] ReplayError),
}

/// Replays a round and prints what it came to.
pub fn run(args: &ReplayArgs) -> Result<(), ReplayFailure> {
    let path = &args.market_record;
    let text = std::fs::read_to_string(path).map_err(file("read", path))?;
    let record = Arc::new(SignedMarketRecord::from_json(&text)?.record);
    if record.seat(args.seat).is_none() {
        let (market, seats) = (record.name.clone(), record.n());
        return Err(ReplayFailure::Seat { market, seat: args.seat, seats });
    }
    let read = if args.log.is_dir() { read_dir } else { read_file };
    let records = read(&args.log, &record, args.seat)?.records;
    let round = args.round.or_else(|| last_certified(&records)).ok_or_else(|| rounds_of(&records))?;
    if let Some(path) = &args.export {
        std::fs::write(path, export(&record, args.seat, round, &records)).map_err(file("write", path))?;
    }
    let replayed = replay(&record, args.seat, round, &records)?;
    print!("{}", print_as(args.output, &record, &replayed));
    Ok(())
}

fn print_as(form: ReplayForm, record: &MarketRecord, replayed: &Replayed) -> String {
    let report = Report::new(record, replayed);
    match form {
        ReplayForm::Text => report.to_string(),
        ReplayForm::Json => format!("{:#}\n", serde_json::json!(report)),
    }
}

fn file(operation: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> ReplayFailure {
    let path = path.to_owned();
    move |source| ReplayFailure::File { operation, path, source }
}

fn last_certified(records: &[LogRecord]) -> Option<u64> {
    records.iter().rev().find_map(|r| match r {
        LogRecord::Certified { certificate, .. } => Some(certificate.round),
        _ => None,
    })
}

fn rounds_of(records: &[LogRecord]) -> ReplayFailure {
    let rounds: std::collections::BTreeSet<u64> = records.iter().filter_map(LogRecord::round).collect();
    let rounds: Vec<String> = rounds.iter().rev().take(20).map(ToString::to_string).collect();
    ReplayFailure::NoRound(if rounds.is_empty() { "no round".into() } else { rounds.join(", ") })
}

/// A segment with one round's records.
pub fn export(record: &MarketRecord, seat: u16, round: u64, records: &[LogRecord]) -> Vec<u8> {
    let head = SegmentHead { market: record.market, seat, generation: 0, number: 0 };
    let mut bytes = head.encode();
    let starts = |r: &&LogRecord| matches!(r, LogRecord::Observe { .. }) || r.round() == Some(round);
    for record in records.iter().filter(starts) {
        let frame = encode_frame(&record.encode(), head.generation, bytes.len() as u64);
        bytes.extend(frame);
    }
    bytes
}

#[cfg(test)]
mod tests;
