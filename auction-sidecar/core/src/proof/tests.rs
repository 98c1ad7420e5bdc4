//! Every fault among four seats, as the other seats show it; and that no proof survives a change of any field.

use super::*;
use crate::evidence::message_hash;
use crate::justify;
use crate::round::tests::{ROUND, Rig, mk_rig};
use crate::round::{RoundInput, RoundOutput};
use crate::wire::*;
use serde_json::Value;
use vendue_market::Digest;

fn bundle(payload: u8) -> Body {
    Body::Bundle(Bundle { order_view: vec![[3; 32]].into(), u: [1; 48], v: [2; 32], payload: vec![payload] })
}

fn set(d: u8) -> Body {
    Body::Set(SetMsg { held: vec![[d; 32], [0; 32], [0; 32], [0; 32]], full: None })
}

fn admit(rig: &Rig, seat: u16, view: u32, set: Digest, proposal: Digest) -> Vec<u8> {
    let vote = rig.vote_in(view, seat, VoteWord::Admit, &set);
    rig.forge(seat, Body::Admit(Admit { view, set, proposal, vote }))
}

fn quorum(rig: &Rig, view: u32, word: VoteWord, set: &Digest) -> Quorum {
    use crate::crypto::Crypto;
    let votes: Vec<_> = (0..3).map(|s| rig.vote_in(view, s, word, set)).collect();
    Quorum { signers: Signers::new(4, 0..3), aggregate: rig.keys[0].aggregate(&votes).unwrap() }
}

fn lock(rig: &Rig, seat: u16, view: u32, set: Digest) -> Vec<u8> {
    let quorum = quorum(rig, view, VoteWord::Admit, &set);
    let vote = rig.vote_in(view, seat, VoteWord::Lock, &set);
    rig.forge(seat, Body::Lock(Lock { view, set, quorum, vote }))
}

/// A whole good round up to the given kind; what is of that kind is not delivered.
pub(super) fn up_to(kind: Kind) -> (Rig, u64) {
    let mut rig = mk_rig();
    let now = rig.t0();
    rig.tick(now);
    rig.flow(now + 10, |_, k, _| k != kind);
    (rig, now + 10)
}

fn delivered(messages: &[Vec<u8>]) -> (Rig, u64) {
    let mut rig = mk_rig();
    let now = rig.t0();
    rig.tick(now);
    rig.sent.clear();
    messages.iter().for_each(|m| rig.deliver(now, 0, m));
    (rig, now)
}

fn two(make: impl Fn(&Rig) -> Vec<Vec<u8>>) -> Rig {
    let messages = make(&mk_rig());
    delivered(&messages).0
}

/// The first view in which seat 0, which looks on, does not propose.
fn view(rig: &Rig) -> u32 {
    1 + u32::from(justify::proposer(&rig.record, ROUND, 1) == 0)
}

/// The proposal of that view over one made-up SET, by its proposer, and its digest.
fn proposal(rig: &Rig, other_set: Option<Digest>) -> (Vec<u8>, Digest, Digest) {
    let views = (0..3).map(|seat| {
        let body = NewView { view: view(rig), admitted: None, sets: vec![] };
        let bytes = rig.forge(seat, Body::NewView(body.clone()));
        (seat, (body, decode(&bytes, 4).unwrap().signature.unwrap()))
    });
    let mut body = Propose::new(view(rig), [0; 32], &views.collect(), |_| [0; 32]);
    body.set = other_set.unwrap_or(justify::follow(&rig.record, ROUND, &body).0);
    let set = body.set;
    let bytes = rig.forge(justify::proposer(&rig.record, ROUND, view(rig)), Body::Propose(body));
    let message = decode(&bytes, 4).unwrap();
    let digest = message_hash(&rig.record.market, &message.header, &message.body);
    (bytes, digest, set)
}

/// A seat other than seat 0 and that view's proposer.
fn voter(rig: &Rig) -> u16 {
    (1..4).find(|s| *s != justify::proposer(&rig.record, ROUND, view(rig))).unwrap()
}

