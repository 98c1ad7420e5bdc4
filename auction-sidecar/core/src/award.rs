//! The result of a round: the table of leaves under the award root, the certificate, and proofs of single leaves.

use crate::merkle::{Path, Tree, leaf_hash};
use crate::wire::{Listed, Quorum, Signers};
use serde::{Deserialize, Serialize};
use vendue_market::encode::{Canonical, DecodeError, Reader, Writer, from_hex, hex_array, to_hex};
use vendue_market::{Digest, Outcome};

/// A round's certificate: q seats' aggregated vote for one award root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The market.
    pub market: Digest,
    /// Key epoch.
    pub epoch: u32,
    /// The round.
    pub round: u64,
    /// Merkle root of the awards.
    pub root: Digest,
    /// The votes.
    pub quorum: Quorum,
}

impl Certificate {
    pub(crate) fn write(&self, w: &mut Writer) {
        w.raw(&self.market).u32(self.epoch).u64(self.round).raw(&self.root);
        self.quorum.signers.write(w);
        w.raw(&self.quorum.aggregate);
    }
    pub(crate) fn read(r: &mut Reader<'_>, n: u16) -> Result<Self, DecodeError> {
        Ok(Self {
            market: r.array()?,
            epoch: r.u32()?,
            round: r.u64()?,
            root: r.array()?,
            quorum: Quorum { signers: Signers::read(r, n)?, aggregate: r.array()? },
        })
    }
}

/// One order's leaf under an award root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderLeaf {
    /// The order.
    #[serde(with = "hex_array")]
    pub order: Digest,
    /// What became of it.
    pub outcome: Outcome,
    /// The winner's bundle; zero when there is no winner.
    #[serde(with = "hex_array")]
    pub bundle: Digest,
    /// The award binds nobody after this time, in milliseconds since 1970.
    pub expires_ms: u64,
}

impl Canonical for OrderLeaf {
    fn write(&self, w: &mut Writer) {
        w.raw(&self.order);
        self.outcome.write(w);
        w.raw(&self.bundle).u64(self.expires_ms);
    }
    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { order: r.array()?, outcome: Outcome::read(r)?, bundle: r.array()?, expires_ms: r.u64()? })
    }
}

/// Any leaf under an award root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leaf {
    /// The admitted set.
    Set(Digest),
    /// Hash of the round's beacon.
    Beacon(Digest),
    /// An admitted bundle that was opened.
    Opened {
        /// Seat and digest.
        bundle: Listed,
        /// Digest of the opened plaintext.
        plaintext: Digest,
    },
    /// An admitted bundle that could not be read.
    Garbage(Listed),
    /// An order's outcome.
    Order(OrderLeaf),
}

impl Leaf {
    /// The leaf's bytes; the first says which kind.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Most leaves are of orders with an award.
        let mut w = Writer::with_capacity(160);
        match self {
            Leaf::Set(d) => w.u8(0).raw(d),
            Leaf::Beacon(d) => w.u8(1).raw(d),
            Leaf::Opened { bundle, plaintext } => w.u8(2).u16(bundle.seat).raw(&bundle.d).raw(plaintext),
            Leaf::Garbage(bundle) => w.u8(3).u16(bundle.seat).raw(&bundle.d),
            Leaf::Order(leaf) => {
                w.u8(4);
                leaf.write(&mut w);
                &mut w
            }
        };
        w.finish()
    }
}

/// All leaves of a round, in the order that the root fixes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwardTable {
    /// The leaves: set, beacon, bundles ascending, orders ascending.
    pub leaves: Vec<Leaf>,
}

impl AwardTable {
    /// The tree over the leaves.
    pub fn tree(&self) -> Tree {
        Tree::of(self.leaves.iter().map(|leaf| leaf_hash(&leaf.to_bytes())).collect())
    }
    /// The award root.
    pub fn root(&self) -> Digest {
        self.tree().root()
    }
    /// The path of a leaf; none when it is not there.
    pub fn path(&self, leaf: &Leaf) -> Option<Path> {
        self.tree().path(self.leaves.iter().position(|l| l == leaf)?)
    }
    /// Orders' leaves.
    pub fn orders(&self) -> impl Iterator<Item = &OrderLeaf> {
        self.leaves.iter().filter_map(|leaf| match leaf {
            Leaf::Order(order) => Some(order),
            _ => None,
        })
    }
    /// Orders' leaves with their places among all, ascending by order.
    pub(crate) fn placed(&self) -> impl Iterator<Item = (usize, &OrderLeaf)> {
        self.leaves.iter().enumerate().filter_map(|(index, leaf)| match leaf {
            Leaf::Order(order) => Some((index, order)),
            _ => None,
        })
    }
    /// The proofs of all orders' outcomes, ascending by order. The tree is hashed once for all of them.
    pub fn proofs(&self) -> Vec<AwardProof> {
        let tree = self.tree();
        let proof = |(index, leaf): (usize, &OrderLeaf)| {
            Some(AwardProof { leaf: leaf.clone(), path: tree.path(index)? })
        };
        self.placed().filter_map(proof).collect()
    }
    /// The proof of one order's outcome; for many, [`AwardTable::proofs`] is cheaper.
    pub fn proof(&self, order: &Digest) -> Option<AwardProof> {
        let index = self.leaves.iter().position(|l| matches!(l, Leaf::Order(o) if &o.order == order))?;
        let Some(Leaf::Order(leaf)) = self.leaves.get(index) else { return None };
        Some(AwardProof { leaf: leaf.clone(), path: self.tree().path(index)? })
    }
}

