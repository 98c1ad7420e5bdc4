//! A kubelet on a Unix socket, for tests: it gives the answer that the test has set.

// Each test file uses some of it.
#![allow(dead_code, clippy::expect_used)]

use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex};
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
use vendue_gpu_agent::pods::api::{LIST, ListPodResourcesRequest, ListPodResourcesResponse};

pub type Answer = Result<ListPodResourcesResponse, Status>;

/// Kubelet's side: gives the answer that the test has set.
#[derive(Clone)]
pub struct Lister(pub Arc<Mutex<Answer>>);

impl UnaryService<ListPodResourcesRequest> for Lister {
    type Response = ListPodResourcesResponse;
    type Future = BoxFuture<'static, Result<Response<Self::Response>, Status>>;

    fn call(&mut self, _: Request<ListPodResourcesRequest>) -> Self::Future {
        let answer = self.0.lock().expect("answer").clone();
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
        assert_eq!(request.uri().path(), LIST);
        let lister = self.clone();
        Box::pin(async move {
            let codec = ProstCodec::<ListPodResourcesResponse, ListPodResourcesRequest>::default();
            Ok(tonic::server::Grpc::new(codec).unary(lister, request).await)
        })
    }
}

pub fn bind(dir: &Path) -> UnixListener {
    drop(std::fs::remove_file(dir.join("kubelet.sock")));
    UnixListener::bind(dir.join("kubelet.sock")).expect("bind")
}

pub fn serve(dir: &Path, answer: &Arc<Mutex<Answer>>) -> JoinHandle<()> {
    let (listener, lister) = (bind(dir), Lister(Arc::clone(answer)));
    let incoming = futures::stream::unfold(listener, |listener| async move {
        Some((listener.accept().await.map(|(stream, _)| stream), listener))
    });
    tokio::spawn(async move {
        Server::builder().serve_with_incoming(lister, incoming).await.expect("serve");
    })
}
