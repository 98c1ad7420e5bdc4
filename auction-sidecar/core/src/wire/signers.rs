//! The set of seats that signed something, as a bitmap of exactly ceil(n/8) bytes.

use std::collections::BTreeSet;
use vendue_market::encode::{DecodeError, Reader, Writer};

/// Which seats of a market signed. Bits beyond the last seat are zero, so a set has one encoding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signers {
    n: u16,
    seats: BTreeSet<u16>,
}

impl Signers {
    /// Signers of a market of `n` seats; seats beyond are left out.
    pub fn new(n: u16, seats: impl IntoIterator<Item = u16>) -> Self {
        Self { n, seats: seats.into_iter().filter(|s| *s < n).collect() }
    }
    /// All seats of a market.
    pub fn all(n: u16) -> Self {
        Self::new(n, 0..n)
    }
    /// Seats in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.seats.iter().copied()
    }
    /// How many signed.
    pub fn len(&self) -> usize {
        self.seats.len()
    }
    /// Whether nobody signed.
    pub fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }
    /// The bitmap; bit 0 of byte 0 is seat 0.
    pub fn bitmap(&self) -> Vec<u8> {
        let mut bytes = vec![0u8; usize::from(self.n).div_ceil(8)];
        for seat in self.iter() {
            if let Some(byte) = bytes.get_mut(usize::from(seat / 8)) {
                *byte |= 1 << (seat % 8);
            }
        }
        bytes
    }
    /// The seats of a bitmap for a market of `n` seats.
    pub fn from_bitmap(bytes: &[u8], n: u16) -> Result<Self, DecodeError> {
        if bytes.len() != usize::from(n).div_ceil(8) {
            return Err(DecodeError::Invalid("length of the bitmap of signers"));
        }
        let seats: BTreeSet<u16> = bytes
            .iter()
            .enumerate()
            .flat_map(|(i, byte)| (0..8).filter(move |b| byte >> b & 1 == 1).map(move |b| i * 8 + b))
            .map(|seat| u16::try_from(seat).unwrap_or(u16::MAX))
            .collect();
        if seats.iter().any(|s| *s >= n) {
            return Err(DecodeError::Invalid("signer that is no seat in the bitmap of signers"));
        }
        Ok(Self { n, seats })
    }
    pub(crate) fn write(&self, w: &mut Writer) {
        w.raw(&self.bitmap());
    }
    pub(crate) fn read(r: &mut Reader<'_>, n: u16) -> Result<Self, DecodeError> {
        Self::from_bitmap(r.take(usize::from(n).div_ceil(8))?, n)
    }
}
