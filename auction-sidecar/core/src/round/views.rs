//! Views after the first: when a seat enters one, what it brings, and what the view's proposer makes of it.
//!
//! Invariants: a seat votes in its current view only, and the view never goes down; it ADMITs what follows from the
//! NEWVIEWs of a quorum, and against its own lock only when a quorum of a later view admitted the other set.

use super::{Ballot, Proposal, Round, RoundOutput};
use crate::crypto::Crypto;
use crate::drops::DropReason;
use crate::evidence::{message_hash_by, new_view_hash_by, set_hash_by};
use crate::justify::{self, ByRound};
use crate::log::LogRecord;
use crate::proof::Fault;
use crate::wire::{Admit, Admitted, Body, Header, Kind, NewView, Propose, ShownSet, VoteWord};
use std::collections::BTreeMap;
use vendue_market::Digest;

type Intake = Result<(), DropReason>;

impl<C: Crypto> Round<C> {
    /// Whether this seat still votes: not after voting has stopped, not when the awards are certified, and not where it
    /// may have voted before a restart.
    pub(super) fn votes(&self) -> bool {
        !self.recalled && self.now < self.record.params.x(self.round) && self.certificate.is_none()
    }

    pub(super) fn checks(&self) -> ByRound<'_, C> {
        ByRound { record: &self.record, crypto: &self.crypto, sets: &self.sets, quorums: &self.admit_quorums }
    }

    /// Enters the view that it is by the clock, or a later one that cannot be avoided. Who has a commit needs no view.
    pub(super) fn enter_view(&mut self, out: &mut Vec<RoundOutput>) {
        if !self.votes() || self.commit.is_some() {
            return;
        }
        let by_clock = self.record.params.view_at(self.round, self.now);
        let called = self.new_views.iter().rev().find(|(_, seats)| seats.len() >= self.q()).map(|(v, _)| *v);
        let hopeless = u32::from(self.view == 0 && self.is_hopeless());
        let view = by_clock.max(called.unwrap_or_default()).max(hopeless);
        if view <= self.view {
            return;
        }
        self.view = view;
        self.entered_ms = self.now;
        self.sent.retain(|(header, _)| !matches!(header.kind, Kind::NewView | Kind::Propose));
        let bare = &self.bare;
        self.spoken.retain(|(kind, of, seat), _| {
            *kind != Kind::NewView || *of >= view || bare.contains(&(*of, *seat))
        });
        self.send_new_view(out);
    }

    /// Whether no set can get a quorum of ADMITs in view 0 any more.
    fn is_hopeless(&self) -> bool {
        let mut counts: BTreeMap<Digest, usize> = BTreeMap::new();
        let mut heard = 0;
        for (_, ballot) in self.admits.range((0, 0)..(1, 0)) {
            *counts.entry(ballot.set).or_default() += 1;
            heard += 1;
        }
        counts.values().max().copied().unwrap_or_default() + self.n() - heard < self.q()
    }

    /// The quorum of ADMITs of the highest view below `view` that this seat knows of or can make.
    fn highest_admitted(&mut self, view: u32, out: &mut Vec<RoundOutput>) -> Option<Admitted> {
        for below in (0..view).rev() {
            self.find_admit_quorum(below, out);
            let known = self.admit_quorums.range((below, [0; 32])..=(below, [255; 32])).next();
            if let Some(((view, set), quorum)) = known {
                return Some(Admitted { view: *view, set: *set, quorum: quorum.clone() });
            }
        }
        None
    }

    fn send_new_view(&mut self, out: &mut Vec<RoundOutput>) {
        self.settle_sets(out);
        let admitted = self.highest_admitted(self.view, out);
        let body = NewView { view: self.view, admitted, sets: self.sets.values().cloned().collect() };
        let message = Body::NewView(body.clone());
        let hash = message_hash_by::<C::Scheme>(&self.record.market, &self.header(&message), &message);
        if let Some(signature) = self.broadcast(message, out) {
            self.keep_new_view(self.index, body, hash, signature);
        }
    }

    /// Counts a NEWVIEW; only who proposes in its view keeps what is in it.
    fn keep_new_view(&mut self, seat: u16, view: NewView, hash: Digest, signature: [u8; 65]) {
        self.new_views.entry(view.view).or_default().insert(seat, hash);
        if justify::proposer(&self.record, self.round, view.view) == self.index && view.view >= self.view {
            self.to_propose.entry(view.view).or_default().insert(seat, (view, signature));
        }
    }

    /// Takes over SETs and the quorum that others show; they were checked.
    pub(super) fn learn(&mut self, sets: &[ShownSet], admitted: Option<&Admitted>) {
        for shown in sets {
            match self.sets.get(&shown.seat) {
                Some(known) if known.set == shown.set => {}
                Some(_) => {
                    if !self.accused.contains(&(shown.seat, Fault::TwoSets)) {
                        self.other_sets.push(shown.clone());
                    }
                }
                None => {
                    self.count_full(shown);
                    self.sets.insert(shown.seat, shown.clone());
                }
            }
        }
        if let Some(a) = admitted {
            self.admit_quorums.entry((a.view, a.set)).or_insert_with(|| a.quorum.clone());
        }
    }

    pub(super) fn take_new_view(&mut self, header: &Header, view: NewView, signature: [u8; 65]) -> Intake {
        let hash = message_hash_by::<C::Scheme>(&self.record.market, header, &Body::NewView(view.clone()));
        match self.new_views.get(&view.view).and_then(|seats| seats.get(&header.seat)) {
            Some(known) if *known == hash => return Err(DropReason::Duplicate),
            Some(_) => return Err(DropReason::Conflict),
            None => {}
        }
        if view.view < self.view || self.commit.is_some() {
            return Err(DropReason::Late);
        }
        if !justify::new_view(&self.checks(), header, &view) {
            return Err(DropReason::BadSignature);
        }
        self.learn(&view.sets, view.admitted.as_ref());
        if view.sets.iter().all(|s| s.seat != header.seat) {
            self.bare.insert((view.view, header.seat));
        }
        self.keep_new_view(header.seat, view, hash, signature);
        Ok(())
    }

    /// Proposes once in a view that is this seat's turn: when all NEWVIEWs are there, or after 2 D with a quorum.
    pub(super) fn propose(&mut self, out: &mut Vec<RoundOutput>) {
        let view = self.view;
        if view == 0 || self.proposals.contains_key(&view) || !self.votes() {
            return;
        }
        let Some(views) = self.to_propose.get(&view) else { return };
        let waited = self.now >= self.entered_ms + 2 * self.record.params.delay_ms;
        if views.len() < self.q() || !(waited || views.len() == self.n()) {
            return;
        }
        let header = self.header(&Body::NewView(NewView { view, admitted: None, sets: vec![] }));
        let hash_of = |shown: &ShownSet| set_hash_by::<C::Scheme>(&self.record.market, &header, shown);
        let mut body = Propose::new(view, [0; 32], views, hash_of);
        let (set, derived) = justify::follow(&self.record, self.round, &body);
        body.set = set;
        let body = Body::Propose(body);
        let digest = message_hash_by::<C::Scheme>(&self.record.market, &self.header(&body), &body);
        self.keep_proposal(view, Proposal { digest, set, from: derived.from }, derived.list);
        self.broadcast(body, out);
    }

    fn keep_proposal(&mut self, view: u32, proposal: Proposal, list: Option<Vec<crate::wire::Listed>>) {
        if let Some(list) = list {
            self.voted_lists.insert(proposal.set, list);
        }
        self.proposals.insert(view, proposal);
    }

    pub(super) fn take_propose(&mut self, header: &Header, propose: Propose) -> Intake {
        let view = propose.view;
        let body = Body::Propose(propose);
        let digest = message_hash_by::<C::Scheme>(&self.record.market, header, &body);
        let Body::Propose(propose) = body else { return Err(DropReason::Unexpected) };
        if header.seat != justify::proposer(&self.record, self.round, view) {
            return Err(DropReason::BadSignature);
        }
        match self.proposals.get(&view) {
            Some(known) if known.digest == digest => return Err(DropReason::Duplicate),
            Some(_) => return Err(DropReason::Conflict),
            None => {}
        }
        if view < self.view || self.commit.is_some() {
            return Err(DropReason::Late);
        }
        let derived = justify::proposal(&self.checks(), header, &propose).ok_or(DropReason::BadSignature)?;
        // The NEWVIEWs in it count like those that come alone.
        self.learn(&propose.sets, None);
        for (seat, admitted, sets, _) in
            propose.brought(|s| set_hash_by::<C::Scheme>(&self.record.market, header, s))
        {
            let header = Header { kind: Kind::NewView, seat, ..*header };
            let hash = new_view_hash_by::<C::Scheme>(&self.record.market, &header, view, admitted, &sets);
            self.learn(&[], admitted);
            self.new_views.entry(view).or_default().entry(seat).or_insert(hash);
        }
        self.keep_bare_views(header, &propose);
        self.keep_proposal(view, Proposal { digest, set: propose.set, from: derived.from }, derived.list);
        Ok(())
    }

    /// ADMITs the proposal of the current view, once, unless this seat has locked another set and the proposal shows no
    /// later quorum for its own.
    pub(super) fn admit_proposal(&mut self, out: &mut Vec<RoundOutput>) {
        let view = self.view;
        let locked_here = self.lock.is_some_and(|(locked, _)| locked == view);
        if view == 0 || self.admitted == Some(view) || locked_here || !self.votes() {
            return;
        }
        let Some(Proposal { digest, set, from }) = self.proposals.get(&view).cloned() else { return };
        // Of several locks not only the last counts: each of them can be shown beside this vote.
        let mine = self.locks.iter().filter(|((locked, seat), _)| *seat == self.index && *locked < view);
        let free = mine
            .map(|((locked, _), ballot)| (*locked, ballot.set))
            .all(|(locked, on)| on == set || from.is_some_and(|from| from > locked));
        if !free {
            return;
        }
        self.admit(view, set, digest, out);
    }

    /// Votes for a set in the current view.
    pub(super) fn admit(&mut self, view: u32, set: Digest, proposal: Digest, out: &mut Vec<RoundOutput>) {
        self.admitted = Some(view);
        let vote = self.crypto.vote(&self.vote_message(VoteWord::Admit, view, &set));
        self.admits.insert((view, self.index), Ballot { set, proposal, vote });
        if let Some(list) = self.voted_lists.get(&set).cloned() {
            out.push(RoundOutput::Persist(LogRecord::List { round: self.round, list }));
        }
        self.broadcast(Body::Admit(Admit { view, set, proposal, vote }), out);
    }

    /// Makes the quorum of ADMITs of a view where the votes are there and it is not known. After view 0 only votes for
    /// the proposal that this seat holds count: a vote that names a proposal which nobody can show is a vote that nobody
    /// answers for.
    pub(super) fn find_admit_quorum(&mut self, view: u32, out: &mut Vec<RoundOutput>) {
        if self.admit_quorums.range((view, [0; 32])..=(view, [255; 32])).next().is_some() {
            return;
        }
        let proposal = self.proposals.get(&view).map(|p| p.digest);
        let counts = |ballot: &Ballot| view == 0 || Some(ballot.proposal) == proposal;
        if let Some((set, quorum)) = self.quorum_of(VoteWord::Admit, view, counts, out) {
            self.admit_quorums.insert((view, set), quorum);
        }
    }
}
