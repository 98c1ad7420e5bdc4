//! Frames and segments: how records lie in a file, and how what a crash left is told from damage.
//!
//! A segment is a head and frames: `length u32 | CRC32C u32 | version u8 | mark u64 | synced u64 | record`. The checksum
//! covers the length and everything after itself. `synced` is how long the segment was known to be durable when the frame
//! was made. So bytes that do not check are a torn tail, of which nothing was ever acknowledged, unless an intact frame
//! after them says that they had been durable: then the file is damaged.
//!
//! Records hold what others have said. The head has a random seed that nobody else knows: one half is the mark of each
//! frame, the other half begins the checksum. So no bytes of somebody else, and no frame of another segment, pass for one
//! of this segment.

use super::LogRecord;
use vendue_market::Digest;
use vendue_market::encode::{DecodeError, Reader, Writer};

/// Version of the format of heads and frames.
pub const LOG_VERSION: u8 = 2;
/// Longest record.
pub const MAX_RECORD: usize = 16 << 20;
/// Bytes of a segment's head.
pub const HEAD_LEN: usize = 8 + 1 + 32 + 2 + 8 + 8 + SEED_LEN + 4;
/// Bytes of a segment's seed.
pub const SEED_LEN: usize = 16;

/// Bytes of a frame beside its record.
pub const FRAME_LEN: usize = PREFIX + FIXED;

const MAGIC: &[u8; 8] = b"VENDUELG";
/// Length and checksum.
const PREFIX: usize = 8;
/// Version, mark, synced.
const FIXED: usize = 17;
/// How many times as many bytes as there are may be read to tell a torn tail from damage.
const PASSES: usize = 8;

/// Whose segment it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHead {
    /// The market.
    pub market: Digest,
    /// The seat.
    pub seat: u16,
    /// The generation of the writer: the highest one is the only one that may append.
    pub generation: u64,
    /// Position among all segments.
    pub number: u64,
    /// Random, and known to nobody but the writer.
    pub seed: [u8; SEED_LEN],
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The head is no head of a segment of this version.
    #[error("this is no segment of a log of version {LOG_VERSION}")]
    Head,
    /// The head belongs to somebody else.
    #[error("this is the log of seat {seat} of market {market}")]
    Foreign {
        /// The seat.
        seat: u16,
        /// The market, as hex digits.
        market: String,
    },
    /// Bytes that had been durable do not check.
    #[error("a record that had been stored is damaged")]
    Checksum,
    /// A frame that checks holds no record that is known.
    #[error("a record does not decode: {0}")]
    Record(DecodeError),
}

/// Damage, and where it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at byte {offset}: {damage}")]
pub struct LogError {
    /// Where.
    pub offset: usize,
    /// What.
    pub damage: Damage,
}

/// What a segment holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    /// Whose it is; none when not even the head was durable.
    pub head: Option<SegmentHead>,
    /// Its records.
    pub records: Vec<LogRecord>,
    /// Bytes of a tail that was never durable; they count for nothing.
    pub torn: usize,
}

impl SegmentHead {
    /// The head's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.raw(MAGIC).u8(LOG_VERSION).raw(&self.market).u16(self.seat);
        w.u64(self.generation).u64(self.number).raw(&self.seed);
        let mut bytes = w.finish();
        bytes.extend(crc32c::crc32c(&bytes).to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (fields, sum) = bytes.split_at_checked(HEAD_LEN - 4)?;
        if crc32c::crc32c(fields).to_be_bytes() != sum {
            return None;
        }
        let mut r = Reader::new(fields);
        if r.take(MAGIC.len()).ok()? != MAGIC || r.u8().ok()? != LOG_VERSION {
            return None;
        }
        let (market, seat) = (r.array().ok()?, r.u16().ok()?);
        let (generation, number) = (r.u64().ok()?, r.u64().ok()?);
        Some(Self { market, seat, generation, number, seed: r.array().ok()? })
    }

    /// What each frame of the segment says of itself, and what its checksum begins with.
    fn secrets(&self) -> (u64, u64) {
        let seed = u128::from_be_bytes(self.seed);
        ((seed >> 64) as u64, seed as u64)
    }

    /// The checksum of a frame of the segment.
    fn sum(&self, length: &[u8; 4], body: &[u8]) -> [u8; 4] {
        let begun = crc32c::crc32c(&self.secrets().1.to_be_bytes());
        crc32c::crc32c_append(crc32c::crc32c_append(begun, length), body).to_be_bytes()
    }
}

