//! Agreement over several attempts: votes that come late, and what seats show of them.

use super::tests::{D, Rig, on_time};
use super::*;
use crate::wire::{decode, peek_kind};
use std::cell::Cell;

/// Seat 2 is cut off before it acknowledges anything, while the first attempt is agreed on, and seat 3 keeps its LOCK of it back: it expires with locks
/// and without a commit. At `shown` seat 3 shows the LOCK to these seats; it locks and votes in no attempt.
fn with_a_lock_kept_back(shown: u64, to: &[u16]) -> Rig {
    let mut rig = Rig::new(4);
    let (kept, begins, now) = (Cell::new(None), rig.until(1), Cell::new(0));
    let dealt = rig.until(0) - 4 * D;
    let fate = |from: u16, to: u16, bytes: &[u8]| {
        let is_of_attempt = !matches!(peek_kind(bytes), Some(Kind::DealKey | Kind::Deal | Kind::Acks));
        let attempt = decode(bytes, 4).unwrap().header.round;
        let is_silent = from == 2 && peek_kind(bytes) == Some(Kind::Acks);
        let is_cut = is_silent || ((from == 2 || to == 2) && now.get() > dealt);
        // What is of the first attempt it hears when it has contributed to the second one.
        let is_old = (from == 2 || to == 2) && is_of_attempt && attempt == 0;
        let is_cut = (is_cut && now.get() < begins - D) || (is_old && now.get() < begins + 10 * D);
        match (from, peek_kind(bytes)) {
            (3, Some(Kind::Lock)) if attempt == 0 => {
                kept.set(Some(bytes.to_vec()));
                vec![]
            }
            // Otherwise its contribution would show a vote of its own.
            (_, Some(Kind::Lock)) if attempt == 0 && to == 3 => vec![],
            (3, Some(Kind::Lock | Kind::Commit | Kind::Award | Kind::Cert)) => vec![],
            _ if is_cut => vec![],
            _ => on_time(from, to, bytes),
        }
    };
    rig.begin(&fate);
    while rig.now < shown {
        now.set(rig.now + 1);
        let next = rig.now + D / 4;
        rig.run(next, &fate);
        rig.now = next;
    }
    let lock = kept.take().expect("seat 3 has locked");
    for seat in to {
        rig.give(*seat, KeyInput::Message { from: 3, bytes: lock.clone() }, &fate);
    }
    while rig.now < rig.until(7) && rig.done.len() < 4 {
        now.set(rig.now + 1);
        let next = rig.now + D / 4;
        rig.run(next, &fate);
        rig.now = next;
    }
    rig
}

/// The keys that an honest seat voted for in an attempt.
fn votes(rig: &Rig, attempt: u64) -> BTreeMap<u16, Digest> {
    let said = rig.said.iter().filter(|(from, _)| *from != 3);
    let votes = said.filter_map(|(from, bytes)| match decode(bytes, 4).unwrap() {
        Message { header, body: Body::Award(vote), .. } if header.round == attempt => {
            Some((*from, vote.root))
        }
        _ => None,
    });
    votes.collect()
}

#[test]
fn who_voted_says_so_and_the_next_attempt_makes_the_same_key() {
    for to in [[0].as_slice(), &[0, 1]] {
        let rig = with_a_lock_kept_back(Rig::new(4).until(1) - 4 * D, to);
        rig.check(3);
        let (first, second) = (votes(&rig, 0), votes(&rig, 1));
        // Who took the commit passed it on, so two have voted; without seat 3 that is no quorum.
        assert_eq!(first.keys().copied().collect::<Vec<_>>(), [0, 1]);
        assert_eq!(second.keys().copied().collect::<Vec<_>>(), [0, 1, 2]);
        let keys: BTreeSet<_> = first.values().chain(second.values()).collect();
        assert_eq!(keys.len(), 1, "with the vote of seat 3 the first key would be certified too");
        assert_eq!(rig.done[&2].certificate.round, 1);
    }
}

