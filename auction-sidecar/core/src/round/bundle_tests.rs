//! Bundles that come late, twice, or from somebody else, and seats that come too late for one.

use super::tests::{ROUND, Rig, mk_rig};
use super::*;
use crate::wire::*;
use std::collections::BTreeSet;

#[test]
fn two_versions_of_a_bundle_are_both_garbage_when_both_are_admitted() {
    let mut rig = mk_rig();
    let now = rig.t0();
    rig.tick(now);
    // Seat 0, the cheapest, shows one version to seat 1 and another to seats 2 and 3; all list what they saw,
    // and seat 0 itself lists the one of seat 1.
    let second = {
        let body =
            Body::Bundle(Bundle { order_view: vec![].into(), u: [1; 48], v: [2; 32], payload: vec![3] });
        rig.forge(0, body)
    };
    rig.deliver(now, 2, &second);
    rig.deliver(now, 3, &second);
    rig.flow(now + 10, |_, _, _| true);
    rig.tick(now + 100);
    rig.flow(now + 110, |_, _, _| true);
    for after in [200, 401, 610, 801] {
        rig.tick(now + after);
        rig.flow(now + after, |_, _, _| true);
    }
    assert!((0..4).all(|s| rig.winner(s) == Some(1)), "{:?}", rig.dropped);
    let garbage = |l: &&crate::award::Leaf| matches!(l, crate::award::Leaf::Garbage(b) if b.seat == 0);
    assert_eq!(rig.decided[&1].table.leaves.iter().filter(garbage).count(), 2);
}

#[test]
fn a_copied_bundle_is_garbage_under_another_seat() {
    let mut rig = mk_rig();
    let now = rig.t0();
    rig.tick(now);
    let (_, bytes) = rig.sent.iter().find(|(from, _)| *from == 0).unwrap().clone();
    let Body::Bundle(copied) = decode(&bytes, 4).unwrap().body else { panic!("no bundle") };
    let copy = rig.forge(3, Body::Bundle(copied));
    // Seat 3's own bundle is kept back; it sends the copy of the cheapest bid instead.
    rig.sent.retain(|(from, _)| *from != 3);
    (0..3).for_each(|to| rig.deliver(now, to, &copy));
    rig.flow(now + 10, |from, _, _| from != 3);
    for after in [100, 200, 401, 610, 801] {
        rig.tick(now + after);
        rig.flow(now + after, |from, _, _| from != 3);
    }
    assert_eq!(rig.winner(1), Some(0), "{:?}", rig.dropped);
    let copy_is_garbage = |l: &crate::award::Leaf| matches!(l, crate::award::Leaf::Garbage(b) if b.seat == 3);
    assert!(rig.decided[&1].table.leaves.iter().any(copy_is_garbage));
}

#[test]
fn late_bundles_are_not_listed() {
    let mut rig = mk_rig();
    let now = rig.t0();
    rig.tick(now);
    let (_, late) = rig.sent.iter().find(|(from, _)| *from == 0).unwrap().clone();
    rig.flow(now + 10, |from, _, to| from != 0 && to != 0);
    rig.tick(now + 100);
    rig.sent.retain(|(from, _)| *from != 0);
    for to in 1..4 {
        rig.deliver(now + 101, to, &late);
    }
    rig.flow(now + 110, |from, _, _| from != 0);
    assert!(rig.dropped.contains(&(1, DropReason::Late)));
    assert_eq!(rig.winner(1), Some(1), "the late and cheaper bid does not count");
}

#[test]
fn who_is_woken_late_sends_no_bundle_and_no_set_but_votes_and_opens() {
    let mut rig = mk_rig();
    let now = rig.t0();
    rig.rounds[3] = Round::new(rig.record.clone(), rig.keys[3].clone(), 3, ROUND, now + 100);
    (0..3).for_each(|seat| rig.give(now, seat, RoundInput::Tick));
    rig.flow(now + 10, |_, _, to| to != 3);
    (0..3).for_each(|seat| rig.give(now + 100, seat, RoundInput::Tick));
    let mut kinds = vec![];
    while !rig.sent.is_empty() {
        for (from, bytes) in std::mem::take(&mut rig.sent) {
            if from == 3 {
                kinds.push(peek_kind(&bytes).unwrap());
            }
            (0..4).filter(|to| *to != from).for_each(|to| rig.deliver(now + 110, to, &bytes));
        }
    }
    assert!(!kinds.contains(&Kind::Bundle) && !kinds.contains(&Kind::Set), "{kinds:?}");
    assert!(kinds.contains(&Kind::Open) && kinds.contains(&Kind::Lock), "{kinds:?}");
}

#[test]
fn two_versions_of_a_bundle_are_passed_on_once_and_prove_it_to_who_holds_one() {
    let mut rig = mk_rig();
    let now = rig.t0();
    rig.tick(now);
    rig.sent.clear();
    let version =
        |payload| Bundle { order_view: vec![].into(), u: [1; 48], v: [2; 32], payload: vec![payload] };
    let [a, b] = [3, 4].map(|payload| rig.forge(3, Body::Bundle(version(payload))));
    rig.deliver(now, 0, &a);
    rig.deliver(now, 1, &a);
    rig.deliver(now, 2, &b);
    assert!(rig.proofs.is_empty());
    rig.deliver(now, 0, &b);
    rig.deliver(now, 0, &b);
    let replies = |rig: &Rig| rig.sent.iter().filter(|(_, b)| peek_kind(b) == Some(Kind::Reply)).count();
    assert_eq!((rig.proofs.len(), replies(&rig)), (1, 1));
    let told = rig.sent.iter().find(|(_, b)| peek_kind(b) == Some(Kind::Reply)).unwrap().1.len();
    assert!(told < 300, "{told} bytes: the bundles themselves stay where they are");
    rig.flow(now + 10, |from, kind, to| kind == Kind::Reply && from == 0 && to != 3);
    let proven: BTreeSet<u16> = rig.proofs.iter().map(|(by, _)| *by).collect();
    assert_eq!((proven.len(), rig.proofs.len()), (3, 3));
    // Neither is listed by who got it that way.
    rig.tick(now + 100);
    let Body::Set(set) = decode(&rig.sent_of(1, Kind::Set), 4).unwrap().body else { panic!("no set") };
    let first = decode(&a, 4).unwrap();
    let Body::Bundle(bundle) = &first.body else { panic!("no bundle") };
    assert_eq!(set.held[3], bundle.digest(&first.header));
}
