//! Chains of receipts in files.
//!
//! Inputs: records that extend a chain, made here or by somebody else. Outputs: the chains, and their records read back.
//! Invariants: what was reported stored is read back after a crash at any byte; a record that does not continue its chain
//! is never stored; one process has a folder.
//!
//! ```text
//!  <award>-<key>-<first sequence>.segment   the chain before its first record, then batches of records
//!  <award>-<key>.delivered                  how many records of the chain the receiver has
//!  removed                                  chains that are closed and gone
//! ```
//! The agent signs chains and delivers them; the controller and the home keep what they were given.

mod chains;
mod compare;
mod error;
mod files;
mod load;
mod segment;

pub use chains::{Chains, Opened, Options, Taken};
pub use error::StoreError;
pub use files::{Disk, Files, UNFINISHED};
