//! A real market of four seats, dealt and signed here, and everything that can be wrong with an award.

use rand_core::SeedableRng;
use serde_json::{Value, json};
use vendue_auction_core::wire::{Quorum, Signers, VoteWord, vote_bytes};
use vendue_auction_core::{
    AwardFile, AwardTable, Certificate, CertificateFile, DealSpec, Dealt, Leaf, MemberSpec, OrderLeaf,
    Params, deal, evidence::order_hash,
};
use vendue_crds::Pricing;
use vendue_market::{Award, Order, Outcome, Requirements, StandBy, commit_devices};

use super::checks::{Binding, all};
use super::devices::Claim;
use super::evidence::Evidence;
use crate::report::Level;

const ROUND: u64 = 100;
const UID: &str = "6f1c0e0a-0000-4000-8000-000000000001";

fn market(seed: u64) -> Dealt {
    let member =
        |name: &str| MemberSpec { name: name.into(), peer_id: format!("peer-{name}"), addresses: vec![] };
    let spec = DealSpec {
        name: "demo".into(),
        params: params(),
        seats: ["alpha", "bravo", "charlie", "delta"].map(member).into(),
        homes: vec![member("home")],
    };
    deal(&spec, &mut rand_chacha::ChaCha20Rng::seed_from_u64(seed)).unwrap()
}

fn params() -> Params {
    serde_json::from_value(json!({"delay_ms": 100, "period_ms": 600, "handover_ms": 30_000, "genesis_ms": 0}))
        .unwrap()
}

fn order(dealt: &Dealt, uid: &str) -> Order {
    let record = &dealt.record.record;
    Order {
        market: record.market,
        job: uid.into(),
        attempt: 1,
        requirements: Requirements {
            gpu_models: vec![],
            min_gpu_memory_mib: 0,
            workers: 2,
            gpus_per_worker: 1,
            cpu_millis_per_worker: 100,
            memory_mib_per_worker: 100,
            disk_mib_per_worker: 0,
            max_price: "3.00".parse().unwrap(),
            run_seconds: 600,
            image: "ray:1".into(),
            include_providers: vec![],
            exclude_providers: vec![],
        },
        commitment: [7; 32],
        first_round: ROUND,
        expires_ms: u64::MAX,
        user_key: record.homes[0].user_key,
        after: None,
        terms: Box::default(),
    }
}

/// The round's certificate over awards for `orders`, signed by `signers`, and the award file of the first order.
fn round(dealt: &Dealt, orders: &[Order], signers: &[u16]) -> (Certificate, AwardFile) {
    let record = &dealt.record.record;
    let mut leaves = vec![Leaf::Set([1; 32]), Leaf::Beacon([2; 32])];
    let mut sorted: Vec<_> = orders.iter().collect();
    sorted.sort_by_key(|o| o.digest());
    for order in sorted {
        let outcome = Outcome::Award(Award {
            seat: 1,
            price: "1.80".parse().unwrap(),
            spec: 0,
            devices: Some(commit_devices(&record.market, ROUND, 1, &[0xab; 32])),
            stand_bys: vec![StandBy { seat: 0, price: "2.40".parse().unwrap(), spec: 0, devices: None }],
        });
        let expires_ms = record.params.expiry(ROUND);
        leaves.push(Leaf::Order(OrderLeaf { order: order.digest(), outcome, bundle: [3; 32], expires_ms }));
    }
    let table = AwardTable { leaves };
    let root = table.root();
    let message = vote_bytes(VoteWord::Award, &record.market, record.epoch, ROUND, 0, &root);
    let votes: Vec<_> = signers.iter().map(|s| dealt.seats[usize::from(*s)].vote.sign(&message)).collect();
    let quorum = Quorum {
        signers: Signers::new(record.n(), signers.iter().copied()),
        aggregate: vendue_sealed_bid::aggregate_votes(&votes).unwrap(),
    };
    let certificate = Certificate { market: record.market, epoch: record.epoch, round: ROUND, root, quorum };
    let order = orders[0].clone();
    let order_signature = dealt.homes[0].user.sign(&order_hash(&record.market, &order));
    let proof = table.proof(&order.digest()).unwrap();
    (certificate, AwardFile { order, order_signature, proof })
}

