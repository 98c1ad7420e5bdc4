//! A controller's double behind real TLS on 127.0.0.1, and homes that ask for their own awards and for others'.

use std::sync::Mutex as StdMutex;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::bridge::host::serve_bulk;
use crate::bridge::tests::{Fixture, award_id, fixture, host_context, order};
use crate::wire::decode_bulk;

/// What the double was asked: path with query, and the token.
type Asked = Arc<StdMutex<Vec<(String, String)>>>;

/// Serves with a new certificate for 127.0.0.1; what is needed to reach it, and what it was asked.
async fn controller(dir: &std::path::Path) -> (ReceiptsOptions, Asked) {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(vec!["127.0.0.1".into()]).unwrap().self_signed(&key).unwrap();
    let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = rustls::ServerConfig::builder().with_no_client_auth();
    let config = config.with_single_cert(vec![certificate.der().clone()], private).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    let asked = Asked::default();
    let router = Router::new().fallback(answer).with_state(asked.clone());
    tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(Arc::new(config));
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, service) = (acceptor.clone(), TowerToHyperService::new(router.clone()));
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                }
            });
        }
    });
    let (ca, token) = (dir.join("ca.crt"), dir.join("token"));
    std::fs::write(&ca, certificate.pem()).unwrap();
    std::fs::write(&token, "one\n").unwrap();
    (ReceiptsOptions { url, ca, token }, asked)
}

