//! Sealing a payload to a round, and opening it with the round's combined signature.
//!
//! KEM of Boneh-Franklin with the Fujisaki-Okamoto transform: a seed fixes the encryption randomness, so opening
//! recomputes it and refuses anything that was changed. The header is bound into key, randomness and mask: a sealed
//! value copied under another seat, round, epoch or market does not open.

use crate::CryptoError;
use crate::raw::{G1, Scalar, generator_mul_public, pairing};
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

/// Header and encrypted payload as they are hashed into randomness and mask.
struct Bound {
    header: [u8; 32],
    payload: [u8; 32],
}

impl Bound {
    fn new(header: &[u8], payload: &[u8]) -> Self {
        Self { header: Sha256::digest(header).into(), payload: Sha256::digest(payload).into() }
    }
}

/// H3: the encryption randomness, from seed, header and encrypted payload.
fn randomness(seed: &[u8; 32], bound: &Bound) -> Option<Scalar> {
    let mut wide: Zeroizing<[u8; 64]> = Zeroizing::new([0; 64]);
    let hash = Sha512::new()
        .chain_update(b"VENDUE-V1-H3")
        .chain_update(seed)
        .chain_update(bound.header)
        .chain_update(bound.payload)
        .finalize();
    wide.copy_from_slice(&hash);
    Scalar::from_wide(&wide)
}

/// H2: the mask of the seed, from the shared pairing value and everything public.
fn mask(shared: &[u8; 576], u: &[u8; 48], bound: &Bound) -> Zeroizing<[u8; 32]> {
    let hash = Sha256::new()
        .chain_update(b"VENDUE-V1-H2")
        .chain_update(shared)
        .chain_update(u)
        .chain_update(bound.header)
        .chain_update(bound.payload)
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
    let bound = Bound::new(header, &encrypted);
    let r = randomness(&seed, &bound).ok_or(CryptoError::Secret("seed"))?;
    let u = G1::generator_mul(&r).ok_or(CryptoError::Secret("seed"))?.to_bytes();
    let shared = pairing(&p.mul(&r).ok_or(CryptoError::Secret("seed"))?, &id.point());
    let v = xor(&seed, &mask(&shared, &u, &bound));
    Ok(Sealed { u, v, payload: encrypted })
}

/// Opens a sealed payload with the round's combined signature; `None` for anything that was not made by [`seal`]
/// for this round and header.
///
/// The point U is not checked on its own: it must be the multiple of the generator that follows from the seed, which
/// no point outside the subgroup is. What is multiplied is public once the round is open.
pub fn open(signature: &Combined, header: &[u8], sealed: &Sealed) -> Option<Vec<u8>> {
    let u = G1::on_curve(&sealed.u)?;
    let bound = Bound::new(header, &sealed.payload);
    let seed = Zeroizing::new(xor(&sealed.v, &mask(&signature.pairing(&u), &sealed.u, &bound)));
    let r = randomness(&seed, &bound)?;
    if !generator_mul_public(&r).equals(&u.to_sum()) {
        return None;
    }
    decrypt(&seed, header, sealed)
}

fn decrypt(seed: &[u8; 32], header: &[u8], sealed: &Sealed) -> Option<Vec<u8>> {
    let (cipher, nonce) = payload_cipher(seed, header).ok()?;
    cipher.decrypt(&nonce, Payload { msg: &sealed.payload, aad: header }).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::G2;
    use crate::share::{SealShare, verify_combined};
    use proptest::prelude::*;

    const ID: RoundId = RoundId { market: [3; 32], epoch: 1, round: 9 };

    /// Opening as it is written down, without tables.
    fn open_plainly(signature: &Combined, header: &[u8], sealed: &Sealed) -> Option<Vec<u8>> {
        let (u, bound) = (G1::from_bytes(&sealed.u)?, Bound::new(header, &sealed.payload));
        let shared = pairing(&u, &G2::from_bytes(&signature.to_bytes())?);
        let seed = xor(&sealed.v, &mask(&shared, &sealed.u, &bound));
        let r = randomness(&seed, &bound)?;
        if G1::generator_mul(&r)?.to_bytes() != sealed.u { None } else { decrypt(&seed, header, sealed) }
    }

    fn mk_sealed(header: &[u8], payload: &[u8]) -> (Combined, Sealed) {
        let key = SealShare::from_bytes(&[7; 32]).unwrap();
        let seal_key = key.verification_key().unwrap();
        let sealed = seal(&ID, &seal_key, header, payload, &BidKey::from_bytes(&[5; 32])).unwrap();
        (verify_combined(&ID, &seal_key, &key.sign(&ID)).unwrap(), sealed)
    }

    #[test]
    fn the_fast_way_opens_what_the_plain_one_does_and_nothing_else() {
        let (combined, good) = mk_sealed(b"header", b"payload");
        assert_eq!(open(&combined, b"header", &good).unwrap(), b"payload");
        let mut cases = vec![good.clone()];
        for bit in (0..48 * 8).step_by(5) {
            let mut bad = good.clone();
            bad.u[bit / 8] ^= 1 << (bit % 8);
            cases.push(bad);
        }
        for at in [0, 9, 31] {
            let mut bad = good.clone();
            bad.v[at] ^= 0x10;
            cases.push(bad);
        }
        for at in 0..good.payload.len() {
            let mut bad = good.clone();
            bad.payload[at] ^= 1;
            cases.push(bad);
        }
        let mut identity = good.clone();
        identity.u = [0; 48];
        identity.u[0] = 0xc0;
        // On the curve and outside the subgroup.
        let outside = (0u8..).map(|x| {
            let mut bytes = [0; 48];
            (bytes[0], bytes[47]) = (0x80, x);
            bytes
        });
        let outside =
            outside.filter(|b| G1::on_curve(b).is_some()).find(|b| G1::from_bytes(b).is_none()).unwrap();
        cases.extend([identity, Sealed { u: outside, ..good.clone() }]);
        for (i, case) in cases.iter().enumerate() {
            let opened = open(&combined, b"header", case);
            assert_eq!(opened, open_plainly(&combined, b"header", case), "case {i}");
            assert_eq!(opened.is_some(), i == 0, "case {i}");
        }
        assert_eq!(open(&combined, b"another", &good), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn the_table_multiplies_like_the_ladder(bytes: [u8; 32]) {
            let mut wide = [0; 64];
            wide.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
            let scalar = Scalar::from_wide(&wide).unwrap_or(Scalar::from_bendian(&[1; 32]).unwrap());
            let table = generator_mul_public(&scalar).to_point().unwrap().to_bytes();
            prop_assert_eq!(table, G1::generator_mul(&scalar).unwrap().to_bytes());
        }
    }
}
