//! Why a key generation does not begin, does not go on, or makes nothing; and what to do about it.

use std::path::PathBuf;

use vendue_auction_core::RecordError;
use vendue_auction_core::keygen::{EpochError, RestoreError, TermsError};
use vendue_sealed_bid::dkg::DkgError;

use crate::keys::KeysError;
use crate::log::LogDirError;
use crate::net::StartError;
use crate::new_file::NewFileError;

/// Why there are no new keys.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
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
    /// A file that is written once.
    #[error(transparent)]
    NewFile(#[from] NewFileError),
    /// The market record is refused.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The keys are refused.
    #[error("keys {path}: {source}; give the keys and the market record of one market and epoch")]
    Keys {
        /// The file.
        path: PathBuf,
        /// Why.
        source: KeysError,
    },
    /// The keys are those of a home.
    #[error("keys {0} hold no seat's keys; only seats make keys")]
    NoSeat(PathBuf),
    /// An address is given for a seat that is not in the record.
    #[error("--seat names {0:?}, which is no seat of the market record")]
    UnknownSeat(String),
    /// A seat has two addresses.
    #[error("--seat names {0:?} twice; accepted: one address for each seat")]
    SeatTwice(String),
    /// A seat has no address.
    #[error(
        "--seat is missing for {0}; accepted: {0}=MULTIADDR, where its generate-keys is reached, for every other seat. At its \
        address in the market record its running seat listens"
    )]
    NoAddress(String),
    /// A seat is to be reached where one runs.
    #[error(
        "--seat {seat}={address}: there the running seat of {runs} listens, says the market record; accepted: an address at \
        which generate-keys of {seat} listens, with a port of its own"
    )]
    RunningSeat {
        /// The seat.
        seat: String,
        /// Its address.
        address: String,
        /// Who runs there.
        runs: String,
    },
    /// The identities of this generation cannot be made.
    #[error("make the transport identities of the key generation: {0}")]
    Link(String),
    /// There can be no such generation.
    #[error(transparent)]
    Terms(#[from] TermsError),
    /// The start is over, and this process was not there.
    #[error("--start is {} s ago; agree with the other operators on a time to come", late_ms / 1000)]
    Past {
        /// Since when.
        late_ms: u64,
    },
    /// There are keys or a record already, of another generation or one that is over.
    #[error("{0} exists and is not replaced; give another --out")]
    Exists(PathBuf),
    /// Another generation has this folder.
    #[error(
        "{0} belongs to another key generation: another market record, seat or --start; give another --out"
    )]
    OtherGeneration(PathBuf),
    /// The seat makes these keys in another folder.
    #[error(
        "{marker}: this seat makes the keys of this --start in {other}; in {out} it would have other secrets and contradict \
        itself. Give --out {other}; or, before the start and if no process works there, remove that folder and the marker"
    )]
    OtherFolder {
        /// What says so.
        marker: PathBuf,
        /// The folder.
        other: PathBuf,
        /// The one that was given.
        out: PathBuf,
    },
    /// The marker cannot be written.
    #[error(
        "create {path}: {source}. It keeps a second --out of this generation out; give --marker-dir a folder that can be written \
        and outlives the process"
    )]
    Marker {
        /// The marker.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There was a process here, and its secrets are gone.
    #[error(
        "{0} holds the log of a key generation without its secrets: this seat cannot go on with it. Agree on a new --start, \
        and give another --out"
    )]
    NoSecrets(PathBuf),
    /// The stored secrets do not parse.
    #[error("secrets of the key generation {path}: {reason}")]
    Secrets {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Another process works in the folder.
    #[error("{0} is in use by another process; two processes of one seat would contradict each other")]
    InUse(PathBuf),
    /// The operating system gives no random bytes.
    #[error("random bytes: {0}")]
    Random(getrandom::Error),
    /// A file cannot be encoded.
    #[error("encode keys: {0}")]
    Encode(serde_json::Error),
    /// The seat's own word cannot be dealt with.
    #[error("key generation: {0}")]
    Dkg(#[from] DkgError),
    /// The log is not this seat's.
    #[error("restore the key generation from its log: {0}; agree on a new --start, and give another --out")]
    Restore(#[from] RestoreError),
    /// The log.
    #[error(transparent)]
    Log(#[from] LogDirError),
    /// Metrics.
    #[error("register metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The network.
    #[error(transparent)]
    Net(#[from] StartError),
    /// What was made is no next record.
    #[error("make the next record: {0}")]
    Epoch(#[from] EpochError),
    /// The new keys do not fit the new record.
    #[error("new keys: {0}")]
    NewKeys(#[from] vendue_auction_core::KeyError),
    /// Something that the generation needs has ended.
    #[error("run the key generation: the {0} has ended")]
    Ended(&'static str),
    /// A signal came first.
    #[error("stopped before the keys were stored; the same command goes on from {0}")]
    Stopped(PathBuf),
    /// All attempts are over.
    #[error(
        "the seats made no key ({waiting_for}). The market goes on with its present keys; see that all seats reach each other \
        and have the right time, agree on a new --start, and give another --out"
    )]
    NoKey {
        /// What it waited for, in words.
        waiting_for: String,
    },
    /// The record is stored, and who has what this seat's keys are made of was not there.
    #[error(
        "{0} is stored, and the keys are not: nobody was there who has what they are made of. Run the same command again while         others stay (--stay-seconds)"
    )]
    NoKeys(PathBuf),
    /// There is a key, but this seat has no share of it.
    #[error(
        "the seats made a key, and {0} is its record, but this seat has no share of it: in the next epoch it could open nothing. \
        Do not sign that record; agree on a new --start, and give another --out"
    )]
    NoShare(PathBuf),
}

impl GenerateError {
    /// The status that the process exits with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoKey { .. } => 3,
            Self::NoShare(_) => 4,
            _ => 1,
        }
    }
}
