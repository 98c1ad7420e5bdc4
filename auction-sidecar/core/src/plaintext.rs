//! What is inside a sealed bundle: capacity by offer and one record for each order in the order view.
//!
//! The plaintext is padded to powers of two, so that its length tells little about how many bids there are. A bid with
//! terms is a record of its own kind; one without keeps the form that it always had.

use vendue_market::encode::{Canonical, DecodeError, Reader, Writer};
use vendue_market::{BidTerms, ClearingRules, MAX_OFFERS, OfferCapacity, Price, Reason, RecordKind};

const VERSION: u8 = 1;
const SMALLEST: usize = 256;
/// Kinds of records.
const NO_BID: u8 = 0;
const BID: u8 = 1;
const BID_WITH_TERMS: u8 = 2;
/// What sealing adds to a plaintext.
pub(crate) const SEALING: usize = 16;

/// Appends one record.
pub(crate) fn write_record(w: &mut Writer, record: &RecordKind) {
    match record {
        RecordKind::Bid { price, spec, terms } => {
            w.u8(if terms.is_none() { BID } else { BID_WITH_TERMS });
            price.write(w);
            w.u16(*spec);
            if !terms.is_none() {
                terms.write(w);
            }
        }
        RecordKind::NoBid(reason) => {
            w.u8(NO_BID).u8(reason.code());
        }
    }
}

/// Reads one record.
pub(crate) fn read_record(r: &mut Reader<'_>) -> Result<RecordKind, DecodeError> {
    match r.u8()? {
        NO_BID => Reason::from_code(r.u8()?).map(RecordKind::NoBid).ok_or(DecodeError::Invalid("reason")),
        kind @ (BID | BID_WITH_TERMS) => {
            let (price, spec) = (Price::read(r)?, r.u16()?);
            let terms = if kind == BID { BidTerms::default() } else { BidTerms::read(r)? };
            Ok(RecordKind::Bid { price, spec, terms })
        }
        _ => Err(DecodeError::Invalid("record")),
    }
}

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
        w.u8(VERSION).list(&self.capacity, |w, c| c.write(w)).list(&self.records, write_record);
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
        if r.count("records", orders)? != orders {
            return Err(DecodeError::Invalid("number of records"));
        }
        // As many as there can be: a record has two bytes at least.
        let mut records = Vec::with_capacity(orders.min(r.rest().len() / 2));
        for _ in 0..orders {
            match read_record(&mut r)? {
                RecordKind::Bid { spec, .. } if usize::from(spec) >= offers => {
                    return Err(DecodeError::Invalid("offer of a bid"));
                }
                record => records.push(record),
            }
        }
        r.end()?;
        Ok(Self { capacity, records })
    }

    /// Whether a market's rules know everything that is said here.
    pub(crate) fn is_known_to(&self, rules: &ClearingRules) -> bool {
        let records = self.records.iter().all(|record| match record {
            RecordKind::Bid { terms, .. } => rules.know_bid(terms),
            RecordKind::NoBid(_) => true,
        });
        records && (rules.know_devices() || self.capacity.iter().all(|offer| offer.devices.is_none()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mk_bid(price: i64, terms: BidTerms) -> RecordKind {
        RecordKind::Bid { price: Price::from_micros(price).unwrap(), spec: 0, terms }
    }

    #[test]
    fn padded_round_trip_and_one_encoding() {
        let plain = Plaintext {
            capacity: vec![OfferCapacity::default()],
            records: vec![mk_bid(5, BidTerms::default()), RecordKind::NoBid(Reason::Model)],
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

    #[test]
    fn records_without_terms_keep_their_bytes() {
        let records = |kind| {
            let bytes =
                Plaintext { capacity: vec![OfferCapacity::default()], records: vec![kind] }.to_padded();
            // After the lengths of the body and of the offers, the one empty offer, and the number of records.
            (bytes[3], bytes[17..36].to_vec())
        };
        let plain = (24, vec![1, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(records(mk_bid(5, BidTerms::default())), plain);
        let terms = BidTerms { start_ms: 0, duration_s: 7, may_interrupt: true };
        let (length, bytes) = records(mk_bid(5, terms));
        assert_eq!((length, bytes[0]), (37, 2));
    }

    proptest! {
        #[test]
        fn any_records_read_back(
            records in prop::collection::vec((1i64..9, 0u64..3, 0u32..3, any::<bool>(), 0u8..40), 0..9),
            at in any::<prop::sample::Index>(), byte in 0u8..4,
        ) {
            let record = |(price, start_ms, duration_s, may_interrupt, code)| match Reason::from_code(code) {
                Some(reason) => RecordKind::NoBid(reason),
                None => mk_bid(price, BidTerms { start_ms, duration_s, may_interrupt }),
            };
            let records: Vec<RecordKind> = records.into_iter().map(record).collect();
            let plain = Plaintext { capacity: vec![OfferCapacity::default()], records };
            let mut bytes = plain.to_padded();
            let orders = plain.records.len();
            prop_assert_eq!(Plaintext::from_padded(&bytes, orders), Ok(plain));
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(read) = Plaintext::from_padded(&bytes, orders) {
                prop_assert_eq!(read.to_padded(), bytes);
            }
        }
    }

    #[test]
    fn the_first_rules_know_no_terms_of_bids() {
        let plain = |terms| Plaintext { capacity: vec![], records: vec![mk_bid(5, terms)] };
        let terms = BidTerms { duration_s: 1, ..BidTerms::default() };
        let (first, latest) = (ClearingRules::default(), ClearingRules::latest());
        assert!(plain(BidTerms::default()).is_known_to(&first) && plain(terms).is_known_to(&latest));
        assert!(!plain(terms).is_known_to(&first));
    }

    #[test]
    fn devices_of_a_full_bundle_fit_into_its_padding() {
        let node = vendue_market::NodeCapacity {
            model: "H100".parse().unwrap(),
            gpu_memory_mib: 1,
            free_gpus: 1,
            cpu_millis: 1,
            memory_mib: 1,
            disk_mib: 1,
        };
        let sealed = |devices, orders| {
            let offer = OfferCapacity { nodes: vec![node.clone()], devices };
            let records = vec![mk_bid(5, BidTerms::default()); orders];
            Plaintext { capacity: vec![offer; MAX_OFFERS], records }.to_padded().len()
        };
        assert_eq!((sealed(None, 1000), sealed(Some([1; 32]), 1000)), (16_384, 16_384));
        assert!(sealed(Some([1; 32]), crate::wire::MAX_ORDERS) + SEALING <= crate::wire::MAX_PAYLOAD);
    }

    #[test]
    fn devices_are_known_since_the_third_rules() {
        let plain = |devices| {
            let bound = OfferCapacity { devices, ..OfferCapacity::default() };
            Plaintext { capacity: vec![OfferCapacity::default(), bound], records: vec![] }
        };
        let second = ClearingRules { version: 2, ..ClearingRules::default() };
        assert!(plain(None).is_known_to(&second) && !plain(Some([1; 32])).is_known_to(&second));
        let bound = plain(Some([1; 32]));
        assert!(bound.is_known_to(&ClearingRules::latest()));
        assert_eq!(Plaintext::from_padded(&bound.to_padded(), 0), Ok(bound));
    }
}
