//! What a home and the seat that runs its order say to each other outside of rounds: workload, status, files, logs.
//!
//! Inputs and outputs: values and bytes, which a transport carries as one message each. The status of an award is a type
//! of whoever uses this. Invariant: a decoder accepts only a whole value of the type asked for, and every list and string
//! that comes from a peer is bounded before it is used.

use crate::evidence::{self, EvidenceKey, close_hash};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use vendue_market::Digest;
use vendue_market::encode::{from_hex, to_hex};

/// Most outputs in a manifest; the log comes on top.
pub const MAX_FILES: usize = 10_000;
/// Longest path of a file.
pub const MAX_PATH: usize = 1_024;
const MAX_HEADER: usize = 16 << 10;

/// Why bytes of a peer are not accepted.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Not a value of the expected type.
    #[error("not a {what}: {reason}")]
    Malformed {
        /// What was expected.
        what: &'static str,
        /// Why it is not one.
        reason: String,
    },
    /// A bound is exceeded.
    #[error("there are more than {max} {what}")]
    TooMany {
        /// What was counted.
        what: &'static str,
        /// How many may be.
        max: usize,
    },
}

/// Which award a message is about. Both sides know all four.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AwardRef {
    /// Id of the award, 16 hex digits.
    pub id: String,
    /// Digest of the signed order, 64 hex digits.
    pub order: String,
    /// Uid of the Job.
    pub job: String,
    /// Attempt of the order.
    pub attempt: u32,
}

impl AwardRef {
    /// Whether each part has the form that names of objects and files are made of.
    pub fn is_sound(&self) -> bool {
        let hex = |s: &str, n: usize| {
            s.len() == n && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        hex(&self.id, 16) && hex(&self.order, 64) && sound_uid(&self.job)
    }
}

impl AwardRef {
    /// What the signature of a close signs; `None` for a malformed order.
    fn close_hash(&self, market: &Digest, not_taken: bool) -> Option<Digest> {
        let order: Digest = from_hex(&self.order)?.try_into().ok()?;
        Some(close_hash(market, &self.id, &order, not_taken))
    }

    /// Whether a close of this award is signed by that user key.
    pub fn is_closed_by(&self, market: &Digest, not_taken: bool, signature: &str, user: &[u8; 33]) -> bool {
        let signature: Option<[u8; 65]> = from_hex(signature).and_then(|s| s.try_into().ok());
        let (Some(signature), Some(hash)) = (signature, self.close_hash(market, not_taken)) else {
            return false;
        };
        evidence::verify(&hash, &signature, user).is_ok()
    }
}

/// Whether a uid is safe as the name of a file: letters, digits and dashes.
pub fn sound_uid(uid: &str) -> bool {
    (1..=63).contains(&uid.len()) && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// A request on the hand-over protocol.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Handover<S> {
    /// Home to the seat that accepted: the workload and the salt of its commitment.
    Workload {
        /// The award.
        award: AwardRef,
        /// The workload in its canonical encoding, which is text.
        workload: String,
        /// The salt, 64 hex digits.
        salt: String,
    },
    /// Home to seat: the Job is gone or the reservation is not taken up.
    Close {
        /// The award.
        award: AwardRef,
        /// Whether the award was never used.
        not_taken: bool,
        /// Signature of that by the user key of the home, 130 hex digits.
        signature: String,
    },
    /// Seat to home: how the award stands; the latest counts.
    Status {
        /// The award.
        award: AwardRef,
        /// Grows with each change; an older one that comes late is not used.
        version: u64,
        /// The host's status without names of its nodes.
        status: Box<S>,
    },
    /// Seat to home: what will be delivered.
    Manifest {
        /// The award.
        award: AwardRef,
        /// Outputs and the log.
        files: Vec<FileEntry>,
    },
    /// Seat to home: everything was sent.
    Delivered {
        /// The award.
        award: AwardRef,
    },
}

impl<S> Handover<S> {
    /// A signed close.
    pub fn close(market: &Digest, award: AwardRef, not_taken: bool, user: &EvidenceKey) -> Option<Self> {
        let signature = to_hex(&user.sign(&award.close_hash(market, not_taken)?));
        Some(Self::Close { award, not_taken, signature })
    }

    /// Whether a host answers it; a home answers the others.
    pub fn is_for_host(&self) -> bool {
        matches!(self, Self::Workload { .. } | Self::Close { .. })
    }
}

/// A file of the outputs; the log has the path [`LOG_PATH`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Path below the folder of outputs.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// SHA-256, 64 hex digits.
    pub sha256: String,
}

