//! Files that are written once: keys, records, secrets.
//!
//! Inputs: a path, the content, the mode. Invariants: under its name a file is whole and durable, whenever the process or its
//! machine stops; none is ever replaced. What a crash leaves is named `.*.unfinished`, with the mode of the file.

use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::Builder;

const PREFIX: &str = ".";
const SUFFIX: &str = ".unfinished";

/// Why a file was not written.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {path}: {source}")]
pub struct NewFileError {
    /// What was tried.
    pub operation: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Why it failed.
    pub source: std::io::Error,
}

impl NewFileError {
    /// Whether there is a file of that name.
    pub fn is_there(&self) -> bool {
        self.source.kind() == ErrorKind::AlreadyExists
    }
}

fn fail(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> NewFileError {
    let path = path.to_owned();
    move |source| NewFileError { operation, path, source }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes a file of a new name.
pub fn write_new(path: &Path, data: &[u8], mode: u32) -> Result<(), NewFileError> {
    let dir = folder_of(path);
    let (mut builder, permissions) = (Builder::new(), Permissions::from_mode(mode));
    let unfinished = builder.prefix(PREFIX).suffix(SUFFIX).permissions(permissions).tempfile_in(dir);
    let mut unfinished = unfinished.map_err(fail("create", path))?;
    let written = unfinished.write_all(data).and_then(|()| unfinished.as_file().sync_all());
    written.map_err(fail("write", path))?;
    unfinished.persist_noclobber(path).map_err(|e| fail("create", path)(e.error))?;
    sync(dir)
}

/// Makes durable which files a folder has.
pub fn sync(dir: &Path) -> Result<(), NewFileError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(fail("sync folder", dir))
}

/// Removes what crashes have left in a folder. Nobody else may write there meanwhile.
pub fn remove_unfinished(dir: &Path) -> Result<(), NewFileError> {
    for entry in fs::read_dir(dir).map_err(fail("read folder", dir))? {
        let path = entry.map_err(fail("read folder", dir))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with(PREFIX) && name.ends_with(SUFFIX) {
            fs::remove_file(&path).map_err(fail("remove", &path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_once_with_its_mode_and_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.json");
        write_new(&path, b"one", 0o600).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = write_new(&path, b"two", 0o600).unwrap_err();
        assert!(again.is_there() && again.to_string().contains("keys.json"), "{again}");
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let nowhere = write_new(&dir.path().join("none/keys.json"), b"", 0o600).unwrap_err();
        assert!(!nowhere.is_there() && nowhere.operation == "create");
    }

    #[test]
    fn what_a_crash_left_is_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        for name in [".aBc123.unfinished", "mine.unfinished", ".mine"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        remove_unfinished(dir.path()).unwrap();
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".mine", "mine.unfinished"]);
    }
}
