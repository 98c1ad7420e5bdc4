//! What the charts render to, as helm renders them: hardening of every Pod, and what is refused.
//!
//! Inputs: helm, fetched if it is missing. Invariant: no cluster is asked.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests fail by panicking, as tests do"
)]

use std::time::Duration;

use serde_json::Value;
use vendue_testbed::command::{command, run};
use vendue_testbed::{Paths, Progress, Result, tools};

const LIMIT: Duration = Duration::from_secs(60);

async fn template(profile: &str, set: &[&str]) -> Result<String> {
    template_for(profile, set, &[]).await
}

/// As it is rendered for a cluster that serves these groups of APIs beside Kubernetes' own.
async fn template_for(profile: &str, set: &[&str], apis: &[&str]) -> Result<String> {
    let paths = Paths::from_env()?;
    let clients = tools::clients(&paths, &Progress::stderr()).await?;
    let chart = paths.checkout().join("charts/vendue");
    let mut helm = command(clients.helm, ["template", "vendue", "--namespace", "vendue-system"]);
    helm.arg(&chart).arg("--values").arg(chart.join(format!("ci/{profile}-values.yaml")));
    helm.args(set.iter().flat_map(|value| ["--set", value]));
    helm.args(apis.iter().flat_map(|api| ["--api-versions", api]));
    run("helm template", LIMIT, helm).await
}

async fn objects(profile: &str) -> Vec<Value> {
    let text = template(profile, &[]).await.unwrap();
    let parts = text.split("\n---\n").map(|part| serde_saphyr::from_str::<Value>(part).unwrap());
    parts.filter(Value::is_object).collect()
}

/// The Pod that an object makes, if it makes one.
fn pod_spec(object: &Value) -> Option<&Value> {
    match object["kind"].as_str()? {
        "Pod" => Some(&object["spec"]),
        "Deployment" | "DaemonSet" | "Job" => Some(&object["spec"]["template"]["spec"]),
        _ => None,
    }
}

#[tokio::test]
#[ignore = "needs helm; run by cargo verify"]
async fn every_pod_is_hardened_bounded_and_watched() {
    for profile in ["home", "provider", "both"] {
        let objects = objects(profile).await;
        let mut pods = 0;
        for object in &objects {
            let Some(spec) = pod_spec(object) else { continue };
            let name = format!("{profile}: {} {}", object["kind"], object["metadata"]["name"]);
            pods += 1;
            // Kubelet's socket and the folder on the node belong to root; no Pod has a capability.
            let user = if object["metadata"]["name"] == "vendue-gpu-agent" { 0 } else { 65_532 };
            assert_eq!(spec["securityContext"]["runAsUser"], user, "{name}");
            assert_eq!(
                spec["securityContext"]["runAsNonRoot"].as_bool().unwrap_or(false),
                user != 0,
                "{name}"
            );
            assert_eq!(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{name}");
            assert!(spec["hostNetwork"].is_null() && spec["hostPID"].is_null(), "{name}");
            for container in spec["containers"].as_array().unwrap() {
                let security = &container["securityContext"];
                assert_eq!(security["allowPrivilegeEscalation"], false, "{name}");
                assert_eq!(security["readOnlyRootFilesystem"], true, "{name}");
                assert_eq!(security["capabilities"]["drop"][0], "ALL", "{name}");
                assert!(container["resources"]["limits"]["memory"].is_string(), "{name}");
                assert!(container["resources"]["requests"]["cpu"].is_string(), "{name}");
                let stays = matches!(object["kind"].as_str(), Some("Deployment" | "DaemonSet"));
                for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
                    assert_eq!(container[probe].is_object(), stays, "{name} {probe}");
                }
            }
        }
        assert!(pods >= 5, "{profile}: {pods} Pods");
        for role in objects.iter().filter(|o| o["kind"].as_str().is_some_and(|k| k.ends_with("Role"))) {
            assert!(!role["rules"].to_string().contains("\"*\""), "{profile}: {role}");
        }
    }
}

