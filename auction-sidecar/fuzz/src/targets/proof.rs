//! Fault proofs: from their bytes, and around messages that are signed anew, so that the checks behind the signature
//! are reached.

use super::Cost::{Pairing, Signature};
use super::{Target, json_value, target};
use crate::bounds::bounded;
use crate::fixture::fixture;
use vendue_auction_core::evidence::{recover, verify as verify_signature};
use vendue_auction_core::proof::{BadMessage, Double, FaultProof, Signed, Verdict, verify};
use vendue_auction_core::wire::decode;

pub(super) const TARGETS: &[Target] = &[
    target("fault_proof", Signature, fault_proof),
    target("fault_proof_form", Signature, fault_proof_form),
    target("fault_proof_message", Pairing, bad_message),
    target("fault_proof_double", Signature, double),
    target("evidence_signature", Signature, evidence_signature),
];

/// A verdict names seats of the market, is the same for the proof's own bytes, and there always is one.
fn judge(proof: &FaultProof) -> bool {
    let verdict = verify(proof, &fixture().record);
    let again = FaultProof::from_json(&proof.to_json()).expect("a proof that was written can be read");
    assert_eq!(&again, proof);
    assert_eq!(verify(&again, &fixture().record), verdict);
    let Verdict::Guilty { seats, .. } = verdict else { return false };
    assert!(!seats.is_empty() && seats.windows(2).all(|w| w[0] < w[1]), "{seats:?}");
    assert!(seats.iter().all(|seat| *seat < fixture().record.n()), "{seats:?}");
    true
}

fn fault_proof(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let Ok(proof) = bounded(bytes.len(), 0, || FaultProof::from_json(text)) else { return false };
    judge(&proof)
}

/// A proof of any form: there is a verdict, whether it proves something or not.
fn fault_proof_form(bytes: &[u8]) -> bool {
    let proof = json_value::<FaultProof>(bytes);
    proof.as_ref().map(judge).is_some()
}

/// A message that its sender signs whatever it says.
fn bad_message(bytes: &[u8]) -> bool {
    let Ok(message) = decode(bytes, fixture().record.n()) else { return false };
    let message = Signed(fixture().sign(message).encode());
    judge(&FaultProof::BadMessage(BadMessage { message }));
    true
}

/// Two messages that their senders sign, each behind its length: saying the same twice is no fault.
fn double(bytes: &[u8]) -> bool {
    let Some((len, rest)) = bytes.split_first_chunk::<2>() else { return false };
    let Some((first, second)) = rest.split_at_checked(usize::from(u16::from_be_bytes(*len))) else {
        return false;
    };
    let n = fixture().record.n();
    let (Ok(first), Ok(second)) = (decode(first, n), decode(second, n)) else { return false };
    let same = first.body == second.body;
    let signed = [first, second].map(|m| Signed(fixture().sign(m).encode()));
    let [first, second] = signed;
    let guilty = judge(&FaultProof::Double(Double::Messages { first, second }));
    assert!(!(same && guilty), "guilty of saying the same twice");
    true
}

/// A hash and its signature, which has one form: with the other s it is refused.
fn evidence_signature(bytes: &[u8]) -> bool {
    let Some((hash, rest)) = bytes.split_first_chunk::<32>() else { return false };
    let Ok(signature) = <[u8; 65]>::try_from(rest) else { return false };
    let Ok(key) = recover(hash, &signature) else { return false };
    assert_eq!(verify_signature(hash, &signature, &key), Ok(()));
    assert!(recover(hash, &high_s(&signature)).is_err(), "a signature has two forms");
    true
}

/// The order of the group of evidence signatures.
const ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe, 0xba,
    0xae, 0xdc, 0xe6, 0xaf, 0x48, 0xa0, 0x3b, 0xbf, 0xd2, 0x5e, 0x8c, 0xd0, 0x36, 0x41, 0x41,
];

/// The same signature with the order of the group less s.
fn high_s(signature: &[u8; 65]) -> [u8; 65] {
    let mut high = *signature;
    let mut borrow = 0;
    for i in (0..32).rev() {
        let v = i16::from(ORDER[i]) - i16::from(signature[32 + i]) - borrow;
        borrow = i16::from(v < 0);
        high[32 + i] = (v + 256 * borrow) as u8;
    }
    high[64] ^= 1;
    high
}
