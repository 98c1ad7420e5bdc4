//! Sealing, shares and votes through the public interface, and agreement with threshold_crypto.
#![allow(clippy::unwrap_used)] // Helpers of tests fail like tests.

use proptest::prelude::*;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use vendue_sealed_bid::*;

const ID: RoundId = RoundId { market: [1; 32], epoch: 2, round: 3 };
const HEADER: &[u8] = b"header";

fn mk_deal(n: u16, q: u16) -> Deal {
    deal(n, q, &mut ChaCha20Rng::seed_from_u64(u64::from(n))).unwrap()
}

fn shares_of(deal: &Deal, seats: &[u16], id: &RoundId) -> Vec<(u16, [u8; 96])> {
    seats.iter().map(|s| (*s, deal.shares[usize::from(*s)].sign(id))).collect()
}

fn combine_of(deal: &Deal, q: u16, shares: &[(u16, [u8; 96])]) -> Result<Combined, CryptoError> {
    combine(&ID, &deal.seal_key, q, shares, |seat| deal.verification_keys.get(usize::from(seat)))
}

fn mk_sealed(deal: &Deal) -> Sealed {
    seal(&ID, &deal.seal_key, HEADER, b"two fifty", &BidKey::from_bytes(&[5; 32])).unwrap()
}

#[test]
fn any_quorum_opens_and_gives_the_same_beacon() {
    let deal = mk_deal(4, 3);
    let sealed = mk_sealed(&deal);
    let mut beacons = vec![];
    for seats in [[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3], [3, 1, 0]] {
        let combined = combine_of(&deal, 3, &shares_of(&deal, &seats, &ID)).unwrap();
        assert_eq!(open(&combined, HEADER, &sealed).unwrap(), b"two fifty");
        beacons.push(combined.to_bytes());
    }
    assert!(beacons.windows(2).all(|w| w[0] == w[1]));
}

#[test]
fn less_than_a_quorum_opens_nothing() {
    let deal = mk_deal(4, 3);
    let shares = shares_of(&deal, &[0, 2], &ID);
    assert_eq!(combine_of(&deal, 3, &shares), Err(CryptoError::TooFewShares { found: 2, needed: 3 }));
    // The same seat twice is one share.
    let twice = [shares[0], shares[0], shares[1]];
    assert_eq!(combine_of(&deal, 3, &twice), Err(CryptoError::TooFewShares { found: 2, needed: 3 }));
}

#[test]
fn bad_shares_are_named_and_do_not_stop_a_quorum_of_good_ones() {
    let deal = mk_deal(4, 3);
    let other_round = RoundId { round: 4, ..ID };
    let mut shares = shares_of(&deal, &[0, 1, 2], &ID);
    shares[1].1 = deal.shares[1].sign(&other_round);
    assert_eq!(combine_of(&deal, 3, &shares), Err(CryptoError::BadShares(vec![1])));
    shares[2].1 = [0xff; 96];
    assert_eq!(combine_of(&deal, 3, &shares), Err(CryptoError::BadShares(vec![1, 2])));
    shares[2] = shares_of(&deal, &[2], &ID)[0];
    shares.push(shares_of(&deal, &[3], &ID)[0]);
    assert!(combine_of(&deal, 3, &shares).is_ok());
    // Swapped shares are both wrong, although their sum of errors may look small.
    let mut swapped = shares_of(&deal, &[0, 1, 2], &ID);
    let first = swapped[0].1;
    swapped[0].1 = swapped[1].1;
    swapped[1].1 = first;
    assert_eq!(combine_of(&deal, 3, &swapped), Err(CryptoError::BadShares(vec![0, 1])));
}

#[test]
fn mauled_or_moved_ciphertexts_do_not_open() {
    let deal = mk_deal(4, 3);
    let sealed = mk_sealed(&deal);
    let combined = combine_of(&deal, 3, &shares_of(&deal, &[0, 1, 2], &ID)).unwrap();
    assert!(open(&combined, b"another seat's header", &sealed).is_none());
    for bit in 0..48 * 8 {
        let mut bad = sealed.clone();
        bad.u[bit / 8] ^= 1 << (bit % 8);
        assert!(open(&combined, HEADER, &bad).is_none(), "u bit {bit}");
    }
    for bit in 0..32 * 8 {
        let mut bad = sealed.clone();
        bad.v[bit / 8] ^= 1 << (bit % 8);
        assert!(open(&combined, HEADER, &bad).is_none(), "v bit {bit}");
    }
    for at in 0..sealed.payload.len() {
        let mut bad = sealed.clone();
        bad.payload[at] ^= 1;
        assert!(open(&combined, HEADER, &bad).is_none(), "payload byte {at}");
    }
    let mut short = sealed.clone();
    short.payload.pop();
    assert!(open(&combined, HEADER, &short).is_none());
    // Sealed to another round, epoch or market: this round's signature does not open it.
    for other in [RoundId { round: 4, ..ID }, RoundId { epoch: 9, ..ID }, RoundId { market: [9; 32], ..ID }] {
        let moved = seal(&other, &deal.seal_key, HEADER, b"x", &BidKey::from_bytes(&[5; 32])).unwrap();
        assert!(open(&combined, HEADER, &moved).is_none());
    }
}

