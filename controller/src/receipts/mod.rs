//! Receipts of the nodes: taken over HTTPS, checked, kept, added up.
//!
//! ```text
//!  agents --POST /v1/receipts--> api --> Book (one folder of chains for each node) --> bills of awards
//!                                 ^         |
//!                              door         +--> the seat, which brings them home
//! ```
//! Inputs: batches of records with a token of the node's agent. Outputs: from where to go on, awards that are over; sums.
//! Invariants: a record counts when it is durable here; a node writes only chains of its own folder; what does not verify
//! is never stored, and two stories of one key are kept as evidence.

mod api;
mod book;
mod door;
mod server;

pub use api::Desk;
pub use book::{Book, BookError};
pub use door::Door;
pub use server::{ReceiptsError, serve};

#[cfg(test)]
mod tests;
