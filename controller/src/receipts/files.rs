//! Files beside the chains: written whole, and how old they are.
//!
//! Inputs: paths, the time. Outputs: ages by the clock of this machine, whatever the content says. Invariant: a file that was
//! written is whole and synced.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::error::{BookError, failed};

/// A file that was written later than this from now was written while the clock was wrong.
const MAX_AHEAD_MS: u64 = 24 * 3_600_000;

/// Writes a file that is whole or not there.
pub fn write_whole(path: &Path, text: &[u8]) -> Result<(), BookError> {
    let unfinished = path.with_extension("new");
    let write = || -> io::Result<()> {
        let mut file = File::create(&unfinished)?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&unfinished, path)?;
        path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    };
    write().map_err(failed("write", path))
}

/// The files and folders in a folder; none when it is not there.
pub fn list(dir: &Path) -> Result<Vec<PathBuf>, BookError> {
    match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(vec![]),
        entries => {
            let paths = entries.and_then(|all| all.map(|entry| entry.map(|e| e.path())).collect());
            paths.map_err(failed("list", dir))
        }
    }
}

/// Removes a file; one that is not there is fine.
pub fn remove(path: &Path) -> Result<(), BookError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

/// When a file was last written, by this machine's clock. One that seems to come from the future gets the present time, so
/// that it grows old from now on.
pub fn written_ms(path: &Path, now_ms: u64) -> Result<u64, BookError> {
    let modified = fs::metadata(path).and_then(|file| file.modified());
    let since = modified.map_err(failed("look at", path))?.duration_since(UNIX_EPOCH).unwrap_or_default();
    let written_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    if written_ms <= now_ms.saturating_add(MAX_AHEAD_MS) {
        return Ok(written_ms);
    }
    let now = SystemTime::UNIX_EPOCH + Duration::from_millis(now_ms);
    let touched = File::options().append(true).open(path).and_then(|file| file.set_modified(now));
    touched.map_err(failed("set the time of", path))?;
    Ok(now_ms)
}
