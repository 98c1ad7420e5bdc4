//! What a seat has to offer: nodes with free GPUs, a price and the provider's accept rules.
//!
//! Only [`OfferCapacity`] (sizes, no names) ever leaves a provider, and only sealed. An offer may bind its devices:
//! [`commit_devices`] hides which they are and holds the provider to them.

use crate::encode::{Canonical, DecodeError, Reader, Writer, hex_option};
use crate::{BidTerms, Digest, GpuModel, Price, Reason, Requirements, tagged_hash};
use serde::{Deserialize, Serialize};

/// Most offers in one bundle.
pub const MAX_OFFERS: usize = 64;
/// Most nodes in one offer.
pub const MAX_NODES: usize = 1024;
/// Set in the number of an offer's nodes when the offer binds its devices.
const BINDS_DEVICES: u32 = 1 << 31;

/// What is free on one node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NodeCapacity {
    /// Model of the node's GPUs.
    pub model: GpuModel,
    /// Memory of each GPU in MiB.
    pub gpu_memory_mib: u64,
    /// GPUs that nobody holds.
    pub free_gpus: u32,
    /// Free CPU in thousandths of a core.
    pub cpu_millis: u64,
    /// Free memory in MiB.
    pub memory_mib: u64,
    /// Free disk in MiB.
    pub disk_mib: u64,
}

impl Canonical for NodeCapacity {
    fn write(&self, w: &mut Writer) {
        self.model.write(w);
        w.u64(self.gpu_memory_mib).u32(self.free_gpus);
        w.u64(self.cpu_millis).u64(self.memory_mib).u64(self.disk_mib);
    }
    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            model: GpuModel::read(r)?,
            gpu_memory_mib: r.u64()?,
            free_gpus: r.u32()?,
            cpu_millis: r.u64()?,
            memory_mib: r.u64()?,
            disk_mib: r.u64()?,
        })
    }
}

/// The nodes of one offer, as they stand in a bundle. A record's `spec` is the offer's position in the bundle.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferCapacity {
    /// Free nodes.
    pub nodes: Vec<NodeCapacity>,
    /// [`commit_devices`] to the devices of the one node; none when the seat does not say.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "hex_option")]
    pub devices: Option<Digest>,
}

impl OfferCapacity {
    /// Free nodes whose devices nobody vouches for.
    pub fn of(nodes: Vec<NodeCapacity>) -> Self {
        Self { nodes, devices: None }
    }
}

impl Canonical for OfferCapacity {
    fn write(&self, w: &mut Writer) {
        let Some(devices) = &self.devices else {
            w.list(&self.nodes, |w, n| n.write(w));
            return;
        };
        w.u32(self.nodes.len() as u32 | BINDS_DEVICES);
        self.nodes.iter().for_each(|node| node.write(w));
        w.raw(devices);
    }
    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let word = r.u32()?;
        let found = (word & !BINDS_DEVICES) as usize;
        if found > MAX_NODES {
            return Err(DecodeError::TooLong { what: "nodes", found, max: MAX_NODES });
        }
        // Not reserved up front: a lying count must not cost memory.
        let mut nodes = Vec::new();
        for _ in 0..found {
            nodes.push(NodeCapacity::read(r)?);
        }
        let devices = if word & BINDS_DEVICES != 0 { Some(r.array()?) } else { None };
        Ok(Self { nodes, devices })
    }
}

/// What binds an offer of one round to the devices with a fingerprint. Who does not know the fingerprint can neither tell
/// the devices from it nor find the same devices in another round; who is told it can check it.
pub fn commit_devices(market: &Digest, round: u64, seat: u16, fingerprint: &Digest) -> Digest {
    let parts: [&[u8]; 4] = [market, &round.to_be_bytes(), &seat.to_be_bytes(), fingerprint];
    tagged_hash("VENDUE-V1-DEVICES", &parts)
}

/// What a provider accepts, judged before it bids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptRules {
    /// Longest accepted run deadline in seconds; 0 accepts any.
    pub max_run_seconds: u32,
    /// Accepted image references, `*` matching any run of characters; empty accepts any.
    pub images: Vec<String>,
    /// Homes that are served, by their names in the market record; empty serves all.
    pub homes: Vec<String>,
}

impl AcceptRules {
    /// Accepts everything.
    pub fn any() -> Self {
        Self { max_run_seconds: 0, images: vec![], homes: vec![] }
    }

    /// Whether orders of this home are served.
    pub fn serves(&self, home: &str) -> bool {
        self.homes.is_empty() || self.homes.iter().any(|h| h == home)
    }

