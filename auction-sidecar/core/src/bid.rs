//! The bid engine: a provider's offers and a round's orders in, records and offered capacity out.
//!
//! For each order the cheapest offer that serves it is bid. When all orders that are bid for fit together, only what
//! they need is offered, so that rounds that overlap do not starve each other; else everything is.

use vendue_market::{
    Digest, ListedOrder, NodeCapacity, Offer, OfferCapacity, Placement, Reason, RecordKind, fit, fit_offer,
    take,
};

/// A seat's own record for one order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnBid {
    /// The order.
    pub order: Digest,
    /// Bid or reason.
    pub kind: RecordKind,
}

/// What one offer puts into a round, with local names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfferedPart {
    /// The offer's local name.
    pub offer: String,
    /// Local names of the nodes, by position in `capacity`.
    pub nodes: Vec<String>,
    /// What is offered on them.
    pub capacity: OfferCapacity,
}

/// All of a seat's bids of a round.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalBids {
    /// Offered capacity; a bid's `spec` is the position.
    pub parts: Vec<OfferedPart>,
    /// Records, in the order of the orders given.
    pub records: Vec<OwnBid>,
}

/// Bids for a round.
pub fn bids(provider: &str, offers: &[Offer], orders: &[ListedOrder]) -> LocalBids {
    let records: Vec<OwnBid> = orders
        .iter()
        .map(|order| OwnBid { order: order.digest, kind: best(provider, offers, order) })
        .collect();
    let parts = offers
        .iter()
        .enumerate()
        .map(|(spec, offer)| {
            let wanted: Vec<&ListedOrder> = orders
                .iter()
                .zip(&records)
                .filter(|(_, r)| matches!(r.kind, RecordKind::Bid { spec: s, .. } if usize::from(s) == spec))
                .map(|(order, _)| order)
                .collect();
            part(offer, &wanted)
        })
        .collect();
    LocalBids { parts, records }
}

/// The cheapest offer that serves the order, or the reason of the offer that came closest.
fn best(provider: &str, offers: &[Offer], order: &ListedOrder) -> RecordKind {
    let mut bid = None;
    let mut closest = Reason::NoOffer;
    for (offer, spec) in offers.iter().zip(0u16..) {
        match fit_offer(&order.requirements, provider, offer) {
            Ok((_, price)) if bid.is_none_or(|(p, _)| price < p) => bid = Some((price, spec)),
            Ok(_) => {}
            Err(reason) if reason.closeness() > closest.closeness() => closest = reason,
            Err(_) => {}
        }
    }
    bid.map_or(RecordKind::NoBid(closest), |(price, spec)| RecordKind::Bid { price, spec })
}

/// What one offer puts in for the orders that it is bid for.
fn part(offer: &Offer, wanted: &[&ListedOrder]) -> OfferedPart {
    let whole: Vec<NodeCapacity> = offer.nodes.iter().map(|n| n.capacity.clone()).collect();
    let mut left = whole.clone();
    let together = wanted.iter().all(|order| match fit(&order.requirements, &left) {
        Ok(placement) => {
            take(&mut left, &order.requirements, &placement);
            true
        }
        Err(_) => false,
    });
    let mut out =
        OfferedPart { offer: offer.name.clone(), nodes: vec![], capacity: OfferCapacity::default() };
    for ((node, whole), left) in offer.nodes.iter().zip(whole).zip(left) {
        let offered = if together { difference(&whole, &left) } else { whole };
        if offered.free_gpus > 0 && !wanted.is_empty() {
            out.nodes.push(node.name.clone());
            out.capacity.nodes.push(offered);
        }
    }
    out
}

fn difference(whole: &NodeCapacity, left: &NodeCapacity) -> NodeCapacity {
    NodeCapacity {
        model: whole.model.clone(),
        gpu_memory_mib: whole.gpu_memory_mib,
        free_gpus: whole.free_gpus - left.free_gpus.min(whole.free_gpus),
        cpu_millis: whole.cpu_millis - left.cpu_millis.min(whole.cpu_millis),
        memory_mib: whole.memory_mib - left.memory_mib.min(whole.memory_mib),
        disk_mib: whole.disk_mib - left.disk_mib.min(whole.disk_mib),
    }
}

/// Capacity in use on named nodes.
pub(crate) type Usage = Vec<(String, NodeCapacity)>;

