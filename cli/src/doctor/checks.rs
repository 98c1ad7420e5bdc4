//! The checks of a cluster, from the ground up.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use vendue_crds::conditions::{self, gpu_node, provision};

use super::api::{Cluster, Seen};
use super::market;
use crate::error::CliError;
use crate::report::{Check, Level};

/// What this cluster is in the market.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Its users buy.
    pub home: bool,
    /// It sells.
    pub provider: bool,
}

/// Runs every check that fits the cluster's profile.
pub async fn all(cluster: &Cluster) -> Result<Vec<Check>, CliError> {
    let mut checks = vec![Check::ok("api server", cluster.version().await?)];
    checks.push(crds(cluster).await?);
    let auction = cluster.deployment("vendue-auction").await?;
    let profile = match &auction {
        Seen::There(deployment) => profile(deployment),
        _ => Profile { home: false, provider: false },
    };
    let controller = cluster.deployment("vendue-controller").await?;
    checks.push(deployment(cluster, "vendue-controller", &controller));
    checks.push(deployment(cluster, "vendue-auction", &auction));
    checks.extend(market::all(cluster, &auction, profile).await?);
    if profile.home {
        checks.push(stream(cluster).await?);
    }
    if profile.provider {
        checks.push(agents(cluster).await?);
        checks.extend(gpu_nodes(cluster).await?);
        checks.extend(provisions(cluster).await?);
    }
    Ok(checks)
}

pub(super) fn forbidden(name: &str) -> Check {
    Check::new(Level::Skip, name, "you may not read it; an administrator of the cluster may")
}

/// The command that upgrades Vendue's release. Without the flag Helm takes the chart's values for all that are not given
/// anew, and a provider becomes a home.
pub(super) fn upgrade_command(system: &str, values: &str) -> String {
    let command = format!("helm upgrade vendue charts/vendue --namespace {system} --reset-then-reuse-values");
    if values.is_empty() { command } else { format!("{command} {values}") }
}

async fn crds(cluster: &Cluster) -> Result<Check, CliError> {
    let mut missing = vec![];
    for crd in vendue_crds::crds() {
        let name = crd.metadata.name.unwrap_or_default();
        match cluster.crd(&name).await? {
            Seen::There(found) => {
                let conditions = found.status.and_then(|s| s.conditions).unwrap_or_default();
                if !conditions.iter().any(|c| c.type_ == "Established" && c.status == "True") {
                    missing.push(format!("{name} (not established)"));
                }
            }
            Seen::Missing => missing.push(name),
            Seen::Forbidden => return Ok(forbidden("crds")),
        }
    }
    Ok(if missing.is_empty() {
        Check::ok("crds", "all kinds of vendue.dev are there")
    } else {
        Check::fail(
            "crds",
            format!("missing: {}", missing.join(", ")),
            format!("helm upgrade --install vendue-crds charts/vendue-crds --namespace {}", cluster.system),
        )
    })
}

fn profile(deployment: &Deployment) -> Profile {
    let env = deployment
        .spec
        .iter()
        .flat_map(|s| s.template.spec.iter())
        .flat_map(|s| &s.containers)
        .flat_map(|c| c.env.iter().flatten());
    let value = env.into_iter().find(|e| e.name == "VENDUE_PROFILE").and_then(|e| e.value.as_deref());
    let value = value.unwrap_or_default();
    Profile { home: matches!(value, "home" | "both"), provider: matches!(value, "provider" | "both") }
}

fn deployment(cluster: &Cluster, name: &str, seen: &Seen<Deployment>) -> Check {
    let look = format!("kubectl describe pods -n {} -l app.kubernetes.io/name={name}", cluster.system);
    match seen {
        Seen::Forbidden => forbidden(name),
        Seen::Missing => Check::fail(
            name,
            format!("no Deployment in namespace {}", cluster.system),
            "install charts/vendue as the README says (`helm install vendue ...`), or name its namespace with --system-namespace",
        ),
        Seen::There(found) => {
            let wanted = found.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
            let ready = found.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0);
            match ready >= wanted && wanted > 0 {
                true => Check::ok(name, format!("{ready} of {wanted} ready")),
                false => Check::fail(name, format!("{ready} of {wanted} ready"), look),
            }
        }
    }
}

