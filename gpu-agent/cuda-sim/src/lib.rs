//! A simulated `libcuda.so.1`: what a probe of memory size, memory bandwidth and clock under load calls.
//!
//! * Input: the state file of the simulated NVML, found in the same way; `NVIDIA_VISIBLE_DEVICES` narrows the view.
//! * Output: CUDA driver API results. Names and sizes that a caller asks for are what the card claims; how much memory
//!   there is, how fast it is and how fast the SMs run is what the card really is.
//! * Nothing waits: work takes simulated time, which `cuEventElapsedTime` reports.
//! * Invariant: no input makes the library panic across its border or write out of bounds.
//!
//! A kernel is a file of code for hardware that is not there. One kernel is understood by its name: `vendue_spin_cycles` keeps
//! an SM busy for a number of clock cycles.
//!
//! | module | purpose |
//! |---|---|
//! | `device` | contexts, memory, time and events: the simulated driver, without pointers |
//! | `memory` | what simulated memory holds |
//! | `abi` | the exported C functions |

mod abi;
mod device;
mod memory;
