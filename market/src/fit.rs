//! The one matcher: does an order fit on these nodes, where, and if not, which constraint fails first.
//!
//! Constraints are judged in a fixed order, and the first that fails is the reason given: what makes an order
//! unservable for anybody, what the order wishes of a seat ([`Bidder::admitted`]), home, image, run time (the
//! provider's rules), interruption and time ([`Bidder::serves`]), then model, memory, free GPUs, GPUs per node, CPU,
//! host memory, disk, and the price last, so that "price" means that everything else fitted.

use crate::rules::unservable;
use crate::{Bidder, GpuModel, ListedOrder, NodeCapacity, Offer, Price, Reason, Requirements};

/// Where an order's workers go: `(node, workers)` by position in the given nodes, ascending, each at least 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Nodes used and the workers on each.
    pub workers: Vec<(usize, u32)>,
}

/// What makes nodes alike: all workers of an order run on nodes of one kind.
type Kind<'n> = (u64, &'n GpuModel);

/// Places all workers of an order on nodes of one GPU model.
///
/// Models with the least GPU memory are tried first so that larger GPUs stay free; within a model, nodes with the
/// fewest free GPUs are filled first. Workers are alike, so filling greedily finds a placement whenever there is one.
pub fn fit(req: &Requirements, nodes: &[NodeCapacity]) -> Result<Placement, Reason> {
    let kind = fitting_kind(req, nodes)?;
    let mut order: Vec<_> =
        of_kind(nodes, kind).map(|(i, n)| (n.free_gpus, i, Room::of(req, n).disk)).collect();
    order.sort_unstable();
    let mut left = u64::from(req.workers);
    let mut workers = Vec::new();
    for (_, i, slots) in order {
        let here = slots.min(left);
        if here > 0 {
            workers.push((i, here as u32));
            left -= here;
        }
    }
    workers.sort_unstable();
    Ok(Placement { workers })
}

/// Whether [`fit`] finds a placement, without making it.
pub fn fits(req: &Requirements, nodes: &[NodeCapacity]) -> Result<(), Reason> {
    fitting_kind(req, nodes).map(drop)
}

fn kind_of(node: &NodeCapacity) -> Kind<'_> {
    (node.gpu_memory_mib, &node.model)
}

fn of_kind<'n>(
    nodes: &'n [NodeCapacity],
    kind: Kind<'n>,
) -> impl Iterator<Item = (usize, &'n NodeCapacity)> + Clone {
    nodes.iter().enumerate().filter(move |(_, n)| kind_of(n) == kind)
}

/// The first kind of nodes, by memory and model, that all workers fit on.
fn fitting_kind<'n>(req: &Requirements, nodes: &'n [NodeCapacity]) -> Result<Kind<'n>, Reason> {
    let named = |n: &&NodeCapacity| req.gpu_models.is_empty() || req.gpu_models.contains(&n.model);
    let mut enough = nodes.iter().filter(named).filter(|n| n.gpu_memory_mib >= req.min_gpu_memory_mib);
    let Some(first) = enough.next().map(kind_of) else {
        return Err(if nodes.iter().any(|n| named(&n)) { Reason::Memory } else { Reason::Model });
    };
    // Nearly all offers have nodes of one kind, and this is asked for every bid: no list is made for them.
    if enough.clone().all(|n| kind_of(n) == first) {
        return judge(req, of_kind(nodes, first).map(|(_, n)| n)).map(|()| first);
    }
    let mut sorted: Vec<&NodeCapacity> = nodes.iter().filter(named).collect();
    sorted.retain(|n| n.gpu_memory_mib >= req.min_gpu_memory_mib);
    sorted.sort_by(|a, b| kind_of(a).cmp(&kind_of(b)));
    // The reason of the kind that came closest, that is whose failing constraint is judged last.
    let mut closest = Reason::Memory;
    for group in sorted.chunk_by(|a, b| kind_of(a) == kind_of(b)) {
        match (judge(req, group.iter().copied()), group.first()) {
            (Ok(()), Some(node)) => return Ok(kind_of(node)),
            (Err(reason), _) => closest = closest.max(reason),
            (Ok(()), None) => {}
        }
    }
    Err(closest)
}

/// How many workers a node has room for, by one constraint after another; each includes those before it.
#[derive(Default)]
struct Room {
    gpus: u64,
    cpu: u64,
    memory: u64,
    disk: u64,
}

impl Room {
    fn of(req: &Requirements, n: &NodeCapacity) -> Self {
        let by = |have: u64, each: u64| have.checked_div(each).unwrap_or(u64::MAX);
        let gpus = u64::from(n.free_gpus / req.gpus_per_worker.max(1));
        let cpu = gpus.min(by(n.cpu_millis, req.cpu_millis_per_worker));
        let memory = cpu.min(by(n.memory_mib, req.memory_mib_per_worker));
        Self { gpus, cpu, memory, disk: memory.min(by(n.disk_mib, req.disk_mib_per_worker)) }
    }
}

