//! Awards: who wins, who does not and why, and what happens when seats are missing.

use serde_json::json;
use vendue_crds::conditions::{self, job as types, reasons};

use crate::env::{Env, Failure, Process, Scenario, check, condition};
use crate::jobs::{Job, job};

/// A model that nobody has: a condition within five seconds that counts the reasons and names the known models.
pub async fn unknown_model_is_explained(env: &Env) -> Scenario {
    let ns = env.namespace("model").await?;
    let wants = job("quantum", "print(1)").with("/train/workers/gpuModels", json!(["Z9000"]));
    env.home().apply(&ns, &wants.manifest()).await?;
    let job = no_feasible_bid(env, &ns, "quantum").await?;
    let message = condition(&job, types::AWARDED)?.message;
    check(message.contains("0 of 4 providers") && message.contains("4 model"), || {
        format!("no histogram: {message}")
    })?;
    check(message.contains("H100"), || format!("the known models are not named: {message}"))?;
    env.delete_job(&ns, "quantum", 30).await
}

/// A Job that nobody can serve: each provider's own reason is counted.
pub async fn infeasible_job_is_explained(env: &Env) -> Scenario {
    let ns = env.namespace("infeasible").await?;
    let wants = job("huge", "print(1)")
        .with("/train/workers/replicas", json!(4))
        .with("/train/workers/gpuModels", json!(["H100", "L40S"]))
        .with("/train/workers/minGpuMemoryMib", json!(60_000));
    env.home().apply(&ns, &wants.manifest()).await?;
    let job = no_feasible_bid(env, &ns, "huge").await?;
    let message = condition(&job, types::AWARDED)?.message;
    for part in ["0 of 4 providers", "1 model", "1 memory", "2 free GPUs"] {
        check(message.contains(part), || format!("the message lacks {part:?}: {message}"))?;
    }
    let tried = job.status.and_then(|s| s.auction).map(|a| a.rounds_tried).unwrap_or_default();
    check(tried >= 1, || "no round was counted".into())?;
    env.job_until(&ns, "huge", "is tried again in a later round", 30, |job| {
        job.status.as_ref().and_then(|s| s.auction.as_ref()).is_some_and(|a| a.rounds_tried > tried)
    })
    .await?;
    env.delete_job(&ns, "huge", 30).await
}

async fn no_feasible_bid(env: &Env, ns: &str, name: &str) -> Result<vendue_crds::ComputeJob, Failure> {
    env.job_until(ns, name, "says why nobody bid", 5, |job| {
        job.status
            .as_ref()
            .and_then(|s| conditions::find(&s.conditions, types::AWARDED))
            .is_some_and(|c| c.reason == reasons::NO_FEASIBLE_BID)
    })
    .await
}

/// The search ends when its time is over, with a reason, and the Job is Finished.
pub async fn search_ends(env: &Env) -> Scenario {
    let ns = env.namespace("search").await?;
    let wants = job("brief", "print(1)")
        .with("/train/workers/gpuModels", json!(["Z9000"]))
        .with("/searchSeconds", json!(6));
    env.home().apply(&ns, &wants.manifest()).await?;
    let job = env.finished(&ns, "brief", 30).await?;
    let finished = condition(&job, types::FINISHED)?;
    check(finished.reason == reasons::SEARCH_TIME_OVER, || format!("Finished says {}", finished.reason))?;
    env.delete_job(&ns, "brief", 30).await
}

/// A price ceiling below every bid is a reason like any other.
pub async fn ceiling_is_respected(env: &Env) -> Scenario {
    let ns = env.namespace("ceiling").await?;
    let wants = job("stingy", "print(1)").with("/maxPrice", json!("0.01"));
    env.home().apply(&ns, &wants.manifest()).await?;
    let job = no_feasible_bid(env, &ns, "stingy").await?;
    let message = condition(&job, types::AWARDED)?.message;
    check(message.contains("price"), || format!("price is not the reason: {message}"))?;
    env.delete_job(&ns, "stingy", 30).await
}

/// Regions: a cheaper provider elsewhere does not get the Job. Second price: the winner is paid what the next would have
/// asked, and the certificate says that this was agreed.
pub async fn terms_of_the_order_hold(env: &Env) -> Scenario {
    let ns = env.namespace("terms").await?;
    let awarded = async |wants: Job, provider: &str, price: &str| -> Scenario {
        env.home().apply(&ns, &wants.manifest()).await?;
        let job = env.condition_true(&ns, &wants.name, types::AWARDED, 30).await?;
        let award = job.status.and_then(|s| s.award).unwrap_or_default();
        check((award.provider.as_str(), award.price.0.as_str()) == (provider, price), || {
            format!(
                "{} went to {} at {}, not to {provider} at {price}",
                wants.name, award.provider, award.price.0
            )
        })?;
        let verified = env.vendue(&["-n", &ns, "verify", &wants.name]).await?;
        check(verified.code == 0, || format!("the award does not verify against its Job: {verified:?}"))?;
        env.delete_job(&ns, &wants.name, 60).await?;
        env.nothing_left(60).await
    };
    awarded(job("north", "print(1)").with("/regions", json!(["north"])), "bravo", "1.80").await?;
    awarded(job("vickrey", "print(1)").with("/pricing", json!("SecondPrice")), "charlie", "1.20").await
}

/// One provider cut off: the round still decides. Two of four: no award, a clear condition, and no seat sends its share,
/// so that nobody reads a bid of a round that will not be decided. Healed: served.
pub async fn silent_providers(env: &Env) -> Scenario {
    let ns = env.namespace("silent").await?;
    let wants = |name: &str| job(name, "print(1)").with("/train/workers/gpuModels", json!(["A100"]));
    env.deployment.cut("delta").await?;
    env.home().apply(&ns, &wants("one-silent").manifest()).await?;
    let one = env.condition_true(&ns, "one-silent", types::AWARDED, 20).await;
    env.deployment.cut("charlie").await?;
    let before = shares(env).await;
    env.home().apply(&ns, &wants("two-silent").manifest()).await?;
    let two = env
        .job_until(&ns, "two-silent", "says that the round did not decide", 30, |job| {
            job.status
                .as_ref()
                .and_then(|s| conditions::find(&s.conditions, types::AWARDED))
                .is_some_and(|c| c.status == "False" && c.reason == reasons::ROUND_UNDECIDED)
        })
        .await;
    let silent = shares(env).await;
    env.deployment.heal("charlie").await?;
    env.deployment.heal("delta").await?;
    one?;
    two?;
    let (before, silent) = (before?, silent?);
    check(before > 0.0, || "the round that one missed was opened without shares".into())?;
    check(silent == before, || format!("{} shares were sent without a commit", silent - before))?;
    env.condition_true(&ns, "two-silent", types::AWARDED, 60).await?;
    let after = shares(env).await?;
    check(after > silent, || "the round that was decided was opened without shares".into())?;
    env.delete_job(&ns, "one-silent", 60).await?;
    env.delete_job(&ns, "two-silent", 60).await?;
    env.nothing_left(60).await
}

/// Messages with a share that the seats sent so far.
async fn shares(env: &Env) -> Result<f64, Failure> {
    env.of_all_providers(Process::Auction, "shares_sent_total").await
}