fn against_lock() -> Rig {
    two(|rig| {
        let (propose, digest, set) = proposal(rig, None);
        let seat = voter(rig);
        vec![propose, lock(rig, seat, 0, [9; 32]), admit(rig, seat, view(rig), set, digest)]
    })
}

fn for_another_set() -> Rig {
    two(|rig| {
        let (propose, digest, _) = proposal(rig, None);
        vec![admit(rig, voter(rig), view(rig), [8; 32], digest), propose]
    })
}

/// Seat 3 sends something unreadable.
fn garbage() -> Rig {
    let mut rig = mk_rig();
    let now = rig.t0();
    rig.tick(now);
    let junk = rig.forge(3, bundle(7));
    rig.sent.retain(|(from, _)| *from != 3);
    (0..3).for_each(|to| rig.deliver(now, to, &junk));
    finish(&mut rig, now, 3);
    rig
}

/// Seat 3's bundle comes late.
fn absent() -> Rig {
    let mut rig = mk_rig();
    let now = rig.t0();
    rig.tick(now);
    let (_, late) = rig.sent.iter().find(|(from, _)| *from == 3).unwrap().clone();
    rig.flow(now + 10, |from, _, to| from != 3 && to != 3);
    rig.tick(now + 100);
    rig.sent.retain(|(from, _)| *from != 3);
    (0..3).for_each(|to| rig.deliver(now + 101, to, &late));
    finish(&mut rig, now, 3);
    rig
}

/// Lets the round end without a seat.
fn finish(rig: &mut Rig, now: u64, without: u16) {
    rig.flow(now + 10, |from, _, to| from != without && to != without);
    for after in [102, 201, 801] {
        rig.tick(now + after);
        rig.flow(now + after, |from, _, to| from != without && to != without);
    }
    assert!(rig.decided.contains_key(&0), "{:?}", rig.dropped);
}

fn bad_share() -> Rig {
    use crate::crypto::Crypto;
    let (mut rig, now) = up_to(Kind::Open);
    let own = rig.sent_of(0, Kind::Open);
    let Body::Open(mut open) = decode(&own, 4).unwrap().body else { panic!("no share") };
    for (seat, round) in [(1, ROUND + 1), (2, ROUND)] {
        open.share = rig.keys[usize::from(seat)].share(round);
        let bytes = rig.forge(seat, Body::Open(open.clone()));
        rig.deliver(now, 0, &bytes);
    }
    rig
}

fn wrong_award() -> Rig {
    let (mut rig, now) = up_to(Kind::Award);
    let root = [6; 32];
    let vote = rig.vote(2, VoteWord::Award, &root);
    let award = rig.forge(2, Body::Award(AwardVote { root, vote }));
    rig.deliver(now, 0, &award);
    assert!(rig.proofs.is_empty(), "nobody waits for a proof before the certificate");
    rig.tick(rig.record.params.x(ROUND));
    rig
}

/// Seat 3's ADMIT is for another set than the quorum that it is part of.
fn against_quorum() -> Rig {
    use crate::crypto::Crypto;
    two(|rig| {
        let (set, seats) = ([1; 32], [1, 2, 3]);
        let votes = seats.map(|s| rig.vote_in(0, s, VoteWord::Admit, &set));
        let aggregate = rig.keys[0].aggregate(&votes).unwrap();
        let quorum = Quorum { signers: Signers::new(4, seats), aggregate };
        let vote = rig.vote(2, VoteWord::Lock, &set);
        let lock = rig.forge(2, Body::Lock(Lock { view: 0, set, quorum, vote }));
        vec![admit(rig, 3, 0, [2; 32], [0; 32]), lock]
    })
}

