//! The demo: five clusters, one Job, from `kubectl apply` to a trained model bought at auction.
//!
//! Inputs: a [`Deployment`]. Outputs: a [`Report`]. Invariant: every step is a command that a user could type; the
//! commands are printed as they run.

use std::path::Path;
use std::time::Duration;

use kube::Api;
use serde_json::Value;
use tokio::process::Command;
use vendue_crds::conditions::{self, job as types, reasons};
use vendue_crds::{ComputeJob, UsageStatus};

use crate::command::run;
use crate::deploy::{Deployment, Follower, Report, Site};
use crate::error::{Error, IoContext as _, Result};
use crate::progress::Progress;
use crate::wait::{self, Poll};

/// Namespace of the example Job.
pub const NAMESPACE: &str = "default";
/// Name of the example Job and of its ConfigMap.
pub const JOB: &str = "digits";

/// Longest wait for the last receipts: windows are ten seconds long.
const RECEIPTS: Duration = Duration::from_secs(40);

/// Digits of an order's digest in the name of a Bid.
const BID_DIGITS: usize = 12;

/// Runs the Job and returns what was measured.
pub async fn run_job(deployment: &Deployment, progress: &Progress) -> Result<Report> {
    let home = deployment.home();
    remove_earlier(deployment).await?;
    let manifest = deployment.job_manifest()?;
    progress.say("$ kubectl apply -f manifests/examples/train-digits.yaml");
    let mut follower = Follower::new(home.client.clone(), NAMESPACE, JOB);
    home.apply(NAMESPACE, &manifest).await?;
    let finished = follower.until_true(types::FINISHED, deployment.job_limit(), progress);
    let job = deployment.unless_unpullable(finished).await?;
    let status = job.status.clone().unwrap_or_default();
    let finished = conditions::find(&status.conditions, types::FINISHED);
    if finished.is_none_or(|c| c.reason != reasons::SUCCEEDED) {
        return Err(Error::Invalid(format!("the Job did not succeed: {}", crate::deploy::describe(&job))));
    }
    let at = |step: &str| follower.reached().get(step).copied().unwrap_or_default();
    let award = status.award.clone().unwrap_or_default();
    progress.say(format!("{} won at {} per GPU-hour", award.provider, award.price.0));
    let order = status.auction.and_then(|a| a.order_digest).unwrap_or_default();
    say_bids(deployment, &order, progress).await?;
    Ok(Report {
        award: at(types::AWARDED),
        provisioned: at(types::PROVISIONED),
        running: at(types::RUNNING),
        finished: at(types::FINISHED),
        clusters_ready: deployment.clusters_ready,
        charts_ready: deployment.charts_ready,
        total: progress.elapsed().as_secs_f64(),
        winner: award.provider,
        price: award.price.0,
        accuracy: 0.0,
        certificate_verified: false,
    })
}

/// Reads logs, downloads the outputs and verifies the award, as the user would; fills the rest of the report.
pub async fn look_at_results(
    deployment: &Deployment,
    report: &mut Report,
    progress: &Progress,
) -> Result<()> {
    let logs = vendue(deployment, progress, &["logs", "job/digits", "--tail", "5"]).await?;
    for line in logs.lines() {
        progress.say(format!("  | {line}"));
    }
    let dir = tempfile::tempdir().io("create folder in", std::env::temp_dir())?;
    let to = dir.path().display().to_string();
    vendue(deployment, progress, &["outputs", "job/digits", "--to", &to]).await?;
    report.accuracy = accuracy(dir.path())?;
    progress.say(format!("  accuracy of the downloaded model: {:.4}", report.accuracy));
    let record = deployment.deal.record().display().to_string();
    let verdict = vendue(deployment, progress, &["verify", "job/digits", "--market", &record]).await?;
    for line in verdict.lines() {
        progress.say(format!("  | {line}"));
    }
    report.certificate_verified = true;
    let usage = complete_usage(deployment).await?;
    progress.say(format!(
        "{} GPUs for {} s used {} J and cost {}, as the receipts of their nodes say",
        usage.gpus, usage.seconds, usage.energy_joules, usage.cost.0
    ));
    let receipts = vendue(deployment, progress, &["receipts", "job/digits", "--wait", "60"]).await?;
    for line in receipts.lines() {
        progress.say(format!("  | {line}"));
    }
    Ok(())
}

/// What was used, once the last receipts are in.
async fn complete_usage(deployment: &Deployment) -> Result<UsageStatus> {
    let jobs: Api<ComputeJob> = Api::namespaced(deployment.home().client.clone(), NAMESPACE);
    let jobs = &jobs;
    wait::until("the receipts of the whole run", RECEIPTS, Duration::from_secs(1), || async move {
        let job = jobs.get(JOB).await.map_err(|e| Error::Invalid(format!("read the Job: {e}")))?;
        let usage = job.status.and_then(|status| status.usage).unwrap_or_default();
        Ok(if usage.complete { Poll::Ready(usage) } else { Poll::Pending(format!("{usage:?}")) })
    })
    .await
}

