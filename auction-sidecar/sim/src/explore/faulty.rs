//! What the faulty seat may say in a phase. It hears everything that honest seats say, at once and for certain.
//!
//! Input: what was said so far. Output: offers, of which each honest seat is made one or none, whatever the others get.
//! Nothing here is checked for being of use; the search leaves out what changes nothing.

use super::names::{Bundles, JUNK, MessageId, Names, OF_HONEST, VERSIONS, What};
use super::seats::{fast, sum};
use super::{Conduct, FAULTY, FIRST_VIEW, HONEST, QUORUM, SEATS, VIEW, clock_view};
use crate::mock::MockScheme;
use std::collections::{BTreeMap, BTreeSet};
use vendue_auction_core::evidence::set_hash_by;
use vendue_auction_core::follow;
use vendue_auction_core::wire::{
    Admit, Admitted, Body, Commit, CommitMsg, Kind, Lock, NewView, Propose, Quorum, SetMsg, ShownSet,
    Signers, VoteWord,
};

/// Messages that one seat is given together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Offer {
    pub messages: Vec<MessageId>,
    /// Whether it may have an effect only later: it is explored although nothing comes of it now.
    pub lasting: bool,
}

/// Voters by view and set.
type Votes = BTreeMap<(u8, Bundles), BTreeSet<u8>>;

/// What honest seats have said.
#[derive(Default)]
pub(super) struct Heard {
    sets: BTreeMap<u8, (Bundles, MessageId)>,
    ballots: BTreeSet<(u8, Bundles, MessageId)>,
    admits: Votes,
    locks: Votes,
    views: BTreeSet<MessageId>,
}

/// What of it the faulty seat can use in a phase: when this is the same, so are its offers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Power {
    own: Vec<Bundles>,
    sets: Vec<(u8, Bundles)>,
    ballots: Vec<(u8, Bundles, MessageId)>,
    quorums: Vec<(u8, Bundles)>,
    commits: Vec<Bundles>,
    views: Vec<MessageId>,
}

pub(super) fn hear<'a>(names: &Names, said: impl Iterator<Item = &'a MessageId>) -> Heard {
    let mut heard = Heard::default();
    for id in said {
        let message = names.get(*id);
        match &message.what {
            What::Set(set) => drop(heard.sets.insert(message.from, (*set, *id))),
            What::Admit { view, set, proposal } => {
                heard.ballots.insert((*view, *set, *proposal));
                heard.admits.entry((*view, *set)).or_default().insert(message.from);
            }
            What::Lock { view, set } => {
                heard.locks.entry((*view, *set)).or_default().insert(message.from);
            }
            What::NewView { .. } => drop(heard.views.insert(*id)),
            _ => {}
        }
    }
    heard
}

/// The view that is to be led, and when somebody may be in it: from just before it begins by the clock.
fn leads(names: &Names, phase: u8) -> Option<u8> {
    let view = clock_view(phase).max(1);
    let starts = FIRST_VIEW + VIEW * (view - 1);
    // Up to the last phase in which a vote on the proposal can come to something.
    ((starts - 1..=starts + 4).contains(&phase) && names.proposer(view) == FAULTY).then_some(view)
}

impl Heard {
    pub fn power(&self, names: &Names, phase: u8) -> Power {
        let enough = |votes: &Votes, of: &(u8, Bundles)| votes.get(of).is_some_and(|v| v.len() + 1 >= QUORUM);
        let formed = |votes: &Votes| -> Vec<(u8, Bundles)> {
            votes.keys().filter(|of| enough(votes, of)).copied().collect()
        };
        let ballots = self.ballots.iter().filter(|(view, set, _)| enough(&self.admits, &(*view, *set)));
        let mut commits: BTreeSet<Bundles> = formed(&self.locks).into_iter().map(|(_, set)| set).collect();
        let sets: BTreeSet<Bundles> = self.sets.values().map(|(set, _)| *set).collect();
        if let (3, Some(set), 1) = (self.sets.len(), sets.first(), sets.len())
            && set & OF_HONEST == OF_HONEST
            && set & !OF_HONEST != 0
        {
            commits.insert(*set);
        }
        let shows = phase + 1 >= FIRST_VIEW;
        let sets = self.sets.iter().filter(|_| shows).map(|(owner, (set, _))| (*owner, *set));
        let led = leads(names, phase);
        let of_led = |id: &&MessageId| match names.get(**id).what {
            What::NewView { view, .. } => Some(view) == led,
            _ => false,
        };
        Power {
            own: own_sets(names, &self.sets),
            sets: sets.collect(),
            ballots: ballots.copied().collect(),
            quorums: formed(&self.admits),
            commits: commits.into_iter().collect(),
            views: self.views.iter().filter(of_led).copied().collect(),
        }
    }

