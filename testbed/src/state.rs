//! What is running, written down: enough to attach to a kept market, and to clean up after a killed run.
//!
//! Invariant: a process is in the file before anything waits for it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files;
use crate::process::ProcessId;
use crate::spec::{MarketSpec, Place};

/// State of one market.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MarketState {
    /// What was asked for.
    pub spec: MarketSpec,
    /// Slot on this machine.
    pub slot: u8,
    /// The process that started it.
    pub owner: ProcessId,
    /// Whether it outlives its owner.
    pub kept: bool,
    /// The process that looks after the volumes of a kept market.
    #[serde(default)]
    pub helper: Option<ProcessId>,
    /// Its clusters, in the order of the spec.
    pub clusters: Vec<ClusterState>,
}

/// State of one cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterState {
    /// Addresses and names.
    pub place: Place,
    /// Process 1 of the node; all others end with it.
    pub node: Option<ProcessId>,
    /// Components in the order they were started.
    pub components: Vec<ComponentState>,
    /// Whether it is cut off from the others.
    pub cut: bool,
}

/// State of one component.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ComponentState {
    /// Name, as in its log file's name.
    pub name: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Its process.
    pub process: Option<ProcessId>,
}

impl MarketState {
    /// Whether some process still stands for this market: its owner, or, if it was kept, a node.
    pub fn is_live(&self) -> bool {
        let node_alive = self.clusters.iter().filter_map(|c| c.node).any(ProcessId::is_alive);
        node_alive && (self.kept || self.owner.is_alive())
    }

    /// Reads the state of a market, `None` if there is none.
    pub fn load(run: &Path) -> Result<Option<Self>> {
        let path = run.join("state.json");
        if !path.exists() {
            return Ok(None);
        }
        serde_json::from_str(&files::read(&path)?)
            .map(Some)
            .map_err(|e| Error::Invalid(format!("state file {}: {e}", path.display())))
    }

    /// Writes it, through a temporary file.
    pub fn save(&self, run: &Path) -> Result<()> {
        let text =
            serde_json::to_string_pretty(self).map_err(|e| Error::Invalid(format!("write state: {e}")))?;
        files::write_atomic(&run.join("state.json"), text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_survives_the_file() {
        let dir = tempfile::tempdir().unwrap();
        assert!(MarketState::load(dir.path()).unwrap().is_none());
        let owner = ProcessId { pid: 1, start: 2 };
        let state = MarketState {
            spec: MarketSpec::demo(),
            slot: 1,
            owner,
            kept: true,
            helper: None,
            clusters: vec![],
        };
        state.save(dir.path()).unwrap();
        let read = MarketState::load(dir.path()).unwrap().unwrap();
        assert_eq!((read.spec, read.slot, read.owner, read.kept), (state.spec, 1, owner, true));
    }
}
