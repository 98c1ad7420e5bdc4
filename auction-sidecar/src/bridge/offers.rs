//! From Provisions to what the seat offers. Pure.
//!
//! Inputs: Provisions with what their controller says is free, and the Awards of this host. Outputs: offers and known
//! models. Invariant: a device that an Award holds is in no offer, also while the Provision's status lags behind the
//! Award's; no node is in two offers.

use std::collections::{BTreeMap, BTreeSet};

use vendue_crds::conditions::{self, award as condition, provision};
use vendue_crds::{Award, AwardSide, FreeNode, Provision, parse_fingerprint};
use vendue_market::{AcceptRules, GpuModel, MAX_NODES, MAX_OFFERS, NodeCapacity, Offer, OfferNode};

use super::objects::conditions_of;

/// What the seat sells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sale {
    /// Offers.
    pub offers: Vec<Offer>,
    /// Models that the provider has, free or not.
    pub models: Vec<GpuModel>,
    /// Provisions that cannot be offered, with the reason.
    pub not_offered: BTreeMap<(String, String), String>,
}

/// Name of an offer: namespace and name of its Provision.
pub fn offer_name(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

/// Namespace and name of the Provision of an offer.
pub fn parse_offer_name(offer: &str) -> Option<(&str, &str)> {
    offer.split_once('/')
}

fn key(provision: &Provision) -> (String, String) {
    (
        provision.metadata.namespace.clone().unwrap_or_default(),
        provision.metadata.name.clone().unwrap_or_default(),
    )
}

/// Everything that can be offered now.
pub fn sale<'a>(
    provisions: impl IntoIterator<Item = &'a Provision>,
    awards: impl IntoIterator<Item = &'a Award>,
) -> Sale {
    let holding: Vec<&Award> = awards.into_iter().filter(|a| holds(a)).collect();
    let sorted: BTreeMap<_, _> = provisions.into_iter().map(|p| (key(p), p)).collect();
    let mut sale = Sale::default();
    let mut models = BTreeSet::new();
    let mut used: BTreeSet<String> = BTreeSet::new();
    let mut offers: Vec<((String, String), Offer)> = Vec::new();
    for (key, provision) in sorted {
        let status = provision.status.clone().unwrap_or_default();
        models.extend(status.free.iter().filter_map(|f| f.model.parse::<GpuModel>().ok()));
        models.extend(holding.iter().flat_map(|a| held_models(a, &key)));
        match offer(provision, &key, &holding, &mut used) {
            Ok(offer) => offers.extend(by_node(offer).map(|offer| (key.clone(), offer))),
            Err(reason) => {
                sale.not_offered.insert(key, reason);
            }
        }
    }
    sale.models = models.into_iter().collect();
    sale.put(offers);
    sale
}

impl Sale {
    /// Takes as many offers as a seat makes. Where there are more, nodes that are full give way: they only explain why an order is
    /// not served.
    fn put(&mut self, mut offers: Vec<((String, String), Offer)>) {
        if offers.len() > MAX_OFFERS {
            offers.sort_by_key(|(_, offer)| offer.nodes.iter().all(|node| node.capacity.free_gpus == 0));
        }
        let mut offered: BTreeSet<(String, String)> = BTreeSet::new();
        for (key, offer) in offers {
            if self.offers.len() < MAX_OFFERS {
                self.offers.push(offer);
                offered.insert(key);
            } else if !offered.contains(&key) {
                self.not_offered.insert(key, format!("a seat makes at most {MAX_OFFERS} offers"));
            }
        }
    }
}

/// An offer for each node: the Pods of an award share a volume that only one node can mount, so a bid over several nodes
/// could not be honoured.
fn by_node(offer: Offer) -> impl Iterator<Item = Offer> {
    let Offer { name, price, nodes, rules, terms } = offer;
    nodes.into_iter().map(move |node| Offer {
        name: name.clone(),
        price,
        nodes: vec![node],
        rules: rules.clone(),
        terms,
    })
}

/// Whether an Award holds devices now.
fn holds(award: &Award) -> bool {
    let list = conditions_of(award);
    award.spec.side == AwardSide::Host
        && conditions::is_true(list, condition::HELD)
        && !conditions::is_true(list, condition::RELEASED)
}

fn is_of(award: &Award, (namespace, name): &(String, String)) -> bool {
    award.spec.provision_namespace.as_ref() == Some(namespace) && award.spec.provision.as_ref() == Some(name)
}

fn held_models(award: &Award, key: &(String, String)) -> Vec<GpuModel> {
    let devices = award.status.as_ref().map(|s| s.devices.as_slice()).unwrap_or_default();
    let own = is_of(award, key);
    devices.iter().filter(|_| own).filter_map(|d| d.model.parse().ok()).collect()
}

