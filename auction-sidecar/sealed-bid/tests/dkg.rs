//! Key generation: honest runs, and dealers and players that are not honest.
#![allow(clippy::unwrap_used)] // Helpers of tests fail like tests.

mod support;

use proptest::prelude::*;
use support::*;
use threshold_crypto::ff::Field;
use vendue_sealed_bid::dkg::{
    DealKey, Dealer, DealerSeed, DkgError, KeySet, Log, Player, Purpose, Setup, outcome,
};
use vendue_sealed_bid::*;

#[test]
fn every_seat_gets_its_share_of_a_key_that_nobody_holds() {
    for n in [1, 2, 3, 4, 5, 7, 10] {
        let market = Market::new(n);
        let (made, shares) = market.generate();
        let keys = &made.keys;
        assert_eq!((keys.seats(), keys.quorum()), (n, market.q()));
        assert_eq!(check_key_set(keys.seal_key(), keys.share_keys(), market.q()), Ok(()), "{n} seats");
        assert!((0..n).zip(&shares).all(|(seat, share)| keys.fits(seat, share)));
        assert!(made.public.is_empty());
        let last: Vec<u16> = (n - market.q()..n).collect();
        let signers: Vec<_> = last.iter().map(|s| &shares[usize::from(*s)]).collect();
        opens(keys, &signers, &last).unwrap();
        let fewer = opens(keys, &signers[1..], &last[1..]);
        assert_eq!(
            fewer,
            Err(CryptoError::TooFewShares { found: signers.len() - 1, needed: usize::from(market.q()) })
        );
        assert_eq!(KeySet::from_bytes(&keys.to_bytes()).as_ref(), Ok(keys));
    }
}

#[test]
fn the_outcome_is_a_function_of_the_set_of_logs() {
    let market = Market::new(4);
    let setup = market.setup();
    let in_order = market.run(&setup, &[0, 1, 3], None);
    for order in [[3, 1, 0], [1, 0, 3], [3, 0, 1]] {
        let (made, shares) = market.run(&setup, &order, None);
        assert_eq!(made, in_order.0);
        assert!(shares.iter().zip(&in_order.1).all(|(a, b)| a.same_as(b)));
    }
    // Another set, another attempt: other keys.
    assert_ne!(market.run(&setup, &[0, 1, 2], None).0.keys, in_order.0.keys);
    let again = market.setup_for(Purpose::Key, 1);
    assert_ne!(market.run(&again, &[0, 1, 3], None).0.keys, in_order.0.keys);
}

#[test]
fn a_set_of_logs_has_a_quorum_of_distinct_dealers_of_one_setup() {
    let market = Market::new(4);
    let (setup, again) = (market.setup(), market.setup_for(Purpose::Key, 1));
    let mut players = market.players(&setup);
    let mut log = |d| Log::verify(&setup, &market.log(&setup, d, &mut players, &[])).unwrap();
    assert_eq!(outcome(&setup, &[log(0), log(1)]), Err(DkgError::TooFewDealings { found: 2, needed: 3 }));
    assert_eq!(outcome(&setup, &[log(0), log(1), log(0)]), Err(DkgError::Duplicate(0)));
    let foreign = market.log(&again, 2, &mut market.players(&again), &[]);
    assert_eq!(Log::verify(&setup, &foreign).err(), Some(DkgError::Foreign("log")));
    let foreign = Log::verify(&again, &foreign).unwrap();
    assert_eq!(outcome(&setup, &[log(0), log(1), foreign]), Err(DkgError::Foreign("log")));
}

