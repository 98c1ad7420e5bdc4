//! Which award gets which GPUs.
//!
//! Inputs: a snapshot of capacity and holds, a Provision, an Award. Outputs: devices by node, or why there are none.
//! Invariant: what is given out was free in the snapshot, and all workers of an award share one node, because they
//! share one volume that only Pods of one node can mount.

use vendue_crds::{AsBid, Award, FreeNode, HeldDevices, ProvisionSpec};
use vendue_market::{GpuModel, NodeCapacity, Reason, Requirements, fit};

use super::evidence::as_bid;
use crate::provision::{Hold, Snapshot, free_nodes};

/// Answer to an award that asks for devices.
#[derive(Clone, Debug, PartialEq)]
pub enum Allocation {
    /// These devices are held.
    Held(Vec<HeldDevices>),
    /// There are none, and why.
    Refused(String),
}

/// Why an award's requirements cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RequirementsError {
    /// A number is negative or too large.
    #[error("requirements.{field} is {value}; accepted: a number from 0 up")]
    Number {
        /// The field.
        field: &'static str,
        /// The value found.
        value: i64,
    },
    /// A model is not a name.
    #[error("requirements.gpuModels: {0}")]
    Model(#[from] vendue_market::ModelError),
    /// The price is not an amount.
    #[error("price: {0}")]
    Price(#[from] vendue_market::MoneyError),
    /// The ranges do not hold.
    #[error("requirements: {0}")]
    Range(#[from] vendue_market::RequirementsError),
}

/// The award's requirements as the matcher reads them.
pub fn requirements(award: &Award) -> Result<Requirements, RequirementsError> {
    let need = &award.spec.requirements;
    let wide = |field, n: i64| u64::try_from(n).map_err(|_| RequirementsError::Number { field, value: n });
    let narrow =
        |field, n: i32| u32::try_from(n).map_err(|_| RequirementsError::Number { field, value: n.into() });
    let models: Result<Vec<GpuModel>, _> = need.gpu_models.iter().map(|m| m.parse()).collect();
    let requirements = Requirements {
        gpu_models: models?,
        min_gpu_memory_mib: wide("minGpuMemoryMib", need.min_gpu_memory_mib)?,
        workers: narrow("workers", need.workers)?,
        gpus_per_worker: narrow("gpusPerWorker", need.gpus_per_worker)?,
        cpu_millis_per_worker: wide("cpuMillisPerWorker", need.cpu_millis_per_worker)?,
        memory_mib_per_worker: wide("memoryMibPerWorker", need.memory_mib_per_worker)?,
        disk_mib_per_worker: wide("diskMibPerWorker", need.disk_mib_per_worker)?,
        max_price: award.spec.price.price()?,
        run_seconds: narrow("runDeadlineSeconds", need.run_deadline_seconds)?,
        image: need.image.clone(),
        include_providers: Vec::new(),
        exclude_providers: Vec::new(),
    };
    requirements.validate()?;
    Ok(requirements)
}

/// Finds devices for an award on one node: of the nodes where it fits, the one that its bid is bound to, else the one with
/// the smallest GPUs, then with the fewest free ones, so that large GPUs and whole nodes stay free.
pub fn allocate(snapshot: &Snapshot, provision: &ProvisionSpec, award: &Award) -> Allocation {
    let need = match requirements(award) {
        Ok(need) => need,
        Err(error) => return Allocation::Refused(error.to_string()),
    };
    let nodes: Vec<(FreeNode, NodeCapacity)> =
        free_nodes(snapshot, provision).into_iter().filter_map(|n| capacity(&n).map(|c| (n, c))).collect();
    let best = nodes
        .iter()
        .filter(|(_, capacity)| fit(&need, std::slice::from_ref(capacity)).is_ok())
        .min_by_key(|(node, capacity)| {
            let other = as_bid(award, node.fingerprint.as_deref()) != AsBid::Same;
            (other, capacity.gpu_memory_mib, capacity.free_gpus, node.node.clone())
        });
    match best {
        Some((node, _)) => Allocation::Held(vec![HeldDevices {
            node: node.node.clone(),
            model: node.model.clone(),
            workers: award.spec.requirements.workers,
            gpus: i32::try_from(need.gpus()).unwrap_or(i32::MAX),
        }]),
        None => {
            let all: Vec<NodeCapacity> = nodes.iter().map(|(_, c)| c.clone()).collect();
            Allocation::Refused(refusal(fit(&need, &all).err(), need.gpus()))
        }
    }
}

fn refusal(reason: Option<Reason>, gpus: u32) -> String {
    match reason {
        Some(reason) => format!("{gpus} GPUs are wanted; what is free now fails on: {reason}"),
        None => format!(
            "{gpus} GPUs are free only on several nodes together; the workers share a volume that one node mounts"
        ),
    }
}

fn capacity(node: &FreeNode) -> Option<NodeCapacity> {
    let number = |n: i64| u64::try_from(n).unwrap_or(0);
    Some(NodeCapacity {
        model: node.model.parse().ok()?,
        gpu_memory_mib: number(node.gpu_memory_mib),
        free_gpus: u32::try_from(node.gpus).unwrap_or(0),
        cpu_millis: number(node.cpu_millis),
        memory_mib: number(node.memory_mib),
        disk_mib: number(node.disk_mib),
    })
}

/// The hold that an award has with these devices, for the snapshot of the next allocation.
pub fn hold(award: &Award, devices: Vec<HeldDevices>) -> Hold {
    crate::provision::new_hold(award, devices)
}
