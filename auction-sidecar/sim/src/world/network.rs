//! What the network does with a message: delays, losses, cuts, and what it holds back.

use super::{Due, Fault, Hold, HomeFault, Letter, Partition, Queued, World};
use crate::keys::Keys;
use rand_core::RngCore;
use vendue_auction_core::Peer;
use vendue_auction_core::wire::Kind;

impl<K: Keys> World<K> {
    fn has(&self, seat: u16, fault: Fault) -> bool {
        self.faults.get(&seat).is_some_and(|f| f.contains(&fault))
    }

    /// When a message arrives; none when it is lost.
    fn arrival(&mut self) -> Option<u64> {
        let (low, high) = self.config.delay_ms;
        let delay = low + self.rng.next_u64() % (high - low + 1);
        let lost = self.rng.next_u32() % 1000 < self.config.lost_per_mille;
        (!lost).then_some(self.now + delay)
    }

    /// Gives a message to the network.
    pub(super) fn post(&mut self, from: u16, to: Peer, letter: Letter, delay_ms: u64) {
        let kind = letter.kind();
        let muted = kind.is_some_and(|kind| self.has(from, Fault::Mute(kind)));
        if self.has(from, Fault::CutOff) || muted {
            return;
        }
        if let (Some(tapped), Peer::Seat(_)) = (&mut self.tapped, to) {
            tapped.push((from, letter.bytes().to_vec()));
        }
        if let Some(kind) = kind {
            *self.sent.entry((kind, from)).or_default() += 1;
        }
        match to {
            Peer::Seat(seat) => {
                for node in self.nodes_of(seat) {
                    let Some(at) = self.passes(from, to, kind, delay_ms) else { continue };
                    self.queue_at(at, Due::ToSeat { node, from: Peer::Seat(from), letter: letter.clone() });
                }
            }
            Peer::Home(_) => {
                if let Some(at) = self.passes(from, to, kind, delay_ms) {
                    self.queue_at(at, Due::ToHome { from, letter });
                }
            }
        }
    }

    /// When the network delivers a message; none when it does not.
    fn passes(&mut self, from: u16, to: Peer, kind: Option<Kind>, delay_ms: u64) -> Option<u64> {
        let at = self.arrival()? + delay_ms;
        if self.is_cut(from, to, at) {
            return None;
        }
        let at = self.held_until(kind, from, to).map_or(at, |until| at.max(until));
        let Peer::Seat(seat) = to else { return Some(at) };
        let kept = |f: &Fault| matches!(f, Fault::Keep(k, first) if Some(*k) == kind && seat >= *first);
        if self.faults.get(&from).is_some_and(|f| f.iter().any(kept)) || self.has(seat, Fault::CutOff) {
            return None;
        }
        Some(at)
    }

    /// Until when a message that leaves now is held back.
    fn held_until(&self, kind: Option<Kind>, from: u16, to: Peer) -> Option<u64> {
        let Peer::Seat(to) = to else { return None };
        let holds = |h: &&Hold| {
            Some(h.kind.kind()) == kind
                && (h.from_ms..h.until_ms).contains(&self.now)
                && h.from.contains(&from)
                && h.to.contains(&to)
        };
        self.holds.iter().filter(holds).map(|h| h.until_ms).max()
    }

    /// Whether a message that leaves now and arrives then would cross a cut.
    fn is_cut(&self, from: u16, to: Peer, arrives: u64) -> bool {
        let other = |p: &Partition| match to {
            Peer::Seat(seat) => p.side.contains(&seat),
            Peer::Home(_) => false,
        };
        let at = |p: &&Partition| p.from_ms <= arrives && self.now < p.until_ms;
        self.partitions.iter().filter(at).any(|p| p.side.contains(&from) != other(p))
    }

    pub(super) fn send_from_home(&mut self, seat: u16, letter: Letter) {
        let announces = matches!(letter.kind(), Some(Kind::Order | Kind::Again));
        let kept = |f: &HomeFault| matches!(f, HomeFault::OrderToFew(first) if seat >= *first);
        if announces && self.home_faults.iter().any(kept) {
            return;
        }
        for node in self.nodes_of(seat) {
            let Some(at) = self.arrival() else { continue };
            if !self.has(seat, Fault::CutOff) {
                self.queue_at(at, Due::ToSeat { node, from: Peer::Home(0), letter: letter.clone() });
            }
        }
    }

    pub(super) fn queue_at(&mut self, at: u64, due: Due) {
        self.serial += 1;
        self.queue.push(Queued { at, serial: self.serial, due });
    }
}