#[test]
fn shares_of_silent_players_are_revealed_up_to_the_number_of_faults() {
    let market = Market::new(7);
    let setup = market.setup();
    let mut players = market.players(&setup);
    // Dealer 0 hears nothing from seats 2 and 5; others hear nothing from 5 only.
    let mut logs = vec![Log::verify(&setup, &market.log(&setup, 0, &mut players, &[2, 5])).unwrap()];
    for dealer in 1..5 {
        logs.push(Log::verify(&setup, &market.log(&setup, dealer, &mut players, &[5])).unwrap());
    }
    assert_eq!(logs[0].revealed().collect::<Vec<_>>(), [2, 5]);
    let made = outcome(&setup, &logs).unwrap();
    assert_eq!(made.public, SignerSet::from_seats(7, [5]).unwrap());
    for (seat, player) in (0..7).zip(&players) {
        let (seen, share) = player.share(&logs).unwrap();
        assert_eq!(seen, made);
        assert!(made.keys.fits(seat, &share), "seat {seat}");
    }

    // One more than the faults that are tolerated: the dealer makes no log, and a log made by force is refused.
    let mut dealer = market.dealer(&setup, 0);
    for seat in 0..4 {
        let (_, ack) = players[usize::from(seat)].receive(&dealer.dealing(seat).unwrap()).unwrap();
        dealer.acknowledge(seat, &ack).unwrap();
    }
    let refused = DkgError::TooManyReveals { dealer: 0, found: 3, most: 2 };
    assert_eq!(dealer.log(), Err(refused.clone()));
    let points = points_of(&setup, &market.log(&setup, 0, &mut market.players(&setup), &[]));
    let forced = market.forge_log(&setup, 0, &points, &[0, 1, 2, 3], &[[7; 32]; 3]);
    assert_eq!(Log::verify(&setup, &forced).err(), Some(refused));
}

#[test]
fn a_wrong_share_is_refused_by_the_player_and_in_the_log() {
    let market = Market::new(4);
    let setup = market.setup();
    let mut players = market.players(&setup);
    // The dealer signs each: an envelope for another commitment, one with a wrong share, one with no scalar in it.
    let honest = market.dealer(&setup, 0).dealing(1).unwrap();
    let other = Dealer::new(&setup, 0, &market.seeds[2], &market.vote[0]).unwrap().dealing(1).unwrap();
    let points = &honest[37..37 + 144];
    let deal_key = market.deal[1].public_key().unwrap();
    let context = [setup.digest().as_slice(), &[0, 0, 0, 1], &commitment_digest(&setup, 0, points)].concat();
    let right = support::vectors::coefficients(&setup, 0, &market.seeds[0], 0);
    let right = right.iter().rev().fold(threshold_crypto::Fr::zero(), |mut sum, c| {
        sum.mul_assign(&support::vectors::reduce(&[2]));
        sum.add_assign(&support::vectors::reduce(c));
        sum
    });
    let right = support::vectors::scalar_bytes(right);
    let mut wrong = right;
    wrong[31] ^= 1;
    let to_one = |envelope: &[u8]| market.forge_dealing(&setup, 0, 1, points, envelope);
    for envelope in [
        &other[other.len() - 144..other.len() - 48],
        &forge_envelope(&deal_key, &context, &wrong),
        &forge_envelope(&deal_key, &context, &[0; 32]),
        &forge_envelope(&deal_key, &context, &[0xff; 32]),
        &forge_envelope(&market.deal[2].public_key().unwrap(), &context, &right),
    ] {
        assert_eq!(players[1].receive(&to_one(envelope)), Err(DkgError::Share { from: 0, to: 1 }));
    }
    let again = to_one(&forge_envelope(&deal_key, &context, &right));
    assert!(market.player(&setup, 1).receive(&again).is_ok(), "it is the share that was wrong");
    // Nothing was acknowledged: the right one is taken afterwards.
    assert!(players[1].receive(&honest).is_ok());

    // A public share that is not on the polynomial, or no scalar.
    for share in [[7; 32], [0; 32], [0xff; 32]] {
        let log = market.forge_log(&setup, 0, points, &[0, 1, 2], &[share]);
        assert_eq!(Log::verify(&setup, &log).err(), Some(DkgError::Share { from: 0, to: 3 }));
    }
    // The share of another player.
    let log = market.log(&setup, 0, &mut players, &[2]);
    let share: [u8; 32] = log[log.len() - 80..log.len() - 48].try_into().unwrap();
    assert!(Log::verify(&setup, &market.forge_log(&setup, 0, points, &[0, 1, 3], &[share])).is_ok());
    let moved = market.forge_log(&setup, 0, points, &[0, 1, 2], &[share]);
    assert_eq!(Log::verify(&setup, &moved).err(), Some(DkgError::Share { from: 0, to: 3 }));
}

