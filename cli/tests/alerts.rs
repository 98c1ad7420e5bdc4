//! Each alert is about metrics that exist, says what to do, and has a test that it fires and one that it does not.
#![allow(clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

fn text(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn yaml(file: &str) -> Value {
    serde_saphyr::from_str(&text(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn word<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

#[test]
fn each_alert_is_documented_and_of_metrics_that_exist() {
    let (rules, metrics, docs) =
        (yaml("charts/vendue/alerts/vendue.yaml"), text("docs/metrics.md"), text("docs/gpu-agent.md"));
    let mut seen = BTreeSet::new();
    for rule in list(&rules["groups"]).flat_map(|group| list(&group["rules"])) {
        let name = word(rule, "alert");
        assert!(name.starts_with("Vendue") && seen.insert(name), "{name:?}: no name, or twice");
        assert!(
            ["critical", "warning", "info"].contains(&word(&rule["labels"], "severity")),
            "{name}: severity"
        );
        for key in ["summary", "description"] {
            assert!(word(&rule["annotations"], key).len() > 20, "{name}: {key}");
        }
        let anchor = name.to_lowercase();
        assert_eq!(word(&rule["annotations"], "runbook"), format!("docs/gpu-agent.md#{anchor}"));
        assert!(docs.contains(&format!("\n### {name}\n")), "{name}: not in docs/gpu-agent.md");
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let used = word(rule, "expr").split(|c| !is_word(c)).filter(|w| w.starts_with("vendue_"));
        for metric in used {
            assert!(metrics.contains(&format!("`{metric}`")), "{name}: {metric} is not in docs/metrics.md");
        }
    }
    let documented = docs.lines().filter_map(|line| line.strip_prefix("### Vendue")).count();
    assert_eq!(documented, seen.len(), "alerts in docs/gpu-agent.md");
}

#[test]
fn each_alert_has_a_test_that_it_fires_and_one_that_it_does_not() {
    let (rules, tests) =
        (yaml("charts/vendue/alerts/vendue.yaml"), yaml("testbed/tests/alerts/rules_test.yaml"));
    let cases: Vec<&Value> = list(&tests["tests"]).flat_map(|test| list(&test["alert_rule_test"])).collect();
    for rule in list(&rules["groups"]).flat_map(|group| list(&group["rules"])) {
        let name = word(rule, "alert");
        let fires = |expected: bool| {
            let mine = cases.iter().filter(|case| word(case, "alertname") == name);
            mine.filter(|case| list(&case["exp_alerts"]).next().is_some() == expected).count()
        };
        assert!(fires(true) > 0 && fires(false) > 0, "{name}");
    }
}
