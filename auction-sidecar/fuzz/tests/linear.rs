//! The message that costs a seat most to read: reading it and hashing it must stay in proportion to its length.

use std::time::{Duration, Instant};
use vendue_auction_core::evidence::message_hash;
use vendue_auction_core::wire::*;

/// A proposal of nearly a MiB over SETs of owners who have all signed dozens.
fn crowded() -> Propose {
    const SEATS: u16 = 256;
    const VERSIONS: u8 = 55;
    let set = |d: u8| {
        let mut held = vec![[0; 32]; usize::from(SEATS)];
        held[0] = [d; 32];
        SetMsg { held, full: None }
    };
    let shown = |seat, d| ShownSet { seat, set: set(d), signature: [d; 65] };
    let sets: Vec<ShownSet> = (0..SEATS).flat_map(|seat| [shown(seat, 1), shown(seat, 2)]).collect();
    let hashes = (0..SEATS).flat_map(|seat| (0..VERSIONS).map(move |v| OtherSet { seat, hash: [v; 32] }));
    let view = |seat: u16| {
        let every = |step: u16, from: u16| (0..SEATS).map(|owner| owner * step + from).collect::<Vec<u16>>();
        let (sets, others) = match SEATS - seat {
            1 => (every(2, 0), vec![]),
            2 => (every(2, 1), vec![]),
            _ => (vec![], every(u16::from(VERSIONS), seat % u16::from(VERSIONS))),
        };
        ShownView { seat, admitted: None, sets, others, signature: [3; 65] }
    };
    Propose { view: 1, set: [6; 32], sets, others: hashes.collect(), views: (0..SEATS).map(view).collect() }
}

#[test]
fn the_most_crowded_proposal_is_hashed_in_about_the_time_that_it_takes_to_read() {
    let header = Header { kind: Kind::Propose, market: [1; 8], epoch: 0, round: 1, seat: 0 };
    let body = Body::Propose(crowded());
    let bytes = Message { header, body, signature: Some([0; 65]) }.encode();
    assert!((950_000..=MAX_MESSAGE).contains(&bytes.len()), "{} bytes", bytes.len());
    let start = Instant::now();
    let message = decode(&bytes, 256).unwrap();
    let read = start.elapsed();
    let start = Instant::now();
    message_hash(&[1; 32], &message.header, &message.body);
    let hashed = start.elapsed();
    assert!(hashed < 4 * read + Duration::from_millis(50), "read in {read:?}, hashed in {hashed:?}");
    assert_eq!(message.encode(), bytes);
}
