//! The interop vectors: everything computed from fixed seeds, with the values on the way that another implementation
//! wants to compare.

use super::*;
use hmac::{Hmac, Mac};
use serde_json::{Value, json};
use sha2::{Sha256, Sha512};
use std::path::PathBuf;
use threshold_crypto::Fr;
use threshold_crypto::ff::{Field, PrimeField, PrimeFieldRepr};
use vendue_sealed_bid::dkg::Recovery;

/// Where the vectors are.
pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors")
}

/// All vectors by file name.
pub fn all() -> Vec<(&'static str, Value)> {
    vec![
        ("seal.json", seals()),
        ("share.json", shares()),
        ("combine.json", combinations()),
        ("vote.json", votes()),
        ("dkg.json", key_generation()),
        ("refused.json", refused()),
    ]
}

fn hex_list<T: AsRef<[u8]>>(items: impl IntoIterator<Item = T>) -> Vec<String> {
    items.into_iter().map(hex::encode).collect()
}

/// Big-endian bytes modulo the group order, by another library than the one under test.
pub fn reduce(bytes: &[u8]) -> Fr {
    let of = |n: u64| Fr::from_repr(n.into()).unwrap();
    bytes.iter().fold(Fr::zero(), |mut sum, byte| {
        sum.mul_assign(&of(256));
        sum.add_assign(&of(u64::from(*byte)));
        sum
    })
}

pub fn scalar_bytes(value: Fr) -> [u8; 32] {
    let mut out = [0; 32];
    value.into_repr().write_be(out.as_mut_slice()).unwrap();
    out
}

/// A secret scalar of key generation: HKDF-SHA-256 to 64 bytes, modulo the group order.
pub fn derived(salt: &[u8], secret: &[u8], info: &[u8]) -> [u8; 32] {
    let mut wide = [0; 64];
    hkdf::Hkdf::<Sha256>::new(Some(salt), secret).expand(info, &mut wide).unwrap();
    scalar_bytes(reduce(&wide))
}

/// The coefficients of the polynomial that a dealer commits to, constant term first, without the zero of a refresh: the
/// derived ones times the effective cofactor.
pub fn coefficients(setup: &Setup, dealer: u16, seed: &DealerSeed, first: u16) -> Vec<[u8; 32]> {
    let scale = |c: &[u8; 32]| {
        let mut product = reduce(c);
        product.mul_assign(&reduce(&cofactor()));
        scalar_bytes(product)
    };
    derived_coefficients(setup, dealer, seed, first).iter().map(scale).collect()
}

/// The coefficients that a dealer derives from its seed.
pub fn derived_coefficients(setup: &Setup, dealer: u16, seed: &DealerSeed, first: u16) -> Vec<[u8; 32]> {
    (first..setup.quorum())
        .map(|index| {
            let info =
                [b"COEFFICIENT".as_slice(), &setup.digest(), &dealer.to_be_bytes(), &index.to_be_bytes()]
                    .concat();
            derived(b"VENDUE-V1-DKG-SEED", seed.to_bytes().as_slice(), &info)
        })
        .collect()
}

/// A key generation of `n` seats by `dealers`, and each dealer's coefficients.
pub fn generated(n: u16, dealers: &[u16]) -> (Outcome, Vec<SealShare>, Vec<Vec<[u8; 32]>>) {
    let market = Market::new(n);
    let setup = market.setup();
    let (made, shares) = market.run(&setup, dealers, None);
    let polys = dealers.iter().map(|d| coefficients(&setup, *d, &market.seeds[usize::from(*d)], 0)).collect();
    (made, shares, polys)
}

/// The hash of an identity to G2, compressed.
fn hash_to_g2(message: &[u8], domain: &[u8]) -> [u8; 96] {
    let mut one = [0; 32];
    one[31] = 1;
    blst::min_pk::SecretKey::from_bytes(&one).unwrap().sign(message, domain, &[]).to_bytes()
}

fn hash_to_g1(message: &[u8], domain: &[u8]) -> [u8; 48] {
    let mut one = [0; 32];
    one[31] = 1;
    min_sig::SecretKey::from_bytes(&one).unwrap().sign(message, domain, &[]).to_bytes()
}