/// Whether all workers fit on nodes of one kind; the constraint at which the room vanishes is the reason.
fn judge<'n>(req: &Requirements, nodes: impl Iterator<Item = &'n NodeCapacity>) -> Result<(), Reason> {
    let (mut free, mut sum) = (0u64, Room::default());
    for node in nodes {
        // At most 2^32 GPUs on each of a bounded number of nodes: no sum overflows.
        let room = Room::of(req, node);
        free += u64::from(node.free_gpus);
        sum.gpus += room.gpus;
        sum.cpu += room.cpu;
        sum.memory += room.memory;
        sum.disk += room.disk;
    }
    let workers = u64::from(req.workers);
    let lacking = [
        (free < workers * u64::from(req.gpus_per_worker), Reason::FreeGpus),
        (sum.gpus < workers, Reason::GpusPerNode),
        (sum.cpu < workers, Reason::Cpu),
        (sum.memory < workers, Reason::HostMemory),
        (sum.disk < workers, Reason::Disk),
    ];
    lacking.into_iter().find(|(lacks, _)| *lacks).map_or(Ok(()), |(_, reason)| Err(reason))
}

/// Removes a placement from the nodes.
pub fn take(nodes: &mut [NodeCapacity], req: &Requirements, placement: &Placement) {
    for (i, workers) in &placement.workers {
        if let Some(node) = nodes.get_mut(*i) {
            let n = u64::from(*workers);
            node.free_gpus = node.free_gpus.saturating_sub(workers.saturating_mul(req.gpus_per_worker));
            node.cpu_millis = node.cpu_millis.saturating_sub(n.saturating_mul(req.cpu_millis_per_worker));
            node.memory_mib = node.memory_mib.saturating_sub(n.saturating_mul(req.memory_mib_per_worker));
            node.disk_mib = node.disk_mib.saturating_sub(n.saturating_mul(req.disk_mib_per_worker));
        }
    }
}

