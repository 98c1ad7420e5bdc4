//! Runs a probe in a child process and waits for what it says.
//!
//! * Inputs: the program, which device, a time limit. Output: what the child found, or what became of it.
//! * Invariants: the child ends when its time is over, when the wait for it is given up, and when this process ends;
//!   while one that cannot be ended is left, no other is started.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
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

/// A killed process is gone within this time, unless a call into the kernel holds it.
const GRACE: Duration = Duration::from_secs(5);

/// Starts probes.
#[derive(Debug)]
pub struct Runner {
    program: PathBuf,
    arguments: Vec<OsString>,
    limit: Duration,
    /// A child that could not be ended.
    stuck: Option<Child>,
}

impl Runner {
    /// Starts `program` with `arguments` before those that name the device.
    #[must_use]
    pub fn new(program: PathBuf, arguments: Vec<OsString>, limit: Duration) -> Self {
        Self { program, arguments, limit, stuck: None }
    }

    /// Probes a device. Giving up the wait ends the child.
    pub async fn probe(&mut self, uuid: &str) -> GpuProbe {
        if let Some(stuck) = &mut self.stuck {
            match stuck.try_wait() {
                Ok(Some(_)) => self.stuck = None,
                _ => {
                    return failed(
                        reasons::TIMED_OUT,
                        "an earlier probe hangs in the driver; reboot the node".to_owned(),
                    );
                }
            }
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
                self.end(child).await;
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

    async fn end(&mut self, mut child: Child) {
        if let Err(error) = child.start_kill() {
            tracing::warn!(%error, "end the probe");
        }
        if timeout(GRACE, child.wait()).await.is_err() {
            self.stuck = Some(child);
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
