//! Devices of one UUID on several nodes: at most one of them can be what it says.
//!
//! Inputs: what the agents say of each node. Outputs: UUIDs that more than one node reports, with those nodes.
//! Invariants: none of the nodes is believed over another; a GpuNode whose node is gone says nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::view::Snapshot;

/// Most UUIDs that a message names.
const MAX_NAMED: usize = 8;

/// UUIDs that more than one node reports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Duplicates<'a>(BTreeMap<&'a str, BTreeSet<&'a str>>);

impl<'a> Duplicates<'a> {
    /// Looks for them on all nodes.
    pub fn of(snapshot: &'a Snapshot) -> Self {
        let mut first: HashMap<&str, &str> = HashMap::new();
        let mut found: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        let nodes = snapshot.gpu_nodes.iter().filter(|(name, _)| snapshot.nodes.contains_key(*name));
        for (name, uuid) in
            nodes.flat_map(|(name, gpus)| gpus.known.devices.iter().map(|d| (name.as_str(), d.uuid.as_str())))
        {
            match first.insert(uuid, name) {
                Some(other) if other != name => found.entry(uuid).or_default().extend([other, name]),
                _ => {}
            }
        }
        Self(found)
    }

    /// How many healthy devices of a node are reported elsewhere too: nobody can say which of them are there.
    pub fn doubtful(&self, snapshot: &Snapshot, node: &str) -> usize {
        let Some(gpus) = snapshot.gpu_nodes.get(node).filter(|_| !self.0.is_empty()) else { return 0 };
        gpus.known.devices.iter().filter(|d| d.healthy && self.0.contains_key(d.uuid.as_str())).count()
    }

    /// What there is to say of these nodes; none when all their devices are theirs alone.
    pub fn message(&self, nodes: &[&str]) -> Option<String> {
        let told: Vec<String> = self
            .0
            .iter()
            .filter(|(_, on)| nodes.iter().any(|node| on.contains(node)))
            .map(|(uuid, on)| {
                let names: Vec<&str> = on.iter().copied().collect();
                format!("{uuid} is reported by nodes {}", names.join(", "))
            })
            .collect();
        let more = match told.len().saturating_sub(MAX_NAMED) {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        let named: Vec<String> = told.into_iter().take(MAX_NAMED).collect();
        (!named.is_empty()).then(|| format!("{}{more}; they are sold on none of them", named.join("; ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::mk_snapshot;
    use crate::provision::free_nodes;

    fn uuid(snapshot: &mut Snapshot, node: &str, device: usize) -> String {
        snapshot.gpu_nodes[node].known.devices[device].uuid.clone()
    }

    fn clone_of(snapshot: &mut Snapshot, (node, device): (&str, usize), uuid: &str) {
        snapshot.gpu_nodes.get_mut(node).unwrap().known.devices[device].uuid = uuid.to_owned();
    }

    fn free(snapshot: &Snapshot) -> Vec<i32> {
        free_nodes(snapshot, &crate::fixtures::mk_provision_spec()).iter().map(|n| n.gpus).collect()
    }

    #[test]
    fn a_uuid_on_two_nodes_is_sold_on_neither() {
        let mut snapshot = mk_snapshot(&[("a", "H100", 4), ("b", "H100", 4), ("c", "H100", 4)]);
        assert_eq!(Duplicates::of(&snapshot), Duplicates::default());
        assert_eq!(free(&snapshot), [4, 4, 4]);
        let cloned = uuid(&mut snapshot, "a", 1);
        clone_of(&mut snapshot, ("c", 0), &cloned);
        assert_eq!(free(&snapshot), [3, 4, 3]);
        let found = Duplicates::of(&snapshot);
        let message = format!("{cloned} is reported by nodes a, c; they are sold on none of them");
        assert_eq!(found.message(&["a", "b"]), Some(message.clone()));
        assert_eq!(found.message(&["c"]), Some(message));
        assert_eq!(found.message(&["b"]), None);
        // One that is broken anyway is not taken off twice.
        let gpus = snapshot.gpu_nodes.get_mut("a").unwrap();
        gpus.known.devices[1].healthy = false;
        gpus.devices.pop();
        assert_eq!(free(&snapshot), [3, 4, 3]);
    }

    #[test]
    fn what_a_node_that_is_gone_left_behind_says_nothing() {
        let mut snapshot = mk_snapshot(&[("a", "H100", 2), ("b", "H100", 2)]);
        let moved = uuid(&mut snapshot, "a", 0);
        clone_of(&mut snapshot, ("b", 0), &moved);
        snapshot.nodes.remove("a");
        assert_eq!(free(&snapshot), [2]);
    }

    #[test]
    fn a_message_is_bounded() {
        let mut snapshot = mk_snapshot(&[("a", "H100", 10), ("b", "H100", 10), ("c", "H100", 10)]);
        for device in 0..10 {
            let cloned = uuid(&mut snapshot, "a", device);
            clone_of(&mut snapshot, ("b", device), &cloned);
            clone_of(&mut snapshot, ("c", device), &cloned);
        }
        let message = Duplicates::of(&snapshot).message(&["b"]).unwrap();
        assert_eq!(message.matches("is reported by nodes a, b, c").count(), MAX_NAMED);
        assert!(message.ends_with("; and 2 more; they are sold on none of them"), "{message}");
        assert_eq!(free(&snapshot), [0, 0, 0]);
    }
}
