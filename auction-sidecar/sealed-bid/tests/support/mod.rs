//! Seats with fixed keys, an honest run of key generation, and a dealer that says what a test wants.
#![allow(dead_code, clippy::unwrap_used)] // Each test file takes a part; helpers of tests fail like tests.

use blst::min_sig;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::Arc;
use vendue_sealed_bid::dkg::{
    Contribution, DealKey, Dealer, DealerSeed, Dealing, KeySet, Members, Outcome, Player, Purpose,
    RecipientKey, Setup, outcome, quorum,
};
use vendue_sealed_bid::*;

pub mod vectors;

pub const MARKET: [u8; 32] = [1; 32];
pub const EPOCH: u32 = 2;
pub const ID: RoundId = RoundId { market: MARKET, epoch: EPOCH, round: 3 };

/// All seats of a market with their secrets.
pub struct Market {
    pub n: u16,
    pub vote: Vec<VoteKey>,
    pub deal: Vec<DealKey>,
    pub seeds: Vec<DealerSeed>,
}

/// 32 bytes that depend on a label and a seat only.
pub fn fixed(label: &str, seat: u16) -> [u8; 32] {
    Sha256::new().chain_update(label).chain_update(seat.to_be_bytes()).finalize().into()
}

pub fn address(seat: u16) -> String {
    format!("seat-{seat}")
}

pub fn possession(seat: u16) -> Vec<u8> {
    PossessionContext { market: MARKET, epoch: EPOCH, seat, address: &address(seat) }.to_bytes()
}

pub fn vote_key_set(keys: &[VoteKey]) -> VoteKeySet {
    let addresses: Vec<_> = (0..keys.len() as u16).map(address).collect();
    let claims: Vec<_> = (0u16..)
        .zip(keys.iter().zip(&addresses))
        .map(|(seat, (key, address))| VoteKeyClaim {
            key: key.public_key(),
            proof: key.prove(&possession(seat)),
            address,
        })
        .collect();
    VoteKeySet::new(&MARKET, EPOCH, &claims).unwrap()
}

