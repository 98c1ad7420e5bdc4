//! Home's store of outputs and logs: content-addressed files on a volume.
//!
//! Inputs: manifests and chunks of a winner. Outputs: files by Job uid and path. Invariants: a file under `objects/` is
//! whole and has the digest that is its name; an index under `jobs/` is whole (written aside, synced, renamed); the sum
//! of what is stored and announced never exceeds the cap. A crash leaves at most unfinished files, which the next start
//! keeps for the sender to go on with, and the sweep removes.
//!
//! ```text
//!  jobs/<uid>.json      index of one Job: files, log, whether all of it arrived
//!  objects/ab/<sha256>  whole files
//!  partial/<sha256>     files on their way
//! ```

mod files;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::wire::{FileEntry, LOG_PATH, check_manifest, sound_uid};

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system failed.
    #[error("{operation} {path}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The cap would be exceeded.
    #[error("the store is full: {needed} bytes are needed, {free} of {max} are free")]
    Full {
        /// Bytes that the manifest adds.
        needed: u64,
        /// Bytes that are free.
        free: u64,
        /// The cap.
        max: u64,
    },
    /// The bytes do not have the announced digest; they were dropped.
    #[error("file {0} does not have the announced digest")]
    Digest(String),
    /// Not what was announced: another offset, another file, too long.
    #[error("{0}")]
    Protocol(String),
    /// Nothing is known of the Job.
    #[error("nothing is stored for job {0}")]
    UnknownJob(String),
    /// The Job has no such file.
    #[error("job has no output {0:?}")]
    UnknownFile(String),
    /// An index cannot be read.
    #[error("index {path} is damaged: {source}")]
    Index {
        /// The index.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

impl StoreError {
    /// Whether a manifest can never be accepted. When only others' outputs are in the way, there may be room later.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Full { needed, max, .. } => needed > max,
            Self::Protocol(_) => true,
            _ => false,
        }
    }
}

/// Index of one Job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobIndex {
    /// Uid of the Job.
    pub uid: String,
    /// Files in the order of the manifest; the log is one of them.
    pub files: Vec<FileEntry>,
    /// Whether everything arrived.
    pub complete: bool,
}

impl JobIndex {
    /// The outputs without the log.
    pub fn outputs(&self) -> Vec<FileEntry> {
        self.files.iter().filter(|f| f.path != LOG_PATH).cloned().collect()
    }
}

/// The store. Its methods block on the disk: call them from a blocking task.
pub struct Store {
    root: PathBuf,
    max: u64,
    // One writer at a time; reads of whole files need no lock.
    state: Mutex<State>,
    arrivals: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    jobs: BTreeMap<String, JobIndex>,
}

impl Store {
    /// Opens or creates the store below `root` with a cap of `max` bytes.
    pub fn open(root: &Path, max: u64) -> Result<Self, StoreError> {
        for folder in ["jobs", "objects", "partial"] {
            files::create_dir(&root.join(folder))?;
        }
        let mut jobs = BTreeMap::new();
        for path in files::list(&root.join("jobs"))? {
            if path.extension().is_some_and(|e| e == "tmp") {
                files::remove(&path)?;
                continue;
            }
            match files::read_json::<JobIndex>(&path) {
                Ok(index) => {
                    jobs.insert(index.uid.clone(), index);
                }
                // One bad index must not keep the others from being served.
                Err(error) => tracing::error!(%error, "index skipped"),
            }
        }
        Ok(Self {
            root: root.to_owned(),
            max,
            state: Mutex::new(State { jobs }),
            arrivals: watch::Sender::new(()),
        })
    }

    fn object(&self, sha256: &str) -> PathBuf {
        self.root.join("objects").join(sha256.get(..2).unwrap_or("xx")).join(sha256)
    }

    fn partial(&self, sha256: &str) -> PathBuf {
        self.root.join("partial").join(sha256)
    }

