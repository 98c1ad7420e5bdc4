//! Measures what a card is, before it is offered: memory that holds what is written to it, bandwidth of the memory, clock of
//! the multiprocessors under load.
//!
//! ```text
//!  task (parent) --runner--> child: command --cuda, measure--> Measured --judge, table--> GpuProbe --runner--> book, store
//! ```
//!
//! * Inputs: readings, who holds which device, `libcuda.so.1`. Output: one [`vendue_crds::GpuProbe`] for each
//!   device.
//! * Invariants: a device that somebody has is never touched; the CUDA driver runs in a child process only, so that one
//!   that hangs or crashes takes nothing else with it, and the memory it took is returned by the kernel; what could not
//!   be measured is said to be that and never counts as measured.
//!
//! Pure: [`table`], [`measure`], [`judge`], [`book`], [`told`]. IO: [`cuda`] (all of the unsafe code), [`command`] (the
//! child), [`runner`] (its parent), [`store`], [`task`].

pub mod book;
pub mod command;
pub mod cuda;
pub mod judge;
pub mod measure;
pub mod runner;
pub mod store;
pub mod table;
pub mod task;
pub mod told;

use std::collections::BTreeMap;

use vendue_crds::GpuProbe;

/// What is known of each device, by UUID.
pub type Probes = BTreeMap<String, GpuProbe>;

/// Reasons, one sentence each.
pub mod reasons {
    /// Everything that was measured is as the card says.
    pub const PASSED: &str = "Passed";
    /// Memory is missing, or does not hold what is written to it.
    pub const MEMORY_MISSING: &str = "MemoryMissing";
    /// Memory is slower than that of the model.
    pub const BANDWIDTH_LOW: &str = "BandwidthLow";
    /// The multiprocessors run slower under load than those of the model.
    pub const CLOCK_LOW: &str = "ClockLow";
    /// A call into the CUDA driver failed on a device that nobody uses.
    pub const CALL_FAILED: &str = "CallFailed";
    /// The probe did not end in time.
    pub const TIMED_OUT: &str = "TimedOut";
    /// The probe's process was ended by a signal.
    pub const CRASHED: &str = "Crashed";
    /// No CUDA driver can be loaded, or none that works with this kernel.
    pub const NO_CUDA_DRIVER: &str = "NoCudaDriver";
    /// The CUDA driver does not show the device.
    pub const NOT_VISIBLE: &str = "NotVisible";
    /// The device works in slices.
    pub const MIG_ENABLED: &str = "MigEnabled";
    pub use vendue_crds::conditions::probe_reasons::{ALLOCATED, BUSY};

    /// The device has a fault, so that a probe would say nothing new.
    pub const FAULTY: &str = "Faulty";
    /// The probe could not be started, or did not say what it found.
    pub const PROBE_ERROR: &str = "ProbeError";
    /// The probe is about to run, or runs.
    pub const PENDING: &str = "Pending";
}
