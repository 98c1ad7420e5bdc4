//! Reading devices: the trait that the rest of the agent knows, and its errors.

mod driver;
pub mod events;
mod gpm;
mod links;
pub mod numa;
pub mod nvml;
mod processes;
mod reading;
pub mod thread;

use std::path::PathBuf;

use crate::inventory::NodeInventory;

/// A way to read the devices of this node. Calls may block, so they run on a thread of their own ([`thread`]).
pub trait DeviceProbe: Send + 'static {
    /// Reads everything once.
    ///
    /// # Errors
    /// When nothing could be read. A single bad device is no error: its reading says what is wrong.
    fn read(&mut self) -> Result<NodeInventory, ProbeError>;
}

/// Why nothing could be read.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The management library cannot be loaded.
    #[error("load {}: {detail}", library.display())]
    LibraryMissing {
        /// What was asked of the loader.
        library: PathBuf,
        /// What the loader says.
        detail: String,
    },
    /// The kernel driver is not there.
    #[error("initialise NVML: the NVIDIA driver is not loaded")]
    DriverNotLoaded,
    /// Library and kernel driver differ in version.
    #[error("initialise NVML: library and kernel driver differ in version; reboot the node")]
    DriverMismatch,
    /// This process has loaded a driver that is no longer the one on the node.
    #[error("the driver was replaced under this process: {0}")]
    Replaced(String),
    /// A call failed.
    #[error("{operation}: {detail}")]
    Call {
        /// What was asked.
        operation: &'static str,
        /// What NVML says.
        detail: String,
    },
    /// The reading thread is gone.
    #[error("the thread that reads the devices has ended")]
    ThreadEnded,
}
