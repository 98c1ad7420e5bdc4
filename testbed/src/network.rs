//! The market's network: one namespace per cluster, a bridge between them, a management link to the host.
//!
//! ```text
//!  host ──mgmt0──▶ vd-<market>-<cluster> ──eth0──▶ bridge in vd-<market>-wan ◀── other clusters
//! ```
//! The host reaches node and Pod addresses over the management link, so a cluster that is cut off from
//! the others can still be looked at. Cutting off = the bridge's end of the link goes down: addresses stay,
//! and traffic inside the cluster goes on.

use std::path::PathBuf;
use std::time::Duration;

use crate::command::{command, run, run_with_input};
use crate::error::Result;
use crate::spec::{Place, namespace_prefix, wan_namespace};

const LIMIT: Duration = Duration::from_secs(20);

/// File of a named network namespace.
pub fn namespace_file(name: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(name)
}

/// Makes the bridge that joins the clusters.
pub async fn create_wan(market: &str) -> Result<()> {
    let wan = wan_namespace(market);
    ip(&[format!("netns add {wan}")]).await?;
    ip_in(&wan, &["link set lo up".into(), "link add br0 type bridge".into(), "link set br0 up".into()]).await
}

/// Makes one cluster's namespace, its link into the bridge and its link to the host.
pub async fn create_cluster(place: &Place) -> Result<()> {
    let (ns, wan, link) = (place.namespace(), place.wan_namespace(), place.wan_link());
    let (host, node) = place.management();
    let mgmt = place.management_link();
    ip(&[format!("netns add {ns}"), format!("link add {mgmt} type veth peer name mgmt0 netns {ns}")]).await?;
    ip_in(
        &wan,
        &[
            format!("link add {link} type veth peer name eth0 netns {ns}"),
            format!("link set {link} master br0"),
            format!("link set {link} up"),
        ],
    )
    .await?;
    ip_in(
        &ns,
        &[
            "link set lo up".into(),
            format!("addr add {}/{} dev eth0", place.address(), place.wan_prefix()),
            "link set eth0 up".into(),
            format!("addr add {node}/30 dev mgmt0"),
            "link set mgmt0 up".into(),
            // Nothing outside the market is reachable; this makes such attempts fail at once.
            "route add unreachable default".into(),
        ],
    )
    .await?;
    ip(&[
        format!("addr add {host}/30 dev {mgmt}"),
        format!("link set {mgmt} up"),
        format!("route add {}/32 via {node}", place.address()),
        format!("route add {} via {node}", place.pod_range()),
    ])
    .await?;
    sysctl(&ns, "net/ipv4/ip_forward", "1").await
}

/// Sets whether the cluster can reach the others.
pub async fn set_connected(place: &Place, connected: bool) -> Result<()> {
    let state = if connected { "up" } else { "down" };
    ip_in(&place.wan_namespace(), &[format!("link set {} {state}", place.wan_link())]).await
}

/// Names of the existing namespaces of a market.
pub async fn namespaces(market: &str) -> Result<Vec<String>> {
    let prefix = namespace_prefix(market);
    Ok(namespaces_of_all().await?.into_iter().filter(|n| n.starts_with(&prefix)).collect())
}

/// Names of the existing namespaces of all markets.
pub async fn namespaces_of_all() -> Result<Vec<String>> {
    let text = run("list network namespaces", LIMIT, command("ip", ["netns", "list"])).await?;
    let names = text.lines().filter_map(|l| l.split_whitespace().next());
    Ok(names.filter(|n| n.starts_with("vd-")).map(Into::into).collect())
}

/// Deletes one namespace; its links go with it.
pub async fn delete_namespace(name: &str) -> Result<()> {
    run("delete network namespace", LIMIT, command("ip", ["netns", "delete", name])).await.map(|_| ())
}

/// Deletes a slot's management links that are still on the host.
pub async fn delete_management_links(slot: u8) -> Result<()> {
    let text = run("list links", LIMIT, command("ip", ["-o", "link", "show"])).await?;
    let prefix = format!("vdm{slot}-");
    for name in text.lines().filter_map(|l| l.split(": ").nth(1)).filter_map(|n| n.split('@').next()) {
        if name.starts_with(&prefix) {
            // Deleting a namespace deletes its links a moment later: gone already is fine.
            let _ = run("delete link", LIMIT, command("ip", ["link", "delete", name])).await;
        }
    }
    Ok(())
}

async fn ip(lines: &[String]) -> Result<()> {
    batch(command("ip", ["-batch", "-"]), lines).await
}

async fn ip_in(namespace: &str, lines: &[String]) -> Result<()> {
    batch(command("ip", ["-n", namespace, "-batch", "-"]), lines).await
}

async fn batch(command: tokio::process::Command, lines: &[String]) -> Result<()> {
    let mut input = lines.join("\n");
    input.push('\n');
    run_with_input("set up network", LIMIT, command, &input).await.map(|_| ())
}

async fn sysctl(namespace: &str, key: &str, value: &str) -> Result<()> {
    let net = format!("--net={}", namespace_file(namespace).display());
    let write = format!("echo {value} > /proc/sys/{key}");
    run("set kernel parameter", LIMIT, command("nsenter", [net.as_str(), "sh", "-c", &write]))
        .await
        .map(|_| ())
}