impl Market {
    pub fn new(n: u16) -> Self {
        Self {
            n,
            vote: (0..n).map(|s| VoteKey::generate(&fixed("vote", s)).unwrap()).collect(),
            deal: (0..n).map(|s| DealKey::generate(&fixed("deal", s)).unwrap()).collect(),
            seeds: (0..n).map(|s| DealerSeed::from_bytes(&fixed("seed", s))).collect(),
        }
    }
    pub fn q(&self) -> u16 {
        quorum(self.n)
    }
    pub fn f(&self) -> u16 {
        self.n - self.q()
    }
    pub fn setup_in(&self, purpose: Purpose, epoch: u32, attempt: u32) -> Arc<Setup> {
        let session = Sha256::new()
            .chain_update(MARKET)
            .chain_update(epoch.to_be_bytes())
            .chain_update(attempt.to_be_bytes())
            .finalize()
            .into();
        Arc::new(Setup::new(purpose, &session, self.n).unwrap())
    }
    pub fn setup_for(&self, purpose: Purpose, attempt: u32) -> Arc<Setup> {
        self.setup_in(purpose, EPOCH, attempt)
    }
    pub fn setup(&self) -> Arc<Setup> {
        self.setup_for(Purpose::Key, 0)
    }
    pub fn deal_keys(&self) -> Vec<[u8; 48]> {
        self.deal.iter().map(|k| k.public_key().unwrap()).collect()
    }
    pub fn members(&self) -> Members {
        Members::new(vote_key_set(&self.vote), &self.deal_keys()).unwrap()
    }
    pub fn recipients(&self) -> Vec<Option<RecipientKey>> {
        self.deal_keys().iter().map(|k| Some(RecipientKey::from_bytes(k).unwrap())).collect()
    }
    pub fn dealer(&self, setup: &Arc<Setup>, seat: u16) -> Dealer {
        Dealer::new(setup, seat, &self.seeds[usize::from(seat)]).unwrap()
    }
    pub fn dealing(&self, setup: &Arc<Setup>, seat: u16) -> Dealing {
        self.dealer(setup, seat).dealing(&self.recipients()).unwrap()
    }
    /// The player of a seat that has dealt; all dealers announced what they deal before that.
    pub fn player(&self, setup: &Arc<Setup>, seat: u16) -> Player {
        let announced = (0..self.n).map(|dealer| (dealer, self.dealer(setup, dealer).digest()));
        self.player_that_heard(setup, seat, announced)
    }
    /// The player of a seat that has dealt and heard these announcements before.
    pub fn player_that_heard(
        &self,
        setup: &Arc<Setup>,
        seat: u16,
        announced: impl IntoIterator<Item = (u16, [u8; 32])>,
    ) -> Player {
        let mut player = Player::new(setup, seat, &self.deal[usize::from(seat)]).unwrap();
        announced.into_iter().for_each(|(dealer, digest)| assert!(player.announce(dealer, digest)));
        player.deals();
        player
    }
    /// The player of each seat, with the dealings of `dealers` but for the pairs of dealer and player in `lost`.
    pub fn players(&self, setup: &Arc<Setup>, dealers: &[u16], lost: &[(u16, u16)]) -> Vec<Player> {
        let mut players: Vec<_> = (0..self.n).map(|seat| self.player(setup, seat)).collect();
        for dealing in dealers.iter().map(|d| self.dealing(setup, *d)) {
            for (seat, player) in (0u16..).zip(&mut players) {
                if !lost.contains(&(dealing.dealer(), seat)) {
                    player.receive(dealing.clone(), &self.deal[usize::from(seat)]).unwrap();
                }
            }
        }
        for (seat, player) in players.iter_mut().enumerate() {
            assert_eq!(player.check(&self.deal[seat]), Ok(vec![]));
        }
        players
    }
    /// A player that lost a dealing gets it from others when it counts; its envelope is still of no use to it.
    pub fn learn(&self, setup: &Arc<Setup>, dealer: u16, seat: u16, player: &mut Player) {
        let mut keys = self.recipients();
        keys[usize::from(seat)] = None;
        let dealing = self.dealer(setup, dealer).dealing(&keys).unwrap();
        assert!(player.receive(dealing, &self.deal[usize::from(seat)]).is_err());
    }
    /// Everybody's contribution: dealers reveal what players did not acknowledge.
    pub fn contributions(
        &self,
        setup: &Arc<Setup>,
        dealers: &[u16],
        players: &[Player],
    ) -> BTreeMap<u16, Contribution> {
        let make = |(seat, player): (u16, &Player)| {
            let (acks, dealer) = (player.acks(), self.dealer(setup, seat));
            if !dealers.contains(&seat) {
                return (seat, Contribution { commitment: [0; 32], acks, reveals: BTreeMap::new() });
            }
            let without = (0u16..).zip(players).filter(|(_, p)| p.acks()[usize::from(seat)] == [0; 32]);
            let reveal = without.map(|(to, _)| to).collect();
            (seat, dealer.contribution(acks, &reveal).unwrap())
        };
        (0u16..).zip(players).map(make).collect()
    }
    /// Everybody is honest: the outcome of the dealings of `dealers`, and every seat's share.
    pub fn run(
        &self,
        setup: &Arc<Setup>,
        dealers: &[u16],
        old: Option<&[SealShare]>,
    ) -> (Outcome, Vec<SealShare>) {
        let players = self.players(setup, dealers, &[]);
        let contributions = self.contributions(setup, dealers, &players);
        let finish =
            |(seat, p): (usize, &Player)| p.finish(&contributions, old.map(|old| &old[seat])).unwrap().1;
        let shares = players.iter().enumerate().map(finish).collect();
        (outcome(setup, &contributions, players[0].dealings()).unwrap(), shares)
    }
    pub fn generate(&self) -> (Outcome, Vec<SealShare>) {
        self.run(&self.setup(), &(0..self.n).collect::<Vec<_>>(), None)
    }
    /// Signs in the domain of key generation, as a dishonest seat can.
    pub fn sign_dkg(&self, seat: u16, message: &[u8]) -> [u8; 48] {
        let secret =
            min_sig::SecretKey::from_bytes(self.vote[usize::from(seat)].to_bytes().as_slice()).unwrap();
        secret.sign(message, DKG_DOMAIN, &[]).to_bytes()
    }
}