#[test]
fn a_polynomial_of_another_degree_is_refused() {
    let market = Market::new(4);
    let setup = market.setup();
    let mut players = market.players(&setup);
    let points = points_of(&setup, &market.log(&setup, 0, &mut players, &[]));
    let expected = 35 + 3 * 48 + 1 + 48 + 48;
    for other in [&points[..96], &[points.as_slice(), &points[..48]].concat()] {
        let log = market.forge_log(&setup, 0, other, &[0, 1, 2, 3], &[]);
        assert!(Log::verify(&setup, &log).is_err());
        assert_ne!(log.len(), expected);
    }
    // A leading coefficient of zero makes the degree lower: it is an identity point.
    for (what, bad) in bad_g1() {
        for index in 0..3 {
            let mut points = points.clone();
            points[48 * index..48 * (index + 1)].copy_from_slice(&bad);
            let log = market.forge_log(&setup, 0, &points, &[0, 1, 2, 3], &[]);
            let refused = Some(DkgError::Point { what: "commitment", index });
            assert_eq!(Log::verify(&setup, &log).err(), refused, "{what} at {index}");
            assert_eq!(players[1].verify_log(&log).err(), refused, "{what} at {index}");
        }
    }
    // A polynomial of higher degree has values that do not lie on the lower one that is committed to: dealing 0 of a
    // market of seven has degree 4.
    let seven = Market::new(7);
    let wide = seven.setup();
    let higher = seven.log(&wide, 0, &mut seven.players(&wide), &[3]);
    let share: [u8; 32] = higher[higher.len() - 80..higher.len() - 48].try_into().unwrap();
    let cut = &points_of(&wide, &higher)[..144];
    let log = market.forge_log(&setup, 0, cut, &[0, 1, 2], &[share]);
    assert_eq!(Log::verify(&setup, &log).err(), Some(DkgError::Share { from: 0, to: 3 }));
}

#[test]
fn every_changed_bit_length_and_name_in_a_log_is_refused() {
    let market = Market::new(4);
    let setup = market.setup();
    let mut players = market.players(&setup);
    let log = market.log(&setup, 1, &mut players, &[2]);
    assert!(Log::verify(&setup, &log).is_ok());
    assert_eq!(players[0].verify_log(&log).map(|l| l.digest()), Ok(sha(&log)));
    for at in 0..log.len() {
        let mut bad = log.clone();
        bad[at] ^= 1 << (at % 8);
        let refused = Log::verify(&setup, &bad).err();
        assert!(refused.is_some(), "byte {at}");
        // A player that has acknowledged the commitment, and one that has not, see the same.
        assert_eq!(players[0].verify_log(&bad).err(), refused, "byte {at}");
        assert_eq!(players[2].verify_log(&bad).err(), refused, "byte {at}");
    }
    for length in 0..log.len() {
        assert!(Log::verify(&setup, &log[..length]).is_err(), "{length} bytes");
    }
    assert!(Log::verify(&setup, &[log.as_slice(), &[0]].concat()).is_err());
    // Signed by the dealer all the same: unknown dealers and players, a player that did not acknowledge.
    let body = &log[..log.len() - 48];
    let mut unknown = body.to_vec();
    unknown[34] = 4;
    let unknown = Log::verify(&setup, &market.sign_log(&setup, 1, &unknown));
    assert_eq!(unknown.err(), Some(DkgError::UnknownSeat(4)));
    let bitmap = 35 + 144;
    assert_eq!(body[bitmap], 0b1011);
    for (bits, expected) in [
        (0b11011, DkgError::Acks { dealer: 1, reason: CryptoError::Signers("a seat is unknown") }),
        (0b1101, DkgError::Acks { dealer: 1, reason: CryptoError::Votes }),
    ] {
        let mut changed = body.to_vec();
        changed[bitmap] = bits;
        assert_eq!(Log::verify(&setup, &market.sign_log(&setup, 1, &changed)).err(), Some(expected));
    }
    // Signed by another seat than the dealer.
    let signature = market.sign_log(&setup, 1, body);
    assert!(Log::verify(&setup, &signature).is_ok());
    let message = [&[3], setup.digest().as_slice(), &[0, 1], &sha(body)].concat();
    let wrong = [body, &market.sign_dkg(0, &message)].concat();
    let refused = DkgError::Signature { what: "log", seat: 1 };
    assert_eq!(Log::verify(&setup, &wrong).err(), Some(refused));
}

