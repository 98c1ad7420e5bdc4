//! Reads the GPUs of one node and publishes them as one `GpuNode`.
//!
//! ```text
//!  libnvidia-ml.so.1 --probe (own thread)--> NodeInventory --observe--> Observation --status--> GpuNodeStatus
//!                                                                          |                        |
//!                                                                       metrics                 publish (API server)
//! ```
//!
//! * Inputs: NVML, the node's name. Outputs: the `GpuNode` of that name, Prometheus metrics, health endpoints.
//! * Invariant: what is published is what was last read, and the condition `Ready` says how far it can be trusted;
//!   a missing, broken or hanging driver never ends or blocks the process.
//!
//! Decisions are pure: [`model`], [`observe`], [`status`]. IO lives in [`probe`], [`writer`], [`server`] and the
//! loop in [`agent`]. [`synthetic`] measures the devices before they are offered, in a process of its own.

pub mod agent;
pub mod args;
pub mod dcgm;
pub mod deliver;
mod families;
pub mod fingerprint;
pub mod health;
pub mod inventory;
pub mod labels;
pub mod lateness;
pub mod meter;
pub mod metering;
pub mod metrics;
pub mod model;
pub mod observe;
pub mod pods;
pub mod probe;
pub mod publish;
pub mod published;
pub mod run;
pub mod server;
pub mod status;
pub mod synthetic;
pub mod taints;
pub mod writer;
