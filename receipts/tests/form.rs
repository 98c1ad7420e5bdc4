//! The forms of a record: bytes, JSON, digests; frozen, for other implementations to compare with.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use proptest::prelude::*;
use serde_json::{Value, json};
use vendue_market::encode::{Canonical, to_hex};
use vendue_receipts::*;

fn any_name<const MAX: usize>() -> impl Strategy<Value = Name<MAX>> {
    "[ -~]{1,40}".prop_map(|text| text.parse().unwrap())
}

fn any_energy() -> impl Strategy<Value = Option<Energy>> {
    let energy = (any::<u64>(), any::<u64>());
    proptest::option::of(energy.prop_map(|(used_mj, counter_mj)| Energy { used_mj, counter_mj }))
}

fn any_xids() -> impl Strategy<Value = Xids> {
    proptest::collection::vec(any::<u32>(), 0..6).prop_map(|codes| {
        let mut xids = Xids::default();
        codes.into_iter().for_each(|code| xids.add(code));
        xids
    })
}

fn any_used() -> impl Strategy<Value = Body> {
    let activity = (any::<bool>(), any::<u32>()).prop_map(|(sm, average_millionths)| {
        let source = if sm { ActivitySource::SmActive } else { ActivitySource::Utilization };
        Activity { source, average_millionths }
    });
    let rest = (any_energy(), proptest::option::of(activity), any::<Option<u64>>(), any_xids());
    let names = (any_name(), any_name());
    (names, any::<[u64; 3]>(), rest).prop_map(|((device, driver), [t0_ms, t1_ms, wall_ns], rest)| {
        let (energy, activity, memory_peak_bytes, xids) = rest;
        Body::Used(Used { device, t0_ms, t1_ms, wall_ns, energy, activity, memory_peak_bytes, xids, driver })
    })
}

fn any_gap() -> impl Strategy<Value = Body> {
    let reason = proptest::sample::select(GapReason::ALL.to_vec());
    let device = proptest::option::of(any_name());
    (device, any::<[u64; 2]>(), reason, any_energy(), any_xids()).prop_map(
        |(device, times, reason, energy, xids)| {
            let [t0_ms, t1_ms] = times;
            Body::Gap(Gap { device, t0_ms, t1_ms, reason, energy, xids })
        },
    )
}

