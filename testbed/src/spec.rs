//! What a market is made of, as data: clusters, their GPUs, volumes and addresses.
//!
//! Pure: no IO. Everything a cluster needs to know about itself follows from the market's name and slot
//! and the cluster's index, so a state file of a killed run is enough to clean up after it.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Markets that can exist beside each other on one machine.
pub const SLOTS: u8 = 5;
/// Clusters in one market.
pub const CLUSTERS: usize = 15;
/// Storage class of the pre-made volumes.
pub const STORAGE_CLASS: &str = "vendue-local";
/// Service range of every cluster.
pub const SERVICE_RANGE: &str = "10.96.0.0/16";
/// Address of the cluster's DNS service.
pub const DNS_ADDRESS: &str = "10.96.0.10";
/// Address of the `kubernetes` service.
pub const API_SERVICE_ADDRESS: &str = "10.96.0.1";

/// Simulated GPUs of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpus {
    /// Profile of the simulator: such as `h100` or `a100-80gb`.
    pub profile: String,
    /// How many.
    pub count: u32,
}

/// One cluster with one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSpec {
    /// Name: a DNS label of at most 12 characters.
    pub name: String,
    /// Simulated GPUs, if the node has any.
    pub gpus: Option<Gpus>,
    /// How many pre-made volumes.
    pub volumes: u32,
    /// Size of a memory disk that holds the volumes, so that it can be filled; the machine's own disk if not given.
    #[serde(default)]
    pub disk_mib: Option<u32>,
    /// Labels of the node.
    pub labels: Vec<(String, String)>,
}

impl ClusterSpec {
    /// A cluster without GPUs and with a few volumes.
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), gpus: None, volumes: 4, disk_mib: None, labels: Vec::new() }
    }

    /// The same with simulated GPUs.
    pub fn with_gpus(mut self, profile: &str, count: u32) -> Self {
        self.gpus = Some(Gpus { profile: profile.into(), count });
        self
    }

    /// The same with another node label.
    pub fn with_label(mut self, key: &str, value: &str) -> Self {
        self.labels.push((key.into(), value.into()));
        self
    }
}

/// A set of clusters that can reach each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MarketSpec {
    /// Name: a DNS label of at most 12 characters.
    pub name: String,
    /// The clusters.
    pub clusters: Vec<ClusterSpec>,
}

impl MarketSpec {
    /// The market of the demo: `home` without GPUs and four providers.
    pub fn demo() -> Self {
        let region = "topology.kubernetes.io/region";
        Self {
            name: "demo".into(),
            clusters: vec![
                ClusterSpec::new("home").with_label(region, "eu-west"),
                ClusterSpec::new("alpha").with_gpus("h100", 2).with_label(region, "eu-west"),
                ClusterSpec::new("bravo").with_gpus("a100-80gb", 4).with_label(region, "eu-north"),
                ClusterSpec::new("charlie").with_gpus("l40s", 2).with_label(region, "us-east"),
                ClusterSpec::new("delta").with_gpus("h100", 1).with_label(region, "ap-south"),
            ],
        }
    }

    /// The same with the volumes of each of these clusters on a memory disk of this size.
    pub fn with_disks(mut self, mib: u32, wanted: impl Fn(&str) -> bool) -> Self {
        for cluster in self.clusters.iter_mut().filter(|c| wanted(&c.name)) {
            cluster.disk_mib = Some(mib);
        }
        self
    }

    /// Only these clusters; all of them if none is named.
    pub fn only(mut self, names: &[String]) -> Result<Self> {
        let known: Vec<&str> = self.clusters.iter().map(|c| c.name.as_str()).collect();
        if let Some(unknown) = names.iter().find(|name| !known.contains(&name.as_str())) {
            return Err(Error::Invalid(format!("no cluster {unknown}: there are {}", known.join(", "))));
        }
        self.clusters.retain(|c| names.is_empty() || names.contains(&c.name));
        Ok(self)
    }

    /// The same clusters under another market name.
    pub fn named(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    /// Checks names and numbers.
    pub fn validate(&self) -> Result<()> {
        check_name("market", &self.name)?;
        if self.name.contains('-') {
            // The market's namespaces are found by prefix: no name may be the beginning of another's.
            return Err(Error::Invalid(format!("market name {:?} must not have a hyphen", self.name)));
        }
        if self.clusters.is_empty() || self.clusters.len() > CLUSTERS {
            return Err(Error::Invalid(format!(
                "a market has 1 to {CLUSTERS} clusters, not {}",
                self.clusters.len()
            )));
        }
        for (i, cluster) in self.clusters.iter().enumerate() {
            check_name("cluster", &cluster.name)?;
            if cluster.name == "wan" || self.clusters.iter().skip(i + 1).any(|c| c.name == cluster.name) {
                return Err(Error::Invalid(format!("cluster name {} is taken", cluster.name)));
            }
        }
        Ok(())
    }
}

fn check_name(kind: &str, name: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let edges = !name.starts_with('-') && !name.ends_with('-');
    if name.is_empty() || name.len() > 12 || !name.chars().all(fits) || !edges {
        return Err(Error::Invalid(format!(
            "{kind} name {name:?} must be 1 to 12 lower-case letters, digits or inner hyphens"
        )));
    }
    Ok(())
}

/// Addresses and names of one cluster, derived from slot and index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Market name.
    pub market: String,
    /// Cluster name.
    pub cluster: String,
    /// Slot of the market on this machine.
    pub slot: u8,
    /// Index of the cluster in the market, from 1.
    pub index: u8,
}

