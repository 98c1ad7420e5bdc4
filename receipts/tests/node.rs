//! All chains of a node, hours, and two histories of one key.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use vendue_receipts::*;

const OTHER: AwardId = AwardId([8; 8]);

/// The idle chain, and one of an award in the middle of it.
fn node() -> (Vec<Record>, Vec<Record>) {
    let lost = Gap {
        device: Some(device("GPU-0")),
        t0_ms: 30_000,
        t1_ms: 31_000,
        reason: GapReason::DeviceNotReadable,
        energy: Some(Energy { used_mj: 50, counter_mj: 1_350 }),
        xids: Xids::default(),
    };
    let idle = vec![
        opened(&key(1), 0),
        metered("GPU-0", 0, 10_000, 100, 1_100),
        metered("GPU-0", 25_000, 30_000, 100, 1_300),
        Body::Gap(lost),
        metered("GPU-0", 33_000, 35_000, 0, 1_400),
    ];
    let award = vec![opened(&key(1), 10_000), metered("GPU-0", 10_000, 25_000, 100, 1_200), closed(25_000)];
    (chain(AwardId::IDLE, &key(1), idle), chain(AWARD, &key(1), award))
}

fn refused(first: PublicKey, chains: &[&[Record]]) -> NodeError {
    verify_node(first, chains).unwrap_err()
}

#[test]
fn what_a_device_did_adds_up_over_all_chains() {
    let (idle, award) = node();
    let totals = verify_node(key(1).public(), &[&idle, &award]).unwrap();
    let expected = DeviceTotals {
        awards_ns: 15 * SECOND_NS,
        idle_ns: 17 * SECOND_NS,
        gap_ms: 1_000,
        missing_ms: 2_000,
        awards_mj: 100,
        idle_mj: 200,
        gap_mj: 50,
    };
    assert_eq!(totals[&device("GPU-0")], expected);
    // A chain that is held back leaves a hole.
    let totals = verify_node(key(1).public(), &[&idle]).unwrap();
    assert_eq!(totals[&device("GPU-0")].missing_ms, 17_000);
}

#[test]
fn a_device_cannot_serve_two_awards_at_once() {
    let (idle, award) = node();
    let other = chain(OTHER, &key(1), vec![opened(&key(1), 0), used("GPU-0", 9_999, 10_000)]);
    let overlap = refused(key(1).public(), &[&idle, &award, &other]);
    let (first, second) = (Place { award: AwardId::IDLE, sequence: 1 }, Place { award: OTHER, sequence: 1 });
    assert_eq!(overlap, NodeError::Overlap { device: device("GPU-0"), first, second });
    let gap = gap(Some("GPU-0"), 12_000, 13_000, GapReason::AgentDown);
    let other = chain(OTHER, &key(1), vec![opened(&key(1), 0), gap]);
    assert!(matches!(refused(key(1).public(), &[&idle, &award, &other]), NodeError::Overlap { .. }));
}

#[test]
fn energy_between_two_windows_is_not_lost_or_counted_twice() {
    let counter = |reason, used_mj, counter_mj| {
        let bodies = vec![
            opened(&key(1), 0),
            metered("GPU-0", 0, 10_000, 100, 1_100),
            gap(Some("GPU-0"), 10_000, 11_000, reason),
            metered("GPU-0", 11_000, 20_000, used_mj, counter_mj),
        ];
        verify_node(key(1).public(), &[&chain(AWARD, &key(1), bodies)]).map(drop)
    };
    assert_eq!(counter(GapReason::DeviceLost, 100, 1_200), Ok(()));
    let at = Place { award: AWARD, sequence: 3 };
    let twice = Err(NodeError::Counter { device: device("GPU-0"), at });
    assert_eq!(counter(GapReason::DeviceLost, 150, 1_200), twice);
    assert_eq!(counter(GapReason::DeviceLost, 50, 1_200), twice);
    assert_eq!(counter(GapReason::CounterReset, 50, 60), Ok(()));
    assert_eq!(counter(GapReason::DeviceLost, 50, 60), twice);
}

#[test]
fn keys_are_those_to_which_rotations_lead() {
    let rotate = Body::Rotated(Rotated { time_ms: 1, next_key: key(2).public() });
    let idle = chain(AwardId::IDLE, &key(1), vec![opened(&key(1), 0), rotate]);
    let later = chain(AWARD, &key(2), vec![opened(&key(2), 5)]);
    let strange = chain(OTHER, &key(3), vec![opened(&key(3), 5)]);
    assert!(verify_node(key(1).public(), &[&later, &idle]).is_ok());
    let unknown = NodeError::Key { award: OTHER, key: key(3).public() };
    assert_eq!(refused(key(1).public(), &[&idle, &later, &strange]), unknown);
    assert_eq!(
        refused(key(1).public(), &[&later]),
        NodeError::Key { award: AWARD, key: key(2).public() },
        "without the chain that rotates nobody knows the key"
    );
    assert_eq!(refused(key(1).public(), &[&idle, &idle]), NodeError::Twice { award: AwardId::IDLE });
}

