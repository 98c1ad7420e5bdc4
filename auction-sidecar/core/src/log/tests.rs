//! Records, frames and segments, whole and damaged; replay of rounds.

use super::*;
use crate::award::Certificate;
use crate::bid::{LocalBids, OfferedPart, OwnBid};
use crate::params::Params;
use crate::wire::tests::mk_order;
use crate::wire::{Header, Kind, Listed, Quorum, Signers};
use proptest::prelude::*;
use vendue_market::{BidTerms, NodeCapacity, OfferCapacity, Price, Reason, RecordKind};

const MARKET: [u8; 32] = [5; 32];
const HEAD: SegmentHead =
    SegmentHead { market: MARKET, seat: 2, generation: 9, number: 1, seed: *b"the mark the sum" };

fn node() -> NodeCapacity {
    NodeCapacity {
        model: "H100".parse().unwrap(),
        gpu_memory_mib: 1,
        free_gpus: 2,
        cpu_millis: 3,
        memory_mib: 4,
        disk_mib: 5,
    }
}

fn every_record() -> Vec<LogRecord> {
    let price = Price::from_micros(5).unwrap();
    let terms = BidTerms { start_ms: 1, duration_s: 2, may_interrupt: true };
    let bids = LocalBids {
        parts: vec![OfferedPart {
            offer: "o".into(),
            nodes: vec!["n".into()],
            capacity: OfferCapacity { nodes: vec![node()], devices: Some([9; 32]) },
        }],
        records: vec![
            OwnBid { order: [1; 32], kind: RecordKind::Bid { price, spec: 0, terms: BidTerms::default() } },
            OwnBid { order: [3; 32], kind: RecordKind::Bid { price, spec: 0, terms } },
            OwnBid { order: [2; 32], kind: RecordKind::NoBid(Reason::Model) },
        ],
    };
    let quorum = Quorum { signers: Signers::new(4, [0, 2, 3]), aggregate: [4; 48] };
    let certificate = Certificate { market: MARKET, epoch: 0, round: 7, root: [5; 32], quorum };
    let hand_over = |answer| LogRecord::HandOver { order: [1; 32], home: 1, round: 7, until_ms: 9, answer };
    vec![
        LogRecord::Observe { at_ms: 1, until_ms: 2 },
        LogRecord::Bids { at_ms: 3, round: 7, bids: Box::new(bids) },
        LogRecord::Said { at_ms: 4, bytes: vec![1, 2, 3] },
        LogRecord::List { round: 7, list: vec![Listed { seat: 1, d: [1; 32] }] },
        LogRecord::Certified { at_ms: 5, certificate },
        LogRecord::Promise {
            order: [1; 32],
            home: 1,
            round: 7,
            until_ms: 9,
            usage: vec![("n".into(), node())],
        },
        hand_over(Answer::Held),
        hand_over(Answer::Refused(Reason::NoOffer)),
        hand_over(Answer::Taken),
        LogRecord::Freed { order: [1; 32] },
        LogRecord::Heard { at_ms: 6, bytes: vec![4] },
        LogRecord::Orders { at_ms: 7, round: 7, orders: vec![mk_order()] },
        LogRecord::Omitted { at_ms: 8, round: 7 },
    ]
}

/// A segment whose batches are as many frames as given, each durable before the next is made.
fn segment(records: &[LogRecord], batch: usize) -> (Vec<u8>, Vec<usize>) {
    let mut bytes = HEAD.encode();
    let (mut synced, mut starts) = (bytes.len() as u64, vec![]);
    for (i, record) in records.iter().enumerate() {
        if i % batch == 0 {
            synced = bytes.len() as u64;
        }
        starts.push(bytes.len());
        bytes.extend(encode_frame(&record.encode(), &HEAD, synced));
    }
    (bytes, starts)
}

fn read(bytes: &[u8], may_be_torn: bool) -> Result<Segment, LogError> {
    read_segment(bytes, &MARKET, 2, 4, may_be_torn)
}

