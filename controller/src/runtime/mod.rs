//! Backends that run a workload in an award's namespace.
//!
//! Inputs: objects to create or delete. Outputs: what is there.
//! Invariant: a backend does what the plan says and decides nothing.

mod native;

pub use native::Native;

use std::collections::BTreeSet;
use std::future::Future;

use vendue_controller_core::award::objects::{Child, ChildKey};
use vendue_controller_core::award::plan::PodSeen;
use vendue_crds::Award;

use crate::io::IoError;

/// What is in an award's namespace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cluster {
    /// Pods of the award.
    pub pods: Vec<PodSeen>,
    /// Every other object of the award, when asked for.
    pub present: Option<BTreeSet<ChildKey>>,
}

/// A backend.
pub trait Runtime: Send + Sync + 'static {
    /// Looks at the Pods, and at everything else when `all`.
    fn observe(&self, award: &Award, all: bool) -> impl Future<Output = Result<Cluster, IoError>> + Send;
    /// Creates one object.
    fn create(&self, namespace: &str, child: &Child) -> impl Future<Output = Result<(), IoError>> + Send;
    /// Deletes one object.
    fn delete(&self, namespace: &str, key: &ChildKey) -> impl Future<Output = Result<(), IoError>> + Send;
}
