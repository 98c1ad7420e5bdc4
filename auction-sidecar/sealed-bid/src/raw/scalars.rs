//! Scalars: secrets, which are wiped and computed with in constant time, and public weights of sums.

use super::COFACTOR;
use blst::*;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// A secret scalar that is not zero, little-endian; wiped when dropped.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(crate) struct Scalar(pub(super) [u8; 32]);

/// A public weight of a point in a sum, little-endian.
#[derive(Clone, Copy)]
pub(crate) struct Weight(pub(super) [u8; 32]);

/// Bits of a weight drawn to check many equations at once: an error passes with a chance of 2^-128.
const BATCH_BITS: usize = 128;
/// Bits of a weight that may be any scalar.
const SCALAR_BITS: usize = 255;

/// How many bits of weights count.
#[derive(Clone, Copy)]
pub(crate) enum WeightBits {
    /// Weights that check many equations at once.
    Batch,
    /// Weights that may be any scalar.
    Scalar,
}

impl WeightBits {
    pub(super) fn count(self) -> usize {
        match self {
            Self::Batch => BATCH_BITS,
            Self::Scalar => SCALAR_BITS,
        }
    }
}

impl Weight {
    /// The weight whose little-endian bytes are the first half of a hash.
    pub(crate) fn from_hash(hash: &[u8; 32]) -> Self {
        let mut out = [0; 32];
        out.iter_mut().zip(hash).take(BATCH_BITS / 8).for_each(|(to, from)| *to = *from);
        Self(out)
    }

    /// The weight as a factor of secrets. Weights of interpolation are never zero.
    pub(crate) fn to_scalar(self) -> Option<Scalar> {
        let mut bytes = self.0;
        bytes.reverse();
        Scalar::from_bendian(&bytes)
    }
}

/// The weights' bytes one after another, as many of each as its bits take.
pub(super) fn weight_bytes<'w>(weights: impl Iterator<Item = &'w Weight>, bits: WeightBits) -> Vec<u8> {
    weights.flat_map(|w| w.0.iter().take(bits.count().div_ceil(8)).copied()).collect()
}

/// The field element of a small number.
fn small(v: u64) -> blst_fr {
    let mut out = blst_fr::default();
    // SAFETY: four limbs are read from a live array.
    unsafe { blst_fr_from_uint64(&mut out, [v, 0, 0, 0].as_ptr()) };
    out
}

/// What multiplies the coefficients of x^first, x^(first + 1), ... where values of a polynomial at these points are added
/// up with these weights: for each power the sum of the weights times it. Everything here is public.
pub(crate) fn power_sums(points: &[(Weight, u64)], first: u32, count: usize) -> Vec<Weight> {
    let mut sums = vec![blst_fr::default(); count];
    for (weight, x) in points {
        let (x, mut power) = (small(*x), blst_fr::default());
        // SAFETY: blst permits outputs that alias inputs; all are live values.
        unsafe {
            blst_fr_from_scalar(&mut power, &blst_scalar { b: weight.0 });
            (0..first).for_each(|_| blst_fr_mul(&mut power, &power, &x));
            for sum in &mut sums {
                blst_fr_add(sum, sum, &power);
                blst_fr_mul(&mut power, &power, &x);
            }
        }
    }
    let weight = |sum: &blst_fr| {
        let mut out = blst_scalar::default();
        // SAFETY: both are live values.
        unsafe { blst_scalar_from_fr(&mut out, sum) };
        Weight(out.b)
    };
    sums.iter().map(weight).collect()
}

/// Weights that take the values at `seats[i] + 1` of a polynomial of degree `seats.len() - 1` to its value at `at`:
/// the products over j != i of (x_j - at) / (x_j - x_i). Seats must be distinct; everything here is public.
pub(crate) fn lagrange(seats: &[u16], at: u16) -> Vec<Weight> {
    let xs: Vec<blst_fr> = seats.iter().map(|seat| small(u64::from(*seat) + 1)).collect();
    let at = small(u64::from(at));
    let difference = |a: &blst_fr, b: &blst_fr| {
        let mut out = blst_fr::default();
        // SAFETY: all are live values.
        unsafe { blst_fr_sub(&mut out, a, b) };
        out
    };
    let weight = |i: usize, xi: &blst_fr| {
        let (mut top, mut bottom) = (small(1), small(1));
        for (_, xj) in xs.iter().enumerate().filter(|(j, _)| *j != i) {
            let (over, under) = (difference(xj, &at), difference(xj, xi));
            // SAFETY: blst permits outputs that alias inputs; all are live values.
            unsafe {
                blst_fr_mul(&mut top, &top, &over);
                blst_fr_mul(&mut bottom, &bottom, &under);
            }
        }
        let (mut quotient, mut out) = (blst_fr::default(), blst_scalar::default());
        // SAFETY: as above.
        unsafe {
            blst_fr_eucl_inverse(&mut quotient, &bottom);
            blst_fr_mul(&mut quotient, &quotient, &top);
            blst_scalar_from_fr(&mut out, &quotient);
        }
        Weight(out.b)
    };
    xs.iter().enumerate().map(|(i, xi)| weight(i, xi)).collect()
}

