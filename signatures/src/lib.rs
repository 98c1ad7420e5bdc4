//! Signatures that a contract can check: secp256k1 over EIP-712 hashes, with the key recovered from the signature.
//!
//! Inputs: secret keys as bytes, structs as fields. Outputs: hashes, 65-byte signatures, the public key that made one.
//! Invariant: signatures are `r | s | recovery id` with low s, so a hash has one signature per nonce and nothing can be
//! re-encoded; a hash belongs to one domain and one struct type, so it means nothing elsewhere.

mod key;
mod typed;

pub use key::{SignatureError, SigningKey, check_public_key, recover, tweaked, verify};
pub use typed::{Domain, Field, keccak, typed_hash};

/// A 32-byte hash.
pub type Hash = [u8; 32];