#[test]
fn two_certificates_convict_those_in_both() {
    use crate::crypto::Crypto;
    let rig = mk_rig();
    let of = |digest: Digest, seats: [u16; 3]| {
        let votes = seats.map(|s| rig.vote_in(0, s, VoteWord::Award, &digest));
        let aggregate = rig.keys[0].aggregate(&votes).unwrap();
        Voted::quorum(Ballot::Award, ROUND, 0, digest, &Quorum { signers: Signers::new(4, seats), aggregate })
    };
    let judge =
        |first: Voted, second: Voted| verify(&FaultProof::TwoVotes(TwoVotes { first, second }), &rig.record);
    let (one, other) = (of([1; 32], [0, 1, 2]), of([2; 32], [1, 2, 3]));
    let both = Verdict::Guilty { seats: vec![1, 2], fault: Fault::TwoAwards };
    assert_eq!(judge(one.clone(), other), both);
    assert_eq!(judge(one, of([1; 32], [1, 2, 3])), Verdict::Unproven(Unproven::Innocent));
}

/// Seat 3's SET beside n FULL votes for another one.
fn set_against_all() -> Rig {
    use crate::crypto::Crypto;
    two(|rig| {
        let votes: Vec<_> = (0..4).map(|s| rig.vote(s, VoteWord::Full, &[7; 32])).collect();
        let commit = Commit::Fast { aggregate: rig.keys[0].aggregate(&votes).unwrap() };
        vec![rig.forge(2, Body::Commit(CommitMsg { set: [7; 32], commit })), rig.forge(3, set(1))]
    })
}

/// Seat 3's NEWVIEW without any SET, and what shows that seat 3 signed one: its SET, or n FULL votes.
fn hidden_set(by_full_votes: bool) -> Rig {
    use crate::crypto::Crypto;
    two(|rig| {
        let view = rig.forge(3, Body::NewView(NewView { view: view(rig), admitted: None, sets: vec![] }));
        if !by_full_votes {
            return vec![view, rig.forge(3, set(1))];
        }
        let set = [7; 32];
        let votes: Vec<_> = (0..4).map(|s| rig.vote(s, VoteWord::Full, &set)).collect();
        let commit = Commit::Fast { aggregate: rig.keys[0].aggregate(&votes).unwrap() };
        vec![view, rig.forge(2, Body::Commit(CommitMsg { set, commit }))]
    })
}

/// Whatever somebody else makes of an honest seat's messages proves nothing against it: parts that a seat does not sign
/// are not held against it.
#[test]
fn changed_messages_of_honest_seats_prove_nothing() {
    let (rig, _) = up_to(Kind::Admit);
    let shown: Vec<ShownSet> = (0..4)
        .map(|seat| {
            let message = decode(&rig.sent_of(seat, Kind::Set), 4).unwrap();
            let Body::Set(set) = message.body else { panic!("no SET") };
            ShownSet { seat, set, signature: message.signature.unwrap() }
        })
        .collect();
    let body = NewView { view: view(&rig), admitted: None, sets: shown };
    let views = (0..3).map(|seat| {
        let bytes = rig.forge(seat, Body::NewView(body.clone()));
        (seat, (body.clone(), decode(&bytes, 4).unwrap().signature.unwrap()))
    });
    let header = decode(&rig.sent_of(0, Kind::Set), 4).unwrap().header;
    let hash = |s: &ShownSet| crate::evidence::set_hash_by::<Curves>(&rig.record.market, &header, s);
    let mut propose = Propose::new(view(&rig), [0; 32], &views.collect(), hash);
    propose.set = justify::follow(&rig.record, ROUND, &propose).0;
    let by = justify::proposer(&rig.record, ROUND, view(&rig));
    let said = [
        rig.forge(1, Body::NewView(body)),
        rig.forge(by, Body::Propose(propose)),
        rig.sent_of(1, Kind::Set),
        rig.sent_of(1, Kind::Open),
    ];
    for bytes in said {
        let judge = |proof| verify(&proof, &rig.record);
        let whole = Signed(bytes.clone());
        let alone = judge(FaultProof::BadMessage(BadMessage { message: whole.clone() }));
        assert_eq!(alone, Verdict::Unproven(Unproven::Innocent));
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            let changed = Signed(changed);
            let bad = FaultProof::BadMessage(BadMessage { message: changed.clone() });
            let double = FaultProof::Double(Double::Messages { first: whole.clone(), second: changed });
            for proof in [bad, double] {
                let verdict = judge(proof);
                assert!(matches!(verdict, Verdict::Unproven(_)), "byte {at} of {}: {verdict:?}", bytes.len());
            }
        }
    }
}

