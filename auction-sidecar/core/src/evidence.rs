//! Evidence signatures: secp256k1 over EIP-712 hashes, so that a contract can check who said what.
//!
//! The domain binds the 32-byte market id; each message kind has a type of its own. Signatures are 65 bytes
//! `r | s | recovery id` with low s, so a hash has one signature per nonce and nothing can be re-encoded.

use crate::record::MarketRecord;
use crate::wire::{Admitted, Body, Header, Kind, ShownSet, signed_view};
use secp256k1::ecdsa::{RecoverableSignature, RecoveryId};
use secp256k1::{All, Message, PublicKey, Secp256k1, SecretKey};
use sha3::{Digest as _, Keccak256};
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

/// The EIP-712 hash of a struct in a market's domain.
fn typed_hash(market: &Digest, struct_hash: &Digest) -> Digest {
    /// The part of the domain that all markets share.
    static SHARED: OnceLock<[Digest; 3]> = OnceLock::new();
    let [domain_type, name, version] = SHARED.get_or_init(|| {
        let domain_type: &[u8] = b"EIP712Domain(string name,string version,bytes32 salt)";
        [keccak(&[domain_type]), keccak(&[b"VENDUE"]), keccak(&[b"1"])]
    });
    let domain = keccak(&[domain_type, name, version, market]);
    keccak(&[&[0x19, 0x01], &domain, struct_hash])
}

/// What the evidence signature of a message signs. For a BUNDLE the body stands as its digest d, so that the
/// signature can be shown without the bundle; the SETs in a NEWVIEW stand as their hashes, so that it can be shown without
/// them; an ORDER or AGAIN is signed as [`order_hash`] of its body,
/// whatever its header.
pub fn message_hash(market: &Digest, header: &Header, body: &Body) -> Digest {
    let name = match body {
        Body::Order(o) => return order_hash(market, &o.order),
        Body::Again(a) => return order_hash(market, &a.order),
        other => other.kind().type_name(),
    };
    let type_hash = keccak(&[name.as_bytes(), b"(bytes header,bytes body)"]);
    let body = match body {
        Body::Bundle(bundle) => return bundle_hash(market, header, &bundle.digest(header)),
        Body::NewView(v) => {
            let hashes: Vec<Digest> = v.sets.iter().map(|s| set_hash(market, header, s)).collect();
            return new_view_hash(market, header, v.view, v.admitted.as_ref(), &hashes);
        }
        other => {
            let mut w = Writer::new();
            other.write(&mut w);
            w.finish()
        }
    };
    typed_hash(market, &keccak(&[&type_hash, &keccak(&[&header.to_bytes()]), &keccak(&[&body])]))
}

/// What the evidence signature of a SET signs that is shown in a message of the same round.
pub fn set_hash(market: &Digest, header: &Header, shown: &ShownSet) -> Digest {
    let header = Header { kind: Kind::Set, seat: shown.seat, ..*header };
    message_hash(market, &header, &Body::Set(shown.set.clone()))
}

/// What the evidence signature of a NEWVIEW with SETs of these hashes signs.
pub(crate) fn new_view_hash(
    market: &Digest,
    header: &Header,
    view: u32,
    admitted: Option<&Admitted>,
    sets: &[Digest],
) -> Digest {
    let type_hash = keccak(&[b"NewView(bytes header,bytes body)"]);
    let body = signed_view(view, admitted, sets);
    typed_hash(market, &keccak(&[&type_hash, &keccak(&[&header.to_bytes()]), &keccak(&[&body])]))
}

/// What the evidence signature of a BUNDLE with the digest `d` signs.
pub(crate) fn bundle_hash(market: &Digest, header: &Header, d: &Digest) -> Digest {
    let type_hash = keccak(&[b"Bundle(bytes header,bytes body)"]);
    typed_hash(market, &keccak(&[&type_hash, &keccak(&[&header.to_bytes()]), &keccak(&[d])]))
}

/// What the user's signature of an order signs.
pub fn order_hash(market: &Digest, order: &Order) -> Digest {
    typed_hash(market, &keccak(&[&keccak(&[b"Order(bytes32 digest)"]), &order.digest()]))
}

/// What a home's signature of the close of an award signs: the award by its id, the order, and whether the award was
/// never used.
pub fn close_hash(market: &Digest, award: &str, order: &Digest, not_taken: bool) -> Digest {
    let type_hash = keccak(&[b"Close(string award,bytes32 order,bool notTaken)"]);
    let mut flag = [0; 32];
    if let Some(last) = flag.last_mut() {
        *last = u8::from(not_taken);
    }
    typed_hash(market, &keccak(&[&type_hash, &keccak(&[award.as_bytes()]), order, &flag]))
}

/// What the issuer's signature of a market record signs.
pub fn record_hash(record: &MarketRecord) -> Digest {
    typed_hash(&record.market, &keccak(&[&keccak(&[b"MarketRecord(bytes32 digest)"]), &record.digest()]))
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
    /// Signs a hash.
    pub fn sign(&self, hash: &Digest) -> [u8; 65] {
        let signature = context().sign_ecdsa_recoverable(Message::from_digest(*hash), &self.0);
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
    let key = context().recover_ecdsa(Message::from_digest(*hash), &recoverable).map_err(malformed)?;
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
