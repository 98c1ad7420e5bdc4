//! The same inputs through `threshold_crypto` and `commonware-cryptography` give the same bytes.
//!
//! `threshold_crypto` has keys in G1 and signatures in G2, as the seal key; its own hash to the curve is not RFC 9380,
//! so signatures are compared on a point that this crate hashed. `commonware-cryptography` has both orientations.
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
use support::vectors::{coefficients, reduce, scalar_bytes};
use support::*;
use threshold_crypto::IntoFr;
use threshold_crypto::ff::Field;
use threshold_crypto::poly::BivarPoly;
use vendue_sealed_bid::dkg::{Purpose, quorum};
use vendue_sealed_bid::*;

/// A key generation of `n` seats by `dealers`, and each dealer's coefficients.
fn generated(n: u16, dealers: &[u16]) -> (dkg::Outcome, Vec<SealShare>, Vec<Vec<[u8; 32]>>) {
    let market = Market::new(n);
    let setup = market.setup();
    let (made, shares) = market.run(&setup, dealers, None);
    let polys = dealers.iter().map(|d| coefficients(&setup, *d, &market.seeds[usize::from(*d)], 0)).collect();
    (made, shares, polys)
}

fn their_poly(coefficients: &[[u8; 32]]) -> threshold_crypto::poly::Poly {
    coefficients.iter().map(|c| reduce(c)).collect::<Vec<_>>().into()
}

#[test]
fn key_generation_agrees_with_threshold_crypto() {
    for (n, dealers) in [(4u16, vec![0u16, 1, 3]), (7, vec![6, 5, 4, 3, 2, 1, 0])] {
        let (made, shares, polys) = generated(n, &dealers);
        let mut sum = threshold_crypto::poly::Poly::zero();
        let mut commitment = threshold_crypto::poly::Poly::zero().commitment();
        for coefficients in &polys {
            let poly = their_poly(coefficients);
            commitment += poly.commitment();
            sum += poly;
        }
        assert_eq!(commitment, sum.commitment());
        let theirs = threshold_crypto::PublicKeySet::from(commitment);
        assert_eq!(theirs.threshold(), usize::from(quorum(n)) - 1);
        assert_eq!(&theirs.public_key().to_bytes(), made.keys.seal_key());
        for (seat, share) in (0u16..n).zip(&shares) {
            let key = theirs.public_key_share(u64::from(seat)).to_bytes();
            assert_eq!(Some(&key), made.keys.share_key(seat));
            assert_eq!(scalar_bytes(sum.evaluate(u64::from(seat) + 1)), *share.to_bytes());
            // A share of a signature on one point.
            let mut secret = reduce(share.to_bytes().as_slice());
            let theirs = threshold_crypto::SecretKeyShare::from_mut(&mut secret);
            let point = hashed_point();
            assert_eq!(theirs.sign_g2(point).to_bytes(), share.sign(&ID));
        }
    }
}

/// The round's point as `threshold_crypto` has it: this crate's share under the secret 1.
fn hashed_point() -> threshold_crypto::pairing::bls12_381::G2Affine {
    use threshold_crypto::group::{CurveAffine, EncodedPoint};
    let mut one = [0; 32];
    one[31] = 1;
    let bytes = SealShare::from_bytes(&one).unwrap().sign(&ID);
    let mut compressed = <threshold_crypto::pairing::bls12_381::G2Affine as CurveAffine>::Compressed::empty();
    compressed.as_mut().copy_from_slice(&bytes);
    compressed.into_affine().unwrap()
}

#[test]
fn combination_agrees_with_threshold_crypto() {
    let (made, shares, polys) = generated(7, &[0, 1, 2, 3, 4, 5, 6]);
    let commitment = polys.iter().map(|c| their_poly(c)).fold(
        threshold_crypto::poly::Poly::zero().commitment(),
        |mut sum, poly| {
            sum += poly.commitment();
            sum
        },
    );
    let theirs = threshold_crypto::PublicKeySet::from(commitment);
    for seats in [[0u16, 1, 2, 3, 4], [2, 3, 4, 5, 6], [1, 0, 6, 5, 3]] {
        let own: Vec<_> = seats.iter().map(|s| &shares[usize::from(*s)]).collect();
        let ours = opens(&made.keys, &own, &seats).unwrap();
        let parts: Vec<_> = seats
            .iter()
            .zip(&own)
            .map(|(s, share)| {
                (u64::from(*s), threshold_crypto::SignatureShare::from_bytes(share.sign(&ID)).unwrap())
            })
            .collect();
        let combined = theirs.combine_signatures(parts.iter().map(|(s, p)| (*s, p))).unwrap();
        assert_eq!(combined.to_bytes(), ours.to_bytes());
        assert!(theirs.public_key().verify_g2(&combined, hashed_point()));
    }
}

