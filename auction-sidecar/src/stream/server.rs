//! The HTTPS server: accepts, notes what the client certificate proves, serves.
//!
//! Inputs: a listener, certificate files, the front proxy's authority (read again from time to time). Outputs: requests
//! with the extensions that the handlers need. Invariant: at most a fixed number of connections; whoever has no
//! certificate of the front proxy gets few of them and only for a moment, so that nobody can keep the API server out.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::{Extension, Router};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::identity::{FrontProxy, FrontProxyError, Trusted};
use super::tls::{self, TlsError};

const API_SERVER: Duration = Duration::from_secs(10);
const REFRESH: Duration = Duration::from_secs(60);
/// How often a peer on HTTP/2 is asked whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// How many connections there may be, and for how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Connections of the API server.
    pub(super) trusted: usize,
    /// Handshakes that are under way.
    pub(super) handshakes: usize,
    /// Connections without the front proxy's certificate: probes.
    pub(super) strangers: usize,
    /// Handshakes and strangers' connections of one address.
    pub(super) of_address: usize,
    /// Longest handshake.
    pub(super) handshake: Duration,
    /// Longest life of a stranger's connection.
    pub(super) stranger: Duration,
    /// Longest wait for the head of a request.
    pub(super) header: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            trusted: 240,
            handshakes: 256,
            strangers: 16,
            of_address: 32,
            handshake: Duration::from_secs(10),
            stranger: Duration::from_secs(10),
            header: Duration::from_secs(30),
        }
    }
}

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
pub(super) struct Front {
    pub(super) tls: Arc<ServerConfig>,
    pub(super) proxy: Arc<FrontProxy>,
}

async fn front(client: &Client, config: &StreamConfig) -> Result<Front, StreamError> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
    let map = tokio::time::timeout(API_SERVER, maps.get("extension-apiserver-authentication"))
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
        () = accept(listener, receiver, router, Limits::default()) => Ok(()),
    }
}

/// Who is connected.
struct Doors {
    limits: Limits,
    trusted: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    addresses: Mutex<HashMap<IpAddr, usize>>,
}

/// A place among those of one address; dropping it gives it back.
struct Place {
    doors: Arc<Doors>,
    address: IpAddr,
}

impl Doors {
    fn new(limits: Limits) -> Arc<Self> {
        let slots = |n| Arc::new(Semaphore::new(n));
        let (trusted, handshakes) = (slots(limits.trusted), slots(limits.handshakes));
        let (strangers, addresses) = (slots(limits.strangers), Mutex::default());
        Arc::new(Self { limits, trusted, handshakes, strangers, addresses })
    }

    fn place(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let count = addresses.entry(address).or_default();
        if *count >= self.limits.of_address {
            return None;
        }
        *count += 1;
        Some(Place { doors: self.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut addresses = self.doors.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut count) = addresses.entry(self.address) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// Accepts for ever. Whoever finds no place is sent away at once and may come again.
pub(super) async fn accept(
    listener: TcpListener,
    front: watch::Receiver<Front>,
    router: Router,
    limits: Limits,
) {
    let doors = Doors::new(limits);
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let slot = doors.handshakes.clone().try_acquire_owned().ok();
        let Some((slot, place)) = slot.zip(doors.place(address.ip())) else {
            tracing::debug!(%address, "too many handshakes");
            continue;
        };
        let (front, router, doors) = (front.borrow().clone(), router.clone(), doors.clone());
        tokio::spawn(async move {
            let handshake = TlsAcceptor::from(front.tls.clone()).accept(stream);
            let stream = match tokio::time::timeout(limits.handshake, handshake).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake"),
                Err(_) => return,
            };
            drop(slot);
            connection(stream, front, router, &doors, place).await;
        });
    }
}

async fn connection(stream: TlsStream<TcpStream>, front: Front, router: Router, doors: &Doors, place: Place) {
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let trusted = certificate.is_some_and(|c| front.proxy.accepts(c));
    let service = router.layer(Extension(front.proxy)).layer(Extension(Trusted(trusted)));
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(doors.limits.header);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(KEEP_ALIVE);
    let served = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    let slots = if trusted { &doors.trusted } else { &doors.strangers };
    let Ok(_slot) = slots.try_acquire() else {
        return tracing::debug!(trusted, "too many connections");
    };
    let served = if trusted {
        drop(place);
        served.await
    } else {
        match tokio::time::timeout(doors.limits.stranger, served).await {
            Ok(served) => served,
            Err(_) => return tracing::debug!("a connection without the front proxy's certificate ends"),
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "connection");
    }
}
