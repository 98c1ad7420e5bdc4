//! What Helm asks before it upgrades or uninstalls.
//!
//! Inputs: Awards and Jobs. Outputs: checks; one that fails stops Helm. Invariant: an uninstall is refused while an
//! award of this cluster is not released, on either side of it.

use vendue_crds::conditions::{self, award, job};
use vendue_crds::{Award, AwardSide, ComputeJob};

use super::api::{Cluster, Seen};
use super::checks::upgrade_command;
use crate::error::CliError;
use crate::report::Check;

/// Most objects that are named.
const NAMED: usize = 10;

fn found<T>(cluster: &Cluster, seen: Seen<Vec<T>>, what: &str) -> Result<Vec<T>, CliError> {
    match seen {
        Seen::There(list) => Ok(list),
        Seen::Missing => Ok(vec![]),
        Seen::Forbidden => Err(CliError::Cluster {
            message: format!("may not list {what}"),
            next: format!(
                "give the service account vendue-preflight its role back: {}",
                upgrade_command(&cluster.system, "")
            ),
        }),
    }
}

/// An award that binds somebody: held or handed over, and not released.
fn binds(item: &Award) -> bool {
    let list = item.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    conditions::is_true(list, award::HELD) && !conditions::is_true(list, award::RELEASED)
}

/// A Job that the market works on.
fn open(item: &ComputeJob) -> bool {
    let list = item.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    conditions::is_true(list, job::ACCEPTED) && !conditions::is_true(list, job::FINISHED)
}

fn describe(item: &Award) -> String {
    let name = item.metadata.name.as_deref().unwrap_or("?");
    let namespace = item.metadata.namespace.as_deref().unwrap_or("?");
    let state = item.status.as_ref().and_then(|s| s.state.as_deref()).unwrap_or("held");
    match item.spec.side {
        AwardSide::Home => format!("{namespace}/{name} at {} ({state})", item.spec.provider),
        AwardSide::Host => format!("{namespace}/{name} for {} ({state})", item.spec.job.home),
    }
}

fn names(all: impl ExactSizeIterator<Item = String>) -> String {
    let more = all.len().saturating_sub(NAMED);
    let list = all.take(NAMED).collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{list} and {more} more") } else { list }
}

/// Refuses while an award binds this cluster.
pub async fn uninstall(cluster: &Cluster) -> Result<Vec<Check>, CliError> {
    let awards = found(cluster, cluster.awards().await?, "Awards")?;
    let jobs = found(cluster, cluster.jobs().await?, "Jobs")?;
    let mut checks = vec![];
    for (side, name, next) in [
        (
            AwardSide::Home,
            "awards bought",
            "wait for the Jobs to finish, or delete them: kubectl delete jobs.vendue.dev -n NAMESPACE NAME",
        ),
        (
            AwardSide::Host,
            "awards sold",
            "suspend the Provisions (spec.suspend: true) and wait for the awards to end",
        ),
    ] {
        let binding: Vec<_> =
            awards.iter().filter(|a| a.spec.side == side && binds(a)).map(describe).collect();
        checks.push(match binding.len() {
            0 => Check::ok(name, "none runs"),
            n => Check::fail(name, format!("{n} run: {}", names(binding.into_iter())), next),
        });
    }
    let searching: Vec<_> = jobs.iter().filter(|j| open(j)).map(job_name).collect();
    if !searching.is_empty() {
        checks.push(Check::fail(
            "jobs",
            format!("{} are not finished: {}", searching.len(), names(searching.into_iter())),
            "wait for them, or delete them: kubectl delete jobs.vendue.dev -n NAMESPACE NAME",
        ));
    }
    let kept: Vec<_> =
        jobs.iter().filter(|j| !open(j) && j.metadata.finalizers.is_some()).map(job_name).collect();
    if !kept.is_empty() {
        checks.push(Check::warn(
            "finished jobs",
            format!(
                "{} stay and can be deleted only while Vendue is installed: {}",
                kept.len(),
                names(kept.into_iter())
            ),
        ));
    }
    Ok(checks)
}

fn job_name(item: &ComputeJob) -> String {
    let namespace = item.metadata.namespace.as_deref().unwrap_or("?");
    format!("{namespace}/{}", item.metadata.name.as_deref().unwrap_or("?"))
}

/// Says what an upgrade does. Never refuses.
pub async fn upgrade(cluster: &Cluster) -> Result<Vec<Check>, CliError> {
    let awards = found(cluster, cluster.awards().await?, "Awards")?;
    let running: Vec<_> = awards.iter().filter(|a| binds(a)).map(describe).collect();
    Ok(vec![match running.len() {
        0 => Check::ok("running awards", "none"),
        n => Check::ok(
            "running awards",
            format!(
                "{n} go on: {}. The controller and the auction process restart; workloads do not need them, and status \
                 catches up. A restarted seat takes part again after the rounds that were open have ended.",
                names(running.into_iter())
            ),
        ),
    }])
}
