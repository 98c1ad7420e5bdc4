//! What the faulty seat may say in a phase. It hears everything that honest seats say, at once and for certain.
//!
//! Input: what was said so far. Output: offers, of which each honest seat is made one or none, whatever the others get.
//! Nothing here is checked for being of use; the search leaves out what changes nothing.

use super::names::{Bundles, JUNK, MessageId, Names, OF_HONEST, VERSIONS, What};
use super::seats::{fast, sum};
use super::{FAULTY, FIRST_VIEW, QUORUM, SEATS, VIEW, clock_view};
use std::collections::{BTreeMap, BTreeSet};
use vendue_auction_core::evidence::set_hash;
use vendue_auction_core::wire::{
    Admit, Admitted, Body, Commit, CommitMsg, Kind, Lock, NewView, Propose, Quorum, SetMsg, ShownSet, Signers,
    VoteWord,
};
use vendue_auction_core::follow;

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
struct Heard {
    sets: BTreeMap<u8, (Bundles, MessageId)>,
    ballots: BTreeSet<(u8, Bundles, MessageId)>,
    admits: Votes,
    locks: Votes,
    views: Vec<MessageId>,
}

fn hear(names: &Names, said: &[MessageId]) -> Heard {
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
            What::NewView { .. } => heard.views.push(*id),
            _ => {}
        }
    }
    heard
}

/// The SETs that it may send: with each version of its bundle or none, without an honest seat's, and empty.
fn own_sets(names: &Names) -> [Bundles; 6] {
    let [a, b] = VERSIONS;
    let without = OF_HONEST & !(1 << names.first_honest());
    [OF_HONEST | a, OF_HONEST | b, OF_HONEST, without | a, without | b, 0]
}

fn full_set(names: &Names, set: Bundles) -> SetMsg {
    let held = names.held(set);
    let full = (!held.contains(&[0; 32])).then(|| names.vote(FAULTY, VoteWord::Full, 0, &names.digest(set)));
    SetMsg { held, full }
}

/// A quorum of votes, the faulty seat's own among them; none where honest seats did not vote enough.
fn quorum(
    names: &Names,
    votes: &Votes,
    word: VoteWord,
    (view, set): (u8, Bundles),
) -> Option<Quorum> {
    let mut places: Vec<u8> = votes.get(&(view, set))?.iter().copied().collect();
    places.push(FAULTY);
    if places.len() < QUORUM {
        return None;
    }
    let aggregate = sum(names, &places, word, view, &names.digest(set))?;
    Some(Quorum { signers: Signers::new(SEATS as u16, places.iter().map(|p| names.seat(*p))), aggregate })
}

/// The offers of a phase; `bundles` are those that a seat may still take in.
pub(super) fn offers(names: &mut Names, phase: u8, said: &[MessageId], bundles: &[MessageId]) -> Vec<Offer> {
    let heard = hear(names, said);
    let mut single: Vec<Body> = votes(names, phase, &heard);
    let sets: Vec<MessageId> = match phase {
        2..=5 | 11 => {
            let bodies = own_sets(names).map(|set| Body::Set(full_set(names, set)));
            bodies.into_iter().filter_map(|body| names.forge(body)).collect()
        }
        _ => vec![],
    };
    single.extend(new_views(names, phase, &heard));
    single.extend(proposals(names, phase, &heard));
    let single: Vec<MessageId> = single.into_iter().filter_map(|body| names.forge(body)).collect();
    let mut offers: Vec<Offer> =
        single.iter().map(|id| Offer { messages: vec![*id], lasting: false }).collect();
    let lasting = phase == 2;
    offers.extend(sets.iter().map(|id| Offer { messages: vec![*id], lasting }));
    offers.extend(bundles.iter().map(|id| Offer { messages: vec![*id], lasting: true }));
    let kind = |id: MessageId| names.get(id).message.header.kind;
    for lock in single.iter().filter(|id| kind(**id) == Kind::Lock) {
        let with = single.iter().filter(|id| kind(**id) == Kind::Commit).chain(&sets);
        offers.extend(with.map(|other| Offer { messages: vec![*lock, *other], lasting: false }));
    }
    offers
}