/// The pairing of two compressed points, in bytes.
fn pairing(g1: &[u8; 48], g2: &[u8; 96]) -> [u8; 576] {
    let p = blst::min_pk::PublicKey::from_bytes(g1).unwrap();
    let q = blst::min_pk::Signature::from_bytes(g2).unwrap();
    blst::blst_fp12::miller_loop((&q).into(), (&p).into()).final_exp().to_bendian()
}

fn id_json(id: &RoundId) -> Value {
    json!({
        "market": hex::encode(id.market), "epoch": id.epoch, "round": id.round,
        "identity": hex::encode(id.to_bytes()),
        "identity_point": hex::encode(hash_to_g2(&id.to_bytes(), SEAL_DOMAIN)),
    })
}

fn seal_case(id: &RoundId, secret: &[u8; 32], header: &[u8], payload: &[u8], bid: &[u8; 32]) -> Value {
    let key = SealShare::from_bytes(secret).unwrap();
    let seal_key = key.verification_key().unwrap();
    let sealed = seal(id, &seal_key, header, payload, &BidKey::from_bytes(bid)).unwrap();
    let combined = verify_combined(id, &seal_key, &key.sign(id)).unwrap();
    assert_eq!(open(&combined, header, &sealed).as_deref(), Some(payload));
    let mut sigma = <Hmac<Sha256> as Mac>::new_from_slice(bid).unwrap();
    sigma.update(b"VENDUE-V1-SIGMA");
    sigma.update(&Sha256::digest(header));
    sigma.update(&Sha256::digest(payload));
    let sigma: [u8; 32] = sigma.finalize().into_bytes().into();
    let wide = Sha512::new()
        .chain_update(b"VENDUE-V1-H3")
        .chain_update(sigma)
        .chain_update(Sha256::digest(header))
        .chain_update(Sha256::digest(&sealed.payload))
        .finalize();
    json!({
        "id": id_json(id), "secret": hex::encode(secret), "seal_key": hex::encode(seal_key),
        "bid_key": hex::encode(bid), "header": hex::encode(header), "payload": hex::encode(payload),
        "sigma": hex::encode(sigma), "r": hex::encode(scalar_bytes(reduce(&wide))),
        "pairing": hex::encode(pairing(&sealed.u, &combined.to_bytes())),
        "u": hex::encode(sealed.u), "v": hex::encode(sealed.v), "sealed_payload": hex::encode(&sealed.payload),
        "signature": hex::encode(combined.to_bytes()),
    })
}

fn seals() -> Value {
    let long: Vec<u8> = (0..=255).collect();
    let other = RoundId { market: fixed("market", 0), epoch: u32::MAX, round: u64::MAX };
    json!({ "cases": [
        seal_case(&ID, &[7; 32], b"header", b"two fifty", &[5; 32]),
        seal_case(&ID, &[7; 32], b"", b"", &[6; 32]),
        seal_case(&other, &derived(b"s", b"secret", b""), &long, &long, &fixed("bid", 0)),
    ] })
}

fn shares() -> Value {
    let cases: Vec<_> = (0u16..4)
        .map(|seat| {
            let secret = derived(b"share", b"secret", &seat.to_be_bytes());
            let share = SealShare::from_bytes(&secret).unwrap();
            json!({
                "id": id_json(&ID), "secret": hex::encode(secret),
                "key": hex::encode(share.verification_key().unwrap()), "share": hex::encode(share.sign(&ID)),
            })
        })
        .collect();
    json!({ "domain": String::from_utf8_lossy(SEAL_DOMAIN), "cases": cases })
}

/// Product over j != i of (x_j - at) / (x_j - x_i), by another library than the one under test.
fn weight(seats: &[u16], i: usize, at: u16) -> [u8; 32] {
    let of = |seat: u16| Fr::from_repr(u64::from(seat).into()).unwrap();
    let mut out = Fr::one();
    for (j, seat) in seats.iter().enumerate().filter(|(j, _)| *j != i) {
        let (mut top, mut bottom) = (of(seat + 1), of(seats[j] + 1));
        top.sub_assign(&of(at));
        bottom.sub_assign(&of(seats[i] + 1));
        out.mul_assign(&top);
        out.mul_assign(&bottom.inverse().unwrap());
    }
    scalar_bytes(out)
}

