//! A simulated `libnvidia-ml.so.1`: GPUs that exist only in a JSON file.
//!
//! Built as a C shared library, it exports NVML's entry points with the layouts of `nvml-wrapper-sys`, so programs
//! that read NVIDIA GPUs (the Vendue agent, Ray, `nvidia-ml-py`, `gpustat`) run unchanged on a machine without one.
//! Built as a Rust library, it offers what the `nvml-sim` command line and its kubelet device plugin share.
//!
//! * Input: the state file ([`state::State`]), found by [`source::default_path`] and read again whenever it changes;
//!   `NVIDIA_VISIBLE_DEVICES` narrows what one process sees ([`visible::Visibility`]).
//! * Output: NVML return codes and values. All values are pure functions of state and time ([`telemetry`]).
//! * Invariant: no input, from a caller or from the file, makes the library panic or write out of bounds.
//!
//! | module | purpose |
//! |---|---|
//! | [`profile`] | what a model of GPU is: data files |
//! | [`state`] | which GPUs exist and how they fare: the state file's schema |
//! | [`telemetry`] | power, heat, clocks and energy of one device at one moment |
//! | [`visible`] | which devices a process may see |
//! | [`source`] | reading, re-reading and writing the state file |
//! | `abi` | the exported C functions |
//! | [`plugin`] | kubelet device plugin that advertises the simulated devices |

mod abi;
pub mod plugin;
pub mod profile;
pub mod source;
pub mod state;
pub mod telemetry;
pub mod visible;
