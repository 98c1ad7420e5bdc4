//! Runs a probe in a child process and waits for what it says.
//!
//! * Inputs: the program, which device, a time limit. Output: what the child found, or what became of it.
//! * Invariants: the child ends when its time is over, when the wait for it is given up, and when this process ends;
//!   while one that cannot be ended is left, no other is started on the same device, and what it holds up is no other device's
//!   fault.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use std::os::unix::process::ExitStatusExt;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use vendue_crds::{GpuProbe, ProbeResult};

use super::command::Probed;
use super::reasons;

/// Most of the child's answer, and of its complaint, that is read.
const MAX_ANSWER: u64 = 64 << 10;
const MAX_COMPLAINT: u64 = 4 << 10;

/// Each takes some hundred MiB of the container's memory.
const MAX_STUCK: usize = 2;

/// A killed process is gone within this time, unless a call into the kernel holds it.
const GRACE: Duration = Duration::from_secs(5);

/// Starts probes.
#[derive(Debug)]
pub struct Runner {
    program: PathBuf,
    arguments: Vec<OsString>,
    limit: Duration,
    /// Children that could not be ended, by device.
    stuck: Mutex<BTreeMap<String, Child>>,
}

impl Runner {
    /// Starts `program` with `arguments` before those that name the device.
    #[must_use]
    pub fn new(program: PathBuf, arguments: Vec<OsString>, limit: Duration) -> Self {
        Self { program, arguments, limit, stuck: Mutex::default() }
    }

    /// Probes a device. Giving up the wait ends the child.
    pub async fn probe(&self, uuid: &str) -> GpuProbe {
        if let Some(hindered) = self.hindered(uuid) {
            return hindered;
        }
        let mut child = match self.start(uuid) {
            Ok(child) => child,
            Err(error) => return not_run(format!("start {}: {error}", self.program.display())),
        };
        let (answer, complaint) = (child.stdout.take(), child.stderr.take());
        let work = async {
            let (answer, complaint) =
                tokio::join!(all_of(answer, MAX_ANSWER), all_of(complaint, MAX_COMPLAINT));
            (child.wait().await, answer, complaint)
        };
        match timeout(self.limit, work).await {
            Ok((Ok(status), answer, complaint)) => outcome(status, uuid, &answer, &complaint),
            Ok((Err(error), ..)) => not_run(format!("wait for the probe: {error}")),
            Err(_) => {
                self.end(uuid, child).await;
                let message = format!("the probe did not end within {} s", self.limit.as_secs_f32());
                failed(reasons::TIMED_OUT, message)
            }
        }
    }

    fn start(&self, uuid: &str) -> std::io::Result<Child> {
        Command::new(&self.program)
            .args(&self.arguments)
            .args(["probe", "--output", "json", "--gpu", uuid])
            .args(["--parent", &std::process::id().to_string()])
            // Of several cards only this one is opened, and nothing is written into a home that may not be there.
            .env("CUDA_VISIBLE_DEVICES", uuid)
            .env("CUDA_CACHE_DISABLE", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
    }

    /// Why a device cannot be probed while children hang: its own has failed it, and of too many nothing can be said.
    fn hindered(&self, uuid: &str) -> Option<GpuProbe> {
        let mut stuck = self.stuck();
        stuck.retain(|_, child| !matches!(child.try_wait(), Ok(Some(_))));
        if stuck.contains_key(uuid) {
            let message = "an earlier probe hangs in the driver; reboot the node".to_owned();
            return Some(failed(reasons::TIMED_OUT, message));
        }
        let count = stuck.len();
        (count >= MAX_STUCK).then(|| not_run(format!("{count} probes of other devices hang in the driver")))
    }

    fn stuck(&self) -> MutexGuard<'_, BTreeMap<String, Child>> {
        // A panic under the lock leaves nothing half-done.
        self.stuck.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn end(&self, uuid: &str, mut child: Child) {
        if let Err(error) = child.start_kill() {
            tracing::warn!(%error, "end the probe");
        }
        if timeout(GRACE, child.wait()).await.is_err() {
            self.stuck().insert(uuid.to_owned(), child);
        }
    }
}

async fn all_of(pipe: Option<impl AsyncRead + Unpin>, most: u64) -> Vec<u8> {
    let mut text = Vec::new();
    if let Some(pipe) = pipe
        && let Err(error) = pipe.take(most).read_to_end(&mut text).await
    {
        tracing::debug!(%error, "read what the probe says");
    }
    text
}

fn outcome(status: ExitStatus, uuid: &str, answer: &[u8], complaint: &[u8]) -> GpuProbe {
    if let Some(signal) = status.signal() {
        return failed(reasons::CRASHED, format!("the probe was ended by signal {signal}"));
    }
    if !status.success() {
        let complaint = String::from_utf8_lossy(complaint);
        let last = complaint.lines().next_back().unwrap_or("it does not say why");
        return not_run(format!("the probe ended with {status}: {last}"));
    }
    match serde_json::from_slice::<Vec<Probed>>(answer) {
        Ok(probed) => probed.into_iter().find(|probed| probed.uuid == uuid).map_or_else(
            || not_run("the probe says nothing of the device".to_owned()),
            |probed| probed.probe,
        ),
        Err(error) => not_run(format!("read what the probe found: {error}")),
    }
}

fn failed(reason: &str, message: String) -> GpuProbe {
    GpuProbe::without_figures(ProbeResult::Failed, reason, message)
}

fn not_run(message: String) -> GpuProbe {
    GpuProbe::without_figures(ProbeResult::NotRun, reasons::PROBE_ERROR, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process that does not end, as one that hangs in the driver.
    fn hangs() -> Child {
        Command::new("sleep").arg("600").kill_on_drop(true).spawn().expect("start")
    }

    #[tokio::test]
    async fn a_child_that_cannot_be_ended_is_held_against_its_own_device_only() {
        let arguments = vec!["-c".into(), "exit 1".into()];
        let runner = Runner::new("/bin/sh".into(), arguments, Duration::from_secs(30));
        runner.stuck().insert("GPU-0".to_owned(), hangs());
        let outcome = |probe: GpuProbe| (probe.result, probe.reason, probe.message.unwrap_or_default());
        let (result, reason, _) = outcome(runner.probe("GPU-0").await);
        assert_eq!((result, reason.as_str()), (ProbeResult::Failed, reasons::TIMED_OUT));
        let (_, _, message) = outcome(runner.probe("GPU-1").await);
        assert!(message.starts_with("the probe ended with exit status: 1"), "{message}");
        // Too many to start one more; nothing is said against the device.
        runner.stuck().insert("GPU-2".to_owned(), hangs());
        let (result, reason, message) = outcome(runner.probe("GPU-1").await);
        assert_eq!((result, reason.as_str()), (ProbeResult::NotRun, reasons::PROBE_ERROR));
        assert_eq!(message, "2 probes of other devices hang in the driver");
        // One that has ended after all hinders nobody.
        for child in runner.stuck().values_mut() {
            child.start_kill().expect("kill");
        }
        let again = async {
            while runner.hindered("GPU-0").is_some() {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(30), again).await.expect("both end");
    }
}
