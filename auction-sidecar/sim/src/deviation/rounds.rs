//! SETs, votes, results and views that are not what an honest seat sends.

use super::{Actor, Deviation, Letter, Outgoing};
use vendue_auction_core::wire::{
    Admit, Admitted, AwardVote, Body, Commit, CommitMsg, Fetch, Kind, Listed, Lock, MAX_MESSAGE, Message,
    OpenShare, Quorum, SetMsg, Signers, VoteWord,
};
use vendue_auction_core::{Crypto, follow, proposer, set_digest};
use vendue_market::Digest;

impl<C: Crypto> Actor<C> {
    pub(super) fn change_set(
        &mut self,
        deviation: Deviation,
        mut o: Outgoing,
        message: Message,
    ) -> Vec<Outgoing> {
        let round = message.header.round;
        let Body::Set(SetMsg { mut held, .. }) = message.body else { return vec![o] };
        let own = held.get(usize::from(self.seat)).copied().unwrap_or_default();
        let mut clear =
            |seat: u16| held.iter_mut().skip(usize::from(seat)).take(1).for_each(|d| *d = [0; 32]);
        match deviation {
            Deviation::TwoSets if o.to % 2 == 1 => clear((self.seat + 1) % self.record.n()),
            Deviation::Omit(victim) => clear(victim),
            Deviation::ClaimAll => {
                for (d, seat) in held.iter_mut().zip(0u16..).filter(|(d, _)| **d == [0; 32]) {
                    let [_, low] = (seat + 1).to_be_bytes();
                    *d = self.hearsay.get(&(round, seat)).copied().unwrap_or([low; 32]);
                }
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
                return vec![Outgoing { to: o.to, delay_ms: 0, letter: forged }, o];
            }
            Deviation::FetchFlood(times) => {
                let ask = self.sign(round, Body::Fetch(Fetch::Set([0xee; 32])));
                let asks = (0..times).map(|_| Outgoing { to: o.to, delay_ms: 0, letter: ask.clone() });
                let asks: Vec<Outgoing> = asks.collect();
                return asks.into_iter().chain([o]).collect();
            }
            Deviation::Oversize => {
                let bytes = vec![o.letter.bytes().first().copied().unwrap_or_default(); MAX_MESSAGE + 1];
                return vec![Outgoing { to: o.to, delay_ms: 0, letter: self.letter(bytes) }, o];
            }
            Deviation::JunkAdmit => {
                let set = [0xee; 32];
                let vote = self.vote(round, VoteWord::Admit, 0, &set);
                let admit = self.sign(round, Body::Admit(Admit { view: 0, set, proposal: [0; 32], vote }));
                return vec![Outgoing { to: o.to, delay_ms: 0, letter: admit }, o];
            }
            _ => return self.filter(deviation, o, Kind::Set),
        }
        let full = (!held.contains(&[0; 32])).then(|| {
            let list: Vec<Listed> = held.iter().zip(0u16..).map(|(d, seat)| Listed { seat, d: *d }).collect();
            let mut digest = set_digest(&self.record, round, &list);
            digest[0] ^= u8::from(deviation == Deviation::FalseFull);
            self.vote(round, VoteWord::Full, 0, &digest)
        });
        o.letter = self.sign(round, Body::Set(SetMsg { held, full }));
        vec![o]
    }

