//! A dealer's secret polynomial and its public commitment.
//!
//! Coefficients are derived from the dealer's seed and the setup. `threshold_crypto::poly::Poly` holds, evaluates and
//! wipes them; the commitment is made and evaluated by blst. Invariant: no point of a commitment is the identity.
//!
//! The points of a commitment need not be in G1. With h the effective cofactor, a dealer commits to the polynomial of
//! the points' multiples by h, which are in G1 whatever the points are, and what players hold are h times the values that
//! they were sent: every check multiplies its difference by h once, instead of checking each point.

use super::{DkgError, Setup};
use crate::CryptoError;
use crate::raw::{CurvePoint, G1, G1Sum, Scalar, Weight, power_sums};
use sha2::{Digest, Sha256};
use threshold_crypto::Fr;
use threshold_crypto::ff::{Field, PrimeField, PrimeFieldRepr};
use threshold_crypto::poly::Poly;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// A seat's secret from which it derives everything random that it sends during key generations.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct DealerSeed([u8; 32]);

impl DealerSeed {
    /// From 32 random bytes, used for nothing else.
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        Self(*bytes)
    }
    /// As bytes, to be stored as a secret.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0)
    }
    /// The secret for a label, a setup or recovery, and two numbers.
    pub(super) fn scalar(
        &self,
        label: &[u8],
        session: &[u8; 32],
        first: u16,
        second: u16,
    ) -> Result<Scalar, CryptoError> {
        let numbers = [first.to_be_bytes(), second.to_be_bytes()].concat();
        derive(b"VENDUE-V1-DKG-SEED", &self.0, &[label, session, &numbers])
    }
}

/// A secret scalar from HKDF-SHA-256: 64 bytes, big-endian, modulo the group order.
pub(super) fn derive(salt: &[u8], secret: &[u8], info: &[&[u8]]) -> Result<Scalar, CryptoError> {
    let mut wide = Zeroizing::new([0u8; 64]);
    hkdf::Hkdf::<Sha256>::new(Some(salt), secret)
        .expand_multi_info(info, wide.as_mut_slice())
        .map_err(|_| CryptoError::Generation)?;
    Scalar::from_wide(&wide).ok_or(CryptoError::Generation)
}

/// A dealer's polynomial.
pub(super) struct SecretPoly {
    poly: Poly,
    pub(super) commitment: Commitment,
}

impl SecretPoly {
    /// The polynomial of a dealer for a setup.
    pub(super) fn derive(setup: &Setup, dealer: u16, seed: &DealerSeed) -> Result<Self, DkgError> {
        let mut coefficients = Vec::with_capacity(usize::from(setup.quorum()));
        let mut points = Vec::with_capacity(setup.points());
        if setup.is_refresh() {
            coefficients.push(Fr::zero());
        }
        for index in u16::from(setup.is_refresh())..setup.quorum() {
            let coefficient = seed.scalar(b"COEFFICIENT", &setup.digest(), dealer, index)?;
            points.push(G1::generator_mul(&coefficient).ok_or(CryptoError::Generation)?.into());
            coefficients.push(to_field(&coefficient)?);
        }
        let commitment = Commitment::new(setup, dealer, points);
        Ok(Self { poly: Poly::from(coefficients), commitment })
    }

    /// What a seat is sent: the value at the seat's number plus one.
    pub(super) fn value(&self, seat: u16) -> Result<Scalar, CryptoError> {
        to_scalar(self.poly.evaluate(u64::from(seat) + 1))
    }
}

fn to_field(scalar: &Scalar) -> Result<Fr, CryptoError> {
    let mut repr = <Fr as PrimeField>::Repr::default();
    let read = repr.read_be(scalar.to_bendian().as_slice());
    let value = Fr::from_repr(repr);
    repr.0.zeroize();
    read.map_err(|_| CryptoError::Generation)?;
    value.map_err(|_| CryptoError::Generation)
}

/// Takes a value of `threshold_crypto`'s field to blst; zero is refused.
pub(crate) fn to_scalar(value: Fr) -> Result<Scalar, CryptoError> {
    let mut bytes = Zeroizing::new([0u8; 32]);
    let mut repr = value.into_repr();
    let written = repr.write_be(bytes.as_mut_slice());
    repr.0.zeroize();
    written.map_err(|_| CryptoError::Generation)?;
    Scalar::from_bendian(&bytes).ok_or(CryptoError::Generation)
}

/// A commitment to a polynomial: its coefficients times the generator.
#[derive(Clone)]
pub(super) struct Commitment {
    /// Whether the constant term is there; otherwise it is zero.
    constant: bool,
    points: Vec<CurvePoint>,
    digest: [u8; 32],
}

impl Commitment {
    pub(super) fn new(setup: &Setup, dealer: u16, points: Vec<CurvePoint>) -> Self {
        let mut hash = Sha256::new().chain_update(b"VENDUE-V1-DKG-COMMITMENT").chain_update(setup.digest());
        hash.update(dealer.to_be_bytes());
        points.iter().for_each(|p| hash.update(p.to_bytes()));
        Self { constant: !setup.is_refresh(), points, digest: hash.finalize().into() }
    }

    /// Reads the points of a dealer's commitment, 96 bytes each.
    pub(super) fn from_bytes(setup: &Setup, dealer: u16, bytes: &[u8]) -> Result<Self, DkgError> {
        let what = "commitment";
        let (points, rest) = bytes.as_chunks::<96>();
        if points.len() != setup.points() || !rest.is_empty() {
            return Err(DkgError::Length { what, found: bytes.len(), expected: setup.points() * 96 });
        }
        let read = |(index, bytes)| CurvePoint::from_bytes(bytes).ok_or(DkgError::Point { what, index });
        let points = points.iter().enumerate().map(read).collect::<Result<_, _>>()?;
        Ok(Self::new(setup, dealer, points))
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        self.points.iter().flat_map(|p| p.to_bytes()).collect()
    }

    /// What acknowledgements name.
    pub(super) fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// The points, each with what multiplies it where this polynomial's values at seats' points are added up with these
    /// weights; to be multiplied by the cofactor.
    pub(super) fn weighted(&self, seats: &[(u16, Weight)]) -> impl Iterator<Item = (Weight, CurvePoint)> {
        let at: Vec<_> = seats.iter().map(|(seat, weight)| (*weight, u64::from(*seat) + 1)).collect();
        let factors = power_sums(&at, u32::from(!self.constant), self.points.len());
        factors.into_iter().zip(self.points.iter().copied())
    }

    /// The polynomial's value at a seat's point, in the exponent; to be multiplied by the cofactor.
    pub(super) fn evaluate(&self, seat: u16) -> G1Sum {
        let x = u64::from(seat) + 1;
        let value = self.points.iter().rev().fold(G1Sum::identity(), |sum, c| sum.times(x).plus_affine(c));
        if self.constant { value } else { value.times(x) }
    }

    /// Adds the coefficients to sums of coefficients, which are to be multiplied by the cofactor.
    pub(super) fn add_to(&self, sums: &mut [G1Sum]) {
        let skipped = usize::from(!self.constant);
        for (sum, point) in sums.iter_mut().skip(skipped).zip(&self.points) {
            *sum = sum.plus_affine(point);
        }
    }
}
