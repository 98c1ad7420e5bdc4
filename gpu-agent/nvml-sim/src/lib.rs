//! A simulated `libnvidia-ml.so.1`: GPUs that exist only in a JSON file.
//!
//! Built as a C shared library, it exports NVML's entry points with the layouts of `nvml-wrapper-sys`, so programs
//! that read NVIDIA GPUs (the Vendue agent, Ray, `nvidia-ml-py`, `gpustat`) run unchanged on a machine without one.
//! Built as a Rust library, it offers what the `nvml-sim` command line and its kubelet device plugin share.
//!
//! * Input: the state file ([`state::State`]), found by [`source::default_path`] and read again whenever it changes;
//!   `NVIDIA_VISIBLE_DEVICES` narrows what one process sees ([`visible::Visibility`]).
//! * Output: NVML return codes and values. All values are pure functions of state, loads and time ([`machine`]).
//! * Invariant: no input, from a caller or from the file, makes the library panic or write out of bounds.
//!
//! | module | purpose |
//! |---|---|
//! | [`profile`] | what a model of GPU is: data files |
//! | [`state`] | which GPUs exist and how they fare: the state file's schema |
//! | [`fault`] | what can happen, and when |
//! | [`script`] | fault time-lines from a seed |
//! | [`mig`] | laying out GPU instances |
//! | [`load`] | the register of what processes do on devices |
//! | [`clock`] | virtual time |
//! | [`timeline`] | one device's history, past and scripted, with exact energy |
//! | [`machine`] | all devices at any moment |
//! | [`telemetry`] | what the sensors of one device read |
//! | [`visible`] | which devices a process may see |
//! | [`library`] | the library as an older driver would have it |
//! | [`source`] | reading, re-reading and writing the files |
//! | [`fleet`] | simulated GPUs for tests: load, faults, virtual time and the truth about energy |
//! | `abi` | the exported C functions |
//! | [`plugin`] | kubelet device plugin that advertises the simulated devices |

mod abi;
pub mod clock;
pub mod energy;
pub mod fault;
pub mod fleet;
pub mod library;
pub mod load;
pub mod machine;
pub mod mig;
pub mod plugin;
pub mod profile;
pub mod script;
pub mod source;
pub mod state;
pub mod telemetry;
pub mod timeline;
pub mod visible;
