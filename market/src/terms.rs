//! What an order asks for beyond its requirements, and what a bid promises beyond its price.
//!
//! [`Terms`] are part of a signed order body, [`BidTerms`] of a sealed record. Both default to nothing; what is not
//! used takes no bytes, so that bodies and records without them keep the encoding that they always had. A set of
//! flags says which terms follow, and a term that follows is never its own default: one encoding per value.

use crate::encode::{DecodeError, Reader, Writer, hex_array};
use crate::requirements::{MAX_NAME, RequirementsError, at_most};
use serde::{Deserialize, Serialize};

/// Most regions that one order may accept.
pub const MAX_REGIONS: usize = 16;
/// Longest name of a region in bytes.
pub const MAX_REGION: usize = 63;

/// A ceiling that nobody can read before the order's round opens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SealedCeiling {
    /// Key encapsulation, compressed G1.
    #[serde(with = "hex_array")]
    pub u: [u8; 48],
    /// Masked seed.
    #[serde(with = "hex_array")]
    pub v: [u8; 32],
    /// The encrypted price: eight bytes and a tag.
    #[serde(with = "hex_array")]
    pub payload: [u8; 24],
}

/// What an order asks for beyond its requirements.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Terms {
    /// Accepted regions; empty accepts any.
    pub regions: Vec<String>,
    /// Least attestation level of the seat.
    pub min_attestation: u8,
    /// The run must not start before this time, in milliseconds since 1970; 0 for at once.
    pub start_ms: u64,
    /// The run must be over by this time, in milliseconds since 1970; 0 for whenever.
    pub end_ms: u64,
    /// Least standing of the seat.
    pub min_standing: u32,
    /// Whether the provider may interrupt the run.
    pub interruptible: bool,
    /// The one provider that may serve the order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pinned: Option<String>,
    /// The winner is paid the price of the next feasible bid instead of its own.
    pub second_price: bool,
    /// A ceiling beside the public one, sealed to the order's first round; such an order has no other round.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sealed_ceiling: Option<SealedCeiling>,
}

const REGIONS: u16 = 1 << 1;
const ATTESTATION: u16 = 1 << 2;
const START: u16 = 1 << 3;
const END: u16 = 1 << 4;
const STANDING: u16 = 1 << 5;
const INTERRUPTIBLE: u16 = 1 << 6;
const PINNED: u16 = 1 << 7;
const SECOND_PRICE: u16 = 1 << 8;
const SEALED: u16 = 1 << 9;

impl Terms {
    /// The flags of all terms; bit 0 belongs to the order's body.
    pub(crate) const FLAGS: u16 =
        REGIONS | ATTESTATION | START | END | STANDING | INTERRUPTIBLE | PINNED | SECOND_PRICE | SEALED;

    /// Whether nothing is asked for.
    pub fn is_none(&self) -> bool {
        self.flags() == 0
    }

    /// A flag for each term that is used.
    pub(crate) fn flags(&self) -> u16 {
        [
            (!self.regions.is_empty(), REGIONS),
            (self.min_attestation > 0, ATTESTATION),
            (self.start_ms > 0, START),
            (self.end_ms > 0, END),
            (self.min_standing > 0, STANDING),
            (self.interruptible, INTERRUPTIBLE),
            (self.pinned.is_some(), PINNED),
            (self.second_price, SECOND_PRICE),
            (self.sealed_ceiling.is_some(), SEALED),
        ]
        .into_iter()
        .fold(0, |flags, (used, flag)| if used { flags | flag } else { flags })
    }