    fn quorum(&self, names: &Names, word: VoteWord, of: (u8, Bundles)) -> Option<Quorum> {
        let votes = if word == VoteWord::Admit { &self.admits } else { &self.locks };
        let mut places: Vec<u8> = votes.get(&of)?.iter().copied().collect();
        places.push(FAULTY);
        let aggregate = sum(names, &places, word, of.0, &names.digest(of.1))?;
        let signers = Signers::new(SEATS as u16, places.iter().map(|p| names.seat(*p)));
        Some(Quorum { signers, aggregate })
    }

    /// The proof that a set is final.
    fn commit(&self, names: &Names, set: Bundles) -> Option<Commit> {
        let view = self.locks.iter().find(|((_, of), v)| *of == set && v.len() + 1 >= QUORUM);
        match view.map(|((view, _), _)| *view) {
            Some(view) => {
                let quorum = self.quorum(names, VoteWord::Lock, (view, set))?;
                Some(Commit::Locked { view: u32::from(view), quorum })
            }
            None => fast(names, &names.digest(set)),
        }
    }
}

/// The SETs that it may send: with each version of its bundle or none, without an honest seat's, and empty. Of SETs that
/// differ only in bundles for which its word is nothing, one is enough: what no honest SET lists one owner cannot lift over
/// the bound, and what all three list needs nobody else. Where its word counts, a second one stands for saying two things.
fn own_sets(names: &Names, honest: &BTreeMap<u8, (Bundles, MessageId)>) -> Vec<Bundles> {
    let [a, b] = VERSIONS;
    let without = OF_HONEST & !(1 << names.first_honest());
    let counts = |bit: &u8| honest.values().filter(|(set, _)| set >> bit & 1 == 1).count();
    let open = |bit: &u8| counts(bit) > 0 && (counts(bit) < HONEST || honest.len() < HONEST);
    let open = (0..5u8).filter(open).fold(0, |set, bit| set | 1 << bit);
    let mut classes: BTreeMap<(Bundles, bool), Vec<Bundles>> = BTreeMap::new();
    let sets: &[Bundles] = match names.versions {
        1 => &[OF_HONEST | a, OF_HONEST, without | a, 0],
        _ => &[OF_HONEST | a, OF_HONEST | b, OF_HONEST, without | a, without | b, 0],
    };
    for set in sets.iter().copied() {
        let completes = honest.values().all(|(of, _)| *of == set);
        let class = classes.entry((set & open, completes)).or_default();
        let most = if names.versions == 1 || set & open & (a | b) == 0 { 1 } else { 2 };
        if class.len() < most {
            class.push(set);
        }
    }
    classes.into_values().flatten().collect()
}

fn full_set(names: &Names, set: Bundles) -> SetMsg {
    let held = names.held(set);
    let full = (!held.contains(&[0; 32])).then(|| names.vote(FAULTY, VoteWord::Full, 0, &names.digest(set)));
    SetMsg { held, full }
}

