//! `nvml-sim device-plugin` as a process, against a registration server in kubelet's place.

// Helpers of tests fail by panicking too; the lint's own exception covers only the test functions.
#![allow(clippy::expect_used, clippy::panic)]

mod common;

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::server::UnaryService;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::Service;
use vendue_nvml_sim::fault::{Event, Fault};
use vendue_nvml_sim::fleet::Fleet;
use vendue_nvml_sim::plugin::api;
use vendue_nvml_sim::state::DeviceHealth;

const DEADLINE: Duration = Duration::from_secs(30);

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what}: not within {DEADLINE:?}"))
}

/// Kubelet's side of a registration: hands each request to the test.
#[derive(Clone)]
struct Registration(mpsc::UnboundedSender<api::RegisterRequest>);

impl UnaryService<api::RegisterRequest> for Registration {
    type Response = api::Empty;
    type Future = BoxFuture<'static, Result<Response<api::Empty>, Status>>;

    fn call(&mut self, request: Request<api::RegisterRequest>) -> Self::Future {
        self.0.send(request.into_inner()).expect("test listens");
        Box::pin(async { Ok(Response::new(api::Empty {})) })
    }
}

impl Service<http::Request<Body>> for Registration {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        assert_eq!(request.uri().path(), api::REGISTER);
        let service = self.clone();
        Box::pin(async move {
            let codec = ProstCodec::<api::Empty, api::RegisterRequest>::default();
            Ok(tonic::server::Grpc::new(codec).unary(service, request).await)
        })
    }
}

struct Kubelet {
    registrations: mpsc::UnboundedReceiver<api::RegisterRequest>,
    server: JoinHandle<()>,
}

impl Kubelet {
    /// Starts as kubelet does: with an emptied folder.
    fn start(dir: &Path) -> Self {
        for entry in std::fs::read_dir(dir).expect("list") {
            std::fs::remove_file(entry.expect("entry").path()).expect("remove");
        }
        let (sender, registrations) = mpsc::unbounded_channel();
        let listener = UnixListener::bind(dir.join("kubelet.sock")).expect("bind");
        let incoming = futures::stream::unfold(listener, |listener| async move {
            Some((listener.accept().await.map(|(stream, _)| stream), listener))
        });
        let server = tokio::spawn(async move {
            Server::builder().serve_with_incoming(Registration(sender), incoming).await.expect("serve");
        });
        Self { registrations, server }
    }

    async fn registered(&mut self) -> api::RegisterRequest {
        within("registration", self.registrations.recv()).await.expect("request")
    }
}

async fn dial(socket: PathBuf) -> tonic::client::Grpc<Channel> {
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let channel =
        Endpoint::from_static("http://localhost").connect_with_connector(connector).await.expect("connect");
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.expect("ready");
    client
}

struct Fixture {
    dir: tempfile::TempDir,
    library: PathBuf,
    state: PathBuf,
    plugins: PathBuf,
}

impl Fixture {
    fn new() -> Self {
        let (dir, library, state) = common::installed(&[("H100", 2)]);
        let plugins = dir.path().join("device-plugins");
        std::fs::create_dir(&plugins).expect("mkdir");
        Self { dir, library, state, plugins }
    }

    fn spawn(&self) -> Child {
        Command::new(env!("CARGO_BIN_EXE_nvml-sim"))
            .arg("device-plugin")
            .args([
                "--state".as_ref(),
                self.state.as_os_str(),
                "--library".as_ref(),
                self.library.as_os_str(),
            ])
            .args(["--kubelet-dir".as_ref(), self.plugins.as_os_str()])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("start nvml-sim")
    }
}

fn health(list: &api::ListAndWatchResponse) -> Vec<&str> {
    list.devices.iter().map(|d| d.health.as_str()).collect()
}

