//! `/metrics`, `/healthz` and `/readyz`; on another port `/metrics` under dcgm-exporter's names.
//!
//! Healthy: the agent's loop turns. Ready: besides, the last write of the GpuNode is no older than it should be. A
//! broken driver makes neither false: it is told by the GpuNode, and a restart would not mend it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::agent::View;
use crate::dcgm;
use crate::metrics::Metrics;
use crate::pods::watcher::Seen;

/// The loop must turn at least this often: longer than the watchdog's limit and a slow write together.
const LOOP_LIMIT: Duration = Duration::from_secs(120);

/// A write may be late by this many intervals.
const LATE_WRITES: u32 = 4;

/// What the loop tells the server.
#[derive(Debug)]
pub struct Pulse {
    heartbeat: Duration,
    times: Mutex<Times>,
}

#[derive(Clone, Copy, Debug)]
struct Times {
    turned: Instant,
    written: Option<Instant>,
}

impl Pulse {
    /// A pulse that begins now; writes are due every `heartbeat`.
    #[must_use]
    pub fn new(heartbeat: Duration) -> Self {
        Self { heartbeat, times: Mutex::new(Times { turned: Instant::now(), written: None }) }
    }

    /// The loop turned.
    pub fn turned(&self) {
        self.times.lock().unwrap_or_else(PoisonError::into_inner).turned = Instant::now();
    }

    /// A write worked.
    pub fn written(&self) {
        self.times.lock().unwrap_or_else(PoisonError::into_inner).written = Some(Instant::now());
    }

    /// Why the process is not healthy, if it is not.
    #[must_use]
    pub fn unhealthy(&self, now: Instant) -> Option<&'static str> {
        let times = *self.times.lock().unwrap_or_else(PoisonError::into_inner);
        (now.saturating_duration_since(times.turned) > LOOP_LIMIT).then_some("the agent's loop does not turn")
    }

    /// Why the process is not ready, if it is not.
    #[must_use]
    pub fn unready(&self, now: Instant) -> Option<&'static str> {
        let times = *self.times.lock().unwrap_or_else(PoisonError::into_inner);
        match times.written {
            None => Some("the GpuNode was not written yet"),
            Some(at) if now.saturating_duration_since(at) > self.heartbeat * LATE_WRITES => {
                Some("the GpuNode could not be written for some time")
            }
            Some(_) => self.unhealthy(now),
        }
    }
}

/// Why the server ended.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address cannot be had.
    #[error("listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// Serving failed.
    #[error("serve metrics: {0}")]
    Serve(std::io::Error),
}

#[derive(Clone)]
struct Shared {
    metrics: Arc<Metrics>,
    pulse: Arc<Pulse>,
}

/// Takes the address, so that a port in use is known before anything else starts.
///
/// # Errors
/// When the address cannot be had.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, ServerError> {
    TcpListener::bind(address).await.map_err(|source| ServerError::Listen { address, source })
}

/// Serves until `stop`.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    pulse: Arc<Pulse>,
    stop: CancellationToken,
) -> Result<(), ServerError> {
    let router = Router::new()
        .route("/metrics", get(scrape))
        .route(
            "/healthz",
            get(|State(shared): State<Shared>| async move { say(shared.pulse.unhealthy(Instant::now())) }),
        )
        .route(
            "/readyz",
            get(|State(shared): State<Shared>| async move { say(shared.pulse.unready(Instant::now())) }),
        )
        .with_state(Shared { metrics, pulse });
    axum::serve(listener, router)
        .with_graceful_shutdown(async move { stop.cancelled().await })
        .await
        .map_err(ServerError::Serve)
}

/// What the metrics under dcgm-exporter's names are made of.
#[derive(Clone)]
pub struct Dcgm {
    /// The devices.
    pub view: watch::Receiver<View>,
    /// Who holds them.
    pub pods: watch::Receiver<Seen>,
    /// The node's name.
    pub node: String,
}

/// Serves the metrics under dcgm-exporter's names until `stop`.
///
/// # Errors
/// When the listener fails.
pub async fn serve_dcgm(
    listener: TcpListener,
    dcgm: Dcgm,
    stop: CancellationToken,
) -> Result<(), ServerError> {
    let router = Router::new().route("/metrics", get(scrape_dcgm)).with_state(dcgm);
    axum::serve(listener, router)
        .with_graceful_shutdown(async move { stop.cancelled().await })
        .await
        .map_err(ServerError::Serve)
}

async fn scrape_dcgm(State(dcgm): State<Dcgm>) -> Response {
    let View { inventory, xids } = dcgm.view.borrow().clone();
    let pods = dcgm.pods.borrow().attribution.clone().map(|(found, _)| found).unwrap_or_default();
    answer(dcgm::render(&inventory.unwrap_or_default(), &xids, &pods, &dcgm.node))
}

async fn scrape(State(shared): State<Shared>) -> Response {
    answer(shared.metrics.render())
}

fn answer(text: Result<String, prometheus::Error>) -> Response {
    match text {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

fn say(trouble: Option<&'static str>) -> (StatusCode, &'static str) {
    trouble.map_or((StatusCode::OK, "ok"), |text| (StatusCode::SERVICE_UNAVAILABLE, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_needs_a_recent_write_and_healthy_only_the_loop() {
        let pulse = Pulse::new(Duration::from_secs(15));
        let start = Instant::now();
        assert_eq!(pulse.unhealthy(start), None);
        assert_eq!(pulse.unready(start), Some("the GpuNode was not written yet"));
        pulse.written();
        assert_eq!(pulse.unready(start + Duration::from_secs(50)), None);
        let late = start + Duration::from_secs(70);
        assert_eq!(pulse.unready(late), Some("the GpuNode could not be written for some time"));
        assert_eq!(pulse.unhealthy(late), None);
        assert!(pulse.unhealthy(start + Duration::from_secs(130)).is_some());
    }
}
