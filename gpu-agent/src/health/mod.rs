//! From what a device says to whether it can be sold, and whose fault it is.
//!
//! Decisions are pure ([`judge`], [`hold`], [`times`], [`xid`]); [`memory`] keeps on disk what outlasts the agent.
//!
//! * Inputs: readings, Xids, the time since the agent began, a policy.
//! * Outputs: an [`judge::Opinion`] for each device: health, cause, node taint.
//! * Invariants: what a program did never counts against the device; a fatal fault stays until the device was reset; what
//!   clears by itself clears only after a quiet time, which grows when it comes back.

pub mod hold;
pub mod judge;
pub mod memory;
pub mod times;
pub mod xid;
