//! Between API objects and the market: the only part of the process that writes to the API server.
//!
//! Inputs: events of the engine, watches of Jobs, Awards and Provisions, requests of members. Outputs: writes, messages,
//! inputs of the engine. Invariant: everything that must survive a restart is in API objects; after one, the watches
//! bring everything back to where it was.
//!
//! # Rights that this needs
//! Both: `awards` get list watch create patch delete; `awards/status` get patch; `events.k8s.io/events` create patch.
//!
//! Home: `jobs` get list watch; `jobs/status` get patch; `jobs/finalizers` update (owner references with
//! blockOwnerDeletion); core `secrets` get (the order's Secret); `authorization.k8s.io/subjectaccessreviews` create;
//! in kube-system the Role `extension-apiserver-authentication-reader`.
//!
//! Host: `provisions` get list watch; `provisions/status` get patch; `bids` get list watch create patch delete,
//! `bids/status` get patch; core `namespaces` get create patch delete; core `secrets` get patch of the names
//! `vendue-workload` and `vendue-tokens`, create; `awards/finalizers` update (the Secret is owned by the Award).

pub mod bids;
pub mod cluster;
mod devices;
pub mod dispatch;
pub mod home;
pub mod host;
pub mod objects;
pub mod offers;
pub mod stores;
#[cfg(test)]
pub(crate) mod tests;
