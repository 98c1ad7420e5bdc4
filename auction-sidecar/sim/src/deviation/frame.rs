//! B43: fault proofs against whoever did nothing, made of what a seat hears and of what it can sign itself.
//!
//! Inputs: what a faulty seat hears and says, and a certified round. Output: proofs of every kind against every other seat,
//! each with something left out, added or exchanged. None of them may hold against an honest seat.

use super::{Actor, Deviation, Letter};
use std::collections::BTreeMap;
use vendue_auction_core::merkle::HexDigest;
use vendue_auction_core::proof::{
    Absence, Accused, BadMessage, Ballot, BundleHead, Double, FaultProof, Garbage, Signed, SignedBundle,
    TwoVotes, Voted, WrongAward,
};
use vendue_auction_core::wire::{Body, Kind, Listed, Message, SetMsg};
use vendue_auction_core::{CertificateFile, Crypto, Decided, Leaf};
use vendue_market::Order;

/// Rounds and messages of a round that are kept.
const ROUNDS: usize = 24;
const MESSAGES: usize = 400;

/// What was heard in a round, by kind and seat.
type Heard = BTreeMap<(Kind, u16), Letter>;

/// What a framing seat keeps.
#[derive(Default)]
pub(super) struct Notes {
    rounds: BTreeMap<u64, Heard>,
    orders: BTreeMap<[u8; 32], Order>,
}

impl Notes {
    fn add(&mut self, letter: &Letter) {
        let Some(message) = letter.message() else { return };
        if let Body::Order(order) = &message.body {
            self.orders.insert(order.order.digest(), order.order.clone());
        }
        if !message.header.kind.is_signed() || message.header.kind.is_from_home() {
            return;
        }
        let heard = self.rounds.entry(message.header.round).or_default();
        if heard.len() < MESSAGES {
            heard.entry((message.header.kind, message.header.seat)).or_insert_with(|| letter.clone());
        }
        while self.rounds.len() > ROUNDS {
            self.rounds.pop_first();
        }
    }
}

fn signed(letter: &Letter) -> Signed {
    Signed(letter.bytes().to_vec())
}

fn head(letter: &Letter) -> Option<BundleHead> {
    let Message { header, body: Body::Bundle(b), signature } = letter.message()? else { return None };
    Some(BundleHead {
        seat: header.seat,
        order_view: b.order_view.iter().map(|d| HexDigest(*d)).collect(),
        u: b.u,
        v: b.v,
        payload: b.payload_digest(),
        signature: (*signature)?,
    })
}

/// What is shown of a round in proofs of wrong awards.
struct Shown {
    commit: Signed,
    combined: [u8; 96],
    admitted: Vec<Listed>,
    bundles: Vec<Signed>,
    orders: Vec<Order>,
}

impl<C: Crypto> Actor<C> {
    fn frames(&self) -> bool {
        self.deviations.contains(&Deviation::Frame)
    }

    /// Keeps what may be of use.
    pub(super) fn take_note(&mut self, letter: &Letter) {
        if self.frames() {
            self.notes.add(letter);
        }
    }

    /// What it says of the others when a round is certified.
    pub(crate) fn false_proofs(&self, decided: &Decided) -> Vec<FaultProof> {
        let round = decided.certificate.round;
        let Some(heard) = self.notes.rounds.get(&round).filter(|_| self.frames()) else { return vec![] };
        let mut proofs = vec![];
        let shown = self.shown(round, heard, decided);
        for victim in self.others() {
            proofs.extend(self.absences(heard, victim, decided));
            proofs.extend(shown.iter().flat_map(|s| self.wrong_awards(heard, victim, s, decided)));
            proofs.extend(garbage(heard, victim, decided));
            proofs.extend(self.doubles(round, heard, victim));
        }
        let alone = heard.values().map(|l| FaultProof::BadMessage(BadMessage { message: signed(l) }));
        proofs.extend(alone);
        proofs
    }

    fn list(&self, heard: &Heard, decided: &Decided) -> Vec<Listed> {
        let leaves = decided.table.leaves.iter().filter_map(|leaf| match leaf {
            Leaf::Opened { bundle, .. } | Leaf::Garbage(bundle) => Some(*bundle),
            _ => None,
        });
        leaves.filter(|l| heard.get(&(Kind::Bundle, l.seat)).and_then(Letter::bundle) == Some(l.d)).collect()
    }

    /// The SETs of f + 1 seats; its own leaves the victim out.
    fn sets(&self, heard: &Heard, victim: u16) -> Vec<Signed> {
        let of = |seat: u16| -> Option<Signed> {
            let letter = heard.get(&(Kind::Set, seat))?;
            if seat != self.seat {
                return Some(signed(letter));
            }
            let message = letter.message()?;
            let Body::Set(set) = &message.body else { return None };
            let mut held = set.held.clone();
            held.iter_mut().skip(usize::from(victim)).take(1).for_each(|d| *d = [0; 32]);
            Some(signed(&self.sign(message.header.round, Body::Set(SetMsg { held, full: None }))))
        };
        let wanted = usize::from(self.record.f()) + 1;
        let owners = (0..self.record.n()).filter(|seat| *seat != victim);
        owners.filter_map(of).take(wanted).collect()
    }