/// An envelope that opens, with any 32 bytes in it, made by another library than the one under test.
pub fn forge_envelope(deal_key: &[u8; 48], context: &[u8], secret: &[u8; 32]) -> [u8; 96] {
    use chacha20poly1305::aead::{Aead, KeyInit, Payload};
    use threshold_crypto::group::{CurveAffine, CurveProjective, EncodedPoint};
    use threshold_crypto::pairing::bls12_381::G1Affine;
    let ephemeral = vectors::reduce(&fixed("ephemeral", 0));
    let bytes = |point: G1Affine| -> [u8; 48] { point.into_compressed().as_ref().try_into().unwrap() };
    let mut recipient = <G1Affine as CurveAffine>::Compressed::empty();
    recipient.as_mut().copy_from_slice(deal_key);
    let public = bytes(G1Affine::one().mul(ephemeral).into_affine());
    let shared = bytes(recipient.into_affine().unwrap().mul(ephemeral).into_affine());
    let mut okm = [0; 44];
    let info = [public.as_slice(), deal_key, context].concat();
    hkdf::Hkdf::<Sha256>::new(Some(b"VENDUE-V1-DKG-ENVELOPE"), &shared).expand(&info, &mut okm).unwrap();
    let sealed = chacha20poly1305::ChaCha20Poly1305::new_from_slice(&okm[..32])
        .unwrap()
        .encrypt(okm[32..].into(), Payload { msg: secret, aad: context })
        .unwrap();
    [public.as_slice(), &sealed].concat().try_into().unwrap()
}

/// A dealing with this commitment and these values for the seats, sealed by another library than the one under test.
pub fn forge_dealing(
    market: &Market,
    setup: &Setup,
    dealer: u16,
    points: &[u8],
    values: &[[u8; 32]],
) -> Dealing {
    use chacha20poly1305::aead::{Aead, KeyInit, Payload};
    use threshold_crypto::ff::Field;
    use threshold_crypto::group::{CurveAffine, CurveProjective, EncodedPoint};
    use threshold_crypto::pairing::bls12_381::G1Affine;
    let ephemeral = vectors::reduce(&fixed("ephemeral", dealer));
    let public = G1Affine::one().mul(ephemeral).into_affine().into_uncompressed();
    let mut factor = ephemeral;
    factor.mul_assign(&vectors::reduce(&cofactor()));
    let mut bytes =
        [&[2], setup.digest().as_slice(), &dealer.to_be_bytes(), points, public.as_ref()].concat();
    for (seat, value) in (0u16..).zip(values) {
        let deal_key = market.deal[usize::from(seat)].public_key().unwrap();
        let mut recipient = <G1Affine as CurveAffine>::Compressed::empty();
        recipient.as_mut().copy_from_slice(&deal_key);
        let shared = recipient.into_affine().unwrap().mul(factor).into_affine().into_compressed();
        let digest = commitment_digest(setup, dealer, points);
        let context =
            [setup.digest().as_slice(), &dealer.to_be_bytes(), &seat.to_be_bytes(), &digest].concat();
        let info = [public.as_ref(), &deal_key, &context].concat();
        let mut okm = [0; 44];
        hkdf::Hkdf::<Sha256>::new(Some(b"VENDUE-V1-DKG-ENVELOPE"), shared.as_ref())
            .expand(&info, &mut okm)
            .unwrap();
        let cipher = chacha20poly1305::ChaCha20Poly1305::new_from_slice(&okm[..32]).unwrap();
        bytes.extend(cipher.encrypt(okm[32..].into(), Payload { msg: value, aad: &context }).unwrap());
    }
    Dealing::read(setup, &bytes).unwrap()
}

