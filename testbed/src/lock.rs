//! A lock file between processes, held until dropped or until the process ends.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::Duration;

use crate::error::{Error, IoContext, Result};
use crate::paths::Paths;
use crate::wait::{self, Poll};

/// A start holds the lock while images are imported.
const MARKETS: Duration = Duration::from_secs(300);

/// A held lock.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// The lock of all who start or stop a market: they share addresses and settings of the kernel.
    pub async fn of_markets(paths: &Paths) -> Result<Self> {
        Self::take(&paths.runs().join("lock"), "another market is being started or stopped", MARKETS).await
    }

    /// Takes the lock, waiting up to `limit` for another holder.
    pub async fn take(path: &Path, held: &str, limit: Duration) -> Result<Self> {
        if let Some(parent) = path.parent() {
            crate::files::create_dir(parent)?;
        }
        let operation = format!("take lock {}", path.display());
        wait::until(&operation, limit, Duration::from_millis(200), || async {
            let file =
                File::options().create(true).truncate(false).write(true).open(path).io("open", path)?;
            match file.try_lock() {
                Ok(()) => Ok(Poll::Ready(Self { _file: file })),
                Err(TryLockError::WouldBlock) => Ok(Poll::Pending(held.to_string())),
                Err(TryLockError::Error(source)) => {
                    Err(Error::Io { operation: "lock", path: path.into(), source })
                }
            }
        })
        .await
    }
}
