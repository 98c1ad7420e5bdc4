//! The main job as a scenario: everything that the demo shows, asserted.

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
