//! Refresh of all shares, and recovery of a lost one.
#![allow(clippy::unwrap_used)] // Helpers of tests fail like tests.

mod support;

use std::sync::Arc;
use support::*;
use vendue_sealed_bid::dkg::{
    Dealing, DkgError, KeySet, Members, Part, Purpose, Recovery, Setup, Split, outcome,
};
use vendue_sealed_bid::*;

#[test]
fn a_refresh_keeps_the_key_and_changes_every_share() {
    for n in [2, 4, 7] {
        let market = Market::new(n);
        let (before, old) = market.generate();
        let setup = market.setup_for(Purpose::Refresh(before.keys.clone()), 0);
        let dealers: Vec<u16> = (0..market.q()).collect();
        let (after, new) = market.run(&setup, &dealers, Some(&old));
        assert_eq!(after.keys.seal_key(), before.keys.seal_key());
        assert_eq!(check_key_set(after.keys.seal_key(), after.keys.share_keys(), market.q()), Ok(()));
        for seat in 0..n {
            let s = usize::from(seat);
            assert!(after.keys.fits(seat, &new[s]) && !after.keys.fits(seat, &old[s]));
        }
        let seats: Vec<u16> = (0..market.q()).collect();
        let all = |shares: &'static str| -> Vec<&SealShare> {
            seats
                .iter()
                .map(|s| if shares == "new" { &new[usize::from(*s)] } else { &old[usize::from(*s)] })
                .collect()
        };
        // Each on its own opens the same rounds: what was sealed before the refresh opens after it.
        assert_eq!(
            opens(&after.keys, &all("new"), &seats).unwrap(),
            opens(&before.keys, &all("old"), &seats).unwrap()
        );
        // Together they do not, and it is the old ones that are named.
        let mut mixed = all("new");
        mixed[0] = &old[0];
        assert_eq!(opens(&after.keys, &mixed, &seats), Err(CryptoError::BadShares(vec![0])));
        // A second refresh goes on from the first.
        let again = market.setup_for(Purpose::Refresh(after.keys.clone()), 0);
        let (third, _) = market.run(&again, &dealers, Some(&new));
        assert_eq!(third.keys.seal_key(), before.keys.seal_key());
        assert_ne!(third.keys, after.keys);
    }
}

#[test]
fn a_new_epoch_has_a_new_key_that_old_shares_do_not_open() {
    let market = Market::new(4);
    let setup = market.setup_in(Purpose::Key, EPOCH + 1, 0);
    let (before, old) = market.generate();
    let (after, new) = market.run(&setup, &[0, 1, 2, 3], None);
    assert_ne!(after.keys.seal_key(), before.keys.seal_key());
    let id = RoundId { epoch: EPOCH + 1, ..ID };
    let sign =
        |shares: &[SealShare]| -> Vec<_> { (0u16..3).zip(shares).map(|(s, k)| (s, k.sign(&id))).collect() };
    let combine = |shares: &[(u16, [u8; 96])]| {
        combine(&id, after.keys.seal_key(), 3, shares, |seat| after.keys.share_key(seat))
    };
    assert!(combine(&sign(&new)).is_ok());
    assert_eq!(combine(&sign(&old)), Err(CryptoError::BadShares(vec![0, 1, 2])));
}

