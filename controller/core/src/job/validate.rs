//! What the schema cannot say about a Job, and again what it can: old objects outlive schemas.
//!
//! Inputs: a Job. Outputs: a [`ValidatedJob`], or the first field that cannot be accepted.
//! Invariant: every error names the field, the value and what is accepted.

use std::fmt::Display;

use k8s_openapi::jiff::Timestamp;
use vendue_crds::{ComputeJob, SecretKey, TrainSpec};
use vendue_market::{GpuModel, Price, Requirements};

/// Environment variables that Vendue sets; Ray's access token is among them.
const RESERVED_ENV: [&str; 3] = ["RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "POD_IP"];
const RESERVED_PREFIX: &str = "VENDUE_";
/// Longest name: names of children add to it, and Ray and Kubernetes stop at 63.
const MAX_NAME: usize = 47;

/// A field that cannot be accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}; accepted: {accepted}")]
pub struct FieldError {
    /// Path of the field.
    pub field: String,
    /// The value found.
    pub value: String,
    /// What is accepted.
    pub accepted: String,
}

fn reject(field: impl Display, value: impl Display, accepted: impl Display) -> FieldError {
    FieldError { field: field.to_string(), value: value.to_string(), accepted: accepted.to_string() }
}

/// One environment variable.
#[derive(Clone, Debug, PartialEq)]
pub enum EnvSource {
    /// A value as it is.
    Value(String),
    /// A key of a Secret.
    Secret(SecretKey),
}

/// A Job that can be ordered.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidatedJob {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Unique id.
    pub uid: String,
    /// Generation of the spec.
    pub generation: Option<i64>,
    /// When it was created.
    pub created: Timestamp,
    /// What it needs.
    pub requirements: Requirements,
    /// Seconds to look for a provider.
    pub search_seconds: i64,
    /// Command line.
    pub entrypoint: String,
    /// ConfigMap with the files.
    pub files: Option<String>,
    /// Environment, by name.
    pub env: Vec<(String, EnvSource)>,
    /// Shared memory of each worker, MiB.
    pub shared_memory_mib: u64,
    /// Size of the volume, MiB.
    pub volume_mib: u64,
    /// Retries of the entry point.
    pub retries: u32,
    /// Whether the user holds the Job back.
    pub suspended: bool,
}

/// Checks a Job.
pub fn validate(job: &ComputeJob) -> Result<ValidatedJob, FieldError> {
    let name = job.metadata.name.clone().unwrap_or_default();
    if name.len() > MAX_NAME {
        let value = format!("{} characters long", name.len());
        return Err(reject("metadata.name", value, format!("at most {MAX_NAME} characters")));
    }
    let spec = &job.spec;
    let Some(train) = &spec.train else { return Err(reject("spec", "without a workload", "train")) };
    let max_price: Price =
        spec.max_price.0.parse().map_err(|_| price_error("spec.maxPrice", &spec.max_price.0))?;
    let requirements = requirements(job, train, max_price)?;
    let workers = &train.workers;
    let shared_memory_mib = number("spec.train.workers.sharedMemoryMib", workers.shared_memory_mib, 16)?;
    if shared_memory_mib >= requirements.memory_mib_per_worker {
        return Err(reject(
            "spec.train.workers.sharedMemoryMib",
            shared_memory_mib,
            format!("less than memoryMib, which is {}", workers.memory_mib),
        ));
    }
    if train.entrypoint.trim().is_empty() {
        return Err(reject(
            "spec.train.entrypoint",
            "empty",
            "a command line, for example \"python train.py\"",
        ));
    }
    Ok(ValidatedJob {
        name,
        namespace: job.metadata.namespace.clone().unwrap_or_default(),
        uid: job.metadata.uid.clone().unwrap_or_default(),
        generation: job.metadata.generation,
        created: job.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0),
        requirements,
        search_seconds: i64::try_from(number("spec.searchSeconds", spec.search_seconds, 1)?).unwrap_or(1),
        entrypoint: train.entrypoint.clone(),
        files: train.files.as_ref().map(|f| f.config_map_name.clone()),
        env: environment(train)?,
        shared_memory_mib,
        volume_mib: number("spec.train.volumeMib", train.volume_mib, 1)?,
        retries: u32::try_from(number("spec.train.retries", train.retries, 0)?).unwrap_or(0),
        suspended: spec.suspend.unwrap_or(false),
    })
}

