//! Which nodes held devices of which award, for as long as there are receipts of it: the Award itself goes earlier.
//!
//! Inputs: what Awards say. Outputs: the nodes of an award. Invariants: what was noted is durable; a node that never held an
//! award is never among its nodes, whatever it tells.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vendue_receipts::AwardId;

use super::error::{BookError, failed};
use super::files;

/// Most nodes of an award that are noted.
const MAX_NODES: usize = 64;

/// The nodes of awards: one file for each award, a node in each line.
pub struct Held {
    dir: PathBuf,
    known: Mutex<BTreeMap<AwardId, BTreeSet<String>>>,
}

impl Held {
    /// What is noted in this folder.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<AwardId, BTreeSet<String>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, award: AwardId) -> PathBuf {
        self.dir.join(award.to_string())
    }

    /// Whether these nodes are noted, without a look at the disk.
    pub fn knows(&self, award: AwardId, nodes: &[String]) -> bool {
        self.known().get(&award).is_some_and(|known| nodes.iter().all(|node| known.contains(node)))
    }

    /// Notes nodes of an award.
    pub fn note(&self, award: AwardId, nodes: &[String]) -> Result<(), BookError> {
        if nodes.is_empty() || self.knows(award, nodes) {
            return Ok(());
        }
        let old = self.nodes(award)?;
        let all: BTreeSet<String> = old.iter().chain(nodes).take(MAX_NODES).cloned().collect();
        if all.len() != old.len() {
            std::fs::create_dir_all(&self.dir).map_err(failed("make folder", &self.dir))?;
            let lines: String = all.iter().map(|node| format!("{node}\n")).collect();
            files::write_whole(&self.path(award), lines.as_bytes())?;
        }
        self.known().insert(award, all);
        Ok(())
    }

    /// The nodes of an award.
    pub fn nodes(&self, award: AwardId) -> Result<Vec<String>, BookError> {
        if let Some(known) = self.known().get(&award) {
            return Ok(known.iter().cloned().collect());
        }
        let path = self.path(award);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(vec![]),
            Err(error) => Err(failed("read", &path)(error)),
        }
    }

    /// Forgets awards that were noted before `before_ms` and of which nothing is left.
    pub fn prune(
        &self,
        (now_ms, before_ms): (u64, u64),
        is_left: impl Fn(AwardId, &[String]) -> bool,
    ) -> Result<(), BookError> {
        for path in files::list(&self.dir)? {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Ok(award) = name.parse::<AwardId>() else { continue };
            if files::written_ms(&path, now_ms)? > before_ms || is_left(award, &self.nodes(award)?) {
                continue;
            }
            files::remove(&path)?;
            // Noted again when the award goes on all the same.
            self.known().remove(&award);
        }
        Ok(())
    }
}
