//! Fuzz targets for every decoder, certificate, proof and record that the auction reads from others.
//!
//! A target is a plain function of bytes. It says whether it accepted them, and panics where something does not hold
//! that must hold for any bytes: a value has one encoding, reading allocates no more than a multiple of what is read,
//! what is signed uniquely cannot be changed, verification gives a verdict. The same functions run
//! - in `cargo test`, over a corpus that is made from simulated rounds, and over seeded changes of it;
//! - for as long as one likes with the program `fuzz-long`;
//! - under libFuzzer, from the folder `libfuzzer`.
//!
//! Inputs: bytes. Outputs: panics. Invariant: nothing here depends on time, threads or the machine, so an input that
//! fails fails again.

// This crate is a test: what must hold is asserted, and what cannot be made for a test ends it.
#![allow(clippy::expect_used, clippy::panic)]

pub mod bounds;
pub mod corpus;
pub mod drive;
pub mod fixture;
pub mod mutate;
pub mod targets;
pub mod termed;

pub use targets::{Cost, Target, all, by_name};
