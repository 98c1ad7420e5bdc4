//! Receipts of the nodes: taken over HTTPS, checked, kept, added up.
//!
//! ```text
//!  agents --POST /v1/receipts--> api --> Book (one folder of chains for each node) --> bills of awards
//!                                 ^         |
//!                              door         +--> the seat, which brings them home
//! ```
//! Inputs: batches of records with a token of the node's agent. Outputs: from where to go on, awards that are over; sums.
//! Invariants: a record counts when it is durable here; a node writes only chains of its own folder; what does not verify
//! is never stored, and two stories of one key are kept as evidence; nothing is read before somebody asks for it.

mod api;
mod body;
mod book;
mod count;
mod door;
mod error;
mod files;
mod held;
mod node;
mod server;

pub use api::Desk;
pub use book::Book;
pub use door::Door;
pub use error::BookError;
pub use server::{ReceiptsError, serve, system_ms};

#[cfg(test)]
mod tests;
