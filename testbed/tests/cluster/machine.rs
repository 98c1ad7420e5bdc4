//! Faults of the machines themselves: a full disk, a lost GPU, a clock that is off.

use std::time::Duration;

use kube::Api;
use kube::api::ListParams;
use serde_json::json;
use vendue_crds::conditions::{self, gpu_node, job as types, reasons};
use vendue_crds::{GpuHealth, GpuNode, Provision};
use vendue_testbed::deploy::{NAMESPACE, Site};
use vendue_testbed::wait::{self, Poll};

use crate::env::{Env, Failure, Process, Scenario, check, condition};
use crate::faults::{counts_on, host_finished, tell, undisturbed, until_told};
use crate::jobs::job;

const LOOK: Duration = Duration::from_millis(500);
/// Longer than a round and its awards matter (14 s), so that whatever the others say is over when it comes.
const CLOCK_OFF: i32 = 20;

/// Undoes what a scenario that failed left: GPUs come back, clocks are right.
pub async fn mend(site: &Site) {
    for index in 0..4 {
        // Clusters have fewer GPUs, or none.
        let _ = site.cluster.return_gpu(&index.to_string()).await;
    }
    let seat = ["get", "deployment", "vendue-auction", "-n", NAMESPACE, "-o", "yaml"];
    if site.tools.kubectl(&seat).await.is_ok_and(|text| text.contains("VENDUE_CLOCK_SHIFT_MS")) {
        let _ = site.cluster.shift_clock(0).await;
    }
}

/// Home's disk is full when the outputs arrive: they are sent later, nothing is lost, and they are whole when there is
/// room again.
pub async fn full_disk_delays_outputs(env: &Env) -> Scenario {
    let ns = env.namespace("disk").await?;
    let script =
        "open('/vendue/outputs/model.bin', 'wb').write(bytes(3_000_000))\nprint('written', flush=True)\n";
    env.home().cluster.fill_disk()?;
    let applied = env.home().apply(&ns, &job("saver", script).manifest()).await;
    let delayed = delayed(env, &ns).await;
    env.home().cluster.empty_disk()?;
    applied?;
    delayed?;
    let job = env.finished(&ns, "saver", 120).await?;
    let finished = condition(&job, types::FINISHED)?;
    check(finished.reason == reasons::SUCCEEDED, || format!("{}: {}", finished.reason, finished.message))?;
    let dir = tempfile::tempdir()?;
    let to = dir.path().display().to_string();
    let args = ["outputs", "-n", &ns, "job/saver", "--to", &to];
    wait::until("the outputs come home", Duration::from_secs(60), LOOK, || async {
        Ok(match env.vendue(&args).await {
            Ok(ran) if ran.code == 0 => Poll::Ready(()),
            Ok(ran) => Poll::Pending(ran.stderr),
            Err(error) => Poll::Pending(error.to_string()),
        })
    })
    .await?;
    let size = std::fs::metadata(dir.path().join("model.bin"))?.len();
    check(size == 3_000_000, || format!("model.bin has {size} bytes"))?;
    env.delete_job(&ns, "saver", 30).await?;
    env.nothing_left(60).await
}

/// The run ends on its host, which tries to deliver and is told why it cannot; the Job waits for its outputs.
async fn delayed(env: &Env, ns: &str) -> Scenario {
    let (site, award) = env.host_award(60).await?;
    host_finished(env, &site, &award.metadata.namespace.unwrap_or_default()).await?;
    let args = ["logs", "-n", NAMESPACE, "deployment/vendue-auction", "--since=5m"];
    let tools = &env.site(&site).tools;
    wait::until("the host is told that home has no room", Duration::from_secs(60), LOOK, || async move {
        let log = tools.kubectl(&args).await?;
        let told =
            log.lines().any(|l| l.contains("not delivered yet") && l.contains("No space left on device"));
        Ok(if told { Poll::Ready(()) } else { Poll::Pending(log.lines().last().unwrap_or_default().into()) })
    })
    .await?;
    let ran = env.vendue(&["outputs", "-n", ns, "job/saver", "--wait", "0"]).await?;
    check(ran.code != 0 && !ran.stderr.is_empty(), || {
        format!("outputs that are not there are listed: {ran:?}")
    })
}

