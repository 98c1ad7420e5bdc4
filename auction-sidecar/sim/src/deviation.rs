//! Faulty seats: an honest seat whose messages are changed on the way out, and that says more than it should.
//!
//! Inputs: what the honest core of the seat sends and what reaches it. Output: what leaves instead, with delays. Deviations
//! compose: each changes what the ones before it let through. They are plain data, so a schedule can be written down.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use vendue_auction_core::evidence::message_hash;
use vendue_auction_core::wire::{
    Admit, AwardVote, Body, Commit, CommitMsg, Header, Kind, Listed, Lock, Message, OpenShare, Quorum,
    SetMsg, Signers, VoteWord, decode, vote_bytes,
};
use vendue_auction_core::{Crypto, MarketRecord, SeatCrypto, follow, proposer, set_digest};
use vendue_market::Digest;

/// One way to deviate. The numbers are those of the protocol's list of behaviours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Deviation {
    /// B1: says nothing.
    Silent,
    /// B21, B40: withholds all messages of a kind.
    Mute(KindName),
    /// B2, B3, B12: sends messages of a kind to the first so many other seats only.
    Only(KindName, u16),
    /// B41: sends its bundle to so many seats only, to others in each round.
    PartialBundle(u16),
    /// B4: two versions of its bundle, to two halves.
    TwoBundles,
    /// B5: another version of its bundle to each.
    ManyBundles,
    /// B6: sends its bundle so many milliseconds late.
    LateBundle(u64),
    /// B7: sends a copy of another seat's bundle as its own.
    CopiedBundle,
    /// B8, B9, B10: changes a field of its bundle: 0 the point, 1 the mask, 2 the payload, 3 the order view, 4 the point
    /// to the identity.
    MauledBundle(u8),
    /// B13: two SETs, to two halves.
    TwoSets,
    /// B14: leaves a seat out of its SET.
    Omit(u16),
    /// B15: lists bundles that it never got.
    ClaimAll,
    /// B16: lists its own bundle only.
    StarvedSet,
    /// B17: votes FULL for another set than its own.
    FalseFull,
    /// B45: shows its SET to the proposer of view 1 only.
    SetToProposer,
    /// B18: two ADMITs, to two halves.
    TwoAdmits,
    /// Two LOCKs, to two halves.
    TwoLocks,
    /// B19: sends its ADMIT or LOCK at the end of the view, to one seat only.
    LastMoment(KindName),
    /// B24: opens with a forged commit as soon as it has a SET.
    ForgedCommit,
    /// B20: gives its share away before anything is final.
    EarlyShare,
    /// B22, B23: sends the share of the next round.
    WrongShare,
    /// B25: ADMITs every proposal, whatever it is locked on.
    AdmitAll,
    /// B26: another award root to one half.
    TwoAwards,
    /// B26: another award root to all.
    WrongAward,
    /// B40: two proposals, to two halves.
    TwoProposals,
    /// B40: proposes what does not follow.
    FalseProposal,
    /// B45: votes for nonsense at once, to force views.
    JunkAdmit,
    /// B45: votes in the view before the one that it enters.
    OldView,
    /// B45: shows SETs that nobody signed in its NEWVIEW.
    ForgedNewView,
    /// B13, B45: shows a second SET of its own in its NEWVIEWs.
    OtherSetInView,
    /// B30: sends again, under its own name and under theirs, what others said in this round and in those before.
    Replay,
}

/// A message kind in a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // The kinds of the protocol.
pub enum KindName {
    Bundle,
    Set,
    Admit,
    Lock,
    Open,
    Commit,
    Award,
    NewView,
    Propose,
    Reply,
}

impl KindName {
    pub(crate) fn kind(self) -> Kind {
        match self {
            KindName::Bundle => Kind::Bundle,
            KindName::Set => Kind::Set,
            KindName::Admit => Kind::Admit,
            KindName::Lock => Kind::Lock,
            KindName::Open => Kind::Open,
            KindName::Commit => Kind::Commit,
            KindName::Award => Kind::Award,
            KindName::NewView => Kind::NewView,
            KindName::Propose => Kind::Propose,
            KindName::Reply => Kind::Reply,
        }
    }
}

