//! What no public interface takes: every wrong encoding, for every type, and every wrong domain.
#![allow(clippy::unwrap_used)] // Helpers of tests fail like tests.

mod support;

use sha2::{Digest, Sha256};
use support::*;
use vendue_sealed_bid::dkg::{
    Contribution, DealKey, Dealer, DealerSeed, Dealing, DkgError, KeySet, Members, Player, RecipientKey,
    Recovery, Setup,
};
use vendue_sealed_bid::*;

const MESSAGE: &[u8] = b"message";

/// Does not compile when a type with a secret can be printed or copied about.
macro_rules! neither_printed_nor_cloned {
    ($($secret:ty),*) => {$(const _: fn() = || {
        trait Never<Which> {
            fn check() {}
        }
        struct Printed;
        struct Cloned;
        impl<T: ?Sized> Never<()> for T {}
        impl<T: ?Sized + std::fmt::Debug> Never<Printed> for T {}
        impl<T: Clone> Never<Cloned> for T {}
        // Ambiguous as soon as there is a second implementation.
        let _ = <$secret as Never<_>>::check;
    };)*};
}
neither_printed_nor_cloned!(SealShare, VoteKey, BidKey, DealKey, DealerSeed, Dealer, Player);

#[test]
fn the_refused_points_are_wrong_in_the_way_they_say() {
    use blst::BLST_ERROR::*;
    for (what, bytes) in bad_g1() {
        let read = blst::min_sig::Signature::uncompress(&bytes);
        match what {
            "off the curve" => assert_eq!(read.err(), Some(BLST_POINT_NOT_ON_CURVE)),
            "off the subgroup" => assert!(!read.unwrap().subgroup_check()),
            "identity" => assert!(read.is_ok()),
            _ => assert_eq!(read.err(), Some(BLST_BAD_ENCODING), "{what}"),
        }
    }
    for (what, bytes) in bad_g2() {
        let read = blst::min_pk::Signature::uncompress(&bytes);
        match what {
            "off the curve" => assert_eq!(read.err(), Some(BLST_POINT_NOT_ON_CURVE)),
            "off the subgroup" => assert!(!read.unwrap().subgroup_check()),
            "identity" => assert!(read.is_ok()),
            _ => assert_eq!(read.err(), Some(BLST_BAD_ENCODING), "{what}"),
        }
    }
}