fn any_body() -> impl Strategy<Value = Body> {
    let key = || any::<[u8; 32]>().prop_map(|x| PublicKey(std::array::from_fn(|i| x[i % 32])));
    prop_oneof![
        (key(), any::<[u8; 16]>(), any::<u64>()).prop_map(|(public_key, boot, time_ms)| {
            Body::Opened(Opened { public_key, boot: BootId(boot), time_ms })
        }),
        any_used(),
        any_gap(),
        any::<[u64; 2]>().prop_map(|[time_ms, system_ms]| Body::Clock(Clock { time_ms, system_ms })),
        (key(), any::<u64>()).prop_map(|(next_key, time_ms)| Body::Rotated(Rotated { time_ms, next_key })),
        any::<u64>().prop_map(|time_ms| Body::Closed(Closed { time_ms })),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_record_has_one_encoding_and_a_json_form(
        body in any_body(), award in any::<[u8; 8]>(), sequence in any::<u64>(), previous in any::<[u8; 32]>(),
    ) {
        let record = Record { version: Version, award: AwardId(award), sequence, previous, body, signature: [5; 65] };
        let bytes = record.encode();
        prop_assert!(bytes.len() <= MAX_ENCODED);
        prop_assert_eq!(Record::from_bytes(&bytes).unwrap(), record.clone());
        let text = serde_json::to_string(&record).unwrap();
        prop_assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
    }

    #[test]
    fn decoding_is_total_and_what_decodes_encodes_to_the_same(
        which in 0..8usize, at in any::<prop::sample::Index>(), with in any::<u8>(), cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = full_chain()[which].encode();
        let at = at.index(bytes.len());
        bytes[at] = with;
        if let Ok(record) = Record::from_bytes(&bytes) {
            prop_assert_eq!(record.encode(), bytes.clone());
        }
        prop_assert!(Record::from_bytes(&bytes[..cut.index(bytes.len())]).is_err());
    }
}

#[test]
fn fields_that_are_unknown_missing_or_out_of_form_are_refused_in_json() {
    let record: Value = serde_json::to_value(&full_chain()[1]).unwrap();
    let bad = |change: &dyn Fn(&mut Value)| {
        let mut changed = record.clone();
        change(&mut changed);
        serde_json::from_value::<Record>(changed).unwrap_err().to_string()
    };
    assert!(bad(&|v| v["note"] = json!(1)).contains("unknown field `note`"));
    assert!(bad(&|v| v["body"]["used"]["note"] = json!(1)).contains("unknown field `note`"));
    assert!(bad(&|v| v["body"]["used"]["energy"]["note"] = json!(1)).contains("unknown field `note`"));
    assert!(bad(&|v| _ = v.as_object_mut().unwrap().remove("previous")).contains("missing field `previous`"));
    assert!(bad(&|v| v["version"] = json!(2)).contains("version 2; accepted is 1"));
    assert!(bad(&|v| v["award"] = json!("0102")).contains("is not 8 bytes of lower-case hex"));
    assert!(bad(&|v| v["body"]["used"]["device"] = json!("")).contains("printable ASCII"));
    assert!(bad(&|v| v["body"]["used"]["xids"] = json!([{"code": 1, "count": 0}])).contains("xids"));
}

/// The digests of a chain with a record of every kind, and the JSON of one. A change here is a change of the format: it needs another
/// version.
#[test]
fn the_format_is_frozen() {
    let records = full_chain();
    let heads: Vec<String> = records.iter().map(|r| to_hex(&r.digest()[..8])).collect();
    let expected: [&str; 8] = [
        "d3d34ec201c63262",
        "985f5bf30bbd980c",
        "ce73bfdeb6e95231",
        "4cf41009e00305d8",
        "54ac5afe6637f12b",
        "7dbf60c9802cd69a",
        "181fad202b77a5de",
        "f66bf0dc445732bf",
    ];
    assert_eq!(heads, expected);
    let used = json!({
        "version": 1,
        "award": "0102030405060708",
        "sequence": 1,
        "previous": to_hex(&records[0].digest()),
        "body": {"used": {
            "device": "GPU-0",
            "t0_ms": 1_000,
            "t1_ms": 11_000,
            "wall_ns": 10_000_000_000u64,
            "energy": {"used_mj": 7_000, "counter_mj": 10_000},
            "activity": {"source": "sm_active", "average_millionths": 750_000},
            "memory_peak_bytes": 80u64 << 30,
            "driver": "580.95.05",
        }},
        "signature": to_hex(&records[1].signature),
    });
    assert_eq!(serde_json::to_value(&records[1]).unwrap(), used);
    // Version, award, sequence, digest of the record before, kind 4, two times; then the signature.
    let unsigned = "0101020304050607080000000000000003\
                    ce73bfdeb6e95231d0cac7928088fe1787e939df0705e5c929c4ca96ba71ab47\
                    040000000000002ee00000000000371d60";
    assert_eq!(to_hex(&records[3].encode()), format!("{unsigned}{}", to_hex(&records[3].signature)));
}

#[test]
fn the_documentation_has_this_vector() {
    let opening = &full_chain()[0];
    let encoded = opening.encode();
    let (unsigned, signature) = encoded.split_at(encoded.len() - 65);
    let lines = [
        ("record   ", to_hex(unsigned)),
        ("digest   ", to_hex(&opening.digest())),
        ("signed   ", to_hex(&opening.signed_hash())),
        ("signature", to_hex(signature)),
    ];
    let vector: String = lines.iter().map(|(name, hex)| format!("{name} {hex}\n")).collect();
    let text = include_str!("../../docs/receipts.md");
    assert!(text.contains(&vector), "docs/receipts.md does not have:\n{vector}");
}
