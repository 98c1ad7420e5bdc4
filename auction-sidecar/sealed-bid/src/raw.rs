//! The group operations that blst's safe API does not offer, each behind a safe function.
#![allow(unsafe_code)]
// blst exports pairings, scalar multiplication and uncompression only as C functions. Every call here passes
// pointers to live, properly sized Rust values and a length that is theirs; blst keeps none of them.

use blst::*;
use std::sync::OnceLock;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// A point of G1 that is on the curve, in the subgroup and not the identity.
#[derive(Clone, Copy)]
pub(crate) struct G1(blst_p1_affine);

/// A point of G2 that is on the curve, in the subgroup and not the identity.
#[derive(Clone, Copy)]
pub(crate) struct G2(blst_p2_affine);

/// A public point of G1 on its way through additions; it may be the identity.
#[derive(Clone, Copy)]
pub(crate) struct G1Sum(blst_p1);

/// A public point of the whole curve that G1 is a subgroup of, not the identity. It stands for its multiple by the
/// effective cofactor, which is in G1: whoever follows from it anything multiplies by that ([`G1Sum::clear`]).
#[derive(Clone, Copy)]
pub(crate) struct CurvePoint(blst_p1_affine);

/// A public point of G2 on its way through additions; it may be the identity.
#[derive(Clone, Copy)]
pub(crate) struct G2Sum(blst_p2);

/// A secret scalar that is not zero, little-endian; wiped when dropped.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(crate) struct Scalar([u8; 32]);

/// A public weight of a point in a sum, little-endian.
#[derive(Clone, Copy)]
pub(crate) struct Weight([u8; 32]);

/// Bits of a weight drawn to check many equations at once: an error passes with a chance of 2^-128.
const BATCH_BITS: usize = 128;
/// Bits of a weight that may be any scalar.
const SCALAR_BITS: usize = 255;

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

/// The effective cofactor of G1, 1 - z (RFC 9380, section 8.8.1): this multiple of any point of the curve is in G1, and
/// it is prime to the order of G1, so it loses nothing there.
const COFACTOR: u64 = 0xd201_0000_0001_0001;

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

    /// A secret times the point's multiple by the effective cofactor; `None` for the identity.
    pub(crate) fn clear_mul(&self, scalar: &Scalar) -> Option<G1> {
        let (cleared, mut out) = (G1Sum::identity().plus_affine(self).clear(), blst_p1::default());
        // SAFETY: all pointers are to live values; the scalar has the 32 bytes that 255 bits need.
        unsafe { blst_p1_mult(&mut out, &cleared.0, scalar.0.as_ptr(), 255) };
        G1::from_projective(&out)
    }
}

impl From<G1> for CurvePoint {
    fn from(point: G1) -> Self {
        Self(point.0)
    }
}

/// Sums as points, all at once: one inversion for all. `None` when one is the identity.
pub(crate) fn to_points(sums: &[G1Sum]) -> Option<Vec<G1>> {
    if sums.iter().any(G1Sum::is_identity) {
        return None;
    }
    if sums.is_empty() {
        return Some(vec![]);
    }
    let projective: Vec<blst_p1> = sums.iter().map(|s| s.0).collect();
    Some(p1_affines::from(&projective).as_slice().iter().map(|p| G1(*p)).collect())
}

impl G1Sum {
    /// The identity, to which points are added.
    pub(crate) fn identity() -> Self {
        Self(blst_p1::default())
    }

    /// This point and another.
    pub(crate) fn plus(&self, other: &Self) -> Self {
        let mut out = blst_p1::default();
        // SAFETY: all are live values.
        unsafe { blst_p1_add_or_double(&mut out, &self.0, &other.0) };
        Self(out)
    }

    /// This point and one of the curve.
    pub(crate) fn plus_affine(&self, other: &CurvePoint) -> Self {
        let mut out = blst_p1::default();
        // SAFETY: all are live values.
        unsafe { blst_p1_add_or_double_affine(&mut out, &self.0, &other.0) };
        Self(out)
    }

    fn double(&self) -> Self {
        let mut out = blst_p1::default();
        // SAFETY: both are live values.
        unsafe { blst_p1_double(&mut out, &self.0) };
        Self(out)
    }