async fn stream(cluster: &Cluster) -> Result<Check, CliError> {
    let name = "logs and outputs";
    let reinstall = upgrade_command(&cluster.system, "");
    Ok(match cluster.stream_service().await? {
        Seen::Forbidden => forbidden(name),
        Seen::Missing => Check::fail(name, "APIService v1alpha1.stream.vendue.dev is missing", reinstall),
        Seen::There(service) => {
            let conditions = service.status.and_then(|s| s.conditions).unwrap_or_default();
            match conditions.into_iter().find(|c| c.type_ == "Available") {
                Some(c) if c.status == "True" => {
                    Check::ok(name, "APIService v1alpha1.stream.vendue.dev is available")
                }
                Some(c) => Check::fail(
                    name,
                    format!(
                        "APIService: {}: {}",
                        c.reason.unwrap_or_default(),
                        c.message.unwrap_or_default()
                    ),
                    format!("kubectl logs -n {} deploy/vendue-auction", cluster.system),
                ),
                None => Check::fail(
                    name,
                    "the API server has not tried the APIService yet",
                    "ask again in a moment",
                ),
            }
        }
    })
}

async fn agents(cluster: &Cluster) -> Result<Check, CliError> {
    let name = "vendue-gpu-agent";
    Ok(match cluster.daemon_set(name).await? {
        Seen::Forbidden => forbidden(name),
        Seen::Missing => Check::fail(name, "no DaemonSet", upgrade_command(&cluster.system, "")),
        Seen::There(set) => {
            let status = set.status.unwrap_or_default();
            let detail = format!("{} of {} nodes", status.number_ready, status.desired_number_scheduled);
            match (status.desired_number_scheduled, status.number_ready >= status.desired_number_scheduled) {
                (0, _) => Check::fail(
                    name,
                    "no node matches gpuAgent.nodeSelector",
                    "label the GPU nodes, or change the value",
                ),
                (_, true) => Check::ok(name, detail),
                (_, false) => Check::fail(
                    name,
                    detail,
                    format!("kubectl logs -n {} ds/{name} --prefix", cluster.system),
                ),
            }
        }
    })
}

/// The condition, in one line.
fn said(condition: Option<&Condition>) -> String {
    condition.map_or_else(|| "not reported yet".to_owned(), |c| format!("{}: {}", c.reason, c.message))
}

async fn gpu_nodes(cluster: &Cluster) -> Result<Vec<Check>, CliError> {
    let nodes = match cluster.gpu_nodes().await? {
        Seen::There(nodes) => nodes,
        Seen::Missing => return Ok(vec![]),
        Seen::Forbidden => return Ok(vec![forbidden("gpu nodes")]),
    };
    if nodes.is_empty() {
        let look = format!("kubectl logs -n {} ds/vendue-gpu-agent --prefix", cluster.system);
        return Ok(vec![Check::fail("gpu nodes", "the agent has reported no node", look)]);
    }
    Ok(nodes
        .iter()
        .map(|node| {
            let name = format!("gpu node {}", node.metadata.name.as_deref().unwrap_or("?"));
            let status = node.status.clone().unwrap_or_default();
            let ready = conditions::find(&status.conditions, gpu_node::READY);
            match ready.is_some_and(|c| c.status == "True") {
                true => Check::ok(name, format!("{} GPUs", status.device_count)),
                false => Check::fail(name, said(ready), "kubectl describe gpunodes"),
            }
        })
        .collect())
}

async fn provisions(cluster: &Cluster) -> Result<Vec<Check>, CliError> {
    let list = match cluster.provisions().await? {
        Seen::There(list) => list,
        Seen::Missing => return Ok(vec![]),
        Seen::Forbidden => return Ok(vec![forbidden("provisions")]),
    };
    if list.is_empty() {
        return Ok(vec![Check::warn(
            "provisions",
            "none: this cluster sells nothing; see manifests/examples/provisions",
        )]);
    }
    Ok(list
        .iter()
        .map(|item| {
            let namespace = item.metadata.namespace.as_deref().unwrap_or("?");
            let plain = item.metadata.name.as_deref().unwrap_or("?");
            let name = format!("provision {namespace}/{plain}");
            let status = item.status.clone().unwrap_or_default();
            let bad = [provision::READY, provision::ADVERTISED]
                .into_iter()
                .find(|t| !conditions::is_true(&status.conditions, t));
            match bad {
                None => Check::ok(name, format!("{} of {} GPUs free", status.free_gpus, status.total_gpus)),
                Some(kind) => Check::fail(
                    name,
                    format!("not {kind}: {}", said(conditions::find(&status.conditions, kind))),
                    format!("kubectl describe provisions -n {namespace} {plain}"),
                ),
            }
        })
        .collect())
}
