//! Ending on Ctrl-C or a termination signal without leaving anything behind.

use tokio::signal::unix::{SignalKind, signal};

use crate::error::{Error, Result};

/// Runs `work`; a signal drops it and returns an error, so that the caller can clean up.
pub async fn until_interrupted<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let listen = |kind, name| signal(kind).map_err(|e| Error::Machine(format!("listen for {name}: {e}")));
    let mut interrupt = listen(SignalKind::interrupt(), "SIGINT")?;
    let mut terminate = listen(SignalKind::terminate(), "SIGTERM")?;
    tokio::select! {
        result = work => result,
        _ = interrupt.recv() => Err(Error::Interrupted("interrupted")),
        _ = terminate.recv() => Err(Error::Interrupted("terminated")),
    }
}