    /// Checks every range that decoders, seats and homes rely on.
    pub fn validate(&self) -> Result<(), RequirementsError> {
        at_most("regions", self.regions.len(), MAX_REGIONS)?;
        let wrong = |field, value: &str, accepted: &str| {
            Err(RequirementsError { field, value: value.to_owned(), accepted: accepted.to_owned() })
        };
        if let Some(bad) = self.regions.iter().find(|r| !is_region(r)) {
            return wrong("regions", bad, "1 to 63 of a-z, 0-9 and '-'");
        }
        if self.end_ms > 0 && self.end_ms <= self.start_ms {
            return wrong("end_ms", &self.end_ms.to_string(), "a time after start_ms");
        }
        match &self.pinned {
            None => Ok(()),
            Some(name) if name.is_empty() => wrong("pinned", "empty", "a provider's name"),
            // Nobody else could set the price that is to be paid.
            Some(_) if self.second_price => wrong("second_price", "true", "false for a pinned order"),
            Some(name) => at_most("pinned", name.len(), MAX_NAME),
        }
    }

    /// Appends the terms that [`Terms::flags`] names.
    pub(crate) fn write(&self, w: &mut Writer) {
        if !self.regions.is_empty() {
            w.list(&self.regions, |w, region| {
                w.str(region);
            });
        }
        if self.min_attestation > 0 {
            w.u8(self.min_attestation);
        }
        for time in [self.start_ms, self.end_ms].into_iter().filter(|t| *t > 0) {
            w.u64(time);
        }
        if self.min_standing > 0 {
            w.u32(self.min_standing);
        }
        if let Some(name) = &self.pinned {
            w.str(name);
        }
        if let Some(sealed) = &self.sealed_ceiling {
            w.raw(&sealed.u).raw(&sealed.v).raw(&sealed.payload);
        }
    }

    /// Reads the terms that `flags` names.
    pub(crate) fn read(r: &mut Reader<'_>, flags: u16) -> Result<Self, DecodeError> {
        let has = |flag: u16| flags & flag != 0;
        let regions = |r: &mut Reader<'_>| r.list("regions", MAX_REGIONS, |r| r.str("region", MAX_REGION));
        let sealed = |r: &mut Reader<'_>| {
            Ok::<_, DecodeError>(SealedCeiling { u: r.array()?, v: r.array()?, payload: r.array()? })
        };
        let value = Self {
            regions: if has(REGIONS) { regions(r)? } else { vec![] },
            min_attestation: if has(ATTESTATION) { r.u8()? } else { 0 },
            start_ms: if has(START) { r.u64()? } else { 0 },
            end_ms: if has(END) { r.u64()? } else { 0 },
            min_standing: if has(STANDING) { r.u32()? } else { 0 },
            interruptible: has(INTERRUPTIBLE),
            pinned: if has(PINNED) { Some(r.str("pinned", MAX_NAME)?) } else { None },
            second_price: has(SECOND_PRICE),
            sealed_ceiling: if has(SEALED) { Some(sealed(r)?) } else { None },
        };
        value.validate().map_err(|e| DecodeError::Invalid(e.field))?;
        // A term that is its own default has no flag of its own, and its bytes would be a second encoding.
        if value.flags() != flags {
            return Err(DecodeError::Invalid("terms of the order"));
        }
        Ok(value)
    }
}

/// Whether a text names a region.
pub fn is_region(text: &str) -> bool {
    (1..=MAX_REGION).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// What a bid promises beyond its price.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BidTerms {
    /// The run can start from this time on, in milliseconds since 1970; 0 for at once.
    pub start_ms: u64,
    /// For how long the capacity is there from then on, in seconds; 0 for as long as the order asks.
    pub duration_s: u32,
    /// Whether the provider may interrupt the run.
    pub may_interrupt: bool,
}

impl BidTerms {
    /// Whether nothing is limited.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
    /// Appends the terms.
    pub fn write(&self, w: &mut Writer) {
        w.u64(self.start_ms).u32(self.duration_s).u8(u8::from(self.may_interrupt));
    }
    /// Reads terms that limit something; those that do not are left out of an encoding.
    pub fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (start_ms, duration_s) = (r.u64()?, r.u32()?);
        let may_interrupt = match r.u8()? {
            0 => false,
            1 => true,
            _ => return Err(DecodeError::Invalid("flags of a bid")),
        };
        let value = Self { start_ms, duration_s, may_interrupt };
        if value.is_none() { Err(DecodeError::Invalid("terms of a bid")) } else { Ok(value) }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn regions() -> impl Strategy<Value = Vec<String>> {
        prop::collection::vec("[a-z0-9-]{1,8}", 0..4)
    }

