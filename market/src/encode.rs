//! Canonical byte encoding: big-endian integers, length-prefixed strings and lists, nothing optional.
//!
//! [`Writer`] builds bytes; [`Reader`] is total: every input either decodes or gives a [`DecodeError`], and a
//! decoder that finishes with [`Reader::end`] accepts no trailing bytes. Types with one canonical encoding
//! implement [`Canonical`].

/// Why bytes were not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The input ended before the value did.
    #[error("input ends too early")]
    Short,
    /// Bytes are left over after the value.
    #[error("{0} bytes left over")]
    Trailing(usize),
    /// A length or count is above its bound.
    #[error("{what} has {found} entries or bytes, at most {max} are accepted")]
    TooLong {
        /// What was counted.
        what: &'static str,
        /// The count found.
        found: usize,
        /// The largest accepted count.
        max: usize,
    },
    /// A value is outside what its field accepts, or not in its one canonical form.
    #[error("{0} is not valid")]
    Invalid(&'static str),
}

/// Appends canonical bytes.
#[derive(Debug, Default, Clone)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// An empty writer.
    pub fn new() -> Self {
        Self(Vec::with_capacity(256))
    }
    /// An empty writer with room for so many bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }
    /// Appends one byte.
    pub fn u8(&mut self, v: u8) -> &mut Self {
        self.0.push(v);
        self
    }
    /// Appends a big-endian u16.
    pub fn u16(&mut self, v: u16) -> &mut Self {
        self.raw(&v.to_be_bytes())
    }
    /// Appends a big-endian u32.
    pub fn u32(&mut self, v: u32) -> &mut Self {
        self.raw(&v.to_be_bytes())
    }
    /// Appends a big-endian u64.
    pub fn u64(&mut self, v: u64) -> &mut Self {
        self.raw(&v.to_be_bytes())
    }
    /// Appends a big-endian i64.
    pub fn i64(&mut self, v: i64) -> &mut Self {
        self.raw(&v.to_be_bytes())
    }
    /// Appends bytes as they are; for fields of fixed length.
    pub fn raw(&mut self, v: &[u8]) -> &mut Self {
        self.0.extend_from_slice(v);
        self
    }
    /// Appends a u32 length and the bytes.
    pub fn bytes(&mut self, v: &[u8]) -> &mut Self {
        self.u32(v.len() as u32).raw(v)
    }
    /// Appends a string like [`Writer::bytes`].
    pub fn str(&mut self, v: &str) -> &mut Self {
        self.bytes(v.as_bytes())
    }
    /// Appends a u32 count and each item.
    pub fn list<T>(&mut self, items: &[T], mut each: impl FnMut(&mut Self, &T)) -> &mut Self {
        self.u32(items.len() as u32);
        for item in items {
            each(self, item);
        }
        self
    }
    /// The bytes written so far.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Reads canonical bytes; never panics.
#[derive(Debug, Clone)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Reads from the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }
    /// The bytes not read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.0
    }
    /// Takes `n` bytes.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], DecodeError> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(DecodeError::Short)?;
        self.0 = tail;
        Ok(head)
    }
    /// Takes a fixed-length array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        self.take(N)?.try_into().map_err(|_| DecodeError::Short)
    }
    /// Takes one byte.
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }
    /// Takes a big-endian u16.
    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_be_bytes(self.array()?))
    }
    /// Takes a big-endian u32.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.array()?))
    }
    /// Takes a big-endian u64.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_be_bytes(self.array()?))
    }
    /// Takes a big-endian i64.
    pub fn i64(&mut self) -> Result<i64, DecodeError> {
        Ok(i64::from_be_bytes(self.array()?))
    }
    /// Takes a u32 count that is at most `max`.
    pub fn count(&mut self, what: &'static str, max: usize) -> Result<usize, DecodeError> {
        let found = self.u32()? as usize;
        if found > max {
            return Err(DecodeError::TooLong { what, found, max });
        }
        Ok(found)
    }
    /// Takes length-prefixed bytes of at most `max`.
    pub fn bytes(&mut self, what: &'static str, max: usize) -> Result<&'a [u8], DecodeError> {
        let n = self.count(what, max)?;
        self.take(n)
    }
    /// Takes a length-prefixed UTF-8 string of at most `max` bytes.
    pub fn str(&mut self, what: &'static str, max: usize) -> Result<String, DecodeError> {
        let bytes = self.bytes(what, max)?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| DecodeError::Invalid(what))
    }
    /// Takes a counted list of at most `max` items.
    pub fn list<T>(
        &mut self,
        what: &'static str,
        max: usize,
        mut each: impl FnMut(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        let n = self.count(what, max)?;
        // Not reserved up front: a lying count must not cost memory.
        let mut items = Vec::new();
        for _ in 0..n {
            items.push(each(self)?);
        }
        Ok(items)
    }
    /// Requires that everything was read.
    pub fn end(&self) -> Result<(), DecodeError> {
        if self.0.is_empty() { Ok(()) } else { Err(DecodeError::Trailing(self.0.len())) }
    }
}

/// A type with exactly one encoding per value.
pub trait Canonical: Sized {
    /// Appends the value's bytes.
    fn write(&self, w: &mut Writer);
    /// Reads a value.
    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError>;

    /// The value's bytes.
    fn to_bytes(&self) -> Vec<u8> {
        let mut w = Writer::new();
        self.write(&mut w);
        w.finish()
    }
    /// Decodes a whole input.
    fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let value = Self::read(&mut r)?;
        r.end()?;
        Ok(value)
    }
}

/// Serde form of fixed-length bytes: lower-case hex.
pub mod hex_array {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes lower-case hex.
    pub fn serialize<S: Serializer, const N: usize>(bytes: &[u8; N], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&super::to_hex(bytes))
    }
    /// Reads lower-case hex of exactly the right length.
    pub fn deserialize<'de, D: Deserializer<'de>, const N: usize>(d: D) -> Result<[u8; N], D::Error> {
        let text = String::deserialize(d)?;
        super::from_hex(&text)
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| D::Error::custom(format!("{text:?} is not {N} bytes of lower-case hex")))
    }
}

/// Serde form of optional fixed-length bytes: lower-case hex, or nothing.
pub mod hex_option {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    /// Writes lower-case hex.
    pub fn serialize<S: Serializer, const N: usize>(
        bytes: &Option<[u8; N]>,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        bytes.as_ref().map(|bytes| super::to_hex(bytes)).serialize(s)
    }
    /// Reads lower-case hex of exactly the right length, or nothing.
    pub fn deserialize<'de, D: Deserializer<'de>, const N: usize>(d: D) -> Result<Option<[u8; N]>, D::Error> {
        let Some(text) = Option::<String>::deserialize(d)? else { return Ok(None) };
        let bytes = super::from_hex(&text).and_then(|bytes| bytes.try_into().ok());
        bytes
            .map(Some)
            .ok_or_else(|| D::Error::custom(format!("{text:?} is not {N} bytes of lower-case hex")))
    }
}

/// Lower-case hex.
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Bytes of a lower-case hex string; `None` for anything else, so that a value has one text form.
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |b: &u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.as_bytes()
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => Some(digit(high)? << 4 | digit(low)?),
            _ => None,
        })
        .collect()
}
