//! The interop vectors of certificates and fault proofs: what is stored is what a round of four fixed seats gives.
//!
//! They lie beside those of the cryptography. `VENDUE_WRITE_VECTORS=1 cargo test -p vendue-auction-core vectors` writes
//! them again.

use super::tests::{cases, found, up_to};
use super::*;
use crate::award::{CertificateFile, Leaf};
use crate::round::tests::{ROUND, Rig};
use crate::wire::{Body, Cert, Header, Kind, VoteWord, vote_bytes};
use serde_json::{Value, json};
use std::path::PathBuf;

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../sealed-bid/vectors").join(name)
}

fn check(name: &str, expected: &Value) {
    if std::env::var_os("VENDUE_WRITE_VECTORS").is_some() {
        std::fs::write(file(name), serde_json::to_string_pretty(expected).unwrap() + "\n").unwrap();
    }
    let stored: Value = serde_json::from_str(&std::fs::read_to_string(file(name)).unwrap()).unwrap();
    assert!(stored == *expected, "{name} has drifted: write it again if that is meant");
}

fn record(rig: &Rig) -> Value {
    serde_json::to_value(&*rig.record).unwrap()
}

#[test]
fn vectors_of_certificates_are_what_a_round_gives() {
    let (rig, _) = up_to(Kind::Cert);
    let decided = &rig.decided[&0];
    let c = &decided.certificate;
    let message = vote_bytes(VoteWord::Award, &c.market, c.epoch, ROUND, 0, &c.root);
    let header = Header { kind: Kind::Cert, market: rig.record.short_id(), epoch: 0, round: ROUND, seat: 0 };
    let body = Body::Cert(Cert { root: c.root, quorum: c.quorum.clone() });
    let cert = Message { header, body, signature: None }.encode();
    let leaves: Vec<_> = decided.table.leaves.iter().map(|leaf| to_hex(&leaf.to_bytes())).collect();
    let proof = decided.table.proofs().remove(0);
    let leaf = Leaf::Order(proof.leaf.clone()).to_bytes();
    assert_eq!(proof.path.root(&leaf), Some(c.root));
    check(
        "certificate.json",
        &json!({
            "record": record(&rig), "round": ROUND,
            "certificate": CertificateFile::from(c), "vote_message": to_hex(&message), "cert_message": to_hex(&cert),
            "leaves": leaves, "award": proof, "award_leaf": to_hex(&leaf),
        }),
    );
}

#[test]
fn vectors_of_fault_proofs_are_what_seats_show() {
    let mut all = vec![];
    let mut market = Value::Null;
    for (name, fault, rig) in cases() {
        let proof = found(&rig, fault).unwrap();
        let Verdict::Guilty { seats, fault } = verify(proof, &rig.record) else { panic!("{name}") };
        market = record(&rig);
        let proof = serde_json::to_value(proof).unwrap();
        all.push(json!({ "name": name, "fault": format!("{fault:?}"), "seats": seats, "proof": proof }));
    }
    check("faults.json", &json!({ "record": market, "cases": all }));
}
