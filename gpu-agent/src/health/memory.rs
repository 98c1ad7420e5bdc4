//! Faults that outlast the agent, on the node's disk.
//!
//! * Input: [`Lasting`] faults. Output: the file `faults.json`, which holds those of this boot of the node.
//! * Invariant: the file is whole at every instant; one of an earlier boot counts for nothing, for the boot was the reset.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::judge::Lasting;

/// Name of the file.
const FILE: &str = "faults.json";

/// Where the kernel tells one boot from the next.
pub const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Energy counters are brought up to date so often while there are faults.
const REFRESH: Duration = Duration::from_secs(60);

/// Why faults are not remembered.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A file cannot be read.
    #[error("read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file holds something else.
    #[error("read {}: {source}; remove the file to forget the faults of the GPUs", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// The file cannot be written.
    #[error("write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Content {
    boot_id: String,
    faults: Vec<Lasting>,
}

/// The file, and what it says.
#[derive(Debug)]
pub struct Memory {
    path: PathBuf,
    boot_id: String,
    written: Vec<Lasting>,
    at: Duration,
}

/// Which boot of the node this is.
///
/// # Errors
/// When the kernel does not tell.
pub fn boot_id(path: &Path) -> Result<String, MemoryError> {
    let text = std::fs::read_to_string(path);
    text.map(|id| id.trim().to_owned()).map_err(|source| MemoryError::Read { path: path.into(), source })
}

impl Memory {
    /// Opens the file in `dir`; gives what lasts from earlier in this boot.
    ///
    /// # Errors
    /// When there is a file that cannot be read.
    pub fn open(dir: &Path, boot_id: String) -> Result<(Self, Vec<Lasting>), MemoryError> {
        let path = dir.join(FILE);
        let written = match std::fs::read(&path) {
            Ok(text) => {
                let content: Content = serde_json::from_slice(&text)
                    .map_err(|source| MemoryError::Content { path: path.clone(), source })?;
                if content.boot_id == boot_id { content.faults } else { vec![] }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => vec![],
            Err(source) => return Err(MemoryError::Read { path, source }),
        };
        Ok((Self { path, boot_id, written: written.clone(), at: Duration::ZERO }, written))
    }

    /// Writes the faults, if that is worth a write.
    ///
    /// # Errors
    /// When the disk does not take it; the file keeps what it said.
    pub fn remember(&mut self, faults: Vec<Lasting>, now: Duration) -> Result<(), MemoryError> {
        let are_known = faults.len() == self.written.len()
            && faults.iter().zip(&self.written).all(|(a, b)| (&a.uuid, a.cause) == (&b.uuid, b.cause));
        let is_fresh = faults.is_empty() || now.saturating_sub(self.at) < REFRESH;
        if are_known && is_fresh {
            return Ok(());
        }
        let content = Content { boot_id: self.boot_id.clone(), faults };
        let written = replace(&self.path, &content);
        written.map_err(|source| MemoryError::Write { path: self.path.clone(), source })?;
        (self.written, self.at) = (content.faults, now);
        Ok(())
    }
}

/// Readers see the old file or the new one, also after a crash.
pub(crate) fn replace(path: &Path, content: &impl Serialize) -> std::io::Result<()> {
    let mut text = serde_json::to_vec_pretty(content)?;
    text.push(b'\n');
    let temporary = path.with_extension("json.new");
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(&text)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    match path.parent() {
        Some(dir) => std::fs::File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::judge::Cause;
    use super::*;

    fn fault(uuid: &str, energy: u64) -> Lasting {
        Lasting { uuid: uuid.to_owned(), cause: Cause::Xid(79), energy_millijoules: Some(energy) }
    }

    fn at(second: u64) -> Duration {
        Duration::from_secs(second)
    }

    #[test]
    fn faults_outlast_the_agent_and_not_the_boot() {
        let dir = tempfile::tempdir().expect("dir");
        let open = |boot: &str| Memory::open(dir.path(), boot.to_owned()).expect("open");
        let (mut memory, found) = open("one");
        assert!(found.is_empty());
        memory.remember(vec![fault("GPU-0", 5)], at(1)).expect("write");
        assert_eq!(open("one").1, [fault("GPU-0", 5)]);
        assert_eq!(open("two").1, []);
        // A counter that moves is no news, for a while.
        memory.remember(vec![fault("GPU-0", 6)], at(60)).expect("write");
        assert_eq!(open("one").1, [fault("GPU-0", 5)]);
        memory.remember(vec![fault("GPU-0", 7)], at(61)).expect("write");
        assert_eq!(open("one").1, [fault("GPU-0", 7)]);
        memory.remember(vec![], at(62)).expect("write");
        assert_eq!(open("one").1, []);
    }

    #[test]
    fn what_cannot_be_read_or_written_is_named() {
        let dir = tempfile::tempdir().expect("dir");
        std::fs::write(dir.path().join(FILE), "{\"bootId\":").expect("write");
        let error = Memory::open(dir.path(), "one".to_owned()).expect_err("broken").to_string();
        assert!(error.contains("faults.json") && error.contains("remove the file"), "{error}");

        let gone = dir.path().join("gone");
        let (mut memory, _) = Memory::open(&gone, "one".to_owned()).expect("no file yet");
        let error = memory.remember(vec![fault("GPU-0", 1)], at(1)).expect_err("no folder").to_string();
        assert!(error.starts_with("write ") && error.contains("gone/faults.json"), "{error}");
        // What was not written is tried again.
        std::fs::create_dir(&gone).expect("dir");
        memory.remember(vec![fault("GPU-0", 1)], at(2)).expect("write");
        assert!(boot_id(&dir.path().join("none")).is_err());
    }
}
