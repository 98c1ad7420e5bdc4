//! Rounds in which view 0 does not commit.

use super::tests::{ROUND, Rig, mk_rig};
use super::*;
use crate::evidence::message_hash;
use crate::proof::{Verdict, verify};
use crate::wire::*;

impl Rig {
    fn proposer(&self, view: u32) -> u16 {
        justify::proposer(&self.record, ROUND, view)
    }

    /// A NEWVIEW of a seat with the SETs that seat 0 holds.
    fn new_view(&self, seat: u16, view: u32, admitted: Option<Admitted>) -> (NewView, [u8; 65]) {
        let body = NewView { view, admitted, sets: self.rounds[0].sets.values().cloned().collect() };
        self.signed_view(seat, body)
    }

    fn set_hash(&self, shown: &ShownSet) -> Digest {
        let header =
            Header { kind: Kind::Set, market: self.record.short_id(), epoch: 0, round: ROUND, seat: 0 };
        crate::evidence::set_hash_by::<crate::crypto::Curves>(&self.record.market, &header, shown)
    }

    fn signed_view(&self, seat: u16, body: NewView) -> (NewView, [u8; 65]) {
        let bytes = self.forge(seat, Body::NewView(body.clone()));
        (body, decode(&bytes, 4).unwrap().signature.unwrap())
    }

    fn quorum(&self, view: u32, word: VoteWord, set: &Digest, seats: [u16; 3]) -> Quorum {
        let votes = seats.map(|s| self.vote_in(view, s, word, set));
        Quorum { signers: Signers::new(4, seats), aggregate: self.keys[0].aggregate(&votes).unwrap() }
    }

    /// Runs until all SETs are held by all, without any vote.
    fn up_to_sets(&mut self) -> u64 {
        let now = self.t0();
        self.tick(now);
        // Seat 3's bundle is kept from seat 2, so that no set is complete and there is no fast path.
        self.flow(now + 10, |from, kind, to| match kind {
            Kind::Bundle => (from, to) != (3, 2),
            kind => kind == Kind::Set,
        });
        self.tick(now + 100);
        self.flow(now + 110, |_, kind, _| kind == Kind::Set);
        now
    }

    fn sent_by(&self, seat: u16, kind: Kind) -> Vec<Body> {
        let of = |(h, _): &&(Header, Vec<u8>)| h.kind == kind;
        let sent = self.rounds[usize::from(seat)].sent.iter().filter(of);
        sent.map(|(_, bytes)| decode(bytes, 4).unwrap().body).collect()
    }

    fn all_commit_in(&self, view: u32) -> bool {
        let of = |r: &Round<_>| matches!(r.commit, Some((_, Commit::Locked { view: v, .. })) if v == view);
        self.rounds.iter().all(of)
    }
}

#[test]
fn votes_of_view_0_are_lost_and_view_1_commits() {
    let mut rig = mk_rig();
    let now = rig.up_to_sets();
    assert!(rig.rounds.iter().all(|r| r.next_wake() <= now + 500 && r.view() == 0));
    rig.tick(now + 499);
    rig.sent.clear();
    rig.tick(now + 500);
    assert!(rig.rounds.iter().all(|r| r.view() == 1));
    rig.flow(now + 510, |_, _, _| true);
    // The next round collects until then.
    rig.tick(now + 801);
    rig.flow(now + 801, |_, _, _| true);
    assert!(rig.all_commit_in(1));
    assert!((0..4).all(|s| rig.winner(s) == Some(0)), "{:?}", rig.dropped);
}

/// Others are in view 1 while this seat's clock still shows the time of bundles. If it signed a complete set now, n FULL
/// votes could commit that set beside the one that view 1 commits on NEWVIEWs without it.
#[test]
fn a_seat_that_has_left_view_0_signs_no_set() {
    let mut rig = mk_rig();
    let now = rig.t0();
    rig.tick(now);
    rig.flow(now + 10, |from, kind, to| kind == Kind::Bundle && (from, to) != (3, 2));
    let late = rig.rounds[3].bundles.values().find(|held| held.header.seat == 3).unwrap().bytes.clone();
    for seat in [0, 1, 3] {
        let view = rig.forge(seat, Body::NewView(NewView { view: 1, admitted: None, sets: vec![] }));
        rig.deliver(now + 20, 2, &view);
    }
    assert_eq!((rig.rounds[2].view(), rig.sent_by(2, Kind::NewView).len()), (1, 1));
    rig.deliver(now + 30, 2, &late);
    rig.give(now + 100, 2, RoundInput::Tick);
    assert_eq!(rig.rounds[2].in_time.len(), 4);
    assert!(rig.sent_by(2, Kind::Set).is_empty());
}

