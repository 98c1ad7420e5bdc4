//! `doctor`: what is in order in this cluster, what is not, and what to do about it.
//!
//! Inputs: objects of this cluster, and the metrics of its auction process when the user may read them. Outputs: one
//! line for each check. Invariant: nothing is changed; what the user may not read is skipped and said so.

mod api;
mod checks;
mod gpus;
mod helm;
mod market;
mod preflight;
#[cfg(test)]
mod tests;

use serde::Serialize;

use crate::args::{DoctorOptions, Global, Output};
use crate::cluster;
use crate::error::CliError;
use crate::report::{self, Check};

/// The answer as JSON.
#[derive(Serialize, Debug)]
struct Answer<'a> {
    passed: bool,
    checks: &'a [Check],
}

/// Looks at the cluster; true when nothing failed.
pub async fn run(global: &Global, options: &DoctorOptions) -> Result<bool, CliError> {
    let api = api::Cluster::new(cluster::connect(global).await?, &options.system_namespace);
    let checks = if options.uninstall_check {
        preflight::uninstall(&api).await?
    } else if options.upgrade_check {
        preflight::upgrade(&api).await?
    } else {
        checks::all(&api).await?
    };
    let passed = report::passed(&checks);
    let mut text = report::text(&checks, report::colour() && global.output == Output::Text);
    if !passed && options.uninstall_check {
        text.push_str(
            "\nNot uninstalled. To do it all the same, and lose what runs: helm uninstall --no-hooks\n",
        );
    }
    report::print(global.output, &text, &Answer { passed, checks: &checks })?;
    if let (false, Some(secret)) = (passed, &options.release_secret) {
        reopen(&api, secret).await;
    }
    Ok(passed)
}

/// Puts Helm's release back to "deployed". When that fails Helm is told by hand, so it is said and no more.
async fn reopen(api: &api::Cluster, secret: &str) {
    let by_hand = "set it right with `helm rollback vendue` before the next upgrade";
    let result = async {
        let old = api.release(secret).await.map_err(|e| e.to_string())?;
        let new = helm::reopened(&old, "uninstall refused: an award runs").map_err(|e| e.to_string())?;
        api.set_release(secret, new).await.map_err(|e| e.to_string())
    };
    if let Err(error) = result.await {
        eprintln!("the release stays marked as uninstalling: {error}; {by_hand}");
    }
}
