//! A real Prometheus scrapes the market; every panel of the dashboard has data.

use std::time::Duration;

use serde_json::Value;
use vendue_testbed::scrape::Prometheus;
use vendue_testbed::wait::{self, Poll};

use crate::env::{Env, Scenario, check};
use crate::faults::until_told;
use crate::jobs::job;

/// Every query of the dashboard "Market" returns data when one Job was bought and runs.
pub async fn prometheus_fills_every_panel(env: &Env) -> Scenario {
    let ns = env.namespace("observe").await?;
    env.home().apply(&ns, &job("seen", &until_told()).manifest()).await?;
    let prometheus = Prometheus::start(&env.deployment).await?;
    let result = every_panel(env, &prometheus).await;
    prometheus.stop().await?;
    env.delete_job(&ns, "seen", 60).await?;
    result?;
    env.nothing_left(60).await
}

async fn every_panel(env: &Env, prometheus: &Prometheus) -> Scenario {
    let path = env.deployment.setup.paths.checkout().join("manifests/dashboards/market.json");
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    let queries = queries(&dashboard);
    check(queries.len() >= 6, || format!("only {} queries in the dashboard", queries.len()))?;
    for (panel, query) in queries {
        let query =
            query.replace("$__rate_interval", "1m").replace("$__range", "10m").replace("$__interval", "30s");
        let (panel, query) = (&panel, &query);
        wait::until(
            &format!("panel {panel:?} has data: {query}"),
            Duration::from_secs(60),
            Duration::from_secs(2),
            || async move {
                Ok(match prometheus.query(query).await {
                    Ok(0) => Poll::Pending("no series".into()),
                    Ok(_) => Poll::Ready(()),
                    Err(error) => Poll::Pending(error.to_string()),
                })
            },
        )
        .await?;
    }
    Ok(())
}

fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let panels = dashboard["panels"].as_array().cloned().unwrap_or_default();
    panels
        .iter()
        .flat_map(|panel| {
            let title = panel["title"].as_str().unwrap_or_default().to_owned();
            let targets = panel["targets"].as_array().cloned().unwrap_or_default();
            targets.into_iter().filter_map(move |t| Some((title.clone(), t["expr"].as_str()?.to_owned())))
        })
        .collect()
}
