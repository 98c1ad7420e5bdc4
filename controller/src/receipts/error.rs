//! Why receipts are not kept or read.

use std::path::{Path, PathBuf};

use vendue_receipts::{AwardId, ChainName};
use vendue_receipts_store::StoreError;

/// Why the book does not do what it is asked.
#[derive(Debug, thiserror::Error)]
pub enum BookError {
    /// No folder can have this name.
    #[error(
        "node {0:?} is no name of a node: 1 to 253 of a-z, 0-9, '-' and '.', with a letter or digit first"
    )]
    Node(String),
    /// A folder or a file beside the chains.
    #[error("receipts: {operation} {}: {source}", path.display())]
    Folder {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The kernel gives no random bytes.
    #[error("receipts: draw the id of the book: {0}")]
    Random(getrandom::Error),
    /// Records cannot be kept or do not verify.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no room for more.
    #[error("receipts: {} holds {bytes} bytes of awards that go on; at most {max_bytes} are kept; next: raise controller.receipts.size", dir.display())]
    Full {
        /// The folder: of all nodes, or of one.
        dir: PathBuf,
        /// What is there.
        bytes: u64,
        /// What may be there.
        max_bytes: u64,
    },
    /// There are too many chains of a node.
    #[error("receipts: {} holds {chains} chains that go on; at most {max_chains} of a node are kept", dir.display())]
    Chains {
        /// The folder of the node.
        dir: PathBuf,
        /// What is there.
        chains: usize,
        /// What may be there.
        max_chains: usize,
    },
    /// A node begins chain after chain for one award.
    #[error("award {award} has {max_chains} chains of this node, by as many keys; no more are taken")]
    Keys {
        /// The award.
        award: AwardId,
        /// What may be there.
        max_chains: usize,
    },
    /// The same key signed two records for one place.
    #[error(
        "chain {name}: record {sequence} was told before with another content; both are kept as evidence"
    )]
    Equivocation {
        /// The chain.
        name: ChainName,
        /// The place.
        sequence: u64,
    },
}

impl BookError {
    /// Whether what was told is wrong, and not what is here.
    pub fn is_senders(&self) -> bool {
        match self {
            Self::Node(_) | Self::Equivocation { .. } | Self::Keys { .. } => true,
            Self::Store(error) => matches!(error, StoreError::Chain { .. } | StoreError::Name { .. }),
            Self::Folder { .. } | Self::Full { .. } | Self::Random(_) | Self::Chains { .. } => false,
        }
    }
}

/// An error of the file system while this was done.
pub(super) fn failed(operation: &'static str, path: &Path) -> impl Fn(std::io::Error) -> BookError {
    let path = path.to_owned();
    move |source| BookError::Folder { operation, path: path.clone(), source }
}