#[tokio::test]
async fn registers_lists_allocates_and_survives_kubelet() {
    let fixture = Fixture::new();
    let mut plugin = fixture.spawn();
    let mut kubelet = Kubelet::start(&fixture.plugins);
    let request = kubelet.registered().await;
    let expected = api::RegisterRequest {
        version: "v1beta1".to_owned(),
        endpoint: "vendue-nvml-sim-nvidia.com-gpu.sock".to_owned(),
        resource_name: "nvidia.com/gpu".to_owned(),
        options: Some(api::DevicePluginOptions::default()),
    };
    assert_eq!(request, expected);

    let mut client = dial(fixture.plugins.join(&request.endpoint)).await;
    let codec = ProstCodec::<api::Empty, api::ListAndWatchResponse>::default();
    let path = http::uri::PathAndQuery::from_static("/v1beta1.DevicePlugin/ListAndWatch");
    let stream = client.server_streaming(Request::new(api::Empty {}), path, codec).await.expect("list");
    let mut lists = stream.into_inner();
    let list = within("first list", lists.message()).await.expect("message").expect("list");
    assert_eq!(health(&list), ["Healthy", "Healthy"]);
    let state = common::state(&[("H100", 2)]);
    assert_eq!(list.devices[1].id, state.devices[1].uuid);

    allocates(&fixture, &mut client, &list.devices[1].id).await;

    let mut broken = state;
    broken.devices[0].health = DeviceHealth::Lost;
    common::save(&fixture.state, &broken);
    let list = within("second list", lists.message()).await.expect("message").expect("list");
    assert_eq!(health(&list), ["Unhealthy", "Healthy"]);

    let fleet = Fleet::open(&fixture.state);
    let at_ns = fleet.now_ns().expect("now") + 300_000_000;
    let fault = Fault::Health { health: DeviceHealth::Lost };
    fleet.script(vec![Event { at_ns, device: Some(1), fault }]).expect("script");
    let list = within("third list", lists.message()).await.expect("message").expect("list");
    assert_eq!(
        health(&list),
        ["Unhealthy", "Unhealthy"],
        "a script takes effect without a change of the file"
    );

    kubelet.server.abort();
    let mut kubelet = Kubelet::start(&fixture.plugins);
    assert_eq!(kubelet.registered().await, expected, "registers again with a new kubelet");
    stops(&fixture, &mut plugin).await;
}

async fn allocates(fixture: &Fixture, client: &mut tonic::client::Grpc<Channel>, id: &str) {
    client.ready().await.expect("ready");
    let path = http::uri::PathAndQuery::from_static("/v1beta1.DevicePlugin/Allocate");
    let container = api::ContainerAllocateRequest { devices_ids: vec![id.to_owned()] };
    let request = api::AllocateRequest { container_requests: vec![container] };
    let codec = ProstCodec::<api::AllocateRequest, api::AllocateResponse>::default();
    let answer = client.unary(Request::new(request), path, codec).await.expect("allocate").into_inner();
    let container = &answer.container_responses[0];
    assert_eq!(container.envs["NVIDIA_VISIBLE_DEVICES"], id);
    let dir = fixture.dir.path().canonicalize().expect("dir");
    let hosts: Vec<_> =
        container.mounts.iter().map(|m| (Path::new(&m.host_path).to_owned(), m.read_only)).collect();
    assert_eq!(hosts, [(dir.join("libnvidia-ml.so.1"), true), (dir, true)]);

    client.ready().await.expect("ready");
    let path = http::uri::PathAndQuery::from_static("/v1beta1.DevicePlugin/GetPreferredAllocation");
    let codec = ProstCodec::<api::Empty, api::Empty>::default();
    let refused = client.unary(Request::new(api::Empty {}), path, codec).await.expect_err("not offered");
    assert_eq!(refused.code(), tonic::Code::Unimplemented);
}

/// SIGTERM ends it with success, and its socket is gone.
async fn stops(fixture: &Fixture, plugin: &mut Child) {
    let id = plugin.id().expect("runs").to_string();
    let killed = Command::new("kill").args(["-TERM", &id]).status().await.expect("kill");
    assert!(killed.success());
    assert!(within("exit", plugin.wait()).await.expect("status").success());
    assert!(!fixture.plugins.join("vendue-nvml-sim-nvidia.com-gpu.sock").exists());
}

#[tokio::test]
async fn missing_state_is_an_error_with_the_path() {
    let fixture = Fixture::new();
    std::fs::remove_file(&fixture.state).expect("remove");
    let plugin = Command::new(env!("CARGO_BIN_EXE_nvml-sim"))
        .args(["device-plugin", "--state"])
        .arg(&fixture.state)
        .arg("--library")
        .arg(&fixture.library)
        .output();
    let output = within("exit", plugin).await.expect("output");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("state.json"), "{text}");
}
