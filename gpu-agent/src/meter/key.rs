//! The node's key: a file in the state folder, and beside it, until the agent has taken it over, the next one.
//!
//! * Inputs: the folder; random bytes of the kernel. Outputs: the keys.
//! * Invariants: a key's file is there whole or not at all, and only its owner may read it; a key takes the place of the
//!   one before only by `promote`, when every open chain is rotated.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use vendue_receipts::{NodeKey, PublicKey, SignatureError};

/// Name of the key's file.
pub const KEY_FILE: &str = "node.key";

/// Name of the next key's file.
pub const NEXT_FILE: &str = "node.key.next";

/// Why there is no key, or no next one.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A file cannot be read or made.
    #[error("{operation} {}: {source}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is there and holds no key.
    #[error("read {}: it holds no key of 64 hexadecimal digits; move it away to begin with a new key", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// What was drawn, or is in the file, is no key; of what is drawn that happens to one in 2^127.
    #[error("make the key of {}: {source}", path.display())]
    Number {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: SignatureError,
    },
    /// The next key is the one in force.
    #[error("{} holds the key in force; remove it and run rotate-key", path.display())]
    Same {
        /// The file.
        path: PathBuf,
    },
    /// There is nothing to rotate.
    #[error("there is no {}: the agent draws the first key when it starts; give its folder by --state-dir", path.display())]
    Nothing {
        /// The file.
        path: PathBuf,
    },
    /// The last rotation is not over.
    #[error("{} is there already: the agent goes over to it at its next start; restart it, and if the file stays see its log", path.display())]
    Waiting {
        /// The file.
        path: PathBuf,
    },
    /// Somebody else is at it.
    #[error("another rotate-key works in {}; wait until it has ended", dir.display())]
    Busy {
        /// The folder.
        dir: PathBuf,
    },
}

/// The keys of a node.
pub(super) struct Keys {
    /// The one in force.
    pub current: NodeKey,
    /// Whether it was drawn just now.
    pub is_new: bool,
    /// The one to go over to.
    pub next: Option<NodeKey>,
}

impl Keys {
    /// The keys in the folder. Where there is none one is drawn; where only the next one is left that is taken.
    pub fn open(dir: &Path) -> Result<Self, KeyError> {
        let (path, next_path) = (dir.join(KEY_FILE), dir.join(NEXT_FILE));
        let (current, next) = (read(&path)?, read(&next_path)?);
        let (current, next, is_new) = match (current, next) {
            (Some(current), next) => (current, next, false),
            (None, Some(next)) => {
                tracing::warn!("{KEY_FILE} is gone: {NEXT_FILE} takes its place");
                promote(dir, next.public())?;
                (next, None, false)
            }
            (None, None) => {
                let (bytes, key) = draw(&path)?;
                let unfinished = dir.join(format!("{KEY_FILE}.new"));
                let put = write(&unfinished, &bytes).and_then(|()| std::fs::rename(&unfinished, &path));
                put.and_then(|()| sync(dir)).map_err(failed("write", &path))?;
                (key, None, true)
            }
        };
        if next.as_ref().is_some_and(|next| next.public() == current.public()) {
            return Err(KeyError::Same { path: next_path });
        }
        Ok(Self { current, is_new, next })
    }
}

/// Draws the next key, to which the agent goes over at its next start.
///
/// # Errors
/// When there is no key yet, when there is a next one, or when the file cannot be written: then nothing has changed.
pub fn draw_next(dir: &Path) -> Result<PublicKey, KeyError> {
    let (path, next_path) = (dir.join(KEY_FILE), dir.join(NEXT_FILE));
    if read(&path)?.is_none() {
        return Err(KeyError::Nothing { path });
    }
    let folder = File::open(dir).map_err(failed("open", dir))?;
    folder.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => KeyError::Busy { dir: dir.to_owned() },
        TryLockError::Error(source) => failed("lock", dir)(source),
    })?;
    let (bytes, key) = draw(&next_path)?;
    let unfinished = dir.join(format!("{NEXT_FILE}.new"));
    write(&unfinished, &bytes).map_err(failed("write", &unfinished))?;
    // Other than a rename, a link never takes the place of a file that is there.
    let put = std::fs::hard_link(&unfinished, &next_path);
    std::fs::remove_file(&unfinished).map_err(failed("remove", &unfinished))?;
    match put {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            return Err(KeyError::Waiting { path: next_path });
        }
        Err(source) => return Err(failed("write", &next_path)(source)),
    }
    sync(dir).map_err(failed("write", &next_path))?;
    Ok(key.public())
}

/// Puts the next key in the place of the one before. May be called again until it works.
///
/// # Errors
/// When the file cannot be renamed.
pub(super) fn promote(dir: &Path, next: PublicKey) -> Result<(), KeyError> {
    let (path, next_path) = (dir.join(KEY_FILE), dir.join(NEXT_FILE));
    if let Err(source) = std::fs::rename(&next_path, &path) {
        let is_done = read(&path)?.is_some_and(|key| key.public() == next);
        if source.kind() != ErrorKind::NotFound || !is_done {
            return Err(failed("rename", &next_path)(source));
        }
    }
    sync(dir).map_err(failed("write", &path))
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeyError {
    move |source| KeyError::File { operation, path: path.to_owned(), source }
}

fn read(path: &Path) -> Result<Option<NodeKey>, KeyError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed("read", path)(source)),
    };
    let bytes = digits(text.trim()).ok_or_else(|| KeyError::NoKey { path: path.to_owned() })?;
    key_of(&bytes, path).map(Some)
}