/// The offers of a phase; `bundles` are those that a seat may still take in.
pub(super) fn offers(
    names: &mut Names,
    phase: u8,
    heard: &Heard,
    power: &Power,
    bundles: &[MessageId],
    (conduct, last): (Conduct, bool),
) -> Vec<Offer> {
    let one = |id: &MessageId, lasting: bool| Offer { messages: vec![*id], lasting };
    let locks: Vec<MessageId> = power.quorums.iter().filter_map(|of| lock(names, heard, *of)).collect();
    let commits: Vec<MessageId> = power.commits.iter().filter_map(|set| commit(names, heard, *set)).collect();
    let sets: Vec<MessageId> = match phase {
        _ if conduct != Conduct::Anything => vec![],
        2 | 3 => make_sets(names, power),
        4 | 5 | 11 if names.versions > 1 => make_sets(names, power),
        _ => vec![],
    };
    if conduct == Conduct::Silent {
        return vec![];
    }
    if last {
        // Only a commit can still come of anything.
        return commits.iter().map(|id| one(id, false)).collect();
    }
    let mut single = admits(names, conduct, phase, power);
    single.extend(new_views(names, phase, heard, power));
    single.extend(proposals(names, phase, heard, power));
    let mut offers: Vec<Offer> = single.iter().map(|id| one(id, false)).collect();
    offers.extend(locks.iter().chain(&commits).map(|id| one(id, false)));
    let lasting = phase == 2 && names.versions > 1;
    offers.extend(sets.iter().map(|id| one(id, lasting)));
    offers.extend(bundles.iter().map(|id| one(id, true)));
    for lock in &locks {
        let with = commits.iter().chain(sets.iter().filter(|_| names.versions > 1));
        offers.extend(with.map(|other| Offer { messages: vec![*lock, *other], lasting: false }));
    }
    offers
}

fn make_sets(names: &mut Names, power: &Power) -> Vec<MessageId> {
    let make = |set| names.forge(What::Set(set), |n| Some(Body::Set(full_set(n, set))));
    power.own.iter().copied().filter_map(make).collect()
}

/// ADMITs for which its vote completes a quorum, and one for nothing, which can only end view 0.
fn admits(names: &mut Names, conduct: Conduct, phase: u8, power: &Power) -> Vec<MessageId> {
    let mut ballots = power.ballots.clone();
    if phase == 3 && conduct == Conduct::Anything {
        ballots.push((0, JUNK, 0));
    }
    let mut made = vec![];
    for (view, set, proposal) in ballots {
        // What names no proposal is kept apart from the messages of view 0 by its name.
        let what = What::Admit { view, set, proposal: if view == 0 { 0 } else { proposal } };
        made.extend(names.forge(what, |names| {
            let digest = names.digest(set);
            let vote = names.vote(FAULTY, VoteWord::Admit, view, &digest);
            let proposal = if view == 0 { [0; 32] } else { names.proposal_digest(proposal) };
            Some(Body::Admit(Admit { view: u32::from(view), set: digest, proposal, vote }))
        }));
    }
    made
}

/// A LOCK where its own ADMIT completes the quorum.
fn lock(names: &mut Names, heard: &Heard, (view, set): (u8, Bundles)) -> Option<MessageId> {
    names.forge(What::Lock { view, set }, |names| {
        let quorum = heard.quorum(names, VoteWord::Admit, (view, set))?;
        let set = names.digest(set);
        let vote = names.vote(FAULTY, VoteWord::Lock, view, &set);
        Some(Body::Lock(Lock { view: u32::from(view), set, quorum, vote }))
    })
}

/// A COMMIT where its own vote completes the quorum.
fn commit(names: &mut Names, heard: &Heard, set: Bundles) -> Option<MessageId> {
    names.forge(What::Commit { set }, |names| {
        Some(Body::Commit(CommitMsg { set: names.digest(set), commit: heard.commit(names, set)? }))
    })
}

/// What a NEWVIEW of its shows: a quorum of ADMITs, SETs of honest seats, one of its own.
type Variant = (Option<(u8, Bundles)>, bool, Option<Bundles>);

fn variant(names: &mut Names, heard: &Heard, power: &Power, view: u8, of: Variant) -> Option<MessageId> {
    let (quorum, all, own) = of;
    let mut sets: Vec<(u8, Bundles)> = power.sets.iter().filter(|_| all).copied().collect();
    sets.extend(own.map(|set| (FAULTY, set)));
    // SETs are shown in the order of their owners' numbers.
    sets.sort_by_key(|(owner, _)| names.seat(*owner));
    let what = What::NewView { view, quorum, sets: sets.clone() };
    names.forge(what, |names| {
        let shown = sets.iter().filter_map(|(owner, set)| shown(names, heard, *owner, *set));
        let admitted = match quorum {
            None => None,
            Some(of) => {
                let quorum = heard.quorum(names, VoteWord::Admit, of)?;
                Some(Admitted { view: u32::from(of.0), set: names.digest(of.1), quorum })
            }
        };
        Some(Body::NewView(NewView { view: u32::from(view), admitted, sets: shown.collect() }))
    })
}

