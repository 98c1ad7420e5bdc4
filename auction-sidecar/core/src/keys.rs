//! Secret keys of seats and homes, their file form, and the development dealer.
//!
//! Inputs: key files, or a random source. Outputs: keys and the public record that goes with them. Invariant: secrets
//! are in memory that is wiped when dropped, and public keys that do not belong together are refused.

use crate::evidence::{EvidenceError, EvidenceKey};
use crate::params::Params;
use crate::record::{
    HomeRecord, KeyOrigin, MarketRecord, RecordError, SeatRecord, SignedMarketRecord, rules_hash_of,
};
use crate::secret::{self, SecretBytes};
use rand_core::{CryptoRng, RngCore};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use vendue_market::ClearingRules;
use vendue_market::Digest;
use vendue_market::encode::Writer;
use vendue_sealed_bid::{
    BidKey, CryptoError, SealShare, VoteKey, check_key_set, check_seal_key, check_vote_key,
};
use zeroize::Zeroizing;

/// Why keys are refused or cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not a key file.
    #[error("key file does not parse: {0}")]
    Parse(String),
    /// A key in the file is malformed.
    #[error("{0} in the key file is not a valid secret")]
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

/// The file form of a seat's keys. No `Debug`; wiped when dropped.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeatKeyFile {
    seat: u16,
    evidence: SecretBytes,
    vote: SecretBytes,
    seal_share: SecretBytes,
    bid: SecretBytes,
}

/// The file form of a home's key. No `Debug`; wiped when dropped.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HomeKeyFile {
    user: SecretBytes,
}