fn weights(seats: &[u16], at: u16) -> Vec<String> {
    hex_list((0..seats.len()).map(|i| weight(seats, i, at)))
}

fn combinations() -> Value {
    let market = Market::new(7);
    let (made, shares) = market.generate();
    let sets = [[0u16, 1, 2, 3, 4], [2, 3, 4, 5, 6], [6, 0, 5, 1, 3]];
    let cases: Vec<_> = sets
        .iter()
        .map(|seats| {
            let own: Vec<_> = seats.iter().map(|s| &shares[usize::from(*s)]).collect();
            let combined = opens(&made.keys, &own, seats).unwrap();
            json!({
                "seats": seats, "weights": weights(seats, 0),
                "shares": hex_list(own.iter().map(|s| s.sign(&ID))), "combined": hex::encode(combined.to_bytes()),
            })
        })
        .collect();
    json!({
        "id": id_json(&ID), "seats": 7, "quorum": 5, "seal_key": hex::encode(made.keys.seal_key()),
        "share_keys": hex_list(made.keys.share_keys()), "cases": cases,
    })
}

fn votes() -> Value {
    let market = Market::new(10);
    let message = b"a message that is voted on";
    let seats: Vec<_> = (0u16..)
        .zip(&market.vote)
        .map(|(seat, key)| {
            json!({
                "seat": seat, "address": address(seat), "secret": hex::encode(key.to_bytes().as_slice()),
                "key": hex::encode(key.public_key()), "context": hex::encode(possession(seat)),
                "proof": hex::encode(key.prove(&possession(seat))), "vote": hex::encode(key.sign(message)),
            })
        })
        .collect();
    let keys = vote_key_set(&market.vote);
    let aggregates: Vec<_> = [vec![0u16, 1, 2, 3, 4, 5, 6], (0..10).collect(), vec![1, 3, 4, 5, 7, 8, 9]]
        .iter()
        .map(|signers| {
            let votes: Vec<_> =
                signers.iter().map(|s| (*s, market.vote[usize::from(*s)].sign(message))).collect();
            let vote = MultiVote::new(10, &votes).unwrap();
            assert_eq!(vote.verify(&keys, market.q(), message), Ok(()));
            json!({ "signers": signers, "bitmap_and_aggregate": hex::encode(vote.to_bytes()) })
        })
        .collect();
    json!({
        "vote_domain": String::from_utf8_lossy(VOTE_DOMAIN),
        "possession_domain": String::from_utf8_lossy(POSSESSION_DOMAIN),
        "market": hex::encode(MARKET), "epoch": EPOCH, "message": hex::encode(message),
        "message_point": hex::encode(hash_to_g1(message, VOTE_DOMAIN)),
        "seats": seats, "aggregates": aggregates,
    })
}

/// What one dealer says in a setup.
fn dealer_json(market: &Market, setup: &Arc<Setup>, dealer: u16, contribution: &Contribution) -> Value {
    let first = u16::from(*setup.purpose() != Purpose::Key);
    let derived = derived_coefficients(setup, dealer, &market.seeds[usize::from(dealer)], first);
    let said = market.dealing(setup, dealer);
    json!({
        "dealer": dealer, "seed": hex::encode(market.seeds[usize::from(dealer)].to_bytes().as_slice()),
        "coefficients": hex_list(&derived), "commitment_digest": hex::encode(said.digest()),
        "dealing": hex::encode(said.to_bytes()), "contribution": hex::encode(contribution.to_bytes(setup)),
    })
}

fn keys_json(keys: &KeySet, shares: &[SealShare]) -> Value {
    json!({
        "key_set": hex::encode(keys.to_bytes()), "digest": hex::encode(keys.digest()),
        "seal_key": hex::encode(keys.seal_key()), "share_keys": hex_list(keys.share_keys()),
        "shares": hex_list(shares.iter().map(|s| *s.to_bytes())),
    })
}