impl LocalBids {
    /// All that is offered, by node.
    pub(crate) fn usage(&self) -> Usage {
        self.parts
            .iter()
            .flat_map(|p| p.nodes.iter().cloned().zip(p.capacity.nodes.iter().cloned()))
            .collect()
    }

    /// What a placement on one of the parts takes, by node.
    pub(crate) fn usage_of(&self, spec: u16, order: &ListedOrder, placement: &Placement) -> Usage {
        let Some(part) = self.parts.get(usize::from(spec)) else { return vec![] };
        let mut left = part.capacity.nodes.clone();
        take(&mut left, &order.requirements, placement);
        let used = part.capacity.nodes.iter().zip(&left).map(|(whole, left)| difference(whole, left));
        part.nodes.iter().cloned().zip(used).collect()
    }
}

/// Offers less what is in use.
pub(crate) fn without<'u>(
    offers: &[Offer],
    used: impl Iterator<Item = &'u (String, NodeCapacity)>,
) -> Vec<Offer> {
    let mut offers = offers.to_vec();
    for (name, used) in used {
        for node in offers.iter_mut().flat_map(|o| &mut o.nodes).filter(|n| &n.name == name) {
            node.capacity = difference(&node.capacity, used);
        }
    }
    offers
}

#[cfg(test)]
mod tests {
    use super::*;
    use vendue_market::{AcceptRules, OfferNode, Price, Requirements};

    fn mk_offer(name: &str, price: i64, model: &str, gpus: u32) -> Offer {
        Offer {
            name: name.into(),
            price: Price::from_micros(price).unwrap(),
            nodes: vec![OfferNode {
                name: format!("{name}-node"),
                capacity: NodeCapacity {
                    model: model.parse().unwrap(),
                    gpu_memory_mib: 81_920,
                    free_gpus: gpus,
                    cpu_millis: 64_000,
                    memory_mib: 500_000,
                    disk_mib: 500_000,
                },
            }],
            rules: AcceptRules::any(),
        }
    }

    fn mk_order(id: u8, workers: u32) -> ListedOrder {
        let requirements = Requirements {
            gpu_models: vec!["H100".parse().unwrap()],
            min_gpu_memory_mib: 0,
            workers,
            gpus_per_worker: 1,
            cpu_millis_per_worker: 1000,
            memory_mib_per_worker: 1000,
            disk_mib_per_worker: 0,
            max_price: Price::from_micros(10).unwrap(),
            run_seconds: 60,
            image: "i".into(),
            include_providers: vec![],
            exclude_providers: vec![],
        };
        ListedOrder { digest: [id; 32], requirements }
    }

    #[test]
    fn cheapest_fitting_offer_is_bid_and_only_what_is_needed_is_offered() {
        let offers = [mk_offer("a", 9, "H100", 8), mk_offer("b", 5, "H100", 8), mk_offer("c", 1, "L40S", 8)];
        let local = bids("alpha", &offers, &[mk_order(1, 2), mk_order(2, 1), mk_order(3, 9)]);
        let bid = RecordKind::Bid { price: Price::from_micros(5).unwrap(), spec: 1 };
        let kinds: Vec<_> = local.records.iter().map(|r| r.kind).collect();
        assert_eq!(kinds, [bid, bid, RecordKind::NoBid(Reason::FreeGpus)]);
        let gpus: Vec<u32> =
            local.parts.iter().map(|p| p.capacity.nodes.iter().map(|n| n.free_gpus).sum()).collect();
        assert_eq!(gpus, [0, 3, 0]);
        let rest = without(&offers, local.usage().iter());
        assert_eq!(rest[1].nodes[0].capacity.free_gpus, 5);
        assert_eq!(rest[1].nodes[0].capacity.cpu_millis, 61_000);
    }

    #[test]
    fn everything_is_offered_when_not_all_fit_together() {
        let local = bids("alpha", &[mk_offer("a", 5, "H100", 3)], &[mk_order(1, 2), mk_order(2, 2)]);
        assert_eq!(local.parts[0].capacity.nodes[0].free_gpus, 3);
    }

    #[test]
    fn reasons_without_a_bid() {
        let kind = |offers: &[Offer]| bids("alpha", offers, &[mk_order(1, 1)]).records[0].kind;
        assert_eq!(kind(&[]), RecordKind::NoBid(Reason::NoOffer));
        assert_eq!(
            kind(&[mk_offer("a", 11, "H100", 8), mk_offer("b", 5, "L40S", 8)]),
            RecordKind::NoBid(Reason::Price)
        );
    }
}
