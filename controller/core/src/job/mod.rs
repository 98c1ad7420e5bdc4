//! `Job` at home: from what the user wrote to an order, and from what the winner reports to the Job's status.
//!
//! Inputs: the Job, the ConfigMap and Secrets that it names, its Award. Outputs: a plan.
//! Invariants: after [`validate`] nobody reads `spec` again; an order is made once and never changes, because its
//! commitment is signed; the Job's finalizer goes only when no provider can be working for it any more.

mod fold;
mod plan;
mod validate;
mod workload;

pub use plan::{Observed, OrderSecret, Plan, belongs_to_us, order_attempt, plan, references};
pub use validate::{FieldError, ValidatedJob, validate};
pub use workload::{References, WorkloadError, resolve};

#[cfg(test)]
mod tests;