    /// A public number times this point, by its non-adjacent form: digits are the bits of 3 x less those of x.
    pub(crate) fn times(&self, number: u64) -> Self {
        if number == 1 {
            return *self;
        }
        let (one, three) = (u128::from(number), 3 * u128::from(number));
        let mut sum = Self::identity();
        for bit in (1..u128::BITS - three.leading_zeros()).rev() {
            sum = sum.double();
            match (three >> bit & 1, one >> bit & 1) {
                (1, 0) => sum = sum.plus(self),
                (0, 1) => sum = sum.minus(self),
                _ => {}
            }
        }
        sum
    }

    /// This point's multiple by the effective cofactor, which is in G1.
    pub(crate) fn clear(&self) -> Self {
        self.times(COFACTOR)
    }

    /// The sum of public points, each times its weight.
    pub(crate) fn weighted(points: &[(Weight, G1)], bits: WeightBits) -> Self {
        let affine: Vec<blst_p1_affine> = points.iter().map(|(_, p)| p.0).collect();
        let weights = weight_bytes(points.iter().map(|(w, _)| w), bits);
        // blst indexes the first point.
        if affine.is_empty() { Self::identity() } else { Self(affine.mult(&weights, bits.count())) }
    }

    /// The point, unless it is the identity.
    pub(crate) fn to_point(self) -> Option<G1> {
        G1::from_projective(&self.0)
    }

    /// Whether two sums are one point.
    pub(crate) fn equals(&self, other: &Self) -> bool {
        // SAFETY: both are live values.
        unsafe { blst_p1_is_equal(&self.0, &other.0) }
    }

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

    fn from_projective(p: &blst_p2) -> Option<Self> {
        let mut affine = blst_p2_affine::default();
        // SAFETY: both are live values.
        let infinite = unsafe {
            blst_p2_to_affine(&mut affine, p);
            blst_p2_is_inf(p)
        };
        (!infinite).then_some(Self(affine))
    }
}

/// Value at 0 of the polynomial in the exponent that has the point `shares[i].1` at `shares[i].0 + 1`, compressed; `None`
/// when one is not on the curve.
///
/// The shares need not be in the subgroup: whoever uses this verifies the result, which checks that too, and a result
/// that verifies is right whatever it was made of.
pub(crate) fn interpolate_unchecked(shares: &[(u16, [u8; 96])]) -> Option<[u8; 96]> {
    let seats: Vec<u16> = shares.iter().map(|(seat, _)| *seat).collect();
    let on_curve = |bytes: &[u8; 96]| {
        let mut p = blst_p2_affine::default();
        // SAFETY: `bytes` holds the 96 bytes that are read; `p` is written whole.
        let ok = unsafe {
            blst_p2_uncompress(&mut p, bytes.as_ptr()) == BLST_ERROR::BLST_SUCCESS
                && !blst_p2_affine_is_inf(&p)
        };
        ok.then_some(G2(p))
    };
    let weigh = |(weight, (_, share)): (Weight, &(u16, [u8; 96]))| Some((weight, on_curve(share)?));
    let weighted: Vec<_> = lagrange(&seats, 0).into_iter().zip(shares).map(weigh).collect::<Option<_>>()?;
    Some(G2Sum::weighted(&weighted, WeightBits::Scalar).to_bytes())
}

impl G2Sum {
    /// The sum of public points, each times its weight.
    pub(crate) fn weighted(points: &[(Weight, G2)], bits: WeightBits) -> Self {
        let affine: Vec<blst_p2_affine> = points.iter().map(|(_, p)| p.0).collect();
        let weights = weight_bytes(points.iter().map(|(w, _)| w), bits);
        // blst indexes the first point.
        if affine.is_empty() { Self(blst_p2::default()) } else { Self(affine.mult(&weights, bits.count())) }
    }

    /// The point, unless it is the identity.
    pub(crate) fn to_point(self) -> Option<G2> {
        G2::from_projective(&self.0)
    }

    fn to_bytes(self) -> [u8; 96] {
        let mut out = [0; 96];
        // SAFETY: `out` has the 96 bytes that are written.
        unsafe { blst_p2_compress(out.as_mut_ptr(), &self.0) };
        out
    }
}

