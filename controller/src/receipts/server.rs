//! The HTTPS server of receipts, and what is done from time to time.
//!
//! Invariants: certificates are read again every minute, so that they can be renewed; handshakes, heads and requests have a
//! time limit.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use tower::limit::GlobalConcurrencyLimitLayer;
use tower_http::timeout::TimeoutLayer;

use super::api::{Desk, router};

const REFRESH: Duration = Duration::from_secs(60);
const MINUTE: Duration = Duration::from_secs(60);
/// Minutes between two times at which old receipts are removed.
const PRUNE_MINUTES: u64 = 60;
const HANDSHAKE: Duration = Duration::from_secs(10);
const REQUEST: Duration = Duration::from_secs(30);
/// Requests at a time.
const AT_ONCE: usize = 128;

/// Why receipts are not taken.
#[derive(Debug, thiserror::Error)]
pub enum ReceiptsError {
    /// No certificate.
    #[error("read tls.crt and tls.key in {}: {source}", dir.display())]
    Certificate {
        /// The folder.
        dir: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The server ended.
    #[error("serve receipts on {address}: {source}")]
    Serve {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

/// Serves until the process ends.
///
/// # Errors
/// When there is no certificate, or the address cannot be had.
pub async fn serve(address: SocketAddr, tls: &Path, desk: Desk) -> Result<(), ReceiptsError> {
    let failed = |source| ReceiptsError::Certificate { dir: tls.to_owned(), source };
    let (certificate, key) = (tls.join("tls.crt"), tls.join("tls.key"));
    let config = RustlsConfig::from_pem_file(&certificate, &key).await.map_err(failed)?;
    let acceptor = RustlsAcceptor::new(config.clone()).handshake_timeout(HANDSHAKE);
    let routes = router(desk.clone())
        .layer(TimeoutLayer::with_status_code(axum::http::StatusCode::REQUEST_TIMEOUT, REQUEST))
        .layer(GlobalConcurrencyLimitLayer::new(AT_ONCE));
    let mut server = axum_server::bind(address).acceptor(acceptor);
    server.http_builder().http1().timer(hyper_util::rt::TokioTimer::new()).header_read_timeout(REQUEST);
    tracing::info!(listen = %address, "receipts are taken");
    tokio::select! {
        served = server.serve(routes.into_make_service()) => {
            served.map_err(|source| ReceiptsError::Serve { address, source })
        }
        () = renew(config, certificate, key) => Ok(()),
        () = tidy(desk) => Ok(()),
    }
}

async fn renew(config: RustlsConfig, certificate: PathBuf, key: PathBuf) {
    loop {
        tokio::time::sleep(REFRESH).await;
        if let Err(error) = config.reload_from_pem_file(&certificate, &key).await {
            tracing::warn!(%error, "the certificate of receipts is not read again; the old one stays");
        }
    }
}

/// Milliseconds since 1970 by the clock of this machine.
pub fn system_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Closes what nobody asks for each minute, and removes what is old each hour.
async fn tidy(desk: Desk) {
    for minute in 0u64.. {
        let book = desk.book.clone();
        let done = tokio::task::spawn_blocking(move || {
            if minute.is_multiple_of(PRUNE_MINUTES) {
                book.prune(system_ms());
            }
            book.close_idle();
        });
        if let Err(error) = done.await {
            tracing::error!(%error, "old receipts are not removed");
        }
        tokio::time::sleep(MINUTE).await;
    }
}
