//! What an order needs: [`Requirements`], with one canonical encoding, and the validated [`GpuModel`].

use crate::Price;
use crate::encode::{Canonical, DecodeError, Reader, Writer};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Most GPU models one order may name.
pub const MAX_MODELS: usize = 16;
/// Most providers one include or exclude list may name.
pub const MAX_PROVIDERS: usize = 64;
/// Most workers of one order.
pub const MAX_WORKERS: u32 = 1024;
/// Most GPUs per worker.
pub const MAX_GPUS_PER_WORKER: u32 = 64;
/// Longest image reference in bytes.
pub const MAX_IMAGE: usize = 512;
pub(crate) const MAX_NAME: usize = 253;

/// A GPU model's name, such as `H100`; compared case-sensitively.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GpuModel(String);

/// A text that is not a GPU model's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a GPU model; accepted is a letter or digit, then at most 62 of letters, digits, '.', '_', '-'"
)]
pub struct ModelError(pub String);

impl GpuModel {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl FromStr for GpuModel {
    type Err = ModelError;
    fn from_str(text: &str) -> Result<Self, ModelError> {
        let ok = (1..=63).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if ok { Ok(Self(text.to_owned())) } else { Err(ModelError(text.to_owned())) }
    }
}
impl TryFrom<String> for GpuModel {
    type Error = ModelError;
    fn try_from(text: String) -> Result<Self, ModelError> {
        text.parse()
    }
}
impl From<GpuModel> for String {
    fn from(model: GpuModel) -> Self {
        model.0
    }
}
impl fmt::Display for GpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl Canonical for GpuModel {
    fn write(&self, w: &mut Writer) {
        w.str(&self.0);
    }
    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        r.str("GPU model", 63)?.parse().map_err(|_| DecodeError::Invalid("GPU model"))
    }
}

/// What one order needs from the provider that serves it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Requirements {
    /// Accepted GPU models; empty accepts any.
    #[serde(default)]
    pub gpu_models: Vec<GpuModel>,
    /// Least memory of each GPU in MiB; 0 accepts any.
    #[serde(default)]
    pub min_gpu_memory_mib: u64,
    /// Number of workers.
    pub workers: u32,
    /// GPUs of each worker, all on one node.
    pub gpus_per_worker: u32,
    /// CPU of each worker in thousandths of a core.
    pub cpu_millis_per_worker: u64,
    /// Memory of each worker in MiB, shared memory included.
    pub memory_mib_per_worker: u64,
    /// Disk of each worker in MiB.
    #[serde(default)]
    pub disk_mib_per_worker: u64,
    /// Highest accepted price per GPU-hour.
    pub max_price: Price,
    /// Run deadline: seconds from the start of the workload.
    pub run_seconds: u32,
    /// Container image that will run.
    pub image: String,
    /// Providers that alone may serve the order; empty accepts any.
    #[serde(default)]
    pub include_providers: Vec<String>,
    /// Providers that must not serve the order.
    #[serde(default)]
    pub exclude_providers: Vec<String>,
}

/// A field of requirements outside its accepted range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}; accepted is {accepted}")]
pub struct RequirementsError {
    /// The field.
    pub field: &'static str,
    /// The value found.
    pub value: String,
    /// What is accepted.
    pub accepted: String,
}

impl Requirements {
    /// GPUs over all workers.
    pub fn gpus(&self) -> u32 {
        self.workers.saturating_mul(self.gpus_per_worker)
    }

    /// Checks every range that decoders, seats and homes rely on.
    pub fn validate(&self) -> Result<(), RequirementsError> {
        in_range("workers", self.workers, 1, MAX_WORKERS)?;
        in_range("gpus_per_worker", self.gpus_per_worker, 1, MAX_GPUS_PER_WORKER)?;
        in_range("run_seconds", self.run_seconds, 1, u32::MAX)?;
        at_most("gpu_models", self.gpu_models.len(), MAX_MODELS)?;
        at_most("include_providers", self.include_providers.len(), MAX_PROVIDERS)?;
        at_most("exclude_providers", self.exclude_providers.len(), MAX_PROVIDERS)?;
        for name in self.include_providers.iter().chain(&self.exclude_providers) {
            at_most("a provider's name", name.len(), MAX_NAME)?;
        }
        if self.image.is_empty() {
            return Err(RequirementsError {
                field: "image",
                value: "empty".into(),
                accepted: "a container image reference".into(),
            });
        }
        at_most("image", self.image.len(), MAX_IMAGE)
    }
}