#[test]
fn a_set_beside_the_votes_of_all_for_another_is_a_second_set() {
    use crate::crypto::Crypto;
    let rig = mk_rig();
    let votes: Vec<_> = (0..4).map(|s| rig.vote(s, VoteWord::Full, &[7; 32])).collect();
    let commit = Commit::Fast { aggregate: rig.keys[0].aggregate(&votes).unwrap() };
    let commit = rig.forge(2, Body::Commit(CommitMsg { set: [7; 32], commit }));
    let own = rig.forge(3, set(1));
    for order in [[&own, &commit], [&commit, &own]] {
        let (found, _) = delivered(&order.map(Clone::clone));
        let verdicts: Vec<Verdict> = found.proofs.iter().map(|(_, p)| verify(p, &found.record)).collect();
        assert_eq!(verdicts, [Verdict::Guilty { seats: vec![3], fault: Fault::TwoSets }]);
    }
}

/// Seat 0 has committed one set by n FULL votes and learns that others committed another one in a later view: the NEWVIEWs
/// that made it possible convict f + 1 seats.
#[test]
fn two_commits_by_hidden_sets_convict_those_who_hid_them() {
    use crate::crypto::Crypto;
    let rig = mk_rig();
    let view = view(&rig);
    let fast = |set: Digest| {
        let votes: Vec<_> = (0..4).map(|s| rig.vote(s, VoteWord::Full, &set)).collect();
        Commit::Fast { aggregate: rig.keys[0].aggregate(&votes).unwrap() }
    };
    let locked = |set: Digest| {
        let quorum = quorum(&rig, view, VoteWord::Lock, &set);
        Commit::Locked { view, quorum }
    };
    let commit =
        |seat: u16, set: Digest, commit: Commit| rig.forge(seat, Body::Commit(CommitMsg { set, commit }));
    let (propose, _, set) = proposal(&rig, None);
    // The proposal's NEWVIEWs are of the seats 0 to 2 and show no SET at all.
    let (found, _) = delivered(&[propose, commit(1, set, locked(set)), commit(2, [7; 32], fast([7; 32]))]);
    let guilty: Vec<u16> = found
        .proofs
        .iter()
        .filter_map(|(_, proof)| match verify(proof, &found.record) {
            Verdict::Guilty { seats, fault: Fault::HiddenSet } => Some(seats),
            _ => None,
        })
        .flatten()
        .collect();
    assert_eq!(guilty, [1, 2], "seat 0 does not accuse itself");
}

#[test]
fn who_signed_no_set_or_shows_it_hides_nothing() {
    let rig = mk_rig();
    let own = rig.forge(3, set(1));
    let Body::Set(shown) = decode(&own, 4).unwrap().body else { panic!("no SET") };
    let shown = ShownSet { seat: 3, set: shown, signature: decode(&own, 4).unwrap().signature.unwrap() };
    let view = |sets: Vec<ShownSet>| rig.forge(3, Body::NewView(NewView { view: 1, admitted: None, sets }));
    let judged = |view: Vec<u8>, set: &[u8]| {
        let set = OwnSet::Message(Signed(set.to_vec()));
        verify(&FaultProof::HiddenSet(HiddenSet { view: Signed(view), set }), &rig.record)
    };
    let guilty = Verdict::Guilty { seats: vec![3], fault: Fault::HiddenSet };
    assert_eq!(judged(view(vec![]), &own), guilty);
    assert_eq!(judged(view(vec![shown]), &own), Verdict::Unproven(Unproven::Innocent));
    assert_eq!(judged(view(vec![]), &rig.forge(2, set(1))), Verdict::Unproven(Unproven::Unrelated));
    let (seat_3_alone, _) = delivered(&[view(vec![])]);
    assert!(seat_3_alone.proofs.is_empty(), "it may have signed no SET");
}

fn unjustified(make: impl Fn(&Rig) -> Vec<u8>) -> Rig {
    two(|rig| vec![make(rig)])
}