/// A message on its way out.
pub(crate) struct Outgoing {
    pub to: u16,
    pub delay_ms: u64,
    pub bytes: Vec<u8>,
}

/// A faulty seat.
pub(crate) struct Actor {
    record: Arc<MarketRecord>,
    seat: u16,
    crypto: SeatCrypto,
    deviations: Vec<Deviation>,
    /// Copied bundles by round.
    copied: BTreeMap<u64, Vec<u8>>,
    /// Votes that were sent in addition, by round and view.
    extra: BTreeMap<(u64, u32), u32>,
    /// Messages of others, to be replayed.
    heard: Vec<Vec<u8>>,
}

impl Actor {
    pub(crate) fn new(record: Arc<MarketRecord>, seat: u16, crypto: SeatCrypto) -> Self {
        Self {
            record,
            seat,
            crypto,
            deviations: vec![],
            copied: BTreeMap::new(),
            extra: BTreeMap::new(),
            heard: vec![],
        }
    }

    pub(crate) fn add(&mut self, deviation: Deviation) {
        self.deviations.push(deviation);
    }

    fn sign(&self, round: u64, body: Body) -> Vec<u8> {
        let header = Header {
            kind: body.kind(),
            market: self.record.short_id(),
            epoch: self.record.epoch,
            round,
            seat: self.seat,
        };
        let signature = self.crypto.sign(&message_hash(&self.record.market, &header, &body));
        Message { header, body, signature: Some(signature) }.encode()
    }

    fn vote(&self, round: u64, word: VoteWord, view: u32, digest: &Digest) -> [u8; 48] {
        self.crypto.vote(&vote_bytes(word, &self.record.market, self.record.epoch, round, view, digest))
    }

    fn others(&self) -> impl Iterator<Item = u16> + use<> {
        let seat = self.seat;
        (0..self.record.n()).filter(move |s| *s != seat)
    }

    fn to_all(&self, bytes: &[u8]) -> Vec<Outgoing> {
        self.others().map(|to| Outgoing { to, delay_ms: 0, bytes: bytes.to_vec() }).collect()
    }

    /// What leaves instead of a message of the honest core to one seat.
    pub(crate) fn outgoing(&mut self, local_ms: u64, to: u16, bytes: Vec<u8>) -> Vec<Outgoing> {
        let mut out = vec![Outgoing { to, delay_ms: 0, bytes }];
        for deviation in self.deviations.clone() {
            out = out.into_iter().flat_map(|o| self.change(deviation, local_ms, o)).collect();
        }
        out
    }

    fn change(&mut self, deviation: Deviation, local_ms: u64, o: Outgoing) -> Vec<Outgoing> {
        let Ok(message) = decode(&o.bytes, self.record.n()) else { return vec![o] };
        let kind = message.header.kind;
        if deviation == Deviation::Silent {
            return vec![];
        }
        // Messages of homes and receipts pass; the deviations are about rounds.
        match kind {
            Kind::Bundle => self.change_bundle(deviation, o, message),
            Kind::Set => self.change_set(deviation, o, message),
            Kind::Admit | Kind::Lock => self.change_vote(deviation, local_ms, o, message),
            Kind::Open | Kind::Award => self.change_result(deviation, o, message),
            Kind::NewView | Kind::Propose => self.change_view(deviation, o, message),
            _ => self.filter(deviation, o, kind),
        }
    }

    /// Deviations that only hold messages back.
    fn filter(&self, deviation: Deviation, o: Outgoing, kind: Kind) -> Vec<Outgoing> {
        let passes = match deviation {
            Deviation::Mute(name) => name.kind() != kind,
            Deviation::Only(name, first) => {
                name.kind() != kind || self.others().take(usize::from(first)).any(|s| s == o.to)
            }
            _ => true,
        };
        if passes { vec![o] } else { vec![] }
    }

