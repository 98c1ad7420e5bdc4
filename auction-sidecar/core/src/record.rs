//! The market record: the signed, public description of a market that every verification starts from.
//!
//! It names the seats with their keys and addresses, the homes, the epoch's seal key and the clock of rounds. Its
//! JSON form has a fixed field order, so the compact JSON bytes are canonical and their digest names the record. What
//! clearing may know of a seat beyond its bundle stands here too, so that a record is all that clearing again takes.

use crate::evidence::{EvidenceError, EvidenceKey, recover};
use crate::keygen::Generation;
use crate::params::{ParamError, Params};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use vendue_market::encode::hex_array;
use vendue_market::{ClearingRules, Digest, FIRST_RULES, LATEST_RULES, RulesError, tagged_hash};
use vendue_sealed_bid::CryptoError;

/// Most seats of a market.
pub const MAX_SEATS: usize = 256;
/// Most homes of a market.
pub const MAX_HOMES: usize = 4096;

/// One provider cluster's place in the market.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeatRecord {
    /// Position, counted from 0.
    pub index: u16,
    /// The provider's name.
    pub provider: String,
    /// Evidence key, secp256k1, compressed.
    #[serde(with = "hex_array")]
    pub evidence_key: [u8; 33],
    /// Vote key, BLS min-sig.
    #[serde(with = "hex_array")]
    pub vote_key: [u8; 96],
    /// Proof of possession of the vote key.
    #[serde(with = "hex_array")]
    pub vote_key_proof: [u8; 48],
    /// Verification key of the seat's seal share.
    #[serde(with = "hex_array")]
    pub seal_share_key: [u8; 48],
    /// libp2p peer id in its usual text form.
    pub peer_id: String,
    /// Addresses to dial, as multiaddrs.
    pub addresses: Vec<String>,
}

/// One user cluster that may place orders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HomeRecord {
    /// The cluster's name.
    pub name: String,
    /// The key that signs its orders, secp256k1, compressed.
    #[serde(with = "hex_array")]
    pub user_key: [u8; 33],
    /// libp2p peer id in its usual text form.
    pub peer_id: String,
    /// Addresses to dial, as multiaddrs; may be empty, since homes dial the seats.
    #[serde(default)]
    pub addresses: Vec<String>,
}

/// Where the seats' secret keys come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyOrigin {
    /// One dealer made them all and could read every bid: for development only.
    InsecureDealer,
    /// The seats generated them together.
    Distributed,
}

/// The market record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MarketRecord {
    /// Form of the record; 1.
    pub version: u32,
    /// The market's name.
    pub name: String,
    /// The market's id.
    #[serde(with = "hex_array")]
    pub market: Digest,
    /// Key epoch.
    pub epoch: u32,
    /// Seats by index.
    pub seats: Vec<SeatRecord>,
    /// Homes that may place orders.
    pub homes: Vec<HomeRecord>,
    /// The epoch's seal key, BLS min-pk.
    #[serde(with = "hex_array")]
    pub seal_key: [u8; 48],
    /// The clock of rounds.
    pub params: Params,
    /// Names the code that clears by the rules below.
    #[serde(with = "hex_array")]
    pub rules_hash: Digest,
    /// Version of the rules of clearing, and their tables; left out for the first rules.
    #[serde(default, skip_serializing_if = "ClearingRules::is_default")]
    pub clearing: ClearingRules,
    /// Where the keys come from.
    pub key_origin: KeyOrigin,
    /// How the seats generated the keys, where they did so for this epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
}

/// A member of the market as the transport sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// The seat with this index.
    Seat(u16),
    /// The home at this position of the record.
    Home(u16),
}

