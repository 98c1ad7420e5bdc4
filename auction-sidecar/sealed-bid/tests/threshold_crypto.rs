//! The same inputs through `threshold_crypto` give the same bytes.
//!
//! It has keys in G1 and signatures in G2, as the seal key; its own hash to the curve is not RFC 9380, so signatures are
//! compared on a point that this crate hashed.
#![allow(clippy::unwrap_used)] // Helpers of tests fail like tests.

mod support;

use support::vectors::{coefficients, generated, reduce, scalar_bytes};
use support::*;
use threshold_crypto::IntoFr;
use threshold_crypto::ff::Field;
use threshold_crypto::poly::BivarPoly;
use vendue_sealed_bid::dkg::{Purpose, quorum};
use vendue_sealed_bid::*;

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

/// It refuses the same points, but for the identity, which it takes as a key.
#[test]
fn it_refuses_the_same_points_but_the_identity() {
    for (what, bytes) in bad_g1() {
        assert_eq!(threshold_crypto::PublicKey::from_bytes(bytes).is_ok(), what == "identity", "{what}");
    }
    for (what, bytes) in bad_g2() {
        assert_eq!(threshold_crypto::Signature::from_bytes(bytes).is_ok(), what == "identity", "{what}");
    }
}
