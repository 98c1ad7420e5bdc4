//! Which devices an award has: preferred are those that its bid is bound to, and what becomes of them is written down.
//!
//! Inputs: the Award, what the agent of a node says. Outputs: whether a node's devices are those of the bid; the evidence
//! in the Award's status.
//! Invariants: what was written is never taken back; a fingerprint that is not known is no change.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use vendue_crds::{AsBid, Award, AwardStatus, BoundDevices, FingerprintChange, MAX_FINGERPRINT_CHANGES};

/// Whether these devices are the ones that the bid is bound to.
pub fn as_bid(award: &Award, fingerprint: Option<&str>) -> AsBid {
    match (BoundDevices::of(&award.spec), fingerprint) {
        (Some(bound), Some(fingerprint)) => bound.check(fingerprint),
        (Some(BoundDevices { commitment: None, .. }), None) => AsBid::Unbound,
        _ => AsBid::Other,
    }
}

/// Notes what the devices of the award's node are now; says what changed since they were held, when that is news.
pub fn note(status: &mut AwardStatus, fingerprint: Option<&str>, now: Timestamp) -> Option<String> {
    let seen = fingerprint.filter(|_| !status.devices.is_empty())?;
    let Some(held) = &status.fingerprint else {
        status.fingerprint = Some(seen.to_owned());
        return None;
    };
    let last = status.fingerprint_changes.last().map_or(held, |change| &change.fingerprint);
    if last == seen || status.fingerprint_changes.len() >= MAX_FINGERPRINT_CHANGES {
        return None;
    }
    status.fingerprint_changes.push(FingerprintChange { at: Time(now), fingerprint: seen.to_owned() });
    // Home reads this, and has no business with names of nodes.
    let changes: Vec<String> =
        status.fingerprint_changes.iter().map(|c| format!("{} since {}", c.fingerprint, c.at.0)).collect();
    Some(format!("the devices were {held} when they were held; {}", changes.join("; ")))
}

#[cfg(test)]
mod tests {
    use vendue_market::commit_devices;

    use super::*;
    use crate::fixtures::{at, mk_award, mk_devices};

    #[test]
    fn every_change_is_kept_and_told_once() {
        let mut status = AwardStatus { devices: mk_devices(), ..AwardStatus::default() };
        let mut told = |seen: Option<&str>, second| note(&mut status, seen, at(second));
        assert_eq!(told(None, 0), None);
        assert_eq!(told(Some("aa"), 1), None, "the first is what was held");
        assert_eq!(told(Some("aa"), 2), None);
        assert_eq!(told(None, 3), None, "not known is not changed");
        let first = told(Some("bb"), 4).unwrap();
        assert!(first.starts_with("the devices were aa when they were held; bb since "), "{first}");
        assert_eq!(told(Some("bb"), 5), None);
        let back = told(Some("aa"), 6).unwrap();
        assert!(back.starts_with(&first) && back.contains("; aa since "), "{back}");
        for n in 0..40 {
            told(Some(&format!("c{n}")), 7 + n);
        }
        assert_eq!(status.fingerprint.as_deref(), Some("aa"));
        assert_eq!(status.fingerprint_changes.len(), MAX_FINGERPRINT_CHANGES);
        assert_eq!(
            status.fingerprint_changes[0],
            FingerprintChange { at: Time(at(4)), fingerprint: "bb".into() }
        );
    }

    #[test]
    fn devices_that_were_given_back_are_nobodys_business() {
        let held = AwardStatus { fingerprint: Some("aa".into()), ..AwardStatus::default() };
        let mut status = held.clone();
        assert_eq!(note(&mut status, Some("bb"), at(1)), None);
        assert_eq!(status, held);
    }

    #[test]
    fn what_is_not_known_is_not_what_was_bid() {
        let mut award = mk_award("a1");
        let fingerprint = "ab".repeat(32);
        assert_eq!(as_bid(&award, Some(&fingerprint)), AsBid::Unbound);
        assert_eq!(as_bid(&award, None), AsBid::Unbound);
        award.spec.market_id = "01".repeat(32);
        award.spec.devices_commitment = Some(hex::encode(commit_devices(&[1; 32], 7, 0, &[0xab; 32])));
        assert_eq!(as_bid(&award, Some(&fingerprint)), AsBid::Same);
        assert_eq!(as_bid(&award, Some(&"ac".repeat(32))), AsBid::Other);
        assert_eq!(as_bid(&award, None), AsBid::Other);
    }
}