/// A record as a frame of a segment of which `synced` bytes are durable.
pub fn encode_frame(record: &[u8], head: &SegmentHead, synced: u64) -> Vec<u8> {
    let mut w = Writer::new();
    w.u8(LOG_VERSION).u64(head.secrets().0).u64(synced).raw(record);
    let body = w.finish();
    let length = (body.len() as u32).to_be_bytes();
    let mut frame = Vec::with_capacity(PREFIX + body.len());
    frame.extend(length);
    frame.extend(head.sum(&length, &body));
    frame.extend(body);
    frame
}

/// A frame that checks.
struct Frame<'a> {
    synced: u64,
    record: &'a [u8],
    len: usize,
}

/// What a frame at the start of these bytes says of itself, if there may be one; its checksum is not looked at.
fn outline<'a>(bytes: &'a [u8], head: &SegmentHead) -> Option<Frame<'a>> {
    let mut r = Reader::new(bytes);
    let len = r.u32().ok()? as usize;
    r.u32().ok()?;
    if !(FIXED..=FIXED + MAX_RECORD).contains(&len) {
        return None;
    }
    let mut r = Reader::new(r.take(len).ok()?);
    if r.u8().ok()? != LOG_VERSION || r.u64().ok()? != head.secrets().0 {
        return None;
    }
    Some(Frame { synced: r.u64().ok()?, record: r.rest(), len: PREFIX + len })
}

/// Whether the checksum of a frame that may be at the start of these bytes is right.
fn checks(bytes: &[u8], frame: &Frame<'_>, head: &SegmentHead) -> bool {
    let (Some((length, rest)), Some(body)) = (bytes.split_first_chunk::<4>(), bytes.get(PREFIX..frame.len))
    else {
        return false;
    };
    rest.first_chunk::<4>() == Some(&head.sum(length, body))
}

/// The frame at the start of these bytes, if there is one.
fn frame<'a>(bytes: &'a [u8], head: &SegmentHead) -> Option<Frame<'a>> {
    outline(bytes, head).filter(|frame| checks(bytes, frame, head))
}

/// Whether an intact frame behind `offset` says that the bytes at `offset` had been durable. Whoever knows the seed can
/// make bytes that look like many frames, of which none checks: they are not worth more than a few passes over the file,
/// and count as damage.
fn was_durable(bytes: &[u8], offset: usize, head: &SegmentHead) -> bool {
    let wanted = head.secrets().0.to_be_bytes();
    let mut work = PASSES.saturating_mul(bytes.len());
    for at in offset + 1..bytes.len() {
        let rest = bytes.get(at..).unwrap_or_default();
        if rest.get(PREFIX + 1..PREFIX + 9) != Some(&wanted) {
            continue;
        }
        // Checksums are computed only where a frame of this segment may begin that says so.
        let says = |f: &Frame<'_>| f.synced > offset as u64 && f.synced <= at as u64;
        let Some(found) = outline(rest, head).filter(says) else { continue };
        if checks(rest, &found, head) || found.len > work {
            return true;
        }
        work -= found.len;
    }
    false
}

/// Reads a segment of a market with `n` seats. A tail may be torn where its writer may have crashed: in the last segment
/// of each generation.
pub fn read_segment(
    bytes: &[u8],
    market: &Digest,
    seat: u16,
    n: u16,
    may_be_torn: bool,
) -> Result<Segment, LogError> {
    let at = |offset, damage| LogError { offset, damage };
    let head = bytes.get(..HEAD_LEN).and_then(SegmentHead::decode);
    let Some(head) = head else {
        // The head is written and made durable before any frame.
        if may_be_torn && bytes.len() <= HEAD_LEN {
            return Ok(Segment { head: None, records: vec![], torn: bytes.len() });
        }
        return Err(at(0, Damage::Head));
    };
    if (&head.market, head.seat) != (market, seat) {
        let market = vendue_market::encode::to_hex(&head.market);
        return Err(at(0, Damage::Foreign { seat: head.seat, market }));
    }
    let (mut offset, mut records) = (HEAD_LEN, vec![]);
    while let Some(rest) = bytes.get(offset..).filter(|rest| !rest.is_empty()) {
        let Some(frame) = frame(rest, &head) else {
            if may_be_torn && !was_durable(bytes, offset, &head) {
                return Ok(Segment { head: Some(head), records, torn: rest.len() });
            }
            return Err(at(offset, Damage::Checksum));
        };
        records.push(LogRecord::decode(frame.record, n).map_err(|e| at(offset, Damage::Record(e)))?);
        offset += frame.len;
    }
    Ok(Segment { head: Some(head), records, torn: 0 })
}
