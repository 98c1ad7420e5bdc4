//! Public points on their way through additions; the time depends on them and on what they are multiplied by.

use super::scalars::weight_bytes;
use super::{COFACTOR, CurvePoint, G1, G2, Scalar, Weight, WeightBits, lagrange};
use blst::*;
use std::sync::OnceLock;

/// A public point of G1 on its way through additions; it may be the identity.
#[derive(Clone, Copy)]
pub(crate) struct G1Sum(pub(super) blst_p1);

/// A public point of G2 on its way through additions; it may be the identity.
#[derive(Clone, Copy)]
pub(crate) struct G2Sum(pub(super) blst_p2);

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
        Self::of_affine(points.iter().map(|(w, p)| (w, p.0)), bits)
    }

    /// The sum of points of the curve, each times its weight, which may be any scalar; to be multiplied by the cofactor.
    pub(crate) fn weighted_curve(points: &[(Weight, CurvePoint)]) -> Self {
        Self::of_affine(points.iter().map(|(w, p)| (w, p.0)), WeightBits::Scalar)
    }

    fn of_affine<'w>(points: impl Iterator<Item = (&'w Weight, blst_p1_affine)>, bits: WeightBits) -> Self {
        let (weights, affine): (Vec<&Weight>, Vec<blst_p1_affine>) = points.unzip();
        let weights = weight_bytes(weights.into_iter(), bits);
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
