//! `helm upgrade` and `helm uninstall` while an award runs.

use vendue_crds::conditions::job as types;
use vendue_testbed::deploy::NAMESPACE;

use crate::env::{Env, Scenario, check};
use crate::jobs::job;

/// An upgrade does not disturb a running award; an uninstall is refused with an explanation.
pub async fn upgrade_and_uninstall_with_a_running_award(env: &Env) -> Scenario {
    let ns = env.namespace("release").await?;
    let script =
        "import time\nprint('begins', flush=True)\ntime.sleep(60)\nprint('undisturbed', flush=True)\n";
    env.home().apply(&ns, &job("steady", script).manifest()).await?;
    env.condition_true(&ns, "steady", types::RUNNING, 120).await?;
    let (site, _) = env.host_award(10).await?;
    let tools = env.site(&site).tools.clone();
    // The doctor in the cluster has the rights that the chart gives it, and no others.
    let test =
        tools.helm(&["test", "vendue", "--namespace", NAMESPACE, "--logs", "--timeout", "90s"]).await?;
    for part in ["crds", "vendue-controller", "provision vendue-system/"] {
        let line = test.lines().find(|l| l.contains(part)).unwrap_or_default();
        check(line.starts_with("ok"), || format!("the doctor did not see {part}: {test}"))?;
    }
    let uninstall = tools.helm(&["uninstall", "vendue", "--namespace", NAMESPACE, "--timeout", "60s"]).await;
    let error = match uninstall {
        Ok(_) => return Err("helm uninstall went through while an award runs".into()),
        Err(error) => error.to_string(),
    };
    check(!error.is_empty(), || "the refusal is silent".into())?;
    let chart = env.deployment.setup.paths.checkout().join("charts/vendue").display().to_string();
    tools
        .helm(&[
            "upgrade",
            "vendue",
            &chart,
            "--namespace",
            NAMESPACE,
            "--reuse-values",
            "--wait",
            "--timeout",
            "120s",
            "--set",
            "controller.podAnnotations.upgraded=yes,auction.podAnnotations.upgraded=yes",
        ])
        .await?;
    let job = env.finished(&ns, "steady", 180).await?;
    let finished = crate::env::condition(&job, types::FINISHED)?;
    check(finished.reason == "Succeeded", || format!("{}: {}", finished.reason, finished.message))?;
    let restarts = job.status.and_then(|s| s.usage).map(|u| u.restarts).unwrap_or_default();
    check(restarts == 0, || format!("the run was restarted {restarts} times"))?;
    env.delete_job(&ns, "steady", 30).await?;
    env.nothing_left(60).await
}