#[test]
fn a_refresh_takes_sharings_of_zero_for_its_own_key_only() {
    let market = Market::new(4);
    let (made, shares) = market.generate();
    let setup = market.setup_for(Purpose::Refresh(made.keys.clone()), 0);
    // The dealing of a new key has one point more, and is of another setup.
    let key = market.setup();
    let dealing = market.dealing(&key, 0);
    assert!(matches!(Dealing::read(&setup, &dealing.to_bytes()), Err(DkgError::Length { .. })));
    let mut player = market.player(&setup, 1);
    assert_eq!(player.receive(dealing.clone(), &market.deal[1]), Err(DkgError::Foreign("dealing")));
    // With the constant point left out, a sharing of something else than zero has no values on what it commits to.
    let mut forged = dealing.to_bytes();
    forged.drain(35..35 + 96);
    forged[1..33].copy_from_slice(&setup.digest());
    let forged = Dealing::read(&setup, &forged).unwrap();
    assert_eq!(player.receive(forged, &market.deal[1]), Err(DkgError::Share { from: 0, to: 1 }));

    let mut players = market.players(&setup, &[0, 1, 2], &[(0, 1)]);
    let contributions = market.contributions(&setup, &[0, 1, 2], &players);
    market.learn(&setup, 0, 1, &mut players[1]);
    let (after, share) = players[1].finish(&contributions, Some(&shares[1])).unwrap();
    assert_eq!(Ok(&after), outcome(&setup, &contributions, players[0].dealings()).as_ref());
    assert!(after.keys.fits(1, &share));
    let wrong = players[1].finish(&contributions, Some(&shares[0])).err();
    assert_eq!(wrong, Some(DkgError::NotOurs("old share")));
    assert!(matches!(players[1].finish(&contributions, None), Err(DkgError::Foreign(_))));
    let first = market.player(&key, 0);
    assert!(matches!(first.finish(&contributions, Some(&shares[0])), Err(DkgError::Foreign(_))));
    // One seat alone has no polynomial to renew.
    let keys = Market::new(1).generate().0.keys;
    assert_eq!(Setup::new(Purpose::Refresh(keys), &MARKET, 1).err(), Some(DkgError::Seats(1)));
}

/// The helpers' messages of a recovery.
struct Messages {
    splits: Vec<Vec<u8>>,
    parts: Vec<Vec<u8>>,
}

fn read_splits(recovery: &Recovery<'_>, bytes: &[Vec<u8>]) -> Vec<Split> {
    bytes.iter().map(|b| recovery.read_split(b).unwrap()).collect()
}

fn help(market: &Market, recovery: &Recovery<'_>, shares: &[SealShare], helpers: &[u16]) -> Messages {
    let at = |h: &u16| usize::from(*h);
    let splits: Vec<_> = helpers
        .iter()
        .map(|h| recovery.split(*h, &shares[at(h)], &market.seeds[at(h)], &market.vote[at(h)]).unwrap())
        .collect();
    let read = read_splits(recovery, &splits);
    let part = |h: &u16| {
        let (deal, seed, vote) = (&market.deal[at(h)], &market.seeds[at(h)], &market.vote[at(h)]);
        recovery.part(*h, &read, deal, seed, vote).unwrap()
    };
    Messages { parts: helpers.iter().map(part).collect(), splits }
}

fn mk(n: u16) -> (Market, Arc<Setup>, KeySet, Vec<SealShare>) {
    let market = Market::new(n);
    let setup = market.setup();
    let (made, shares) = market.generate();
    (market, setup, made.keys, shares)
}

#[test]
fn a_quorum_gives_a_seat_its_share_back() {
    for (n, target, helpers) in [
        (4u16, 2u16, vec![0u16, 1, 3]),
        (4, 0, vec![3, 2, 1]),
        (7, 6, vec![0, 1, 2, 4, 5]),
        (7, 3, vec![6, 4, 0, 2, 1]),
    ] {
        let (market, setup, keys, shares) = mk(n);
        let members = market.members();
        let recovery = Recovery::new(&setup, &members, &keys, 0, target, &helpers).unwrap();
        let said = help(&market, &recovery, &shares, &helpers);
        let splits = read_splits(&recovery, &said.splits);
        let parts: Vec<Part> =
            said.parts.iter().rev().map(|p| recovery.read_part(&splits, p).unwrap()).collect();
        let deal = &market.deal[usize::from(target)];
        let share = recovery.finish(&splits, &parts, deal).unwrap();
        assert!(share.same_as(&shares[usize::from(target)]), "{n} seats, {target}");
        // Nothing that was sent is anybody's share, nor would another seat's key open it.
        for share in &shares {
            let bytes = share.to_bytes();
            let shows = |m: &Vec<u8>| m.windows(32).any(|w| w == bytes.as_slice());
            assert!(!said.splits.iter().chain(&said.parts).any(shows));
        }
        let other = &market.deal[usize::from(helpers[0])];
        assert!(matches!(recovery.finish(&splits, &parts, other), Err(DkgError::Share { .. })));
    }
}