/// The volume of the seat's log, as the Deployment of a profile has it, and its claim.
async fn seat_log(profile: &str, set: &[&str]) -> (Value, bool) {
    let text = template(profile, set).await.unwrap();
    let objects = text.split("\n---\n").map(|part| serde_saphyr::from_str::<Value>(part).unwrap());
    let objects: Vec<Value> = objects.collect();
    let named = |kind: &str, name: &str| {
        objects.iter().find(|o| o["kind"] == *kind && o["metadata"]["name"] == *name)
    };
    let pod = pod_spec(named("Deployment", "vendue-auction").unwrap()).unwrap();
    let volume = pod["volumes"].as_array().unwrap().iter().find(|v| v["name"] == "log").cloned();
    let told = pod["containers"][0]["env"].to_string().contains("VENDUE_LOG_DIR");
    assert_eq!(told, volume.is_some(), "{profile} {set:?}");
    (volume.unwrap_or_default(), named("PersistentVolumeClaim", "vendue-seat-log").is_some())
}

#[tokio::test]
#[ignore = "needs helm; run by cargo verify"]
async fn a_seat_has_a_log_on_what_the_cluster_has() {
    for profile in ["provider", "both"] {
        let (volume, claim) = seat_log(profile, &[]).await;
        assert_eq!((volume["emptyDir"]["sizeLimit"].as_str(), claim), (Some("1Gi"), false), "{profile}");
    }
    let (volume, claim) = seat_log("provider", &["auction.log.storageClass=fast"]).await;
    assert_eq!(volume["persistentVolumeClaim"]["claimName"], "vendue-seat-log");
    assert!(claim);
    for (size, max_mib) in [("256Mi", "96"), ("1Gi", "480"), ("1Ti", "524256")] {
        let text = template("provider", &[&format!("auction.log.size={size}")]).await.unwrap();
        assert!(text.contains(&format!("VENDUE_LOG_MAX_MIB, value: \"{max_mib}\"")), "{size}");
    }
    let small = template("provider", &["auction.log.size=255Mi"]).await.unwrap_err().to_string();
    assert!(small.contains("auction.log.size") && small.contains("256Mi"), "{small}");
    for (profile, set) in [("home", "auction.log.storageClass=fast"), ("both", "auction.log.enabled=false")] {
        assert_eq!(seat_log(profile, &[set]).await, (Value::Null, false), "{profile} {set}");
    }
}

#[tokio::test]
#[ignore = "needs helm; run by cargo verify"]
async fn values_that_cannot_work_are_refused_with_their_name() {
    for (set, word) in [
        ("auction.store.maxMib=6000", "auction.store.maxMib"),
        ("auction.store.size=1000Mi", "auction.store.size"),
        ("auction.p2p.nodePort=70000", "nodePort"),
        ("auction.p2p.serviceTyp=NodePort", "serviceTyp"),
        ("profile=seller", "profile"),
        ("market.record=", "market.record"),
        ("market.existingConfigMap=other", "only one of"),
        ("auction.nextKeysSecret=keys-1", "without market.nextRecord"),
    ] {
        let error = template("home", &[set]).await.expect_err(set).to_string();
        assert!(error.contains(word), "{set}: {error}");
    }
    let shareless = template("provider", &["market.nextRecord=next"]).await.unwrap_err().to_string();
    assert!(shareless.contains("without auction.nextKeysSecret"), "{shareless}");
    template("home", &["auction.store.size=1Ti,auction.store.maxMib=1048064"]).await.unwrap();
}

