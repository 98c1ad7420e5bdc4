//! Clusters that the user has: which they are, what goes onto them, and the example Job in their words.
//!
//! Inputs: options of the demo. Outputs: a [`Existing`] that the other modules of `deploy` work by, and manifests.
//! Invariant: pure; nothing here asks a cluster.

use std::path::PathBuf;
use std::str::FromStr;

use serde_json::{Value, json};

use crate::error::{Error, Result};

/// The user's cluster among the members.
pub const HOME: &str = "home";
/// Label of the namespace of an installation that a demo made, and so may replace and remove.
pub const MADE_BY_DEMO: &str = "vendue.dev/made-by-demo";

/// One cluster under its name in the market.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// `home`, or the name of a provider.
    pub name: String,
    /// Context in the kubeconfig.
    pub context: String,
}

impl FromStr for Member {
    type Err = String;

    /// `NAME=CONTEXT`, or a context that is itself a name.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (name, context) = text.split_once('=').unwrap_or((text, text));
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if !(1..=63).contains(&name.len()) || !name.bytes().all(fits) || context.is_empty() {
            return Err(format!(
                "{text:?}: accepted is NAME=CONTEXT, where NAME is 1 to 63 of a-z, 0-9 and '-'"
            ));
        }
        Ok(Self { name: name.into(), context: context.into() })
    }
}

/// Repository and tag of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageName {
    /// Registry and path.
    pub repository: String,
    /// Tag.
    pub tag: String,
}

impl FromStr for ImageName {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.rsplit_once(':') {
            Some((repository, tag))
                if !repository.is_empty() && !tag.is_empty() && !tag.contains('/') && !text.contains('@') =>
            {
                Ok(Self { repository: repository.into(), tag: tag.into() })
            }
            _ => Err(format!(
                "{text:?}: accepted is REPOSITORY:TAG, for example registry.example.com/vendue:0.1.0"
            )),
        }
    }
}

impl std::fmt::Display for ImageName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.repository, self.tag)
    }
}

/// Where other clusters reach the seat of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeatAddress {
    /// Name in the market.
    pub name: String,
    /// IP address or DNS name.
    pub host: String,
    /// UDP port, if it is not the Service's.
    pub port: Option<u16>,
}

impl FromStr for SeatAddress {
    type Err = String;

    /// `NAME=HOST` or `NAME=HOST:PORT`; an IPv6 address with a port is in brackets.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let bad = || {
            format!("{text:?}: accepted is NAME=HOST or NAME=HOST:PORT, for example alpha=203.0.113.7:30470")
        };
        let (name, rest) = text.split_once('=').ok_or_else(bad)?;
        let (host, port) = match rest.parse::<std::net::IpAddr>() {
            Ok(_) => (rest, None),
            Err(_) => match rest.rsplit_once(':') {
                Some((host, port)) => (host, Some(port.parse().map_err(|_| bad())?)),
                None => (rest, None),
            },
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '-');
        if name.is_empty() || host.is_empty() || !host.chars().all(fits) {
            return Err(bad());
        }
        Ok(Self { name: name.into(), host: host.into(), port })
    }
}

/// How the seats' Service is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Reach {
    /// A UDP port of a node.
    #[default]
    NodePort,
    /// An address that the cluster's load balancer gives.
    LoadBalancer,
}

impl Reach {
    /// Kubernetes' word.
    pub fn service_type(self) -> &'static str {
        match self {
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
        }
    }
}

/// Clusters that the user has, and how Vendue gets onto them.
#[derive(Clone, Debug)]
pub struct Existing {
    /// Kubeconfig file.
    pub kubeconfig: PathBuf,
    /// The clusters; one is `home`.
    pub members: Vec<Member>,
    /// Image with Vendue's programs.
    pub image: ImageName,
    /// Image that the example Job runs in.
    pub ray_image: ImageName,
    /// How seats are reached.
    pub reach: Reach,
    /// UDP node port of the seats.
    pub node_port: u16,
    /// Addresses of seats that the user knows better.
    pub addresses: Vec<SeatAddress>,
    /// Storage class of home's store and of the awards' volumes; the default class if not given.
    pub storage_class: Option<String>,
    /// Runtime class that brings NVIDIA's library to the agent.
    pub runtime_class: Option<String>,
    /// Folder on the providers' nodes with the simulated NVML library and its state.
    pub simulated_nvml: Option<PathBuf>,
}

impl Existing {
    /// Checks what the options say about each other.
    pub fn validate(&self) -> Result<()> {
        let invalid = |text: String| Err(Error::Invalid(text));
        for (i, member) in self.members.iter().enumerate() {
            let twice = |other: &Member| other.name == member.name || other.context == member.context;
            if self.members.iter().skip(i + 1).any(twice) {
                return invalid(format!("--contexts: {} ({}) is there twice", member.name, member.context));
            }
        }
        let homes = self.members.iter().filter(|m| m.name == HOME).count();
        if homes != 1 || self.members.len() < 2 {
            return invalid(
                "--contexts: one must be home and at least one a provider: --contexts home=CONTEXT,alpha=CONTEXT"
                    .into(),
            );
        }
        let provider = |name: &str| name != HOME && self.members.iter().any(|m| m.name == name);
        match self.addresses.iter().find(|a| !provider(&a.name)) {
            Some(address) => {
                invalid(format!("--seat-address: {} is no provider of --contexts", address.name))
            }
            None => Ok(()),
        }
    }

