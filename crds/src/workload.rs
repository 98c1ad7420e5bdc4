//! The workload that home hands to the winner; the order binds its bytes by `vendue_market::commitment`.
//!
//! Inputs: a resolved Job (files and secret values read). Outputs: canonical bytes.
//! Invariant: equal workloads have equal bytes: maps are sorted, there are no floats, and `serde_json` writes fields in
//! declaration order.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Everything the winner needs to run the Job, and nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Workload {
    /// Version of this encoding; 1.
    pub version: u32,
    /// Ray training.
    pub train: TrainWorkload,
}

/// A training run with every reference resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrainWorkload {
    /// Container image.
    pub image: String,
    /// Command line that Ray runs on the head.
    pub entrypoint: String,
    /// Files by name, as text.
    pub files: BTreeMap<String, String>,
    /// Plain environment.
    pub env: BTreeMap<String, String>,
    /// Environment from Secrets, by value.
    pub secret_env: BTreeMap<String, String>,
    /// Number of workers.
    pub workers: u32,
    /// GPUs of each worker.
    pub gpus_per_worker: u32,
    /// CPU of each worker, thousandths of a core.
    pub cpu_millis_per_worker: u64,
    /// Memory of each worker, MiB.
    pub memory_mib_per_worker: u64,
    /// Shared memory (`/dev/shm`) of each worker, MiB, part of its memory.
    pub shared_memory_mib_per_worker: u64,
    /// Scratch disk of each worker, MiB.
    pub disk_mib_per_worker: u64,
    /// Size of the award's volume for checkpoints and outputs, MiB.
    pub volume_mib: u64,
    /// How often a failed entry point is started again.
    pub retries: u32,
    /// Seconds after which the run is ended.
    pub run_deadline_seconds: u32,
}

/// Why bytes are not a workload.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// The bytes are not JSON of this shape.
    #[error("decode workload: {0}")]
    Decode(#[from] serde_json::Error),
    /// The bytes are another spelling of a workload.
    #[error("workload is not in canonical form")]
    NotCanonical,
    /// The version is unknown.
    #[error("workload version is {0}; accepted: 1")]
    Version(u32),
}

impl Workload {
    /// The one encoding.
    pub fn encode(&self) -> Result<Vec<u8>, WorkloadError> {
        Ok(serde_json::to_vec(self)?)
    }

    /// Decodes and insists on the one encoding.
    pub fn decode(bytes: &[u8]) -> Result<Self, WorkloadError> {
        let workload: Self = serde_json::from_slice(bytes)?;
        if workload.version != 1 {
            return Err(WorkloadError::Version(workload.version));
        }
        if workload.encode()? != bytes {
            return Err(WorkloadError::NotCanonical);
        }
        Ok(workload)
    }
}
