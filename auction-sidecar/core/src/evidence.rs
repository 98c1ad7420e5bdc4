//! Evidence signatures: secp256k1 over EIP-712 hashes, so that a contract can check who said what.
//!
//! The domain binds the 32-byte market id; each message kind has a type of its own. Signatures are 65 bytes
//! `r | s | recovery id` with low s, so a hash has one signature per nonce and nothing can be re-encoded.

use crate::crypto::{Curves, Scheme};
use crate::record::MarketRecord;
use crate::wire::{Admitted, Body, HEADER_LEN, Header, Kind, Message, SIGNATURE_LEN, ShownSet, signed_view};
use secp256k1::ecdsa::{RecoverableSignature, RecoveryId};
use secp256k1::{All, PublicKey, Scalar, Secp256k1, SecretKey};
use sha3::{Digest as _, Keccak256};
use std::cell::Cell;
use std::sync::OnceLock;
use vendue_market::encode::Writer;
use vendue_market::{Digest, Order};
use zeroize::Zeroizing;

/// Why a signature is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// Not a signature in the one accepted form.
    #[error("signature is malformed")]
    Malformed,
    /// A valid signature of another key.
    #[error("signature is by another key")]
    WrongKey,
    /// Not a valid secret key.
    #[error("secret key is not valid")]
    Secret,
    /// Not a public key, or one from which no other follows with this tweak.
    #[error("public key is not valid")]
    Public,
}

fn context() -> &'static Secp256k1<All> {
    static CONTEXT: OnceLock<Secp256k1<All>> = OnceLock::new();
    CONTEXT.get_or_init(Secp256k1::new)
}

fn keccak(parts: &[&[u8]]) -> Digest {
    let mut hasher = Keccak256::new();
    parts.iter().for_each(|p| hasher.update(p));
    hasher.finalize().into()
}

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

