//! The file operations of the store. A trait, so that tests can let each of them fail or end half done.
//!
//! Invariant: an operation that returns without an error is durable, content and name.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::error::StoreError;

/// What a file is called until it is whole.
pub const UNFINISHED: &str = "unfinished";

/// Operations on the files of one folder.
pub trait Files {
    /// The files in the folder.
    ///
    /// # Errors
    /// Those of the file system, here and below.
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;
    /// The content of a file; `None` if it is not there.
    ///
    /// # Errors
    /// Those of the file system.
    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>>;
    /// The first bytes of a file, at most so many, and its length; `None` if it is not there.
    ///
    /// # Errors
    /// Those of the file system.
    fn start(&self, path: &Path, most: usize) -> io::Result<Option<(Vec<u8>, u64)>> {
        let Some(mut bytes) = self.read(path)? else { return Ok(None) };
        let length = bytes.len() as u64;
        bytes.truncate(most);
        Ok(Some((bytes, length)))
    }
    /// Cuts a file at `offset` and appends there.
    ///
    /// # Errors
    /// Those of the file system. The file may then end anywhere between `offset` and the end of `bytes`.
    fn append(&mut self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Puts a whole file in the place of what is there.
    ///
    /// # Errors
    /// Those of the file system. The file is then the old one or the new one.
    fn replace(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Removes a file; one that is not there is fine.
    ///
    /// # Errors
    /// Those of the file system.
    fn remove(&mut self, path: &Path) -> io::Result<()>;
}

/// The file system. Keeps other processes out of the folder for as long as it lives.
#[derive(Debug)]
pub struct Disk {
    _lock: File,
}

impl Disk {
    /// Makes the folder and takes its lock.
    ///
    /// # Errors
    /// When that fails, or another process has it.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let fail = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::Io { operation, path, source }
        };
        fs::create_dir_all(dir).map_err(fail("create folder", dir))?;
        let path = dir.join("LOCK");
        let lock = OpenOptions::new().create(true).append(true).open(&path).map_err(fail("open", &path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(StoreError::InUse(dir.to_owned())),
            Err(TryLockError::Error(source)) => Err(fail("lock", &path)(source)),
        }
    }
}

fn sync_folder_of(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

impl Files for Disk {
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        fs::read_dir(dir)?.map(|entry| entry.map(|e| e.path())).collect()
    }

    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        match fs::read(path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn start(&self, path: &Path, most: usize) -> io::Result<Option<(Vec<u8>, u64)>> {
        let file = match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let length = file.metadata()?.len();
        let mut bytes = Vec::new();
        file.take(u64::try_from(most).unwrap_or(u64::MAX)).read_to_end(&mut bytes)?;
        Ok(Some((bytes, length)))
    }

    fn append(&mut self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).open(path)?;
        let length = file.seek(SeekFrom::End(0))?;
        if length < offset {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "shorter than what was stored"));
        }
        if length > offset {
            file.set_len(offset)?;
            file.seek(SeekFrom::Start(offset))?;
        }
        file.write_all(bytes)?;
        file.sync_data()
    }

    fn replace(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let unfinished = path.with_file_name(UNFINISHED);
        let mut file = File::create(&unfinished)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&unfinished, path)?;
        sync_folder_of(path)
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => sync_folder_of(path),
        }
    }
}