fn sha(bytes: &[u8]) -> [u8; 32] {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).into()
}

#[test]
fn dealings_are_for_one_player_from_one_dealer_who_deals_one_polynomial() {
    let market = Market::new(4);
    let setup = market.setup();
    let mut players = market.players(&setup);
    let dealing = market.dealer(&setup, 0).dealing(1).unwrap();
    assert_eq!(players[2].receive(&dealing), Err(DkgError::Foreign("dealing")));
    for at in 0..dealing.len() {
        let mut bad = dealing.clone();
        bad[at] ^= 1 << (at % 8);
        assert!(players[1].receive(&bad).is_err(), "byte {at}");
    }
    for length in [0, 34, dealing.len() - 1] {
        assert!(matches!(players[1].receive(&dealing[..length]), Err(DkgError::Length { .. })));
    }
    let (dealer, ack) = players[1].receive(&dealing).unwrap();
    assert_eq!(dealer, 0);
    // Again the same, and after a restart too.
    assert_eq!(players[1].receive(&dealing), Ok((0, ack)));
    assert_eq!(market.player(&setup, 1).receive(&dealing), Ok((0, ack)));
    assert_eq!(market.dealer(&setup, 0).dealing(1).unwrap(), dealing);
    // A second polynomial of the same dealer is not acknowledged.
    let second = Dealer::new(&setup, 0, &market.seeds[3], &market.vote[0]).unwrap();
    assert_eq!(players[1].receive(&second.dealing(1).unwrap()), Err(DkgError::Equivocation(0)));
}

#[test]
fn acknowledgements_that_are_taken_together_make_the_same_log() {
    let market = Market::new(7);
    let setup = market.setup();
    let mut one_by_one = Dealer::new(&setup, 0, &market.seeds[0], &market.vote[0]).unwrap();
    let mut together = Dealer::new(&setup, 0, &market.seeds[0], &market.vote[0]).unwrap();
    let mut acks = vec![];
    for seat in 0..6u16 {
        let at = usize::from(seat);
        let mut player = Player::new(&setup, seat, &market.vote[at], &market.deal[at]).unwrap();
        acks.push((seat, player.receive(&one_by_one.dealing(seat).unwrap()).unwrap().1));
    }
    // One of another player, and one that is no point.
    acks[3].1 = acks[4].1;
    acks[5].1 = [1; 48];
    for (seat, ack) in &acks {
        assert_eq!(one_by_one.acknowledge(*seat, ack).is_err(), [3, 5].contains(seat));
    }
    assert_eq!(together.acknowledge_all(&acks), Ok(vec![3, 5]));
    assert_eq!(together.acknowledged(), 4);
    assert_eq!(together.log().is_ok(), one_by_one.log().is_ok());
    assert_eq!(together.acknowledge_all(&[(7, acks[0].1)]), Err(DkgError::UnknownSeat(7)));
    let mut late = Player::new(&setup, 3, &market.vote[3], &market.deal[3]).unwrap();
    let ack = late.receive(&together.dealing(3).unwrap()).unwrap().1;
    one_by_one.acknowledge(3, &ack).unwrap();
    assert_eq!(together.acknowledge_all(&[(3, ack)]), Ok(vec![]));
    assert_eq!(together.log(), one_by_one.log());
}