/// ADMITs for what honest seats admit, and one for nothing; LOCKs and COMMITs for which its own vote completes a quorum.
fn votes(names: &Names, phase: u8, heard: &Heard) -> Vec<Body> {
    let mut bodies = vec![];
    let mut ballots = heard.ballots.clone();
    if phase == 3 {
        ballots.insert((0, JUNK, 0));
    }
    for (view, set, proposal) in ballots {
        let digest = names.digest(set);
        let vote = names.vote(FAULTY, VoteWord::Admit, view, &digest);
        let proposal = if view == 0 { [0; 32] } else { names.proposal_digest(proposal) };
        bodies.push(Body::Admit(Admit { view: u32::from(view), set: digest, proposal, vote }));
    }
    for (view, set) in heard.admits.keys() {
        if let Some(quorum) = quorum(names, &heard.admits, VoteWord::Admit, (*view, *set)) {
            let set = names.digest(*set);
            let vote = names.vote(FAULTY, VoteWord::Lock, *view, &set);
            bodies.push(Body::Lock(Lock { view: u32::from(*view), set, quorum, vote }));
        }
    }
    let mut commits: BTreeMap<Bundles, Commit> = BTreeMap::new();
    for (view, set) in heard.locks.keys() {
        if let Some(quorum) = quorum(names, &heard.locks, VoteWord::Lock, (*view, *set)) {
            commits.entry(*set).or_insert(Commit::Locked { view: u32::from(*view), quorum });
        }
    }
    let sets: BTreeSet<Bundles> = heard.sets.values().map(|(set, _)| *set).collect();
    if let (3, Some(set), 1) = (heard.sets.len(), sets.first(), sets.len())
        && !names.held(*set).contains(&[0; 32])
        && let Some(commit) = fast(names, &names.digest(*set))
    {
        commits.insert(*set, commit);
    }
    for (set, commit) in commits {
        bodies.push(Body::Commit(CommitMsg { set: names.digest(set), commit }));
    }
    bodies
}

/// SETs of honest seats as they are shown, and one of its own.
fn shown(names: &Names, heard: &Heard, all: bool, own: Option<Bundles>) -> Vec<ShownSet> {
    let mut sets = BTreeMap::new();
    for (_, id) in heard.sets.values().filter(|_| all) {
        let message = &names.get(*id).message;
        if let (Body::Set(set), Some(signature)) = (&message.body, message.signature) {
            let seat = message.header.seat;
            sets.insert(seat, ShownSet { seat, set: set.clone(), signature });
        }
    }
    if let Some(set) = own {
        let (seat, set) = (names.seat(FAULTY), full_set(names, set));
        if let Some(signature) = names.sign(FAULTY, Body::Set(set.clone())).signature {
            sets.insert(seat, ShownSet { seat, set, signature });
        }
    }
    sets.into_values().collect()
}

/// The highest quorums of ADMITs that it can show in a view.
fn admitted(names: &Names, heard: &Heard, view: u8) -> Vec<Admitted> {
    let below = heard.admits.keys().filter(|(of, _)| *of < view);
    let shown = below.filter_map(|(of, set)| {
        let quorum = quorum(names, &heard.admits, VoteWord::Admit, (*of, *set))?;
        Some(Admitted { view: u32::from(*of), set: names.digest(*set), quorum })
    });
    shown.collect()
}

/// Its NEWVIEWs: with nothing in them, with its own SET or none beside those of others, with each quorum.
fn variants(names: &Names, heard: &Heard, view: u8, own: &[Option<Bundles>]) -> Vec<NewView> {
    let of = |admitted, sets| NewView { view: u32::from(view), admitted, sets };
    let mut variants = vec![of(None, vec![])];
    variants.extend(own.iter().map(|own| of(None, shown(names, heard, true, *own))));
    let quorums = admitted(names, heard, view);
    variants.extend(quorums.into_iter().map(|a| of(Some(a), shown(names, heard, true, None))));
    variants
}

fn new_views(names: &Names, phase: u8, heard: &Heard) -> Vec<Body> {
    let view = clock_view(phase).max(1);
    if phase < 3 {
        return vec![];
    }
    let own = [Some(OF_HONEST | VERSIONS[0]), Some(0)];
    variants(names, heard, view, &own).into_iter().map(Body::NewView).collect()
}

/// One proposal for each set, and quorum behind it, that follows from some q NEWVIEWs.
fn proposals(names: &Names, phase: u8, heard: &Heard) -> Vec<Body> {
    let view = clock_view(phase).max(1);
    // From when a seat can be in the view until the last phase in which a vote on it can come to something.
    let starts = FIRST_VIEW + VIEW * (view - 1);
    if !(starts - 1..=starts + 4).contains(&phase) || names.proposer(view) != FAULTY {
        return vec![];
    }
    let mut views: Vec<(u16, NewView, [u8; 65])> = vec![];
    for id in &heard.views {
        let message = &names.get(*id).message;
        if let (Body::NewView(v), Some(signature)) = (&message.body, message.signature)
            && v.view == u32::from(view)
        {
            views.push((message.header.seat, v.clone(), signature));
        }
    }
    let own: Vec<Option<Bundles>> = own_sets(names).into_iter().map(Some).chain([None]).collect();
    let seat = names.seat(FAULTY);
    for variant in variants(names, heard, view, &own) {
        if let Some(signature) = names.sign(FAULTY, Body::NewView(variant.clone())).signature {
            views.push((seat, variant, signature));
        }
    }
    let header = names.header(Kind::NewView, FAULTY);
    let hash = |shown: &ShownSet| set_hash(&names.record.market, &header, shown);
    let mut found = BTreeMap::new();
    for chosen in choose(&views) {
        let mut propose = Propose::new(u32::from(view), [0; 32], &chosen, hash);
        let (set, derived) = follow(&names.record, 0, &propose);
        propose.set = set;
        found.entry((set, derived.from)).or_insert(propose);
    }
    found.into_values().map(Body::Propose).collect()
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
