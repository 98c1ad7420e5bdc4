//! What everybody knows of a shared key: the public polynomial, the seal key and each seat's verification key.
//!
//! Invariant: none of the keys is the identity; the keys are the values at 0, 1, 2, ... of the polynomial.

use super::DkgError;
use super::setup::{MOST_SEATS, quorum};
use crate::SealShare;
use crate::raw::{CurvePoint, G1, G1Sum, to_points};
use sha2::{Digest, Sha256};

/// The public side of a shared key.
#[derive(Clone)]
pub struct KeySet {
    coefficients: Vec<G1>,
    seal_key: [u8; 48],
    share_keys: Vec<[u8; 48]>,
}

impl PartialEq for KeySet {
    fn eq(&self, other: &Self) -> bool {
        self.to_bytes() == other.to_bytes()
    }
}

impl Eq for KeySet {}

impl std::fmt::Debug for KeySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeySet").field("seats", &self.seats()).finish_non_exhaustive()
    }
}

impl KeySet {
    /// From the coefficients' sums, for `seats` seats.
    pub(super) fn from_sums(sums: &[G1Sum], seats: u16) -> Result<Self, DkgError> {
        Self::new(to_points(sums).ok_or(DkgError::Identity("a coefficient of the key"))?, seats)
    }

    fn new(coefficients: Vec<G1>, seats: u16) -> Result<Self, DkgError> {
        let seal_key = coefficients.first().ok_or(DkgError::Seats(usize::from(seats)))?.to_bytes();
        let keys = to_points(&values(&coefficients, seats));
        let keys = keys.ok_or(DkgError::Identity("the key of a share"))?;
        let share_keys = keys.into_iter().map(G1::to_bytes).collect();
        Ok(Self { coefficients, seal_key, share_keys })
    }

    /// Reads the bytes of a key set.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DkgError> {
        let what = "key set";
        let (seats, points) = bytes.split_first_chunk::<2>().ok_or(DkgError::Length {
            what,
            found: bytes.len(),
            expected: 2,
        })?;
        let seats = u16::from_be_bytes(*seats);
        if usize::from(seats) > MOST_SEATS {
            return Err(DkgError::Seats(usize::from(seats)));
        }
        Self::new(read_points(what, usize::from(quorum(seats)), points)?, seats)
    }

    /// Number of seats (16 bits, big-endian), then the polynomial's points, constant term first.
    pub fn to_bytes(&self) -> Vec<u8> {
        let points = self.coefficients.iter().flat_map(|p| p.to_bytes());
        self.seats().to_be_bytes().into_iter().chain(points).collect()
    }

    /// Names the key set.
    pub fn digest(&self) -> [u8; 32] {
        Sha256::new().chain_update(b"VENDUE-V1-DKG-KEYS").chain_update(self.to_bytes()).finalize().into()
    }

    /// The seal key, compressed G1.
    pub fn seal_key(&self) -> &[u8; 48] {
        &self.seal_key
    }
    /// Each seat's verification key.
    pub fn share_keys(&self) -> &[[u8; 48]] {
        &self.share_keys
    }
    /// A seat's verification key.
    pub fn share_key(&self, seat: u16) -> Option<&[u8; 48]> {
        self.share_keys.get(usize::from(seat))
    }
    /// How many seats there are.
    pub fn seats(&self) -> u16 {
        self.share_keys.len() as u16
    }
    /// How many shares make the key.
    pub fn quorum(&self) -> u16 {
        self.coefficients.len() as u16
    }
    /// Whether a share is the seat's.
    pub fn fits(&self, seat: u16, share: &SealShare) -> bool {
        share.verification_key().is_ok_and(|key| Some(&key) == self.share_key(seat))
    }

    /// Adds the coefficients to sums of coefficients.
    pub(super) fn add_to(&self, sums: &mut [G1Sum]) {
        for (sum, point) in sums.iter_mut().zip(&self.coefficients) {
            *sum = sum.plus(&point.to_sum());
        }
    }
}

/// The values at 1, 2, ... `count` of the polynomial with these coefficients, in the exponent. As many as there are
/// coefficients by Horner's rule; they fix the polynomial, and its differences give the others by additions alone.
fn values(coefficients: &[G1], count: u16) -> Vec<G1Sum> {
    let points: Vec<CurvePoint> = coefficients.iter().map(|c| CurvePoint::from(*c)).collect();
    let horner = |x| points.iter().rev().fold(G1Sum::identity(), |sum, c| sum.times(x).plus_affine(c));
    let mut values: Vec<G1Sum> = (1..=u64::from(count)).take(coefficients.len()).map(horner).collect();
    // The backward differences at the last value, of rising order.
    let (mut row, mut differences) = (values.clone(), Vec::with_capacity(values.len()));
    while let Some(last) = row.last() {
        differences.push(*last);
        row = row.iter().zip(row.iter().skip(1)).map(|(a, b)| b.minus(a)).collect();
    }
    while values.len() < usize::from(count) {
        let mut above = G1Sum::identity();
        for difference in differences.iter_mut().rev() {
            *difference = difference.plus(&above);
            above = *difference;
        }
        values.push(above);
    }
    values
}

/// Reads exactly `count` points.
pub(super) fn read_points(what: &'static str, count: usize, bytes: &[u8]) -> Result<Vec<G1>, DkgError> {
    let (points, rest) = bytes.as_chunks::<48>();
    if points.len() != count || !rest.is_empty() {
        return Err(DkgError::Length { what, found: bytes.len(), expected: count * 48 });
    }
    let read = |(index, bytes)| G1::from_bytes(bytes).ok_or(DkgError::Point { what, index });
    points.iter().enumerate().map(read).collect()
}
