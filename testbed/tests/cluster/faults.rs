//! Faults in the middle of things: processes die, clusters are cut off, capacity goes to somebody else.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::json;
use vendue_crds::conditions::{self, award as award_types, job as types, reasons};
use vendue_crds::{Award, ComputeJob};
use vendue_testbed::deploy::NAMESPACE;
use vendue_testbed::wait::{self, Poll};

use crate::env::{Env, Failure, Process, Scenario, check, condition};
use crate::jobs::{IMAGE, job};

const LOOK: Duration = Duration::from_millis(100);

/// Counts, one line a second, so that a gap or a restart shows in the log, which ends with how far it came.
pub fn counter(seconds: u32) -> String {
    format!(
        "import time\nfor i in range({seconds}):\n    print('tick', i, flush=True)\n    time.sleep(1)\n\
         print('counted {seconds}', flush=True)\n"
    )
}

/// Counts like [`counter`] until [`tell`] says that it is enough.
pub fn until_told() -> String {
    format!(
        "import os, time\ni = 0\nwhile not os.path.exists('{TOLD}'):\n    print('tick', i, flush=True)\n    i += 1\n    \
         time.sleep(1)\nprint('counted', i, flush=True)\n"
    )
}

/// On the award's volume, where every Pod of it sees it.
const TOLD: &str = "/vendue/checkpoints/told";

/// Ends the run of an award that counts [`until_told`].
pub async fn tell(env: &Env, site: &str, host_ns: &str) -> Scenario {
    let list = ListParams::default().labels("vendue.dev/role=worker");
    let workers = env.pods(site, host_ns).list(&list).await?;
    let name = workers.items.into_iter().find_map(|p| p.metadata.name).ok_or("the award has no worker")?;
    env.site(site).tools.kubectl(&["exec", "-n", host_ns, &name, "--", "touch", TOLD]).await?;
    Ok(())
}

/// Waits until a run that counts has counted further than now.
pub async fn counts_on(env: &Env, ns: &str, job: &str) -> Scenario {
    let logs = env.vendue(&["logs", "-n", ns, &format!("job/{job}")]).await?;
    let next = logs.stdout.matches("tick ").count() + 1;
    log_until(env, ns, job, &format!("tick {next}"), 30).await
}

/// Waits until the Job's log contains `text`.
pub async fn log_until(env: &Env, ns: &str, job: &str, text: &str, seconds: u64) -> Scenario {
    let target = format!("job/{job}");
    let args = ["logs", "-n", ns, target.as_str()];
    let args = &args;
    wait::until(
        &format!("{text:?} in the log of {ns}/{job}"),
        Duration::from_secs(seconds),
        Duration::from_secs(1),
        || async move {
            match env.vendue(args).await {
                Ok(ran) if ran.stdout.contains(text) => Ok(Poll::Ready(())),
                Ok(ran) => Ok(Poll::Pending(format!("{} {}", ran.stdout, ran.stderr))),
                Err(error) => Ok(Poll::Pending(error.to_string())),
            }
        },
    )
    .await?;
    Ok(())
}

/// Kills every process of Vendue on the cluster whose Pod's name begins with `deployment`.
pub async fn kill(env: &Env, site: &str, deployment: &str) -> Scenario {
    let pods = env.pods(site, NAMESPACE).list(&ListParams::default()).await?;
    let names = pods.items.into_iter().filter_map(|p| p.metadata.name).filter(|n| n.starts_with(deployment));
    let mut killed = 0;
    for name in names {
        killed += env.site(site).cluster.kill_pod(NAMESPACE, &name).await?;
    }
    check(killed > 0, || format!("no process of {deployment} on {site} was killed"))
}

/// The run went through in one piece, and nothing is left of it.
pub async fn undisturbed(env: &Env, ns: &str, name: &str, at_least: usize) -> Scenario {
    in_one_piece(env, ns, name, at_least).await?;
    env.delete_job(ns, name, 30).await?;
    env.nothing_left(60).await
}

/// The run went through in one piece, and every line of its count, at least so many, is in the log.
pub async fn in_one_piece(env: &Env, ns: &str, name: &str, at_least: usize) -> Scenario {
    let job = env.finished(ns, name, 200).await?;
    let finished = condition(&job, types::FINISHED)?;
    check(finished.reason == reasons::SUCCEEDED, || format!("{}: {}", finished.reason, finished.message))?;
    let restarts = job.status.and_then(|s| s.usage).map(|u| u.restarts).unwrap_or_default();
    check(restarts == 0, || format!("the run was restarted {restarts} times"))?;
    let logs = env.vendue(&["logs", "-n", ns, &format!("job/{name}")]).await?;
    let ticks = logs.stdout.lines().filter(|l| l.contains("tick ")).count();
    let counted = logs.stdout.lines().find_map(|l| l.split_once("counted ")?.1.trim().parse::<usize>().ok());
    check(counted == Some(ticks) && ticks >= at_least, || {
        format!("{ticks} lines of {counted:?}, at least {at_least}, are in the log: {logs:?}")
    })
}