impl Scalar {
    /// The effective cofactor as a factor of secrets.
    pub(crate) fn cofactor() -> Option<Self> {
        let mut bytes = [0; 32];
        bytes.iter_mut().rev().zip(COFACTOR.to_le_bytes()).for_each(|(to, from)| *to = from);
        Self::from_bendian(&bytes)
    }

    /// Reduces 64 bytes modulo the group order; `None` for zero.
    pub(crate) fn from_wide(bytes: &[u8; 64]) -> Option<Self> {
        let mut scalar = blst_scalar::default();
        // SAFETY: the array's own length is passed.
        let ok = unsafe { blst_scalar_from_be_bytes(&mut scalar, bytes.as_ptr(), bytes.len()) };
        let out = Self::take(&mut scalar);
        ok.then_some(out)
    }

    /// Moves a scalar out of blst's type.
    fn take(scalar: &mut blst_scalar) -> Self {
        let out = Self(scalar.b);
        scalar.b.zeroize();
        out
    }

    fn to_blst(&self) -> Zeroizing<SecretScalar> {
        Zeroizing::new(SecretScalar(blst_scalar { b: self.0 }))
    }

    /// One of blst's operations on two scalars; `None` when the result is zero.
    fn combine(
        &self,
        other: &Self,
        operation: unsafe extern "C" fn(*mut blst_scalar, *const blst_scalar, *const blst_scalar) -> bool,
    ) -> Option<Self> {
        let (a, b) = (self.to_blst(), other.to_blst());
        let mut out = blst_scalar::default();
        // SAFETY: all are live values.
        let not_zero = unsafe { operation(&mut out, &a.0, &b.0) };
        let out = Self::take(&mut out);
        not_zero.then_some(out)
    }

    /// The sum of all; `None` for zero. What is zero on the way does not count: who knows two of the parts can make it so.
    pub(crate) fn sum(parts: &[&Self]) -> Option<Self> {
        let (mut total, mut not_zero) = (Zeroizing::new(SecretScalar(blst_scalar::default())), false);
        for part in parts {
            let before = Zeroizing::new(SecretScalar(blst_scalar { b: total.0.b }));
            let part = part.to_blst();
            // SAFETY: all are live values.
            not_zero = unsafe { blst_sk_add_n_check(&mut total.0, &before.0, &part.0) };
        }
        not_zero.then(|| Self(total.0.b))
    }

    /// The sum; `None` for zero.
    pub(crate) fn plus(&self, other: &Self) -> Option<Self> {
        self.combine(other, blst_sk_add_n_check)
    }

    /// The difference; `None` for zero.
    pub(crate) fn minus(&self, other: &Self) -> Option<Self> {
        self.combine(other, blst_sk_sub_n_check)
    }

    /// The product; `None` for zero.
    pub(crate) fn times(&self, other: &Self) -> Option<Self> {
        self.combine(other, blst_sk_mul_n_check)
    }

    /// A big-endian scalar that is below the group order and not zero.
    pub(crate) fn from_bendian(bytes: &[u8; 32]) -> Option<Self> {
        let mut scalar = blst_scalar::default();
        // SAFETY: 32 bytes are read from a live array.
        let ok = unsafe {
            blst_scalar_from_bendian(&mut scalar, bytes.as_ptr());
            blst_sk_check(&scalar)
        };
        let out = Self::take(&mut scalar);
        ok.then_some(out)
    }

    /// The same secret again, by way of bytes that are wiped.
    pub(crate) fn copy(&self) -> Option<Self> {
        Self::from_bendian(&self.to_bendian())
    }

    /// The scalar, big-endian.
    pub(crate) fn to_bendian(&self) -> Zeroizing<[u8; 32]> {
        let mut bytes = Zeroizing::new(self.0);
        bytes.reverse();
        bytes
    }
}

/// A secret in blst's own type.
struct SecretScalar(blst_scalar);

impl Zeroize for SecretScalar {
    fn zeroize(&mut self) {
        self.0.b.zeroize();
    }
}