#[test]
fn acknowledgements_count_for_one_player_dealer_and_setup() {
    let market = Market::new(4);
    let (setup, again) = (market.setup(), market.setup_for(Purpose::Key, 1));
    let mut dealer = market.dealer(&setup, 0);
    let refused = |seat| DkgError::Signature { what: "acknowledgement", seat };
    let (_, ack) = market.player(&setup, 1).receive(&dealer.dealing(1).unwrap()).unwrap();
    assert_eq!(dealer.acknowledge(2, &ack), Err(refused(2)));
    assert_eq!(dealer.acknowledge(4, &ack), Err(DkgError::UnknownSeat(4)));
    let (_, other) = market.player(&setup, 1).receive(&market.dealer(&setup, 2).dealing(1).unwrap()).unwrap();
    assert_eq!(dealer.acknowledge(1, &other), Err(refused(1)));
    let (_, old) = market.player(&again, 1).receive(&market.dealer(&again, 0).dealing(1).unwrap()).unwrap();
    assert_eq!(dealer.acknowledge(1, &old), Err(refused(1)));
    // A vote over the same bytes is none.
    let points = &dealer.dealing(1).unwrap()[37..37 + 144];
    let message = [&[2], setup.digest().as_slice(), &[0, 0], &commitment_digest(&setup, 0, points)].concat();
    assert_eq!(dealer.acknowledge(1, &market.vote[1].sign(&message)), Err(refused(1)));
    assert_eq!(market.sign_dkg(1, &message), ack);
    assert_eq!((dealer.acknowledge(1, &ack), dealer.acknowledge(1, &ack)), (Ok(()), Ok(())));
    assert_eq!(dealer.acknowledged(), 1);
}

#[test]
fn a_player_that_lost_what_it_acknowledged_says_so() {
    let market = Market::new(4);
    let setup = market.setup();
    let mut players = market.players(&setup);
    let logs: Vec<_> =
        (0..3).map(|d| Log::verify(&setup, &market.log(&setup, d, &mut players, &[])).unwrap()).collect();
    let mut restarted = market.player(&setup, 2);
    assert_eq!(restarted.share(&logs).err(), Some(DkgError::LostShare(0)));
    for dealer in 0..3 {
        restarted.receive(&market.dealer(&setup, dealer).dealing(2).unwrap()).unwrap();
    }
    assert!(restarted.share(&logs).unwrap().1.same_as(&players[2].share(&logs).unwrap().1));
}

#[test]
fn setups_take_sound_keys_of_as_many_seats_and_differ_when_anything_does() {
    let market = Market::new(4);
    let votes = || vote_key_set(&market.vote);
    let deal: Vec<_> = market.deal.iter().map(|k| k.public_key().unwrap()).collect();
    let make = |purpose, id: &[u8; 32], epoch, attempt, deal: &[[u8; 48]]| {
        Setup::new(purpose, id, epoch, attempt, votes(), deal).map(|s| s.digest())
    };
    let base = make(Purpose::Key, &MARKET, EPOCH, 0, &deal).unwrap();
    let keys = market.generate().0.keys;
    let mut swapped = deal.clone();
    swapped.swap(0, 1);
    for other in [
        make(Purpose::Key, &[9; 32], EPOCH, 0, &deal),
        make(Purpose::Key, &MARKET, EPOCH + 1, 0, &deal),
        make(Purpose::Key, &MARKET, EPOCH, 1, &deal),
        make(Purpose::Key, &MARKET, EPOCH, 0, &swapped),
        make(Purpose::Refresh(keys), &MARKET, EPOCH, 0, &deal),
    ] {
        assert_ne!(other.unwrap(), base);
    }
    assert_eq!(make(Purpose::Key, &MARKET, EPOCH, 0, &deal[..3]), Err(DkgError::Seats(3)));
    let mut twice = deal.clone();
    twice[3] = twice[0];
    assert_eq!(make(Purpose::Key, &MARKET, EPOCH, 0, &twice), Err(DkgError::Duplicate(3)));
    let other = Market::new(5).generate().0.keys;
    assert_eq!(make(Purpose::Refresh(other), &MARKET, EPOCH, 0, &deal), Err(DkgError::Seats(5)));

    let setup = market.setup();
    let (seed, vote) = (DealerSeed::from_bytes(&[1; 32]), &market.vote[0]);
    assert_eq!(Dealer::new(&setup, 1, &seed, vote).err(), Some(DkgError::NotOurs("vote key")));
    assert_eq!(Dealer::new(&setup, 4, &seed, vote).err(), Some(DkgError::UnknownSeat(4)));
    let foreign = DealKey::generate(&[9; 32]).unwrap();
    assert_eq!(Player::new(&setup, 0, vote, &foreign).err(), Some(DkgError::NotOurs("deal key")));
    assert_eq!(market.dealer(&setup, 0).dealing(4), Err(DkgError::UnknownSeat(4)));
}