impl SeatKeys {
    /// The keys in a file.
    pub fn from_file(file: &SeatKeyFile) -> Result<Self, KeyError> {
        Ok(Self {
            seat: file.seat,
            evidence: EvidenceKey::from_bytes(file.evidence.bytes())
                .map_err(|_| KeyError::Field("evidence"))?,
            vote: VoteKey::from_bytes(file.vote.bytes()).map_err(|_| KeyError::Field("vote"))?,
            share: SealShare::from_bytes(file.seal_share.bytes())
                .map_err(|_| KeyError::Field("seal_share"))?,
            bid: BidKey::from_bytes(file.bid.bytes()),
        })
    }
    /// The file form.
    pub fn to_file(&self) -> SeatKeyFile {
        SeatKeyFile {
            seat: self.seat,
            evidence: SecretBytes::new(self.evidence.to_bytes()),
            vote: SecretBytes::new(self.vote.to_bytes()),
            seal_share: SecretBytes::new(self.share.to_bytes()),
            bid: SecretBytes::new(self.bid.to_bytes()),
        }
    }
    /// Reads the file form.
    pub fn from_json(text: &str) -> Result<Self, KeyError> {
        Self::from_file(&secret::from_json(text).map_err(KeyError::Parse)?)
    }
    /// Writes the file form.
    pub fn to_json(&self) -> Zeroizing<String> {
        // A number and four secrets always fit.
        secret::to_json(&self.to_file()).unwrap_or_default()
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
    /// Signs orders, and the closes of their awards elsewhere.
    pub user: Arc<EvidenceKey>,
}

impl HomeKeys {
    /// The key in a file.
    pub fn from_file(file: &HomeKeyFile) -> Result<Self, KeyError> {
        let user = EvidenceKey::from_bytes(file.user.bytes()).map_err(|_| KeyError::Field("user"))?;
        Ok(Self { user: Arc::new(user) })
    }
    /// The file form.
    pub fn to_file(&self) -> HomeKeyFile {
        HomeKeyFile { user: SecretBytes::new(self.user.to_bytes()) }
    }
    /// Reads the file form.
    pub fn from_json(text: &str) -> Result<Self, KeyError> {
        Self::from_file(&secret::from_json(text).map_err(KeyError::Parse)?)
    }
    /// Writes the file form.
    pub fn to_json(&self) -> Zeroizing<String> {
        // One secret always fits.
        secret::to_json(&self.to_file()).unwrap_or_default()
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
    /// The key that it is signed with, and the records after it.
    pub issuer: EvidenceKey,
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
        let context = possession_context(&record.market, record.proofs_epoch(), seat.index, &seat.peer_id);
        check_vote_key(&seat.vote_key, &seat.vote_key_proof, &context)
            .map_err(refuse(seat.index, "vote key"))?;
    }
    let shares: Vec<[u8; 48]> = record.seats.iter().map(|s| s.seal_share_key).collect();
    check_key_set(&record.seal_key, &shares, record.q()).map_err(RecordError::ShareKeys)
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
    deal_with(spec, ClearingRules::latest(), rng)
}

/// [`deal`] for a market whose record says more of its seats.
pub fn deal_with<R: RngCore + CryptoRng>(
    spec: &DealSpec,
    clearing: ClearingRules,
    rng: &mut R,
) -> Result<Dealt, KeyError> {
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
            bid: BidKey::from_bytes(&random(rng)),
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
        let keys = HomeKeys { user: Arc::new(evidence_key(rng)?) };
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
        rules_hash: rules_hash_of(clearing.version),
        clearing,
        key_origin: KeyOrigin::InsecureDealer,
        generation: None,
    };
    record.validate()?;
    let issuer = evidence_key(rng)?;
    let record = SignedMarketRecord::sign(record, &issuer);
    Ok(Dealt { record, issuer, seats, homes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::ParamError;
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

    #[test]
    fn share_keys_that_are_not_the_seal_keys_are_refused() {
        let member = |name: String| MemberSpec { peer_id: format!("id-{name}"), name, addresses: vec![] };
        let mut rng = ChaCha20Rng::seed_from_u64(2);
        let params = Params { delay_ms: 100, period_ms: 600, genesis_ms: 0, handover_ms: 5000 };
        for n in [1u16, 2, 3, 4, 7] {
            let seats = (0..n).map(|i| member(format!("p{i}"))).collect();
            let spec = DealSpec { name: "m".into(), params, seats, homes: vec![] };
            let good = deal(&spec, &mut rng).unwrap().record.record;
            let other = deal(&spec, &mut rng).unwrap().record.record;
            assert_eq!(good.validate(), Ok(()));
            let wrong = |record: MarketRecord| {
                let error = record.validate().unwrap_err();
                let degree = good.q() - 1;
                assert_eq!(error, RecordError::ShareKeys(CryptoError::KeySet { degree }), "{n} seats");
            };
            for seat in 0..usize::from(n) {
                let mut one = good.clone();
                one.seats[seat].seal_share_key = other.seats[seat].seal_share_key;
                wrong(one);
            }
            wrong(MarketRecord { seal_key: other.seal_key, ..good.clone() });
            let mut swapped = good.clone();
            let (first, last) = (good.seats[0].seal_share_key, good.seats[usize::from(n) - 1].seal_share_key);
            (swapped.seats[0].seal_share_key, swapped.seats[usize::from(n) - 1].seal_share_key) =
                (last, first);
            if n > 1 {
                wrong(swapped);
            }
        }
    }

    #[test]
    fn a_clock_that_cannot_run_is_refused_by_field() {
        let member = MemberSpec { name: "a".into(), peer_id: "id-a".into(), addresses: vec![] };
        let params = Params { delay_ms: 100, period_ms: 600, genesis_ms: 0, handover_ms: 2 };
        let spec = DealSpec { name: "m".into(), params, seats: vec![member], homes: vec![] };
        let error = deal(&spec, &mut ChaCha20Rng::seed_from_u64(3)).map(|_| ()).unwrap_err();
        assert!(matches!(
            error,
            KeyError::Record(RecordError::Params(ParamError {
                field: "handover_ms",
                value: 2,
                least: 600,
                ..
            }))
        ));
    }

    #[test]
    fn key_files_are_strict_and_their_errors_quote_nothing() {
        let good =
            "{\"seat\": 0, \"evidence\": \"E\", \"vote\": \"E\", \"seal_share\": \"E\", \"bid\": \"E\"}"
                .replace('E', &"07".repeat(32));
        assert_eq!(SeatKeys::from_json(&good).unwrap().seat, 0);
        let zero = good.replacen("07", "00", 32);
        assert_eq!(SeatKeys::from_json(&zero).map(|_| ()), Err(KeyError::Field("evidence")));
        for bad in [
            good.replacen("07", "0", 1),
            good.replacen("\"bid\"", "\"bit\"", 1),
            good.replacen('0', "\"07\"", 1),
        ] {
            let error = SeatKeys::from_json(&bad).map(|_| ()).unwrap_err();
            assert!(matches!(&error, KeyError::Parse(text) if !text.contains("07")), "{error}");
        }
    }
}