    fn change_bundle(&mut self, deviation: Deviation, mut o: Outgoing, message: Message) -> Vec<Outgoing> {
        let round = message.header.round;
        let Body::Bundle(mut bundle) = message.body else { return vec![o] };
        let version = match deviation {
            Deviation::TwoBundles => u8::from(o.to % 2 == 1),
            Deviation::ManyBundles => o.to.to_be_bytes()[1],
            _ => 0,
        };
        match deviation {
            Deviation::PartialBundle(count) => {
                let others: Vec<u16> = self.others().collect();
                let start = (round % others.len().max(1) as u64) as usize;
                let mut chosen = others.iter().cycle().skip(start).take(usize::from(count));
                return if chosen.any(|s| *s == o.to) { vec![o] } else { vec![] };
            }
            Deviation::LateBundle(ms) => {
                o.delay_ms += ms;
                return vec![o];
            }
            Deviation::CopiedBundle => return vec![],
            Deviation::TwoBundles | Deviation::ManyBundles if version > 0 => {
                bundle.payload.iter_mut().for_each(|b| *b ^= version);
            }
            Deviation::MauledBundle(0) => bundle.u[5] ^= 1,
            Deviation::MauledBundle(1) => bundle.v[5] ^= 1,
            Deviation::MauledBundle(2) => bundle.payload.iter_mut().take(1).for_each(|b| *b ^= 1),
            Deviation::MauledBundle(3) => bundle.order_view.clear(),
            Deviation::MauledBundle(_) => {
                bundle.u = [0; 48];
                bundle.u[0] = 0xc0;
            }
            _ => return self.filter(deviation, o, Kind::Bundle),
        }
        o.bytes = self.sign(round, Body::Bundle(bundle));
        vec![o]
    }

    fn change_set(&mut self, deviation: Deviation, mut o: Outgoing, message: Message) -> Vec<Outgoing> {
        let round = message.header.round;
        let Body::Set(SetMsg { mut held, .. }) = message.body else { return vec![o] };
        let own = held.get(usize::from(self.seat)).copied().unwrap_or_default();
        let mut clear =
            |seat: u16| held.iter_mut().skip(usize::from(seat)).take(1).for_each(|d| *d = [0; 32]);
        match deviation {
            Deviation::TwoSets if o.to % 2 == 1 => clear((self.seat + 1) % self.record.n()),
            Deviation::Omit(victim) => clear(victim),
            Deviation::ClaimAll => {
                let missing = held.iter_mut().zip(1u8..).filter(|(d, _)| **d == [0; 32]);
                missing.for_each(|(d, i)| *d = [i; 32]);
            }
            Deviation::StarvedSet => {
                held.iter_mut().filter(|d| **d != own).for_each(|d| *d = [0; 32]);
            }
            Deviation::FalseFull => {}
            Deviation::SetToProposer => {
                let to = proposer(&self.record, round, 1);
                return if o.to == to { vec![o] } else { vec![] };
            }
            Deviation::EarlyShare | Deviation::ForgedCommit => {
                let forged = self.forged_open(round, deviation == Deviation::EarlyShare);
                return vec![Outgoing { to: o.to, delay_ms: 0, bytes: forged }, o];
            }
            Deviation::JunkAdmit => {
                let set = [0xee; 32];
                let vote = self.vote(round, VoteWord::Admit, 0, &set);
                let admit = self.sign(round, Body::Admit(Admit { view: 0, set, proposal: [0; 32], vote }));
                return vec![Outgoing { to: o.to, delay_ms: 0, bytes: admit }, o];
            }
            _ => return self.filter(deviation, o, Kind::Set),
        }
        let full = (!held.contains(&[0; 32])).then(|| {
            let list: Vec<Listed> = held.iter().zip(0u16..).map(|(d, seat)| Listed { seat, d: *d }).collect();
            let mut digest = set_digest(&self.record, round, &list);
            digest[0] ^= u8::from(deviation == Deviation::FalseFull);
            self.vote(round, VoteWord::Full, 0, &digest)
        });
        o.bytes = self.sign(round, Body::Set(SetMsg { held, full }));
        vec![o]
    }