#[test]
fn proposers_take_turns_and_each_silent_one_costs_a_view() {
    for silent in 1..=3u32 {
        let mut rig = mk_rig();
        let now = rig.up_to_sets();
        let proposers: Vec<u16> = (1..=4).map(|view| rig.proposer(view)).collect();
        let distinct: BTreeSet<u16> = proposers.iter().copied().collect();
        assert_eq!(distinct.len(), 4);
        let quiet = &proposers[..silent as usize];
        for after in (110..4_000).step_by(50) {
            rig.tick(now + after);
            rig.flow(now + after, |from, kind, _| match kind {
                Kind::Propose => !quiet.contains(&from),
                Kind::Admit => after > 500,
                _ => true,
            });
        }
        assert!(rig.all_commit_in(silent + 1), "{silent} silent");
        assert_eq!(rig.decided.len(), 4);
    }
}

#[test]
fn a_proposer_waits_2_d_for_a_quorum_and_no_longer() {
    let mut rig = mk_rig();
    let now = rig.up_to_sets();
    let proposer = rig.proposer(1);
    let away = (proposer + 1) % 4;
    rig.tick(now + 499);
    rig.sent.clear();
    rig.tick(now + 500);
    rig.flow(now + 510, |from, kind, to| kind == Kind::NewView && from != away && to != away);
    assert!(rig.sent_by(proposer, Kind::Propose).is_empty());
    assert!(rig.rounds[usize::from(proposer)].next_wake() <= now + 700);
    rig.give(now + 699, proposer, RoundInput::Tick);
    assert!(rig.sent_by(proposer, Kind::Propose).is_empty());
    rig.give(now + 700, proposer, RoundInput::Tick);
    assert_eq!(rig.sent_by(proposer, Kind::Propose).len(), 1);
}

#[test]
fn a_split_vote_is_seen_at_once() {
    let mut rig = mk_rig();
    let now = rig.up_to_sets();
    rig.sent.clear();
    for (seat, set) in [(1, [1; 32]), (2, [2; 32])] {
        let vote = rig.vote(seat, VoteWord::Admit, &set);
        let admit = rig.forge(seat, Body::Admit(Admit { view: 0, set, proposal: [0; 32], vote }));
        assert_eq!(rig.rounds[0].view(), 0);
        rig.deliver(now + 150, 0, &admit);
    }
    // Three sets have one vote each, the own one among them, and one vote is open.
    assert_eq!(rig.rounds[0].view(), 1);
    assert_eq!(rig.sent_by(0, Kind::NewView).len(), 1);
}

#[test]
fn who_has_left_a_view_does_not_vote_in_it_but_brings_its_quorum_along() {
    let mut rig = mk_rig();
    let now = rig.up_to_sets();
    rig.tick(now + 499);
    rig.sent.clear();
    rig.tick(now + 500);
    rig.sent.clear();
    let set = rig.rounds[0].set_digest(&rig.rounds[0].derived_list());
    for seat in 1..4 {
        let vote = rig.vote(seat, VoteWord::Admit, &set);
        let admit = rig.forge(seat, Body::Admit(Admit { view: 0, set, proposal: [0; 32], vote }));
        rig.deliver(now + 510, 0, &admit);
    }
    assert!(rig.rounds[0].lock.is_none(), "view 0 is over");
    rig.tick(now + 1_100);
    let carried = rig.sent_by(0, Kind::NewView);
    let [Body::NewView(NewView { view: 2, admitted: Some(a), .. })] = carried.as_slice() else {
        panic!("{carried:?}");
    };
    assert_eq!((a.view, a.set), (0, set));
    // Late LOCKs complete a commit of the view that was left.
    let quorum = rig.quorum(0, VoteWord::Admit, &set, [1, 2, 3]);
    for seat in 1..4 {
        let vote = rig.vote(seat, VoteWord::Lock, &set);
        let lock = rig.forge(seat, Body::Lock(Lock { view: 0, set, quorum: quorum.clone(), vote }));
        rig.deliver(now + 1_110, 0, &lock);
    }
    assert!(matches!(rig.rounds[0].commit, Some((s, Commit::Locked { view: 0, .. })) if s == set));
}

