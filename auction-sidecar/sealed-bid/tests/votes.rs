//! Votes with a bitmap, and keys that nobody has proven.
#![allow(clippy::unwrap_used)] // Helpers of tests fail like tests.

mod support;

use support::{EPOCH, MARKET, Market, address, possession, vote_key_set};
use vendue_sealed_bid::*;

fn votes(market: &Market, seats: &[u16], message: &[u8]) -> Vec<(u16, [u8; 48])> {
    seats.iter().map(|seat| (*seat, market.vote[usize::from(*seat)].sign(message))).collect()
}

#[test]
fn a_quorum_of_votes_is_one_signature_and_a_bitmap() {
    for n in [1u16, 4, 8, 9, 16] {
        let market = Market::new(n);
        let keys = vote_key_set(&market.vote);
        let signers: Vec<u16> = (n - market.q()..n).collect();
        let vote = MultiVote::new(n, &votes(&market, &signers, b"AWARD")).unwrap();
        assert_eq!(vote.verify(&keys, market.q(), b"AWARD"), Ok(()));
        assert_eq!(vote.verify(&keys, market.q(), b"AWARd"), Err(CryptoError::Votes));
        let bytes = vote.to_bytes();
        assert_eq!(bytes.len(), usize::from(n).div_ceil(8) + 48);
        assert_eq!(MultiVote::from_bytes(n, &bytes).as_ref(), Ok(&vote));
        let needed = usize::from(market.q());
        if needed > 1 {
            let few = MultiVote::new(n, &votes(&market, &signers[1..], b"AWARD")).unwrap();
            let refused = CryptoError::TooFewVotes { found: needed - 1, needed };
            assert_eq!(few.verify(&keys, market.q(), b"AWARD"), Err(refused));
        }
        // Every other bitmap is another claim.
        for bit in 0..n {
            let mut bad = bytes.clone();
            bad[usize::from(bit / 8)] ^= 1 << (bit % 8);
            let read = MultiVote::from_bytes(n, &bad).unwrap();
            assert!(read.verify(&keys, 1, b"AWARD").is_err(), "{n} seats, bit {bit}");
        }
    }
}

#[test]
fn bitmaps_have_one_encoding() {
    let set = SignerSet::from_seats(10, [9, 0, 3]).unwrap();
    assert_eq!(set.as_bytes(), [0b0000_1001, 0b10]);
    assert_eq!(set.iter().collect::<Vec<_>>(), [0, 3, 9]);
    assert_eq!(set.missing().count(), 7);
    assert_eq!(SignerSet::from_bytes(10, set.as_bytes()), Ok(set));
    for (bitmap, what) in [
        (vec![0b1001], "too short"),
        (vec![0b1001, 0b10, 0], "too long"),
        (vec![0b1001, 0b110], "a seat beyond the last"),
        (vec![], "none"),
    ] {
        assert!(SignerSet::from_bytes(10, &bitmap).is_err(), "{what}");
    }
    assert!(SignerSet::from_seats(10, [10]).is_err());
    assert!(SignerSet::from_seats(10, [1, 1]).is_err());
    assert!(SignerSet::from_seats(10, []).unwrap().is_empty());
    let market = Market::new(4);
    let signed = votes(&market, &[0, 1], b"x");
    assert!(MultiVote::new(4, &[signed[0], signed[0]]).is_err());
    assert!(MultiVote::new(4, &[]).is_err());
    let vote = MultiVote::new(4, &signed).unwrap();
    let other = vote_key_set(&Market::new(5).vote);
    assert!(matches!(vote.verify(&other, 1, b"x"), Err(CryptoError::Signers(_))));
    let bytes = vote.to_bytes();
    for length in 0..bytes.len() {
        assert!(MultiVote::from_bytes(4, &bytes[..length]).is_err(), "{length} bytes");
    }
    assert!(MultiVote::from_bytes(4, &[bytes.as_slice(), &[0]].concat()).is_err());
    // No quorum at all is not a vote of nobody.
    let nobody = MultiVote { signers: SignerSet::from_seats(4, []).unwrap(), ..vote };
    let keys = vote_key_set(&market.vote);
    assert_eq!(nobody.verify(&keys, 0, b"x"), Err(CryptoError::TooFewVotes { found: 0, needed: 0 }));
}

