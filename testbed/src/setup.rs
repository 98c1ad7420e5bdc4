//! `testbed setup`: everything that clusters need and that is made once.

use std::time::Duration;

use crate::command::{command, run_logged};
use crate::config::Programs;
use crate::doctor::{self, Finding};
use crate::error::{Error, Result};
use crate::images::{self, Image};
use crate::paths::Paths;
use crate::progress::Progress;
use crate::tools;

/// What set-up has made.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Folders.
    pub paths: Paths,
    /// Programs.
    pub programs: Programs,
    /// Images that do not depend on Vendue's code.
    pub images: Vec<Image>,
}

/// Makes what is missing; quick when nothing is.
pub async fn prepare(paths: &Paths, progress: &Progress) -> Result<Setup> {
    let _lock = crate::lock::Lock::take(
        &paths.cache().join("setup.lock"),
        "another set-up is at work",
        Duration::from_secs(3600),
    )
    .await?;
    install_packages(paths, progress).await?;
    let programs = tools::prepare(paths, progress).await?;
    let images = images::prepare(paths, &programs.pause, progress).await?;
    Ok(Setup { paths: paths.clone(), programs, images })
}

async fn install_packages(paths: &Paths, progress: &Progress) -> Result<()> {
    let findings = doctor::examine(paths);
    let packages: Vec<_> = findings.iter().filter_map(|f| f.package.as_deref()).collect();
    let can_install = nix::unistd::geteuid().is_root() && tools::which("apt-get").is_some();
    if !packages.is_empty() && can_install {
        let log = paths.setup_logs().join("apt.log");
        progress
            .step(&format!("install {}", packages.join(", ")), async {
                let limit = Duration::from_secs(15 * 60);
                run_logged("update package lists", limit, command("apt-get", ["update"]), &log).await?;
                let mut install = command("apt-get", ["install", "--yes", "--no-install-recommends"]);
                install.args(&packages).env("DEBIAN_FRONTEND", "noninteractive");
                run_logged("install packages", limit, install, &log).await
            })
            .await?;
    }
    let left: Vec<Finding> = doctor::examine(paths).into_iter().filter(|f| f.blocks).collect();
    if left.is_empty() {
        return Ok(());
    }
    Err(Error::Machine(format!("this machine cannot run the test bed:\n{}", doctor::report(&left))))
}

/// What an earlier set-up has made; an error if something is missing.
pub async fn find(paths: &Paths) -> Result<Setup> {
    let programs = tools::find(paths)?;
    let images = images::prepare(paths, &programs.pause, &Progress::silent()).await?;
    Ok(Setup { paths: paths.clone(), programs, images })
}