/// A dealer that deals last knows the others' commitments and wants the key to be one that it knows: it commits to
/// its own constant term less everybody else's. It then knows no polynomial, so it cannot account for all players.
#[test]
fn a_dealer_that_cancels_the_others_cannot_account_for_all_players() {
    let market = Market::new(4);
    let setup = market.setup();
    let mut players = market.players(&setup);
    let constants: Vec<[u8; 48]> =
        (0..3).map(|d| market.log(&setup, d, &mut players, &[])[35..83].try_into().unwrap()).collect();
    let mut negative = blst::min_pk::AggregatePublicKey::aggregate_serialized(
        &constants.iter().map(|c| c.as_slice()).collect::<Vec<_>>(),
        true,
    )
    .unwrap()
    .to_public_key()
    .to_bytes();
    negative[0] ^= 0x20;
    let mut points = points_of(&setup, &market.log(&setup, 3, &mut players, &[]));
    points[..48].copy_from_slice(&negative);
    // With one faulty seat it has its own acknowledgement only; two honest ones may be faked, the last cannot be.
    let share = [3; 32];
    let log = market.forge_log(&setup, 3, &points, &[0, 1, 3], &[share]);
    assert_eq!(Log::verify(&setup, &log).err(), Some(DkgError::Share { from: 3, to: 2 }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn any_agreed_quorum_with_any_faults_makes_a_key_that_any_quorum_opens_with(
        n in 4u16..9,
        order in prop::collection::vec(any::<u64>(), 8),
        silent in prop::collection::vec(any::<prop::sample::Index>(), 8),
    ) {
        let market = Market::new(n);
        let setup = market.setup();
        let mut players = market.players(&setup);
        let by = |keys: &[u64]| -> Vec<u16> {
            let mut seats: Vec<u16> = (0..n).collect();
            seats.sort_by_key(|s| keys[usize::from(*s)]);
            seats
        };
        // Some q to n dealers; towards each, up to f seats are silent, not the same ones.
        let mut logs: Vec<Log> = vec![];
        for dealer in by(&order).into_iter().take(usize::from(market.q()) + order[0] as usize % 2) {
            let silent: Vec<u16> = (0..market.f())
                .map(|i| silent[usize::from((dealer + i) % 8)].index(usize::from(n)) as u16)
                .collect();
            let log = market.log(&setup, dealer, &mut players, &silent);
            logs.push(Log::verify(&setup, &log).unwrap());
        }
        let made = outcome(&setup, &logs).unwrap();
        prop_assert_eq!(check_key_set(made.keys.seal_key(), made.keys.share_keys(), market.q()), Ok(()));
        prop_assert!(made.public.len() <= usize::from(market.f()));
        let shares: Vec<_> = players.iter().map(|p| p.share(&logs).unwrap().1).collect();
        let mut beacons = vec![];
        for keys in [&order[..], &order.iter().rev().copied().collect::<Vec<_>>()] {
            let seats: Vec<u16> = by(keys).into_iter().take(usize::from(market.q())).collect();
            let own: Vec<_> = seats.iter().map(|s| &shares[usize::from(*s)]).collect();
            beacons.push(opens(&made.keys, &own, &seats).unwrap());
        }
        prop_assert_eq!(&beacons[0], &beacons[1]);
        logs.reverse();
        prop_assert_eq!(outcome(&setup, &logs), Ok(made));
    }
}