/// Folders below /etc/vendue that the auction process is told of and has, and what restarts it.
async fn epochs(profile: &str, set: &[&str]) -> (Vec<String>, Option<String>) {
    let text = template(profile, set).await.unwrap();
    let objects = text.split("\n---\n").map(|part| serde_saphyr::from_str::<Value>(part).unwrap());
    let all: Vec<Value> = objects.collect();
    let auction = |o: &&Value| o["kind"] == "Deployment" && o["metadata"]["name"] == "vendue-auction";
    let deployment = all.iter().find(auction).unwrap();
    let pod = pod_spec(deployment).unwrap();
    let (env, mounts) =
        (&pod["containers"][0]["env"], pod["containers"][0]["volumeMounts"].as_array().unwrap());
    let volume =
        |name: &Value| pod["volumes"].as_array().unwrap().iter().find(|v| v["name"] == *name).unwrap();
    let told =
        mounts.iter().filter(|m| env.to_string().contains(&format!("{}/", m["mountPath"].as_str().unwrap())));
    let source = |m: &Value| {
        let volume = volume(&m["name"]);
        let name = volume["configMap"]["name"].as_str().or(volume["secret"]["secretName"].as_str());
        name.unwrap_or_default().to_owned()
    };
    let next = all.iter().find(|o| o["kind"] == "ConfigMap" && o["metadata"]["name"] == "vendue-market-next");
    if let Some(next) = next {
        assert_eq!(next["data"]["market.json"], "the-next-record");
    }
    let annotations = &deployment["spec"]["template"]["metadata"]["annotations"];
    let restarts = annotations["vendue.dev/next-market-sha256"].as_str().map(str::to_owned);
    assert_eq!(restarts.is_some(), next.is_some(), "{profile}");
    (told.map(source).filter(|s| s.contains("market") || s.contains("keys")).collect(), restarts)
}

#[tokio::test]
#[ignore = "needs helm; run by cargo verify"]
async fn a_cluster_is_given_the_next_epoch_beside_the_present_one() {
    const RECORD: &str = "market.nextRecord=the-next-record";
    const KEYS: &str = "auction.nextKeysSecret=keys-1";
    for profile in ["home", "provider", "both"] {
        let (now, restarts) = epochs(profile, &[]).await;
        assert_eq!((now, restarts), (vec!["vendue-market".to_owned(), "vendue-keys".to_owned()], None));
        let (both, restarts) = epochs(profile, &[RECORD, KEYS]).await;
        assert_eq!(both, ["vendue-market", "vendue-keys", "vendue-market-next", "keys-1"], "{profile}");
        assert!(restarts.is_some(), "a running process takes no other epoch");
    }
    let (home, _) = epochs("home", &[RECORD]).await;
    assert_eq!(home, ["vendue-market", "vendue-keys", "vendue-market-next"]);
}

#[tokio::test]
#[ignore = "needs helm; run by cargo verify"]
async fn a_service_monitor_is_made_only_where_its_kind_is_known() {
    const OFF: &str = "metrics.serviceMonitor.enabled=false";
    const KIND: &str = "kind: ServiceMonitor";
    let api = ["monitoring.coreos.com/v1"];
    let with = template_for("provider", &[], &api).await.unwrap();
    assert_eq!(with.matches(KIND).count(), 1);
    assert!(!template("provider", &[]).await.unwrap().contains(KIND), "the cluster would refuse the kind");
    assert!(!template_for("provider", &[OFF], &api).await.unwrap().contains(KIND), "nobody wants it");
    // It selects the Services that carry metrics, and there are some.
    assert!(with.contains("vendue.dev/metrics: \"true\""));
}

/// Alerts are Prometheus' own templates, which helm must not take for its.
#[tokio::test]
#[ignore = "needs helm; run by cargo verify"]
async fn alerts_are_a_prometheus_rule_where_they_are_wanted_and_known() {
    const ON: &str = "metrics.prometheusRule.enabled=true,metrics.prometheusRule.labels.release=kube";
    const KIND: &str = "kind: PrometheusRule";
    let api = ["monitoring.coreos.com/v1"];
    let text = template_for("provider", &[ON], &api).await.unwrap();
    let rule = text.split("\n---\n").find(|part| part.contains(KIND)).unwrap();
    let rule: Value = serde_saphyr::from_str(rule).unwrap();
    assert_eq!(rule["metadata"]["labels"]["release"], "kube");
    let path = Paths::from_env().unwrap().checkout().join("charts/vendue/alerts/vendue.yaml");
    let rules: Value = serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(rule["spec"], rules);
    assert!(!template("provider", &[ON]).await.unwrap().contains(KIND), "the cluster would refuse the kind");
    assert!(!template_for("provider", &[], &api).await.unwrap().contains(KIND), "nobody wants it");
}

