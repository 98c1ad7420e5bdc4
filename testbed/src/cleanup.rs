//! Removing a market, whatever state it is in: running, half started, or left by a killed run.
//!
//! It relies on the state file where there is one, and else on names that only the test bed gives:
//! namespaces `vd-<market>-*`, links `vdm<slot>-*`, control groups `vendue/<market>`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::error::Result;
use crate::files;
use crate::lock::Lock;
use crate::network::{self, namespace_file};
use crate::paths::Paths;
use crate::process;
use crate::state::MarketState;
use crate::wait::{self, Poll};

const ENDED: Duration = Duration::from_secs(15);

/// Stops and removes a market, whoever started it; nothing there is fine.
pub async fn market(paths: &Paths, name: &str) -> Result<()> {
    let lock = Lock::of_markets(paths).await?;
    remove(paths, name, &lock).await
}

/// Removes what this process started or took over, and what a killed run left. A market in another process's hands is
/// left alone.
pub async fn own(paths: &Paths, name: &str) -> Result<()> {
    let others = || MarketState::load(&paths.run(name)).ok().flatten().is_some_and(|state| state.is_others());
    // Asked first without the lock, which another process may hold for as long as its start takes.
    if others() {
        return Ok(());
    }
    let lock = Lock::of_markets(paths).await?;
    if others() {
        return Ok(());
    }
    remove(paths, name, &lock).await
}

/// Removes a market while no other is started or stopped.
pub(crate) async fn remove(paths: &Paths, name: &str, _held: &Lock) -> Result<()> {
    let run = paths.run(name);
    // A state file that cannot be read must not keep the rest from being removed.
    let state = MarketState::load(&run).ok().flatten();
    if let Some(helper) = state.as_ref().and_then(|s| s.helper) {
        helper.kill(ENDED).await?;
    }
    let nodes: Vec<_> = state.iter().flat_map(|s| &s.clusters).filter_map(|c| c.node).collect();
    for node in &nodes {
        node.signal(Signal::SIGKILL)?;
    }
    // Before the wait: a node ends when all its processes are reaped, and the programs that wait for them may
    // themselves stand still; they are in the namespaces.
    let namespaces = network::namespaces(name).await?;
    for namespace in &namespaces {
        end_processes(&namespace_file(namespace)).await?;
    }
    for node in nodes {
        node.gone(ENDED).await?;
    }
    for namespace in &namespaces {
        network::delete_namespace(namespace).await?;
    }
    if let Some(state) = &state {
        network::delete_management_links(state.slot).await?;
    }
    remove_cgroups(&format!("vendue/{name}")).await?;
    crate::disk::unmount_below(&run)?;
    let folder = run.clone();
    let removed = tokio::task::spawn_blocking(move || files::remove_dir(&folder)).await;
    removed
        .unwrap_or_else(|e| Err(crate::error::Error::Invalid(format!("remove {}: {e}", run.display()))))?;
    // Removing a mount point takes away what another node has mounted there.
    if known(paths).await?.is_empty() {
        remove_empty_mount_points();
        remove_cgroups("vendue").await?;
        crate::kernel::restore(paths)?;
    }
    Ok(())
}

/// Names of all markets that left something on this machine.
pub async fn known(paths: &Paths) -> Result<Vec<String>> {
    let mut names: Vec<String> = std::fs::read_dir(paths.runs())
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    // A market's wide-area namespace is made first and removed last but one.
    for namespace in network::namespaces_of_all().await? {
        if let Some(name) = namespace.strip_prefix("vd-").and_then(|n| n.strip_suffix("-wan")) {
            names.push(name.into());
        }
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// Processes that a killed run left in a namespace; a node's first process takes all others along.
async fn end_processes(namespace: &Path) -> Result<()> {
    wait::until("end leftover processes", ENDED, Duration::from_millis(50), || async {
        let left = process::in_network_namespace(namespace);
        for process in &left {
            process.signal(Signal::SIGKILL)?;
        }
        Ok(if left.is_empty() { Poll::Ready(()) } else { Poll::Pending(format!("{} left", left.len())) })
    })
    .await
}

/// Empty control groups, innermost first; the kernel may need a moment after the last process.
async fn remove_cgroups(path: &str) -> Result<()> {
    let mut roots = vec![PathBuf::from("/sys/fs/cgroup")];
    roots.extend(
        std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path()),
    );
    wait::until("remove control groups", ENDED, Duration::from_millis(50), || {
        let left: Vec<_> =
            roots.iter().map(|root| root.join(path)).filter(|folder| folder.is_dir()).collect();
        let stuck = left.iter().filter(|folder| !remove_cgroup(folder)).count();
        async move { Ok(if stuck == 0 { Poll::Ready(()) } else { Poll::Pending(format!("{stuck} in use")) }) }
    })
    .await
}

fn remove_cgroup(folder: &Path) -> bool {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() && !remove_cgroup(&entry.path()) {
            return false;
        }
    }
    std::fs::remove_dir(folder).is_ok() || !folder.exists()
}

/// Mount points that starting a node made on the host; one that holds anything is not ours and stays.
fn remove_empty_mount_points() {
    for folder in ["/var/lib/kubelet", "/var/lib/vendue"] {
        let _ = std::fs::remove_dir(folder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::ProcessId;
    use crate::spec::MarketSpec;

    #[tokio::test]
    async fn what_another_process_runs_stays() {
        let cache = tempfile::tempdir().unwrap();
        let paths = Paths::new(cache.path().to_path_buf(), "/".into()).unwrap();
        let owner = ProcessId::of(1).unwrap();
        let spec = MarketSpec::demo().named("others");
        let state = MarketState { spec, slot: 0, owner, kept: false, helper: None, clusters: vec![] };
        state.save(&paths.run("others")).unwrap();
        own(&paths, "others").await.unwrap();
        assert!(paths.run("others").join("state.json").exists());
    }
}
