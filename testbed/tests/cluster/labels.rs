//! The admission policy of agents that write labels of GPU feature discovery, on a real API server.
//!
//! Inputs: the chart's policy as it is rendered with `gpuAgent.gfdLabels=true`, under another name and for an account of its
//! own, so that the agents of the market go on under theirs. Invariant: everything that is made here is deleted again.

use std::time::Duration;

use serde_json::{Value, json};
use vendue_testbed::deploy::{NAMESPACE, Tools};
use vendue_testbed::wait::{self, Poll};

use crate::env::{Env, Failure, Scenario, check};

/// The policy and its binding in the chart.
const CHARTS: &str = "vendue-gpu-agent-own-taints";
/// The same here; the account that it is for too.
const OURS: &str = "t-label-agent";
/// A Node without a machine.
const NODE: &str = "t-label-node";
/// How the agent applies its labels.
const MANAGER: &str = "--field-manager=vendue-gpu-agent-labels";

/// An agent writes the labels of feature discovery, changes them and takes them back, on its own node; no other labels, of no
/// other node, and nothing of those that others have.
pub async fn agents_write_only_labels_of_feature_discovery(env: &Env) -> Scenario {
    let tools = &env.site("alpha").tools;
    let made = set_up(env, tools).await;
    let result = match made {
        Ok(()) => writes(env, tools).await,
        Err(error) => Err(error),
    };
    let cleaned = tools.kubectl(&["delete", "node", NODE, "--ignore-not-found", "--wait=false"]).await;
    let kinds = "validatingadmissionpolicybinding,validatingadmissionpolicy,clusterrolebinding";
    tools.kubectl(&["delete", kinds, OURS, "--ignore-not-found"]).await?;
    result?;
    cleaned?;
    Ok(())
}

async fn set_up(env: &Env, tools: &Tools) -> Scenario {
    let chart = env.deployment.setup.paths.checkout().join("charts/vendue");
    let (values, chart) = (chart.join("ci/provider-values.yaml"), chart.display().to_string());
    let values = values.display().to_string();
    let only = "templates/admission.yaml";
    let args =
        ["template", "vendue", &chart, "--namespace", NAMESPACE, "--values", &values, "--show-only", only];
    let text = tools.helm(&[&args[..], &["--set", "gpuAgent.gfdLabels=true"]].concat()).await?;
    let mut objects: Vec<Value> = vec![];
    for part in text.split("\n---\n") {
        let object: Value = serde_saphyr::from_str(part)?;
        if object["metadata"]["name"] == CHARTS {
            let renamed = object.to_string().replace(CHARTS, OURS).replace("vendue-gpu-agent", OURS);
            objects.push(serde_json::from_str(&renamed)?);
        }
    }
    check(objects.len() == 2, || format!("the chart has {} objects named {CHARTS}", objects.len()))?;
    objects.push(json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": { "name": OURS },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "vendue-gpu-agent" },
        "subjects": [{ "kind": "ServiceAccount", "name": OURS, "namespace": NAMESPACE }],
    }));
    let labels = json!({ "zone": "here" });
    objects
        .push(json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": NODE, "labels": labels } }));
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
    tools.kubectl_with_input(&["apply", "--server-side", "-f", "-"], &list.to_string()).await?;
    in_force(tools).await
}

/// The API server takes a while to learn of a policy.
async fn in_force(tools: &Tools) -> Scenario {
    let limit = Duration::from_secs(60);
    wait::until("the policy for labels is in force", limit, Duration::from_millis(500), || async {
        Ok(match label(tools, NODE, json!({ "example.com/x": "1" }), true).await {
            Ok(_) => Poll::Pending("a label that nobody wants was allowed".into()),
            Err(error) if error.contains("no label that is not its own") => Poll::Ready(()),
            Err(error) => Poll::Pending(error),
        })
    })
    .await?;
    Ok(())
}

/// Applies labels as the agent on [`NODE`] does; what it had before and does not have now goes.
async fn label(tools: &Tools, node: &str, labels: Value, dry: bool) -> Result<String, String> {
    let who = format!("--as=system:serviceaccount:{NAMESPACE}:{OURS}");
    let on = format!("--as-user-extra=authentication.kubernetes.io/node-name={NODE}");
    let object =
        json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": node, "labels": labels } });
    let mut args = vec!["apply", "--server-side", MANAGER, &who, &on, "-f", "-"];
    args.extend(dry.then_some("--dry-run=server"));
    tools.kubectl_with_input(&args, &object.to_string()).await.map_err(|error| error.to_string())
}

async fn writes(env: &Env, tools: &Tools) -> Scenario {
    let count = |n: &str| json!({ "nvidia.com/gpu.count": n, "nvidia.com/gpu.product": "NVIDIA-H100" });
    for (what, labels) in [("written", count("2")), ("changed", count("1")), ("taken back", json!({}))] {
        let done = label(tools, NODE, labels, false).await;
        done.map_err(|error| Failure::from(format!("labels could not be {what}: {error}")))?;
    }
    let labels = tools.kubectl(&["get", "node", NODE, "-o", "jsonpath={.metadata.labels}"]).await?;
    let as_before = labels.contains(r#""zone":"here""#) && !labels.contains("nvidia.com/");
    check(as_before, || format!("labels that are left: {labels}"))?;
    let real = env.site("alpha").cluster.node().ok_or("alpha has no node")?;
    let own = "no label that is not its own";
    for (node, labels, words) in [
        (NODE, json!({ "nvidia.com/gfd.timestamp": "1" }), own),
        (NODE, json!({ "nvidia.com/gpu.count": "2", "node-role.kubernetes.io/control-plane": "" }), own),
        (real.as_str(), count("2"), "taints only its own node"),
    ] {
        let found =
            label(tools, node, labels.clone(), true).await.map_or_else(|error| error, |_| "allowed".into());
        check(found.contains(words), || format!("{node} {labels}: expected {words:?}, found: {found}"))?;
    }
    takes_nothing_of_others(tools).await
}

/// Labels of others are neither changed nor removed; by force, which the agent never uses.
async fn takes_nothing_of_others(tools: &Tools) -> Scenario {
    let who = format!("--as=system:serviceaccount:{NAMESPACE}:{OURS}");
    let on = format!("--as-user-extra=authentication.kubernetes.io/node-name={NODE}");
    for (what, zone) in [("changed", json!("there")), ("removed", Value::Null)] {
        let change = json!({ "metadata": { "labels": { "zone": zone } } }).to_string();
        let args = ["patch", "node", NODE, "--type=merge", "--dry-run=server", &who, &on, "-p", &change];
        let found = tools.kubectl(&args).await.map_or_else(|error| error.to_string(), |_| "allowed".into());
        check(found.contains("no label that is not its own"), || format!("a label was {what}: {found}"))?;
    }
    Ok(())
}
