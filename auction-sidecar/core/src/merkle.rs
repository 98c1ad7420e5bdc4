//! Merkle trees with tagged leaves (0x00) and nodes (0x01) and the leaf count in the root hash.
//!
//! The count in the root fixes the shape, so a node can never be shown as a leaf and a path has one length.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use vendue_market::Digest;
use vendue_market::encode::{DecodeError, Reader, Writer, hex_array};

/// Most leaves of a tree.
pub const MAX_LEAVES: u32 = 1 << 20;

/// What a leaf is in a tree.
pub(crate) fn leaf_hash(leaf: &[u8]) -> Digest {
    Sha256::new().chain_update([0]).chain_update(leaf).finalize().into()
}
fn node_hash(left: &Digest, right: &Digest) -> Digest {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}
fn root_hash(count: u32, top: &Digest) -> Digest {
    Sha256::new().chain_update([2]).chain_update(count.to_be_bytes()).chain_update(top).finalize().into()
}

/// One level up; an odd last node moves up unchanged.
fn level_up(level: &[Digest]) -> Vec<Digest> {
    level
        .chunks(2)
        .map(|pair| match pair {
            [left, right] => node_hash(left, right),
            [single] => *single,
            _ => [0; 32],
        })
        .collect()
}

/// A whole tree: every node is hashed once, however many paths are taken from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// The leaves' hashes first, the top last; never empty.
    levels: Vec<Vec<Digest>>,
}

impl Tree {
    /// The tree over leaves.
    pub fn new(leaves: &[Vec<u8>]) -> Self {
        Self::of(leaves.iter().map(|l| leaf_hash(l)).collect())
    }

    /// The tree over leaves that are hashed already.
    pub(crate) fn of(hashes: Vec<Digest>) -> Self {
        let (mut levels, mut level) = (vec![], hashes);
        while level.len() > 1 {
            let up = level_up(&level);
            levels.push(std::mem::replace(&mut level, up));
        }
        levels.push(level);
        Self { levels }
    }

    fn count(&self) -> u32 {
        self.levels.first().map_or(0, |leaves| leaves.len() as u32)
    }

    /// The root.
    pub fn root(&self) -> Digest {
        let top = self.levels.last().and_then(|level| level.first());
        root_hash(self.count(), top.unwrap_or(&[0; 32]))
    }

    /// The siblings from the leaf at `index` up.
    fn siblings(&self, index: usize) -> impl Iterator<Item = &Digest> + Clone {
        let below_top = self.levels.len().saturating_sub(1);
        let levels = self.levels.iter().take(below_top).enumerate();
        levels.filter_map(move |(height, level)| level.get((index >> height) ^ 1))
    }

    /// The path of the leaf at `index`; `None` beyond the last.
    pub fn path(&self, index: usize) -> Option<Path> {
        self.levels.first()?.get(index)?;
        let siblings = self.siblings(index).copied().map(HexDigest).collect();
        Some(Path { index: index as u32, count: self.count(), siblings })
    }

    /// Appends the bytes of a path that is not made.
    pub(crate) fn write_path(&self, index: usize, w: &mut Writer) {
        let siblings = self.siblings(index);
        w.u32(index as u32).u32(self.count()).u32(siblings.clone().count() as u32);
        siblings.for_each(|sibling| {
            w.raw(sibling);
        });
    }
}

/// The root over leaves.
pub fn root(leaves: &[Vec<u8>]) -> Digest {
    Tree::new(leaves).root()
}

/// The place of one leaf: its index, the number of leaves, and the siblings from the leaf up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Path {
    /// Index of the leaf.
    pub index: u32,
    /// Number of leaves.
    pub count: u32,
    /// Siblings, lowest first; none where a node moves up unchanged.
    pub siblings: Vec<HexDigest>,
}

/// A digest that serialises as hex.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HexDigest(#[serde(with = "hex_array")] pub Digest);

impl Path {
    /// The root that follows from the leaf; `None` when the path has the wrong shape.
    pub fn root(&self, leaf: &[u8]) -> Option<Digest> {
        if self.index >= self.count || self.count > MAX_LEAVES {
            return None;
        }
        let mut siblings = self.siblings.iter();
        let (mut at, mut width, mut node) = (self.index, self.count, leaf_hash(leaf));
        while width > 1 {
            if at ^ 1 < width {
                let HexDigest(sibling) = siblings.next()?;
                node = if at % 2 == 0 { node_hash(&node, sibling) } else { node_hash(sibling, &node) };
            }
            at /= 2;
            width = width.div_ceil(2);
        }
        siblings.next().is_none().then(|| root_hash(self.count, &node))
    }

    pub(crate) fn write(&self, w: &mut Writer) {
        w.u32(self.index).u32(self.count).list(&self.siblings, |w, s| {
            w.raw(&s.0);
        });
    }
    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            index: r.u32()?,
            count: r.u32()?,
            siblings: r.list("path", 32, |r| Ok(HexDigest(r.array()?)))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_leaf_of_every_size_proves_itself_and_nothing_else() {
        for count in 1..18usize {
            let leaves: Vec<Vec<u8>> = (0..count).map(|i| vec![i as u8; 3]).collect();
            let tree = Tree::new(&leaves);
            let want = tree.root();
            for (i, leaf) in leaves.iter().enumerate() {
                let path = tree.path(i).unwrap();
                assert_eq!(path.root(leaf), Some(want));
                assert_ne!(path.root(b"other"), Some(want));
                let moved = Path { index: (i as u32 + 1) % count as u32, ..path.clone() };
                assert!(count == 1 || moved.root(leaf) != Some(want));
                let mut longer = path.clone();
                longer.siblings.push(HexDigest([0; 32]));
                assert_eq!(longer.root(leaf), None);
                let resized = Path { count: path.count + 1, ..path };
                assert_ne!(resized.root(leaf), Some(want));
            }
            assert!(tree.path(count).is_none());
        }
    }
}