fn offer(
    provision: &Provision,
    key: &(String, String),
    holding: &[&Award],
    used: &mut BTreeSet<String>,
) -> Result<Offer, String> {
    let status = provision.status.clone().unwrap_or_default();
    if provision.metadata.deletion_timestamp.is_some() || provision.spec.suspend == Some(true) {
        return Err("the Provision is suspended".to_owned());
    }
    if conditions::is_false(&status.conditions, provision::READY) {
        return Err("the Provision is not Ready".to_owned());
    }
    let price = provision.spec.price.price().map_err(|e| format!("price: {e}"))?;
    // Awards that the status does not count yet.
    let counted: BTreeSet<&str> = status.held.iter().map(|h| h.award_id.as_str()).collect();
    let uncounted: Vec<&&Award> = holding.iter().filter(|a| !counted.contains(a.spec.id.as_str())).collect();
    let mut nodes = Vec::new();
    for free in &status.free {
        let node = capacity(free, &uncounted)?;
        if nodes.len() < MAX_NODES && used.insert(format!("{}/{}", free.node, free.model)) {
            let fingerprint = free.fingerprint.as_deref().and_then(parse_fingerprint);
            nodes.push(OfferNode { fingerprint, ..OfferNode::of(&free.node, node) });
        }
    }
    let accept = &provision.spec.accept;
    let rules = AcceptRules {
        max_run_seconds: accept.max_run_seconds.and_then(|s| u32::try_from(s).ok()).unwrap_or(0),
        images: accept.images.clone(),
        homes: accept.homes.clone(),
    };
    let terms = vendue_market::BidTerms::default();
    Ok(Offer { name: offer_name(&key.0, &key.1), price, nodes, rules, terms })
}

