//! Kubelet device plugin for simulated GPUs: makes a node advertise what the state file holds.
//!
//! Input: state file, library, kubelet's `device-plugins` folder. Output: a registered plugin whose `Allocate` mounts
//! library and state into containers. It waits for kubelet, serves, registers, and starts over whenever kubelet's
//! socket is a new one (kubelet restarted, and has then removed ours) or our own socket is gone.
//!
//! Invariant: kubelet is never told of a device that the last good state does not hold.

pub mod allocate;
pub mod api;
pub mod service;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Endpoint, Server};
use tonic_prost::ProstCodec;

use crate::source::{Source, SourceError};
use crate::state::State;
use allocate::Layout;
use service::DevicePlugin;

/// How often state file and sockets are looked at.
const POLL: Duration = Duration::from_millis(200);

/// Longest wait for kubelet's answer to a registration.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(5);

/// What the plugin is to do.
#[derive(Clone, Debug)]
pub struct Config {
    /// Paths on node and in containers.
    pub layout: Layout,
    /// Kubelet's `device-plugins` folder, which holds `kubelet.sock`.
    pub kubelet_dir: PathBuf,
    /// Resource to advertise, for example `nvidia.com/gpu`.
    pub resource: String,
}

impl Config {
    fn endpoint(&self) -> String {
        format!("vendue-nvml-sim-{}.sock", self.resource.replace('/', "-"))
    }

    fn socket(&self) -> PathBuf {
        self.kubelet_dir.join(self.endpoint())
    }

    fn kubelet_socket(&self) -> PathBuf {
        self.kubelet_dir.join("kubelet.sock")
    }
}

/// What can go wrong; all but the first two are tried again.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// The state file could not be read at the start.
    #[error(transparent)]
    State(#[from] SourceError),
    /// A path on the node is not absolute, or not there.
    #[error("{what} {}: {source}", path.display())]
    Path {
        /// What the path is for.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The plugin's socket could not be made.
    #[error("listen on {}: {source}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Kubelet could not be reached.
    #[error("connect to {}: {source}", path.display())]
    Connect {
        /// Kubelet's socket.
        path: PathBuf,
        /// What the transport says.
        source: tonic::transport::Error,
    },
    /// Kubelet refused, or took too long.
    #[error("register {resource} with kubelet: {status}")]
    Register {
        /// The resource.
        resource: String,
        /// Kubelet's answer.
        status: Box<tonic::Status>,
    },
}

/// Runs until `stop`, then removes its socket.
///
/// # Errors
/// When the state file or the library cannot be read at the start. Later trouble is logged and tried again.
pub async fn run(mut config: Config, stop: CancellationToken) -> Result<(), PluginError> {
    config.layout.library = absolute("library", &config.layout.library)?;
    config.layout.state = absolute("state", &config.layout.state)?;
    let mut source = Source::new(config.layout.state.clone());
    source.refresh()?;
    let first = Arc::new(present(&source).unwrap_or_else(empty));
    let (sender, receiver) = watch::channel(first);
    let follow = tokio::spawn(follow_state(source, sender, stop.clone()));

    while let Some(kubelet) = wait_for_kubelet(&config, &stop).await {
        let round = stop.child_token();
        if let Err(error) = serve_one_kubelet(&config, kubelet, receiver.clone(), &round).await {
            tracing::warn!(%error, "device plugin is not registered, trying again");
            pause(&stop).await;
        }
        round.cancel();
    }
    drop(std::fs::remove_file(config.socket()));
    // The task ends by the same token; it cannot fail, only be cancelled with the runtime.
    drop(follow.await);
    Ok(())
}

fn absolute(what: &'static str, path: &Path) -> Result<PathBuf, PluginError> {
    path.canonicalize().map_err(|source| PluginError::Path { what, path: path.into(), source })
}

fn empty() -> State {
    State {
        driver: crate::state::Driver {
            version: crate::state::DEFAULT_DRIVER_VERSION.to_owned(),
            cuda_version: 0,
            health: crate::state::DriverHealth::NotLoaded,
        },
        profiles: std::collections::BTreeMap::new(),
        devices: Vec::new(),
        clock: crate::clock::Clock::default(),
        events: Vec::new(),
    }
}

/// What is true now: events take effect without any change of the file.
fn present(source: &Source) -> Option<State> {
    source.machine().map(|m| m.flattened(m.at_real(crate::source::now_unix_ns())))
}

/// Publishes every new good state.
async fn follow_state(mut source: Source, sender: watch::Sender<Arc<State>>, stop: CancellationToken) {
    let mut last_error = None;
    while !stop.is_cancelled() {
        match source.refresh() {
            Ok(_) => last_error = None,
            Err(error) => {
                let text = error.to_string();
                if last_error.as_ref() != Some(&text) {
                    tracing::warn!(error = %text, "state file unusable, keeping the last good state");
                    last_error = Some(text);
                }
            }
        }
        if let Some(now) = present(&source) {
            let changed = sender.send_if_modified(|held| {
                let changed = **held != now;
                if changed {
                    *held = Arc::new(now);
                }
                changed
            });
            if changed {
                tracing::info!("state changed");
            }
        }
        pause(&stop).await;
    }
}

/// Identity of a socket file: a restarted kubelet makes a new one.
type SocketId = (u64, u64, i64, i64);

fn socket_id(path: &Path) -> Option<SocketId> {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino(), meta.ctime(), meta.ctime_nsec()))
}

