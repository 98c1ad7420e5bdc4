//! What a seat has to offer: nodes with free GPUs, a price and the provider's accept rules.
//!
//! Only [`OfferCapacity`] (sizes, no names) ever leaves a provider, and only sealed.

use crate::encode::{Canonical, DecodeError, Reader, Writer};
use crate::{BidTerms, GpuModel, Price, Reason, Requirements};
use serde::{Deserialize, Serialize};

/// Most offers in one bundle.
pub const MAX_OFFERS: usize = 64;
/// Most nodes in one offer.
pub const MAX_NODES: usize = 1024;

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
}

impl Canonical for OfferCapacity {
    fn write(&self, w: &mut Writer) {
        w.list(&self.nodes, |w, n| n.write(w));
    }
    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { nodes: r.list("nodes", MAX_NODES, NodeCapacity::read)? })
    }
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
