//! What makes the messages of the agreement well founded: quorums, commits, SETs, NEWVIEWs and proposals.
//!
//! Inputs: a message and somebody who can check signatures and votes. Outputs: whether it is justified, and for a
//! proposal what follows from it. A round and the check of fault proofs ask the same functions, so nobody can be proven
//! faulty for what another honest seat would have taken for justified.

use crate::crypto::{Crypto, Scheme};
use crate::evidence::{new_view_hash_by, set_hash_by};
use crate::merkle;
use crate::record::MarketRecord;
use crate::wire::{
    Admitted, Commit, Header, Kind, Listed, NewView, Propose, Quorum, SetMsg, ShownSet, VoteWord, listed_of,
    vote_bytes,
};
use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;
use vendue_market::encode::Writer;
use vendue_market::{Digest, tagged_hash};

/// Somebody who can check signatures, and may have checked some before.
pub(crate) trait Checks {
    /// What the signatures are of.
    type Scheme: Scheme;

    /// The market.
    fn record(&self) -> &MarketRecord;
    /// Whether an evidence signature is the seat's.
    fn signed(&self, seat: u16, hash: &Digest, signature: &[u8; 65]) -> bool;
    /// Whether a vote is the seat's.
    fn vote(&self, seat: u16, message: &[u8], vote: &[u8; 48]) -> bool;
    /// Whether an aggregate is the vote of exactly these seats.
    fn aggregate(&self, seats: &[u16], message: &[u8], aggregate: &[u8; 48]) -> bool;
    /// Whether exactly this was found good before.
    fn knows_set(&self, _shown: &ShownSet) -> bool {
        false
    }
    /// Whether exactly this was found good before.
    fn knows_admitted(&self, _admitted: &Admitted) -> bool {
        false
    }
}

/// Checks with the public keys of the record only.
pub(crate) struct ByRecord<'a, S>(&'a MarketRecord, PhantomData<S>);

impl<'a, S> ByRecord<'a, S> {
    pub(crate) fn new(record: &'a MarketRecord) -> Self {
        Self(record, PhantomData)
    }
}

impl<S: Scheme> Checks for ByRecord<'_, S> {
    type Scheme = S;

    fn record(&self) -> &MarketRecord {
        self.0
    }
    fn signed(&self, seat: u16, hash: &Digest, signature: &[u8; 65]) -> bool {
        self.0.seat(seat).is_some_and(|s| S::verify_signature(hash, signature, &s.evidence_key))
    }
    fn vote(&self, seat: u16, message: &[u8], vote: &[u8; 48]) -> bool {
        self.0.seat(seat).is_some_and(|s| S::verify_vote(&s.vote_key, message, vote))
    }
    fn aggregate(&self, seats: &[u16], message: &[u8], aggregate: &[u8; 48]) -> bool {
        let keys: Option<Vec<_>> = seats.iter().map(|s| self.0.seat(*s).map(|s| &s.vote_key)).collect();
        keys.is_some_and(|keys| S::verify_aggregate(&keys, message, aggregate))
    }
}

/// A round's checks: its cryptography and what it has found good before.
pub(crate) struct ByRound<'a, C> {
    pub record: &'a MarketRecord,
    pub crypto: &'a C,
    pub sets: &'a BTreeMap<u16, ShownSet>,
    pub quorums: &'a BTreeMap<(u32, Digest), Quorum>,
}

impl<C: Crypto> Checks for ByRound<'_, C> {
    type Scheme = C::Scheme;

    fn record(&self) -> &MarketRecord {
        self.record
    }
    fn signed(&self, seat: u16, hash: &Digest, signature: &[u8; 65]) -> bool {
        self.record.seat(seat).is_some_and(|s| self.crypto.verify(hash, signature, &s.evidence_key))
    }
    fn vote(&self, seat: u16, message: &[u8], vote: &[u8; 48]) -> bool {
        self.crypto.verify_vote(seat, message, vote)
    }
    fn aggregate(&self, seats: &[u16], message: &[u8], aggregate: &[u8; 48]) -> bool {
        self.crypto.verify_aggregate(seats, message, aggregate)
    }
    fn knows_set(&self, shown: &ShownSet) -> bool {
        self.sets.get(&shown.seat) == Some(shown)
    }
    fn knows_admitted(&self, admitted: &Admitted) -> bool {
        self.quorums.get(&(admitted.view, admitted.set)) == Some(&admitted.quorum)
    }
}

