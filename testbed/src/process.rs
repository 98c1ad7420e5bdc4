//! Processes of the host by id *and* start time, so that a recycled id is never signalled.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::wait;

/// One process, identified for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// Process id as the host sees it.
    pub pid: i32,
    /// Start time in clock ticks after boot.
    pub start: u64,
}

impl ProcessId {
    /// The running process with this id, if there is one.
    pub fn of(pid: i32) -> Option<Self> {
        let (state, start) = stat(pid)?;
        // The first thread of a killed process may be a zombie while others still hold its ports and files.
        let ended =
            state == 'Z' && std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count) <= 1;
        (!ended).then_some(Self { pid, start })
    }

    /// This process.
    pub fn own() -> Result<Self> {
        Self::of(std::process::id().cast_signed())
            .ok_or_else(|| Error::Machine("/proc is not mounted".into()))
    }

    /// Whether that very process still runs (a zombie does not).
    pub fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Whether it is stopped by a signal.
    pub fn is_stopped(self) -> bool {
        self.is_alive() && stat(self.pid).is_some_and(|(state, _)| state == 'T')
    }

    /// Sends a signal; a process that is gone is no error.
    pub fn signal(self, signal: Signal) -> Result<()> {
        if !self.is_alive() {
            return Ok(());
        }
        match nix::sys::signal::kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
            Err(errno) => Err(Error::Command {
                operation: format!("send {signal}"),
                program: self.pid.to_string(),
                detail: errno.to_string(),
            }),
        }
    }

    /// Kills it and waits until it is gone.
    pub async fn kill(self, limit: Duration) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.gone(limit).await
    }

    /// Waits until it is gone.
    pub async fn gone(self, limit: Duration) -> Result<()> {
        wait::until(
            &format!("wait for process {} to end", self.pid),
            limit,
            Duration::from_millis(20),
            || async move {
                Ok(if self.is_alive() { wait::Poll::Pending(String::new()) } else { wait::Poll::Ready(()) })
            },
        )
        .await
    }
}

/// State letter and start time from `/proc/<pid>/stat`.
fn stat(pid: i32) -> Option<(char, u64)> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(text: &str) -> Option<(char, u64)> {
    // The program name is in parentheses and may itself hold spaces and parentheses.
    let rest = text.rsplit_once(')')?.1;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// Children of a process (of all its threads).
pub fn children(pid: i32) -> Vec<i32> {
    let mut found = Vec::new();
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let list = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        found.extend(list.split_whitespace().filter_map(|id| id.parse::<i32>().ok()));
    }
    found
}

/// Parent of a process.
pub fn parent(process: ProcessId) -> Option<ProcessId> {
    let text = std::fs::read_to_string(format!("/proc/{}/stat", process.pid)).ok()?;
    let id = text.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
    ProcessId::of(id)
}

/// All process ids of the host.
pub fn all() -> Vec<i32> {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Processes that live in the network namespace mounted at `path`.
pub fn in_network_namespace(path: &Path) -> Vec<ProcessId> {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(wanted) = std::fs::metadata(path) else { return Vec::new() };
    let same = |pid: i32| {
        std::fs::metadata(format!("/proc/{pid}/ns/net"))
            .is_ok_and(|m| m.ino() == wanted.ino() && m.dev() == wanted.dev())
    };
    all().into_iter().filter(|&pid| same(pid)).filter_map(ProcessId::of).collect()
}

/// Processes in the same process namespace as a process, including itself.
pub fn in_pid_namespace_of(process: ProcessId) -> Vec<ProcessId> {
    let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let Some(wanted) = namespace(process.pid) else { return Vec::new() };
    all()
        .into_iter()
        .filter(|&pid| namespace(pid).as_ref() == Some(&wanted))
        .filter_map(ProcessId::of)
        .collect()
}

/// Proportional memory of a process in bytes.
pub fn proportional_bytes(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("Pss:"));
    line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Processes whose control group's path contains `part`, such as a container id.
pub fn in_cgroup(part: &str) -> Vec<ProcessId> {
    let inside = |pid: i32| {
        std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains(part))
    };
    all().into_iter().filter(|&pid| inside(pid)).filter_map(ProcessId::of).collect()
}

/// Command line of a process, arguments joined by spaces.
pub fn command_line(pid: i32) -> String {
    let raw = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&raw).replace('\0', " ").trim().to_string()
}

/// Resident memory of a process in bytes.
pub fn resident_bytes(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    text.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_line_with_odd_program_name() {
        let line = "42 (a) b (c) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1000 10";
        assert_eq!(parse_stat(line), Some(('S', 98765)));
    }

    #[test]
    fn own_process_is_alive_and_a_recycled_id_is_not() {
        let me = ProcessId::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(me.is_alive());
        assert!(!ProcessId { start: me.start + 1, ..me }.is_alive());
        assert!(resident_bytes(me.pid) > 0);
    }
}
