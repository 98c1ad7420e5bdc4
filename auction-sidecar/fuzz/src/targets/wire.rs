//! Messages: one target for each kind, with the bytes after the header; one for whole messages; and the plaintext of
//! bundles.

use super::Cost::Bytes;
use super::{Target, canonical, target};
use crate::bounds::bounded;
use crate::fixture::fixture;
use vendue_auction_core::evidence::message_hash;
use vendue_auction_core::wire::{
    Body, HEADER_LEN, Header, Kind, MAX_MESSAGE, Message, Proof, Reply, Signers, decode, peek_kind,
};
use vendue_auction_core::{OrderLeaf, Plaintext, follow, verify};
use vendue_market::Order;
use vendue_market::encode::Reader;

/// Sizes of markets; the first byte of an input says which.
pub(crate) const SIZES: [u16; 6] = [4, 1, 7, 16, 100, 256];

macro_rules! kinds {
    ($($name:literal => $kind:ident),* $(,)?) => {
        pub(super) const TARGETS: &[Target] = &[
            $(target($name, Bytes, |bytes| body(Kind::$kind, bytes)),)*
            target("message", Bytes, sized_message),
            target("header", Bytes, header),
            target("signers", Bytes, signers),
            target("order_leaf", Bytes, canonical::<OrderLeaf>),
            target("plaintext", Bytes, plaintext),
        ];
    };
}

kinds! {
    "wire_bundle" => Bundle,
    "wire_set" => Set,
    "wire_admit" => Admit,
    "wire_lock" => Lock,
    "wire_open" => Open,
    "wire_commit" => Commit,
    "wire_award" => Award,
    "wire_new_view" => NewView,
    "wire_propose" => Propose,
    "wire_cert" => Cert,
    "wire_order" => Order,
    "wire_receipt" => Receipt,
    "wire_taken" => Taken,
    "wire_cancel" => Cancel,
    "wire_reserve" => Reserve,
    "wire_accept" => Accept,
    "wire_refuse" => Refuse,
    "wire_proof" => Proof,
    "wire_fetch" => Fetch,
    "wire_reply" => Reply,
    "wire_again" => Again,
    "wire_withdraw" => Withdraw,
    "wire_deal_key" => DealKey,
    "wire_deal" => Deal,
    "wire_acks" => Acks,
}

fn seats(selector: u8) -> u16 {
    SIZES[usize::from(selector) % SIZES.len()]
}

fn body(kind: Kind, bytes: &[u8]) -> bool {
    let Some((selector, rest)) = bytes.split_first() else { return false };
    let header = Header { kind, market: fixture().record.short_id(), epoch: 0, round: 2, seat: 1 };
    message(&[&header.to_bytes(), rest].concat(), seats(*selector))
}

fn sized_message(bytes: &[u8]) -> bool {
    bytes.split_first().is_some_and(|(selector, rest)| message(rest, seats(*selector)))
}

/// A message is what it encodes to, and its hash can be taken at no other cost than reading it.
pub(crate) fn message(bytes: &[u8], n: u16) -> bool {
    let Ok(message) = bounded(bytes.len(), n, || decode(bytes, n)) else { return false };
    assert!(bytes.len() <= MAX_MESSAGE, "a message of {} bytes is accepted", bytes.len());
    let written = message.encode();
    assert_eq!(written, bytes, "{message:?} has two encodings");
    assert_eq!(decode(&written, n).as_ref(), Ok(&message));
    assert_eq!(peek_kind(bytes), Some(message.header.kind));
    let market = &fixture().record.market;
    bounded(bytes.len(), n, || message_hash(market, &message.header, &message.body));
    within(&message, n);
    true
}

/// What is inside a message is read too, and judged against a market as a receiver does.
fn within(message: &Message, n: u16) {
    let record = &fixture().record;
    let judge = |proof: &Proof, order: &Order| {
        let outcome = verify::outcome(record, &proof.certificate, &proof.proof, order);
        assert_eq!(outcome.is_ok(), verify::outcome(record, &proof.certificate, &proof.proof, order).is_ok());
    };
    match &message.body {
        Body::Reply(Reply::Bundle(bytes) | Reply::Order(bytes) | Reply::Dealing(bytes)) => {
            if let Ok(inner) = decode(bytes, n) {
                assert_eq!(&inner.encode(), bytes, "{inner:?} has two encodings");
            }
        }
        Body::Reserve(reserve) => judge(&reserve.proof, &reserve.order),
        Body::Again(again) => {
            judge(&again.proof, &again.before);
            let proof = &again.proof;
            let early = verify::again(record, &again.order, &again.before, &proof.certificate, &proof.proof);
            assert!(early.is_err() || again.order.after.is_some());
        }
        Body::Propose(propose) => {
            let (set, derived) = follow(record, message.header.round, propose);
            assert_eq!((set, derived), follow(record, message.header.round, propose));
        }
        _ => {}
    }
}

fn header(bytes: &[u8]) -> bool {
    let mut r = Reader::new(bytes);
    let Ok(header) = Header::read(&mut r) else { return false };
    assert_eq!(Some(header.to_bytes().as_slice()), bytes.get(..HEADER_LEN));
    true
}

fn signers(bytes: &[u8]) -> bool {
    let Some((selector, bitmap)) = bytes.split_first() else { return false };
    let n = seats(*selector);
    let Ok(signers) = bounded(bytes.len(), n, || Signers::from_bitmap(bitmap, n)) else { return false };
    assert_eq!(signers.bitmap(), bitmap);
    assert_eq!(Signers::new(n, signers.iter()), signers);
    assert!(signers.iter().all(|seat| seat < n) && signers.len() <= usize::from(n));
    true
}

/// How many orders, then the padded plaintext of a bundle.
fn plaintext(bytes: &[u8]) -> bool {
    let Some((orders, padded)) = bytes.split_first() else { return false };
    let read = || Plaintext::from_padded(padded, usize::from(*orders));
    let Ok(plain) = bounded(padded.len(), 0, read) else { return false };
    assert_eq!(plain.to_padded(), padded, "{plain:?} has two encodings");
    assert_eq!(plain.records.len(), usize::from(*orders));
    true
}
