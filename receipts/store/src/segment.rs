//! One file of a chain: the chain as it was before the file, then batches of records. Pure.
//!
//! ```text
//!  frame = length u32 | CRC-32C of the payload u32 | payload          (big-endian)
//!  file  = frame(chain as JSON) frame(records) frame(records) ...
//! ```
//! Inputs: batches, or the bytes of a file. Outputs: bytes, or the chain and where the durable part ends. Invariant: a
//! batch is one frame, written and synced before the next one is. So only the last frame can be torn, and whatever is
//! wrong before a frame that is whole was changed after it was durable.

use std::ops::Range;

use vendue_receipts::{Chain, Record, read_records};

/// Length and checksum.
const HEAD: usize = 8;
/// Longest payload: four times the longest batch, which is as many gaps as can wait for a store that failed.
const MAX_PAYLOAD: usize = 16 << 20;

/// A frame around a payload. None around one that is empty or too long.
pub(crate) fn frame(payload: &[u8]) -> Option<Vec<u8>> {
    if !(1..=MAX_PAYLOAD).contains(&payload.len()) {
        return None;
    }
    let (length, sum) = (payload.len() as u32, crc32c::crc32c(payload));
    Some([&length.to_be_bytes()[..], &sum.to_be_bytes(), payload].concat())
}

/// The payload of the frame at `at`, if one is whole there.
fn payload_at(bytes: &[u8], at: usize) -> Option<Range<usize>> {
    let (length, rest) = bytes.get(at..)?.split_first_chunk::<4>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let length = u32::from_be_bytes(*length) as usize;
    let payload = rest.get(..length).filter(|_| (1..=MAX_PAYLOAD).contains(&length))?;
    let start = at + HEAD;
    (crc32c::crc32c(payload) == u32::from_be_bytes(*sum)).then(|| start..start + length)
}

/// What a file holds.
#[derive(Debug)]
pub(crate) struct Segment {
    /// The chain before the first record.
    pub before: Chain,
    /// The records, each with the offset of its frame.
    pub records: Vec<(usize, Record)>,
    /// Where the next frame goes.
    pub end: usize,
    /// Bytes after that, which were never durable.
    pub torn: usize,
}

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Damage {
    /// Where.
    pub offset: usize,
    /// What.
    pub what: String,
}

/// The chain before the first record, from the first bytes of a file; `None` when they are too few.
pub(crate) fn head(bytes: &[u8]) -> Option<Result<Chain, Damage>> {
    let head = bytes.get(payload_at(bytes, 0)?)?;
    Some(serde_json::from_slice(head).map_err(|error| Damage { offset: 0, what: error.to_string() }))
}

/// Reads a file. The last one of a chain may end in a batch that was never durable.
pub(crate) fn read(bytes: &[u8], may_be_torn: bool) -> Result<Segment, Damage> {
    let damage = |offset: usize, what: &dyn ToString| Damage { offset, what: what.to_string() };
    let head = payload_at(bytes, 0).ok_or_else(|| damage(0, &"no head"))?;
    let mut end = head.end;
    let before = bytes.get(head).unwrap_or_default();
    let before: Chain = serde_json::from_slice(before).map_err(|error| damage(0, &error))?;
    let mut records = vec![];
    while let Some(payload) = payload_at(bytes, end) {
        let batch = read_records(bytes.get(payload.clone()).unwrap_or_default());
        records.extend(batch.map_err(|error| damage(end, &error))?.into_iter().map(|record| (end, record)));
        end = payload.end;
    }
    let torn = bytes.len() - end;
    // A frame that is whole was written after what is before it was synced.
    let later = (end + 1..bytes.len()).any(|at| payload_at(bytes, at).is_some());
    if torn > 0 && (later || !may_be_torn) {
        return Err(damage(end, &"the batch that begins here was changed after it was stored"));
    }
    Ok(Segment { before, records, end, torn })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_framed_is_found_and_nothing_else_is_framed() {
        let longest = vec![7; MAX_PAYLOAD];
        for payload in [&[1][..], &longest] {
            let framed = frame(payload).unwrap();
            assert_eq!(payload_at(&framed, 0), Some(HEAD..framed.len()));
            assert_eq!(payload_at(&framed[..framed.len() - 1], 0), None);
        }
        assert_eq!(frame(&[]), None);
        assert_eq!(frame(&vec![7; MAX_PAYLOAD + 1]), None);
        // Zeros at the end of a file, as some file systems leave them after a crash, are no frame.
        assert_eq!(payload_at(&[0; 64], 0), None);
    }
}