    prop_compose! {
        /// Any valid terms, most of them with several unused.
        pub(crate) fn any_terms()(
            regions in regions(),
            min_attestation in 0u8..3,
            start_ms in 0u64..3,
            length in 0u64..3,
            min_standing in 0u32..3,
            (interruptible, second_price) in any::<(bool, bool)>(),
            pinned in prop::option::of("[a-z]{1,5}"),
            sealed in prop::option::of(any::<u8>()),
        ) -> Terms {
            Terms {
                regions, min_attestation, start_ms, min_standing, interruptible,
                end_ms: if length > 0 { start_ms + length } else { 0 },
                second_price: second_price && pinned.is_none(),
                pinned,
                sealed_ceiling: sealed.map(|b| SealedCeiling { u: [b; 48], v: [b; 32], payload: [b; 24] }),
            }
        }
    }

    fn encoded(terms: &Terms) -> Vec<u8> {
        let mut w = Writer::new();
        terms.write(&mut w);
        w.finish()
    }

    fn decoded(bytes: &[u8], flags: u16) -> Result<Terms, DecodeError> {
        let mut r = Reader::new(bytes);
        let terms = Terms::read(&mut r, flags)?;
        r.end()?;
        Ok(terms)
    }

    #[test]
    fn refused_terms_are_named() {
        let field = |terms: Terms| terms.validate().unwrap_err().field;
        assert_eq!(field(Terms { regions: vec!["EU".into()], ..Terms::default() }), "regions");
        assert_eq!(field(Terms { regions: vec!["a".into(); 17], ..Terms::default() }), "regions");
        assert_eq!(field(Terms { start_ms: 5, end_ms: 5, ..Terms::default() }), "end_ms");
        assert_eq!(field(Terms { pinned: Some(String::new()), ..Terms::default() }), "pinned");
        let both = Terms { pinned: Some("a".into()), second_price: true, ..Terms::default() };
        assert_eq!(field(both), "second_price");
    }

    #[test]
    fn a_term_that_asks_for_nothing_is_left_out() {
        for (flags, bytes) in [
            (REGIONS, vec![0; 4]),
            (ATTESTATION, vec![0]),
            (START, vec![0; 8]),
            (END, vec![0; 8]),
            (STANDING, vec![0; 4]),
        ] {
            assert_eq!(decoded(&bytes, flags), Err(DecodeError::Invalid("terms of the order")), "{flags}");
        }
        let bid = |bytes: &[u8]| BidTerms::read(&mut Reader::new(bytes));
        assert_eq!(bid(&[0; 13]), Err(DecodeError::Invalid("terms of a bid")));
        assert_eq!(
            bid(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]),
            Err(DecodeError::Invalid("flags of a bid"))
        );
        assert_eq!(bid(&[0; 12]), Err(DecodeError::Short));
    }

    proptest! {
        #[test]
        fn terms_read_back_and_no_bytes_are_read_twice(
            terms in any_terms(),
            bytes in prop::collection::vec(0u8..4, 0..60),
            flags in any::<u16>(),
        ) {
            prop_assert_eq!(decoded(&encoded(&terms), terms.flags()), Ok(terms.clone()));
            if let Ok(read) = decoded(&bytes, flags & Terms::FLAGS) {
                prop_assert_eq!(encoded(&read), bytes);
            }
        }

        #[test]
        fn bid_terms_read_back(start_ms in 0u64..9, duration_s in 0u32..9, may_interrupt in any::<bool>()) {
            let terms = BidTerms { start_ms, duration_s, may_interrupt };
            let mut w = Writer::new();
            terms.write(&mut w);
            let read = BidTerms::read(&mut Reader::new(&w.finish()));
            prop_assert_eq!(read.ok(), (!terms.is_none()).then_some(terms));
        }
    }
}
