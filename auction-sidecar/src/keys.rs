//! The key file of a cluster: transport identity, and the keys of its seat, of its home, or of both.
//!
//! Inputs: JSON text. Outputs: checked keys. Invariant: keys that do not fit the market record are refused at start.

use libp2p::identity::Keypair;
use serde::{Deserialize, Serialize};
use vendue_auction_core::evidence::EvidenceKey;
use vendue_auction_core::secret::{self, SecretBytes};
use vendue_auction_core::{HomeKeyFile, HomeKeys, KeyError, MarketRecord, Peer, SeatKeyFile, SeatKeys};
use zeroize::Zeroizing;

/// Why a key file is refused.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// Not a key file.
    #[error("key file does not parse: {0}")]
    Parse(String),
    /// The transport key is malformed.
    #[error("transport key: {0}")]
    Transport(String),
    /// The keys of seat or home are refused.
    #[error(transparent)]
    Core(#[from] KeyError),
    /// The transport identity is not a member of the market.
    #[error("peer {0} is not in the market record")]
    NotAMember(String),
}

/// The file form. Secrets are in it: no `Debug`, and all of them are wiped when dropped.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeysFile {
    /// Name of the cluster, for people.
    pub name: String,
    /// ed25519 secret of the transport, 64 hex digits.
    pub transport: SecretBytes,
    /// Keys of the seat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seat: Option<SeatKeyFile>,
    /// Key of the home.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home: Option<HomeKeyFile>,
}

/// The file form of the key that signs a market's records. No `Debug`; wiped when dropped.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuerFile {
    /// secp256k1 secret, 64 hex digits.
    pub issuer: SecretBytes,
}

impl IssuerFile {
    /// Reads the key.
    pub fn read(text: &str) -> Result<EvidenceKey, KeysError> {
        let file: Self = secret::from_json(text).map_err(KeysError::Parse)?;
        let key = EvidenceKey::from_bytes(file.issuer.bytes());
        key.map_err(|_| KeysError::Core(KeyError::Field("issuer")))
    }
}

/// A cluster's keys, checked against the market record.
pub struct Keys {
    /// Transport identity.
    pub transport: Keypair,
    /// The seat's.
    pub seat: Option<SeatKeys>,
    /// The home's, with its position in the record.
    pub home: Option<(u16, HomeKeys)>,
}

/// The transport identity of 32 secret bytes.
pub fn transport(secret: &SecretBytes) -> Result<Keypair, KeysError> {
    let mut copy = Zeroizing::new(*secret.bytes());
    Keypair::ed25519_from_bytes(copy.as_mut_slice()).map_err(|e| KeysError::Transport(e.to_string()))
}

impl Keys {
    /// Reads and checks a key file.
    pub fn from_json(text: &str, record: &MarketRecord) -> Result<Self, KeysError> {
        let file: KeysFile = secret::from_json(text).map_err(KeysError::Parse)?;
        let transport = transport(&file.transport)?;
        let peer = transport.public().to_peer_id().to_string();
        let seat = file.seat.as_ref().map(SeatKeys::from_file).transpose()?;
        let home = file.home.as_ref().map(HomeKeys::from_file).transpose()?;
        if let Some(keys) = &seat {
            keys.check(record)?;
        }
        let home = home.map(|keys| keys.check(record).map(|index| (index, keys))).transpose()?;
        // The identity must be that of the member whose keys these are.
        let fits_seat = seat.as_ref().is_none_or(|k| record.seat(k.seat).is_some_and(|s| s.peer_id == peer));
        let fits_home = home.as_ref().is_none_or(|(i, _)| record.home(*i).is_some_and(|h| h.peer_id == peer));
        if record.peer(&peer).is_none() || !fits_seat || !fits_home {
            return Err(KeysError::NotAMember(peer));
        }
        Ok(Self { transport, seat, home })
    }

    /// The members of the market that this process is.
    pub fn own(&self) -> Vec<Peer> {
        let seat = self.seat.as_ref().map(|k| Peer::Seat(k.seat));
        seat.into_iter().chain(self.home.as_ref().map(|(i, _)| Peer::Home(*i))).collect()
    }
}
