//! The home's auction process restarts while its orders are in the market.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;
use vendue_crds::conditions::{job as types, reasons};
use vendue_crds::{AuctionOutcome, Award, ComputeJob};
use vendue_testbed::deploy::NAMESPACE;
use vendue_testbed::wait::{self, Poll};

use crate::env::{Env, Failure, Scenario, check, condition};
use crate::faults::{kill, pod_name, release_gpus, reserved, submissions, submitted_once, take_gpus};
use crate::jobs::job;

/// How the Job's last round ended.
pub fn outcome(job: &ComputeJob) -> Option<AuctionOutcome> {
    Some(job.status.as_ref()?.auction.as_ref()?.outcome)
}

/// A Job bids for a GPU that is taken; home's auction is killed; the search goes on and ends when the GPU is free.
pub async fn a_job_that_bids_goes_on(env: &Env) -> Scenario {
    let ns = env.namespace("bids").await?;
    take_gpus(env, "bravo", 4).await?;
    let wants =
        job("patient", "print('ran once', flush=True)").with("/train/workers/gpuModels", json!(["A100"]));
    env.home().apply(&ns, &wants.manifest()).await?;
    let before = env
        .job_until(&ns, "patient", "says why nobody bid", 20, |j| {
            outcome(j) == Some(AuctionOutcome::NoFeasibleBid)
        })
        .await;
    let killed = kill(env, "home", "vendue-auction").await;
    release_gpus(env, "bravo").await?;
    let before = before?;
    killed?;
    let job = env.finished(&ns, "patient", 120).await?;
    let finished = condition(&job, types::FINISHED)?;
    check(finished.reason == reasons::SUCCEEDED, || format!("{}: {}", finished.reason, finished.message))?;
    let tried =
        |j: &ComputeJob| j.status.as_ref().and_then(|s| s.auction.as_ref()).map_or(0, |a| a.rounds_tried);
    check(tried(&job) > tried(&before), || "the rounds before the restart are not counted".into())?;
    env.delete_job(&ns, "patient", 30).await?;
    env.nothing_left(60).await
}

/// The winner is asked and does not answer, home's auction is killed, the award expires: its Award is replaced by that
/// of the next round, and the workload runs once.
pub async fn an_award_that_nobody_took_is_replaced(env: &Env) -> Scenario {
    let ns = env.namespace("replaced").await?;
    let before = submissions(env).await?;
    let controller = pod_name(env, "bravo", "vendue-controller").await?;
    env.site("bravo").cluster.freeze_pod(NAMESPACE, &controller).await?;
    let wants =
        job("again", "print('ran once', flush=True)").with("/train/workers/gpuModels", json!(["A100"]));
    let applied = env.home().apply(&ns, &wants.manifest()).await;
    let asked = reserved(env, "bravo").await;
    let killed = kill(env, "home", "vendue-auction").await;
    // The kubelet would start it again before the award expires, or after, as its back-off has it.
    let down = scale(env, 0).await;
    let first = expired(env, &ns, "again-1").await;
    let up = scale(env, 1).await;
    env.site("bravo").cluster.thaw_pod(NAMESPACE, &controller).await?;
    applied?;
    asked?;
    killed?;
    down?;
    up?;
    let first = first?;
    let job = env.finished(&ns, "again", 120).await?;
    let finished = condition(&job, types::FINISHED)?;
    check(finished.reason == reasons::SUCCEEDED, || format!("{}: {}", finished.reason, finished.message))?;
    let award = job.status.and_then(|s| s.award).unwrap_or_default();
    check(award.round > first, || format!("awarded in round {first} and served in round {}", award.round))?;
    let logs = env.vendue(&["logs", "-n", &ns, "job/again"]).await?;
    check(logs.stdout.matches("ran once").count() == 1, || format!("not run once: {logs:?}"))?;
    submitted_once(env, before).await?;
    env.delete_job(&ns, "again", 30).await?;
    env.nothing_left(60).await
}

/// Waits until the Award at home binds nobody any more, and says of which round it is.
async fn expired(env: &Env, ns: &str, name: &str) -> Result<i64, Failure> {
    let awards: Api<Award> = Api::namespaced(env.home().client.clone(), ns);
    let round = wait::until("the award expires", Duration::from_secs(60), Duration::from_millis(500), || {
        let awards = awards.clone();
        async move {
            Ok(match awards.get(name).await {
                Ok(award) if award.spec.expires_at.0 < k8s_openapi::jiff::Timestamp::now() => {
                    Poll::Ready(award.spec.round)
                }
                Ok(award) => Poll::Pending(format!("until {}", award.spec.expires_at.0)),
                Err(error) => Poll::Pending(error.to_string()),
            })
        }
    })
    .await?;
    Ok(round)
}

/// A Job that bids is deleted while home's auction is down: it waits for the order to be withdrawn, then it is gone.
pub async fn deleted_while_the_auction_is_down(env: &Env) -> Scenario {
    let ns = env.namespace("down").await?;
    let wants = job("gone", "print(1)").with("/train/workers/gpuModels", json!(["Z9000"]));
    env.home().apply(&ns, &wants.manifest()).await?;
    env.job_until(&ns, "gone", "says why nobody bid", 20, |j| {
        outcome(j) == Some(AuctionOutcome::NoFeasibleBid)
    })
    .await?;
    let jobs = env.jobs(&ns);
    let waits = deleted_without_auction(env, &ns).await;
    // In any case: no scenario after this one could do without it.
    scale(env, 1).await?;
    waits?;
    let gone = wait::until("the Job is gone", Duration::from_secs(30), Duration::from_millis(200), || {
        let jobs = jobs.clone();
        async move {
            Ok(match jobs.get_opt("gone").await {
                Ok(None) => Poll::Ready(()),
                Ok(Some(job)) => Poll::Pending(vendue_testbed::deploy::describe(&job)),
                Err(error) => Poll::Pending(error.to_string()),
            })
        }
    });
    gone.await?;
    env.nothing_left(60).await
}

async fn deleted_without_auction(env: &Env, ns: &str) -> Scenario {
    scale(env, 0).await?;
    env.jobs(ns).delete("gone", &DeleteParams::default()).await?;
    env.job_until(ns, "gone", "is closing", 10, |j| {
        j.status.as_ref().and_then(|s| s.state.as_deref()) == Some("Closing")
    })
    .await
    .map(drop)
}

/// Sets the number of home's auction processes and waits until it is so.
pub async fn scale(env: &Env, replicas: i32) -> Scenario {
    let deployments: Api<Deployment> = Api::namespaced(env.home().client.clone(), NAMESPACE);
    let patch = json!({ "spec": { "replicas": replicas } });
    deployments.patch("vendue-auction", &PatchParams::default(), &Patch::Merge(&patch)).await?;
    wait::until("the auction is scaled", Duration::from_secs(60), Duration::from_millis(200), || {
        let deployments = deployments.clone();
        async move {
            let status = match deployments.get("vendue-auction").await {
                Ok(found) => found.status.unwrap_or_default(),
                Err(error) => return Ok(Poll::Pending(error.to_string())),
            };
            let (all, ready) = (status.replicas.unwrap_or(0), status.ready_replicas.unwrap_or(0));
            Ok(if all == replicas && ready == replicas {
                Poll::Ready(())
            } else {
                Poll::Pending(format!("{ready} of {all} are ready"))
            })
        }
    })
    .await?;
    Ok(())
}
