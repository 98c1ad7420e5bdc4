//! The orders that a seat knew: nearly all seats of a round know the same ones, and they are many.
//!
//! Inputs: digests. Output: a list that is shared instead of copied and hashed once. Invariant: what a view says never
//! changes, so its digest is that of its orders for ever.

use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};
use vendue_market::{Digest, tagged_hash};

/// Views that a seat remembers so that equal ones become one.
const REMEMBERED: usize = 4;

/// Digests of orders, in the order of a bundle's records.
#[derive(Debug, Clone, Default)]
pub struct View(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    orders: Vec<Digest>,
    digest: OnceLock<Digest>,
}

impl View {
    /// The digest that is bound into a bundle and its sealing.
    pub fn digest(&self) -> Digest {
        *self.0.digest.get_or_init(|| view_digest(&self.0.orders))
    }
    /// Leaves nothing in it.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
    /// Whether two views share their memory: then they are equal.
    fn is_shared_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Deref for View {
    type Target = [Digest];

    fn deref(&self) -> &[Digest] {
        &self.0.orders
    }
}

impl From<Vec<Digest>> for View {
    fn from(orders: Vec<Digest>) -> Self {
        Self(Arc::new(Inner { orders, digest: OnceLock::new() }))
    }
}

impl PartialEq for View {
    fn eq(&self, other: &Self) -> bool {
        self.is_shared_with(other) || self.0.orders.as_flattened() == other.0.orders.as_flattened()
    }
}

impl Eq for View {}

/// Digest of a sorted order view, bound into the sealing.
pub fn view_digest(order_view: &[Digest]) -> Digest {
    tagged_hash("VENDUE-V1-VIEW", &[order_view.as_flattened()])
}

/// The views that came last, the newest first.
#[derive(Debug, Default)]
pub(crate) struct Views(VecDeque<View>);

impl Views {
    /// Replaces a view by an equal one that is remembered, or remembers it.
    pub(crate) fn share(&mut self, view: &mut View) {
        if let Some(known) = self.0.iter().find(|known| *known == view) {
            *view = known.clone();
            return;
        }
        self.0.push_front(view.clone());
        self.0.truncate(REMEMBERED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_views_become_one_and_few_are_remembered() {
        let view = |i: u8| View::from(vec![[i; 32], [i + 1; 32]]);
        let mut views = Views::default();
        let (mut first, mut second, mut other) = (view(1), view(1), view(2));
        for view in [&mut first, &mut second, &mut other] {
            views.share(view);
        }
        assert!(first.is_shared_with(&second) && !first.is_shared_with(&other));
        assert_eq!((first.digest(), second.digest()), (view_digest(&first), view_digest(&view(1))));
        assert_ne!(first, other);
        (3..3 + REMEMBERED as u8).for_each(|i| views.share(&mut view(i)));
        assert_eq!(views.0.len(), REMEMBERED);
        let mut late = view(1);
        views.share(&mut late);
        assert!(late == first && !late.is_shared_with(&first), "it was forgotten");
        late.clear();
        assert!(late.is_empty() && late.digest() == view_digest(&[]));
    }
}
