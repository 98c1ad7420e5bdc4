//! Reading a log: a folder, or one file.

use std::fs;
use std::path::Path;

use vendue_auction_core::MarketRecord;
use vendue_auction_core::log::{LogRecord, Segment, read_segment};

use super::files::{LogDirError, Named, fail, segments};

/// What a log holds.
#[derive(Debug, Default)]
pub struct Found {
    /// All records, in the order in which they were written.
    pub records: Vec<LogRecord>,
    /// Bytes at the ends of generations that were never durable.
    pub torn: usize,
    /// Number of the first segment; those before it were removed.
    pub first: u64,
}

fn read_one(
    named: &Path,
    record: &MarketRecord,
    seat: u16,
    may_be_torn: bool,
) -> Result<Segment, LogDirError> {
    let bytes = fs::read(named).map_err(fail("read", named))?;
    read_segment(&bytes, &record.market, seat, record.n(), may_be_torn)
        .map_err(|error| LogDirError::Damaged { path: named.to_owned(), error })
}

/// The segment at this place. Only the last one of a generation may be torn: the next one of the same generation is made
/// when the one before is durable.
pub(super) fn read_at(
    named: &[Named],
    at: usize,
    record: &MarketRecord,
    seat: u16,
) -> Result<Option<Segment>, LogDirError> {
    let Some(one) = named.get(at) else { return Ok(None) };
    let last = named.get(at + 1).is_none_or(|next| next.generation != one.generation);
    read_one(&one.path, record, seat, last).map(Some)
}

/// Each segment with its content.
pub(super) fn read_segments(
    dir: &Path,
    record: &MarketRecord,
    seat: u16,
) -> Result<Vec<(Named, Segment)>, LogDirError> {
    let named = segments(dir)?;
    for pair in named.windows(2) {
        if let [a, b] = pair
            && b.number != a.number + 1
        {
            return Err(LogDirError::Gap { path: dir.to_owned(), missing: a.number + 1 });
        }
    }
    let mut out = vec![];
    for (at, one) in named.iter().enumerate() {
        let segment = read_at(&named, at, record, seat)?;
        out.extend(segment.map(|segment| (one.clone(), segment)));
    }
    Ok(out)
}

/// The log in a folder, to look at.
pub fn read_dir(dir: &Path, record: &MarketRecord, seat: u16) -> Result<Found, LogDirError> {
    let segments = read_segments(dir, record, seat)?;
    let first = segments.first().map_or(0, |(named, _)| named.number);
    let mut found = Found { first, ..Found::default() };
    for (_, segment) in segments {
        found.records.extend(segment.records);
        found.torn += segment.torn;
    }
    Ok(found)
}

/// One segment, or a file made of one.
pub fn read_file(path: &Path, record: &MarketRecord, seat: u16) -> Result<Found, LogDirError> {
    let segment = read_one(path, record, seat, true)?;
    let first = segment.head.map_or(0, |head| head.number);
    Ok(Found { records: segment.records, torn: segment.torn, first })
}