/// A run in which seat 3 gets nothing from dealer 1, which reveals its value; seat 2 does not deal.
fn run_json(
    market: &Market,
    setup: &Arc<Setup>,
    old: Option<&[SealShare]>,
) -> (Value, KeySet, Vec<SealShare>) {
    let dealers = [0u16, 1, 3];
    let mut players = market.players(setup, &dealers, &[(1, 3)]);
    let contributions = market.contributions(setup, &dealers, &players);
    market.learn(setup, 1, 3, &mut players[3]);
    let made = outcome(setup, &contributions, players[0].dealings()).unwrap();
    let finish = |(seat, p): (usize, &Player)| p.finish(&contributions, old.map(|old| &old[seat])).unwrap().1;
    let shares: Vec<_> = players.iter().enumerate().map(finish).collect();
    let dealers: Vec<_> = dealers.iter().map(|d| dealer_json(market, setup, *d, &contributions[d])).collect();
    let value = json!({
        "setup": hex::encode(setup.digest()), "dealers": dealers,
        "contribution_of_2": hex::encode(contributions[&2].to_bytes(setup)), "keys": keys_json(&made.keys, &shares),
    });
    (value, made.keys, shares)
}

fn recovery_json(market: &Market, setup: &Setup, keys: &KeySet, shares: &[SealShare]) -> Value {
    let (target, helpers) = (2u16, [0u16, 1, 3]);
    let members = market.members();
    let recovery = Recovery::new(setup, &members, keys, 0, target, &helpers).unwrap();
    let at = |h: u16| usize::from(h);
    let splits: Vec<_> = helpers
        .iter()
        .map(|h| recovery.split(*h, &shares[at(*h)], &market.seeds[at(*h)], &market.vote[at(*h)]).unwrap())
        .collect();
    let read: Vec<_> = splits.iter().map(|s| recovery.read_split(s).unwrap()).collect();
    let parts: Vec<_> = helpers
        .iter()
        .map(|h| {
            let (deal, seed, vote) = (&market.deal[at(*h)], &market.seeds[at(*h)], &market.vote[at(*h)]);
            recovery.part(*h, &read, deal, seed, vote).unwrap()
        })
        .collect();
    let opened: Vec<_> = parts.iter().map(|p| recovery.read_part(&read, p).unwrap()).collect();
    let share = recovery.finish(&read, &opened, &market.deal[at(target)]).unwrap();
    json!({
        "attempt": 0, "target": target, "helpers": helpers, "members": hex::encode(members.digest()), "recovery": hex::encode(recovery.digest()),
        "weights": weights(&helpers, target + 1), "splits": hex_list(&splits), "parts": hex_list(&parts),
        "share": hex::encode(share.to_bytes().as_slice()),
    })
}

fn key_generation() -> Value {
    let market = Market::new(4);
    let seats: Vec<_> = (0u16..4)
        .map(|seat| {
            let (vote, deal) = (&market.vote[usize::from(seat)], &market.deal[usize::from(seat)]);
            json!({
                "vote_secret": hex::encode(vote.to_bytes().as_slice()), "vote_key": hex::encode(vote.public_key()),
                "deal_secret": hex::encode(deal.to_bytes().as_slice()),
                "deal_key": hex::encode(deal.public_key().unwrap()),
            })
        })
        .collect();
    let setup = market.setup();
    let (key, keys, shares) = run_json(&market, &setup, None);
    let renewal = market.setup_for(Purpose::Refresh(keys.clone()), 0);
    let (refresh, _, _) = run_json(&market, &renewal, Some(&shares));
    json!({
        "domain": String::from_utf8_lossy(DKG_DOMAIN), "seats": seats, "key": key, "refresh": refresh,
        "recovery": recovery_json(&market, &setup, &keys, &shares),
    })
}

fn refused() -> Value {
    let list = |rows: Vec<(&str, String)>| -> Vec<Value> {
        rows.into_iter().map(|(why, bytes)| json!({ "why": why, "bytes": bytes })).collect()
    };
    json!({
        "g1": list(bad_g1().into_iter().map(|(why, b)| (why, hex::encode(b))).collect()),
        "g2": list(bad_g2().into_iter().map(|(why, b)| (why, hex::encode(b))).collect()),
        "secret": list(bad_scalars().into_iter().map(|(why, b)| (why, hex::encode(b))).collect()),
    })
}
