//! The orders that a seat knows: what it may list, and what is closed.

use crate::params::Params;
use std::collections::BTreeMap;
use vendue_market::{Digest, Order};

/// Most open orders of one home.
pub(crate) const MAX_OPEN_PER_HOME: usize = 512;
/// Most closed orders remembered for one home.
const MAX_CLOSED_PER_HOME: usize = 4096;
/// How long a closed order is remembered when its expiry is not known.
const CLOSED_FOR_MS: u64 = 24 * 3600 * 1000;

/// An order that a seat holds.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub order: Order,
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

/// Orders by digest.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    open: BTreeMap<Digest, Known>,
    /// By order and home, so that one home's word says nothing about another's order.
    closed: BTreeMap<(Digest, u16), ClosedEntry>,
}

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
        self.open.get(digest).or_else(closed)
    }

    /// How the order was closed by the home that placed it.
    pub(crate) fn closed(&self, digest: &Digest, home: u16) -> Option<Closed> {
        self.closed.get(&(*digest, home)).map(|c| c.how)
    }

    /// Whether one more order of this home is within its quota.
    pub(crate) fn has_room(&self, home: u16) -> bool {
        self.open.values().filter(|k| k.home == home).count() < MAX_OPEN_PER_HOME
    }

    /// Adds an order that was checked.
    pub(crate) fn insert(&mut self, digest: Digest, known: Known) {
        self.open.insert(digest, known);
    }

    /// Closes an order on its home's word. When too much is remembered for that home, what would be forgotten first
    /// is forgotten now.
    pub(crate) fn close(&mut self, digest: Digest, home: u16, how: Closed, now_ms: u64) {
        let of_home = || self.closed.iter().filter(|((_, h), _)| *h == home);
        if of_home().count() >= MAX_CLOSED_PER_HOME
            && let Some((oldest, _)) = of_home().min_by_key(|(_, c)| c.until_ms)
        {
            let oldest = *oldest;
            self.closed.remove(&oldest);
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
            .filter(|(_, k)| k.received_ms.saturating_add(params.delay_ms) <= t0)
            .filter(|(_, k)| may_list(&k.order, round, t0, step))
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
        let kept = |until_ms: u64| until_ms.saturating_add(params.lifetime()) > now_ms;
        self.open.retain(|_, k| kept(k.order.expires_ms));
        self.closed.retain(|_, c| kept(c.until_ms));
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

    #[test]
    fn an_order_can_always_be_closed() {
        let mut pool = Pool::default();
        for i in 0..MAX_CLOSED_PER_HOME as u64 {
            let mut digest = [0; 32];
            digest.iter_mut().zip(i.to_be_bytes()).for_each(|(to, from)| *to = from);
            pool.close(digest, 1, Closed::Cancelled, 1_000 + i);
        }
        let order = mk_order();
        let digest = order.digest();
        pool.insert(digest, Known { order, signature: [0; 65], home: 1, received_ms: 0 });
        pool.close(digest, 1, Closed::Taken(2), 2_000);
        assert_eq!((pool.open_orders(), pool.closed(&digest, 1)), (0, Some(Closed::Taken(2))));
        assert_eq!(pool.closed(&[0; 32], 1), None, "the one that ends first is forgotten");
        assert_eq!(pool.closed.len(), MAX_CLOSED_PER_HOME);
    }
}
