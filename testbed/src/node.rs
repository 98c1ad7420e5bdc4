//! A simulated node: namespaces of its own for mounts, processes, host name and network.
//!
//! All of a cluster's processes, containers included, live in the node's process namespace, whose process 1
//! is `pause -hold`. When that one ends, the kernel ends all of them and their mounts go too: stopping is one
//! signal, and a test bed that was killed takes its nodes along, because `pause -hold` ends with its
//! standard input.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{ChildStdin, Command};

use crate::command::log_pair;
use crate::config::Layout;
use crate::error::{Error, IoContext, Result};
use crate::files;
use crate::network::namespace_file;
use crate::process::{self, ProcessId};
use crate::wait::{self, Poll};

const READY: Duration = Duration::from_secs(20);

/// Mounts of a node, then its process 1. `/` becomes shared within the node only, as kubelet needs it. kubelet sets
/// kernel parameters that are the whole machine's: it finds them set, in files that hide the real ones.
const INIT: &str = r#"set -e
mount --make-rshared /
mount -t tmpfs -o mode=755,size=64m tmpfs /run
mkdir -p /run/netns /run/containerd /run/lock /var/lib/kubelet /var/lib/vendue
mount --bind "$FOLDER/kubelet" /var/lib/kubelet
mount --bind "$FOLDER/node" /var/lib/vendue
while read -r key value; do
  mkdir -p "/run/kernel/$(dirname "$key")"
  echo "$value" > "/run/kernel/$key"
  [ ! -e "/proc/sys/$key" ] || mount --bind "/run/kernel/$key" "/proc/sys/$key"
done <<END
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
END
echo "$NODE" > /proc/sys/kernel/hostname
echo ready
exec "$PAUSE" -hold
"#;

/// Keeps a node tied to this process.
#[derive(Debug)]
pub struct Tie {
    stdin: Option<ChildStdin>,
}

impl Tie {
    /// Lets the node outlive this process.
    pub async fn loosen(&mut self) -> Result<()> {
        if let Some(mut stdin) = self.stdin.take() {
            stdin.write_all(b"keep\n").await.io("write to", "the node's standard input")?;
            stdin.flush().await.io("write to", "the node's standard input")?;
        }
        Ok(())
    }
}

/// Starts the node of a cluster whose network namespace exists.
pub async fn start(layout: &Layout) -> Result<(ProcessId, Tie)> {
    for folder in [layout.kubelet(), layout.node(), layout.logs()] {
        files::create_dir(folder)?;
    }
    create_cgroups(&layout.place.cgroup())?;
    let operation = format!("start node of {}", layout.place.cluster);
    let fail =
        |detail: String| Error::Command { operation: operation.clone(), program: "unshare".into(), detail };
    let log = layout.log("node");
    let (_, err) = log_pair(&log)?;
    let net = format!("--net={}", namespace_file(&layout.place.namespace()).display());
    let mut command = Command::new("nsenter");
    command
        .arg(net)
        .args([
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "--uts",
            "--ipc",
            "--pid",
            "--fork",
            "--mount-proc",
        ])
        .args(["sh", "-c", INIT])
        .env_clear()
        .env("PATH", SYSTEM_PATH)
        .env("FOLDER", &layout.folder)
        .env("NODE", layout.place.node())
        .env("PAUSE", &layout.bin.pause)
        .current_dir("/")
        // Not in the terminal's group: Ctrl-C is handled by the test bed, which then stops the nodes.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(err);
    let mut child = command.spawn().map_err(|e| fail(e.to_string()))?;
    let parent =
        child.id().and_then(|id| i32::try_from(id).ok()).ok_or_else(|| fail("ended at once".into()))?;
    let stdin = child.stdin.take();
    let stdout = child.stdout.take().ok_or_else(|| fail("has no output".into()))?;
    let mut line = String::new();
    let mut reader = BufReader::new(stdout);
    tokio::time::timeout(READY, reader.read_line(&mut line))
        .await
        .map_err(|_| Error::timeout(&operation, READY, ""))?
        .map_err(|e| fail(e.to_string()))?;
    if line.trim() != "ready" {
        return Err(fail(format!(
            "did not get ready; log {}: {}",
            log.display(),
            files::read(&log).unwrap_or_default()
        )));
    }
    let first = process::children(parent).into_iter().find_map(ProcessId::of);
    Ok((first.ok_or_else(|| fail("has no first process".into()))?, Tie { stdin }))
}

/// kubelet expects its root group in every hierarchy; the runtime makes it only where a container needs it.
fn create_cgroups(path: &str) -> Result<()> {
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        let mut group = hierarchy.path();
        // Only the first version has a folder per hierarchy, each with its own list of processes.
        if !group.join("cgroup.procs").exists() || !group.join("release_agent").exists() {
            continue;
        }
        for part in path.split('/') {
            let parent = group.clone();
            group.push(part);
            files::create_dir(&group)?;
            // A new set of processors is empty, and what is empty cannot be given on.
            for set in ["cpuset.mems", "cpuset.cpus"] {
                let (from, to) = (parent.join(set), group.join(set));
                if to.exists() && files::read(&to)?.trim().is_empty() {
                    files::write(&to, files::read(&from)?)?;
                }
            }
        }
    }
    Ok(())
}

/// Search path of everything on a node.
pub(crate) const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A command that runs on a node.
pub fn command_on(node: ProcessId) -> Command {
    let mut command = Command::new("nsenter");
    command
        .args(["--target", &node.pid.to_string(), "--mount", "--uts", "--ipc", "--net", "--pid", "--"])
        .env_clear()
        .env("PATH", SYSTEM_PATH)
        .env("HOME", "/root")
        .current_dir("/");
    command
}

/// Starts a long-running program on a node and returns its process (not the one that entered the node).
pub async fn spawn_on(
    node: ProcessId,
    name: &str,
    args: &[String],
    path: &str,
    log: &std::path::Path,
) -> Result<ProcessId> {
    let operation = format!("start {name}");
    let fail = |detail: String| Error::Command { operation: operation.clone(), program: name.into(), detail };
    let (out, err) = log_pair(log)?;
    let mut command = command_on(node);
    command.args(args).env("PATH", path).stdin(Stdio::null()).stdout(out).stderr(err).process_group(0);
    let mut child = command.spawn().map_err(|e| fail(e.to_string()))?;
    let parent =
        child.id().and_then(|id| i32::try_from(id).ok()).ok_or_else(|| fail("ended at once".into()))?;
    let found = wait::until(&operation, Duration::from_secs(10), Duration::from_millis(5), || {
        let ended = child.try_wait();
        async move {
            if let Ok(Some(status)) = ended {
                return Err(Error::Command {
                    operation: format!("start {name}"),
                    program: name.into(),
                    detail: format!("ended with {status}; log {}", log.display()),
                });
            }
            let entered = process::children(parent).into_iter().find_map(ProcessId::of);
            Ok(entered.map_or_else(|| Poll::Pending("not entered yet".into()), Poll::Ready))
        }
    })
    .await?;
    // Dropping the handle neither ends nor abandons the process: the runtime reaps it.
    drop(child);
    Ok(found)
}
