//! The group operations that blst's safe API does not offer, each behind a safe function.
#![allow(unsafe_code)]
// blst exports pairings, scalar multiplication and uncompression only as C functions. Every call here passes
// pointers to live, properly sized Rust values and a length that is theirs; blst keeps none of them.

use blst::*;
use zeroize::{Zeroize, Zeroizing};

/// A point of G1 that is on the curve, in the subgroup and not the identity.
#[derive(Clone, Copy)]
pub(crate) struct G1(blst_p1_affine);

/// A point of G2 that is on the curve, in the subgroup and not the identity.
#[derive(Clone, Copy)]
pub(crate) struct G2(blst_p2_affine);

/// A public point of G1 on its way through additions; it may be the identity.
#[derive(Clone, Copy)]
pub(crate) struct G1Sum(blst_p1);

/// A secret scalar, little-endian; wiped when dropped.
pub(crate) struct Scalar(Zeroizing<[u8; 32]>);

impl G1 {
    /// Decodes and checks a compressed point.
    pub(crate) fn from_bytes(bytes: &[u8; 48]) -> Option<Self> {
        let mut p = blst_p1_affine::default();
        // SAFETY: `bytes` holds the 48 bytes that are read; `p` is written whole.
        let ok = unsafe {
            blst_p1_uncompress(&mut p, bytes.as_ptr()) == BLST_ERROR::BLST_SUCCESS
                && !blst_p1_affine_is_inf(&p)
                && blst_p1_affine_in_g1(&p)
        };
        ok.then_some(Self(p))
    }

    /// Scalar times this point; `None` for the identity.
    pub(crate) fn mul(&self, scalar: &Scalar) -> Option<Self> {
        let (mut p, mut out) = (blst_p1::default(), blst_p1::default());
        // SAFETY: all pointers are to live values; the scalar has the 32 bytes that 255 bits need.
        unsafe {
            blst_p1_from_affine(&mut p, &self.0);
            blst_p1_mult(&mut out, &p, scalar.0.as_ptr(), 255);
        }
        Self::from_projective(&out)
    }

    /// Scalar times the generator; `None` for the identity.
    pub(crate) fn generator_mul(scalar: &Scalar) -> Option<Self> {
        let mut out = blst_p1::default();
        // SAFETY: the generator is a static of blst; the scalar has 32 bytes.
        unsafe { blst_p1_mult(&mut out, blst_p1_generator(), scalar.0.as_ptr(), 255) };
        Self::from_projective(&out)
    }

    /// The same point, to be added to others.
    pub(crate) fn to_sum(self) -> G1Sum {
        let mut p = blst_p1::default();
        // SAFETY: both are live values.
        unsafe { blst_p1_from_affine(&mut p, &self.0) };
        G1Sum(p)
    }

    fn from_projective(p: &blst_p1) -> Option<Self> {
        let mut affine = blst_p1_affine::default();
        // SAFETY: both are live values.
        let infinite = unsafe {
            blst_p1_to_affine(&mut affine, p);
            blst_p1_is_inf(p)
        };
        (!infinite).then_some(Self(affine))
    }

    /// The compressed point.
    pub(crate) fn to_bytes(self) -> [u8; 48] {
        let mut out = [0; 48];
        // SAFETY: `out` has the 48 bytes that are written.
        unsafe { blst_p1_affine_compress(out.as_mut_ptr(), &self.0) };
        out
    }
}

impl G1Sum {
    /// This point less another.
    pub(crate) fn minus(&self, other: &Self) -> Self {
        let (mut negated, mut out) = (other.0, blst_p1::default());
        // SAFETY: all are live values.
        unsafe {
            blst_p1_cneg(&mut negated, true);
            blst_p1_add_or_double(&mut out, &self.0, &negated);
        }
        Self(out)
    }

    /// Whether it is the identity.
    pub(crate) fn is_identity(&self) -> bool {
        // SAFETY: a live value.
        unsafe { blst_p1_is_inf(&self.0) }
    }
}

impl G2 {
    /// Decodes and checks a compressed point.
    pub(crate) fn from_bytes(bytes: &[u8; 96]) -> Option<Self> {
        let mut p = blst_p2_affine::default();
        // SAFETY: `bytes` holds the 96 bytes that are read; `p` is written whole.
        let ok = unsafe {
            blst_p2_uncompress(&mut p, bytes.as_ptr()) == BLST_ERROR::BLST_SUCCESS
                && !blst_p2_affine_is_inf(&p)
                && blst_p2_affine_in_g2(&p)
        };
        ok.then_some(Self(p))
    }

    /// Hashes a message to the group.
    pub(crate) fn hash(message: &[u8], domain: &[u8]) -> Self {
        let (mut p, mut affine) = (blst_p2::default(), blst_p2_affine::default());
        // SAFETY: the slices' own lengths are passed; the augmentation is empty, which a null pointer may stand for.
        unsafe {
            blst_hash_to_g2(
                &mut p,
                message.as_ptr(),
                message.len(),
                domain.as_ptr(),
                domain.len(),
                std::ptr::null(),
                0,
            );
            blst_p2_to_affine(&mut affine, &p);
        }
        Self(affine)
    }

