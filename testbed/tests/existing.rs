//! The demo on clusters that somebody else has: a market of the test bed's stands in for them, and everything goes
//! through its kubeconfig and contexts only.
//!
//! Inputs: the test bed's tools and images. Invariant: after each attempt, good or bad, the clusters are as before.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking, as tests do"
)]

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::FutureExt as _;
use serde_json::{Value, json};
use vendue_testbed::deploy::{self, Deployment, Existing, Reach, Source};
use vendue_testbed::images::{self, RAY_IMAGE, VENDUE_IMAGE};
use vendue_testbed::objects::apply;
use vendue_testbed::wait::{Poll, until};
use vendue_testbed::{
    Cluster, ClusterSpec, Market, MarketSpec, Options, Paths, Progress, Result, Setup, demo, gpu, setup,
};

const LIMIT: Duration = Duration::from_secs(900);
const NAME: &str = "infexist";

fn options(kubeconfig: &Path, contexts: [&str; 2]) -> Existing {
    Existing {
        kubeconfig: kubeconfig.into(),
        members: vec![
            format!("home={}", contexts[0]).parse().unwrap(),
            format!("east={}", contexts[1]).parse().unwrap(),
        ],
        image: VENDUE_IMAGE.parse().unwrap(),
        ray_image: RAY_IMAGE.parse().unwrap(),
        reach: Reach::NodePort,
        node_port: 31470,
        addresses: vec![],
        storage_class: None,
        runtime_class: None,
        simulated_nvml: Some(PathBuf::from(gpu::NODE_FOLDER)),
    }
}

/// Why the demo does not go on these clusters.
async fn refusal(paths: &Paths, options: Existing) -> String {
    match Deployment::up(paths, &Source::Existing(Box::new(options)), false, &Progress::stderr()).await {
        Ok(_) => panic!("it went on"),
        Err(error) => error.to_string(),
    }
}

async fn kubectl(setup: &Setup, cluster: &Cluster, args: &[&str]) -> Result<String> {
    let mut kubectl = vendue_testbed::command::command(&setup.programs.kubectl, cluster.kubectl_args());
    kubectl.args(args);
    vendue_testbed::command::run("kubectl", Duration::from_secs(60), kubectl).await
}

/// What of Vendue is on a cluster.
async fn traces(setup: &Setup, cluster: &Cluster) -> Result<String> {
    let kinds = "namespaces,crds,clusterroles,clusterrolebindings,apiservices,validatingadmissionpolicies,pv";
    let all = kubectl(setup, cluster, &["get", kinds, "-o", "name"]).await?;
    let maps = kubectl(setup, cluster, &["get", "configmaps", "-n", "default", "-o", "name"]).await?;
    Ok(all
        .lines()
        .chain(maps.lines())
        .filter(|l| l.contains("vendue") || l.contains("digits"))
        .collect::<Vec<_>>()
        .join(" "))
}

/// A copy of the kubeconfig with something changed.
fn changed(from: &Path, to: PathBuf, change: impl FnOnce(&mut Value)) -> PathBuf {
    let mut value: Value = serde_json::from_str(&std::fs::read_to_string(from).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(&to, value.to_string()).unwrap();
    to
}

async fn refusals(setup: &Setup, market: &Market) -> Result<()> {
    let paths = &setup.paths;
    let kubeconfig = market.kubeconfig().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let missing = refusal(paths, options(&kubeconfig, ["mine", "nowhere"])).await;
    assert!(missing.contains("\"nowhere\"") && missing.contains("choose from mine, theirs"), "{missing}");

    let dead = changed(&kubeconfig, dir.path().join("dead"), |v| {
        v["clusters"][1]["cluster"]["server"] = json!("https://127.0.0.1:1");
    });
    let dead = refusal(paths, options(&dead, ["mine", "theirs"])).await;
    assert!(dead.contains("east cannot be reached") && dead.contains("--context theirs"), "{dead}");

    let theirs = market.cluster("theirs")?;
    let token = kubectl(setup, theirs, &["create", "token", "default"]).await?;
    let weak = changed(&kubeconfig, dir.path().join("weak"), |v| {
        v["users"][1]["user"] = json!({ "token": token.trim() });
    });
    let weak = refusal(paths, options(&weak, ["mine", "theirs"])).await;
    for part in
        ["east: you may not", "create customresourcedefinitions", "cluster-admin", "nothing was changed"]
    {
        assert!(weak.contains(part), "{part}: {weak}");
    }

    let swapped = refusal(paths, options(&kubeconfig, ["theirs", "mine"])).await;
    assert!(swapped.contains("none of its 1 nodes (1 ready) offers nvidia.com/gpu"), "{swapped}");

    let class = Existing { storage_class: Some("fast".into()), ..options(&kubeconfig, ["mine", "theirs"]) };
    let class = refusal(paths, class).await;
    assert!(class.contains("no storage class fast") && class.contains("vendue-local"), "{class}");

    let busy = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "busy", "namespace": "default"},
        "spec": {"type": "NodePort", "ports": [{"port": 1, "protocol": "UDP", "nodePort": 31470}]}});
    apply(&theirs.client(), "services", &busy).await?;
    let port = refusal(paths, options(&kubeconfig, ["mine", "theirs"])).await;
    assert!(port.contains("UDP node port 31470 is taken by Service default/busy"), "{port}");
    assert!(port.contains("--node-port"), "{port}");
    kubectl(setup, theirs, &["delete", "service", "busy"]).await?;

    let absent = Existing {
        image: "vendue.local/vendue:absent".parse().unwrap(),
        ..options(&kubeconfig, ["mine", "theirs"])
    };
    let absent = refusal(paths, absent).await;
    for part in ["cannot pull an image: vendue.local/vendue:absent", "--image"] {
        assert!(absent.contains(part), "{part}: {absent}");
    }
    Ok(())
}