/// Seat `voter` is locked on a set in view 0; the proposal of view 1 follows from SETs that give another.
fn locked_rig() -> (Rig, u64, u16, Digest) {
    let mut rig = mk_rig();
    let now = rig.up_to_sets();
    let voter = (0..4).find(|s| *s != rig.proposer(1) && *s != rig.proposer(2)).unwrap();
    let other = [9; 32];
    let quorum = rig.quorum(0, VoteWord::Admit, &other, [0, 1, 2]);
    let sender = (voter + 1) % 4;
    let vote = rig.vote(sender, VoteWord::Lock, &other);
    let lock = rig.forge(sender, Body::Lock(Lock { view: 0, set: other, quorum, vote }));
    rig.tick(now + 200);
    rig.sent.clear();
    rig.deliver(now + 210, voter, &lock);
    assert_eq!(rig.rounds[usize::from(voter)].lock, Some((0, other)));
    rig.tick(now + 500);
    rig.sent.clear();
    (rig, now + 510, voter, other)
}

fn propose_of(rig: &Rig, view: u32, admitted: Option<Admitted>, set: Option<Digest>) -> Vec<u8> {
    let views = (0..3).map(|s| (s, rig.new_view(s, view, admitted.clone()))).collect();
    let mut body = Propose::new(view, [0; 32], &views, |s| rig.set_hash(s));
    body.set = set.unwrap_or(justify::follow(&rig.record, ROUND, &body).0);
    rig.forge(rig.proposer(view), Body::Propose(body))
}

#[test]
fn an_earlier_lock_binds_too_where_the_proposal_shows_no_quorum() {
    let (mut rig, now, voter, other) = locked_rig();
    let good = decode(&propose_of(&rig, 1, None, None), 4).unwrap();
    let Body::Propose(Propose { set, .. }) = good.body else { panic!("no proposal") };
    let quorum = rig.quorum(1, VoteWord::Admit, &set, [0, 1, 2]);
    let sender = (voter + 1) % 4;
    let vote = rig.vote_in(1, sender, VoteWord::Lock, &set);
    let lock = rig.forge(sender, Body::Lock(Lock { view: 1, set, quorum: quorum.clone(), vote }));
    rig.deliver(now, voter, &lock);
    assert_eq!(rig.rounds[usize::from(voter)].lock, Some((1, set)));
    rig.tick(now + 600);
    rig.sent.clear();
    // The set is that of the last lock, but who shows the first one beside an ADMIT would prove a fault.
    let bare = propose_of(&rig, 2, None, None);
    rig.deliver(now + 600, voter, &bare);
    let round = &rig.rounds[usize::from(voter)];
    assert!(round.proposals.get(&2).is_some_and(|p| p.set == set));
    assert_eq!((round.admitted == Some(2), other == set), (false, false));
    let (mut rig, now, voter, _) = locked_rig();
    rig.deliver(now, voter, &lock);
    rig.tick(now + 600);
    rig.sent.clear();
    let shown = propose_of(&rig, 2, Some(Admitted { view: 1, set, quorum }), None);
    rig.deliver(now + 600, voter, &shown);
    assert_eq!(rig.rounds[usize::from(voter)].admitted, Some(2));
}

#[test]
fn nobody_admits_against_its_lock_without_a_later_quorum() {
    let (mut rig, now, voter, other) = locked_rig();
    let proposal = propose_of(&rig, 1, None, None);
    rig.deliver(now, voter, &proposal);
    let round = &rig.rounds[usize::from(voter)];
    assert!(round.proposals.contains_key(&1) && round.admitted != Some(1));
    // A quorum of the lock's own view does not free it either, and there is none for two sets.
    rig.tick(now + 600);
    rig.sent.clear();
    let set = [8; 32];
    let quorum = rig.quorum(0, VoteWord::Admit, &set, [0, 1, 2]);
    if rig.proposer(2) != voter {
        let same = propose_of(&rig, 2, Some(Admitted { view: 0, set, quorum }), None);
        rig.deliver(now + 600, voter, &same);
        assert_ne!(rig.rounds[usize::from(voter)].admitted, Some(2));
    }
    rig.tick(now + 1_200);
    rig.sent.clear();
    let quorum = rig.quorum(2, VoteWord::Admit, &set, [0, 1, 2]);
    let later = propose_of(&rig, 3, Some(Admitted { view: 2, set, quorum }), None);
    if rig.proposer(3) != voter {
        rig.deliver(now + 1_200, voter, &later);
        let round = &rig.rounds[usize::from(voter)];
        assert_eq!((round.admitted, round.lock), (Some(3), Some((0, other))));
    }
    assert!(rig.proposer(2) != voter || rig.proposer(3) != voter, "the voter proposes once in three views");
}

