//! When to try again after a failure, per object.
//!
//! Invariant: the wait doubles with each failure in a row and is forgotten with the first success.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(60);
/// More objects than fail at once in any sane cluster; beyond it the counts are dropped, not the waits.
const MOST: usize = 10_000;

/// Failures in a row, by uid.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: Mutex<HashMap<String, u32>>,
}

impl Backoff {
    /// Notes a failure; returns how long to wait.
    pub fn failed(&self, uid: &str) -> Duration {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() >= MOST {
            failures.clear();
        }
        let count = failures.entry(uid.to_owned()).or_default();
        *count = count.saturating_add(1);
        let wait = FIRST.saturating_mul(1 << (*count - 1).min(16)).min(LONGEST);
        // Up to a quarter more, different for each object, so that they do not come back together.
        let mut hasher = DefaultHasher::new();
        (uid, *count).hash(&mut hasher);
        wait + wait.mul_f64((hasher.finish() % 256) as f64 / 1024.0)
    }

    /// Forgets the failures.
    pub fn succeeded(&self, uid: &str) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_and_forgets() {
        let backoff = Backoff::default();
        let waits: Vec<Duration> = (0..12).map(|_| backoff.failed("a")).collect();
        assert!(waits[0] >= FIRST && waits[0] < FIRST * 2);
        assert!(waits[3] >= FIRST * 8 && waits[3] <= FIRST * 10);
        assert!(waits[11] >= LONGEST && waits[11] <= LONGEST.mul_f64(1.25));
        backoff.succeeded("a");
        assert!(backoff.failed("a") < FIRST * 2);
    }
}
