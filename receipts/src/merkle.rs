//! Merkle trees as in Certificate Transparency (RFC 6962, section 2.1): leaves are hashed after a byte 0, nodes after a
//! byte 1, a tree splits at the largest power of two below its size.
//!
//! Inputs: leaves, or a leaf and its path. Outputs: a root, a path, whether the path leads to the root. Invariant: the
//! number of leaves fixes the length of every path.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use vendue_market::Digest;
use vendue_market::encode::hex_array;

fn leaf_hash(leaf: &Digest) -> Digest {
    Sha256::new().chain_update([0]).chain_update(leaf).finalize().into()
}

fn node_hash(left: &Digest, right: &Digest) -> Digest {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

/// One level up. A last node without a neighbour moves up unchanged, which is the split at powers of two.
fn level_up(level: &[Digest]) -> Vec<Digest> {
    let pairs = level.chunks(2).filter_map(|pair| match pair {
        [left, right] => Some(node_hash(left, right)),
        [single] => Some(*single),
        _ => None,
    });
    pairs.collect()
}

/// A tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// The leaves' hashes first, the root last.
    levels: Vec<Vec<Digest>>,
}

impl Tree {
    /// The tree over leaves.
    pub fn new(leaves: &[Digest]) -> Self {
        let mut level: Vec<Digest> = leaves.iter().map(leaf_hash).collect();
        let mut levels = vec![];
        while level.len() > 1 {
            let up = level_up(&level);
            levels.push(std::mem::replace(&mut level, up));
        }
        levels.push(level);
        Self { levels }
    }

    /// Number of leaves.
    pub fn count(&self) -> u64 {
        self.levels.first().map_or(0, |leaves| leaves.len() as u64)
    }

    /// The root; that of no leaves is the hash of nothing.
    pub fn root(&self) -> Digest {
        let root = self.levels.last().and_then(|level| level.first()).copied();
        root.unwrap_or_else(|| Sha256::digest([]).into())
    }

    /// The proof that the leaf at `index` is in the tree; `None` beyond the last.
    pub fn prove(&self, index: usize) -> Option<Inclusion> {
        self.levels.first()?.get(index)?;
        let levels = self.levels.iter().take(self.levels.len() - 1).enumerate();
        let path = levels.filter_map(|(height, level)| level.get((index >> height) ^ 1));
        let path = path.copied().map(Sibling).collect();
        Some(Inclusion { index: index as u64, count: self.count(), path })
    }
}

/// A node beside the way up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sibling(#[serde(with = "hex_array")] Digest);

/// A proof that a leaf is in a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inclusion {
    /// Place of the leaf.
    pub index: u64,
    /// Number of leaves.
    pub count: u64,
    /// The nodes beside the way from the leaf up.
    pub path: Vec<Sibling>,
}

impl Inclusion {
    /// Whether the leaf is at this place of the tree with this root.
    pub fn verify(&self, root: &Digest, leaf: &Digest) -> bool {
        if self.index >= self.count {
            return false;
        }
        let mut path = self.path.iter();
        let (mut at, mut width, mut node) = (self.index, self.count, leaf_hash(leaf));
        while width > 1 {
            if at ^ 1 < width {
                let Some(Sibling(sibling)) = path.next() else { return false };
                node = if at % 2 == 0 { node_hash(&node, sibling) } else { node_hash(sibling, &node) };
            }
            at /= 2;
            width = width.div_ceil(2);
        }
        path.next().is_none() && node == *root
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition of the RFC, word for word.
    fn by_definition(leaves: &[Digest]) -> Digest {
        match leaves {
            [] => Sha256::digest([]).into(),
            [leaf] => leaf_hash(leaf),
            _ => {
                let split = leaves.len().next_power_of_two() / 2;
                let (left, right) = leaves.split_at(split);
                node_hash(&by_definition(left), &by_definition(right))
            }
        }
    }

    #[test]
    fn every_leaf_of_every_size_proves_itself_and_nothing_else() {
        for count in 0..18u8 {
            let leaves: Vec<Digest> = (0..count).map(|i| [i; 32]).collect();
            let tree = Tree::new(&leaves);
            let root = tree.root();
            assert_eq!(root, by_definition(&leaves), "{count} leaves");
            for (index, leaf) in leaves.iter().enumerate() {
                let proof = tree.prove(index).unwrap();
                assert!(proof.verify(&root, leaf));
                assert!(!proof.verify(&root, &[0xff; 32]) && !proof.verify(&[0xff; 32], leaf));
                let mut longer = proof.clone();
                longer.path.push(Sibling([0; 32]));
                assert!(!longer.verify(&root, leaf));
                let mut shorter = proof.clone();
                assert!(shorter.path.pop().is_none() || !shorter.verify(&root, leaf));
                let moved = Inclusion { index: proof.index + 1, ..proof.clone() };
                assert!(!moved.verify(&root, leaf));
            }
            assert!(tree.prove(usize::from(count)).is_none());
        }
    }

    #[test]
    fn the_empty_tree_has_the_hash_of_nothing() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(hex::encode(Tree::new(&[]).root()), empty);
    }
}