/// What a dealer sends to each seat: the values of its polynomial.
pub fn values(market: &Market, setup: &Setup, dealer: u16) -> Vec<[u8; 32]> {
    use threshold_crypto::ff::Field;
    let coefficients = vectors::derived_coefficients(setup, dealer, &market.seeds[usize::from(dealer)], 0);
    let value = |seat: u16| {
        let at = vectors::reduce(&(seat + 1).to_be_bytes());
        let sum = coefficients.iter().rev().fold(threshold_crypto::Fr::zero(), |mut sum, c| {
            sum.mul_assign(&at);
            sum.add_assign(&vectors::reduce(c));
            sum
        });
        vectors::scalar_bytes(sum)
    };
    (0..market.n).map(value).collect()
}

pub fn commitment_digest(setup: &Setup, dealer: u16, points: &[u8]) -> [u8; 32] {
    Sha256::new()
        .chain_update(b"VENDUE-V1-DKG-COMMITMENT")
        .chain_update(setup.digest())
        .chain_update(dealer.to_be_bytes())
        .chain_update(points)
        .finalize()
        .into()
}

/// Where a dealing keeps its commitment, for a setup of a new key.
pub fn points_in(setup: &Setup) -> std::ops::Range<usize> {
    35..35 + 96 * usize::from(setup.quorum())
}

/// The effective cofactor of G1, as a scalar.
pub fn cofactor() -> [u8; 32] {
    let mut out = [0; 32];
    out[24..].copy_from_slice(&0xd201_0000_0001_0001u64.to_be_bytes());
    out
}

/// Combines the shares of some seats and opens something sealed to the key.
pub fn opens(keys: &KeySet, shares: &[&SealShare], seats: &[u16]) -> Result<Combined, CryptoError> {
    let signed: Vec<_> = seats.iter().zip(shares).map(|(seat, share)| (*seat, share.sign(&ID))).collect();
    let combined = combine(&ID, keys.seal_key(), keys.quorum(), &signed, |seat| keys.share_key(seat))?;
    let sealed = seal(&ID, keys.seal_key(), b"header", b"bid", &BidKey::from_bytes(&[5; 32])).unwrap();
    assert_eq!(open(&combined, b"header", &sealed).as_deref(), Some(b"bid".as_slice()));
    Ok(combined)
}

/// Encodings of points of G1 that no interface may take. Each is wrong in one way.
pub fn bad_g1() -> Vec<(&'static str, [u8; 48])> {
    let mut table = vec![];
    let compressed = |last: u8| {
        let mut point = [0; 48];
        (point[0], point[47]) = (0x80, last);
        point
    };
    // x = 1 is not on the curve; x = 4 is, but not in the subgroup.
    table.push(("off the curve", compressed(1)));
    table.push(("off the subgroup", compressed(4)));
    let mut identity = [0; 48];
    identity[0] = 0xc0;
    table.push(("identity", identity));
    identity[0] = 0xe0;
    table.push(("identity with a sign", identity));
    identity[0] = 0xc0;
    identity[47] = 1;
    table.push(("identity with a coordinate", identity));
    table.push(("all zero", [0; 48]));
    table.push(("all ones", [0xff; 48]));
    let generator = min_pk_generator();
    let mut uncompressed = generator;
    uncompressed[0] &= 0x7f;
    table.push(("without the compression bit", uncompressed));
    table.push(("coordinate not reduced", add_modulus(low_x())));
    table
}

/// Encodings that no interface may take that takes any point of the curve of G1, uncompressed.
pub fn bad_curve_points() -> Vec<(&'static str, [u8; 96])> {
    let wide = |point: [u8; 48]| {
        let mut out = [0; 96];
        out[..48].copy_from_slice(&point);
        out
    };
    let mut identity = [0; 96];
    identity[0] = 0x40;
    let mut off = [0; 96];
    off[47] = 1;
    let generator = blst::min_pk::SecretKey::from_bytes(&{
        let mut one = [0; 32];
        one[31] = 1;
        one
    });
    let generator = generator.unwrap().sk_to_pk().serialize();
    let mut unreduced = generator;
    unreduced[..48].copy_from_slice(&modulus_plus(4));
    let mut flagged = generator;
    flagged[0] |= 0x20;
    vec![
        ("compressed", wide(min_pk_generator())),
        ("compressed identity", wide([[0xc0].as_slice(), &[0; 47]].concat().try_into().unwrap())),
        ("identity", identity),
        ("off the curve", off),
        ("all zero", [0; 96]),
        ("all ones", [0xff; 96]),
        ("with a sign", flagged),
        ("coordinate not reduced", unreduced),
    ]
}

