//! Secret keys of seats and homes, their file form, and the development dealer.

use crate::evidence::{EvidenceError, EvidenceKey, record_hash};
use crate::params::Params;
use crate::record::{
    HomeRecord, KeyOrigin, MarketRecord, RecordError, SeatRecord, SignedMarketRecord, rules_hash,
};
use rand_core::{CryptoRng, RngCore};
use serde::{Deserialize, Serialize};
use vendue_market::Digest;
use vendue_market::encode::{Writer, from_hex, to_hex};
use vendue_sealed_bid::{BidKey, CryptoError, SealShare, VoteKey, check_seal_key, check_vote_key};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Why keys are refused or cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not a key file.
    #[error("key file does not parse: {0}")]
    Parse(String),
    /// A key in the file is malformed.
    #[error("{0} in the key file is not 32 bytes of hex or not a valid secret")]
    Field(&'static str),
    /// The keys are not those of this seat or home in the market record.
    #[error("{0} does not match the market record")]
    Mismatch(&'static str),
    /// Making keys failed.
    #[error("dealing keys: {0}")]
    Crypto(#[from] CryptoError),
    /// Making evidence keys failed.
    #[error("dealing keys: {0}")]
    Evidence(#[from] EvidenceError),
    /// The record that results is refused.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// A seat's secret keys. No `Debug`; wiped when dropped.
pub struct SeatKeys {
    /// The seat.
    pub seat: u16,
    /// Signs messages.
    pub evidence: EvidenceKey,
    /// Signs votes.
    pub vote: VoteKey,
    /// Opens rounds.
    pub share: SealShare,
    /// Derives sealing seeds.
    pub bid: BidKey,
}

/// The file form of a seat's keys.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
struct SeatKeyFile {
    seat: u16,
    evidence: String,
    vote: String,
    seal_share: String,
    bid: String,
}

/// The file form of a home's key.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
struct HomeKeyFile {
    user: String,
}

fn secret(text: &str, what: &'static str) -> Result<Zeroizing<[u8; 32]>, KeyError> {
    let bytes = Zeroizing::new(from_hex(text).ok_or(KeyError::Field(what))?);
    bytes.as_slice().try_into().map(Zeroizing::new).map_err(|_| KeyError::Field(what))
}

impl SeatKeys {
    /// Reads the file form.
    pub fn from_json(text: &str) -> Result<Self, KeyError> {
        let file: SeatKeyFile = serde_json::from_str(text).map_err(|e| KeyError::Parse(e.to_string()))?;
        Ok(Self {
            seat: file.seat,
            evidence: EvidenceKey::from_bytes(&*secret(&file.evidence, "evidence")?)?,
            vote: VoteKey::from_bytes(&*secret(&file.vote, "vote")?)?,
            share: SealShare::from_bytes(&*secret(&file.seal_share, "seal_share")?)?,
            bid: BidKey::from_bytes(*secret(&file.bid, "bid")?),
        })
    }
    /// Writes the file form.
    pub fn to_json(&self) -> Zeroizing<String> {
        let file = SeatKeyFile {
            seat: self.seat,
            evidence: to_hex(&*self.evidence.to_bytes()),
            vote: to_hex(&*self.vote.to_bytes()),
            seal_share: to_hex(&*self.share.to_bytes()),
            bid: to_hex(&*self.bid.to_bytes()),
        };
        Zeroizing::new(serde_json::to_string_pretty(&file).unwrap_or_default())
    }
    /// Checks that these are the keys of this seat in the record.
    pub fn check(&self, record: &MarketRecord) -> Result<(), KeyError> {
        let seat = record.seat(self.seat).ok_or(KeyError::Mismatch("seat number"))?;
        if self.evidence.public_key() != seat.evidence_key {
            return Err(KeyError::Mismatch("evidence key"));
        }
        if self.vote.public_key() != seat.vote_key {
            return Err(KeyError::Mismatch("vote key"));
        }
        if self.share.verification_key()? != seat.seal_share_key {
            return Err(KeyError::Mismatch("seal share"));
        }
        Ok(())
    }
}

/// A home's secret key. No `Debug`; wiped when dropped.
pub struct HomeKeys {
    /// Signs orders.
    pub user: EvidenceKey,
}

impl HomeKeys {
    /// Reads the file form.
    pub fn from_json(text: &str) -> Result<Self, KeyError> {
        let file: HomeKeyFile = serde_json::from_str(text).map_err(|e| KeyError::Parse(e.to_string()))?;
        Ok(Self { user: EvidenceKey::from_bytes(&*secret(&file.user, "user")?)? })
    }
    /// Writes the file form.
    pub fn to_json(&self) -> Zeroizing<String> {
        let file = HomeKeyFile { user: to_hex(&*self.user.to_bytes()) };
        Zeroizing::new(serde_json::to_string_pretty(&file).unwrap_or_default())
    }
    /// Checks that the key is that of a home in the record, and says which.
    pub fn check(&self, record: &MarketRecord) -> Result<u16, KeyError> {
        record.home_of_key(&self.user.public_key()).ok_or(KeyError::Mismatch("user key"))
    }
}

/// A member of the market to be dealt.
#[derive(Debug, Clone)]
pub struct MemberSpec {
    /// The provider's or home's name.
    pub name: String,
    /// Its libp2p peer id.
    pub peer_id: String,
    /// Its multiaddrs.
    pub addresses: Vec<String>,
}

/// What a dealer makes.
#[derive(Debug, Clone)]
pub struct DealSpec {
    /// The market's name.
    pub name: String,
    /// The clock of rounds.
    pub params: Params,
    /// Providers, by seat.
    pub seats: Vec<MemberSpec>,
    /// Homes.
    pub homes: Vec<MemberSpec>,
}

/// What a dealer made.
pub struct Dealt {
    /// The public record.
    pub record: SignedMarketRecord,
    /// Secret keys by seat.
    pub seats: Vec<SeatKeys>,
    /// Secret keys by home.
    pub homes: Vec<HomeKeys>,
}

/// What a proof of possession binds besides the key.
fn possession_context(market: &Digest, epoch: u32, seat: u16, peer_id: &str) -> Vec<u8> {
    let mut w = Writer::new();
    w.raw(market).u32(epoch).u16(seat).str(peer_id);
    w.finish()
}

/// Checks the public keys of a record, proofs of possession included.
pub(crate) fn check_public_keys(record: &MarketRecord) -> Result<(), RecordError> {
    let refuse = |seat, what| move |e: CryptoError| RecordError::Key { seat, what, reason: e.to_string() };
    check_seal_key(&record.seal_key).map_err(refuse(0, "epoch seal key"))?;
    for seat in &record.seats {
        check_seal_key(&seat.seal_share_key).map_err(refuse(seat.index, "seal share key"))?;
        let context = possession_context(&record.market, record.epoch, seat.index, &seat.peer_id);
        check_vote_key(&seat.vote_key, &seat.vote_key_proof, &context)
            .map_err(refuse(seat.index, "vote key"))?;
    }
    Ok(())
}

fn random<R: RngCore + CryptoRng>(rng: &mut R) -> Zeroizing<[u8; 32]> {
    let mut bytes = Zeroizing::new([0; 32]);
    rng.fill_bytes(bytes.as_mut_slice());
    bytes
}

fn evidence_key<R: RngCore + CryptoRng>(rng: &mut R) -> Result<EvidenceKey, KeyError> {
    Ok(EvidenceKey::from_bytes(&random(rng))?)
}

/// Makes all keys of a development market. Whoever runs this could read every bid, so the record says so.
pub fn deal<R: RngCore + CryptoRng>(spec: &DealSpec, rng: &mut R) -> Result<Dealt, KeyError> {
    let n = u16::try_from(spec.seats.len()).map_err(|_| KeyError::Mismatch("number of seats"))?;
    let quorum = n - n.saturating_sub(1) / 3;
    let market = *random(rng);
    let dealt = vendue_sealed_bid::deal(n, quorum, rng)?;
    let mut seats = Vec::new();
    let mut seat_records = Vec::new();
    let shares = dealt.shares.into_iter().zip(dealt.verification_keys);
    for ((index, member), (share, seal_share_key)) in (0u16..).zip(&spec.seats).zip(shares) {
        let keys = SeatKeys {
            seat: index,
            evidence: evidence_key(rng)?,
            vote: VoteKey::generate(&random(rng))?,
            share,
            bid: BidKey::from_bytes(*random(rng)),
        };
        seat_records.push(SeatRecord {
            index,
            provider: member.name.clone(),
            evidence_key: keys.evidence.public_key(),
            vote_key: keys.vote.public_key(),
            vote_key_proof: keys.vote.prove(&possession_context(&market, 0, index, &member.peer_id)),
            seal_share_key,
            peer_id: member.peer_id.clone(),
            addresses: member.addresses.clone(),
        });
        seats.push(keys);
    }
    let mut homes = Vec::new();
    let mut home_records = Vec::new();
    for member in &spec.homes {
        let keys = HomeKeys { user: evidence_key(rng)? };
        home_records.push(HomeRecord {
            name: member.name.clone(),
            user_key: keys.user.public_key(),
            peer_id: member.peer_id.clone(),
            addresses: member.addresses.clone(),
        });
        homes.push(keys);
    }
    let record = MarketRecord {
        version: 1,
        name: spec.name.clone(),
        market,
        epoch: 0,
        seats: seat_records,
        homes: home_records,
        seal_key: dealt.seal_key,
        params: spec.params,
        rules_hash: rules_hash(),
        key_origin: KeyOrigin::InsecureDealer,
    };
    record.validate()?;
    let issuer = evidence_key(rng)?;
    let signature = issuer.sign(&record_hash(&record));
    let record = SignedMarketRecord { record, issuer_key: issuer.public_key(), signature };
    Ok(Dealt { record, seats, homes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha20Rng;
    use rand_chacha::rand_core::SeedableRng;

    #[test]
    fn dealt_files_read_back_and_fit_the_record() {
        let member =
            |name: &str| MemberSpec { name: name.into(), peer_id: format!("id-{name}"), addresses: vec![] };
        let spec = DealSpec {
            name: "demo".into(),
            params: Params { delay_ms: 100, period_ms: 600, genesis_ms: 0, handover_ms: 5000 },
            seats: ["alpha", "bravo", "charlie", "delta"].map(member).to_vec(),
            homes: vec![member("home")],
        };
        let dealt = deal(&spec, &mut ChaCha20Rng::seed_from_u64(1)).unwrap();
        let read = SignedMarketRecord::from_json(&dealt.record.to_json()).unwrap();
        assert_eq!(read, dealt.record);
        assert_eq!((read.record.n(), read.record.f(), read.record.q()), (4, 1, 3));
        for keys in &dealt.seats {
            SeatKeys::from_json(&keys.to_json()).unwrap().check(&read.record).unwrap();
        }
        let home = HomeKeys::from_json(&dealt.homes[0].to_json()).unwrap();
        assert_eq!(home.check(&read.record), Ok(0));

        let mut other = read.clone();
        other.record.params.delay_ms = 99;
        assert!(matches!(SignedMarketRecord::from_json(&other.to_json()), Err(RecordError::Signature(_))));
        let mut swapped = read.record.clone();
        swapped.seats[0].vote_key_proof = swapped.seats[1].vote_key_proof;
        assert!(matches!(swapped.validate(), Err(RecordError::Key { seat: 0, what: "vote key", .. })));
    }
}