/// In view 1, with a proposal of its proposer and a seat that is to vote on it.
fn proposed() -> (Rig, u64, u16, u16, Propose) {
    let mut rig = mk_rig();
    let now = rig.up_to_sets();
    rig.tick(now + 500);
    rig.sent.clear();
    let proposer = rig.proposer(1);
    let Body::Propose(body) = decode(&propose_of(&rig, 1, None, None), 4).unwrap().body else {
        panic!("no proposal")
    };
    (rig, now + 510, proposer, (proposer + 1) % 4, body)
}

#[test]
fn proposals_that_do_not_follow_are_refused() {
    type Change = fn(&Rig, &mut Propose);
    let changes: [Change; 5] = [
        |rig, p| {
            let views = (0..2).map(|s| (s, rig.new_view(s, 1, None))).collect();
            *p = Propose::new(1, p.set, &views, |s| rig.set_hash(s));
        },
        |_, p| p.sets[0].signature[9] ^= 1,
        |_, p| p.views[0].signature[9] ^= 1,
        |rig, p| {
            let quorum = rig.quorum(0, VoteWord::Lock, &[8; 32], [0, 1, 2]);
            p.views[0].admitted = Some(Admitted { view: 0, set: [8; 32], quorum });
        },
        |_, p| p.set = [7; 32],
    ];
    for change in changes {
        let (mut rig, now, proposer, voter, good) = proposed();
        let mut bad = good.clone();
        change(&rig, &mut bad);
        let bytes = rig.forge((proposer + 2) % 4, Body::Propose(good.clone()));
        rig.deliver(now, voter, &bytes);
        assert_eq!(rig.last_drop(), Some(DropReason::BadSignature), "it is another seat's turn");
        // Once proven to propose what does not follow, a seat is not listened to any more.
        for proposal in [bad, good] {
            let bytes = rig.forge(proposer, Body::Propose(proposal));
            rig.deliver(now, voter, &bytes);
            assert_eq!(rig.last_drop(), Some(DropReason::BadSignature));
        }
        assert_eq!(rig.rounds[usize::from(voter)].admitted, Some(0));
        assert!(rig.proofs.iter().any(|(by, _)| *by == voter));
    }
    let (mut rig, now, proposer, voter, good) = proposed();
    let bytes = rig.forge(proposer, Body::Propose(good));
    rig.deliver(now, voter, &bytes);
    assert_eq!(rig.rounds[usize::from(voter)].admitted, Some(1));
}

#[test]
fn of_two_proposals_the_first_is_voted_for() {
    let mut rig = mk_rig();
    let now = rig.up_to_sets();
    rig.tick(now + 500);
    rig.sent.clear();
    let voter = (rig.proposer(1) + 1) % 4;
    let set = [8; 32];
    let quorum = rig.quorum(0, VoteWord::Admit, &set, [0, 1, 2]);
    let (first, second) =
        (propose_of(&rig, 1, None, None), propose_of(&rig, 1, Some(Admitted { view: 0, set, quorum }), None));
    rig.deliver(now + 510, voter, &first);
    rig.deliver(now + 510, voter, &second);
    assert_eq!(rig.last_drop(), Some(DropReason::Conflict));
    let admits = rig.sent_by(voter, Kind::Admit);
    let of_view = |b: &&Body| matches!(b, Body::Admit(a) if a.view == 1);
    assert_eq!(admits.iter().filter(of_view).count(), 1);
    assert!(admits.iter().all(|b| !matches!(b, Body::Admit(a) if a.set == set)));
}

