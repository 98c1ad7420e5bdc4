//! Evidence signatures: secp256k1 over EIP-712 hashes, so that a contract can check who said what.
//!
//! The domain binds the 32-byte market id; each message kind has a type of its own. Keys, signatures and the way to hash
//! a struct are those of `vendue-signatures`.

use crate::crypto::{Curves, Scheme};
use crate::record::MarketRecord;
use crate::wire::{Admitted, Body, HEADER_LEN, Header, Kind, Message, SIGNATURE_LEN, ShownSet, signed_view};
use std::cell::Cell;
use std::sync::OnceLock;
use vendue_market::encode::Writer;
use vendue_market::{Digest, Order};
use vendue_signatures::{Domain, keccak};

pub use vendue_signatures::{
    Field, SignatureError as EvidenceError, SigningKey as EvidenceKey, recover, tweaked, verify,
};

/// A struct that is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Struct {
    /// A message of this kind.
    Message(Kind),
    /// The body of an order.
    Order,
    /// The close of an award.
    Close,
    /// A market record.
    MarketRecord,
}

/// Hashes of struct types.
struct TypeHashes {
    messages: [Digest; Kind::ALL.len()],
    order: Digest,
    close: Digest,
    record: Digest,
}

impl TypeHashes {
    /// They never change, so they are worked out once.
    fn get() -> &'static Self {
        static HASHES: OnceLock<TypeHashes> = OnceLock::new();
        HASHES.get_or_init(|| Self {
            messages: Kind::ALL.map(|k| keccak(&[k.type_name().as_bytes(), b"(bytes header,bytes body)"])),
            order: keccak(&[b"Order(bytes32 digest)"]),
            close: keccak(&[b"Close(string award,bytes32 order,bool notTaken)"]),
            record: keccak(&[b"MarketRecord(bytes32 digest)"]),
        })
    }

    fn of(&self, what: Struct) -> &Digest {
        match what {
            Struct::Message(kind) => {
                let at = Kind::ALL.iter().position(|k| *k == kind).unwrap_or_default();
                self.messages.get(at).unwrap_or(&self.order)
            }
            Struct::Order => &self.order,
            Struct::Close => &self.close,
            Struct::MarketRecord => &self.record,
        }
    }
}

/// A market's EIP-712 domain; a process mostly asks for one market's.
fn domain(market: &Digest) -> Domain {
    thread_local! {
        static LAST: Cell<Option<(Digest, Domain)>> = const { Cell::new(None) };
    }
    if let Some((_, domain)) = LAST.get().filter(|(of, _)| of == market) {
        return domain;
    }
    let domain = Domain::salted(market);
    LAST.set(Some((*market, domain)));
    domain
}

