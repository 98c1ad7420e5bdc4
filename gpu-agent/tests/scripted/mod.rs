//! A scripted API server: each request in its order, checked and answered; an unexpected one fails.

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use serde_json::Value;
use tower_test::mock::Handle;

pub type Server = Handle<Request<Body>, Response<Body>>;

/// A client, and the server that it talks to.
pub fn pair() -> (Client, Server) {
    let (service, server) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    (Client::new(service, "default"), server)
}

/// Takes one request, checks it and answers it.
pub async fn expect(
    server: &mut Server,
    method: Method,
    uri: &str,
    body: Option<Value>,
    code: u16,
    answer: Value,
) {
    let (request, reply) = server.next_request().await.expect("a request");
    assert_eq!((request.method(), request.uri().to_string().as_str()), (&method, uri));
    if let Some(body) = body {
        assert_eq!(request.headers()["content-type"], "application/apply-patch+yaml");
        let bytes = request.into_body().collect().await.expect("body").to_bytes();
        assert_eq!(serde_json::from_slice::<Value>(&bytes).expect("JSON"), body);
    }
    let response = Response::builder()
        .status(StatusCode::from_u16(code).expect("code"))
        .body(Body::from(answer.to_string().into_bytes()))
        .expect("response");
    reply.send_response(response);
}
