//! What is running, written down: enough to attach to a kept market, and to clean up after a killed run.
//!
//! Invariant: a process is in the file before anything waits for it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files;
use crate::process::{self, ProcessId};
use crate::spec::{MarketSpec, Place};

/// State of one market.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MarketState {
    /// What was asked for.
    pub spec: MarketSpec,
    /// Slot on this machine.
    pub slot: u8,
    /// The process that started it, or took it over after it was kept.
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

    /// Whether it is in another process's hands than this one's: that process runs, or kept the market for its user.
    pub fn is_others(&self) -> bool {
        !self.is_own() && (self.owner.is_alive() || self.is_live())
    }

    /// Whether this process started it or took it over.
    pub fn is_own(&self) -> bool {
        ProcessId::own().is_ok_and(|own| own == self.owner)
    }

    /// Why a start must leave it alone: who has it, and what to do.
    pub fn in_use(&self) -> Error {
        let name = &self.spec.name;
        let stop = format!("`cargo testbed down --market {name}`");
        let text = if self.owner.is_alive() {
            let program = process::command_line(self.owner.pid);
            format!(
                "market {name} is in use by process {} ({program}): wait until it ends, end it with Ctrl-C where it \
                 runs, or stop the market with {stop}",
                self.owner.pid
            )
        } else {
            format!("market {name} was left running by process {}: stop it with {stop}", self.owner.pid)
        };
        Error::Invalid(text)
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

    fn state(owner: ProcessId) -> MarketState {
        MarketState { spec: MarketSpec::demo(), slot: 1, owner, kept: true, helper: None, clusters: vec![] }
    }

    #[test]
    fn a_market_is_in_the_hands_of_its_owner_while_that_one_runs() {
        let (own, first) = (ProcessId::own().unwrap(), ProcessId::of(1).unwrap());
        assert!(state(own).is_own() && !state(own).is_others());
        assert!(state(first).is_others() && !state(first).is_own());
        let text = state(first).in_use().to_string();
        for part in ["market demo", "process 1 ", "cargo testbed down --market demo"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        // The same id, started at another time: that owner is gone, and nobody kept a node running.
        let gone = state(ProcessId { start: first.start + 1, ..first });
        assert!(!gone.is_others() && !gone.is_live());
        assert!(gone.in_use().to_string().contains("left running"));
    }

    #[test]
    fn state_survives_the_file() {
        let dir = tempfile::tempdir().unwrap();
        assert!(MarketState::load(dir.path()).unwrap().is_none());
        let owner = ProcessId { pid: 1, start: 2 };
        let state = state(owner);
        state.save(dir.path()).unwrap();
        let read = MarketState::load(dir.path()).unwrap().unwrap();
        assert_eq!((read.spec, read.slot, read.owner, read.kept), (state.spec, 1, owner, true));
    }
}