#[test]
fn who_helps_is_fixed_and_each_helper_counts_once() {
    let (market, setup, keys, shares) = mk(4);
    let members = market.members();
    let make =
        |target, helpers: &[u16]| Recovery::new(&setup, &members, &keys, 0, target, helpers).map(|_| ());
    assert_eq!(make(2, &[0, 1]), Err(DkgError::TooFewDealings { found: 2, needed: 3 }));
    assert_eq!(make(2, &[0, 1, 1]), Err(DkgError::Duplicate(1)));
    assert_eq!(make(2, &[0, 1, 2]), Err(DkgError::Duplicate(2)));
    assert_eq!(make(2, &[0, 1, 4]), Err(DkgError::UnknownSeat(4)));
    assert_eq!(make(4, &[0, 1, 2]), Err(DkgError::UnknownSeat(4)));
    let (seven, wide, wide_keys, _) = mk(7);
    let wide_members = seven.members();
    let too_many = Recovery::new(&wide, &wide_members, &wide_keys, 0, 0, &[1, 2, 3, 4, 5, 6]);
    assert_eq!(too_many.err(), Some(DkgError::Seats(6)));
    let other_keys = Recovery::new(&setup, &members, &wide_keys, 0, 2, &[0, 1, 3]);
    assert_eq!(other_keys.err(), Some(DkgError::Seats(3)));
    let other_members = Recovery::new(&setup, &wide_members, &keys, 0, 2, &[0, 1, 3]);
    assert_eq!(other_members.err(), Some(DkgError::Seats(7)));

    let recovery = Recovery::new(&setup, &members, &keys, 0, 2, &[0, 1, 3]).unwrap();
    let outsider = recovery.split(2, &shares[2], &market.seeds[2], &market.vote[2]);
    assert_eq!(outsider, Err(DkgError::UnknownSeat(2)));
    let foreign = recovery.split(0, &shares[1], &market.seeds[0], &market.vote[0]);
    assert_eq!(foreign, Err(DkgError::NotOurs("share")));
    let said = help(&market, &recovery, &shares, &[0, 1, 3]);
    let splits = read_splits(&recovery, &said.splits);
    let one = |i: usize| recovery.read_part(&splits, &said.parts[i]).unwrap();
    let deal = &market.deal[2];
    assert_eq!(
        recovery.finish(&splits, &[one(0), one(1)], deal).err(),
        Some(DkgError::TooFewDealings { found: 2, needed: 3 })
    );
    assert_eq!(recovery.finish(&splits, &[one(0), one(1), one(1)], deal).err(), Some(DkgError::Duplicate(1)));
    let few = read_splits(&recovery, &said.splits[..2]);
    assert_eq!(
        recovery.read_part(&few, &said.parts[0]).err(),
        Some(DkgError::TooFewDealings { found: 2, needed: 3 })
    );
    // Messages of another attempt are not taken.
    let again = Recovery::new(&setup, &members, &keys, 1, 2, &[0, 1, 3]).unwrap();
    assert_eq!(again.read_split(&said.splits[0]).err(), Some(DkgError::Foreign("split")));
    let other = help(&market, &again, &shares, &[0, 1, 3]);
    assert_eq!(recovery.read_part(&splits, &other.parts[0]).err(), Some(DkgError::Foreign("part")));
    assert_ne!(other.splits[0][35..], said.splits[0][35..], "parts are fresh");
    // A helper that splits twice: a part made from the other split is nobody's fault but that helper's.
    let second = recovery.split(1, &shares[1], &market.seeds[2], &market.vote[1]).unwrap();
    let mixed = read_splits(&recovery, &[said.splits[0].clone(), second, said.splits[2].clone()]);
    let part = recovery.part(0, &mixed, &market.deal[0], &market.seeds[0], &market.vote[0]).unwrap();
    assert_eq!(recovery.read_part(&splits, &part).err(), Some(DkgError::Foreign("part")));
    assert!(recovery.read_part(&mixed, &part).is_ok());
}