    /// The address that the user gave for a seat.
    pub fn given_address(&self, name: &str) -> Option<&SeatAddress> {
        self.addresses.iter().find(|a| a.name == name)
    }

    /// Position of a provider among the providers.
    fn position(&self, name: &str) -> usize {
        self.members.iter().filter(|m| m.name != HOME).position(|m| m.name == name).unwrap_or_default()
    }

    /// What a provider sells: all its GPUs, each provider at another price.
    pub fn provision(&self, name: &str, storage_class: &str, namespace: &str) -> Value {
        let cents = 100 + 10 * self.position(name).min(190);
        json!({
            "apiVersion": "vendue.dev/v1alpha1", "kind": "Provision",
            "metadata": { "name": "demo", "namespace": namespace },
            "spec": {
                "price": format!("{}.{:02}", cents / 100, cents % 100), "storageClassName": storage_class,
                "accept": { "images": [self.ray_image.to_string()], "maxRunSeconds": 86400 },
            },
        })
    }

    /// The example Job for GPUs of whatever model, in the user's image.
    pub fn adapt_job(&self, example: &str) -> String {
        let mut text = String::new();
        for line in example.lines() {
            let (key, indent) = (line.trim_start(), line.len() - line.trim_start().len());
            if key.starts_with("gpuModels:") || key.starts_with("minGpuMemoryMib:") {
                continue;
            }
            if key.starts_with("image:") {
                text.push_str(&format!("{}image: {}\n", " ".repeat(indent), self.ray_image));
            } else if key.starts_with("maxPrice:") {
                text.push_str(&format!("{}maxPrice: \"20.00\"\n", " ".repeat(indent)));
            } else {
                text.push_str(line);
                text.push('\n');
            }
        }
        text
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use vendue_crds::Provision;

    pub(in crate::deploy) fn two_clusters() -> Existing {
        Existing {
            kubeconfig: "kubeconfig".into(),
            members: vec!["home=mine".parse().unwrap(), "alpha=theirs".parse().unwrap()],
            image: "registry.example.com:5000/team/vendue:0.1".parse().unwrap(),
            ray_image: "registry.example.com/ray:2".parse().unwrap(),
            reach: Reach::NodePort,
            node_port: 30470,
            addresses: vec![],
            storage_class: None,
            runtime_class: None,
            simulated_nvml: None,
        }
    }

    #[test]
    fn members_are_named_and_one_is_home() {
        assert_eq!("home".parse::<Member>().unwrap().context, "home");
        let arn = "alpha=arn:aws:eks:eu-west-1:1:cluster/x".parse::<Member>().unwrap();
        assert_eq!(arn.context, "arn:aws:eks:eu-west-1:1:cluster/x");
        for bad in ["", "Alpha=x", "arn:aws:eks", "alpha="] {
            assert!(bad.parse::<Member>().unwrap_err().contains("NAME=CONTEXT"), "{bad}");
        }
        two_clusters().validate().unwrap();
        let with = |members: &[&str]| Existing {
            members: members.iter().map(|m| m.parse().unwrap()).collect(),
            ..two_clusters()
        };
        for (members, word) in [
            (&["alpha", "bravo"][..], "home"),
            (&["home"], "provider"),
            (&["home=a", "alpha=a"], "twice"),
            (&["home=a", "home=b", "alpha"], "twice"),
        ] {
            let error = with(members).validate().unwrap_err().to_string();
            assert!(error.contains(word), "{members:?}: {error}");
        }
    }

    #[test]
    fn images_have_a_tag() {
        assert_eq!(two_clusters().image.repository, "registry.example.com:5000/team/vendue");
        for bad in ["vendue", "host:5000/vendue", "vendue@sha256:00", ":x"] {
            assert!(bad.parse::<ImageName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_may_have_a_port() {
        let parse = |text: &str| text.parse::<SeatAddress>().map(|a| (a.host, a.port));
        assert_eq!(parse("alpha=203.0.113.7"), Ok(("203.0.113.7".into(), None)));
        assert_eq!(parse("alpha=seat.example.com:4470"), Ok(("seat.example.com".into(), Some(4470))));
        assert_eq!(parse("alpha=2001:db8::1"), Ok(("2001:db8::1".into(), None)));
        assert_eq!(parse("alpha=[2001:db8::1]:5"), Ok(("2001:db8::1".into(), Some(5))));
        for bad in ["alpha", "alpha=", "=1.2.3.4", "alpha=host:port", "alpha=a/b"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let stranger = Existing { addresses: vec!["zulu=1.2.3.4".parse().unwrap()], ..two_clusters() };
        assert!(stranger.validate().unwrap_err().to_string().contains("zulu"));
    }

    #[test]
    fn provisions_and_the_job_fit_the_api() {
        let provision = two_clusters().provision("alpha", "standard", "vendue-system");
        let provision: Provision = serde_json::from_value(provision).unwrap();
        assert_eq!(provision.spec.price.0, "1.00");
        let example = include_str!("../../../manifests/examples/train-digits.yaml");
        let adapted = two_clusters().adapt_job(example);
        let first = adapted.split("\n---\n").next().unwrap();
        for part in ["image: registry.example.com/ray:2\n", "maxPrice: \"20.00\"\n", "      gpus: 1\n"] {
            assert!(first.contains(part), "{first}");
        }
        assert!(!first.contains("gpuModels") && !first.contains("minGpuMemoryMib"), "{first}");
        assert_eq!(example.matches("train.py: |").count(), adapted.matches("train.py: |").count());
    }
}
