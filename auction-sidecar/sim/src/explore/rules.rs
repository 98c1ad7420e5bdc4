//! Rules broken on purpose, so that each check of the search is seen to be able to fail.
//!
//! Inputs: what a seat by the core's rules knows and says. Output: what it says instead, or beside that. Nothing of this is
//! known to the core: a seat that breaks a rule is a sound one whose words are changed on the way out.

use super::names::{Bundles, Names, What};
use super::{Facts, QUORUM, SEATS};
use vendue_auction_core::Crypto;
use vendue_auction_core::wire::{Admit, Body, Commit, Lock, OpenShare, Quorum, Signers, VoteWord};

/// A rule that all honest seats break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// A seat ADMITs what another one ADMITs, after its own ADMIT.
    AdmitsTwice,
    /// A seat ADMITs every proposal, whatever it has locked.
    IgnoresLock,
    /// A seat LOCKs on f + 1 ADMITs.
    LocksWithoutQuorum,
    /// A seat gives its share away with its ADMIT.
    OpensBeforeCommit,
    /// What one owner lists is admitted.
    AdmitsWhatOneLists,
    /// Only what q owners list is admitted.
    AdmitsWhatQuorumLists,
    /// No seat ever LOCKs.
    NeverLocks,
    /// A seat votes for awards of its own.
    AwardsOfItsOwn,
}

impl Broken {
    /// What a seat says instead of this.
    pub(super) fn instead(
        self,
        names: &Names,
        facts: &Facts,
        what: &What,
        bytes: Vec<u8>,
    ) -> Option<Vec<u8>> {
        match (self, what) {
            (Broken::NeverLocks, What::Lock { .. }) => None,
            (Broken::AdmitsWhatOneLists, What::Admit { view: 0, .. }) => Some(admit_by(names, facts, 1)),
            (Broken::AdmitsWhatQuorumLists, What::Admit { view: 0, .. }) => {
                Some(admit_by(names, facts, QUORUM))
            }
            (Broken::AwardsOfItsOwn, What::Award { root }) if facts.place == 0 => {
                let mut root = *root;
                root[0] ^= 1;
                let vote = names.vote(facts.place, VoteWord::Award, 0, &root);
                let body = Body::Award(vendue_auction_core::wire::AwardVote { root, vote });
                Some(names.sign(facts.place, body).encode())
            }
            _ => Some(bytes),
        }
    }

    /// What a seat says beside what it should.
    pub(super) fn beside(self, names: &Names, facts: &Facts) -> Vec<Vec<u8>> {
        let body = match self {
            Broken::AdmitsTwice => second_admit(names, facts),
            Broken::IgnoresLock => admit_of_proposal(names, facts),
            Broken::LocksWithoutQuorum => early_lock(names, facts),
            Broken::OpensBeforeCommit => early_open(names, facts),
            _ => None,
        };
        body.map(|body| names.sign(facts.place, body).encode()).into_iter().collect()
    }
}

fn said<'a>(names: &'a Names, facts: &'a Facts) -> impl Iterator<Item = &'a What> {
    facts.said.iter().map(|id| &names.get(*id).what)
}

fn admit(names: &Names, facts: &Facts, view: u8, set: Bundles, proposal: u32) -> Body {
    let digest = names.digest(set);
    let vote = names.vote(facts.place, VoteWord::Admit, view, &digest);
    let proposal = if view == 0 { [0; 32] } else { names.proposal_digest(proposal) };
    Body::Admit(Admit { view: u32::from(view), set: digest, proposal, vote })
}

/// The ADMIT of view 0 for what so many owners list.
fn admit_by(names: &Names, facts: &Facts, owners: usize) -> Vec<u8> {
    let lists = |bit: usize| facts.sets.iter().filter(|set| **set >> bit & 1 == 1).count();
    let set = (0..5).filter(|bit| lists(*bit) >= owners).fold(0, |set, bit| set | 1 << bit);
    names.sign(facts.place, admit(names, facts, 0, set, 0)).encode()
}

fn second_admit(names: &Names, facts: &Facts) -> Option<Body> {
    let own = facts.admits.get(&(facts.view, facts.place))?;
    let mut of_view = facts.admits.range((facts.view, 0)..=(facts.view, u8::MAX));
    let (_, (set, proposal)) = of_view.find(|(_, vote)| *vote != own)?;
    let again = |w: &What| matches!(w, What::Admit { view, set: s, .. } if (view, s) == (&facts.view, set));
    (!said(names, facts).any(again)).then(|| admit(names, facts, facts.view, *set, *proposal))
}

fn admit_of_proposal(names: &Names, facts: &Facts) -> Option<Body> {
    let proposal = *facts.proposals.get(&facts.view)?;
    let What::Propose { set, .. } = &names.get(proposal).what else { return None };
    let spoke =
        |w: &What| matches!(w, What::Admit { view, .. } | What::Lock { view, .. } if *view == facts.view);
    (!said(names, facts).any(spoke)).then(|| admit(names, facts, facts.view, *set, proposal))
}

fn early_lock(names: &Names, facts: &Facts) -> Option<Body> {
    let spoke = |w: &What| matches!(w, What::Lock { view, .. } if *view == facts.view);
    if said(names, facts).any(spoke) {
        return None;
    }
    let votes: Vec<_> = facts.admits.range((facts.view, 0)..=(facts.view, u8::MAX)).collect();
    let enough = |set: Bundles| votes.iter().filter(|(_, (s, _))| *s == set).count() >= QUORUM - 1;
    let set = votes.iter().map(|(_, (set, _))| *set).find(|set| enough(*set))?;
    let voters = votes.iter().filter(|(_, (s, _))| *s == set).map(|((_, place), _)| *place);
    let voters: Vec<u8> = voters.collect();
    let digest = names.digest(set);
    let sums: Vec<_> = voters.iter().map(|p| names.vote(*p, VoteWord::Admit, facts.view, &digest)).collect();
    let aggregate = names.crypto(facts.place).aggregate(&sums)?;
    let signers = Signers::new(SEATS as u16, voters.iter().map(|p| names.seat(*p)));
    let vote = names.vote(facts.place, VoteWord::Lock, facts.view, &digest);
    let quorum = Quorum { signers, aggregate };
    Some(Body::Lock(Lock { view: u32::from(facts.view), set: digest, quorum, vote }))
}

fn early_open(names: &Names, facts: &Facts) -> Option<Body> {
    if said(names, facts).any(|w| matches!(w, What::Open { .. })) {
        return None;
    }
    let set = said(names, facts).find_map(|w| match w {
        What::Admit { set, .. } => Some(*set),
        _ => None,
    })?;
    let set = names.digest(set);
    let aggregate = names.vote(facts.place, VoteWord::Full, 0, &set);
    let share = names.crypto(facts.place).share(0);
    Some(Body::Open(OpenShare { set, commit: Commit::Fast { aggregate }, share }))
}