#[test]
fn a_helper_that_cheats_is_named() {
    let (market, setup, keys, shares) = mk(4);
    let members = market.members();
    let recovery = Recovery::new(&setup, &members, &keys, 0, 2, &[0, 1, 3]).unwrap();
    let said = help(&market, &recovery, &shares, &[0, 1, 3]);
    for message in [&said.splits[1], &said.parts[1]] {
        let splits = read_splits(&recovery, &said.splits);
        for at in 0..message.len() {
            let mut bad = message.clone();
            bad[at] ^= 1 << (at % 8);
            let refused = if message.len() == said.parts[1].len() {
                recovery.read_part(&splits, &bad).err()
            } else {
                recovery.read_split(&bad).err()
            };
            assert!(refused.is_some(), "byte {at}");
        }
    }
    let resign = |word: u8, seat: u16, rest: &[u8]| {
        let message = [&[word], recovery.digest().as_slice(), &seat.to_be_bytes(), rest].concat();
        market.sign_dkg(seat, &message)
    };
    // Parts that do not add up: two commitments are one.
    let mut body = said.splits[1][..said.splits[1].len() - 48].to_vec();
    body.copy_within(35..83, 83);
    let bad = [body.as_slice(), &resign(4, 1, &sha(&body))].concat();
    assert_eq!(recovery.read_split(&bad).err(), Some(DkgError::Split(1)));
    // A part that is not the one committed to: the helper that was to get it names who made it.
    let with_envelope = |message: &[u8], at: usize, context: &[u8], to: u16| {
        let key = market.deal[usize::from(to)].public_key().unwrap();
        let mut body = message[..message.len() - 48].to_vec();
        body[at..at + 96].copy_from_slice(&forge_envelope(&key, context, &[7; 32]));
        body
    };
    let context = [recovery.digest().as_slice(), &[0, 1, 0, 3], &[0; 32]].concat();
    let body = with_envelope(&said.splits[1], 35 + 3 * 48 + 2 * 96, &context, 3);
    let bad = [body.as_slice(), &resign(4, 1, &sha(&body))].concat();
    let splits = read_splits(&recovery, &[said.splits[0].clone(), bad, said.splits[2].clone()]);
    let part = recovery.part(3, &splits, &market.deal[3], &market.seeds[3], &market.vote[3]);
    assert_eq!(part, Err(DkgError::Share { from: 1, to: 3 }));
    // A sum that is not that of the parts: the seat names who made it.
    let splits = read_splits(&recovery, &said.splits);
    let context = [recovery.digest().as_slice(), &[0, 1, 0, 2], &said.parts[1][35..67]].concat();
    let body = with_envelope(&said.parts[1], 67, &context, 2);
    let bad = [body.as_slice(), &resign(5, 1, &body[35..])].concat();
    let parts: Vec<_> = [&said.parts[0], &bad, &said.parts[2]]
        .iter()
        .map(|p| recovery.read_part(&splits, p).unwrap())
        .collect();
    let refused = Some(DkgError::Share { from: 1, to: 2 });
    assert_eq!(recovery.finish(&splits, &parts, &market.deal[2]).err(), refused);
}

#[test]
fn members_have_sound_keys_of_their_own() {
    let market = Market::new(4);
    let votes = || vote_key_set(&market.vote);
    let deal = market.deal_keys();
    let base = Members::new(votes(), &deal).unwrap().digest();
    let mut swapped = deal.clone();
    swapped.swap(0, 1);
    assert_ne!(Members::new(votes(), &swapped).unwrap().digest(), base);
    assert_eq!(Members::new(votes(), &deal[..3]).err(), Some(DkgError::Seats(3)));
    let mut twice = deal.clone();
    twice[3] = twice[0];
    assert_eq!(Members::new(votes(), &twice).err(), Some(DkgError::Duplicate(3)));
}

fn sha(bytes: &[u8]) -> [u8; 32] {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).into()
}