    /// An OPEN or COMMIT for a set that nobody made final.
    fn forged_open(&self, round: u64, with_share: bool) -> Vec<u8> {
        let set = [0xdd; 32];
        let aggregate = self.vote(round, VoteWord::Lock, 0, &set);
        let quorum = Quorum { signers: Signers::all(self.record.n()), aggregate };
        let commit = Commit::Locked { view: 0, quorum };
        if with_share {
            let share = self.crypto.share(round);
            self.sign(round, Body::Open(OpenShare { set, commit, share }))
        } else {
            self.sign(round, Body::Commit(CommitMsg { set, commit }))
        }
    }

    fn change_vote(
        &mut self,
        deviation: Deviation,
        local_ms: u64,
        mut o: Outgoing,
        m: Message,
    ) -> Vec<Outgoing> {
        let (round, kind) = (m.header.round, m.header.kind);
        let view = match &m.body {
            Body::Admit(a) => a.view,
            Body::Lock(l) => l.view,
            _ => 0,
        };
        let other = |set: &Digest| set.map(|b| b ^ 0x55);
        match (deviation, m.body) {
            (Deviation::TwoAdmits, Body::Admit(a)) if o.to % 2 == 1 => {
                let set = other(&a.set);
                let vote = self.vote(round, VoteWord::Admit, view, &set);
                o.bytes = self.sign(round, Body::Admit(Admit { set, vote, ..a }));
                vec![o]
            }
            (Deviation::TwoLocks, Body::Lock(l)) if o.to % 2 == 1 => {
                let set = other(&l.set);
                let vote = self.vote(round, VoteWord::Lock, view, &set);
                o.bytes = self.sign(round, Body::Lock(Lock { set, vote, ..l }));
                vec![o]
            }
            (Deviation::LastMoment(name), _) if name.kind() == kind => {
                let favoured = (self.seat + 1 + (round % u64::from(self.record.n().max(2) - 1)) as u16)
                    % self.record.n();
                if o.to != favoured {
                    return vec![];
                }
                let ends = self.record.params.view_ends(round, view);
                o.delay_ms += ends.saturating_sub(local_ms + self.record.params.delay_ms / 2);
                vec![o]
            }
            _ => self.filter(deviation, o, kind),
        }
    }

    fn change_result(&mut self, deviation: Deviation, mut o: Outgoing, message: Message) -> Vec<Outgoing> {
        let (round, kind) = (message.header.round, message.header.kind);
        let lies = deviation == Deviation::WrongAward || (deviation == Deviation::TwoAwards && o.to % 2 == 1);
        match message.body {
            Body::Open(open) if deviation == Deviation::WrongShare => {
                let share = self.crypto.share(round + 1);
                o.bytes = self.sign(round, Body::Open(OpenShare { share, ..open }));
                vec![o]
            }
            Body::Award(award) if lies => {
                let root = award.root.map(|b| b ^ 0x55);
                let vote = self.vote(round, VoteWord::Award, 0, &root);
                o.bytes = self.sign(round, Body::Award(AwardVote { root, vote }));
                vec![o]
            }
            _ => self.filter(deviation, o, kind),
        }
    }

