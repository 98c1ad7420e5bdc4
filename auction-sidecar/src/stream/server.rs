//! The HTTPS server: accepts, notes what the client certificate proves, serves.
//!
//! Inputs: a listener, certificate files, the front proxy's authority (read again from time to time). Outputs: requests
//! with the extensions that the handlers need. Invariant: at most a fixed number of connections; a handshake that takes
//! too long is dropped.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use super::identity::{FrontProxy, FrontProxyError, Trusted};
use super::tls::{self, TlsError};

const HANDSHAKE: Duration = Duration::from_secs(10);
const REFRESH: Duration = Duration::from_secs(60);
const MAX_CONNECTIONS: usize = 256;

/// Where to serve.
#[derive(Debug, Clone)]
pub struct StreamConfig {
    /// Address.
    pub listen: SocketAddr,
    /// Folder with `tls.crt` and `tls.key`.
    pub tls: PathBuf,
}

/// Why the server ended or could not start.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The address cannot be bound.
    #[error("listen on {0}: {1}")]
    Bind(SocketAddr, std::io::Error),
    /// The cluster does not tell about its front proxy.
    #[error("read ConfigMap kube-system/extension-apiserver-authentication: {0}")]
    ConfigMap(Box<kube::Error>),
    /// What it tells is of no use.
    #[error(transparent)]
    FrontProxy(#[from] FrontProxyError),
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The API server did not answer in time.
    #[error("the API server did not answer in time")]
    Timeout,
}

/// What a new connection is accepted with.
#[derive(Clone)]
struct Front {
    tls: Arc<ServerConfig>,
    proxy: Arc<FrontProxy>,
}

async fn front(client: &Client, config: &StreamConfig) -> Result<Front, StreamError> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
    let map = tokio::time::timeout(HANDSHAKE, maps.get("extension-apiserver-authentication"))
        .await
        .map_err(|_| StreamError::Timeout)?
        .map_err(|e| StreamError::ConfigMap(Box::new(e)))?;
    let proxy = FrontProxy::from_data(&map.data.unwrap_or_default())?;
    let tls = tls::config(&config.tls, &proxy.ca_pem)?;
    Ok(Front { tls, proxy: Arc::new(proxy) })
}

/// Serves until the process ends. `started` is called when the first configuration is there and the port is open.
pub async fn serve(
    client: Client,
    config: StreamConfig,
    router: Router,
    started: impl FnOnce(),
) -> Result<(), StreamError> {
    let listener = TcpListener::bind(config.listen).await.map_err(|e| StreamError::Bind(config.listen, e))?;
    let (sender, receiver) = watch::channel(front(&client, &config).await?);
    started();
    tracing::info!(listen = %config.listen, "aggregated API serves");
    let refresh = async {
        loop {
            tokio::time::sleep(REFRESH).await;
            match front(&client, &config).await {
                Ok(front) => {
                    sender.send_replace(front);
                }
                Err(error) => {
                    tracing::warn!(%error, "front proxy not refreshed; the old configuration stays")
                }
            }
        }
    };
    tokio::select! {
        () = refresh => Ok(()),
        () = accept(listener, receiver, router) => Ok(()),
    }
}

async fn accept(listener: TcpListener, front: watch::Receiver<Front>, router: Router) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (front, router) = (front.borrow().clone(), router.clone());
        tokio::spawn(async move {
            connection(stream, front, router).await;
            drop(slot);
        });
    }
}

async fn connection(stream: TcpStream, front: Front, router: Router) {
    let acceptor = TlsAcceptor::from(front.tls);
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake"),
        Err(_) => return,
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let trusted = Trusted(certificate.is_some_and(|c| front.proxy.accepts(c)));
    let service = router.layer(Extension(front.proxy)).layer(Extension(trusted));
    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    let served = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)).await;
    if let Err(error) = served {
        tracing::debug!(%error, "connection");
    }
}