/// How many bits of weights count.
#[derive(Clone, Copy)]
pub(crate) enum WeightBits {
    /// Weights that check many equations at once.
    Batch,
    /// Weights that may be any scalar.
    Scalar,
}

impl WeightBits {
    fn count(self) -> usize {
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
fn weight_bytes<'w>(weights: impl Iterator<Item = &'w Weight>, bits: WeightBits) -> Vec<u8> {
    weights.flat_map(|w| w.0.iter().take(bits.count().div_ceil(8)).copied()).collect()
}

/// The field element of a small number.
fn small(v: u64) -> blst_fr {
    let mut out = blst_fr::default();
    // SAFETY: four limbs are read from a live array.
    unsafe { blst_fr_from_uint64(&mut out, [v, 0, 0, 0].as_ptr()) };
    out
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

/// Whether e(generator of G1, signature) = e(key, message).
pub(crate) fn pairings_agree(signature: &G2, key: &G1, message: &G2) -> bool {
    // SAFETY: the generator is a static of blst.
    let generator = unsafe { *blst_p1_affine_generator() };
    let left = blst_fp12::miller_loop(&signature.0, &generator);
    let right = blst_fp12::miller_loop(&message.0, &key.0);
    blst_fp12::finalverify(&left, &right)
}

/// Bits of a scalar that choose one point of each row of the table.
const ROW_BITS: usize = 8;

/// Multiples of the generator of G1 for scalars that are public: row i has 1, 2, ... 255 times 256^i times it.
struct GeneratorTable(Vec<blst_p1_affine>);

/// Points in one row.
const ROW: usize = (1 << ROW_BITS) - 1;

impl GeneratorTable {
    fn get() -> &'static Self {
        static TABLE: OnceLock<GeneratorTable> = OnceLock::new();
        TABLE.get_or_init(Self::new)
    }

    fn new() -> Self {
        // SAFETY: the generator is a static of blst.
        let mut base = G1Sum(unsafe { *blst_p1_generator() });
        let mut points = Vec::with_capacity(32 * ROW);
        for _ in 0..32 {
            let mut multiple = base;
            for _ in 0..ROW {
                points.push(multiple.0);
                multiple = multiple.plus(&base);
            }
            base = multiple;
        }
        Self(p1_affines::from(&points).as_slice().to_vec())
    }
}

/// A public scalar times the generator of G1, by table: the time depends on the scalar.
pub(crate) fn generator_mul_public(scalar: &Scalar) -> G1Sum {
    let table = GeneratorTable::get();
    let mut sum = blst_p1::default();
    for (row, digit) in table.0.chunks(ROW).zip(scalar.0) {
        if let Some(point) = usize::from(digit).checked_sub(1).and_then(|at| row.get(at)) {
            // SAFETY: blst permits an output that aliases an input; both are live values.
            unsafe { blst_p1_add_or_double_affine(&mut sum, &sum, point) };
        }
    }
    G1Sum(sum)
}

/// A public point of G2 prepared for many pairings.
pub(crate) struct Lines(Vec<blst_fp6>);

/// Lines of one Miller loop.
const LINES: usize = 68;

impl Lines {
    pub(crate) fn of(q: &G2) -> Self {
        let mut lines = vec![blst_fp6::default(); LINES];
        // SAFETY: blst writes exactly 68 lines; `q` is a live value.
        unsafe { blst_precompute_lines(lines.as_mut_ptr(), &q.0) };
        Self(lines)
    }

    /// The pairing of a point with this one, in canonical bytes.
    pub(crate) fn pairing(&self, p: &G1) -> Zeroizing<[u8; 576]> {
        let mut out = blst_fp12::default();
        // SAFETY: `of` has written as many lines as are read; the other two are live values.
        unsafe { blst_miller_loop_lines(&mut out, self.0.as_ptr(), &p.0) };
        Zeroizing::new(out.final_exp().to_bendian())
    }
}

/// The pairing of two points, in canonical bytes.
pub(crate) fn pairing(p: &G1, q: &G2) -> Zeroizing<[u8; 576]> {
    Zeroizing::new(blst_fp12::miller_loop(&q.0, &p.0).final_exp().to_bendian())
}
