//! What `/vendue/handover/1` and `/vendue/bulk/1` carry: the core's frames, with the status of an Award as Kubernetes has it.
//!
//! Inputs and outputs: values and bytes that are shared without copies. Invariant: nothing is decoded here; the core does it.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use vendue_auction_core::frames;
use vendue_crds::AwardStatus;

pub use vendue_auction_core::frames::{
    AwardRef, Bulk, BulkReply, ChainHead, ChainList, FileEntry, FrameError, HandoverReply, LOG_PATH,
    MAX_FILES, MAX_LOG, MAX_PATH, check_manifest, decode, sound_path, sound_uid,
};

/// A request on the hand-over protocol.
pub type Handover = frames::Handover<AwardStatus>;

/// Encodes a message of the hand-over protocol.
pub fn encode<T: Serialize>(value: &T) -> Bytes {
    frames::encode(value).into()
}

/// Encodes a bulk message: length of the header, header, data.
pub fn encode_bulk<T: Serialize>(header: &T, data: &[u8]) -> Bytes {
    frames::encode_bulk(header, data).into()
}

/// Decodes a bulk message; the data stays where it is.
pub fn decode_bulk<T: DeserializeOwned>(what: &'static str, bytes: &Bytes) -> Result<(T, Bytes), FrameError> {
    let (header, data) = frames::decode_bulk(what, bytes)?;
    Ok((header, bytes.slice_ref(data)))
}
