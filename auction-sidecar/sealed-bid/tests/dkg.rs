//! Key generation: honest runs, and dealers and players that are not honest.
#![allow(clippy::unwrap_used)] // Helpers of tests fail like tests.

mod support;

use proptest::prelude::*;
use std::collections::BTreeMap;
use support::*;
use threshold_crypto::ff::Field;
use threshold_crypto::group::{CurveAffine, CurveProjective, EncodedPoint};
use threshold_crypto::pairing::bls12_381::G1Affine;
use vendue_sealed_bid::dkg::{
    Contribution, DealKey, Dealer, DealerSeed, Dealing, DkgError, KeySet, Player, Purpose, Setup, outcome,
    unaccounted, wanted,
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
fn the_outcome_is_a_function_of_the_contributions_and_what_they_want() {
    let market = Market::new(4);
    let setup = market.setup();
    let players = market.players(&setup, &[0, 1, 3], &[]);
    let contributions = market.contributions(&setup, &[0, 1, 3], &players);
    let made = outcome(&setup, &contributions, players[0].dealings()).unwrap();
    assert_eq!(made.dealers, wanted(&setup, &contributions));
    assert_eq!(made.dealers.keys().copied().collect::<Vec<_>>(), [0, 1, 3]);
    // Dealings that nobody wants change nothing; one that is wanted must be there.
    let mut more = players[0].dealings().clone();
    let second = market.dealing(&setup, 2);
    more.insert((2, second.digest()), second);
    assert_eq!(outcome(&setup, &contributions, &more), Ok(made.clone()));
    more.remove(&(3, contributions[&3].commitment));
    assert_eq!(outcome(&setup, &contributions, &more), Err(DkgError::Missing(3)));
    // Another set, another attempt: other keys.
    assert_ne!(market.run(&setup, &[0, 1, 2], None).0.keys, made.keys);
    let again = market.setup_for(Purpose::Key, 1);
    assert_ne!(market.run(&again, &[0, 1, 3], None).0.keys, made.keys);
    let few = outcome(&setup, &market.contributions(&setup, &[0, 1], &players), players[0].dealings());
    assert_eq!(few, Err(DkgError::TooFewDealings { found: 2, needed: 3 }));
}

#[test]
fn values_of_silent_players_are_revealed_up_to_the_number_of_faults() {
    let market = Market::new(7);
    let setup = market.setup();
    let dealers = [0, 1, 2, 3, 4];
    // Seats 2 and 5 get nothing from dealer 0; seat 5 gets nothing from the others either.
    let lost = [(0, 2), (0, 5), (1, 5), (2, 5), (3, 5), (4, 5)];
    let players = market.players(&setup, &dealers, &lost);
    let contributions = market.contributions(&setup, &dealers, &players);
    assert_eq!(contributions[&0].reveals.keys().copied().collect::<Vec<_>>(), [2, 5]);
    let made = outcome(&setup, &contributions, players[0].dealings()).unwrap();
    assert_eq!(made.public, SignerSet::from_seats(7, [5]).unwrap());
    for (seat, mut player) in (0..7).zip(players) {
        if seat == 5 {
            // It knows the commitments from others; its envelopes are still lost to it.
            for dealer in dealers {
                let mut bytes = market.dealing(&setup, dealer).to_bytes();
                let end = bytes.len();
                bytes[end - 2 * 48..end - 48].fill(0);
                let dealing = Dealing::read(&setup, &bytes).unwrap();
                let refused = player.receive(dealing, &market.deal[5]);
                assert_eq!(refused, Err(DkgError::Share { from: dealer, to: 5 }));
            }
        } else if seat == 2 {
            let _ = player.receive(market.dealing(&setup, 0), &market.deal[3]);
        }
        let (seen, share) = player.finish(&contributions, None).unwrap();
        assert_eq!(seen, made);
        assert!(made.keys.fits(seat, &share), "seat {seat}");
    }
    // One more than the faults that are tolerated: the dealer says that it does not deal.
    let dealer = market.dealer(&setup, 0);
    let said = dealer.contribution(vec![[0; 32]; 7], &[1, 2, 3].into()).unwrap();
    assert_eq!((said.commitment, said.reveals.len()), ([0; 32], 0));
    assert_eq!(dealer.contribution(vec![], &[7].into()), Err(DkgError::UnknownSeat(7)));
}

#[test]
fn a_wrong_value_is_not_acknowledged_whatever_others_do() {
    let market = Market::new(4);
    let setup = market.setup();
    let points = market.dealing(&setup, 0).to_bytes()[points_in(&setup)].to_vec();
    let right = values(&market, &setup, 0);
    let taken = |points: &[u8], values: &[[u8; 32]]| {
        let mut player = market.player(&setup, 1);
        let dealing = forge_dealing(&market, &setup, 0, points, values);
        let opened = player.receive(dealing, &market.deal[1]);
        (opened, player.check(&market.deal[1]).unwrap(), player.acks()[0] != [0; 32])
    };
    assert_eq!(taken(&points, &right), (Ok(()), vec![], true), "the forger can do it right");
    let with = |value: [u8; 32]| {
        let mut values = right.clone();
        values[1] = value;
        values
    };
    let mut wrong = right[1];
    wrong[31] ^= 1;
    assert_eq!(taken(&points, &with(wrong)), (Ok(()), vec![0], false));
    assert_eq!(taken(&points, &with(right[2])), (Ok(()), vec![0], false));
    for none in [[0; 32], [0xff; 32]] {
        let refused = Err(DkgError::Share { from: 0, to: 1 });
        assert_eq!(taken(&points, &with(none)), (refused, vec![], false));
    }
    // Values of a polynomial of another degree: one coefficient of the commitment is another.
    let mut other = points.clone();
    other[192..].copy_from_slice(&points[96..192]);
    assert_eq!(taken(&other, &right), (Ok(()), vec![0], false));

    // Two dealers whose errors cancel in a plain sum.
    let mut player = market.player(&setup, 1);
    let shift = |dealer: u16, negative: bool| {
        let mut moved = vectors_scalar(&values(&market, &setup, dealer)[1]);
        let one = threshold_crypto::Fr::one();
        if negative {
            moved.sub_assign(&one)
        } else {
            moved.add_assign(&one)
        }
        let mut values = values(&market, &setup, dealer);
        values[1] = support::vectors::scalar_bytes(moved);
        let points = market.dealing(&setup, dealer).to_bytes()[points_in(&setup)].to_vec();
        forge_dealing(&market, &setup, dealer, &points, &values)
    };
    player.receive(shift(0, false), &market.deal[1]).unwrap();
    player.receive(shift(2, true), &market.deal[1]).unwrap();
    player.receive(market.dealing(&setup, 3), &market.deal[1]).unwrap();
    assert_eq!(player.check(&market.deal[1]), Ok(vec![0, 2]));
    let own = market.dealing(&setup, 3).digest();
    assert_eq!(player.acks(), [[0; 32], [0; 32], [0; 32], own]);
}

fn vectors_scalar(bytes: &[u8]) -> threshold_crypto::Fr {
    support::vectors::reduce(bytes)
}

/// A point of the curve that the effective cofactor takes to the identity: r times any point of the curve.
fn torsion() -> G1Affine {
    let mut bytes = <G1Affine as CurveAffine>::Compressed::empty();
    // x = 4 is on the curve, not in the subgroup.
    (bytes.as_mut()[0], bytes.as_mut()[47]) = (0x80, 4);
    let point = bytes.into_affine_unchecked().unwrap();
    let order =
        [0xffff_ffff_0000_0001u64, 0x53bd_a402_fffe_5bfe, 0x3339_d808_09a1_d805, 0x73ed_a753_299d_7d48];
    let out = point.mul(threshold_crypto::pairing::bls12_381::FrRepr(order)).into_affine();
    assert!(!out.is_zero());
    out
}

#[test]
fn points_off_the_subgroup_are_as_good_as_those_in_it() {
    let market = Market::new(4);
    let setup = market.setup();
    let honest = market.dealing(&setup, 0);
    let mut points = honest.to_bytes()[points_in(&setup)].to_vec();
    for point in points.chunks_mut(96) {
        let mut bytes = <G1Affine as CurveAffine>::Uncompressed::empty();
        bytes.as_mut().copy_from_slice(point);
        let mut moved = bytes.into_affine_unchecked().unwrap().into_projective();
        moved.add_assign_mixed(&torsion());
        point.copy_from_slice(moved.into_affine().into_uncompressed().as_ref());
    }
    let moved = forge_dealing(&market, &setup, 0, &points, &values(&market, &setup, 0));
    assert_ne!(moved.digest(), honest.digest());
    let run = |first: &Dealing| {
        let mut announced: Vec<_> = (0..4).map(|d| (d, market.dealer(&setup, d).digest())).collect();
        announced[0].1 = first.digest();
        let player = |seat| market.player_that_heard(&setup, seat, announced.clone());
        let mut players: Vec<_> = (0..4).map(player).collect();
        for (player, deal) in players.iter_mut().zip(&market.deal) {
            for dealing in [first.clone(), market.dealing(&setup, 1), market.dealing(&setup, 2)] {
                player.receive(dealing, deal).unwrap();
            }
            assert_eq!(player.check(deal), Ok(vec![]));
        }
        let mut contributions = market.contributions(&setup, &[0, 1, 2], &players);
        contributions.get_mut(&0).unwrap().commitment = first.digest();
        // A value that is revealed is judged alike.
        let value = values(&market, &setup, 0)[3];
        contributions.get_mut(&0).unwrap().reveals.insert(3, value);
        let (made, share) = players[3].finish(&contributions, None).unwrap();
        assert_eq!(made.dealers.len(), 3);
        assert!(made.keys.fits(3, &share));
        made.keys
    };
    let keys = run(&moved);
    assert_eq!(keys, run(&honest), "both commit to the same polynomial");
    assert_eq!(check_key_set(keys.seal_key(), keys.share_keys(), 3), Ok(()));

    // An ephemeral key that the cofactor takes to the identity shares a secret with nobody.
    let mut bytes = honest.to_bytes();
    let end = points_in(&setup).end;
    bytes[end..end + 96].copy_from_slice(torsion().into_uncompressed().as_ref());
    let dealing = Dealing::read(&setup, &bytes).unwrap();
    let refused = market.player(&setup, 1).receive(dealing, &market.deal[1]);
    assert_eq!(refused, Err(DkgError::Share { from: 0, to: 1 }));
}

#[test]
fn a_dealer_deals_one_polynomial() {
    let market = Market::new(4);
    let (setup, again) = (market.setup(), market.setup_for(Purpose::Key, 1));
    let mut player = market.player(&setup, 1);
    let dealing = market.dealing(&setup, 0);
    assert_eq!(market.dealing(&setup, 0).to_bytes(), dealing.to_bytes(), "after a restart too");
    player.receive(dealing.clone(), &market.deal[1]).unwrap();
    assert_eq!(player.receive(dealing.clone(), &market.deal[1]), Err(DkgError::Duplicate(0)));
    let other = Dealer::new(&setup, 0, &market.seeds[3]).unwrap().dealing(&market.recipients()).unwrap();
    assert_eq!(player.receive(other, &market.deal[1]), Err(DkgError::Equivocation(0)));
    player.check(&market.deal[1]).unwrap();
    assert_eq!(player.acks()[0], dealing.digest(), "the first stays");
    let foreign = market.dealing(&again, 2);
    assert_eq!(player.receive(foreign, &market.deal[1]), Err(DkgError::Foreign("dealing")));
    let foreign = market.contributions(&again, &[0], &market.players(&again, &[0], &[]))[&0].to_bytes(&again);
    assert_eq!(Contribution::read(&setup, &foreign), Err(DkgError::Foreign("contribution")));
    // A dealer that knows not all deal keys deals to the others.
    let mut some = market.recipients();
    some[1] = None;
    let dealing = market.dealer(&setup, 0).dealing(&some).unwrap();
    let refused = market.player(&setup, 1).receive(dealing.clone(), &market.deal[1]);
    assert_eq!(refused, Err(DkgError::Share { from: 0, to: 1 }));
    assert_eq!(market.player(&setup, 2).receive(dealing, &market.deal[2]), Ok(()));
    assert_eq!(market.dealer(&setup, 0).dealing(&some[..3]).err(), Some(DkgError::Seats(3)));
}

#[test]
fn who_denies_its_acknowledgement_holds_a_dealer_up_once() {
    let market = Market::new(4);
    let setup = market.setup();
    let dealers = [0, 1, 2];
    let players = market.players(&setup, &[0, 1, 2, 3], &[]);
    let mut contributions = market.contributions(&setup, &dealers, &players);
    // Seat 3 told the dealers that it has its values, and says nothing of it when it counts.
    contributions.get_mut(&3).unwrap().acks = vec![[0; 32]; 4];
    let refused = outcome(&setup, &contributions, players[0].dealings());
    assert_eq!(refused, Err(DkgError::TooFewDealings { found: 0, needed: 3 }));
    for dealer in dealers {
        assert_eq!(unaccounted(&setup, &contributions, dealer), [3].into());
        let next = market.dealer(&setup, dealer).contribution(players[0].acks(), &[3].into()).unwrap();
        contributions.insert(dealer, next);
    }
    // With the same dealings the key is made, whether seat 3 is heard or not.
    let (made, share) = players[1].finish(&contributions, None).unwrap();
    assert!(made.keys.fits(1, &share));
    contributions.remove(&3);
    assert_eq!(outcome(&setup, &contributions, players[0].dealings()), Ok(made.clone()));
    assert_eq!(made.public, SignerSet::from_seats(4, [3]).unwrap());
    // A seat that does not contribute, or does not deal, accounts for nobody.
    assert_eq!(unaccounted(&setup, &contributions, 3).len(), 4);
}

#[test]
fn wrong_values_that_cancel_in_a_sum_exclude_their_dealers_and_no_others() {
    let market = Market::new(7);
    let dealers = [0, 1, 2, 3, 4, 5, 6];
    let (lost, first) = ([(0, 2), (0, 5), (1, 5), (2, 5), (3, 5), (6, 2)], market.setup());
    let keys = market.run(&first, &dealers, None).0.keys;
    for setup in [first, market.setup_for(Purpose::Refresh(keys), 0)] {
        let players = market.players(&setup, &dealers, &lost);
        let contributions = market.contributions(&setup, &dealers, &players);
        let counted = |changes: &[(u16, u16, i8)]| -> Vec<u16> {
            let mut changed = contributions.clone();
            for (dealer, player, by) in changes {
                let value = changed.get_mut(dealer).unwrap().reveals.get_mut(player).unwrap();
                let last = value[31].checked_add_signed(*by).expect("no carry with these seeds");
                value[31] = last;
            }
            outcome(&setup, &changed, players[0].dealings()).unwrap().dealers.into_keys().collect()
        };
        assert_eq!(counted(&[]), dealers);
        assert_eq!(counted(&[(0, 2, 1), (0, 5, -1)]), [1, 2, 3, 4, 5, 6]);
        assert_eq!(counted(&[(1, 5, 1), (3, 5, -1)]), [0, 2, 4, 5, 6]);
        assert_eq!(counted(&[(6, 2, -1)]), [0, 1, 2, 3, 4, 5]);
    }
}

#[test]
fn revealed_values_lie_on_the_commitment() {
    let market = Market::new(4);
    let setup = market.setup();
    let players = market.players(&setup, &[0, 1, 2, 3], &[(0, 3)]);
    let contributions = market.contributions(&setup, &[0, 1, 2, 3], &players);
    let with = |value: [u8; 32]| {
        let mut changed = contributions.clone();
        changed.get_mut(&0).unwrap().reveals = [(3, value)].into();
        outcome(&setup, &changed, players[0].dealings()).unwrap().dealers
    };
    let value = contributions[&0].reveals[&3];
    assert_eq!(with(value).len(), 4);
    let mut wrong = value;
    wrong[31] ^= 1;
    for wrong in [wrong, [0; 32], [0xff; 32]] {
        assert_eq!(with(wrong).keys().copied().collect::<Vec<_>>(), [1, 2, 3]);
    }
    // The value of another player does not account for the one that has none.
    let mut changed = contributions.clone();
    changed.get_mut(&0).unwrap().reveals = [(2, values(&market, &setup, 0)[2])].into();
    assert!(!wanted(&setup, &changed).contains_key(&0));
    // An acknowledgement of another commitment is none.
    let mut changed = contributions.clone();
    changed.get_mut(&2).unwrap().acks[1] = [9; 32];
    assert!(!wanted(&setup, &changed).contains_key(&1));
}

#[test]
fn a_player_that_lost_what_it_acknowledged_says_so() {
    let market = Market::new(4);
    let setup = market.setup();
    let players = market.players(&setup, &[0, 1, 2], &[]);
    let contributions = market.contributions(&setup, &[0, 1, 2], &players);
    let mut restarted = market.player(&setup, 2);
    let dealings: Vec<_> = (0..3).map(|dealer| market.dealing(&setup, dealer)).collect();
    assert_eq!(restarted.finish(&contributions, None).err(), Some(DkgError::Missing(0)));
    for dealing in &dealings {
        restarted.receive(dealing.clone(), &market.deal[2]).unwrap();
    }
    // What was not checked does not count.
    assert_eq!(restarted.finish(&contributions, None).err(), Some(DkgError::LostShare(0)));
    restarted.check(&market.deal[2]).unwrap();
    let share = players[2].finish(&contributions, None).unwrap().1;
    assert!(restarted.finish(&contributions, None).unwrap().1.same_as(&share));
}

#[test]
fn setups_differ_when_anything_does() {
    let keys = Market::new(4).generate().0.keys;
    let make = |purpose, session: u8, seats| Setup::new(purpose, &[session; 32], seats).map(|s| s.digest());
    let base = make(Purpose::Key, 1, 4).unwrap();
    for other in
        [make(Purpose::Key, 2, 4), make(Purpose::Key, 1, 5), make(Purpose::Refresh(keys.clone()), 1, 4)]
    {
        assert_ne!(other.unwrap(), base);
    }
    assert_eq!(make(Purpose::Key, 1, 0), Err(DkgError::Seats(0)));
    assert_eq!(make(Purpose::Key, 1, 257), Err(DkgError::Seats(257)));
    assert_eq!(make(Purpose::Refresh(keys), 1, 5), Err(DkgError::Seats(4)));
    let setup = Market::new(4).setup();
    let seed = DealerSeed::from_bytes(&[1; 32]);
    assert_eq!(Dealer::new(&setup, 4, &seed).err(), Some(DkgError::UnknownSeat(4)));
    let deal = DealKey::generate(&[9; 32]).unwrap();
    assert_eq!(Player::new(&setup, 4, &deal).err(), Some(DkgError::UnknownSeat(4)));
}

/// A dealer that deals last knows the others' commitments and wants the key to be one that it knows: it commits to
/// its own constant term less everybody else's. It then knows no polynomial, so it cannot account for all players.
#[test]
fn dealings_that_cancel_each_other_keep_no_share_from_anybody() {
    let market = Market::new(7);
    let setup = market.setup();
    let mut points = market.dealing(&setup, 0).to_bytes()[points_in(&setup)].to_vec();
    for point in points.chunks_mut(96) {
        let mut bytes = <G1Affine as CurveAffine>::Uncompressed::empty();
        bytes.as_mut().copy_from_slice(point);
        let mut negative = bytes.into_affine().unwrap();
        negative.negate();
        point.copy_from_slice(negative.into_uncompressed().as_ref());
    }
    let mut opposite = values(&market, &setup, 0);
    for value in &mut opposite {
        let mut negative = vectors_scalar(value);
        negative.negate();
        *value = support::vectors::scalar_bytes(negative);
    }
    let forged = forge_dealing(&market, &setup, 1, &points, &opposite);
    let mut announced: Vec<_> = (0..7).map(|d| (d, market.dealer(&setup, d).digest())).collect();
    announced[1].1 = forged.digest();
    let player = |seat| market.player_that_heard(&setup, seat, announced.clone());
    let mut players: Vec<_> = (0..7).map(player).collect();
    for (player, deal) in players.iter_mut().zip(&market.deal) {
        player.receive(forged.clone(), deal).unwrap();
        player.receive(market.dealing(&setup, 0), deal).unwrap();
        (2..7).for_each(|dealer| player.receive(market.dealing(&setup, dealer), deal).unwrap());
        assert_eq!(player.check(deal), Ok(vec![]), "each value is right");
    }
    let mut contributions = market.contributions(&setup, &[0, 1, 2, 3, 4, 5, 6], &players);
    contributions.get_mut(&1).unwrap().commitment = forged.digest();
    for (seat, player) in (0u16..).zip(&players) {
        let (made, share) = player.finish(&contributions, None).unwrap();
        assert_eq!(made.dealers.len(), 7);
        assert!(made.keys.fits(seat, &share));
    }
}

#[test]
fn who_commits_after_others_have_dealt_is_not_acknowledged() {
    // Seat 3 has opened its values of all other dealings and takes a polynomial with which its own share would be zero.
    let market = Market::new(4);
    let setup = market.setup();
    let mut constant = threshold_crypto::Fr::zero();
    (0..4).for_each(|dealer| constant.sub_assign(&vectors_scalar(&values(&market, &setup, dealer)[3])));
    let mut points = market.dealing(&setup, 3).to_bytes()[points_in(&setup)].to_vec();
    let mut bytes = <G1Affine as CurveAffine>::Uncompressed::empty();
    bytes.as_mut().copy_from_slice(&points[..96]);
    let mut first = G1Affine::one().mul(constant);
    first.add_assign_mixed(&bytes.into_affine().unwrap());
    points[..96].copy_from_slice(first.into_affine().into_uncompressed().as_ref());
    let moved = |value: [u8; 32]| {
        let mut moved = vectors_scalar(&value);
        moved.add_assign(&constant);
        support::vectors::scalar_bytes(moved)
    };
    let moved: Vec<_> = values(&market, &setup, 3).into_iter().map(moved).collect();
    let late = forge_dealing(&market, &setup, 3, &points, &moved);

    let honest = |dealer| (dealer, market.dealer(&setup, dealer).digest());
    let run = |announced: Option<[u8; 32]>| {
        let announced = (0..3).map(honest).chain(announced.map(|digest| (3, digest)));
        let announced: Vec<_> = announced.collect();
        let player = |seat| market.player_that_heard(&setup, seat, announced.clone());
        let mut players: Vec<_> = (0..4).map(player).collect();
        for (player, deal) in players.iter_mut().zip(&market.deal) {
            assert!(!player.announce(3, late.digest()), "after the own dealing");
            (0..3).for_each(|dealer| player.receive(market.dealing(&setup, dealer), deal).unwrap());
            player.receive(late.clone(), deal).unwrap();
            assert_eq!(player.check(deal), Ok(vec![]), "each value is right");
        }
        let mut contributions = market.contributions(&setup, &[0, 1, 2], &players);
        let own = contributions.get_mut(&3).unwrap();
        own.commitment = late.digest();
        own.acks[3] = late.digest();
        players[0].finish(&contributions, None).map(|(made, _)| made.dealers.into_keys().collect::<Vec<_>>())
    };
    // Neither where it announced nothing in time, nor where it announced something else.
    assert_eq!(run(None), Ok(vec![0, 1, 2]));
    assert_eq!(run(Some(honest(3).1)), Ok(vec![0, 1, 2]));
    // Had all known it before they dealt, it would count; and then it could not have known what cancels them.
    assert_eq!(run(Some(late.digest())), Err(DkgError::Identity("the key of a share")));
}

#[test]
fn a_dealer_that_cancels_the_others_cannot_account_for_all_players() {
    let market = Market::new(4);
    let setup = market.setup();
    let mut points = market.dealing(&setup, 3).to_bytes()[points_in(&setup)].to_vec();
    let mut negative = threshold_crypto::pairing::bls12_381::G1::zero();
    for dealer in 0..3 {
        let mut bytes = <G1Affine as CurveAffine>::Uncompressed::empty();
        bytes.as_mut().copy_from_slice(&market.dealing(&setup, dealer).to_bytes()[35..35 + 96]);
        negative.sub_assign(&bytes.into_affine().unwrap().into_projective());
    }
    points[..96].copy_from_slice(negative.into_affine().into_uncompressed().as_ref());
    let rogue = forge_dealing(&market, &setup, 3, &points, &values(&market, &setup, 3));
    let mut players = market.players(&setup, &[0, 1, 2], &[]);
    for (player, deal) in players.iter_mut().zip(&market.deal) {
        player.receive(rogue.clone(), deal).unwrap();
        assert_eq!(player.check(deal), Ok(vec![3]));
    }
    // Its own acknowledgement may be faked, and one value revealed: two players are not accounted for.
    let mut contributions = market.contributions(&setup, &[0, 1, 2], &players);
    let acks = contributions[&3].acks.clone();
    let reveals = [(2, values(&market, &setup, 3)[2])].into();
    let mut own = Contribution { commitment: rogue.digest(), acks, reveals };
    own.acks[3] = rogue.digest();
    contributions.insert(3, own);
    assert_eq!(unaccounted(&setup, &contributions, 3), [0, 1].into());
    assert_eq!(outcome(&setup, &contributions, players[0].dealings()).unwrap().dealers.len(), 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn any_dealers_with_any_losses_make_a_key_that_any_quorum_opens_with(
        n in 4u16..9,
        order in prop::collection::vec(any::<u64>(), 8),
        silent in prop::collection::vec(any::<prop::sample::Index>(), 8),
    ) {
        let market = Market::new(n);
        let setup = market.setup();
        let by = |keys: &[u64]| -> Vec<u16> {
            let mut seats: Vec<u16> = (0..n).collect();
            seats.sort_by_key(|s| keys[usize::from(*s)]);
            seats
        };
        // Some q to n dealers; of each, up to f seats lose the dealing, not the same ones.
        let dealers: Vec<u16> =
            by(&order).into_iter().take(usize::from(market.q()) + order[0] as usize % 2).collect();
        let silent = &silent;
        let lost: Vec<(u16, u16)> = dealers.iter().flat_map(|dealer| {
            (0..market.f()).map(move |i| (*dealer, silent[usize::from((dealer + i) % 8)].index(usize::from(n)) as u16))
        }).collect();
        let players = market.players(&setup, &dealers, &lost);
        let contributions = market.contributions(&setup, &dealers, &players);
        let all: BTreeMap<_, _> =
            players.iter().flat_map(|p| p.dealings().clone()).collect();
        let made = outcome(&setup, &contributions, &all).unwrap();
        prop_assert_eq!(made.dealers.len(), dealers.len());
        prop_assert_eq!(check_key_set(made.keys.seal_key(), made.keys.share_keys(), market.q()), Ok(()));
        prop_assert!(made.public.len() <= usize::from(market.f()));
        let mut shares = vec![];
        for (seat, mut player) in players.into_iter().enumerate() {
            for dealing in all.values() {
                let _ = player.receive(dealing.clone(), &market.deal[seat]);
            }
            player.check(&market.deal[seat]).unwrap();
            let (seen, share) = player.finish(&contributions, None).unwrap();
            prop_assert_eq!(&seen, &made);
            shares.push(share);
        }
        let mut beacons = vec![];
        for keys in [&order[..], &order.iter().rev().copied().collect::<Vec<_>>()] {
            let seats: Vec<u16> = by(keys).into_iter().take(usize::from(market.q())).collect();
            let own: Vec<_> = seats.iter().map(|s| &shares[usize::from(*s)]).collect();
            beacons.push(opens(&made.keys, &own, &seats).unwrap());
        }
        prop_assert_eq!(&beacons[0], &beacons[1]);
    }
}