/// The winner's controller is killed while it makes the Ray cluster: it goes on where it was, and nothing is made or
/// submitted twice.
pub async fn controller_dies_while_provisioning(env: &Env) -> Scenario {
    let ns = env.namespace("ctl-early").await?;
    env.home().apply(&ns, &job("early", "print('ran once', flush=True)").manifest()).await?;
    let (site, award) = env.host_award(30).await?;
    let host_ns = award.metadata.namespace.unwrap_or_default();
    let pods = env.pods(&site, &host_ns);
    let making = wait::until("the winner makes Pods", Duration::from_secs(30), LOOK, || async {
        let made = pods.list(&ListParams::default()).await.map(|l| l.items.len()).unwrap_or_default();
        Ok(if made > 0 { Poll::Ready(()) } else { Poll::Pending("none yet".into()) })
    });
    making.await?;
    kill(env, &site, "vendue-controller").await?;
    let at_kill = Api::<Award>::namespaced(env.site(&site).client.clone(), &host_ns).get("award").await?;
    let conditions = at_kill.status.map(|s| s.conditions).unwrap_or_default();
    check(!conditions::is_true(&conditions, award_types::PROVISIONED), || {
        "the kill came after provisioning: this scenario has shown nothing".into()
    })?;
    let job = env.finished(&ns, "early", 180).await?;
    let finished = condition(&job, types::FINISHED)?;
    check(finished.reason == reasons::SUCCEEDED, || format!("{}: {}", finished.reason, finished.message))?;
    let restarts = job.status.and_then(|s| s.usage).map(|u| u.restarts).unwrap_or_default();
    check(restarts == 0, || format!("the run was restarted {restarts} times"))?;
    let logs = env.vendue(&["logs", "-n", &ns, "job/early"]).await?;
    check(logs.stdout.matches("ran once").count() == 1, || format!("not run once: {logs:?}"))?;
    env.delete_job(&ns, "early", 30).await?;
    env.nothing_left(60).await
}

/// The winner's controller and auction processes and home's controller are killed while the Job trains: it goes on,
/// status catches up.
pub async fn control_planes_die_during_the_run(env: &Env) -> Scenario {
    let ns = env.namespace("ctl-dies").await?;
    env.home().apply(&ns, &job("steady", &counter(30)).manifest()).await?;
    env.condition_true(&ns, "steady", types::RUNNING, 120).await?;
    let (site, _) = env.host_award(10).await?;
    kill(env, &site, "vendue-controller").await?;
    kill(env, &site, "vendue-auction").await?;
    kill(env, "home", "vendue-controller").await?;
    undisturbed(env, &ns, "steady", 30).await
}

/// Home is cut off from everybody for a while: training goes on, status catches up.
pub async fn home_is_cut_off(env: &Env) -> Scenario {
    let ns = env.namespace("cut").await?;
    env.home().apply(&ns, &job("alone", &counter(60)).manifest()).await?;
    env.condition_true(&ns, "alone", types::RUNNING, 120).await?;
    let (site, award) = env.host_award(10).await?;
    let host_ns = award.metadata.namespace.unwrap_or_default();
    env.deployment.cut("home").await?;
    let finished = host_finished(env, &site, &host_ns).await;
    env.deployment.heal("home").await?;
    finished?;
    undisturbed(env, &ns, "alone", 60).await
}

/// Waits until the host says that the workload ended; home cannot know yet.
pub async fn host_finished(env: &Env, site: &str, ns: &str) -> Scenario {
    let awards: Api<Award> = Api::namespaced(env.site(site).client.clone(), ns);
    wait::until(
        "the workload ends on its host",
        Duration::from_secs(150),
        Duration::from_millis(500),
        || {
            let awards = awards.clone();
            async move {
                Ok(match awards.get("award").await {
                    Ok(a)
                        if a.status
                            .as_ref()
                            .is_some_and(|s| conditions::is_true(&s.conditions, award_types::FINISHED)) =>
                    {
                        Poll::Ready(())
                    }
                    Ok(_) => Poll::Pending("it still runs".into()),
                    Err(error) => Poll::Pending(error.to_string()),
                })
            }
        },
    )
    .await?;
    Ok(())
}

/// Workloads that the providers' controllers gave to Ray since they started, whoever won.
pub async fn submissions(env: &Env) -> Result<f64, Failure> {
    env.of_all_providers(Process::Controller, "ray_submit_total{result=\"new\"}").await
}

/// Fails unless one workload was given to Ray since `before`: home shows the log of one provider only.
pub async fn submitted_once(env: &Env, before: f64) -> Scenario {
    let now = submissions(env).await?;
    check(now == before + 1.0, || format!("{} workloads were started, not one", now - before))
}

/// A Job that bravo serves for the least, and alpha otherwise.
fn second() -> crate::jobs::Job {
    job("second", "print('ran once', flush=True)")
        .with("/train/workers/replicas", json!(2))
        .with("/train/workers/gpuModels", json!(["A100", "H100"]))
}