/// One order's outcome with its path to the award root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwardProof {
    /// The outcome.
    pub leaf: OrderLeaf,
    /// The path.
    pub path: Path,
}

impl AwardProof {
    pub(crate) fn write(&self, w: &mut Writer) {
        self.leaf.write(w);
        self.path.write(w);
    }
    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { leaf: OrderLeaf::read(r)?, path: Path::read(r)? })
    }
}

/// A certificate as a JSON file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateFile {
    /// The market id.
    #[serde(with = "hex_array")]
    pub market: Digest,
    /// Key epoch.
    pub epoch: u32,
    /// The round.
    pub round: u64,
    /// Merkle root of the awards.
    #[serde(with = "hex_array")]
    pub root: Digest,
    /// Bitmap of the seats that signed, in hex; its length is fixed by the market's size.
    pub signers: String,
    /// Their aggregated vote.
    #[serde(with = "hex_array")]
    pub aggregate: [u8; 48],
}

impl From<&Certificate> for CertificateFile {
    fn from(c: &Certificate) -> Self {
        Self {
            market: c.market,
            epoch: c.epoch,
            round: c.round,
            root: c.root,
            signers: to_hex(&c.quorum.signers.bitmap()),
            aggregate: c.quorum.aggregate,
        }
    }
}

impl CertificateFile {
    /// The certificate, for a market of `n` seats.
    pub fn certificate(&self, n: u16) -> Result<Certificate, DecodeError> {
        let bitmap = from_hex(&self.signers).ok_or(DecodeError::Invalid("bitmap of signers"))?;
        Ok(Certificate {
            market: self.market,
            epoch: self.epoch,
            round: self.round,
            root: self.root,
            quorum: Quorum { signers: Signers::from_bitmap(&bitmap, n)?, aggregate: self.aggregate },
        })
    }
}

/// An award as a JSON file: the order, the user's signature, and the proof of its outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwardFile {
    /// The order.
    pub order: vendue_market::Order,
    /// The user's signature of the order.
    #[serde(with = "hex_array")]
    pub order_signature: [u8; 65],
    /// The proof of its outcome.
    pub proof: AwardProof,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Body, Header, Kind, Message, Proof, ProofMessages, decode};
    use vendue_market::{Histogram, Reason};

    #[test]
    fn all_proofs_of_a_large_round_are_those_of_its_orders() {
        let leaf = |i: u32| {
            let mut order = [0; 32];
            order.iter_mut().zip(i.to_be_bytes()).for_each(|(to, from)| *to = from);
            let outcome = Outcome::None(Histogram::new(4));
            Leaf::Order(OrderLeaf { order, outcome, bundle: [0; 32], expires_ms: 1 })
        };
        let mut leaves = vec![Leaf::Set([1; 32]), Leaf::Beacon([2; 32])];
        leaves.extend((0..4096).map(leaf));
        let table = AwardTable { leaves };
        let (root, proofs) = (table.root(), table.proofs());
        assert_eq!(proofs.len(), 4096);
        for proof in &proofs {
            assert_eq!(proof.path.root(&Leaf::Order(proof.leaf.clone()).to_bytes()), Some(root));
        }
        assert_eq!(table.proof(&proofs[77].leaf.order).as_ref(), Some(&proofs[77]));
    }

    #[test]
    fn messages_about_outcomes_are_those_that_are_made_one_by_one() {
        let leaf = |i: u8| {
            let mut histogram = Histogram::new(4);
            (0..i % 3).for_each(|_| histogram.add(Reason::Model));
            let (outcome, bundle) = (Outcome::None(histogram), [i; 32]);
            Leaf::Order(OrderLeaf { order: [i; 32], outcome, bundle, expires_ms: 7 })
        };
        let header = Header { kind: Kind::Proof, market: [1; 8], epoch: 2, round: 0, seat: 3 };
        for orders in [1, 2, 5, 30] {
            let mut leaves = vec![Leaf::Set([1; 32]), Leaf::Beacon([2; 32])];
            leaves.extend((0..orders).map(leaf));
            let table = AwardTable { leaves };
            let tree = table.tree();
            let quorum = Quorum { signers: Signers::new(9, [0, 4, 8]), aggregate: [6; 48] };
            let (market, root) = ([1; 32], tree.root());
            let certificate = Certificate { market, epoch: 2, round: 8, root, quorum };
            let messages = ProofMessages::new(&header, &certificate, &tree);
            let made: Vec<Vec<u8>> = table.placed().map(|(at, leaf)| messages.encode(at, leaf)).collect();
            let one = |proof| {
                let body = Body::Proof(Box::new(Proof { certificate: certificate.clone(), proof }));
                Message { header, body, signature: None }.encode()
            };
            assert_eq!(made, table.proofs().into_iter().map(one).collect::<Vec<_>>());
            assert!(made.iter().all(|bytes| decode(bytes, 9).is_ok()));
        }
    }
}
