//! Messages of key generation and of the recovery of a share. Each is signed as a whole, so one that is accepted is one
//! that was sent.

use super::Cost::Pairing;
use super::{Target, target};
use crate::fixture::{Generation, generation};
use vendue_sealed_bid::dkg::{KeySet, Log, Player};

pub(super) const TARGETS: &[Target] = &[
    target("dkg_dealing", Pairing, dealing),
    target("dkg_log", Pairing, log),
    target("dkg_key_set", Pairing, key_set),
    target("dkg_split", Pairing, split),
    target("dkg_part", Pairing, part),
];

fn dealing(bytes: &[u8]) -> bool {
    let Generation { setup, votes, deals, dealings, .. } = generation();
    let mut player = Player::new(setup, 1, &votes[1], &deals[1]).expect("the keys of seat 1");
    let accepted = player.receive(bytes);
    assert_eq!(accepted.is_ok(), dealings.iter().any(|d| d == bytes), "a changed dealing is accepted");
    accepted.is_ok()
}

fn log(bytes: &[u8]) -> bool {
    let Generation { setup, logs, .. } = generation();
    let accepted = Log::verify(setup, bytes);
    assert_eq!(accepted.is_ok(), logs.iter().any(|l| l == bytes), "a changed log is accepted");
    accepted.is_ok()
}

fn key_set(bytes: &[u8]) -> bool {
    let Ok(keys) = KeySet::from_bytes(bytes) else { return false };
    assert_eq!(keys.to_bytes(), bytes, "a key set has two encodings");
    assert_eq!(keys.share_keys().len(), usize::from(keys.seats()));
    true
}

fn split(bytes: &[u8]) -> bool {
    let Generation { splits, .. } = generation();
    let accepted = generation().recovery().read_split(bytes);
    assert_eq!(accepted.is_ok(), splits.iter().any(|s| s == bytes), "a changed split is accepted");
    accepted.is_ok()
}

fn part(bytes: &[u8]) -> bool {
    let Generation { parts, .. } = generation();
    let recovery = generation().recovery();
    let splits = generation().read_splits(&recovery);
    let accepted = recovery.read_part(&splits, bytes);
    assert_eq!(accepted.is_ok(), parts.iter().any(|p| p == bytes), "a changed part is accepted");
    accepted.is_ok()
}