/// Why a market record is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Not JSON of the right shape.
    #[error("market record does not parse: {0}")]
    Parse(String),
    /// Written in a form that this program does not know.
    #[error("market record has version {0}; accepted is 1")]
    Version(u32),
    /// Too few, too many or misnumbered seats or homes.
    #[error("market record is inconsistent: {0}")]
    Inconsistent(&'static str),
    /// A parameter of the clock is not usable.
    #[error("market record: {0}")]
    Params(#[from] ParamError),
    /// The rules of clearing are not usable.
    #[error("market record: {0}")]
    Rules(#[from] RulesError),
    /// The seats' seal share keys are not those of the epoch's seal key.
    #[error("market record: {0}")]
    ShareKeys(CryptoError),
    /// A key is not acceptable.
    #[error("market record: {what} of seat {seat} is refused: {reason}")]
    Key {
        /// The seat.
        seat: u16,
        /// Which key.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// The signature is not the issuer's.
    #[error("market record is not signed by its issuer: {0}")]
    Signature(#[from] EvidenceError),
}

/// The latest rules of clearing that this program implements; part of what is agreed in every round.
pub fn rules_hash() -> Digest {
    rules_hash_of(LATEST_RULES)
}

/// The rules of clearing of a version, as this program implements them.
pub fn rules_hash_of(version: u32) -> Digest {
    let rules: &[u8] = match version {
        FIRST_RULES => b"first price; beacon order; two stand-bys; one model per order; 1",
        2 => b"first or second price; terms; score; beacon order; two stand-bys; one model per order; 2",
        _ => b"first or second price; terms; score; devices; beacon order; two stand-bys; one model per order; 3",
    };
    tagged_hash("VENDUE-V1-RULES", &[rules])
}

impl MarketRecord {
    /// Number of seats.
    pub fn n(&self) -> u16 {
        self.seats.len() as u16
    }
    /// Faults that the market tolerates.
    pub fn f(&self) -> u16 {
        self.n().saturating_sub(1) / 3
    }
    /// Seats that make a quorum: n - f.
    pub fn q(&self) -> u16 {
        self.n() - self.f()
    }
    /// The seat with this index.
    pub fn seat(&self, index: u16) -> Option<&SeatRecord> {
        self.seats.get(usize::from(index))
    }
    /// The home at this position.
    pub fn home(&self, index: u16) -> Option<&HomeRecord> {
        self.homes.get(usize::from(index))
    }
    /// The position of the home that signs with `user_key`.
    pub fn home_of_key(&self, user_key: &[u8; 33]) -> Option<u16> {
        self.homes.iter().position(|h| &h.user_key == user_key).map(|i| i as u16)
    }
    /// The member with this peer id; a seat before a home where one cluster is both.
    pub fn peer(&self, peer_id: &str) -> Option<Peer> {
        let seat = self.seats.iter().find(|s| s.peer_id == peer_id).map(|s| Peer::Seat(s.index));
        seat.or_else(|| self.homes.iter().position(|h| h.peer_id == peer_id).map(|i| Peer::Home(i as u16)))
    }
    /// The epoch for which the vote keys were proven: they stay when the seal key changes.
    pub fn proofs_epoch(&self) -> u32 {
        self.generation.as_ref().map_or(self.epoch, |made| made.proofs_epoch)
    }
    /// The first 8 bytes of the market id, as headers carry it.
    pub fn short_id(&self) -> [u8; 8] {
        let [a, b, c, d, e, f, g, h, ..] = self.market;
        [a, b, c, d, e, f, g, h]
    }
    /// Canonical bytes: compact JSON with fixed field order.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Serialising to memory fails only for maps with non-string keys, which a record does not have.
        serde_json::to_vec(self).unwrap_or_default()
    }
    /// The digest that names the record.
    pub fn digest(&self) -> Digest {
        tagged_hash("VENDUE-V1-RECORD", &[&self.to_bytes()])
    }

    /// Checks numbers, sizes and every public key, proofs of possession included.
    pub fn validate(&self) -> Result<(), RecordError> {
        if self.version != 1 {
            return Err(RecordError::Version(self.version));
        }
        if self.seats.is_empty() || self.seats.len() > MAX_SEATS {
            return Err(RecordError::Inconsistent("a market has 1 to 256 seats"));
        }
        if self.homes.len() > MAX_HOMES {
            return Err(RecordError::Inconsistent("a market has at most 4096 homes"));
        }
        if !self.seats.iter().enumerate().all(|(i, s)| usize::from(s.index) == i) {
            return Err(RecordError::Inconsistent("seats are not numbered from 0"));
        }
        if self.generation.is_some() && self.key_origin != KeyOrigin::Distributed {
            return Err(RecordError::Inconsistent("generated keys are said to be a dealer's"));
        }
        self.clearing.check(self.n())?;
        if self.rules_hash != rules_hash_of(self.clearing.version) {
            return Err(RecordError::Inconsistent("the rules of clearing are not those of this program"));
        }
        self.params.check()?;
        let unique = |keys: Vec<&[u8]>| keys.iter().collect::<BTreeSet<_>>().len() == keys.len();
        let seats = || self.seats.iter();
        let distinct = [
            (seats().map(|s| s.evidence_key.as_slice()).collect(), "two seats have one evidence key"),
            (seats().map(|s| s.vote_key.as_slice()).collect(), "two seats have one vote key"),
            (seats().map(|s| s.seal_share_key.as_slice()).collect(), "two seats have one seal share key"),
            (seats().map(|s| s.peer_id.as_bytes()).collect(), "two seats have one peer id"),
            (self.homes.iter().map(|h| h.user_key.as_slice()).collect(), "two homes have one user key"),
            (self.homes.iter().map(|h| h.peer_id.as_bytes()).collect(), "two homes have one peer id"),
        ];
        if let Some((_, what)) =
            distinct.into_iter().find(|(keys, _): &(Vec<&[u8]>, _)| !unique(keys.clone()))
        {
            return Err(RecordError::Inconsistent(what));
        }
        crate::keys::check_public_keys(self)
    }
}

/// A market record with its issuer's signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedMarketRecord {
    /// The record.
    pub record: MarketRecord,
    /// The issuer's key, secp256k1, compressed.
    #[serde(with = "hex_array")]
    pub issuer_key: [u8; 33],
    /// The issuer's evidence signature over the record's digest.
    #[serde(with = "hex_array")]
    pub signature: [u8; 65],
}

impl SignedMarketRecord {
    /// Signs a record as its issuer.
    pub fn sign(record: MarketRecord, issuer: &EvidenceKey) -> Self {
        let signature = issuer.sign(&crate::evidence::record_hash(&record));
        Self { record, issuer_key: issuer.public_key(), signature }
    }
    /// Reads and checks a record: shape, signature, numbers and keys.
    pub fn from_json(text: &str) -> Result<Self, RecordError> {
        let signed: Self = serde_json::from_str(text).map_err(|e| RecordError::Parse(e.to_string()))?;
        let hash = crate::evidence::record_hash(&signed.record);
        if recover(&hash, &signed.signature)? != signed.issuer_key {
            return Err(RecordError::Signature(EvidenceError::WrongKey));
        }
        signed.record.validate()?;
        Ok(signed)
    }
    /// The JSON form for files, Secrets and ConfigMaps.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::justify::set_digest;
    use crate::keys::{DealSpec, MemberSpec, deal};
    use rand_chacha::ChaCha20Rng;
    use rand_chacha::rand_core::SeedableRng;
    use vendue_market::SeatFacts;

    fn mk_record() -> MarketRecord {
        let member = |name: &str| MemberSpec { name: name.into(), peer_id: name.into(), addresses: vec![] };
        let spec = DealSpec {
            name: "m".into(),
            params: Params { delay_ms: 100, period_ms: 600, genesis_ms: 0, handover_ms: 5000 },
            seats: vec![member("a")],
            homes: vec![],
        };
        deal(&spec, &mut ChaCha20Rng::seed_from_u64(5)).unwrap().record.record
    }

    #[test]
    fn seats_whose_tables_differ_name_the_same_set_differently() {
        let record = mk_record();
        let mut other = record.clone();
        other.clearing.seats = vec![SeatFacts { region: "eu".into(), ..SeatFacts::default() }];
        assert_eq!(other.validate(), Ok(()));
        assert_ne!(set_digest(&record, 1, &[]), set_digest(&other, 1, &[]));
    }

    #[test]
    fn a_record_without_a_word_about_clearing_has_the_first_rules() {
        let mut record = mk_record();
        record.clearing = ClearingRules::default();
        record.rules_hash = rules_hash_of(FIRST_RULES);
        assert_eq!(record.validate(), Ok(()));
        let json = String::from_utf8(record.to_bytes()).unwrap();
        assert!(!json.contains("clearing"), "the bytes that name such a record are unchanged");
        assert_eq!(serde_json::from_str::<MarketRecord>(&json).unwrap(), record);
        let hash = vendue_market::encode::to_hex(&record.rules_hash);
        assert_eq!(hash, "f25e260dd81ed1298cff50701d785b673c9b74abe4ee79dd618126e38b12ca3f");
    }

    #[test]
    fn the_rules_of_a_version_keep_their_hash() {
        let hash = |version| vendue_market::encode::to_hex(&rules_hash_of(version));
        assert_eq!(hash(2), "47eed6c5c40b6852e6d45c20d8b1d8ce9b7afcf970e1b4c8b855efe620fb85b9");
        assert_eq!(rules_hash(), rules_hash_of(3));
        assert_ne!(hash(2), hash(3));
    }

    #[test]
    fn rules_tables_and_their_hash_are_checked() {
        let good = mk_record();
        assert_eq!((good.validate(), good.clearing.version), (Ok(()), LATEST_RULES));
        let other = "the rules of clearing are not those of this program";
        let hash = rules_hash_of(FIRST_RULES);
        let wrong = MarketRecord { rules_hash: hash, ..good.clone() }.validate();
        assert_eq!(wrong, Err(RecordError::Inconsistent(other)));
        let with = |version, seats: usize| {
            let clearing =
                ClearingRules { version, seats: vec![SeatFacts::default(); seats], ..good.clearing.clone() };
            MarketRecord { clearing, ..good.clone() }.validate()
        };
        assert_eq!(with(LATEST_RULES, 1), Ok(()));
        assert_eq!(with(LATEST_RULES, 2), Err(RecordError::Rules(RulesError::Seats { found: 2, seats: 1 })));
        assert_eq!(with(4, 0), Err(RecordError::Rules(RulesError::Version(4))));
        assert_eq!(with(1, 1), Err(RecordError::Rules(RulesError::Tables)));
    }
}