    fn change_view(&mut self, deviation: Deviation, mut o: Outgoing, message: Message) -> Vec<Outgoing> {
        let (round, kind) = (message.header.round, message.header.kind);
        match (deviation, message.body) {
            (Deviation::ForgedNewView, Body::NewView(mut view)) => {
                view.sets.iter_mut().take(1).for_each(|s| s.signature[7] ^= 1);
                o.bytes = self.sign(round, Body::NewView(view));
                vec![o]
            }
            (Deviation::OtherSetInView, Body::NewView(mut view)) => {
                for shown in view.sets.iter_mut().filter(|s| s.seat == self.seat) {
                    shown.set.held.iter_mut().for_each(|d| *d = d.map(|b| b ^ 0x55));
                    shown.set.full = None;
                    let held = &mut shown.set.held;
                    held.iter_mut()
                        .skip(usize::from((self.seat + 1) % self.record.n()))
                        .take(1)
                        .for_each(|d| *d = [0; 32]);
                    let bytes = self.sign(round, Body::Set(shown.set.clone()));
                    let signature = decode(&bytes, self.record.n()).ok().and_then(|m| m.signature);
                    shown.signature = signature.unwrap_or([0; 65]);
                }
                o.bytes = self.sign(round, Body::NewView(view));
                vec![o]
            }
            (Deviation::OldView, Body::NewView(view)) => {
                let (before, set) = (view.view.saturating_sub(1), [0xcc; 32]);
                let vote = self.vote(round, VoteWord::Admit, before, &set);
                let late = Admit { view: before, set, proposal: [0; 32], vote };
                let bytes = self.sign(round, Body::Admit(late));
                vec![Outgoing { to: o.to, delay_ms: 0, bytes }, o]
            }
            (Deviation::TwoProposals, Body::Propose(mut propose)) if o.to % 2 == 1 => {
                // Without the last NEWVIEW it is as good as the other, where there are more than q.
                propose.views.pop();
                let used = |at: u16| propose.views.iter().any(|v| v.sets.contains(&at));
                if propose.others.is_empty() && (0..propose.sets.len() as u16).all(used) {
                    propose.set = follow(&self.record, round, &propose).0;
                    o.bytes = self.sign(round, Body::Propose(propose));
                }
                vec![o]
            }
            (Deviation::FalseProposal, Body::Propose(mut propose)) => {
                propose.set = propose.set.map(|b| b ^ 0x55);
                o.bytes = self.sign(round, Body::Propose(propose));
                vec![o]
            }
            _ => self.filter(deviation, o, kind),
        }
    }

    /// What a faulty seat says because of what it hears.
    pub(crate) fn incoming(&mut self, bytes: &[u8]) -> Vec<Outgoing> {
        let Ok(message) = decode(bytes, self.record.n()) else { return vec![] };
        let round = message.header.round;
        if self.deviations.contains(&Deviation::Replay) {
            return self.replay(message, bytes);
        }
        match message.body {
            Body::Bundle(bundle) if self.deviations.contains(&Deviation::CopiedBundle) => {
                if self.copied.contains_key(&round) {
                    return vec![];
                }
                let copy = self.sign(round, Body::Bundle(bundle));
                self.copied.insert(round, copy.clone());
                self.to_all(&copy)
            }
            Body::Propose(ref propose) if self.deviations.contains(&Deviation::AdmitAll) => {
                let (view, set) = (propose.view, propose.set);
                let count = self.extra.entry((round, view)).or_default();
                *count += 1;
                if *count > 2 {
                    return vec![];
                }
                let proposal = message_hash(&self.record.market, &message.header, &message.body);
                let vote = self.vote(round, VoteWord::Admit, view, &set);
                let admit = self.sign(round, Body::Admit(Admit { view, set, proposal, vote }));
                self.to_all(&admit)
            }
            _ => vec![],
        }
    }

    /// The message as it is, the same body under the own name, and one that was heard earlier.
    fn replay(&mut self, message: Message, bytes: &[u8]) -> Vec<Outgoing> {
        if !message.header.kind.is_signed() || message.header.kind.is_from_home() || self.heard.len() > 60 {
            return vec![];
        }
        let mut out = self.to_all(bytes);
        out.extend(self.to_all(&self.sign(message.header.round, message.body)));
        let earlier = self.heard.get(self.heard.len() / 2).cloned();
        out.extend(earlier.iter().flat_map(|bytes| self.to_all(bytes)));
        self.heard.push(bytes.to_vec());
        out
    }
}
