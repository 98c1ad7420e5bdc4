//! The log of a seat: its records, its segments, and rounds that are replayed from it.

use super::Cost::{Bytes, Round};
use super::{SIZES, Target, target};
use crate::bounds::bounded;
use crate::fixture::fixture;
use crate::termed::ROUND;
use vendue_auction_core::log::{LogRecord, read_segment, replay};

pub(super) const TARGETS: &[Target] = &[
    target("log_record", Bytes, log_record),
    target("log_segment", Bytes, log_segment),
    target("log_replay", Round, log_replay),
];

/// The seat whose log it is.
pub const SEAT: u16 = 0;
/// Says that the end of a segment may be torn.
pub const TORN: u8 = 1;

/// A record has one encoding, and its round and times can be asked for whatever it says.
fn log_record(bytes: &[u8]) -> bool {
    let Some((selector, rest)) = bytes.split_first() else { return false };
    let n = SIZES[usize::from(*selector) % SIZES.len()];
    let Ok(record) = bounded(rest.len(), n, || LogRecord::decode(rest, n)) else { return false };
    assert_eq!(record.encode(), rest, "{record:?} has two encodings");
    assert_eq!(LogRecord::decode(rest, n).as_ref(), Ok(&record));
    let params = &fixture().record.params;
    let (needed, until) = (record.needed_until_ms(params), record.goes_on_until_ms(params));
    assert!(needed == if record.is_for_replay() { 0 } else { until });
    assert!(record.round().is_none_or(|round| until >= params.t0(round)));
    true
}

/// Whether its end may be torn, then a segment. What is not torn is a segment that is whole; of the same bytes, who
/// accepts no torn end reads the same or nothing.
fn log_segment(bytes: &[u8]) -> bool {
    let Some((torn, rest)) = bytes.split_first() else { return false };
    let market = &fixture().record.market;
    let read = |bytes: &[u8], torn| read_segment(bytes, market, SEAT, 4, torn);
    let Ok(segment) = bounded(rest.len(), 4, || read(rest, *torn == TORN)) else { return false };
    if segment.head.is_none() {
        assert!(segment.records.is_empty() && segment.torn == rest.len());
        return true;
    }
    let whole = rest.get(..rest.len() - segment.torn).unwrap_or_default();
    let again = read(whole, false).expect("what is before a torn tail is whole");
    assert_eq!((again.head, &again.records, again.torn), (segment.head, &segment.records, 0));
    assert_eq!(read(rest, false).is_ok(), segment.torn == 0);
    true
}

/// Records, each behind its length, as those of a round: it comes out as it was signed, or something differs. A log that
/// was not signed by this seat certifies nothing else than what the seats have certified.
fn log_replay(bytes: &[u8]) -> bool {
    let Some(records) = records(bytes) else { return false };
    let Ok(replayed) = replay(&fixture().record, SEAT, ROUND, &records) else { return false };
    assert_eq!(replayed.round, ROUND);
    if let (Some(root), Some(certificate)) = (replayed.root, &replayed.certificate) {
        assert_eq!(root, certificate.root, "the replay awards what was not certified");
    }
    assert_eq!(replayed.explained.len(), replayed.cleared.len(), "each order is explained");
    true
}

fn records(mut bytes: &[u8]) -> Option<Vec<LogRecord>> {
    let mut records = vec![];
    while let Some((len, rest)) = bytes.split_first_chunk::<4>() {
        let (record, rest) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
        records.push(LogRecord::decode(record, 4).ok()?);
        bytes = rest;
    }
    Some(records)
}
