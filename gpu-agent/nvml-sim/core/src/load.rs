//! Work that processes put on devices: the register of loads.
//!
//! Input: `start` and `end` records that many processes append to one file beside the state file. Output: the list of
//! [`Load`]s. The file is only ever appended to, one line a record, under a lock on the file itself; readers need no
//! lock and read only what is new ([`Register`]). A load's id is the place of its record in the file.
//!
//! Invariant: every reader of the same bytes sees the same loads, so power and energy are functions of the file. A
//! process that died gets its `end` from whoever notices first ([`Register::bury`]).

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Longest file that is written to: about 100,000 records. `nvml-sim start` begins a new one.
pub const MAX_BYTES: u64 = 16 << 20;

/// What a process does on a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Work {
    /// Process id, as NVML is to report it.
    pub pid: u32,
    /// Index of the device.
    pub device: u32,
    /// Id of the GPU instance on a device in MIG mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_instance: Option<u32>,
    /// Share of the SMs of the device or instance, in percent.
    pub intensity: u32,
    /// Share of the time in which any of its kernels runs, in percent, where that is more than its share of the SMs: a
    /// small kernel without a pause has 100.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub time_percent: u32,
    /// Device memory that it holds, in MiB.
    #[serde(default)]
    pub memory_mib: u64,
}

impl Work {
    /// Share of the time in which any of its kernels runs, in percent.
    #[must_use]
    pub fn kernel_percent(&self) -> u32 {
        self.time_percent.max(self.intensity)
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(percent: &u32) -> bool {
    *percent == 0
}

/// A process whose end is its load's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Watched {
    /// Process id in that namespace.
    pub pid: u32,
    /// Number of the PID namespace; readers in another one cannot tell whether the process lives.
    pub namespace: u64,
    /// Start time of the process in clock ticks, by which a reused id is noticed.
    pub started: u64,
}

/// One load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Place of its record in the file.
    pub id: u64,
    /// What it does.
    pub work: Work,
    /// When it began, on the simulated clock.
    pub start_ns: u64,
    /// When it ended; a running load has no end.
    pub end_ns: Option<u64>,
    /// The process that it ends with.
    pub watched: Option<Watched>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "op")]
enum Record {
    #[serde(rename_all = "camelCase")]
    Start {
        at_ns: u64,
        work: Work,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        watched: Option<Watched>,
    },
    #[serde(rename_all = "camelCase")]
    End { at_ns: u64, id: u64 },
}

/// Why a record could not be written.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file could not be used.
    #[error("{operation} {}: {source}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is at its limit.
    #[error("{}: full with {MAX_BYTES} bytes; nvml-sim start begins a new one", path.display())]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// The process to be watched is not there.
    #[error("watch process {pid}: no such process")]
    NoProcess {
        /// Its id.
        pid: u32,
    },
    /// More than the whole device was asked for.
    #[error("{what} is {percent}, accepted is 0 to 100")]
    Percent {
        /// What was asked for.
        what: &'static str,
        /// How much of it.
        percent: u32,
    },
}

/// Path of the register that belongs to a state file.
#[must_use]
pub fn path_beside(state: &Path) -> PathBuf {
    let mut name = state.file_name().unwrap_or_default().to_os_string();
    name.push(".loads");
    state.with_file_name(name)
}

/// Appends a `start` at the time that `now_ns` gives once the file is ours, and returns the load's id.
///
/// # Errors
/// When the file cannot be written, or is full.
pub fn start(
    path: &Path,
    work: Work,
    watched: Option<Watched>,
    now_ns: impl Fn() -> u64,
) -> Result<u64, LoadError> {
    for (what, percent) in [("intensity", work.intensity), ("share of time", work.time_percent)] {
        if percent > 100 {
            return Err(LoadError::Percent { what, percent });
        }
    }
    append(path, || Record::Start { at_ns: now_ns(), work, watched })
}

/// Appends the `end` of a load.
///
/// # Errors
/// When the file cannot be written, or is full.
pub fn end(path: &Path, id: u64, now_ns: impl Fn() -> u64) -> Result<(), LoadError> {
    append(path, || Record::End { at_ns: now_ns(), id }).map(drop)
}

