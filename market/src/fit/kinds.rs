//! The nodes of an offer by kind, and where an order fits on them.
//!
//! Inputs: the nodes, once, and then what orders need. Output: the workers on each node, or the constraint that fails.
//! Names of models are read when nodes are grouped and once for what an order needs; after that a fit is one pass over
//! the nodes of the kinds that the order accepts, which lie side by side, and nothing is sorted but where the workers go.
//!
//! Invariant: kinds ascend by memory, then by the model's name, and stay what they are: nothing that is taken from a
//! node changes its kind.

use super::{Free, Node, Placement, Used};
use crate::{GpuModel, Reason, Requirements};
use std::collections::BTreeMap;

/// Numbers of the GPU models that nodes have.
#[derive(Debug, Default)]
pub(crate) struct Models<'n>(BTreeMap<&'n GpuModel, usize>);

impl<'n> Models<'n> {
    fn number(&mut self, model: &'n GpuModel) -> usize {
        let next = self.0.len();
        *self.0.entry(model).or_insert(next)
    }

    /// What an order needs of nodes that are grouped already.
    pub fn need<'r>(&self, req: &'r Requirements) -> Need<'r> {
        let named = req.gpu_models.iter().filter_map(|model| self.0.get(model).copied());
        let together = [req.cpu_millis_per_worker, req.memory_mib_per_worker, req.disk_mib_per_worker]
            .map(|each| each.checked_mul(u64::from(req.workers)));
        Need { req, models: (!req.gpu_models.is_empty()).then(|| named.collect()), together }
    }
}

/// What an order needs.
#[derive(Debug)]
pub(crate) struct Need<'r> {
    pub req: &'r Requirements,
    /// Numbers of the models that it names and that some node has; none accepts any model.
    models: Option<Vec<usize>>,
    /// What all workers need together: CPU, memory, disk; none where it is more than there can be.
    together: [Option<u64>; 3],
}

/// Nodes that are alike; all workers of an order run on nodes of one kind.
#[derive(Debug, PartialEq, Eq)]
struct Kind {
    gpu_memory_mib: u64,
    model: usize,
    /// Where its nodes end in the order of kinds.
    end: usize,
}

/// The kinds of an offer's nodes, and what puts the nodes in the order of kinds.
#[derive(Debug)]
pub(crate) struct Kinds {
    /// Least memory first, then by the model's name.
    kinds: Vec<Kind>,
    /// Where each node of the order of kinds stands in the offer.
    positions: Vec<usize>,
    /// Where each node of the offer stands in the order of kinds.
    places: Vec<usize>,
}

impl Kinds {
    /// Groups nodes.
    pub fn of<'n, N: Node>(models: &mut Models<'n>, nodes: &'n [N]) -> Self {
        let all = nodes.iter().map(Node::free).zip(0usize..);
        let mut sorted: Vec<(u64, &'n GpuModel, usize)> =
            all.map(|(n, at)| (n.gpu_memory_mib, n.model, at)).collect();
        // Nearly all offers have nodes of one kind.
        if sorted.windows(2).any(|pair| matches!(pair, [a, b] if (a.0, a.1) != (b.0, b.1))) {
            sorted.sort_unstable();
        }
        let (mut kinds, mut end) = (vec![], 0);
        for alike in sorted.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
            end += alike.len();
            if let Some((gpu_memory_mib, model, _)) = alike.first() {
                kinds.push(Kind { gpu_memory_mib: *gpu_memory_mib, model: models.number(model), end });
            }
        }
        let positions: Vec<usize> = sorted.into_iter().map(|(.., at)| at).collect();
        let mut places = vec![0; positions.len()];
        for (place, at) in positions.iter().enumerate() {
            if let Some(of) = places.get_mut(*at) {
                *of = place;
            }
        }
        Self { kinds, positions, places }
    }

    /// What is free on the offer's nodes, in the order of kinds.
    pub fn in_order<'n, N: Node>(&self, nodes: &'n [N]) -> Vec<Free<'n>> {
        self.positions.iter().filter_map(|at| nodes.get(*at)).map(Node::free).collect()
    }

    /// Places all workers on nodes of one kind: least memory first so that larger GPUs stay free, and within a kind the
    /// nodes with the fewest free GPUs. Workers are alike, so filling greedily finds a placement whenever there is one.
    /// `nodes` are in the order of kinds, the placement names them by their position in the offer.
    pub fn fit<N: Node>(&self, need: &Need<'_>, nodes: &[N]) -> Result<Placement, Reason> {
        let (alike, positions) = self.first(need, nodes)?;
        Ok(place(need.req, alike.iter().zip(positions.iter().copied())))
    }

    /// Whether [`Self::fit`] finds a placement, without making it.
    pub fn fits<N: Node>(&self, need: &Need<'_>, nodes: &[N]) -> Result<(), Reason> {
        self.first(need, nodes).map(drop)
    }

    /// Removes a placement from nodes that are in the order of kinds.
    pub fn take<N: Node>(&self, nodes: &mut [N], req: &Requirements, placement: &Placement) {
        for (at, workers) in &placement.workers {
            if let Some(node) = self.places.get(*at).and_then(|place| nodes.get_mut(*place)) {
                node.less(&Used::by(req, *workers));
            }
        }
    }

    /// The nodes of the first kind that all workers fit on with their positions, or the reason of the kind that came
    /// closest, that is whose failing constraint is judged last.
    fn first<'n, N: Node>(&self, need: &Need<'_>, nodes: &'n [N]) -> Result<(&'n [N], &[usize]), Reason> {
        let (mut from, mut closest) = (0, Reason::Model);
        for kind in &self.kinds {
            let range = from..kind.end;
            from = kind.end;
            if need.models.as_ref().is_some_and(|models| !models.contains(&kind.model)) {
                continue;
            }
            let alike = nodes.get(range.clone()).unwrap_or_default();
            let judged = match alike {
                _ if kind.gpu_memory_mib < need.req.min_gpu_memory_mib => Err(Reason::Memory),
                [alone] => judge_one(need, &alone.free()),
                _ => judge(need.req, alike.iter().map(Node::free)),
            };
            match judged {
                Ok(()) => return Ok((alike, self.positions.get(range).unwrap_or_default())),
                Err(reason) => closest = closest.max(reason),
            }
        }
        Err(closest)
    }
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
    fn of(req: &Requirements, n: &Free<'_>) -> Self {
        // Mostly there is enough for all, which takes no division to see.
        let by = |room: u64, have: u64, each: u64| match each.checked_mul(room) {
            Some(wanted) if wanted <= have => room,
            _ if have < each => 0,
            _ => have.checked_div(each).unwrap_or(room),
        };
        let gpus = u64::from(match req.gpus_per_worker {
            0 | 1 => n.free_gpus,
            each if n.free_gpus < each => 0,
            each => n.free_gpus / each,
        });
        let cpu = by(gpus, n.cpu_millis, req.cpu_millis_per_worker);
        let memory = by(cpu, n.memory_mib, req.memory_mib_per_worker);
        Self { gpus, cpu, memory, disk: by(memory, n.disk_mib, req.disk_mib_per_worker) }
    }
}

