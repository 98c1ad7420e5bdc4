//! Secrets in text: 32 bytes that are hex in files, and JSON that is written without leaving copies behind.
//!
//! Inputs and outputs: values and JSON text. Invariant: secret bytes are only ever in buffers that are wiped when
//! dropped; no buffer that holds them grows, since growing would leave the old one unwiped. Errors name places and
//! never quote what was read.

use serde::de::{DeserializeOwned, Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{fmt, io};
use zeroize::Zeroizing;

/// Longest JSON with secrets.
pub const MAX_SECRET_JSON: usize = 4096;

/// A 32-byte secret, 64 lower-case hex digits in files. No `Debug`; wiped when dropped.
#[derive(Clone)]
pub struct SecretBytes(Zeroizing<[u8; 32]>);

impl SecretBytes {
    /// Takes bytes that are wiped already.
    pub fn new(bytes: Zeroizing<[u8; 32]>) -> Self {
        Self(bytes)
    }
    /// The bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The value of a lower-case hex digit.
fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

fn digit(nibble: u8) -> u8 {
    if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 }
}

impl Serialize for SecretBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = Zeroizing::new([0u8; 64]);
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.0.iter()) {
            pair.copy_from_slice(&[digit(byte >> 4), digit(byte & 15)]);
        }
        let text = std::str::from_utf8(text.as_slice()).map_err(serde::ser::Error::custom)?;
        serializer.serialize_str(text)
    }
}

impl<'de> Deserialize<'de> for SecretBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(HexVisitor)
    }
}

/// Reads the digits where they stand in the text.
struct HexVisitor;

impl Visitor<'_> for HexVisitor {
    type Value = SecretBytes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("64 lower-case hex digits")
    }
    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<SecretBytes, E> {
        let mut bytes = Zeroizing::new([0u8; 32]);
        if text.len() != 64 {
            return Err(E::custom("not 64 lower-case hex digits"));
        }
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let value = match pair {
                [high, low] => nibble(*high).zip(nibble(*low)).map(|(high, low)| high << 4 | low),
                _ => None,
            };
            *byte = value.ok_or_else(|| E::custom("not 64 lower-case hex digits"))?;
        }
        Ok(SecretBytes(bytes))
    }
}

/// Memory of a fixed size that is wiped when dropped.
struct Fixed(Zeroizing<Vec<u8>>);

impl io::Write for Fixed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.capacity() - self.0.len() < bytes.len() {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a value with secrets as JSON of at most [`MAX_SECRET_JSON`] bytes.
pub fn to_json<T: Serialize>(value: &T) -> Result<Zeroizing<String>, serde_json::Error> {
    let mut out = Fixed(Zeroizing::new(Vec::with_capacity(MAX_SECRET_JSON)));
    serde_json::to_writer_pretty(&mut out, value)?;
    // The text takes over the memory; there is no copy.
    let bytes = std::mem::take(&mut *out.0);
    String::from_utf8(bytes).map(Zeroizing::new).map_err(|e| {
        drop(Zeroizing::new(e.into_bytes()));
        serde_json::Error::custom("not UTF-8")
    })
}

/// Reads a value with secrets. What is wrong is told by its kind and place only: serde would quote the text.
pub fn from_json<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|e| {
        let kind = match e.classify() {
            serde_json::error::Category::Data => "a field is missing, unknown or of another form",
            _ => "not JSON",
        };
        format!("{kind} (line {}, column {})", e.line(), e.column())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        key: SecretBytes,
    }

    #[test]
    fn hex_reads_back_and_nothing_else_is_accepted() {
        let bytes: [u8; 32] = std::array::from_fn(|i| (i * 9) as u8);
        let file = File { key: SecretBytes::new(Zeroizing::new(bytes)) };
        let json = to_json(&file).unwrap();
        assert!(json.contains(&hex::encode(bytes)));
        assert_eq!(from_json::<File>(&json).map(|f| *f.key.bytes()), Ok(bytes));
        for bad in ["", "00", &"0g".repeat(32), &"AB".repeat(32), &"00".repeat(33)] {
            assert!(from_json::<File>(&format!("{{\"key\": \"{bad}\"}}")).is_err(), "{bad}");
        }
    }

    #[test]
    fn errors_do_not_quote_what_was_read() {
        let secret = "5ec12e7".repeat(9);
        for text in [
            format!("{{\"key\": \"{secret}\"}}"),
            format!("{{\"{secret}\": 1}}"),
            format!("\"{secret}\""),
            format!("{{\"key\": {{\"{secret}\": 1}}}}"),
            secret.clone(),
        ] {
            let error = from_json::<File>(&text).map(|_| ()).unwrap_err();
            assert!(!error.contains("5ec12e7") && error.contains("line 1"), "{error}");
        }
    }

    #[test]
    fn what_holds_a_secret_never_grows() {
        let mut out = Fixed(Zeroizing::new(Vec::with_capacity(8)));
        let capacity = out.0.capacity();
        assert!(io::Write::write_all(&mut out, &vec![1; capacity]).is_ok());
        assert!(io::Write::write_all(&mut out, &[1]).is_err());
        assert_eq!((out.0.capacity(), out.0.len()), (capacity, capacity));
        assert!(to_json(&"x".repeat(MAX_SECRET_JSON)).is_err());
    }
}
