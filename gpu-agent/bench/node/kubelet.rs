//! Kubelet's side of the PodResources API on a Unix socket: gives the answer that was last set.

use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::server::UnaryService;
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::Service;
use vendue_gpu_agent::pods::api::{
    ContainerDevices, ContainerResources, LIST, ListPodResourcesRequest, ListPodResourcesResponse,
    PodResources,
};

/// What kubelet answers.
pub type Answer = Result<ListPodResourcesResponse, Status>;

#[derive(Clone)]
struct Lister(Arc<Mutex<Answer>>);

impl UnaryService<ListPodResourcesRequest> for Lister {
    type Response = ListPodResourcesResponse;
    type Future = BoxFuture<'static, Result<Response<Self::Response>, Status>>;

    fn call(&mut self, _: Request<ListPodResourcesRequest>) -> Self::Future {
        let answer = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Box::pin(async { answer.map(Response::new) })
    }
}

impl Service<http::Request<Body>> for Lister {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if request.uri().path() != LIST {
            let refusal = Status::unimplemented(request.uri().path().to_owned());
            return Box::pin(async move { Ok(refusal.into_http()) });
        }
        let lister = self.clone();
        Box::pin(async move {
            let codec = ProstCodec::<ListPodResourcesResponse, ListPodResourcesRequest>::default();
            Ok(tonic::server::Grpc::new(codec).unary(lister, request).await)
        })
    }
}

/// Binds kubelet's socket in a folder, in the place of an old one.
///
/// # Errors
/// When the system refuses it.
pub fn bind(dir: &Path) -> std::io::Result<UnixListener> {
    let socket = dir.join("kubelet.sock");
    match std::fs::remove_file(&socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => UnixListener::bind(socket),
    }
}

/// A kubelet. It ends with its handle, and leaves its socket as a kubelet that was killed does.
pub struct Kubelet {
    answer: Arc<Mutex<Answer>>,
    task: JoinHandle<()>,
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Kubelet {
    /// A kubelet that has given out nothing. To be called inside a runtime.
    ///
    /// # Errors
    /// When its socket cannot be had.
    pub fn start(dir: &Path) -> std::io::Result<Self> {
        let answer = Arc::new(Mutex::new(Ok(ListPodResourcesResponse { pod_resources: vec![] })));
        let (listener, lister) = (bind(dir)?, Lister(Arc::clone(&answer)));
        let incoming = futures::stream::unfold(listener, |listener| async move {
            Some((listener.accept().await.map(|(stream, _)| stream), listener))
        });
        // Ends with the handle; an error would show as an agent that knows no Pods.
        let serving = Server::builder().serve_with_incoming(lister, incoming);
        Ok(Self { answer, task: tokio::spawn(async move { drop(serving.await) }) })
    }

    /// What it answers from now on.
    pub fn answer(&self, answer: Answer) {
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = answer;
    }

    /// Gives devices to one Pod of each namespace.
    pub fn give(&self, held: &[(&str, &[&str])]) {
        self.answer(Ok(pods(held)));
    }

    /// Ends it and waits until its connections are closed.
    pub async fn end(mut self) {
        self.task.abort();
        // Cancelled is what it is to be.
        drop((&mut self.task).await);
    }
}

/// Pods that hold devices: one for each namespace.
#[must_use]
pub fn pods(held: &[(&str, &[&str])]) -> ListPodResourcesResponse {
    let pod = |(namespace, devices): &(&str, &[&str])| PodResources {
        name: "w".to_owned(),
        namespace: (*namespace).to_owned(),
        containers: vec![ContainerResources {
            name: "c".to_owned(),
            devices: vec![ContainerDevices {
                resource_name: "nvidia.com/gpu".to_owned(),
                device_ids: devices.iter().map(|id| (*id).to_owned()).collect(),
            }],
            dynamic_resources: vec![],
        }],
    };
    ListPodResourcesResponse { pod_resources: held.iter().map(pod).collect() }
}
