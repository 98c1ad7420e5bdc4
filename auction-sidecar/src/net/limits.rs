//! Rate limits per peer and protocol: token buckets.
//!
//! Inputs: the time and how much a message costs. Outputs: whether it is taken. Invariant: over any stretch of time a
//! peer gets at most `burst + rate * seconds`.

use std::time::Instant;

/// A token bucket.
#[derive(Debug, Clone)]
pub struct Bucket {
    rate: f64,
    burst: f64,
    tokens: f64,
    last: Instant,
}

impl Bucket {
    /// A full bucket that refills by `rate` per second.
    pub fn new(rate: u32, burst: u32, now: Instant) -> Self {
        Self { rate: f64::from(rate), burst: f64::from(burst), tokens: f64::from(burst), last: now }
    }

    /// Takes `cost` tokens when there are as many.
    pub fn take(&mut self, cost: u32, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.last).as_secs_f64();
        self.tokens = (self.tokens + elapsed * self.rate).min(self.burst);
        self.last = now;
        let cost = f64::from(cost);
        if self.tokens < cost {
            return false;
        }
        self.tokens -= cost;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_bucket_refills_and_never_overflows() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10, 5, start);
        for _ in 0..5 {
            assert!(bucket.take(1, start));
        }
        assert!(!bucket.take(1, start));
        assert!(bucket.take(1, start + Duration::from_millis(100)));
        assert!(!bucket.take(6, start + Duration::from_secs(100)));
        assert!(bucket.take(5, start + Duration::from_secs(100)));
    }
}
