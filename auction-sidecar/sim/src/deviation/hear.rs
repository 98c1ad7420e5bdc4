//! What a faulty seat says because of what it hears.

use super::{Actor, Deviation, Letter, Outgoing};
use vendue_auction_core::Crypto;
use vendue_auction_core::evidence::message_hash_by;
use vendue_auction_core::wire::{Admit, Body, Bundle, Lock, Message, OpenShare, VoteWord};

impl<C: Crypto> Actor<C> {
    /// What a faulty seat says because of what it hears.
    pub(crate) fn incoming(&mut self, local_ms: u64, letter: &Letter) -> Vec<Outgoing> {
        self.take_note(letter);
        let Some(message) = letter.message().cloned() else { return vec![] };
        let round = message.header.round;
        if self.deviations.contains(&Deviation::ClaimAll)
            && let Some(d) = letter.bundle()
        {
            self.hearsay.entry((round, message.header.seat)).or_insert(d);
        }
        if self.deviations.contains(&Deviation::Replay) {
            return self.replay(message, letter);
        }
        if self.deviations.contains(&Deviation::StolenShare)
            && let Body::Open(open) = message.body
        {
            return self.steal(round, open);
        }
        if self.deviations.contains(&Deviation::Echo)
            && self.echoed.insert(letter.id())
            && let Some(vote) = self.echo(round, &message.body)
        {
            return vec![Outgoing { to: message.header.seat, delay_ms: 0, letter: vote }];
        }
        if let Body::Bundle(_) = message.body
            && let Some(ms) = self.wakes()
        {
            return self.wake(local_ms, round, ms);
        }
        match message.body {
            Body::Bundle(bundle) if self.deviations.contains(&Deviation::CopiedBundle) => {
                if !self.copied.insert(round) {
                    return vec![];
                }
                self.to_all(&self.sign(round, Body::Bundle(bundle)))
            }
            Body::Propose(ref propose) if self.deviations.contains(&Deviation::AdmitAll) => {
                let (view, set) = (propose.view, propose.set);
                let count = self.extra.entry((round, view)).or_default();
                *count += 1;
                if *count > 2 {
                    return vec![];
                }
                let proposal =
                    message_hash_by::<C::Scheme>(&self.record.market, &message.header, &message.body);
                let vote = self.vote(round, VoteWord::Admit, view, &set);
                let admit = self.sign(round, Body::Admit(Admit { view, set, proposal, vote }));
                self.to_all(&admit)
            }
            _ => vec![],
        }
    }

    /// The message as it is, the same body under the own name, and one that was heard earlier.
    fn replay(&mut self, message: Message, letter: &Letter) -> Vec<Outgoing> {
        if !message.header.kind.is_signed() || message.header.kind.is_from_home() || self.heard.len() > 60 {
            return vec![];
        }
        let mut out = self.to_all(letter);
        out.extend(self.to_all(&self.sign(message.header.round, message.body)));
        let earlier = self.heard.get(self.heard.len() / 2).cloned();
        out.extend(earlier.iter().flat_map(|letter| self.to_all(letter)));
        self.heard.push(letter.clone());
        out
    }

    /// The same vote.
    fn echo(&self, round: u64, body: &Body) -> Option<Letter> {
        match body {
            Body::Admit(a) => {
                let vote = self.vote(round, VoteWord::Admit, a.view, &a.set);
                Some(self.sign(round, Body::Admit(Admit { vote, ..a.clone() })))
            }
            Body::Lock(l) => {
                let vote = self.vote(round, VoteWord::Lock, l.view, &l.set);
                Some(self.sign(round, Body::Lock(Lock { vote, ..l.clone() })))
            }
            _ => None,
        }
    }

    /// Another seat's share as the own one.
    fn steal(&mut self, round: u64, open: OpenShare) -> Vec<Outgoing> {
        if self.made.contains_key(&round) {
            return vec![];
        }
        let bytes = self.sign(round, Body::Open(open));
        self.made.insert(round, bytes.clone());
        self.to_all(&bytes)
    }

    fn wakes(&self) -> Option<u64> {
        let wakes = |d: &Deviation| match d {
            Deviation::LastWake(ms) => Some(*ms),
            _ => None,
        };
        self.deviations.iter().find_map(wakes)
    }

    /// An empty bundle for the round after this one, so many milliseconds before it is too late for one.
    fn wake(&mut self, local_ms: u64, round: u64, before_ms: u64) -> Vec<Outgoing> {
        let next = round + 1;
        if self.made.contains_key(&next) {
            return vec![];
        }
        let (u, v) = ([0; 48], [0; 32]);
        let bytes =
            self.sign(next, Body::Bundle(Bundle { order_view: vec![].into(), u, v, payload: vec![0; 16] }));
        self.made.insert(next, bytes.clone());
        let at = self.record.params.t1(next).saturating_sub(before_ms);
        let delay_ms = at.saturating_sub(local_ms);
        let late = |o: Outgoing| Outgoing { delay_ms, ..o };
        self.to_all(&bytes).into_iter().map(late).collect()
    }
}