#[test]
fn sealing_again_gives_the_same_bytes() {
    let deal = mk_deal(4, 3);
    assert_eq!(mk_sealed(&deal), mk_sealed(&deal));
    let other = seal(&ID, &deal.seal_key, HEADER, b"two sixty", &BidKey::from_bytes(&[5; 32])).unwrap();
    assert_ne!(other.u, mk_sealed(&deal).u);
}

#[test]
fn identity_and_points_off_curve_or_subgroup_are_refused() {
    let mut identity_g1 = [0; 48];
    identity_g1[0] = 0xc0;
    let mut identity_g2 = [0; 96];
    identity_g2[0] = 0xc0;
    assert!(check_seal_key(&identity_g1).is_err());
    assert!(seal(&ID, &identity_g1, HEADER, b"x", &BidKey::from_bytes(&[5; 32])).is_err());
    assert!(verify_combined(&ID, &mk_deal(4, 3).seal_key, &identity_g2).is_none());
    assert!(!verify_share(&ID, &mk_deal(4, 3).verification_keys[0], &identity_g2));
    // x = 4 is on the curve of G1 but not in the subgroup; x = 1 is not on the curve.
    for x in [1u8, 4] {
        let mut point = [0; 48];
        point[0] = 0x80;
        point[47] = x;
        assert!(check_seal_key(&point).is_err(), "{x}");
        assert!(aggregate_votes(&[point]).is_none(), "{x}");
    }
    assert!(aggregate_votes(&[identity_g1]).is_none());
    assert!(check_vote_key(&identity_g2, &identity_g1, b"").is_err());
    assert!(SealShare::from_bytes(&[0; 32]).is_err());
    assert!(SealShare::from_bytes(&[0xff; 32]).is_err());
}

#[test]
fn impossible_quorums_are_refused() {
    let mut rng = ChaCha20Rng::seed_from_u64(1);
    assert!(deal(4, 0, &mut rng).is_err());
    assert!(deal(4, 5, &mut rng).is_err());
    assert!(deal(1, 1, &mut rng).is_ok());
}

#[test]
fn shares_and_keys_agree_with_threshold_crypto() {
    use threshold_crypto::serde_impl::SerdeSecret;
    // The dealer's numbering and keys are those of threshold_crypto: shares read back from it verify there.
    let deal = mk_deal(4, 3);
    for (share, key) in deal.shares.iter().zip(&deal.verification_keys) {
        assert_eq!(&share.verification_key().unwrap(), key);
        let theirs = threshold_crypto::PublicKeyShare::from_bytes(*key).unwrap();
        assert_eq!(&theirs.to_bytes(), key);
        let limbs: Vec<u64> =
            share.to_bytes().rchunks(8).map(|c| u64::from_be_bytes(c.try_into().unwrap())).collect();
        let json = format!("[{},{},{},{}]", limbs[0], limbs[1], limbs[2], limbs[3]);
        let secret: SerdeSecret<threshold_crypto::SecretKey> = serde_json::from_str(&json).unwrap();
        assert_eq!(&secret.public_key().to_bytes(), key);
    }
    // blst's combination of shares equals threshold_crypto's over the same points.
    let shares = shares_of(&deal, &[0, 2, 3], &ID);
    let ours = combine_of(&deal, 3, &shares).unwrap().to_bytes();
    let theirs = shares.iter().map(|(seat, bytes)| {
        (usize::from(*seat), threshold_crypto::SignatureShare::from_bytes(*bytes).unwrap())
    });
    let theirs: Vec<_> = theirs.collect();
    let set = threshold_crypto::SecretKeySet::random(2, &mut OldRng(7)).public_keys();
    let combined = set.combine_signatures(theirs.iter().map(|(i, s)| (*i, s))).unwrap();
    assert_eq!(combined.to_bytes(), ours);
}

/// A seeded source in the form that threshold_crypto takes.
struct OldRng(u64);
impl rand_core_05::RngCore for OldRng {
    fn next_u32(&mut self) -> u32 {
        self.next_u64() as u32
    }
    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 ^ (self.0 >> 29)
    }
    fn fill_bytes(&mut self, dest: &mut [u8]) {
        dest.iter_mut().for_each(|b| *b = self.next_u64() as u8);
    }
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), rand_core_05::Error> {
        self.fill_bytes(dest);
        Ok(())
    }
}

