//! Votes that do not verify: they are found when their sum is needed, name their sender, and change nothing.

use super::tests::{ROUND, Rig, mk_rig};
use super::*;
use crate::crypto::SeatCrypto;
use crate::proof::Verdict;
use crate::wire::*;
use std::sync::atomic::{AtomicU32, Ordering};
use vendue_sealed_bid::{CryptoError, Sealed};

/// A SET that lists everything, with a FULL vote for something else.
fn false_full(rig: &Rig, seat: u16) -> Vec<u8> {
    let Body::Set(set) = decode(&rig.sent_of(seat, Kind::Set), 4).unwrap().body else { panic!("no SET") };
    let full = Some(rig.vote(seat, VoteWord::Full, &[9; 32]));
    rig.forge(seat, Body::Set(SetMsg { full, ..set }))
}

/// Bundles are everywhere and all seats have signed their SETs, which nobody heard.
fn up_to_full_sets(rig: &mut Rig) -> u64 {
    let now = rig.t0() + 10;
    rig.tick(rig.t0());
    rig.flow(now, |_, kind, _| kind == Kind::Bundle);
    now
}

fn proven(rig: &Rig, by: u16) -> Vec<(Vec<u16>, Fault)> {
    let judge = |proof: &FaultProof| match crate::proof::verify(proof, &rig.record) {
        Verdict::Guilty { seats, fault } => (seats, fault),
        Verdict::Unproven(why) => panic!("{why:?}"),
    };
    rig.proofs.iter().filter(|(seat, _)| *seat == by).map(|(_, proof)| judge(proof)).collect()
}

#[test]
fn a_false_full_vote_spoils_no_more_than_the_fast_commit() {
    let mut rig = mk_rig();
    let now = up_to_full_sets(&mut rig);
    let bad = false_full(&rig, 3);
    rig.deliver(now, 0, &bad);
    assert!(rig.dropped.is_empty(), "it is not looked at alone");
    for seat in [1, 2] {
        let set = rig.sent_of(seat, Kind::Set);
        rig.deliver(now, 0, &set);
    }
    assert!(!rig.rounds[0].is_committed() && !rig.rounds[0].has_opened());
    assert_eq!(rig.dropped, [(0, DropReason::BadSignature)]);
    assert_eq!(proven(&rig, 0), [(vec![3], Fault::Unjustified)]);
    assert!(!rig.rounds[0].sets.contains_key(&3), "the SET is forgotten with its vote");
    // Who is proven to vote falsely gets no second check; the others go on without it.
    rig.deliver(now, 0, &bad);
    assert_eq!(rig.dropped.len(), 2);
    let sets: Vec<_> = (0..3).map(|seat| rig.sent_of(seat, Kind::Set)).collect();
    for to in [1, 2] {
        sets.iter().zip(0..3).filter(|(_, from)| *from != to).for_each(|(set, _)| rig.deliver(now, to, set));
    }
    rig.sent.clear();
    rig.tick(rig.record.params.t1(ROUND));
    rig.flow(rig.record.params.t1(ROUND) + 10, |from, _, to| from != 3 && to != 3);
    assert!((0..3).all(|seat| rig.winner(seat) == Some(0)), "{:?}", rig.dropped);
    assert!(matches!(rig.rounds[0].commit, Some((_, Commit::Locked { view: 0, .. }))));
}

#[test]
fn a_set_with_a_false_full_vote_is_never_shown_and_never_taken_for_checked() {
    let mut rig = mk_rig();
    let now = up_to_full_sets(&mut rig);
    let bad = false_full(&rig, 3);
    rig.deliver(now, 0, &bad);
    let header = decode(&bad, 4).unwrap();
    let (Body::Set(set), Some(signature)) = (header.body, header.signature) else { panic!("no SET") };
    let shown = ShownSet { seat: 3, set, signature };
    let view = Body::NewView(NewView { view: 1, admitted: None, sets: vec![shown.clone()] });
    let new_view = rig.forge(2, view);
    rig.deliver(now, 0, &new_view);
    assert_eq!(rig.last_drop(), Some(DropReason::BadSignature), "it shows what does not verify");
    assert_eq!(proven(&rig, 0), [(vec![3], Fault::Unjustified), (vec![2], Fault::Unjustified)]);

    rig.deliver(now, 1, &bad);
    rig.sent.clear();
    rig.tick(rig.record.params.t3(ROUND));
    let Body::NewView(brought) = decode(&rig.sent_of(1, Kind::NewView), 4).unwrap().body else { panic!() };
    assert_eq!(brought.sets.iter().map(|s| s.seat).collect::<Vec<_>>(), [1]);
}