async fn remove_earlier(deployment: &Deployment) -> Result<()> {
    let tools = &deployment.home().tools;
    let args = [
        "delete",
        "jobs.vendue.dev",
        JOB,
        "--namespace",
        NAMESPACE,
        "--ignore-not-found",
        "--timeout",
        "90s",
    ];
    tools.kubectl(&args).await.map(|_| ())
}

/// Each provider's own view of the round: what it bid for this order, what became of it.
async fn say_bids(deployment: &Deployment, order: &str, progress: &Progress) -> Result<()> {
    for site in deployment.providers() {
        let table =
            site.tools.kubectl(&["get", "bids.vendue.dev", "--all-namespaces", "--no-headers"]).await?;
        match bid_for(&table, order) {
            Some(line) => progress.say(format!("  bid of {:<8} {line}", site.name)),
            None => progress.say(format!("  bid of {:<8} none: nothing of it fits", site.name)),
        }
    }
    Ok(())
}

/// The line of a table of Bids that is about an order: a Bid's name ends with the beginning of the order's digest.
fn bid_for<'a>(table: &'a str, order: &str) -> Option<&'a str> {
    let begin = order.get(..BID_DIGITS)?;
    table.lines().find(|line| line.split_whitespace().nth(1).is_some_and(|name| name.ends_with(begin)))
}

async fn vendue(deployment: &Deployment, progress: &Progress, args: &[&str]) -> Result<String> {
    progress.say(format!("$ kubectl vendue {}", args.join(" ")));
    let tools = &deployment.home().tools;
    let mut command = Command::new(deployment.programs.join("kubectl-vendue"));
    command.arg("--kubeconfig").arg(&tools.kubeconfig).arg("--namespace").arg(NAMESPACE);
    if !tools.context.is_empty() {
        command.arg("--context").arg(&tools.context);
    }
    command.args(args);
    run("kubectl vendue", Duration::from_secs(120), command).await
}

fn accuracy(dir: &Path) -> Result<f64> {
    let path = dir.join("metrics.json");
    let text = std::fs::read_to_string(&path).io("read", &path)?;
    let value: Value =
        serde_json::from_str(&text).map_err(|e| Error::Invalid(format!("{}: {e}", path.display())))?;
    value["accuracy"].as_f64().ok_or_else(|| Error::Invalid(format!("{} has no accuracy", path.display())))
}

/// What to type to look around in a market that is left running.
pub fn look_around(deployment: &Deployment) -> String {
    let home = &deployment.home().tools;
    let context = |site: Option<&Site>| {
        site.map(|s| if s.tools.context.is_empty() { &s.name } else { &s.tools.context })
            .cloned()
            .unwrap_or_default()
    };
    let (user, provider) = (
        context(Some(deployment.home())),
        context(deployment.providers().nth(1).or(deployment.providers().next())),
    );
    let mut text = format!(
        "the market is left running; look around with\n  export KUBECONFIG={}\n  export PATH={}:{}:$PATH\n",
        deployment.market.kubeconfig().unwrap_or_else(|| home.kubeconfig.clone()).display(),
        home.kubectl.parent().unwrap_or(Path::new("/")).display(),
        deployment.programs.display(),
    );
    text.push_str(&format!("  kubectl --context {user} get jobs.vendue.dev\n"));
    text.push_str(&format!("  kubectl --context {provider} get provisions,bids,awards,gpunodes -A\n"));
    text.push_str(&format!("  kubectl vendue --context {user} doctor\n"));
    text.push_str(&match deployment.market.is_own() {
        true => format!("stop it with\n  cargo testbed down --market {}\n", deployment.market.name()),
        false => "take it off the clusters with the same command and --remove instead of --keep\n".to_owned(),
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bid_for_an_earlier_job_is_not_taken_for_this_ones() {
        let table = "vendue-system   26-2ec9e96eb6c7   26   1.80   Won    bravo   1.80   48s\n\
                     vendue-system   31-77aa00112233   31   2.40   Lost   bravo   1.80   9s\n";
        let digest = |begin: &str| format!("{begin}{}", "0".repeat(52));
        assert!(bid_for(table, &digest("2ec9e96eb6c7")).is_some_and(|l| l.contains("Won")));
        assert!(bid_for(table, &digest("77aa00112233")).is_some_and(|l| l.contains("Lost")));
        assert_eq!(bid_for(table, &digest("ffffffffffff")), None);
        assert_eq!(bid_for(table, ""), None);
    }
}