async fn demo_on_them(setup: &Setup, market: &Market) -> Result<()> {
    let progress = Progress::stderr();
    let options = options(&market.kubeconfig().unwrap(), ["mine", "theirs"]);
    let source = Source::Existing(Box::new(options.clone()));
    let deployment = Deployment::up(&setup.paths, &source, false, &progress).await?;
    let mut report = demo::run_job(&deployment, &progress).await?;
    demo::look_at_results(&deployment, &mut report, &progress).await?;
    assert_eq!((report.winner.as_str(), report.certificate_verified), ("east", true));
    // A kept installation is used again, here with a load balancer before the seat, and taken off by itself.
    drop(deployment);
    let balanced = Existing { reach: Reach::LoadBalancer, ..options.clone() };
    let source = Source::Existing(Box::new(balanced));
    let again = tokio::select! {
        again = Deployment::up(&setup.paths, &source, false, &progress) => again?,
        error = balance(setup, market.cluster("theirs")?) => return error,
    };
    assert_eq!(kubectl(setup, market.cluster("theirs")?, &SEAT_TYPE).await?, "LoadBalancer");
    drop(again);
    deploy::remove_earlier(&setup.paths, &options, &progress).await
}

const SEAT_TYPE: [&str; 6] =
    ["get", "service", "vendue-auction-p2p", "--namespace=vendue-system", "-o", "jsonpath={.spec.type}"];

/// Does what a cloud's load balancer does: gives the seat's Service an address, here the node's. Never ends well.
async fn balance(setup: &Setup, cluster: &Cluster) -> Result<()> {
    let status =
        json!({ "status": { "loadBalancer": { "ingress": [{ "ip": cluster.address() }] } } }).to_string();
    let patch = [
        "patch",
        SEAT_TYPE[1],
        SEAT_TYPE[2],
        SEAT_TYPE[3],
        "--subresource=status",
        "--type=merge",
        "-p",
        &status,
    ];
    let period = Duration::from_millis(500);
    until("balance", LIMIT, period, || async {
        // Refused until the Service is there and of the right type.
        let _ = kubectl(setup, cluster, &patch).await;
        Ok(Poll::Pending("the test goes on".into()))
    })
    .await
}

async fn all(setup: &Setup, market: &Market) -> Result<()> {
    refusals(setup, market).await?;
    for cluster in market.clusters() {
        assert_eq!(traces(setup, cluster).await?, "", "after the refusals");
    }
    demo_on_them(setup, market).await?;
    for cluster in market.clusters() {
        assert_eq!(traces(setup, cluster).await?, "", "after the demo");
    }
    Ok(())
}

#[tokio::test]
#[ignore = "needs root and the test bed's tools; run by cargo verify"]
async fn the_demo_runs_on_clusters_of_others_and_leaves_nothing() {
    let progress = Progress::stderr();
    let paths = Paths::from_env().unwrap();
    let setup = setup::prepare(&paths, &progress).await.unwrap();
    let programs = deploy::build(&paths, &progress).await.unwrap();
    let image = images::vendue_image(&paths, &programs, false, &progress).await.unwrap();
    let spec = MarketSpec {
        name: NAME.into(),
        clusters: vec![ClusterSpec::new("mine"), ClusterSpec::new("theirs").with_gpus("h100", 2)],
    };
    let options = Options { images: vec![image], programs: Some(programs), progress };
    let market = Market::start(&setup, &spec, &options).await.unwrap();
    let work = AssertUnwindSafe(all(&setup, &market)).catch_unwind();
    let result = tokio::time::timeout(LIMIT, work).await;
    if !matches!(result, Ok(Ok(Ok(())))) {
        let folder = setup.paths.cache().join("failed").join(NAME);
        eprintln!("{}", vendue_testbed::dump::market(&market, &folder).await.unwrap());
    }
    market.stop(&setup).await.unwrap();
    match result.expect("the test took too long") {
        Ok(result) => result.unwrap(),
        Err(panic) => resume_unwind(panic),
    }
}
