//! A set of seats as a bitmap.
//!
//! Bit `seat % 8` of byte `seat / 8`, the least significant bit first, in exactly `ceil(seats / 8)` bytes. Invariant:
//! a set has one encoding; a bit beyond the last seat is refused.

use crate::CryptoError;

/// Which seats of a market signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignerSet {
    seats: u16,
    bitmap: Vec<u8>,
}

impl SignerSet {
    /// The set of these seats, each named once, of a market of `seats` seats.
    pub fn from_seats(seats: u16, signers: impl IntoIterator<Item = u16>) -> Result<Self, CryptoError> {
        let mut set = Self { seats, bitmap: vec![0; usize::from(seats).div_ceil(8)] };
        for seat in signers {
            if seat >= seats {
                return Err(CryptoError::Signers("a seat is unknown"));
            }
            if set.contains(seat) {
                return Err(CryptoError::Signers("a seat is named twice"));
            }
            if let Some(byte) = set.bitmap.get_mut(usize::from(seat / 8)) {
                *byte |= 1 << (seat % 8);
            }
        }
        Ok(set)
    }

    /// The set that a bitmap encodes.
    pub fn from_bytes(seats: u16, bitmap: &[u8]) -> Result<Self, CryptoError> {
        if bitmap.len() != usize::from(seats).div_ceil(8) {
            return Err(CryptoError::Signers("bitmap is of another market's size"));
        }
        let set = Self { seats, bitmap: bitmap.to_vec() };
        let bits: u32 = bitmap.iter().map(|byte| byte.count_ones()).sum();
        if bits as usize != set.len() {
            return Err(CryptoError::Signers("a seat is unknown"));
        }
        Ok(set)
    }

    /// The bitmap.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bitmap
    }
    /// How many seats the market has.
    pub fn seats(&self) -> u16 {
        self.seats
    }
    /// Whether a seat is in the set.
    pub fn contains(&self, seat: u16) -> bool {
        let byte = self.bitmap.get(usize::from(seat / 8)).copied().unwrap_or_default();
        seat < self.seats && byte >> (seat % 8) & 1 == 1
    }
    /// The seats in the set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        (0..self.seats).filter(|seat| self.contains(*seat))
    }
    /// The seats that are not in the set, ascending.
    pub fn missing(&self) -> impl Iterator<Item = u16> + '_ {
        (0..self.seats).filter(|seat| !self.contains(*seat))
    }
    /// How many seats are in the set.
    pub fn len(&self) -> usize {
        self.iter().count()
    }
    /// Whether nobody signed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