#[test]
fn a_bad_chain_is_named() {
    let (idle, mut award) = node();
    award.remove(1);
    let error = ChainError { record: 1, fault: Fault::Sequence { found: 2, expected: 1 } };
    assert_eq!(refused(key(1).public(), &[&idle, &award]), NodeError::Chain { award: AWARD, error });
}

#[test]
fn two_histories_of_one_key_are_a_proof() {
    let history = |t1_ms| chain(AWARD, &key(1), vec![opened(&key(1), 0), used("GPU-0", 0, t1_ms)]);
    let (one, two) = (history(10_000), history(11_000));
    let proof =
        |first: &Record, second: &Record| Equivocation { first: first.clone(), second: second.clone() };
    let caught = proof(&one[1], &two[1]);
    assert_eq!(caught.verify(), Ok(key(1).public()));
    let text = serde_json::to_string(&caught).unwrap();
    assert_eq!(serde_json::from_str::<Equivocation>(&text).unwrap(), caught);
    assert_eq!(proof(&one[0], &two[0]).verify(), Err(EquivocationError::Same));
    assert_eq!(proof(&one[0], &two[1]).verify(), Err(EquivocationError::Sequence));
    let other = chain(OTHER, &key(1), vec![opened(&key(1), 0), used("GPU-0", 0, 10_000)]);
    assert_eq!(proof(&one[1], &other[1]).verify(), Err(EquivocationError::Award));
    let another = chain(AWARD, &key(2), vec![opened(&key(2), 0), used("GPU-0", 0, 10_000)]);
    let keys = EquivocationError::Keys(key(1).public(), key(2).public());
    assert_eq!(proof(&one[1], &another[1]).verify(), Err(keys));
    // Nobody can accuse a node with a record that it did not sign.
    let mut forged = one[1].clone();
    forged.previous = [1; 32];
    assert!(matches!(proof(&one[1], &forged).verify(), Err(EquivocationError::Keys(..))));
    forged.signature = [0xff; 65];
    let malformed = EquivocationError::Signature(SignatureError::Malformed);
    assert_eq!(proof(&one[1], &forged).verify(), Err(malformed));
}

#[test]
fn an_hour_is_summed_up_signed_and_each_record_of_it_provable() {
    let hour = 3_600_000;
    let bodies = vec![opened(&key(1), 0), used("GPU-0", 0, hour - 1), used("GPU-0", hour - 1, hour + 9)];
    let idle = chain(AwardId::IDLE, &key(1), bodies);
    let award = chain(AWARD, &key(1), vec![opened(&key(1), 7)]);
    let leaves = hour_leaves(0, award.iter().chain(&idle));
    assert_eq!(leaves, [idle[0].digest(), idle[1].digest(), award[0].digest()]);
    assert_eq!(hour_leaves(1, idle.iter()), [idle[2].digest()]);
    let tree = Tree::new(&leaves);
    let said = SignedHour::sign(0, tree.count(), tree.root(), &key(1));
    assert_eq!(said.verify(), Ok(()));
    assert!(tree.prove(2).unwrap().verify(&said.statement.root, &award[0].digest()));
    let mut other = said;
    other.statement.count = 4;
    assert!(matches!(other.verify(), Err(HourError::Key(_))));
    other.signature = [0xff; 65];
    assert_eq!(other.verify(), Err(HourError::Signature(SignatureError::Malformed)));
}

#[test]
fn the_keys_of_a_node_are_those_that_rotations_join() {
    let rotate = |award: AwardId, from: u8, to: u8| {
        let rotated = Rotated { time_ms: 5, next_key: key(to).public() };
        chain(award, &key(from), vec![opened(&key(from), 0), Body::Rotated(rotated)])
    };
    let records = [rotate(AWARD, 1, 2), rotate(OTHER, 2, 3), rotate(AwardId::IDLE, 5, 6)];
    let chains: Vec<Chain> =
        records.iter().map(|records| verify(records[0].award, None, 0, records).unwrap()).collect();
    let of = |seed: u8| -> Vec<PublicKey> {
        keys_of_node(key(seed).public(), chains.iter()).into_iter().collect()
    };
    let sorted = |seeds: &[u8]| {
        let mut all: Vec<PublicKey> = seeds.iter().map(|seed| key(*seed).public()).collect();
        all.sort();
        all
    };
    for seed in [1, 2, 3] {
        assert_eq!(of(seed), sorted(&[1, 2, 3]), "before and after it");
    }
    assert_eq!((of(5), of(9)), (sorted(&[5, 6]), sorted(&[9])));
}