/// A SET as it is shown.
fn shown(names: &Names, heard: &Heard, owner: u8, set: Bundles) -> Option<ShownSet> {
    let own = (owner == FAULTY).then(|| names.sign(FAULTY, Body::Set(full_set(names, set))));
    let message = match &own {
        Some(message) => message,
        None => &names.get(heard.sets.get(&owner)?.1).message,
    };
    let Body::Set(set) = &message.body else { return None };
    Some(ShownSet { seat: names.seat(owner), set: set.clone(), signature: message.signature? })
}

/// Its NEWVIEWs: with nothing in them, with its own SET beside those of others, with each quorum.
fn variants(
    names: &mut Names,
    heard: &Heard,
    power: &Power,
    view: u8,
    own: &[Option<Bundles>],
) -> Vec<MessageId> {
    let mut of: Vec<Variant> = vec![(None, false, None)];
    of.extend(own.iter().map(|own| (None, true, *own)));
    of.extend(power.quorums.iter().filter(|(of, _)| *of < view).map(|q| (Some(*q), true, None)));
    of.into_iter().filter_map(|of| variant(names, heard, power, view, of)).collect()
}

fn new_views(names: &mut Names, phase: u8, heard: &Heard, power: &Power) -> Vec<MessageId> {
    if phase + 1 < FIRST_VIEW {
        return vec![];
    }
    let most = if names.versions > 1 { SEATS } else { 1 };
    let own: Vec<Option<Bundles>> = power.own.iter().rev().take(most).copied().map(Some).collect();
    variants(names, heard, power, clock_view(phase).max(1), &own)
}

/// One proposal for each set, and quorum behind it, that follows from some q NEWVIEWs.
fn proposals(names: &mut Names, phase: u8, heard: &Heard, power: &Power) -> Vec<MessageId> {
    let Some(view) = leads(names, phase) else { return vec![] };
    let own: Vec<Option<Bundles>> = power.own.iter().copied().map(Some).chain([None]).collect();
    let mut views = vec![];
    for id in power.views.iter().copied().chain(variants(names, heard, power, view, &own)) {
        let message = &names.get(id).message;
        if let (Body::NewView(v), Some(signature)) = (&message.body, message.signature) {
            views.push((message.header.seat, v.clone(), signature));
        }
    }
    let header = names.header(Kind::NewView, FAULTY);
    let hash = |shown: &ShownSet| set_hash_by::<MockScheme>(&names.record.market, &header, shown);
    let mut found = BTreeMap::new();
    for chosen in choose(&views) {
        let mut propose = Propose::new(u32::from(view), [0; 32], &chosen, hash);
        let (set, derived) = follow(&names.record, 0, &propose);
        propose.set = set;
        found.entry((set, derived.from)).or_insert(propose);
    }
    let made: Vec<Vec<u8>> =
        found.into_values().map(|p| names.sign(FAULTY, Body::Propose(p)).encode()).collect();
    made.iter().filter_map(|bytes| names.number(bytes)).collect()
}

type Signed = BTreeMap<u16, (NewView, [u8; 65])>;

/// All choices of NEWVIEWs of q distinct seats and more.
fn choose(views: &[(u16, NewView, [u8; 65])]) -> Vec<Signed> {
    let mut chosen: Vec<Signed> = vec![Signed::new()];
    let seats: BTreeSet<u16> = views.iter().map(|(seat, ..)| *seat).collect();
    for seat in seats {
        let mut more = vec![];
        for some in &chosen {
            for (_, view, signature) in views.iter().filter(|(s, ..)| *s == seat) {
                let mut with = some.clone();
                with.insert(seat, (view.clone(), *signature));
                more.push(with);
            }
        }
        chosen.extend(more);
    }
    chosen.retain(|some| some.len() >= QUORUM);
    chosen
}
