//! The orders that a seat knows: what it may list, and what is closed.

use crate::params::Params;
use std::collections::BTreeMap;
use std::sync::Arc;
use vendue_market::{Digest, Order};

/// Most open orders of one home.
pub(crate) const MAX_OPEN_PER_HOME: usize = 512;
/// Most closed orders remembered for one home.
const MAX_CLOSED_PER_HOME: usize = 4096;
/// Most bodies of one home remembered that a later one has replaced.
const MAX_REPLACED_PER_HOME: usize = 8192;
/// How long a closed order is remembered when its expiry is not known.
const CLOSED_FOR_MS: u64 = 24 * 3600 * 1000;

/// An order that a seat holds.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub order: Arc<Order>,
    pub signature: [u8; 65],
    pub home: u16,
    pub received_ms: u64,
}

/// How an order was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Closed {
    /// A seat has it.
    Taken(u16),
    /// The user withdrew it.
    Cancelled,
}

#[derive(Debug, Clone)]
struct ClosedEntry {
    how: Closed,
    until_ms: u64,
    /// The body, if it was known: a round that is open may still need it.
    known: Option<Known>,
}

/// Why a later body of an order is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotReplaced {
    /// A body that is newer is here already.
    Stale,
    /// Too many bodies are remembered.
    Full,
}

/// An order whatever its body: the home, the job and its attempt.
type Search = (u16, String, u32);

fn search(home: u16, order: &Order) -> Search {
    (home, order.job.clone(), order.attempt)
}

/// Orders by digest.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    open: BTreeMap<Digest, Known>,
    /// Bodies that a later one took the place of, and until when a round that is open may need them.
    replaced: BTreeMap<Digest, (Known, u64)>,
    /// Until when an award of an order may bind somebody.
    awarded: BTreeMap<Search, u64>,
    /// By order and home, so that one home's word says nothing about another's order.
    closed: BTreeMap<(Digest, u16), ClosedEntry>,
    /// When what has expired was last forgotten.
    pruned_ms: u64,
}

/// How often what has expired is forgotten: a seat asks with every message, and the pool is large.
const PRUNE_EVERY_MS: u64 = 100;

impl Pool {
    pub(crate) fn open_orders(&self) -> usize {
        self.open.len()
    }

    pub(crate) fn get(&self, digest: &Digest) -> Option<&Known> {
        self.open.get(digest)
    }

    /// The order's body, also after it was closed.
    pub(crate) fn body(&self, digest: &Digest) -> Option<&Known> {
        let closed =
            || self.closed.range((*digest, 0)..=(*digest, u16::MAX)).find_map(|(_, c)| c.known.as_ref());
        let replaced = || self.replaced.get(digest).map(|(known, _)| known);
        self.open.get(digest).or_else(replaced).or_else(closed)
    }

    /// Whether the order was closed by the home that placed it, or a later body took its place.
    pub(crate) fn is_over(&self, digest: &Digest, home: u16) -> bool {
        let replaced = self.replaced.get(digest).is_some_and(|(known, _)| known.home == home);
        replaced || self.closed(digest, home).is_some()
    }

    /// How the order was closed by the home that placed it.
    pub(crate) fn closed(&self, digest: &Digest, home: u16) -> Option<Closed> {
        self.closed.get(&(*digest, home)).map(|c| c.how)
    }

    /// Whether one more order of this home is within its quota.
    pub(crate) fn has_room(&self, home: u16) -> bool {
        self.open.values().filter(|k| k.home == home).count() < MAX_OPEN_PER_HOME
    }

    /// Makes room for a checked body that comes after a round: the bodies of the same order that were listed by then are
    /// over. One that starts later is newer than this body, which then is late.
    pub(crate) fn replace(
        &mut self,
        home: u16,
        order: &Order,
        after: u64,
        until_ms: u64,
    ) -> Result<(), NotReplaced> {
        let same = |k: &Known| k.home == home && k.order.job == order.job && k.order.attempt == order.attempt;
        let bodies: Vec<(Digest, u64)> =
            self.open.iter().filter(|(_, k)| same(k)).map(|(d, k)| (*d, k.order.first_round)).collect();
        if bodies.iter().any(|(_, first)| *first > after) {
            return Err(NotReplaced::Stale);
        }
        let of_home = self.replaced.values().filter(|(k, _)| k.home == home).count();
        if of_home + bodies.len() > MAX_REPLACED_PER_HOME {
            return Err(NotReplaced::Full);
        }
        for (digest, _) in bodies {
            if let Some(known) = self.open.remove(&digest) {
                self.replaced.insert(digest, (known, until_ms));
            }
        }
        Ok(())
    }

