//! Receipts of this home's awards: which are asked for when, and where they are kept.
//!
//! Inputs: Awards, what seats answer. Outputs: verified chains on the volume, evidence against who sent something else.
//! Invariants: what is kept was verified from its first record on; a provider can neither fill the volume nor push out what
//! others sent, whatever it says.

pub mod plan;
mod shelf;

use std::sync::Arc;

use crate::args::RunArgs;

pub use shelf::{ChainEntry, Kept, Shelf, ShelfError, ShelfOptions};

/// What is read at once when receipts are served.
const SEGMENT_BYTES: u64 = 1 << 20;

/// The shelf in the folder of the store. A home whose receipts cannot be read goes on without them.
pub fn open(args: &RunArgs) -> Option<Arc<Shelf>> {
    let options = ShelfOptions {
        dir: args.store.join("receipts"),
        segment_bytes: SEGMENT_BYTES,
        max_bytes: args.receipts.receipts_max_mib << 20,
        retain_ms: args.store_retention_seconds.saturating_mul(1_000),
    };
    match Shelf::open(options) {
        Ok(shelf) => Some(Arc::new(shelf)),
        Err(error) => {
            tracing::error!(%error, "receipts are neither fetched nor served");
            None
        }
    }
}
