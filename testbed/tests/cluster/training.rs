//! Runs: what succeeds, what fails and says why, and what a fault in the middle does.

use serde_json::json;
use vendue_crds::conditions::{self, job as types, reasons};

use crate::env::{Env, Scenario, check, condition};
use crate::jobs::job;

/// A script that raises: Failed, with the last log lines, after as many retries as asked; the GPUs are free again.
pub async fn raising_script_fails(env: &Env) -> Scenario {
    let ns = env.namespace("raise").await?;
    let script = "import os\nprint('attempt begins')\nraise ValueError('the loss is not a number')\n";
    env.home().apply(&ns, &job("raiser", script).with("/train/retries", json!(1)).manifest()).await?;
    let job = env.finished(&ns, "raiser", 180).await?;
    let finished = condition(&job, types::FINISHED)?;
    check(finished.reason == reasons::FAILED, || format!("Finished says {}", finished.reason))?;
    check(finished.message.contains("the loss is not a number"), || {
        format!("no log line: {}", finished.message)
    })?;
    let status = job.status.unwrap_or_default();
    check(status.failure.is_some_and(|f| f.log_tail.contains("ValueError")), || {
        "no log tail in status".into()
    })?;
    check(status.usage.is_some_and(|u| u.restarts == 1), || "the retry is not counted".into())?;
    env.nothing_left(60).await?;
    let logs = env.vendue(&["logs", "-n", &ns, "job/raiser"]).await?;
    check(logs.code == 0 && logs.stdout.contains("the loss is not a number"), || {
        format!("logs after the end: {logs:?}")
    })?;
    env.delete_job(&ns, "raiser", 30).await
}

/// An interpreter that is not in the image: Failed, and the message says so.
pub async fn missing_interpreter_fails(env: &Env) -> Scenario {
    let ns = env.namespace("interp").await?;
    let wants = job("nointerp", "print(1)").with("/train/entrypoint", json!("/opt/none/python9 main.py"));
    env.home().apply(&ns, &wants.manifest()).await?;
    let job = env.finished(&ns, "nointerp", 180).await?;
    let finished = condition(&job, types::FINISHED)?;
    check(finished.reason == reasons::FAILED, || format!("Finished says {}", finished.reason))?;
    check(finished.message.contains("python9"), || {
        format!("the message does not name it: {}", finished.message)
    })?;
    env.nothing_left(60).await?;
    env.delete_job(&ns, "nointerp", 30).await
}

/// The run deadline ends the run.
pub async fn deadline_ends_the_run(env: &Env) -> Scenario {
    let ns = env.namespace("deadline").await?;
    let script = "import time\nprint('begins', flush=True)\ntime.sleep(3600)\n";
    env.home().apply(&ns, &job("long", script).with("/runDeadlineSeconds", json!(45)).manifest()).await?;
    let job = env.finished(&ns, "long", 120).await?;
    let finished = condition(&job, types::FINISHED)?;
    check(finished.reason == reasons::DEADLINE_EXCEEDED, || format!("Finished says {}", finished.reason))?;
    env.nothing_left(60).await?;
    env.delete_job(&ns, "long", 30).await
}

/// Whether a worker began at an epoch other than the first.
fn resumed(log: &str) -> bool {
    log.lines().filter_map(|line| line.split_once("from epoch ")).any(|(_, rest)| !rest.starts_with('0'))
}

/// The processes of a Ray worker are killed in the middle: it comes back, the program goes on from its checkpoint, status
/// shows it.
pub async fn killed_worker_resumes(env: &Env) -> Scenario {
    let ns = env.namespace("worker").await?;
    let manifest = env.deployment.example("train-digits.yaml")?;
    env.home().apply(&ns, &manifest).await?;
    env.condition_true(&ns, "digits", types::RUNNING, 120).await?;
    let (site, award) = env.host_award(10).await?;
    let host_ns = award.metadata.namespace.clone().unwrap_or_default();
    // A worker is held back at its third report until Ray's controller has taken in the first, with its checkpoint; one that
    // is killed before that starts anew.
    crate::faults::log_until(env, &ns, "digits", "Reporting training result 4", 120).await?;
    let pods = env.pods(&site, &host_ns);
    let workers = pods.list(&kube::api::ListParams::default().labels("vendue.dev/role=worker")).await?;
    let victim = workers.items.first().and_then(|p| p.metadata.name.clone()).unwrap_or_default();
    env.site(&site).cluster.kill_pod(&host_ns, &victim).await?;
    let job = env.finished(&ns, "digits", 300).await?;
    let finished = condition(&job, types::FINISHED)?;
    check(finished.reason == reasons::SUCCEEDED, || format!("{}: {}", finished.reason, finished.message))?;
    let logs = env.vendue(&["logs", "-n", &ns, "job/digits"]).await?;
    check(resumed(&logs.stdout), || format!("the log does not say that it resumed: {}", logs.stdout))?;
    let selector = ["get", "awards.vendue.dev", "-n", &ns, "-l", "vendue.dev/job-name=digits"];
    let output = ["-o", "jsonpath={.items[0].status.runtime.workerRestarts}"];
    let restarts = env.home().tools.kubectl(&[selector.as_slice(), output.as_slice()].concat()).await?;
    check(restarts.parse::<u32>().is_ok_and(|n| n > 0), || {
        format!("status counts {restarts:?} restarts of workers")
    })?;
    env.nothing_left(60).await?;
    env.delete_job(&ns, "digits", 30).await
}

/// A Job that is suspended is not offered; when it is not any more, it is.
pub async fn suspended_job_waits(env: &Env) -> Scenario {
    let ns = env.namespace("suspend").await?;
    let wants = job("later", "print('done')").with("/suspend", json!(true));
    env.home().apply(&ns, &wants.manifest()).await?;
    env.job_until(&ns, "later", "is not accepted while suspended", 10, |job| {
        job.status
            .as_ref()
            .and_then(|s| conditions::find(&s.conditions, types::ACCEPTED))
            .is_some_and(|c| c.status == "False" && c.reason == reasons::SUSPENDED)
    })
    .await?;
    env.home().apply(&ns, &wants.with("/suspend", json!(false)).manifest()).await?;
    env.condition_true(&ns, "later", types::AWARDED, 30).await?;
    env.delete_job(&ns, "later", 60).await?;
    env.nothing_left(60).await
}
