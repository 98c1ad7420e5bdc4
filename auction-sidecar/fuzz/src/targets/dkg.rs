//! Messages of key generation and of the recovery of a share. Those of a recovery are signed as a whole, so one that is
//! accepted is one that was sent.

use super::Cost::{Bytes, Pairing};
use super::{Target, target};
use crate::fixture::{Generation, generation};
use vendue_auction_core::keygen::Word;
use vendue_sealed_bid::dkg::{Contribution, Dealing, KeySet, Player, RecipientKey};

pub(super) const TARGETS: &[Target] = &[
    target("dkg_dealing", Pairing, dealing),
    target("dkg_contribution", Bytes, contribution),
    target("dkg_word", Bytes, word),
    target("dkg_key_set", Pairing, key_set),
    target("dkg_recipient_key", Pairing, recipient_key),
    target("dkg_split", Pairing, split),
    target("dkg_part", Pairing, part),
];

fn dealing(bytes: &[u8]) -> bool {
    let Generation { setup, dealings, deals, .. } = generation();
    let Ok(read) = Dealing::read(setup, bytes) else { return false };
    assert_eq!(read.to_bytes(), bytes, "a dealing has two encodings");
    // A value is acknowledged only when it lies on the commitment, so one that is changed is not.
    let dealer = usize::from(read.dealer());
    let commitment = |d: &[u8]| d[..d.len() - 96 - 4 * 48].to_vec();
    let is_known = commitment(bytes) == commitment(&dealings[dealer]);
    let mut player = Player::new(setup, 1, &deals[1]).expect("a player");
    let opened = player.receive(read, &deals[1]).is_ok();
    let bad = player.check(&deals[1]).expect("a check");
    assert!(!opened || !bad.is_empty() || is_known, "a value of another commitment is taken");
    opened
}

fn contribution(bytes: &[u8]) -> bool {
    let Generation { setup, .. } = generation();
    let Ok(read) = Contribution::read(setup, bytes) else { return false };
    assert_eq!(read.to_bytes(setup), bytes, "a contribution has two encodings");
    assert!(read.reveals.len() <= setup.most_reveals());
    true
}

fn word(bytes: &[u8]) -> bool {
    let Generation { setup, .. } = generation();
    let Ok(read) = Word::read(setup, bytes) else { return false };
    assert_eq!(read.to_bytes(setup), bytes, "a word has two encodings");
    true
}

fn recipient_key(bytes: &[u8]) -> bool {
    let Ok(point) = bytes.try_into() else { return false };
    let Ok(read) = RecipientKey::from_bytes(point) else { return false };
    assert_eq!(read.to_bytes(), point, "a point has two encodings");
    true
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