impl Place {
    /// Name of the cluster's network namespace.
    pub fn namespace(&self) -> String {
        format!("vd-{}-{}", self.market, self.cluster)
    }

    /// Name of the market's wide-area namespace.
    pub fn wan_namespace(&self) -> String {
        wan_namespace(&self.market)
    }

    /// Name of the node.
    pub fn node(&self) -> String {
        format!("{}-node", self.cluster)
    }

    /// Address of the node in the market's wide-area network.
    pub fn address(&self) -> String {
        format!("10.{}.{}.2", 77 + self.slot, self.index)
    }

    /// Range of the wide-area network with prefix length.
    pub fn wan_prefix(&self) -> u8 {
        16
    }

    /// Host's and cluster's end of the management link.
    pub fn management(&self) -> (String, String) {
        let net = 87 + self.slot;
        (format!("10.{net}.{}.1", self.index), format!("10.{net}.{}.2", self.index))
    }

    /// Host's name of the management link.
    pub fn management_link(&self) -> String {
        format!("vdm{}-{}", self.slot, self.index)
    }

    /// Name, inside the wide-area namespace, of the link to this cluster.
    pub fn wan_link(&self) -> String {
        format!("to-{}", self.cluster)
    }

    /// Pod range.
    pub fn pod_range(&self) -> String {
        format!("10.{}.0.0/24", 100 + u16::from(self.slot) * 16 + u16::from(self.index))
    }

    /// URL of the API server, reachable from the host even when the cluster is cut off.
    pub fn api_url(&self) -> String {
        format!("https://{}:6443", self.address())
    }

    /// Control group of the cluster's containers, below each hierarchy's root.
    pub fn cgroup(&self) -> String {
        format!("vendue/{}/{}", self.market, self.cluster)
    }
}

/// Whether the test bed uses addresses `10.<second>.0.0/16` on the host.
pub fn is_ours(second: u8) -> bool {
    let slots = |first: u8| (first..first + SLOTS).contains(&second);
    slots(77) || slots(87) || (101..=180).contains(&second)
}

/// Name of a market's wide-area namespace.
pub fn wan_namespace(market: &str) -> String {
    format!("vd-{market}-wan")
}

/// Prefix of all network namespaces of a market.
pub fn namespace_prefix(market: &str) -> String {
    format!("vd-{market}-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn demo_is_valid() {
        MarketSpec::demo().validate().unwrap();
    }

    #[test]
    fn bad_names_are_refused() {
        for name in ["", "Alpha", "a-", "a-b", "way-too-long-name", "a_b"] {
            assert!(MarketSpec::demo().named(name).validate().is_err(), "{name}");
        }
        let mut twice = MarketSpec::demo();
        twice.clusters.push(ClusterSpec::new("home"));
        assert!(twice.validate().is_err());
    }

    #[test]
    fn a_cluster_that_is_not_there_is_named() {
        let only = |names: &[&str]| {
            MarketSpec::demo().only(&names.iter().map(|n| n.to_string()).collect::<Vec<_>>())
        };
        assert_eq!(only(&[]).unwrap().clusters.len(), 5);
        assert_eq!(only(&["alpha"]).unwrap().clusters.len(), 1);
        let error = only(&["home", "alhpa"]).unwrap_err().to_string();
        assert!(error.contains("alhpa") && error.contains("delta"), "{error}");
    }

    #[test]
    fn no_two_places_share_an_address_or_a_link_name() {
        let mut seen = BTreeSet::new();
        for slot in 0..SLOTS {
            for index in 1..=15 {
                let place = Place { market: "m".into(), cluster: "c".into(), slot, index };
                for text in
                    [place.address(), place.management().0, place.pod_range(), place.management_link()]
                {
                    assert!(text.len() <= 18);
                    let second = text.strip_prefix("10.").and_then(|t| t.split('.').next()?.parse().ok());
                    assert!(second.is_none_or(is_ours), "{text}");
                    assert!(seen.insert(text));
                }
                assert!(place.management_link().len() <= 15);
            }
        }
    }

    #[test]
    fn link_names_fit_the_kernel() {
        let place = Place { market: "m".into(), cluster: "x".repeat(12), slot: 0, index: 1 };
        assert!(place.wan_link().len() <= 15);
    }
}