#[test]
fn false_votes_are_thrown_out_and_the_others_make_the_quorum() {
    let mut rig = mk_rig();
    let now = rig.t0();
    rig.tick(now);
    rig.flow(now + 10, |_, kind, _| kind != Kind::Award);
    let root = rig.rounds[0].result.as_ref().unwrap().root;
    let vote = rig.vote(3, VoteWord::Award, &[9; 32]);
    let bad = rig.forge(3, Body::Award(AwardVote { root, vote }));
    rig.deliver(now + 20, 0, &bad);
    let good: Vec<_> = [1, 2].map(|seat| rig.sent_of(seat, Kind::Award)).to_vec();
    rig.deliver(now + 20, 0, &good[0]);
    assert!(rig.decided.is_empty(), "two good votes of three");
    assert_eq!(
        (rig.dropped.as_slice(), rig.rounds[0].award_votes.len()),
        (&[(0, DropReason::BadSignature)][..], 2)
    );
    assert_eq!(proven(&rig, 0), [(vec![3], Fault::Unjustified)]);
    rig.deliver(now + 20, 0, &good[1]);
    let certificate = &rig.decided[&0].certificate;
    assert_eq!(certificate.quorum.signers, Signers::new(4, [0, 1, 2]));
    assert_eq!(crate::verify::certificate(&rig.record, certificate), Ok(()));
}

#[test]
fn false_admits_and_locks_are_thrown_out_too() {
    let mut rig = mk_rig();
    rig.tick(rig.t0());
    let t1 = rig.record.params.t1(ROUND);
    rig.flow(rig.t0() + 10, |from, kind, to| {
        from != 3 && to != 3 && kind == Kind::Bundle || kind == Kind::Set
    });
    rig.tick(t1);
    rig.flow(t1 + 10, |from, kind, to| from != 3 && to != 3 && kind == Kind::Set);
    rig.tick(t1 + 20);
    rig.sent.clear();
    let Some(Body::Admit(admit)) = decode(&rig.sent_of(0, Kind::Admit), 4).ok().map(|m| m.body) else {
        panic!()
    };
    let vote = rig.vote(3, VoteWord::Admit, &[9; 32]);
    let bad = rig.forge(3, Body::Admit(Admit { vote, ..admit.clone() }));
    let good = [1, 2].map(|seat| rig.sent_of(seat, Kind::Admit));
    rig.deliver(t1 + 30, 0, &bad);
    rig.deliver(t1 + 30, 0, &good[0]);
    assert!(rig.rounds[0].lock.is_none(), "two good votes of three");
    assert_eq!(proven(&rig, 0), [(vec![3], Fault::Unjustified)]);
    rig.deliver(t1 + 30, 0, &good[1]);
    assert_eq!(rig.rounds[0].lock, Some((0, admit.set)));
    let quorum = rig.rounds[0].admit_quorums.values().next().unwrap().clone();
    assert_eq!(quorum.signers, Signers::new(4, [0, 1, 2]));

    // Another seat takes the false LOCK last of three.
    rig.deliver(t1 + 30, 1, &rig.sent_of(0, Kind::Admit));
    rig.deliver(t1 + 30, 1, &good[1]);
    let vote = rig.vote(3, VoteWord::Lock, &[9; 32]);
    let bad = rig.forge(3, Body::Lock(Lock { view: 0, set: admit.set, quorum, vote }));
    rig.deliver(t1 + 40, 1, &rig.sent_of(0, Kind::Lock));
    rig.deliver(t1 + 40, 1, &bad);
    assert!(!rig.rounds[1].is_committed());
    assert_eq!(proven(&rig, 1), [(vec![3], Fault::Unjustified)]);
}