fn key_of(bytes: &[u8; 32], path: &Path) -> Result<NodeKey, KeyError> {
    NodeKey::from_bytes(bytes).map_err(|source| KeyError::Number { path: path.to_owned(), source })
}

/// A new key for this file.
fn draw(path: &Path) -> Result<([u8; 32], NodeKey), KeyError> {
    let mut bytes = [0; 32];
    let drawn = File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut bytes));
    drawn.map_err(failed("draw a key for", path))?;
    Ok((bytes, key_of(&bytes, path)?))
}

fn digits(text: &str) -> Option<[u8; 32]> {
    let pairs: Vec<&[u8]> = text.as_bytes().chunks(2).collect();
    let byte = |pair: &&[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Vec<u8> = pairs.iter().map(byte).collect::<Option<_>>()?;
    bytes.try_into().ok()
}

/// Writes a key into a file that nobody takes for one yet.
fn write(path: &Path, key: &[u8; 32]) -> io::Result<()> {
    let mut text = String::with_capacity(65);
    for byte in key {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text.push('\n');
    // One that was left unfinished may have been given other rights.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn public(dir: &Path, file: &str) -> Option<PublicKey> {
        read(&dir.join(file)).expect("read").map(|key| key.public())
    }

    #[test]
    fn the_next_key_is_drawn_once_and_taken_in_the_place_of_the_one_before() {
        let dir = tempfile::tempdir().expect("dir");
        let dir = dir.path();
        let error = draw_next(dir).expect_err("no key yet").to_string();
        assert!(error.contains("node.key") && error.contains("--state-dir"), "{error}");
        let first = Keys::open(dir).expect("keys");
        assert!(first.is_new && first.next.is_none());
        // What a rotate-key that was killed left behind, for all to read.
        std::fs::write(dir.join("node.key.next.new"), "12").expect("write");
        assert!(Keys::open(dir).expect("keys").next.is_none(), "half a key is none");

        let next = draw_next(dir).expect("next");
        let mode = std::fs::metadata(dir.join(NEXT_FILE)).expect("file").permissions().mode();
        assert_eq!((mode & 0o777, public(dir, NEXT_FILE)), (0o600, Some(next)));
        let error = draw_next(dir).expect_err("one is there").to_string();
        assert!(error.contains("node.key.next is there already") && error.contains("restart"), "{error}");
        assert_eq!(public(dir, NEXT_FILE), Some(next), "it stays");
        let files: Vec<_> = std::fs::read_dir(dir).expect("list").collect();
        assert_eq!(files.len(), 2, "{files:?}");

        let keys = Keys::open(dir).expect("keys");
        assert_eq!(keys.current.public(), first.current.public());
        assert_eq!(keys.next.map(|key| key.public()), Some(next));
        promote(dir, next).expect("promote");
        promote(dir, next).expect("again, when the folder could not be synced");
        assert!(promote(dir, first.current.public()).is_err(), "another key is in its place");
        let keys = Keys::open(dir).expect("keys");
        assert_eq!((keys.current.public(), keys.is_new, keys.next.is_some()), (next, false, false));
    }

    #[test]
    fn a_next_key_without_the_one_before_takes_its_place() {
        let dir = tempfile::tempdir().expect("dir");
        Keys::open(dir.path()).expect("keys");
        let next = draw_next(dir.path()).expect("next");
        std::fs::remove_file(dir.path().join(KEY_FILE)).expect("remove");
        let keys = Keys::open(dir.path()).expect("keys");
        assert_eq!((keys.current.public(), keys.is_new, keys.next.is_some()), (next, false, false));
        assert_eq!((public(dir.path(), KEY_FILE), public(dir.path(), NEXT_FILE)), (Some(next), None));
    }

    #[test]
    fn two_commands_at_once_and_files_without_a_key_are_refused() {
        let dir = tempfile::tempdir().expect("dir");
        let dir = dir.path();
        Keys::open(dir).expect("keys");
        let other = File::open(dir).expect("folder");
        other.lock().expect("lock");
        assert!(matches!(draw_next(dir), Err(KeyError::Busy { .. })));
        drop(other);
        std::fs::copy(dir.join(KEY_FILE), dir.join(NEXT_FILE)).expect("copy");
        assert!(matches!(Keys::open(dir), Err(KeyError::Same { .. })));
        for text in ["", "12", &"0".repeat(64), &"g".repeat(64), &"1".repeat(66)] {
            std::fs::write(dir.join(NEXT_FILE), text).expect("write");
            let error = Keys::open(dir).err().expect("no key").to_string();
            assert!(error.contains("node.key.next"), "{text:?}: {error}");
        }
    }
}
