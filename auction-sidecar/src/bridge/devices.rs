//! What an award says of devices: what certified bids bind, what the host names, and what home makes of it. Pure.
//!
//! Inputs: the certified outcome, the Award's spec, statuses. Outputs: commitments by seat, and home's own condition
//! DevicesAsBid. Invariant: home judges by its certificate alone, and evidence that it has stays.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use vendue_crds::conditions::{self, award as condition, reasons};
use vendue_crds::{AsBid, AwardSpec, AwardStatus, BoundDevices, MAX_FINGERPRINT_CHANGES, parse_fingerprint};
use vendue_market::Digest;

/// The devices that winner and stand-bys of an award are bound to.
pub fn bound_devices(award: &vendue_market::Award) -> BTreeMap<u16, Digest> {
    award.bound().filter_map(|(seat, devices)| Some((seat, devices?))).collect()
}

/// What home was told of the devices stays, whatever the host says later: it is evidence.
pub(super) fn keep_evidence(at_home: &AwardStatus, merged: &mut AwardStatus) {
    let sound = |text: &String| parse_fingerprint(text).is_some();
    let told = merged.fingerprint.take().filter(sound);
    merged.fingerprint = at_home.fingerprint.clone().or(told);
    let known = at_home.fingerprint_changes.len();
    let mut changes = at_home.fingerprint_changes.clone();
    changes.extend(merged.fingerprint_changes.drain(..).skip(known).filter(|c| sound(&c.fingerprint)));
    changes.truncate(MAX_FINGERPRINT_CHANGES);
    merged.fingerprint_changes = changes;
    if let Some(changed) = conditions::find(&at_home.conditions, condition::DEVICES_CHANGED)
        && !conditions::is_true(&merged.conditions, condition::DEVICES_CHANGED)
    {
        merged.conditions.retain(|c| c.type_ != condition::DEVICES_CHANGED);
        merged.conditions.push(changed.clone());
    }
}

