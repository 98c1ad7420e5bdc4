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

/// Packages whose programs the clusters and the user run.
const PACKAGES: [&str; 5] =
    ["vendue-controller", "vendue-auction", "vendue-gpu-agent", "vendue-nvml-sim", "kubectl-vendue"];

/// Builds the programs; cargo's own progress goes to standard error.
pub async fn build(paths: &Paths, progress: &Progress) -> Result<PathBuf> {
    progress.step("build Vendue's programs", cargo_build(paths)).await?;
    folder()
}

async fn cargo_build(paths: &Paths) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
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

/// The folder that holds the built programs: the one this program is in, or its parent for a test.
pub fn folder() -> Result<PathBuf> {
    let me = std::env::current_exe().map_err(|e| Error::Machine(format!("find the running program: {e}")))?;
    let dir = me.parent().ok_or_else(|| Error::Machine("the running program has no folder".into()))?;
    let dir = if dir.ends_with("deps") { dir.parent().unwrap_or(dir) } else { dir };
    Ok(dir.to_path_buf())
}
