//! What an agent has stored, as somebody else reads it: from a copy, so that nothing of the agent's is touched.

use std::collections::BTreeMap;
use std::path::Path;

use vendue_gpu_agent::meter::options;
use vendue_receipts::{AwardId, DeviceId, DeviceTotals, NodeKey, PublicKey, Record, verify_node};
use vendue_receipts_store::Chains as Kept;

use super::{NodeError, io, wrong};

/// The chains of a node.
pub struct Chains {
    /// The node's key.
    pub key: PublicKey,
    /// The records of each chain.
    pub records: BTreeMap<AwardId, Vec<Record>>,
}

impl Chains {
    /// What is durable in a state folder of an agent. An agent may be running, or have been killed.
    ///
    /// # Errors
    /// When there is no key, or the files are damaged.
    pub fn read(state_dir: &Path) -> Result<Self, NodeError> {
        let text = std::fs::read_to_string(state_dir.join("node.key")).map_err(io("read the node's key"))?;
        let digits = |i: usize| text.get(2 * i..2 * i + 2).and_then(|d| u8::from_str_radix(d, 16).ok());
        let bytes: Option<Vec<u8>> = (0..32).map(digits).collect();
        let bytes = bytes.and_then(|b| <[u8; 32]>::try_from(b).ok());
        let key = bytes.ok_or("no digits").and_then(|b| NodeKey::from_bytes(&b).map_err(|_| "no key"));
        let key = key.map_err(wrong("node.key"))?;
        let copy = tempfile::tempdir().map_err(io("make a temporary folder"))?;
        let dir = state_dir.join("receipts");
        for entry in std::fs::read_dir(&dir).map_err(io(format!("list {}", dir.display())))? {
            let entry = entry.map_err(io(format!("list {}", dir.display())))?;
            // All records are wanted, also those that a receiver has.
            if entry.path().extension().is_some_and(|ending| ending == "delivered") {
                continue;
            }
            match std::fs::copy(entry.path(), copy.path().join(entry.file_name())) {
                // What is renamed meanwhile is there under its new name, or is not durable yet.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                other => drop(other.map_err(io("copy the receipts"))?),
            }
        }
        let public = key.public();
        Ok(Self { key: public, records: records(copy.path(), public)? })
    }

    /// Checks every chain and the node as a whole, and gives each device's totals.
    ///
    /// # Errors
    /// When anything is wrong.
    pub fn verify(&self) -> Result<BTreeMap<DeviceId, DeviceTotals>, NodeError> {
        let chains: Vec<&[Record]> = self.records.values().map(Vec::as_slice).collect();
        verify_node(self.key, &chains).map_err(wrong("receipts of the node"))
    }

    /// The records of all chains.
    pub fn all(&self) -> impl Iterator<Item = &Record> {
        self.records.values().flatten()
    }

    /// How many records there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.records.values().map(Vec::len).sum()
    }
}

fn records(dir: &Path, key: PublicKey) -> Result<BTreeMap<AwardId, Vec<Record>>, NodeError> {
    let opened = Kept::open(options(dir), Some(key));
    let (kept, _) = opened.map_err(wrong("receipts of the node"))?;
    let mut all: BTreeMap<AwardId, Vec<Record>> = BTreeMap::new();
    for (name, chain) in kept.iter() {
        let records = all.entry(name.award).or_default();
        let mut next = kept.first_kept(name).unwrap_or_default();
        while next < chain.next_sequence() {
            let more = kept.records(name, next, 1000).map_err(wrong("receipts of the node"))?;
            let last = more.last().map(|record| record.sequence + 1);
            next = last.ok_or_else(|| wrong(format!("chain {name}"))("no records where some are due"))?;
            records.extend(more);
        }
    }
    Ok(all)
}
