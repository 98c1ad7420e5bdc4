//! The gRPC service that kubelet calls, on top of [`super::allocate`].
//!
//! It is what a code generator would write for `v1beta1.DevicePlugin`: one path per method. The current state comes
//! through a watch channel, so every open `ListAndWatch` stream hears of every change.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt};
use prost::Message;
use tokio::sync::watch;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::server::{Grpc, NamedService, ServerStreamingService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::Service;

use super::allocate::{self, AllocateError, Layout};
use super::api;
use crate::state::State;

/// The service; a clone serves one call.
#[derive(Clone, Debug)]
pub struct DevicePlugin {
    state: watch::Receiver<Arc<State>>,
    layout: Arc<Layout>,
}

impl DevicePlugin {
    /// A service that follows `state`.
    #[must_use]
    pub fn new(state: watch::Receiver<Arc<State>>, layout: Layout) -> Self {
        Self { state, layout: Arc::new(layout) }
    }
}

impl NamedService for DevicePlugin {
    const NAME: &'static str = api::DEVICE_PLUGIN;
}

impl Service<http::Request<Body>> for DevicePlugin {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let plugin = self.clone();
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        Box::pin(async move {
            Ok(match method.as_str() {
                "GetDevicePluginOptions" => grpc().unary(Options, request).await,
                "ListAndWatch" => grpc().server_streaming(ListAndWatch(plugin), request).await,
                "Allocate" => grpc().unary(Allocate(plugin), request).await,
                // Optional calls; the options say that kubelet need not make them.
                _ => Status::unimplemented(format!("{method} is not offered")).into_http(),
            })
        })
    }
}

fn grpc<Answer, Question>() -> Grpc<ProstCodec<Answer, Question>>
where
    Answer: Message + Send + 'static,
    Question: Message + Default + Send + 'static,
{
    Grpc::new(ProstCodec::default())
}

type Answer<T> = BoxFuture<'static, Result<Response<T>, Status>>;

struct Options;

impl UnaryService<api::Empty> for Options {
    type Response = api::DevicePluginOptions;
    type Future = Answer<Self::Response>;

    fn call(&mut self, _: Request<api::Empty>) -> Self::Future {
        Box::pin(async { Ok(Response::new(api::DevicePluginOptions::default())) })
    }
}

struct Allocate(DevicePlugin);

impl UnaryService<api::AllocateRequest> for Allocate {
    type Response = api::AllocateResponse;
    type Future = Answer<Self::Response>;

    fn call(&mut self, request: Request<api::AllocateRequest>) -> Self::Future {
        let DevicePlugin { state, layout } = &self.0;
        let answer = allocate::allocate(&state.borrow(), layout, request.get_ref());
        tracing::info!(request = ?request.get_ref(), granted = answer.is_ok(), "allocate");
        Box::pin(async { answer.map(Response::new).map_err(status) })
    }
}

fn status(error: AllocateError) -> Status {
    let message = error.to_string();
    match error {
        AllocateError::Unknown(_) => Status::not_found(message),
        AllocateError::Unhealthy(_) => Status::failed_precondition(message),
    }
}

struct ListAndWatch(DevicePlugin);

impl ServerStreamingService<api::Empty> for ListAndWatch {
    type Response = api::ListAndWatchResponse;
    type ResponseStream = Pin<Box<BoxStream<'static, Result<Self::Response, Status>>>>;
    type Future = Answer<Self::ResponseStream>;

    fn call(&mut self, _: Request<api::Empty>) -> Self::Future {
        let stream = device_lists(self.0.state.clone()).map(Ok).boxed();
        Box::pin(async { Ok(Response::new(Box::pin(stream))) })
    }
}

/// The list now, and again after every change that kubelet would notice. Ends when the source of states does.
fn device_lists(
    state: watch::Receiver<Arc<State>>,
) -> impl futures::Stream<Item = api::ListAndWatchResponse> {
    futures::stream::unfold((state, None), |(mut state, last)| async move {
        loop {
            let list = allocate::devices(&state.borrow_and_update());
            if last.as_ref() != Some(&list) {
                return Some((list.clone(), (state, Some(list))));
            }
            state.changed().await.ok()?;
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::DeviceHealth;

    #[tokio::test]
    async fn lists_follow_changes_that_matter_and_end_with_the_source() {
        let mut state = State::generate(&[("H100".to_owned(), 1)], "s", 0).expect("state");
        let (sender, receiver) = watch::channel(Arc::new(state.clone()));
        let mut lists = Box::pin(device_lists(receiver));
        assert_eq!(lists.next().await.expect("first list").devices[0].health, "Healthy");

        state.devices[0].gpu_utilization_percent = 50;
        sender.send(Arc::new(state.clone())).expect("send");
        assert!(futures::poll!(lists.next()).is_pending(), "load is nothing to kubelet");
        state.devices[0].health = DeviceHealth::Lost;
        sender.send(Arc::new(state)).expect("send");
        assert_eq!(lists.next().await.expect("second list").devices[0].health, "Unhealthy");
        drop(sender);
        assert!(lists.next().await.is_none());
    }
}