    /// Orders of the same search that its home made before this one; `None` when it made one after it.
    pub(crate) fn made_before(&self, home: u16, order: &Order) -> Option<Vec<Digest>> {
        let before = self.made_until(home, &order.job, order.attempt, order.first_round);
        let same =
            |k: &&Known| k.home == home && k.order.job == order.job && k.order.attempt == order.attempt;
        (before.len() == self.open.values().filter(same).count()).then_some(before)
    }

    /// Open bodies of a search that were made when that round was the first that one could name. A plain body names the
    /// first round that it can; one that comes early was made after the round that gave the one before to nobody.
    pub(crate) fn made_until(&self, home: u16, job: &str, attempt: u32, round: u64) -> Vec<Digest> {
        let made = |o: &Order| o.after.map_or(o.first_round, |after| after.round);
        let same = |k: &Known| k.home == home && k.order.job == job && k.order.attempt == attempt;
        let found = self.open.iter().filter(|(_, k)| same(k) && made(&k.order) <= round);
        found.map(|(digest, _)| *digest).collect()
    }

    /// Notes that a round gave an order to somebody, whom that may bind until then.
    pub(crate) fn awarded(&mut self, home: u16, order: &Order, until_ms: u64) {
        let known = self.awarded.entry(search(home, order)).or_default();
        *known = until_ms.max(*known);
    }

    /// Whether an award may still bind somebody at that time. The rounds of a first body are far enough apart; a body
    /// that comes early is only as good as what its home showed of the rounds before.
    fn is_bound(&self, known: &Known, at_ms: u64) -> bool {
        known.order.after.is_some()
            && !self.awarded.is_empty()
            && self.awarded.get(&search(known.home, &known.order)).is_some_and(|until| at_ms < *until)
    }

    /// Adds an order that was checked.
    pub(crate) fn insert(&mut self, digest: Digest, known: Known) {
        self.open.insert(digest, known);
    }

    /// Closes an order on its home's word. When too much is remembered for that home, what would be forgotten first
    /// is forgotten now.
    pub(crate) fn close(&mut self, digest: Digest, home: u16, how: Closed, now_ms: u64, params: &Params) {
        let of_home = || self.closed.iter().filter(|((_, h), _)| *h == home);
        if of_home().count() >= MAX_CLOSED_PER_HOME
            && let Some((oldest, _)) = of_home().min_by_key(|(_, c)| c.until_ms)
        {
            let oldest = *oldest;
            // A round that is open may need the body, whatever its home says and however often.
            if let Some(known) = self.closed.remove(&oldest).and_then(|c| c.known) {
                self.replaced.insert(oldest.0, (known, now_ms.saturating_add(params.lifetime())));
            }
        }
        let known = if self.open.get(&digest).is_some_and(|k| k.home == home) {
            self.open.remove(&digest)
        } else {
            None
        };
        let until_ms = match &known {
            Some(known) => known.order.expires_ms,
            None => now_ms.saturating_add(CLOSED_FOR_MS),
        };
        self.closed.insert((digest, home), ClosedEntry { how, until_ms, known });
    }

    /// Orders that this seat may list in a round: its rounds, known one delay before it starts, not expired.
    pub(crate) fn listable(&self, round: u64, params: &Params) -> Vec<(Digest, &Known)> {
        let (t0, step) = (params.t0(round), params.order_step());
        self.open
            .iter()
            .filter(|(_, k)| params.listable_from(k.received_ms) <= round)
            .filter(|(_, k)| may_list(&k.order, round, t0, step) && !self.is_bound(k, t0))
            .map(|(digest, known)| (*digest, known))
            .collect()
    }

    /// When the next round starts in which an open order may be listed.
    pub(crate) fn next_start(&self, now_ms: u64, params: &Params) -> Option<u64> {
        let (from, step) = (params.round_from(now_ms.saturating_add(1)), params.order_step());
        let start = |k: &Known| params.t0(k.order.next_round(from, step));
        self.open.values().filter(|k| start(k) < k.order.expires_ms).map(start).min()
    }

    /// Forgets what has expired, once no round that is open can need it any more.
    pub(crate) fn prune(&mut self, now_ms: u64, params: &Params) {
        if now_ms.abs_diff(self.pruned_ms) < PRUNE_EVERY_MS {
            return;
        }
        self.pruned_ms = now_ms;
        let kept = |until_ms: u64| until_ms.saturating_add(params.lifetime()) > now_ms;
        self.open.retain(|_, k| kept(k.order.expires_ms));
        self.closed.retain(|_, c| kept(c.until_ms));
        self.replaced.retain(|_, (_, until_ms)| now_ms < *until_ms);
        self.awarded.retain(|_, until_ms| now_ms < *until_ms);
    }
}

