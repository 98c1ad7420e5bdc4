//! How many messages of each kind one member may send in one second.
//!
//! Counted before anything costly is done with a message; the window is a whole second of the caller's clock.

use crate::record::Peer;
use crate::wire::Kind;
use std::collections::BTreeMap;

/// Messages of kinds that come once per order.
const PER_ORDER: u32 = 4096;
/// Messages of all other kinds.
const OTHER: u32 = 256;

/// Counts of the current second.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    second: u64,
    counts: BTreeMap<(Peer, Kind), u32>,
}

impl Limits {
    /// Counts one message; false when it is one too many.
    pub(crate) fn admit(&mut self, now_ms: u64, from: Peer, kind: Kind) -> bool {
        let second = now_ms / 1000;
        if second != self.second {
            self.second = second;
            self.counts.clear();
        }
        let per_order = kind.is_from_home() || kind.is_for_home() || kind == Kind::Reply;
        let count = self.counts.entry((from, kind)).or_default();
        *count = count.saturating_add(1);
        *count <= if per_order { PER_ORDER } else { OTHER }
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
    }
}
