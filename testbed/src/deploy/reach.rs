//! Where the other clusters reach a seat: an address that was given, a node's, or the load balancer's.
//!
//! Inputs: a cluster, its nodes and the options. Outputs: the seat's address for the market record, and the node that
//! its Pod has to be on. Invariant: the Service keeps datagrams on the node that got them, so a node's address goes
//! with that node.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Service};
use kube::ResourceExt as _;
use kube::api::Api;
use serde_json::json;

use super::Site;
use super::charts::NAMESPACE;
use super::existing::{Existing, Reach};
use super::preflight::is_usable;
use crate::client::call;
use crate::error::{Error, Result};
use crate::wait::{self, Poll};

const SERVICE: &str = "vendue-auction-p2p";
/// UDP port of the Service, which a load balancer passes on.
const SERVICE_PORT: u16 = 4470;
const BALANCER: Duration = Duration::from_secs(180);
const LOOK: Duration = Duration::from_secs(1);

/// How a seat is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Name in the market.
    pub name: String,
    /// Address as in the market record.
    pub multiaddr: String,
    /// Value of `kubernetes.io/hostname` of the node that the Pod has to be on.
    pub node: Option<String>,
}

/// Finds the address of a provider's seat.
pub(super) async fn seat(site: &Site, nodes: &[Node], options: &Existing) -> Result<Seat> {
    if let Some(given) = options.given_address(&site.name) {
        let port = given.port.unwrap_or(match options.reach {
            Reach::NodePort => options.node_port,
            Reach::LoadBalancer => SERVICE_PORT,
        });
        let node = nodes.iter().find(|n| addresses(n).any(|(_, a)| a == given.host)).map(hostname);
        return Ok(Seat { name: site.name.clone(), multiaddr: multiaddr(&given.host, port), node });
    }
    match options.reach {
        Reach::NodePort => by_node(&site.name, nodes, options.node_port),
        Reach::LoadBalancer => by_balancer(site, options.node_port).await,
    }
}

fn by_node(name: &str, nodes: &[Node], port: u16) -> Result<Seat> {
    let address = |node: &Node, wanted: &str| {
        addresses(node).find(|(kind, _)| *kind == wanted).map(|(_, address)| address.to_owned())
    };
    let best =
        |wanted: &str| nodes.iter().filter(|n| is_usable(n)).find_map(|n| Some((n, address(n, wanted)?)));
    let (node, address) = best("ExternalIP").or_else(|| best("InternalIP")).ok_or_else(|| {
        Error::Invalid(format!(
            "no ready node of {name} has an address; next: give --seat-address {name}=HOST"
        ))
    })?;
    Ok(Seat { name: name.into(), multiaddr: multiaddr(&address, port), node: Some(hostname(node)) })
}

fn addresses(node: &Node) -> impl Iterator<Item = (&str, &str)> {
    let all = node.status.as_ref().and_then(|s| s.addresses.as_deref()).unwrap_or_default();
    all.iter().map(|a| (a.type_.as_str(), a.address.as_str()))
}

fn hostname(node: &Node) -> String {
    node.labels().get("kubernetes.io/hostname").cloned().unwrap_or_else(|| node.name_any())
}

/// The market record needs the address before the chart is installed, so the Service is made first, with the marks by
/// which Helm takes it over.
async fn by_balancer(site: &Site, node_port: u16) -> Result<Seat> {
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": SERVICE, "namespace": NAMESPACE, "labels": { "app.kubernetes.io/managed-by": "Helm" },
            "annotations": { "meta.helm.sh/release-name": "vendue", "meta.helm.sh/release-namespace": NAMESPACE },
        },
        "spec": {
            "type": "LoadBalancer", "externalTrafficPolicy": "Local", "publishNotReadyAddresses": true,
            "selector": { "app.kubernetes.io/name": "vendue-auction", "app.kubernetes.io/instance": "vendue" },
            "ports": [{ "name": "p2p", "protocol": "UDP", "port": SERVICE_PORT, "targetPort": "p2p", "nodePort": node_port }],
        },
    });
    site.apply(NAMESPACE, &service.to_string()).await?;
    let api: Api<Service> = Api::namespaced(site.client.clone(), NAMESPACE);
    let what = format!("wait for the load balancer of {} to give its seat an address", site.name);
    let host = wait::until(&what, BALANCER, LOOK, || async {
        let service = call("get service", api.get(SERVICE)).await?;
        Ok(match balancer_host(&service) {
            Some(host) => Poll::Ready(host),
            None => Poll::Pending(format!(
                "none yet; a cluster without one needs --service node-port or --seat-address {}=HOST",
                site.name
            )),
        })
    })
    .await?;
    Ok(Seat { name: site.name.clone(), multiaddr: multiaddr(&host, SERVICE_PORT), node: None })
}

fn balancer_host(service: &Service) -> Option<String> {
    let status = service.status.as_ref()?.load_balancer.as_ref()?;
    status.ingress.as_deref()?.iter().find_map(|i| i.ip.clone().or_else(|| i.hostname.clone()))
}

/// The address in the words of the market record.
pub fn multiaddr(host: &str, port: u16) -> String {
    let kind = match host.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(_)) => "ip4",
        Ok(std::net::IpAddr::V6(_)) => "ip6",
        Err(_) => "dns",
    };
    format!("/{kind}/{host}/udp/{port}/quic-v1")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, ready: bool, addresses: &[(&str, &str)]) -> Node {
        let addresses: Vec<_> = addresses.iter().map(|(t, a)| json!({ "type": t, "address": a })).collect();
        serde_json::from_value(json!({
            "metadata": { "name": name, "labels": { "kubernetes.io/hostname": format!("{name}.host") } },
            "status": { "addresses": addresses,
                        "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "False" } }] },
        }))
        .unwrap()
    }

    #[test]
    fn a_public_address_of_a_ready_node_is_taken_first() {
        let nodes = [
            node("down", false, &[("ExternalIP", "203.0.113.1")]),
            node("inner", true, &[("InternalIP", "10.0.0.2")]),
            node("outer", true, &[("InternalIP", "10.0.0.3"), ("ExternalIP", "203.0.113.3")]),
        ];
        let seat = by_node("alpha", &nodes, 30470).unwrap();
        assert_eq!(seat.multiaddr, "/ip4/203.0.113.3/udp/30470/quic-v1");
        assert_eq!(seat.node.as_deref(), Some("outer.host"), "the Pod goes where the datagrams arrive");
        assert_eq!(by_node("alpha", &nodes[..2], 1).unwrap().node.as_deref(), Some("inner.host"));
        let error = by_node("alpha", &nodes[..1], 1).unwrap_err().to_string();
        assert!(error.contains("--seat-address alpha="), "{error}");
    }

    #[test]
    fn addresses_of_a_balancer_are_numbers_or_names() {
        let service = |ingress: serde_json::Value| -> Service {
            serde_json::from_value(json!({ "status": { "loadBalancer": { "ingress": ingress } } })).unwrap()
        };
        assert_eq!(balancer_host(&service(json!([]))), None);
        assert_eq!(balancer_host(&service(json!([{ "ip": "203.0.113.9" }]))).unwrap(), "203.0.113.9");
        let name = balancer_host(&service(json!([{ "hostname": "lb.example.com" }]))).unwrap();
        assert_eq!(multiaddr(&name, 4470), "/dns/lb.example.com/udp/4470/quic-v1");
        assert_eq!(multiaddr("2001:db8::1", 5), "/ip6/2001:db8::1/udp/5/quic-v1");
    }
}