/// Adds home's own judgement: whether the devices that the winner names are those that its certified bid is bound to.
pub fn judge_devices(spec: &AwardSpec, before: &AwardStatus, status: &mut AwardStatus, now: Timestamp) {
    let (Some(bound), Some(fingerprint)) = (BoundDevices::of(spec), &status.fingerprint) else { return };
    let (same, reason, message) = match bound.check(fingerprint) {
        AsBid::Unbound => return,
        AsBid::Same => {
            (true, reasons::AS_BID, format!("the certified bid is bound to devices {fingerprint}"))
        }
        AsBid::Other => (
            false,
            reasons::OTHER_DEVICES,
            format!("{} holds devices {fingerprint}, to which its certified bid is not bound", spec.provider),
        ),
    };
    let mut own: Vec<_> =
        conditions::find(&before.conditions, condition::DEVICES_AS_BID).cloned().into_iter().collect();
    conditions::set(
        &mut own,
        conditions::condition(condition::DEVICES_AS_BID, same, reason, message, None, now),
    );
    status.conditions.retain(|c| c.type_ != condition::DEVICES_AS_BID);
    status.conditions.extend(own);
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
    use vendue_crds::AwardSide;

    use super::*;
    use crate::bridge::objects::{AwardFacts, merged_status, time_of};

    fn cond(type_: &str, status: bool, reason: &str) -> Condition {
        conditions::condition(type_, status, reason, "m", Some(3), Timestamp::UNIX_EPOCH)
    }

    fn mk_spec(commitment: Option<Digest>) -> AwardSpec {
        let order = serde_json::from_value(serde_json::json!({
            "market": "01".repeat(32), "job": "u", "attempt": 1, "commitment": "02".repeat(32), "first_round": 7,
            "expires_ms": 1, "user_key": "03".repeat(33),
            "requirements": { "gpu_models": [], "min_gpu_memory_mib": 0, "workers": 1, "gpus_per_worker": 1,
                "cpu_millis_per_worker": 1, "memory_mib_per_worker": 1, "disk_mib_per_worker": 0,
                "max_price": "1", "run_seconds": 60, "image": "i", "include_providers": [],
                "exclude_providers": [] },
        }));
        let facts = AwardFacts {
            market: [1; 32],
            round: 7,
            order: order.unwrap(),
            winner: 1,
            seat: (2, "bravo".into(), "1".parse().unwrap()),
            stand_bys: vec![],
            devices: [(1, [9; 32])].into_iter().chain(commitment.map(|c| (2, c))).collect(),
            expires_ms: 5,
            home: "home".into(),
        };
        facts.spec(AwardSide::Home)
    }

    #[test]
    fn home_judges_by_itself_whether_the_devices_are_those_of_the_bid() {
        let fingerprint = "ab".repeat(32);
        let commitment = vendue_market::commit_devices(&[1; 32], 7, 2, &[0xab; 32]);
        let judged = |commitment, told: &str| {
            // The host's own word on it does not count.
            let claim = cond("DevicesAsBid", true, "AsBid");
            let relayed = AwardStatus {
                conditions: vec![claim],
                fingerprint: Some(told.to_owned()),
                ..AwardStatus::default()
            };
            let before = AwardStatus::default();
            let mut merged = merged_status(&before, relayed);
            judge_devices(&mk_spec(commitment), &before, &mut merged, Timestamp::UNIX_EPOCH);
            conditions::find(&merged.conditions, "DevicesAsBid").map(|c| (c.status.clone(), c.reason.clone()))
        };
        let want = |status: &str, reason: &str| Some((status.to_owned(), reason.to_owned()));
        assert_eq!(judged(Some(commitment), &fingerprint), want("True", "AsBid"));
        assert_eq!(judged(Some(commitment), &"ac".repeat(32)), want("False", "OtherDevices"));
        assert_eq!(judged(None, &fingerprint), None, "the bid is bound to nothing");
        assert_eq!(judged(Some(commitment), "garbage"), None, "no devices are named");
    }

    #[test]
    fn what_home_was_told_of_the_devices_stays() {
        let change =
            |byte: &str| vendue_crds::FingerprintChange { at: time_of(1), fingerprint: byte.repeat(32) };
        let at_home = AwardStatus {
            conditions: vec![cond("DevicesChanged", true, "FingerprintChanged")],
            fingerprint: Some("aa".repeat(32)),
            fingerprint_changes: vec![change("bb")],
            ..AwardStatus::default()
        };
        let other = AwardStatus { fingerprint: Some("cc".repeat(32)), ..AwardStatus::default() };
        let merged = merged_status(&at_home, other);
        assert_eq!(merged.fingerprint, at_home.fingerprint);
        assert_eq!(merged.fingerprint_changes, at_home.fingerprint_changes);
        assert!(conditions::is_true(&merged.conditions, "DevicesChanged"));
        let mut changes = vec![change("bb"), change("cc"), change("x")];
        changes.extend(vec![change("dd"); 20]);
        let denied = AwardStatus {
            conditions: vec![cond("DevicesChanged", false, "No")],
            fingerprint_changes: changes,
            ..AwardStatus::default()
        };
        let merged = merged_status(&at_home, denied);
        assert_eq!(merged.fingerprint_changes.len(), MAX_FINGERPRINT_CHANGES);
        assert_eq!(merged.fingerprint_changes[..3], [change("bb"), change("cc"), change("dd")]);
        let changed = conditions::find(&merged.conditions, "DevicesChanged");
        assert_eq!(changed.map(|c| c.status.as_str()), Some("True"));
    }

    #[test]
    fn winner_and_stand_bys_are_bound_each_by_its_own_bid() {
        let price = "1".parse().unwrap();
        let stand_by = |seat, devices| vendue_market::StandBy { seat, price, spec: 0, devices };
        let stand_bys = vec![stand_by(4, None), stand_by(2, Some([2; 32]))];
        let award = vendue_market::Award { seat: 3, price, spec: 0, devices: Some([3; 32]), stand_bys };
        let bound: Vec<_> = bound_devices(&award).into_iter().collect();
        assert_eq!(bound, [(2, [2; 32]), (3, [3; 32])]);
        assert_eq!(
            mk_spec(Some([7; 32])).devices_commitment,
            Some("07".repeat(32)),
            "that of the seat that serves"
        );
    }
}