/// What follows from a justified proposal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Derived {
    /// The view of the quorum of ADMITs that the proposal follows.
    pub from: Option<u32>,
    /// The list behind the proposed set, where it follows from SETs.
    pub list: Option<Vec<Listed>>,
}

/// The digest that names an admitted set, and with it all that clearing depends on: seats whose tables differ agree on
/// no set.
pub fn set_digest(record: &MarketRecord, round: u64, list: &[Listed]) -> Digest {
    let leaves: Vec<Vec<u8>> = list
        .iter()
        .map(|l| {
            let mut w = Writer::new();
            w.u16(l.seat).raw(&l.d);
            w.finish()
        })
        .collect();
    let (epoch, round) = (record.epoch.to_be_bytes(), round.to_be_bytes());
    let (rules, tables, root) = (&record.rules_hash, record.clearing.digest(), merkle::root(&leaves));
    let mut parts: Vec<&[u8]> = vec![&record.market, &epoch, &round, rules, &root];
    // A record without tables keeps the digests that it always had.
    if !record.clearing.is_default() {
        parts.insert(4, &tables);
    }
    tagged_hash("VENDUE-V1-A", &parts)
}

/// A as it follows from SETs: what f + 1 owners list. An owner that signed two SETs is left out: both are shown, so
/// everybody leaves it out, and no owner can lift many versions of a bundle over the bound.
pub fn derive<'a>(f: usize, sets: impl Iterator<Item = (u16, &'a SetMsg)>) -> Vec<Listed> {
    let mut by_owner: BTreeMap<u16, BTreeSet<&[Digest]>> = BTreeMap::new();
    for (owner, set) in sets {
        by_owner.entry(owner).or_default().insert(&set.held);
    }
    let mut owners: BTreeMap<Listed, usize> = BTreeMap::new();
    for versions in by_owner.values().filter(|versions| versions.len() == 1) {
        for listed in versions.iter().flat_map(|held| listed_of(held)) {
            *owners.entry(listed).or_default() += 1;
        }
    }
    owners.into_iter().filter(|(_, count)| *count > f).map(|(listed, _)| listed).collect()
}

/// What a vote of a round signs.
pub(crate) fn vote_message(
    record: &MarketRecord,
    round: u64,
    word: VoteWord,
    view: u32,
    digest: &Digest,
) -> Vec<u8> {
    vote_bytes(word, &record.market, record.epoch, round, view, digest)
}

/// Which seat proposes in a view: the seats take turns, in an order that is another in each round. So the first f + 1
/// views have an honest proposer among them.
pub fn proposer(record: &MarketRecord, round: u64, view: u32) -> u16 {
    let (epoch, round) = (record.epoch.to_be_bytes(), round.to_be_bytes());
    let rank = |seat: &u16| {
        let parts: [&[u8]; 4] = [&record.market, &epoch, &round, &seat.to_be_bytes()];
        tagged_hash("VENDUE-V1-PROPOSER", &parts)
    };
    let mut seats: Vec<u16> = (0..record.n()).collect();
    seats.sort_by_cached_key(rank);
    let turn = view.saturating_sub(1) as usize % seats.len().max(1);
    seats.get(turn).copied().unwrap_or_default()
}

/// Whether q seats voted for a digest.
fn quorum(c: &impl Checks, round: u64, word: VoteWord, view: u32, digest: &Digest, quorum: &Quorum) -> bool {
    let seats: Vec<u16> = quorum.signers.iter().collect();
    let message = vote_message(c.record(), round, word, view, digest);
    seats.len() >= usize::from(c.record().q()) && c.aggregate(&seats, &message, &quorum.aggregate)
}

/// Whether a quorum admitted the set in the view.
pub(crate) fn admitted(c: &impl Checks, round: u64, a: &Admitted) -> bool {
    c.knows_admitted(a) || quorum(c, round, VoteWord::Admit, a.view, &a.set, &a.quorum)
}