fn price_error(field: &str, value: &str) -> FieldError {
    reject(
        field,
        format!("\"{value}\""),
        "a decimal above zero, at most 1000000, with at most six places, for example \"2.50\"",
    )
}

fn number(field: &str, value: i32, least: u64) -> Result<u64, FieldError> {
    match u64::try_from(value) {
        Ok(n) if n >= least => Ok(n),
        _ => Err(reject(field, value, format!("a number from {least} up"))),
    }
}

fn requirements(job: &ComputeJob, train: &TrainSpec, max_price: Price) -> Result<Requirements, FieldError> {
    let workers = &train.workers;
    let field = |name: &str| format!("spec.train.workers.{name}");
    let narrow =
        |name: &str, value: i32| number(&field(name), value, 1).map(|n| u32::try_from(n).unwrap_or(u32::MAX));
    let model = |text: &String| {
        text.parse::<GpuModel>().map_err(|_| {
            let accepted = "a letter or digit, then at most 62 of letters, digits, '.', '_', '-'";
            reject(field("gpuModels"), format!("\"{text}\""), accepted)
        })
    };
    let models: Result<Vec<GpuModel>, FieldError> = workers.gpu_models.iter().map(model).collect();
    let providers = job.spec.providers.clone().unwrap_or_default();
    if train.image.trim().is_empty() || train.image.contains(char::is_whitespace) {
        let value = format!("\"{}\"", train.image);
        return Err(reject("spec.train.image", value, "a container image without spaces"));
    }
    let requirements = Requirements {
        gpu_models: models?,
        min_gpu_memory_mib: number(&field("minGpuMemoryMib"), workers.min_gpu_memory_mib, 0)?,
        workers: narrow("replicas", workers.replicas)?,
        gpus_per_worker: narrow("gpus", workers.gpus)?,
        cpu_millis_per_worker: number(&field("cpuMillis"), workers.cpu_millis, 1)?,
        memory_mib_per_worker: number(&field("memoryMib"), workers.memory_mib, 1)?,
        disk_mib_per_worker: number(&field("diskMib"), workers.disk_mib, 0)?,
        max_price,
        run_seconds: u32::try_from(number("spec.runDeadlineSeconds", job.spec.run_deadline_seconds, 1)?)
            .unwrap_or(u32::MAX),
        image: train.image.clone(),
        include_providers: providers.include,
        exclude_providers: providers.exclude,
    };
    requirements.validate().map_err(|e| reject(format!("spec ({})", e.field), e.value, e.accepted))?;
    Ok(requirements)
}

fn environment(train: &TrainSpec) -> Result<Vec<(String, EnvSource)>, FieldError> {
    let mut env: Vec<(String, EnvSource)> = Vec::new();
    for variable in &train.env {
        let name = &variable.name;
        let field = format!("spec.train.env[{name}]");
        let mut characters = name.chars();
        let first = characters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
        if !first || !characters.all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(reject(field, "no name of a variable", "letters, digits and '_', no digit first"));
        }
        if RESERVED_ENV.contains(&name.as_str()) || name.starts_with(RESERVED_PREFIX) {
            let accepted = format!(
                "names other than {} and those that begin with {RESERVED_PREFIX}",
                RESERVED_ENV.join(", ")
            );
            return Err(reject(field, "set by Vendue", accepted));
        }
        if env.iter().any(|(other, _)| other == name) {
            return Err(reject(field, "there twice", "each name once"));
        }
        let source = match (&variable.value, &variable.secret_key_ref) {
            (Some(value), None) => EnvSource::Value(value.clone()),
            (None, Some(key)) => EnvSource::Secret(key.clone()),
            (Some(_), Some(_)) => {
                return Err(reject(
                    field,
                    "both value and secretKeyRef",
                    "exactly one of value and secretKeyRef",
                ));
            }
            (None, None) => {
                return Err(reject(field, "without a value", "exactly one of value and secretKeyRef"));
            }
        };
        env.push((name.clone(), source));
    }
    Ok(env)
}
