//! Sealing a payload to a round, and opening it with the round's combined signature.
//!
//! KEM of Boneh-Franklin with the Fujisaki-Okamoto transform: a seed fixes the encryption randomness, so opening
//! recomputes it and refuses anything that was changed. The header is bound into key, randomness and mask: a sealed
//! value copied under another seat, round, epoch or market does not open.

use crate::CryptoError;
use crate::raw::{G1, G2, Scalar, pairing};
use crate::share::{Combined, RoundId};
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Nonce};
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256, Sha512};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// A seat's secret from which seeds are derived, so that sealing again gives the same bytes.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct BidKey([u8; 32]);

impl BidKey {
    /// From 32 random bytes.
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        Self(*bytes)
    }
    /// As bytes, to be stored as a secret.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0)
    }
    /// The seed for one header and payload.
    fn seed(&self, header: &[u8], payload: &[u8]) -> Result<Zeroizing<[u8; 32]>, CryptoError> {
        let mut mac =
            <Hmac<Sha256> as Mac>::new_from_slice(&self.0).map_err(|_| CryptoError::Secret("bid key"))?;
        mac.update(b"VENDUE-V1-SIGMA");
        mac.update(&Sha256::digest(header));
        mac.update(&Sha256::digest(payload));
        Ok(Zeroizing::new(mac.finalize().into_bytes().into()))
    }
}

/// A sealed payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Key encapsulation, compressed G1.
    pub u: [u8; 48],
    /// Masked seed.
    pub v: [u8; 32],
    /// Encrypted payload.
    pub payload: Vec<u8>,
}

/// Key and nonce of the payload, from the seed and the header. Each seed encrypts one payload only.
fn payload_cipher(seed: &[u8; 32], header: &[u8]) -> Result<(ChaCha20Poly1305, Nonce), CryptoError> {
    let kdf = hkdf::Hkdf::<Sha256>::new(Some(b"VENDUE-V1-PAYLOAD-KEY"), seed);
    let mut okm = Zeroizing::new([0u8; 44]);
    kdf.expand(header, okm.as_mut()).map_err(|_| CryptoError::Secret("seed"))?;
    let (key, nonce) = okm.split_at(32);
    let cipher = ChaCha20Poly1305::new_from_slice(key).map_err(|_| CryptoError::Secret("seed"))?;
    Ok((cipher, *Nonce::from_slice(nonce)))
}

/// H3: the encryption randomness, from seed, header and encrypted payload.
fn randomness(seed: &[u8; 32], header: &[u8], payload: &[u8]) -> Option<Scalar> {
    let mut wide: Zeroizing<[u8; 64]> = Zeroizing::new([0; 64]);
    let hash = Sha512::new()
        .chain_update(b"VENDUE-V1-H3")
        .chain_update(seed)
        .chain_update(Sha256::digest(header))
        .chain_update(Sha256::digest(payload))
        .finalize();
    wide.copy_from_slice(&hash);
    Scalar::from_wide(&wide)
}

/// H2: the mask of the seed, from the shared pairing value and everything public.
fn mask(shared: &[u8; 576], u: &[u8; 48], header: &[u8], payload: &[u8]) -> Zeroizing<[u8; 32]> {
    let hash = Sha256::new()
        .chain_update(b"VENDUE-V1-H2")
        .chain_update(shared)
        .chain_update(u)
        .chain_update(Sha256::digest(header))
        .chain_update(Sha256::digest(payload))
        .finalize();
    Zeroizing::new(hash.into())
}

fn xor(a: &[u8; 32], b: &[u8; 32]) -> [u8; 32] {
    let mut out = *a;
    out.iter_mut().zip(b).for_each(|(x, y)| *x ^= y);
    out
}

/// Seals `payload` to the round `id` under `seal_key`; `header` must be the same at opening.
pub fn seal(
    id: &RoundId,
    seal_key: &[u8; 48],
    header: &[u8],
    payload: &[u8],
    bid_key: &BidKey,
) -> Result<Sealed, CryptoError> {
    let p = G1::from_bytes(seal_key).ok_or(CryptoError::Point("seal key"))?;
    let seed = bid_key.seed(header, payload)?;
    let (cipher, nonce) = payload_cipher(&seed, header)?;
    let encrypted = cipher
        .encrypt(&nonce, Payload { msg: payload, aad: header })
        .map_err(|_| CryptoError::Secret("payload"))?;
    let r = randomness(&seed, header, &encrypted).ok_or(CryptoError::Secret("seed"))?;
    let u = G1::generator_mul(&r).ok_or(CryptoError::Secret("seed"))?.to_bytes();
    let shared = pairing(&p.mul(&r).ok_or(CryptoError::Secret("seed"))?, &id.point());
    let v = xor(&seed, &mask(&shared, &u, header, &encrypted));
    Ok(Sealed { u, v, payload: encrypted })
}

/// Opens a sealed payload with the round's combined signature; `None` for anything that was not made by [`seal`]
/// for this round and header.
pub fn open(signature: &Combined, header: &[u8], sealed: &Sealed) -> Option<Vec<u8>> {
    let u = G1::from_bytes(&sealed.u)?;
    let shared = pairing(&u, &G2::from_bytes(&signature.bytes)?);
    let seed = Zeroizing::new(xor(&sealed.v, &mask(&shared, &sealed.u, header, &sealed.payload)));
    let r = randomness(&seed, header, &sealed.payload)?;
    if G1::generator_mul(&r)?.to_bytes() != sealed.u {
        return None;
    }
    let (cipher, nonce) = payload_cipher(&seed, header).ok()?;
    cipher.decrypt(&nonce, Payload { msg: &sealed.payload, aad: header }).ok()
}
