//! State file and register of loads on disk: where they are, reading them again when they change, writing the state
//! so that no reader sees half.
//!
//! Invariant: a missing, truncated or broken file never replaces a good state; readers keep the last good one.

use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::load::{self, Register};
use crate::machine::Machine;
use crate::state::{State, StateError};

/// Environment variable that names the state file.
pub const ENV: &str = "VENDUE_NVML_STATE";

/// File name that is looked for next to the library.
pub const FILE_NAME: &str = "state.json";

/// Last place to look.
pub const FALLBACK: &str = "/etc/vendue-nvml/state.json";

/// Why the state file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Reading failed.
    #[error("read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The text is no usable state.
    #[error("{}: {source}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: StateError,
    },
    /// Writing failed.
    #[error("write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

/// Where the state file is: what the environment says, else next to the library, else [`FALLBACK`].
#[must_use]
pub fn default_path(env: Option<PathBuf>, library_dir: Option<&Path>) -> PathBuf {
    if let Some(path) = env.filter(|p| !p.as_os_str().is_empty()) {
        return path;
    }
    library_dir.map(|dir| dir.join(FILE_NAME)).filter(|p| p.exists()).unwrap_or_else(|| FALLBACK.into())
}

/// Milliseconds since 1970.
#[must_use]
pub fn now_unix_ms() -> u64 {
    now_unix_ns() / 1_000_000
}

/// Nanoseconds since 1970.
#[must_use]
pub fn now_unix_ns() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
}

/// How often a reader looks whether watched processes live.
const BURIAL_PERIOD: Duration = Duration::from_millis(100);

/// Tells one version of the file from the next without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fingerprint {
    inode: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Fingerprint {
    fn of(meta: &std::fs::Metadata) -> Self {
        Self {
            inode: (meta.dev(), meta.ino()),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// State and loads, read again whenever they change.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    seen: Option<Fingerprint>,
    register: Register,
    buried: Option<Instant>,
    machine: Option<Arc<Machine>>,
}

impl Source {
    /// A source that has read nothing yet.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        let register = Register::new(load::path_beside(&path));
        Self { path, seen: None, register, buried: None, machine: None }
    }

    /// The machine by the last good state.
    #[must_use]
    pub fn machine(&self) -> Option<&Arc<Machine>> {
        self.machine.as_ref()
    }

    /// The last good state.
    #[must_use]
    pub fn state(&self) -> Option<&Arc<State>> {
        self.machine.as_ref().map(|m| m.state())
    }

    /// Reads what changed. `Ok(true)` says that the machine is a new one. A given broken version of the state file is
    /// reported once, by the call that first met it.
    ///
    /// # Errors
    /// When the state file is missing, unreadable or broken. The last good state stays.
    pub fn refresh(&mut self) -> Result<bool, SourceError> {
        let state = self.changed_state();
        let mut loads = self.register.refresh();
        if let Some(machine) = self.machine.as_ref().filter(|_| self.burial_due()) {
            let now = || machine.at_real(now_unix_ns());
            loads |= self.register.bury(now);
            self.buried = Some(Instant::now());
        }
        let new = match (&state, &self.machine) {
            (Ok(Some(state)), _) => Some(Arc::clone(state)),
            (_, Some(machine)) if loads => Some(Arc::clone(machine.state())),
            _ => None,
        };
        let changed = new.is_some();
        if let Some(state) = new {
            self.machine = Some(Arc::new(Machine::new(state, self.register.loads())));
        }
        state.map(|_| changed)
    }

    fn burial_due(&self) -> bool {
        self.buried.is_none_or(|last| last.elapsed() >= BURIAL_PERIOD)
    }

    /// The state, if the file holds another one than before.
    fn changed_state(&mut self) -> Result<Option<Arc<State>>, SourceError> {
        let read_error = |source| SourceError::Read { path: self.path.clone(), source };
        let fingerprint = Fingerprint::of(&std::fs::metadata(&self.path).map_err(read_error)?);
        if self.seen == Some(fingerprint) {
            return Ok(None);
        }
        let text = std::fs::read(&self.path).map_err(read_error)?;
        self.seen = Some(fingerprint);
        let state =
            State::parse(&text).map_err(|source| SourceError::Content { path: self.path.clone(), source })?;
        Ok((self.state().map(Arc::as_ref) != Some(&state)).then(|| Arc::new(state)))
    }
}

/// Reads a state file once.
///
/// # Errors
/// When the file is missing, unreadable or broken.
pub fn load(path: &Path) -> Result<State, SourceError> {
    let text = std::fs::read(path).map_err(|source| SourceError::Read { path: path.into(), source })?;
    State::parse(&text).map_err(|source| SourceError::Content { path: path.into(), source })
}

/// Writes a state file. Readers see the old file or the new one, never a part; every user may read it, because
/// programs in containers run as any user.
///
/// # Errors
/// When the folder cannot be written.
pub fn store(path: &Path, state: &State) -> Result<(), SourceError> {
    let error = |source| SourceError::Write { path: path.into(), source };
    let mut text = serde_json::to_vec_pretty(state).map_err(|e| error(e.into()))?;
    text.push(b'\n');
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(error)?;
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    let temporary = folder.join(name);
    let written = write_file(&temporary, &text).and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        // Best effort: the error that matters is the one already in hand.
        drop(std::fs::remove_file(&temporary));
    }
    written.map_err(error)
}

fn write_file(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
    file.write_all(text)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(count: usize) -> State {
        State::generate(&[("H100".to_owned(), count)], "s", 0).expect("state")
    }

    #[test]
    fn reads_again_on_change_and_keeps_the_last_good_state() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("state.json");
        let mut source = Source::new(path.clone());
        assert!(matches!(source.refresh(), Err(SourceError::Read { .. })));
        assert!(source.state().is_none());

        store(&path, &state(1)).expect("store");
        assert!(source.refresh().expect("first read"));
        assert!(!source.refresh().expect("unchanged"));

        std::fs::write(&path, "{\"driver\":").expect("break the file");
        assert!(matches!(source.refresh(), Err(SourceError::Content { .. })));
        assert!(!source.refresh().expect("a broken version is reported once"));
        assert_eq!(source.state().expect("last good").as_ref(), &state(1));

        std::fs::remove_file(&path).expect("remove");
        assert!(source.refresh().is_err());
        store(&path, &state(2)).expect("store");
        assert!(source.refresh().expect("new state"));
        assert_eq!(source.state().expect("state").as_ref(), &state(2));
    }

    #[test]
    fn stored_file_is_readable_by_all_and_leaves_no_temporary() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("sub/state.json");
        store(&path, &state(1)).expect("store");
        assert_eq!(load(&path).expect("load"), state(1));
        assert_eq!(std::fs::metadata(&path).expect("meta").permissions().mode() & 0o777, 0o644);
        assert_eq!(std::fs::read_dir(dir.path().join("sub")).expect("list").count(), 1);
    }

    #[test]
    fn environment_wins_then_the_librarys_folder_then_etc() {
        let dir = tempfile::tempdir().expect("dir");
        let beside = dir.path().join(FILE_NAME);
        assert_eq!(default_path(Some("/x".into()), Some(dir.path())), Path::new("/x"));
        assert_eq!(default_path(None, Some(dir.path())), Path::new(FALLBACK));
        std::fs::write(&beside, "").expect("write");
        assert_eq!(default_path(Some("".into()), Some(dir.path())), beside);
        assert_eq!(default_path(None, None), Path::new(FALLBACK));
    }
}
