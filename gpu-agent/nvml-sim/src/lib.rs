//! A simulated `libnvidia-ml.so.1`: GPUs that exist only in a JSON file.
//!
//! Built as a C shared library, it exports NVML's entry points with the layouts of `nvml-wrapper-sys`, so programs
//! that read NVIDIA GPUs (the Vendue agent, Ray, `nvidia-ml-py`, `gpustat`) run unchanged on a machine without one.
//! Built as a Rust library, it offers what the `nvml-sim` command line, its kubelet device plugin and tests of other
//! crates use; the simulated machine itself is the crate `vendue-gpu-sim`, whose modules are found here too.
//!
//! * Input: the state file ([`state::State`]), found by [`source::default_path`] and read again whenever it changes,
//!   and the register of loads beside it; `NVIDIA_VISIBLE_DEVICES` narrows what one process sees.
//! * Output: NVML return codes and values. All values are pure functions of state, loads and time ([`machine`]).
//! * Invariant: no input, from a caller or from a file, makes the library panic or write out of bounds.
//!
//! | module | purpose |
//! |---|---|
//! | `abi` | the exported C functions |
//! | [`plugin`] | kubelet device plugin that advertises the simulated devices |

mod abi;
pub mod plugin;

pub use vendue_gpu_sim::{
    clock, energy, fault, fleet, library, load, machine, mig, profile, script, source, state, telemetry,
    timeline, visible,
};
