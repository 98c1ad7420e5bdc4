//! Seats with fixed keys, an honest run of key generation, and a dealer that says what a test wants.
#![allow(dead_code, clippy::unwrap_used)] // Each test file takes a part; helpers of tests fail like tests.

use blst::min_sig;
use sha2::{Digest, Sha256};
use vendue_sealed_bid::dkg::{
    DealKey, Dealer, DealerSeed, KeySet, Log, Outcome, Player, Purpose, Setup, outcome, quorum,
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
    pub fn setup_for(&self, purpose: Purpose, attempt: u32) -> Setup {
        let deal: Vec<_> = self.deal.iter().map(|k| k.public_key().unwrap()).collect();
        Setup::new(purpose, &MARKET, EPOCH, attempt, vote_key_set(&self.vote), &deal).unwrap()
    }
    pub fn setup(&self) -> Setup {
        self.setup_for(Purpose::Key, 0)
    }
    pub fn dealer<'a>(&'a self, setup: &'a Setup, seat: u16) -> Dealer<'a> {
        let s = usize::from(seat);
        Dealer::new(setup, seat, &self.seeds[s], &self.vote[s]).unwrap()
    }
    pub fn player<'a>(&'a self, setup: &'a Setup, seat: u16) -> Player<'a> {
        let s = usize::from(seat);
        Player::new(setup, seat, &self.vote[s], &self.deal[s]).unwrap()
    }
    pub fn players<'a>(&'a self, setup: &'a Setup) -> Vec<Player<'a>> {
        (0..self.n).map(|seat| self.player(setup, seat)).collect()
    }
    /// A dealer's log after all players but those in `silent` have acknowledged.
    pub fn log(&self, setup: &Setup, dealer: u16, players: &mut [Player<'_>], silent: &[u16]) -> Vec<u8> {
        let mut dealer = self.dealer(setup, dealer);
        for (seat, player) in (0u16..).zip(players).filter(|(seat, _)| !silent.contains(seat)) {
            let (_, ack) = player.receive(&dealer.dealing(seat).unwrap()).unwrap();
            dealer.acknowledge(seat, &ack).unwrap();
        }
        dealer.log().unwrap()
    }
    /// Everybody is honest: the logs of `dealers`, and every seat's share. A log cannot be copied, so it is a function.
    pub fn run(
        &self,
        setup: &Setup,
        dealers: &[u16],
        old: Option<&[SealShare]>,
    ) -> (Outcome, Vec<SealShare>) {
        let mut players = self.players(setup);
        let logs: Vec<Log> = dealers
            .iter()
            .map(|d| Log::verify(setup, &self.log(setup, *d, &mut players, &[])).unwrap())
            .collect();
        let share = |(seat, player): (usize, &Player<'_>)| match old {
            None => player.share(&logs).unwrap().1,
            Some(old) => player.refreshed(&logs, &old[seat]).unwrap().1,
        };
        let shares = players.iter().enumerate().map(share).collect();
        (outcome(setup, &logs).unwrap(), shares)
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
    /// Signs the body of a log anew.
    pub fn sign_log(&self, setup: &Setup, dealer: u16, body: &[u8]) -> Vec<u8> {
        let message =
            [&[3], setup.digest().as_slice(), &dealer.to_be_bytes(), Sha256::digest(body).as_slice()]
                .concat();
        [body, &self.sign_dkg(dealer, &message)].concat()
    }
    /// A dealing with this commitment and envelope.
    pub fn forge_dealing(
        &self,
        setup: &Setup,
        dealer: u16,
        player: u16,
        points: &[u8],
        envelope: &[u8],
    ) -> Vec<u8> {
        let (from, to) = (dealer.to_be_bytes(), player.to_be_bytes());
        let digest = commitment_digest(setup, dealer, points);
        let message = [&[1], setup.digest().as_slice(), &from, &to, &digest, envelope].concat();
        let signature = self.sign_dkg(dealer, &message);
        [&[1], setup.digest().as_slice(), &from, &to, points, envelope, &signature].concat()
    }
    /// The acknowledgement of a commitment by a seat that checks nothing.
    pub fn blind_ack(&self, setup: &Setup, dealer: u16, player: u16, points: &[u8]) -> [u8; 48] {
        let message = [
            &[2],
            setup.digest().as_slice(),
            &dealer.to_be_bytes(),
            &commitment_digest(setup, dealer, points),
        ]
        .concat();
        self.sign_dkg(player, &message)
    }
    /// A log with this commitment that the `acks` acknowledge unseen, and these reveals.
    pub fn forge_log(
        &self,
        setup: &Setup,
        dealer: u16,
        points: &[u8],
        acks: &[u16],
        reveals: &[[u8; 32]],
    ) -> Vec<u8> {
        let signatures: Vec<_> =
            acks.iter().map(|a| (*a, self.blind_ack(setup, dealer, *a, points))).collect();
        let mut body = vec![1];
        body.extend(setup.digest());
        body.extend(dealer.to_be_bytes());
        body.extend(points);
        body.extend(MultiVote::new(self.n, &signatures).unwrap().to_bytes());
        reveals.iter().for_each(|share| body.extend(share));
        self.sign_log(setup, dealer, &body)
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

pub fn commitment_digest(setup: &Setup, dealer: u16, points: &[u8]) -> [u8; 32] {
    Sha256::new()
        .chain_update(b"VENDUE-V1-DKG-COMMITMENT")
        .chain_update(setup.digest())
        .chain_update(dealer.to_be_bytes())
        .chain_update(points)
        .finalize()
        .into()
}

/// Where a log keeps its commitment, for a setup of a new key.
pub fn points_of(setup: &Setup, log: &[u8]) -> Vec<u8> {
    log[35..35 + 48 * usize::from(setup.quorum())].to_vec()
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
