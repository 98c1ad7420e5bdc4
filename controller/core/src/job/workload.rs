//! From a validated Job and what it refers to, to the workload that the winner gets.
//!
//! Inputs: the Job, the ConfigMap and the Secrets as data. Outputs: the one encoding of the [`Workload`].
//! Invariant: the workload holds every value and no reference, so that nothing can change after the commitment.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use vendue_crds::SecretKey;
use vendue_crds::workload::{TrainWorkload, Workload};

use super::validate::{EnvSource, FieldError, ValidatedJob};

/// Most bytes of an encoded workload: it must fit into a Secret, which holds 1 MiB, beside its salt.
const MAX_WORKLOAD: usize = (1 << 20) - 1024;
/// Most bytes of all files.
const MAX_FILES: usize = 1 << 20;

/// What a Job refers to, as far as it was found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct References {
    /// The ConfigMap with the files.
    pub config_map: Option<ConfigMap>,
    /// Secrets by name.
    pub secrets: BTreeMap<String, Secret>,
}

/// Why a workload cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// Something that the Job refers to is missing; it may still come.
    #[error("{field} names {what}, which does not exist")]
    Missing {
        /// Path of the field.
        field: String,
        /// What is missing.
        what: String,
    },
    /// A value cannot be accepted.
    #[error(transparent)]
    Invalid(#[from] FieldError),
    /// The encoder failed.
    #[error("encode the workload: {0}")]
    Encode(#[from] vendue_crds::workload::WorkloadError),
}

/// Names of the Secrets that the Job takes values from.
pub(super) fn secret_names(job: &ValidatedJob) -> BTreeSet<String> {
    job.env
        .iter()
        .filter_map(|(_, source)| match source {
            EnvSource::Secret(key) => Some(key.name.clone()),
            EnvSource::Value(_) => None,
        })
        .collect()
}

/// Makes and encodes the workload.
pub fn resolve(job: &ValidatedJob, references: &References) -> Result<Vec<u8>, WorkloadError> {
    let files = match &job.files {
        Some(name) => files(name, references.config_map.as_ref())?,
        None => BTreeMap::new(),
    };
    let mut env = BTreeMap::new();
    let mut secret_env = BTreeMap::new();
    for (name, source) in &job.env {
        match source {
            EnvSource::Value(value) => {
                env.insert(name.clone(), value.clone());
            }
            EnvSource::Secret(key) => {
                secret_env.insert(name.clone(), secret_value(name, key, references)?);
            }
        }
    }
    let need = &job.requirements;
    let workload = Workload {
        version: 1,
        train: TrainWorkload {
            image: need.image.clone(),
            entrypoint: job.entrypoint.clone(),
            files,
            env,
            secret_env,
            workers: need.workers,
            gpus_per_worker: need.gpus_per_worker,
            cpu_millis_per_worker: need.cpu_millis_per_worker,
            memory_mib_per_worker: need.memory_mib_per_worker,
            shared_memory_mib_per_worker: job.shared_memory_mib,
            disk_mib_per_worker: need.disk_mib_per_worker,
            volume_mib: job.volume_mib,
            retries: job.retries,
            run_deadline_seconds: need.run_seconds,
        },
    };
    let bytes = workload.encode()?;
    if bytes.len() > MAX_WORKLOAD {
        let field = "spec.train (files and environment, encoded)".to_owned();
        let value = format!("{} bytes long", bytes.len());
        return Err(FieldError { field, value, accepted: format!("at most {MAX_WORKLOAD} bytes") }.into());
    }
    Ok(bytes)
}

fn files(name: &str, map: Option<&ConfigMap>) -> Result<BTreeMap<String, String>, WorkloadError> {
    let field = "spec.train.files.configMapName".to_owned();
    let Some(map) = map else {
        return Err(WorkloadError::Missing { field, what: format!("ConfigMap \"{name}\"") });
    };
    if let Some(key) = map.binary_data.as_ref().and_then(|b| b.keys().next()) {
        let value = format!("\"{name}\", which has the binary file \"{key}\"");
        return Err(
            FieldError { field, value, accepted: "a ConfigMap with text files only".to_owned() }.into()
        );
    }
    let files = map.data.clone().unwrap_or_default();
    let size: usize = files.values().map(String::len).sum();
    if size > MAX_FILES {
        let value = format!("\"{name}\", which has {size} bytes");
        return Err(FieldError { field, value, accepted: format!("at most {MAX_FILES} bytes in all") }.into());
    }
    Ok(files)
}

fn secret_value(name: &str, key: &SecretKey, references: &References) -> Result<String, WorkloadError> {
    let field = format!("spec.train.env[{name}].secretKeyRef");
    let Some(secret) = references.secrets.get(&key.name) else {
        return Err(WorkloadError::Missing { field, what: format!("Secret \"{}\"", key.name) });
    };
    let Some(value) = secret.data.as_ref().and_then(|d| d.get(&key.key)) else {
        let what = format!("key \"{}\" of Secret \"{}\"", key.key, key.name);
        return Err(WorkloadError::Missing { field, what });
    };
    String::from_utf8(value.0.clone()).map_err(|_| {
        let value = format!("key \"{}\" of Secret \"{}\", which is not text", key.key, key.name);
        FieldError { field, value, accepted: "a value in UTF-8".to_owned() }.into()
    })
}
