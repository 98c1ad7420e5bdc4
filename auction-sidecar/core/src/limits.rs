//! How many messages of each kind one member may send in one second, and how much it may have sent to it on request.
//!
//! Counted before anything costly is done with a message; the window is a whole second of the caller's clock.

use crate::record::Peer;
use crate::wire::Kind;
use std::collections::BTreeMap;

/// Messages of kinds that come once per order.
const PER_ORDER: u32 = 4096;
/// Messages of all other kinds.
const OTHER: u32 = 256;

/// Certificates of one home that are checked; those of rounds that this seat has seen cost nothing.
const CERTIFICATES: u32 = 16;

/// Bytes of replies to one member: a request is small and what it asks for may be large.
const REPLY_BYTES: usize = 16 << 20;

/// Counts of the current second.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    second: u64,
    counts: BTreeMap<(Peer, Kind), u32>,
    replied: BTreeMap<Peer, usize>,
    checked: BTreeMap<u16, u32>,
}

impl Limits {
    /// Counts one message; false when it is one too many.
    pub(crate) fn admit(&mut self, now_ms: u64, from: Peer, kind: Kind) -> bool {
        self.turn(now_ms);
        // Homes ask once per order too.
        let home_asks = kind == Kind::Fetch && matches!(from, Peer::Home(_));
        let per_order = home_asks || kind.is_from_home() || kind.is_for_home() || kind == Kind::Reply;
        let count = self.counts.entry((from, kind)).or_default();
        *count = count.saturating_add(1);
        *count <= if per_order { PER_ORDER } else { OTHER }
    }

    /// Counts a reply of so many bytes; false when it is too much for now.
    pub(crate) fn reply(&mut self, now_ms: u64, to: Peer, bytes: usize) -> bool {
        self.turn(now_ms);
        let replied = self.replied.entry(to).or_default();
        *replied = replied.saturating_add(bytes);
        *replied <= REPLY_BYTES
    }

    /// Counts the check of a certificate that a home shows; false when it is one too many.
    pub(crate) fn certificate(&mut self, now_ms: u64, home: u16) -> bool {
        self.turn(now_ms);
        let checked = self.checked.entry(home).or_default();
        *checked = checked.saturating_add(1);
        *checked <= CERTIFICATES
    }

    fn turn(&mut self, now_ms: u64) {
        let second = now_ms / 1000;
        if second != self.second {
            self.second = second;
            self.counts.clear();
            self.replied.clear();
            self.checked.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_off_and_others_are_not() {
        let mut limits = Limits::default();
        let flooder = Peer::Seat(1);
        let admitted = (0..1000).filter(|_| limits.admit(1_000, flooder, Kind::Fetch)).count();
        assert_eq!(admitted, 256);
        assert!(limits.admit(1_000, flooder, Kind::Bundle));
        assert!(limits.admit(1_000, Peer::Seat(2), Kind::Fetch));
        assert!(limits.admit(2_000, flooder, Kind::Fetch));
        assert_eq!((0..5000).filter(|_| limits.admit(2_000, Peer::Home(0), Kind::Fetch)).count(), 4096);
    }

    #[test]
    fn a_home_shows_a_few_certificates_at_a_time() {
        let mut limits = Limits::default();
        assert_eq!((0..100).filter(|_| limits.certificate(1_000, 0)).count(), 16);
        assert!(limits.certificate(1_000, 1) && limits.certificate(2_000, 0));
    }

    #[test]
    fn who_asks_for_much_waits() {
        let mut limits = Limits::default();
        let large = 512 << 10;
        assert_eq!((0..100).filter(|_| limits.reply(1_000, Peer::Seat(1), large)).count(), 32);
        assert!(limits.reply(1_000, Peer::Seat(2), large));
        assert!(limits.reply(2_000, Peer::Seat(1), large));
    }
}