/// The same for G2.
pub fn bad_g2() -> Vec<(&'static str, [u8; 96])> {
    let mut table = vec![];
    let compressed = |last: u8| {
        let mut point = [0; 96];
        (point[0], point[95]) = (0x80, last);
        point
    };
    // x = 1 is not on the curve of G2; x = 2 is, but not in the subgroup.
    table.push(("off the curve", compressed(1)));
    table.push(("off the subgroup", compressed(2)));
    let mut identity = [0; 96];
    identity[0] = 0xc0;
    table.push(("identity", identity));
    identity[0] = 0xe0;
    table.push(("identity with a sign", identity));
    identity[0] = 0xc0;
    identity[95] = 1;
    table.push(("identity with a coordinate", identity));
    table.push(("all zero", [0; 96]));
    table.push(("all ones", [0xff; 96]));
    let mut uncompressed = min_sig::SecretKey::key_gen(&[1; 32], &[]).unwrap().sk_to_pk().to_bytes();
    uncompressed[0] &= 0x7f;
    table.push(("without the compression bit", uncompressed));
    let mut unreduced = compressed(2);
    unreduced[48..].copy_from_slice(&modulus_plus(2));
    table.push(("coordinate not reduced", unreduced));
    table
}

/// Secret scalars that no interface may take.
pub fn bad_scalars() -> Vec<(&'static str, [u8; 32])> {
    let order = "73eda753299d7d483339d80809a1d80553bda402fffe5bfeffffffff00000001";
    let order: [u8; 32] = hex::decode(order).unwrap().try_into().unwrap();
    let mut above = order;
    above[31] += 1;
    vec![("zero", [0; 32]), ("the group order", order), ("one above it", above), ("all ones", [0xff; 32])]
}

fn min_pk_generator() -> [u8; 48] {
    let mut one = [0; 32];
    one[31] = 1;
    blst::min_pk::SecretKey::from_bytes(&one).unwrap().sk_to_pk().to_bytes()
}

const MODULUS: &str =
    "1a0111ea397fe69a4b1ba7b6434bacd764774b84f38512bf6730d2a0f6b0f6241eabfffeb153ffffb9feffffffffaaab";

fn modulus_plus(small: u8) -> [u8; 48] {
    let mut out: [u8; 48] = hex::decode(MODULUS).unwrap().try_into().unwrap();
    out[47] += small;
    out
}

/// A point of the subgroup whose x is so small that x plus the modulus still fits in 381 bits.
fn low_x() -> [u8; 48] {
    (1u32..)
        .map(|i| {
            let mut secret = [0; 32];
            secret[28..].copy_from_slice(&i.to_be_bytes());
            blst::min_pk::SecretKey::from_bytes(&secret).unwrap().sk_to_pk().to_bytes()
        })
        // 2^381 is about 1.23 times the modulus.
        .find(|p| p[0] & 0x1f < 0x05)
        .unwrap()
}

/// The same point with x plus the modulus as its coordinate.
fn add_modulus(point: [u8; 48]) -> [u8; 48] {
    let flags = point[0] & 0xe0;
    let modulus = modulus_plus(0);
    let mut out = [0; 48];
    let mut carry = 0u16;
    for i in (0..48).rev() {
        let digit = if i == 0 { point[0] & 0x1f } else { point[i] };
        let sum = u16::from(digit) + u16::from(modulus[i]) + carry;
        out[i] = sum as u8;
        carry = sum >> 8;
    }
    assert!(carry == 0 && out[0] < 0x20);
    out[0] |= flags;
    out
}
