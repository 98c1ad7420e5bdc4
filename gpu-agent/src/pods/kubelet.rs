//! Asks kubelet what it gave to the containers of this node.
//!
//! * Input: the folder of kubelet's PodResources socket; the folder, for kubelet makes the socket anew when it starts.
//! * Output: the list, or why there is none.
//! * Invariant: each call connects afresh when the last one failed, and ends in time.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use super::api::{LIST, ListPodResourcesRequest, ListPodResourcesResponse};

/// Where kubelet has its socket.
pub const DEFAULT_DIR: &str = "/var/lib/kubelet/pod-resources";

/// Name of the socket in that folder.
const SOCKET: &str = "kubelet.sock";

/// Longest answer: 5,000 Pods with eight devices each take a quarter of it.
const MAX_ANSWER: usize = 16 << 20;

/// Why there is no list.
#[derive(Debug, thiserror::Error)]
pub enum KubeletError {
    /// Kubelet is not there.
    #[error(
        "ask kubelet for Pod resources at {}: {detail}; mount the folder into the agent, or wait until kubelet runs",
        socket.display()
    )]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// What the system says.
        detail: String,
    },
    /// Kubelet refused, or broke off.
    #[error("ask kubelet for Pod resources: {code:?}: {message}")]
    Refused {
        /// The gRPC code.
        code: Code,
        /// What kubelet says.
        message: String,
    },
    /// Kubelet did not answer.
    #[error("ask kubelet for Pod resources: no answer within {} s", limit.as_secs_f32())]
    Timeout {
        /// How long it was waited for.
        limit: Duration,
    },
}

/// Kubelet's PodResources API.
#[derive(Debug)]
pub struct Kubelet {
    socket: PathBuf,
    limit: Duration,
    channel: Option<Channel>,
}

impl Kubelet {
    /// The kubelet that has its socket in `dir`; calls take at most `limit`.
    #[must_use]
    pub fn new(dir: &Path, limit: Duration) -> Self {
        Self { socket: dir.join(SOCKET), limit, channel: None }
    }

    /// The resources of all Pods of the node.
    ///
    /// # Errors
    /// When kubelet cannot be reached, refuses or does not answer in time.
    pub async fn list(&mut self) -> Result<ListPodResourcesResponse, KubeletError> {
        let limit = self.limit;
        let asked = tokio::time::timeout(limit, self.ask()).await;
        let answer = asked.unwrap_or(Err(KubeletError::Timeout { limit }));
        if answer.is_err() {
            self.channel = None;
        }
        answer
    }

    async fn ask(&mut self) -> Result<ListPodResourcesResponse, KubeletError> {
        let channel = match &self.channel {
            Some(channel) => channel.clone(),
            None => self.channel.insert(connect(&self.socket).await?).clone(),
        };
        let mut client = tonic::client::Grpc::new(channel).max_decoding_message_size(MAX_ANSWER);
        client.ready().await.map_err(|error| unreachable(&self.socket, &error))?;
        let codec = ProstCodec::<ListPodResourcesRequest, ListPodResourcesResponse>::default();
        let request = Request::new(ListPodResourcesRequest {});
        let answer = client.unary(request, PathAndQuery::from_static(LIST), codec).await;
        answer.map(tonic::Response::into_inner).map_err(refused)
    }
}

async fn connect(socket: &Path) -> Result<Channel, KubeletError> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The address is a form that the client asks for; the connector decides where it goes.
    let connected = Endpoint::from_static("http://localhost").connect_with_connector(connector).await;
    connected.map_err(|error| unreachable(socket, &error))
}

fn unreachable(socket: &Path, error: &tonic::transport::Error) -> KubeletError {
    // The transport's own text says no more than that it failed.
    let source = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    KubeletError::Unreachable { socket: socket.to_owned(), detail: source }
}

fn refused(status: Status) -> KubeletError {
    KubeletError::Refused { code: status.code(), message: status.message().to_owned() }
}
