//! An order: what the user's cluster signs and sends to the seats.
//!
//! It holds what a seat needs to bid, and only a salted commitment to the workload itself.

use crate::encode::{Canonical, DecodeError, Reader, Writer};
use crate::{Digest, Requirements, Terms, tagged_hash};
use serde::{Deserialize, Serialize};

/// Version of a body without terms that names no round.
const VERSION: u8 = 1;
/// Version of a body without terms that names the round it comes after; each body has one version, and one encoding.
const VERSION_AGAIN: u8 = 2;
/// Version of a body with terms: flags say which of its parts follow.
const VERSION_TERMS: u8 = 3;
/// Flag of a body with terms that names the round it comes after.
const AGAIN: u16 = 1;
/// Longest UID of a job, in bytes.
pub const MAX_JOB: usize = 64;

/// The certified round that gave an order to nobody, so that a new body of it may be listed at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unserved {
    /// Digest of the body that was listed in that round.
    #[serde(with = "crate::encode::hex_array")]
    pub order: Digest,
    /// The round.
    pub round: u64,
    /// Root of its awards.
    #[serde(with = "crate::encode::hex_array")]
    pub root: Digest,
}

/// The body of an order. Its canonical bytes are what the user's key signs; its [`Order::digest`] names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The market it is for.
    #[serde(with = "crate::encode::hex_array")]
    pub market: Digest,
    /// The job's UID.
    pub job: String,
    /// Counts the orders of one job.
    pub attempt: u32,
    /// What is needed.
    pub requirements: Requirements,
    /// [`commitment`] to the workload.
    #[serde(with = "crate::encode::hex_array")]
    pub commitment: Digest,
    /// The first round that may list the order.
    pub first_round: u64,
    /// No round may list the order from this time on, in milliseconds since 1970.
    pub expires_ms: u64,
    /// The user's public key, secp256k1, compressed.
    #[serde(with = "crate::encode::hex_array")]
    pub user_key: [u8; 33],
    /// The round after which this body lists the order again; `None` for the first body of a search.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Unserved>,
    /// What is asked for beyond the requirements.
    #[serde(default, skip_serializing_if = "Terms::is_none")]
    pub terms: Box<Terms>,
}

impl Order {
    /// The digest that names the order everywhere.
    pub fn digest(&self) -> Digest {
        tagged_hash("VENDUE-V1-ORDER", &[&self.to_bytes()])
    }

    /// Whether `round` is one of the order's rounds: the first, and then every `step` rounds. A sealed ceiling opens in
    /// the first round only, so it is the only one of such an order.
    pub fn may_be_listed_in(&self, round: u64, step: u64) -> bool {
        round == self.first_round
            || (self.terms.sealed_ceiling.is_none()
                && round > self.first_round
                && (round - self.first_round).is_multiple_of(step.max(1)))
    }

    /// The first of the order's rounds that is not before `round`; the end of time when there is none.
    pub fn next_round(&self, round: u64, step: u64) -> u64 {
        let step = step.max(1);
        let behind = round.saturating_sub(self.first_round);
        if behind > 0 && self.terms.sealed_ceiling.is_some() {
            return u64::MAX;
        }
        self.first_round.saturating_add(behind.div_ceil(step).saturating_mul(step))
    }
}

/// The salted commitment to a workload's canonical bytes. The salt keeps guessable secrets hidden.
pub fn commitment(salt: &[u8; 32], workload: &[u8]) -> Digest {
    tagged_hash("VENDUE-V1-WORKLOAD", &[salt, workload])
}

