//! The file operations of the store, each with an error that names operation and path.
//!
//! Invariant: what gets its final name is synced first, and so is the folder that holds the name.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::StoreError;

fn fail(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { operation, path, source }
}

/// Creates a folder and those above it.
pub(super) fn create_dir(path: &Path) -> Result<(), StoreError> {
    fs::create_dir_all(path).map_err(fail("create folder", path))
}

/// The entries of a folder.
pub(super) fn list(path: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let entries = fs::read_dir(path).map_err(fail("list", path))?;
    entries.map(|e| e.map(|e| e.path()).map_err(fail("list", path))).collect()
}

/// Removes a file; one that is not there is fine.
pub(super) fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(fail("remove", path)(e)),
        _ => Ok(()),
    }
}

/// Size of a file, if it is there.
pub(super) fn size(path: &Path) -> Result<Option<u64>, StoreError> {
    match fs::metadata(path) {
        Ok(meta) => Ok(Some(meta.len())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(fail("inspect", path)(e)),
    }
}

/// Seconds since the last change of a file, if it is there.
pub(super) fn age(path: &Path, now: SystemTime) -> Result<Option<u64>, StoreError> {
    match fs::metadata(path).and_then(|m| m.modified()) {
        Ok(at) => Ok(Some(now.duration_since(at).map_or(0, |d| d.as_secs()))),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(fail("inspect", path)(e)),
    }
}

/// Opens a file, if it is there.
pub(super) fn open(path: &Path) -> Result<Option<File>, StoreError> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(fail("open", path)(e)),
    }
}

/// Writes `data` at `offset`, cutting off what follows.
pub(super) fn append(path: &Path, offset: u64, data: &[u8]) -> Result<(), StoreError> {
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(fail("create", path))?;
    file.set_len(offset).map_err(fail("truncate", path))?;
    file.seek(SeekFrom::Start(offset)).map_err(fail("seek", path))?;
    file.write_all(data).map_err(fail("write", path))
}

/// SHA-256 of a file, hex.
pub(super) fn sha256(path: &Path) -> Result<String, StoreError> {
    let mut file = File::open(path).map_err(fail("open", path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0u8; 64 << 10];
    loop {
        match file.read(&mut buffer).map_err(fail("read", path))? {
            0 => return Ok(hex::encode(hash.finalize())),
            n => hash.update(buffer.get(..n).unwrap_or_default()),
        }
    }
}

/// Syncs a file and gives it its final name.
pub(super) fn publish(from: &Path, to: &Path) -> Result<(), StoreError> {
    let folder = to.parent().unwrap_or(to);
    create_dir(folder)?;
    File::open(from).and_then(|f| f.sync_all()).map_err(fail("sync", from))?;
    fs::rename(from, to).map_err(fail("rename to", to))?;
    File::open(folder).and_then(|f| f.sync_all()).map_err(fail("sync folder", folder))
}

/// Writes JSON aside, syncs it and gives it its final name.
pub(super) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), StoreError> {
    let aside = path.with_extension("json.tmp");
    let bytes =
        serde_json::to_vec(value).map_err(|source| StoreError::Index { path: path.to_owned(), source })?;
    fs::write(&aside, bytes).map_err(fail("write", &aside))?;
    publish(&aside, path)
}

/// Reads JSON.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, StoreError> {
    let bytes = fs::read(path).map_err(fail("read", path))?;
    serde_json::from_slice(&bytes).map_err(|source| StoreError::Index { path: path.to_owned(), source })
}
