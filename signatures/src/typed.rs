//! EIP-712 hashes of structs (<https://eips.ethereum.org/EIPS/eip-712>).
//!
//! Input: a domain, the hash of a struct type, its fields in order. Output: the hash that is signed. Invariant: the name
//! and the version of every domain are the product's, so no signature of another product is one of Vendue's.

use crate::Hash;
use sha3::{Digest as _, Keccak256};
use std::sync::OnceLock;

const NAME: &[u8] = b"VENDUE";
const VERSION: &[u8] = b"1";

/// Keccak-256 over parts.
pub fn keccak(parts: &[&[u8]]) -> Hash {
    let mut hasher = Keccak256::new();
    parts.iter().for_each(|p| hasher.update(p));
    hasher.finalize().into()
}

/// A field of a struct that is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field<'a> {
    /// Of any length.
    Bytes(&'a [u8]),
    /// 32 bytes that stand for themselves.
    Word(&'a Hash),
}

/// Where signatures are valid: the hash of an EIP-712 domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Domain(Hash);

impl Domain {
    /// The domain of what holds everywhere.
    pub fn plain() -> Self {
        let [name, version] = Self::constants();
        Self(keccak(&[&keccak(&[b"EIP712Domain(string name,string version)"]), name, version]))
    }

    /// The domain with a salt, such as the id of a market.
    pub fn salted(salt: &Hash) -> Self {
        static TYPE: OnceLock<Hash> = OnceLock::new();
        let of = TYPE.get_or_init(|| keccak(&[b"EIP712Domain(string name,string version,bytes32 salt)"]));
        let [name, version] = Self::constants();
        Self(keccak(&[of, name, version, salt]))
    }

    /// They never change, so they are worked out once.
    fn constants() -> &'static [Hash; 2] {
        static HASHES: OnceLock<[Hash; 2]> = OnceLock::new();
        HASHES.get_or_init(|| [keccak(&[NAME]), keccak(&[VERSION])])
    }
}

/// The hash of a struct in a domain. `type_hash` is [`keccak`] of the type's text.
pub fn typed_hash(domain: &Domain, type_hash: &Hash, fields: &[Field<'_>]) -> Hash {
    let mut hasher = Keccak256::new();
    hasher.update(type_hash);
    for field in fields {
        match field {
            Field::Bytes(bytes) => hasher.update(keccak(&[bytes])),
            Field::Word(word) => hasher.update(word),
        }
    }
    let struct_hash: Hash = hasher.finalize().into();
    keccak(&[&[0x19, 0x01], &domain.0, &struct_hash])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written out as the standard has it: `0x1901 | domain | struct`.
    #[test]
    fn a_typed_hash_is_that_of_eip_712() {
        let of: &[u8] = b"EIP712Domain(string name,string version,bytes32 salt)";
        let salted = keccak(&[&keccak(&[of]), &keccak(&[b"VENDUE"]), &keccak(&[b"1"]), &[3; 32]]);
        let of: &[u8] = b"EIP712Domain(string name,string version)";
        let plain = keccak(&[&keccak(&[of]), &keccak(&[b"VENDUE"]), &keccak(&[b"1"])]);
        let type_hash = keccak(&[b"Thing(bytes32 digest,bytes body)"]);
        let inner = keccak(&[&type_hash, &[5; 32], &keccak(&[b"body"])]);
        let fields = [Field::Word(&[5; 32]), Field::Bytes(b"body")];
        for (domain, hash) in [(Domain::salted(&[3; 32]), salted), (Domain::plain(), plain)] {
            assert_eq!(typed_hash(&domain, &type_hash, &fields), keccak(&[&[0x19, 0x01], &hash, &inner]));
        }
        assert_ne!(Domain::salted(&[4; 32]), Domain::salted(&[3; 32]));
    }

    #[test]
    fn keccak_is_the_one_of_ethereum_not_sha3() {
        let empty = "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470";
        assert_eq!(hex::encode(keccak(&[])), empty);
        assert_eq!(keccak(&[b"ab", b"c"]), keccak(&[b"abc"]));
    }
}
