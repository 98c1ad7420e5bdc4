//! Points of the two groups, and of the curve that one of them is in: decoded, checked, multiplied by secrets, encoded.

use super::{G1Sum, Scalar};
use blst::*;
use zeroize::{Zeroize, Zeroizing};

/// A point of G1 that is on the curve, in the subgroup and not the identity.
#[derive(Clone, Copy)]
pub(crate) struct G1(pub(super) blst_p1_affine);

/// A point of G2 that is on the curve, in the subgroup and not the identity.
#[derive(Clone, Copy)]
pub(crate) struct G2(pub(super) blst_p2_affine);

/// A public point of the whole curve that G1 is a subgroup of, not the identity. It stands for its multiple by the
/// effective cofactor, which is in G1: whoever follows from it anything multiplies by that ([`G1Sum::clear`]).
#[derive(Clone, Copy)]
pub(crate) struct CurvePoint(pub(super) blst_p1_affine);

/// A multiple of a point, compressed; the point itself is wiped.
fn shared(point: &G1Sum, scalar: &Scalar) -> Option<Zeroizing<[u8; 48]>> {
    let (mut product, mut out) = (blst_p1::default(), Zeroizing::new([0; 48]));
    // SAFETY: all pointers are to live values; the scalar has the 32 bytes that 255 bits need, `out` the 48 that are written.
    let infinite = unsafe {
        blst_p1_mult(&mut product, &point.0, scalar.0.as_ptr(), 255);
        blst_p1_compress(out.as_mut_ptr(), &product);
        blst_p1_is_inf(&product)
    };
    product.x.l.zeroize();
    product.y.l.zeroize();
    product.z.l.zeroize();
    (!infinite).then_some(out)
}

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

    /// Decodes a compressed point that may be outside the subgroup: for points that are compared with one that is in it
    /// before anything follows from them.
    pub(crate) fn on_curve(bytes: &[u8; 48]) -> Option<Self> {
        let mut p = blst_p1_affine::default();
        // SAFETY: `bytes` holds the 48 bytes that are read; `p` is written whole.
        let ok = unsafe {
            blst_p1_uncompress(&mut p, bytes.as_ptr()) == BLST_ERROR::BLST_SUCCESS
                && !blst_p1_affine_is_inf(&p)
        };
        ok.then_some(Self(p))
    }

    /// Scalar times this point; `None` for the identity.
    pub(crate) fn mul(&self, scalar: &Scalar) -> Option<Self> {
        let (p, mut out) = (self.to_sum(), blst_p1::default());
        // SAFETY: all pointers are to live values; the scalar has the 32 bytes that 255 bits need.
        unsafe { blst_p1_mult(&mut out, &p.0, scalar.0.as_ptr(), 255) };
        Self::from_projective(&out)
    }

    /// Scalar times this point, compressed, as a secret; `None` for the identity.
    pub(crate) fn shared(&self, scalar: &Scalar) -> Option<Zeroizing<[u8; 48]>> {
        shared(&self.to_sum(), scalar)
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

    pub(super) fn from_projective(p: &blst_p1) -> Option<Self> {
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

impl CurvePoint {
    /// Decodes an uncompressed point: on the curve, not the identity, in the one encoding.
    pub(crate) fn from_bytes(bytes: &[u8; 96]) -> Option<Self> {
        let mut p = blst_p1_affine::default();
        // With one of the upper bits set it is another encoding, which blst would take too.
        let plain = bytes.first().is_some_and(|first| first & 0xe0 == 0);
        // SAFETY: `bytes` holds the 96 bytes that are read; `p` is written whole.
        let ok = plain
            && unsafe {
                blst_p1_deserialize(&mut p, bytes.as_ptr()) == BLST_ERROR::BLST_SUCCESS
                    && !blst_p1_affine_is_inf(&p)
            };
        ok.then_some(Self(p))
    }

    /// The uncompressed point.
    pub(crate) fn to_bytes(self) -> [u8; 96] {
        let mut out = [0; 96];
        // SAFETY: `out` has the 96 bytes that are written.
        unsafe { blst_p1_affine_serialize(out.as_mut_ptr(), &self.0) };
        out
    }

    /// A secret times the point's multiple by the effective cofactor, as [`G1::shared`]; `None` for the identity.
    pub(crate) fn clear_shared(&self, scalar: &Scalar) -> Option<Zeroizing<[u8; 48]>> {
        shared(&G1Sum::identity().plus_affine(self).clear(), scalar)
    }
}

impl From<G1> for CurvePoint {
    fn from(point: G1) -> Self {
        Self(point.0)
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

    /// The compressed point.
    pub(crate) fn to_bytes(self) -> [u8; 96] {
        let mut out = [0; 96];
        // SAFETY: `out` has the 96 bytes that are written.
        unsafe { blst_p2_affine_compress(out.as_mut_ptr(), &self.0) };
        out
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

    pub(super) fn from_projective(p: &blst_p2) -> Option<Self> {
        let mut affine = blst_p2_affine::default();
        // SAFETY: both are live values.
        let infinite = unsafe {
            blst_p2_to_affine(&mut affine, p);
            blst_p2_is_inf(p)
        };
        (!infinite).then_some(Self(affine))
    }
}