/// Appends one record under the file's lock; returns its place.
fn append(path: &Path, record: impl Fn() -> Record) -> Result<u64, LoadError> {
    let error = |operation| move |source| LoadError::File { operation, path: path.to_path_buf(), source };
    let mut file =
        OpenOptions::new().read(true).append(true).create(true).open(path).map_err(error("open"))?;
    file.lock().map_err(error("lock"))?;
    let length = file.metadata().map_err(error("look at"))?.len();
    if length == 0 {
        // Programs in containers run as any user; all may read.
        file.set_permissions(std::fs::Permissions::from_mode(0o644)).map_err(error("set mode of"))?;
    }
    if length >= MAX_BYTES {
        return Err(LoadError::Full { path: path.into() });
    }
    let mut line = Vec::with_capacity(256);
    // A writer that was killed half-way left a line without its end: close it, so that it spoils only itself.
    let torn = length > 0 && last_byte(&mut file).map_err(error("read"))? != b'\n';
    if torn {
        line.push(b'\n');
    }
    let id = length + u64::from(torn);
    serde_json::to_writer(&mut line, &record()).map_err(|e| error("encode for")(e.into()))?;
    line.push(b'\n');
    file.write_all(&line).map_err(error("append to"))?;
    Ok(id)
}

fn last_byte(file: &mut File) -> std::io::Result<u8> {
    let mut byte = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut byte)?;
    Ok(byte[0])
}

/// The process with this id in our own PID namespace.
///
/// # Errors
/// When there is none.
pub fn watch(pid: u32) -> Result<Watched, LoadError> {
    match (own_namespace(), start_ticks(pid)) {
        (Some(namespace), Some(started)) => Ok(Watched { pid, namespace, started }),
        _ => Err(LoadError::NoProcess { pid }),
    }
}

fn own_namespace() -> Option<u64> {
    std::fs::metadata("/proc/self/ns/pid").ok().map(|m| m.ino())
}

/// Start time of a living process, in clock ticks since boot. A zombie has ended.
fn start_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold spaces and brackets; the fields after its last bracket are plain.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Whether a watched process is gone. A process of another namespace is taken for alive.
#[must_use]
pub fn is_gone(watched: &Watched) -> bool {
    own_namespace() == Some(watched.namespace) && start_ticks(watched.pid) != Some(watched.started)
}

/// The loads that a file holds, read again as the file grows.
#[derive(Debug, Default)]
pub struct Register {
    path: PathBuf,
    file: Option<(u64, u64)>,
    /// Bytes that were read and understood: whole lines only.
    read: u64,
    loads: Vec<Load>,
}

