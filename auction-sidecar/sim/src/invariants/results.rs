//! I1, I4, I5, I7 and I9 at a certified round, and I16.

use super::Watch;
use std::collections::BTreeSet;
use vendue_auction_core::wire::{Kind, Listed, peek_kind};
use vendue_auction_core::{Decided, Leaf};
use vendue_market::{Digest, Outcome};

/// Messages and bytes of an honest seat to each other seat in one round.
const MOST_MESSAGES: u64 = 1_000;
const MOST_BYTES: u64 = 1 << 20;

/// The round in a message's header. What belongs to no round says 0.
fn round_of(bytes: &[u8]) -> Option<u64> {
    let round = u64::from_be_bytes(bytes.get(15..23)?.try_into().ok()?);
    let of_none = round == 0 && matches!(peek_kind(bytes), Some(Kind::Fetch | Kind::Reply));
    (!of_none).then_some(round)
}

impl Watch {
    /// I16: counts what an honest seat sends in a round.
    pub(super) fn spend(&mut self, now: u64, from: u16, bytes: &[u8], copies: u16) {
        let Some(round) = round_of(bytes).filter(|_| self.is_honest(from)) else { return };
        let others = u64::from(self.record.n()).saturating_sub(1).max(1);
        let spent = self.rounds.entry(round).or_default().spent.entry(from).or_default();
        let before = spent.0 > MOST_MESSAGES * others || spent.1 > MOST_BYTES * others;
        let copies = u64::from(copies);
        *spent = (spent.0 + copies, spent.1 + copies * bytes.len() as u64);
        if !before && (spent.0 > MOST_MESSAGES * others || spent.1 > MOST_BYTES * others) {
            let what = format!("seat {from} sends {} messages, {} bytes in round {round}", spent.0, spent.1);
            self.break_(now, "I16", what);
        }
    }

    /// I1, I4, I5, I7 and I9 for a certified round.
    pub(super) fn check_decided(&mut self, now: u64, seat: u16, decided: &Decided) {
        let round = decided.certificate.round;
        let synchronous = self.is_synchronous(round);
        let admitted: BTreeSet<Listed> = decided
            .table
            .leaves
            .iter()
            .filter_map(|leaf| match leaf {
                Leaf::Opened { bundle, .. } | Leaf::Garbage(bundle) => Some(*bundle),
                _ => None,
            })
            .collect();
        let f = usize::from(self.record.f());
        let seen = self.rounds.entry(round).or_default();
        let mut broken = vec![];
        if seen.roots.insert(decided.certificate.root) && seen.roots.len() > 1 {
            broken.push(("I1", "two award roots are certified".to_string()));
        }
        for bundle in &admitted {
            let had = seen.in_time.get(bundle);
            // When a SET leaves says nothing: its owner may have stopped between signing and sending it.
            let lists = |(owner, held): (&u16, &Vec<Digest>)| {
                let in_time = *owner == bundle.seat || had.is_some_and(|had| had.contains(owner));
                in_time && held.get(usize::from(bundle.seat)) == Some(&bundle.d)
            };
            if !seen.sets.iter().any(lists) {
                broken.push(("I4", format!("a bundle of seat {} is in no honest SET in time", bundle.seat)));
            }
        }
        let owed = seen.in_time.iter().filter(|(_, seats)| seats.len() > f).map(|(listed, _)| *listed);
        for bundle in owed.filter(|b| synchronous && !admitted.contains(b)) {
            broken.push(("I5", format!("a bundle of seat {} was in time and is not admitted", bundle.seat)));
        }
        if synchronous && now > self.record.params.x(round) {
            broken.push(("I9", format!("certified after voting stopped, at {now}")));
        }
        for (order, outcome) in &decided.outcomes {
            if let Outcome::Award(_) = outcome {
                let rounds = self.awarded.entry(*order).or_default();
                let params = self.record.params;
                let lives = |r: &u64| *r != round && params.t0(round.max(*r)) < params.expiry(round.min(*r));
                if synchronous && rounds.iter().any(lives) {
                    broken.push(("I7", "two awards of an order live together".to_string()));
                }
                rounds.insert(round);
            }
        }
        for (invariant, what) in broken {
            self.break_(now, invariant, format!("round {round} at seat {seat}: {what}"));
        }
    }
}
