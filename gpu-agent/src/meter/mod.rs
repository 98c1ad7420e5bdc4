//! Metering: what each device did for whom, as signed records that are durable before they count.
//!
//! ```text
//!  readings, assignments --Meter::tick--> drafts --Store::append--> signed records on disk --> receiver
//!                            ^                            |
//!                            +---- settle: what failed ---+
//! ```
//! Inputs: a tick with a reading of each device and the award that it serves. Outputs: receipts in one chain for each
//! award, and one for idle time. Invariants: every nanosecond and every millijoule between two readings of a device is in
//! one record of one chain; what was not observed is a gap and belongs to nobody; what could not be stored is a gap too.
//!
//! [`Meter`] decides and is pure. [`Store`] keeps.

mod clock;
pub mod clocks;
mod counters;
pub mod hours;
mod keeper;
pub mod key;
mod owed;
mod rules;
mod sights;
mod span;
mod store;
mod tally;
mod telling;
mod tick;

pub use clock::Anchor;
pub use counters::MeterCounters;
pub use keeper::{Counter, Keeper, KeeperError, Kept, Next};
pub use rules::{Counts, Draft, Meter, Resume, Settings, TickError};
pub use sights::{Clocks, Sights};
pub use store::{Appended, Found, Store, options};
pub use tally::{OfAward, Sums, Tally, Whose};
pub use telling::Telling;
pub use tick::{DeviceTick, Reading, Tick, Unreadable};

#[cfg(test)]
mod tests;
