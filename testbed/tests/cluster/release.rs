//! `helm upgrade` and `helm uninstall` while an award runs.

use vendue_crds::conditions::job as types;
use vendue_testbed::deploy::NAMESPACE;

use crate::env::{Env, Scenario, check};
use crate::faults::{tell, undisturbed, until_told};
use crate::jobs::job;

/// An upgrade does not disturb a running award; an uninstall is refused with an explanation.
pub async fn upgrade_and_uninstall_with_a_running_award(env: &Env) -> Scenario {
    let ns = env.namespace("release").await?;
    env.home().apply(&ns, &job("steady", &until_told()).manifest()).await?;
    env.condition_true(&ns, "steady", types::RUNNING, 120).await?;
    let (site, award) = env.host_award(10).await?;
    let host_ns = award.metadata.namespace.unwrap_or_default();
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
    let sold = format!("{host_ns}/award for home");
    for part in ["awards sold", &sold, "suspend the Provisions"] {
        check(error.contains(part), || format!("the refusal does not say {part:?}: {error}"))?;
    }
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
    tell(env, &site, &host_ns).await?;
    undisturbed(env, &ns, "steady", 3).await
}
