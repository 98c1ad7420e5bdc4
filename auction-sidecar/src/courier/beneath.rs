//! Opening files below a folder that a stranger writes to.
//!
//! Inputs: a folder and a relative path. Outputs: open regular files. Invariant: every component is opened relative to
//! the descriptor of the one before and with `O_NOFOLLOW`, so neither `..` nor a link that appears in between leads out.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use sha2::{Digest, Sha256};

use crate::wire::sound_path;

/// Deepest folder that is looked into.
const MAX_DEPTH: usize = 32;

/// Why a file cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BeneathError {
    /// There is no such file.
    #[error("{0} does not exist")]
    NotFound(String),
    /// It is a link, a folder or something else that is not served.
    #[error("{0} is not a regular file")]
    NotPlain(String),
    /// There are too many files.
    #[error("more than {0} files")]
    TooMany(usize),
    /// The system failed.
    #[error("{operation} {path}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: String,
        /// Why it failed.
        source: std::io::Error,
    },
}

fn refuse(operation: &'static str, path: &str, errno: Errno) -> BeneathError {
    match errno {
        Errno::ENOENT => BeneathError::NotFound(path.to_owned()),
        Errno::ELOOP | Errno::ENOTDIR | Errno::EMLINK | Errno::ENXIO => {
            BeneathError::NotPlain(path.to_owned())
        }
        other => BeneathError::Io { operation, path: path.to_owned(), source: other.into() },
    }
}

fn fail(operation: &'static str, path: &str) -> impl FnOnce(std::io::Error) -> BeneathError {
    let path = path.to_owned();
    move |source| BeneathError::Io { operation, path, source }
}

const FOLDER: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);
// Non-blocking: a FIFO must not hold the thread.
const FILE: OFlag = OFlag::O_RDONLY.union(OFlag::O_NOFOLLOW).union(OFlag::O_NONBLOCK).union(OFlag::O_CLOEXEC);

fn root(folder: &Path) -> Result<OwnedFd, BeneathError> {
    let name = folder.display().to_string();
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    nix::fcntl::open(folder, flags, Mode::empty()).map_err(|e| refuse("open folder", &name, e))
}

/// Opens the folder `path` below `folder`.
fn descend<'a>(
    folder: &Path,
    parts: impl Iterator<Item = &'a str>,
    path: &str,
) -> Result<OwnedFd, BeneathError> {
    let mut fd = root(folder)?;
    for part in parts {
        fd = openat(fd.as_fd(), part, FOLDER, Mode::empty()).map_err(|e| refuse("open folder", path, e))?;
    }
    Ok(fd)
}

/// Opens a regular file.
pub(super) fn open(folder: &Path, path: &str) -> Result<File, BeneathError> {
    if !sound_path(path) {
        return Err(BeneathError::NotPlain(path.to_owned()));
    }
    let (parents, name) = path.rsplit_once('/').map_or((None, path), |(p, n)| (Some(p), n));
    let dir = descend(folder, parents.into_iter().flat_map(|p| p.split('/')), path)?;
    let fd = openat(dir.as_fd(), name, FILE, Mode::empty()).map_err(|e| refuse("open", path, e))?;
    let file = File::from(fd);
    if !file.metadata().map_err(fail("inspect", path))?.is_file() {
        return Err(BeneathError::NotPlain(path.to_owned()));
    }
    Ok(file)
}

/// Size and modification time in nanoseconds.
pub(super) fn stamp(file: &File, path: &str) -> Result<(u64, i128), BeneathError> {
    let meta = file.metadata().map_err(fail("inspect", path))?;
    Ok((meta.len(), i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec())))
}

/// Length and SHA-256 of what is in the file now.
pub(super) fn sha256(mut file: File, path: &str) -> Result<(u64, String), BeneathError> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0u8; 64 << 10];
    let mut len = 0u64;
    loop {
        match file.read(&mut buffer).map_err(fail("read", path))? {
            0 => return Ok((len, hex::encode(hash.finalize()))),
            n => {
                len += n as u64;
                hash.update(buffer.get(..n).unwrap_or_default());
            }
        }
    }
}

/// At most `max` bytes from `offset`.
pub(super) fn read_at(mut file: File, path: &str, offset: u64, max: usize) -> Result<Vec<u8>, BeneathError> {
    // The system refuses offsets beyond what it can count; beyond the end there is nothing anyway.
    let size = file.metadata().map_err(fail("inspect", path))?.len();
    file.seek(SeekFrom::Start(offset.min(size))).map_err(fail("seek", path))?;
    let mut data = Vec::new();
    file.take(max as u64).read_to_end(&mut data).map_err(fail("read", path))?;
    Ok(data)
}

/// Names of the entries of a folder below `folder`, with whether each is a folder. Links and others are left out.
pub(super) fn list(folder: &Path, path: &str) -> Result<Vec<(String, bool)>, BeneathError> {
    let fd = descend(folder, path.split('/').filter(|p| !p.is_empty()), path)?;
    let mut dir = Dir::from_fd(fd).map_err(|e| refuse("list", path, e))?;
    let mut names = Vec::new();
    for entry in dir.iter() {
        let entry = entry.map_err(|e| refuse("list", path, e))?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        if name == "." || name == ".." {
            continue;
        }
        match entry.file_type() {
            Some(Type::Directory) => names.push((name.to_owned(), true)),
            Some(Type::File) => names.push((name.to_owned(), false)),
            _ => {}
        }
    }
    names.sort();
    Ok(names)
}

/// Every regular file below `folder`, sorted; a folder that is not there has none.
pub(super) fn walk(folder: &Path, max: usize) -> Result<Vec<String>, BeneathError> {
    let mut files = Vec::new();
    let mut folders = vec![(String::new(), 0)];
    while let Some((path, depth)) = folders.pop() {
        let entries = match list(folder, &path) {
            // It vanished, or was replaced by something that is not served.
            Err(BeneathError::NotFound(_) | BeneathError::NotPlain(_)) => continue,
            other => other?,
        };
        for (name, is_folder) in entries {
            let child = if path.is_empty() { name } else { format!("{path}/{name}") };
            match is_folder {
                true if depth < MAX_DEPTH => folders.push((child, depth + 1)),
                true => {}
                false => files.push(child),
            }
            if files.len() > max || folders.len() > max {
                return Err(BeneathError::TooMany(max));
            }
        }
    }
    files.sort();
    Ok(files)
}
