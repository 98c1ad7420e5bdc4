//! The one matcher: does an order fit on these nodes, where, and if not, which constraint fails first.
//!
//! Constraints are judged in a fixed order, and the first that fails is the reason given: excluded, not included,
//! home, image, run time (the provider's rules), then model, memory, free GPUs, GPUs per node, CPU, host memory, disk,
//! and the price last, so that "price" means that everything else fitted.

use crate::{NodeCapacity, Offer, Price, Reason, Requirements};
use std::collections::BTreeMap;

/// Where an order's workers go: `(node, workers)` by position in the given nodes, ascending, each at least 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Nodes used and the workers on each.
    pub workers: Vec<(usize, u32)>,
}

/// The order's own wishes about who serves it.
pub fn screen(req: &Requirements, provider: &str) -> Result<(), Reason> {
    if req.exclude_providers.iter().any(|p| p == provider) {
        return Err(Reason::Excluded);
    }
    if !req.include_providers.is_empty() && !req.include_providers.iter().any(|p| p == provider) {
        return Err(Reason::NotIncluded);
    }
    Ok(())
}

/// Places all workers of an order on nodes of one GPU model.
///
/// Models with the least GPU memory are tried first so that larger GPUs stay free; within a model, nodes with the
/// fewest free GPUs are filled first. Workers are alike, so filling greedily finds a placement whenever there is one.
pub fn fit(req: &Requirements, nodes: &[NodeCapacity]) -> Result<Placement, Reason> {
    let named =
        |n: &&(usize, &NodeCapacity)| req.gpu_models.is_empty() || req.gpu_models.contains(&n.1.model);
    let all: Vec<_> = nodes.iter().enumerate().collect();
    let named: Vec<_> = all.iter().filter(named).copied().collect();
    if named.is_empty() {
        return Err(Reason::Model);
    }
    let mut by_model: BTreeMap<_, Vec<(usize, &NodeCapacity)>> = BTreeMap::new();
    for (i, node) in named {
        if node.gpu_memory_mib >= req.min_gpu_memory_mib {
            by_model.entry((node.gpu_memory_mib, &node.model)).or_default().push((i, node));
        }
    }
    // The reason of the model that came closest, that is whose failing constraint is judged last.
    let mut closest = Reason::Memory;
    for group in by_model.values() {
        match fit_group(req, group) {
            Ok(placement) => return Ok(placement),
            Err(reason) => closest = closest.max(reason),
        }
    }
    Err(closest)
}

/// How many workers a node has room for, by the constraints judged so far.
type Slots<'a> = &'a dyn Fn(&NodeCapacity) -> u64;

/// Places all workers on the given nodes of one model.
fn fit_group(req: &Requirements, group: &[(usize, &NodeCapacity)]) -> Result<Placement, Reason> {
    let free: u64 = group.iter().map(|(_, n)| u64::from(n.free_gpus)).sum();
    if free < u64::from(req.workers) * u64::from(req.gpus_per_worker) {
        return Err(Reason::FreeGpus);
    }
    // Each stage adds one constraint to those before it; the stage at which the room vanishes is the reason.
    let by_gpus = |n: &NodeCapacity| u64::from(n.free_gpus) / u64::from(req.gpus_per_worker.max(1));
    let by = |have: u64, each: u64| have.checked_div(each).unwrap_or(u64::MAX);
    let cpu = |n: &NodeCapacity| by_gpus(n).min(by(n.cpu_millis, req.cpu_millis_per_worker));
    let memory = |n: &NodeCapacity| cpu(n).min(by(n.memory_mib, req.memory_mib_per_worker));
    let disk = |n: &NodeCapacity| memory(n).min(by(n.disk_mib, req.disk_mib_per_worker));
    let room = |slots: &dyn Fn(&NodeCapacity) -> u64| group.iter().map(|(_, n)| slots(n)).sum::<u64>();
    let stages: [(Slots<'_>, Reason); 4] = [
        (&by_gpus, Reason::GpusPerNode),
        (&cpu, Reason::Cpu),
        (&memory, Reason::HostMemory),
        (&disk, Reason::Disk),
    ];
    for (slots, reason) in stages {
        if room(slots) < u64::from(req.workers) {
            return Err(reason);
        }
    }
    let mut order: Vec<_> = group.iter().map(|(i, n)| (n.free_gpus, *i, disk(n))).collect();
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
    req: &Requirements,
    home: &str,
    provider: &str,
    offer: &Offer,
) -> Result<(Placement, Price), Reason> {
    screen(req, provider)?;
    offer.rules.check(home, req)?;
    let nodes: Vec<_> = offer.nodes.iter().map(|n| n.capacity.clone()).collect();
    let placement = fit(req, &nodes)?;
    if offer.price > req.max_price {
        return Err(Reason::Price);
    }
    Ok((placement, offer.price))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::requirements::tests::mk_requirements;
    use crate::{AcceptRules, OfferNode};
    use proptest::prelude::*;

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
    fn price_is_judged_last_and_wishes_first() {
        let mut req = mk_requirements(1, 1);
        let mut offer = Offer {
            name: "p".into(),
            price: "9".parse().unwrap(),
            nodes: vec![OfferNode { name: "n1".into(), capacity: mk_node("H100", 80, 1) }],
            rules: AcceptRules {
                max_run_seconds: 60,
                images: vec!["other/*".into()],
                homes: vec!["lab".into(), "office".into()],
            },
        };
        req.include_providers = vec!["bravo".into()];
        assert_eq!(fit_offer(&req, "office", "alpha", &offer), Err(Reason::NotIncluded));
        assert_eq!(fit_offer(&req, "off", "bravo", &offer), Err(Reason::Home));
        assert_eq!(fit_offer(&req, "office", "bravo", &offer), Err(Reason::Image));
        offer.rules.images.clear();
        assert_eq!(fit_offer(&req, "office", "bravo", &offer), Err(Reason::RunTime));
        offer.rules.max_run_seconds = 0;
        assert_eq!(fit_offer(&req, "office", "bravo", &offer), Err(Reason::Price));
        req.exclude_providers = vec!["bravo".into()];
        assert_eq!(fit_offer(&req, "office", "bravo", &offer), Err(Reason::Excluded));
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
