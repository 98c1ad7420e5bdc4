//! Keys and signatures.
//!
//! Inputs: 32-byte secrets, hashes. Outputs: signatures, and the key behind one. Invariant: a secret is wiped when it is
//! dropped.

use crate::Hash;
use secp256k1::ecdsa::{RecoverableSignature, RecoveryId};
use secp256k1::{All, Message, PublicKey, Scalar, Secp256k1, SecretKey};
use std::sync::OnceLock;
use zeroize::Zeroizing;

/// Why a signature or a key is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
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

/// A secret key; wiped when dropped.
pub struct SigningKey(SecretKey);

impl SigningKey {
    /// From 32 bytes.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, SignatureError> {
        SecretKey::from_byte_array(*bytes).map(Self).map_err(|_| SignatureError::Secret)
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
    pub fn tweaked(&self, tweak: &Hash) -> Result<Self, SignatureError> {
        let tweak = Scalar::from_be_bytes(*tweak).map_err(|_| SignatureError::Secret)?;
        self.0.add_tweak(&tweak).map(Self).map_err(|_| SignatureError::Secret)
    }
    /// Signs a hash.
    pub fn sign(&self, hash: &Hash) -> [u8; 65] {
        let signature = context().sign_ecdsa_recoverable(Message::from_digest(*hash), &self.0);
        let (id, compact) = signature.serialize_compact();
        let mut out = [0; 65];
        let (rs, v) = out.split_at_mut(64);
        rs.copy_from_slice(&compact);
        v.fill(i32::from(id) as u8);
        out
    }
}

impl Drop for SigningKey {
    fn drop(&mut self) {
        self.0.non_secure_erase();
    }
}

/// The public key of [`SigningKey::tweaked`], for who has the public key only.
pub fn tweaked(key: &[u8; 33], tweak: &Hash) -> Result<[u8; 33], SignatureError> {
    let key = PublicKey::from_byte_array_compressed(*key).map_err(|_| SignatureError::Public)?;
    let tweak = Scalar::from_be_bytes(*tweak).map_err(|_| SignatureError::Public)?;
    let tweaked = key.add_exp_tweak(context(), &tweak).map_err(|_| SignatureError::Public)?;
    Ok(tweaked.serialize())
}

/// The key that made a signature.
pub fn recover(hash: &Hash, signature: &[u8; 65]) -> Result<[u8; 33], SignatureError> {
    let malformed = |_| SignatureError::Malformed;
    let (rs, v) = signature.split_at(64);
    let id = v.first().copied().filter(|v| *v < 4).ok_or(SignatureError::Malformed)?;
    let id = RecoveryId::try_from(i32::from(id)).map_err(malformed)?;
    let recoverable = RecoverableSignature::from_compact(rs, id).map_err(malformed)?;
    let mut normal = recoverable.to_standard();
    normal.normalize_s();
    if normal != recoverable.to_standard() {
        return Err(SignatureError::Malformed);
    }
    let key = context().recover_ecdsa(Message::from_digest(*hash), &recoverable).map_err(malformed)?;
    Ok(key.serialize())
}

/// Whether `signature` is `key`'s signature of `hash`.
pub fn verify(hash: &Hash, signature: &[u8; 65], key: &[u8; 33]) -> Result<(), SignatureError> {
    if &recover(hash, signature)? == key { Ok(()) } else { Err(SignatureError::WrongKey) }
}

/// Whether these bytes are a public key at all.
pub fn check_public_key(key: &[u8; 33]) -> Result<(), SignatureError> {
    PublicKey::from_byte_array_compressed(*key).map(drop).map_err(|_| SignatureError::Public)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sign_recover_and_refuse() {
        let key = SigningKey::from_bytes(&[7; 32]).unwrap();
        let signature = key.sign(&[1; 32]);
        assert_eq!(recover(&[1; 32], &signature), Ok(key.public_key()));
        assert_eq!(verify(&[2; 32], &signature, &key.public_key()), Err(SignatureError::WrongKey));
        assert_eq!(recover(&[1; 32], &[0xff; 65]), Err(SignatureError::Malformed));
        assert!(SigningKey::from_bytes(&[0; 32]).is_err());
    }

    #[test]
    fn a_tweaked_key_is_another_one_whose_public_key_anybody_can_work_out() {
        let key = SigningKey::from_bytes(&[7; 32]).unwrap();
        let other = key.tweaked(&[1; 32]).unwrap();
        assert_eq!(tweaked(&key.public_key(), &[1; 32]), Ok(other.public_key()));
        assert_ne!(other.public_key(), key.public_key());
        assert_ne!(tweaked(&key.public_key(), &[2; 32]), Ok(other.public_key()));
        assert_eq!(tweaked(&key.public_key(), &[0xff; 32]), Err(SignatureError::Public));
        assert_eq!(tweaked(&[0; 33], &[1; 32]), Err(SignatureError::Public));
    }

    #[test]
    fn high_s_is_refused() {
        let key = SigningKey::from_bytes(&[7; 32]).unwrap();
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
        assert_eq!(recover(&[1; 32], &high), Err(SignatureError::Malformed));
    }
}
