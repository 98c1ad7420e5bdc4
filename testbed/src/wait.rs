//! Bounded waits: poll until something is true, never sleep blindly.

use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// Outcome of one look at the thing waited for.
pub enum Poll<T> {
    /// It is there.
    Ready(T),
    /// Not yet; the text says what was seen, for the error message.
    Pending(String),
}

/// Polls `look` every `every` until it is ready or `limit` has passed; an `Err` ends the wait at once.
pub async fn until<T, F>(
    operation: &str,
    limit: Duration,
    every: Duration,
    mut look: impl FnMut() -> F,
) -> Result<T>
where
    F: Future<Output = Result<Poll<T>>>,
{
    let start = Instant::now();
    let mut seen = String::new();
    loop {
        let left = limit.saturating_sub(start.elapsed());
        match tokio::time::timeout(left, look()).await {
            Ok(Ok(Poll::Ready(value))) => return Ok(value),
            Ok(Ok(Poll::Pending(detail))) => seen = detail,
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(Error::timeout(operation, limit, seen)),
        }
        if start.elapsed() + every >= limit {
            return Err(Error::timeout(operation, limit, seen));
        }
        tokio::time::sleep(every).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ends_with_the_last_state_seen() {
        let error = until::<(), _>(
            "wait for nothing",
            Duration::from_millis(40),
            Duration::from_millis(10),
            || async { Ok(Poll::Pending("still nothing".into())) },
        )
        .await
        .unwrap_err()
        .to_string();
        assert!(error.contains("still nothing"), "{error}");
    }

    #[tokio::test]
    async fn returns_the_value() {
        let mut left = 3;
        let value = until("count", Duration::from_secs(5), Duration::from_millis(1), || {
            left -= 1;
            let now = left;
            async move { Ok(if now == 0 { Poll::Ready(7) } else { Poll::Pending(String::new()) }) }
        })
        .await
        .unwrap();
        assert_eq!(value, 7);
    }
}
