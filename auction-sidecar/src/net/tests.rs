//! Peers over real QUIC on 127.0.0.1. Every wait is for an event, with a deadline.

use std::time::Duration;

use libp2p::PeerId;

use super::*;
use crate::testing::free_address;

const DEADLINE: Duration = Duration::from_secs(20);

struct Spec {
    keypair: Keypair,
    address: Multiaddr,
}

fn spec() -> Spec {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    Spec { keypair: Keypair::generate_ed25519(), address: free_address() }
}

fn member(id: MemberId, spec: &Spec) -> Member {
    let address = matches!(id, MemberId::Seat(_)).then(|| spec.address.clone());
    Member { id, name: id.to_string(), peer: PeerId::from(spec.keypair.public()), address }
}

/// A peer that knows these members.
fn try_peer(own: &Spec, members: &[(MemberId, &Spec)]) -> Result<(Net, Arc<Metrics>), StartError> {
    let metrics = Arc::new(Metrics::new().unwrap());
    let members = members.iter().map(|(id, spec)| member(*id, spec));
    let net = start(NetConfig {
        keypair: own.keypair.clone(),
        members: Members::new(members, PeerId::from(own.keypair.public())),
        own: vec![],
        listen: own.address.clone(),
        metrics: metrics.clone(),
    })?;
    Ok((net, metrics))
}

fn peer(own: &Spec, members: &[(MemberId, &Spec)]) -> (Net, Arc<Metrics>) {
    try_peer(own, members).unwrap()
}

async fn within<T>(future: impl std::future::Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("nothing happened in time")
}

async fn up(net: &Net, id: MemberId) {
    let mut connected = net.handle.connected();
    within(connected.wait_for(|up| up.contains(&id))).await.unwrap();
}

async fn message(net: &mut Net) -> (MemberId, Bytes) {
    within(async {
        loop {
            match net.rounds.recv().await.unwrap() {
                RoundEvent::Message { from, bytes } => return (from, bytes),
                RoundEvent::Up(_) | RoundEvent::Down(_) => {}
            }
        }
    })
    .await
}

