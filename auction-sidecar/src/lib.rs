//! The cluster's peer in the market: orders, sealed-bid rounds, hand-over, relay of status, logs and outputs.
//!
//! ```text
//!             +---------------- engine (state machines of core) ----------------+
//!  net  <-->  | rounds, orders, reservations                                    |  <--> bridge  <-->  API server
//! (libp2p)    +------------------------------------------------------------------+        |
//!    ^--------------------- wire: workload, status, chunks -------------------------------+--> courier (host)
//!                                                                                          `--> store, stream (home)
//! ```
//! Inputs: the market record, the cluster's keys, the API server. Outputs: messages to members, API objects, an
//! aggregated API. Invariant: decisions live in `vendue-auction-core`; this crate does what they say, with a timeout
//! on every wait and a bound on every queue.

pub mod args;
pub mod bridge;
pub mod clock;
pub mod courier;
pub mod deal;
pub mod engine;
pub mod health;
pub mod keygen;
pub mod keys;
pub mod log;
pub mod metrics;
pub mod net;
pub mod new_file;
pub mod next_epoch;
pub mod receipts;
pub mod replay;
pub mod run;
pub mod sign_record;
pub mod signals;
pub mod store;
pub mod stream;
#[cfg(test)]
mod testing;
pub mod times;
pub mod verify_record;
pub mod wire;
