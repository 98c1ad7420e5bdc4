//! Vendue's own programs, built by the same cargo that runs the test bed.
//!
//! Inputs: the checkout. Outputs: the folder with the built programs. Invariant: the profile is the one that this
//! program was built with, so that a demo after a test run compiles nothing twice.

use std::path::PathBuf;
use std::process::Stdio;

use tokio::process::Command;

use crate::error::{Error, Result};
use crate::paths::Paths;
use crate::progress::Progress;

/// Packages whose programs and libraries the clusters and the user run.
const PACKAGES: [&str; 6] = [
    "vendue-controller",
    "vendue-auction",
    "vendue-gpu-agent",
    "vendue-nvml-sim",
    "vendue-cuda-sim",
    "kubectl-vendue",
];

/// Builds the programs; cargo's own progress goes to standard error.
pub async fn build(paths: &Paths, progress: &Progress) -> Result<PathBuf> {
    progress.step("build Vendue's programs", cargo_build(paths)).await?;
    folder()
}

async fn cargo_build(paths: &Paths) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_of_this_program) {
            command.env_remove(name);
        }
    }
    command
        .arg("build")
        .args(PACKAGES.iter().flat_map(|name| ["--package", name]))
        .current_dir(paths.checkout());
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    let failed = |detail: String| Error::Command {
        operation: "build Vendue's programs".into(),
        program: "cargo build".into(),
        detail,
    };
    let status = command.status().await.map_err(|e| failed(format!("could not be started: {e}")))?;
    if status.success() { Ok(()) } else { Err(failed(format!("ended with {status}"))) }
}

/// Variables by which the cargo that started this program describes it. Handed on they make build scripts believe that
/// something has changed, and much is compiled again.
fn is_of_this_program(variable: &str) -> bool {
    let kinds = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"];
    kinds.iter().any(|kind| variable.starts_with(kind))
}

/// The folder that holds the built programs: the one this program is in, or its parent for a test.
pub fn folder() -> Result<PathBuf> {
    let me = std::env::current_exe().map_err(|e| Error::Machine(format!("find the running program: {e}")))?;
    let dir = me.parent().ok_or_else(|| Error::Machine("the running program has no folder".into()))?;
    let dir = if dir.ends_with("deps") { dir.parent().unwrap_or(dir) } else { dir };
    Ok(dir.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_describes_this_program_is_told_from_what_the_user_sets() {
        assert!(std::env::vars().any(|(name, _)| is_of_this_program(&name)), "cargo runs this test");
        for kept in ["CARGO", "CARGO_HOME", "CARGO_TARGET_DIR", "CARGO_BUILD_JOBS", "CARGO_NET_OFFLINE"] {
            assert!(!is_of_this_program(kept), "{kept}");
        }
    }
}
