//! Who and what a record is about: awards, devices, boots, keys.
//!
//! Inputs: bytes and texts of others. Outputs: values that are well formed. Invariant: each value has one text form.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::fmt;
use std::str::FromStr;
use vendue_market::encode::{from_hex, hex_array, to_hex};
use vendue_signatures::{SignatureError, SigningKey};

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not the digits of an award.
    #[error("award id {0:?} is not 16 lower-case hex digits")]
    Award(String),
    /// Not the name of a chain.
    #[error("chain {0:?} is not 16 lower-case hex digits of an award, a dash and 16 of a key")]
    Chain(String),
    /// Not what a device or a driver is called.
    #[error("name {found:?} is not 1 to {max} printable ASCII characters")]
    Name {
        /// What was given.
        found: String,
        /// The most that is accepted.
        max: usize,
    },
}

/// An award by its 8 bytes, the hex digits of its namespace `vendue-a-<id>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AwardId(#[serde(with = "hex_array")] pub [u8; 8]);

impl AwardId {
    /// No award: the chain of a node's idle time.
    pub const IDLE: Self = Self([0; 8]);

    /// Whether this stands for idle time.
    pub fn is_idle(&self) -> bool {
        *self == Self::IDLE
    }
}

impl fmt::Display for AwardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_hex(&self.0))
    }
}

impl fmt::Debug for AwardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AwardId({self})")
    }
}

impl FromStr for AwardId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let bytes = from_hex(text).and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| NameError::Award(text.to_owned()))
    }
}

/// A chain by its award and the key that opened it. As text: 16 hex digits of the award, a dash, 16 of the key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainName {
    /// The award.
    pub award: AwardId,
    /// The first bytes of the key's x coordinate.
    pub key: [u8; 8],
}

impl ChainName {
    /// The name of an award's chain under the key that opens it.
    #[must_use]
    pub fn new(award: AwardId, opening_key: PublicKey) -> Self {
        let mut key = [0; 8];
        key.iter_mut().zip(opening_key.0.iter().skip(1)).for_each(|(to, from)| *to = *from);
        Self { award, key }
    }
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.award, to_hex(&self.key))
    }
}

impl fmt::Debug for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChainName({self})")
    }
}

impl FromStr for ChainName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let parts = text.split_once('-').and_then(|(award, key)| {
            let key = from_hex(key).and_then(|bytes| bytes.try_into().ok())?;
            Some(Self { award: award.parse().ok()?, key })
        });
        parts.ok_or_else(|| NameError::Chain(text.to_owned()))
    }
}

impl Serialize for ChainName {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ChainName {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}

/// The kernel's id of a boot (`/proc/sys/kernel/random/boot_id`) as bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(#[serde(with = "hex_array")] pub [u8; 16]);

/// A public key, compressed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PublicKey(#[serde(with = "hex_array")] pub [u8; 33]);

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_hex(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

/// The key of a node, with its public key worked out once.
pub struct NodeKey {
    key: SigningKey,
    public: PublicKey,
}

impl NodeKey {
    /// From a secret key.
    pub fn new(key: SigningKey) -> Self {
        Self { public: PublicKey(key.public_key()), key }
    }
    /// From the 32 bytes of a secret key.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, SignatureError> {
        SigningKey::from_bytes(bytes).map(Self::new)
    }
    /// The public key.
    pub fn public(&self) -> PublicKey {
        self.public
    }
    pub(crate) fn sign(&self, hash: &[u8; 32]) -> [u8; 65] {
        self.key.sign(hash)
    }
}

/// A text of 1 to `MAX` printable ASCII characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Name<const MAX: usize>(String);

/// A device by the UUID that NVML gives it; of a GPU or a MIG device. NVML's buffer holds 95 characters.
pub type DeviceId = Name<95>;
/// Version of the driver. NVML's buffer holds 79 characters.
pub type DriverVersion = Name<79>;

impl<const MAX: usize> Name<MAX> {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> TryFrom<String> for Name<MAX> {
    type Error = NameError;
    fn try_from(found: String) -> Result<Self, NameError> {
        let accepted = (1..=MAX).contains(&found.len()) && found.bytes().all(|b| (b' '..=b'~').contains(&b));
        if accepted { Ok(Self(found)) } else { Err(NameError::Name { found, max: MAX }) }
    }
}

impl<const MAX: usize> FromStr for Name<MAX> {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        text.to_owned().try_into()
    }
}

impl<const MAX: usize> From<Name<MAX>> for String {
    fn from(name: Name<MAX>) -> Self {
        name.0
    }
}

impl<const MAX: usize> fmt::Display for Name<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<const MAX: usize> fmt::Debug for Name<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_one_form() {
        let award: AwardId = "00ff10203040506a".parse().unwrap();
        assert_eq!(award.to_string(), "00ff10203040506a");
        for bad in ["", "00FF10203040506a", "00ff10203040506", "00ff10203040506a0", "zzff10203040506a"] {
            assert_eq!(bad.parse::<AwardId>(), Err(NameError::Award(bad.to_owned())));
        }
        let device: DeviceId = "GPU-0".parse().unwrap();
        assert_eq!(serde_json::to_string(&device).unwrap(), "\"GPU-0\"");
        let longest = "x".repeat(95);
        assert_eq!(longest.parse::<DeviceId>().unwrap().as_str(), longest);
        for bad in ["", "GPU\n", "GPU-\u{e9}", &"x".repeat(96)] {
            assert!(bad.parse::<DeviceId>().is_err(), "{bad:?}");
            assert!(serde_json::from_value::<DeviceId>(bad.into()).is_err(), "{bad:?}");
        }
    }
}
