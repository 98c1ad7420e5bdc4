//! Shares checked at once, bad ones found by halving, and any quorum that gives one beacon.
#![allow(clippy::unwrap_used)] // Helpers of tests fail like tests.

mod support;

use proptest::prelude::*;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use support::ID;
use vendue_sealed_bid::*;

type Shares = Vec<(u16, [u8; 96])>;

fn mk(n: u16, q: u16) -> (Deal, Shares) {
    let deal = deal(n, q, &mut ChaCha20Rng::seed_from_u64(u64::from(n))).unwrap();
    let shares = (0u16..).zip(&deal.shares).map(|(seat, share)| (seat, share.sign(&ID))).collect();
    (deal, shares)
}

fn key<'d>(deal: &'d Deal) -> impl Fn(u16) -> Option<&'d [u8; 48]> {
    |seat| deal.verification_keys.get(usize::from(seat))
}

/// The sum of two points of G2.
fn plus(a: &[u8; 96], b: &[u8; 96]) -> [u8; 96] {
    let sum = blst::min_pk::AggregateSignature::aggregate_serialized(&[a.as_slice(), b], true).unwrap();
    sum.to_signature().to_bytes()
}

fn minus(a: &[u8; 96], b: &[u8; 96]) -> [u8; 96] {
    let mut negative = *b;
    negative[0] ^= 0x20;
    plus(a, &negative)
}

#[test]
fn bad_shares_are_named_wherever_they_are() {
    for n in [1u16, 2, 3, 7, 8] {
        let (deal, good) = mk(n, 1);
        assert_eq!(bad_shares(&ID, &good, key(&deal)), Vec::<u16>::new(), "{n} seats");
        let wrong = deal.shares[0].sign(&RoundId { round: 9, ..ID });
        for set in 0u32..1 << n {
            let mut shares = good.clone();
            let bad: Vec<u16> = (0..n).filter(|seat| set >> seat & 1 == 1).collect();
            bad.iter().for_each(|seat| shares[usize::from(*seat)].1 = wrong);
            assert_eq!(bad_shares(&ID, &shares, key(&deal)), bad, "{n} seats");
        }
    }
    assert_eq!(bad_shares(&ID, &[], |_| None), Vec::<u16>::new());
}

#[test]
fn errors_that_cancel_in_a_sum_are_named() {
    let (deal, good) = mk(4, 3);
    let error = deal.shares[3].sign(&RoundId { round: 77, ..ID });
    let mut shares = good.clone();
    shares[0].1 = plus(&good[0].1, &error);
    shares[2].1 = minus(&good[2].1, &error);
    assert_eq!(bad_shares(&ID, &shares, key(&deal)), [0, 2]);
    // Errors that cancel in the combination are no harm: the signature is unique, so it is the right one.
    let swapped = [(0, good[1].1), (1, good[0].1), good[2], good[3]];
    assert_eq!(bad_shares(&ID, &swapped, key(&deal)), [0, 1]);
    let seats = |seats: &[usize], from: &Shares| seats.iter().map(|s| from[*s]).collect::<Shares>();
    let whole = combine(&ID, &deal.seal_key, 3, &good, key(&deal)).unwrap();
    let refused = combine(&ID, &deal.seal_key, 3, &seats(&[0, 1, 2], &shares), key(&deal));
    assert_eq!(refused, Err(CryptoError::BadShares(vec![0, 2])));
    // One good share more, and a quorum is found in spite of the bad one.
    shares[2] = good[2];
    assert_eq!(combine(&ID, &deal.seal_key, 3, &shares, key(&deal)), Ok(whole));
}

#[test]
fn shares_without_key_or_point_are_bad_and_repeated_ones_count_once() {
    let (deal, good) = mk(4, 3);
    let mut shares = good.clone();
    shares.push((9, good[0].1));
    shares.push((0, [0xff; 96]));
    assert_eq!(bad_shares(&ID, &shares, key(&deal)), [9]);
    shares[1].1 = [0xff; 96];
    assert_eq!(bad_shares(&ID, &shares, key(&deal)), [1, 9]);
    let none = |_| None;
    assert_eq!(bad_shares(&ID, &good, none), [0, 1, 2, 3]);
    let no_point = [0xc0; 48];
    assert_eq!(bad_shares(&ID, &good[..1], |_| Some(&no_point)), [0]);
    // A share is good for its round only.
    for other in [RoundId { round: 4, ..ID }, RoundId { epoch: 9, ..ID }, RoundId { market: [9; 32], ..ID }] {
        assert_eq!(bad_shares(&other, &good, key(&deal)), [0, 1, 2, 3]);
    }
}

#[test]
fn secrets_compare_by_value() {
    let (deal, _) = mk(4, 3);
    let again = SealShare::from_bytes(&deal.shares[0].to_bytes()).unwrap();
    assert!(again.same_as(&deal.shares[0]) && !again.same_as(&deal.shares[1]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn any_quorum_in_any_order_gives_the_same_beacon(
        (n, q, order) in (1u16..12).prop_flat_map(|n| {
            (Just(n), 1..=n, Just((0..n).collect::<Vec<_>>()).prop_shuffle())
        }),
        bad in any::<prop::sample::Index>(),
    ) {
        let (deal, shares) = mk(n, q);
        let first = combine(&ID, &deal.seal_key, q, &shares, key(&deal)).unwrap();
        let chosen: Shares =
            order.iter().take(usize::from(q)).map(|seat| shares[usize::from(*seat)]).collect();
        prop_assert_eq!(combine(&ID, &deal.seal_key, q, &chosen, key(&deal)), Ok(first.clone()));
        prop_assert!(verify_combined(&ID, &deal.seal_key, &first.to_bytes()).is_some());
        // One bad share among the chosen is named.
        let mut chosen = chosen;
        let at = bad.index(chosen.len());
        chosen[at].1 = deal.shares[usize::from(chosen[at].0)].sign(&RoundId { round: 99, ..ID });
        let named = Err(CryptoError::BadShares(vec![chosen[at].0]));
        prop_assert_eq!(combine(&ID, &deal.seal_key, q, &chosen, key(&deal)), named);
    }
}