#[test]
fn a_new_view_with_a_set_that_nobody_signed_does_not_count() {
    let mut rig = mk_rig();
    let now = rig.up_to_sets();
    let (mut body, _) = rig.new_view(1, 1, None);
    body.sets[2].signature[5] ^= 1;
    let mut early = rig.new_view(2, 1, None).0;
    early.admitted =
        Some(Admitted { view: 1, set: [8; 32], quorum: rig.quorum(1, VoteWord::Admit, &[8; 32], [0, 1, 2]) });
    for (seat, body) in [(1, body), (2, early)] {
        let bytes = rig.forge(seat, Body::NewView(body));
        rig.deliver(now + 150, 0, &bytes);
        assert_eq!(rig.last_drop(), Some(DropReason::BadSignature));
    }
    assert!(rig.rounds[0].new_views.is_empty());
    let guilty: Vec<Vec<u16>> = rig
        .proofs
        .iter()
        .filter_map(|(_, proof)| match verify(proof, &rig.record) {
            Verdict::Guilty { seats, .. } => Some(seats),
            Verdict::Unproven(_) => None,
        })
        .collect();
    assert_eq!(guilty, [[2]], "the signature of another's SET is not what seat 1 signed");
    assert!(rig.rounds[0].accused.contains(&(1, Fault::Unjustified)), "but it is not listened to again");
}

#[test]
fn new_views_of_a_quorum_take_a_seat_along_before_its_own_clock_does() {
    let mut rig = mk_rig();
    let now = rig.up_to_sets();
    for seat in 1..4 {
        assert_eq!(rig.rounds[0].view(), 0);
        let bytes = rig.forge(seat, Body::NewView(rig.new_view(seat, 1, None).0));
        rig.deliver(now + 150, 0, &bytes);
    }
    assert_eq!(rig.rounds[0].view(), 1);
}

#[test]
fn votes_for_proposals_that_nobody_shows_make_no_quorum() {
    let mut rig = mk_rig();
    let now = rig.up_to_sets();
    rig.tick(now + 500);
    rig.sent.clear();
    let voter = (rig.proposer(1) + 1) % 4;
    let bytes = propose_of(&rig, 1, None, None);
    let message = decode(&bytes, 4).unwrap();
    let digest = message_hash(&rig.record.market, &message.header, &message.body);
    let Body::Propose(Propose { set, .. }) = message.body else { panic!("no proposal") };
    rig.deliver(now + 510, voter, &bytes);
    let others: Vec<u16> = (0..4).filter(|s| *s != voter).collect();
    for (seat, proposal, locked) in
        [(others[0], [5; 32], false), (others[1], digest, false), (others[2], digest, true)]
    {
        let vote = rig.vote_in(1, seat, VoteWord::Admit, &set);
        let admit = rig.forge(seat, Body::Admit(Admit { view: 1, set, proposal, vote }));
        rig.deliver(now + 520, voter, &admit);
        assert_eq!(rig.rounds[usize::from(voter)].lock.is_some(), locked);
    }
}

#[test]
fn many_sets_of_one_owner_are_shown_by_their_hashes_and_change_nothing() {
    let mut rig = mk_rig();
    let now = rig.up_to_sets();
    rig.tick(now + 500);
    rig.sent.clear();
    let (proposer, looks_on) = (rig.proposer(1), (rig.proposer(1) + 1) % 4);
    let liar = (proposer + 2) % 4;
    let views = (0..4u16).map(|seat| {
        // Each seat was shown another SET by the liar.
        let mut body = rig.new_view(seat, 1, None).0;
        let held = vec![[seat as u8 + 1; 32], [0; 32], [0; 32], [0; 32]];
        let bytes = rig.forge(liar, Body::Set(SetMsg { held: held.clone(), full: None }));
        let signature = decode(&bytes, 4).unwrap().signature.unwrap();
        let shown = ShownSet { seat: liar, set: SetMsg { held, full: None }, signature };
        body.sets.iter_mut().filter(|s| s.seat == liar).for_each(|s| *s = shown.clone());
        (seat, rig.signed_view(seat, body))
    });
    let views = views.collect();
    let mut body = Propose::new(1, [0; 32], &views, |s| rig.set_hash(s));
    assert_eq!((body.sets.len(), body.others.len()), (5, 2));
    let (set, derived) = justify::follow(&rig.record, ROUND, &body);
    assert!(derived.list.unwrap().iter().all(|l| l.d[1..] != [l.d[0]; 31]), "nothing that the liar listed");
    body.set = set;
    let good = rig.forge(proposer, Body::Propose(body.clone()));
    let mut forged = body;
    forged.others[0].hash[3] ^= 1;
    let forged = rig.forge(proposer, Body::Propose(forged));
    let other = (proposer + 3) % 4;
    for (to, bytes, taken) in [(other, forged, false), (looks_on, good, true)] {
        rig.deliver(now + 510, to, &bytes);
        assert_eq!(rig.rounds[usize::from(to)].proposals.contains_key(&1), taken);
    }
    let by_looks_on = |(by, p): &(u16, FaultProof)| *by == looks_on && matches!(p, FaultProof::Double(_));
    assert!(looks_on == liar || rig.proofs.iter().any(by_looks_on), "{:?}", rig.proofs);
}