    /// The first rule that an order of `home` breaks: home, image, then run time.
    pub fn check(&self, home: &str, req: &Requirements) -> Result<(), Reason> {
        if !self.serves(home) {
            return Err(Reason::Home);
        }
        if !self.images.is_empty() && !self.images.iter().any(|p| glob_match(p, &req.image)) {
            return Err(Reason::Image);
        }
        if self.max_run_seconds > 0 && req.run_seconds > self.max_run_seconds {
            return Err(Reason::RunTime);
        }
        Ok(())
    }
}

/// A node of an offer under its local name, which never leaves the seat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferNode {
    /// The node's name; what is offered or held on a node is subtracted by this name.
    pub name: String,
    /// What is free on it.
    pub capacity: NodeCapacity,
    /// Fingerprint of its devices, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "hex_option")]
    pub fingerprint: Option<Digest>,
}

impl OfferNode {
    /// A node whose devices nobody vouches for.
    pub fn of(name: impl Into<String>, capacity: NodeCapacity) -> Self {
        Self { name: name.into(), capacity, fingerprint: None }
    }
}

/// One Provision as the bid engine sees it. Offers of one seat must not share nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The Provision's name; stays with the seat.
    pub name: String,
    /// Price per GPU-hour.
    pub price: Price,
    /// Free nodes.
    pub nodes: Vec<OfferNode>,
    /// What the provider accepts.
    pub rules: AcceptRules,
    /// What a bid on it promises beyond the price.
    pub terms: BidTerms,
}

/// Whether `text` matches `pattern`, in which `*` stands for any run of characters.
pub fn glob_match(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part).and_then(|at| rest.get(at + part.len()..)) {
            Some(tail) => rest = tail,
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_node() -> NodeCapacity {
        NodeCapacity {
            model: "H100".parse().unwrap(),
            gpu_memory_mib: 81_920,
            free_gpus: 8,
            cpu_millis: 1,
            memory_mib: 2,
            disk_mib: 3,
        }
    }

    #[test]
    fn an_offer_that_binds_no_devices_keeps_its_bytes() {
        let plain = OfferCapacity::of(vec![mk_node()]);
        let bytes = plain.to_bytes();
        assert_eq!((bytes.len(), &bytes[..4]), (48, [0, 0, 0, 1].as_slice()));
        let bound = OfferCapacity { devices: Some([7; 32]), ..plain.clone() };
        let more = bound.to_bytes();
        assert_eq!((more.len(), &more[..4]), (80, [0x80, 0, 0, 1].as_slice()));
        assert_eq!((&more[4..48], &more[48..]), (&bytes[4..], [7; 32].as_slice()));
        for offer in [plain, bound, OfferCapacity { nodes: vec![], devices: Some([0; 32]) }] {
            assert_eq!(OfferCapacity::from_bytes(&offer.to_bytes()), Ok(offer.clone()));
            let json = serde_json::to_string(&offer).unwrap();
            assert_eq!(serde_json::from_str::<OfferCapacity>(&json).unwrap(), offer);
            assert_eq!(json.contains("devices"), offer.devices.is_some());
        }
        assert_eq!(OfferCapacity::from_bytes(&more[..79]), Err(DecodeError::Short));
        let many = OfferCapacity::from_bytes(&[0x80, 0, 4, 1]);
        assert_eq!(many, Err(DecodeError::TooLong { what: "nodes", found: 1025, max: MAX_NODES }));
    }

    #[test]
    fn a_commitment_depends_on_market_round_seat_and_devices() {
        let all = [
            commit_devices(&[1; 32], 2, 3, &[4; 32]),
            commit_devices(&[9; 32], 2, 3, &[4; 32]),
            commit_devices(&[1; 32], 9, 3, &[4; 32]),
            commit_devices(&[1; 32], 2, 9, &[4; 32]),
            commit_devices(&[1; 32], 2, 3, &[9; 32]),
        ];
        let different: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len());
        // Everybody who checks it works it out anew: its form is fixed.
        let hex = crate::encode::to_hex(&all[0]);
        assert_eq!(hex, "ec3479bce586cf71268587aa8e54add8f7c69e59d720e4aac56203adc4c46f39");
    }

    #[test]
    fn globs() {
        for (pattern, text, want) in [
            ("*", "anything", true),
            ("reg.io/*", "reg.io/a/b:1", true),
            ("reg.io/*:1", "reg.io/a:2", false),
            ("exact", "exact", true),
            ("exact", "exactly", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "acb", false),
            ("ab*ba", "aba", false),
            ("", "", true),
        ] {
            assert_eq!(glob_match(pattern, text), want, "{pattern} {text}");
        }
    }
}