    /// An OPEN or COMMIT for a set that nobody made final.
    fn forged_open(&self, round: u64, with_share: bool) -> Letter {
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

    pub(super) fn change_vote(
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
                o.letter = self.sign(round, Body::Admit(Admit { set, vote, ..a }));
                vec![o]
            }
            (Deviation::TwoLocks, Body::Lock(l)) if o.to % 2 == 1 => {
                let set = other(&l.set);
                let vote = self.vote(round, VoteWord::Lock, view, &set);
                o.letter = self.sign(round, Body::Lock(Lock { set, vote, ..l }));
                vec![o]
            }
            // What it says goes to those that it hears.
            (Deviation::Echo, _) => vec![],
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

    pub(super) fn change_result(
        &mut self,
        deviation: Deviation,
        mut o: Outgoing,
        message: Message,
    ) -> Vec<Outgoing> {
        let (round, kind) = (message.header.round, message.header.kind);
        let lies = deviation == Deviation::WrongAward || (deviation == Deviation::TwoAwards && o.to % 2 == 1);
        match message.body {
            Body::Open(open) if deviation == Deviation::WrongShare => {
                let share = self.crypto.share(round + 1);
                o.letter = self.sign(round, Body::Open(OpenShare { share, ..open }));
                vec![o]
            }
            // Two of these make errors that cancel, where shares are added up.
            Body::Open(open) if deviation == Deviation::ShiftedShare => {
                let share = open.share.map(|b| b ^ 0x33);
                o.letter = self.sign(round, Body::Open(OpenShare { share, ..open }));
                vec![o]
            }
            Body::Open(_) if deviation == Deviation::StolenShare => vec![],
            Body::Open(_) => match deviation {
                Deviation::LateOpen(ms) => {
                    o.delay_ms += ms;
                    vec![o]
                }
                _ => self.filter(deviation, o, kind),
            },
            Body::Commit(commit) if deviation == Deviation::Ungated => {
                let CommitMsg { set, commit } = commit;
                let share = self.crypto.share(round);
                o.letter = self.sign(round, Body::Open(OpenShare { set, commit, share }));
                vec![o]
            }
            Body::Award(award) if lies => {
                let root = award.root.map(|b| b ^ 0x55);
                let vote = self.vote(round, VoteWord::Award, 0, &root);
                o.letter = self.sign(round, Body::Award(AwardVote { root, vote }));
                vec![o]
            }
            _ => self.filter(deviation, o, kind),
        }
    }

    pub(super) fn change_view(
        &mut self,
        deviation: Deviation,
        mut o: Outgoing,
        message: Message,
    ) -> Vec<Outgoing> {
        let (round, kind) = (message.header.round, message.header.kind);
        match (deviation, message.body) {
            (Deviation::ForgedNewView, Body::NewView(mut view)) => {
                view.sets.iter_mut().take(1).for_each(|s| s.signature[7] ^= 1);
                let quorum = Quorum { signers: Signers::all(self.record.n()), aggregate: [7; 48] };
                view.admitted = Some(Admitted { view: 0, set: [0x33; 32], quorum });
                o.letter = self.sign(round, Body::NewView(view));
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
                    let letter = self.sign(round, Body::Set(shown.set.clone()));
                    let signature = letter.message().and_then(|m| m.signature);
                    shown.signature = signature.unwrap_or([0; 65]);
                }
                o.letter = self.sign(round, Body::NewView(view));
                vec![o]
            }
            (Deviation::OldView, Body::NewView(view)) => {
                let (before, set) = (view.view.saturating_sub(1), [0xcc; 32]);
                let vote = self.vote(round, VoteWord::Admit, before, &set);
                let late = Admit { view: before, set, proposal: [0; 32], vote };
                let letter = self.sign(round, Body::Admit(late));
                vec![Outgoing { to: o.to, delay_ms: 0, letter }, o]
            }
            (Deviation::TwoProposals, Body::Propose(mut propose)) if o.to % 2 == 1 => {
                // Without the last NEWVIEW it is as good as the other, where there are more than q.
                propose.views.pop();
                let used = |at: u16| propose.views.iter().any(|v| v.sets.contains(&at));
                if propose.others.is_empty() && (0..propose.sets.len() as u16).all(used) {
                    propose.set = follow(&self.record, round, &propose).0;
                    o.letter = self.sign(round, Body::Propose(propose));
                }
                vec![o]
            }
            (Deviation::FalseProposal, Body::Propose(mut propose)) => {
                propose.set = propose.set.map(|b| b ^ 0x55);
                o.letter = self.sign(round, Body::Propose(propose));
                vec![o]
            }
            _ => self.filter(deviation, o, kind),
        }
    }
}