#[test]
fn every_record_has_one_encoding() {
    for record in every_record() {
        let bytes = record.encode();
        assert_eq!(LogRecord::decode(&bytes, 4), Ok(record.clone()));
        for cut in 0..bytes.len() {
            assert!(LogRecord::decode(&bytes[..cut], 4).is_err(), "{record:?} cut at {cut}");
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        assert!(LogRecord::decode(&longer, 4).is_err());
    }
}

#[test]
fn what_is_there_for_replay_is_needed_by_no_restart_and_all_else_is() {
    let params = Params { delay_ms: 100, period_ms: 600, genesis_ms: 10_000, handover_ms: 5000 };
    let of = |kind, bytes: &[u8]| {
        let header = Header { kind, market: [1; 8], epoch: 0, round: 7, seat: 3 };
        LogRecord::Heard { at_ms: 1, bytes: [&header.to_bytes(), bytes].concat() }
    };
    let needed = |record: &LogRecord| record.needed_until_ms(&params);
    for record in [of(Kind::Bundle, &[1]), of(Kind::Set, &[])].iter().chain(&every_record()[10..]) {
        assert!(record.is_for_replay() && needed(record) == 0, "{record:?}");
    }
    assert_eq!(of(Kind::Bundle, &[]).goes_on_until_ms(&params), params.expiry(7));
    // A log of a key generation is needed to its end, and it begins with one of these.
    for kind in [Kind::DealKey, Kind::Deal, Kind::Acks] {
        let LogRecord::Heard { at_ms, bytes } = of(kind, &[]) else { panic!("heard") };
        for record in [LogRecord::Said { at_ms, bytes: bytes.clone() }, LogRecord::Heard { at_ms, bytes }] {
            assert_eq!(needed(&record), u64::MAX, "{record:?}");
        }
    }
    for record in every_record()[1..10].iter().filter(|r| r.round().is_some()) {
        assert!(matches!(record, LogRecord::Said { .. }) || needed(record) == params.expiry(7), "{record:?}");
    }
}

#[test]
fn a_segment_gives_back_what_was_written() {
    let records = every_record();
    let (bytes, _) = segment(&records, 3);
    let read = read(&bytes, false).unwrap();
    assert_eq!((read.records, read.torn), (records, 0));
    assert_eq!(read.head.map(|h| (h.generation, h.number, h.seat)), Some((9, 1, 2)));
}

#[test]
fn a_flipped_bit_in_what_was_durable_is_damage_and_in_the_last_batch_a_torn_tail() {
    let records = every_record();
    let (bytes, starts) = segment(&records, 1);
    let last = *starts.last().unwrap();
    for at in (HEAD_LEN..bytes.len()).step_by(3) {
        let mut bad = bytes.clone();
        bad[at] ^= 0x10;
        let frame = *starts.iter().rfind(|start| **start <= at).unwrap();
        if at < last {
            let error = read(&bad, true).unwrap_err();
            assert_eq!((error.offset, error.damage), (frame, Damage::Checksum), "byte {at}");
        } else {
            let torn = read(&bad, true).unwrap();
            assert_eq!((torn.records.len(), torn.torn), (records.len() - 1, bytes.len() - last));
        }
        assert!(read(&bad, false).is_err(), "only where a writer may have crashed");
    }
}

#[test]
fn pages_of_one_batch_that_reached_the_disk_out_of_order_are_a_torn_tail() {
    let records = every_record();
    let (mut bytes, starts) = segment(&records, 7);
    // The second batch begins at record 7; its first frame is a hole, its others are there.
    bytes[starts[7]..starts[8]].fill(0);
    let torn = read(&bytes, true).unwrap();
    assert_eq!(torn.records, records[..7]);
}

#[test]
fn foreign_old_and_mixed_segments_are_told_apart() {
    let (bytes, starts) = segment(&every_record(), 1);
    let foreign = read_segment(&bytes, &MARKET, 3, 4, true).unwrap_err();
    assert!(matches!(foreign.damage, Damage::Foreign { seat: 2, .. }));
    let mut old = bytes.clone();
    old[8] = 0;
    assert_eq!(read(&old, true).unwrap_err().damage, Damage::Head);
    let mut mixed = bytes[..starts[1]].to_vec();
    mixed.extend(encode_frame(&every_record()[0].encode(), &SegmentHead { seed: [8; 16], ..HEAD }, 0));
    assert_eq!(read(&mixed, true).unwrap().records, every_record()[..1]);
    assert_eq!(read(&mixed, false).unwrap_err().damage, Damage::Checksum);
    let mut unknown = bytes[..starts[1]].to_vec();
    unknown.extend(encode_frame(&[77], &HEAD, 0));
    assert!(matches!(read(&unknown, true).unwrap_err().damage, Damage::Record(_)));
    // A crash while the head was written.
    assert_eq!(read(&bytes[..20], true).unwrap().records, []);
    assert_eq!(read(&bytes[..20], false).unwrap_err().damage, Damage::Head);
}

#[test]
fn a_tail_that_looks_like_many_frames_of_the_segment_is_damage_after_a_few_passes() {
    let (mut bytes, starts) = segment(&every_record(), 1);
    bytes.truncate(starts[1]);
    // Each says that it reaches to the end, that it is of this generation, and that what is before it was durable.
    let (synced, false_frames) = (bytes.len() as u64 + 1, 20_000u32);
    bytes.push(0);
    for left in (1..=false_frames).rev() {
        let mut frame = (left * 25 - 8).to_be_bytes().to_vec();
        frame.extend([0; 4]);
        frame.push(LOG_VERSION);
        frame.extend(&HEAD.seed[..8]);
        frame.extend(synced.to_be_bytes());
        bytes.extend(frame);
    }
    // To check them all would take reading five thousand million bytes.
    let error = read(&bytes, true).unwrap_err();
    assert_eq!((error.offset, error.damage), (starts[1], Damage::Checksum));
    // A few do not make damage of a torn tail.
    let few = starts[1] + 1 + 3 * 25;
    assert_eq!(read(&bytes[..few], true).unwrap().torn, few - starts[1]);
}

#[test]
fn what_others_said_does_not_make_damage_of_a_torn_tail() {
    // Who knows all of a segment but its seed, or but half of it, puts a frame into a message that the seat keeps.
    let start = segment(&every_record()[..1], 1).0;
    let durable = start.len() as u64 + 1;
    let said = |head: &SegmentHead| {
        let bytes = encode_frame(&[], head, durable);
        let heard = encode_frame(&LogRecord::Heard { at_ms: 6, bytes }.encode(), &HEAD, start.len() as u64);
        // Its beginning did not reach the disk, the end did.
        [start.as_slice(), &[0; 20], &heard[20..]].concat()
    };
    let seeds = [[0; 16], [9; 16], *b"the mark other..", *b"other... the sum"];
    for seed in seeds {
        let torn = said(&SegmentHead { seed, ..HEAD });
        assert_eq!(read(&torn, true).unwrap().records, every_record()[..1], "{seed:?}");
    }
    assert_eq!(read(&said(&HEAD), true).unwrap_err().damage, Damage::Checksum, "as with the seed itself");
}

proptest! {
    #[test]
    fn any_bytes_give_records_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = LogRecord::decode(&bytes, 4);
        let _ = read(&bytes, true);
        let (mut whole, _) = segment(&every_record()[..2], 1);
        whole.extend(&bytes);
        if let Ok(read) = read(&whole, true) {
            prop_assert_eq!(&read.records[..2], &every_record()[..2]);
        }
    }
}
