//! Addresses for tests that listen, and receipts.

pub(crate) mod receipts;

use std::net::UdpSocket;
use std::sync::atomic::{AtomicU16, Ordering};

use libp2p::Multiaddr;

/// Ports below those that the system gives to sockets that name none, so that nobody gets one by chance between its choice
/// and its use.
const PORTS: std::ops::Range<u16> = 10_000..30_000;

/// An address on this machine that no other test of this process is given, and that nobody listens on.
pub(crate) fn free_address() -> Multiaddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let ports = PORTS.end - PORTS.start;
    // Test programs that run beside each other begin at other places.
    let begin = (std::process::id().wrapping_mul(101) % u32::from(ports)) as u16;
    let free = (0..ports).find_map(|_| {
        let port = PORTS.start + begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % ports;
        UdpSocket::bind(("127.0.0.1", port)).is_ok().then_some(port)
    });
    format!("/ip4/127.0.0.1/udp/{}/quic-v1", free.expect("a free port")).parse().unwrap()
}

#[test]
fn no_address_is_given_twice() {
    let mut given: Vec<Multiaddr> = (0..500).map(|_| free_address()).collect();
    given.sort();
    given.dedup();
    assert_eq!(given.len(), 500);
}
