//! What is inside a sealed bundle: capacity by offer and one record for each order in the order view.
//!
//! The plaintext is padded to powers of two, so that its length tells little about how many bids there are.

use vendue_market::encode::{Canonical, DecodeError, Reader, Writer};
use vendue_market::{Digest, MAX_OFFERS, OfferCapacity, Price, Reason, Record, RecordKind};

const VERSION: u8 = 1;
const SMALLEST: usize = 256;
/// What sealing adds to a plaintext.
pub(crate) const SEALING: usize = 16;

/// An opened bundle's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plaintext {
    /// Capacity by offer.
    pub capacity: Vec<OfferCapacity>,
    /// A record for each order of the order view, in its order.
    pub records: Vec<RecordKind>,
}

impl Plaintext {
    /// Whether a bundle with this plaintext is one that others accept.
    pub(crate) fn fits(&self) -> bool {
        self.to_padded().len() + SEALING <= crate::wire::MAX_PAYLOAD
    }

    /// Encodes and pads.
    pub fn to_padded(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.u8(VERSION).list(&self.capacity, |w, c| c.write(w)).list(&self.records, |w, r| match r {
            RecordKind::Bid { price, spec } => {
                w.u8(1);
                price.write(w);
                w.u16(*spec);
            }
            RecordKind::NoBid(reason) => {
                w.u8(0).u8(reason.code());
            }
        });
        let body = w.finish();
        let mut out = Writer::new();
        out.bytes(&body);
        let mut bytes = out.finish();
        bytes.resize(bytes.len().next_power_of_two().max(SMALLEST), 0);
        bytes
    }

    /// Decodes a padded plaintext that belongs to an order view of `orders` orders.
    pub fn from_padded(bytes: &[u8], orders: usize) -> Result<Self, DecodeError> {
        let mut outer = Reader::new(bytes);
        let body = outer.bytes("plaintext", bytes.len())?;
        if outer.rest().iter().any(|b| *b != 0)
            || bytes.len() != (body.len() + 4).next_power_of_two().max(SMALLEST)
        {
            return Err(DecodeError::Invalid("padding"));
        }
        let mut r = Reader::new(body);
        if r.u8()? != VERSION {
            return Err(DecodeError::Invalid("plaintext version"));
        }
        let capacity = r.list("offers", MAX_OFFERS, OfferCapacity::read)?;
        let offers = capacity.len();
        let records = r.list("records", orders, |r| match r.u8()? {
            0 => Reason::from_code(r.u8()?).map(RecordKind::NoBid).ok_or(DecodeError::Invalid("reason")),
            1 => {
                let (price, spec) = (Price::read(r)?, r.u16()?);
                if usize::from(spec) >= offers {
                    return Err(DecodeError::Invalid("offer of a bid"));
                }
                Ok(RecordKind::Bid { price, spec })
            }
            _ => Err(DecodeError::Invalid("record")),
        })?;
        r.end()?;
        if records.len() != orders {
            return Err(DecodeError::Invalid("number of records"));
        }
        Ok(Self { capacity, records })
    }

    /// The records with the orders that they are about.
    pub(crate) fn records_for(&self, order_view: &[Digest]) -> Vec<Record> {
        order_view
            .iter()
            .zip(&self.records)
            .map(|(order, kind)| Record { order: *order, kind: *kind })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padded_round_trip_and_one_encoding() {
        let plain = Plaintext {
            capacity: vec![OfferCapacity::default()],
            records: vec![
                RecordKind::Bid { price: Price::from_micros(5).unwrap(), spec: 0 },
                RecordKind::NoBid(Reason::Model),
            ],
        };
        let bytes = plain.to_padded();
        assert_eq!(bytes.len(), 256);
        assert_eq!(Plaintext::from_padded(&bytes, 2).unwrap(), plain);
        assert!(Plaintext::from_padded(&bytes, 1).is_err());
        assert!(Plaintext::from_padded(&bytes, 3).is_err());
        let mut dirty = bytes.clone();
        dirty[255] = 1;
        assert_eq!(Plaintext::from_padded(&dirty, 2), Err(DecodeError::Invalid("padding")));
        let mut longer = bytes;
        longer.resize(512, 0);
        assert_eq!(Plaintext::from_padded(&longer, 2), Err(DecodeError::Invalid("padding")));
    }
}
