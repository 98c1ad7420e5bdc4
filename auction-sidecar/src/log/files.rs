//! File operations of the log, each with an error that names operation and path; and the names of its files.
//!
//! Invariant: a name in the folder is synced before anything relies on it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use vendue_auction_core::log::LogError;

/// Why the log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogDirError {
    /// An operation failed.
    #[error("seat log: {operation} {path}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// Another process has it open.
    #[error(
        "seat log {0} is in use by another process; two processes of one seat would contradict each other"
    )]
    InUse(PathBuf),
    /// A file is damaged.
    #[error(
        "seat log {path}: {error}. The seat must not go on from it: move the folder away for inspection and start with an \
         empty one; the seat then observes until every round that it may have spoken in has expired"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong and where.
        error: LogError,
    },
    /// A segment is missing.
    #[error(
        "seat log {path}: segment {missing} is missing between others; restore it, or start with an empty folder"
    )]
    Gap {
        /// The folder.
        path: PathBuf,
        /// The number that is missing.
        missing: u64,
    },
    /// A process of a higher generation writes the log.
    #[error(
        "seat log {path} belongs to generation {found}, this process has {ours}: the seat has moved on to another one"
    )]
    Fenced {
        /// The folder.
        path: PathBuf,
        /// Generation of this process.
        ours: u64,
        /// Generation found.
        found: u64,
    },
    /// There is no seed for a new segment.
    #[error("seat log {dir}: random bytes for a new segment: {error}")]
    Random {
        /// The folder.
        dir: PathBuf,
        /// Why there are none.
        error: getrandom::Error,
    },
    /// The last write failed.
    #[error("seat log {0}: a write failed before; nothing more is written")]
    Broken(PathBuf),
}

pub(super) fn fail(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> LogDirError {
    let path = path.to_owned();
    move |source| LogDirError::Io { operation, path, source }
}

/// What a file is called until it is whole.
pub(super) const UNFINISHED: &str = "unfinished";

/// Name of a segment: number and generation.
pub(super) fn segment_path(dir: &Path, number: u64, generation: u64) -> PathBuf {
    dir.join(format!("{number:012}-{generation:012}.log"))
}

/// A segment in the folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Named {
    pub number: u64,
    pub generation: u64,
    pub path: PathBuf,
}

fn parse(path: PathBuf) -> Option<Named> {
    let (number, generation) = path.file_name()?.to_str()?.strip_suffix(".log")?.split_once('-')?;
    Some(Named { number: number.parse().ok()?, generation: generation.parse().ok()?, path })
}

/// The segments in the folder, by number.
pub(super) fn segments(dir: &Path) -> Result<Vec<Named>, LogDirError> {
    let entries = fs::read_dir(dir).map_err(fail("list", dir))?;
    let mut found = vec![];
    for entry in entries {
        found.extend(parse(entry.map_err(fail("list", dir))?.path()));
    }
    found.sort();
    Ok(found)
}

/// Makes the folder and takes the lock that keeps other processes on this machine out, as long as the file is open.
pub(super) fn lock(dir: &Path) -> Result<File, LogDirError> {
    fs::create_dir_all(dir).map_err(fail("create folder", dir))?;
    let path = dir.join("LOCK");
    let file = OpenOptions::new().create(true).append(true).open(&path).map_err(fail("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(LogDirError::InUse(dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(fail("lock", &path)(source)),
    }
}

/// Creates a file with this content, durable under its name. A file that cannot be filled is taken away again: whoever
/// tries again and again on a full volume leaves no heap of empty files.
pub(super) fn create(dir: &Path, path: &Path, content: &[u8]) -> Result<File, LogDirError> {
    create_by(dir, path, |file| {
        file.write_all(content).map_err(fail("write", path))?;
        file.sync_all().map_err(fail("sync", path))
    })
}

pub(super) fn create_by(
    dir: &Path,
    path: &Path,
    fill: impl FnOnce(&mut File) -> Result<(), LogDirError>,
) -> Result<File, LogDirError> {
    let mut file =
        OpenOptions::new().create_new(true).append(true).open(path).map_err(fail("create", path))?;
    match fill(&mut file).and_then(|()| sync_dir(dir)) {
        Ok(()) => Ok(file),
        Err(error) => {
            // The first error says what is wrong.
            let _ = remove(path);
            Err(error)
        }
    }
}

/// Creates a file under a name that nobody reads, and gives it its own name when it is whole and durable.
pub(super) fn create_whole(dir: &Path, path: &Path, content: &[u8]) -> Result<(), LogDirError> {
    let unfinished = dir.join(UNFINISHED);
    remove(&unfinished)?;
    create(dir, &unfinished, content)?;
    fs::rename(&unfinished, path).map_err(fail("rename to", path))?;
    sync_dir(dir)
}

pub(super) fn sync_dir(dir: &Path) -> Result<(), LogDirError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(fail("sync folder", dir))
}

/// Removes a file; one that is not there is fine.
pub(super) fn remove(path: &Path) -> Result<(), LogDirError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(fail("remove", path)(e)),
        _ => Ok(()),
    }
}