fn in_range(field: &'static str, value: u32, low: u32, high: u32) -> Result<(), RequirementsError> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(RequirementsError { field, value: value.to_string(), accepted: format!("{low} to {high}") })
}

pub(crate) fn at_most(field: &'static str, found: usize, max: usize) -> Result<(), RequirementsError> {
    if found <= max {
        return Ok(());
    }
    Err(RequirementsError {
        field,
        value: format!("{found} long"),
        accepted: format!("a length of at most {max}"),
    })
}

impl Canonical for Requirements {
    fn write(&self, w: &mut Writer) {
        w.list(&self.gpu_models, |w, m| m.write(w));
        w.u64(self.min_gpu_memory_mib).u32(self.workers).u32(self.gpus_per_worker);
        w.u64(self.cpu_millis_per_worker).u64(self.memory_mib_per_worker).u64(self.disk_mib_per_worker);
        self.max_price.write(w);
        w.u32(self.run_seconds).str(&self.image);
        for list in [&self.include_providers, &self.exclude_providers] {
            w.list(list, |w, name| {
                w.str(name);
            });
        }
    }
    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let value = Self {
            gpu_models: r.list("GPU models", MAX_MODELS, GpuModel::read)?,
            min_gpu_memory_mib: r.u64()?,
            workers: r.u32()?,
            gpus_per_worker: r.u32()?,
            cpu_millis_per_worker: r.u64()?,
            memory_mib_per_worker: r.u64()?,
            disk_mib_per_worker: r.u64()?,
            max_price: Price::read(r)?,
            run_seconds: r.u32()?,
            image: r.str("image", MAX_IMAGE)?,
            include_providers: r.list("providers", MAX_PROVIDERS, |r| r.str("provider", MAX_NAME))?,
            exclude_providers: r.list("providers", MAX_PROVIDERS, |r| r.str("provider", MAX_NAME))?,
        };
        value.validate().map_err(|e| DecodeError::Invalid(e.field))?;
        Ok(value)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn mk_requirements(workers: u32, gpus_per_worker: u32) -> Requirements {
        Requirements {
            gpu_models: vec![],
            min_gpu_memory_mib: 0,
            workers,
            gpus_per_worker,
            cpu_millis_per_worker: 1000,
            memory_mib_per_worker: 1024,
            disk_mib_per_worker: 0,
            max_price: Price::from_micros(5_000_000).unwrap(),
            run_seconds: 600,
            image: "registry.example/train:1".into(),
            include_providers: vec![],
            exclude_providers: vec![],
        }
    }

    #[test]
    fn model_names() {
        for good in ["H100", "A100-80GB", "L40S", "4090", "RTX_6000.Ada"] {
            assert_eq!(good.parse::<GpuModel>().unwrap().as_str(), good);
        }
        for bad in ["", "-H100", "H 100", "H100/MIG", &"x".repeat(64)] {
            assert!(bad.parse::<GpuModel>().is_err(), "{bad}");
        }
    }

    #[test]
    fn encoding_is_unique_and_bounded() {
        let mut req = mk_requirements(2, 1);
        req.gpu_models = vec!["H100".parse().unwrap()];
        req.exclude_providers = vec!["alpha".into()];
        let bytes = req.to_bytes();
        assert_eq!(Requirements::from_bytes(&bytes).unwrap(), req);
        let mut longer = bytes.clone();
        longer.push(0);
        assert_eq!(Requirements::from_bytes(&longer), Err(DecodeError::Trailing(1)));
        for cut in 0..bytes.len() {
            assert!(Requirements::from_bytes(&bytes[..cut]).is_err());
        }
        req.workers = 0;
        assert_eq!(Requirements::from_bytes(&req.to_bytes()), Err(DecodeError::Invalid("workers")));
    }
}
