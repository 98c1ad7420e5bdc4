//! The API of Vendue, group `vendue.dev`, version `v1alpha1`.
//!
//! Purpose: one Rust type per kind, with the schema, the admission rules (CEL), the printer columns, the condition
//! types and the reasons beside it. Inputs: none. Outputs: types, and the CRDs that `crdgen` prints.
//!
//! Invariant: what the API server accepts, these types parse; every field is documented, because the
//! documentation is what `kubectl explain` prints.
//!
//! ```text
//!  home cluster                      provider cluster
//!  Job --owns--> Award (side Home)   Provision <-capacity-- GpuNode (one per node, by the gpu-agent)
//!                                        |- Bid (after each round)
//!                                        `- Award (side Host, namespace vendue-a-<id>)
//! ```

// Each printer column repeats the attribute's name, which the lint takes for a mistake.
#![allow(clippy::duplicated_attributes)]

mod award;
mod bid;
pub mod conditions;
mod decimal;
mod devices;
pub mod gfd;
mod gpu_node;
mod job;
pub mod names;
mod provision;
mod schema;
pub mod workload;

pub use award::{
    Award, AwardClose, AwardRequirements, AwardRuntimeStatus, AwardSide, AwardSpec, AwardStatus,
    CertificateData, CloseReason, FingerprintChange, HeldDevices, JobReference, StandBy,
};
pub use bid::{Bid, BidOutcome, BidSpec, BidStatus};
pub use decimal::Decimal;
pub use devices::{AsBid, BoundDevices, MAX_FINGERPRINT_CHANGES, parse_fingerprint};
pub use gpu_node::{
    GpuDevice, GpuHealth, GpuNode, GpuNodeStatus, GpuProbe, MigDevice, MigMode, NvLinks, PcieLink,
    ProbeResult,
};
pub use job::{
    AuctionOutcome, AuctionStatus, AwardSummary, ComputeJob, EnvVar, ExclusionCount, FailureStatus,
    FileSource, JobSpec, JobStatus, NodeReceipts, OrderStatus, Pricing, ProviderFilter, SecretKey, TrainSpec,
    UsageStatus, WorkerSpec,
};
pub use provision::{
    AcceptRules, FreeNode, HeldCapacity, IsolationSpec, Provision, ProvisionSpec, ProvisionStatus,
};

/// API group of every kind in this crate.
pub const GROUP: &str = "vendue.dev";
/// The one served version.
pub const VERSION: &str = "v1alpha1";

/// The CRDs of every kind, in the order in which they are installed.
pub fn crds()
-> Vec<k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition> {
    use kube::CustomResourceExt;
    [Provision::crd(), Bid::crd(), ComputeJob::crd(), Award::crd(), GpuNode::crd()]
        .map(schema::bound_conditions)
        .into()
}
