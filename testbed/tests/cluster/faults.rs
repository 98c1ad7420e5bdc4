//! Faults in the middle of things: processes die, clusters are cut off, capacity goes to somebody else.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::json;
use vendue_crds::Award;
use vendue_crds::conditions::{self, award as award_types, job as types, reasons};
use vendue_testbed::deploy::NAMESPACE;
use vendue_testbed::wait::{self, Poll};

use crate::env::{Env, Failure, Scenario, check, condition};
use crate::jobs::{IMAGE, job};

/// Counts, one line a second, so that a gap or a restart shows in the log.
pub fn counter(seconds: u32) -> String {
    format!("import time\nfor i in range({seconds}):\n    print('tick', i, flush=True)\n    time.sleep(1)\n")
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

/// The run went through in one piece and every line is in the log.
pub async fn undisturbed(env: &Env, ns: &str, name: &str, seconds: usize) -> Scenario {
    let job = env.finished(ns, name, 200).await?;
    let finished = condition(&job, types::FINISHED)?;
    check(finished.reason == reasons::SUCCEEDED, || format!("{}: {}", finished.reason, finished.message))?;
    let restarts = job.status.and_then(|s| s.usage).map(|u| u.restarts).unwrap_or_default();
    check(restarts == 0, || format!("the run was restarted {restarts} times"))?;
    let logs = env.vendue(&["logs", "-n", ns, &format!("job/{name}")]).await?;
    let ticks = logs.stdout.lines().filter(|l| l.contains("tick ")).count();
    check(ticks == seconds, || format!("{ticks} of {seconds} lines are in the log: {logs:?}"))?;
    env.delete_job(ns, name, 30).await?;
    env.nothing_left(60).await
}

/// The winner's controller and auction processes are killed while the Job trains: it goes on, status catches up.
pub async fn control_plane_of_the_winner_dies(env: &Env) -> Scenario {
    let ns = env.namespace("ctl-dies").await?;
    env.home().apply(&ns, &job("steady", &counter(30)).manifest()).await?;
    env.condition_true(&ns, "steady", types::RUNNING, 120).await?;
    let (site, _) = env.host_award(10).await?;
    kill(env, &site, "vendue-controller").await?;
    kill(env, &site, "vendue-auction").await?;
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

/// A local Pod takes the winner's GPUs after its capacity was reported: the winner refuses, the first stand-by serves
/// the Job without a new round, and the workload runs once.
pub async fn refusal_promotes_the_stand_by(env: &Env) -> Scenario {
    let ns = env.namespace("refuse").await?;
    // bravo is the cheapest for two GPUs of these models; its controller does not see what happens now.
    let controller = pod_name(env, "bravo", "vendue-controller").await?;
    env.site("bravo").cluster.freeze_pod(NAMESPACE, &controller).await?;
    let taken = take_gpus(env, "bravo", 4).await;
    let wants = job("second", "print('ran once', flush=True)")
        .with("/train/workers/replicas", json!(2))
        .with("/train/workers/gpuModels", json!(["A100", "H100"]));
    let applied = env.home().apply(&ns, &wants.manifest()).await;
    let bid = reserved(env, "bravo").await;
    env.site("bravo").cluster.thaw_pod(NAMESPACE, &controller).await?;
    taken?;
    applied?;
    bid?;
    let job = env.finished(&ns, "second", 180).await;
    release_gpus(env, "bravo").await?;
    let job = job?;
    let award = job.status.and_then(|s| s.award).unwrap_or_default();
    check(award.provider == "alpha", || format!("{} served the Job; the stand-by is alpha", award.provider))?;
    let logs = env.vendue(&["logs", "-n", &ns, "job/second"]).await?;
    check(logs.stdout.matches("ran once").count() == 1, || {
        format!("the workload ran more or less than once: {logs:?}")
    })?;
    env.delete_job(&ns, "second", 30).await?;
    env.nothing_left(60).await
}

/// The winner's controller says nothing: the first stand-by serves the Job, also when the winner comes back later.
pub async fn silence_promotes_the_stand_by(env: &Env) -> Scenario {
    let ns = env.namespace("silence").await?;
    let controller = pod_name(env, "bravo", "vendue-controller").await?;
    env.site("bravo").cluster.freeze_pod(NAMESPACE, &controller).await?;
    let wants = job("second", "print('ran once', flush=True)")
        .with("/train/workers/replicas", json!(2))
        .with("/train/workers/gpuModels", json!(["A100", "H100"]));
    let applied = env.home().apply(&ns, &wants.manifest()).await;
    let awarded = env.condition_true(&ns, "second", types::AWARDED, 30).await;
    env.site("bravo").cluster.thaw_pod(NAMESPACE, &controller).await?;
    applied?;
    awarded?;
    let job = env.finished(&ns, "second", 180).await?;
    let award = job.status.and_then(|s| s.award).unwrap_or_default();
    check(award.provider == "alpha", || format!("{} served the Job; the stand-by is alpha", award.provider))?;
    let logs = env.vendue(&["logs", "-n", &ns, "job/second"]).await?;
    check(logs.stdout.matches("ran once").count() == 1, || {
        format!("the workload ran more or less than once: {logs:?}")
    })?;
    env.delete_job(&ns, "second", 30).await?;
    env.nothing_left(60).await
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
