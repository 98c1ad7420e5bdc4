//! Why chains cannot be kept.

use std::path::{Path, PathBuf};

use vendue_receipts::{AwardId, ChainError, ChainName};

/// Why the store cannot do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error("receipts: {operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// Another process has the folder.
    #[error("receipts: {} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// A file is not what was stored.
    #[error(
        "receipts: {} is damaged at byte {offset}: {what}. Move the folder away for inspection",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: usize,
        /// What is wrong.
        what: String,
    },
    /// There is no room.
    #[error("receipts: {} holds {bytes} bytes that were not delivered; at most {max_bytes} are kept", dir.display())]
    Full {
        /// The folder.
        dir: PathBuf,
        /// What is there.
        bytes: u64,
        /// What may be there.
        max_bytes: u64,
    },
    /// A draft does not continue its chain.
    #[error("receipts: chain of award {award}: {error}")]
    Chain {
        /// The award.
        award: AwardId,
        /// What is wrong.
        error: ChainError,
    },
    /// The chain was closed, delivered and removed.
    #[error("receipts: chain {0} is closed and gone")]
    Removed(ChainName),
    /// Something else is wrong with a chain.
    #[error("receipts: chain {name}: {what}")]
    Name {
        /// The chain.
        name: ChainName,
        /// What is wrong.
        what: &'static str,
    },
}

pub(crate) fn io(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { operation, path, source }
}
