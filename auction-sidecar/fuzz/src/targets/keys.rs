//! Files with secrets. What they say when they are refused must not quote them.

use super::Cost::{Bytes, Signature};
use super::{Target, target};
use crate::fixture::fixture;
use vendue_auction_core::evidence::EvidenceKey;
use vendue_auction_core::{HomeKeys, KeyError, SeatKeys};
use vendue_sealed_bid::dkg::DealKey;
use vendue_sealed_bid::{SealShare, VoteKey};

pub(super) const TARGETS: &[Target] = &[
    target("seat_key_file", Signature, seat_key_file),
    target("home_key_file", Signature, home_key_file),
    target("secret_scalars", Bytes, secret_scalars),
];

fn quotes_nothing(error: &KeyError) {
    let text = error.to_string();
    let secret = |s: &&str| s.len() >= 8 && fixture().secret_texts().any(|known| known.contains(*s));
    let words = text.split(|c: char| !c.is_ascii_hexdigit());
    assert!(!words.into_iter().any(|w| secret(&w)), "the error quotes a secret");
    assert!(text.len() < 256, "{} bytes of error", text.len());
}

fn seat_key_file(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    match SeatKeys::from_json(text) {
        Ok(keys) => {
            let again = SeatKeys::from_json(&keys.to_json()).expect("a file that was written can be read");
            assert!(again.seat == keys.seat && again.vote.same_as(&keys.vote));
            assert!(again.share.same_as(&keys.share) && again.bid.to_bytes() == keys.bid.to_bytes());
            assert!(again.evidence.to_bytes() == keys.evidence.to_bytes());
            true
        }
        Err(error) => {
            quotes_nothing(&error);
            false
        }
    }
}

fn home_key_file(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    match HomeKeys::from_json(text) {
        Ok(keys) => {
            let again = HomeKeys::from_json(&keys.to_json()).expect("a file that was written can be read");
            assert!(again.user.to_bytes() == keys.user.to_bytes());
            true
        }
        Err(error) => {
            quotes_nothing(&error);
            false
        }
    }
}

/// 32 bytes as each secret that there is: a scalar has one encoding, and zero is none.
fn secret_scalars(bytes: &[u8]) -> bool {
    let Ok(bytes) = <[u8; 32]>::try_from(bytes) else { return false };
    let read = [
        SealShare::from_bytes(&bytes).ok().map(|k| *k.to_bytes()),
        VoteKey::from_bytes(&bytes).ok().map(|k| *k.to_bytes()),
        DealKey::from_bytes(&bytes).ok().map(|k| *k.to_bytes()),
        EvidenceKey::from_bytes(&bytes).ok().map(|k| *k.to_bytes()),
    ];
    assert!(read.iter().flatten().all(|written| *written == bytes), "a secret has two encodings");
    // Three of one group agree on what is below its order.
    assert!(read[0].is_some() == read[1].is_some() && read[1].is_some() == read[2].is_some());
    assert!(bytes != [0; 32] || read.iter().all(Option::is_none), "zero is a secret");
    read[0].is_some()
}
