//! What no public interface takes: every wrong encoding, for every type, and every wrong domain.
#![allow(clippy::unwrap_used)] // Helpers of tests fail like tests.

mod support;

use support::*;
use vendue_sealed_bid::dkg::{
    DealKey, Dealer, DealerSeed, DkgError, KeySet, Log, Player, Purpose, Recovery, Setup,
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
neither_printed_nor_cloned!(
    SealShare,
    VoteKey,
    BidKey,
    DealKey,
    DealerSeed,
    Dealer<'static>,
    Player<'static>
);

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

/// A name and whether the interface takes the bytes.
type Interface<'a, const N: usize> = (&'static str, Box<dyn Fn(&[u8; N]) -> bool + 'a>);

/// Each interface takes its good value and none of the bad ones.
fn refuses_all<const N: usize>(interfaces: &[(Interface<'_, N>, [u8; N])], bad: &[(&'static str, [u8; N])]) {
    for ((name, takes), good) in interfaces {
        assert!(takes(good), "{name} takes a good value");
        for (what, bytes) in bad {
            assert!(!takes(bytes), "{name}: {what}");
        }
    }
}

#[test]
fn points_of_g1() {
    let market = Market::new(4);
    let (setup, (made, shares)) = (market.setup(), market.generate());
    let seats = [0, 1, 2];
    let combined = opens(&made.keys, &[&shares[0], &shares[1], &shares[2]], &seats).unwrap();
    let sealed = seal(&ID, made.keys.seal_key(), b"h", b"bid", &BidKey::from_bytes(&[5; 32])).unwrap();
    let vote = &market.vote[0];
    let (vote_key, proof) = (vote.public_key(), vote.prove(b"c"));
    let keys = vote_key_set(&market.vote);
    let dealing = market.dealer(&setup, 0).dealing(1).unwrap();
    let log = market.log(&setup, 0, &mut market.players(&setup), &[]);
    let mut dealer_ack = None;
    market.player(&setup, 1).receive(&dealing).map(|(_, ack)| dealer_ack = Some(ack)).unwrap();
    let at = |bytes: &[u8], from: usize| -> [u8; 48] { bytes[from..from + 48].try_into().unwrap() };
    let with = |bytes: &[u8], from: usize, point: &[u8; 48]| {
        let mut out = bytes.to_vec();
        out[from..from + 48].copy_from_slice(point);
        out
    };
    let key_set = made.keys.to_bytes();
    let deal: Vec<_> = market.deal.iter().map(|k| k.public_key().unwrap()).collect();
    let (points, end) = (points_of(&setup, &log), log.len() - 48);
    let interfaces: Vec<(Interface<'_, 48>, [u8; 48])> = vec![
        (("seal key", Box::new(|p| check_seal_key(p).is_ok())), *made.keys.seal_key()),
        (
            (
                "seal key to seal to",
                Box::new(|p| seal(&ID, p, b"h", b"x", &BidKey::from_bytes(&[5; 32])).is_ok()),
            ),
            *made.keys.seal_key(),
        ),
        (
            (
                "seal key to verify with",
                Box::new(|p| verify_combined(&ID, p, &combined.to_bytes()).is_some()),
            ),
            *made.keys.seal_key(),
        ),
        (("share key", Box::new(|p| verify_share(&ID, p, &shares[0].sign(&ID)))), made.keys.share_keys()[0]),
        (
            ("key set's seal key", Box::new(|p| check_key_set(p, made.keys.share_keys(), 3).is_ok())),
            *made.keys.seal_key(),
        ),
        (
            (
                "key set's share key",
                Box::new(|p| {
                    let mut keys = made.keys.share_keys().to_vec();
                    keys[2] = *p;
                    check_key_set(made.keys.seal_key(), &keys, 3).is_ok()
                }),
            ),
            made.keys.share_keys()[2],
        ),
        (
            ("public polynomial", Box::new(|p| KeySet::from_bytes(&with(&key_set, 2 + 48, p)).is_ok())),
            at(&key_set, 2 + 48),
        ),
        (
            (
                "key encapsulation",
                Box::new(|p| open(&combined, b"h", &Sealed { u: *p, ..sealed.clone() }).is_some()),
            ),
            sealed.u,
        ),
        (("vote", Box::new(|p| verify_vote(&vote_key, MESSAGE, p))), vote.sign(MESSAGE)),
        (("vote to aggregate", Box::new(|p| aggregate_votes(&[*p]).is_some())), vote.sign(MESSAGE)),
        (("aggregate", Box::new(|p| verify_aggregate(&[&vote_key], MESSAGE, p))), vote.sign(MESSAGE)),
        (
            (
                "aggregate with bitmap",
                Box::new(|p| {
                    let signers = SignerSet::from_seats(4, [0]).unwrap();
                    MultiVote { signers, aggregate: *p }.verify(&keys, 1, MESSAGE).is_ok()
                }),
            ),
            vote.sign(MESSAGE),
        ),
        (("proof of possession", Box::new(|p| check_vote_key(&vote_key, p, b"c").is_ok())), proof),
        (
            (
                "deal key",
                Box::new(|p| {
                    let mut keys = deal.clone();
                    keys[3] = *p;
                    Setup::new(Purpose::Key, &MARKET, EPOCH, 0, vote_key_set(&market.vote), &keys).is_ok()
                }),
            ),
            deal[3],
        ),
        (
            ("acknowledgement", Box::new(|p| market.dealer(&setup, 0).acknowledge(1, p).is_ok())),
            dealer_ack.unwrap(),
        ),
        (
            (
                "commitment in a log",
                Box::new(|p| {
                    let points = with(&points, 48, p);
                    Log::verify(&setup, &market.forge_log(&setup, 0, &points, &[0, 1, 2, 3], &[])).is_ok()
                }),
            ),
            at(&points, 48),
        ),
        (
            (
                "acknowledgements in a log",
                Box::new(|p| {
                    let body = with(&log[..end], 35 + 144 + 1, p);
                    Log::verify(&setup, &market.sign_log(&setup, 0, &body)).is_ok()
                }),
            ),
            at(&log, 35 + 144 + 1),
        ),
        (
            ("signature of a log", Box::new(|p| Log::verify(&setup, &with(&log, end, p)).is_ok())),
            at(&log, end),
        ),
        (
            (
                "envelope in a dealing",
                Box::new(|p| {
                    market.player(&setup, 1).receive(&resign_dealing(&market, &setup, &dealing, p)).is_ok()
                }),
            ),
            at(&dealing, 37 + 144),
        ),
    ];
    refuses_all(&interfaces, &bad_g1());
}

/// A dealing with another ephemeral key, signed by its dealer.
fn resign_dealing(market: &Market, setup: &Setup, dealing: &[u8], ephemeral: &[u8; 48]) -> Vec<u8> {
    let mut body = dealing[..dealing.len() - 48].to_vec();
    body[37 + 144..37 + 144 + 48].copy_from_slice(ephemeral);
    let digest = commitment_digest(setup, 0, &body[37..37 + 144]);
    let message = [&[1], setup.digest().as_slice(), &[0, 0, 0, 1], &digest, &body[37 + 144..]].concat();
    body.extend(market.sign_dkg(0, &message));
    body
}

#[test]
fn points_of_g2() {
    let market = Market::new(4);
    let (made, shares) = market.generate();
    let seats = [0, 1, 2];
    let combined = opens(&made.keys, &[&shares[0], &shares[1], &shares[2]], &seats).unwrap();
    let vote = &market.vote[0];
    let (good_vote, proof) = (vote.sign(MESSAGE), vote.prove(&possession(0)));
    let one = |share: &[u8; 96]| {
        let shares = [(0, *share), (1, shares[1].sign(&ID)), (2, shares[2].sign(&ID))];
        combine(&ID, made.keys.seal_key(), 3, &shares, |seat| made.keys.share_key(seat))
    };
    let interfaces: Vec<(Interface<'_, 96>, [u8; 96])> = vec![
        (("share", Box::new(|p| verify_share(&ID, &made.keys.share_keys()[0], p))), shares[0].sign(&ID)),
        (
            (
                "share among others",
                Box::new(|p| bad_shares(&ID, &[(0, *p)], |seat| made.keys.share_key(seat)).is_empty()),
            ),
            shares[0].sign(&ID),
        ),
        (("share to combine", Box::new(|p| one(p).is_ok())), shares[0].sign(&ID)),
        (
            ("combined", Box::new(|p| verify_combined(&ID, made.keys.seal_key(), p).is_some())),
            combined.to_bytes(),
        ),
        (("vote key", Box::new(|p| verify_vote(p, MESSAGE, &good_vote))), vote.public_key()),
        (
            ("vote key to prove", Box::new(|p| check_vote_key(p, &proof, &possession(0)).is_ok())),
            vote.public_key(),
        ),
        (
            ("vote key of an aggregate", Box::new(|p| verify_aggregate(&[p], MESSAGE, &good_vote))),
            vote.public_key(),
        ),
        (
            (
                "vote key of a set",
                Box::new(|p| {
                    let claim = VoteKeyClaim { key: *p, proof, address: "seat-0" };
                    VoteKeySet::new(&MARKET, EPOCH, &[claim]).is_ok()
                }),
            ),
            vote.public_key(),
        ),
    ];
    refuses_all(&interfaces, &bad_g2());
    for (what, bytes) in bad_g2() {
        assert_eq!(one(&bytes), Err(CryptoError::BadShares(vec![0])), "{what}");
    }
}

#[test]
fn secret_scalars() {
    let good = [1; 32];
    let interfaces: Vec<(Interface<'_, 32>, [u8; 32])> = vec![
        (("seal share", Box::new(|s| SealShare::from_bytes(s).is_ok())), good),
        (("vote key", Box::new(|s| VoteKey::from_bytes(s).is_ok())), good),
        (("deal key", Box::new(|s| DealKey::from_bytes(s).is_ok())), good),
    ];
    refuses_all(&interfaces, &bad_scalars());
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
    let setup = market.setup();
    let dealing = market.dealer(&setup, 1).dealing(0).unwrap();
    let points = &dealing[37..37 + 144];
    let ack = [&[2], setup.digest().as_slice(), &[0, 1], &commitment_digest(&setup, 1, points)].concat();
    for domain in g1 {
        assert_eq!(verify_vote(&key, MESSAGE, &sign(MESSAGE, domain)), domain == VOTE_DOMAIN);
        assert_eq!(
            check_vote_key(&key, &sign(&proof, domain), &possession(0)).is_ok(),
            domain == POSSESSION_DOMAIN
        );
        let taken = market.dealer(&setup, 1).acknowledge(0, &sign(&ack, domain)).is_ok();
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
    let recovery = Recovery::new(&setup, &made.keys, 0, 3, &[0, 1, 2]).unwrap();
    let split = recovery.split(0, &shares[0], &market.seeds[0], &market.vote[0]).unwrap();
    for length in (0..split.len()).chain([split.len() + 1]) {
        let mut cut = split.clone();
        cut.resize(length, 0);
        assert!(matches!(recovery.read_split(&cut), Err(DkgError::Length { .. })), "{length} bytes");
    }
}