/// Whether one offer of a provider serves an order of `home`, everything considered.
pub fn fit_offer(
    order: &ListedOrder,
    home: &str,
    bidder: &Bidder<'_>,
    offer: &Offer,
) -> Result<(Placement, Price), Reason> {
    if let Some(reason) = unservable(bidder.rules, order) {
        return Err(reason);
    }
    if !bidder.rules.know_bid(&offer.terms) {
        return Err(Reason::NoOffer);
    }
    bidder.admitted(order)?;
    offer.rules.check(home, &order.requirements)?;
    bidder.serves(order, &offer.terms)?;
    let nodes: Vec<_> = offer.nodes.iter().map(|n| n.capacity.clone()).collect();
    let placement = fit(&order.requirements, &nodes)?;
    if order.ceiling.is_none_or(|ceiling| offer.price > ceiling) {
        return Err(Reason::Price);
    }
    Ok((placement, offer.price))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::requirements::tests::mk_requirements;
    use crate::{AcceptRules, BidTerms, ClearingRules, OfferNode, Terms};
    use proptest::prelude::*;

    fn mk_order(requirements: Requirements) -> ListedOrder {
        let ceiling = Some(requirements.max_price);
        ListedOrder { digest: [1; 32], requirements, terms: Terms::default(), ceiling }
    }

    pub(crate) fn mk_node(model: &str, memory_gib: u64, free_gpus: u32) -> NodeCapacity {
        NodeCapacity {
            model: model.parse().unwrap(),
            gpu_memory_mib: memory_gib * 1024,
            free_gpus,
            cpu_millis: 64_000,
            memory_mib: 512 * 1024,
            disk_mib: 1024 * 1024,
        }
    }

    #[test]
    fn first_failing_constraint_is_the_reason() {
        let nodes = [mk_node("A100", 40, 2), mk_node("A100", 40, 2)];
        let mut req = mk_requirements(2, 2);
        assert_eq!(fit(&req, &nodes).unwrap().workers, [(0, 1), (1, 1)]);
        req.disk_mib_per_worker = u64::MAX;
        assert_eq!(fit(&req, &nodes), Err(Reason::Disk));
        req.memory_mib_per_worker = u64::MAX;
        assert_eq!(fit(&req, &nodes), Err(Reason::HostMemory));
        req.cpu_millis_per_worker = u64::MAX;
        assert_eq!(fit(&req, &nodes), Err(Reason::Cpu));
        (req.workers, req.gpus_per_worker) = (1, 4);
        assert_eq!(fit(&req, &nodes), Err(Reason::GpusPerNode));
        req.workers = 2;
        assert_eq!(fit(&req, &nodes), Err(Reason::FreeGpus));
        req.min_gpu_memory_mib = 80 * 1024;
        assert_eq!(fit(&req, &nodes), Err(Reason::Memory));
        req.gpu_models = vec!["H100".parse().unwrap()];
        assert_eq!(fit(&req, &nodes), Err(Reason::Model));
        assert_eq!(fit(&req, &[]), Err(Reason::Model));
    }

    #[test]
    fn small_gpus_and_small_nodes_first_and_never_two_models() {
        let nodes = [mk_node("H100", 80, 8), mk_node("L40S", 48, 4), mk_node("L40S", 48, 1)];
        assert_eq!(fit(&mk_requirements(2, 1), &nodes).unwrap().workers, [(1, 1), (2, 1)]);
        assert_eq!(fit(&mk_requirements(6, 1), &nodes).unwrap().workers, [(0, 6)]);
        assert_eq!(fit(&mk_requirements(9, 1), &nodes), Err(Reason::FreeGpus));
    }

    #[test]
    fn what_lacks_in_the_kind_that_came_closest_is_the_reason() {
        let mut big = mk_node("H100", 80, 2);
        big.cpu_millis = 0;
        let nodes = [mk_node("A100", 40, 1), big, mk_node("L40S", 48, 0)];
        assert_eq!(fit(&mk_requirements(2, 1), &nodes), Err(Reason::Cpu));
        assert_eq!(fit(&mk_requirements(1, 1), &nodes).unwrap().workers, [(0, 1)]);
    }

    #[test]
    fn price_is_judged_last_and_wishes_first() {
        let rules = ClearingRules::latest();
        let bidder = |provider| Bidder { seat: 0, provider, rules: &rules, from_ms: 0 };
        let mut order = mk_order(mk_requirements(1, 1));
        let mut offer = Offer {
            name: "p".into(),
            price: "9".parse().unwrap(),
            nodes: vec![OfferNode { name: "n1".into(), capacity: mk_node("H100", 80, 1) }],
            rules: AcceptRules {
                max_run_seconds: 60,
                images: vec!["other/*".into()],
                homes: vec!["lab".into(), "office".into()],
            },
            terms: BidTerms { may_interrupt: true, duration_s: 1, start_ms: 0 },
        };
        let judged = |order: &ListedOrder, home: &str, provider, offer: &Offer| {
            fit_offer(order, home, &bidder(provider), offer).unwrap_err()
        };
        order.requirements.include_providers = vec!["bravo".into()];
        assert_eq!(judged(&order, "office", "alpha", &offer), Reason::NotIncluded);
        assert_eq!(judged(&order, "off", "bravo", &offer), Reason::Home);
        assert_eq!(judged(&order, "office", "bravo", &offer), Reason::Image);
        offer.rules.images.clear();
        assert_eq!(judged(&order, "office", "bravo", &offer), Reason::RunTime);
        offer.rules.max_run_seconds = 0;
        assert_eq!(judged(&order, "office", "bravo", &offer), Reason::Interruption);
        order.terms.interruptible = true;
        assert_eq!(judged(&order, "office", "bravo", &offer), Reason::Window);
        offer.terms.duration_s = 0;
        assert_eq!(judged(&order, "office", "bravo", &offer), Reason::Price);
        order.requirements.exclude_providers = vec!["bravo".into()];
        assert_eq!(judged(&order, "office", "bravo", &offer), Reason::Excluded);
        order.ceiling = None;
        assert_eq!(judged(&order, "office", "bravo", &offer), Reason::Ceiling);
        let first = ClearingRules::default();
        let bidder = Bidder { seat: 0, provider: "bravo", rules: &first, from_ms: 0 };
        assert_eq!(fit_offer(&order, "office", &bidder, &offer), Err(Reason::Rules));
        order = mk_order(mk_requirements(1, 1));
        assert_eq!(fit_offer(&order, "office", &bidder, &offer), Err(Reason::NoOffer));
    }

    proptest! {
        #[test]
        fn a_placement_never_takes_more_than_there_is(
            sizes in prop::collection::vec((0u32..9, 0u64..9, 0usize..2), 0..6),
            workers in 1u32..8, each in 1u32..4, cpu in 0u64..3,
        ) {
            let nodes: Vec<_> = sizes.iter().map(|(gpus, cores, kind)| {
                let mut n = mk_node(["H100", "L40S"][*kind], [80, 48][*kind], *gpus);
                n.cpu_millis = cores * 1000;
                n
            }).collect();
            let mut req = mk_requirements(workers, each);
            req.cpu_millis_per_worker = cpu * 1000;
            prop_assert_eq!(fits(&req, &nodes), fit(&req, &nodes).map(drop));
            if let Ok(p) = fit(&req, &nodes) {
                prop_assert_eq!(p.workers.iter().map(|w| w.1).sum::<u32>(), workers);
                for (i, w) in &p.workers {
                    prop_assert!(nodes[*i].free_gpus >= w * each);
                    prop_assert!(nodes[*i].cpu_millis >= u64::from(*w) * cpu * 1000);
                    prop_assert_eq!(&nodes[*i].model, &nodes[p.workers[0].0].model);
                }
            }
        }
    }
}
