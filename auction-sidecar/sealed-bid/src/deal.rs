//! Key sets made by one dealer: for development and tests only, since the dealer could open everything.

use crate::dkg::to_scalar;
use crate::share::SealShare;
use crate::{CryptoError, check_seal_key};
use rand_core::{CryptoRng, RngCore};
use threshold_crypto::poly::Poly;

/// A dealt seal key.
pub struct Deal {
    /// The seal key, compressed G1.
    pub seal_key: [u8; 48],
    /// Each seat's secret share.
    pub shares: Vec<SealShare>,
    /// Each seat's verification key.
    pub verification_keys: Vec<[u8; 48]>,
}

/// Gives `threshold_crypto` the random source in the form that it takes.
struct Adapter<'a, R>(&'a mut R);

impl<R: RngCore> rand_core_05::RngCore for Adapter<'_, R> {
    fn next_u32(&mut self) -> u32 {
        self.0.next_u32()
    }
    fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }
    fn fill_bytes(&mut self, dest: &mut [u8]) {
        self.0.fill_bytes(dest);
    }
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), rand_core_05::Error> {
        self.0.fill_bytes(dest);
        Ok(())
    }
}

/// Deals a seal key to `seats` seats, any `quorum` of which can open.
pub fn deal<R: RngCore + CryptoRng>(seats: u16, quorum: u16, rng: &mut R) -> Result<Deal, CryptoError> {
    if quorum == 0 || quorum > seats {
        return Err(CryptoError::Quorum { seats, quorum });
    }
    let degree = usize::from(quorum - 1);
    let poly = Poly::try_random(degree, &mut Adapter(rng)).map_err(|_| CryptoError::Generation)?;
    let public = threshold_crypto::PublicKeySet::from(poly.commitment());
    let seal_key = public.public_key().to_bytes();
    // threshold_crypto accepts the identity as a key; a zero polynomial must not pass.
    check_seal_key(&seal_key)?;
    let mut shares = Vec::with_capacity(usize::from(seats));
    let mut verification_keys = Vec::new();
    for seat in 0..seats {
        // The polynomial at seat + 1, as threshold_crypto numbers its shares.
        shares.push(SealShare(to_scalar(poly.evaluate(u64::from(seat) + 1))?));
        let key = public.public_key_share(u64::from(seat)).to_bytes();
        check_seal_key(&key)?;
        verification_keys.push(key);
    }
    Ok(Deal { seal_key, shares, verification_keys })
}
