//! The one matcher: does an order fit on these nodes, where, and if not, which constraint fails first.
//!
//! Constraints are judged in a fixed order, and the first that fails is the reason given: what makes an order
//! unservable for anybody, what the order wishes of a seat ([`Bidder::admitted`]), home, image, run time (the
//! provider's rules), interruption and time ([`Bidder::serves`]), then model, memory, free GPUs, GPUs per node, CPU,
//! host memory, disk, and the price last, so that "price" means that everything else fitted.

mod kinds;

pub(crate) use kinds::{Kinds, Models, Need};

use crate::rules::unservable;
use crate::{Bidder, GpuModel, ListedOrder, NodeCapacity, Offer, OfferNode, Price, Reason, Requirements};

/// Where an order's workers go: `(node, workers)` by position in the given nodes, ascending, each at least 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Nodes used and the workers on each.
    pub workers: Vec<(usize, u32)>,
}

/// What is free on a node. Its model is borrowed, so that capacity can be copied and taken from without a string.
#[derive(Debug, Clone, Copy)]
pub struct Free<'n> {
    /// Model of the node's GPUs.
    pub model: &'n GpuModel,
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

/// Something that has the capacity of one node.
pub trait Node {
    /// What is free on it.
    fn free(&self) -> Free<'_>;
    /// Takes something away.
    fn less(&mut self, used: &Used);
}

impl Node for Free<'_> {
    fn free(&self) -> Free<'_> {
        *self
    }
    fn less(&mut self, used: &Used) {
        self.free_gpus = self.free_gpus.saturating_sub(used.gpus);
        self.cpu_millis = self.cpu_millis.saturating_sub(used.cpu_millis);
        self.memory_mib = self.memory_mib.saturating_sub(used.memory_mib);
        self.disk_mib = self.disk_mib.saturating_sub(used.disk_mib);
    }
}

impl Node for NodeCapacity {
    fn free(&self) -> Free<'_> {
        let Self { model, gpu_memory_mib, free_gpus, cpu_millis, memory_mib, disk_mib } = self;
        Free {
            model,
            gpu_memory_mib: *gpu_memory_mib,
            free_gpus: *free_gpus,
            cpu_millis: *cpu_millis,
            memory_mib: *memory_mib,
            disk_mib: *disk_mib,
        }
    }
    fn less(&mut self, used: &Used) {
        self.free_gpus = self.free_gpus.saturating_sub(used.gpus);
        self.cpu_millis = self.cpu_millis.saturating_sub(used.cpu_millis);
        self.memory_mib = self.memory_mib.saturating_sub(used.memory_mib);
        self.disk_mib = self.disk_mib.saturating_sub(used.disk_mib);
    }
}

impl Node for OfferNode {
    fn free(&self) -> Free<'_> {
        self.capacity.free()
    }
    fn less(&mut self, used: &Used) {
        self.capacity.less(used);
    }
}

/// Places all workers of an order on nodes of one GPU model.
///
/// Models with the least GPU memory are tried first so that larger GPUs stay free; within a model, nodes with the
/// fewest free GPUs are filled first.
pub fn fit<N: Node>(req: &Requirements, nodes: &[N]) -> Result<Placement, Reason> {
    if let Some(judged) = judge_alike(req, nodes) {
        return judged.map(|()| kinds::place(req, nodes.iter().zip(0..)));
    }
    let mut models = Models::default();
    let kinds = Kinds::of(&mut models, nodes);
    kinds.fit(&models.need(req), &kinds.in_order(nodes))
}

/// Whether [`fit`] finds a placement, without making it.
pub fn fits<N: Node>(req: &Requirements, nodes: &[N]) -> Result<(), Reason> {
    judge_alike(req, nodes).unwrap_or_else(|| {
        let mut models = Models::default();
        let kinds = Kinds::of(&mut models, nodes);
        kinds.fits(&models.need(req), &kinds.in_order(nodes))
    })
}

