//! What a certified bid says about devices, and whether a fingerprint is the one that it is bound to. Pure.
//!
//! Inputs: an Award's spec, which follows from the certificate, and a fingerprint as somebody tells it. Output: whether the
//! one opens the other. Invariant: a fingerprint has one text, 64 lower-case hexadecimal digits; any other is none.

use vendue_market::encode::from_hex;
use vendue_market::{Digest, commit_devices};

use crate::AwardSpec;

/// Most changes of devices that an Award lists.
pub const MAX_FINGERPRINT_CHANGES: usize = 16;

/// The bytes of a fingerprint; `None` for text that is none.
pub fn parse_fingerprint(text: &str) -> Option<Digest> {
    from_hex(text)?.try_into().ok()
}

/// How devices relate to a certified bid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsBid {
    /// They are those that the bid is bound to.
    Same,
    /// They are others.
    Other,
    /// The bid is bound to none.
    Unbound,
}

/// What a certified bid is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BoundDevices {
    /// The market.
    pub market: Digest,
    /// The round.
    pub round: u64,
    /// The seat that bid.
    pub seat: u16,
    /// What the bid says; none when it says nothing.
    pub commitment: Option<Digest>,
}

impl BoundDevices {
    /// What an Award's certificate says; `None` when the Award is not well formed.
    pub fn of(award: &AwardSpec) -> Option<Self> {
        let commitment = match &award.devices_commitment {
            Some(text) => Some(parse_fingerprint(text)?),
            None => None,
        };
        // An award that binds no devices needs no more than that.
        let market = from_hex(&award.market_id).and_then(|id| Digest::try_from(id).ok());
        Some(Self {
            market: if commitment.is_some() { market? } else { market.unwrap_or_default() },
            round: u64::try_from(award.round).ok()?,
            seat: u16::try_from(award.seat).ok()?,
            commitment,
        })
    }

    /// Whether these devices are the ones.
    pub fn check(&self, fingerprint: &str) -> AsBid {
        let Some(commitment) = self.commitment else { return AsBid::Unbound };
        let opens =
            |fingerprint| commit_devices(&self.market, self.round, self.seat, &fingerprint) == commitment;
        if parse_fingerprint(fingerprint).is_some_and(opens) { AsBid::Same } else { AsBid::Other }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_fingerprint_that_was_bid_opens() {
        let fingerprint = "ab".repeat(32);
        let commitment = commit_devices(&[1; 32], 7, 2, &[0xab; 32]);
        let bound = BoundDevices { market: [1; 32], round: 7, seat: 2, commitment: Some(commitment) };
        assert_eq!(bound.check(&fingerprint), AsBid::Same);
        for other in ["ac".repeat(32), fingerprint.to_uppercase(), "ab".repeat(31), String::new()] {
            assert_eq!(bound.check(&other), AsBid::Other, "{other:?}");
        }
        for other in [
            BoundDevices { round: 8, ..bound },
            BoundDevices { seat: 3, ..bound },
            BoundDevices { market: [2; 32], ..bound },
        ] {
            assert_eq!(other.check(&fingerprint), AsBid::Other);
        }
        assert_eq!(BoundDevices { commitment: None, ..bound }.check(&fingerprint), AsBid::Unbound);
    }

    #[test]
    fn an_award_says_what_it_is_bound_to() {
        let spec = |market: &str, commitment: Option<&str>| -> AwardSpec {
            let mut spec: AwardSpec = serde_json::from_value(serde_json::json!({
                "side": "Host", "id": "", "marketId": market, "round": 7, "orderDigest": "", "provider": "alpha",
                "seat": 2, "job": { "home": "home", "uid": "u", "attempt": 1 }, "price": "1",
                "expiresAt": "1970-01-01T00:00:20Z",
                "requirements": { "workers": 1, "gpusPerWorker": 1, "cpuMillisPerWorker": 1,
                    "memoryMibPerWorker": 1, "runDeadlineSeconds": 60, "image": "i" },
            }))
            .unwrap();
            spec.devices_commitment = commitment.map(str::to_owned);
            spec
        };
        let market = "01".repeat(32);
        let commitment = "02".repeat(32);
        let bound = BoundDevices::of(&spec(&market, Some(&commitment))).unwrap();
        assert_eq!(bound, BoundDevices { market: [1; 32], round: 7, seat: 2, commitment: Some([2; 32]) });
        assert_eq!(BoundDevices::of(&spec("", None)).unwrap().commitment, None);
        assert_eq!(BoundDevices::of(&spec("", Some(&commitment))), None);
        assert_eq!(BoundDevices::of(&spec(&market, Some("02"))), None, "what cannot be read is not nothing");
    }
}
