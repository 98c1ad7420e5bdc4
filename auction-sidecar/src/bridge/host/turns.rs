//! Whose turn it is to deliver.
//!
//! Inputs: deliveries that want to send. Outputs: turns, first come first served. Invariant: at most a fixed number at a
//! time, which bounds memory, and one of each home, so that a slow home never has all of them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::net::MemberId;

/// Deliveries at a time.
const TURNS: usize = 2;

/// The turns of one host.
pub(super) struct Turns {
    all: Arc<Semaphore>,
    /// As many as there are homes in the market record.
    homes: Mutex<BTreeMap<MemberId, Arc<Semaphore>>>,
    waiting: AtomicUsize,
}

/// A turn; dropping it lets the next one begin.
pub(super) struct Turn {
    _all: Option<OwnedSemaphorePermit>,
    _home: Option<OwnedSemaphorePermit>,
}

/// Counts one that waits, also when it gives up.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Default for Turns {
    fn default() -> Self {
        let all = Arc::new(Semaphore::new(TURNS));
        Self { all, homes: Mutex::default(), waiting: AtomicUsize::new(0) }
    }
}

impl Turns {
    /// Waits for a turn to send to `home`.
    pub(super) async fn take(&self, home: MemberId) -> Turn {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        let of_home = {
            let mut homes = self.homes.lock().unwrap_or_else(PoisonError::into_inner);
            homes.entry(home).or_insert_with(|| Arc::new(Semaphore::new(1))).clone()
        };
        // The home's first: who waits for its own home keeps nobody else waiting. Neither is ever closed.
        let _home = of_home.acquire_owned().await.ok();
        let _all = self.all.clone().acquire_owned().await.ok();
        Turn { _all, _home }
    }

    /// Whether somebody waits for a turn.
    pub(super) fn are_wanted(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn one_of_each_home_and_two_in_all() {
        let turns = Turns::default();
        let home = MemberId::Home;
        let first = turns.take(home(0)).now_or_never();
        assert!(first.is_some());
        assert!(turns.take(home(0)).now_or_never().is_none(), "its home sends already");
        let second = turns.take(home(1)).now_or_never();
        assert!(second.is_some() && !turns.are_wanted());
        let mut third = Box::pin(turns.take(home(2)));
        assert!(third.as_mut().now_or_never().is_none() && turns.are_wanted());
        drop(first);
        assert!(third.now_or_never().is_some());
        assert!(!turns.are_wanted());
    }
}
