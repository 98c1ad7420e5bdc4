//! Metering receipts: records, chains, what a node says of an hour, and proofs against it.

use super::Cost::{Bytes, Signature};
use super::market::{both, canonical, text};
use super::{Target, json, json_value, target};
use crate::bounds::bounded;
use vendue_receipts::delivery::{Answer, Batch};
use vendue_receipts::{
    AwardId, Billed, Body, Chain, ChainName, DeviceId, DriverVersion, Equivocation, HourStatement, Inclusion,
    ReceiptsFile, ReceiptsHeads, Record, SignedHour, Tree, hour_leaves, hour_of, read_records, verify,
    verify_node,
};

pub(super) const TARGETS: &[Target] = &[
    target("receipt", Bytes, canonical::<Record>),
    target("receipt_body", Bytes, canonical::<Body>),
    target("receipt_json", Bytes, both::<Record>),
    target("receipt_names", Bytes, names),
    target("receipt_chain", Signature, chain),
    target("receipt_chain_json", Signature, json::<Chain>),
    target("receipt_node", Signature, node),
    target("receipt_equivocation", Signature, equivocation),
    target("receipt_hour", Bytes, canonical::<HourStatement>),
    target("receipt_hour_json", Signature, hour),
    target("receipt_inclusion", Bytes, inclusion),
    target("receipt_file", Bytes, json::<ReceiptsFile>),
    target("receipt_heads", Bytes, heads),
    target("receipt_batch", Bytes, json::<Batch>),
    target("receipt_answer", Bytes, json::<Answer>),
    target("receipt_billed", Bytes, json::<Billed>),
];

/// A text that is at least one of the names is read as it is shown.
fn names(bytes: &[u8]) -> bool {
    let accepted = [
        text::<AwardId>(bytes),
        text::<ChainName>(bytes),
        text::<DeviceId>(bytes),
        text::<DriverVersion>(bytes),
    ];
    accepted.contains(&true)
}

/// The records of a chain, one after another. One that verifies adds up and ends in its last record; it verifies in two parts too,
/// and each of its records can be proven to be of its hour.
fn chain(bytes: &[u8]) -> bool {
    let Ok(records) = bounded(bytes.len(), 0, || read_records(bytes)) else { return false };
    let written: Vec<u8> = records.iter().flat_map(Record::encode).collect();
    assert_eq!(written, bytes, "records have two encodings");
    let Some(award) = records.first().map(|r| r.award) else { return false };
    let Ok(chain) = bounded(bytes.len(), 0, || verify(award, None, 3, &records)) else { return false };
    let wall = |body: &Body| if let Body::Used(used) = body { used.wall_ns } else { 0 };
    let gpu_ns: u64 = records.iter().map(|r| wall(&r.body)).sum();
    assert_eq!((chain.totals().records, chain.totals().gpu_ns), (records.len() as u64, gpu_ns));
    assert_eq!(chain.head(), records.last().map_or([0; 32], Record::digest));
    let mut again = Chain::new(award, 3);
    records.iter().for_each(|record| again.replay(record).expect("it was verified"));
    assert_eq!(again, chain, "replaying comes to something else");
    let hour = hour_of(chain.end_ms());
    let leaves = hour_leaves(hour, records.iter());
    let tree = Tree::new(&leaves);
    let proven = |(at, leaf)| tree.prove(at).is_some_and(|proof| proof.verify(&tree.root(), leaf));
    assert!(leaves.iter().enumerate().all(proven));
    true
}

/// Chains one after another, each a run of records of one award. What is accepted is accepted in any order.
fn node(bytes: &[u8]) -> bool {
    let Ok(records) = read_records(bytes) else { return false };
    let mut chains: Vec<&[Record]> = records.chunk_by(|a, b| a.award == b.award).collect();
    let Some(Body::Opened(first)) = records.first().map(|r| &r.body) else { return false };
    let verdict = verify_node(first.public_key, &chains);
    chains.reverse();
    assert_eq!(verify_node(first.public_key, &chains).is_ok(), verdict.is_ok());
    verdict.is_ok()
}

/// What is whole has a chain for each award.
fn heads(bytes: &[u8]) -> bool {
    let accepted = json::<ReceiptsHeads>(bytes);
    let whole = json_value::<ReceiptsHeads>(bytes).filter(ReceiptsHeads::is_whole);
    assert!(whole.is_none_or(|heads| heads.awards.iter().all(|award| !award.chains.is_empty())));
    accepted
}

/// Two records prove the same whichever is shown first.
fn equivocation(bytes: &[u8]) -> bool {
    let Some(proof) = json_value::<Equivocation>(bytes) else { return false };
    let swapped = Equivocation { first: proof.second.clone(), second: proof.first.clone() };
    let key = proof.verify().ok();
    assert_eq!(key, swapped.verify().ok());
    key.is_some()
}

/// Whoever says something of an hour has signed just that.
fn hour(bytes: &[u8]) -> bool {
    let Some(said) = json_value::<SignedHour>(bytes) else { return false };
    let accepted = said.verify().is_ok();
    let mut other = said;
    other.statement.hour ^= 1;
    assert!(!accepted || other.verify().is_err(), "a signature for two hours");
    accepted
}

/// A proof holds for one leaf and one root.
fn inclusion(bytes: &[u8]) -> bool {
    let Some(proof) = json_value::<Inclusion>(bytes) else { return false };
    let root = Tree::new(&[[1; 32], [2; 32], [3; 32]]).root();
    let accepted = proof.verify(&root, &[2; 32]);
    assert!(!proof.verify(&[0; 32], &[2; 32]) && !proof.verify(&root, &[4; 32]));
    accepted
}
