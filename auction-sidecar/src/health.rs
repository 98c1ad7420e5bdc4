//! `/healthz`, `/readyz` and `/metrics`.
//!
//! Inputs: the metrics and a set of named facts that other tasks keep. Outputs: plain text. Invariant: ready only when
//! every fact that was announced is true; the answer names those that are not.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;

use crate::metrics::Metrics;

/// Named facts that make the process ready.
#[derive(Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, bool>>>);

impl Readiness {
    /// Announces or updates a fact.
    pub fn set(&self, fact: &'static str, value: bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(fact, value);
    }

    /// The facts that are not true.
    pub fn missing(&self) -> Vec<&'static str> {
        let facts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        facts.iter().filter(|(_, ok)| !**ok).map(|(name, _)| *name).collect()
    }
}

/// Why the server ended.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    /// The address cannot be bound.
    #[error("listen on {0}: {1}")]
    Bind(SocketAddr, std::io::Error),
    /// The server failed.
    #[error("serve health: {0}")]
    Serve(std::io::Error),
}

#[derive(Clone)]
struct Shared {
    metrics: Arc<Metrics>,
    ready: Readiness,
}

/// The routes.
pub fn router(metrics: Arc<Metrics>, ready: Readiness) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(render))
        .with_state(Shared { metrics, ready })
}

async fn readyz(State(shared): State<Shared>) -> (StatusCode, String) {
    match shared.ready.missing() {
        missing if missing.is_empty() => (StatusCode::OK, "ok".to_owned()),
        missing => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}", missing.join(", "))),
    }
}

async fn render(State(shared): State<Shared>) -> (StatusCode, String) {
    match shared.metrics.render() {
        Ok(text) => (StatusCode::OK, text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// Serves until the process ends.
pub async fn serve(address: SocketAddr, router: Router) -> Result<(), HealthError> {
    let listener = tokio::net::TcpListener::bind(address).await.map_err(|e| HealthError::Bind(address, e))?;
    axum::serve(listener, router).await.map_err(HealthError::Serve)
}