/// The stand-by ran the workload, nobody else did, and nothing is left of it.
async fn stand_by_served(env: &Env, ns: &str, job: ComputeJob, before: f64) -> Scenario {
    let award = job.status.and_then(|s| s.award).unwrap_or_default();
    check(award.provider == "alpha", || format!("{} served the Job; the stand-by is alpha", award.provider))?;
    let logs = env.vendue(&["logs", "-n", ns, "job/second"]).await?;
    check(logs.stdout.matches("ran once").count() == 1, || {
        format!("the workload ran more or less than once: {logs:?}")
    })?;
    submitted_once(env, before).await?;
    env.delete_job(ns, "second", 30).await?;
    env.nothing_left(60).await?;
    // Nor when whoever came back late had the time to.
    submitted_once(env, before).await
}

/// A local Pod takes the winner's GPUs after its capacity was reported: the winner refuses, the first stand-by serves
/// the Job without a new round, and the workload runs once.
pub async fn refusal_promotes_the_stand_by(env: &Env) -> Scenario {
    let ns = env.namespace("refuse").await?;
    let before = submissions(env).await?;
    // bravo is the cheapest for two GPUs of these models; its controller does not see what happens now.
    let controller = pod_name(env, "bravo", "vendue-controller").await?;
    env.site("bravo").cluster.freeze_pod(NAMESPACE, &controller).await?;
    let taken = take_gpus(env, "bravo", 4).await;
    let wants = second();
    let applied = env.home().apply(&ns, &wants.manifest()).await;
    let bid = reserved(env, "bravo").await;
    env.site("bravo").cluster.thaw_pod(NAMESPACE, &controller).await?;
    taken?;
    applied?;
    bid?;
    let job = env.finished(&ns, "second", 180).await;
    release_gpus(env, "bravo").await?;
    let job = job?;
    stand_by_served(env, &ns, job, before).await
}

/// The winner's controller says nothing: the first stand-by serves the Job, also when the winner comes back later.
pub async fn silence_promotes_the_stand_by(env: &Env) -> Scenario {
    let ns = env.namespace("silence").await?;
    let before = submissions(env).await?;
    let controller = pod_name(env, "bravo", "vendue-controller").await?;
    env.site("bravo").cluster.freeze_pod(NAMESPACE, &controller).await?;
    let wants = second();
    let applied = env.home().apply(&ns, &wants.manifest()).await;
    let awarded = env.condition_true(&ns, "second", types::AWARDED, 30).await;
    env.site("bravo").cluster.thaw_pod(NAMESPACE, &controller).await?;
    applied?;
    awarded?;
    let job = env.finished(&ns, "second", 180).await?;
    stand_by_served(env, &ns, job, before).await
}

pub async fn pod_name(env: &Env, site: &str, prefix: &str) -> Result<String, Failure> {
    let pods = env.pods(site, NAMESPACE).list(&ListParams::default()).await?;
    pods.items
        .into_iter()
        .filter_map(|p| p.metadata.name)
        .find(|n| n.starts_with(prefix))
        .ok_or_else(|| format!("no Pod {prefix} on {site}").into())
}

/// A Pod of the provider's own that holds GPUs.
pub async fn take_gpus(env: &Env, site: &str, gpus: u32) -> Scenario {
    let pods: Api<Pod> = env.pods(site, "default");
    let pod: Pod = serde_json::from_value(json!({
        "metadata": { "name": "local-work" },
        "spec": { "terminationGracePeriodSeconds": 0, "containers": [{
            "name": "work", "image": IMAGE, "command": ["sleep", "3600"],
            "resources": { "limits": { "nvidia.com/gpu": gpus.to_string() } } }] },
    }))?;
    pods.create(&PostParams::default(), &pod).await?;
    wait::until("the local Pod runs", Duration::from_secs(30), Duration::from_millis(200), || {
        let pods = pods.clone();
        async move {
            let phase = pods.get("local-work").await.ok().and_then(|p| p.status?.phase).unwrap_or_default();
            Ok(if phase == "Running" { Poll::Ready(()) } else { Poll::Pending(phase) })
        }
    })
    .await?;
    Ok(())
}

pub async fn release_gpus(env: &Env, site: &str) -> Scenario {
    env.pods(site, "default").delete("local-work", &DeleteParams::default().grace_period(0)).await?;
    Ok(())
}

/// Waits until the seat of the cluster was asked to hold capacity.
pub async fn reserved(env: &Env, site: &str) -> Scenario {
    let awards: Api<Award> = Api::all(env.site(site).client.clone());
    wait::until(
        "the winner is asked to hold capacity",
        Duration::from_secs(30),
        Duration::from_millis(100),
        || {
            let awards = awards.clone();
            async move {
                let found = awards
                    .list(&ListParams::default())
                    .await
                    .map(|l| !l.items.is_empty())
                    .unwrap_or_default();
                Ok(if found { Poll::Ready(()) } else { Poll::Pending("no Award yet".into()) })
            }
        },
    )
    .await?;
    Ok(())
}