impl Canonical for Order {
    fn write(&self, w: &mut Writer) {
        match (self.terms.is_none(), &self.after) {
            (true, None) => w.u8(VERSION),
            (true, Some(_)) => w.u8(VERSION_AGAIN),
            (false, after) => w.u8(VERSION_TERMS).u16(self.terms.flags() | u16::from(after.is_some())),
        };
        w.raw(&self.market).str(&self.job).u32(self.attempt);
        self.requirements.write(w);
        w.raw(&self.commitment).u64(self.first_round).u64(self.expires_ms).raw(&self.user_key);
        if let Some(after) = &self.after {
            w.raw(&after.order).u64(after.round).raw(&after.root);
        }
        self.terms.write(w);
    }
    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let flags = match r.u8()? {
            VERSION => 0,
            VERSION_AGAIN => AGAIN,
            VERSION_TERMS => match r.u16()? {
                // Without terms, an older version is the encoding.
                flags if flags & !AGAIN == 0 || flags & !(AGAIN | Terms::FLAGS) != 0 => {
                    return Err(DecodeError::Invalid("order flags"));
                }
                flags => flags,
            },
            _ => return Err(DecodeError::Invalid("order version")),
        };
        let after = |r: &mut Reader<'_>| {
            Ok::<_, DecodeError>(Unserved { order: r.array()?, round: r.u64()?, root: r.array()? })
        };
        Ok(Self {
            market: r.array()?,
            job: r.str("job", MAX_JOB)?,
            attempt: r.u32()?,
            requirements: Requirements::read(r)?,
            commitment: r.array()?,
            first_round: r.u64()?,
            expires_ms: r.u64()?,
            user_key: r.array()?,
            after: if flags & AGAIN != 0 { Some(after(r)?) } else { None },
            terms: Box::new(Terms::read(r, flags & !AGAIN)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SealedCeiling;
    use crate::requirements::tests::mk_requirements;
    use crate::terms::tests::any_terms;
    use proptest::prelude::*;

    fn mk_order() -> Order {
        Order {
            market: [1; 32],
            job: "7d3c".into(),
            attempt: 1,
            requirements: mk_requirements(2, 1),
            commitment: commitment(&[3; 32], b"workload"),
            first_round: 10,
            expires_ms: 99,
            user_key: [2; 33],
            after: None,
            terms: Box::default(),
        }
    }

    #[test]
    fn digest_covers_every_byte() {
        let order = mk_order();
        assert_eq!(Order::from_bytes(&order.to_bytes()).unwrap(), order);
        let mut other = order.clone();
        other.attempt = 2;
        assert_ne!(order.digest(), other.digest());
        let json = serde_json::to_string(&order).unwrap();
        assert_eq!(serde_json::from_str::<Order>(&json).unwrap(), order);
    }

    #[test]
    fn a_body_that_names_a_round_has_a_form_of_its_own() {
        let first = mk_order();
        let after = Some(Unserved { order: first.digest(), round: 10, root: [4; 32] });
        let again = Order { first_round: 12, after, ..first.clone() };
        let bytes = again.to_bytes();
        assert_eq!((bytes[0], bytes.len()), (2, first.to_bytes().len() + 72));
        assert_eq!(Order::from_bytes(&bytes).unwrap(), again);
        assert!(Order::from_bytes(&bytes[..bytes.len() - 72]).is_err());
        let mut other = bytes.clone();
        other[0] = 1;
        assert!(Order::from_bytes(&other).is_err());
        other[0] = 4;
        assert!(Order::from_bytes(&other).is_err());
        let json = serde_json::to_string(&again).unwrap();
        assert_eq!(serde_json::from_str::<Order>(&json).unwrap(), again);
        assert!(
            !serde_json::to_string(&first).unwrap().contains("after"),
            "the form of a first body is unchanged"
        );
    }

    #[test]
    fn bodies_without_terms_keep_their_bytes() {
        let first = mk_order();
        let bytes = first.to_bytes();
        let hash = |bytes: &[u8]| crate::encode::to_hex(&tagged_hash("BODY", &[bytes]));
        assert_eq!((bytes[0], bytes.len()), (1, 218));
        assert_eq!(hash(&bytes), "48cb0036191afa3dce0430eb2174ca28435ce601006159f693511a2f1d888ba4");
        let after = Some(Unserved { order: [5; 32], round: 10, root: [4; 32] });
        let again = Order { after, ..first }.to_bytes();
        assert_eq!((again[0], again.len()), (2, 290));
        assert_eq!(hash(&again), "6ff6a47556e17c24170dfe4fa834371d5534ebb5dde1f3ff149ead40c0a3b6e6");
    }

    #[test]
    fn a_body_with_terms_has_one_form() {
        let terms = Terms { second_price: true, ..Terms::default() };
        let order = Order { terms: terms.into(), ..mk_order() };
        let bytes = order.to_bytes();
        assert_eq!((bytes.len(), &bytes[..3]), (mk_order().to_bytes().len() + 2, [3, 1, 0].as_slice()));
        assert_eq!(Order::from_bytes(&bytes).unwrap(), order);
        for flags in [[0, 0], [0, 1], [0x80, 0], [0x05, 0]] {
            let mut other = bytes.clone();
            other[1..3].copy_from_slice(&flags);
            assert_eq!(Order::from_bytes(&other), Err(DecodeError::Invalid("order flags")), "{flags:?}");
        }
    }

    #[test]
    fn a_sealed_ceiling_has_one_round() {
        let sealed = SealedCeiling { u: [0; 48], v: [0; 32], payload: [0; 24] };
        let mut order = mk_order();
        order.terms.sealed_ceiling = Some(sealed);
        assert_eq!((0..40).filter(|r| order.may_be_listed_in(*r, 14)).collect::<Vec<_>>(), [10]);
        assert_eq!([0, 10, 11, 24].map(|from| order.next_round(from, 14)), [10, 10, u64::MAX, u64::MAX]);
    }

    proptest! {
        #[test]
        fn any_order_reads_back(terms in any_terms(), again in any::<bool>()) {
            let after = again.then_some(Unserved { order: [9; 32], round: 8, root: [7; 32] });
            let order = Order { terms: terms.into(), after, ..mk_order() };
            let bytes = order.to_bytes();
            prop_assert_eq!(Order::from_bytes(&bytes).unwrap(), order.clone());
            let json = serde_json::to_string(&order).unwrap();
            prop_assert_eq!(serde_json::from_str::<Order>(&json).unwrap(), order);
        }

        #[test]
        fn changed_bytes_are_another_order_or_none(
            terms in any_terms(), at in any::<prop::sample::Index>(), bit in 0u8..8, cut in any::<bool>(),
        ) {
            let order = Order { terms: terms.into(), ..mk_order() };
            let mut bytes = order.to_bytes();
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
            if let Ok(read) = Order::from_bytes(&bytes) {
                prop_assert_ne!(&read, &order);
                prop_assert_eq!(read.to_bytes(), bytes);
            }
        }
    }

    #[test]
    fn commitment_is_over_tag_salt_and_workload() {
        // SHA-256 over each part's length (8 bytes, big-endian) and the part.
        let got = crate::encode::to_hex(&commitment(&[3; 32], b"workload"));
        assert_eq!(got, "eb85abaf9f0c6873157f3857abea04d1df9b6ece9f767604a3f3898d02eb16f6");
        assert_ne!(commitment(&[4; 32], b"workload"), commitment(&[3; 32], b"workload"));
        assert_ne!(commitment(&[3; 32], b"workloads"), commitment(&[3; 32], b"workload"));
    }

    #[test]
    fn schedule() {
        let order = mk_order();
        let listed: Vec<u64> = (0..40).filter(|r| order.may_be_listed_in(*r, 14)).collect();
        assert_eq!(listed, [10, 24, 38]);
        for (from, want) in [(0, 10), (10, 10), (11, 24), (24, 24), (25, 38)] {
            assert_eq!(order.next_round(from, 14), want);
        }
    }
}