/// Whether an order fits on nodes of one kind, as nearly all offers have; none where there are several. A seat asks this
/// for each order, so no list is made.
fn judge_alike<N: Node>(req: &Requirements, nodes: &[N]) -> Option<Result<(), Reason>> {
    let all = nodes.iter().map(Node::free);
    let Some(first) = all.clone().next() else { return Some(Err(Reason::Model)) };
    if all.clone().any(|n| n.gpu_memory_mib != first.gpu_memory_mib || n.model != first.model) {
        return None;
    }
    let named = req.gpu_models.is_empty() || req.gpu_models.contains(first.model);
    Some(match (named, first.gpu_memory_mib >= req.min_gpu_memory_mib) {
        (false, _) => Err(Reason::Model),
        (true, false) => Err(Reason::Memory),
        (true, true) => kinds::judge(req, all),
    })
}

/// What workers of an order take from a node.
#[derive(Debug, Clone, Copy)]
pub struct Used {
    gpus: u32,
    cpu_millis: u64,
    memory_mib: u64,
    disk_mib: u64,
}

impl Used {
    fn by(req: &Requirements, workers: u32) -> Self {
        let n = u64::from(workers);
        Self {
            gpus: workers.saturating_mul(req.gpus_per_worker),
            cpu_millis: n.saturating_mul(req.cpu_millis_per_worker),
            memory_mib: n.saturating_mul(req.memory_mib_per_worker),
            disk_mib: n.saturating_mul(req.disk_mib_per_worker),
        }
    }
}

/// Removes a placement from the nodes.
pub fn take<N: Node>(nodes: &mut [N], req: &Requirements, placement: &Placement) {
    for (i, workers) in &placement.workers {
        if let Some(node) = nodes.get_mut(*i) {
            node.less(&Used::by(req, *workers));
        }
    }
}

/// Whether one offer of a provider serves an order of `home`, everything considered.
pub fn fit_offer(
    order: &ListedOrder<'_>,
    home: &str,
    bidder: &Bidder<'_>,
    offer: &Offer,
) -> Result<Price, Reason> {
    if let Some(reason) = unservable(bidder.rules, order) {
        return Err(reason);
    }
    if !bidder.rules.know_bid(&offer.terms) {
        return Err(Reason::NoOffer);
    }
    bidder.admitted(order)?;
    offer.rules.check(home, order.requirements)?;
    bidder.serves(order, &offer.terms)?;
    fits(order.requirements, &offer.nodes)?;
    if order.ceiling.is_none_or(|ceiling| offer.price > ceiling) {
        Err(Reason::Price)
    } else {
        Ok(offer.price)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::clear::tests::OwnedOrder;
    use crate::requirements::tests::mk_requirements;
    use crate::{AcceptRules, BidTerms, ClearingRules, Terms};
    use proptest::prelude::*;

    fn mk_order(requirements: Requirements) -> OwnedOrder {
        OwnedOrder::new(requirements, Terms::default())
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
        assert_eq!(fit::<NodeCapacity>(&req, &[]), Err(Reason::Model));
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
            nodes: vec![OfferNode::of("n1", mk_node("H100", 80, 1))],
            rules: AcceptRules {
                max_run_seconds: 60,
                images: vec!["other/*".into()],
                homes: vec!["lab".into(), "office".into()],
            },
            terms: BidTerms { may_interrupt: true, duration_s: 1, start_ms: 0 },
        };
        let judged = |order: &OwnedOrder, home: &str, provider, offer: &Offer| {
            fit_offer(&order.listed(), home, &bidder(provider), offer).unwrap_err()
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
        assert_eq!(fit_offer(&order.listed(), "office", &bidder, &offer), Err(Reason::Rules));
        order = mk_order(mk_requirements(1, 1));
        assert_eq!(fit_offer(&order.listed(), "office", &bidder, &offer), Err(Reason::NoOffer));
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
