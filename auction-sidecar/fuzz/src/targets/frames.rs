//! What homes and hosts say to each other outside of rounds.

use super::Cost::Bytes;
use super::{Target, json_value, target};
use crate::bounds::bounded;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use vendue_auction_core::frames::{
    AwardRef, Bulk, BulkReply, ChainHead, ChainList, FileEntry, Handover, HandoverReply, LOG_PATH,
    MAX_CHAINS, MAX_FILES, check_manifest, decode, decode_bulk, encode, encode_bulk, sound_path, sound_uid,
};
use vendue_crds::AwardStatus;

pub(super) const TARGETS: &[Target] = &[
    target("frame_handover", Bytes, handover),
    target("frame_handover_reply", Bytes, handover_reply),
    target("frame_bulk", Bytes, bulk::<Bulk>),
    target("frame_bulk_reply", Bytes, bulk::<BulkReply>),
    target("frame_path", Bytes, path),
    target("frame_chain_list", Bytes, chain_list),
];

/// A request: of a manifest that is accepted, every path stays below the folder; a close that is signed was signed.
fn handover(bytes: &[u8]) -> bool {
    let Some(frame) = json_value::<Comparable>(bytes).map(|c| c.0) else { return false };
    assert!(decode::<Handover<AwardStatus>>("request", bytes).is_ok());
    match &frame {
        Handover::Manifest { files, .. } => manifest(files),
        Handover::Close { award, not_taken, signature } => closed(award, *not_taken, signature),
        Handover::Workload { .. } | Handover::Status { .. } | Handover::Delivered { .. } => {}
    }
    true
}

/// Requests have no equality; their JSON has.
#[derive(Debug, serde::Deserialize, Serialize)]
#[serde(transparent)]
struct Comparable(Handover<AwardStatus>);

impl PartialEq for Comparable {
    fn eq(&self, other: &Self) -> bool {
        encode(&self.0) == encode(&other.0)
    }
}

fn manifest(files: &[FileEntry]) {
    if check_manifest(files).is_err() {
        return;
    }
    assert!(files.len() <= MAX_FILES + 1 && files.iter().filter(|f| f.path == LOG_PATH).count() <= 1);
    for file in files.iter().filter(|f| f.path != LOG_PATH) {
        stays_below(&file.path);
    }
}

/// A path that is accepted names something below the folder that it is joined to.
fn stays_below(path: &str) {
    let joined = std::path::Path::new("/out").join(path);
    let plain = |c: std::path::Component<'_>| !matches!(c, std::path::Component::ParentDir);
    assert!(joined.starts_with("/out") && joined.components().all(plain), "{path:?} leaves the folder");
}

fn closed(award: &AwardRef, not_taken: bool, signature: &str) {
    let record = &crate::fixture::fixture().record;
    let user = &record.homes[0].user_key;
    let (made, made_not_taken, made_signature) = crate::corpus::close();
    let good = award.is_closed_by(&record.market, not_taken, signature, user);
    let signed = |a: &AwardRef| (a.id.clone(), a.order.clone());
    let same = signed(award) == signed(&made) && not_taken == made_not_taken && signature == made_signature;
    assert_eq!(good, same, "a close that nobody signed is accepted, or one that was is not");
}

fn handover_reply(bytes: &[u8]) -> bool {
    json_value::<HandoverReply>(bytes).is_some()
}

/// Header and data: the data is what follows the header, and both make the same message again.
fn bulk<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) -> bool {
    let Ok((header, data)) = bounded(bytes.len(), 0, || decode_bulk::<T>("bulk", bytes)) else {
        return false;
    };
    assert!(bytes.ends_with(data));
    let written = encode_bulk(&header, data);
    let (again, rest) = decode_bulk::<T>("bulk", &written).expect("what was written can be read");
    assert_eq!((again, rest), (header, data));
    true
}

/// A list of chains is bounded, and no node's name steers a terminal.
fn chain_list(bytes: &[u8]) -> bool {
    let Ok(list) = bounded(bytes.len(), 0, || ChainList::decode(bytes)) else { return false };
    let printable =
        |head: &ChainHead| head.node.len() <= 253 && head.node.bytes().all(|b| b.is_ascii_graphic());
    assert!(list.chains.len() <= MAX_CHAINS && list.chains.iter().all(printable));
    assert_eq!(ChainList::decode(&encode(&list)).ok(), Some(list));
    true
}

fn path(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let sound = sound_path(text);
    if sound {
        stays_below(text);
    }
    assert!(!sound_uid(text) || (sound && !text.contains('/')), "{text:?} names more than a file");
    sound
}
