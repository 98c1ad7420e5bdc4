//! What the handlers need from the cluster and the network, so that tests can stand in for both.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use vendue_receipts::{FileAward, FileJob};

use super::identity::User;
use crate::wire::AwardRef;

/// Why something cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// There is no such Job.
    #[error("jobs.vendue.dev {0:?} not found")]
    NoJob(String),
    /// The provider no longer knows the award.
    #[error("the provider no longer has the log; it is being delivered or was dropped")]
    Gone,
    /// Somebody did not answer; asking again may help.
    #[error("{0}")]
    Unavailable(String),
}

/// Where the bytes of a Job are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// No provider runs it; the text says how it stands.
    Nowhere(String),
    /// A provider runs it, or has it still.
    Provider {
        /// The award.
        award: AwardRef,
        /// The provider's seat.
        seat: u16,
    },
}

/// A Job and where its bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// Uid of the Job; the store is asked by it.
    pub uid: String,
    /// Where the bytes are while the store does not have them.
    pub place: Place,
    /// Whether the Job will not change any more.
    pub ended: bool,
}

/// A piece of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogChunk {
    /// The bytes from the offset that was asked for.
    pub data: Bytes,
    /// Bytes of the log so far.
    pub size: u64,
    /// Whether the log will not grow any more.
    pub ended: bool,
}

/// The cluster and the network.
pub trait Backend: Send + Sync + 'static {
    /// Whether the user may get `jobs/<subresource>` of that Job.
    fn authorize(
        &self,
        user: &User,
        namespace: &str,
        name: &str,
        subresource: &'static str,
    ) -> impl Future<Output = Result<bool, AccessError>> + Send;

    /// Finds a Job.
    fn locate(
        &self,
        namespace: &str,
        name: &str,
    ) -> impl Future<Output = Result<Located, AccessError>> + Send;

    /// A Job and its awards, the latest last, without their chains.
    fn awards(
        &self,
        namespace: &str,
        name: &str,
    ) -> impl Future<Output = Result<(FileJob, Vec<FileAward>), AccessError>> + Send;

    /// Reads the log of a running Job from its provider, waiting up to `wait` for bytes at `offset`.
    fn live_log(
        &self,
        award: &AwardRef,
        seat: u16,
        offset: u64,
        wait: Duration,
    ) -> impl Future<Output = Result<LogChunk, AccessError>> + Send;
}
