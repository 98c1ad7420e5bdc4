//! The same inputs through `commonware-cryptography`, which has both orientations, give the same bytes.
#![allow(clippy::unwrap_used)] // Helpers of tests fail like tests.

mod support;

use commonware_codec::{Decode, DecodeExt, Encode};
use commonware_cryptography::bls12381::primitives::group::{G1, G2, Private, Scalar, ScalarReadCfg};
use commonware_cryptography::bls12381::primitives::ops;
use commonware_cryptography::bls12381::primitives::variant::{MinPk, MinSig, Variant};
use commonware_math::algebra::{Additive, CryptoGroup};
use commonware_math::poly::{Interpolator, Poly};
use commonware_parallel::Sequential;
use commonware_utils::ordered::Map;
use std::num::NonZeroU32;
use support::vectors::generated;
use support::*;
use vendue_sealed_bid::dkg::quorum;
use vendue_sealed_bid::*;

fn private(bytes: &[u8; 32]) -> Private {
    Private::decode(bytes.to_vec()).unwrap()
}

/// A polynomial of `commonware-math` from its encoding: the number of coefficients, then each.
fn encoded<T: AsRef<[u8]>>(coefficients: &[T]) -> Vec<u8> {
    let mut out = vec![u8::try_from(coefficients.len()).unwrap()];
    coefficients.iter().for_each(|c| out.extend(c.as_ref()));
    out
}

fn range() -> std::ops::RangeInclusive<NonZeroU32> {
    NonZeroU32::MIN..=NonZeroU32::new(100).unwrap()
}

#[test]
fn signatures_and_proofs_agree_with_commonware() {
    for seed in 0u16..8 {
        let share =
            SealShare::from_bytes(&support::vectors::derived(b"d", b"s", &seed.to_be_bytes())).unwrap();
        let key = private(&share.to_bytes());
        let public = ops::compute_public::<MinPk>(&key);
        assert_eq!(public.encode().as_ref(), share.verification_key().unwrap());
        let id = RoundId { round: u64::from(seed), ..ID };
        let signed = ops::sign::<MinPk>(&key, SEAL_DOMAIN, &id.to_bytes());
        assert_eq!(signed.encode().as_ref(), share.sign(&id));
        let ours = G2::decode(share.sign(&id).to_vec()).unwrap();
        assert!(ops::verify::<MinPk>(&public, SEAL_DOMAIN, &id.to_bytes(), &ours).is_ok());

        let vote = VoteKey::generate(&fixed("vote", seed)).unwrap();
        let key = private(&vote.to_bytes());
        assert_eq!(ops::compute_public::<MinSig>(&key).encode().as_ref(), vote.public_key());
        let signed = ops::sign::<MinSig>(&key, VOTE_DOMAIN, b"vote");
        assert_eq!(signed.encode().as_ref(), vote.sign(b"vote"));
        let message = [vote.public_key().as_slice(), b"context"].concat();
        let proof = ops::sign::<MinSig>(&key, POSSESSION_DOMAIN, &message);
        assert_eq!(proof.encode().as_ref(), vote.prove(b"context"));
    }
}

#[test]
fn aggregates_agree_with_commonware() {
    let market = Market::new(7);
    let votes: Vec<_> = (0u16..).zip(&market.vote).map(|(seat, key)| (seat, key.sign(b"vote"))).collect();
    let ours = MultiVote::new(7, &votes[..5]).unwrap();
    let mut signature = G1::zero();
    let mut public = G2::zero();
    for (key, (_, vote)) in market.vote.iter().zip(&votes).take(5) {
        signature += &G1::decode(vote.to_vec()).unwrap();
        public += &G2::decode(key.public_key().to_vec()).unwrap();
    }
    assert_eq!(signature.encode().as_ref(), ours.aggregate);
    let hashed = ops::hash::<MinSig>(VOTE_DOMAIN, b"vote");
    assert!(MinSig::verify(&public, &hashed, &signature).is_ok());
    assert_eq!(ours.verify(&vote_key_set(&market.vote), 5, b"vote"), Ok(()));
}

#[test]
fn polynomials_shares_and_combination_agree_with_commonware() {
    for (n, dealers) in [(4u16, vec![0u16, 1, 3]), (7, vec![0, 2, 3, 4, 6])] {
        let (made, shares, polys) = generated(n, &dealers);
        let poly = |c: &Vec<[u8; 32]>| {
            Poly::<Scalar>::decode_cfg(encoded(c), &(range().into(), ScalarReadCfg::RejectZero)).unwrap()
        };
        let mut sum = poly(&polys[0]);
        polys[1..].iter().for_each(|c| sum += &poly(c));
        // The public polynomial is the key set's bytes after the number of seats.
        let public = Poly::<G1>::commit(sum.clone());
        let bytes = made.keys.to_bytes();
        let (points, _) = bytes[2..].as_chunks::<48>();
        let read = Poly::<G1>::decode_cfg(encoded(points), &(range().into(), ())).unwrap();
        assert_eq!(read, public);
        assert_eq!(&public.constant().encode()[..], made.keys.seal_key());
        for (seat, share) in (0u16..n).zip(&shares) {
            let x = Scalar::from_u64(u64::from(seat) + 1);
            assert_eq!(&sum.eval(&x).encode()[..], share.to_bytes().as_slice());
            assert_eq!(&public.eval(&x).encode()[..], made.keys.share_key(seat).unwrap());
            assert_eq!(G1::generator() * &sum.eval(&x), public.eval(&x));
        }
        // Any quorum, combined by the other library from this crate's shares.
        let seats: Vec<u16> = (n - quorum(n)..n).collect();
        let own: Vec<_> = seats.iter().map(|s| &shares[usize::from(*s)]).collect();
        let ours = opens(&made.keys, &own, &seats).unwrap();
        let xs = seats.iter().map(|s| (*s, Scalar::from_u64(u64::from(*s) + 1)));
        let parts: Vec<_> = seats
            .iter()
            .zip(&own)
            .map(|(s, share)| (*s, G2::decode(share.sign(&ID).to_vec()).unwrap()))
            .collect();
        let combined = Interpolator::new(xs).interpolate(&Map::from_iter_dedup(parts), &Sequential).unwrap();
        assert_eq!(combined.encode().as_ref(), ours.to_bytes());
    }
}

#[test]
fn it_refuses_the_same_points_and_secrets() {
    for (what, bytes) in bad_g1() {
        assert!(G1::decode(bytes.to_vec()).is_err(), "{what}");
    }
    for (what, bytes) in bad_g2() {
        assert!(G2::decode(bytes.to_vec()).is_err(), "{what}");
    }
    for (what, bytes) in bad_scalars() {
        assert!(Private::decode(bytes.to_vec()).is_err(), "{what}");
    }
}
