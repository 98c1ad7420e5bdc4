//! The seat's durable log on disk: a folder of append-only segments, and the thread that writes it.
//!
//! ```text
//!   engine --records--> thread: one write and one fdatasync for all that waits --durable up to--> engine sends
//! ```
//! Inputs: records of `vendue-auction-core`. Outputs: the records of the processes before, and how far the own ones are
//! durable. Invariants: what is reported durable was synced, file and folder, while no process of a higher generation had
//! opened the log; a write that fails is the last one, and ends the process; segments go from the oldest on, and only when no record in them
//! matters any more.

mod append;
mod files;
mod gate;
mod proofs;
mod read;

pub use append::{Appender, LogOptions, Random, SEGMENT_BYTES};
pub use files::LogDirError;
pub use gate::{Gate, Progress};
pub use proofs::{ProofKeeper, fault_name};
pub use read::{Found, read_dir, read_file};

#[cfg(test)]
mod tests;