#[test]
fn votes_aggregate_and_bind_message_and_signers() {
    let mut rng = ChaCha20Rng::seed_from_u64(3);
    let keys: Vec<VoteKey> = (0..4)
        .map(|_| {
            let mut seed = [0; 32];
            rng.fill_bytes(&mut seed);
            VoteKey::generate(&seed).unwrap()
        })
        .collect();
    let public: Vec<[u8; 96]> = keys.iter().map(VoteKey::public_key).collect();
    let votes: Vec<[u8; 48]> = keys.iter().map(|k| k.sign(b"LOCK")).collect();
    assert!(verify_vote(&public[0], b"LOCK", &votes[0]));
    assert!(!verify_vote(&public[0], b"OPEN", &votes[0]));
    assert!(!verify_vote(&public[1], b"LOCK", &votes[0]));
    let aggregate = aggregate_votes(&votes[..3]).unwrap();
    let refs: Vec<&[u8; 96]> = public.iter().collect();
    assert!(verify_aggregate(&refs[..3], b"LOCK", &aggregate));
    assert!(!verify_aggregate(&refs, b"LOCK", &aggregate));
    assert!(!verify_aggregate(&refs[1..], b"LOCK", &aggregate));
    assert!(!verify_aggregate(&refs[..3], b"LOCk", &aggregate));
    assert!(!verify_aggregate(&[], b"LOCK", &aggregate));
    assert!(aggregate_votes(&[]).is_none());

    let proof = keys[0].prove(b"context");
    assert_eq!(check_vote_key(&public[0], &proof, b"context"), Ok(()));
    assert_eq!(check_vote_key(&public[0], &proof, b"other"), Err(CryptoError::Possession));
    assert_eq!(check_vote_key(&public[1], &proof, b"context"), Err(CryptoError::Possession));
    // A vote is no proof of possession, even over the same bytes: the domains differ.
    let as_vote = keys[0].sign(&[public[0].as_slice(), b"context"].concat());
    assert_eq!(check_vote_key(&public[0], &as_vote, b"context"), Err(CryptoError::Possession));
    let read = VoteKey::from_bytes(&keys[0].to_bytes()).unwrap();
    assert_eq!(read.public_key(), public[0]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn what_is_sealed_opens_and_random_bytes_do_not(
        payload in prop::collection::vec(any::<u8>(), 0..600),
        header in prop::collection::vec(any::<u8>(), 0..80),
        junk in prop::collection::vec(any::<u8>(), 80..200),
    ) {
        let deal = mk_deal(4, 3);
        let combined = combine_of(&deal, 3, &shares_of(&deal, &[1, 2, 3], &ID)).unwrap();
        let sealed = seal(&ID, &deal.seal_key, &header, &payload, &BidKey::from_bytes(&[5; 32])).unwrap();
        prop_assert_eq!(open(&combined, &header, &sealed), Some(payload));
        let junk = Sealed {
            u: junk[..48].try_into().unwrap(),
            v: junk[48..80].try_into().unwrap(),
            payload: junk[80..].to_vec(),
        };
        prop_assert_eq!(open(&combined, &header, &junk), None);
    }
}

#[test]
fn key_sets_lie_on_one_polynomial_of_the_quorums_degree() {
    for (n, q) in [(1, 1), (2, 2), (4, 3), (7, 5), (16, 11)] {
        let deal = mk_deal(n, q);
        let other = mk_deal(n + 1, q);
        let check = |keys: &[[u8; 48]], q| check_key_set(&deal.seal_key, keys, q);
        assert_eq!(check(&deal.verification_keys, q), Ok(()));
        let degree = q - 1;
        for seat in 0..usize::from(n) {
            let mut keys = deal.verification_keys.clone();
            keys[seat] = other.verification_keys[seat + 1];
            assert_eq!(check(&keys, q), Err(CryptoError::KeySet { degree }), "{n} seats, seat {seat}");
        }
        // Shares that fewer than a quorum could open with, and shares that a quorum could not open with.
        if q < n {
            assert_eq!(check(&deal.verification_keys, q + 1), Err(CryptoError::KeySet { degree: q }));
        }
        if q > 1 {
            let lower = check(&deal.verification_keys, q - 1);
            assert_eq!(lower, Err(CryptoError::KeySet { degree: degree - 1 }));
        }
    }
    let deal = mk_deal(4, 3);
    let keys = &deal.verification_keys;
    assert_eq!(check_key_set(&deal.seal_key, keys, 0), Err(CryptoError::Quorum { seats: 4, quorum: 0 }));
    assert_eq!(check_key_set(&deal.seal_key, keys, 5), Err(CryptoError::Quorum { seats: 4, quorum: 5 }));
}
