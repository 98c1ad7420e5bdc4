//! The group operations that blst's safe API does not offer, each behind a safe function.
//!
//! Inputs: bytes, or values of these types. Outputs: values of these types, or bytes in their one encoding. Invariant: a
//! value is what its type says, whoever made the bytes: on the curve, in its group, not the identity, not zero.
#![allow(unsafe_code)]
// blst exports pairings, scalar multiplication and uncompression only as C functions. Every call in this module and
// those below it passes pointers to live, properly sized Rust values and a length that is theirs; blst keeps none of them.

mod pairings;
mod points;
mod scalars;
mod sums;

pub(crate) use pairings::{Lines, pairing, pairings_agree};
pub(crate) use points::{CurvePoint, G1, G2};
pub(crate) use scalars::{Scalar, Weight, WeightBits, lagrange, power_sums};
pub(crate) use sums::{G1Sum, G2Sum, generator_mul_public, interpolate_unchecked, to_points};

/// The effective cofactor of G1, 1 - z (RFC 9380, section 8.8.1): this multiple of any point of the curve is in G1, and
/// it is prime to the order of G1, so it loses nothing there.
const COFACTOR: u64 = 0xd201_0000_0001_0001;
