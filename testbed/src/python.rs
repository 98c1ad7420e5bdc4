//! A Python with the tools that users read GPUs with (nvidia-ml-py, gpustat, nvitop), for the tests that compare them.
//!
//! Input: the pinned requirements beside the test. Output: the interpreter of a virtual environment, made once into
//! `<cache>/tools/python-<key>`, keyed by what pins it. Invariant: a folder under its final name is complete.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::command::{command, run_logged};
use crate::error::{Error, IoContext, Result};
use crate::files;
use crate::lock::Lock;
use crate::paths::Paths;
use crate::progress::Progress;
use crate::tools::which;

/// Longest a step may take on a slow network.
const LIMIT: Duration = Duration::from_secs(15 * 60);

fn requirements(paths: &Paths) -> PathBuf {
    paths.checkout().join("gpu-agent/nvml-sim/tests/python")
}

/// The interpreter; made if it is not there yet.
pub async fn prepare(paths: &Paths, progress: &Progress) -> Result<PathBuf> {
    let key = files::key_of_folder(&requirements(paths), |name| name.ends_with(".txt"))?;
    let folder = paths.cache().join("tools").join(format!("python-{key}"));
    let _lock =
        Lock::take(&paths.cache().join("python.lock"), "another set-up of Python is at work", LIMIT).await?;
    // The environment refers to the interpreter that it was made by, which may be gone.
    let interpreter = folder.join("bin/python");
    if !interpreter.exists() {
        files::remove_dir(&folder)?;
        progress.step("install nvidia-ml-py, gpustat, nvitop", install(paths, &folder)).await?;
    }
    Ok(interpreter)
}

async fn install(paths: &Paths, folder: &Path) -> Result<()> {
    if which("python3").is_none() {
        return Err(Error::Machine(
            "python3 is not installed, and the tests that read simulated GPUs with nvidia-ml-py, gpustat and nvitop need \
             it: apt-get install python3 python3-pip"
                .into(),
        ));
    }
    let partial = files::with_suffix(folder, ".partial");
    files::remove_dir(&partial)?;
    let log = paths.setup_logs().join("python.log");
    // Debian has venv without pip in python3 itself; the system's pip installs into it.
    let mut make = command("python3", ["-m", "venv", "--without-pip"]);
    make.arg(&partial);
    run_logged("make a Python environment", LIMIT, make, &log).await?;
    for (file, how) in
        [("requirements-build.txt", "--only-binary=:all:"), ("requirements.txt", "--no-build-isolation")]
    {
        let mut pip = command("python3", ["-m", "pip", "--python"]);
        pip.arg(partial.join("bin/python")).args([
            "install",
            "--disable-pip-version-check",
            "--require-hashes",
            how,
            "-r",
        ]);
        pip.arg(requirements(paths).join(file));
        run_logged("install Python packages (needs python3-pip 22.3 or later)", LIMIT, pip, &log).await?;
    }
    std::fs::rename(&partial, folder).io("rename to", folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_is_pinned_by_version_and_hash() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../gpu-agent/nvml-sim/tests/python");
        let mut packages = Vec::new();
        for file in ["requirements-build.txt", "requirements.txt"] {
            let text = std::fs::read_to_string(folder.join(file)).expect("requirements");
            let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
            for (at, line) in lines.iter().enumerate().filter(|(_, line)| !line.starts_with(' ')) {
                let (name, version) = line.split_once("==").expect("a version");
                assert!(version.ends_with(" \\"), "{line}");
                let hash = lines.get(at + 1).and_then(|next| next.trim().strip_prefix("--hash=sha256:"));
                assert!(hash.is_some_and(|hash| hash.len() >= 64), "{line}");
                packages.push(name.to_owned());
            }
        }
        for tool in ["nvidia-ml-py", "gpustat", "nvitop", "setuptools"] {
            assert!(packages.iter().any(|name| name == tool), "{packages:?}");
        }
    }
}
