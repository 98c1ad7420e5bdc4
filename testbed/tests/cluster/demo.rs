//! The main job as a scenario: everything that the demo shows, asserted.

use vendue_crds::ComputeJob;
use vendue_crds::conditions::{self, job as types, reasons};
use vendue_testbed::demo;

use crate::env::{Env, Scenario, check};

/// From the apply to a verified award, a trained model and its logs; the cheapest that fits wins.
pub async fn digits_from_apply_to_model(env: &Env) -> Scenario {
    let mut report = demo::run_job(&env.deployment, &env.progress).await?;
    demo::look_at_results(&env.deployment, &mut report, &env.progress).await?;
    check(report.winner == "bravo", || format!("{} won; the cheapest that fits is bravo", report.winner))?;
    check(report.price == "1.80", || format!("the price is {}", report.price))?;
    check(report.accuracy >= 0.9, || format!("the accuracy is {}", report.accuracy))?;
    check(report.certificate_verified, || "the certificate was not verified".into())?;
    let order = [report.award, report.provisioned, report.running, report.finished];
    check(order.is_sorted() && report.award > 0.0, || format!("the steps are out of order: {order:?}"))?;
    env.nothing_left(60).await
}

/// Whether it is the main job and succeeded.
pub fn is_done(job: &ComputeJob) -> bool {
    let meta = &job.metadata;
    let conditions = job.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    meta.name.as_deref() == Some(demo::JOB)
        && meta.namespace.as_deref() == Some(demo::NAMESPACE)
        && conditions::find(conditions, types::FINISHED).is_some_and(|c| c.reason == reasons::SUCCEEDED)
}

/// The main job as it is at its end, run now if no scenario before did.
pub async fn digits(env: &Env) -> Scenario {
    let found = env.jobs(demo::NAMESPACE).get_opt(demo::JOB).await?;
    if !found.as_ref().is_some_and(is_done) {
        demo::run_job(&env.deployment, &env.progress).await?;
    }
    Ok(())
}