/// The second port of agents is in their Service and is scraped, where it is asked for.
#[tokio::test]
#[ignore = "needs helm; run by cargo verify"]
async fn the_port_of_dcgms_names_is_found_where_it_is_served() {
    const PARTS: [&str; 3] = [
        "- { name: compat, containerPort: 9400 }",
        "- { name: compat, port: 9400, targetPort: compat }",
        "- { port: compat, path: /metrics, interval: 15s }",
    ];
    let api = ["monitoring.coreos.com/v1"];
    for (profile, compat, expected) in [
        ("provider", "gpuAgent.metricsCompat=dcgm", 1),
        ("both", "gpuAgent.metricsCompat=dcgm", 1),
        ("provider", "gpuAgent.metricsCompat=", 0),
        // No agents run there.
        ("home", "gpuAgent.metricsCompat=dcgm", 0),
    ] {
        let text = template_for(profile, &[compat], &api).await.unwrap();
        assert_eq!(PARTS.map(|part| text.matches(part).count()), [expected; 3], "{profile} {compat}");
    }
}

/// What an agent may do to Nodes.
#[tokio::test]
#[ignore = "needs helm; run by cargo verify"]
async fn agents_may_change_of_nodes_what_they_are_to() {
    const POLICY: &str = "name: vendue-gpu-agent-own-taints";
    const FEATURE: &str = "|| key in variables.feature)\n      message";
    const TOLD: &str = "VENDUE_GFD_LABELS";
    const TAINTS: &str = "\"['vendue.dev/xid', 'vendue.dev/ecc', 'vendue.dev/thermal']\"";
    for (taints, labels) in [(true, false), (true, true), (false, true), (false, false)] {
        let set = format!("gpuAgent.taintNodes={taints},gpuAgent.gfdLabels={labels}");
        let text = template("provider", &[&set]).await.unwrap();
        let found = [POLICY, FEATURE, TOLD, TAINTS].map(|part| text.contains(part));
        assert_eq!(found, [taints || labels, labels, labels, taints], "{set}");
        let patches = text.contains("resources: [nodes]\n    verbs: [patch]");
        assert_eq!(patches, taints || labels, "{set}");
    }
}

/// The host's processes are seen only where that is asked for.
#[tokio::test]
#[ignore = "needs helm; run by cargo verify"]
async fn agents_see_the_hosts_processes_only_when_they_are_to_attribute_them() {
    for (set, expected) in [(&[][..], false), (&["gpuAgent.processAttribution=true"][..], true)] {
        let text = template("provider", set).await.unwrap();
        let found = ["hostPID: true", "VENDUE_PROCESS_ATTRIBUTION"].map(|part| text.contains(part));
        assert_eq!(found, [expected; 2], "{set:?}");
    }
}

/// A rendering without what differs from one to the next, or with the version only.
fn stable(text: &str) -> String {
    let secret = |line: &str| {
        let (key, value) = line.split_once(": ")?;
        let made = matches!(key.trim(), "caBundle" | "tls.crt" | "tls.key" | "ca.crt") && value.len() > 200;
        made.then(|| format!("{key}: MADE"))
    };
    let lines = text.lines().map(|l| secret(l).unwrap_or_else(|| l.trim_end().to_owned()) + "\n");
    lines.collect::<String>().replace(env!("CARGO_PKG_VERSION"), "VERSION")
}

#[tokio::test]
#[ignore = "needs helm; run by cargo verify"]
async fn each_profile_renders_to_what_is_stored() {
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for profile in ["home", "both"] {
        let found = stable(&template(profile, &[]).await.unwrap());
        let path = golden.join(format!("{profile}.yaml"));
        if std::env::var_os("VENDUE_WRITE_GOLDEN").is_some() {
            std::fs::create_dir_all(&golden).unwrap();
            std::fs::write(&path, &found).unwrap();
        }
        let stored = std::fs::read_to_string(&path).unwrap_or_default();
        let line = found.lines().zip(stored.lines()).position(|(f, s)| f != s);
        let line = line.unwrap_or_else(|| found.lines().count().min(stored.lines().count()));
        assert!(
            found == stored,
            "{profile}, line {}: rendered {:?}, stored {:?}; after a wanted change run it once with VENDUE_WRITE_GOLDEN=1",
            line + 1,
            found.lines().nth(line),
            stored.lines().nth(line)
        );
    }
}