/// Whether a commit proves that its set is final.
pub(crate) fn commit(c: &impl Checks, round: u64, set: &Digest, commit: &Commit) -> bool {
    match commit {
        Commit::Fast { aggregate } => {
            let seats: Vec<u16> = (0..c.record().n()).collect();
            c.aggregate(&seats, &vote_message(c.record(), round, VoteWord::Full, 0, set), aggregate)
        }
        Commit::Locked { view, quorum: q } => quorum(c, round, VoteWord::Lock, *view, set, q),
    }
}

/// Whether a SET's FULL vote, where it has one, is for what the SET says.
pub(crate) fn full(c: &impl Checks, round: u64, seat: u16, set: &SetMsg) -> bool {
    let Some(full) = &set.full else { return true };
    let digest = set_digest(c.record(), round, &listed_of(&set.held));
    c.vote(seat, &vote_message(c.record(), round, VoteWord::Full, 0, &digest), full)
}

fn shown_set<C: Checks>(c: &C, header: &Header, shown: &ShownSet) -> bool {
    if c.knows_set(shown) {
        return true;
    }
    let hash = set_hash_by::<C::Scheme>(&c.record().market, header, shown);
    c.signed(shown.seat, &hash, &shown.signature) && full(c, header.round, shown.seat, &shown.set)
}

/// Whether everything that a NEWVIEW shows is what it is shown as.
pub(crate) fn new_view(c: &impl Checks, header: &Header, view: &NewView) -> bool {
    brings(c, header.round, view.view, view.admitted.as_ref())
        && view.sets.iter().all(|s| shown_set(c, header, s))
}

/// Whether a NEWVIEW is good as far as its sender answers for it: the view, the quorum of ADMITs, and the FULL votes of the
/// SETs, which are part of the hashes that it signs.
pub(crate) fn new_view_by_what_is_signed(c: &impl Checks, header: &Header, view: &NewView) -> bool {
    brings(c, header.round, view.view, view.admitted.as_ref())
        && view.sets.iter().all(|s| full(c, header.round, s.seat, &s.set))
}

/// Whether a quorum of ADMITs is one of a view before the one that it is brought into.
fn brings(c: &impl Checks, round: u64, view: u32, a: Option<&Admitted>) -> bool {
    (1..=c.record().params.last_view()).contains(&view)
        && a.is_none_or(|a| a.view < view && admitted(c, round, a))
}

/// What the NEWVIEWs of a proposal lead to; none when it is not what it proposes, or they are not good or too few.
pub(crate) fn proposal<C: Checks>(c: &C, header: &Header, propose: &Propose) -> Option<Derived> {
    let record = c.record();
    if header.seat != proposer(record, header.round, propose.view)
        || propose.views.len() < usize::from(record.q())
    {
        return None;
    }
    let sets_good = propose.sets.iter().all(|s| shown_set(c, header, s));
    let views_good = || {
        let brought = propose.brought(|s| set_hash_by::<C::Scheme>(&record.market, header, s));
        brought.into_iter().all(|(seat, admitted, sets, signature)| {
            let header = Header { kind: Kind::NewView, seat, ..*header };
            let hash = new_view_hash_by::<C::Scheme>(&record.market, &header, propose.view, admitted, &sets);
            brings(c, header.round, propose.view, admitted) && c.signed(seat, &hash, signature)
        })
    };
    if !(sets_good && views_good()) {
        return None;
    }
    let derived = follow(record, header.round, propose);
    (derived.0 == propose.set).then_some(derived.1)
}

/// The set that follows from the NEWVIEWs of a proposal: that of the highest quorum of ADMITs, else the union's.
pub fn follow(record: &MarketRecord, round: u64, propose: &Propose) -> (Digest, Derived) {
    let quorums = propose.views.iter().filter_map(|v| v.admitted.as_ref());
    match quorums.max_by_key(|a| (a.view, a.set)) {
        Some(a) => (a.set, Derived { from: Some(a.view), list: None }),
        None => {
            let list = derive(usize::from(record.f()), propose.sets.iter().map(|s| (s.seat, &s.set)));
            (set_digest(record, round, &list), Derived { from: None, list: Some(list) })
        }
    }
}