    /// Scalar times this point, compressed.
    pub(crate) fn mul_to_bytes(&self, scalar: &Scalar) -> [u8; 96] {
        let (mut p, mut product) = (blst_p2::default(), blst_p2::default());
        let mut out = [0; 96];
        // SAFETY: all pointers are to live values; the scalar has 32 bytes; `out` has the 96 bytes written.
        unsafe {
            blst_p2_from_affine(&mut p, &self.0);
            blst_p2_mult(&mut product, &p, scalar.0.as_ptr(), 255);
            blst_p2_compress(out.as_mut_ptr(), &product);
        }
        out
    }

    /// Value at 0 of the polynomial in the exponent that has `points[i].1` at `points[i].0 + 1`.
    pub(crate) fn interpolate(points: &[(u16, Self)]) -> [u8; 96] {
        let xs: Vec<u64> = points.iter().map(|(seat, _)| u64::from(*seat) + 1).collect();
        let mut sum = blst_p2::default();
        let mut out = [0; 96];
        for (i, (_, point)) in points.iter().enumerate() {
            let coefficient = lagrange_at_zero(&xs, i);
            let (mut p, mut product, mut total) =
                (blst_p2::default(), blst_p2::default(), blst_p2::default());
            // SAFETY: all pointers are to live values; the coefficient is a scalar of 32 bytes.
            unsafe {
                blst_p2_from_affine(&mut p, &point.0);
                blst_p2_mult(&mut product, &p, coefficient.b.as_ptr(), 255);
                blst_p2_add_or_double(&mut total, &sum, &product);
            }
            sum = total;
        }
        // SAFETY: `out` has the 96 bytes that are written.
        unsafe { blst_p2_compress(out.as_mut_ptr(), &sum) };
        out
    }
}

/// Product over j != i of x_j / (x_j - x_i); the points are public.
fn lagrange_at_zero(xs: &[u64], i: usize) -> blst_scalar {
    let fr = |v: u64| {
        let mut out = blst_fr::default();
        // SAFETY: four limbs are read from a live array.
        unsafe { blst_fr_from_uint64(&mut out, [v, 0, 0, 0].as_ptr()) };
        out
    };
    let xi = fr(xs.get(i).copied().unwrap_or_default());
    let (mut top, mut bottom) = (fr(1), fr(1));
    for (_, x) in xs.iter().enumerate().filter(|(j, _)| *j != i) {
        let xj = fr(*x);
        let mut difference = blst_fr::default();
        // SAFETY: blst permits outputs that alias inputs; all are live values.
        unsafe {
            blst_fr_sub(&mut difference, &xj, &xi);
            blst_fr_mul(&mut top, &top, &xj);
            blst_fr_mul(&mut bottom, &bottom, &difference);
        }
    }
    let (mut inverse, mut quotient, mut out) =
        (blst_fr::default(), blst_fr::default(), blst_scalar::default());
    // SAFETY: all are live values.
    unsafe {
        blst_fr_eucl_inverse(&mut inverse, &bottom);
        blst_fr_mul(&mut quotient, &top, &inverse);
        blst_scalar_from_fr(&mut out, &quotient);
    }
    out
}

impl Scalar {
    /// Reduces 64 bytes modulo the group order; `None` for zero.
    pub(crate) fn from_wide(bytes: &[u8; 64]) -> Option<Self> {
        let mut scalar = blst_scalar::default();
        // SAFETY: the array's own length is passed.
        let ok = unsafe { blst_scalar_from_be_bytes(&mut scalar, bytes.as_ptr(), bytes.len()) };
        let out = Self(Zeroizing::new(scalar.b));
        scalar.b.zeroize();
        ok.then_some(out)
    }

    /// A big-endian scalar that is below the group order and not zero.
    pub(crate) fn from_bendian(bytes: &[u8; 32]) -> Option<Self> {
        let mut scalar = blst_scalar::default();
        // SAFETY: 32 bytes are read from a live array.
        let ok = unsafe {
            blst_scalar_from_bendian(&mut scalar, bytes.as_ptr());
            blst_sk_check(&scalar)
        };
        let out = Self(Zeroizing::new(scalar.b));
        scalar.b.zeroize();
        ok.then_some(out)
    }

    /// The scalar, big-endian.
    pub(crate) fn to_bendian(&self) -> Zeroizing<[u8; 32]> {
        let mut bytes = Zeroizing::new(*self.0);
        bytes.reverse();
        bytes
    }
}

/// The pairing of two points, in canonical bytes.
pub(crate) fn pairing(p: &G1, q: &G2) -> Zeroizing<[u8; 576]> {
    Zeroizing::new(blst_fp12::miller_loop(&q.0, &p.0).final_exp().to_bendian())
}
