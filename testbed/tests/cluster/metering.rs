//! Usage and cost: what receipts of the nodes say, and nothing else.

use std::path::PathBuf;

use kube::Api;
use kube::api::{DeleteParams, ListParams};
use vendue_crds::conditions::{self, gpu_node, job as types, reasons};
use vendue_crds::{ComputeJob, GpuNode, UsageStatus};
use vendue_testbed::deploy::NAMESPACE;

use crate::env::{Env, Failure, Process, Scenario, check, condition};
use crate::faults::{kill, pod_name, tell, until_told};
use crate::jobs::job;

/// A Job runs while its winner's controller is replaced and the agents are killed: what it used is told again, counted once,
/// and complete at the end.
pub async fn usage_is_what_receipts_say(env: &Env) -> Scenario {
    let ns = env.namespace("receipts").await?;
    env.home().apply(&ns, &job("metered", &until_told()).manifest()).await?;
    let (site, award) = env.host_award(60).await?;
    let host_ns = award.metadata.namespace.unwrap_or_default();
    let accrues = |usage: &UsageStatus| usage.seconds > 0 && usage.energy_joules > 0;
    usage_until(env, &ns, "the first receipts count", 90, accrues).await?;

    // Its receipts go with the Pod; the agents have them still.
    let pods = env.pods(&site, NAMESPACE);
    let controller = pod_name(env, &site, "vendue-controller").await?;
    pods.delete(&controller, &DeleteParams::default()).await?;
    kill(env, &site, "vendue-gpu-agent").await?;
    let before = usage_until(env, &ns, "usage is still there", 5, accrues).await?;
    usage_until(env, &ns, "usage goes on", 90, |usage| usage.seconds >= before.seconds + 20).await?;
    tell(env, &site, &host_ns).await?;
    let job = env.finished(&ns, "metered", 60).await?;
    let finished = condition(&job, types::FINISHED)?;
    check(finished.reason == reasons::SUCCEEDED, || format!("{}: {}", finished.reason, finished.message))?;
    let usage = usage_until(env, &ns, "the last receipts are in", 60, |usage| usage.complete).await?;
    adds_up(&job, &usage)?;
    signed_by_its_nodes(env, &site, &usage).await?;
    offline(env, &ns, &usage).await?;
    let refused = env.metric(&site, Process::Controller, "receipts_total{result=\"refused\"}").await?;
    check(refused == 0.0, || format!("{refused} receipts were refused"))?;
    env.delete_job(&ns, "metered", 30).await?;
    env.nothing_left(60).await
}

async fn usage_until(
    env: &Env,
    ns: &str,
    what: &str,
    seconds: u64,
    is: impl Fn(&UsageStatus) -> bool,
) -> Result<UsageStatus, Failure> {
    let is = &is;
    let job = env
        .job_until(ns, "metered", what, seconds, |job| {
            job.status.as_ref().and_then(|s| s.usage.as_ref()).is_some_and(is)
        })
        .await?;
    Ok(job.status.and_then(|s| s.usage).unwrap_or_default())
}

/// Seconds are those of the run but for the gap of the agent's restart, and the cost is that of the GPU time.
fn adds_up(job: &ComputeJob, usage: &UsageStatus) -> Scenario {
    let text = || format!("{usage:?}");
    check(usage.gpus == 1 && (usage.gpu_seconds - usage.seconds).abs() <= 1, text)?;
    check(usage.receipts.iter().all(|r| r.records > 2 && r.head.is_some()), text)?;
    let price: f64 = job.status.as_ref().and_then(|s| s.award.as_ref()).ok_or("no award")?.price.0.parse()?;
    let (cost, expected): (f64, f64) = (usage.cost.0.parse()?, price * usage.gpu_seconds as f64 / 3600.0);
    // A second less a bit, and rounding to millionths.
    let second = price / 3600.0;
    check(cost >= expected - 1e-5 && cost <= expected + second + 1e-5, || format!("{expected}: {usage:?}"))?;
    // A card draws some tens of watts at least, and none of them a kilowatt.
    let watts = usage.energy_joules as f64 / usage.gpu_seconds.max(1) as f64;
    check((10.0..1_000.0).contains(&watts), || format!("{watts} W: {usage:?}"))
}

/// The receipts come home, agree with the status, and verify without a cluster; one changed digit is found.
async fn offline(env: &Env, ns: &str, usage: &UsageStatus) -> Scenario {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("receipts.json");
    let path = file.display().to_string();
    let args = ["receipts", "-n", ns, "job/metered", "--wait", "90", "--save", &path];
    let ran = env.vendue(&args).await?;
    check(ran.code == 0 && ran.stdout.contains(&usage.cost.0), || {
        format!("{} is not in {ran:?}", usage.cost.0)
    })?;
    let nowhere = PathBuf::from("/nonexistent");
    let verify = ["receipts", "--verify", &path];
    let ran = env.vendue_as(&nowhere, &verify).await?;
    check(ran.code == 0, || format!("{ran:?}"))?;
    let text = std::fs::read_to_string(&file)?;
    let changed = text.replacen("\"wall_ns\":1", "\"wall_ns\":2", 1);
    check(changed != text, || format!("no window in {text:.400}"))?;
    std::fs::write(&file, changed)?;
    let ran = env.vendue_as(&nowhere, &verify).await?;
    check(ran.code == 1 && ran.stderr.contains("not verified"), || format!("{ran:?}"))
}

/// The keys in the usage are those that the nodes show, and the nodes say that they are metered.
async fn signed_by_its_nodes(env: &Env, site: &str, usage: &UsageStatus) -> Scenario {
    let nodes = Api::<GpuNode>::all(env.site(site).client.clone()).list(&ListParams::default()).await?;
    for receipts in &usage.receipts {
        let node = nodes.items.iter().find(|n| n.metadata.name.as_ref() == Some(&receipts.node));
        let status = node.and_then(|n| n.status.clone()).ok_or("no GpuNode of the receipts' node")?;
        check(status.public_key == receipts.public_key && status.public_key.is_some(), || {
            format!("{:?} is not the key of {receipts:?}", status.public_key)
        })?;
        check(conditions::is_true(&status.conditions, gpu_node::METERED), || {
            format!("{:?}", status.conditions)
        })?;
    }
    Ok(())
}