/// A key made as the attacker's own less everybody else's: the sum of all keys is then one that the attacker knows.
fn rogue(attacker: &VoteKey, victims: &[[u8; 96]]) -> [u8; 96] {
    let refs: Vec<&[u8]> = victims.iter().map(|k| k.as_slice()).collect();
    let sum = blst::min_sig::AggregatePublicKey::aggregate_serialized(&refs, true).unwrap();
    let mut negative = sum.to_public_key().to_bytes();
    negative[0] ^= 0x20;
    let own = attacker.public_key();
    let both = blst::min_sig::AggregatePublicKey::aggregate_serialized(&[&own, &negative], true).unwrap();
    both.to_public_key().to_bytes()
}

#[test]
fn a_rogue_key_forges_an_aggregate_and_cannot_be_proven() {
    let market = Market::new(3);
    let victims: Vec<_> = market.vote.iter().map(VoteKey::public_key).collect();
    let attacker = VoteKey::generate(&[66; 32]).unwrap();
    let rogue = rogue(&attacker, &victims);
    // The attack is real: the attacker's signature alone passes for the vote of all four.
    let forged = attacker.sign(b"AWARD to the attacker");
    let all: Vec<&[u8; 96]> = victims.iter().chain([&rogue]).collect();
    assert!(verify_aggregate(&all, b"AWARD to the attacker", &forged));

    // What the attacker can sign proves nothing of the rogue key, so it never gets into a set that may vote.
    let message = [rogue.as_slice(), &possession(3)].concat();
    let secret = blst::min_sig::SecretKey::from_bytes(attacker.to_bytes().as_slice()).unwrap();
    let own = secret.sign(&message, POSSESSION_DOMAIN, &[]).to_bytes();
    let addresses: Vec<_> = (0..4).map(address).collect();
    let mut claims: Vec<_> = (0u16..3)
        .map(|seat| VoteKeyClaim {
            key: victims[usize::from(seat)],
            proof: market.vote[usize::from(seat)].prove(&possession(seat)),
            address: &addresses[usize::from(seat)],
        })
        .collect();
    for proof in [own, attacker.prove(&possession(3)), claims[0].proof] {
        assert_eq!(check_vote_key(&rogue, &proof, &possession(3)), Err(CryptoError::Possession));
        claims.push(VoteKeyClaim { key: rogue, proof, address: &addresses[3] });
        assert_eq!(VoteKeySet::new(&MARKET, EPOCH, &claims).err(), Some(CryptoError::Possession));
        claims.pop();
    }
    let honest = VoteKeyClaim {
        key: attacker.public_key(),
        proof: attacker.prove(&possession(3)),
        address: &addresses[3],
    };
    claims.push(honest);
    let keys = VoteKeySet::new(&MARKET, EPOCH, &claims).unwrap();
    let everybody = MultiVote { signers: SignerSet::from_seats(4, 0..4).unwrap(), aggregate: forged };
    assert_eq!(everybody.verify(&keys, 3, b"AWARD to the attacker"), Err(CryptoError::Votes));
}