/// The EIP-712 hash of a struct in a market's domain.
pub(crate) fn typed_hash(market: &Digest, what: Struct, fields: &[Field<'_>]) -> Digest {
    vendue_signatures::typed_hash(&domain(market), TypeHashes::get().of(what), fields)
}

/// What the evidence signature of a message signs. For a BUNDLE the body stands as its digest d, so that the
/// signature can be shown without the bundle; the SETs in a NEWVIEW stand as their hashes, so that it can be shown without
/// them; an ORDER or AGAIN is signed as [`order_hash`] of its body,
/// whatever its header.
pub fn message_hash(market: &Digest, header: &Header, body: &Body) -> Digest {
    message_hash_by::<Curves>(market, header, body)
}

/// [`message_hash`] as a scheme's signatures are over it.
pub fn message_hash_by<S: Scheme>(market: &Digest, header: &Header, body: &Body) -> Digest {
    match body {
        Body::Order(o) => order_hash_by::<S>(market, &o.order),
        Body::Again(a) => order_hash_by::<S>(market, &a.order),
        Body::Bundle(bundle) => bundle_hash_by::<S>(market, header, &bundle.digest(header)),
        Body::NewView(v) => {
            let hashes: Vec<Digest> = v.sets.iter().map(|s| set_hash_by::<S>(market, header, s)).collect();
            new_view_hash_by::<S>(market, header, v.view, v.admitted.as_ref(), &hashes)
        }
        other => {
            let mut w = Writer::new();
            other.write(&mut w);
            body_hash::<S>(market, other.kind(), header, &w.finish())
        }
    }
}

/// [`message_hash_by`] of a message that was decoded from these bytes: an encoding is canonical, so the body need not be
/// encoded again.
pub(crate) fn received_hash_by<S: Scheme>(market: &Digest, message: &Message, bytes: &[u8]) -> Digest {
    let Message { header, body, signature } = message;
    let is_plain = !matches!(body, Body::Order(_) | Body::Again(_) | Body::Bundle(_) | Body::NewView(_));
    let tail = signature.map_or(0, |_| SIGNATURE_LEN);
    let end = bytes.len().saturating_sub(tail);
    match bytes.get(HEADER_LEN..end).filter(|_| is_plain) {
        Some(encoded) => body_hash::<S>(market, header.kind, header, encoded),
        None => message_hash_by::<S>(market, header, body),
    }
}

/// The hash of a message with a header and a body.
fn body_hash<S: Scheme>(market: &Digest, kind: Kind, header: &Header, body: &[u8]) -> Digest {
    let fields = [Field::Bytes(&header.to_array()), Field::Bytes(body)];
    S::typed_hash(market, Struct::Message(kind), &fields)
}

/// What the evidence signature of a SET signs that is shown in a message of the same round.
pub fn set_hash_by<S: Scheme>(market: &Digest, header: &Header, shown: &ShownSet) -> Digest {
    let header = Header { kind: Kind::Set, seat: shown.seat, ..*header };
    let mut w = Writer::new();
    shown.set.write(&mut w);
    body_hash::<S>(market, Kind::Set, &header, &w.finish())
}

/// What the evidence signature of a NEWVIEW with SETs of these hashes signs.
pub(crate) fn new_view_hash_by<S: Scheme>(
    market: &Digest,
    header: &Header,
    view: u32,
    admitted: Option<&Admitted>,
    sets: &[Digest],
) -> Digest {
    body_hash::<S>(market, Kind::NewView, header, &signed_view(view, admitted, sets))
}

/// What the evidence signature of a BUNDLE with the digest `d` signs.
pub(crate) fn bundle_hash_by<S: Scheme>(market: &Digest, header: &Header, d: &Digest) -> Digest {
    body_hash::<S>(market, Kind::Bundle, header, d)
}

/// What the user's signature of an order signs.
pub fn order_hash(market: &Digest, order: &Order) -> Digest {
    order_hash_by::<Curves>(market, order)
}

/// [`order_hash`] as a scheme's signatures are over it.
pub fn order_hash_by<S: Scheme>(market: &Digest, order: &Order) -> Digest {
    named_order_hash_by::<S>(market, &order.digest())
}

/// [`order_hash_by`] of an order with this digest.
pub(crate) fn named_order_hash_by<S: Scheme>(market: &Digest, digest: &Digest) -> Digest {
    S::typed_hash(market, Struct::Order, &[Field::Word(digest)])
}

/// What a home's signature of the close of an award signs: the award by its id, the order, and whether the award was
/// never used.
pub fn close_hash(market: &Digest, award: &str, order: &Digest, not_taken: bool) -> Digest {
    let mut flag = [0; 32];
    if let Some(last) = flag.last_mut() {
        *last = u8::from(not_taken);
    }
    let fields = [Field::Bytes(award.as_bytes()), Field::Word(order), Field::Word(&flag)];
    typed_hash(market, Struct::Close, &fields)
}

/// What the issuer's signature of a market record signs.
pub fn record_hash(record: &MarketRecord) -> Digest {
    typed_hash(&record.market, Struct::MarketRecord, &[Field::Word(&record.digest())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typed_hash_is_that_of_eip_712() {
        let market = [3; 32];
        let domain_type: &[u8] = b"EIP712Domain(string name,string version,bytes32 salt)";
        let domain = keccak(&[&keccak(&[domain_type]), &keccak(&[b"VENDUE"]), &keccak(&[b"1"]), &market]);
        let signed = |parts: &[&[u8]]| keccak(&[&[0x19, 0x01], &domain, &keccak(parts)]);
        for kind in Kind::ALL {
            let type_hash = keccak(&[kind.type_name().as_bytes(), b"(bytes header,bytes body)"]);
            let fields = [Field::Bytes(b"header"), Field::Bytes(b"body")];
            let expected = signed(&[&type_hash, &keccak(&[b"header"]), &keccak(&[b"body"])]);
            assert_eq!(typed_hash(&market, Struct::Message(kind), &fields), expected);
            assert_ne!(typed_hash(&[4; 32], Struct::Message(kind), &fields), expected);
        }
        let order = signed(&[&keccak(&[b"Order(bytes32 digest)"]), &[5; 32]]);
        assert_eq!(typed_hash(&market, Struct::Order, &[Field::Word(&[5; 32])]), order);
    }

    #[test]
    fn a_message_that_was_received_has_the_hash_of_its_values() {
        for message in crate::wire::tests::all_messages() {
            let (bytes, Message { header, body, .. }) = (message.encode(), &message);
            let hash = received_hash_by::<Curves>(&[1; 32], &message, &bytes);
            assert_eq!(hash, message_hash(&[1; 32], header, body), "{:?}", header.kind);
        }
    }

    #[test]
    fn a_close_is_of_one_market_award_order_and_way() {
        let one = close_hash(&[1; 32], "0011223344556677", &[2; 32], false);
        for other in [
            close_hash(&[3; 32], "0011223344556677", &[2; 32], false),
            close_hash(&[1; 32], "0011223344556678", &[2; 32], false),
            close_hash(&[1; 32], "0011223344556677", &[3; 32], false),
            close_hash(&[1; 32], "0011223344556677", &[2; 32], true),
        ] {
            assert_ne!(one, other);
        }
    }
}