async fn answer(State(asked): State<Asked>, uri: Uri, headers: HeaderMap) -> Response {
    let token = headers["authorization"].to_str().unwrap().to_owned();
    asked.lock().unwrap().push((uri.to_string(), token));
    match uri.query() {
        None => (StatusCode::OK, "{\"chains\":[]}").into_response(),
        Some("from=1") => (StatusCode::OK, "records").into_response(),
        Some("from=2") => (StatusCode::FOUND, [("location", "https://127.0.0.1:1/")]).into_response(),
        Some("from=3") => (StatusCode::OK, "x".repeat(CHUNK + 1)).into_response(),
        Some("from=4") => StatusCode::FORBIDDEN.into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

fn context(f: &Fixture, receipts: Option<ReceiptsOptions>) -> Arc<HostContext> {
    let mut context = host_context(f);
    Arc::get_mut(&mut context).unwrap().receipts = receipts.map(ReceiptsClient::new);
    context
}

/// The award of an order of the fixture's home, which seat 0 won in round 7.
fn award(f: &Fixture, order: &Order) -> AwardRef {
    let (id, digest) = (award_id(f, order), to_hex(&order.digest()));
    AwardRef { id, order: digest, job: order.job.clone(), attempt: order.attempt }
}

async fn ask(
    context: &Arc<HostContext>,
    from: MemberId,
    request: Bulk,
    order: &Order,
) -> (BulkReply, Vec<u8>) {
    let answer = serve_bulk(context, from, request, &order.to_bytes()).await.unwrap();
    let (reply, data) = decode_bulk::<BulkReply>("reply", &answer).unwrap();
    (reply, data.to_vec())
}

const HOME: MemberId = MemberId::Home(0);

#[tokio::test]
async fn homes_are_told_what_the_controller_says_and_nothing_else() {
    let f = fixture();
    let (options, asked) = controller(f.dir.path()).await;
    let token = options.token.clone();
    let context = context(&f, Some(options));
    let order = order(&f, [7; 32]);
    let award = award(&f, &order);
    let list = Bulk::ListReceipts { award: award.clone(), round: 7 };
    assert_eq!(ask(&context, HOME, list, &order).await, (BulkReply::Receipts, b"{\"chains\":[]}".to_vec()));
    std::fs::write(&token, "two").unwrap();
    let chain = format!("{}-0123456789abcdef", award.id);
    let read = |from| Bulk::ReadReceipts { award: award.clone(), round: 7, chain: chain.clone(), from };
    assert_eq!(ask(&context, HOME, read(1), &order).await, (BulkReply::Receipts, b"records".to_vec()));
    for from in [2, 3, 4] {
        let (reply, data) = ask(&context, HOME, read(from), &order).await;
        let later = matches!(&reply, BulkReply::Failed { retry: true, .. });
        assert!(later && data.is_empty(), "from={from}: {reply:?}");
    }
    assert_eq!(ask(&context, HOME, read(5), &order).await.0, BulkReply::Unknown);
    let asked = asked.lock().unwrap();
    let paths: Vec<_> = asked.iter().take(2).map(|(path, token)| (path.as_str(), token.as_str())).collect();
    let base = format!("/v1/awards/{}/chains", award.id);
    assert_eq!(
        paths,
        [(base.as_str(), "Bearer one"), (&format!("{base}/{chain}/records?from=1"), "Bearer two")]
    );
    assert_eq!(asked.len(), 6, "no redirection is followed");
}

#[tokio::test]
async fn an_authority_that_did_not_sign_is_not_believed_until_the_file_is_replaced() {
    let f = fixture();
    let (options, asked) = controller(f.dir.path()).await;
    let right = std::fs::read(&options.ca).unwrap();
    let other = rcgen::KeyPair::generate().unwrap();
    let other = rcgen::CertificateParams::new(vec!["127.0.0.1".into()]).unwrap().self_signed(&other).unwrap();
    std::fs::write(&options.ca, other.pem()).unwrap();
    let client = ReceiptsClient::new(options.clone());
    let error = client.get("/v1/awards/a/chains").await.unwrap_err();
    assert!(matches!(error, ReceiptsError::Http(_)) && asked.lock().unwrap().is_empty(), "{error}");
    std::fs::write(&options.ca, right).unwrap();
    assert!(client.get("/v1/awards/a/chains").await.unwrap().is_some());
    std::fs::remove_file(&options.token).unwrap();
    let error = client.get("/v1/awards/a/chains").await.unwrap_err();
    assert!(error.to_string().contains("token"), "{error}");
}

#[tokio::test]
async fn only_who_signed_the_order_is_answered() {
    let f = fixture();
    let (options, asked) = controller(f.dir.path()).await;
    let context = context(&f, Some(options));
    let order = order(&f, [7; 32]);
    let good = award(&f, &order);
    let foreign_order = Order { user_key: [2; 33], ..order.clone() };
    let list = |award: AwardRef, round| Bulk::ListReceipts { award, round };
    let chain = "ffffffffffffffff-0123456789abcdef".to_owned();
    let requests = [
        (HOME, list(good.clone(), 8), &order),
        (HOME, list(AwardRef { id: "ab".repeat(8), ..good.clone() }, 7), &order),
        (HOME, list(AwardRef { job: "u-2".into(), ..good.clone() }, 7), &order),
        (HOME, list(AwardRef { attempt: 2, ..good.clone() }, 7), &order),
        // Of another home's order, with whichever name.
        (HOME, list(award(&f, &foreign_order), 7), &foreign_order),
        (HOME, list(good.clone(), 7), &foreign_order),
        // A seat that is no home.
        (MemberId::Seat(2), list(good.clone(), 7), &order),
        (HOME, Bulk::ReadReceipts { award: good.clone(), round: 7, chain, from: 0 }, &order),
        (HOME, Bulk::ReadReceipts { award: good, round: 7, chain: "../x".into(), from: 0 }, &order),
    ];
    let count = requests.len() as u64;
    for (from, request, order) in requests {
        let said = format!("{request:?}");
        assert_eq!(ask(&context, from, request, order).await.0, BulkReply::Unknown, "{said}");
    }
    assert_eq!(context.metrics.dropped_count("foreign_award"), count);
    assert!(asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_seat_without_receipts_says_so() {
    let f = fixture();
    let context = context(&f, None);
    let order = order(&f, [7; 32]);
    let list = Bulk::ListReceipts { award: award(&f, &order), round: 7 };
    let (reply, _) = ask(&context, HOME, list, &order).await;
    let reason = "the provider keeps no receipts".to_owned();
    assert_eq!(reply, BulkReply::Failed { reason, retry: false });
}
