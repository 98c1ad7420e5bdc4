//! Bodies of requests: read only of callers that are known, a few at a time, each within a time.
//!
//! Inputs: a body, the node that it comes from. Outputs: its bytes, with the right to hold them. Invariants: at most
//! [`AT_ONCE`] bodies are in memory, one of a node, however slowly they come; none is longer than accepted.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use futures::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use vendue_receipts::delivery::MAX_BODY;

/// Bodies in memory at a time.
const AT_ONCE: usize = 4;
/// Longest wait for one of these places.
const WAIT: Duration = Duration::from_secs(5);
/// Longest time in which a body must have come: nodes are near.
const READ: Duration = Duration::from_secs(10);

/// Why a body is not read.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// Longer than accepted.
    #[error("the body is longer than {MAX_BODY} bytes")]
    Long,
    /// Another request of the node is still being read.
    #[error("another request of node {0} is being read; one at a time is")]
    Twice(String),
    /// No place.
    #[error("{AT_ONCE} bodies are being read; ask again")]
    Busy,
    /// It does not come.
    #[error("the body did not come within {} s", READ.as_secs())]
    Slow,
    /// The connection ended.
    #[error("read the body: {0}")]
    Broken(axum::Error),
}

impl BodyError {
    /// The answer's status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Long => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Twice(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::Slow => StatusCode::REQUEST_TIMEOUT,
            Self::Broken(_) => StatusCode::BAD_REQUEST,
        }
    }
}

/// Who may hold a body.
#[derive(Clone)]
pub struct Bodies {
    wait: Duration,
    read: Duration,
    places: Arc<Semaphore>,
    nodes: Arc<Mutex<BTreeSet<String>>>,
}

/// The right to hold the body of a node.
pub struct Place {
    node: String,
    nodes: Arc<Mutex<BTreeSet<String>>>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.node);
    }
}

/// Takes the node out again unless it got a place.
struct Turn<'a>(&'a Bodies, Option<String>);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(node) = self.1.take() {
            self.0.nodes.lock().unwrap_or_else(PoisonError::into_inner).remove(&node);
        }
    }
}

impl Default for Bodies {
    fn default() -> Self {
        Self { wait: WAIT, read: READ, places: Arc::new(Semaphore::new(AT_ONCE)), nodes: Arc::default() }
    }
}

impl Bodies {
    /// Reads the body of a node whose token was accepted. It may be held as long as the place is.
    pub async fn read(
        &self,
        node: &str,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<(Vec<u8>, Place), BodyError> {
        let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        if length.is_some_and(|length: u64| length > MAX_BODY as u64) {
            return Err(BodyError::Long);
        }
        let place = self.place(node).await?;
        let bytes = tokio::time::timeout(self.read, collect(body)).await.unwrap_or(Err(BodyError::Slow))?;
        Ok((bytes, place))
    }

    async fn place(&self, node: &str) -> Result<Place, BodyError> {
        if !self.nodes.lock().unwrap_or_else(PoisonError::into_inner).insert(node.to_owned()) {
            return Err(BodyError::Twice(node.to_owned()));
        }
        let mut turn = Turn(self, Some(node.to_owned()));
        let permit = tokio::time::timeout(self.wait, self.places.clone().acquire_owned()).await;
        let Ok(Ok(permit)) = permit else { return Err(BodyError::Busy) };
        turn.1 = None;
        Ok(Place { node: node.to_owned(), nodes: self.nodes.clone(), _permit: permit })
    }
}

async fn collect(body: Body) -> Result<Vec<u8>, BodyError> {
    let (mut stream, mut bytes) = (body.into_data_stream(), vec![]);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(BodyError::Broken)?;
        if bytes.len() + chunk.len() > MAX_BODY {
            return Err(BodyError::Long);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn never() -> Body {
        Body::from_stream(futures::stream::pending::<Result<Vec<u8>, std::io::Error>>())
    }

    #[tokio::test]
    async fn bodies_that_trickle_hold_up_few_and_one_node_has_one_place() {
        let bodies = Bodies { wait: Duration::ZERO, ..Bodies::default() };
        let read = |node: &str, body: Body| {
            let (bodies, node) = (bodies.clone(), node.to_owned());
            async move { bodies.read(&node, &HeaderMap::new(), body).await.map(|(bytes, _)| bytes.len()) }
        };
        let mut slow: Vec<_> = (0..AT_ONCE).map(|n| Box::pin(read(&format!("n{n}"), never()))).collect();
        for one in &mut slow {
            assert!(futures::poll!(one).is_pending());
        }
        assert!(matches!(read("n0", Body::from("x")).await, Err(BodyError::Twice(_))));
        assert!(matches!(read("late", Body::from("x")).await, Err(BodyError::Busy)));
        slow.pop();
        assert_eq!(read("late", Body::from("x")).await.unwrap(), 1, "a place was given back");
        drop(slow);
        assert_eq!(read("n0", Body::from("xyz")).await.unwrap(), 3);
        let impatient = Bodies { read: Duration::ZERO, ..bodies };
        for _ in 0..2 {
            let slow = impatient.read("n0", &HeaderMap::new(), never()).await;
            assert!(matches!(slow, Err(BodyError::Slow)));
        }
    }

    #[tokio::test]
    async fn bodies_that_are_too_long_are_not_held() {
        let bodies = Bodies::default();
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_LENGTH, (MAX_BODY as u64 + 1).into());
        assert!(matches!(bodies.read("n1", &headers, never()).await, Err(BodyError::Long)));
        let chunks = (0..5).map(|_| Ok::<_, std::io::Error>(vec![0; 1 << 20]));
        let long = Body::from_stream(futures::stream::iter(chunks));
        assert!(matches!(bodies.read("n1", &HeaderMap::new(), long).await, Err(BodyError::Long)));
    }
}