/// A GPU is lost while a Job runs on it: the agent names it, nothing of that node is sold until it is back, and the run
/// itself, which still has what it had, is left alone.
pub async fn lost_gpu_is_not_sold(env: &Env) -> Scenario {
    let ns = env.namespace("gpu").await?;
    let wants =
        |name: &str, script: &str| job(name, script).with("/train/workers/gpuModels", json!(["A100"]));
    env.home().apply(&ns, &wants("steady", &until_told()).manifest()).await?;
    env.condition_true(&ns, "steady", types::RUNNING, 120).await?;
    let (site, award) = env.host_award(10).await?;
    let host_ns = award.metadata.namespace.unwrap_or_default();
    let device = device_of(env, &site, &host_ns).await?;
    env.site(&site).cluster.lose_gpu(&device).await?;
    let seen = unsold(env, &site, &ns, &device, &wants("next", "print('served')")).await;
    // The run goes on without its device, and only then is it told to end.
    let counted = counts_on(env, &ns, "steady").await;
    env.site(&site).cluster.return_gpu(&device).await?;
    seen?;
    counted?;
    env.condition_true(&ns, "next", types::AWARDED, 60).await?;
    env.delete_job(&ns, "next", 30).await?;
    tell(env, &site, &host_ns).await?;
    undisturbed(env, &ns, "steady", 3).await
}

/// The agent reports the device, the Provision has nothing free, and an order finds nobody.
async fn unsold(env: &Env, site: &str, ns: &str, device: &str, next: &crate::jobs::Job) -> Scenario {
    let nodes: Api<GpuNode> = Api::all(env.site(site).client.clone());
    wait::until("the agent reports the lost GPU", Duration::from_secs(45), LOOK, || async {
        let list = nodes.list(&ListParams::default()).await;
        let found = list.map(|l| l.items).unwrap_or_default().into_iter().filter_map(|n| n.status).next();
        let Some(status) = found else { return Ok(Poll::Pending("no status".into())) };
        let ready = conditions::find(&status.conditions, gpu_node::READY);
        let failed = status.devices.iter().any(|d| d.uuid == device && d.health == GpuHealth::Failed);
        Ok(match ready {
            Some(c) if failed && c.reason == "DeviceLost" && c.message.contains(device) => Poll::Ready(()),
            Some(c) => Poll::Pending(format!("{}: {}", c.reason, c.message)),
            None => Poll::Pending("no condition".into()),
        })
    })
    .await?;
    let provisions: Api<Provision> = Api::all(env.site(site).client.clone());
    wait::until("the Provision has nothing free", Duration::from_secs(30), LOOK, || async {
        let list = provisions.list(&ListParams::default()).await.map(|l| l.items).unwrap_or_default();
        let free: i32 = list.into_iter().filter_map(|p| p.status).map(|s| s.free_gpus).sum();
        Ok(if free == 0 { Poll::Ready(()) } else { Poll::Pending(format!("{free} GPUs are free")) })
    })
    .await?;
    env.home().apply(ns, &next.manifest()).await?;
    env.job_until(ns, "next", "finds nobody", 20, |job| {
        let conditions = job.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
        conditions::find(conditions, types::AWARDED).is_some_and(|c| c.reason == reasons::NO_FEASIBLE_BID)
    })
    .await
    .map(drop)
}