/// Waits until a counter has moved.
async fn counted(metrics: &Metrics, reason: &'static str) {
    within(async {
        while metrics.dropped_count(reason) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

const A: MemberId = MemberId::Seat(0);
const B: MemberId = MemberId::Seat(1);
const C: MemberId = MemberId::Seat(2);
const H: MemberId = MemberId::Home(0);

#[tokio::test(flavor = "multi_thread")]
async fn seats_and_a_home_exchange_messages_and_requests() {
    let (a, b, h) = (spec(), spec(), spec());
    let all = [(A, &a), (B, &b), (H, &h)];
    let (mut net_a, _) = peer(&a, &all);
    let (mut net_b, _) = peer(&b, &all);
    let (mut net_h, _) = peer(&h, &all);
    // A message sent before there is a connection waits for it.
    net_a.handle.send(B, Bytes::from_static(b"early"));
    assert_eq!(message(&mut net_b).await, (A, Bytes::from_static(b"early")));
    up(&net_a, H).await;
    net_a.handle.send(H, Bytes::from_static(b"to home"));
    assert_eq!(message(&mut net_h).await, (A, Bytes::from_static(b"to home")));

    // The home dialled; the seat asks over that connection.
    let server = async {
        let inbound = within(net_h.requests.recv()).await.unwrap();
        assert_eq!((inbound.from, inbound.protocol), (A, Protocol::Handover));
        inbound.reply.send(Bytes::from([inbound.body.as_ref(), b"!"].concat()));
    };
    let question = net_a.handle.request(H, Protocol::Handover, Bytes::from_static(b"status"), DEADLINE);
    let (answer, ()) = tokio::join!(question, server);
    assert_eq!(answer.unwrap(), Bytes::from_static(b"status!"));
    assert!(net_a.rounds.try_recv().is_ok(), "the connection was told");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_peer_is_refused_and_counted() {
    let (a, b, foreign) = (spec(), spec(), spec());
    let (net_a, metrics) = peer(&a, &[(A, &a), (B, &b)]);
    // The stranger knows the market; the market does not know the stranger.
    let (stranger, _) = peer(&foreign, &[(A, &a), (C, &foreign)]);
    counted(&metrics, "foreign_peer").await;
    stranger.handle.send(A, Bytes::from_static(b"let me in"));
    let refused = stranger.handle.request(A, Protocol::Bulk, Bytes::new(), DEADLINE).await;
    assert!(refused.is_err());
    assert!(net_a.handle.connected().borrow().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oversized_message_is_counted_and_the_rest_goes_on() {
    let (a, b) = (spec(), spec());
    let all = [(A, &a), (B, &b)];
    let (net_a, _) = peer(&a, &all);
    let (mut net_b, metrics) = peer(&b, &all);
    up(&net_a, B).await;
    // The own codec refuses to write it; a peer that does not is cut off by the reader.
    net_a.handle.send(B, Bytes::from(vec![0u8; MAX_ROUND + 1]));
    net_a.handle.send(B, Bytes::from_static(b"small"));
    assert_eq!(message(&mut net_b).await.1, Bytes::from_static(b"small"));
    let codec = codec::BoundedCodec::new(8, metrics.oversize());
    let read = async {
        use libp2p::request_response::Codec;
        let mut codec = codec.clone();
        let mut io = futures::io::Cursor::new(vec![0, 0, 0, 9, 1, 1, 1, 1, 1, 1, 1, 1, 1]);
        codec.read_request(&libp2p::StreamProtocol::new("/x"), &mut io).await
    };
    assert!(read.await.is_err());
    counted(&metrics, "oversize").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_is_cut_by_the_rate_limit() {
    let (a, b) = (spec(), spec());
    let all = [(A, &a), (B, &b)];
    let (net_a, _) = peer(&a, &all);
    let (net_b, metrics) = peer(&b, &all);
    up(&net_a, B).await;
    let _keep = net_b;
    within(async {
        while metrics.dropped_count("rate") == 0 && metrics.dropped_count("inbox_full") == 0 {
            net_a.handle.send(B, Bytes::from_static(b"again"));
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_comes_back_is_found_again() {
    let (a, b) = (spec(), spec());
    let all = [(A, &a), (B, &b)];
    let (net_a, _) = peer(&a, &all);
    let (net_b, _) = peer(&b, &all);
    up(&net_a, B).await;
    net_b.task.abort();
    drop(net_b);
    let mut connected = net_a.handle.connected();
    within(connected.wait_for(|up| !up.contains(&B))).await.unwrap();
    let refused = net_a.handle.request(B, Protocol::Handover, Bytes::new(), DEADLINE).await;
    // A handshake that was under way may still look like a connection for a moment.
    assert!(
        matches!(refused, Err(NetError::NotConnected(B) | NetError::Failed { to: B, .. })),
        "{refused:?}"
    );
    // The port is free when the old endpoint has said goodbye.
    let (mut again, _) = within(async {
        loop {
            match try_peer(&b, &all) {
                Ok(peer) => return peer,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    })
    .await;
    up(&net_a, B).await;
    net_a.handle.send(B, Bytes::from_static(b"welcome back"));
    assert_eq!(message(&mut again).await, (A, Bytes::from_static(b"welcome back")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_with_both_sides_answers_its_own_requests() {
    let both = spec();
    let net = start(NetConfig {
        keypair: both.keypair.clone(),
        members: Members::new([member(A, &both), member(H, &both)], PeerId::from(both.keypair.public())),
        own: vec![A, H],
        listen: both.address.clone(),
        metrics: Arc::new(Metrics::new().unwrap()),
    });
    let mut net = net.unwrap();
    let server = async {
        let inbound = within(net.requests.recv()).await.unwrap();
        assert_eq!(inbound.from, A);
        inbound.reply.send(Bytes::from_static(b"yes"));
    };
    let question = net.handle.request(H, Protocol::Bulk, Bytes::new(), DEADLINE);
    let (answer, ()) = tokio::join!(question, server);
    assert_eq!(answer.unwrap(), Bytes::from_static(b"yes"));
}
