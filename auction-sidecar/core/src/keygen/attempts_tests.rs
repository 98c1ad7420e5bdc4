//! Agreement over several attempts: votes that come late, and what seats know of each other's.

use super::tests::{D, Rig, on_time};
use super::*;
use crate::wire::{decode, peek_kind};
use std::cell::Cell;

/// Seat 2 comes late and seat 3 keeps its LOCK of the first attempt back, so that this attempt expires with locks and
/// without a commit; then it shows the LOCK to seat 0 alone, at `shown`.
fn with_a_lock_kept_back(shown: u64) -> Rig {
    let mut rig = Rig::new(4);
    let kept = Cell::new(None);
    let late = rig.until(0) + 4 * D;
    let fate = |from: u16, to: u16, bytes: &[u8]| {
        let round = decode(bytes, 4).unwrap().header.round;
        let is_of_attempt = !matches!(peek_kind(bytes), Some(Kind::DealKey | Kind::Deal | Kind::Acks));
        match (from, peek_kind(bytes)) {
            // Seat 2 hears and says nothing in the first attempt.
            (2, _) | (_, Some(_)) if is_of_attempt && round == 0 && (from == 2 || to == 2) => vec![],
            (3, Some(Kind::Lock)) if round == 0 => {
                kept.set(Some(bytes.to_vec()));
                vec![]
            }
            // It is silent from then on.
            (3, _) if is_of_attempt && round > 0 => vec![],
            (3, Some(Kind::Commit | Kind::Award)) => vec![],
            _ => on_time(from, to, bytes),
        }
    };
    rig.begin(&fate);
    rig.run(late, &fate);
    rig.run(shown, &fate);
    let lock = kept.take().expect("seat 3 has locked");
    rig.now = rig.now.max(shown);
    rig.give(0, KeyInput::Message { from: 3, bytes: lock }, &fate);
    rig.run(rig.until(6), &fate);
    rig
}

#[test]
fn a_lock_that_is_kept_back_splits_no_votes() {
    // Before the second attempt begins, while seats contribute to it, while they vote in it.
    let begins = Rig::new(4).until(1);
    for shown in [begins - 4 * D, begins - D, begins - 1, begins, begins + D, begins + 3 * D, begins + 5 * D] {
        let rig = with_a_lock_kept_back(shown);
        rig.check(3);
        let (first, last) = (&rig.done[&0].certificate, &rig.done[&2].certificate);
        assert_eq!(first.root, last.root, "shown at {shown}");
    }
}
