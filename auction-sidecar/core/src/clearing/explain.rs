//! Why each order of a round went where it did: the inputs of clearing once more, and one verdict for each seat.
//!
//! Invariant: the inputs are made by the same functions as in clearing itself. It opens and judges everything anew, so it
//! is for whoever looks at a round afterwards.

use super::Clearing;
use std::collections::BTreeSet;
use vendue_market::{Cleared, Digest, Explanation, Price, explain};
use vendue_sealed_bid::Sealed;

/// An order of a round and why it went where it did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    /// The ceiling in force, with what was sealed; none when that did not open.
    pub ceiling: Option<Price>,
    /// Its turn and one verdict for each seat.
    pub why: Explanation,
}

impl Clearing<'_> {
    /// One explanation for each order, ascending by order. `cleared` is what [`Clearing::run`] made of the same.
    pub(crate) fn explain(
        &self,
        candidates: &BTreeSet<Digest>,
        beacon: &Digest,
        open: impl Fn(&[u8], &Sealed) -> Option<Vec<u8>>,
        cleared: &[Cleared],
    ) -> Vec<Explained> {
        self.with_input(candidates, beacon, open, |input, _| {
            let explained = input.orders.iter().map(|order| {
                Some(Explained { ceiling: order.ceiling, why: explain(input, cleared, &order.digest)? })
            });
            explained.flatten().collect()
        })
    }
}