fn evidence(dealt: &Dealt, certificate: &Certificate, award: &AwardFile) -> Evidence {
    Evidence {
        record_source: "market.json".into(),
        record_from_cluster: false,
        record: dealt.record.to_json(),
        certificate: serde_json::to_string(&CertificateFile::from(certificate)).unwrap(),
        award: serde_json::to_string(award).unwrap(),
        binding: Binding {
            job_uid: Some(UID.into()),
            attempt: Some(1),
            commitment: Some(hex::encode([7; 32])),
            max_price: Some("3".into()),
            terms: Some((Pricing::FirstPrice, vec![])),
            holder: Some(("bravo".into(), 1, "1.80".into())),
            devices: None,
        },
    }
}

fn good() -> (Dealt, Evidence) {
    let dealt = market(1);
    let (certificate, award) = round(&dealt, &[order(&dealt, UID), order(&dealt, "other")], &[0, 1, 3]);
    let evidence = evidence(&dealt, &certificate, &award);
    (dealt, evidence)
}

/// The check that fails and what it says; panics when everything passes.
#[track_caller]
fn failure(evidence: &Evidence) -> (String, String) {
    let (checks, facts) = all(evidence, None);
    assert_eq!(facts, None, "must not verify");
    let failed = checks.iter().find(|c| c.level == Level::Fail).expect("a check fails");
    assert_eq!(failed, checks.last().unwrap(), "nothing is said after the check that failed");
    (failed.name.clone(), failed.detail.clone())
}

fn edit(text: &str, pointer: &str, value: Value) -> String {
    let mut json: Value = serde_json::from_str(text).unwrap();
    *json.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer} in {text}")) = value;
    json.to_string()
}

#[test]
fn a_true_award_verifies() {
    let (_, evidence) = good();
    let (checks, facts) = all(&evidence, None);
    let facts = facts.unwrap_or_else(|| panic!("{checks:?}"));
    assert_eq!(
        (facts.provider.as_str(), facts.price.as_str(), facts.home.as_str()),
        ("bravo", "1.80", "home")
    );
    assert_eq!(facts.stand_bys, [("alpha".to_owned(), "2.40".to_owned())]);
    assert!(facts.insecure_keys);
    let names: Vec<_> = checks.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["market", "keys", "certificate", "order", "award", "job", "holder", "devices"]);
}

#[test]
fn a_stand_by_that_took_over_verifies_at_its_own_price_only() {
    let (_, mut evidence) = good();
    evidence.binding.holder = Some(("alpha".into(), 0, "2.40".into()));
    assert!(all(&evidence, None).1.is_some());
    evidence.binding.holder = Some(("alpha".into(), 0, "1.80".into()));
    assert_eq!(failure(&evidence).0, "holder");
    evidence.binding.holder = Some(("charlie".into(), 2, "1.80".into()));
    assert_eq!(failure(&evidence).0, "holder");
}

#[test]
fn the_devices_are_those_that_the_certificate_binds() {
    let (_, mut evidence) = good();
    evidence.binding.devices = Some(Claim::User("ab".repeat(32)));
    assert!(all(&evidence, None).1.is_some());
    evidence.binding.devices = Some(Claim::User("ac".repeat(32)));
    assert_eq!(failure(&evidence).0, "devices");
    // Nobody can put another commitment under the certified root.
    let commitment = hex::encode(commit_devices(&[0; 32], ROUND, 1, &[0xac; 32]));
    let pointer = "/proof/leaf/outcome/Award/devices";
    let tampered = Evidence { award: edit(&evidence.award, pointer, json!(commitment)), ..evidence };
    assert_eq!(failure(&tampered).0, "award");
}

#[test]
fn tampered_certificates() {
    let (_, evidence) = good();
    for (pointer, value) in
        [("/round", json!(101)), ("/root", json!("00".repeat(32))), ("/signers", json!("07"))]
    {
        let tampered = Evidence { certificate: edit(&evidence.certificate, pointer, value), ..good().1 };
        let (name, detail) = failure(&tampered);
        assert_eq!(name, "certificate", "{pointer}: {detail}");
        assert!(detail.contains("signature of the seats does not verify"), "{pointer}: {detail}");
    }
    let garbage = Evidence { certificate: "{}".into(), ..good().1 };
    assert!(failure(&garbage).1.contains("is not a certificate file"));
}