/// Kubelet's socket as soon as it is there; `None` when it is time to stop.
async fn wait_for_kubelet(config: &Config, stop: &CancellationToken) -> Option<SocketId> {
    let path = config.kubelet_socket();
    let mut told = false;
    while !stop.is_cancelled() {
        if let Some(id) = socket_id(&path) {
            return Some(id);
        }
        if !told {
            tracing::info!(socket = %path.display(), "waiting for kubelet");
            told = true;
        }
        pause(stop).await;
    }
    None
}

/// Serves and registers with one life of kubelet; returns when that life is over.
async fn serve_one_kubelet(
    config: &Config,
    kubelet: SocketId,
    state: watch::Receiver<Arc<State>>,
    round: &CancellationToken,
) -> Result<(), PluginError> {
    let socket = config.socket();
    drop(std::fs::remove_file(&socket));
    let listen_error = |source| PluginError::Listen { path: socket.clone(), source };
    let listener = UnixListener::bind(&socket).map_err(listen_error)?;
    let own = socket_id(&socket);
    let incoming = futures::stream::unfold(listener, |listener| async move {
        Some((listener.accept().await.map(|(stream, _)| stream), listener))
    });
    let service = DevicePlugin::new(state, config.layout.clone());
    let end = round.clone();
    // Dropped at the end of the round rather than drained: ListAndWatch streams have no end of their own.
    tokio::spawn(async move {
        tokio::select! {
            served = Server::builder().serve_with_incoming(service, incoming) => {
                if let Err(error) = served {
                    tracing::warn!(%error, "device plugin server ended");
                }
            }
            () = end.cancelled() => {}
        }
    });
    register(config).await?;
    tracing::info!(resource = %config.resource, socket = %socket.display(), "registered with kubelet");
    let kubelet_socket = config.kubelet_socket();
    while !round.is_cancelled() && socket_id(&kubelet_socket) == Some(kubelet) && socket_id(&socket) == own {
        pause(round).await;
    }
    Ok(())
}

async fn register(config: &Config) -> Result<(), PluginError> {
    let path = config.kubelet_socket();
    let connect_error = |source| PluginError::Connect { path: config.kubelet_socket(), source };
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://localhost")
        .connect_timeout(REGISTER_TIMEOUT)
        .timeout(REGISTER_TIMEOUT)
        .connect_with_connector(connector)
        .await
        .map_err(connect_error)?;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(connect_error)?;
    let request = api::RegisterRequest {
        version: api::VERSION.to_owned(),
        endpoint: config.endpoint(),
        resource_name: config.resource.clone(),
        options: Some(api::DevicePluginOptions::default()),
    };
    let codec = ProstCodec::<api::RegisterRequest, api::Empty>::default();
    client
        .unary(tonic::Request::new(request), PathAndQuery::from_static(api::REGISTER), codec)
        .await
        .map(drop)
        .map_err(|status| PluginError::Register {
            resource: config.resource.clone(),
            status: Box::new(status),
        })
}

async fn pause(stop: &CancellationToken) {
    tokio::select! {
        () = tokio::time::sleep(POLL) => {}
        () = stop.cancelled() => {}
    }
}