/// The interface takes the good value and none of the bad ones.
fn refuses<const N: usize>(
    bad: &[(&'static str, [u8; N])],
    interface: &str,
    good: [u8; N],
    takes: impl Fn(&[u8; N]) -> bool,
) {
    assert!(takes(&good), "{interface} takes a good value");
    for (what, bytes) in bad {
        assert!(!takes(bytes), "{interface}: {what}");
    }
}

fn at(bytes: &[u8], from: usize) -> [u8; 48] {
    bytes[from..from + 48].try_into().unwrap()
}

/// The bytes with a point put in.
fn with(bytes: &[u8], from: usize, point: &[u8; 48]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    out[from..from + 48].copy_from_slice(point);
    out
}

#[test]
fn keys_of_seals_and_sealed_values() {
    let bad = bad_g1();
    let (made, shares) = Market::new(4).generate();
    let (keys, bid) = (&made.keys, BidKey::from_bytes(&[5; 32]));
    let combined = opens(keys, &[&shares[0], &shares[1], &shares[2]], &[0, 1, 2]).unwrap();
    let (seal_key, share_key) = (*keys.seal_key(), keys.share_keys()[2]);
    refuses(&bad, "seal key", seal_key, |p| check_seal_key(p).is_ok());
    refuses(&bad, "seal key to seal to", seal_key, |p| seal(&ID, p, b"h", b"x", &bid).is_ok());
    refuses(&bad, "seal key to verify with", seal_key, |p| {
        verify_combined(&ID, p, &combined.to_bytes()).is_some()
    });
    refuses(&bad, "share key", share_key, |p| verify_share(&ID, p, &shares[2].sign(&ID)));
    refuses(&bad, "seal key of a set", seal_key, |p| check_key_set(p, keys.share_keys(), 3).is_ok());
    refuses(&bad, "share key of a set", share_key, |p| {
        let mut all = keys.share_keys().to_vec();
        all[2] = *p;
        check_key_set(keys.seal_key(), &all, 3).is_ok()
    });
    let bytes = keys.to_bytes();
    refuses(&bad, "public polynomial", at(&bytes, 50), |p| KeySet::from_bytes(&with(&bytes, 50, p)).is_ok());
    let sealed = seal(&ID, &seal_key, b"h", b"bid", &bid).unwrap();
    refuses(&bad, "key encapsulation", sealed.u, |p| {
        open(&combined, b"h", &Sealed { u: *p, ..sealed.clone() }).is_some()
    });
}

#[test]
fn votes() {
    let bad = bad_g1();
    let market = Market::new(4);
    let (vote, keys) = (&market.vote[0], vote_key_set(&market.vote));
    let (key, signed) = (vote.public_key(), vote.sign(MESSAGE));
    refuses(&bad, "vote", signed, |p| verify_vote(&key, MESSAGE, p));
    refuses(&bad, "vote to aggregate", signed, |p| aggregate_votes(&[*p]).is_some());
    refuses(&bad, "aggregate", signed, |p| verify_aggregate(&[&key], MESSAGE, p));
    refuses(&bad, "aggregate with bitmap", signed, |p| {
        let signers = SignerSet::from_seats(4, [0]).unwrap();
        MultiVote { signers, aggregate: *p }.verify(&keys, 1, MESSAGE).is_ok()
    });
    refuses(&bad, "proof", vote.prove(b"c"), |p| check_vote_key(&key, p, b"c").is_ok());

    let bad = bad_g2();
    let proof = vote.prove(&possession(0));
    refuses(&bad, "vote key", key, |p| verify_vote(p, MESSAGE, &signed));
    refuses(&bad, "vote key to prove", key, |p| check_vote_key(p, &proof, &possession(0)).is_ok());
    refuses(&bad, "vote key of an aggregate", key, |p| verify_aggregate(&[p], MESSAGE, &signed));
    refuses(&bad, "vote key of a set", key, |p| {
        let claim = VoteKeyClaim { key: *p, proof, address: "seat-0" };
        VoteKeySet::new(&MARKET, EPOCH, &[claim]).is_ok()
    });
}

#[test]
fn shares() {
    let bad = bad_g2();
    let (made, shares) = Market::new(4).generate();
    let keys = &made.keys;
    let combined = opens(keys, &[&shares[0], &shares[1], &shares[2]], &[0, 1, 2]).unwrap();
    let good = shares[0].sign(&ID);
    let one = |share: &[u8; 96]| {
        let shares = [(0, *share), (1, shares[1].sign(&ID)), (2, shares[2].sign(&ID))];
        combine(&ID, keys.seal_key(), 3, &shares, |seat| keys.share_key(seat))
    };
    refuses(&bad, "share", good, |p| verify_share(&ID, &keys.share_keys()[0], p));
    refuses(&bad, "share among others", good, |p| {
        bad_shares(&ID, &[(0, *p)], |seat| keys.share_key(seat)).is_empty()
    });
    refuses(&bad, "share to combine", good, |p| one(p).is_ok());
    refuses(&bad, "combined", combined.to_bytes(), |p| verify_combined(&ID, keys.seal_key(), p).is_some());
    for (what, bytes) in bad {
        assert_eq!(one(&bytes), Err(CryptoError::BadShares(vec![0])), "{what}");
    }
}

#[test]
fn messages_of_key_generation() {
    let bad = bad_g1();
    let market = Market::new(4);
    let setup = market.setup();
    let deal = market.deal_keys();
    refuses(&bad, "deal key", deal[3], |p| {
        let mut keys = deal.clone();
        keys[3] = *p;
        Members::new(vote_key_set(&market.vote), &keys).is_ok()
    });
    refuses(&bad, "recipient key", deal[3], |p| RecipientKey::from_bytes(p).is_ok());
    let dealing = market.dealing(&setup, 0).to_bytes();
    for place in [35 + 96, points_in(&setup).end] {
        let good: [u8; 96] = dealing[place..place + 96].try_into().unwrap();
        refuses(&bad_curve_points(), "point of a dealing", good, |p| {
            let mut bytes = dealing.clone();
            bytes[place..place + 96].copy_from_slice(p);
            Dealing::read(&setup, &bytes).is_ok()
        });
    }
    let (members, (made, shares)) = (market.members(), market.generate());
    let recovery = Recovery::new(&setup, &members, &made.keys, 0, 3, &[0, 1, 2]).unwrap();
    let split = recovery.split(0, &shares[0], &market.seeds[0], &market.vote[0]).unwrap();
    let place = split.len() - 48;
    refuses(&bad, "signature of a split", at(&split, place), |p| {
        recovery.read_split(&with(&split, place, p)).is_ok()
    });
}

#[test]
fn secret_scalars() {
    let good = [1; 32];
    let bad = bad_scalars();
    refuses(&bad, "seal share", good, |s| SealShare::from_bytes(s).is_ok());
    refuses(&bad, "vote key", good, |s| VoteKey::from_bytes(s).is_ok());
    refuses(&bad, "deal key", good, |s| DealKey::from_bytes(s).is_ok());
    let (share, vote, deal) = (
        SealShare::from_bytes(&good).unwrap(),
        VoteKey::from_bytes(&good).unwrap(),
        DealKey::from_bytes(&good).unwrap(),
    );
    assert_eq!((*share.to_bytes(), *vote.to_bytes(), *deal.to_bytes()), (good, good, good));
    assert!(
        vote.same_as(&VoteKey::from_bytes(&good).unwrap())
            && !vote.same_as(&VoteKey::generate(&good).unwrap())
    );
    assert!(
        deal.same_as(&DealKey::from_bytes(&good).unwrap())
            && !deal.same_as(&DealKey::generate(&good).unwrap())
    );
}

#[test]
fn a_signature_of_one_domain_is_none_of_another() {
    let market = Market::new(4);
    let vote = &market.vote[0];
    let key = vote.public_key();
    let secret = blst::min_sig::SecretKey::from_bytes(vote.to_bytes().as_slice()).unwrap();
    let sign = |message: &[u8], domain: &[u8]| secret.sign(message, domain, &[]).to_bytes();
    let g1 = [VOTE_DOMAIN, POSSESSION_DOMAIN, DKG_DOMAIN, b"BLS_SIG_BLS12381G1_XMD:SHA-256_SSWU_RO_NUL_"];
    let proof = [key.as_slice(), &possession(0)].concat();
    let (setup, members) = (market.setup(), market.members());
    let (made, shares) = market.generate();
    let recovery = Recovery::new(&setup, &members, &made.keys, 0, 3, &[0, 1, 2]).unwrap();
    let split = recovery.split(0, &shares[0], &market.seeds[0], vote).unwrap();
    let body = &split[..split.len() - 48];
    let said = [&[4], recovery.digest().as_slice(), &[0, 0], Sha256::digest(body).as_slice()].concat();
    for domain in g1 {
        assert_eq!(verify_vote(&key, MESSAGE, &sign(MESSAGE, domain)), domain == VOTE_DOMAIN);
        assert_eq!(
            check_vote_key(&key, &sign(&proof, domain), &possession(0)).is_ok(),
            domain == POSSESSION_DOMAIN
        );
        let taken = recovery.read_split(&[body, &sign(&said, domain)].concat()).is_ok();
        assert_eq!(taken, domain == DKG_DOMAIN);
    }
    // A share of a round is signed in the domain of seals only.
    let share = SealShare::from_bytes(&[1; 32]).unwrap();
    let secret = blst::min_pk::SecretKey::from_bytes(&[1; 32]).unwrap();
    for domain in [SEAL_DOMAIN, b"BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_NUL_"] {
        let signed = secret.sign(&ID.to_bytes(), domain, &[]).to_bytes();
        let good = verify_share(&ID, &share.verification_key().unwrap(), &signed);
        assert_eq!((good, signed == share.sign(&ID)), (domain == SEAL_DOMAIN, domain == SEAL_DOMAIN));
    }
}

#[test]
fn lengths() {
    let market = Market::new(4);
    let (setup, (made, shares)) = (market.setup(), market.generate());
    let bytes = made.keys.to_bytes();
    for length in 0..bytes.len() {
        assert!(
            matches!(KeySet::from_bytes(&bytes[..length]), Err(DkgError::Length { .. })),
            "{length} bytes"
        );
    }
    assert!(KeySet::from_bytes(&[bytes.as_slice(), &[0]].concat()).is_err());
    for seats in [0u16, 257] {
        let points = usize::from(seats - seats.saturating_sub(1) / 3);
        let large = [seats.to_be_bytes().as_slice(), &bytes[2..50].repeat(points)].concat();
        assert_eq!(KeySet::from_bytes(&large).err(), Some(DkgError::Seats(usize::from(seats))));
    }
    let members = market.members();
    let recovery = Recovery::new(&setup, &members, &made.keys, 0, 3, &[0, 1, 2]).unwrap();
    let split = recovery.split(0, &shares[0], &market.seeds[0], &market.vote[0]).unwrap();
    for length in (0..split.len()).chain([split.len() + 1]) {
        let mut cut = split.clone();
        cut.resize(length, 0);
        assert!(matches!(recovery.read_split(&cut), Err(DkgError::Length { .. })), "{length} bytes");
    }
}

#[test]
fn dealings_and_contributions_of_every_length_and_order() {
    let market = Market::new(4);
    let setup = market.setup();
    let dealing = market.dealing(&setup, 1).to_bytes();
    assert_eq!(Dealing::read(&setup, &dealing).unwrap().to_bytes(), dealing);
    assert_eq!(dealing.len(), Dealing::length(&setup));
    for length in (0..dealing.len()).chain([dealing.len() + 1]) {
        let mut cut = dealing.clone();
        cut.resize(length, 0);
        assert!(matches!(Dealing::read(&setup, &cut), Err(DkgError::Length { .. })), "{length} bytes");
    }
    let change = |at: usize| {
        let mut bytes = dealing.clone();
        bytes[at] ^= 4;
        Dealing::read(&setup, &bytes).err()
    };
    assert_eq!(
        (change(0), change(1)),
        (Some(DkgError::Foreign("dealing")), Some(DkgError::Foreign("dealing")))
    );
    assert_eq!(change(34), Some(DkgError::UnknownSeat(5)));

    let reveals = [(2, [7; 32])].into();
    let said = Contribution { commitment: [1; 32], acks: vec![[0; 32]; 4], reveals };
    let bytes = said.to_bytes(&setup);
    assert_eq!(Contribution::read(&setup, &bytes).as_ref(), Ok(&said));
    for length in (0..bytes.len()).chain([bytes.len() + 1]) {
        let mut cut = bytes.clone();
        cut.resize(length, 0);
        assert!(matches!(Contribution::read(&setup, &cut), Err(DkgError::Length { .. })), "{length} bytes");
    }
    let read = |commitment: u8, setup: &Setup, reveals: &[u16]| {
        let mut bytes = Contribution { commitment: [commitment; 32], ..said.clone() }.to_bytes(setup);
        bytes.truncate(bytes.len() - 36);
        bytes.extend((reveals.len() as u16).to_be_bytes());
        reveals.iter().for_each(|player| bytes.extend([&player.to_be_bytes(), [7; 32].as_slice()].concat()));
        Contribution::read(setup, &bytes).map(drop)
    };
    assert_eq!((read(1, &setup, &[3]), read(0, &setup, &[])), (Ok(()), Ok(())));
    assert_eq!(read(1, &setup, &[4]), Err(DkgError::UnknownSeat(4)));
    assert_eq!(read(1, &setup, &[1, 2]), Err(DkgError::TooManyReveals { found: 2, most: 1 }));
    assert_eq!(read(0, &setup, &[1]), Err(DkgError::TooManyReveals { found: 1, most: 1 }));
    let wide = Setup::new(vendue_sealed_bid::dkg::Purpose::Key, &[1; 32], 7).unwrap();
    let said = Contribution { acks: vec![[0; 32]; 7], ..said.clone() };
    for (players, refused) in
        [([1, 1], Some(DkgError::Duplicate(1))), ([2, 1], Some(DkgError::Duplicate(1))), ([1, 2], None)]
    {
        let mut bytes = Contribution { reveals: Default::default(), ..said.clone() }.to_bytes(&wide);
        bytes.truncate(bytes.len() - 2);
        bytes.extend([0, 2]);
        players.iter().for_each(|p: &u16| bytes.extend([&p.to_be_bytes(), [7; 32].as_slice()].concat()));
        assert_eq!(Contribution::read(&wide, &bytes).err(), refused);
    }
}