#[test]
fn who_contributed_to_an_attempt_votes_in_no_earlier_one() {
    let begins = Rig::new(4).until(1);
    // While seats contribute to the second attempt, while they vote in it, and when its key is certified.
    for shown in [begins + D / 2, begins + 2 * D, begins + 4 * D, begins + 20 * D] {
        let rig = with_a_lock_kept_back(shown, &[0, 1]);
        rig.check(3);
        assert_eq!(votes(&rig, 0), BTreeMap::new(), "shown at {shown}");
        assert_eq!(votes(&rig, 1).len(), 3, "shown at {shown}");
        assert!(
            rig.done[&0].outcome.dealers.contains_key(&2),
            "the key of the second attempt is another one"
        );
    }
}

#[test]
fn a_seat_that_restarts_keeps_its_promise_and_shows_its_vote() {
    let begins = Rig::new(4).until(1);
    for (shown, voted) in [(begins - 4 * D, true), (begins + 2 * D, false)] {
        let mut rig = with_a_lock_kept_back(shown, &[0, 1]);
        let records = rig.logs[0].len();
        rig.restart(0, records);
        let again = rig.seats[0].as_ref().unwrap();
        assert_eq!((again.voted, again.promised), (Some(1), 1));
        // Up to the vote of the first attempt, where there is one.
        let is_vote = |r: &LogRecord| matches!(r, LogRecord::Said { bytes, .. } if peek_kind(bytes) == Some(Kind::Award));
        let first = rig.logs[0].iter().position(is_vote).unwrap();
        rig.restart(0, first + 1);
        let again = rig.seats[0].as_ref().unwrap();
        assert_eq!(again.voted, Some(u64::from(!voted)));
    }
}

#[test]
fn a_vote_that_is_shown_is_of_an_earlier_attempt_and_of_a_set_that_is_final() {
    let rig = with_a_lock_kept_back(Rig::new(4).until(1) - 4 * D, &[0]);
    let word = rig.said.iter().find_map(|(from, bytes)| match decode(bytes, 4).unwrap() {
        Message { header, body: Body::Bundle(bundle), .. } if *from == 0 && header.round == 1 => {
            Word::read(rig.terms.setup(), &bundle.payload).ok()
        }
        _ => None,
    });
    let word = word.expect("seat 0 contributed to the second attempt");
    let (record, setup) = (rig.terms.record(), rig.terms.setup());
    let is_sound = |word: &Word, attempt| word.is_sound::<crate::crypto::Curves>(record, attempt);
    assert_eq!(word.voted.as_ref().map(|voted| voted.attempt), Some(0));
    assert!(is_sound(&word, 1) && !is_sound(&word, 0));
    let bytes = word.to_bytes(setup);
    assert!(bytes.len() <= Word::most_bytes(setup));
    assert_eq!(Word::read(setup, &bytes), Ok(word.clone()));
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        if let Ok(changed) = Word::read(setup, &changed) {
            assert!(changed.contribution != word.contribution || !is_sound(&changed, 1), "byte {at}");
        }
        assert!(Word::read(setup, &bytes[..at]).is_err());
    }
}

#[test]
fn who_comes_back_after_the_last_attempt_takes_the_certificate_of_any() {
    let mut rig = Rig::new(4);
    let cut = |from: u16, to: u16, bytes: &[u8]| {
        let is_late = from == 2 || to == 2;
        let is_key = peek_kind(bytes) == Some(Kind::DealKey);
        if is_late && !is_key { vec![] } else { on_time(from, to, bytes) }
    };
    rig.begin(&cut);
    rig.run(rig.until(2), &cut);
    assert_eq!(rig.done.len(), 3);
    rig.queue.clear();
    rig.now = rig.terms.ends_ms() + 60 * D;
    let records = rig.logs[2].len();
    rig.restart(2, records);
    let end = rig.now + 20 * D;
    rig.begin(&on_time);
    rig.run(end, &on_time);
    rig.check(4);
}