#[test]
fn an_owner_of_two_sets_is_left_out_of_the_union() {
    let d = |x: u8| [x; 32];
    let set = |held: [u8; 4]| SetMsg { held: held.map(d).to_vec(), full: None };
    let sets =
        [(0, set([1, 2, 0, 0])), (1, set([1, 2, 0, 4])), (2, set([1, 0, 3, 4])), (2, set([1, 2, 3, 0]))];
    let list = justify::derive(1, sets.iter().map(|(owner, set)| (*owner, set)));
    assert_eq!(list, [Listed { seat: 0, d: d(1) }, Listed { seat: 1, d: d(2) }]);
}

#[test]
fn voting_stops_for_good() {
    let mut rig = mk_rig();
    let now = rig.up_to_sets();
    for after in (110..4_400).step_by(100) {
        rig.tick(now + after);
        if after >= 4_000 {
            let kinds: Vec<Kind> = rig.sent.iter().filter_map(|(_, b)| peek_kind(b)).collect();
            assert!(
                kinds.iter().all(|k| !matches!(k, Kind::Admit | Kind::Lock | Kind::NewView)),
                "{kinds:?}"
            );
        }
        rig.sent.clear();
    }
    assert!(rig.rounds.iter().all(|r| r.view() == 6 && !r.is_committed() && !r.has_opened()));
}

#[test]
fn who_goes_on_to_another_view_is_told_of_the_commit() {
    let mut rig = mk_rig();
    let now = rig.up_to_sets();
    let set = rig.rounds[0].set_digest(&rig.rounds[0].derived_list());
    let quorum = rig.quorum(0, VoteWord::Admit, &set, [1, 2, 3]);
    for seat in 1..4 {
        let vote = rig.vote(seat, VoteWord::Lock, &set);
        let lock = rig.forge(seat, Body::Lock(Lock { view: 0, set, quorum: quorum.clone(), vote }));
        rig.deliver(now + 350, 0, &lock);
    }
    assert!(rig.rounds[0].is_committed());
    rig.tick(now + 500);
    assert_eq!(rig.rounds[0].view(), 0, "it needs no other view");
    let new_view = rig.sent_of(1, Kind::NewView);
    let commits = |rig: &Rig| {
        let from_0 = rig.sent.iter().filter(|(from, _)| *from == 0);
        from_0.filter(|(_, b)| matches!(peek_kind(b), Some(Kind::Commit | Kind::Open))).count()
    };
    for (after, told) in [(510, 1), (520, 0), (720, 1)] {
        rig.sent.clear();
        rig.deliver(now + after, 0, &new_view);
        // What it sends to all again by itself comes on top.
        let again = rig.sent.iter().filter(|(_, b)| peek_kind(b) == Some(Kind::Set)).count();
        assert_eq!(commits(&rig) - again, told, "at {after}");
    }
}

#[test]
fn two_new_views_of_a_seat_in_one_view_are_proven() {
    let mut rig = mk_rig();
    let now = rig.up_to_sets();
    rig.tick(now + 500);
    rig.sent.clear();
    let (whole, _) = rig.new_view(3, 1, None);
    let less = NewView { sets: whole.sets[1..].to_vec(), ..whole.clone() };
    let (first, second) = (rig.forge(3, Body::NewView(whole)), rig.forge(3, Body::NewView(less)));
    let to = (0..3).find(|seat| *seat != rig.proposer(1)).unwrap();
    rig.deliver(now + 510, to, &first);
    rig.deliver(now + 510, to, &first);
    assert!(rig.proofs.is_empty(), "the same again is no fault");
    rig.deliver(now + 510, to, &second);
    let [(by, proof)] = rig.proofs.as_slice() else { panic!("{:?}", rig.proofs) };
    let guilty = crate::proof::verify(proof, &rig.record);
    assert_eq!(*by, to);
    assert_eq!(guilty, crate::proof::Verdict::Guilty { seats: vec![3], fault: Fault::TwoVotes });
}