    fn index_path(&self, uid: &str) -> PathBuf {
        self.root.join("jobs").join(format!("{uid}.json"))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes stored and announced, every content once.
    pub fn used(&self) -> u64 {
        used(&self.lock().jobs, None)
    }

    /// Announces the files of a Job. The answer says how many bytes of each are there already.
    ///
    /// A new manifest of the same Job replaces the old one. When there is no room, the Jobs that are complete longest are
    /// forgotten first.
    pub fn begin(&self, uid: &str, manifest: Vec<FileEntry>) -> Result<Vec<u64>, StoreError> {
        if !sound_uid(uid) {
            return Err(StoreError::Protocol(
                "the job's uid has characters that are not accepted".to_owned(),
            ));
        }
        check_manifest(&manifest).map_err(|e| StoreError::Protocol(e.to_string()))?;
        let mut state = self.lock();
        let index = JobIndex { uid: uid.to_owned(), files: manifest, complete: false };
        self.make_room(&mut state, &index)?;
        files::write_json(&self.index_path(uid), &index)?;
        let offsets = index.files.iter().map(|f| self.present(f)).collect::<Result<_, _>>()?;
        state.jobs.insert(uid.to_owned(), index);
        Ok(offsets)
    }

    fn make_room(&self, state: &mut State, index: &JobIndex) -> Result<(), StoreError> {
        let needed = used(&BTreeMap::from([(index.uid.clone(), index.clone())]), None);
        let mut evicted = false;
        loop {
            let mut jobs = state.jobs.clone();
            jobs.insert(index.uid.clone(), index.clone());
            if used(&jobs, None) <= self.max {
                break;
            }
            let oldest =
                if needed <= self.max { self.oldest_complete(&state.jobs, &index.uid)? } else { None };
            let Some(oldest) = oldest else {
                let free = self.max.saturating_sub(used(&state.jobs, Some(&index.uid)));
                return Err(StoreError::Full { needed, free, max: self.max });
            };
            tracing::warn!(job = oldest, "outputs forgotten: the store has no room for newer ones");
            files::remove(&self.index_path(&oldest))?;
            state.jobs.remove(&oldest);
            evicted = true;
        }
        if evicted { self.remove_unwanted(&state.jobs) } else { Ok(()) }
    }

    fn oldest_complete(
        &self,
        jobs: &BTreeMap<String, JobIndex>,
        except: &str,
    ) -> Result<Option<String>, StoreError> {
        let now = SystemTime::now();
        let mut oldest: Option<(u64, &String)> = None;
        for (uid, _) in jobs.iter().filter(|(uid, job)| job.complete && uid.as_str() != except) {
            let age = files::age(&self.index_path(uid), now)?.unwrap_or(u64::MAX);
            if oldest.is_none_or(|(most, _)| age > most) {
                oldest = Some((age, uid));
            }
        }
        Ok(oldest.map(|(_, uid)| uid.clone()))
    }

    /// How many bytes of a file are there.
    fn present(&self, file: &FileEntry) -> Result<u64, StoreError> {
        if files::size(&self.object(&file.sha256))?.is_some() {
            return Ok(file.size);
        }
        if file.size == 0 {
            files::append(&self.partial(&file.sha256), 0, &[])?;
        }
        let there = files::size(&self.partial(&file.sha256))?.unwrap_or(0);
        if there < file.size {
            return Ok(there);
        }
        // Whole but without its name: the process ended between the last piece and the renaming.
        match self.finish(file) {
            Ok(()) => Ok(file.size),
            Err(StoreError::Digest(_)) => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Adds a piece of the `file`-th file of the manifest. Returns how many bytes are there now.
    ///
    /// A piece that is there already changes nothing, so the sender may repeat itself.
    pub fn put(&self, uid: &str, file: usize, offset: u64, data: &[u8]) -> Result<u64, StoreError> {
        let state = self.lock();
        let index = state.jobs.get(uid).ok_or_else(|| StoreError::UnknownJob(uid.to_owned()))?;
        let entry = index
            .files
            .get(file)
            .ok_or_else(|| StoreError::Protocol(format!("the manifest has no file number {file}")))?;
        let there = self.present(entry)?;
        if there >= entry.size || offset != there {
            // The sender goes on from what is there.
            return Ok(there);
        }
        let end = offset.saturating_add(data.len() as u64);
        if end > entry.size {
            return Err(StoreError::Protocol(format!("file number {file} is longer than announced")));
        }
        files::append(&self.partial(&entry.sha256), offset, data)?;
        self.arrivals.send_replace(());
        if end == entry.size {
            self.finish(entry)?;
        }
        Ok(end)
    }

    /// Checks the digest of a file that is whole and gives it its name.
    fn finish(&self, entry: &FileEntry) -> Result<(), StoreError> {
        let partial = self.partial(&entry.sha256);
        if files::sha256(&partial)? != entry.sha256 {
            files::remove(&partial)?;
            return Err(StoreError::Digest(entry.path.clone()));
        }
        files::publish(&partial, &self.object(&entry.sha256))
    }

    /// Marks a Job's delivery as whole, once every file is.
    pub fn complete(&self, uid: &str) -> Result<(), StoreError> {
        let mut state = self.lock();
        let index = state.jobs.get_mut(uid).ok_or_else(|| StoreError::UnknownJob(uid.to_owned()))?;
        if index.complete {
            return Ok(());
        }
        for file in &index.files {
            if files::size(&self.object(&file.sha256))?.is_none() {
                return Err(StoreError::Protocol(format!("{:?} has not arrived", file.path)));
            }
        }
        let whole = JobIndex { complete: true, ..index.clone() };
        files::write_json(&self.index_path(uid), &whole)?;
        *index = whole;
        Ok(())
    }

    /// Changes whenever a piece was added.
    pub fn arrivals(&self) -> watch::Receiver<()> {
        self.arrivals.subscribe()
    }

    /// What is stored for a Job.
    pub fn job(&self, uid: &str) -> Result<JobIndex, StoreError> {
        self.lock().jobs.get(uid).cloned().ok_or_else(|| StoreError::UnknownJob(uid.to_owned()))
    }

    /// Opens a whole file of a Job and says how long it is.
    pub fn open_file(&self, uid: &str, path: &str) -> Result<(std::fs::File, FileEntry), StoreError> {
        let index = self.job(uid)?;
        let entry = index
            .files
            .into_iter()
            .find(|f| f.path == path)
            .ok_or_else(|| StoreError::UnknownFile(path.to_owned()))?;
        let object = self.object(&entry.sha256);
        match files::open(&object)? {
            Some(file) => Ok((file, entry)),
            None => Err(StoreError::UnknownFile(path.to_owned())),
        }
    }

    /// Reads a piece of a whole file.
    pub fn read(&self, uid: &str, path: &str, offset: u64, max: usize) -> Result<(Vec<u8>, u64), StoreError> {
        let (mut file, entry) = self.open_file(uid, path)?;
        let object = self.object(&entry.sha256);
        let fail = |source| StoreError::Io { operation: "read", path: object.clone(), source };
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(offset.min(entry.size))).map_err(fail)?;
        let mut data = Vec::new();
        file.take(max as u64).read_to_end(&mut data).map_err(fail)?;
        Ok((data, entry.size))
    }

    /// Forgets Jobs whose index is older than `retention_seconds` and removes files that nobody refers to.
    /// Unfinished files stay as long as a Job that is not complete wants them. Returns how many Jobs were forgotten.
    pub fn sweep(&self, retention_seconds: u64, now: SystemTime) -> Result<usize, StoreError> {
        let mut state = self.lock();
        let mut forgotten = 0;
        for uid in state.jobs.keys().cloned().collect::<Vec<_>>() {
            let path = self.index_path(&uid);
            let age = files::age(&path, now)?.unwrap_or(u64::MAX);
            if age > retention_seconds {
                files::remove(&path)?;
                state.jobs.remove(&uid);
                forgotten += 1;
            }
        }
        self.remove_unwanted(&state.jobs)?;
        Ok(forgotten)
    }

    /// Removes files that no Job refers to.
    fn remove_unwanted(&self, jobs: &BTreeMap<String, JobIndex>) -> Result<(), StoreError> {
        let wanted: BTreeSet<&str> =
            jobs.values().flat_map(|j| &j.files).map(|f| f.sha256.as_str()).collect();
        let mut folders = files::list(&self.root.join("objects"))?;
        folders.push(self.root.join("partial"));
        for folder in folders {
            for path in files::list(&folder)? {
                let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
                if !wanted.contains(name) {
                    files::remove(&path)?;
                }
            }
        }
        Ok(())
    }
}

/// Bytes of all Jobs but one, every content once.
fn used(jobs: &BTreeMap<String, JobIndex>, except: Option<&str>) -> u64 {
    let mut sizes: BTreeMap<&str, u64> = BTreeMap::new();
    for index in jobs.values().filter(|j| Some(j.uid.as_str()) != except) {
        for file in &index.files {
            let size = sizes.entry(&file.sha256).or_default();
            *size = file.size.max(*size);
        }
    }
    sizes.values().fold(0u64, |sum, size| sum.saturating_add(*size))
}
