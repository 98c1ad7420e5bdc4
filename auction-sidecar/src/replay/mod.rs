//! `vendue-auction replay`: rounds once more from a seat's log, what the seat decided in each, and why each order went
//! where it did.
//!
//! Inputs: a log or a part of one, and the market records of its epochs. Output: text or JSON, and whether the seat signed what
//! follows from what it was given. Invariant: nothing is asked of anybody, and no secret is needed; a round of which the log has
//! lost the beginning, or of whose epoch there is no record, is not held against the seat.

mod records;
mod report;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use vendue_auction_core::log::{LogRecord, ReplayError, SEED_LEN, SegmentHead, encode_frame, replay};
use vendue_auction_core::{MarketRecord, RecordError};
use vendue_market::tagged_hash;

use crate::args::{ReplayArgs, ReplayForm};
use crate::log::{Found, LogDirError, read_dir, read_file};
use records::Records;
pub use report::{Report, RoundReport};

/// How many rounds ahead of its time a seat takes messages, and one more.
const ROUNDS_AHEAD: u64 = 3;

/// Why nothing can be replayed, or what was replayed is not what was signed.
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
    /// A market record is refused.
    #[error("{path}: {source}")]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        source: RecordError,
    },
    /// There is no market record.
    #[error("--market-record is missing; accepted: the market record of each epoch that is to be replayed")]
    NoRecord,
    /// The market records do not belong together.
    #[error(
        "--market-record {0} is of another market or issuer than the first one; accepted: records of one market"
    )]
    OtherMarket(PathBuf),
    /// Two records of one epoch.
    #[error("--market-record {0} is a second record of epoch {1}; accepted: one record for each epoch")]
    SameEpoch(PathBuf, u32),
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
    /// No round can be replayed.
    #[error("no round of the log can be replayed; {0}")]
    NoRound(String),
    /// A replay came to something else.
    #[error("the log differs from what follows from it, in {rounds}")]
    Differs {
        /// In which rounds.
        rounds: String,
    },
}

/// Replays rounds and prints what they came to.
pub fn run(args: &ReplayArgs) -> Result<(), ReplayFailure> {
    let report = replayed(args)?;
    match args.output {
        ReplayForm::Text => print!("{report}"),
        ReplayForm::Json => println!("{:#}", serde_json::json!(report)),
    }
    report.verdict()
}

/// What the rounds of a log come to; writes them to a file where that is asked for.
pub fn replayed(args: &ReplayArgs) -> Result<Report, ReplayFailure> {
    let records = Records::read(&args.market_record)?;
    let record = records.any();
    if record.seat(args.seat).is_none() {
        let (market, seats) = (record.name.clone(), record.n());
        return Err(ReplayFailure::Seat { market, seat: args.seat, seats });
    }
    let read = if args.log.is_dir() { read_dir } else { read_file };
    let found = read(&args.log, record, args.seat)?;
    let rounds = match args.round {
        Some(round) => BTreeSet::from([round]),
        None => found.records.iter().filter_map(LogRecord::round).collect(),
    };
    let mut report = Report::new(record, args.seat, found.torn);
    for round in &rounds {
        report.add(match records.of_round(*round, &found.records) {
            Ok(record) => replay_round(record, args.seat, *round, &found),
            Err(epoch) => RoundReport::without_record(record, *round, epoch),
        });
    }
    if let Some(path) = &args.export {
        let whole: BTreeSet<u64> =
            report.rounds.iter().filter(|r| !r.is_skipped()).map(|r| r.round).collect();
        std::fs::write(path, export(record, args.seat, &whole, &found.records))
            .map_err(file("write", path))?;
    }
    Ok(report)
}

fn replay_round(record: &Arc<MarketRecord>, seat: u16, round: u64, found: &Found) -> RoundReport {
    if begins_within(record, round, found) {
        return RoundReport::skipped(record, round, "the log begins within it".to_owned());
    }
    match replay(record, seat, round, &found.records) {
        Ok(replayed) => RoundReport::new(record, &replayed),
        Err(ReplayError::Differs(difference)) => RoundReport::differs(record, round, difference.to_string()),
        Err(ReplayError::Recall(error)) => RoundReport::differs(record, round, error.to_string()),
        Err(error @ (ReplayError::Nothing(_) | ReplayError::NotReceived(_) | ReplayError::Omitted(_))) => {
            RoundReport::skipped(record, round, error.to_string())
        }
    }
}

/// Whether segments were removed that may have held the beginning of a round.
fn begins_within(record: &MarketRecord, round: u64, found: &Found) -> bool {
    // Each segment repeats the last start of its seat, which is older than the segment.
    let timed = found.records.iter().filter(|r| !matches!(r, LogRecord::Observe { .. }));
    let from = timed.filter_map(LogRecord::at_ms).next().unwrap_or_default();
    found.first > 0 && record.params.t0(round.saturating_sub(ROUNDS_AHEAD)) < from
}

fn file(operation: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> ReplayFailure {
    let path = path.to_owned();
    move |source| ReplayFailure::File { operation, path, source }
}

/// A seed that follows from the records, so that an export has one encoding; none of them can have been made for it.
fn seed_of(encoded: &[Vec<u8>]) -> [u8; SEED_LEN] {
    let parts: Vec<&[u8]> = encoded.iter().map(Vec::as_slice).collect();
    let digest = tagged_hash("VENDUE-V1-EXPORT-SEED", &parts);
    digest.first_chunk().copied().unwrap_or_default()
}

/// A segment with the records of some rounds.
pub fn export(record: &MarketRecord, seat: u16, rounds: &BTreeSet<u64>, records: &[LogRecord]) -> Vec<u8> {
    let wanted = |r: &&LogRecord| {
        matches!(r, LogRecord::Observe { .. }) || r.round().is_some_and(|round| rounds.contains(&round))
    };
    let encoded: Vec<Vec<u8>> = records.iter().filter(wanted).map(LogRecord::encode).collect();
    let head = SegmentHead { market: record.market, seat, generation: 0, number: 0, seed: seed_of(&encoded) };
    let mut bytes = head.encode();
    for record in &encoded {
        let frame = encode_frame(record, &head, bytes.len() as u64);
        bytes.extend(frame);
    }
    bytes
}

#[cfg(test)]
mod tests;
