//! Simulated GPUs, without any C interface: what `libnvidia-ml.so.1` and `libcuda.so.1` of the simulator share.
//!
//! * Input: the state file ([`state::State`]) and the register of loads beside it ([`load::Register`]), both read again
//!   whenever they change ([`source::Source`]).
//! * Output: each device at any moment of virtual time ([`machine::Moment`]).
//! * Invariant: everything is a pure function of state, loads and time; energy is the exact integral of power.
//!
//! | module | purpose |
//! |---|---|
//! | [`profile`] | what a model of GPU is: data files |
//! | [`state`] | which GPUs exist and how they fare: the state file's schema |
//! | [`fault`] | what can happen, and when |
//! | [`script`] | fault time-lines from a seed |
//! | [`mig`] | laying out GPU instances |
//! | [`load`] | the register of what processes do on devices |
//! | [`clock`], [`energy`] | virtual time; exact amounts |
//! | [`timeline`] | one device's history, past and scripted |
//! | [`machine`] | all devices at any moment |
//! | [`telemetry`] | what the sensors of one device read |
//! | [`visible`] | which devices a process may see |
//! | [`source`] | reading, re-reading and writing the files |
//! | [`fleet`] | simulated GPUs for tests: load, faults, virtual time and the truth about energy |
//! | [`library`] | the NVML library as an older driver would have it |

pub mod clock;
pub mod energy;
pub mod fault;
pub mod fleet;
pub mod library;
pub mod load;
pub mod machine;
pub mod mig;
pub mod profile;
pub mod script;
pub mod source;
pub mod state;
pub mod telemetry;
pub mod timeline;
pub mod visible;