/// The GPU that the award's worker holds.
async fn device_of(env: &Env, site: &str, ns: &str) -> Result<String, Failure> {
    let list = ListParams::default().labels("vendue.dev/role=worker");
    let workers = env.pods(site, ns).list(&list).await?;
    let name = workers.items.into_iter().find_map(|p| p.metadata.name).ok_or("the award has no worker")?;
    let args = ["exec", "-n", ns, &name, "--", "printenv", "NVIDIA_VISIBLE_DEVICES"];
    let device = env.site(site).tools.kubectl(&args).await?.trim().to_owned();
    check(device.starts_with("GPU-"), || format!("the worker holds {device:?}"))?;
    Ok(device)
}

/// The clock of the cheapest seat is far ahead: by it, what the others send comes too late and is dropped, and
/// its own bid is not among those that they open; they decide without it. With its clock right, it wins again.
pub async fn seat_with_a_wrong_clock_is_left_out(env: &Env) -> Scenario {
    let ns = env.namespace("clock").await?;
    let wants = |name: &str| {
        let two = job(name, "print('ran', flush=True)").with("/train/workers/replicas", json!(2));
        two.with("/train/workers/gpuModels", json!(["A100", "H100"]))
    };
    let bravo = &env.site("bravo").cluster;
    bravo.shift_clock(CLOCK_OFF).await?;
    let decided = decided_without(env, &ns, &wants("without")).await;
    bravo.shift_clock(0).await?;
    decided?;
    env.delete_job(&ns, "without", 60).await?;
    env.nothing_left(60).await?;
    back_in_the_market(env).await?;
    env.home().apply(&ns, &wants("with").manifest()).await?;
    let winner = winner(env, &ns, "with").await?;
    check(winner == "bravo", || format!("{winner} won although bravo is cheaper and back"))?;
    env.delete_job(&ns, "with", 60).await?;
    env.nothing_left(60).await
}

/// Who is to serve a Job, as soon as that is certified: what it does there is none of this scenario's business.
async fn winner(env: &Env, ns: &str, name: &str) -> Result<String, Failure> {
    let job = env.condition_true(ns, name, types::AWARDED, 60).await?;
    Ok(job.status.and_then(|s| s.award).unwrap_or_default().provider)
}

async fn decided_without(env: &Env, ns: &str, wants: &crate::jobs::Job) -> Scenario {
    // Any seat that was restarted looks on for a while; it is the clock that must keep this one out.
    takes_part(env, "bravo").await?;
    env.home().apply(ns, &wants.manifest()).await?;
    let winner = winner(env, ns, &wants.name).await?;
    check(winner == "alpha", || format!("{winner} won; bravo's bid cannot count"))?;
    let over = "messages_dropped_total{reason=\"wrong_round\"}";
    let over = env.metric("bravo", Process::Auction, over).await?;
    check(over > 0.0, || format!("bravo dropped {over} messages of rounds that are over"))
}

/// Waits until a seat takes part in rounds again after its restart.
pub async fn takes_part(env: &Env, site: &str) -> Scenario {
    wait::until(&format!("the seat of {site} takes part"), Duration::from_secs(90), LOOK, || async {
        Ok(match env.metric(site, Process::Auction, "seat_active").await {
            Ok(1.0) => Poll::Ready(()),
            Ok(seen) => Poll::Pending(format!("seat_active is {seen}")),
            Err(error) => Poll::Pending(error.to_string()),
        })
    })
    .await?;
    Ok(())
}

/// Waits until bravo's seat takes part and its Provision is advertised.
async fn back_in_the_market(env: &Env) -> Scenario {
    let site = env.site("bravo");
    takes_part(env, "bravo").await?;
    let provisions: Api<Provision> = Api::all(site.client.clone());
    wait::until("bravo bids again", Duration::from_secs(60), LOOK, || async {
        let list = provisions.list(&ListParams::default()).await.map(|l| l.items).unwrap_or_default();
        let advertised = list
            .iter()
            .filter_map(|p| p.status.as_ref())
            .any(|s| conditions::is_true(&s.conditions, conditions::provision::ADVERTISED));
        Ok(if advertised { Poll::Ready(()) } else { Poll::Pending("not advertised".into()) })
    })
    .await?;
    Ok(())
}