    /// FP5: the bundle is said to be missing; once beside the set that was certified, once beside one without it.
    fn absences(&self, heard: &Heard, victim: u16, decided: &Decided) -> Vec<FaultProof> {
        let Some(bundle) = heard.get(&(Kind::Bundle, victim)).and_then(head) else { return vec![] };
        let set = decided.table.leaves.iter().find(|leaf| matches!(leaf, Leaf::Set(_)));
        let Some(path) = set.and_then(|leaf| decided.table.path(leaf)) else { return vec![] };
        let whole = self.list(heard, decided);
        let without: Vec<Listed> = whole.iter().filter(|l| l.seat != victim).copied().collect();
        let proof = |admitted| {
            FaultProof::Absence(Box::new(Absence {
                bundle: bundle.clone(),
                sets: self.sets(heard, victim),
                certificate: CertificateFile::from(&decided.certificate),
                path: path.clone(),
                admitted,
            }))
        };
        [whole, without].map(proof).into_iter().collect()
    }

    fn shown(&self, round: u64, heard: &Heard, decided: &Decided) -> Option<Shown> {
        let shares = heard.iter().filter_map(|((_, seat), letter)| match &letter.message()?.body {
            Body::Open(open) => Some((*seat, open.share)),
            _ => None,
        });
        let opened = self.crypto.combine(round, &shares.collect::<Vec<_>>()).ok()?;
        let (_, commit) = heard.iter().find(|((kind, _), _)| *kind == Kind::Open)?;
        let admitted = self.list(heard, decided);
        let bundles = admitted.iter().filter_map(|l| heard.get(&(Kind::Bundle, l.seat)).map(signed));
        let orders = decided.outcomes.iter().filter_map(|(digest, _)| self.notes.orders.get(digest).cloned());
        Some(Shown {
            commit: signed(commit),
            combined: self.crypto.combined(&opened),
            bundles: bundles.collect(),
            orders: orders.collect(),
            admitted,
        })
    }

    /// FP9: the vote is said to be wrong; with all that the awards follow from, and with a part of it.
    fn wrong_awards(&self, heard: &Heard, victim: u16, s: &Shown, decided: &Decided) -> Vec<FaultProof> {
        let Some(vote) = heard.get(&(Kind::Award, victim)).map(signed) else { return vec![] };
        let all = Accused::Certificate(CertificateFile::from(&decided.certificate));
        let mut proofs = vec![];
        for accused in [Accused::Message(vote), all] {
            let whole = WrongAward {
                accused,
                commit: s.commit.clone(),
                admitted: s.admitted.clone(),
                combined: s.combined,
                bundles: s.bundles.clone(),
                orders: s.orders.clone(),
            };
            let mut fewer = whole.clone();
            fewer.admitted.pop();
            fewer.bundles.pop();
            let mut other = whole.clone();
            other.bundles.reverse();
            let mut unopened = whole.clone();
            unopened.combined[5] ^= 1;
            let unordered = WrongAward { orders: vec![], ..whole.clone() };
            let all = [whole, fewer, other, unopened, unordered];
            proofs.extend(all.map(|proof| FaultProof::WrongAward(Box::new(proof))));
        }
        proofs
    }

    /// FP1 to FP4: the same twice, a copy with a signature of its own, votes of two places.
    fn doubles(&self, round: u64, heard: &Heard, victim: u16) -> Vec<FaultProof> {
        let mut proofs = vec![];
        for ((_, seat), letter) in heard.iter().filter(|((_, seat), _)| *seat == victim) {
            let Some(message) = letter.message().cloned() else { continue };
            let own = self.sign(round, message.body.clone()).message().and_then(|m| m.signature);
            let mut changed = message.clone();
            match &mut changed.body {
                Body::Set(set) => set.held.reverse(),
                Body::Admit(a) => a.set[0] ^= 1,
                Body::Lock(l) => l.set[0] ^= 1,
                Body::Award(a) => a.root[0] ^= 1,
                _ => {}
            }
            changed.signature = own;
            let first = signed(letter);
            for second in [letter.clone(), self.letter(changed.encode())] {
                let double = Double::Messages { first: first.clone(), second: signed(&second) };
                proofs.push(FaultProof::Double(double));
            }
            if let (Some(d), Some(signature), Some(own)) = (letter.bundle(), message.signature, own) {
                let first = SignedBundle { d, signature };
                let second = SignedBundle { d: d.map(|b| b ^ 1), signature: own };
                let (seat, bundles) = (*seat, [first.clone(), second]);
                for second in bundles {
                    let first = first.clone();
                    proofs.push(FaultProof::Double(Double::Bundles { seat, round, first, second }));
                }
            }
            if let Body::Lock(lock) = &message.body {
                for ballot in [Ballot::Admit, Ballot::Lock] {
                    let second = Voted::quorum(ballot, round, lock.view, lock.set, &lock.quorum);
                    let votes = TwoVotes { first: Voted::Message(first.clone()), second };
                    proofs.push(FaultProof::TwoVotes(votes));
                }
            }
        }
        proofs
    }
}

/// FP6: a leaf that was opened is said to be garbage.
fn garbage(heard: &Heard, victim: u16, decided: &Decided) -> Option<FaultProof> {
    let d = heard.get(&(Kind::Bundle, victim))?.bundle()?;
    let bundle = Listed { seat: victim, d };
    let is_it = |leaf: &&Leaf| matches!(leaf, Leaf::Opened { bundle: b, .. } if *b == bundle);
    let path = decided.table.path(decided.table.leaves.iter().find(is_it)?)?;
    let certificate = CertificateFile::from(&decided.certificate);
    Some(FaultProof::Garbage(Garbage { certificate, bundle, path }))
}
