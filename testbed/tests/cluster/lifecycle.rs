//! Deleting a Job at any stage, and who may look at it.

use vendue_crds::conditions::job as types;

use crate::env::{Env, Scenario};
use crate::jobs::{Job, job};

fn sleeper(name: &str) -> Job {
    job(name, "import time\nprint('begins', flush=True)\ntime.sleep(3600)\n")
}

/// Deleted when its order is in the market and before the award: nothing is left, and no award follows.
pub async fn delete_before_award(env: &Env) -> Scenario {
    let ns = env.namespace("del-early").await?;
    env.home().apply(&ns, &sleeper("early").manifest()).await?;
    env.job_until(&ns, "early", "is in the market", 10, |job| {
        job.status.as_ref().and_then(|s| s.auction.as_ref()).is_some()
    })
    .await?;
    env.delete_job(&ns, "early", 30).await?;
    env.nothing_left(30).await?;
    env.two_rounds_pass(&ns).await?;
    env.nothing_left(5).await
}

/// Deleted right after the award, while the Ray cluster starts.
pub async fn delete_during_provisioning(env: &Env) -> Scenario {
    let ns = env.namespace("del-mid").await?;
    env.home().apply(&ns, &sleeper("mid").manifest()).await?;
    env.condition_true(&ns, "mid", types::AWARDED, 30).await?;
    env.delete_job(&ns, "mid", 30).await?;
    env.nothing_left(30).await
}

/// Deleted while it runs.
pub async fn delete_while_running(env: &Env) -> Scenario {
    let ns = env.namespace("del-late").await?;
    env.home().apply(&ns, &sleeper("late").manifest()).await?;
    env.condition_true(&ns, "late", types::RUNNING, 120).await?;
    env.delete_job(&ns, "late", 30).await?;
    env.nothing_left(30).await
}
