//! The aggregated API `stream.vendue.dev/v1alpha1`: logs, outputs and receipts of Jobs, for people and programs with rights.
//!
//! Inputs: requests that the API server passes on, the Jobs and Awards of this cluster, the store, and the winner's
//! courier through the peer-to-peer network. Outputs: text and bytes; errors as `metav1.Status`. Invariant: an identity
//! is believed only when the connection has a client certificate of the API server's front proxy; then a
//! SubjectAccessReview decides, on every request.
//!
//! ```text
//!  kubectl -> kube-apiserver --mTLS + X-Remote-User--> here -> store            (the job has ended)
//!                                                           -> net -> courier   (the job runs)
//! ```

mod backend;
mod discovery;
#[cfg(test)]
mod door_tests;
mod handlers;
mod identity;
mod kube_backend;
mod logs;
mod receipts;
mod server;
mod status;
#[cfg(test)]
mod tests;
mod tls;

pub use backend::{AccessError, Backend, Located, LogChunk, Place};
pub use handlers::{Shared, router};
pub use identity::{FrontProxy, User};
pub use kube_backend::KubeBackend;
pub use server::{StreamConfig, StreamError, serve};

/// API group.
pub const GROUP: &str = "stream.vendue.dev";
/// The one served version.
pub const VERSION: &str = "v1alpha1";