#[test]
fn too_few_signers() {
    let dealt = market(1);
    let (certificate, award) = round(&dealt, &[order(&dealt, UID)], &[0, 1]);
    let (name, detail) = failure(&evidence(&dealt, &certificate, &award));
    assert_eq!((name.as_str(), detail.as_str()), ("certificate", "2 seats signed, 3 are needed"));
}

#[test]
fn tampered_awards() {
    let (_, evidence) = good();
    let cases = [
        ("/order/requirements/max_price", json!("9.00"), "order"),
        ("/order/job", json!("other"), "order"),
        ("/proof/leaf/expires_ms", json!(1), "award"),
        ("/proof/leaf/bundle", json!("00".repeat(32)), "award"),
    ];
    for (pointer, value, expected) in cases {
        let tampered = Evidence { award: edit(&evidence.award, pointer, value), ..good().1 };
        let (name, detail) = failure(&tampered);
        assert_eq!(name, expected, "{pointer}: {detail}");
    }
    let cheaper = evidence.award.replace("1.80", "0.80");
    assert_ne!(cheaper, evidence.award);
    let (name, detail) = failure(&Evidence { award: cheaper, ..good().1 });
    assert_eq!(
        (name.as_str(), detail.as_str()),
        ("award", "award is not part of what the certificate certifies")
    );
}

#[test]
fn another_market_record() {
    let other = market(2);
    let (name, detail) = failure(&Evidence { record: other.record.to_json(), ..good().1 });
    assert_eq!(name, "certificate", "a certificate that brings its own keys proves nothing: {detail}");
    assert!(detail.contains("another market"), "{detail}");
}

#[test]
fn the_record_of_another_epoch_is_told_from_a_false_certificate() {
    let other = Evidence { certificate: edit(&good().1.certificate, "/epoch", json!(1)), ..good().1 };
    let (checks, facts) = all(&other, None);
    assert!(facts.is_none());
    let last = checks.last().unwrap();
    assert_eq!(last.detail, "certificate is of epoch 1, the record of epoch 0");
    assert!(last.next.as_ref().unwrap().contains("give the market record of epoch 1 with --market FILE"));
}

#[test]
fn a_changed_market_record_and_another_issuer() {
    let (dealt, evidence) = good();
    let record = edit(&evidence.record, "/record/seats/0/provider", json!("mallory"));
    assert_eq!(failure(&Evidence { record, ..good().1 }).0, "market");
    let key = hex::encode(dealt.record.issuer_key);
    assert!(all(&evidence, Some(&key.to_uppercase())).1.is_some());
    assert!(all(&evidence, Some(&"02".repeat(33))).1.is_none());
}

#[test]
fn the_award_of_another_job() {
    let (_, mut evidence) = good();
    evidence.binding.job_uid = Some("another".into());
    let (name, detail) = failure(&evidence);
    assert_eq!(name, "job");
    assert!(detail.contains("not of \"another\""), "{detail}");
    for change in [
        Binding { attempt: Some(2), ..good().1.binding },
        Binding { commitment: Some("00".into()), ..good().1.binding },
        Binding { max_price: Some("2.99".into()), ..good().1.binding },
        Binding { terms: Some((Pricing::SecondPrice, vec![])), ..good().1.binding },
        Binding { terms: Some((Pricing::FirstPrice, vec!["north".into()])), ..good().1.binding },
    ] {
        assert_eq!(failure(&Evidence { binding: change, ..good().1 }).0, "job");
    }
}

#[test]
fn the_certificate_of_another_round_of_the_same_market() {
    let dealt = market(1);
    let (_, award) = round(&dealt, &[order(&dealt, UID)], &[0, 1, 2]);
    let (other, _) = round(&dealt, &[order(&dealt, "other")], &[0, 1, 2]);
    let (name, detail) = failure(&evidence(&dealt, &other, &award));
    assert_eq!(
        (name.as_str(), detail.as_str()),
        ("award", "award is not part of what the certificate certifies")
    );
}