/// The path under which the log of a job travels; no output can have it, since an output's path never starts so.
pub const LOG_PATH: &str = "//log";

/// A response on the hand-over protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum HandoverReply {
    /// Done, or was done before.
    Ok,
    /// The bytes that are there already, file by file in the order of the manifest.
    Have {
        /// Bytes of each file.
        offsets: Vec<u64>,
    },
    /// The award is not known here (any more).
    Unknown,
    /// Not accepted, for good.
    Refused {
        /// A reason in one sentence.
        reason: String,
    },
    /// Not now; ask again.
    Later {
        /// A reason in one sentence.
        reason: String,
    },
}

/// Header of a request on the bulk protocol; data follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Bulk {
    /// Home to seat: read the log of a running job.
    ReadLog {
        /// The award.
        award: AwardRef,
        /// From this byte.
        offset: u64,
        /// Wait up to this long for more, milliseconds.
        wait_ms: u32,
    },
    /// Home to seat: which chains of receipts an award has. The data is the order, which says whose the award is when
    /// nothing else is left of it at the seat.
    ListReceipts {
        /// The award.
        award: AwardRef,
        /// Round of the award.
        round: u64,
    },
    /// Home to seat: records of a chain. The data is the order.
    ReadReceipts {
        /// The award.
        award: AwardRef,
        /// Round of the award.
        round: u64,
        /// Name of the chain.
        chain: String,
        /// From this sequence on.
        from: u64,
    },
    /// Seat to home: a piece of a file of the manifest.
    Put {
        /// The award.
        award: AwardRef,
        /// Position of the file in the manifest.
        file: u32,
        /// Offset of the data.
        offset: u64,
    },
}

impl Bulk {
    /// Whether a host answers it; a home answers the others.
    pub fn is_for_host(&self) -> bool {
        !matches!(self, Self::Put { .. })
    }
}

/// Header of a response on the bulk protocol; data follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum BulkReply {
    /// A piece of the log.
    Log {
        /// Bytes of the log so far.
        size: u64,
        /// Whether the job has ended, so that the log will not grow.
        ended: bool,
    },
    /// The data is stored up to here.
    Stored {
        /// Bytes of the file that are there.
        offset: u64,
    },
    /// The data is what was asked for: the JSON of a [`ChainList`], or encoded records one after another.
    Receipts,
    /// The award is not known here.
    Unknown,
    /// Not possible.
    Failed {
        /// A reason in one sentence.
        reason: String,
        /// Whether asking again may help.
        retry: bool,
    },
}

/// The chains of receipts of an award, as the provider has them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainList {
    /// One for each node key that signs.
    pub chains: Vec<ChainHead>,
}

/// How far a chain of receipts is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainHead {
    /// Name of the chain.
    pub name: String,
    /// The node whose agent signs it, as the provider calls it.
    pub node: String,
    /// Sequence of the record that comes next.
    pub next: u64,
    /// Whether none comes any more.
    pub closed: bool,
}

/// Most chains of an award: one for each key of each of its nodes.
pub const MAX_CHAINS: usize = 1_024;
/// Longest name of a node.
const MAX_NODE: usize = 253;

impl ChainList {
    /// Reads what a provider says, bounded; names of nodes are printable.
    pub fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        let list: Self = decode("list of chains", bytes)?;
        if list.chains.len() > MAX_CHAINS {
            return Err(FrameError::TooMany { what: "chains", max: MAX_CHAINS });
        }
        let printable = |node: &str| node.len() <= MAX_NODE && node.bytes().all(|b| b.is_ascii_graphic());
        match list.chains.iter().find(|chain| !printable(&chain.node)) {
            Some(chain) => {
                let node: String = chain.node.chars().take(MAX_NODE).collect();
                let reason = format!("node {node:?} is not up to {MAX_NODE} printable characters");
                Err(FrameError::Malformed { what: "list of chains", reason })
            }
            None => Ok(list),
        }
    }
}

/// Encodes a message of the hand-over protocol.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // Serialising these types to memory cannot fail: no map has keys that are not strings.
    serde_json::to_vec(value).unwrap_or_default()
}

/// Decodes a message of the hand-over protocol.
pub fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, FrameError> {
    serde_json::from_slice(bytes).map_err(|e| FrameError::Malformed { what, reason: e.to_string() })
}

/// Encodes a bulk message: length of the header, header, data.
pub fn encode_bulk<T: Serialize>(header: &T, data: &[u8]) -> Vec<u8> {
    let header = encode(header);
    let length = u32::try_from(header.len()).unwrap_or(u32::MAX).to_be_bytes();
    [length.as_slice(), &header, data].concat()
}