/// What a node has left after the Awards that the status does not count yet.
fn capacity(free: &FreeNode, uncounted: &[&&Award]) -> Result<NodeCapacity, String> {
    let positive = |value: i64| u64::try_from(value).unwrap_or(0);
    let mut node = NodeCapacity {
        model: free.model.parse().map_err(|e| format!("status.free: {e}"))?,
        gpu_memory_mib: positive(free.gpu_memory_mib),
        free_gpus: u32::try_from(free.gpus).unwrap_or(0),
        cpu_millis: positive(free.cpu_millis),
        memory_mib: positive(free.memory_mib),
        disk_mib: positive(free.disk_mib),
    };
    for award in uncounted {
        let devices = award.status.as_ref().map(|s| s.devices.as_slice()).unwrap_or_default();
        for held in devices.iter().filter(|d| d.node == free.node) {
            let (workers, needs) = (positive(i64::from(held.workers)), &award.spec.requirements);
            let take = |each: i64| workers.saturating_mul(positive(each));
            if held.model == free.model {
                node.free_gpus = node.free_gpus.saturating_sub(u32::try_from(held.gpus).unwrap_or(0));
            }
            node.cpu_millis = node.cpu_millis.saturating_sub(take(needs.cpu_millis_per_worker));
            node.memory_mib = node.memory_mib.saturating_sub(take(needs.memory_mib_per_worker));
            node.disk_mib = node.disk_mib.saturating_sub(take(needs.disk_mib_per_worker));
        }
    }
    Ok(node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn mk_provision(name: &str, gpus: i32, held: &[&str]) -> Provision {
        let held: Vec<_> = held.iter().map(|id| json!({ "awardId": id, "gpus": 2 })).collect();
        serde_json::from_value(json!({
            "apiVersion": "vendue.dev/v1alpha1", "kind": "Provision",
            "metadata": { "name": name, "namespace": "default" },
            "spec": { "price": "1.80", "storageClassName": "local" },
            "status": {
                "held": held,
                "free": [{ "node": "n1", "model": "A100", "gpuMemoryMib": 40960, "gpus": gpus,
                           "cpuMillis": 8000, "memoryMib": 16384, "diskMib": 10000 }],
            },
        }))
        .unwrap()
    }

    fn mk_award(id: &str, held: bool, released: bool) -> Award {
        let status = |yes: bool| if yes { "True" } else { "False" };
        let cond = |type_: &str, yes: bool| {
            json!({ "type": type_, "status": status(yes), "reason": "R", "message": "",
                    "lastTransitionTime": "2026-01-01T00:00:00Z" })
        };
        serde_json::from_value(json!({
            "apiVersion": "vendue.dev/v1alpha1", "kind": "Award",
            "metadata": { "name": "award", "namespace": format!("vendue-a-{id}") },
            "spec": {
                "side": "Host", "id": id, "marketId": "", "round": 1, "orderDigest": "", "provider": "alpha", "seat": 0,
                "job": { "home": "home", "uid": "u", "attempt": 1 }, "price": "1.80",
                "expiresAt": "2026-01-01T00:00:00Z", "provision": "p", "provisionNamespace": "default",
                "requirements": { "workers": 2, "gpusPerWorker": 1, "cpuMillisPerWorker": 500,
                    "memoryMibPerWorker": 1024, "diskMibPerWorker": 100, "runDeadlineSeconds": 60, "image": "i" },
            },
            "status": {
                "conditions": [cond("Held", held), cond("Released", released)],
                "devices": [{ "node": "n1", "model": "A100", "workers": 2, "gpus": 2 }],
            },
        }))
        .unwrap()
    }

    fn free(provision: &Provision, award: &Award) -> (u32, u64) {
        let sale = sale([provision], [award]);
        let node = &sale.offers[0].nodes[0].capacity;
        (node.free_gpus, node.cpu_millis)
    }

    #[test]
    fn an_award_is_subtracted_until_the_status_counts_it() {
        let before = mk_provision("p", 4, &[]);
        assert_eq!(free(&before, &mk_award("a", true, false)), (2, 7000));
        assert_eq!(free(&before, &mk_award("a", false, false)), (4, 8000));
        assert_eq!(free(&before, &mk_award("a", true, true)), (4, 8000));
        let after = mk_provision("p", 2, &["a"]);
        assert_eq!(free(&after, &mk_award("a", true, false)), (2, 8000));
    }

    #[test]
    fn the_rules_of_a_provision_are_those_of_its_offers() {
        let mut provision = mk_provision("p", 4, &[]);
        provision.spec.accept.homes = vec!["lab".into()];
        provision.spec.accept.images = vec!["ray:*".into()];
        provision.spec.accept.max_run_seconds = Some(60);
        let rules = &sale([&provision], []).offers[0].rules;
        assert!(rules.serves("lab") && !rules.serves("home"));
        assert_eq!((rules.max_run_seconds, rules.images.as_slice()), (60, ["ray:*".to_owned()].as_slice()));
    }

    #[test]
    fn each_node_is_an_offer_of_its_own() {
        let mut provision = mk_provision("p", 4, &[]);
        let free = &mut provision.status.as_mut().unwrap().free;
        free.push(FreeNode { node: "n2".into(), ..free[0].clone() });
        let sale = sale([&provision], []);
        let nodes: Vec<_> = sale.offers.iter().map(|o| (o.name.as_str(), o.nodes[0].name.as_str())).collect();
        assert_eq!(nodes, [("default/p", "n1"), ("default/p", "n2")]);
    }

    #[test]
    fn of_more_nodes_than_offers_those_that_are_full_give_way() {
        let many = |name: &str, prefix: &str, full: usize, free: usize| {
            let mut provision = mk_provision(name, 4, &[]);
            let list = &mut provision.status.as_mut().unwrap().free;
            let first = list.remove(0);
            let node =
                |n: usize, gpus: i32| FreeNode { node: format!("{prefix}{n:03}"), gpus, ..first.clone() };
            list.extend((0..full).map(|n| node(n, 0)).chain((full..full + free).map(|n| node(n, 4))));
            provision
        };
        let sale = |first: &Provision, second: &Provision| sale([first, second], []);
        let found = sale(&many("p", "a", 100, 3), &many("q", "b", 0, 2));
        let free: Vec<&str> = found
            .offers
            .iter()
            .filter(|o| o.nodes[0].capacity.free_gpus > 0)
            .map(|o| o.nodes[0].name.as_str())
            .collect();
        assert_eq!((free, found.offers.len()), (vec!["a100", "a101", "a102", "b000", "b001"], MAX_OFFERS));
        assert!(found.not_offered.is_empty(), "{:?}", found.not_offered);
        // Only one of which nothing at all is offered is told so.
        let found = sale(&many("p", "a", 0, 100), &many("q", "b", 0, 2));
        let names: Vec<&str> = found.not_offered.keys().map(|key| key.1.as_str()).collect();
        assert_eq!((names, found.offers.len()), (vec!["q"], MAX_OFFERS));
    }

    #[test]
    fn a_node_is_offered_with_the_fingerprint_of_its_devices() {
        let mut provision = mk_provision("p", 4, &[]);
        let offered = |provision: &Provision| sale([provision], []).offers[0].nodes[0].fingerprint;
        assert_eq!(offered(&provision), None);
        for (text, want) in [("ab".repeat(32), Some([0xab; 32])), ("ab".into(), None)] {
            provision.status.as_mut().unwrap().free[0].fingerprint = Some(text);
            assert_eq!(offered(&provision), want);
        }
    }

    #[test]
    fn no_node_in_two_offers_and_suspended_ones_in_none() {
        let (first, second) = (mk_provision("p", 4, &[]), mk_provision("q", 4, &[]));
        let mut third = mk_provision("r", 4, &[]);
        third.spec.suspend = Some(true);
        let sale = sale([&second, &third, &first], []);
        let nodes: Vec<_> = sale.offers.iter().map(|o| (o.name.as_str(), o.nodes.len())).collect();
        assert_eq!(nodes, [("default/p", 1)]);
        assert_eq!(sale.not_offered.keys().map(|k| k.1.as_str()).collect::<Vec<_>>(), ["r"]);
        assert_eq!(sale.models, ["A100".parse().unwrap()]);
    }
}
