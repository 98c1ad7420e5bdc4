//! Key generations in which a seat lies, withholds or says two things.

use super::tests::{D, Rig, mk_secrets, on_time};
use super::*;
use crate::proof::{Fault, Verdict};
use crate::wire::{Bundle, peek_kind};

/// Seat 3 is faulty: what it says is changed on its way.
fn faulty(n: u16, attempts: u64, change: impl Fn(&Rig, u16, Kind, &[u8]) -> Vec<Vec<u8>>) -> Rig {
    let mut rig = Rig::new(n);
    let forger = Rig::new(n);
    let fate = |from: u16, to: u16, bytes: &[u8]| {
        if from != 3 {
            return on_time(from, to, bytes);
        }
        let changed = change(&forger, to, peek_kind(bytes).unwrap(), bytes);
        changed.into_iter().map(|bytes| (D / 2, bytes)).collect()
    };
    rig.begin(&fate);
    rig.run(rig.until(attempts), &fate);
    rig
}

fn same(bytes: &[u8]) -> Vec<Vec<u8>> {
    vec![bytes.to_vec()]
}

#[test]
fn a_bad_share_is_revealed_or_does_not_count() {
    // The envelope of seat 1 is spoiled, for everybody alike.
    let rig = faulty(4, 2, |rig, _, kind, bytes| match kind {
        Kind::Deal => vec![rig.instead(bytes, |body| {
            let Body::Deal(mut deal) = body else { return body };
            let at = deal.dealing.len() - 3 * 48;
            deal.dealing[at] ^= 1;
            Body::Deal(deal)
        })],
        _ => same(bytes),
    });
    rig.check(3);
    let dealers: Vec<u16> = rig.done[&0].outcome.dealers.keys().copied().collect();
    // Seat 3 saw that seat 1 did not acknowledge and revealed its value.
    assert_eq!(dealers, [0, 1, 2, 3]);
    assert!(rig.done[&0].outcome.public.is_empty());
}

#[test]
fn withheld_dealings_are_revealed_or_do_not_count() {
    let rig = faulty(4, 2, |_, to, kind, bytes| match (kind, to) {
        (Kind::Deal, 1) => vec![],
        _ => same(bytes),
    });
    rig.check(3);
    assert!(rig.done[&1].outcome.dealers.contains_key(&3), "seat 1 fetched what others hold");
    // Towards two: more than it may reveal, so it does not deal.
    let rig = faulty(4, 2, |_, to, kind, bytes| match (kind, to) {
        (Kind::Deal, 0 | 1) => vec![],
        _ => same(bytes),
    });
    rig.check(3);
    assert_eq!(rig.done[&1].outcome.dealers.keys().copied().collect::<Vec<_>>(), [0, 1, 2]);
}

#[test]
fn a_dealing_of_another_degree_is_none() {
    let rig = faulty(4, 2, |rig, _, kind, bytes| match kind {
        Kind::Deal => vec![rig.instead(bytes, |body| {
            let Body::Deal(mut deal) = body else { return body };
            deal.dealing.extend_from_within(35..35 + 96);
            Body::Deal(deal)
        })],
        _ => same(bytes),
    });
    rig.check(3);
    assert_eq!(rig.done[&1].outcome.dealers.keys().copied().collect::<Vec<_>>(), [0, 1, 2]);
}

#[test]
fn who_denies_an_acknowledgement_holds_up_one_attempt() {
    let rig = faulty(4, 3, |rig, _, kind, bytes| match kind {
        Kind::Bundle => vec![rig.instead(bytes, |body| {
            let Body::Bundle(bundle) = body else { return body };
            let mut said = Word::read(rig.terms.setup(), &bundle.payload).unwrap();
            said.contribution.acks = vec![[0; 32]; 4];
            Body::Bundle(Bundle { payload: said.to_bytes(rig.terms.setup()), ..bundle })
        })],
        // It commits to nothing that follows from its own version.
        Kind::Set | Kind::Admit | Kind::Lock | Kind::Award => vec![],
        _ => same(bytes),
    });
    rig.check(3);
    assert_eq!(rig.done[&0].certificate.round, 1);
    assert_eq!(rig.done[&0].outcome.public.iter().collect::<Vec<_>>(), [3]);
    // What the honest seats dealt is the same in both attempts.
    for seat in 0..3u16 {
        let own: Vec<_> =
            rig.said.iter().filter(|(from, b)| *from == seat && peek_kind(b) == Some(Kind::Deal)).collect();
        assert_eq!(own.len(), 1, "seat {seat}");
    }
}

#[test]
fn rushing_changes_the_key_and_breaks_nothing() {
    // Seat 3 deals after it has seen all other dealings, just before the others acknowledge.
    let mut rig = Rig::new(4);
    let fate = |from: u16, to: u16, bytes: &[u8]| match (from, peek_kind(bytes).unwrap()) {
        (3, Kind::Deal) => vec![(4 * D, bytes.to_vec())],
        _ => on_time(from, to, bytes),
    };
    rig.begin(&fate);
    rig.run(rig.until(2), &fate);
    rig.check(4);
    assert!(rig.done[&0].outcome.dealers.contains_key(&3));
}

#[test]
fn two_contributions_are_proven_and_two_dealings_count_for_one_at_most() {
    let rig = faulty(4, 3, |rig, to, kind, bytes| match kind {
        Kind::Bundle if to == 1 => vec![rig.instead(bytes, |body| {
            let Body::Bundle(mut bundle) = body else { return body };
            bundle.payload.push(0);
            Body::Bundle(bundle)
        })],
        _ => same(bytes),
    });
    rig.check(3);
    let guilty = |p: &FaultProof| crate::proof::verify(p, rig.terms.record());
    let proven: Vec<_> = rig.proofs.iter().map(guilty).collect();
    let two = Verdict::Guilty { seats: vec![3], fault: Fault::TwoBundles };
    assert!(proven.contains(&two), "{proven:?}");
    // In the auction's own market it proves nothing.
    assert!(rig.proofs.iter().all(|p| !matches!(crate::proof::verify(p, &rig.old), Verdict::Guilty { .. })));

    let other = mk_secrets(9, None);
    let rig = faulty(4, 3, |rig, to, kind, bytes| match kind {
        Kind::Deal if to == 1 => vec![rig.instead(bytes, |body| {
            let Body::Deal(deal) = body else { return body };
            let dealer = Dealer::new(rig.terms.setup(), 3, &other.seed).unwrap();
            let keys = (0..4).map(|s| mk_secrets(s, None).deal.public_key().unwrap());
            let to: Vec<_> = keys.map(|k| RecipientKey::from_bytes(&k).ok()).collect();
            drop(deal);
            Body::Deal(Deal { dealing: dealer.dealing(&to).unwrap().to_bytes() })
        })],
        _ => same(bytes),
    });
    rig.check(3);
}
