//! The durable log of a seat: what it must remember to contradict nothing that it said before a restart.
//!
//! Inputs: records that a seat gives out as [`crate::SeatOutput::Persist`]. Outputs: bytes of frames and segments, and
//! from these the records again. The process that holds the seat writes them and makes them durable before it carries
//! out anything else of the same batch; there is no file here, and no clock.
//!
//! Invariants: every value has one encoding, decoding is total, and a segment gives either the records that were written
//! to it, in their order and up to a tail that was never durable, or an error that says where it is damaged.

mod frame;
mod record;
mod replay;

pub use crate::clearing::Explained;
pub use frame::{
    Damage, FRAME_LEN, HEAD_LEN, LOG_VERSION, LogError, MAX_RECORD, SEED_LEN, Segment, SegmentHead,
    encode_frame, read_segment,
};
pub use record::{Answer, LogRecord};
pub use replay::{Decision, Difference, ReplayError, Replayed, Step, replay};

#[cfg(test)]
mod tests;
