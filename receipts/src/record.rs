//! One usage record and its one encoding.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use sha2::{Digest as _, Sha256};

/// A SHA-256 digest.
pub type Digest = [u8; 32];

const VERSION: u8 = 1;
/// Bytes of an encoded record.
pub const ENCODED_LEN: usize = 1 + 32 + 8 + 8 + 8 + 4 + 8 + 32;

/// Usage of one award in one window of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRecord {
    /// The award: digest of the order that was awarded.
    #[serde(serialize_with = "to_hex", deserialize_with = "from_hex")]
    pub award: Digest,
    /// Counts the award's records from 0.
    pub sequence: u64,
    /// Start of the window in milliseconds since 1970.
    pub t0_ms: u64,
    /// End of the window; not before its start.
    pub t1_ms: u64,
    /// GPUs in use.
    pub gpus: u32,
    /// Cost of the window in millionths.
    pub cost_micros: u64,
    /// Digest of the record before; zero for the first.
    #[serde(serialize_with = "to_hex", deserialize_with = "from_hex")]
    pub previous: Digest,
}

/// Bytes that are not a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not the length of a record.
    #[error("a usage record has {ENCODED_LEN} bytes, found {0}")]
    Length(usize),
    /// Written in a form that this program does not know.
    #[error("usage record has version {0}; accepted is {VERSION}")]
    Version(u8),
}

impl UsageRecord {
    /// The record's one encoding.
    pub fn to_bytes(&self) -> [u8; ENCODED_LEN] {
        let parts: [&[u8]; 8] = [
            &[VERSION],
            &self.award,
            &self.sequence.to_be_bytes(),
            &self.t0_ms.to_be_bytes(),
            &self.t1_ms.to_be_bytes(),
            &self.gpus.to_be_bytes(),
            &self.cost_micros.to_be_bytes(),
            &self.previous,
        ];
        let mut out = [0; ENCODED_LEN];
        out.iter_mut().zip(parts.concat()).for_each(|(to, from)| *to = from);
        out
    }

    /// Reads an encoded record.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut rest = bytes;
        let length = DecodeError::Length(bytes.len());
        if bytes.len() != ENCODED_LEN {
            return Err(length);
        }
        let [version] = take(&mut rest).ok_or(length)?;
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
        Ok(Self {
            award: take(&mut rest).ok_or(length)?,
            sequence: u64::from_be_bytes(take(&mut rest).ok_or(length)?),
            t0_ms: u64::from_be_bytes(take(&mut rest).ok_or(length)?),
            t1_ms: u64::from_be_bytes(take(&mut rest).ok_or(length)?),
            gpus: u32::from_be_bytes(take(&mut rest).ok_or(length)?),
            cost_micros: u64::from_be_bytes(take(&mut rest).ok_or(length)?),
            previous: take(&mut rest).ok_or(length)?,
        })
    }

    /// The digest by which the next record names this one.
    pub fn digest(&self) -> Digest {
        Sha256::new().chain_update(b"VENDUE-V1-USAGE").chain_update(self.to_bytes()).finalize().into()
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

fn to_hex<S: Serializer>(digest: &Digest, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&digest.iter().map(|b| format!("{b:02x}")).collect::<String>())
}

fn from_hex<'de, D: Deserializer<'de>>(d: D) -> Result<Digest, D::Error> {
    let text = String::deserialize(d)?;
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    let bytes: Option<Vec<u8>> = text
        .as_bytes()
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        })
        .collect();
    bytes
        .and_then(|b| b.try_into().ok())
        .ok_or_else(|| D::Error::custom(format!("{text:?} is not 32 bytes of lower-case hex")))
}
