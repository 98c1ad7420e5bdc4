//! Results on the node's disk, so that an agent that is started anew does not touch devices that are in use.
//!
//! * Input: the book's entries. Output: the file `probes.json`, which holds those of this boot of the node.
//! * Invariant: the file is whole at every instant; one of an earlier boot, and one that cannot be read, count for
//!   nothing: the devices are probed again.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::book::Entries;
use crate::health::memory::{MemoryError, replace};

/// Name of the file.
const FILE: &str = "probes.json";

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Content {
    boot_id: String,
    probes: Entries,
}

/// The file, and what it says.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    content: Content,
}

impl Store {
    /// Opens the file in `dir`; gives what holds from earlier in this boot.
    #[must_use]
    pub fn open(dir: &Path, boot_id: String) -> (Self, Entries) {
        let path = dir.join(FILE);
        let probes = match std::fs::read(&path) {
            Ok(text) => match serde_json::from_slice::<Content>(&text) {
                Ok(content) if content.boot_id == boot_id => content.probes,
                Ok(_) => Entries::new(),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "GPUs are probed again");
                    Entries::new()
                }
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Entries::new(),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "GPUs are probed again");
                Entries::new()
            }
        };
        (Self { path, content: Content { boot_id, probes: probes.clone() } }, probes)
    }

    /// Writes the results, if they differ from what is written.
    ///
    /// # Errors
    /// When the disk does not take it; the file keeps what it said.
    pub fn keep(&mut self, probes: &Entries) -> Result<(), MemoryError> {
        if self.content.probes == *probes {
            return Ok(());
        }
        let content = Content { boot_id: self.content.boot_id.clone(), probes: probes.clone() };
        let written = replace(&self.path, &content);
        written.map_err(|source| MemoryError::Write { path: self.path.clone(), source })?;
        self.content = content;
        Ok(())
    }
}
