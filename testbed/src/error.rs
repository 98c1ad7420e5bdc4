//! The crate's error type: every failure names the operation that failed.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// Result of a test-bed operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in the test bed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or process operation of the host failed.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb: "read", "create".
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A program ended with an error or could not be started.
    #[error("{operation}: `{program}` {detail}")]
    Command {
        /// What the program was run for.
        operation: String,
        /// Program name with its first arguments.
        program: String,
        /// Exit status and the end of its output.
        detail: String,
    },
    /// A bounded wait ended without the thing waited for.
    #[error("{operation}: not done after {} s{}", after.as_secs(), if detail.is_empty() { String::new() } else { format!(" ({detail})") })]
    Timeout {
        /// What was waited for.
        operation: String,
        /// How long.
        after: Duration,
        /// The last state seen.
        detail: String,
    },
    /// A Kubernetes API call failed.
    #[error("{operation}: {source}")]
    Kube {
        /// What was asked of which cluster.
        operation: String,
        /// The client's error.
        source: Box<kube::Error>,
    },
    /// The machine lacks something; the text says what and how to get it.
    #[error("{0}")]
    Machine(String),
    /// A signal ended the work.
    #[error("{0}")]
    Interrupted(&'static str),
    /// A name or state the caller gave does not fit.
    #[error("{0}")]
    Invalid(String),
    /// A certificate could not be made.
    #[error("make certificate {name}: {source}")]
    Certificate {
        /// Name of the certificate.
        name: String,
        /// The generator's error.
        source: rcgen::Error,
    },
}

impl Error {
    /// A failed Kubernetes call.
    pub fn kube(operation: impl Into<String>, source: kube::Error) -> Self {
        Self::Kube { operation: operation.into(), source: Box::new(source) }
    }

    /// A bounded wait that ran out.
    pub fn timeout(operation: impl Into<String>, after: Duration, detail: impl Into<String>) -> Self {
        Self::Timeout { operation: operation.into(), after, detail: detail.into() }
    }
}

/// Attaches operation and path to an [`std::io::Error`].
pub trait IoContext<T> {
    /// Names what was tried on which path.
    fn io(self, operation: &'static str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T> IoContext<T> for std::io::Result<T> {
    fn io(self, operation: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|source| Error::Io { operation, path: path.as_ref().to_path_buf(), source })
    }
}
