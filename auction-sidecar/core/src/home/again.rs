//! Listing an order again before the round that its schedule gives: in a new body.
//!
//! A body may be listed in its rounds only, which are so far apart that no two that could award it are open together.
//! When a certified round gave it to nobody, that certificate permits a new body that starts at once. Seats check it
//! and put the new body in the place of the old one. A sealed ceiling opens with the first round of its body only, so an
//! order that has one never waits for its next round: it goes on in a new body, with the ceiling sealed anew.
//!
//! Invariant: at home one body of an order is alive at a time; an award of an earlier one is refused with a CANCEL.

use super::{Before, Entry, Home, HomeOutput, State};
use crate::clearing::seal_ceiling_by;
use crate::crypto::UserCrypto;
use crate::drops::DropReason;
use crate::wire::{Body, Cancel, Proof};
use vendue_market::{Digest, Order, Outcome, Price, Unserved};

/// Earlier bodies of an order that are remembered.
const MAX_EARLIER: usize = 64;

/// Rounds from one body to the next.
fn pause(entry: &Entry) -> u64 {
    1 << entry.earlier.len().saturating_sub(1).min(2)
}

impl<K: UserCrypto> Home<K> {
    /// The digest that an order has now, whichever of its bodies is named.
    pub(super) fn named(&self, digest: &Digest) -> Digest {
        if self.orders.contains_key(digest) {
            return *digest;
        }
        let found = self.orders.iter().find(|(_, e)| e.earlier.contains(digest));
        found.map_or(*digest, |(now, _)| *now)
    }

    /// A round gave an earlier body to somebody: that seat missed what came after it.
    pub(super) fn refuse_earlier(
        &self,
        from: u16,
        digest: Digest,
        outcome: &Outcome,
        out: &mut Vec<HomeOutput>,
    ) -> DropReason {
        if matches!(outcome, Outcome::Award(_)) {
            let bytes = self.encode(Body::Cancel(Cancel { order: digest }));
            out.push(HomeOutput::Send { seat: from, bytes });
        }
        DropReason::Duplicate
    }

    /// Lists an order again that a certified round gave to nobody, and says when: in the next possible round, by the
    /// proof, if that is before the body's own next round. Gives it up when its time is over. One that nobody can serve
    /// comes back less often, after 1, 1, 2, then every 4 rounds, so that it does not keep all seats busy.
    pub(super) fn list_again(
        &mut self,
        now_ms: u64,
        digest: Digest,
        proof: Proof,
        out: &mut Vec<HomeOutput>,
    ) -> Option<u64> {
        let p = self.record.params;
        let entry = self.orders.get(&digest)?;
        let round = proof.certificate.round;
        let first_round = p.first_round(now_ms).max(round.saturating_add(pause(entry)));
        if first_round >= round.saturating_add(p.order_step()) || p.t0(first_round) >= entry.order.expires_ms
        {
            return self.next_round(now_ms, digest, out);
        }
        let before = entry.order.clone();
        let after = Some(Unserved { order: digest, round, root: proof.certificate.root });
        let order = Order { first_round, after, ..before.clone() };
        let Some(order) = self.sealed_anew(order, entry.ceiling) else {
            self.give_up(now_ms, digest, out);
            return None;
        };
        self.replace(now_ms, digest, order, Some(Box::new(Before { body: before, proof })), out);
        Some(p.t0(first_round))
    }

    /// Starts the search of an order over in a body that needs no certificate: it is lost, or there never was one.
    pub(super) fn start_again(
        &mut self,
        now_ms: u64,
        digest: Digest,
        out: &mut Vec<HomeOutput>,
    ) -> Option<u64> {
        let p = self.record.params;
        let entry = self.orders.get(&digest)?;
        // The first that it can name, so that its round says when it was made.
        let first_round = self.first_round(now_ms, &entry.order.job, entry.order.attempt);
        let order = Order { first_round, after: None, ..entry.order.clone() };
        let starts_ms = p.t0(order.first_round);
        let in_time = starts_ms < order.expires_ms;
        let Some(order) = self.sealed_anew(order, entry.ceiling).filter(|_| in_time) else {
            self.give_up(now_ms, digest, out);
            return None;
        };
        self.replace(now_ms, digest, order, None, out);
        Some(starts_ms)
    }

    /// Sends an order with a sealed ceiling to the next round in which no award of this body can be open any more, and says
    /// when that starts. The body is made when that round is the first that it can name: whoever withdraws the search
    /// before then, without knowing of it, says a round that is earlier.
    pub(super) fn seal_for_next_round(
        &mut self,
        now_ms: u64,
        digest: Digest,
        out: &mut Vec<HomeOutput>,
    ) -> Option<u64> {
        let p = self.record.params;
        let entry = self.orders.get_mut(&digest)?;
        let round = entry.order.first_round.saturating_add(p.order_step());
        // Who does not know the ceiling has nothing to wait for.
        if entry.ceiling.is_none() || p.first_round(now_ms) >= round {
            return self.start_again(now_ms, digest, out);
        }
        let starts_ms = p.t0(round);
        if starts_ms >= entry.order.expires_ms {
            self.give_up(now_ms, digest, out);
            return None;
        }
        let due_ms = p.named_from(round);
        (entry.state, entry.round) = (State::Waiting, round);
        (entry.ask_ms, entry.resend_ms) = (due_ms, due_ms);
        Some(starts_ms)
    }

    /// Whether an order waits for the time of its next body: a body with a sealed ceiling has one round.
    pub(super) fn awaits_body(entry: &Entry) -> bool {
        entry.order.terms.sealed_ceiling.is_some() && entry.round > entry.order.first_round
    }

    /// Makes the body that an order waits for, when it is time.
    pub(super) fn make_body(&mut self, now_ms: u64, digest: Digest, out: &mut Vec<HomeOutput>) {
        if self.orders.get(&digest).is_some_and(|entry| now_ms >= entry.ask_ms) {
            self.start_again(now_ms, digest, out);
        }
    }

    /// An order with its ceiling sealed to its first round, if it has one; none where this home does not know it.
    pub(super) fn sealed_anew(&self, mut order: Order, ceiling: Option<Price>) -> Option<Order> {
        let Some(ceiling) = ceiling else {
            return order.terms.sealed_ceiling.is_none().then_some(order);
        };
        let record = self.epochs.record_of(order.first_round)?;
        let sealed = seal_ceiling_by(record, &order, ceiling, |id, header, payload| {
            self.keys.seal(id, &record.seal_key, header, payload)
        });
        order.terms.sealed_ceiling = Some(sealed.ok()?);
        Some(order)
    }

    /// Puts a new body in the place of an order's last one.
    fn replace(
        &mut self,
        now_ms: u64,
        digest: Digest,
        order: Order,
        before: Option<Box<Before>>,
        out: &mut Vec<HomeOutput>,
    ) {
        let Some(Entry { mut earlier, models, ceiling, .. }) = self.orders.remove(&digest) else { return };
        earlier.insert(0, digest);
        earlier.truncate(MAX_EARLIER);
        let (now, round) = (order.digest(), order.first_round);
        self.adopt(now_ms, now, order, round, State::Waiting);
        if let Some(entry) = self.orders.get_mut(&now) {
            (entry.before, entry.earlier, entry.models) = (before, earlier, models);
            entry.ceiling = ceiling;
        }
        out.push(HomeOutput::Relisted { order: digest, digest: now });
    }
}
