use super::*;
use crate::fit::tests::mk_node;
use crate::requirements::tests::mk_requirements;
use crate::{NodeCapacity, Used};
use std::cell::Cell;

/// A node that counts how often it is looked at.
struct Seen {
    node: NodeCapacity,
    times: Cell<usize>,
}

impl Node for Seen {
    fn free(&self) -> Free<'_> {
        self.times.set(self.times.get() + 1);
        self.node.free()
    }
    fn less(&mut self, used: &Used) {
        self.node.less(used);
    }
}

/// Nodes of 1024 kinds with one GPU each: of each model twice, with little memory and with much.
fn mk_many() -> Vec<Seen> {
    let node = |at: u64| Seen {
        node: mk_node(&format!("M{:03}", at / 2 * 7 % 512), 40 + at % 2 * 40, 1),
        times: Cell::new(0),
    };
    (0..1024).map(node).collect()
}

#[test]
fn a_fit_looks_once_at_the_nodes_of_the_kinds_that_an_order_accepts() {
    let offered = mk_many();
    let mut models = Models::default();
    let kinds = Kinds::of(&mut models, &offered);
    assert_eq!(kinds.kinds.len(), 1024);
    let seen = |at: &usize| Seen { node: offered[*at].node.clone(), times: Cell::new(0) };
    let nodes: Vec<Seen> = kinds.positions.iter().map(seen).collect();
    let looks = |req: &Requirements| {
        nodes.iter().for_each(|n| n.times.set(0));
        let judged = kinds.fits(&models.need(req), &nodes);
        (judged, nodes.iter().map(|n| n.times.get()).sum::<usize>())
    };
    let mut req = mk_requirements(2, 1);
    assert_eq!(looks(&req), (Err(Reason::FreeGpus), 1024));
    req.min_gpu_memory_mib = 80 * 1024;
    assert_eq!(looks(&req), (Err(Reason::FreeGpus), 512));
    req.gpu_models = ["M002", "M500", "none"].iter().map(|m| m.parse().unwrap()).collect();
    assert_eq!(looks(&req), (Err(Reason::FreeGpus), 2));
    req.min_gpu_memory_mib = 0;
    assert_eq!(looks(&req), (Err(Reason::FreeGpus), 4));
    req.workers = 1;
    assert_eq!(looks(&req), (Ok(()), 1), "the first kind that has room ends it");
    req.gpu_models = vec!["none".parse().unwrap()];
    assert_eq!(looks(&req), (Err(Reason::Model), 0));
    (req.gpu_models, req.min_gpu_memory_mib) = (vec![], 81 * 1024);
    assert_eq!(looks(&req), (Err(Reason::Memory), 0));
}

#[test]
fn kinds_ascend_by_memory_and_name_whatever_was_grouped_before() {
    let offers = [["B", "A"], ["A", "B"], ["C", "A"]].map(|names| {
        let nodes = [mk_node(names[0], 80, 1), mk_node(names[1], 80, 1), mk_node("Z", 40, 1)];
        (names, nodes)
    });
    let mut models = Models::default();
    for (names, nodes) in &offers {
        let kinds = Kinds::of(&mut models, nodes);
        let req = |workers| mk_requirements(workers, 1);
        assert_eq!(kinds.fit(&models.need(&req(1)), &kinds.in_order(nodes)).unwrap().workers, [(2, 1)]);
        let mut large = req(1);
        large.min_gpu_memory_mib = 80 * 1024;
        let least = usize::from(names[1] < names[0]);
        assert_eq!(kinds.fit(&models.need(&large), &kinds.in_order(nodes)).unwrap().workers, [(least, 1)]);
    }
}
