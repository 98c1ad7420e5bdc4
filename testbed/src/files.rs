//! Small file helpers: create, write atomically, remove, hash.
//!
//! Invariant: `write_atomic` never leaves a half-written file under its final name.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{IoContext, Result};

/// Creates a folder and its parents.
pub fn create_dir(path: impl AsRef<Path>) -> Result<()> {
    std::fs::create_dir_all(path.as_ref()).io("create folder", path.as_ref())
}

/// Writes a file, with the folder it is in.
pub fn write(path: impl AsRef<Path>, contents: impl AsRef<[u8]>) -> Result<()> {
    let path = path.as_ref();
    if let Some(parent) = path.parent() {
        create_dir(parent)?;
    }
    std::fs::write(path, contents).io("write", path)
}

/// Writes a file through a temporary one beside it.
pub fn write_atomic(path: &Path, contents: impl AsRef<[u8]>) -> Result<()> {
    let partial = with_suffix(path, ".partial");
    write(&partial, contents)?;
    std::fs::rename(&partial, path).io("rename to", path)
}

/// Writes a file that only its owner may read.
pub fn write_private(path: &Path, contents: impl AsRef<[u8]>) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    write(path, contents)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).io("restrict", path)
}

/// Reads a text file.
pub fn read(path: impl AsRef<Path>) -> Result<String> {
    std::fs::read_to_string(path.as_ref()).io("read", path.as_ref())
}

/// Removes a folder and all in it; a missing one is fine.
pub fn remove_dir(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).io("remove folder", path),
        _ => Ok(()),
    }
}

/// Path with a suffix appended to its last part.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(suffix);
    PathBuf::from(name)
}

/// Short content key of named parts; the order of the parts counts.
pub fn key<'a>(parts: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> String {
    let mut hash = Sha256::new();
    for (name, contents) in parts {
        hash.update(name.as_bytes());
        hash.update([0]);
        hash.update(contents);
        hash.update([0]);
    }
    hex::encode(&hash.finalize()[..8])
}

/// Content key of the files of one folder (not recursive) that `wanted` accepts, in name order.
pub fn key_of_folder(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<String> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).io("list", folder)? {
        let path = entry.io("list", folder)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_file() && wanted(&name) {
            files.push((name, std::fs::read(&path).io("read", &path)?));
        }
    }
    files.sort();
    Ok(key(files.iter().map(|(name, contents)| (name.as_str(), contents.as_slice()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_depends_on_names_contents_and_order() {
        let a = key([("a", b"1".as_slice()), ("b", b"2")]);
        assert_eq!(a, key([("a", b"1".as_slice()), ("b", b"2")]));
        assert_ne!(a, key([("b", b"2".as_slice()), ("a", b"1")]));
        assert_ne!(a, key([("a", b"12".as_slice()), ("b", b"")]));
        assert_eq!(a.len(), 16);
    }

    #[test]
    fn folder_key_sees_only_wanted_files() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path().join("go.mod"), "x").unwrap();
        let before = key_of_folder(dir.path(), |n| n == "go.mod").unwrap();
        write(dir.path().join("other"), "y").unwrap();
        assert_eq!(before, key_of_folder(dir.path(), |n| n == "go.mod").unwrap());
    }
}