#[test]
fn proofs_of_possession_hold_for_one_market_epoch_seat_and_address() {
    let key = VoteKey::generate(&[1; 32]).unwrap();
    let context = PossessionContext { market: MARKET, epoch: EPOCH, seat: 0, address: "seat-0" };
    let proof = key.prove(&context.to_bytes());
    let check = |market: &[u8; 32], epoch, address: &str, proof| {
        let claim = VoteKeyClaim { key: key.public_key(), proof, address };
        VoteKeySet::new(market, epoch, &[claim]).map(|set| set.seats())
    };
    assert_eq!(check(&MARKET, EPOCH, "seat-0", proof), Ok(1));
    for (market, epoch, address) in
        [([9; 32], EPOCH, "seat-0"), (MARKET, EPOCH + 1, "seat-0"), (MARKET, EPOCH, "seat-1")]
    {
        assert_eq!(check(&market, epoch, address, proof), Err(CryptoError::Possession));
    }
    let other_seat = key.prove(&PossessionContext { seat: 1, ..context.clone() }.to_bytes());
    assert_eq!(check(&MARKET, EPOCH, "seat-0", other_seat), Err(CryptoError::Possession));
    // One key at two seats would count twice.
    let second = VoteKeyClaim {
        key: key.public_key(),
        proof: key.prove(&PossessionContext { seat: 1, address: "b", ..context.clone() }.to_bytes()),
        address: "b",
    };
    let first = VoteKeyClaim { key: key.public_key(), proof, address: "seat-0" };
    let refused = VoteKeySet::new(&MARKET, EPOCH, &[first, second]).err();
    assert_eq!(refused, Some(CryptoError::Signers("two seats have one key")));
}

#[test]
fn a_tally_is_what_single_checks_say() {
    let market = Market::new(7);
    let keys = vote_key_set(&market.vote);
    let all: Vec<[u8; 96]> = keys.iter().copied().collect();
    let checked = VoteKeySet::from_checked(&all).unwrap();
    let good = votes(&market, &[0, 1, 2, 4, 5, 6], b"AWARD");
    let plain: Vec<_> = good.iter().map(|(_, vote)| *vote).collect();
    let aggregate = aggregate_votes(&plain).unwrap();
    for keys in [&keys, &checked] {
        assert_eq!(keys.tally(b"AWARD", &good), Ok(aggregate));
        assert!(keys.bad_votes(b"AWARD", &good).is_empty());
        assert!(keys.verify_aggregate(&[0, 1, 2, 4, 5, 6], b"AWARD", &aggregate));
        assert!(!keys.verify_aggregate(&[0, 1, 2, 3, 5, 6], b"AWARD", &aggregate));
        assert!(!keys.verify_aggregate(&[], b"AWARD", &aggregate));
        assert!(!keys.verify_aggregate(&[0, 7], b"AWARD", &aggregate));
    }
    // Any set of bad votes is named exactly: wrong messages, votes of others, no points, an unknown seat.
    for bad in 0u8..64 {
        let mut mixed = good.clone();
        let mut named = vec![];
        for (at, vote) in mixed.iter_mut().enumerate().filter(|(at, _)| bad >> at & 1 == 1) {
            vote.1 = match at % 3 {
                0 => market.vote[usize::from(vote.0)].sign(b"another"),
                1 => good[(at + 1) % 6].1,
                _ => [9; 48],
            };
            named.push(vote.0);
        }
        let single = |(seat, vote): &&(u16, [u8; 48])| !keys.verify_vote(*seat, b"AWARD", vote);
        assert_eq!(mixed.iter().filter(single).map(|(seat, _)| *seat).collect::<Vec<_>>(), named);
        match keys.tally(b"AWARD", &mixed) {
            Ok(sum) => assert_eq!((bad, sum), (0, aggregate)),
            Err(found) => assert_eq!(found, named, "{bad:06b}"),
        }
    }
    assert_eq!(keys.tally(b"AWARD", &[(9, good[0].1)]), Err(vec![9]));
    assert_eq!(keys.tally(b"AWARD", &[]), Err(vec![]));
}

#[test]
fn errors_that_cancel_make_a_sum_that_verifies_and_votes_that_do_not() {
    let market = Market::new(4);
    let keys = vote_key_set(&market.vote);
    let mut swapped = votes(&market, &[0, 1, 2], b"AWARD");
    let first = swapped[0].1;
    (swapped[0].1, swapped[1].1) = (swapped[1].1, first);
    assert!(keys.tally(b"AWARD", &swapped).is_ok(), "the two have signed, together");
    assert_eq!(keys.bad_votes(b"AWARD", &swapped), [0, 1]);
}
