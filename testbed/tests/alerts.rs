//! The alerts, by Prometheus' own test of rules.
//!
//! Inputs: promtool, fetched if it is missing; `tests/alerts/rules_test.yaml`. Invariant: no cluster is asked.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::time::Duration;

use vendue_testbed::command::{command, run};
use vendue_testbed::{Paths, scrape};

#[tokio::test]
#[ignore = "needs promtool; run by cargo verify"]
async fn each_alert_fires_on_what_it_is_for_and_only_on_that() {
    let paths = Paths::from_env().unwrap();
    let promtool = scrape::promtool(&paths).await.unwrap();
    // promtool looks for the rules beside their test.
    let folder = tempfile::tempdir().unwrap();
    for file in ["charts/vendue/alerts/vendue.yaml", "testbed/tests/alerts/rules_test.yaml"] {
        let from = paths.checkout().join(file);
        std::fs::copy(&from, folder.path().join(from.file_name().unwrap())).unwrap();
    }
    let mut test = command(promtool, ["test", "rules", "rules_test.yaml"]);
    test.current_dir(folder.path());
    run("promtool test rules", Duration::from_secs(60), test).await.unwrap();
}