/// The classical key generation with a bivariate polynomial, where players hand out rows, makes shares that this crate
/// takes for its own.
#[test]
fn rows_of_a_bivariate_polynomial_make_shares_of_the_same_kind() {
    let (n, q) = (4u16, 3u16);
    let mut random = OldRng(5);
    let polys: Vec<_> = (0..3).map(|_| BivarPoly::random(usize::from(q - 1), &mut random)).collect();
    let commitments: Vec<_> = polys.iter().map(BivarPoly::commitment).collect();
    let mut keys = threshold_crypto::poly::Poly::zero().commitment();
    commitments.iter().for_each(|c| keys += c.row(0u64));
    let keys = threshold_crypto::PublicKeySet::from(keys);
    let share = |seat: u16| {
        // The player's row of each dealer, checked, and its value at 0.
        let m = u64::from(seat) + 1;
        let mut sum = threshold_crypto::Fr::zero();
        for (poly, commitment) in polys.iter().zip(&commitments) {
            let row = poly.row(m);
            assert_eq!(row.commitment(), commitment.row(m));
            sum.add_assign(&row.evaluate(0u64.into_fr()));
        }
        SealShare::from_bytes(&scalar_bytes(sum)).unwrap()
    };
    let shares: Vec<_> = (0..n).map(share).collect();
    let public: Vec<_> = (0..n).map(|seat| keys.public_key_share(u64::from(seat)).to_bytes()).collect();
    let seal_key = keys.public_key().to_bytes();
    assert_eq!(check_key_set(&seal_key, &public, q), Ok(()));
    let signed: Vec<_> = (1..n).map(|seat| (seat, shares[usize::from(seat)].sign(&ID))).collect();
    assert!(combine(&ID, &seal_key, q, &signed, |seat| public.get(usize::from(seat))).is_ok());
}

/// A seeded source in the form that threshold_crypto takes.
struct OldRng(u64);

impl rand_core_05::RngCore for OldRng {
    fn next_u32(&mut self) -> u32 {
        (self.next_u64() >> 32) as u32
    }
    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 27)
    }
    fn fill_bytes(&mut self, dest: &mut [u8]) {
        rand_core_05::impls::fill_bytes_via_next(self, dest);
    }
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), rand_core_05::Error> {
        self.fill_bytes(dest);
        Ok(())
    }
}

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
fn a_refresh_adds_a_polynomial_without_constant_term() {
    let market = Market::new(4);
    let (before, old) = market.generate();
    let setup = market.setup_for(Purpose::Refresh(before.keys.clone()), 0);
    let (_, new) = market.run(&setup, &[0, 1, 2], Some(&old));
    let mut zero = threshold_crypto::poly::Poly::zero();
    for dealer in 0u16..3 {
        let mut all = vec![[0; 32]];
        all.extend(coefficients(&setup, dealer, &market.seeds[usize::from(dealer)], 1));
        zero += their_poly(&all);
    }
    for (seat, (old, new)) in (0u64..).zip(old.iter().zip(&new)) {
        let mut expected = reduce(old.to_bytes().as_slice());
        expected.add_assign(&zero.evaluate(seat + 1));
        assert_eq!(scalar_bytes(expected), *new.to_bytes());
    }
}

/// Both refuse what this crate refuses, but for the identity, which `threshold_crypto` takes as a key.
#[test]
fn others_refuse_the_same_points() {
    for (what, bytes) in bad_g1() {
        let theirs = threshold_crypto::PublicKey::from_bytes(bytes).is_ok();
        assert_eq!(theirs, what == "identity", "threshold_crypto, {what}");
        assert!(G1::decode(bytes.to_vec()).is_err(), "commonware, {what}");
    }
    for (what, bytes) in bad_g2() {
        let theirs = threshold_crypto::Signature::from_bytes(bytes).is_ok();
        assert_eq!(theirs, what == "identity", "threshold_crypto, {what}");
        assert!(G2::decode(bytes.to_vec()).is_err(), "commonware, {what}");
    }
    for (what, bytes) in bad_scalars() {
        assert!(Private::decode(bytes.to_vec()).is_err(), "{what}");
    }
}
