//! Progress for people: one line when a step starts and one when it ends, with elapsed seconds.
//!
//! Long steps say every few seconds that they are still at work. Lines go to standard error, so
//! standard output stays free for results.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::Result;

const STILL_AT_WORK: Duration = Duration::from_secs(20);

/// Prints steps; cheap to clone.
#[derive(Clone)]
pub struct Progress {
    start: Instant,
    sink: Arc<dyn Fn(&str) + Send + Sync>,
}

impl std::fmt::Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Progress").field("start", &self.start).finish_non_exhaustive()
    }
}

impl Progress {
    /// Lines to standard error.
    pub fn stderr() -> Self {
        Self::to(|line| eprintln!("{line}"))
    }

    /// Says nothing.
    pub fn silent() -> Self {
        Self::to(|_| {})
    }

    /// Lines to a function of the caller's.
    pub fn to(sink: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self { start: Instant::now(), sink: Arc::new(sink) }
    }

    /// Seconds since this progress began.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// One line of information.
    pub fn say(&self, text: impl AsRef<str>) {
        (self.sink)(&format!("[{:6.1} s] {}", self.start.elapsed().as_secs_f64(), text.as_ref()));
    }

    /// Runs one step and reports its start, that it is still at work, and its end.
    pub async fn step<T>(&self, name: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        let begin = Instant::now();
        self.say(format!("{name} ..."));
        tokio::pin!(work);
        loop {
            match tokio::time::timeout(STILL_AT_WORK, &mut work).await {
                Ok(Ok(value)) => {
                    self.say(format!("{name}: done in {:.1} s", begin.elapsed().as_secs_f64()));
                    return Ok(value);
                }
                Ok(Err(error)) => {
                    self.say(format!("{name}: FAILED after {:.1} s: {error}", begin.elapsed().as_secs_f64()));
                    return Err(error);
                }
                Err(_) => {
                    self.say(format!("{name}: still at work after {:.0} s", begin.elapsed().as_secs_f64()))
                }
            }
        }
    }
}
