//! The checks of a cluster, from the ground up.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use vendue_crds::Provision;
use vendue_crds::conditions::{self, provision};

use super::api::{Cluster, Seen};
use super::{gpus, market};
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
        checks.extend(gpus::all(cluster).await?);
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

/// The condition, in one line.
pub(super) fn said(condition: Option<&Condition>) -> String {
    condition.map_or_else(|| "not reported yet".to_owned(), |c| format!("{}: {}", c.reason, c.message))
}

pub(super) async fn provisions(cluster: &Cluster) -> Result<Vec<Check>, CliError> {
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
    Ok(list.iter().flat_map(|item| provision_checks(&cluster.system, item)).collect())
}

/// Whether a Provision is sold, and what is doubted of its devices.
fn provision_checks(system: &str, item: &Provision) -> Vec<Check> {
    let namespace = item.metadata.namespace.as_deref().unwrap_or("?");
    let plain = item.metadata.name.as_deref().unwrap_or("?");
    let name = format!("provision {namespace}/{plain}");
    let status = item.status.clone().unwrap_or_default();
    let bad = [provision::READY, provision::ADVERTISED]
        .into_iter()
        .find(|t| !conditions::is_true(&status.conditions, t));
    let mut checks = vec![match bad {
        None => Check::ok(&name, format!("{} of {} GPUs free", status.free_gpus, status.total_gpus)),
        Some(kind) => Check::fail(
            &name,
            format!("not {kind}: {}", said(conditions::find(&status.conditions, kind))),
            format!("kubectl describe provisions -n {namespace} {plain}"),
        ),
    }];
    let doubt = |kind: &str| conditions::find(&status.conditions, kind).filter(|c| c.status == "True");
    if let Some(silent) = doubt(provision::AGENTS_SILENT) {
        let detail = format!("agents are silent: {}", said(Some(silent)));
        checks.push(Check::fail(&name, detail, gpus::ask_the_agent(system)));
    }
    let others = [provision::DUPLICATE_DEVICES, provision::LABELS_CONTRADICT].into_iter().filter_map(doubt);
    checks.extend(others.map(|c| Check::warn(&name, format!("{}: {}", c.type_, c.message))));
    checks
}
