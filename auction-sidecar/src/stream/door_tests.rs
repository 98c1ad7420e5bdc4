//! Real TLS connections on 127.0.0.1: who has no certificate of the front proxy keeps nobody out.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::identity::FrontProxy;
use super::server::{Front, Limits, accept};
use super::tls;

const DEADLINE: Duration = Duration::from_secs(20);

struct Server {
    address: std::net::SocketAddr,
    stranger: TlsConnector,
    proxy: TlsConnector,
    _dir: tempfile::TempDir,
}

async fn start(limits: Limits) -> Server {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let dir = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap().self_signed(&key).unwrap();
    std::fs::write(dir.path().join("tls.crt"), certificate.pem()).unwrap();
    std::fs::write(dir.path().join("tls.key"), key.serialize_pem()).unwrap();
    let proxy_key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, "front-proxy");
    let proxy_certificate = params.self_signed(&proxy_key).unwrap();

    let proxy = FrontProxy {
        ca_pem: proxy_certificate.pem(),
        allowed_names: vec!["front-proxy".into()],
        username_headers: vec![],
        group_headers: vec![],
        extra_prefixes: vec![],
    };
    let config = tls::config(dir.path(), &proxy.ca_pem).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, front) = watch::channel(Front { tls: config, proxy: Arc::new(proxy) });
    let router = Router::new().route("/healthz", get(|| async { "ok" }));
    tokio::spawn(async move {
        accept(listener, front, router, limits).await;
        drop(sender);
    });

    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let client = || ClientConfig::builder().with_root_certificates(roots.clone());
    let chain: Vec<CertificateDer<'static>> = vec![proxy_certificate.der().clone()];
    let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(proxy_key.serialize_der()));
    let stranger = TlsConnector::from(Arc::new(client().with_no_client_auth()));
    let proxy = TlsConnector::from(Arc::new(client().with_client_auth_cert(chain, private).unwrap()));
    Server { address, stranger, proxy, _dir: dir }
}

impl Server {
    async fn connect(&self, with: &TlsConnector) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await?;
        with.connect(ServerName::try_from("localhost").unwrap(), stream).await
    }
}

/// Reads until the server ends the connection.
async fn ended(mut stream: impl tokio::io::AsyncRead + Unpin) -> Vec<u8> {
    let mut data = Vec::new();
    // A connection that is cut has no close of TLS.
    let _ = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut data)).await.expect("it stays open");
    data
}

async fn healthz(mut stream: TlsStream<TcpStream>) -> String {
    let request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    if stream.write_all(request).await.is_err() {
        return String::new();
    }
    String::from_utf8(ended(stream).await).unwrap()
}

#[tokio::test]
async fn a_stranger_that_says_nothing_is_sent_away() {
    let server = start(Limits { stranger: Duration::from_millis(50), ..Limits::default() }).await;
    let idle = server.connect(&server.stranger).await.unwrap();
    assert!(ended(idle).await.is_empty());
}

#[tokio::test]
async fn strangers_leave_room_for_the_front_proxy() {
    let long = Duration::from_secs(600);
    let limits = Limits { strangers: 2, stranger: long, of_address: 16, ..Limits::default() };
    let server = start(limits).await;
    let mut idle = Vec::new();
    for _ in 0..2 {
        let mut stream = server.connect(&server.stranger).await.unwrap();
        // It is being served, which is later than its handshake.
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut first = [0u8; 12];
        stream.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        idle.push(stream);
    }
    let third = server.connect(&server.stranger).await.unwrap();
    assert_eq!(healthz(third).await, "");
    let proxy = server.connect(&server.proxy).await.unwrap();
    assert!(healthz(proxy).await.starts_with("HTTP/1.1 200"));
    drop(idle);
}

#[tokio::test]
async fn an_address_has_few_handshakes_and_gets_its_places_back() {
    let limits = Limits { of_address: 3, handshake: Duration::from_secs(600), ..Limits::default() };
    let server = start(limits).await;
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    assert!(ended(TcpStream::connect(server.address).await.unwrap()).await.is_empty());
    // Those who go make room.
    drop(silent);
    let probe = async {
        loop {
            match server.connect(&server.stranger).await {
                Ok(probe) => return probe,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    let probe = tokio::time::timeout(DEADLINE, probe).await.unwrap();
    assert!(healthz(probe).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_head_that_never_ends_is_cut_off() {
    let server = start(Limits { header: Duration::from_millis(50), ..Limits::default() }).await;
    let mut slow = server.connect(&server.proxy).await.unwrap();
    slow.write_all(b"GET /healthz HTTP/1.1\r\nHost: ").await.unwrap();
    ended(slow).await;
}