#[test]
fn the_own_bundle_is_shown_only_once_somebody_else_lists_it() {
    let mut rig = mk_rig();
    let now = rig.t0();
    rig.tick(now);
    // Seat 0's own bundle stays on its machine; the others exchange theirs.
    rig.flow(now + 10, |from, _, _| from != 0);
    let d = rig.rounds[0].in_time[&0];
    let ask = |rig: &mut Rig| {
        rig.sent.clear();
        let fetch = rig.forge(3, Body::Fetch(Fetch::Bundles(vec![Listed { seat: 0, d }])));
        rig.deliver(now + 200, 0, &fetch);
        rig.sent.iter().filter(|(from, bytes)| *from == 0 && peek_kind(bytes).unwrap() == Kind::Reply).count()
    };
    assert_eq!(ask(&mut rig), 0, "it would be evidence of a bundle that came late");
    let mut held = vec![[0; 32]; 4];
    held[0] = d;
    let listed = rig.forge(1, Body::Set(SetMsg { held, full: None }));
    rig.deliver(now + 200, 0, &listed);
    assert_eq!(ask(&mut rig), 1, "it has left in time");
}

/// Real cryptography that counts how often votes are aggregated.
struct Counting(Arc<SeatCrypto>, AtomicU32);

impl Crypto for Counting {
    type Opened = <SeatCrypto as Crypto>::Opened;
    type Scheme = <SeatCrypto as Crypto>::Scheme;

    fn seal(&self, round: u64, header: &[u8], payload: &[u8]) -> std::result::Result<Sealed, CryptoError> {
        self.0.seal(round, header, payload)
    }
    fn share(&self, round: u64) -> [u8; 96] {
        self.0.share(round)
    }
    fn combine(
        &self,
        round: u64,
        shares: &[(u16, [u8; 96])],
    ) -> std::result::Result<Self::Opened, CryptoError> {
        self.0.combine(round, shares)
    }
    fn open(&self, opened: &Self::Opened, header: &[u8], sealed: &Sealed) -> Option<Vec<u8>> {
        self.0.open(opened, header, sealed)
    }
    fn beacon(&self, opened: &Self::Opened) -> Digest {
        self.0.beacon(opened)
    }
    fn combined(&self, opened: &Self::Opened) -> [u8; 96] {
        self.0.combined(opened)
    }
    fn vote(&self, message: &[u8]) -> [u8; 48] {
        self.0.vote(message)
    }
    fn verify_vote(&self, seat: u16, message: &[u8], vote: &[u8; 48]) -> bool {
        self.0.verify_vote(seat, message, vote)
    }
    fn aggregate(&self, votes: &[[u8; 48]]) -> Option<[u8; 48]> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.aggregate(votes)
    }
    fn verify_aggregate(&self, seats: &[u16], message: &[u8], aggregate: &[u8; 48]) -> bool {
        self.0.verify_aggregate(seats, message, aggregate)
    }
    fn sign(&self, hash: &Digest) -> [u8; 65] {
        self.0.sign(hash)
    }
    fn verify(&self, hash: &Digest, signature: &[u8; 65], key: &[u8; 33]) -> bool {
        self.0.verify(hash, signature, key)
    }
}

#[test]
fn votes_are_aggregated_once_however_often_the_round_is_looked_at() {
    let rig = mk_rig();
    let now = rig.t0();
    let crypto = Arc::new(Counting(rig.keys[0].clone(), AtomicU32::new(0)));
    let mut round = Round::new(rig.record.clone(), crypto.clone(), 0, ROUND, now);
    let set = [7; 32];
    for seat in 1..4 {
        let vote = rig.vote(seat, VoteWord::Admit, &set);
        let bytes = rig.forge(seat, Body::Admit(Admit { view: 0, set, proposal: [0; 32], vote }));
        let message = Box::new(decode(&bytes, 4).unwrap());
        round.handle(now + 300, RoundInput::Message { message, bytes });
    }
    assert!(round.lock.is_some());
    for after in 300..400 {
        round.handle(now + after, RoundInput::Tick);
    }
    assert_eq!(crypto.1.load(Ordering::Relaxed), 1);
}
