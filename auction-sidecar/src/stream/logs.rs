//! The log of a Job as one stream of bytes: from the provider while it runs, from the store afterwards.
//!
//! Invariant: both sources hold the same bytes at the same offsets, so a follower that starts at the provider goes on
//! in the store without a gap or a repeat.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::Stream;

use super::backend::{AccessError, Backend, LogChunk, Place};
use super::handlers::{Shared, blocking};
use super::status::ApiStatus;
use crate::store::StoreError;
use crate::wire::LOG_PATH;

/// Bytes read at once.
const READ: usize = 256 << 10;
/// How far back `tailLines` looks.
const TAIL: u64 = 1 << 20;
/// How long one poll waits for more.
const WAIT: Duration = Duration::from_secs(20);
/// How long a follower waits for a provider that does not answer.
const PATIENCE: Duration = Duration::from_secs(120);

struct Reader<B> {
    shared: Arc<Shared<B>>,
    namespace: String,
    name: String,
    uid: String,
    follow: bool,
    offset: u64,
    failing_since: Option<Instant>,
}

/// What one step gave.
enum Step {
    Data(Bytes),
    Again(Duration),
    End,
}

/// Opens the stream. Errors that are known at once become a status; later ones break the stream off.
pub(super) async fn stream<B: Backend>(
    shared: Arc<Shared<B>>,
    namespace: String,
    name: String,
    follow: bool,
    tail_lines: Option<u64>,
) -> Result<impl Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static, ApiStatus> {
    let located = shared.backend.locate(&namespace, &name).await?;
    let mut reader =
        Reader { shared, namespace, name, uid: located.uid, follow, offset: 0, failing_since: None };
    let stored = reader.stored(0, 0).await?.is_some();
    if let (Place::Nowhere(state), false, false) = (&located.place, stored, follow && !located.ended) {
        return Err(ApiStatus::not_found(format!("there is no log: {state}")));
    }
    let first = match tail_lines {
        Some(lines) => Some(reader.tail(lines).await?),
        None => None,
    };
    let first = futures::stream::iter(first.filter(|b| !b.is_empty()).map(Ok));
    let rest = futures::stream::try_unfold(reader, |mut reader| async move {
        loop {
            match reader.step().await.map_err(|e| std::io::Error::other(e.to_string()))? {
                Step::Data(data) => return Ok(Some((data, reader))),
                Step::Again(pause) => tokio::time::sleep(pause).await,
                Step::End => return Ok(None),
            }
        }
    });
    Ok(futures::StreamExt::chain(first, rest))
}

impl<B: Backend> Reader<B> {
    /// A piece of the stored log, when the delivery is whole.
    async fn stored(&self, offset: u64, max: usize) -> Result<Option<LogChunk>, ApiStatus> {
        let (store, uid) = (self.shared.store.clone(), self.uid.clone());
        blocking(move || {
            match store.job(&uid) {
                Ok(index) if index.complete => {}
                Ok(_) | Err(StoreError::UnknownJob(_)) => return Ok(None),
                Err(error) => return Err(error),
            }
            match store.read(&uid, LOG_PATH, offset, max) {
                Ok((data, size)) => Ok(Some(LogChunk { data: data.into(), size, ended: true })),
                Err(StoreError::UnknownFile(_)) => {
                    Ok(Some(LogChunk { data: Bytes::new(), size: 0, ended: true }))
                }
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// A piece of the log from wherever it is; `None` while it is nowhere.
    async fn chunk(&self, offset: u64, max: usize, wait: Duration) -> Result<Option<LogChunk>, AccessError> {
        if let Some(chunk) = self
            .stored(offset, max)
            .await
            .map_err(|_| AccessError::Unavailable("the store failed".to_owned()))?
        {
            return Ok(Some(chunk));
        }
        let located = self.shared.backend.locate(&self.namespace, &self.name).await?;
        if located.uid != self.uid {
            return Err(AccessError::NoJob(self.name.clone()));
        }
        match located.place {
            Place::Provider { award, seat } => {
                self.shared.backend.live_log(&award, seat, offset, wait).await.map(Some)
            }
            Place::Nowhere(_) if located.ended => {
                Ok(Some(LogChunk { data: Bytes::new(), size: offset, ended: true }))
            }
            Place::Nowhere(_) => Ok(None),
        }
    }

    async fn step(&mut self) -> Result<Step, AccessError> {
        let wait = if self.follow { WAIT } else { Duration::ZERO };
        let chunk = match self.chunk(self.offset, READ, wait).await {
            Ok(chunk) => chunk,
            // The award may be on its way from the provider to the store.
            Err(AccessError::Gone | AccessError::Unavailable(_)) if self.patient() => {
                return Ok(Step::Again(Duration::from_secs(1)));
            }
            Err(error) => return Err(error),
        };
        self.failing_since = None;
        let Some(chunk) = chunk else {
            return Ok(if self.follow { Step::Again(Duration::from_secs(1)) } else { Step::End });
        };
        if !chunk.data.is_empty() {
            self.offset += chunk.data.len() as u64;
            return Ok(Step::Data(chunk.data));
        }
        let at_end = self.offset >= chunk.size;
        Ok(match (at_end && (chunk.ended || !self.follow), self.follow) {
            (true, _) => Step::End,
            (false, true) => Step::Again(Duration::from_millis(100)),
            (false, false) => Step::End,
        })
    }

    fn patient(&mut self) -> bool {
        let patience = if self.follow { PATIENCE } else { Duration::from_secs(3) };
        self.failing_since.get_or_insert_with(Instant::now).elapsed() < patience
    }

    /// The last lines that are there now; the stream goes on behind them.
    async fn tail(&mut self, lines: u64) -> Result<Bytes, ApiStatus> {
        let Some(end) = self.chunk(u64::MAX, 0, Duration::ZERO).await? else { return Ok(Bytes::new()) };
        self.offset = end.size.saturating_sub(TAIL);
        let mut text = Vec::new();
        while self.offset < end.size {
            match self.chunk(self.offset, READ, Duration::ZERO).await? {
                Some(chunk) if !chunk.data.is_empty() => {
                    self.offset += chunk.data.len() as u64;
                    text.extend_from_slice(&chunk.data);
                }
                _ => break,
            }
        }
        Ok(Bytes::from(last_lines(&text, lines)))
    }
}

/// The last `lines` lines; a last line without an end counts.
fn last_lines(text: &[u8], lines: u64) -> Vec<u8> {
    if lines == 0 {
        return Vec::new();
    }
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let ends = body.iter().enumerate().rev().filter(|(_, b)| **b == b'\n').map(|(i, _)| i);
    let start =
        ends.skip(usize::try_from(lines - 1).unwrap_or(usize::MAX)).map(|i| i + 1).next().unwrap_or(0);
    text.get(start..).unwrap_or_default().to_vec()
}

#[cfg(test)]
mod unit {
    use super::last_lines;

    #[test]
    fn tails() {
        for (text, n, want) in [
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc", 2, "b\nc"),
            ("a\n", 5, "a\n"),
            ("", 1, ""),
            ("a\nb\n", 0, ""),
        ] {
            assert_eq!(last_lines(text.as_bytes(), n), want.as_bytes(), "{text:?} {n}");
        }
    }
}