/// Each fault with the seat that is guilty, and the rig in which seat 0 found it.
pub(super) fn cases() -> Vec<(&'static str, Fault, Rig)> {
    let awards = |rig: &Rig, d: u8| {
        let vote = rig.vote(1, VoteWord::Award, &[d; 32]);
        rig.forge(1, Body::Award(AwardVote { root: [d; 32], vote }))
    };
    let forged_commit = |rig: &Rig| {
        let commit = Commit::Locked { view: 0, quorum: quorum(rig, 0, VoteWord::Admit, &[1; 32]) };
        rig.forge(2, Body::Commit(CommitMsg { set: [1; 32], commit }))
    };
    let forged_lock = |rig: &Rig| {
        let (set, quorum) = ([1; 32], quorum(rig, 1, VoteWord::Admit, &[1; 32]));
        let vote = rig.vote(2, VoteWord::Lock, &set);
        rig.forge(2, Body::Lock(Lock { view: 0, set, quorum, vote }))
    };
    let forged_full = |rig: &Rig| {
        let full = Some(rig.vote(2, VoteWord::Full, &[9; 32]));
        rig.forge(2, Body::Set(SetMsg { held: vec![[1; 32]; 4], full }))
    };
    // Votes are looked at when something is to follow from them: at the next view, or with a quorum.
    let mut full = unjustified(forged_full);
    full.tick(full.record.params.t3(ROUND));
    let forged_vote = |rig: &Rig| {
        let vote = rig.vote(1, VoteWord::Admit, &[1; 32]);
        let bad = rig.forge(2, Body::Admit(Admit { view: 0, set: [1; 32], proposal: [0; 32], vote }));
        vec![bad, admit(rig, 1, 0, [1; 32], [0; 32]), admit(rig, 3, 0, [1; 32], [0; 32])]
    };
    vec![
        ("two bundles", Fault::TwoBundles, two(|r| vec![r.forge(3, bundle(1)), r.forge(3, bundle(2))])),
        ("two sets", Fault::TwoSets, two(|r| vec![r.forge(3, set(1)), r.forge(3, set(2))])),
        (
            "two admits",
            Fault::TwoVotes,
            two(|r| vec![admit(r, 3, 0, [1; 32], [0; 32]), admit(r, 3, 0, [2; 32], [0; 32])]),
        ),
        ("an admit against a quorum", Fault::TwoVotes, against_quorum()),
        ("two locks", Fault::TwoVotes, two(|r| vec![lock(r, 3, 2, [1; 32]), lock(r, 3, 2, [2; 32])])),
        ("two awards", Fault::TwoAwards, two(|r| vec![awards(r, 1), awards(r, 2)])),
        ("against the lock", Fault::AgainstLock, against_lock()),
        ("for another set than proposed", Fault::AgainstLock, for_another_set()),
        ("a set against the votes of all", Fault::TwoSets, set_against_all()),
        ("a set that is hidden", Fault::HiddenSet, hidden_set(false)),
        ("a set that is hidden, by the votes of all", Fault::HiddenSet, hidden_set(true)),
        ("garbage", Fault::Garbage, garbage()),
        ("absence", Fault::Absent, absent()),
        ("bad share", Fault::BadShare, bad_share()),
        ("forged commit", Fault::Unjustified, unjustified(forged_commit)),
        ("forged quorum", Fault::Unjustified, unjustified(forged_lock)),
        ("forged full", Fault::Unjustified, full),
        ("forged vote", Fault::Unjustified, two(forged_vote)),
        ("bad proposal", Fault::Unjustified, unjustified(|r| proposal(r, Some([4; 32])).0)),
        ("wrong award", Fault::WrongAward, wrong_award()),
    ]
}

pub(super) fn found(rig: &Rig, fault: Fault) -> Option<&FaultProof> {
    let is =
        |p: &FaultProof| matches!(verify(p, &rig.record), Verdict::Guilty { fault: f, .. } if f == fault);
    rig.proofs.iter().map(|(_, p)| p).find(|p| is(p))
}

