//! `Provision`: what a provider has, what of it is free, and what its status says.
//!
//! Inputs: compact views of Nodes, GpuNodes, Pods, their claims, and holds. Outputs: free capacity and the status.
//! Invariant: a GPU that an award holds or a Pod uses, that two nodes claim, or whose agent is silent, is never counted as
//! free; when in doubt, less is free.

mod capacity;
mod duplicates;
mod findings;
mod known;
mod labels;
mod plan;
mod pods;
mod silence;
mod view;

pub use capacity::{Selected, free_nodes, select};
pub use duplicates::Duplicates;
pub use known::{Device, Known};
pub use plan::{Plan, plan};
pub use pods::{ClaimedGpus, PodUse, claim_view, pod_use};
pub use silence::{Heard, SILENT_AFTER};
pub(crate) use view::new_hold;
pub use view::{GpuNodeView, Hold, NodeView, ProvisionView, Snapshot, gpu_node_view, hold_view, node_view};

/// Name of the extended resource that a device plugin advertises.
pub const GPU_RESOURCE: &str = "nvidia.com/gpu";

#[cfg(test)]
mod tests;
