//! The HTTP server of metrics and health.
//!
//! Invariant: it answers nothing about any object.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::award::Ledger;
use crate::metrics::Metrics;
use crate::receipts::Book;

/// What the server shows.
#[derive(Clone)]
pub struct Shown {
    /// Metrics.
    pub metrics: Metrics,
    /// Capacity; `None` where no Provision is reconciled.
    pub ledger: Option<Arc<Ledger>>,
    /// Receipts; `None` where none are taken.
    pub book: Option<Arc<Book>>,
    /// Whether Jobs were listed once; `None` where no Job is reconciled.
    pub jobs_listed: Option<Arc<AtomicBool>>,
}

/// The server stopped, or could not start.
#[derive(Debug, thiserror::Error)]
#[error("serve metrics on {address}: {source}")]
pub struct ServerError {
    address: SocketAddr,
    source: std::io::Error,
}

/// Serves until the process ends.
pub async fn serve(address: SocketAddr, shown: Shown) -> Result<(), ServerError> {
    let error = |source| ServerError { address, source };
    let listener = TcpListener::bind(address).await.map_err(error)?;
    axum::serve(listener, router(shown)).await.map_err(error)
}

fn router(shown: Shown) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(shown)
}

async fn ready(State(shown): State<Shown>) -> (StatusCode, &'static str) {
    if !shown.ledger.is_none_or(|l| l.ready()) {
        return (StatusCode::SERVICE_UNAVAILABLE, "the caches are filling\n");
    }
    if !shown.jobs_listed.is_none_or(|listed| listed.load(Ordering::Acquire)) {
        return (StatusCode::SERVICE_UNAVAILABLE, "Jobs cannot be listed; the log says why\n");
    }
    (StatusCode::OK, "ok\n")
}

async fn metrics(State(shown): State<Shown>) -> Result<String, (StatusCode, String)> {
    if let Some(ledger) = &shown.ledger {
        ledger.gauge(&shown.metrics);
    }
    if let Some(book) = shown.book.clone() {
        // A node that is being written waits for its disk.
        let size = tokio::task::spawn_blocking(move || book.size()).await;
        let (nodes, bytes) = size.map_err(|e| (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
        shown.metrics.receipts_nodes.set(i64::try_from(nodes).unwrap_or(i64::MAX));
        shown.metrics.receipts_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
    shown.metrics.render().map_err(|e| (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))
}
