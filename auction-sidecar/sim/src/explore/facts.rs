//! What of a seat's past still matters for what it will say.
//!
//! Inputs: messages that a seat took in or said, in any order. Output: facts, the same for pasts after which the seat acts
//! alike. What is left out can have no effect any more: votes of a view whose quorum is known, quorums below a higher one,
//! NEWVIEWs of views that are over. That nothing else is left out is checked by the search: it keeps two seats with
//! different pasts and the same facts, and compares what they do.

use super::names::{Bundles, JUNK, KNOWN, MessageId, Names, Shows, What};
use super::{FAULTY, QUORUM, SEATS};
use std::collections::{BTreeMap, BTreeSet};

/// A vote of a seat for a set: its view and its owner.
type Place = (u8, u8);

/// What a seat knows and has said, in short.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Facts {
    /// Whose facts.
    pub place: u8,
    /// Bundles in time, as long as there is a SET to be sent.
    pub held: Bundles,
    /// SETs by owner, each with [`KNOWN`]; zero where none is known.
    pub sets: [Bundles; SEATS],
    /// ADMITs: the set, and the proposal that they name.
    pub admits: BTreeMap<Place, (Bundles, MessageId)>,
    /// Quorums of ADMITs.
    pub quorums: BTreeSet<(u8, Bundles)>,
    pub locks: BTreeMap<Place, Bundles>,
    pub proposals: BTreeMap<u8, MessageId>,
    /// NEWVIEWs by view and seat; what they are where this seat is to propose from them.
    pub calls: BTreeMap<u8, BTreeMap<u8, u64>>,
    pub view: u8,
    /// When the view was entered, where that decides when to propose.
    pub entered: u8,
    pub commit: Option<Bundles>,
    /// What it said that others can use, ascending.
    pub said: Vec<MessageId>,
    /// What of it is new, ascending.
    pub fresh: Vec<MessageId>,
}

impl Facts {
    /// A message of the seat at `from` was taken in, or said where that is this seat; `content` tells NEWVIEWs apart.
    pub fn take(&mut self, from: u8, id: MessageId, what: &What, content: u64) {
        match what {
            What::Bundle(bundle) => self.held |= bundle,
            What::Set(set) => self.learn(&[(from, *set)], &[]),
            What::Admit { view, set, proposal } => {
                self.admits.entry((*view, from)).or_insert((*set, *proposal));
            }
            What::Lock { view, set } => {
                self.locks.entry((*view, from)).or_insert(*set);
                self.quorums.insert((*view, *set));
            }
            What::NewView { view, quorum, sets } => {
                self.learn(sets, quorum.as_slice());
                self.calls.entry(*view).or_default().entry(from).or_insert(content);
            }
            What::Propose { view, shows, .. } => {
                let Shows { sets, quorums, seats } = shows;
                self.learn(sets, quorums);
                for seat in seats {
                    self.calls.entry(*view).or_default().entry(*seat).or_insert(0);
                }
                self.proposals.entry(*view).or_insert(id);
            }
            What::Commit { .. } | What::Open { .. } | What::Award { .. } => {}
        }
    }

    fn learn(&mut self, sets: &[(u8, Bundles)], quorums: &[(u8, Bundles)]) {
        for (owner, set) in sets {
            let known = &mut self.sets[usize::from(*owner)];
            if *known == 0 {
                *known = set | KNOWN;
            }
        }
        self.quorums.extend(quorums);
    }

    /// Adds a message to what was said.
    pub fn say(&mut self, id: MessageId) {
        for list in [&mut self.said, &mut self.fresh] {
            if let Err(at) = list.binary_search(&id) {
                list.insert(at, id);
            }
        }
    }

    /// Whether a quorum of ADMITs of a view is known.
    fn has_quorum(&self, view: u8) -> bool {
        self.quorums.range((view, 0)..=(view, u8::MAX)).next().is_some()
    }

    /// The sets that ADMITs known here are a quorum for. After view 0 only those for the known proposal count.
    fn count(&mut self) {
        let views: BTreeSet<u8> = self.admits.keys().map(|(view, _)| *view).collect();
        for view in views.into_iter().filter(|view| !self.has_quorum(*view)).collect::<Vec<_>>() {
            let mut counts: BTreeMap<Bundles, usize> = BTreeMap::new();
            for (_, (set, proposal)) in self.admits.range((view, 0)..=(view, u8::MAX)) {
                if view == 0 || self.proposals.get(&view) == Some(proposal) {
                    *counts.entry(*set).or_default() += 1;
                }
            }
            let enough = counts.into_iter().find(|(_, count)| *count >= QUORUM);
            self.quorums.extend(enough.map(|(set, _)| (view, set)));
        }
    }