/// Whether a round may award the order; every seat decides this alike from the order's body.
pub(crate) fn may_list(order: &Order, round: u64, t0: u64, step: u64) -> bool {
    order.may_be_listed_in(round, step) && order.expires_ms > t0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::tests::mk_order;

    const PARAMS: Params = Params { delay_ms: 100, period_ms: 600, genesis_ms: 0, handover_ms: 5000 };

    #[test]
    fn a_body_outlives_its_place_among_the_closed_while_a_round_may_need_it() {
        let mut pool = Pool::default();
        let fill = |pool: &mut Pool, from: u64| {
            for i in from..from + MAX_CLOSED_PER_HOME as u64 {
                let mut digest = [1; 32];
                digest.iter_mut().zip(i.to_be_bytes()).for_each(|(to, from)| *to = from);
                pool.close(digest, 1, Closed::Cancelled, 1_000, &PARAMS);
            }
        };
        fill(&mut pool, 0);
        let order = Order { expires_ms: 30_000, ..mk_order() };
        let digest = order.digest();
        pool.insert(digest, known(&order));
        pool.close(digest, 1, Closed::Cancelled, 2_000, &PARAMS);
        fill(&mut pool, 100_000);
        assert!(pool.body(&digest).is_some(), "its round would never be decided");
        assert!(pool.is_over(&digest, 1));
        pool.prune(2_000 + PARAMS.lifetime() + 1_000, &PARAMS);
        assert!(pool.body(&digest).is_none());
    }

    #[test]
    fn an_order_can_always_be_closed() {
        let mut pool = Pool::default();
        for i in 0..MAX_CLOSED_PER_HOME as u64 {
            let mut digest = [0; 32];
            digest.iter_mut().zip(i.to_be_bytes()).for_each(|(to, from)| *to = from);
            pool.close(digest, 1, Closed::Cancelled, 1_000 + i, &PARAMS);
        }
        let order = mk_order();
        let digest = order.digest();
        pool.insert(digest, known(&order));
        pool.close(digest, 1, Closed::Taken(2), 2_000, &PARAMS);
        assert_eq!((pool.open_orders(), pool.closed(&digest, 1)), (0, Some(Closed::Taken(2))));
        assert_eq!(pool.closed(&[0; 32], 1), None, "the one that ends first is forgotten");
        assert_eq!(pool.closed.len(), MAX_CLOSED_PER_HOME);
    }

    const P: Params = Params { delay_ms: 100, period_ms: 600, genesis_ms: 0, handover_ms: 5000 };

    fn known(order: &Order) -> Known {
        Known { order: Arc::new(order.clone()), signature: [0; 65], home: 1, received_ms: 0 }
    }

    fn early(before: &Order, round: u64, first_round: u64) -> Order {
        let after = Some(vendue_market::Unserved { order: before.digest(), round, root: [1; 32] });
        Order { first_round, after, ..before.clone() }
    }

    #[test]
    fn a_later_body_takes_the_place_of_those_before_it_and_of_nothing_else() {
        let mut pool = Pool::default();
        let first = Order { expires_ms: u64::MAX, ..mk_order() };
        let (second, third) = (early(&first, 7, 9), early(&early(&first, 7, 9), 9, 11));
        let other = Order { job: "another".into(), ..first.clone() };
        for order in [&first, &other] {
            pool.insert(order.digest(), known(order));
        }
        pool.insert([9; 32], Known { home: 2, ..known(&first) });
        // The second body never came: the third takes the place of the first one.
        assert_eq!(pool.replace(1, &third, 9, 5_000), Ok(()));
        pool.insert(third.digest(), known(&third));
        assert_eq!(pool.open_orders(), 3, "another job and another home keep theirs");
        assert!(pool.get(&first.digest()).is_none() && pool.is_over(&first.digest(), 1));
        assert!(!pool.is_over(&first.digest(), 2) && !pool.is_over(&third.digest(), 1));
        assert!(pool.body(&first.digest()).is_some(), "a round that is open may need it");
        assert_eq!(pool.replace(1, &second, 7, 5_000), Err(NotReplaced::Stale), "it comes late");
        pool.prune(5_000, &P);
        assert!(pool.body(&first.digest()).is_none());
    }

    #[test]
    fn an_early_body_waits_for_an_award_of_its_order_and_a_first_body_needs_not() {
        let mut pool = Pool::default();
        let first = Order { expires_ms: u64::MAX, ..mk_order() };
        let again = early(&first, 7, 9);
        pool.insert(again.digest(), known(&again));
        let lists =
            |pool: &Pool, round: u64| pool.listable(round, &P).iter().map(|(d, _)| *d).collect::<Vec<_>>();
        assert_eq!(lists(&pool, 9), [again.digest()]);
        pool.awarded(1, &first, P.expiry(7));
        assert_eq!(lists(&pool, 9), [[0; 32]; 0]);
        assert_eq!(lists(&pool, 9 + P.order_step()), [again.digest()]);
        pool.insert(first.digest(), known(&first));
        assert_eq!(lists(&pool, 7), [first.digest()]);
        pool.prune(P.expiry(7), &P);
        assert_eq!(lists(&pool, 9), [again.digest()], "what has expired binds nobody");
    }
}
