//! Secret scalars encrypted from seat to seat.
//!
//! Diffie-Hellman in G1 with an ephemeral key, HKDF-SHA-256 and ChaCha20-Poly1305 (the integrated encryption scheme
//! of Abdalla, Bellare and Rogaway, "DHIES", 2001). The recipient's key is a deal key, which is used for nothing
//! else: a vote key signs what others choose, so it must not also decrypt, and the seal share does not exist yet when
//! the first key is made. G1 is taken because blst multiplies there in constant time and the crate needs no other
//! curve. Who sent an envelope is said by the signature over the message that carries it.
//!
//! A dealer seals the values of all players with one ephemeral key (Bellare, Boldyreva and Staddon, "Randomness Re-use
//! in Multi-recipient Encryption Schemes", 2003): every recipient has a key of its own, and each envelope its own context.
//! That ephemeral key is not checked to be in the subgroup: sender and recipient take its multiple by the effective cofactor.
//!
//! Invariant: an envelope opens for one recipient and one context only; a context is sealed to once.

use super::DkgError;
use super::poly::derive;
use crate::CryptoError;
use crate::raw::{CurvePoint, G1, Scalar};
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Nonce};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Bytes of an envelope: ephemeral key 48, encrypted scalar 32, tag 16.
pub(super) const ENVELOPE: usize = 96;

/// A seat's secret key that opens envelopes; wiped when dropped.
pub struct DealKey(Scalar);

impl DealKey {
    /// Derives a key from 32 random bytes.
    pub fn generate(seed: &[u8; 32]) -> Result<Self, CryptoError> {
        derive(b"VENDUE-V1-DEAL-KEY", seed, &[]).map(Self)
    }
    /// From 32 big-endian bytes.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, CryptoError> {
        Scalar::from_bendian(bytes).map(Self).ok_or(CryptoError::Secret("deal key"))
    }
    /// As 32 big-endian bytes, to be stored as a secret.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        self.0.to_bendian()
    }
    /// The public key, compressed G1.
    pub fn public_key(&self) -> Result<[u8; 48], CryptoError> {
        G1::generator_mul(&self.0).map(G1::to_bytes).ok_or(CryptoError::Secret("deal key"))
    }
    /// Whether two keys are the same, in constant time.
    pub fn same_as(&self, other: &Self) -> bool {
        self.to_bytes().ct_eq(other.to_bytes().as_slice()).into()
    }
}

/// A seat's public deal key, checked.
#[derive(Clone)]
pub struct RecipientKey {
    point: G1,
    bytes: [u8; 48],
}

impl RecipientKey {
    /// Decodes and checks a deal key, compressed G1.
    pub fn from_bytes(bytes: &[u8; 48]) -> Result<Self, CryptoError> {
        let point = G1::from_bytes(bytes).ok_or(CryptoError::Point("deal key"))?;
        Ok(Self { point, bytes: *bytes })
    }
    /// The key's bytes.
    pub fn to_bytes(&self) -> &[u8; 48] {
        &self.bytes
    }
}

/// Key and nonce, from the shared point and everything public.
fn cipher(
    shared: &[u8; 48],
    ephemeral: &[u8],
    recipient: &[u8; 48],
    context: &[u8],
) -> Result<(ChaCha20Poly1305, Nonce), CryptoError> {
    let mut okm = Zeroizing::new([0u8; 44]);
    hkdf::Hkdf::<Sha256>::new(Some(b"VENDUE-V1-DKG-ENVELOPE"), shared.as_slice())
        .expand_multi_info(&[ephemeral, recipient, context], okm.as_mut_slice())
        .map_err(|_| CryptoError::Secret("envelope"))?;
    let (key, nonce) = okm.split_at(32);
    let cipher = ChaCha20Poly1305::new_from_slice(key).map_err(|_| CryptoError::Secret("envelope"))?;
    Ok((cipher, *Nonce::from_slice(nonce)))
}

/// Encrypts a secret scalar to a seat's deal key.
pub(super) fn seal(
    recipient: &RecipientKey,
    ephemeral: &Scalar,
    context: &[u8],
    secret: &Scalar,
) -> Result<[u8; ENVELOPE], DkgError> {
    let refuse = CryptoError::Secret("envelope");
    let public = G1::generator_mul(ephemeral).ok_or(refuse.clone())?.to_bytes();
    let shared = recipient.point.shared(ephemeral).ok_or(refuse.clone())?;
    let (cipher, nonce) = cipher(&shared, &public, &recipient.bytes, context)?;
    let plain = secret.to_bendian();
    let sealed = cipher
        .encrypt(&nonce, Payload { msg: plain.as_slice(), aad: context })
        .map_err(|_| refuse.clone())?;
    [public.as_slice(), &sealed].concat().try_into().map_err(|_| refuse.into())
}

/// Decrypts an envelope; `None` for anything that was not sealed to this key and context.
pub(super) fn open(key: &DealKey, context: &[u8], envelope: &[u8; ENVELOPE]) -> Option<Scalar> {
    let (public, sealed) = envelope.split_first_chunk::<48>()?;
    let shared = G1::from_bytes(public)?.shared(&key.0)?;
    let (cipher, nonce) = cipher(&shared, public, &key.public_key().ok()?, context).ok()?;
    let plain = Zeroizing::new(cipher.decrypt(&nonce, Payload { msg: sealed, aad: context }).ok()?);
    Scalar::from_bendian(plain.as_slice().try_into().ok()?)
}

/// Bytes of a sealed scalar without its ephemeral key.
pub(super) const SEALED: usize = 48;

/// One ephemeral key for all recipients of a dealing.
pub(super) struct Ephemeral {
    /// The secret times the effective cofactor.
    factor: Scalar,
    /// The public key, uncompressed.
    pub(super) public: [u8; 96],
}

impl Ephemeral {
    pub(super) fn new(secret: &Scalar) -> Result<Self, CryptoError> {
        let refuse = CryptoError::Secret("envelope");
        let factor = Scalar::cofactor().and_then(|h| h.times(secret)).ok_or(refuse.clone())?;
        let public = CurvePoint::from(G1::generator_mul(secret).ok_or(refuse)?).to_bytes();
        Ok(Self { factor, public })
    }

    /// Encrypts a secret scalar to one of the recipients.
    pub(super) fn seal(
        &self,
        recipient: &RecipientKey,
        context: &[u8],
        secret: &Scalar,
    ) -> Result<[u8; SEALED], DkgError> {
        let refuse = CryptoError::Secret("envelope");
        let shared = recipient.point.shared(&self.factor).ok_or(refuse.clone())?;
        let (cipher, nonce) = cipher(&shared, &self.public, &recipient.bytes, context)?;
        let plain = secret.to_bendian();
        let sealed = cipher
            .encrypt(&nonce, Payload { msg: plain.as_slice(), aad: context })
            .map_err(|_| refuse.clone())?;
        sealed.try_into().map_err(|_| refuse.into())
    }
}

/// Decrypts what [`Ephemeral::seal`] made for the key whose public side is `own`; `None` for anything else.
pub(super) fn open_shared(
    key: &DealKey,
    own: &[u8; 48],
    ephemeral: &CurvePoint,
    context: &[u8],
    sealed: &[u8; SEALED],
) -> Option<Scalar> {
    let shared = ephemeral.clear_shared(&key.0)?;
    let (cipher, nonce) = cipher(&shared, &ephemeral.to_bytes(), own, context).ok()?;
    let plain = Zeroizing::new(cipher.decrypt(&nonce, Payload { msg: sealed, aad: context }).ok()?);
    Scalar::from_bendian(plain.as_slice().try_into().ok()?)
}