/// Decodes a bulk message: its header and its data.
pub fn decode_bulk<'b, T: DeserializeOwned>(
    what: &'static str,
    bytes: &'b [u8],
) -> Result<(T, &'b [u8]), FrameError> {
    let short = || FrameError::Malformed { what, reason: "ends too early".to_owned() };
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(short)?;
    let len = u32::from_be_bytes(*length) as usize;
    if len > MAX_HEADER {
        return Err(FrameError::TooMany { what: "header bytes", max: MAX_HEADER });
    }
    let (header, data) = rest.split_at_checked(len).ok_or_else(short)?;
    Ok((decode(what, header)?, data))
}

/// Longest log that is brought home; the end of a longer one is cut off.
pub const MAX_LOG: u64 = 64 << 20;

/// Checks a manifest of a peer: bounded, safe relative paths, well-formed digests.
pub fn check_manifest(files: &[FileEntry]) -> Result<(), FrameError> {
    let logs = files.iter().filter(|f| f.path == LOG_PATH).take(2).count();
    if logs > 1 {
        return Err(FrameError::TooMany { what: "logs", max: 1 });
    }
    if files.len() - logs > MAX_FILES {
        return Err(FrameError::TooMany { what: "output files", max: MAX_FILES });
    }
    let malformed = |reason: String| FrameError::Malformed { what: "manifest", reason };
    for file in files {
        if file.path != LOG_PATH && !sound_path(&file.path) {
            return Err(malformed(format!("{:?} is not a plain relative path", file.path)));
        }
        if file.sha256.len() != 64
            || !file.sha256.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        {
            return Err(malformed("a digest is not 64 hex digits".to_owned()));
        }
    }
    Ok(())
}

/// Whether a path is relative, bounded, and has only plain components.
pub fn sound_path(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= MAX_PATH
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != ".." && !part.contains('\0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bulk_round_trip_and_lies_about_lengths() {
        let award = AwardRef { id: "0".repeat(16), order: "a".repeat(64), job: "u-1".into(), attempt: 1 };
        assert!(award.is_sound());
        let header = Bulk::Put { award, file: 3, offset: 7 };
        let bytes = encode_bulk(&header, b"data");
        let (back, data) = decode_bulk::<Bulk>("put", &bytes).unwrap();
        assert_eq!((back, data), (header, b"data".as_slice()));
        for cut in 0..bytes.len() - 4 {
            assert!(decode_bulk::<Bulk>("put", &bytes[..cut]).is_err());
        }
        assert!(decode_bulk::<Bulk>("put", &[255, 255, 255, 255, 1]).is_err());
    }

    #[test]
    fn chains_are_few_and_their_nodes_printable() {
        let head = |node: &str| ChainHead { name: "c".into(), node: node.into(), next: 1, closed: false };
        let read = |chains: Vec<ChainHead>| ChainList::decode(&encode(&ChainList { chains }));
        assert_eq!(read(vec![head("n1"); MAX_CHAINS]).unwrap().chains.len(), MAX_CHAINS);
        assert!(read(vec![head("n1"); MAX_CHAINS + 1]).is_err());
        for bad in ["a b", "\u{1b}[2J", &"n".repeat(254)] {
            assert!(read(vec![head(bad)]).is_err(), "{bad:?}");
        }
        assert!(ChainList::decode(b"[]").is_err());
    }

    #[test]
    fn only_plain_paths() {
        for good in ["model.pt", "a/b/c", "..a", "a..b/c"] {
            assert!(sound_path(good), "{good}");
        }
        for bad in ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/./b", "a/", "x\0y", &"a".repeat(1025)] {
            assert!(!sound_path(bad), "{bad}");
        }
        let entry =
            |path: &str, sha256: &str| FileEntry { path: path.into(), size: 1, sha256: sha256.into() };
        assert!(check_manifest(&[entry("a", &"0".repeat(64)), entry(LOG_PATH, &"f".repeat(64))]).is_ok());
        assert!(check_manifest(&[entry("a", &"G".repeat(64))]).is_err());
        assert!(check_manifest(&[entry("//other", &"0".repeat(64))]).is_err());
        let log = entry(LOG_PATH, &"0".repeat(64));
        assert!(check_manifest(&[log.clone(), log.clone()]).is_err());
        let mut full = vec![entry("a", &"0".repeat(64)); MAX_FILES];
        full.push(log);
        assert!(check_manifest(&full).is_ok(), "the log does not count");
        full.push(entry("a", &"0".repeat(64)));
        assert!(check_manifest(&full).is_err());
    }
}