/// Fills nodes of one kind that have room, each with its position, those with the fewest free GPUs first.
pub(super) fn place<'n, N: Node + 'n>(
    req: &Requirements,
    nodes: impl Iterator<Item = (&'n N, usize)>,
) -> Placement {
    let slots = |(node, at): (&N, usize)| {
        let node = node.free();
        (node.free_gpus, at, Room::of(req, &node).disk)
    };
    let mut order: Vec<(u32, usize, u64)> = nodes.map(slots).filter(|(.., slots)| *slots > 0).collect();
    order.sort_unstable();
    let mut left = u64::from(req.workers);
    let mut workers = Vec::with_capacity(order.len().min(req.workers as usize));
    for (_, at, slots) in order {
        let here = slots.min(left);
        if here == 0 {
            break;
        }
        workers.push((at, here as u32));
        left -= here;
    }
    workers.sort_unstable();
    Placement { workers }
}

/// Whether all workers fit on nodes of one kind; the constraint at which the room vanishes is the reason.
pub(super) fn judge<'n>(req: &Requirements, nodes: impl Iterator<Item = Free<'n>>) -> Result<(), Reason> {
    let workers = u64::from(req.workers);
    let (mut free, mut sum) = (0u64, Room::default());
    for node in nodes {
        // At most 2^32 GPUs on each of a bounded number of nodes: no sum overflows.
        let room = Room::of(req, &node);
        free += u64::from(node.free_gpus);
        sum.gpus += room.gpus;
        sum.cpu += room.cpu;
        sum.memory += room.memory;
        sum.disk += room.disk;
        // The last constraint includes all before it.
        if sum.disk >= workers {
            return Ok(());
        }
    }
    let lacking = [
        (free < workers * u64::from(req.gpus_per_worker), Reason::FreeGpus),
        (sum.gpus < workers, Reason::GpusPerNode),
        (sum.cpu < workers, Reason::Cpu),
        (sum.memory < workers, Reason::HostMemory),
        (sum.disk < workers, Reason::Disk),
    ];
    lacking.into_iter().find(|(lacks, _)| *lacks).map_or(Ok(()), |(_, reason)| Err(reason))
}

/// [`judge`] for a single node, by products alone: an offer may have as many kinds as nodes.
fn judge_one(need: &Need<'_>, node: &Free<'_>) -> Result<(), Reason> {
    let Need { req, together: [cpu, memory, disk], .. } = need;
    let (free, workers) = (u64::from(node.free_gpus), u64::from(req.workers));
    let lacks = |wanted: &Option<u64>, have: u64| wanted.is_none_or(|wanted| wanted > have);
    match () {
        () if free < workers * u64::from(req.gpus_per_worker) => Err(Reason::FreeGpus),
        () if free < workers * u64::from(req.gpus_per_worker.max(1)) => Err(Reason::GpusPerNode),
        () if lacks(cpu, node.cpu_millis) => Err(Reason::Cpu),
        () if lacks(memory, node.memory_mib) => Err(Reason::HostMemory),
        () if lacks(disk, node.disk_mib) => Err(Reason::Disk),
        () => Ok(()),
    }
}

#[cfg(test)]
mod tests;