impl Register {
    /// A register that has read nothing yet.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, ..Self::default() }
    }

    /// All loads, in the order in which they were registered.
    #[must_use]
    pub fn loads(&self) -> &[Load] {
        &self.loads
    }

    /// Reads what is new. `true` says that the loads changed. A file that is gone has no loads.
    pub fn refresh(&mut self) -> bool {
        let Ok(meta) = std::fs::metadata(&self.path) else {
            let changed = !self.loads.is_empty();
            *self = Self::new(std::mem::take(&mut self.path));
            return changed;
        };
        let file = (meta.dev(), meta.ino());
        let mut changed = false;
        if self.file != Some(file) || meta.len() < self.read {
            changed = !self.loads.is_empty();
            *self = Self { file: Some(file), ..Self::new(std::mem::take(&mut self.path)) };
        }
        if meta.len() == self.read {
            return changed;
        }
        let Some(text) = self.unread() else { return changed };
        for line in text.split_inclusive(|b| *b == b'\n') {
            if line.last() != Some(&b'\n') {
                break;
            }
            changed |= self.take(line);
            self.read += u64::try_from(line.len()).unwrap_or(u64::MAX);
        }
        changed
    }

    fn unread(&self) -> Option<Vec<u8>> {
        let mut file = File::open(&self.path).ok()?;
        file.seek(SeekFrom::Start(self.read)).ok()?;
        let mut text = Vec::new();
        file.take(MAX_BYTES * 2).read_to_end(&mut text).ok()?;
        Some(text)
    }

    /// A line that is no record (a torn one) changes nothing.
    fn take(&mut self, line: &[u8]) -> bool {
        match serde_json::from_slice(line) {
            Ok(Record::Start { at_ns, work, watched }) => {
                self.loads.push(Load { id: self.read, work, start_ns: at_ns, end_ns: None, watched });
                true
            }
            Ok(Record::End { at_ns, id }) => self.finish(id, at_ns),
            Err(_) => false,
        }
    }

    /// The first end counts.
    fn finish(&mut self, id: u64, at_ns: u64) -> bool {
        let Ok(position) = self.loads.binary_search_by_key(&id, |l| l.id) else { return false };
        let load = &mut self.loads[position];
        if load.end_ns.is_some() {
            return false;
        }
        load.end_ns = Some(at_ns.max(load.start_ns));
        true
    }

    /// Ends the loads of processes that died. Without leave to write, only this reader takes them for ended.
    /// `true` says that the loads changed.
    pub fn bury(&mut self, now_ns: impl Fn() -> u64) -> bool {
        let dead: Vec<u64> = self
            .loads
            .iter()
            .filter(|l| l.end_ns.is_none() && l.watched.as_ref().is_some_and(is_gone))
            .map(|l| l.id)
            .collect();
        let mut changed = false;
        for id in dead {
            changed |= match end(&self.path, id, &now_ns) {
                Ok(()) => self.refresh(),
                Err(_) => self.finish(id, now_ns()),
            };
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(pid: u32, intensity: u32) -> Work {
        Work { pid, intensity, memory_mib: 10, ..Work::default() }
    }

    #[test]
    fn many_writers_lose_nothing_and_each_load_ends_once() {
        let dir = tempfile::tempdir().expect("dir");
        let path = path_beside(&dir.path().join("state.json"));
        std::thread::scope(|scope| {
            for writer in 0..8 {
                let path = &path;
                scope.spawn(move || {
                    for n in 0..25 {
                        let id = start(path, work(writer * 100 + n, 1), None, || 5).expect("start");
                        end(path, id, || 9).expect("end");
                    }
                });
            }
        });
        let mut register = Register::new(path.clone());
        assert!(register.refresh());
        assert!(!register.refresh(), "nothing new");
        assert_eq!(register.loads().len(), 200);
        assert!(register.loads().iter().all(|l| l.end_ns == Some(9)));
        let first = register.loads()[0].id;
        end(&path, first, || 50).expect("a second end");
        assert!(!register.refresh());
        assert_eq!(register.loads()[0].end_ns, Some(9), "the first end counts");
    }

    #[test]
    fn a_torn_line_spoils_only_itself() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("loads");
        start(&path, work(1, 10), None, || 1).expect("start");
        let mut file = OpenOptions::new().append(true).open(&path).expect("open");
        file.write_all(br#"{"op":"start","atNs":2,"wo"#).expect("tear");
        let mut register = Register::new(path.clone());
        assert!(register.refresh());
        let id = start(&path, work(3, 30), None, || 3).expect("start");
        assert!(register.refresh());
        let seen: Vec<_> = register.loads().iter().map(|l| (l.work.pid, l.start_ns)).collect();
        assert_eq!(seen, [(1, 1), (3, 3)]);
        assert_eq!(register.loads()[1].id, id);
        std::fs::remove_file(&path).expect("remove");
        assert!(register.refresh() && register.loads().is_empty());
    }

    #[test]
    fn a_process_that_died_stops_counting() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("loads");
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("spawn");
        let watched = watch(child.id()).expect("watch");
        start(&path, work(7, 10), Some(watched), || 1).expect("start");
        let mut register = Register::new(path.clone());
        register.refresh();
        assert!(!register.bury(|| 2), "it lives");
        child.kill().expect("kill");
        child.wait().expect("wait");
        assert!(register.bury(|| 3));
        assert_eq!(register.loads()[0].end_ns, Some(3));
        let mut other = Register::new(path);
        other.refresh();
        assert_eq!(other.loads(), register.loads(), "all readers agree");
        assert!(matches!(watch(child.id()), Err(LoadError::NoProcess { .. })));
    }

    #[test]
    fn too_much_of_a_device_is_refused() {
        let error = start(Path::new("/nowhere/x"), work(1, 101), None, || 0).expect_err("101 %");
        assert_eq!(error.to_string(), "intensity is 101, accepted is 0 to 100");
        let error = start(Path::new("/nowhere/x"), work(1, 1), None, || 0).expect_err("no folder");
        assert!(error.to_string().starts_with("open /nowhere/x: "), "{error}");
    }
}
