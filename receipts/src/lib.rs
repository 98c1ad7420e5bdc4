//! Metering receipts: what ran on which GPU for how long, as chains of signed records that cannot be changed.
//!
//! ```text
//!  agent: Body --Chain::sign--> Record --bytes or JSON--> reader: Chain::push --> Totals, or the first fault
//!                                  |                               |
//!                                hour: Merkle root, signed       node: all chains of a node
//! ```
//! Each record names the one before by digest, so the last digest ("head") stands for the whole history. There is one
//! chain for each award and node key, and one for the node's idle time. Inputs are records in order; outputs are digests,
//! totals, or the first fault and where it is. Invariants: a verified chain is of one award, every record in it is signed
//! by the key that is in force there, its time never runs backwards, windows of one device do not overlap, and its totals
//! are the sums of its records.

mod bill;
mod chain;
mod cost;
pub mod delivery;
mod encoding;
mod equivocation;
mod file;
mod hour;
mod merkle;
mod names;
mod node;
mod record;

pub use bill::{Bill, Billed};
pub use chain::{Chain, ChainError, DeviceState, Fault, MAX_DEVICES, MAX_KEYS, Totals, verify};
pub use cost::cost_micros;
pub use encoding::{MAX_ENCODED, read_records};
pub use equivocation::{Equivocation, EquivocationError};
pub use file::{
    AwardHeads, ChainHeads, Evidence, FILE_VERSION, FileAward, FileChain, FileJob, ReceiptsFile,
    ReceiptsHeads,
};
pub use hour::{HourError, HourStatement, SignedHour, hour_leaves, hour_of};
pub use merkle::{Inclusion, Sibling, Tree};
pub use names::{AwardId, BootId, ChainName, DeviceId, DriverVersion, Name, NameError, NodeKey, PublicKey};
pub use node::{DeviceTotals, NodeError, Place, keys_of_node, verify_node};
pub use record::{
    Activity, ActivitySource, Body, Clock, Closed, Energy, Gap, GapReason, MAX_XIDS, Opened, Record, Rotated,
    Used, Version, Xid, Xids,
};
pub use vendue_market::Digest;
pub use vendue_market::encode::DecodeError;
pub use vendue_signatures::SignatureError;