/// A field of a struct that is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field<'a> {
    /// Of any length.
    Bytes(&'a [u8]),
    /// 32 bytes that stand for themselves.
    Word(&'a Digest),
}

/// Hashes of struct types.
struct TypeHashes {
    domain: [Digest; 3],
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
            domain: [
                keccak(&[b"EIP712Domain(string name,string version,bytes32 salt)"]),
                keccak(&[b"VENDUE"]),
                keccak(&[b"1"]),
            ],
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

/// The hash of a market's EIP-712 domain; a process mostly asks for one market's.
fn domain_hash(market: &Digest) -> Digest {
    thread_local! {
        static LAST: Cell<Option<(Digest, Digest)>> = const { Cell::new(None) };
    }
    if let Some((_, hash)) = LAST.get().filter(|(of, _)| of == market) {
        return hash;
    }
    let [domain_type, name, version] = &TypeHashes::get().domain;
    let hash = keccak(&[domain_type, name, version, market]);
    LAST.set(Some((*market, hash)));
    hash
}

/// The EIP-712 hash of a struct in a market's domain.
pub(crate) fn typed_hash(market: &Digest, what: Struct, fields: &[Field<'_>]) -> Digest {
    let mut hasher = Keccak256::new();
    hasher.update(TypeHashes::get().of(what));
    for field in fields {
        match field {
            Field::Bytes(bytes) => hasher.update(keccak(&[bytes])),
            Field::Word(word) => hasher.update(word),
        }
    }
    let struct_hash: Digest = hasher.finalize().into();
    keccak(&[&[0x19, 0x01], &domain_hash(market), &struct_hash])
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

/// A secret key for evidence signatures; wiped when dropped.
pub struct EvidenceKey(SecretKey);

impl EvidenceKey {
    /// From 32 bytes.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, EvidenceError> {
        SecretKey::from_byte_array(*bytes).map(Self).map_err(|_| EvidenceError::Secret)
    }
    /// As 32 bytes, to be stored as a secret.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.secret_bytes())
    }
    /// The public key, compressed.
    pub fn public_key(&self) -> [u8; 33] {
        PublicKey::from_secret_key(context(), &self.0).serialize()
    }
    /// The key that follows from this one and a tweak. Its public key is [`tweaked`] of this one's; who learns it and the tweak
    /// has this one too.
    pub fn tweaked(&self, tweak: &Digest) -> Result<Self, EvidenceError> {
        let tweak = Scalar::from_be_bytes(*tweak).map_err(|_| EvidenceError::Secret)?;
        self.0.add_tweak(&tweak).map(Self).map_err(|_| EvidenceError::Secret)
    }
    /// Signs a hash.
    pub fn sign(&self, hash: &Digest) -> [u8; 65] {
        let signature = context().sign_ecdsa_recoverable(secp256k1::Message::from_digest(*hash), &self.0);
        let (id, compact) = signature.serialize_compact();
        let mut out = [0; 65];
        let (rs, v) = out.split_at_mut(64);
        rs.copy_from_slice(&compact);
        v.fill(i32::from(id) as u8);
        out
    }
}

impl Drop for EvidenceKey {
    fn drop(&mut self) {
        self.0.non_secure_erase();
    }
}

/// The public key of [`EvidenceKey::tweaked`], for who has the public key only.
pub fn tweaked(key: &[u8; 33], tweak: &Digest) -> Result<[u8; 33], EvidenceError> {
    let key = PublicKey::from_byte_array_compressed(*key).map_err(|_| EvidenceError::Public)?;
    let tweak = Scalar::from_be_bytes(*tweak).map_err(|_| EvidenceError::Public)?;
    let tweaked = key.add_exp_tweak(context(), &tweak).map_err(|_| EvidenceError::Public)?;
    Ok(tweaked.serialize())
}

/// The key that made a signature.
pub fn recover(hash: &Digest, signature: &[u8; 65]) -> Result<[u8; 33], EvidenceError> {
    let malformed = |_| EvidenceError::Malformed;
    let (rs, v) = signature.split_at(64);
    let id = v.first().copied().filter(|v| *v < 4).ok_or(EvidenceError::Malformed)?;
    let id = RecoveryId::try_from(i32::from(id)).map_err(malformed)?;
    let recoverable = RecoverableSignature::from_compact(rs, id).map_err(malformed)?;
    let mut normal = recoverable.to_standard();
    normal.normalize_s();
    if normal != recoverable.to_standard() {
        return Err(EvidenceError::Malformed);
    }
    let key =
        context().recover_ecdsa(secp256k1::Message::from_digest(*hash), &recoverable).map_err(malformed)?;
    Ok(key.serialize())
}

/// Whether `signature` is `key`'s signature of `hash`.
pub fn verify(hash: &Digest, signature: &[u8; 65], key: &[u8; 33]) -> Result<(), EvidenceError> {
    if &recover(hash, signature)? == key { Ok(()) } else { Err(EvidenceError::WrongKey) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sign_recover_and_refuse() {
        let key = EvidenceKey::from_bytes(&[7; 32]).unwrap();
        let signature = key.sign(&[1; 32]);
        assert_eq!(recover(&[1; 32], &signature), Ok(key.public_key()));
        assert_eq!(verify(&[2; 32], &signature, &key.public_key()), Err(EvidenceError::WrongKey));
        assert_eq!(recover(&[1; 32], &[0xff; 65]), Err(EvidenceError::Malformed));
        assert!(EvidenceKey::from_bytes(&[0; 32]).is_err());
    }

    #[test]
    fn a_tweaked_key_is_another_one_whose_public_key_anybody_can_work_out() {
        let key = EvidenceKey::from_bytes(&[7; 32]).unwrap();
        let other = key.tweaked(&[1; 32]).unwrap();
        assert_eq!(tweaked(&key.public_key(), &[1; 32]), Ok(other.public_key()));
        assert_ne!(other.public_key(), key.public_key());
        assert_ne!(tweaked(&key.public_key(), &[2; 32]), Ok(other.public_key()));
        assert_eq!(tweaked(&key.public_key(), &[0xff; 32]), Err(EvidenceError::Public));
        assert_eq!(tweaked(&[0; 33], &[1; 32]), Err(EvidenceError::Public));
    }

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

    #[test]
    fn high_s_is_refused() {
        let key = EvidenceKey::from_bytes(&[7; 32]).unwrap();
        let signature = key.sign(&[1; 32]);
        // n - s with the other parity recovers the same key, but is a second encoding.
        let n = hex::decode("fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141").unwrap();
        let mut high = signature;
        let mut borrow = 0i16;
        for i in (0..32).rev() {
            let v = i16::from(n[i]) - i16::from(signature[32 + i]) - borrow;
            borrow = i16::from(v < 0);
            high[32 + i] = (v + 256 * borrow) as u8;
        }
        high[64] ^= 1;
        assert_eq!(recover(&[1; 32], &high), Err(EvidenceError::Malformed));
    }
}
