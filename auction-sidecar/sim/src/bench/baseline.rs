//! The scheme of `threshold_crypto` for the same auction: each bid is a ciphertext of its own, for which each seat gives
//! a decryption share.
//!
//! What one seat computes for an auction of n sealed bids: for each ciphertext its validity and the own share; verified,
//! also the shares of f + 1 seats; and the decryption from those. Ciphertexts cost the same, so a few are measured and
//! the time is multiplied. Not counted for it: signatures of messages, agreement, clearing, votes.

use super::{BenchError, Plan, Report, Spread, timed};
use threshold_crypto::ff::Field;
use threshold_crypto::poly::Poly;
use threshold_crypto::{Ciphertext, DecryptionShare, Fr, PublicKeySet, SecretKeySet};

/// Bytes of a bid.
const BID: usize = 96;

/// Milliseconds for one ciphertext.
struct PerCiphertext {
    /// Shares are combined as they come.
    optimistic: f64,
    /// Each share is checked first.
    verified: f64,
}

/// One of the two ways to count.
type Way = fn(&PerCiphertext) -> f64;

fn one(keys: &SecretKeySet, public: &PublicKeySet, sealed: &Ciphertext) -> Result<PerCiphertext, BenchError> {
    let needed = public.threshold() + 1;
    let (valid, own) = timed(|| {
        let valid = sealed.verify();
        let _share = keys.secret_key_share(0).decrypt_share_no_verify(sealed);
        valid
    })?;
    let shares: Vec<(u64, DecryptionShare)> = (0..needed as u64)
        .map(|seat| (seat, keys.secret_key_share(seat).decrypt_share_no_verify(sealed)))
        .collect();
    let verify = |(seat, share): &(u64, DecryptionShare)| {
        public.public_key_share(*seat).verify_decryption_share(share, sealed)
    };
    // A seat has the others' verification keys at hand; making one here is part of `public_key_share`.
    let (_, making) =
        timed(|| shares.iter().map(|(seat, _)| public.public_key_share(*seat)).collect::<Vec<_>>())?;
    let (good, checking) = timed(|| shares.iter().all(verify))?;
    let (opened, combining) = timed(|| public.decrypt(shares.iter().map(|(i, share)| (*i, share)), sealed))?;
    if !valid || !good || opened.is_err() {
        return Err(BenchError::Missing("threshold_crypto refused its own ciphertext"));
    }
    Ok(PerCiphertext { optimistic: own + combining, verified: own + combining + checking - making })
}

pub(super) fn measure(plan: &Plan, report: &mut Report) -> Result<(), BenchError> {
    let f = usize::from(plan.large.saturating_sub(1) / 3);
    // The coefficients matter to nobody here, but their size does.
    let mut coefficient = Fr::one();
    coefficient.double();
    let coefficients = (0..=f).map(|_| {
        for _ in 0..16 {
            coefficient.square();
            coefficient.add_assign(&Fr::one());
        }
        coefficient
    });
    let keys = SecretKeySet::from(Poly::from(coefficients.collect::<Vec<_>>()));
    let public = keys.public_keys();
    let sealed = |i: usize| public.public_key().encrypt([i as u8; BID]);
    let times = (0..plan.ciphertexts.max(1))
        .map(|i| one(&keys, &public, &sealed(i)))
        .collect::<Result<Vec<_>, _>>()?;
    let bids = f64::from(plan.large);
    let ours = report.keys.get("single_auction_ms_n100").copied();
    let ours = ours.ok_or(BenchError::Missing("the round of one auction comes first"))?;
    let ways: [(&str, Way); 2] = [("verified", |t| t.verified), ("optimistic", |t| t.optimistic)];
    for (name, of) in ways {
        let theirs = Spread::of(times.iter().map(of).collect())?.map(|ms| ms * bids);
        report.detail(format!("threshold_crypto ms, {name}, n100_k1"), theirs.median);
        report.spread(&format!("speedup_vs_threshold_crypto_{name}_n100_k1"), theirs.map(|ms| ms / ours));
    }
    Ok(())
}