#[test]
fn every_fault_is_found_once_and_proven_by_its_bytes_alone() {
    for (name, fault, rig) in cases() {
        let by_seat_0 = rig.proofs.iter().filter(|(by, _)| *by == 0).count();
        assert_eq!(by_seat_0, 1, "{name}: {:?}", rig.proofs);
        let proof = found(&rig, fault).unwrap_or_else(|| panic!("{name}: {:?}", rig.proofs));
        let read = FaultProof::from_json(&proof.to_json()).unwrap();
        assert_eq!(&read, proof, "{name}");
        let Verdict::Guilty { seats, .. } = verify(&read, &rig.record) else { panic!("{name}") };
        assert!(!seats.contains(&0) && seats.len() == 1, "{name}");
        let mut other = (*rig.record).clone();
        other.market = [1; 32];
        assert!(matches!(verify(&read, &other), Verdict::Unproven(_)), "{name}: another market");
        let mut later = (*rig.record).clone();
        later.epoch += 1;
        assert!(matches!(verify(&read, &later), Verdict::Unproven(_)), "{name}: another epoch");
    }
}

/// Calls `check` with every value that differs from `value` in one place.
fn changes(value: &Value, check: &mut dyn FnMut(Value)) {
    match value {
        Value::Number(n) => check(Value::from(n.as_u64().unwrap_or_default() + 1)),
        Value::Bool(b) => check(Value::from(!b)),
        Value::String(s) => {
            // Long strings are messages in hex: digits all over them.
            let step = (s.len() / 40).max(1);
            for at in (0..s.len()).step_by(step).chain(s.len().checked_sub(1)) {
                let mut bytes = s.clone().into_bytes();
                bytes[at] = if bytes[at] == b'1' { b'2' } else { b'1' };
                check(Value::from(String::from_utf8(bytes).unwrap()));
            }
        }
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                changes(item, &mut |changed| {
                    let mut items = items.clone();
                    items[at] = changed;
                    check(Value::from(items));
                });
                let mut fewer = items.clone();
                check(Value::from({
                    fewer.remove(at);
                    fewer
                }));
                let mut more = items.clone();
                more.insert(at, item.clone());
                check(Value::from(more));
            }
        }
        Value::Object(fields) => {
            for (name, field) in fields {
                changes(field, &mut |changed| {
                    let mut fields = fields.clone();
                    fields.insert(name.clone(), changed);
                    check(Value::from(fields));
                });
            }
        }
        Value::Null => {}
    }
}

#[test]
fn no_proof_survives_a_change() {
    for (name, fault, rig) in cases() {
        let proof = found(&rig, fault).unwrap();
        let whole: Value = serde_json::from_str(&proof.to_json()).unwrap();
        let mut tried = 0;
        changes(&whole, &mut |changed| {
            tried += 1;
            let text = changed.to_string();
            let Ok(read) = FaultProof::from_json(&text) else { return };
            let verdict = verify(&read, &rig.record);
            assert!(matches!(verdict, Verdict::Unproven(_)), "{name} still proves after a change: {text}");
        });
        assert!(tried >= 40, "{name}: {tried}");
    }
}

#[test]
fn a_good_round_and_a_lossy_one_give_no_proof() {
    let (rig, _) = up_to(Kind::Cert);
    assert_eq!((rig.decided.len(), rig.proofs.len()), (4, 0));
    let mut rig = mk_rig();
    let now = rig.t0();
    for after in (0..6_000).step_by(50) {
        rig.tick(now + after);
        let lost = after / 50 % 3;
        rig.flow(now + after + 5, |from, kind, to| (u64::from(from + to) + kind as u64) % 3 != lost);
    }
    assert!(rig.proofs.is_empty(), "{:?}", rig.proofs);
}

#[test]
fn the_same_twice_is_no_fault_and_what_is_not_about_one_place_neither() {
    let rig = mk_rig();
    let (a, b) = (admit(&rig, 3, 0, [1; 32], [0; 32]), admit(&rig, 3, 1, [2; 32], [5; 32]));
    let (c, d) = (admit(&rig, 2, 0, [2; 32], [0; 32]), lock(&rig, 3, 0, [2; 32]));
    let double = |first: &[u8], second: &[u8]| {
        let (first, second) = (Signed(first.to_vec()), Signed(second.to_vec()));
        verify(&FaultProof::Double(Double::Messages { first, second }), &rig.record)
    };
    assert_eq!(double(&a, &a), Verdict::Unproven(Unproven::Innocent));
    for other in [&b, &c, &d] {
        assert_eq!(double(&a, other), Verdict::Unproven(Unproven::Unrelated));
    }
}