    /// Leaves out what has no effect any more. `proposes` is whether this seat proposes in a view.
    pub fn prune(&mut self, proposes: impl Fn(u8) -> bool, set_said: bool) {
        self.count();
        let view = self.view;
        let is_final = self.commit.is_some();
        // Of the quorums of past views the highest counts, and no vote for a lower one.
        let low = self.quorums.iter().map(|(of, _)| *of).filter(|of| *of <= view).max().unwrap_or_default();
        self.quorums.retain(|(of, _)| *of >= low && (!is_final || *of == view));
        let known: BTreeSet<u8> = self.quorums.iter().map(|(of, _)| *of).collect();
        self.admits.retain(|(of, _), _| {
            let split_matters = *of == 0 && view == 0 && !is_final;
            let open = !known.contains(of) && *of >= low && (!is_final || *of == view);
            split_matters || open
        });
        let voted: BTreeSet<u8> = self.admits.keys().map(|(of, _)| *of).collect();
        self.proposals.retain(|of, _| *of == view || !is_final && (*of > view || voted.contains(of)));
        let to_propose = view > 0 && !is_final && proposes(view) && !self.proposals.contains_key(&view);
        self.calls.retain(|of, _| !is_final && *of >= view);
        for (of, from) in &mut self.calls {
            // Of a seat's NEWVIEWs of one view only the first is learnt from, so who has come counts.
            if !proposes(*of) || *of == view && !to_propose {
                from.values_mut().for_each(|content| *content = 0);
            }
        }
        if !to_propose {
            self.entered = 0;
        }
        if is_final {
            self.locks.clear();
            if view > 0 {
                self.sets = [0; SEATS];
            }
        }
        if set_said {
            self.held = 0;
        }
    }

    /// Whether a message of the faulty seat, beside those given, may change what this seat says now, its view or its commit.
    /// `moves` is whether it enters a view in any case: then it shows what it has learnt.
    pub fn may_show(&self, names: &Names, given: &[MessageId], id: MessageId, moves: bool) -> bool {
        let is_open = self.commit.is_none();
        let said = |what: &dyn Fn(&What) -> bool| self.said.iter().any(|id| what(&names.get(*id).what));
        match &names.get(id).what {
            What::Admit { set: JUNK, .. } => {
                let known = self.admits.range((0, 0)..=(0, u8::MAX)).map(|(_, (set, _))| *set);
                let more = given.iter().filter_map(|id| match names.get(*id).what {
                    What::Admit { view: 0, set, .. } => Some(set),
                    _ => None,
                });
                is_open && self.view == 0 && known.chain(more).collect::<BTreeSet<_>>().len() > 1
            }
            What::Admit { view, set, .. } => {
                let known = self.admits.iter().filter(|((of, _), (s, _))| (of, s) == (view, set));
                let more = given.iter().map(|id| names.get(*id)).filter(
                    |said| matches!(&said.what, What::Admit { view: of, set: s, .. } if (of, s) == (view, set)),
                );
                let voters = known.map(|((_, seat), _)| *seat).chain(more.map(|said| said.from));
                (*view == self.view || moves) && voters.collect::<BTreeSet<_>>().len() + 1 >= QUORUM
            }
            What::Lock { view, set } => {
                let known = self.locks.iter().filter(|((of, _), s)| (of, *s) == (view, set));
                let more = given.iter().map(|id| names.get(*id)).filter(
                    |said| matches!(&said.what, What::Lock { view: of, set: s } if (of, s) == (view, set)),
                );
                let voters = known.map(|((_, seat), _)| *seat).chain(more.map(|said| said.from));
                let locked = said(&|what| matches!(what, What::Lock { view: of, .. } if of == view));
                let completes = is_open && voters.collect::<BTreeSet<_>>().len() + 1 >= QUORUM;
                completes || ((*view == self.view || moves) && !locked)
            }
            What::Commit { .. } => is_open,
            What::Set(_) => {
                let admitted = said(&|what| matches!(what, What::Admit { view: 0, .. }));
                self.sets[usize::from(FAULTY)] == 0 && (moves || (self.view == 0 && !admitted))
            }
            What::NewView { view, .. } => {
                let known = self.calls.get(view).into_iter().flat_map(|from| from.keys().copied());
                let more = given
                    .iter()
                    .map(|id| names.get(*id))
                    .filter(|said| matches!(&said.what, What::NewView { view: of, .. } if of == view));
                let callers = known.chain(more.map(|said| said.from)).collect::<BTreeSet<_>>().len();
                let calls = self.view < *view && callers + 1 >= QUORUM;
                let helps = names.proposer(*view) == self.place && !self.proposals.contains_key(view);
                is_open && (moves || calls || helps)
            }
            What::Propose { view, .. } => is_open && self.view <= *view && !self.proposals.contains_key(view),
            What::Bundle(_) | What::Open { .. } | What::Award { .. } => true,
        }
    }
}