#[test]
fn a_later_quorum_frees_from_the_lock() {
    let rig = mk_rig();
    let seat = voter(&rig);
    let of = |view: u32, of_quorum: u32, set: Digest| {
        let quorum = quorum(&rig, of_quorum, VoteWord::Admit, &set);
        let admitted = Some(Admitted { view: of_quorum, set, quorum });
        let views = (0..3).map(|s| {
            let body = NewView { view, admitted: admitted.clone(), sets: vec![] };
            let bytes = rig.forge(s, Body::NewView(body.clone()));
            (s, (body, decode(&bytes, 4).unwrap().signature.unwrap()))
        });
        let body = Body::Propose(Propose::new(view, set, &views.collect(), |_| [0; 32]));
        rig.forge(justify::proposer(&rig.record, ROUND, view), body)
    };
    for (of_quorum, guilty) in [(0, true), (1, true), (2, false)] {
        let propose = of(3, of_quorum, [8; 32]);
        let message = decode(&propose, 4).unwrap();
        let digest = message_hash(&rig.record.market, &message.header, &message.body);
        let proof = FaultProof::AgainstLock(AgainstLock {
            admit: Signed(admit(&rig, seat, 3, [8; 32], digest)),
            proposal: Signed(propose),
            lock: Some(Signed(lock(&rig, seat, 1, [9; 32]))),
        });
        let verdict = verify(&proof, &rig.record);
        assert_eq!(
            matches!(verdict, Verdict::Guilty { .. }),
            guilty,
            "quorum of view {of_quorum}: {verdict:?}"
        );
    }
}

#[test]
fn starved_owners_say_nothing_about_who_was_absent() {
    let record = &mk_rig().record;
    let listed = |seat: u16| Listed { seat, d: [seat as u8 + 1; 32] };
    let admitted = [listed(0), listed(1), listed(2)];
    let held = |seats: &[u16]| {
        let mut held = vec![[0; 32]; 4];
        seats.iter().for_each(|s| held[usize::from(*s)] = listed(*s).d);
        held
    };
    let against = |seats: &[u16]| speaks_against(record, &listed(3), &held(seats), &admitted);
    assert!(against(&[0, 1, 2]) && against(&[0, 2]), "one of the admitted may be missing");
    assert!(!against(&[0]) && !against(&[]), "two missing: the owner was starved");
    assert!(!against(&[0, 1, 2, 3]), "it lists the bundle");
}

#[test]
fn a_bad_share_that_is_sent_again_is_shown_once() {
    let mut rig = bad_share();
    let found = rig.proofs.len();
    let Some(FaultProof::BadMessage(bad)) = found_proof(&rig) else { panic!("no bad share") };
    let bytes = bad.message.0.clone();
    rig.deliver(rig.t0() + 20, 0, &bytes);
    assert_eq!(rig.last_drop(), Some(crate::DropReason::BadSignature));
    assert_eq!(rig.proofs.len(), found);
}

fn found_proof(rig: &Rig) -> Option<FaultProof> {
    found(rig, Fault::BadShare).cloned()
}

#[test]
fn evidence_is_given_to_the_outside_once() {
    let mut rig = mk_rig();
    let now = rig.t0();
    rig.tick(now);
    rig.sent.clear();
    for d in 1..6 {
        let bytes = rig.forge(3, set(d));
        let message = Box::new(decode(&bytes, 4).unwrap());
        let outputs = rig.rounds[0].handle(now, RoundInput::Message { message, bytes });
        let proofs = outputs.iter().filter(|o| matches!(o, RoundOutput::Evidence(_))).count();
        assert_eq!(proofs, usize::from(d == 2));
    }
}
